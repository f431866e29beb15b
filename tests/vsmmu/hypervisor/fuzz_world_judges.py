# SPDX-License-Identifier: BSD-2-Clause
"""What must hold in a world of the fuzzer, of what guests read, submit, cause and wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vsmmu.arch.commands import (
    CmdAtcInv,
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.events import EVENTS, decode
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import Idr5
from vsmmu.arch.stream_table import LIVE, STAGE2, Ste
from vsmmu.hypervisor.host_smmu import HYPERVISOR, Done, HostSmmu
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.eventq import PENDING_EVENTS

from .fuzz_answers import Answers
from .fuzz_guest import BASE, Guest
from .fuzz_judges import Turns, held
from .fuzz_memory import SIDS, WatchedMemory, leaks

if TYPE_CHECKING:
    from .fuzz_devices import Device
    from .fuzz_victim import Victim

# A random order may leave an engine out for a while; round robin does not.
SLACK = 3
PHASES = 3
# Things that a vSMMU or a driver holds; registers, counters and names are a hundred of them.
HELD = 600
# What guests cause: a VMID or a StreamID says whose each is.
_OWNED = (
    CmdCfgiSte, CmdCfgiCd, CmdCfgiCdAll, CmdTlbiNhAll, CmdTlbiNhAsid, CmdTlbiNhVa, CmdTlbiNhVaa,
    CmdTlbiS2Ipa, CmdTlbiS12Vmall, CmdAtcInv, CmdPriResp, CmdResume, CmdStallTerm,
)  # fmt: skip


class Judging:
    """The judges of a world."""

    answers: Answers
    devices: dict[tuple[str, int], Device]
    guests: list[Guest]
    hypervisor: Hypervisor
    memory: WatchedMemory
    places: dict[int, tuple[str, int]]
    scheduler: Turns
    seen: Counter[str]
    victim: Victim
    vmids: dict[int, int]
    waited: int

    def _listen(self, host: HostSmmu) -> None:
        """What is submitted names the owner's VMID and streams alone."""
        original, vmids = host.submit, self.vmids

        def submit(
            owner: int, commands: Sequence[Command], done: Done | None = None, **watch: Any
        ) -> None:
            for command in commands:
                assert not any(command.reserved()), command
                if owner == HYPERVISOR:
                    continue
                assert isinstance(command, _OWNED), command
                assert getattr(command, "vmid", vmids[owner]) == vmids[owner], command
                sid = getattr(command, "sid", None)
                if sid is not None:
                    device = self.devices.get((host.path, sid))
                    assert device is not None, command
                    assert device.owner is not None, command
                    assert device.owner.domain.domid == owner, command
            self.seen["submitted"] += len(commands)
            original(owner, commands, done, **watch)

        host.submit = submit  # type: ignore[method-assign]

    def _latency(self, policy: Policy, *, fair: bool) -> int:
        """Turns that may pass before a CMD_SYNC is complete.

        Before it are a batch of every owner, what their flushes left in the queue, and the records
        of a whole queue, no faster than a budget or a queue a round. The phases of an STE's update
        wait as long, each of them. A CMD_SYNC also waits for the records in the SMMU's own list,
        again and again where devices fault faster than it writes them. With ATS it may wait for a
        device to answer, and for the driver where that does not; a CMD_ATC_INV and a CMD_SYNC are
        two commands.
        """
        budget, queue = self.scheduler.budget, 1 << policy.physical_queue_log2
        owners = len(self.guests) + 1
        batch = min(policy.commands_per_turn, queue - 1) + 1
        work = owners * batch + min(queue, owners * (policy.commands_per_flush + 2)) + queue
        syncs = (owners * batch + queue) // 2
        rounds = 8 + work // min(budget, queue) + PENDING_EVENTS // budget
        if budget <= len(SIDS):
            rounds += syncs * PENDING_EVENTS // budget
        if policy.ats:
            rounds += 2 * syncs
        return (PHASES + 1) * rounds * len(self.scheduler.engines) * (1 if fair else SLACK)

    def trap(self, guest: Guest, offset: int, size: int, value: int | None = None) -> int:
        frames = self.memory.frames
        before = frames.looks
        found = self.hypervisor.trap(guest.domain, BASE + offset, size, value)
        assert frames.looks == before, "a trap reads no memory"
        if found is None:
            assert offset >= 0x4_0000
            return 0
        assert not (self.memory.blind and leaks([found])), f"{found:#x} at {offset:#x}"
        return found

    def record(self, guest: Guest, words: tuple[int, ...]) -> None:
        """A record for a guest: of its streams, of its own stage, and all named."""
        if len(words) == PriEntry.dwords:
            self.answers.asked(guest, words)
            return
        event = decode(words)
        assert event.number in EVENTS, event
        assert not any(event.reserved()), event
        assert event.sid in guest.ids, event
        assert not (self.memory.blind and leaks(words)), event
        for name in ("s2", "ipa", "reason", "gpcf"):
            assert not getattr(event, name, 0), event
        if getattr(event, "stall", 0):
            assert guest.stalls, event
            self.answers.told(guest, event)
        else:
            assert not getattr(event, "stag", 0), event
        self.seen[event.name] += 1

    def entries(self) -> None:
        """The physical STEs that changed: of the guest, no more than it may set."""
        for place in self.memory.changed:
            name, sid = self.places[place]
            words = self.memory.read_words(place, 8)
            assert words is not None
            ste = Ste(words)
            if not (ste.v and ste.config & LIVE):
                continue
            guest = self.devices[name, sid].owner
            assert guest is not None, (name, hex(sid), ste)
            assert ste.config & STAGE2, ste
            assert ste.s1cdmax <= guest.vsmmu.idr1.ssidsize, ste
            for word, (mask, ours), theirs in zip(words, guest.stage2, guest.theirs, strict=True):
                assert word & mask == ours, ste
                assert not word & ~(mask | theirs), ste
            self.seen["ste"] += 1
        self.memory.changed.clear()

    def registers(self) -> None:
        for guest in self.guests:
            values = guest.vsmmu.regs.values
            if values != guest.registers:
                guest.registers = dict(values)
                if self.memory.blind:
                    assert not leaks(values.values()), values

    def bounds(self) -> None:
        """Nothing that waits grows without end."""
        policy = self.hypervisor.policy
        for guest in self.guests:
            assert len(guest.vsmmu.event_writer._pending) <= policy.pending_events
            assert len(guest.vsmmu.refusals.first) <= policy.refusals_kept
            assert held(guest.vsmmu) < HELD
            self._shares(guest)
            assert len(guest.vsmmu.pri._pending) <= policy.pending_page_requests
        for host in self.hypervisor.hosts.values():
            assert held(host) < HELD
            assert host.queue.waited[self.victim.domain.domid] <= self.waited, host.queue.waited
            errors = {name for name in host.counters if name.startswith("CERROR")}
            assert errors <= {"CERROR_ATC_INV_SYNC"}, errors
        assert len(self.hypervisor.kept) < 60

    def _shares(self, guest: Guest) -> None:
        """What a guest has stalled on an SMMU is no more than it was told."""
        share = Idr5(guest.vsmmu.regs["IDR5"]).stall_max
        held = Counter(stall.stream.host for stall in guest.vsmmu.stalls._held.values())
        assert all(count <= share for count in held.values()), (held, share)
