# SPDX-License-Identifier: BSD-2-Clause
"""Source text: exact forms, and that dtc makes the same content of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt_tools.blob import read
from dt_tools.dts import node_to_dts, to_dts, value_to_dts
from dt_tools.tree import Tree

DTC = shutil.which("dtc")
needs_dtc = pytest.mark.skipif(DTC is None, reason="no dtc to compile with")


def compiled(tree: Tree) -> Tree:
    assert DTC is not None
    command = [DTC, "-q", "-f", "-I", "dts", "-O", "dtb", "-b", str(tree.boot_cpuid)]
    done = subprocess.run(
        command, input=to_dts(tree).encode("ascii"), capture_output=True, check=True, timeout=30
    )
    return read(done.stdout)


def content(tree: Tree) -> object:
    nodes = [(node.path, list(node.props.items())) for node in tree.walk()]
    return nodes, tree.memreserve, tree.boot_cpuid


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"okay\0", '"okay"'),
        (b"a\0b\0", '"a", "b"'),
        (b"a\0\0b\0", '"a", "", "b"'),
        (b'say "a\\b"\0', '"say \\"a\\\\b\\""'),
        (b"two\nlines\ttab\r\0", '"two\\nlines\\ttab\\r"'),
        (b"\0\0\0\x01", "<0x1>"),
        (b"\0\0\0\0\xff\xff\xff\xff", "<0x0 0xffffffff>"),
        (b"\0", "[00]"),
        (b"\0\0", "[00 00]"),
        (b"\0a\0", "[00 61 00]"),
        (b"abc", "[61 62 63]"),
        (b"caf\xe9\0x", "[63 61 66 e9 00 78]"),
        (b"\x1b[m\0", "<0x1b5b6d00>"),
    ],
)
def test_values(raw: bytes, text: str) -> None:
    assert value_to_dts(raw) == text


def test_the_whole_form() -> None:
    tree = Tree()
    tree.memreserve = [(0x8000_0000, 0x1000)]
    tree.boot_cpuid = 2
    tree.root.set_strings("model", "m")
    soc = tree.root.add("soc")
    soc.add("a@0").set_empty("dma-coherent")
    soc.add("b@1").set_cells("reg", 1)
    assert to_dts(tree) == (
        "/dts-v1/;\n"
        "/* boot CPU 0x2: dtc -b 2 */\n"
        "/memreserve/ 0x0000000080000000 0x0000000000001000;\n"
        "\n"
        "/ {\n"
        '\tmodel = "m";\n'
        "\n"
        "\tsoc {\n"
        "\t\ta@0 {\n"
        "\t\t\tdma-coherent;\n"
        "\t\t};\n"
        "\n"
        "\t\tb@1 {\n"
        "\t\t\treg = <0x1>;\n"
        "\t\t};\n"
        "\t};\n"
        "};\n"
    )
    assert node_to_dts(soc.children["b@1"]) == "b@1 {\n\treg = <0x1>;\n};\n"


def test_long_cell_lists_are_wrapped() -> None:
    tree = Tree()
    tree.root.set_cells("reg", *range(40))
    lines = to_dts(tree).splitlines()
    assert lines[3] == "\treg = <0x0 0x1 0x2 0x3 0x4 0x5 0x6 0x7"
    assert lines[7] == "\t\t0x20 0x21 0x22 0x23 0x24 0x25 0x26 0x27>;"


VALUES = st.one_of(
    st.binary(max_size=24),
    st.lists(st.text("ab \"\\/*;{}<>'\n\t&%", max_size=6), max_size=4).map(
        lambda parts: b"".join(part.encode() + b"\0" for part in parts)
    ),
)
NAMES = st.text("abc,._+?#-0123456789*@", min_size=1, max_size=10)


@needs_dtc
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(NAMES, VALUES, max_size=30))
def test_dtc_reads_back_any_value(props: dict[str, bytes]) -> None:
    tree = Tree()
    tree.root.add("n").props.update(props)
    assert content(compiled(tree)) == content(tree)


@needs_dtc
def test_dtc_reads_back_every_board(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        tree = read(path.read_bytes(), path.name)
        assert content(compiled(tree)) == content(tree), path.name
