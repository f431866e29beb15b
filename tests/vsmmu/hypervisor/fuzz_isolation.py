# SPDX-License-Identifier: BSD-2-Clause
"""Three guests on three SMMUs, two of them hostile; everything is judged when it happens.

StreamIDs are the same on all SMMUs and belong to another guest on each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

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
from vsmmu.arch.stream_table import LIVE, STAGE2, Ste
from vsmmu.hypervisor.event_writer import EventWriter
from vsmmu.hypervisor.host_smmu import HYPERVISOR, Done, HostSmmu
from vsmmu.hypervisor.hypervisor import HypercallError, Hypervisor
from vsmmu.hypervisor.jobs import Job, Jobs
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.pri import PriWriter
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.scheduler import Engine
from vsmmu.smmu.smmu import Smmu

from .fuzz_answers import Answers
from .fuzz_devices import AtsDevice, Device, judge_completions, watch_requests
from .fuzz_guest import BASE, CDS, Guest
from .fuzz_judges import JudgedReports, Turns, held
from .fuzz_machine import drawn
from .fuzz_memory import ANYBODY, SIDS, VMIDS, Judged, WatchedMemory, leaks
from .fuzz_moves import Rogue
from .fuzz_pages import Land
from .fuzz_victim import Victim

SMMUS = ("a", "b", "c")
MACHINE_SIZE = 0x80_0000
# Looks at memory for one unit of work: a walk of five levels whose descriptors are behind a stage 2
# of four, its CD and its STE; SMMUs that read ahead do more of this, an access by way of an ATC
# asks up to three times. A page that a hypercall moves is looked up a few times.
LOOKS, AHEAD, ATS_LOOKS, PAGE_LOOKS = 120, 1500, 400, 12
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


class World:
    """A machine of the fuzzer; everything follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.memory = WatchedMemory(MACHINE_SIZE)
        fair = random.random() < 0.5
        self.scheduler = Turns(0 if fair else seed + 1, random.choice([2, 4, 16, 16, 64]))
        features, policy = drawn(random)
        self.caching = random.choice(["none", "normal", "normal", "hostile"])
        self.smmus = {
            name: Smmu(name, self.memory, features, caching=self.caching) for name in SMMUS
        }
        self.hypervisor = hv = Hypervisor(self.memory, self.scheduler, self.smmus, policy)
        judged = JudgedReports(hv._owner, None)
        judged.world, judged.kept = self, hv.kept
        for host in hv.hosts.values():
            host.event_reader._on_record = partial(judged.event, host)
            host.pri_reader._on_record = partial(judged.page_request, host)
        self.answers = Answers(self)
        for smmu in self.smmus.values():
            for engine in smmu.engines:
                self.scheduler.add(engine)
            judge_completions(smmu)
            watch_requests(self, smmu)
            self.answers.watch(smmu)
        hv.boot()
        hv._free_vmid = self.free_vmid  # type: ignore[method-assign]
        self.land = Land(self.memory, hv, self.smmus, self.seen)
        self.vmids: dict[int, int] = {}
        self.judges: dict[str, Judged] = {}
        self.arriving: Guest | None = None
        self._wire()
        self.guests: list[Guest] = []
        kinds = [Victim, Rogue, Rogue]
        random.shuffle(kinds)
        for index, kind in enumerate(kinds):
            self.guests.append(kind(self, index))
        (self.victim,) = (guest for guest in self.guests if isinstance(guest, Victim))
        self.dying: dict[Guest, Job[None]] = {}
        for i, name in enumerate(SMMUS):
            for k, sid in enumerate(SIDS):
                self.give(self.devices[name, sid], self.guests[(i + k) % 3])
        self.places = {hv.hosts[name].table.address(sid): (name, sid) for name, sid in self.devices}
        self.memory.entries = set(self.places)
        self.latency = self._latency(policy, fair=fair)
        for guest in self.guests:
            guest.program()
            self.victim.share(guest)
        assert self.scheduler.run_until_idle()
        self.life = self.victim.life()
        self.memory.blind = random.random() < 0.6
        self.chance = random.choice([0, 0.02, 0.1])
        for rogue in self.hostile:
            rogue.racing.chance = self.chance

    @property
    def hostile(self) -> list[Rogue]:
        """The hostile guests that are alive."""
        return [g for g in self.guests if isinstance(g, Rogue) and not g.domain.dying]

    def free_vmid(self) -> int:
        """As the hypervisor finds one, of numbers that no guest knows."""
        used = {domain.vmid for domain in self.hypervisor.domains.values()}
        return self.random.choice([vmid for vmid in VMIDS if vmid not in used])

    def _wire(self) -> None:
        """Devices, and a judge before every engine that is there or will be."""
        hv, random = self.hypervisor, self.random
        for host in hv.hosts.values():
            self._listen(host)
        self.devices: dict[tuple[str, int], Device] = {}
        for name in SMMUS:
            smmu = self.smmus[name]
            for sid in SIDS:
                kind = AtsDevice if smmu.features.ats and random.random() < 0.7 else Device
                self.devices[name, sid] = kind(self, smmu, sid)
        for engine in self.scheduler.engines:
            self.scheduler.remove(engine)
            self.scheduler.add(self.judged(engine))
        self.scheduler.judge = self.judged
        for device in self.devices.values():
            self.scheduler.add(device)

    def judged(self, engine: Engine) -> Judged:
        """An engine with a judge before it; those of a vSMMU are the arriving guest's."""
        each = AHEAD if self.caching == "hostile" else LOOKS
        holding: Any = self.land.nobody
        racing = after = None
        if isinstance(engine, VSmmu | EventWriter | PriWriter):
            assert self.arriving is not None
            holding, racing = self.arriving.estate, self.arriving.racing
        elif isinstance(engine, Jobs):
            each += PAGE_LOOKS * self.hypervisor.policy.stage2_pages_per_step
            after = self.land.sweep
        elif isinstance(engine, AtsDevice):
            each = max(each, ATS_LOOKS)
        # It reads ahead of every command, the CDs of all streams included.
        if self.caching == "hostile" and any(engine is s.cmdq for s in self.smmus.values()):
            holding = ANYBODY
        judge = Judged(engine, self.memory.frames, holding, each, racing, after)
        self.judges[engine.name] = judge
        return judge

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
        wait as long, each of them. With ATS a CMD_SYNC may wait for a device to answer, and for the
        driver where it does not; a CMD_ATC_INV and a CMD_SYNC are two commands.
        """
        budget, queue = self.scheduler.budget, 1 << policy.physical_queue_log2
        owners = len(self.guests) + 1
        batch = min(policy.commands_per_turn, queue - 1) + 1
        work = owners * batch + min(queue, owners * (policy.commands_per_flush + 2)) + queue
        rounds = 8 + work // min(budget, queue)
        if policy.ats:
            rounds += 2 * (owners * batch + queue) // 2
        return (PHASES + 1) * rounds * len(self.scheduler.engines) * (1 if fair else SLACK)

    # Streams and guests.

    def give(self, device: Device, guest: Guest) -> None:
        """The guest has the stream from now on, under a free vMasterID."""
        taken = guest.vsmmu.streams
        device.vmaster_id = self.random.choice([i for i in guest.ids if i not in taken])
        device.owner = guest
        self.judges[device.name].holding = guest.estate
        guest.devices.append(device)
        try:
            self.hypervisor.assign(guest.vsmmu, device.vmaster_id, device.smmu.name, device.sid)
        except HypercallError:
            assert (device.smmu.name, device.sid) in self.hypervisor._quarantined
            self.lose(device)

    def lose(self, device: Device) -> None:
        """Nobody has the stream."""
        assert device.owner is not None
        self.answers.forget(device)
        device.owner.devices.remove(device)
        device.owner = None
        self.judges[device.name].holding = self.land.nobody

    def move(self) -> None:
        """Hot-unplug: a hostile guest's stream goes to the other one, or back, its device busy."""
        devices = [d for g in self.hostile for d in g.devices]
        if not devices:
            return
        device = self.random.choice(devices)
        old = device.owner
        assert old is not None
        new = self.random.choice(self.hostile)
        if len(new.vsmmu.streams) == len(new.ids):
            return
        if self.random.random() < 0.5:
            # While its STE is being changed, in more phases than one.
            random, sid = self.random, device.vmaster_id
            context = CDS + 64 * random.randrange(8)
            fields = {"s1cir": random.randrange(4), "s1ctxptr": context}
            old.put_ste(sid, old.ste(sid, config=random.choice([0, 4, 5, 5, 5]), **fields))
            old.post([CmdCfgiSte.build(sid=sid, leaf=1)])
            self.turns(random.randrange(200))
        self.calm(device)
        self.hypervisor.deassign(old.vsmmu, old.vsmmu.streams[device.vmaster_id])
        self.lose(device)
        if not any(other.smmu is device.smmu for other in old.devices):
            assert not [e for e in device.smmu.tlb if e.vmid == old.domain.vmid], "left in the TLB"
            self.seen["last moved"] += 1
        self.turns(self.random.randrange(20))
        self.give(device, new)
        self.seen["moved"] += 1

    def calm(self, device: Device) -> None:
        """One that answers no invalidation is nobody's any more, so most do at the end."""
        if isinstance(device, AtsDevice) and self.random.random() < 0.9:
            device.silent = False

    def overflows(self) -> int:
        """How often physical event queues were full."""
        return sum(smmu.counters["event.overflow"] for smmu in self.smmus.values())

    def destroy(self, guest: Guest) -> None:
        """From now on it only disappears."""
        for device in guest.devices:
            self.calm(device)
        self.dying[guest] = self.hypervisor.destroy_domain(guest.domain)

    def reap(self) -> None:
        """Guests that are gone have left nothing; others take their places, and their VMIDs."""
        for old, job in list(self.dying.items()):
            if not job.done:
                continue
            del self.dying[old]
            devices = list(old.devices)
            for device in devices:
                self.lose(device)
            self.land.remove(old.estate)
            self.seen += old.vsmmu.counters
            self.seen["destroyed"] += 1
            new = self.guests[old.index] = Rogue(self, old.index)
            new.racing.chance = self.chance
            for device in devices:
                self.give(device, new)
            self.victim.share(new)
            new.program()

    # Judges.

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
            assert len(guest.vsmmu.stalls) <= guest.vsmmu.stalls.share * len(SMMUS)
            assert len(guest.vsmmu.pri._pending) <= policy.pending_page_requests
        for host in self.hypervisor.hosts.values():
            assert held(host) < HELD
            errors = {name for name in host.counters if name.startswith("CERROR")}
            assert errors <= {"CERROR_ATC_INV_SYNC"}, errors
        assert len(self.hypervisor.kept) < 60

    # Steps.

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.step()
            if self.memory.changed:
                self.entries()

    def step(self) -> None:
        """One move of a hostile guest, some turns, one of the victim's; then every judge."""
        self.reap()
        if self.hostile:
            self.act(self.random.choice(self.hostile))
        self.turns(self.random.randrange(24))
        next(self.life)
        self.registers()

    def act(self, guest: Rogue) -> None:
        random = self.random
        chance = random.random()
        if chance < 0.008:
            self.move()
        elif chance < 0.011:
            self.destroy(guest)
        elif chance < (0.15 if guest.stuck else 0.04):
            self.revive(guest)
        elif chance < 0.3 and not guest.vsmmu.regs["CR0ACK"] & 1:
            guest.write("CR0", guest.enabled)
        else:
            random.choice(guest.moves)(guest)

    def revive(self, guest: Guest) -> None:
        """The vSMMU set up anew, before or after SMMUEN is acknowledged."""
        guest.write("CR0", 0)
        for _ in range(self.random.choice([2, 40, 40])):
            self.turns(10)
            if not guest.read("CR0ACK"):
                break
        guest.program()

    def run(self, steps: int) -> None:
        """Steps, and then the end of everything that is under way."""
        for number in range(steps):
            self.step()
            if number % 64 == 0:
                self.bounds()
        for guest in self.hostile:
            guest.write("CR0", 0)
        self.rest()
        self.seen["sync"] += len(self.victim.latencies)
        for guest in self.hostile:
            self.destroy(guest)
        self.rest()
        self.reap()
        assert not self.dying
        self.rest()
        for device in set(self.devices.values()) - set(self.victim.devices):
            assert not device.pending, f"{device.name} hangs"
            assert not (isinstance(device, AtsDevice) and device.hung()), f"{device.name} waits"
        for guest in self.guests:
            self.seen += guest.vsmmu.counters
        self.seen += self.hypervisor.kept

    def rest(self) -> None:
        """Nothing is left to do."""
        assert self.scheduler.run_until_idle(300_000)
        self.entries()
        self.bounds()
        for host in self.hypervisor.hosts.values():
            assert host.idle
