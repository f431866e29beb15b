# SPDX-License-Identifier: BSD-2-Clause
"""Three guests on three SMMUs, two of them hostile; everything is judged when it happens.

StreamIDs are the same on all SMMUs and belong to another guest on each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    Command,
)
from vsmmu.arch.events import EVENTS, Event, EventClass, decode
from vsmmu.arch.stream_table import LIVE, STAGE2, Ste
from vsmmu.hypervisor.host_smmu import HYPERVISOR, Done, HostSmmu
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.reports import Reports
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort, Request
from vsmmu.smmu.smmu import Smmu

from .fuzz_guest import BASE, CDS, ENABLED, Guest
from .fuzz_hostile import MOVES, Hostile
from .fuzz_memory import SIDS, Judged, WatchedMemory, leaks
from .fuzz_victim import Victim

SMMUS = ("a", "b", "c")
MACHINE_SIZE = 0x80_0000
# Looks at memory for one unit of work: a walk of five levels whose descriptors are behind a stage 2
# of four, its CD and its STE; SMMUs that read ahead do more of this.
LOOKS, AHEAD = 120, 1500
# A random order may leave an engine out for a while; round robin does not.
SLACK = 3
PHASES = 3
# Things that a vSMMU or a driver holds; registers, counters and names are a hundred of them.
HELD = 600
DATA = EventClass.IN
# What of an STE may differ from the stage 2 that its owner has.
_ALLOWED = Ste.mask(
    "v", "config", "shcfg", "s1stalld",
    "s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh",
)  # fmt: skip
# What guests cause: a VMID or a StreamID says whose each is.
_OWNED = (
    CmdCfgiSte,
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
)


def held(part: object) -> int:
    """How much the lists, queues and maps of a part of the hypervisor hold."""
    values = list(vars(part).values())
    for value in values:
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list | deque | set):
            values += value
    return len(values)


class Turns(Scheduler):
    """Counts turns: virtual time if every engine used its whole budget.

    `awaited` is asked after each; `reached` is the turn in which it was so.
    """

    def __init__(self, seed: int, budget: int) -> None:
        super().__init__(seed, budget)
        self.turns = self.reached = 0
        self.awaited: Callable[[], bool] | None = None

    def step(self) -> int:
        self.turns += 1
        done = super().step()
        if self.awaited is not None and self.awaited():
            self.reached, self.awaited = self.turns, None
        return done


class Device(DevicePort):
    """A device whose transfers are judged: they go to pages of whoever has the stream."""

    def __init__(self, world: World, smmu: Smmu, sid: int) -> None:
        super().__init__(f"device {smmu.name} {sid:#x}", smmu, sid)
        self.world = world
        self.owner: Guest | None = None
        self.vmaster_id = 0

    def _transfer(self, request: Request, pa: int, size: int) -> bytes | None:
        assert self.owner is not None, f"{self.name} reached {pa:#x}, and nobody has it"
        assert pa >> 12 in self.owner.frames, f"{self.name} reached {pa:#x}"
        self.world.seen["transfer"] += 1
        return super()._transfer(request, pa, size)


class JudgedReports(Reports):
    """What hardware reports goes to the stream's guest alone, and not what is stage 2's."""

    world: World

    def event(self, host: HostSmmu, event: Event) -> None:
        guests = self.world.guests
        before = [guest.vsmmu.event_writer.accepted for guest in guests]
        super().event(host, event)
        for guest, accepted in zip(guests, before, strict=True):
            if guest.vsmmu.event_writer.accepted != accepted:
                assert self.world.devices[host.path, event.sid].owner is guest, event
                assert not (getattr(event, "s2", 0) and getattr(event, "cls", 0) == DATA), event
        self.world.seen["reported"] += 1


class World:
    """A machine of the fuzzer; everything follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.memory = WatchedMemory(MACHINE_SIZE)
        fair = random.random() < 0.5
        self.scheduler = Turns(0 if fair else seed + 1, random.choice([2, 4, 16, 16, 64]))
        policy = Policy(
            commands_per_flush=random.choice([4, 64, 64]),
            commands_per_turn=random.choice([3, 16, 64]),
            pending_events=random.choice([2, 64]),
            refusals_kept=random.choice([3, 32]),
            physical_queue_log2=random.choice([2, 5, 8, 8]),
        )
        features = Features.default(sidsize=24, oas=48, aidr=random.choice([0, 1, 2]))
        if random.random() < 0.3:
            features = features.replace(ssidsize=8, cd2l=1)
        if random.random() < 0.3:
            features = features.replace(stall_model=0, stall_max=4)
        caching = random.choice(["none", "normal", "normal", "hostile"])
        self.smmus = {name: Smmu(name, self.memory, features, caching=caching) for name in SMMUS}
        self.hypervisor = Hypervisor(self.memory, self.scheduler, self.smmus, policy)
        judged = JudgedReports(self.hypervisor._owner, None)
        judged.world, judged.kept = self, self.hypervisor.kept
        for host in self.hypervisor.hosts.values():
            host.event_reader._on_record = partial(judged.event, host)
        each = AHEAD if caching == "hostile" else LOOKS
        for smmu in self.smmus.values():
            for engine in smmu.engines:
                self.scheduler.add(engine)
        # It reads ahead of every command, the CDs of all streams included.
        self.ahead = self.smmus.values() if caching == "hostile" else ()
        self.hypervisor.boot()
        self.guests: list[Guest] = []
        kinds = [Victim, Hostile, Hostile]
        random.shuffle(kinds)
        for index, kind in enumerate(kinds):
            self.guests.append(kind(self, index))
        (self.victim,) = (guest for guest in self.guests if isinstance(guest, Victim))
        self.hostile = [guest for guest in self.guests if isinstance(guest, Hostile)]
        self._wire(each)
        self.latency = self._latency(policy, fair=fair)
        for guest in self.guests:
            guest.program()
        assert self.scheduler.run_until_idle()
        self.life = self.victim.life()
        self.memory.blind = random.random() < 0.6
        for guest in self.hostile:
            guest.racing.chance = random.choice([0, 0.02, 0.1])

    def _wire(self, each: int) -> None:
        """Assign the streams, and put a judge before every engine."""
        hv, guests, frames = self.hypervisor, self.guests, self.memory.frames
        self.everyone = frozenset(self.memory.readable)
        for host in hv.hosts.values():
            self._listen(host)
        self.devices: dict[tuple[str, int], Device] = {}
        for i, name in enumerate(SMMUS):
            for k, sid in enumerate(SIDS):
                device = self.devices[name, sid] = Device(self, self.smmus[name], sid)
                self.give(device, guests[(i + k) % 3])
        self.places = {hv.hosts[name].table.address(sid): (name, sid) for name, sid in self.devices}
        self.memory.entries = set(self.places)
        self.judges: dict[str, Judged] = {}
        for engine in (*self.scheduler.engines, *self.devices.values()):
            owner = getattr(engine, "owner", None)
            racing = None
            for guest in guests:
                if engine is guest.vsmmu or engine is guest.vsmmu.event_writer:
                    owner, racing = guest, guest.racing
            strangers = self.everyone - owner.frames if owner is not None else self.everyone
            if any(engine is smmu.cmdq for smmu in self.ahead):
                strangers = frozenset()
            judge = Judged(engine, frames, strangers, each, racing)
            self.judges[engine.name] = judge
            if not isinstance(engine, Device):
                self.scheduler.remove(engine)
            self.scheduler.add(judge)

    def _listen(self, host: HostSmmu) -> None:
        """What is submitted names the owner's VMID and streams alone."""
        original, vmids = host.submit, {g.domain.domid: g.domain.vmid for g in self.guests}

        def submit(owner: int, commands: Sequence[Command], done: Done | None = None) -> None:
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
            original(owner, commands, done)

        host.submit = submit  # type: ignore[method-assign]

    def _latency(self, policy: Policy, *, fair: bool) -> int:
        """Turns that may pass before a CMD_SYNC is complete.

        Before it are a batch of every owner, what their flushes left in the queue, and the records
        of a whole queue, no faster than a budget or a queue a round. The phases of an STE's update
        wait as long, each of them.
        """
        budget, queue = self.scheduler.budget, 1 << policy.physical_queue_log2
        owners = len(self.guests) + 1
        batch = min(policy.commands_per_turn, queue - 1) + 1
        work = owners * batch + min(queue, owners * (policy.commands_per_flush + 2)) + queue
        rounds = (PHASES + 1) * (8 + work // min(budget, queue))
        return rounds * len(self.scheduler.engines) * (1 if fair else SLACK)

    # Streams.

    def give(self, device: Device, guest: Guest) -> None:
        """The guest has the stream from now on, under a free vMasterID."""
        taken = guest.vsmmu.streams
        device.vmaster_id = self.random.choice([i for i in guest.ids if i not in taken])
        device.owner = guest
        guest.devices.append(device)
        self.hypervisor.assign(guest.vsmmu, device.vmaster_id, device.smmu.name, device.sid)

    def move(self) -> None:
        """Hot-unplug: a hostile guest's stream goes to the other one, or back, its device busy."""
        device = self.random.choice([d for g in self.hostile for d in g.devices])
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
        old.devices.remove(device)
        self.hypervisor.deassign(old.vsmmu, old.vsmmu.streams[device.vmaster_id])
        if not any(other.smmu is device.smmu for other in old.devices):
            assert not [e for e in device.smmu.tlb if e.vmid == old.domain.vmid], "left in the TLB"
            self.seen["last moved"] += 1
        device.owner = None
        self.judges[device.name].strangers = self.everyone
        self.turns(self.random.randrange(20))
        self.judges[device.name].strangers = self.everyone - new.frames
        self.give(device, new)
        self.seen["moved"] += 1

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
        event = decode(words)
        assert event.number in EVENTS, event
        assert not any(event.reserved()), event
        assert event.sid in guest.ids, event
        assert not (self.memory.blind and leaks(words)), event
        for name in ("s2", "ipa", "stag", "stall", "reason", "gpcf"):
            assert not getattr(event, name, 0), event
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
            assert not ste.s1cdmax, ste
            for word, (mask, ours), theirs in zip(words, guest.stage2, _ALLOWED, strict=True):
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
        for host in self.hypervisor.hosts.values():
            assert held(host) < HELD
            assert not [name for name in host.counters if name.startswith("CERROR")]
        assert len(self.hypervisor.kept) < 60

    # Steps.

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.step()
            if self.memory.changed:
                self.entries()

    def step(self) -> None:
        """One move of a hostile guest, some turns, one of the victim's; then every judge."""
        random = self.random
        guest = random.choice(self.hostile)
        chance = random.random()
        if chance < 0.008:
            self.move()
        elif chance < (0.15 if guest.stuck else 0.04):
            self.revive(guest)
        elif chance < 0.3 and not guest.vsmmu.regs["CR0ACK"] & 1:
            guest.write("CR0", ENABLED)
        else:
            random.choice(MOVES)(guest)
        self.turns(random.randrange(24))
        next(self.life)
        self.registers()

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
        assert self.scheduler.run_until_idle(300_000)
        self.entries()
        self.bounds()
        for host in self.hypervisor.hosts.values():
            assert host.idle
        self.seen["sync"] += len(self.victim.latencies)
        for guest in self.guests:
            self.seen += guest.vsmmu.counters
        self.seen += self.hypervisor.kept
