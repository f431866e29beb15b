# SPDX-License-Identifier: BSD-2-Clause
"""The libxl profiles without recordings: partial trees, layout, versions, the 2026 series."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools import blob
from dt_tools.errors import Refusal, UserError
from dt_tools.libxl import VERSIONS, LibxlGuest, build_libxl
from dt_tools.libxl.partial import read_partial
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree
from tests.counts import sliced
from xl_configs import load

BASE = 'name = "g"\nkernel = "k"\nmemory = 64\n'


def build(
    text: str = "", profile: str = "xen-4.20", partial: bytes | None = None, **arguments: object
) -> LibxlGuest:
    version = VERSIONS[profile]
    config = load((BASE + text).encode(), "g.cfg", dialect=version.dialect)
    return build_libxl(config, version, partial=partial, **arguments)


def refusal(text: str = "", profile: str = "xen-4.20", **arguments: object) -> str:
    with pytest.raises(Refusal) as error:
        build(text, profile, **arguments)
    return str(error.value)


def passthrough(**props: tuple[int, ...]) -> Tree:
    """A partial tree with two devices, one of them in a bus."""
    tree = Tree()
    bus = tree.root.add("passthrough")
    bus.set_strings("compatible", "simple-bus")
    bus.set_empty("ranges")
    for name, cells in props.items():
        bus.add(name).set_cells("iommus", *cells)
    return tree


def data(tree: Tree) -> bytes:
    return blob.write(tree)


# Layout.


@pytest.mark.parametrize("profile", sorted(VERSIONS))
def test_the_bytes_read_back_as_the_tree(profile: str) -> None:
    built = build('vuart = "sbsa_uart"\nvcpus = 20', profile, data(passthrough(dma=(2, 5))))
    read = blob.read(built.blob.data, "guest.dtb")
    assert [n.path for n in read.walk()] == [n.path for n in built.tree.walk()]
    for a, b in zip(read.walk(), built.tree.walk(), strict=True):
        assert list(a.props.items()) == list(b.props.items())
    assert len(built.blob.data) == built.blob.size


def test_an_unused_bank_is_taken_out_and_a_used_one_is_not() -> None:
    one, two = build(), build("memory = 4096")
    assert one.blob.structure.count(b"\0\0\0\4" * 19) == 1
    assert b"\0\0\0\4" * 19 not in two.blob.structure
    assert "memory@200000000" in two.tree.root.children


def test_free_space_behind_the_tree() -> None:
    """Room for 257 entries of /hypervisor's reg, of which three are used."""
    old, new = build(), build(profile="xen-4.22")
    assert new.blob.size - old.blob.size == (257 - 3) * 16
    # One region less: its 16 bytes are free space in either.
    assert len(build("memory = 3070").blob.structure) == len(old.blob.structure) - 16
    assert build("memory = 3070").blob.size == old.blob.size


def test_strings_are_shared_by_their_ends() -> None:
    strings = build().blob.data[-200:]
    assert b"linux,phandle\0" in strings
    assert b"\0phandle\0" not in strings


def test_a_name_is_found_where_libfdt_looks_first() -> None:
    """From the start of the strings block, where the last new name is: there it ends with reg."""
    tree = passthrough()
    bus = tree.root.children["passthrough"]
    bus.set_empty("my-reg")
    bus.set_cells("reg", 1)
    made = build(partial=data(tree)).blob
    strings = int.from_bytes(made.data[12:16], "big")
    assert made.data[strings : strings + 7] == b"my-reg\0"
    # FDT_PROP, four bytes, the name at 3, the value 1.
    assert made.structure.count(bytes.fromhex("00000003 00000004 00000003 00000001")) == 1


def test_a_tree_above_1_mib_is_refused() -> None:
    tree = passthrough(dma=(2, 5))
    tree.root.children["passthrough"].props["big"] = bytes((1 << 20) - 3000)
    room = (1 << 20) - build(partial=data(tree)).blob.size
    assert room > 0
    tree.root.children["passthrough"].props["big"] += bytes(room & ~3)
    assert build(partial=data(tree)).blob.size <= 1 << 20
    # 4.22 has room for more extended regions, which counts.
    text = refusal(profile="xen-4.22", partial=data(tree))
    assert text.startswith("DT551: /passthrough: the guest's tree takes ")
    assert text.endswith("1048576 is the most; make the partial tree smaller")
    tree.root.children["passthrough"].props["big"] += bytes(4)
    assert refusal(partial=data(tree)).startswith("DT551")


# What libxl sees of a partial tree.


def raw(version: int = 17, last: int = 16, cut: int = 0, change: tuple[int, bytes] = (0, b"")):
    """A small partial tree with another header, end cut off, or bytes changed."""
    tree = passthrough(dma=(2, 5))
    tree.root.add("aliases").set_strings("dma0", "/passthrough/dma")
    out = bytearray(data(tree))
    out[20:28] = version.to_bytes(4, "big") + last.to_bytes(4, "big")
    at, new = change
    out[at : at + len(new)] = new
    return bytes(out[: len(out) - cut])


@pytest.mark.parametrize(("version", "last"), [(17, 16), (16, 16), (17, 17), (99, 17), (99, 16)])
def test_versions_that_libfdt_reads(version: int, last: int) -> None:
    tree = read_partial(raw(version, last))
    assert tree.node("/passthrough/dma").cells("iommus") == (2, 5)
    assert tree.node("/aliases").string("dma0") == "/passthrough/dma"


@pytest.mark.parametrize(
    ("blob_", "text"),
    [
        (b"", "DT550: /: partial tree: 0 bytes are no blob (40 header bytes)"),
        (raw(15, 15), "DT550: /: partial tree: version 15, last compatible 15: not 16 or 17"),
        (raw(18, 18), "DT550: /: partial tree: version 18, last compatible 18: not 16 or 17"),
        (raw(cut=1), "DT550: /: partial tree: totalsize "),
        (raw(change=(0, b"\1")), "DT550: /: partial tree: magic 0x010dfeed is not 0xd00dfeed"),
        (raw(change=(8, b"\0\0\0\x3a")), "DT550: /: partial tree: structure block at 0x3a is not"),
        (raw(change=(12, b"\1")), "DT550: /: partial tree: strings block [0x1"),
    ],
)
def test_partial_trees_that_are_none(blob_: bytes, text: str) -> None:
    with pytest.raises(Refusal) as error:
        read_partial(blob_)
    assert str(error.value).startswith(text)
    assert str(error.value).endswith("; compile it with dtc again")


def structure(*tags: bytes) -> bytes:
    """A blob with this structure block and the strings "a" (at 0) and "b" (at 2)."""
    block = b"".join(tags)
    header = (0xD00DFEED, 60 + len(block), 56, 56 + len(block), 40, 17, 16, 0, 4, len(block))
    return b"".join(n.to_bytes(4, "big") for n in header) + bytes(16) + block + b"a\0b\0"


def node(name: bytes) -> bytes:
    return b"\0\0\0\1" + name + bytes(4 - len(name) % 4)


def prop(name: int, value: bytes = b"") -> bytes:
    return b"\0\0\0\3" + len(value).to_bytes(4, "big") + name.to_bytes(4, "big") + value


CLOSE, NOP, END = b"\0\0\0\2", b"\0\0\0\4", b"\0\0\0\x09"
ROOT, PASS = node(b""), node(b"passthrough")


def test_nops_and_a_missing_end_are_nothing() -> None:
    whole = structure(ROOT, NOP, PASS, NOP, prop(0, b"1234"), NOP, CLOSE, CLOSE, END)
    cut = structure(ROOT, PASS, prop(0, b"1234"), node(b"x"), CLOSE, END)
    for one in (whole, cut):
        assert read_partial(one).node("/passthrough").props == {"a": b"1234"}


def test_the_first_of_two_is_copied() -> None:
    two = structure(ROOT, PASS, prop(0), CLOSE, PASS, prop(2), CLOSE, CLOSE, END)
    assert read_partial(two).node("/passthrough").props == {"a": b""}


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ((ROOT, node(b"foo"), CLOSE, CLOSE, END), "DT211: /passthrough: is missing in the"),
        (
            (ROOT, node(b"passthrough@0"), CLOSE, PASS, CLOSE, CLOSE, END),
            "DT211: /passthrough: comes after /passthrough@0 in the",
        ),
        ((ROOT, PASS, prop(0), prop(0), CLOSE, CLOSE, END), "DT550: /passthrough: partial tree: "),
        (
            (ROOT, PASS, node(b"x"), CLOSE, node(b"x"), CLOSE, CLOSE, CLOSE, END),
            "DT550: /passthrough: partial tree: two children are named x",
        ),
        (
            (ROOT, PASS, node(b"x"), CLOSE, prop(0), CLOSE, CLOSE, END),
            "DT550: /: partial tree: a property of passthrough stands behind its children",
        ),
        ((ROOT, PASS, node(b"a/b"), CLOSE, CLOSE, CLOSE, END), "DT550: /: partial tree: node name"),
        ((ROOT, PASS, prop(4), CLOSE, CLOSE, END), "DT550: /: partial tree: the property name at"),
        ((ROOT, PASS, b"\0\0\0\7", CLOSE, CLOSE, END), "DT550: /: partial tree: tag 0x7 at "),
        ((CLOSE, CLOSE), "DT550: /: partial tree: tag 0x2 at "),
        ((prop(0),), "DT550: /: partial tree: tag 0x3 at "),
        ((END,), "DT550: /: partial tree: it has no root node"),
        ((ROOT, PASS), "DT550: /: partial tree: its structure block ends within a node"),
        ((ROOT, PASS, prop(0, b"1234")[:-2]), "DT550: /: partial tree: the property at "),
    ],
)
def test_structures_that_libxl_fails_on(tags: tuple[bytes, ...], text: str) -> None:
    with pytest.raises(Refusal) as error:
        read_partial(structure(*tags))
    assert str(error.value).startswith(text)


def test_what_is_not_copied_may_be_odd() -> None:
    """libxl does not look at names and order outside of what it copies."""
    odd = structure(
        ROOT, node(b"a b"), node(b"x"), CLOSE, prop(0), prop(0), CLOSE, prop(99),
        PASS, prop(2, b"1234"), CLOSE, CLOSE, END,
    )  # fmt: skip
    assert read_partial(odd).node("/passthrough").props == {"b": b"1234"}
    deep = structure(ROOT, *[node(b"d")] * 2000, *[CLOSE] * 2000, PASS, CLOSE, CLOSE, END)
    assert read_partial(deep).node("/passthrough").props == {}
    inside = structure(ROOT, PASS, *[node(b"d")] * 2000, *[CLOSE] * 2001, CLOSE, END)
    with pytest.raises(Refusal) as error:
        read_partial(inside)
    assert "nested deeper than 1024" in str(error.value)


def test_a_property_name_on_which_xl_crashes() -> None:
    tree = passthrough()
    raw_ = bytearray(data(tree))
    assert read_partial(bytes(raw_))
    block = b"".join((ROOT, PASS, prop(0), CLOSE, CLOSE, END))
    name = b"n" * 3001 + b"\0"
    header = (
        0xD00DFEED, 56 + len(block) + len(name), 56, 56 + len(block), 40, 17, 16, 0, len(name),
        len(block),
    )  # fmt: skip
    whole = b"".join(n.to_bytes(4, "big") for n in header) + bytes(16) + block + name
    with pytest.raises(Refusal) as error:
        read_partial(whole)
    assert "a property name of 3001 bytes, on which xl crashes" in str(error.value)


@pytest.mark.parametrize("key", ["tpm = 1", 'static_shm = [ "id=x" ]'])
def test_what_the_vendors_libxl_makes_and_this_does_not(key: str) -> None:
    name = key.split()[0]
    assert refusal(key, "xen-xlnx4.17") == (
        f"DT609: /: {name}: the node that AMD's libxl makes of it is not built here; leave it out"
    )
    assert build("tpm = 0", "xen-xlnx4.17")


@sliced(300)
@given(seed=st.integers(0, 1 << 32))
def test_mutated_partial_trees_are_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    out = bytearray(raw())
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out))
        out[at] = rng.choice((0, 1, 2, 3, 4, 9, 0xFF, rng.randrange(256)))
    try:
        built = build(partial=bytes(out[: rng.choice((len(out), rng.randrange(len(out) + 1)))]))
    except Refusal:
        return
    blob.read(built.blob.data, "guest.dtb")


# Versions.


def test_stock_libxl_knows_no_viommu() -> None:
    tree = passthrough(dma=(2, 5))
    for profile in ("xen-4.20", "xen-4.22"):
        for value in ("smmuv3", "nonsense"):
            built = build(f'viommu = "{value}"', profile, data(tree))
            assert built.tree.node("/passthrough/dma").cells("iommus") == (2, 5)
            assert "iommu@4040000" not in built.tree.root.children


def test_the_series_of_2022_keeps_the_ids() -> None:
    tree = passthrough(a=(2, 0x600, 2, 0x601), b=(3, 0x600), c=())
    bus = tree.root.children["passthrough"]
    bus.set_cells("iommus", 2, 1)
    bus.children["a"].add("below").set_cells("iommus", 2, 9)
    bus.add("pcie").set_cells("iommu-map", 0, 2, 0, 0x100)
    built = build('viommu = "smmuv3"', "xen-xlnx4.17", data(tree))
    made = built.tree.node("/passthrough")
    assert made.children["a"].cells("iommus") == (65002, 0x600, 65002, 0x601)
    assert made.children["b"].cells("iommus") == (65002, 0x600)
    assert made.children["c"].props["iommus"] == b""
    assert made.children["a"].children["below"].cells("iommus") == (2, 9)
    assert [str(n) for n in built.notices] == [
        f"DT501 /passthrough{path}: libxl leaves its {name} as it is: it names no vSMMU"
        for path, name in (("", "iommus"), ("/a/below", "iommus"), ("/pcie", "iommu-map"))
    ]


def test_the_vendors_virtio_comes_from_above() -> None:
    disk = '"format=raw,vdev=xvd{},access=rw,specification=virtio,target=/dev/loop0"'
    disks = ",".join(disk.format(chr(97 + at)) for at in range(3))
    built = build(f"disk = [ {disks} ]\nvirtio = [ 'type=virtio,device' ]", "xen-xlnx4.17")
    names = list(built.tree.root.children)[-4:]
    assert names == ["xen_iommu", "virtio@2001200", "virtio@2001000", "virtio@2000e00"]
    assert built.tree.node("/virtio@2000e00").cells("interrupts") == (0, 9, 0xF01)
    assert built.nr_spis == 160
    many = ",".join(disk.format(chr(97 + at)) for at in range(11))
    assert refusal(f"disk = [ {many} ]", "xen-xlnx4.17") == (
        "DT304: /: No available Virtio MMIO IRQ; keep 10 virtio devices"
    )


def test_the_series_of_2026_field_by_field() -> None:
    tree = passthrough(a=(2, 0x600, 2, 0x601), b=(3, 0x600), c=(2, 0x600))
    virtio = 'virtio = [ "type=virtio,device,transport=mmio" ]'
    built = build(f'viommu = "smmuv3"\nvuart = "sbsa_uart"\n{virtio}', "xen-v3", data(tree))
    root = built.tree.root
    assert root.string("model") == "XENVM-4.22"
    assert list(root.children)[-5:] == [
        "hypervisor", "sbsa-pl011", "iommu@4040000", "virtio@2000000", "passthrough",
    ]  # fmt: skip
    vsmmu = root.children["iommu@4040000"]
    assert list(vsmmu.props) == [
        "compatible", "reg", "phandle", "#iommu-cells", "interrupt-names", "interrupts",
        "interrupt-parent",
    ]  # fmt: skip
    assert vsmmu.strings("compatible") == ("arm,smmu-v3",)
    assert vsmmu.cells("reg") == (0, 0x4040000, 0, 0x40000)
    assert vsmmu.cells("phandle") == (65002,)
    assert vsmmu.cells("#iommu-cells") == (1,)
    assert vsmmu.strings("interrupt-names") == ("combined",)
    assert vsmmu.cells("interrupts") == (0, 1, 0xF04)
    assert vsmmu.cells("interrupt-parent") == (65000,)
    # Its SPI takes virtio's first; virtio's move up by one, with and without a vSMMU.
    assert root.children["virtio@2000000"].cells("interrupts") == (0, 2, 0xF01)
    plain = build(virtio, "xen-v3").tree
    assert plain.node("/virtio@2000000").cells("interrupts") == (0, 2, 0xF01)
    assert "iommu@4040000" not in plain.root.children
    # The hypervisor gives out the first free id to each entry, whosever it was.
    made = root.children["passthrough"].children
    assert made["a"].cells("iommus") == (65002, 0, 65002, 1)
    assert made["b"].cells("iommus") == (65002, 2)
    assert made["c"].cells("iommus") == (65002, 3)
    # pl011's SPI and the vSMMU's are added up: 1 + 2.
    assert build('viommu = "smmuv3"\nvuart = "sbsa_uart"', "xen-v3").nr_spis == 3
    assert refusal('viommu = "smmuv3"\nirqs = [ 33 ]', "xen-v3").startswith(
        "DT303: /: Physical IRQ 33 conflicting with vSMMUv3 SPI"
    )


def test_the_pci_host_bridge() -> None:
    """Bytes and order of libxl_arm.c; the series adds maps that say nothing of what is assigned."""
    pci = 'pci = [ "0000:01:00.0" ]\n'
    plain = build(pci).tree
    assert list(plain.root.children)[-2:] == ["hypervisor", "pcie@10000000"]
    node = plain.node("/pcie@10000000")
    assert list(node.props) == [
        "compatible", "device_type", "reg", "bus-range", "#address-cells", "#size-cells", "status",
        "ranges",
    ]  # fmt: skip
    assert node.cells("reg") == (0, 0x10000000, 0, 0x10000000)
    assert node.cells("bus-range") == (0, 255)
    assert node.cells("ranges") == (
        0x02000000, 0, 0x23000000, 0, 0x23000000, 0, 0x10000000,
        0x43000000, 1, 0, 1, 0, 1, 0,
    )  # fmt: skip
    tree = passthrough(a=(2, 0x600))
    series = build(pci + 'viommu = "smmuv3"', "xen-v3", data(tree)).tree
    assert list(series.root.children)[-3:] == ["pcie@10000000", "iommu@4040000", "passthrough"]
    assert series.node("/pcie@10000000").cells("iommu-map") == (0, 65002, 0, 0x1000)
    assert series.node("/passthrough/a").cells("iommus") == (65002, 0x1000)
    vendor = build(pci + 'viommu = "smmuv3"', "xen-xlnx4.17", data(tree)).tree
    assert list(vendor.root.children)[-3:] == ["iommu@4040000", "pcie@10000000", "passthrough"]
    bridge = vendor.node("/pcie@10000000")
    assert bridge.cells("ranges")[7] == 0x42000000
    assert list(bridge.props)[-2:] == ["msi-map", "iommu-map"]
    assert bridge.cells("msi-map") == (0, 65003, 0, 0x10000)
    assert bridge.cells("iommu-map") == (0, 65002, 0, 0x10000)
    its = vendor.node("/interrupt-controller@3001000/its@4020000")
    assert (its.cells("reg"), its.phandle) == ((0, 0x4020000, 0, 0x20000), 65003)
    assert "iommu-map" not in build(pci, "xen-v3").tree.node("/pcie@10000000").props


def test_extended_regions_leave_iomem_out_from_4_22_on() -> None:
    text = 'iomem = [ "0x9000,0x10@0x80000", "0xa000,1@0x80100", "0xb000,0x1000@0x210000" ]'
    assert build(text).tree.node("/hypervisor").cells("reg")[4:8] == (0, 0x44000000, 0, 0xBC000000)
    reg = build(text, "xen-4.22").tree.node("/hypervisor").cells("reg")
    rows = [
        ((reg[i] << 32) + reg[i + 1], (reg[i + 2] << 32) + reg[i + 3])
        for i in range(4, len(reg), 4)
    ]
    assert rows == [
        (0x44000000, 0x3C000000),
        # Not rounded to 2 MiB, and nothing between the two, which is less than 64 MiB.
        (0x80101000, 0x7FEFF000),
        (0x200000000, 0x10000000),
        (0x211000000, 0xFDEF000000),
    ]


def test_nr_spis_that_is_too_small() -> None:
    assert build("nr_spis = 1\nirqs = [ 40 ]").nr_spis == 9
    assert refusal("nr_spis = 1\nirqs = [ 40 ]", "xen-4.22") == (
        "DT305: /: Provided nr_spis value is too small (minimum required 9); "
        "raise nr_spis, or leave it out"
    )


# The host.


def host() -> Platform:
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    gic: Node = root.add("gic@8000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_empty("interrupt-controller")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("reg", 0, 0x8000000, 0, 0x10000, 0, 0x80A0000, 0, 0xF60000)
    smmu = root.add("iommu@5000000")
    smmu.set_strings("compatible", "arm,smmu-v3")
    smmu.set_cells("reg", 0, 0x5000000, 0, 0x20000)
    smmu.set_cells("#iommu-cells", 1)
    smmu.set_cells("phandle", 2)
    root.add("dma@0").set_cells("iommus", 2, 5)
    root.add("other@0").set_cells("iommus", 2, 5)
    root.add("uart@0")
    return Platform.from_tree(tree, "host.dtb")


def test_what_xen_assigns() -> None:
    # libxl asks nobody whether another device shares the stream.
    assert build('dtdev = [ "/dma@0" ]', platform=host()).nr_spis == 0
    assert refusal('dtdev = [ "/dma@0", "/dma@0" ]', platform=host()).startswith("DT108: /dma@0:")
    for path in ("/uart@0", "/iommu@5000000"):
        assert refusal(f'dtdev = [ "{path}" ]', platform=host()).startswith(f"DT101: {path}: ")
    for path in ("dma@0", "/nope"):
        with pytest.raises(UserError):
            build(f'dtdev = [ "{path}" ]', platform=host())
    with pytest.raises(UserError):
        build('dtdev = [ "/dma@0" ]')


def test_the_hosts_gic_as_iomem() -> None:
    text = 'iomem = [ "0x8001,1" ]'
    assert build(text, platform=host()).iomem[0].host == 0x8001000
    assert refusal(text, "xen-4.22", platform=host()) == (
        "DT219: /gic@8000000: iomem 0x8001,0x1 is the host's GIC; take it out of iomem"
    )
    assert build('iomem = [ "0x7fff,1" ]', "xen-4.22", platform=host())
