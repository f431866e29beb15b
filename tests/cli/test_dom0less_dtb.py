# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu dom0less-dtb` from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from dt_tools import blob
from tests.cli.command import vsmmu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLACES = ("--kernel", "crypto=0x90000000,0x1000000", "--kernel", "media=0x92000000,4096",
          "--dtb", "crypto=0x94000000", "--dtb", "media=0x95000000")  # fmt: skip


@pytest.fixture
def run(samples, capsys) -> Callable[..., tuple[int, str, str]]:
    board = str(samples / "board.dtb")

    def call(*arguments: object) -> tuple[int, str, str]:
        return vsmmu(capsys, "dom0less-dtb", "--host", board, *map(str, arguments))

    return call


@pytest.fixture
def cfgs(samples) -> tuple[Path, Path]:
    return samples / "crypto.cfg", samples / "media.cfg"


def test_two_guests(run, cfgs, tmp_path):
    out = tmp_path / "xen.dtb"
    code, stdout, stderr = run(*cfgs, *PLACES, "-o", out, "--guest-dir", tmp_path)
    assert (code, stdout) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "crypto-guest.dtb", "crypto-passthrough.dtb", "media-guest.dtb", "media-passthrough.dtb",
        "xen.dtb",
    ]  # fmt: skip
    tree = blob.read(out.read_bytes())
    node = tree.node("/chosen/domU2/module@95000000")
    size = len((tmp_path / "media-passthrough.dtb").read_bytes())
    assert node.cells("reg") == (0, 0x9500_0000, 0, size)
    guest = blob.read((tmp_path / "crypto-guest.dtb").read_bytes())
    assert guest.node("/passthrough/crypto@61000000").cells("iommus") == (65002, 1)
    assert "vsmmu: notice: DT631 /chosen/domU1: no vuart" in stderr
    assert run(*cfgs, *PLACES, "-o", out, "-q") == (0, "", "")


def test_the_same_bytes_again(run, cfgs, tmp_path):
    made = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        assert run(*cfgs, *PLACES, "-q", "-o", folder / "xen.dtb")[0] == 0
        made.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert made[0] == made[1]


def test_dry_run(run, cfgs, tmp_path):
    code, stdout, _ = run(*cfgs, *PLACES, "--dry-run", "-o", tmp_path / "xen.dtb")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    assert "+\t\tdomU1 {" in stdout
    assert stdout.count("+\t\t\txen,passthrough;") == 5
    names = [tmp_path / f"{name}-passthrough.dtb" for name in ("crypto", "media")]
    heads = [line for name in names for line in ("--- /dev/null", f"+++ {name}")]
    changes = [line for line in stdout.splitlines()[2:] if line.startswith(("-", "+++"))]
    assert changes == heads
    assert '+\t\t\txen,path = "/soc/crypto@60000000";' in stdout


def test_a_dry_run_against_a_partial_tree_that_is_there(run, cfgs, tmp_path):
    out = tmp_path / "xen.dtb"
    assert run(*cfgs, *PLACES, "-q", "-o", out)[0] == 0
    _, stdout, _ = run(*cfgs, *PLACES, "--dry-run", "-o", out)
    assert "passthrough.dtb" not in stdout
    old = tmp_path / "media-passthrough.dtb"
    tree = blob.read(old.read_bytes())
    tree.root.set_strings("model", "old")
    old.write_bytes(blob.write(tree))
    _, stdout, _ = run(*cfgs, *PLACES, "--dry-run", "-o", out)
    assert f"--- {old}\n+++ {old}\n" in stdout
    assert '-\tmodel = "old";' in stdout
    assert "crypto-passthrough.dtb" not in stdout


def test_names_that_are_no_file_names(run, cfgs, tmp_path):
    config, out = tmp_path / "g.cfg", tmp_path / "xen.dtb"
    config.write_text(cfgs[0].read_text().replace('"crypto"', '"a/b"'))
    places = ("--kernel", "0x90000000,1", "--dtb", "0x94000000")
    code, _, stderr = run(config, *places, "-o", out, "--guest-dir", tmp_path)
    assert code == 0
    for kind in ("passthrough", "guest"):
        file = tmp_path / f"domU1-{kind}.dtb"
        assert file.is_file()
        text = f"name 'a/b' is no plain file name: the file is {file}"
        assert f"vsmmu: notice: DT620 /chosen/domU1: {text}\n" in stderr
    # The name of its node can be another guest's.
    other = tmp_path / "h.cfg"
    other.write_text(cfgs[1].read_text().replace('"media"', '"domU1"'))
    places = ("--kernel", "a/b=0x90000000,1", "--dtb", "a/b=0x94000000",
              "--kernel", "domU1=0x92000000,1", "--dtb", "domU1=0x95000000")  # fmt: skip
    code, _, stderr = run(config, other, *places, "-o", out)
    assert code == 1
    assert stderr == (
        f"vsmmu: {tmp_path / 'domU1-passthrough.dtb'}: two outputs name the same file\n"
    )


def test_a_tree_that_was_merged_before(run, cfgs, tmp_path, capsys):
    out = tmp_path / "xen.dtb"
    places = ("--kernel", "0x90000000,1", "--dtb", "0x94000000")
    assert run(cfgs[0], *places, "-q", "-o", out)[0] == 0
    places = ("--kernel", "0xa0000000,1", "--dtb", "0xa4000000")
    code, _, stderr = vsmmu(
        capsys, "dom0less-dtb", "--host", str(out), str(cfgs[0]), *places, "--dry-run"
    )
    assert code == 0
    for path in ("/soc/crypto@60000000", "/soc/crypto@61000000", "/soc/ethernet@60010000"):
        text = "is marked xen,passthrough in the host tree already"
        assert f"vsmmu: notice: DT633 {path}: {text}; whether another domain is given it" in stderr


def test_modules_go_around_one_that_is_fixed(run, tmp_path, cfgs):
    config = tmp_path / "g.cfg"
    kernel = tmp_path / "Image"
    kernel.write_bytes(bytes(5000))
    config.write_text(cfgs[0].read_text().replace("/boot/Image", str(kernel)))
    out = tmp_path / "xen.dtb"
    places = ("--modules-at", "0x90000000", "--dtb", "0x90001000")
    assert run(config, *places, "-q", "-o", out)[0] == 0
    node = blob.read(out.read_bytes()).node("/chosen/domU1")
    assert list(node.children) == ["module@90200000", "module@90001000"]


def test_imagebuilder_wants_a_blob(run, cfgs, tmp_path):
    config, host = tmp_path / "config", tmp_path / "host.dts"
    assert run(*cfgs, "--imagebuilder", config, "-o", host) == (
        1, "", f"vsmmu: {host}: ImageBuilder's DEVICE_TREE is a blob, not source; name it .dtb\n",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    code, _, stderr = run(*cfgs, "--imagebuilder", config)
    assert code == 0
    assert "DEVICE_TREE" not in config.read_text()
    text = "the lines have no DEVICE_TREE, as the marked host tree is in no file: add it"
    assert f"vsmmu: notice: DT632 /chosen: {text}\n" in stderr


def test_imagebuilder_needs_no_addresses(run, cfgs, tmp_path):
    config, host = tmp_path / "config", tmp_path / "host.dtb"
    plain = run(*cfgs, "--imagebuilder", config, "-o", host)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for places in (
        ("--modules-at", "0x90000000"),
        ("--kernel", "crypto=0x90000000", "--dtb", "crypto=0x90000000"),
        ("--kernel", "crypto=0xffffffffffffffff", "--dtb", "media=0xffffffffffffffff"),
    ):
        code, _, stderr = run(*cfgs, "--imagebuilder", config, "-o", host, *places)
        assert (plain[0], code) == (0, 0)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
        text = "addresses of modules are not used: ImageBuilder chooses its own"
        assert f"vsmmu: notice: DT632 /chosen: {text}\n" in stderr


def test_one_guest_needs_no_name(run, cfgs):
    code, stdout, _ = run(cfgs[0], "--kernel", "0x90000000,1", "--dtb", "0x94000000", "--dry-run")
    assert code == 0
    assert stdout.startswith("--- ")


def test_a_refusal_writes_nothing(run, cfgs, tmp_path):
    crypto = tmp_path / "again.cfg"
    crypto.write_text(cfgs[0].read_text().replace('"crypto"', '"again"'))
    places = [p.replace("media", "again") for p in PLACES]
    code, stdout, stderr = run(cfgs[0], crypto, *places, "-o", tmp_path / "xen.dtb")
    assert (code, stdout) == (4, "")
    assert stderr == (
        "vsmmu: DT103: /soc/crypto@60000000: is given to guests 1 and 2; give it to one of them\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["again.cfg"]


def test_files_tell_sizes(run, tmp_path, cfgs):
    kernel, disk = tmp_path / "Image", tmp_path / "disk"
    kernel.write_bytes(bytes(5000))
    disk.write_bytes(bytes(7))
    config = tmp_path / "g.cfg"
    config.write_text(f'name = "g"\nkernel = "{kernel}"\nramdisk = "{disk}"\nmemory = 64\n')
    out = tmp_path / "xen.dtb"
    assert run(config, "-q", "-o", out, "--kernel", "0x90000000", "--ramdisk", "0x91000000")[0] == 0
    node = blob.read(out.read_bytes()).node("/chosen/domU1")
    assert [c.cells("reg")[3] for c in node.children.values()] == [
        5000,
        7,
    ]
    assert run(config, "-q", "-o", out, "--modules-at", "0x90000000")[0] == 0
    node = blob.read(out.read_bytes()).node("/chosen/domU1")
    assert list(node.children) == ["module@90000000", "module@90200000"]
    other = f"0x90000000,{disk}"
    assert run(config, "-q", "-o", out, "--kernel", other, "--ramdisk", "0x91000000")[0] == 0
    node = blob.read(out.read_bytes()).node("/chosen/domU1")
    assert node.children["module@90000000"].cells("reg")[3] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to write: give -o FILE, --imagebuilder FILE or --dry-run"),
        (("-o", "x.dtb"), "crypto: where is its kernel? give --kernel or --modules-at ADDR"),
        (
            ("-o", "x.dtb", "--kernel", "0x90000000"),
            "--kernel 0x90000000: /boot/Image is not here; give its SIZE in bytes",
        ),
        (
            ("-o", "x.dtb", "--kernel", "0x90000000,1"),
            "crypto: where is its device-tree? give --dtb or --modules-at ADDR",
        ),
        (("-o", "x.dtb", "--kernel", "here"), "--kernel here: expected [NAME=]ADDR[,SIZE]"),
        (("-o", "x.dtb", "--dtb", "0x1,2"), "--dtb 0x1,2: expected [NAME=]ADDR"),
        (
            ("-o", "x.dtb", "--dtb", "media=0x1"),
            "--dtb media=0x1: no guest is called media (crypto)",
        ),
        (
            ("-o", "x.dtb", "--dtb", "1", "--dtb", "2"),
            "--dtb 2: crypto has one already",
        ),
        (
            ("-o", "x.dtb", "--kernel", "1,1", "--dtb", "0x9000", "--enhanced", "yes"),
            "--enhanced yes: expected one of enabled, no-xenstore, disabled",
        ),
    ],
)
def test_wrong_arguments(run, cfgs, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(cfgs[0], *arguments) == (1, "", f"vsmmu: {said}\n")
    assert list(tmp_path.iterdir()) == []


def test_which_guest(run, cfgs):
    code, _, stderr = run(*cfgs, "--dry-run", "--kernel", "0x90000000,1")
    assert code == 1
    assert stderr == "vsmmu: --kernel 0x90000000,1: which guest? give NAME= (crypto, media)\n"
    code, _, stderr = run(cfgs[0], cfgs[0], "--dry-run")
    assert code == 1
    assert "another guest is called 'crypto' too" in stderr


def test_an_output_over_an_input(run, cfgs, samples):
    code, _, stderr = run(*cfgs, *PLACES, "-o", samples / "board.dtb")
    assert code == 1
    assert "it is the input" in stderr


def test_imagebuilder(run, cfgs, tmp_path):
    config, host = tmp_path / "config", tmp_path / "host.dtb"
    code, _, stderr = run(*cfgs, "--imagebuilder", config, "-o", host)
    assert code == 0
    assert "DT632 /chosen/domU1: viommu has no variable of ImageBuilder" in stderr
    tree = blob.read(host.read_bytes())
    assert not [n for n in tree.root.children["chosen"].children if n.startswith("domU")]
    assert len([n for n in tree.walk() if "xen,passthrough" in n.props]) == 6
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = f'. {config}; printf "%s\\n" $NUM_DOMUS "$DEVICE_TREE" "${{DOMU_PASSTHROUGH_DTB[@]}}"'
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "host.dtb", "crypto-passthrough.dtb",
                                   "media-passthrough.dtb"]  # fmt: skip
    assert (tmp_path / "crypto-passthrough.dtb").is_file()


def test_bindings(run, cfgs, tmp_path):
    file = tmp_path / "b.json"
    assert run(*cfgs, *PLACES, "-q", "-o", tmp_path / "x.dtb", "--bindings", file)[0] == 0
    maps = [json.loads(line) for line in file.read_text().splitlines()]
    assert [m["guest"] for m in maps] == ["crypto", "media"]
    assert [b["vmaster_id"] for b in maps[0]["bindings"]] == [0, 1, 2, 3]


def test_a_hand_written_partial_tree(run, cfgs, tmp_path):
    assert run(*cfgs, *PLACES, "-q", "-o", tmp_path / "x.dtb")[0] == 0
    partial = tmp_path / "crypto-passthrough.dtb"
    config = tmp_path / "own.cfg"
    config.write_text(cfgs[0].read_text() + f'device_tree = "{partial}"\nname = "own"\n')
    out = tmp_path / "own.dtb"
    places = ("--kernel", "0x90000000,1", "--dtb", "0x94000000")
    assert run(config, *places, "-q", "-o", out)[0] == 0
    assert (tmp_path / "own-passthrough.dtb").read_bytes() == partial.read_bytes()
    assert "xen,passthrough" in blob.read(out.read_bytes()).node("/soc/crypto@60000000").props


def test_profiles(run, cfgs, tmp_path):
    out = ("-q", "-o", tmp_path / "x.dtb")
    code, _, stderr = run(*cfgs, *PLACES, *out, "--profile", "xen-4.22")
    assert code == 4
    assert stderr.startswith("vsmmu: DT630: /chosen/domU1: ")
    code, _, stderr = run(*cfgs, *PLACES, *out, "--profile", "xen-xlnx4.17")
    assert code == 4
    assert stderr.startswith("vsmmu: DT502: /soc/crypto@61000000: StreamID 0x600 of ")
