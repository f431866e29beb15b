# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu replay --vsmmu` and `--minimize` with recordings, as a user meets them."""

from __future__ import annotations

import io
import json
import lzma
import sys
from pathlib import Path

import pytest

from tests.cli.command import vsmmu
from tests.vsmmu.recording import tape as tapes
from vsmmu.recording.format import Record

ADVERTISED = """\
advertised: IDR0.S2P 0x0 (recorded 0x1)
advertised: IDR0.VMID16 0x0 (recorded 0x1)
advertised: IDR3.XNX 0x0 (recorded 0x1)
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def replay(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return vsmmu(capsys, "replay", *arguments)


def file(records: list[Record], name: str = "t.trace") -> str:
    Path(name).write_bytes(tapes.data(records))
    return name


def wrong() -> str:
    """A recording in which a page is mapped elsewhere than where its access was recorded."""
    tape, driver = tapes.everyday()
    driver.map(1, 0x40_0000, 0x4080_0000)
    dma = tape.dma(8, 0x40_0008)
    return file([*tape.records[:-1], dma._replace(pa=dma.pa ^ 0x1000)], "wrong.trace")


def test_a_recording_through_a_vsmmu(capsys: pytest.CaptureFixture[str]) -> None:
    name = file(tapes.everyday()[0].records)
    for more in ((), ("--guest", "dom0", "--smmus", "3", "--seed", "0x7", "--caching", "normal")):
        code, out, err = replay(capsys, "--vsmmu", *more, name)
        assert (code, err) == (0, "")
        table, _, advertised = out.partition("advertised")
        assert table.splitlines()[1].split() == ["t.trace", "none", "188", "17", "3", "agrees"]
        assert "advertised" + advertised == ADVERTISED


def test_json_names_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    name = file(tapes.everyday()[0].records)
    code, out, _ = replay(
        capsys,
        "--vsmmu",
        "--json",
        "--features",
        "oas=4,ssidsize=0,pps=0",
        "--caching",
        "none",
        name,
    )
    assert code == 0
    found = json.loads(out)
    assert found["schema"] == "vsmmu.replay/1"
    machine = found["vsmmu"]
    assert machine["features"] == {"oas": 4, "ssidsize": 0, "pps": 0}
    assert machine["streams"][:2] == [
        {"vmaster_id": "0x8", "smmu": "smmu0", "pmaster_id": "0x400"},
        {"vmaster_id": "0x9", "smmu": "smmu1", "pmaster_id": "0x400"},
    ]
    assert machine["advertised"]["IDR0.S2P"] == {"recorded": "0x1", "vsmmu": "0x0"}


def test_stdin_is_read_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO(tapes.data(tapes.everyday()[0].records))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    code, out, _ = replay(capsys, "--vsmmu", "--caching", "none", "-")
    assert code == 0
    assert "agrees" in out


def test_stage_2_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tape = tapes.Tape({"IDR0": tapes.IDS["IDR0"] & ~2})
    for register in tapes.PROBED:
        tape.read(register)
    name = file(tape.records)
    code, out, err = replay(capsys, "--vsmmu", name)
    assert (code, out) == (4, "")
    assert err == (
        f"vsmmu: {name}: recorded with stage 2 alone (IDR0.S1P=0); a vSMMU offers stage 1 alone,"
        " since stage 2 is the hypervisor's: replay it without --vsmmu\n"
    )


def test_a_machine_that_lacks_a_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    name = file(tapes.everyday()[0].records)
    lacking = "s2p=0,hyp=0,vmid16=0,xnx=0,fwb=0,vmw=0,ptwnnc=0"
    code, _, err = replay(capsys, "--vsmmu", "--features", lacking, name)
    assert code == 4
    assert "nested translation needs both stages (IDR0.S1P, IDR0.S2P)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--smmus", "0", "--vsmmu"), "expected 1 to 64, not '0'"),
        (("--guest", "domX", "--vsmmu"), "invalid choice: 'domX'"),
        (("--features", "oas", "--vsmmu"), "expected FIELD=NUMBER, not 'oas'"),
        (("--features", "nosuch=1", "--vsmmu"), "no identification register has a field nosuch"),
        (("--features", "oas=9", "--vsmmu"), "--features: oas [2:0] cannot hold 0x9"),
        (("--features", "s1p=0", "--vsmmu"), "--features: IDR3.HAD=1 needs IDR0.S1P=1"),
        (("--seed", "-1", "--vsmmu"), "expected 0 to 2^64-1, not '-1'"),
        (("--smmus", "2"), "--smmus chooses the machine under a guest: give --vsmmu too"),
        (("--replays", "9"), "--replays bounds --minimize: give --minimize OUT too"),
        (("--minimize", "x", "--replays", "0"), "--replays: expected 1 to 1000000, not 0"),
        (("--minimize", "x", "t.trace"), "--minimize takes one recording"),
        (("--minimize", "-", "--json"), "--minimize -: stdout has the JSON; give a file"),
        (("--minimize", "x"), "t.trace: it replays without divergence: there is nothing"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], reason: str) -> None:
    code, out, err = replay(capsys, *options, file(tapes.everyday()[0].records))
    assert (code, out) == (1, "")
    assert reason in err
    assert not Path("x").exists()


def test_a_recording_is_minimized(capsys: pytest.CaptureFixture[str]) -> None:
    name = wrong()
    for more in ((), ("--vsmmu", "--guest", "dom0", "--smmus", "1")):
        code, out, err = replay(capsys, "--minimize", "out.xz", *more, name)
        assert (code, out) == (0, "")
        sizes, divergence = err.splitlines()
        assert sizes.startswith("vsmmu: out.xz: 2")
        assert "191 records, " in sizes
        assert "output address: read by StreamID 0x8 at 0x400008: recorded 0x40801008" in divergence
        code, out, _ = replay(capsys, *more, "out.xz")
        assert code == 3
        assert "differs at" in out


def test_minimized_json_and_plain_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    name = wrong()
    code, out, err = replay(capsys, "--json", "--minimize", "out.trace", "--replays", "2", name)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["schema"] == "vsmmu.minimize/1"
    assert found["replays"] == 2
    assert found["complete"] is False
    assert found["before"]["bytes"] == Path(name).stat().st_size
    assert found["after"]["bytes"] == Path("out.trace").stat().st_size
    code, _, err = replay(capsys, "--minimize", "out.trace", "--replays", "1", name)
    assert "1 replays; more may go with more --replays" in err


def test_an_output_is_never_the_input(capsys: pytest.CaptureFixture[str]) -> None:
    name = wrong()
    before = Path(name).read_bytes()
    code, _, err = replay(capsys, "--minimize", name, name)
    assert code == 1
    assert "it is the input" in err
    assert Path(name).read_bytes() == before


def test_a_cut_recording_is_not_minimized(capsys: pytest.CaptureFixture[str]) -> None:
    packed = lzma.compress(tapes.data(tapes.everyday()[0].records)[:-3])
    Path("cut.xz").write_bytes(packed)
    for more in (("--minimize", "x"), ("--vsmmu",)):
        code, _, err = replay(capsys, *more, "cut.xz")
        assert code == 2
        assert "the file ends within this record" in err
