# SPDX-License-Identifier: BSD-2-Clause
"""A guest that has a vSMMU for each physical SMMU of its devices, from its configuration on."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsmmu.arch.commands import CmdTlbiNhAll
from vsmmu.cli.inputs import load_config, load_partial, load_platform
from vsmmu.toolstack import Guest, Machine, build_machine, create_guest, destroy_guest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
IOVA = 0x10000


@pytest.fixture
def mirror() -> tuple[Machine, Guest]:
    """Booted, each stream attached, with a page of its own at IOVA."""
    machine = build_machine(load_platform(str(SAMPLES / "board.dtb")))
    config = load_config(str(SAMPLES / "crypto.cfg"))
    guest = create_guest(machine, config, load_partial(config), one_vsmmu_per_psmmu=True)
    for driver in guest.drivers.values():
        run(machine, guest, driver.boot())
    for i, (path, vmaster_id) in enumerate(streams(guest)):
        driver = guest.drivers[path]
        run(machine, guest, driver.attach(vmaster_id))
        driver.map(vmaster_id, IOVA, page(guest, i), 0x1000)
    return machine, guest


def run(machine: Machine, guest: Guest, program: object) -> None:
    guest.vcpu.start(program)  # type: ignore[arg-type]
    assert machine.scheduler.run_until_idle()
    assert guest.vcpu.failure is None


def streams(guest: Guest) -> list[tuple[str, int]]:
    """(vSMMU, vMasterID) of the devices' ports, in the guest's own words."""
    return [one for device in guest.ports for one in guest.view.masters[guest.paths[device]]]


def page(guest: Guest, i: int) -> int:
    return guest.view.ram[0][0] + 0x3000 + 0x1000 * i


def test_each_vsmmu_has_one_smmu_and_ids_of_its_own(mirror: tuple[Machine, Guest]) -> None:
    _, guest = mirror
    behind = [tuple(host.path for host in vsmmu.hosts) for vsmmu in guest.vsmmus.values()]
    assert len(behind) == len(set(behind)) == 2
    assert {len(paths) for paths in behind} == {1}
    assert [0 in vsmmu.streams for vsmmu in guest.vsmmus.values()] == [True, True]


def test_equal_ids_of_two_vsmmus_are_two_devices(mirror: tuple[Machine, Guest]) -> None:
    machine, guest = mirror
    ports = [port for device in guest.ports for port in guest.ports[device]]
    good = [port.write(IOVA, bytes([i])) for i, port in enumerate(ports)]
    assert machine.scheduler.run_until_idle()
    assert all(request.ok for request in good)
    read = [guest.domain.memory.read(page(guest, i), 1) for i in range(len(ports))]
    assert read == [bytes([i]) for i in range(len(ports))]
    for port in ports:
        port.read(0x9000_0000, 4)
    assert machine.scheduler.run_until_idle()
    told = [(path, e.sid) for path, driver in guest.drivers.items() for e in driver.events]
    assert sorted(told) == sorted(streams(guest))


def test_an_invalidation_stays_at_its_smmu(mirror: tuple[Machine, Guest]) -> None:
    machine, guest = mirror
    before = {path: host.counters.copy() for path, host in machine.hypervisor.hosts.items()}
    path, vsmmu = next(iter(guest.vsmmus.items()))
    run(machine, guest, guest.drivers[path].issue(CmdTlbiNhAll.build()))
    sent = {p: host.counters - before[p] for p, host in machine.hypervisor.hosts.items()}
    (own,) = vsmmu.hosts
    assert sent.pop(own.path) == {"CMD_TLBI_NH_ALL": 1, "CMD_SYNC": 1}
    assert not any(sent.values())


def test_all_of_it_goes_with_the_guest(mirror: tuple[Machine, Guest]) -> None:
    machine, guest = mirror
    keys = [(s.host.path, s.pmaster_id) for v in guest.vsmmus.values() for s in v.streams.values()]
    destroy_guest(machine, guest)
    requests = [port.write(IOVA, b"x") for ports in guest.ports.values() for port in ports]
    assert machine.scheduler.run_until_idle()
    assert [request.ok for request in requests] == [False] * len(keys)
    assert [machine.hypervisor.owner(*key) for key in keys] == [None] * len(keys)
