# SPDX-License-Identifier: BSD-2-Clause
"""Three guests on three SMMUs, two of them hostile; everything is judged when it happens.

StreamIDs are the same on all SMMUs and belong to another guest on each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from vsmmu.arch.commands import (
    CmdCfgiSte,
)
from vsmmu.hypervisor.event_writer import EventWriter
from vsmmu.hypervisor.hypervisor import HypercallError, Hypervisor
from vsmmu.hypervisor.jobs import Job, Jobs
from vsmmu.hypervisor.pri import PriWriter
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.scheduler import Engine
from vsmmu.smmu.smmu import Smmu

from .fuzz_answers import Answers
from .fuzz_devices import AtsDevice, Device, judge_completions, watch_requests
from .fuzz_guest import CDS, Guest
from .fuzz_judges import JudgedReports, Turns
from .fuzz_machine import drawn
from .fuzz_memory import ANYBODY, SIDS, VMIDS, Judged, WatchedMemory
from .fuzz_moves import Rogue
from .fuzz_pages import Land
from .fuzz_victim import Victim
from .fuzz_world_judges import Judging

SMMUS = ("a", "b", "c")
MACHINE_SIZE = 0x80_0000
# Looks at memory for one unit of work: a walk of five levels whose descriptors are behind a stage 2
# of four, its CD and its STE; SMMUs that read ahead do more of this, an access by way of an ATC
# asks up to three times. A page that a hypercall moves is looked up a few times.
LOOKS, AHEAD, ATS_LOOKS, PAGE_LOOKS = 120, 1500, 400, 12
# Turns that a request of the toolstack may take.
WAITS = 40_000


class World(Judging):
    """A machine of the fuzzer; everything follows from the seed.

    `full` machines have every feature.
    """

    def __init__(self, seed: int, *, full: bool = False) -> None:
        self.random = random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.memory = WatchedMemory(MACHINE_SIZE)
        fair = random.random() < 0.5
        self.scheduler = Turns(0 if fair else seed + 1, random.choice([2, 4, 16, 16, 64]))
        features, policy = drawn(random, full=full)
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
        hv._wait = self.wait  # type: ignore[method-assign]
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
        together = random.random() < 0.3
        for i, name in enumerate(SMMUS):
            for k, sid in enumerate(SIDS):
                guest = self.guests[(i + k) % 3]
                if together and guest is not self.victim:
                    guest = self.hostile[i % 2]
                self.give(self.devices[name, sid], guest)
        self.places = {hv.hosts[name].table.address(sid): (name, sid) for name, sid in self.devices}
        self.memory.entries = set(self.places)
        self.latency = self._latency(policy, fair=fair)
        # Of the hypervisor, two guests and one that is not quite gone (docs/fairness.md).
        others, turn = 4, max(policy.commands_per_turn, 2)
        queue = 1 << policy.physical_queue_log2
        self.waited = min(others * policy.commands_in_queue, queue) + others * turn
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
        assert isinstance(old, Rogue)
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
        if self.random.random() < 0.5:
            old.reply(device)
            self.turns(self.random.randrange(100))
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

    def overflows(self) -> tuple[int, int]:
        """How often physical event queues were full, and how often their drivers saw that."""
        hosts = self.hypervisor.hosts.values()
        full = sum(smmu.counters["event.overflow"] for smmu in self.smmus.values())
        return full, sum(host.counters["events overflow"] for host in hosts)

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

    # Steps.

    def wait(self, ready: Callable[[], bool], problem: str) -> None:
        """What the toolstack asks for takes no end of turns, whatever guests do meanwhile."""
        for _ in range(WAITS):
            if ready():
                return
            self.turns(1)
        raise AssertionError(problem)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.run(1)
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
        assert self.scheduler.awaited is None, "CMD_SYNC is lost"
        self.seen["sync"] += len(self.victim.latencies)
        for device in self.idle_devices():
            assert not device.stalled or isinstance(device, AtsDevice), f"{device.name} is stalled"
        for guest in self.hostile:
            self.destroy(guest)
        self.rest()
        self.reap()
        assert not self.dying
        self.rest()
        # Nobody maps anybody's pages now.
        frames = self.hypervisor.frames
        assert not frames.held, frames.held
        assert not frames._references, frames._references
        for device in self.idle_devices():
            assert not device.pending, f"{device.name} hangs"
            assert not (isinstance(device, AtsDevice) and device.hung()), f"{device.name} waits"
        for guest in self.guests:
            self.seen += guest.vsmmu.counters
        self.seen += self.hypervisor.kept
        for smmu in self.smmus.values():
            self.seen["ats.timeout"] += smmu.counters["ats.timeout"]
            self.seen["httu"] += smmu.counters["httu.written"]

    def idle_devices(self) -> list[Device]:
        """Those that nobody keeps waiting: the victim was stopped in the middle."""
        return [device for device in self.devices.values() if device.owner is not self.victim]

    def rest(self) -> None:
        """Nothing is left to do."""
        assert self.scheduler.run_until_idle(300_000)
        self.entries()
        self.bounds()
        for host in self.hypervisor.hosts.values():
            assert host.idle
