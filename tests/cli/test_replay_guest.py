# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu replay --vsmmu` and `--minimize` with recordings, as a user meets them."""

from __future__ import annotations

import io
import json
import lzma
import re
import sys
from pathlib import Path

import pytest

from tests.cli.command import vsmmu
from tests.vsmmu.recording import tape as tapes
from vsmmu.recording.format import Record, header_line
from vsmmu.recording.guest_machine import physical_features

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
    ("features", "ram", "reason"),
    [
        ("sidsize=7", tapes.RAM, "StreamID 0x8: smmu0: StreamID 0x400 is beyond its 7 bits"),
        ("oas=0,ds=0", (0x1_0000_0000, 0x10_0000), "RAM up to 0x1000fffff: stage 2 has 32 bits"),
    ],
)
def test_a_machine_that_reaches_too_little_is_refused(
    capsys: pytest.CaptureFixture[str], features: str, ram: tuple[int, int], reason: str
) -> None:
    header = {**tapes.HEADER, "ram_base": ram[0], "ram_size": ram[1]}
    body = tapes.data(tapes.everyday()[0].records).partition(b"\n")[2]
    Path("t.trace").write_bytes(header_line(header) + body)
    code, out, err = replay(capsys, "--vsmmu", "--features", features, "t.trace")
    assert (code, out) == (4, "")
    assert err == f"vsmmu: t.trace: --features: {reason}\n"


def test_a_file_that_no_machine_fits_is_malformed(capsys: pytest.CaptureFixture[str]) -> None:
    body = tapes.data(tapes.everyday()[0].records).partition(b"\n")[2]
    Path("t.trace").write_bytes(header_line({**tapes.HEADER, "ram_size": 1 << 45}) + body)
    for features in ("msi=0", "oas=0,ds=0"):
        code, _, err = replay(capsys, "--vsmmu", "--features", features, "t.trace")
        assert code == 2
        assert err.startswith("vsmmu: t.trace: identification: RAM of 32 TiB, more than 4 TiB")


def _together() -> list[str]:
    """The groups of fields in docs/replay.md."""
    text = (Path(__file__).parents[2] / "docs/replay.md").read_text()
    section = text.split("| to have | say |\n")[1].split("\n\n")[0]
    return re.findall(r"\| `([a-z0-9_=,]+)` \|$", section, re.MULTILINE)


@pytest.mark.parametrize("fields", _together())
def test_fields_that_go_together(fields: str) -> None:
    given = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", fields)}
    physical_features(given)
    wanted, *others = given
    for name in others:
        with pytest.raises(ValueError, match="need"):
            physical_features({n: v for n, v in given.items() if n != name})
    assert others, wanted


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--smmus", "0", "--vsmmu"), "expected 1 to 64, not '0'"),
        (("--guest", "domX", "--vsmmu"), "invalid choice: 'domX'"),
        (("--features", "oas", "--vsmmu"), "expected FIELD=NUMBER, not 'oas'"),
        (("--features", f"oas=0x{'9' * 5000}", "--vsmmu"), f"not 'oas=0x{'9' * 34}'\n"),
        (("--features", f"{'o' * 5000}=1", "--vsmmu"), f"not '{'o' * 40}'\n"),
        (("--features", "oas=-1", "--vsmmu"), "expected FIELD=NUMBER, not 'oas=-1'"),
        (("--features", "oas=0", "--vsmmu"), "--features: IDR5.DS=1 needs IDR5.OAS>=2"),
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
