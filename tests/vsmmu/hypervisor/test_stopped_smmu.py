# SPDX-License-Identifier: BSD-2-Clause
"""An SMMU that takes no command any more holds up what concerns it, and nothing of the toolstack's.

Beside it what a stream that is taken back, and what a refusal, must not leave unsaid.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdPriResp, CmdSync
from vsmmu.hypervisor import waiting
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.policy import REASONS, Policy
from vsmmu.smmu.port import DevicePort

from . import test_ats, test_pri
from .test_ats import device, with_ats
from .test_pri import PriGuest
from .world import RAM, Guest, World

STREAMS = {"g": [("a", 0x600)], "o": [("b", 0x700)]}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end is known not to, in less than a million turns."""
    monkeypatch.setattr(waiting, "_TURNS", 20_000)


def stop(world: World, smmu: str) -> None:
    for engine in world.smmus[smmu].engines:
        world.scheduler.remove(engine)


def test_a_guest_is_destroyed_beside_an_smmu_that_it_never_used() -> None:
    world = World(STREAMS)
    guest, other = world["g"].boot(), world["o"].boot()
    stop(world, "b")
    stuck = world.hypervisor.destroy_domain(other.domain)
    guest.destroy()
    assert not stuck.done
    assert world.hypervisor.owner("a", 0x600) is None
    # Its VMID was flushed where it was in use, so the next guest may have it.
    again = world.hypervisor.create_domain("again", [(RAM, 0x40_0000)])
    assert (again.vmid, other.domain.vmid) == (guest.domain.vmid, 2)


def quarantined(guest: Guest) -> None:
    guest.quiet()
    device(guest, 0).silent = True
    guest.world.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[0])


def test_a_stream_is_released_beside_one_that_cannot_be() -> None:
    world = World(STREAMS, policy=test_ats.POLICY, features=test_ats.SMMU)
    for name in STREAMS:
        quarantined(with_ats(world[name]))
    device(world["g"], 0).silent = False
    stop(world, "b")
    with pytest.raises(HypercallError, match=r"^\(b, 0x700\) could not be invalidated$"):
        world.hypervisor.release("b", 0x700)
    world.hypervisor.release("a", 0x600)
    assert world.hypervisor.quarantined == {("b", 0x700)}


def test_the_next_device_of_a_vmaster_id_has_its_own_cap_on_events() -> None:
    world = World(STREAMS, policy=Policy(device_events=2, device_event_turns=1 << 16))
    hv, guest = world.hypervisor, world["g"].boot()
    guest.attach(0)
    guest.vcpu.handlers.clear()
    for _ in range(4):
        guest.dma(0, 0x90000, 4)
    assert guest.vsmmu.refusals.by_reason == {"event rate of a device": 2}
    hv.deassign(guest.vsmmu, guest.vsmmu.streams[0])
    hv.assign(guest.vsmmu, 0, "c", 5)
    guest.put(CmdCfgiSte.build(sid=0, leaf=1), CmdSync.build())
    guest.ports[0] = DevicePort("next", world.smmus["c"], 5)
    world.scheduler.add(guest.ports[0])
    guest.dma(0, 0x90000, 4)
    assert guest.vsmmu.counters["F_TRANSLATION"] == 3


def test_a_timeout_and_an_answer_to_nothing_have_a_reason_in_the_policy() -> None:
    world = World(STREAMS, policy=test_ats.POLICY, features=test_ats.SMMU)
    guest = with_ats(world["g"])
    guest.quiet()
    device(guest, 0).silent = True
    guest.put(test_ats.ALL, test_ats.SYNC)
    asked = World(test_pri.STREAMS, policy=test_pri.POLICY, features=test_pri.SMMU)
    pri = PriGuest(asked["g"]).guest
    pri.put(CmdPriResp.build(sid=0, prgindex=7), CmdSync.build())
    seen = guest.vsmmu.refusals.by_reason + pri.vsmmu.refusals.by_reason
    assert seen == {"CERROR_ATC_INV_SYNC": 1, "CMD_PRI_RESP never asked": 1}
    assert seen.keys() <= REASONS.keys()
