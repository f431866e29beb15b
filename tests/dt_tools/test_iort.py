# SPDX-License-Identifier: BSD-2-Clause
"""ACPI IORTs: read, refused with exact texts, resolved, written, and by QEMU and iasl."""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools.binding import Binding, Bindings, Notice, Viommu
from dt_tools.errors import DtbError, Refusal, UserError
from dt_tools.iort import (
    Component,
    IdMapping,
    Iort,
    ItsGroup,
    Memory,
    NamedComponent,
    PciRoot,
    Pmcg,
    RawNode,
    ReservedMemory,
    RootComplex,
    SmmuV2,
    SmmuV3,
    VirtualSmmu,
    check_dom0,
    dom0_vsmmus,
    domu_iort,
    read,
    write,
)
from dt_tools.masters import MapRow, Stream
from tests.counts import sliced
from vsmmu.cli.iort_text import show

# Tables by hand: nothing here uses the writer.


def seal(data: bytes) -> bytes:
    """The bytes with their length and checksum put right."""
    raw = bytearray(data)
    struct.pack_into("<I", raw, 4, len(raw))
    raw[9] = 0
    raw[9] = -sum(raw) & 0xFF
    return bytes(raw)


def table(*nodes: bytes, revision: int = 6, count: int | None = None, start: int = 48) -> bytes:
    number = len(nodes) if count is None else count
    head = struct.pack("<4sIBB6s8sI4sI", b"IORT", 0, revision, 0, b"ACME  ", b"BOARD   ", 7,
                       b"MAKE", 9)  # fmt: skip
    head += struct.pack("<III", number, start, 0)
    return seal(head + bytes(start - 48) + b"".join(nodes))


def node(kind: int, body: bytes, *rows: bytes, revision: int = 0, identifier: int = 0) -> bytes:
    at = 16 + len(body) if rows else 0
    size = 16 + len(body) + 20 * len(rows)
    head = struct.pack("<BHBIII", kind, size, revision, identifier, len(rows), at)
    return head + body + b"".join(rows)


def row(first: int, count: int, output: int, target: int, flags: int = 0) -> bytes:
    return struct.pack("<IIIII", first, count - 1, output, target, flags)


def its_bytes(*ids: int) -> bytes:
    return node(0, struct.pack(f"<I{len(ids)}I", len(ids), *ids), revision=1)


def v3_bytes(*rows: bytes, base: int = 0x9050000, flags: int = 0, index: int = 0) -> bytes:
    body = struct.pack("<QIIQIIIIIII", base, flags, 0, 0, 0, 74, 75, 77, 76, 5, index)
    return node(4, body, *rows, revision=5, identifier=1)


def root_bytes(*rows: bytes, segment: int = 0) -> bytes:
    return node(2, struct.pack("<IBHBIIBHBI", 1, 0, 0, 3, 1, segment, 64, 20, 0, 1), *rows,
                revision=4)  # fmt: skip


def component_bytes(path: bytes, *rows: bytes) -> bytes:
    body = struct.pack("<IIBHBB", 1, 1, 0, 0, 3, 48) + path + b"\0"
    return node(1, body + bytes(-len(body) % 4), *rows, revision=4)


ITS = 48
V3 = ITS + len(its_bytes(0))
AFTER = V3 + len(v3_bytes(row(0, 0x10000, 0, ITS)))


def simple(*more: bytes) -> bytes:
    """An ITS group at `ITS`, an SMMUv3 at `V3`, further nodes from `AFTER` on."""
    return table(its_bytes(0), v3_bytes(row(0, 0x10000, 0, ITS)), *more)


# Every node type.


def test_the_header_is_read():
    found = read(table(revision=3))
    assert found == Iort((), 3, b"ACME  ", b"BOARD   ", 7, b"MAKE", 9)


def test_nodes_may_begin_behind_padding():
    assert read(table(its_bytes(4), start=64)).nodes == (ItsGroup(revision=1, its=(4,)),)


def test_an_its_group():
    assert read(table(its_bytes(3, 9))).nodes == (ItsGroup(revision=1, its=(3, 9)),)


def test_an_smmu_v3():
    found = read(table(its_bytes(0), v3_bytes(row(7, 1, 9, ITS), flags=0x19))).nodes[1]
    assert found == SmmuV3(
        identifier=1, revision=5, mappings=(IdMapping(7, 1, 9, 0),), base=0x9050000, flags=0x19,
        event=74, pri=75, gerr=77, sync=76, proximity=5,
    )  # fmt: skip
    assert (found.name, found.coherent, found.proximity_domain) == ("SMMUv3@0x9050000", True, 5)
    assert found.gsivs == (74, 75, 77, 76)


def test_an_smmu_v3_of_the_first_revision_is_shorter():
    body = struct.pack("<QIIQIIIII", 0x1000, 0, 0, 0, 1, 74, 0, 77, 0)
    found = read(table(node(4, body))).nodes[0]
    assert found == SmmuV3(base=0x1000, model=1, event=74, gerr=77)
    assert (found.coherent, found.proximity_domain, found.gsivs) == (False, None, (74, 77))


def test_an_smmu_v2():
    fixed = struct.pack("<QQIIIIIII", 0x5000, 0x10000, 3, 2, 60, 2, 76, 1, 92)
    pairs = struct.pack("<10I", 50, 1, 51, 0, 52, 0, 53, 1, 54, 0)
    found = read(table(its_bytes(0), node(3, fixed + pairs, row(1, 2, 3, ITS), revision=3)))
    assert found.nodes[1] == SmmuV2(
        revision=3, mappings=(IdMapping(1, 2, 3, 0),), base=0x5000, span=0x10000, model=3, flags=2,
        global_interrupts=((50, 1), (51, 0)), context_interrupts=((52, 0), (53, 1)),
        pmu_interrupts=((54, 0),),
    )  # fmt: skip
    assert found.nodes[1].coherent


def test_a_named_component():
    rows = row(0, 1, 0x20, V3, 1), row(0, 1, 0x21, V3, 1)
    found = read(simple(component_bytes(b"\\_SB.ETH0", *rows)))
    single = [IdMapping(0, 1, sid, 1, True) for sid in (0x20, 0x21)]
    assert found.nodes[2] == NamedComponent(
        revision=4, mappings=tuple(single), flags=1, memory=Memory(1, 0, 3), address_limit=48,
        path="\\_SB.ETH0",
    )  # fmt: skip
    (master,) = found.masters
    assert (master.name, master.is_pci, master.maps) == ("\\_SB.ETH0", False, ())
    name = "SMMUv3@0x9050000"
    assert master.streams == (Stream(name, 0x20), Stream(name, 0x21))
    assert found.resolve(2, 12345) == Stream(name, 0x20)


def test_a_root_complex():
    found = read(simple(root_bytes(row(0x100, 0x100, 0x8100, V3), segment=2)))
    assert found.nodes[2] == RootComplex(
        revision=4, mappings=(IdMapping(0x100, 0x100, 0x8100, 1),), segment=2,
        memory=Memory(1, 0, 3), ats=1, address_limit=64, pasid=20, flags=1,
    )  # fmt: skip
    (master,) = found.masters
    assert (master.name, master.segment, master.streams) == ("pci:0002", 2, ())
    assert master.maps == (MapRow(0x100, "SMMUv3@0x9050000", 0x8100, 0x100),)
    ids = {rid: found.resolve(2, rid) for rid in (0xFF, 0x100, 0x1FF, 0x200)}
    assert {rid: hit and hit.stream_id for rid, hit in ids.items()} == {
        0xFF: None, 0x100: 0x8100, 0x1FF: 0x81FF, 0x200: None,
    }  # fmt: skip


def test_a_root_complex_of_the_first_revision_is_shorter():
    body = struct.pack("<IBHBII", 0, 0, 0, 0, 0, 3)
    found = read(simple(node(2, body, row(0, 9, 0, V3)))).nodes[2]
    assert found == RootComplex(mappings=(IdMapping(0, 9, 0, 1),), segment=3)


@pytest.mark.parametrize("page1", [None, 0x9070000])
def test_a_pmcg(page1):
    body = struct.pack("<QII", 0x9060000, 90, V3)
    body += b"" if page1 is None else struct.pack("<Q", page1)
    found = read(simple(node(5, body, row(0, 1, 4, ITS, 1)))).nodes[2]
    mappings = (IdMapping(0, 1, 4, 0, True),)
    assert found == Pmcg(mappings=mappings, page0=0x9060000, gsiv=90, of=1, page1=page1)


def test_half_an_address_is_no_page1():
    body = struct.pack("<QIII", 0x9060000, 90, V3, 5)
    assert read(simple(node(5, body))).nodes[2] == Pmcg(page0=0x9060000, gsiv=90, of=1)


def test_reserved_memory():
    body = struct.pack("<III", 5, 2, 28) + struct.pack("<QQIQQI", 0x1000, 0x2000, 0, 0x8000, 1, 0)
    found = read(simple(node(6, body, row(0, 1, 4, V3, 1), revision=3))).nodes[2]
    mappings = (IdMapping(0, 1, 4, 1, True),)
    ranges = ((0x1000, 0x2000), (0x8000, 1))
    assert found == ReservedMemory(revision=3, mappings=mappings, flags=5, ranges=ranges)


def test_a_node_of_another_type_is_kept_and_followed():
    kept = node(7, b"\x01\x02\x03", row(0x10, 0x10, 0x30, V3), revision=9, identifier=8)
    data = simple(kept, component_bytes(b"\\X", row(0, 4, 0x1C, AFTER)))
    found = read(data)
    assert found.nodes[2] == RawNode(
        identifier=8, revision=9, mappings=(IdMapping(0x10, 0x10, 0x30, 1),), kind=7,
        data=b"\x01\x02\x03" + bytes(20), mapping_offset=19,
    )  # fmt: skip
    assert found.masters[0].maps == ()
    assert found.resolve(3, 3) == Stream("SMMUv3@0x9050000", 0x3F)
    assert write(found) == data


def test_an_id_at_the_end_of_a_row_belongs_to_the_row_it_begins():
    rows = row(0, 0x101, 0, V3), row(0x100, 0x10, 0x4000, V3), row(0x200, 2, 7, V3)
    found = read(simple(root_bytes(*rows)))
    assert [(m.rid_base, m.sid_base, m.length) for m in found.masters[0].maps] == [
        (0, 0, 0x100), (0x100, 0x4000, 0x10), (0x200, 7, 2),
    ]  # fmt: skip
    assert found.resolve(2, 0x100) == Stream("SMMUv3@0x9050000", 0x4000)


def test_of_several_rows_that_begin_at_an_end_the_first_has_it():
    rows = [row(*one, V3) for one in ((0, 0x11, 0), (0x10, 4, 0x100), (0x10, 1, 0x200))]
    assert read(simple(root_bytes(*rows))).resolve(2, 0x10).stream_id == 0x100
    rows = [row(*one, V3) for one in ((0x10, 1, 0x200), (0, 0x11, 0), (0x10, 4, 0x100))]
    assert read(simple(root_bytes(*rows))).resolve(2, 0x10).stream_id == 0x200


def test_the_first_of_rows_that_overlap_decides():
    rows = row(0x10, 4, 0x100, V3), row(0, 0x40, 0x200, V3)
    found = read(simple(root_bytes(*rows)))
    assert [(m.rid_base, m.sid_base, m.length) for m in found.masters[0].maps] == [
        (0, 0x200, 0x10), (0x10, 0x100, 4), (0x14, 0x214, 0x2C),
    ]  # fmt: skip


# Malformed tables.


def patched(data: bytes, at: int, form: str, value: int) -> bytes:
    raw = bytearray(data)
    struct.pack_into(form, raw, at, value)
    return seal(bytes(raw))


def v2_bytes(**where: int) -> bytes:
    at = {"shared": 60, "contexts": 0, "first": 0, "pmus": 0, "pmu": 0, **where}
    return node(3, struct.pack("<QQIIIIIII", 1, 2, 0, 0, *at.values()) + bytes(16))


CIRCLE = node(9, b"", row(0, 1, 0, 48 + 36)), node(9, b"", row(0, 1, 0, 48))
BAD = {
    "empty": (b"", "offset 0x0: no IORT: the signature is missing"),
    "signature": (b"DSDT" + bytes(60), "offset 0x0: no IORT: the signature is missing"),
    "header": (b"IORT" + bytes(43), "offset 0x0: 47 bytes; the header has 48"),
    "longer": (simple() + b"x", "offset 0x4: the length is 160, the data has 161 bytes"),
    "cut": (simple()[:-1], "offset 0x4: the length is 160, the data has 159 bytes"),
    "large": (
        seal(simple().ljust((1 << 20) + 1, b"\0")),
        "offset 0x4: 1048577 bytes; at most 1048576 are read",
    ),
    "revision": (table(revision=7), "offset 0x8: revision 7; 0 to 6 are known"),
    "checksum by a bit": (
        simple()[:9] + bytes([simple()[9] ^ 0x80]) + simple()[10:],
        f"offset 0x9: the checksum is {simple()[9] ^ 0x80:#04x}, should be {simple()[9]:#04x}",
    ),
    "checksum": (
        simple()[:9] + bytes([simple()[9] ^ 3]) + simple()[10:],
        f"offset 0x9: the checksum is {simple()[9] ^ 3:#04x}, should be {simple()[9]:#04x}",
    ),
    "start": (patched(simple(), 40, "<I", 47), "offset 0x28: the nodes begin at 0x2f, not in "
              "0x30-0xa0"),
    "start behind": (patched(simple(), 40, "<I", 161), "offset 0x28: the nodes begin at 0xa1, "
                     "not in 0x30-0xa0"),
    "count": (table(its_bytes(0), count=2), "offset 0x48: the table ends in node 1 of 2"),
    "many": (table(its_bytes(0), count=0xFFFFFFFF), "offset 0x48: the table ends in node 1 of "
             "4294967295"),
    "few": (table(its_bytes(0), count=0), "offset 0x30: 24 bytes after the last node"),
    "short node": (patched(simple(), ITS + 1, "<H", 15), "offset 0x31: node 0 has a length of 15"),
    "long node": (patched(simple(), V3 + 1, "<H", 89), "offset 0x49: node 1 has a length of 89"),
    "mappings outside": (
        patched(simple(), V3 + 12, "<I", 69),
        "offset 0x48: mapping array of 1 at 0x45 does not fit in a node of 0x58",
    ),
    "mappings many": (
        patched(simple(), V3 + 8, "<I", 0xFFFFFFFF),
        "offset 0x48: mapping array of 4294967295 at 0x44 does not fit in a node of 0x58",
    ),
    "mappings in header": (
        patched(simple(), V3 + 12, "<I", 15),
        "offset 0x48: mapping array of 1 at 0xf does not fit in a node of 0x58",
    ),
    "mappings in fields": (
        simple(node(1, bytes(4), row(0, 1, 0, V3))),
        "offset 0xa0: named component with 20 bytes of 29",
    ),
    "fields cut": (node(4, bytes(43)), "offset 0x30: SMMUv3 with 59 bytes of 60"),
    "reference": (
        simple(root_bytes(row(0, 1, 0, V3 + 1))),
        "offset 0xd4: output reference 0x49 is the offset of no node",
    ),
    "input": (
        simple(root_bytes(row(0xFFFFFFFF, 2, 0, V3))),
        "offset 0xc8: input ids 0xffffffff+0x2 leave 32 bits",
    ),
    "output": (
        simple(root_bytes(row(0, 2, 0xFFFFFFFF, V3))),
        "offset 0xc8: output ids 0xffffffff+0x2 leave 32 bits",
    ),
    "its": (node(0, struct.pack("<II", 2, 0)), "offset 0x30: ITS array of 2 at 0x14 does not fit "
            "in a node of 0x18"),
    "its mapped": (
        simple(node(0, struct.pack("<I", 0), row(0, 1, 0, ITS))),
        "offset 0xa0: ITS group with a mapping to a ITS group",
    ),
    "kind": (
        simple(root_bytes(row(0, 1, 0, AFTER))),
        "offset 0xa0: root complex with a mapping to a root complex",
    ),
    "path open": (
        node(1, bytes(13) + b"\\_SB"),
        "offset 0x4d: the path is not 1 to 1275 bytes of printable ASCII and a NUL",
    ),
    "path empty": (
        component_bytes(b""),
        "offset 0x4d: the path is not 1 to 1275 bytes of printable ASCII and a NUL",
    ),
    "path escape": (
        component_bytes(b"\\\x1b[2J"),
        "offset 0x4d: the path is not 1 to 1275 bytes of printable ASCII and a NUL",
    ),
    "path long": (
        component_bytes(b"\\" * 1276),
        "offset 0x4d: the path is not 1 to 1275 bytes of printable ASCII and a NUL",
    ),
    "pmcg": (
        simple(node(5, struct.pack("<QIIQ", 0, 0, 3, 0))),
        "offset 0xbc: node reference 0x3 is the offset of no node",
    ),
    "pmcg its": (simple(node(5, struct.pack("<QIIQ", 0, 0, ITS, 0))), "offset 0xa0: PMCG of a "
                 "ITS group"),
    "rmr": (node(6, struct.pack("<III", 0, 1, 28)), "offset 0x30: memory range array of 1 at 0x1c "
            "does not fit in a node of 0x1c"),
    "v2 global": (v2_bytes(shared=61), "offset 0x30: global interrupt array of 2 at 0x3d does not "
                  "fit in a node of 0x4c"),
    "v2 fields": (v2_bytes(shared=59), "offset 0x6b: fields and global interrupt array overlap"),
    "v2 arrays": (
        v2_bytes(contexts=1, first=64),
        "offset 0x70: global interrupt array and context interrupt array overlap",
    ),
    "device id": (
        table(its_bytes(0), v3_bytes(row(0, 1, 0, ITS), flags=16, index=1)),
        "offset 0x48: DeviceID mapping 1 of 1 mappings",
    ),
    "same base": (table(v3_bytes(), v3_bytes()), "offset 0x74: base 0x9050000 is that of the SMMU "
                  "at 0x30 too"),
    "circle": (table(*CIRCLE), "offset 0x30: the mappings of node 0 lead in a circle"),
    "self": (
        table(node(9, b"", row(0, 1, 0, 48))),
        "offset 0x30: the mappings of node 0 lead in a circle",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_malformed(name):
    data, text = BAD[name]
    data = data if data[:4] == b"IORT" or len(data) < 16 or name == "signature" else table(data)
    with pytest.raises(DtbError) as caught:
        read(data, "t.aml")
    assert str(caught.value) == f"t.aml: {text}"
    assert caught.value.offset is not None


# Hostile tables.


def everything() -> Iort:
    """A table with every type of node."""
    to_its, to_v3 = (IdMapping(0, 0x10000, 0, 0),), IdMapping(0, 1, 0x40, 1, single=True)
    raw = RawNode(kind=7, data=bytes(range(8)) + bytes(20), mapping_offset=24, mappings=to_its)
    return Iort((
        ItsGroup(revision=1, its=(0, 4)),
        SmmuV3(revision=5, identifier=1, base=0x2B400000, flags=0x19, vatos=0x77, model=1,
               event=74, pri=75, gerr=77, sync=79, proximity=3, mappings=to_its),
        SmmuV2(revision=3, base=0x7FB20000, span=0x10000, model=3, flags=3,
               global_interrupts=((127, 0), (128, 1)), context_interrupts=((129, 0), (130, 0)),
               pmu_interrupts=((131, 1),), mappings=to_its),
        NamedComponent(revision=4, path="\\_SB.DMA0", flags=1, memory=Memory(1, 2, 3),
                       address_limit=40, mappings=(to_v3, IdMapping(0, 1, 0x41, 2, True))),
        RootComplex(revision=4, segment=1, memory=Memory(1, 0, 3), ats=3, address_limit=48,
                    pasid=16, flags=1, mappings=(IdMapping(0, 0x101, 0x1000, 1),
                                                 IdMapping(0x100, 0xFF00, 0x100, 2))),
        Pmcg(revision=2, page0=0x2B420000, page1=0x2B430000, of=1, gsiv=80),
        Pmcg(page0=0x2B440000, of=2, gsiv=81),
        ReservedMemory(revision=3, flags=3, ranges=((0x8000_0000, 0x20_0000),),
                       mappings=(to_v3,)),
        raw,
    ))  # fmt: skip


def test_every_type_is_written_and_read_again():
    assert read(write(everything())) == everything()


def test_mutations_end_in_one_error(capsys):
    choose = random.Random(5)
    bases = [write(everything()), simple(root_bytes(row(0, 9, 0, V3))), table(*CIRCLE)]
    outcomes = {"read": 0, "refused": 0}
    begin = time.process_time()
    for _ in range(12_000):
        raw = bytearray(choose.choice(bases))
        for _ in range(choose.randint(1, 4)):
            at = choose.randrange(len(raw))
            match choose.randrange(4):
                case 0:
                    raw[at] = choose.randrange(256)
                case 1:
                    raw[at] = choose.choice((0, 1, 0x7F, 0xFF))
                case 2:
                    at = at & ~3
                    raw[at : at + 4] = choose.choice((0, 1, 16, 48, 72, 2**32 - 1)).to_bytes(
                        4, "little"
                    )
                case _:
                    del raw[at : at + choose.randint(1, 24)]
        data = seal(bytes(raw)) if len(raw) >= 48 else bytes(raw)
        try:
            found = read(data)
        except DtbError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert read(write(found)) == found
        for master in found.masters:
            found.resolve(master.index, 0x100)
        if outcomes["read"] % 20 == 0:
            show(data, "t", as_json=False)
            show(data, "t", as_json=True)
    assert min(outcomes.values()) > 1000, outcomes
    assert time.process_time() - begin < 30
    assert "\x1b" not in capsys.readouterr().out


def test_the_largest_tables_are_read_in_bounded_time():
    many = (65535 - 40 - 16) // 20
    full = root_bytes(*(row(n * 3, 9, n, V3) for n in range(many)))
    wide = root_bytes(*(row(0, 1 << 32, 0, V3) for _ in range(many)))
    begin = time.process_time()
    found = read(simple(*[full, wide] * 7))
    assert len(found.masters) == 14
    assert found.masters[1].maps == (MapRow(0, "SMMUv3@0x9050000", 0, 1 << 32),)
    read(table(*[node(200, b"")] * 65_000))
    assert time.process_time() - begin < 10


# The writer, and the resolution against a walk over the bytes.


def brute(data: bytes, at: int, value: int) -> tuple[int, int] | None:
    """(offset of the SMMU, StreamID) by a walk over the bytes, as Linux goes through them."""
    while True:
        kind, _, _, _, count, offset = struct.unpack_from("<BHBIII", data, at)
        if kind in (3, 4):
            return at, value
        found = None
        for n in range(count):
            first, less, output, target, flags = struct.unpack_from(
                "<5I", data, at + offset + 20 * n
            )
            if flags & 1:
                found = output, target
                break
            if not first <= value <= first + less or (found and value != first):
                continue
            found = output + value - first, target
            if not less or value != first + less:
                break
        if found is None:
            return None
        value, at = found


SMALL = st.integers(0, 40)
WORD = st.one_of(SMALL, st.integers(0, 2**32 - 1))
LONG = st.one_of(SMALL, st.integers(0, 2**64 - 1))


@st.composite
def mappings(draw, targets):
    rows = []
    for _ in range(draw(st.integers(0, 6)) if targets else 0):
        first, count, output = draw(SMALL), draw(st.integers(1, 20)), draw(SMALL)
        if draw(st.integers(0, 7)) == 0:
            count = 2**32 - max(first, output)
        single = draw(st.integers(0, 7)) == 0
        rows.append(IdMapping(first, count, output, draw(st.sampled_from(targets)), single))
    return tuple(rows)


@st.composite
def iorts(draw):
    nodes = [
        ItsGroup(its=tuple(draw(st.lists(WORD, max_size=3))))
        for _ in range(draw(st.integers(0, 2)))
    ]
    its = list(range(len(nodes)))
    bases = draw(st.lists(LONG, max_size=3, unique=True))
    for base in bases:
        common = {"base": base, "mappings": draw(mappings(its)), "model": draw(WORD)}
        if draw(st.booleans()):
            pairs = st.lists(st.tuples(WORD, WORD), max_size=3).map(tuple)
            nodes.append(SmmuV2(**common, span=draw(LONG), context_interrupts=draw(pairs),
                                pmu_interrupts=draw(pairs)))  # fmt: skip
        else:
            nodes.append(SmmuV3(**common, flags=draw(WORD) & ~16, event=draw(WORD), revision=5))
    smmus = list(range(len(its), len(nodes)))
    leads = its + smmus
    for _ in range(draw(st.integers(0, 3))):
        rows, data = draw(mappings(leads)), draw(st.binary(max_size=9))
        at = 16 + len(data) if rows else 0
        kind = draw(st.integers(7, 255))
        nodes.append(RawNode(kind=kind, data=data + bytes(20 * len(rows)), mapping_offset=at,
                             mappings=rows))  # fmt: skip
        leads.append(len(nodes) - 1)
    for _ in range(draw(st.integers(0, 4))):
        rows = draw(mappings(leads))
        match draw(st.integers(0, 3)):
            case 0:
                path = draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1,
                                    max_size=20))  # fmt: skip
                nodes.append(NamedComponent(path=path, flags=draw(WORD), mappings=rows))
            case 1:
                nodes.append(RootComplex(segment=draw(WORD), mappings=rows, flags=draw(SMALL),
                                         revision=draw(st.integers(0, 4))))  # fmt: skip
            case 2 if smmus:
                page1 = draw(st.one_of(st.none(), LONG))
                nodes.append(Pmcg(page0=draw(LONG), of=draw(st.sampled_from(smmus)), page1=page1,
                                  mappings=draw(mappings(its))))  # fmt: skip
            case _:
                ranges = tuple(draw(st.lists(st.tuples(LONG, LONG), max_size=3)))
                nodes.append(ReservedMemory(ranges=ranges, mappings=draw(mappings(smmus))))
    return Iort(tuple(nodes), revision=draw(st.integers(0, 6)))


@sliced(300)
@given(iorts())
def test_a_table_is_what_was_written_and_resolves_like_its_bytes(iort):
    data = write(iort)
    assert read(data) == iort
    offsets = [48]
    for _ in iort.nodes:
        offsets.append(offsets[-1] + struct.unpack_from("<H", data, offsets[-1] + 1)[0])
    names = {offsets[n]: node.name for n, node in enumerate(iort.nodes) if node in iort.smmus}
    for master in iort.masters:
        targets = [type(iort.nodes[m.target]) for m in iort.nodes[master.index].mappings]
        for value in (*range(64), 2**31, 2**32 - 1):
            hit = brute(data, offsets[master.index], value)
            expected = hit and Stream(names[hit[0]], hit[1])
            assert iort.resolve(master.index, value) == expected
            rows = [r for r in master.maps if r.rid_base <= value < r.rid_base + r.length]
            assert len(rows) <= 1
            singles = any(m.single for m in iort.nodes[master.index].mappings)
            if RawNode not in targets and not singles:
                via = [Stream(r.smmu_path, value - r.rid_base + r.sid_base) for r in rows]
                assert via == ([expected] if expected else [])


UNWRITABLE = {
    "no node": (SmmuV3(base=0, mappings=(IdMapping(0, 1, 0, 5),)),
                "a mapping or a PMCG of a node that there is not"),
    "negative": (RootComplex(segment=0, mappings=(IdMapping(0, 1, 0, -1),)),
                 "a mapping or a PMCG of a node that there is not"),
    "wide": (SmmuV3(base=1 << 64), "a value does not fit its field"),
    "count": (SmmuV3(base=0, mappings=(IdMapping(0, 0, 0, 0),)), "a value does not fit its field"),
    "long": (RawNode(kind=9, data=bytes(65520)), "a value does not fit its field"),
    "disguised": (RawNode(kind=0, data=bytes(4)), "the table would not be the same"),
    "globals": (SmmuV2(base=0, global_interrupts=((1, 0),)), "offset 0x30: global interrupt array "
                "of 2 at 0x3c does not fit in a node of 0x44"),
    "path": (NamedComponent(path="\\\u00e9"), "offset 0x4d: the path is not 1 to 1275 bytes of "
             "printable ASCII and a NUL"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_table_that_cannot_be_read_again_is_not_written(name):
    made, text = UNWRITABLE[name]
    with pytest.raises(DtbError) as caught:
        write(Iort((made,)), "t")
    assert str(caught.value).startswith(f"t: {text}")


def test_the_header_of_a_table_has_its_sizes():
    with pytest.raises(DtbError, match="would not be the same"):
        write(Iort((), oem_id=b"SHORT"))


# dom0 and domU.


def test_dom0_keeps_the_table():
    iort = read(simple(root_bytes(row(0, 0x1000, 0x8000, V3))))
    vsmmus = dom0_vsmmus(iort)
    assert vsmmus == (VirtualSmmu(0x9050000, frozenset((74, 75, 76, 77)), coherent=False),)
    assert check_dom0(iort, vsmmus) == ()
    # Nothing is to be changed: the same bytes send each requester to the vSMMU at the base of its
    # SMMU, with the StreamID for a vMasterID.
    names = {f"SMMUv3@{vsmmu.base:#x}" for vsmmu in vsmmus}
    for rid in range(0x1000):
        hit = iort.resolve(2, rid)
        assert hit.smmu_path in names
        assert hit.stream_id == 0x8000 + rid


DOM0 = {
    "nowhere": ((), SmmuV3(base=0x1000, event=74),
                [("DT711", "SMMUv3@0x1000", "no vSMMU at its base")]),
    "elsewhere": ((VirtualSmmu(0x2000),), SmmuV3(base=0x1000, event=74), [
        ("DT711", "SMMUv3@0x1000", "no vSMMU at its base"),
        ("DT711", "vSMMU@0x2000", "no SMMUv3 of the table is there"),
    ]),
    "interrupt": ((VirtualSmmu(0x1000, frozenset((74,))),), SmmuV3(base=0x1000, event=74, gerr=77),
                  [("DT712", "SMMUv3@0x1000", "the vSMMU does not raise GSIV 77")]),
    "msi": (None, SmmuV3(base=0x1000), [
        ("DT712", "SMMUv3@0x1000",
         "the table has no wired interrupt for it; the vSMMU would have to send MSIs"),
    ]),
    "coherent": ((VirtualSmmu(0x1000, frozenset((74,)), coherent=False),),
                 SmmuV3(base=0x1000, event=74, flags=1),
                 [("DT712", "SMMUv3@0x1000",
                   "the table has its walks coherent, the vSMMU has not")]),
    "httu": (None, SmmuV3(base=0x1000, event=74, flags=4),
             [("DT712", "SMMUv3@0x1000", "the table has HTTU 2 for it, the vSMMU 0")]),
    "cavium": (None, SmmuV3(base=0x1000, event=74, model=2), [
        ("DT712", "SMMUv3@0x1000",
         "model 2 has its registers of page 1 elsewhere than the vSMMU"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", DOM0)
def test_dom0_needs_a_vsmmu_that_the_table_is_true_of(name):
    vsmmus, smmu, expected = DOM0[name]
    iort = Iort((smmu,))
    found = check_dom0(iort, dom0_vsmmus(iort) if vsmmus is None else vsmmus)
    assert found == tuple(Notice(*one) for one in expected)


VIOMMU = Viommu(0x4040000, 0x20000, 33, 65002)
BOUND = Bindings(
    (
        Binding(0, "/smmu@1", 0x20, ("/soc/eth",)),
        Binding(1, "/smmu@1", 0x21, ("/soc/eth", "/soc/dma")),
        Binding(2, "/smmu@1", 0x100, ("/pcie",)),
        Binding(3, "/smmu@1", 0x101, ("/pcie",)),
        Binding(4, "/smmu@2", 0x20, ("/pcie",)),
    ),
    viommu=VIOMMU,
)
ETH, DMA = Component("/soc/eth", "\\_SB.ETH0", coherent=True), Component("/soc/dma", "\\_SB.DMA0")
PCI = PciRoot(0, ((0x8, "/smmu@1", 0x100), (0x10, "/smmu@2", 0x20), (0x9, "/smmu@1", 0x101)))


def domu() -> Iort:
    return domu_iort(BOUND, [ETH, DMA], [PCI])


def test_a_domu_has_one_smmu_and_its_masters():
    iort = domu()
    assert read(write(iort)) == iort
    smmu, eth, dma, root = iort.nodes
    assert (smmu.base, smmu.gsivs, smmu.coherent) == (0x4040000, (33, 33), False)
    assert (eth.path, eth.memory, dma.memory) == ("\\_SB.ETH0", Memory(1, 0, 3), Memory())
    assert root.mappings == (IdMapping(8, 2, 2, 0), IdMapping(0x10, 1, 4, 0))
    streams = {m.name: [s.stream_id for s in m.streams] for m in iort.masters}
    assert streams == {"\\_SB.ETH0": [0, 1], "\\_SB.DMA0": [1], "pci:0000": []}
    name = "SMMUv3@0x4040000"
    for rid, smmu_path, sid in PCI.functions:
        assert iort.resolve(3, rid) == Stream(name, BOUND.vmaster_id(smmu_path, sid))
    assert iort.resolve(3, 0xA) is None


def test_a_domus_smmu_can_be_elsewhere():
    smmu = domu_iort(BOUND, [ETH, DMA], [PCI], base=0x1000, gsiv=99, coherent=True).nodes[0]
    assert (smmu.base, smmu.gsivs, smmu.coherent) == (0x1000, (99, 99), True)


REFUSED = {
    "no vsmmu": (Bindings(), [], [], Refusal,
                 'DT703: /: the guest has no vSMMU; set viommu = "smmuv3"'),
    "left out": (BOUND, [ETH, DMA], [], Refusal,
                 "DT702: /smmu@1: vMasterID 0x2 would be in no mapping of the IORT; "
                 "give an ACPI path or a requester id for /pcie"),
    "not assigned": (BOUND, [Component("/usb", "\\USB")], [PCI], Refusal,
                     "DT701: /usb: has no vMasterID in this guest; "
                     "name a device of the guest's dtdev list"),
    "function": (BOUND, [ETH, DMA], [PciRoot(0, ((8, "/smmu@2", 0x100),))], Refusal,
                 "DT701: /smmu@2: StreamID 0x100 of requester 0x8 has no vMasterID in this guest; "
                 "assign the function to the guest"),
    "relative": (BOUND, [Component("/soc/eth", "ETH0")], [], UserError,
                 "iort: ETH0: not an absolute path of the ACPI namespace"),
    "control": (BOUND, [Component("/soc/eth", "\\\x1b")], [], UserError,
                "iort: \\\\\\x1b: not an absolute path of the ACPI namespace"),
    "twice": (BOUND, [ETH, ETH], [], UserError,
              "iort: \\\\_SB.ETH0: /soc/eth or its ACPI path is named twice"),
    "segments": (BOUND, [], [PCI, PCI], UserError,
                 "iort: pci:0000: not a segment, or named twice"),
    "rid": (BOUND, [], [PciRoot(1, ((0x10000, "/smmu@2", 0x20),))], UserError,
            "iort: pci:0001: requester ids are not below 0x10000, or named twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_domu_is_refused(name):
    bindings, components, roots, kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        domu_iort(bindings, components, roots)
    assert str(caught.value) == text


# As text and JSON.


TEXT = """\
t.aml: ACPI IORT, revision 6
OEM VSMMU VSMMU, revision 1

SMMUs: 2
KIND     BASE        MODEL             FLAGS  COHERENT  DOMAIN  MASTERS  GSIVS
smmu-v3  0x2b400000  HiSilicon hi161x  0x19   yes       3       2        event 74, pri 75, gerr 77, sync 79
smmu-v2  0x7fb20000  Arm MMU-500       0x3    yes       -       2        global 127 128, context 129 130, pmu 131

Masters: 2
\\_SB.DMA0 named component, node 3
  StreamID 0x40 at SMMUv3@0x2b400000
  StreamID 0x41 at SMMUv2@0x7fb20000
pci:0001 root complex, node 4
  0x0..0xff -> StreamID 0x1000..0x10ff at SMMUv3@0x2b400000
  0x100..0xffff -> StreamID 0x100..0xffff at SMMUv2@0x7fb20000

Mappings in the table: 8
FROM                           IDS            OUTPUT          TO
SMMUv3@0x2b400000              0x0..0xffff    0x0..0xffff     ITS group (node 0)
SMMUv2@0x7fb20000              0x0..0xffff    0x0..0xffff     ITS group (node 0)
\\_SB.DMA0                      any            0x40            SMMUv3@0x2b400000
\\_SB.DMA0                      any            0x41            SMMUv2@0x7fb20000
pci:0001                       0x0..0x100     0x1000..0x1100  SMMUv3@0x2b400000
pci:0001                       0x100..0xffff  0x100..0xffff   SMMUv2@0x7fb20000
RMR (node 7)                   any            0x40            SMMUv3@0x2b400000
node of unknown type (node 8)  0x0..0xffff    0x0..0xffff     ITS group (node 0)

ITS groups: 1
  node 0: ITS 0 4

PMCGs: 2
  0x2b420000, GSIV 80, of SMMUv3@0x2b400000
  0x2b440000, GSIV 81, of SMMUv2@0x7fb20000

Reserved memory (RMR): 1
  node 7: 0x80000000, 0x200000 bytes

Nodes of unknown types: 1
  node 8: type 7, 44 bytes

dom0 with one vSMMU at the base of each SMMUv3
  the table stays as it is
"""  # noqa: E501


def test_text(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    show(write(everything()), "t.aml", as_json=False)
    assert capsys.readouterr().out == TEXT


def test_json(capsys):
    show(simple(root_bytes(row(0, 0x100, 0x80, V3))), "t.aml", as_json=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert (found["schema"], found["file"], found["revision"]) == ("vsmmu.iort/1", "t.aml", 6)
    assert found["smmus"] == [{
        "node": 1, "name": "SMMUv3@0x9050000", "kind": "arm,smmu-v3", "base": "0x9050000",
        "model": "generic", "flags": "0x0", "coherent": False, "masters": ["pci:0000"],
        "gsivs": {"event": 74, "pri": 75, "gerr": 77, "sync": 76}, "proximity_domain": None,
    }]  # fmt: skip
    assert found["masters"] == [{
        "node": 2, "name": "pci:0000", "kind": "root complex", "segment": 0, "coherent": True,
        "streams": [], "maps": [{
            "id_first": "0x0", "id_last": "0xff", "smmu": "SMMUv3@0x9050000",
            "stream_id_first": "0x80", "stream_id_last": "0x17f",
        }],
    }]  # fmt: skip
    assert found["mappings"][1] == {
        "node": 2, "input_base": "0x0", "count": 256, "output_base": "0x80",
        "target": 1, "to": "SMMUv3@0x9050000", "single": False,
    }  # fmt: skip
    assert found["its_groups"] == [{"node": 0, "its": [0]}]
    assert found["pmcgs"] == found["reserved_memory"] == found["unknown"] == found["dom0"] == []


# Second opinions: QEMU's table and ACPICA's disassembler.


class Stub:
    """A QEMU that does not run, seen through its gdb stub at physical addresses."""

    RAM, FW_CFG_DMA = 0x40000000, 0x09020010
    DIRECTORY = 0x19

    def __init__(self, qemu: str, machine: str) -> None:
        self.process = subprocess.Popen(
            [qemu, "-M", machine, "-cpu", "cortex-a57", "-m", "64", "-display", "none", "-serial",
             "none", "-monitor", "none", "-nodefaults", "-S", "-gdb", "stdio"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.ask("Qqemu.PhyMemMode:1") == b"OK"

    def ask(self, text: str) -> bytes:
        raw = text.encode()
        self.process.stdin.write(b"$%s#%02x" % (raw, sum(raw) & 0xFF))
        self.process.stdin.flush()
        answer = self.until(b"$") and self.until(b"#")[:-1]
        self.process.stdout.read(2)
        self.process.stdin.write(b"+")
        self.process.stdin.flush()
        return answer

    def until(self, mark: bytes) -> bytes:
        got = b""
        while not got.endswith(mark):
            byte = self.process.stdout.read(1)
            assert byte, "QEMU went away"
            got += byte
        return got

    def item(self, select: int, size: int) -> bytes:
        """Bytes of a fw_cfg item, by its DMA interface into RAM and from there."""
        control = struct.pack(">IIQ", select << 16 | 8 | 2, size, self.RAM + 0x1000)
        assert self.ask(f"M{self.RAM:x},10:{control.hex()}") == b"OK"
        assert self.ask(f"M{self.FW_CFG_DMA:x},8:{self.RAM:016x}") == b"OK"
        got = b""
        while len(got) < size:
            at, part = self.RAM + 0x1000 + len(got), min(1024, size - len(got))
            got += bytes.fromhex(self.ask(f"m{at:x},{part:x}").decode())
        return got

    def file(self, name: str) -> bytes:
        count = int.from_bytes(self.item(self.DIRECTORY, 4), "big")
        raw = self.item(self.DIRECTORY, 4 + 64 * count)
        for n in range(count):
            size, select, _, found = struct.unpack_from(">IHH56s", raw, 4 + 64 * n)
            if found.rstrip(b"\0").decode() == name:
                return self.item(select, size)
        raise AssertionError(f"fw_cfg has no {name}")


@pytest.fixture(scope="module", params=["gic-version=3", "gic-version=2", "gic-version=3,its=off"])
def qemus(request) -> bytes:
    """The IORT that QEMU gives its firmware, with the checksum that firmware puts in."""
    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None:
        pytest.skip("QEMU is not installed (package qemu-system-arm)")
    stub = Stub(qemu, f"virt,iommu=smmuv3,{request.param}")
    try:
        tables = stub.file("etc/acpi/tables")
    finally:
        stub.process.kill()
        stub.process.communicate()
    at = tables.find(b"IORT")
    if at < 0:
        pytest.skip(f"QEMU has no IORT with {request.param}")
    return seal(tables[at : at + int.from_bytes(tables[at + 4 : at + 8], "little")])


@pytest.fixture
def disassemble(tmp_path):
    """iasl's view of a table: (field, value) in order."""
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("iasl is not installed (package acpica-tools)")

    def run(data: bytes) -> list[tuple[str, str]]:
        (tmp_path / "t.aml").write_bytes(data)
        done = subprocess.run([iasl, "-d", "t.aml"], cwd=tmp_path, capture_output=True, text=True,
                              timeout=60, check=False)  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        text = (tmp_path / "t.dsl").read_text()
        for word in ("Error", "Warning", "Unknown", "Invalid"):
            assert word not in said, said
            assert word not in text, text
        return re.findall(r"^\[\w+ +\w+ +\w+\] +(.*?)(?: \(.*\))? : (.*?) *$", text, re.M)

    return run


def test_qemus_table(qemus):
    iort = read(qemus, "qemu")
    (smmu,) = iort.smmus
    assert (smmu.name, smmu.coherent) == ("SMMUv3@0x9050000", True)
    assert len(smmu.gsivs) == 4
    (master,) = iort.masters
    assert master.maps[0].smmu_path == smmu.name
    begins = {m.input_base for m in iort.nodes[master.index].mappings}
    assert {0, 0x100} >= begins
    for rid in range(0x100):
        assert iort.resolve(master.index, rid) == Stream(smmu.name, rid)
    # Content and, for this firmware, layout come back.
    assert read(write(iort)) == iort
    assert write(iort) == qemus
    assert check_dom0(iort, dom0_vsmmus(iort)) == ()


def test_qemus_table_is_resolved_like_its_bytes(qemus):
    iort = read(qemus)
    starts, at = [], 48
    for _ in iort.nodes:
        starts.append(at)
        at += int.from_bytes(qemus[at + 1 : at + 3], "little")
    (master,) = iort.masters
    for rid in range(0x10000):
        hit = brute(qemus, starts[master.index], rid)
        assert iort.resolve(master.index, rid) == (hit and Stream("SMMUv3@0x9050000", hit[1]))


def test_iasl_reads_qemus_table_as_it_was(qemus, disassemble):
    again = disassemble(write(read(qemus)))
    assert again == disassemble(qemus)
    assert ("Base Address", "0000000009050000") in again
    assert ("Signature", '"IORT"    [IO Remapping Table]') in again


def test_iasl_reads_a_domus_table(disassemble):
    found = disassemble(write(domu()))
    values = [value for name, value in found if name == "Output Base"]
    assert [int(value, 16) for value in values] == [0, 1, 1, 2, 4]
    assert [int(value, 16) for name, value in found if name == "Output Reference"] == [48] * 5
    wanted = [
        ("Base Address", "0000000004040000"),
        ("Event GSIV", "00000021"),
        ("GERR GSIV", "00000021"),
        ("PRI GSIV", "00000000"),
        ("Device Name", '"\\_SB.ETH0"'),
        ("Device Name", '"\\_SB.DMA0"'),
        ("PCI Segment Number", "00000000"),
    ]
    for one in wanted:
        assert one in found, found


def test_iasl_agrees_on_every_type_it_knows(disassemble):
    iort = everything()
    known = Iort(iort.nodes[:7], revision=3)
    found = disassemble(write(known))
    starts = [int(value, 16) for name, value in found if name == "Type"]
    assert starts == [0, 4, 3, 1, 2, 5, 5][: len(starts)]
    assert len(starts) == 7, found
    wanted = [
        ("Identifiers", "00000004"),
        ("Base Address", "000000002B400000"),
        ("VATOS Address", "0000000000000077"),
        ("Sync GSIV", "0000004F"),
        ("Proximity Domain", "00000003"),
        ("Span", "0000000000010000"),
        ("NSgIrpt", "0000007F"),
        ("NSgCfgIrpt Flags", "00000001"),
        ("Device Name", '"\\_SB.DMA0"'),
        ("Memory Size Limit", "28"),
        ("ATS Attribute", "00000003"),
        ("Page 0 Base Address", "000000002B420000"),
        ("Overflow Interrupt GSIV", "00000050"),
        ("Node Reference", "0000004C"),
    ]
    missing = [one for one in wanted if one not in found]
    assert not missing, found
