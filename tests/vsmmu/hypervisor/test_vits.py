# SPDX-License-Identifier: BSD-2-Clause
"""Virtual ITSs: messages of devices and of vSMMUs become LPIs of their own domain alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dt_tools import blob
from dt_tools.errors import Refusal
from dt_tools.platform import Platform
from vsmmu.arch.commands import CmdSync
from vsmmu.cli.inputs import load_config, load_partial, load_platform
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.vits import EVENTS_MAX, LPI_FIRST, LPI_LAST, VirtualIts
from vsmmu.machine_features import board_features
from vsmmu.smmu.port import Request
from vsmmu.toolstack import (
    Guest,
    Machine,
    build_machine,
    create_dom0,
    create_guest,
    destroy_guest,
    unassign,
)

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
CRYPTO, OTHER = "/soc/crypto@60000000", "/soc/crypto@61000000"
TRANSLATER = 0x0402_0000 + 0x1_0040
HOST_TRANSLATER = 0x1008_0000 + 0x1_0040
IOVA = 0x8_0000
OWN = 0x1_0000


@pytest.fixture(scope="module")
def board() -> Platform:
    return load_platform(str(SAMPLES / "board.dtb"))


def guest_of(machine: Machine, name: str, **how: bool) -> Guest:
    config = load_config(str(SAMPLES / f"{name}.cfg"))
    return create_guest(machine, config, load_partial(config), **how)


@pytest.fixture
def machine(board: Platform) -> Machine:
    return build_machine(board, policy=Policy(msi=True), features=board_features(board, {"msi": 1}))


@pytest.fixture
def crypto(machine: Machine) -> Guest:
    return ready(machine, guest_of(machine, "crypto", vits=True))


def ready(machine: Machine, guest: Guest) -> Guest:
    """Booted; each device has the doorbell's page mapped at IOVA."""
    for driver in guest.drivers.values():
        guest.vcpu.start(driver.boot())
        assert machine.scheduler.run_until_idle()
    for device in guest.ports:
        for driver, ids in guest.streams(device):
            guest.vcpu.start(driver.attach(*ids))
            assert machine.scheduler.run_until_idle()
            for vmaster_id in ids:
                driver.map(vmaster_id, IOVA, TRANSLATER & -0x1000, 0x1000)
    assert guest.vcpu.failure is None
    return guest


def its(guest: Guest) -> VirtualIts:
    assert guest.domain.its is not None
    return guest.domain.its


def ring(machine: Machine, guest: Guest, device: str, data: bytes, offset: int = 0x40) -> Request:
    request = guest.ports[device][0].write(IOVA + offset, data)
    assert machine.scheduler.run_until_idle()
    assert request.done
    return request


def event(number: int, width: int = 4) -> bytes:
    return number.to_bytes(width, "little")


def vmaster_id(guest: Guest, device: str) -> int:
    ((_, ids),) = guest.streams(device)
    return ids[0]


# Messages of devices.


def test_a_devices_message_is_an_lpi(machine: Machine, crypto: Guest) -> None:
    """DeviceID is its vMasterID, EventID the data; the handler of the LPI runs."""
    ran: list[int] = []

    def handler() -> Iterator[None]:
        ran.append(1)
        yield

    crypto.vcpu.handlers[8200] = handler  # type: ignore[assignment]
    device_id = vmaster_id(crypto, OTHER)
    assert device_id != vmaster_id(crypto, CRYPTO)
    assert its(crypto).map(device_id, 5, 8200)
    assert ring(machine, crypto, OTHER, event(5)).ok
    assert crypto.vcpu.lpis == {8200: 1}
    assert ran == [1]
    # Two devices with one physical StreamID behind two SMMUs are two DeviceIDs.
    assert {p.sid for d in (CRYPTO, OTHER) for p in crypto.ports[d]} == {0x600}
    assert ring(machine, crypto, CRYPTO, event(5)).ok
    assert crypto.vcpu.lpis == {8200: 1}
    assert its(crypto).counters == {"delivered": 1, "dropped": 1}


def test_only_the_register_does_something(machine: Machine, crypto: Guest) -> None:
    """The rest of the page is RES0; nothing there is an external abort. It cannot be read."""
    its(crypto).map(vmaster_id(crypto, CRYPTO), 5, LPI_FIRST)
    for data, offset in (
        (event(5, 8), 0x40), (event(5, 1), 0x40), (event(5), 0x44), (event(5), 0),
        (event(6), 0x40), (event(1 << 16 | 5), 0x40),
    ):  # fmt: skip
        assert ring(machine, crypto, CRYPTO, data, offset).ok
        assert not crypto.vcpu.lpis
    for data in (event(5), event(5, 2)):
        assert ring(machine, crypto, CRYPTO, data).ok
    assert crypto.vcpu.lpis == {LPI_FIRST: 2}
    request = crypto.ports[CRYPTO][0].read(IOVA + 0x40, 4)
    assert machine.scheduler.run_until_idle()
    assert (request.done, request.ok, request.data) == (True, False, bytes(4))


def test_a_message_is_the_owners_alone(machine: Machine, crypto: Guest) -> None:
    """Both guests have mapped every DeviceID and event; each gets its own device's."""
    media = ready(machine, guest_of(machine, "media", vits=True))
    for guest in (crypto, media):
        for device_id in range(8):
            assert its(guest).map(device_id, 5, LPI_FIRST + device_id)
    device = next(iter(media.ports))
    assert ring(machine, media, device, event(5)).ok
    assert sum(media.vcpu.lpis.values()) == 1
    assert not crypto.vcpu.lpis
    assert ring(machine, crypto, CRYPTO, event(5)).ok
    assert sum(media.vcpu.lpis.values()) == 1
    assert crypto.vcpu.lpis == {LPI_FIRST + vmaster_id(crypto, CRYPTO): 1}


def test_without_an_its_the_page_is_not_there(machine: Machine, crypto: Guest) -> None:
    media = ready(machine, guest_of(machine, "media"))
    assert (media.view.its, media.domain.its, media.domain.doorbell) == (None, None, None)
    its(crypto).map(0, 5, LPI_FIRST)
    device = next(iter(media.ports))
    assert not ring(machine, media, device, event(5)).ok
    assert not crypto.vcpu.lpis


def test_a_withdrawn_device_sends_none(machine: Machine, crypto: Guest) -> None:
    its(crypto).map(vmaster_id(crypto, CRYPTO), 5, LPI_FIRST)
    unassign(machine, crypto, CRYPTO)
    assert not ring(machine, crypto, CRYPTO, event(5)).ok
    destroy_guest(machine, crypto)
    assert not ring(machine, crypto, OTHER, event(5)).ok
    assert not crypto.vcpu.lpis


def test_the_page_is_not_the_guests_to_give_up(machine: Machine, crypto: Guest) -> None:
    calls = machine.hypervisor.hypercalls
    for call in (calls.decrease_reservation, calls.populate_physmap):
        job = call(crypto.domain, TRANSLATER & -0x1000, 0x1000)
        assert machine.scheduler.run_until_idle()
        assert job.result == 0
    assert crypto.domain.stage2.to_pa(TRANSLATER) == HOST_TRANSLATER


# Messages of the vSMMU.


def test_the_vsmmus_message_has_the_device_id_of_its_node(machine: Machine, crypto: Guest) -> None:
    (window,) = crypto.view.vsmmus.values()
    assert window.device_id == OWN
    its(crypto).map(OWN, 9, 9000)
    (driver,) = crypto.drivers.values()
    sync = CmdSync.build(cs=1, msiaddress=TRANSLATER, msidata=9)
    crypto.vcpu.start(driver.post(sync))
    assert machine.scheduler.run_until_idle()
    assert crypto.vcpu.lpis == {9000: 1}
    assert not next(iter(crypto.vsmmus.values())).regs.gerror_active
    # No device can pretend to be it: vMasterIDs have 16 bits.
    assert all(max(vsmmu.streams) < OWN for vsmmu in crypto.vsmmus.values())


def test_a_vsmmu_whose_node_names_no_its_is_lost(machine: Machine, crypto: Guest) -> None:
    rung: list[int] = []
    lost = VirtualIts(rung.append, {0x0404_0000: 3})
    lost.map(3, 9, 9000)
    lost.map(-1, 9, 9001)
    assert lost.message(0x0404_0000, 9)
    assert rung == [9000]
    assert VirtualIts(rung.append, {}).message(0x0404_0000, 9)
    assert rung == [9000]


# What a guest may map.


def test_bounds_of_a_map() -> None:
    one = VirtualIts([].append, {})
    for lpi, taken in ((LPI_FIRST - 1, False), (LPI_FIRST, True), (LPI_LAST, True),
                       (LPI_LAST + 1, False), (33, False), (-1, False)):  # fmt: skip
        assert one.map(0, 0, lpi) is taken
    for number in range(1, EVENTS_MAX):
        assert one.map(1 << 40, number, LPI_FIRST)
    assert not one.map(2, 0, LPI_FIRST)
    assert one.map(0, 0, LPI_FIRST + 1), "one that is there can change"
    one.unmap(1 << 40, 1)
    one.unmap(1 << 40, 1)
    assert one.map(2, 0, LPI_FIRST)


# What cannot be.


def test_what_is_refused(board: Platform, machine: Machine) -> None:
    with pytest.raises(Refusal) as error:
        guest_of(machine, "crypto", vits=True, one_vsmmu_per_psmmu=True)
    assert str(error.value) == (
        "MC207: /: devices behind several vSMMUs can have one vMasterID, which is their "
        "DeviceID; give it one vSMMU, or no virtual ITS"
    )
    (name, path) = ("crypto", "/interrupt-controller@10000000/msi-controller@10080000")
    covered = build_machine(board, ram=[(0x1000_0000, 0x4000_0000)])
    with pytest.raises(Refusal) as error:
        guest_of(covered, name, vits=True)
    assert str(error.value) == (
        f"MC207: {path}: the machine has RAM at 0x10090000; correct the machine's RAM"
    )
    tree = blob.read((SAMPLES / "board.dtb").read_bytes(), "board")
    (its_node,) = [n for n in tree.walk() if n.is_compatible("arm,gic-v3-its")]
    regs = its_node.props["reg"]
    for base, reason in (
        (0x1008_0800, "stage 2 maps pages: 0x4030000 -> 0x10090800+0x10000"),
        (1 << 52, "0x4030000 -> 0x10000000010000+0x10000 is out of range"),
    ):
        its_node.set_cells("reg", base >> 32, base & 0xFFFF_FFFF, 0, 0x2_0000)
        odd = build_machine(Platform.from_tree(tree, "board"))
        with pytest.raises(Refusal) as error:
            guest_of(odd, name, vits=True)
        fix = "correct its reg in the host tree"
        assert str(error.value) == f"MC207: {path}: {reason}; {fix}"
    its_node.props["reg"] = regs
    its_node.set_strings("status", "disabled")
    without = build_machine(Platform.from_tree(tree, "board"))
    with pytest.raises(Refusal) as error:
        guest_of(without, "crypto", vits=True)
    assert str(error.value) == (
        "MC207: /: no enabled arm,gic-v3-its for a guest's messages; take a board that has one, "
        "or no virtual ITS"
    )


def test_dom0_keeps_its_tree(machine: Machine) -> None:
    """Its node is the host's, and no virtual ITS stands behind it here."""
    dom0 = create_dom0(machine, 64)
    assert dom0.view.its == 0x1008_0000
    assert (dom0.domain.its, dom0.domain.doorbell) == (None, None)
