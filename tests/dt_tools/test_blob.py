# SPDX-License-Identifier: BSD-2-Clause
"""Blobs: round trips, the validator, and one regression test for each defect of the fdt package.

The defects are numbered as in the survey this project's blob layer was written from; each test
says what would go wrong if the package were used as it is.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dt_tools
from dt_tools import blob
from dt_tools.blob import read, read_with_fdt, same_content, write
from dt_tools.errors import DtbError, DtError, Refusal, UserError
from dt_tools.tree import Node, Tree
from tests.counts import sliced

BEGIN, END_NODE, PROP, NOP, END = (struct.pack(">I", n) for n in (1, 2, 3, 4, 9))
HEAD = 40


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def begin(name: bytes) -> bytes:
    raw = name + b"\0"
    return BEGIN + raw + b"\0" * (-len(raw) % 4)


def prop(name_at: int, value: bytes) -> bytes:
    return PROP + words(len(value), name_at) + value + b"\0" * (-len(value) % 4)


def raw_blob(
    structure: bytes,
    strings: bytes = b"a\0b\0",
    reserve: bytes = bytes(16),
    **header: int,
) -> bytes:
    """A blob of these blocks in the usual order; header words can be overridden by name."""
    at_struct = HEAD + len(reserve)
    at_strings = at_struct + len(structure)
    fields = {
        "magic": 0xD00DFEED,
        "totalsize": at_strings + len(strings),
        "off_dt_struct": at_struct,
        "off_dt_strings": at_strings,
        "off_mem_rsvmap": HEAD,
        "version": 17,
        "last_comp": 16,
        "cpuid": 0,
        "size_dt_strings": len(strings),
        "size_dt_struct": len(structure),
    }
    assert header.keys() <= fields.keys()
    fields.update(header)
    return words(*fields.values()) + reserve + structure + strings


ONE_NODE = begin(b"") + END_NODE + END


def content(tree: Tree) -> object:
    nodes = [(node.path, list(node.props.items())) for node in tree.walk()]
    return nodes, tree.memreserve, tree.boot_cpuid


def fails(data: bytes) -> str:
    with pytest.raises(DtbError) as caught:
        read(data, "x.dtb")
    text = str(caught.value)
    assert "\n" not in text
    return text


def a_tree() -> Tree:
    tree = Tree()
    tree.root.set_strings("compatible", "a,b", "c")
    tree.root.set_cells("#address-cells", 2)
    soc = tree.root.add("soc@0")
    soc.set_empty("ranges")
    soc.add("uart@1000").props["blob"] = b"\x01\x02\x03"
    soc.add("uart@2000").set_cells("phandle", 7)
    tree.memreserve = [(0x8000_0000, 0x1_0000)]
    tree.boot_cpuid = 3
    return tree


# Round trips.


def test_round_trip_of_an_own_tree() -> None:
    tree = a_tree()
    assert content(read(write(tree))) == content(tree)


def test_round_trip_of_every_board(corpus: Path) -> None:
    boards = sorted((corpus / "dtbs").glob("*.dtb"))
    assert len(boards) >= 16
    trees = {path.name: read(path.read_bytes(), path.name) for path in boards}
    for name, tree in trees.items():
        again = read(write(tree), name)
        assert content(again) == content(tree), name
    # In one process, the reservations stay with their board.
    assert trees["fvp-base-revc.dtb"].memreserve == [(0x8000_0000, 0x1_0000)]
    assert trees["hip07-d05.dtb"].memreserve == []


def test_boards_agree_with_an_independent_reader(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        data = path.read_bytes()
        tree = read(data, path.name)
        assert [(n, v) for node in tree.walk() for n, v in node.props.items()] == flat(data)


def flat(data: bytes) -> list[tuple[str, bytes]]:
    """Names and values of all properties, by the shortest reader there is."""
    at, strings = struct.unpack_from(">2I", data, 8)
    found = []
    while True:
        tag = int.from_bytes(data[at : at + 4])
        at += 4
        if tag == 1:
            at = (data.index(b"\0", at) + 4) & ~3
        elif tag == 3:
            size, name = struct.unpack_from(">2I", data, at)
            name_at = strings + name
            text = data[name_at : data.index(b"\0", name_at)].decode("ascii")
            found.append((text, data[at + 8 : at + 8 + size]))
            at = (at + 8 + size + 3) & ~3
        elif tag == 9:
            return found


def test_written_bytes_do_not_depend_on_the_process() -> None:
    assert write(a_tree()) == write(a_tree())


NAMES = st.text("abcdefghij,._+-0123456789", min_size=1, max_size=12)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree()
    nodes = [tree.root]
    for name in draw(st.lists(NAMES, max_size=12)):
        parent = draw(st.sampled_from(nodes))
        if name not in parent.children:
            nodes.append(parent.add(name))
    for node in nodes:
        node.props.update(draw(st.dictionaries(NAMES, st.binary(max_size=20), max_size=4)))
    pairs = st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1))
    tree.memreserve = draw(st.lists(pairs, max_size=3))
    tree.boot_cpuid = draw(st.integers(0, 2**32 - 1))
    return tree


@sliced(150)
@given(trees())
def test_round_trip_of_any_tree(tree: Tree) -> None:
    assert content(read(write(tree))) == content(tree)


# The reader and its slow twin, the fdt package.


@sliced(150)
@given(trees())
def test_the_fdt_package_reads_the_same_of_any_tree(tree: Tree) -> None:
    data = write(tree)
    assert content(read_with_fdt(data)) == content(read(data)) == content(tree)


def test_the_fdt_package_reads_the_same_of_every_board(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        data = path.read_bytes()
        assert content(read_with_fdt(data, path.name)) == content(read(data, path.name)), path.name


def test_same_content_tells_every_part() -> None:
    assert same_content(a_tree(), a_tree())
    changes = (
        lambda t: t.memreserve.clear(),
        lambda t: setattr(t, "boot_cpuid", 0),
        lambda t: t.root.props.update(model=t.root.props.pop("compatible")),
        lambda t: t.root.props.update(compatible=t.root.props.pop("compatible")),
        lambda t: t.root.children["soc@0"].add("late"),
        lambda t: t.root.children["soc@0"].children["uart@1000"].props.update(blob=b""),
        lambda t: t.root.children["soc@0"].children.update(
            {"uart@1000": t.root.children["soc@0"].children.pop("uart@1000")}
        ),
    )
    for change in changes:
        tree = a_tree()
        change(tree)
        assert not same_content(tree, a_tree())
        assert not same_content(a_tree(), tree)


# The defects of the fdt package, one test each.


def test_defect_01_reservations_are_not_shared_between_trees() -> None:
    """Its parser appends to a default argument: every later tree gets the earlier ones' list."""
    first, second = a_tree(), Tree()
    data = write(first)
    assert read(data).memreserve == [(0x8000_0000, 0x1_0000)]
    assert read(write(second)).memreserve == []
    assert read(data).memreserve == [(0x8000_0000, 0x1_0000)]
    one, two = read(data), read(data)
    one.memreserve.append((1, 1))
    assert two.memreserve == [(0x8000_0000, 0x1_0000)]
    assert write(second) == write(Tree())


def test_defect_02_nop_tags_are_skipped() -> None:
    """It stops at FDT_NOP with "Unknown Tag: 4"."""
    structure = (
        begin(b"") + NOP + prop(0, b"x") + NOP + NOP + prop(2, b"")
        + begin(b"n") + NOP + END_NODE + NOP + END_NODE + NOP + END
    )  # fmt: skip
    tree = read(raw_blob(structure))
    assert content(tree) == ([("/", [("a", b"x"), ("b", b"")]), ("/n", [])], [], 0)
    assert content(read_with_fdt(raw_blob(structure))) == content(tree)


def test_defect_03_phandles_are_left_alone() -> None:
    """Its update_phandles numbers every node from 1, over the phandles that exist."""
    tree = a_tree()
    again = read(write(tree))
    assert {value: node.path for value, node in again.phandles().items()} == {7: "/soc@0/uart@2000"}
    assert all("linux,phandle" not in node.props for node in again.walk())


def test_defect_04_a_blob_starts_at_its_first_byte() -> None:
    """With an offset it reads the header at 0 and the strings without the offset."""
    data = write(a_tree())
    assert fails(bytes(16) + data) == (
        "x.dtb: offset 0x0: magic 0x00000000 is not 0xd00dfeed; "
        "compile device-tree source with dtc first"
    )
    assert content(read((bytes(16) + data)[16:])) == content(a_tree())
    assert content(read(data + b"\xff" * 100)) == content(a_tree())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"totalsize": 1_000_000},
            "offset 0x4: totalsize 1000000 exceeds the 76 bytes there are; "
            "the file is cut short; copy it again",
        ),
        (
            {"totalsize": 41},
            "offset 0x10: memory reservations [0x28, 0x38) is outside [0x28, 0x29)",
        ),
        (
            {"off_mem_rsvmap": 8},
            "offset 0x10: memory reservations [0x8, 0x18) is outside [0x28, 0x4c)",
        ),
        (
            {"off_mem_rsvmap": 44},
            "offset 0x10: memory reservations at 0x2c is not 8-byte aligned",
        ),
        ({"off_dt_struct": 57}, "offset 0x8: structure block at 0x39 is not 4-byte aligned"),
        (
            {"off_dt_struct": 0xFFFF_FFFC},
            "offset 0x8: structure block [0xfffffffc, 0x10000000c) is outside [0x28, 0x4c)",
        ),
        (
            {"size_dt_struct": 0x7FFF_FFFF},
            "offset 0x8: structure block [0x38, 0x80000037) is outside [0x28, 0x4c)",
        ),
        (
            {"off_dt_strings": 0x48, "size_dt_strings": 5},
            "offset 0xc: strings block [0x48, 0x4d) is outside [0x28, 0x4c)",
        ),
        ({"off_dt_strings": 0x40}, "offset 0x8: structure block and strings block overlap"),
        ({"off_mem_rsvmap": 0x38}, "offset 0x10: memory reservations and structure block overlap"),
        ({"version": 16}, "offset 0x14: version 16, last compatible 16: only 17 and 16 are read"),
        ({"last_comp": 17}, "offset 0x14: version 17, last compatible 17: only 17 and 16 are read"),
        ({"magic": 0xD00DFEEE}, "offset 0x0: magic 0xd00dfeee is not 0xd00dfeed"),
    ],
)
def test_defect_05_bounds_and_alignment_are_checked(header: dict[str, int], message: str) -> None:
    """It checks none of them, and reads bytes outside the blob as strings and reservations."""
    assert fails(raw_blob(ONE_NODE, **header)) == f"x.dtb: {message}"


def test_defect_05_strings_and_values_stay_inside() -> None:
    node = begin(b"")
    assert fails(raw_blob(node + prop(4, b"") + END_NODE + END)) == (
        "x.dtb: offset 0x48: /: property name offset 0x4 is outside the strings"
    )
    text = fails(raw_blob(node + prop(0, b"") + END_NODE + END, b"ab"))
    assert text == "x.dtb: offset 0x54: /: property name is not terminated within 255 bytes"
    cut = node + PROP + words(100, 0) + END_NODE + END
    assert fails(raw_blob(cut)) == (
        "x.dtb: offset 0x44: /: a: value of 100 bytes leaves the structure block"
    )
    assert fails(raw_blob(node + PROP + words(0))) == (
        "x.dtb: offset 0x40: /: property header is cut off"
    )


def test_defect_05_blocks_do_not_overlap() -> None:
    strings = bytes(16)
    message = "x.dtb: offset 0x10: memory reservations and strings block overlap"
    assert fails(raw_blob(ONE_NODE, strings, off_mem_rsvmap=0x48, off_dt_strings=0x48)) == message
    # One inside the other, and an empty one anywhere.
    inner = raw_blob(ONE_NODE, b"", off_dt_strings=0x3C, size_dt_strings=4)
    assert fails(inner) == "x.dtb: offset 0x8: structure block and strings block overlap"
    empty = raw_blob(ONE_NODE, b"", off_dt_strings=0x3C, size_dt_strings=0)
    assert content(read(empty)) == content(Tree())


def test_defect_05_reservations_are_terminated() -> None:
    full = words(0, 1, 0, 1)
    text = fails(raw_blob(ONE_NODE, reserve=full))
    assert text == "x.dtb: offset 0x28: memory reservations are not terminated"
    many = words(0, 1, 0, 1) * 1025 + bytes(16)
    assert "more than 1024 memory reservations" in fails(raw_blob(ONE_NODE, reserve=many))


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (END, "offset 0x38: no root node"),
        (b"", "offset 0x38: structure block ends without FDT_END"),
        (begin(b"") + END_NODE, "offset 0x44: structure block ends without FDT_END"),
        (begin(b"") + END, "offset 0x40: /: FDT_END inside a node"),
        (begin(b"") + begin(b"n") + END_NODE + END, "offset 0x4c: /: FDT_END inside a node"),
        (ONE_NODE[:-4] + ONE_NODE, "offset 0x44: a second root node"),
        (begin(b"r") + END_NODE + END, "offset 0x3c: the root node is named 'r', not empty"),
        (prop(0, b"") + ONE_NODE, "offset 0x38: property outside a node"),
        (ONE_NODE[:-4] + prop(0, b"") + END, "offset 0x44: property outside a node"),
        (END_NODE + ONE_NODE, "offset 0x38: FDT_END_NODE outside a node"),
        (
            begin(b"") + begin(b"n") + END_NODE + prop(0, b"") + END_NODE + END,
            "offset 0x4c: /: property after a child node",
        ),
        (
            begin(b"") + begin(b"") + END_NODE + END_NODE + END,
            "offset 0x44: /: node name '' is not valid",
        ),
        (
            begin(b"") + begin(b"a/b") + END_NODE + END_NODE + END,
            "offset 0x44: /: node name 'a/b' is not valid",
        ),
        (
            begin(b"") + begin(b"\xe9\x1b[m") + END_NODE + END_NODE + END,
            "offset 0x44: /: node name '\\xe9\\x1b[m' is not valid",
        ),
        (begin(b"") + words(0) + END_NODE + END, "offset 0x40: /: unknown tag 0x0"),
        (NOP + ONE_NODE, "offset 0x38: FDT_NOP before the root node"),
        (ONE_NODE + END, "offset 0x48: structure block goes on after FDT_END"),
        (begin(b"")[:-4] + b"abcd", "offset 0x3c: node name is not terminated within 255 bytes"),
    ],
)
def test_defect_06_the_structure_is_checked(structure: bytes, message: str) -> None:
    """It takes any of these for a tree, some with nodes lost and wrong paths."""
    assert fails(raw_blob(structure)) == f"x.dtb: {message}"


@pytest.mark.parametrize("size", [0, 1, 39, 40, 60, 100])
def test_defect_07_one_error_type_with_the_facts(size: int) -> None:
    """It raises six classes, some by assert, without offset or path."""
    with pytest.raises(DtbError) as caught:
        read(write(a_tree())[:size], "board.dtb")
    error = caught.value
    assert isinstance(error, DtError)
    assert (error.source, error.exit_code) == ("board.dtb", 2)
    assert error.offset is not None


def test_defect_07_what_fdt_itself_raises_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def parse_dtb(data: bytes) -> None:
            raise IndexError("out of range")

        class FDT:
            def __init__(self, entries: list[object]) -> None:
                raise AssertionError("no")

    monkeypatch.setattr(blob, "_fdt", lambda: Broken)
    with pytest.raises(DtbError) as caught:
        read_with_fdt(raw_blob(ONE_NODE), "x.dtb")
    assert str(caught.value) == "x.dtb: the fdt package refused the blob: out of range"
    with pytest.raises(DtbError) as caught:
        write(Tree(), "guest")
    assert str(caught.value) == "guest: the fdt package cannot write the tree: no"


def test_defect_07_no_check_is_an_assertion() -> None:
    """Its checks vanish under python -O."""
    for name in ("blob.py", "scan.py", "errors.py"):
        text = (Path(dt_tools.__file__).parent / name).read_text(encoding="utf-8")
        assert "assert " not in text, name


def test_what_fdt_writes_is_read_back_before_it_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = write(Tree())
    monkeypatch.setattr(blob, "_serialise", lambda tree: other)
    with pytest.raises(DtbError) as caught:
        write(a_tree(), "guest")
    assert str(caught.value) == "guest: the fdt package wrote other content than it was given"


@pytest.mark.parametrize(
    "value",
    [
        b"ABC\0",
        b"M|m\0",
        b"\0",
        b"a\0\0b\0",
        b"\0a\0",
        b"caf\xe9\0",
        b"a\nb\0",
        b"abc",
        b"\x00\x00\x00\x01",
        b"",
        bytes(range(256)),
    ],
)
def test_defect_08_values_have_no_guessed_type(value: bytes) -> None:
    """It turns cells that spell text into strings, and string lists with "" into bytes."""
    tree = Tree()
    tree.root.props["v"] = value
    assert read(write(tree)).root.props == {"v": value}


def test_defect_09_names_that_fdt_drops_are_refused() -> None:
    """It leaves out properties whose name ends in _with_references, without a word."""
    structure = begin(b"") + prop(0, b"x") + END_NODE + END
    tree = read(raw_blob(structure, b"reg_with_references\0"))
    assert tree.root.props == {"reg_with_references": b"x"}
    assert content(read_with_fdt(raw_blob(structure, b"reg_with_references\0"))) == content(tree)
    with pytest.raises(DtbError) as caught:
        write(tree, "guest")
    assert str(caught.value) == (
        "guest: /: property reg_with_references: the fdt package drops names ending "
        "_with_references; rename it"
    )


def test_defect_10_nodes_are_compared_by_identity() -> None:
    """Its nodes cannot be hashed and compare by content."""
    one, two = read(write(a_tree())), read(write(a_tree()))
    assert one.root != two.root
    assert len({one.root, two.root, *one.walk()}) == 1 + sum(1 for _ in one.walk())


def test_defect_11_any_bytes_can_be_stored_and_bad_cells_are_refused() -> None:
    """It refuses empty lists and strings, and has no 64-bit or mixed values."""
    tree = Tree()
    tree.root.set_cells("none")
    tree.root.set_strings("empty", "")
    tree.root.set_cells("u64", 0x1234_5678, 0x9ABC_DEF0)
    tree.root.props["mixed"] = b"text\0" + words(1)
    assert content(read(write(tree))) == content(tree)
    for bad in (-1, 1 << 32):
        with pytest.raises(ValueError, match="does not fit a cell"):
            tree.root.set_cells("x", bad)


def test_defect_12_a_path_is_the_nodes_own_and_copies_are_whole() -> None:
    """A node's path there is its parent's, and its copies lose parts."""
    tree = read(write(a_tree()))
    node = tree.node("/soc@0/uart@1000")
    assert node is not None
    assert node.path == "/soc@0/uart@1000"
    copy = tree.copy()
    assert content(copy) == content(tree)
    copy.root.children["soc@0"].props["new"] = b"x"
    copy.memreserve.clear()
    assert content(tree) == content(a_tree())


def nested(depth: int) -> bytes:
    inner = begin(b"n") * (depth - 1) + END_NODE * (depth - 1)
    return raw_blob(begin(b"") + inner + END_NODE + END)


def deep_tree(depth: int) -> Tree:
    tree = Tree()
    node = tree.root
    for _ in range(depth - 1):
        node = node.add("n")
    return tree


def test_defect_13_depth_is_limited() -> None:
    """Writing recurses there, and dies at about a thousand levels."""
    assert content(read(nested(64))) == content(deep_tree(64))
    assert "nodes nested deeper than 64" in fails(nested(65))
    assert "nodes nested deeper than 64" in fails(nested(20_000))
    assert write(deep_tree(64))
    for depth in (65, 5_000):
        with pytest.raises(DtbError, match="nodes nested deeper than 64"):
            write(deep_tree(depth))


def test_defect_14_duplicate_names_are_refused_with_their_path() -> None:
    """It refuses them too, but says neither which nor where."""
    twin = begin(b"n") + END_NODE
    nodes = begin(b"") + begin(b"bus") + twin + twin + END_NODE + END_NODE + END
    assert fails(raw_blob(nodes)) == "x.dtb: offset 0x54: /bus: a second child n"
    props = begin(b"") + begin(b"bus") + prop(0, b"") + prop(0, b"") + END_NODE + END_NODE + END
    assert fails(raw_blob(props)) == "x.dtb: offset 0x54: /bus: a second property a"


def test_defect_15_lookup_is_by_full_path_and_phandle() -> None:
    """It has no phandle index and no notion of a unit address."""
    tree = read(write(a_tree()))
    assert tree.node("/soc@0/uart@2000") is tree.phandles()[7]
    assert tree.node("/soc/uart@2000") is None
    assert tree.node("soc@0") is None


def sources() -> list[Path]:
    return sorted(Path(dt_tools.__file__).parent.rglob("*.py"))


def test_defect_16_and_17_its_source_reader_and_writer_are_not_used() -> None:
    """Its to_dts does not escape; its parse_dts is no compiler. `test_tree_dts` has our writer."""
    assert len(sources()) > 5
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert "parse_dts" not in text, path
        assert "update_phandles" not in text, path
        if path.name != "blob.py":
            assert "import fdt" not in text, path
            assert "from fdt" not in text, path


def test_defect_18_the_header_is_version_17() -> None:
    """Without a version set it raises, and its last compatible version follows the version."""
    data = write(Tree())
    assert struct.unpack_from(">2I", data, 20) == (17, 16)
    assert struct.unpack_from(">I", data, 4) == (len(data),)
    assert struct.unpack_from(">I", write(a_tree()), 28) == (3,)


# Limits.


def test_limits_on_size_nodes_and_properties() -> None:
    data = write(a_tree())
    with pytest.raises(DtbError, match=r"totalsize \d+ exceeds the limit of 100 bytes"):
        read(data, max_bytes=100)
    big = Tree()
    big.root.props["x"] = bytes(3 << 20)
    assert content(read(write(big, max_bytes=4 << 20), max_bytes=4 << 20)) == content(big)
    nodes = b"".join(begin(b"%x" % i) + END_NODE for i in range(7_000))
    assert "too many siblings (properties or children)" in fails(
        raw_blob(begin(b"") + nodes + END_NODE + END)
    )
    bus = b"".join(begin(b"%x" % i) + END_NODE for i in range(100)) + END_NODE
    buses = b"".join(begin(b"b%x" % i) + bus for i in range(660))
    assert "more than 65536 nodes" in fails(raw_blob(begin(b"") + buses + END_NODE + END))
    many = begin(b"n") + prop(0, b"") * 1 + END_NODE
    assert read(raw_blob(begin(b"") + many + END_NODE + END)).node("/n") is not None
    strings = b"a\0" * 70_000
    assert "strings block of 140000 bytes, limit 131072" in fails(raw_blob(ONE_NODE, strings))


def test_long_names_and_paths_are_refused() -> None:
    long = begin(b"") + begin(b"n" * 256) + END_NODE + END_NODE + END
    assert "node name is not terminated within 255 bytes" in fails(raw_blob(long))
    deep = begin(b"") + begin(b"n" * 255) * 5 + END_NODE * 6 + END
    assert "path of a child node is longer than 1024 bytes" in fails(raw_blob(deep))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: setattr(t.root, "name", "x"), "t: /: the root node is named 'x', not empty"),
        (lambda t: t.root.add("a/b"), "t: /a/b: node name 'a/b' is not valid"),
        (lambda t: t.root.add("\u00e9"), "t: /\u00e9: node name '\\xe9' is not valid"),
        (lambda t: t.root.props.update({"": b""}), "t: /: property name '' is not valid"),
        (lambda t: t.root.props.update({"a b": b""}), "t: /: property name 'a b' is not valid"),
        (lambda t: t.memreserve.append((0, 0)), "t: memory reservation 0+0 would end the list"),
        (
            lambda t: t.memreserve.append((1 << 64, 1)),
            "t: memory reservation 0x10000000000000000+0x1 does not fit 64 bits",
        ),
        (lambda t: setattr(t, "boot_cpuid", -1), "t: boot CPU id -0x1 does not fit 32 bits"),
        (
            lambda t: t.root.children.update({"q": Node("z", t.root)}),
            "t: /: child q is filed under another name",
        ),
        (lambda t: t.root.props.update({"x": bytes(3 << 20)}), "t: /: more than 2097152 bytes"),
    ],
)
def test_trees_that_cannot_be_written(change, message: str) -> None:
    tree = Tree()
    change(tree)
    with pytest.raises(DtbError) as caught:
        write(tree, "t")
    assert str(caught.value) == message


# Hostile input.


def mutants(data: bytes, count: int, seed: int):
    """Bit flips, words replaced, cuts and doubled runs, most of them in header and structure."""
    rng = random.Random(seed)
    interesting = (0, 1, 2, 3, 4, 9, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFC, len(data))
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            kind = rng.randrange(4)
            at = rng.randrange(40) if rng.random() < 0.4 else rng.randrange(len(mutant))
            if kind == 0:
                mutant[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                at &= ~3
                mutant[at : at + 4] = words(rng.choice(interesting))
            elif kind == 2:
                del mutant[at : at + rng.choice((1, 4, 16))]
            else:
                mutant[at:at] = mutant[at : at + rng.choice((4, 12, 32))]
            if not mutant:
                mutant = bytearray(b"\0")
        yield bytes(mutant)


def survives(data: bytes) -> bool:
    try:
        tree = read(data, "m")
    except DtbError:
        return False
    assert content(read(write(tree))) == content(tree)
    return True


def test_mutants_of_a_small_blob() -> None:
    accepted = sum(survives(mutant) for mutant in mutants(write(a_tree()), 4_000, 1))
    assert 0 < accepted < 3_000


def test_mutants_of_a_board(corpus: Path) -> None:
    data = (corpus / "dtbs" / "morello-fvp.dtb").read_bytes()
    assert 0 < sum(survives(mutant) for mutant in mutants(data, 400, 2)) < 400


@sliced(200)
@given(st.binary(max_size=200))
def test_random_structure_blocks(structure: bytes) -> None:
    survives(raw_blob(structure))


# The error types themselves.


def test_errors_are_one_line_with_their_facts() -> None:
    error = DtbError("f", "bad", offset=0x10, path="/n", hint="do")
    assert str(error) == "f: offset 0x10: /n: bad; do"
    assert str(DtbError("f", "bad")) == "f: bad"
    assert (error.reason, error.hint, error.exit_code) == ("bad", "do", 2)
    user = UserError("f", "/x", "no such node", "nearest: /y")
    assert str(user) == "f: /x: no such node; nearest: /y"
    assert user.exit_code == 2
    refusal = Refusal("DT101", "/n", "no SMMU", "assign another")
    assert str(refusal) == "DT101: /n: no SMMU; assign another"
    assert (refusal.rule, refusal.fix, refusal.exit_code) == ("DT101", "assign another", 4)
