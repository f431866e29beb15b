# SPDX-License-Identifier: BSD-2-Clause
"""Devices that do not answer CMD_ATC_INV: what they hold up, quarantine, and its end."""

from __future__ import annotations

import pytest

from dt_tools.platform import Platform
from vsmmu.arch.commands import ATC_INV_ALL, CmdAtcInv, CmdSync, CmdTlbiNhAll
from vsmmu.arch.registers import Cerror
from vsmmu.arch.stream_table import Eats
from vsmmu.cli.inputs import load_config, load_partial, load_platform
from vsmmu.device_reset import reset_device
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.smmu.ats import INVALIDATION_TURNS, AtsPort, Invalidation
from vsmmu.toolstack import assign as give_back
from vsmmu.toolstack import build_machine, create_guest, unassign

from .test_ats import ALL, POLICY, SMMU, STREAMS, SYNC, consumed, device, error, set_eats, with_ats
from .world import BUFFER, Guest, World

CRYPTO = "/soc/crypto@60000000"


@pytest.fixture
def machine() -> World:
    return World(STREAMS, policy=POLICY, features=SMMU)


@pytest.fixture
def guest(machine: World) -> Guest:
    return with_ats(machine["g"])


def take(machine: World, guest: Guest) -> None:
    machine.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[0])


def test_a_deaf_device_holds_the_queue_for_its_turns_alone(machine: World, guest: Guest) -> None:
    """Nobody tells the SMMU that it will not answer; the other guest goes on after that."""
    other = with_ats(machine["o"])
    for g in (guest, other):
        g.quiet()
    device(guest, 0).deaf = True
    smmu = machine.smmus["a"]
    before = smmu.counters["cmd.waited"]
    guest.put_without_rest(ALL, SYNC)
    other.put_without_rest(CmdTlbiNhAll.build(), ALL, SYNC)
    assert machine.scheduler.run_until_idle()
    assert (smmu.counters["ats.timeout"], error(guest)) == (1, (Cerror.ATC_INV_SYNC, True))
    assert (consumed(other), error(other)) == (True, (Cerror.NONE, False))
    assert smmu.counters["cmd.waited"] - before <= INVALIDATION_TURNS + 8
    guest.write("GERRORN", guest.read("GERROR"))
    assert consumed(guest)


@pytest.mark.parametrize("how", ["silent", "deaf"])
def test_a_device_that_does_not_answer_is_nobodys(machine: World, guest: Guest, how: str) -> None:
    hv, port = machine.hypervisor, device(guest, 0)
    guest.dma(0, 0x10000, b"x")
    setattr(port, how, True)
    take(machine, guest)
    assert hv.quarantined == {("a", 0x600)}
    assert hv.owner("a", 0x600) is None
    for to in (guest, machine["o"]):
        with pytest.raises(HypercallError) as refused:
            hv.assign(to.vsmmu, 7, "a", 0x600)
        assert str(refused.value) == ("(a, 0x600) is in quarantine: did not answer an invalidation")
    # The same StreamID behind another SMMU is another stream.
    hv.assign(machine["o"].vsmmu, 7, "b", 0x600)


def test_a_reset_device_that_answers_is_free(
    machine: World, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    hv, port = machine.hypervisor, device(guest, 0)
    guest.dma(0, 0x10000, b"x")
    port.deaf = True
    take(machine, guest)
    assert len(port.atc) == 1
    seen: list[Invalidation] = []
    plain = port.invalidate
    monkeypatch.setattr(port, "invalidate", lambda sent: (seen.append(sent), plain(sent)))
    port.reset()
    port.deaf = False
    hv.release("a", 0x600)
    assert hv.quarantined == frozenset()
    (sent,) = seen
    assert (sent.size, sent.ssid) == (1 << ATC_INV_ALL + 12, None)
    # The next owner's DMA is its own.
    other = with_ats(machine["o"])
    stream = hv.assign(other.vsmmu, 5, "a", 0x600)
    other.ports.append(port)
    other.attach(5)
    other.map(5, 0x10000, BUFFER)
    set_eats(other, 5, Eats.FULL)
    request = other.dma(1, 0x10000, b"y")
    assert request.ok
    assert request.outcomes[0].pa == other.domain.stage2.to_pa(BUFFER)
    assert stream.vmaster_id == 5


@pytest.mark.parametrize("how", ["silent", "deaf"])
def test_a_device_that_is_still_silent_stays(machine: World, guest: Guest, how: str) -> None:
    """Nor does the attempt cost another guest anything but the wait."""
    hv, port = machine.hypervisor, device(guest, 0)
    setattr(port, how, True)
    take(machine, guest)
    port.reset()
    for _ in range(2):
        with pytest.raises(HypercallError) as refused:
            hv.release("a", 0x600)
        assert str(refused.value) == (
            "(a, 0x600) did not answer an invalidation: it stays in quarantine"
        )
    assert hv.quarantined == {("a", 0x600)}
    other = with_ats(machine["o"])
    other.put(ALL, SYNC)
    assert (consumed(other), error(other)) == (True, (Cerror.NONE, False))
    setattr(port, how, False)
    hv.release("a", 0x600)
    assert hv.quarantined == frozenset()


def test_what_is_not_in_quarantine_is_not_released(machine: World, guest: Guest) -> None:
    hv = machine.hypervisor
    for smmu, sid, text in (
        ("a", 0x600, "(a, 0x600) is not in quarantine"),
        ("a", 1 << 40, "(a, 0x10000000000) is not in quarantine"),
        ("d", 1, "d is not a physical SMMU of this machine"),
    ):
        with pytest.raises(HypercallError) as refused:
            hv.release(smmu, sid)
        assert str(refused.value) == text


def test_a_destroyed_domains_devices_are_released_as_well(machine: World, guest: Guest) -> None:
    hv = machine.hypervisor
    for index in (0, 1):
        device(guest, index).deaf = True
    guest.destroy()
    assert hv.quarantined == {("a", 0x600), ("a", 0x601)}
    device(guest, 1).deaf = False
    hv.release("a", 0x601)
    assert hv.quarantined == {("a", 0x600)}


@pytest.mark.parametrize("seed", range(1, 5))
def test_guests_that_are_busy_do_not_keep_it_in_quarantine(seed: int) -> None:
    machine = World(STREAMS, seed=seed, policy=POLICY, features=SMMU)
    guest, other = with_ats(machine["g"]), with_ats(machine["o"])
    port = device(guest, 0)
    port.silent = True
    take(machine, guest)
    port.reset()
    port.silent = False
    invalidate = CmdAtcInv.build(sid=0, size_lg2=ATC_INV_ALL)
    other.put_without_rest(*[invalidate, CmdSync.build()] * 40)
    machine.hypervisor.release("a", 0x600)
    assert machine.hypervisor.quarantined == frozenset()


# The toolstack.


@pytest.fixture(scope="module")
def board(request: pytest.FixtureRequest) -> Platform:
    return load_platform(str(request.getfixturevalue("samples") / "board.dtb"))


def test_the_toolstack_resets_a_device(board: Platform, samples) -> None:  # type: ignore[no-untyped-def]
    """Unassigned while it does not answer, reset, and given back."""
    features = dict.fromkeys(("/soc/iommu@50000000", "/soc/iommu@51000000"), SMMU)
    machine = build_machine(board, policy=POLICY, features=features)
    config = load_config(str(samples / "crypto.cfg"))
    guest = create_guest(machine, config, load_partial(config))
    (old,) = guest.ports[CRYPTO]
    machine.scheduler.remove(old)
    port = AtsPort(old.name, old.smmu, old.sid)
    machine.scheduler.add(port)
    guest.ports[CRYPTO] = [port]
    machine.hypervisor.hosts[port.smmu.name].ats.add(port.sid)
    port.deaf = True
    unassign(machine, guest, CRYPTO)
    assert machine.hypervisor.quarantined == {(port.smmu.name, port.sid)}
    with pytest.raises(HypercallError, match="is in quarantine"):
        give_back(machine, guest, CRYPTO)
    with pytest.raises(HypercallError, match="stays in quarantine"):
        reset_device(machine, guest, CRYPTO)
    port.deaf = False
    reset_device(machine, guest, CRYPTO)
    give_back(machine, guest, CRYPTO)
    assert machine.hypervisor.owner(port.smmu.name, port.sid) == guest.name
    # Nothing to release: a reset alone.
    waiting = port.read(0, 4)
    reset_device(machine, guest, CRYPTO)
    assert (waiting.done, waiting.ok) == (True, False)
