# SPDX-License-Identifier: BSD-2-Clause
"""The emulator's profiles: what a guest that runs with one sees of its vSMMU, value by value."""

from __future__ import annotations

from pathlib import Path

import pytest

from dt_tools.dom0 import build_dom0
from dt_tools.guest import build_guest
from dt_tools.platform import Platform
from dt_tools.profiles import DEFAULT, PROFILES
from vsmmu.arch.registers import BY_NAME, Idr0
from vsmmu.cli.inputs import load_config, load_partial, load_platform
from vsmmu.hypervisor.policy import policy_from
from vsmmu.hypervisor.settings import SettingError
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.hypervisor.wires import CAUSES
from vsmmu.machine_features import board_features
from vsmmu.profile_names import profile_from
from vsmmu.toolstack import Guest, Machine, build_machine, create_dom0, create_guest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
CRYPTO, USB = "/soc/crypto@60000000", "/soc/usb@60050000"
SMMUS = ("/soc/iommu@50000000", "/soc/iommu@51000000", "/soc/iommu@52000000")
# The constants of the third posting; TTENDIAN ([22:21]) is 0 there.
IDS = {
    "IDR0": 0x0D00_100A | 2 << 21,
    "IDR1": 0x0273_0010,
    "IDR2": 0,
    "IDR3": 0,
    "IDR4": 0,
    "IDR5": 0x75,
    "IIDR": 0x12,
    "AIDR": 0,
}


@pytest.fixture(scope="module")
def board() -> Platform:
    return load_platform(str(SAMPLES / "board.dtb"))


def booted(board: Platform, profile: str, **more: object) -> tuple[Machine, Guest, Guest]:
    """A machine with the guest `crypto` and dom0."""
    machine = build_machine(board, profile=profile_from(profile), **more)  # type: ignore[arg-type]
    config = load_config(str(SAMPLES / "crypto.cfg"))
    return machine, create_guest(machine, config, load_partial(config)), create_dom0(machine, 64)


@pytest.fixture(scope="module")
def series(board: Platform) -> tuple[Machine, Guest, Guest]:
    return booted(board, "xen-v3")


def ids(vsmmu: VSmmu) -> dict[str, int]:
    """What a guest's driver reads, in 32-bit accesses."""
    offsets = {"IDR0": 0, "IDR1": 4, "IDR2": 8, "IDR3": 12, "IDR4": 16, "IDR5": 20, "IIDR": 24,
               "AIDR": 28}  # fmt: skip
    return {name: vsmmu.mmio_read(offset, 4) for name, offset in offsets.items()}


def test_profiles_by_name() -> None:
    assert profile_from("strict") is DEFAULT is PROFILES["strict"]
    assert profile_from("xen-v3").vsmmu.name == profile_from("xen-v3").guest.name == "xen-v3"
    for wrong, shown in (("xen-v4", "xen-v4"), (3, "3"), (["strict"], "a list"), (None, "None")):
        with pytest.raises(SettingError) as error:
            profile_from(wrong)
        assert str(error.value) == f"profile: expected strict or xen-v3, not {shown}"


def test_identification_of_a_domu(series: tuple[Machine, Guest, Guest]) -> None:
    (vsmmu,) = series[1].vsmmus.values()
    assert ids(vsmmu) == IDS


def test_the_node_of_a_domu(series: tuple[Machine, Guest, Guest]) -> None:
    """Base, size and interrupt as the guest's tree has them, and the window is there."""
    machine, guest, _ = series
    (window,) = guest.view.vsmmus.values()
    assert (window.path, window.base, window.size) == ("/iommu@4040000", 0x0404_0000, 0x4_0000)
    assert window.spis == dict.fromkeys(CAUSES, 33)
    (vsmmu,) = guest.vsmmus.values()
    assert (vsmmu.base, vsmmu.size) == (window.base, window.size)
    trap = machine.hypervisor.trap
    assert trap(guest.domain, 0x0404_0000, 4) == IDS["IDR0"]
    assert trap(guest.domain, 0x0403_FFFC, 4) is None
    assert trap(guest.domain, 0x0408_0000, 4) is None
    profile = machine.profile.guest
    assert profile.vsmmu_phandle == 65002
    assert (profile.virtio_spi_first, profile.virtio_spi_last) == (34, 44)


def test_the_trees(board: Platform) -> None:
    """COHACC is 0, and no node says otherwise; a level of all CPUs or of the host's GIC."""
    config = load_config(str(SAMPLES / "crypto.cfg"))
    tree = build_guest(config, PROFILES["xen-v3"], board).tree
    node = tree.node("/iommu@4040000")
    assert node is not None
    assert (node.phandle, node.u32("#iommu-cells")) == (65002, 1)
    assert "dma-coherent" not in node.props
    assert node.cells("interrupts") == (0, 1, 0xF04)
    assert tree.root.string("model") == "XENVM-4.22"
    dom0 = build_dom0(board, combined=True)
    for path, cell in zip(SMMUS, (64, 68, 72), strict=True):
        node, host = dom0.node(path), board.tree.node(path)
        assert node is not None
        assert host is not None
        assert node.cells("interrupts") == (0, cell, 4)
        assert node.strings("interrupt-names") == ("combined",)
        assert node.phandle == host.phandle
        assert "dma-coherent" not in node.props


def test_pages_of_the_window_are_no_aliases(series: tuple[Machine, Guest, Guest]) -> None:
    """In the series each 64 KiB of the window repeats page 0; IHI 0070 §6.1 has two pages."""
    (vsmmu,) = series[1].vsmmus.values()
    assert [vsmmu.mmio_read(page << 16, 4) for page in range(4)] == [IDS["IDR0"], 0, 0, 0]


def test_queue_bases_after_reset(series: tuple[Machine, Guest, Guest]) -> None:
    """LOG2SIZE is 19 before the guest writes it, as in the series; UNKNOWN by IHI 0070 §6.3.26."""
    for guest in series[1:]:
        for vsmmu in guest.vsmmus.values():
            for name in ("CMDQ_BASE", "EVENTQ_BASE"):
                assert vsmmu.mmio_read(BY_NAME[name].offset, 8) == 19


def test_identification_of_dom0(series: tuple[Machine, Guest, Guest]) -> None:
    """The same constants on each; SIDSIZE is larger where a master of dom0 needs it to be."""
    dom0 = series[2]
    found = {path: ids(vsmmu) for path, vsmmu in dom0.vsmmus.items()}
    assert tuple(found) == SMMUS
    wide = IDS | {"IDR1": IDS["IDR1"] + 1}
    assert [found[path] for path in SMMUS] == [IDS, IDS, wide]


def test_the_nodes_of_dom0(series: tuple[Machine, Guest, Guest]) -> None:
    """Base and size of the hardware; its first interrupt stands for all causes."""
    dom0 = series[2]
    lines = {path: set(window.spis.items()) for path, window in dom0.view.vsmmus.items()}
    assert lines == {
        path: {(cause, spi) for cause in CAUSES}
        for path, spi in zip(SMMUS, (96, 100, 104), strict=True)
    }
    assert [(w.base, w.size) for w in dom0.view.vsmmus.values()] == [
        (0x5000_0000, 0x2_0000), (0x5100_0000, 0x2_0000), (0x5200_0000, 0x2_0000),
    ]  # fmt: skip


def test_it_is_lowered_to_the_hardware(board: Platform) -> None:
    """The series tells every guest its constants, whatever the SMMU has."""
    made = board_features(board, {SMMUS[1]: {"asid16": 0, "oas": 3, "gran16k": 0}})
    _, guest, dom0 = booted(board, "xen-v3", features=made)
    (vsmmu,) = guest.vsmmus.values()
    less = IDS | {"IDR0": IDS["IDR0"] & ~Idr0.mask("asid16")[0], "IDR5": 0x53}
    # The guest has devices behind both; dom0's other vSMMUs do not change.
    assert ids(vsmmu) == less
    assert ids(dom0.vsmmus[SMMUS[1]]) == less
    assert ids(dom0.vsmmus[SMMUS[0]]) == IDS


def test_the_policy_adds_to_it(board: Platform) -> None:
    made = board_features(board, {"preset": "everything"})
    policy = policy_from({"msi": True, "httu": True})
    _, guest, _ = booted(board, "xen-v3", features=made, policy=policy)
    (vsmmu,) = guest.vsmmus.values()
    assert ids(vsmmu)["IDR0"] == IDS["IDR0"] | Idr0.build(msi=1, httu=2).raw


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_guests_of_either_profile_run(board: Platform, profile: str) -> None:
    """A driver boots, its device reaches a mapped page, and another address is its event."""
    machine, domu, dom0 = booted(board, profile)
    for guest, device in ((domu, CRYPTO), (dom0, USB)):
        for driver in guest.drivers.values():
            guest.vcpu.start(driver.boot())
        assert machine.scheduler.run_until_idle()
        ((driver, streams),) = guest.streams(device)
        guest.vcpu.start(driver.attach(*streams))
        assert machine.scheduler.run_until_idle()
        page = guest.view.ram[0][0] + 0x3000
        driver.map(streams[0], 0x10000, page, 0x1000)
        port = guest.ports[device][0]
        good, bad = port.write(0x10000, b"mapped"), port.write(0x20000, b"not")
        assert machine.scheduler.run_until_idle()
        assert guest.vcpu.failure is None
        assert (good.ok, bad.ok) == (True, False)
        assert guest.domain.memory.read(page, 6) == b"mapped"
        assert [(e.name, e.sid) for e in guest.events] == [("F_TRANSLATION", streams[0])]
        # Its interrupt was taken, and the line is low again.
        assert guest.vcpu.interrupts > 0
        assert not any(guest.vcpu.lines.values())
