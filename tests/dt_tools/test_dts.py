# SPDX-License-Identifier: BSD-2-Clause
"""Source text: any tree written and compiled again, and source that is read through dtc."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt_tools import dts
from dt_tools.blob import read, same_content, write
from dt_tools.dts import compile_source, is_source, to_dts
from dt_tools.errors import DtbError
from dt_tools.tree import Tree

DTC = shutil.which("dtc")
needs_dtc = pytest.mark.skipif(DTC is None, reason="no dtc to compile with")

SOURCE = b"/dts-v1/;\n/ { a = <1>; };\n"


def compiled(tree: Tree) -> Tree:
    """By dtc alone, so that what `compile_source` adds is out of the way."""
    assert DTC is not None
    command = [DTC, "-q", "-f", "-I", "dts", "-O", "dtb", "-b", str(tree.boot_cpuid)]
    text = to_dts(tree).encode("ascii")
    return read(subprocess.run(command, input=text, capture_output=True, check=True).stdout)


# Written source.


@needs_dtc
def test_every_short_value_compiles_to_itself() -> None:
    """Every byte alone, before and behind a NUL, between letters; every shape of text and zeros."""
    shapes = (b"%c", b"%c\0", b"\0%c", b"a%cb\0", b"a\0%c\0", b"%cabc", b"ab\0%c\0\0\0\0")
    values = [shape % byte for byte in range(256) for shape in shapes]
    alphabet = (b"", b"\0", b"a", b'"', b"\\", b"\n", b"\\n", b"//", b"/*", b"\x7f", b"\xff")
    values += [b"".join(parts) for parts in itertools.product(alphabet, repeat=3)]
    values += [bytes(n) for n in range(20)] + [b"\xff" * n for n in range(1, 20)]
    tree = Tree()
    tree.root.props.update({f"v{i}": value for i, value in enumerate(values)})
    assert same_content(compiled(tree), tree)


NODE_NAMES = st.text("abAZ09,._+-@", min_size=1, max_size=12)
PROP_NAMES = st.text("abAZ09,._+-@*?#", min_size=1, max_size=12)
VALUES = st.one_of(
    st.binary(max_size=24),
    st.lists(st.text("a \"\\/*;{}<>[]'&%#=:\n\t\r", max_size=6), max_size=4).map(
        lambda parts: b"".join(part.encode() + b"\0" for part in parts)
    ),
    st.lists(st.integers(0, 2**32 - 1), max_size=30).map(
        lambda cells: b"".join(cell.to_bytes(4, "big") for cell in cells)
    ),
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree()
    nodes = [tree.root]
    for name in draw(st.lists(NODE_NAMES, max_size=8)):
        parent = draw(st.sampled_from(nodes))
        if name not in parent.children:
            nodes.append(parent.add(name))
    for node in nodes:
        node.props.update(draw(st.dictionaries(PROP_NAMES, VALUES, max_size=6)))
    tree.memreserve = draw(
        st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1)), max_size=3)
    )
    tree.boot_cpuid = draw(st.integers(0, 2**32 - 1))
    return tree


@needs_dtc
@settings(max_examples=100, deadline=None, derandomize=True)
@given(trees())
def test_any_tree_compiles_to_itself(tree: Tree) -> None:
    assert same_content(compiled(tree), tree)


@needs_dtc
def test_every_board_compiles_to_itself(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        tree = read(path.read_bytes(), path.name)
        assert same_content(compiled(tree), tree), path.name


# Source as input.


@pytest.mark.parametrize(
    ("data", "name", "source"),
    [
        (SOURCE, "-", True),
        (b"// a comment\n" + SOURCE, "board", True),
        (b"/ { };", "board.dts", True),
        (b"/ { };", "part.DTSI", True),
        (b"/ { };", "board", False),
        (b"", "board.dts", True),
        (write(Tree()), "board.dts", False),
        (b"\xd0\x0d\xfe\xee" + SOURCE[:5], "board.dtb", False),
        (bytes(80), "board.dtb", False),
    ],
)
def test_source_is_told_by_content_then_by_suffix(data: bytes, name: str, source: bool) -> None:
    assert is_source(data, name) is source


@needs_dtc
def test_source_is_compiled() -> None:
    tree = read(compile_source(SOURCE, "x.dts"))
    assert tree.root.props == {"a": b"\0\0\0\1"}


def refused(data: bytes, folder: Path | None = None) -> str:
    with pytest.raises(DtbError) as caught:
        compile_source(data, "x.dts", None if folder is None else str(folder))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_dtc
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"/dts-v1/;\n/ { a = ; };\n", "x.dts:2.9-10 syntax error"),
        (b"/dts-v1/;\n/ { a = <&b>; };\n", 'Reference to non-existent node or label "b"'),
        (b"", "syntax error"),
    ],
)
def test_what_dtc_says_is_said_in_one_line(data: bytes, says: str) -> None:
    message = refused(data)
    assert message.startswith("x.dts: dtc: x.dts:")
    assert says in message
    assert "stdin" not in message


@needs_dtc
def test_source_for_the_preprocessor_gets_a_hint() -> None:
    message = refused(b'/dts-v1/;\n#include "a.h"\n/ { };\n')
    assert message.endswith("; it has C preprocessor lines: put it through cpp first")
    assert "cpp" not in refused(b"/dts-v1/;\n/ { #size-cells = ; };\n")


@needs_dtc
def test_many_messages_are_cut() -> None:
    text = b"/dts-v1/;\n/ { " + b"".join(b"a%d = <&b%d>; " % (i, i) for i in range(9)) + b"};\n"
    message = refused(text)
    assert message.count("non-existent node") == 3
    assert message.endswith(" more lines")


@needs_dtc
def test_dtc_is_found_by_a_relative_path(monkeypatch, tmp_path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "dtc").symlink_to(str(DTC))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "tools")
    assert read(compile_source(SOURCE, "x.dts", str(tmp_path / "home"))).root.props


def test_without_dtc_the_message_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(SOURCE) == (
        "x.dts: device-tree source needs dtc, which is not on PATH; "
        "install dtc (package device-tree-compiler), or compile it where dtc is"
    )


def a_dtc(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    place = folder / "dtc"
    place.write_text(f"#!/bin/sh\n{script}\n")
    place.chmod(place.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "x.dts: dtc: failed with exit code 3"),
        ("kill -SEGV $$", "x.dts: dtc: ended by signal 11"),
        ("printf '\\033[31mno\\n' >&2; exit 1", "x.dts: dtc: ?[31mno"),
        ("while :; do :; done", "x.dts: dtc takes longer than 0.2 seconds"),
    ],
)
def test_a_dtc_that_fails(script, message, monkeypatch, tmp_path) -> None:
    a_dtc(tmp_path, monkeypatch, script)
    if "while" in script:
        monkeypatch.setattr(dts, "DTC_SECONDS", 0.2)
    assert refused(SOURCE) == message


@needs_dtc
def test_dtc_has_a_memory_limit(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(4 << 20))
    line = b"/ { a = " + b", ".join([b'/incbin/("zeros")'] * 200) + b"; };\n"
    assert "alloc" in refused(b"/dts-v1/;\n" + line, tmp_path)


# Files that source includes.


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a source's files, and beside it one that is none of its business."""
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "part.dtsi").write_bytes(b"/ { b = <2>; };\n")
    (home / "sub" / "nested.dtsi").write_bytes(b'/include/ "inner.dtsi"\n')
    (home / "sub" / "inner.dtsi").write_bytes(b"/ { c = <3>; };\n")
    (home / "data").write_bytes(b"xyz")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "other.dtsi").write_bytes(b"/ { s = <4>; };\n")
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "sub" / "escapes.dtsi").write_bytes(b'/include/ "../../other.dtsi"\n')
    (home / "sub" / "up.dtsi").write_bytes(b'/include/ "../other.dtsi"\n')
    (home / "other.dtsi").write_bytes(b"/ { b = <2>; };\n")
    (home / "up.dtsi").symlink_to("sub/up.dtsi")
    (home / "away").symlink_to(tmp_path)
    os.mkfifo(home / "pipe")
    return home


@needs_dtc
@pytest.mark.parametrize(
    ("text", "props"),
    [
        (b'/include/ "part.dtsi"\n', {"b": b"\0\0\0\2"}),
        (b'/include/\n"part.dtsi"\n', {"b": b"\0\0\0\2"}),
        (b'/include/ "sub/nested.dtsi"\n', {"c": b"\0\0\0\3"}),
        (b'/include/ "sub/../part.dtsi"\n', {"b": b"\0\0\0\2"}),
        (b'/include/ "sub/up.dtsi"\n', {"b": b"\0\0\0\2"}),
        (b'/ { d = /incbin/("data"); };\n', {"d": b"xyz"}),
        (b'/ { d = /incbin/ ( "data", 1, 1); };\n', {"d": b"y"}),
        (b"/* arch/arm/include/asm and /include/ as such */ / { d; };", {"d": b""}),
        (b'# 1 "./include/dt-bindings/a.h"\n/ { d; };', {"d": b""}),
    ],
)
def test_files_below_the_folder_are_included(place: Path, text: bytes, props: object) -> None:
    tree = read(compile_source(b"/dts-v1/;\n" + text + b"/ { };\n", "x.dts", str(place)))
    assert tree.root.props == props


@pytest.fixture
def no_dtc_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refused means: before dtc has opened anything."""
    a_dtc(tmp_path, monkeypatch, "echo it was run >&2; exit 1")


OUTSIDE = ": is outside the folder of the source"
HIDDEN = "/incbin/: the file name has to stand right behind it"


@pytest.mark.usefixtures("no_dtc_runs")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'/include/ "/etc/passwd"', '/include/ "/etc/passwd"' + OUTSIDE),
        (b'/include/ "../other.dtsi"', '/include/ "../other.dtsi"' + OUTSIDE),
        (b'/include/ "sub/escapes.dtsi"', '/include/ "../../other.dtsi"' + OUTSIDE),
        (b'/include/ "up.dtsi"', '/include/ "../other.dtsi"' + OUTSIDE),
        (b'/include/ "away/home/part.dtsi"\n/include/ "away/other.dtsi"',
         '/include/ "away/other.dtsi"' + OUTSIDE),
        (b'/ { a = /incbin/("../secret"); };', '/incbin/ "../secret"' + OUTSIDE),
        (b'/ { a = /incbin/("link"); };', '/incbin/ "link"' + OUTSIDE),
        (b'/ { a = /incbin/ ( "/dev/zero"); };', '/incbin/ "/dev/zero"' + OUTSIDE),
        (b'/ { a = /incbin/(/* */"/dev/zero"); };', HIDDEN),
        (b'/ { a = /incbin/ // x\n("/dev/zero"); };', HIDDEN),
        (b'/ { a = /incbin/\n# 1 "x"\n("/dev/zero"); };', HIDDEN),
        (b'/ { a = /incbin/("\\x2fdev/zero"); };',
         "/incbin/: file name b'\\\\x2fdev/zero' is not plain text"),
        (b'/ { a = "&{/a//b}"; b = /incbin/("/dev/zero"); };',
         '/incbin/ "/dev/zero"' + OUTSIDE),
        (b'// /include/ "/etc/passwd"', '/include/ "/etc/passwd"' + OUTSIDE),
        (b"/ { a = /incbin/" + b" \n" * 9_000 + b'("/dev/zero"); };',
         '/incbin/ "/dev/zero"' + OUTSIDE),
        (b'/include/ "' + b"a" * 5_000 + b'"',
         f"/include/: file name b'{'a' * 80}' is not plain text"),
        (b'/include/ "pipe"', '/include/ "pipe": there is no such file'),
        (b'/include/ "-"', '/include/ "-": there is no such file'),
        (b'/include/ "missing.dtsi"', '/include/ "missing.dtsi": there is no such file'),
        (b'/include/ ""', '/include/ "": there is no such file'),
    ],
)  # fmt: skip
def test_other_files_are_not_opened(place: Path, text: bytes, message: str) -> None:
    assert refused(b"/dts-v1/;\n" + text + b"\n/ { };\n", place) == f"x.dts: {message}"


@pytest.mark.usefixtures("no_dtc_runs")
def test_piped_source_cannot_include_files() -> None:
    assert refused(SOURCE + b'/include/ "a.dtsi"') == (
        'x.dts: /include/ "a.dtsi": source that is piped in cannot include files'
    )


@pytest.mark.usefixtures("no_dtc_runs")
def test_source_and_includes_are_limited(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dts, "MAX_SOURCE", 100)
    assert refused(bytes(101)) == "x.dts: source of 101 bytes, limit 100"
    (place / "large.dtsi").write_bytes(bytes(101))
    message = 'x.dts: /include/ "large.dtsi": larger than 100 bytes'
    assert refused(SOURCE + b'/include/ "large.dtsi"', place) == message
    monkeypatch.setattr(dts, "MAX_INCLUDES", 1)
    text = SOURCE + b'/include/ "sub/nested.dtsi"'
    assert refused(text, place) == "x.dts: includes more than 1 files"
    (place / "self.dtsi").write_bytes(b'/include/ "self.dtsi"\n')
    assert refused(SOURCE + b'/include/ "self.dtsi"', place) == "x.dts: dtc: it was run"


# The command line.


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    from vsmmu.cli import main

    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


@needs_dtc
def test_commands_take_source(capsys, samples, tmp_path) -> None:
    source, board = str(samples / "board.dts"), str(samples / "board.dtb")
    code, text, err = run(capsys, "inspect", "--json", source)
    assert (code, err) == (0, "")
    assert text.replace(source, board) == run(capsys, "inspect", "--json", board)[1]
    out = [tmp_path / "a.dtb", tmp_path / "b.dtb"]
    for host, target in zip((source, board), out, strict=True):
        config = str(samples / "crypto.cfg")
        assert run(capsys, "guest-dtb", "--host", host, config, "-q", "-o", str(target))[0] == 0
    assert out[0].read_bytes() == out[1].read_bytes()


@needs_dtc
def test_includes_are_found_from_any_folder(capsys, place, monkeypatch) -> None:
    (place / "b.dts").write_bytes(b'/dts-v1/;\n/include/ "part.dtsi"\n/ { model = "m"; };\n')
    monkeypatch.chdir(place.parent)
    code, out, _ = run(capsys, "inspect", "--json", "home/b.dts")
    assert code == 0
    assert '"model": "m"' in out


@needs_dtc
def test_the_command_says_what_dtc_says(capsys, tmp_path) -> None:
    (tmp_path / "b.dts").write_bytes(b"/ { };\n")
    code, out, err = run(capsys, "inspect", str(tmp_path / "b.dts"))
    name = tmp_path / "b.dts"
    assert (code, out) == (2, "")
    assert err == (
        f"vsmmu: {name}: dtc: {name}:1.1-2 syntax error, FATAL ERROR: Unable to parse input tree\n"
    )
