# SPDX-License-Identifier: BSD-2-Clause
"""The guest's tree: order, values, limits, conflicts; no corpus needed."""

from __future__ import annotations

import itertools

import pytest

from dt_tools import blob
from dt_tools.binding import Bindings, MappedReg
from dt_tools.errors import DtError, Refusal, UserError
from dt_tools.guest import GuestTree, build_guest
from dt_tools.platform import Platform
from dt_tools.profiles import GuestProfile, Profile, Window
from dt_tools.tree import Node, Tree
from xl_configs import load

NODES = ["chosen", "cpus", "psci", "memory@40000000", "interrupt-controller@3001000", "timer",
         "hypervisor"]  # fmt: skip


def build(text: str = "", **options: object) -> GuestTree:
    base = 'name = "g"\nkernel = "k"\nmemory = 64\n'
    return build_guest(load((base + text + "\n").encode(), "g.cfg"), **options)


def refusal(text: str, **options: object) -> str:
    with pytest.raises(DtError) as error:
        build(text, **options)
    return str(error.value)


def host(gic: str = "arm,gic-v3") -> Tree:
    """A GIC, one SMMUv3, and a DMA device with an SPI below it."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", 1)
    node = root.add("gic@8000000")
    node.set_strings("compatible", gic)
    node.set_cells("#interrupt-cells", 3)
    node.set_empty("interrupt-controller")
    node.set_cells("phandle", 1)
    smmu = root.add("iommu@5000000")
    smmu.set_strings("compatible", "arm,smmu-v3")
    smmu.set_cells("reg", 0, 0x5000000, 0, 0x20000)
    smmu.set_cells("#iommu-cells", 1)
    smmu.set_cells("phandle", 2)
    dma(root, 0x20000000, 0x600, 40)
    return tree


def dma(root: Node, base: int, stream: int, spi: int) -> Node:
    node = root.add(f"dma@{base:x}")
    node.set_cells("reg", 0, base, 0, 0x1000)
    node.set_cells("iommus", 2, stream)
    node.set_cells("interrupts", 0, spi, 4)
    node.set_empty("xen,passthrough")
    return node


def platform(tree: Tree | None = None) -> Platform:
    return Platform.from_tree(tree or host(), "host.dtb")


def test_the_plain_guest() -> None:
    built = build()
    assert list(built.tree.root.children) == NODES
    assert built.tree.node("/chosen").props == {}
    assert built.notices == ()
    assert built.bindings == Bindings(guest="g")
    assert (built.iomem, built.irqs, built.nr_spis) == ((), (), 0)


def test_everything_stands_in_libxls_order() -> None:
    built = build(
        'viommu = "smmuv3"\nvuart = "sbsa_uart"\ntee = "optee"\n'
        'virtio = [ "type=virtio,device22,transport=mmio,grant_usage=1" ]\n'
        'dtdev = [ "/dma@20000000" ]',
        platform=platform(),
    )
    assert list(built.tree.root.children) == [
        *NODES, "sbsa-pl011", "firmware", "iommu@4040000", "virtio@2000000", "xen_iommu",
        "passthrough",
    ]  # fmt: skip
    assert built.nr_spis == 41
    assert built.irqs == (72,)
    assert built.iomem == (MappedReg(0x20000000, 0x20000000, 0x1000),)
    assert built.iomem_strings() == ("0x20000,0x1",)


def test_the_vsmmu_node() -> None:
    node = build('viommu = "smmuv3"').tree.node("/iommu@4040000")
    assert list(node.props.items()) == [
        ("compatible", b"arm,smmu-v3\0"),
        ("reg", bytes.fromhex("0000000004040000 0000000000040000")),
        ("phandle", (65002).to_bytes(4, "big")),
        ("#iommu-cells", b"\0\0\0\1"),
        ("interrupt-names", b"combined\0"),
        ("interrupts", bytes.fromhex("00000000 00000001 00000f04")),
        ("interrupt-parent", (65000).to_bytes(4, "big")),
        ("dma-coherent", b""),
    ]


def test_the_vsmmu_moves_virtio_up_by_one_spi() -> None:
    text = 'virtio = [ "type=virtio,device,transport=mmio" ]'
    assert build(text).tree.node("/virtio@2000000").cells("interrupts") == (0, 1, 0xF01)
    moved = build(text + '\nviommu = "smmuv3"').tree.node("/virtio@2000000")
    assert moved.cells("interrupts") == (0, 2, 0xF01)


def test_a_profile_changes_map_spi_and_phandle_together() -> None:
    guest = GuestProfile(vsmmu=Window(0x4100000, 0x20000), vsmmu_spi=44, vsmmu_phandle=64000)
    built = build(
        'viommu = "smmuv3"\ndtdev = [ "/dma@20000000" ]', profile=Profile(guest),
        platform=platform(),
    )  # fmt: skip
    node = built.tree.node("/iommu@4100000")
    assert node.cells("interrupts") == (0, 12, 0xF04)
    assert built.tree.node("/passthrough/dma@20000000").cells("iommus") == (64000, 0)
    assert (built.bindings.viommu.base, built.bindings.viommu.spi) == (0x4100000, 44)


def test_gic_version_is_the_configurations_else_the_hosts_else_3() -> None:
    def compatible(built: GuestTree) -> str:
        return built.tree.node("/interrupt-controller@3001000").string("compatible")

    v2 = platform(host("arm,gic-400"))
    assert compatible(build()) == "arm,gic-v3"
    assert compatible(build(platform=v2)) == "arm,cortex-a15-gic"
    assert compatible(build('gic_version = "v3"')) == "arm,gic-v3"
    assert compatible(build('gic_version = "v2"')) == "arm,cortex-a15-gic"


def test_a_guest_has_a_gic_that_the_hosts_can_run() -> None:
    with pytest.raises(Refusal) as error:
        build('gic_version = "v3"', platform=platform(host("arm,gic-400")))
    assert str(error.value) == (
        'DT607: /gic@8000000: is a GICv2, which runs no guest with a GICv3; use gic_version = "v2"'
    )
    v3 = host("arm,gic-v3")
    with pytest.raises(Refusal) as error:
        build('gic_version = "v2"', platform=platform(v3))
    assert error.value.rule == "DT607"
    # GICD, GICR, and what a GICv2 guest needs: GICC, GICH, GICV.
    frames = [cell for at in range(5) for cell in (0, 0x8000000 + 0x10000 * at, 0, 0x10000)]
    v3.root.children["gic@8000000"].set_cells("reg", *frames)
    built = build('gic_version = "v2"', platform=platform(v3))
    assert built.gic_version == 2


def test_vcpus_beyond_a_gicv2_are_refused() -> None:
    assert len(build('gic_version = "v2"\nvcpus = 8').tree.node("/cpus").children) == 8
    assert refusal('gic_version = "v2"\nvcpus = 9') == (
        "DT601: /cpus: 9 vCPUs, a GICv2 guest has 8 at most; lower vcpus and maxvcpus"
    )


def test_mpidr_of_the_last_vcpu() -> None:
    cpus = build("vcpus = 128").tree.node("/cpus")
    assert list(cpus.children)[-1] == "cpu@70f"
    assert cpus.children["cpu@70f"].cells("reg") == (0x70F,)


@pytest.mark.parametrize(
    ("memory", "banks"),
    [
        (3072, ["memory@40000000"]),
        (3073, ["memory@40000000", "memory@200000000"]),
        (1043456, ["memory@40000000", "memory@200000000"]),
    ],
)
def test_memory_banks(memory: int, banks: list[str]) -> None:
    built = build(f"memory = {memory}")
    found = [name for name in built.tree.root.children if name.startswith("memory")]
    assert found == banks


@pytest.mark.parametrize("memory", [0, 1043457, 1 << 32])
def test_memory_that_does_not_fit_is_refused(memory: int) -> None:
    assert refusal(f"memory = {memory}") == (
        f"DT602: /memory: memory = {memory} MiB does not fit the RAM banks below 40 address bits; "
        "set memory between 1 MiB and the banks' sum"
    )


def test_initrd_and_seed() -> None:
    chosen = build('cmdline = "x"', ramdisk_size=0x1001, rng_seed=b"seed").tree.node("/chosen")
    assert list(chosen.props) == [
        "bootargs", "linux,initrd-start", "linux,initrd-end", "rng-seed",
    ]  # fmt: skip
    assert chosen.cells("linux,initrd-start") == (0, 0x43FFD000)
    assert chosen.cells("linux,initrd-end") == (0, 0x43FFF000)
    big = build("memory = 1024", ramdisk_size=0x1000).tree.node("/chosen")
    assert big.cells("linux,initrd-start") == (0, 0x48000000)
    assert refusal("", ramdisk_size=64 << 20) == (
        "DT603: /chosen: a ramdisk of 67108864 bytes does not fit 64 MiB of RAM; raise memory"
    )


def test_no_rng_seed_unless_given() -> None:
    assert "rng-seed" not in build().tree.node("/chosen").props


def test_interrupt_conflicts_of_assigned_devices() -> None:
    tree = host()
    tree.root.children["dma@20000000"].set_cells("interrupts", 0, 1, 4)
    text = 'viommu = "smmuv3"\ndtdev = [ "/dma@20000000" ]'
    assert refusal(text, platform=platform(tree)) == (
        "DT303: /: Physical IRQ 33 conflicting with vSMMUv3 SPI; "
        "assign a device with another interrupt"
    )
    plain = build('dtdev = [ "/dma@20000000" ]', platform=platform(tree))
    assert plain.irqs == (33,)


def test_devices_without_a_host_tree() -> None:
    text = 'dtdev = [ "/dma@20000000" ]'
    expected = "dtdev: /dma@20000000: there is no host tree to look in; give the host's device tree"
    assert refusal(text) == expected
    assert refusal(text + '\nviommu = "smmuv3"', partial=Tree()) == expected
    with pytest.raises(UserError):
        build(text)


def test_pci_without_a_host_tree() -> None:
    with pytest.raises(UserError) as error:
        build('pci = [ "0000:01:00.0" ]')
    assert str(error.value) == (
        "pci: /: there is no host tree to look in; give the host's device tree"
    )


def test_a_disabled_passthrough_is_refused() -> None:
    assert refusal('dtdev = [ "/x" ]\npassthrough = "disabled"') == (
        'DT604: /x: passthrough = "disabled" with devices in dtdev; take one of the two out'
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            'passthrough = "sync_pt"',
            'DT604: /: passthrough = "sync_pt" is not supported on Arm; '
            'use "share_pt" or leave it out',
        ),
        ("irqs = [31]", "DT303: /: irq 31 is not an SPI (32 to 991); take it out of irqs"),
        ("irqs = [5000]", "DT303: /: irq 5000 is not an SPI (32 to 991); take it out of irqs"),
        ("nr_spis = 961", "DT305: /: nr_spis 961, a guest has 960 SPIs at most; lower nr_spis"),
    ],
)
def test_what_xen_refuses_later_is_refused_now(text: str, line: str) -> None:
    assert refusal(text) == line


def test_the_most_that_xen_takes() -> None:
    assert build("nr_spis = 960").nr_spis == 960
    assert build("irqs = [991]").nr_spis == 960


def test_nr_spis_too_small_is_raised_with_a_notice() -> None:
    built = build('vuart = "sbsa_uart"\nnr_spis = 0')
    assert built.nr_spis == 1
    assert [str(n) for n in built.notices] == [
        "DT305 /: nr_spis 0 raised to 1, the number the guest's devices need"
    ]
    assert build("nr_spis = 7").nr_spis == 7


def test_iomem_of_the_configuration_is_kept_clear() -> None:
    built = build('iomem = [ "9010,1@80000", "40000,1", "7,0" ]')
    assert built.iomem == (
        MappedReg(0x9010000, 0x80000000, 0x1000),
        MappedReg(0x40000000, 0x40000000, 0x1000),
    )
    assert [str(n) for n in built.notices] == [
        "DT207 /: iomem 0x40000,0x1 at guest 0x40000000 overlaps RAM bank 0 "
        "[0x40000000, 0x44000000)"
    ]
    assert built.tree.node("/hypervisor").cells("reg")[4:8] == (0, 0x44000000, 0, 0x3C000000)


def test_iomem_of_an_assigned_device_is_used_and_not_listed_twice() -> None:
    text = 'viommu = "smmuv3"\ndtdev = [ "/dma@20000000" ]\niomem = [ "0x20000,1@0x22100" ]'
    built = build(text, platform=platform())
    assert built.iomem_strings() == ("0x20000,0x1@0x22100",)
    assert "dma@22100000" in built.tree.node("/passthrough").children


def test_too_many_iomem_entries_are_refused() -> None:
    entries = ", ".join('"1,1"' for _ in range(1025))
    assert refusal(f"iomem = [ {entries} ]") == (
        "DT212: /: 1025 iomem entries, more than 1024; join adjacent ranges"
    )


def test_a_hand_written_partial_tree_with_a_vsmmu() -> None:
    partial = Tree()
    bus = partial.root.add("passthrough")
    bus.add("dma@20000000").set_cells("iommus", 0x77, 0x600)
    text = 'viommu = "smmuv3"\ndtdev = [ "/dma@20000000" ]\ndevice_tree = "p.dtb"'
    built = build(text, platform=platform(), partial=partial)
    assert built.tree.node("/passthrough/dma@20000000").cells("iommus") == (65002, 0)
    assert built.bindings.devices[0].vmaster_ids == (0,)
    assert [n.rule for n in built.notices] == ["DT213"]


def test_two_guests_of_one_host_share_nothing() -> None:
    tree = host()
    dma(tree.root, 0x30000000, 0x601, 41)
    shared = platform(tree)
    text = 'viommu = "smmuv3"\ndtdev = [ "%s" ]'
    first = build(text % "/dma@20000000", platform=shared)
    second = build(text % "/dma@30000000", platform=shared)
    assert [e.pmaster_id for e in first.bindings.entries] == [0x600]
    assert [e.pmaster_id for e in second.bindings.entries] == [0x601]
    nodes = {id(node) for built in (first, second) for node in built.tree.walk()}
    assert len(nodes) == sum(1 for b in (first, second) for _ in b.tree.walk())
    before = blob.write(second.tree)
    first.tree.node("/chosen").set_empty("scribble")
    assert blob.write(second.tree) == before


def test_the_blob_is_the_same_every_time() -> None:
    text = 'viommu = "smmuv3"\ndtdev = [ "/dma@20000000" ]'
    blobs = {blob.write(build(text, platform=platform()).tree) for _ in range(3)}
    assert len(blobs) == 1


def test_no_window_of_a_built_guest_overlaps_another() -> None:
    text = 'viommu = "smmuv3"\nvuart = "sbsa_uart"\nmemory = 4096\ndtdev = [ "/dma@20000000" ]'
    tree = build(text, platform=platform()).tree
    windows = []
    for node in (*tree.root.children.values(), *tree.node("/passthrough").children.values()):
        cells = node.cells("reg") or ()
        for at in range(0, len(cells), 4):
            base, size = cells[at] << 32 | cells[at + 1], cells[at + 2] << 32 | cells[at + 3]
            windows.append((node.path, Window(base, size)))
    for (one, a), (two, b) in itertools.combinations(windows, 2):
        assert not a.overlaps(b), f"{one} {two}"


def test_refusals_leave_with_4_and_mistakes_with_2() -> None:
    with pytest.raises(Refusal) as refused:
        build('dtdev = [ "/iommu@5000000" ]', platform=platform())
    assert refused.value.exit_code == 4
    with pytest.raises(UserError) as mistake:
        build('dtdev = [ "/dma@20000001" ]', platform=platform())
    assert mistake.value.exit_code == 2
