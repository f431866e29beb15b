# SPDX-License-Identifier: BSD-2-Clause
"""The command as a user meets it: exit codes, exact error lines, files written whole or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dt_tools import blob
from tests.cli.command import vsmmu
from vsmmu.cli import main

CRYPTO = "/soc/crypto@60000000"


GUEST = ("guest-dtb", "--host", "board.dtb", "crypto.cfg", "-o", "out.dtb", "--bindings", "b.json")


def test_guest_dtb_has_one_vsmmu_and_the_map(place, capsys):
    code, out, err = vsmmu(capsys, *GUEST)
    assert (code, out) == (0, "")
    tree = blob.read(Path("out.dtb").read_bytes())
    smmus = [n for n in tree.walk() if n.is_compatible("arm,smmu-v3")]
    assert [n.path for n in smmus] == ["/iommu@4040000"]
    assert (smmus[0].phandle, smmus[0].u32("#iommu-cells")) == (65002, 1)
    first = tree.node("/passthrough/crypto@60000000")
    second = tree.node("/passthrough/crypto@61000000")
    assert first is not None
    assert second is not None
    assert first.cells("iommus") == (65002, 0)
    assert second.cells("iommus") == (65002, 1)
    bindings = json.loads(Path("b.json").read_text())
    assert bindings["schema"] == "vsmmu.bindings/1"
    pairs = [(b["vmaster_id"], b["smmu"], b["pmaster_id"]) for b in bindings["bindings"]]
    assert pairs == [
        (0, "/soc/iommu@50000000", "0x600"),
        (1, "/soc/iommu@51000000", "0x600"),
        (2, "/soc/iommu@50000000", "0x10"),
        (3, "/soc/iommu@50000000", "0x11"),
    ]
    assert "vsmmu: notice: DT201 /soc/ethernet@60010000: dropped" in err


def test_output_is_reproducible_and_leaves_no_other_file(place, capsys):
    vsmmu(capsys, *GUEST)
    first = (Path("out.dtb").read_bytes(), Path("b.json").read_bytes())
    vsmmu(capsys, *GUEST)
    assert (Path("out.dtb").read_bytes(), Path("b.json").read_bytes()) == first
    names = sorted(p.name for p in place.iterdir())
    assert names == ["b.json", "board.dtb", "crypto.cfg", "media.cfg", "out.dtb"]


def test_stdout_and_quiet(place, capfdbinary):
    code = main(["guest-dtb", "crypto.cfg", "dtdev=[]", "-q", "-o", "-"])
    out, err = capfdbinary.readouterr()
    assert code == 0
    assert err == b""
    assert blob.read(out).node("/iommu@4040000") is not None


def test_a_guest_without_devices_needs_no_host(place, capsys):
    code, _, err = vsmmu(capsys, "guest-dtb", "crypto.cfg", "dtdev=[]", "-o", "out.dtb")
    assert (code, err) == (0, "")


# (arguments after guest-dtb, exit code, the one line on stderr)
REFUSALS = {
    "missing host": (
        ["--host", "bord.dtb", "crypto.cfg"],
        1,
        "bord.dtb: cannot read: no such file or directory; nearest: board.dtb",
    ),
    "missing cfg": (
        ["--host", "board.dtb", "nothere/x.cfg"],
        1,
        "nothere/x.cfg: cannot read: no such file or directory; there is no folder nothere",
    ),
    "a folder": (["--host", "..", "crypto.cfg"], 1, "..: cannot read: is a directory"),
    "no host": (
        ["crypto.cfg"],
        1,
        "crypto.cfg: the guest has devices (dtdev); give --host HOST.dtb",
    ),
    "not key=value": (
        ["--host", "board.dtb", "crypto.cfg", "memory"],
        1,
        "memory: expected KEY=VALUE",
    ),
    "truncated": (
        ["--host", "cut.dtb", "crypto.cfg"],
        2,
        "cut.dtb: offset 0x4: totalsize {size} exceeds the 3000 bytes there are; "
        "the file is cut short; copy it again",
    ),
    "not a DTB": (
        ["--host", "crypto.cfg", "crypto.cfg"],
        2,
        "crypto.cfg: offset 0x0: magic 0x23204120 is not 0xd00dfeed; "
        "compile device-tree source with dtc first",
    ),
    "no such node": (
        ["--host", "board.dtb", "crypto.cfg", 'dtdev=["/soc/usb@60500000"]'],
        2,
        "board.dtb: /soc/usb@60500000: no such node; nearest: /soc/usb@60050000",
    ),
    "relative path": (
        ["--host", "board.dtb", "crypto.cfg", 'dtdev=["soc/usb"]'],
        2,
        "board.dtb: soc/usb: not an absolute path; nearest: /soc/usb@60050000",
    ),
    "bad viommu": (
        ["--host", "board.dtb", "crypto.cfg", 'viommu="smmuv2"'],
        2,
        'crypto.cfg:14: Unknown vIOMMU type "smmuv2" specified; use none or smmuv3',
    ),
    "behind no SMMU": (
        ["--host", "board.dtb", "crypto.cfg", 'dtdev=["/soc/serial@70000000"]'],
        4,
        "DT101: /soc/serial@70000000: is not a DMA master of any SMMU of the host tree (SMMUs: "
        "/soc/iommu@50000000, /soc/iommu@51000000, /soc/iommu@52000000); assign a device that "
        "has iommus; without an SMMU its DMA is not contained",
    ),
    "disabled": (
        ["--host", "board.dtb", "crypto.cfg", 'dtdev=["/soc/gpu@60040000"]'],
        4,
        'DT105: /soc/gpu@60040000: is disabled (status = "disabled"); set status = "okay" on '
        "/soc/gpu@60040000 in the host tree",
    ),
    "page shared": (
        ["--host", "board.dtb", "crypto.cfg", 'dtdev=["/soc/dma@60020000"]'],
        4,
        "DT205: /soc/dma@60020000: shares a 4 KiB page of registers with /soc/dma@60020800; "
        "assign /soc/dma@60020800 too, or neither",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_one_clear_line_and_nothing_written(name, place, capsys):
    arguments, wanted, line = REFUSALS[name]
    whole = (place / "board.dtb").read_bytes()
    (place / "cut.dtb").write_bytes(whole[:3000])
    before = sorted(p.name for p in place.iterdir())
    code, out, err = vsmmu(capsys, "guest-dtb", *arguments, "-o", "out.dtb", "--bindings", "b.json")
    assert err == f"vsmmu: {line.format(size=len(whole))}\n"
    assert (code, out) == (wanted, "")
    assert sorted(p.name for p in place.iterdir()) == before


def test_warnings_of_the_config_name_file_and_line(place, capsys):
    Path("odd.cfg").write_text('name = "odd"\nkernel = "k"\nvcpis = 3\n')
    code, _, err = vsmmu(capsys, "guest-dtb", "odd.cfg", "-o", "out.dtb")
    assert code == 0
    assert err == (
        "vsmmu: odd.cfg:3: warning XL101: vcpis: unknown key, ignored by xl; did you mean vcpus?\n"
    )


def test_the_second_output_fails_then_the_first_is_not_there(place, capsys):
    code, _, err = vsmmu(capsys, *GUEST[:-1], "nothere/b.json")
    assert code == 1
    assert "vsmmu: nothere/b.json: cannot write: no such file or directory\n" in err
    assert not Path("out.dtb").exists()


def test_both_outputs_in_one_file_is_refused(place, capsys):
    code, _, err = vsmmu(capsys, *GUEST[:-1], "out.dtb")
    assert code == 1
    assert err == "vsmmu: out.dtb: two outputs name the same file\n"
    code, _, err = vsmmu(capsys, *GUEST[:-1], "./out.dtb")
    assert code == 1
    assert err == "vsmmu: ./out.dtb: cannot write: the same file as out.dtb\n"
    assert not Path("out.dtb").exists()


def test_dom0(place, capsys):
    code, out, _ = vsmmu(capsys, "dom0-dtb", "board.dtb", "-o", "dom0.dtb")
    assert (code, out) == (0, "")
    host, dom0 = (blob.read(Path(n).read_bytes()) for n in ("board.dtb", "dom0.dtb"))
    for path in ("/soc/iommu@50000000", "/soc/iommu@51000000", "/soc/iommu@52000000"):
        before, after = host.node(path), dom0.node(path)
        assert before is not None
        assert after is not None
        assert after.phandle == before.phandle
        assert after.props["reg"] == before.props["reg"]
    for node in host.walk():
        twin = dom0.node(node.path)
        assert twin is not None
        for name in ("iommus", "iommu-map"):
            assert twin.props.get(name) == node.props.get(name)


def test_inspect_json_is_a_line_a_board(place, capsys):
    code, out, err = vsmmu(capsys, "inspect", "--json", "board.dtb", "board.dtb")
    assert (code, err) == (0, "")
    boards = [json.loads(line) for line in out.splitlines()]
    assert len(boards) == 2
    assert boards[0]["schema"] == "vsmmu.inspect/1"
    assert [s["base"] for s in boards[0]["smmus"]] == ["0x50000000", "0x51000000", "0x52000000"]


def test_inspect_shows_the_others_when_one_fails(place, capsys):
    code, out, err = vsmmu(capsys, "inspect", "nope.dtb", "board.dtb", "crypto.cfg")
    assert code == 2
    assert out.startswith("board.dtb: vsmmu sample board\n")
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["nope.dtb", "crypto.cfg"]


@pytest.mark.parametrize(
    ("arguments", "tail"),
    [
        ([], "vsmmu: the following arguments are required: COMMAND\n"),
        (["inspect"], "vsmmu inspect: the following arguments are required: DTB\n"),
        (["run"], "vsmmu: run: which scenario? give PATH\n"),
        (["inspect", "--frob", "x"], "vsmmu: unrecognized arguments: --frob\n"),
    ],
)
def test_usage_is_exit_1(arguments, tail, capsys):
    code, out, err = vsmmu(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.endswith(tail)


@pytest.mark.parametrize("command", ["inspect", "guest-dtb", "dom0-dtb", "run", "completion"])
def test_help(command, capsys):
    code, out, _ = vsmmu(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"usage: vsmmu {command} ")


def test_a_closed_pipe_is_no_traceback(place):
    script = "import sys; from vsmmu.cli import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", script, "inspect", *["board.dtb"] * 40],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    talk = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 1
    assert talk == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", [["inspect", "board.dtb"], ["--help"], ["run", "--policy"]])
def test_output_that_is_lost_is_exit_1(arguments, place):
    script = "import sys; from vsmmu.cli import main; sys.exit(main(sys.argv[1:]))"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    line = b"vsmmu: stdout: cannot write: no space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_link_stays_and_a_pipe_is_written_to(place, capsys):
    Path("link.dtb").symlink_to("real.dtb")
    assert vsmmu(capsys, "dom0-dtb", "board.dtb", "-q", "-o", "link.dtb")[0] == 0
    assert Path("link.dtb").is_symlink()
    assert blob.read(Path("real.dtb").read_bytes()).node("/soc/iommu@50000000") is not None
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert vsmmu(capsys, "dom0-dtb", "board.dtb", "-q", "-o", "pipe")[0] == 0
    assert os.read(reader, 1 << 20) == Path("real.dtb").read_bytes()
    os.close(reader)


def test_an_input_is_not_written_over(place, capsys):
    before = Path("crypto.cfg").read_bytes()
    code, _, err = vsmmu(
        capsys, "guest-dtb", "--host", "board.dtb", "crypto.cfg", "-o", "./crypto.cfg"
    )
    assert (code, err) == (1, "vsmmu: ./crypto.cfg: cannot write: it is the input crypto.cfg\n")
    assert Path("crypto.cfg").read_bytes() == before


def test_version_imports_nothing_heavy():
    script = (
        "import sys; from vsmmu.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('rich', 'lark', 'numpy', 'fdt') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_output_as_source(place, capsys):
    code, _, _ = vsmmu(capsys, "guest-dtb", "crypto.cfg", "dtdev=[]", "-o", "out.dts")
    assert code == 0
    text = Path("out.dts").read_text()
    assert text.startswith("/dts-v1/;\n")
    assert "iommu@4040000 {" in text
    assert vsmmu(capsys, "dom0-dtb", "board.dtb", "-q", "-o", "dom0.dts")[0] == 0
    assert Path("dom0.dts").read_text().startswith("/dts-v1/;\n")
