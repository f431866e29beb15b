# SPDX-License-Identifier: BSD-2-Clause
"""The actors of a scenario at work: each guest program on a CPU of its own, hotplug beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from random import Random

from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.hostile import Hostile
from vsmmu.guest.thread import Thread
from vsmmu.guest.vcpu import GuestError, Program
from vsmmu.guest.workloads import WORKLOADS, Bench, Device
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.judge import Judge
from vsmmu.report import ActorResult
from vsmmu.scenario import Actor, Scenario
from vsmmu.smmu.port import PENDING_REQUESTS, DevicePort, Request
from vsmmu.toolstack import Guest, Machine, assign, unassign

# Requests of all actors that a port takes; the rest of its places are for steps.
_PORT_MAX = PENDING_REQUESTS // 2
_IOVA_SHIFT = 32
# Polls before a driver gives up on CPUs that poll once a turn, and in a guest that spoils its own
# SMMU.
_PATIENCE, _LITTLE = 6_000, 200


class GuestDevice:
    """A device as the workloads of its guest use it."""

    def __init__(self, guest: Guest, path: str, judge: Judge, thread: Thread, setup: Setup) -> None:
        self._guest, self._path = guest, path
        self._judge, self._thread, self._setup = judge, thread, setup
        self._ports = guest.ports[path]
        self._turn = 0

    @property
    def room(self) -> int:
        """Requests that the port whose turn it is takes now."""
        return max(0, _PORT_MAX - self._ports[self._turn].pending)

    def prepare(self) -> Program:
        """Boot the guest's drivers and attach the device, unless somebody has."""
        yield from self._setup.boot(self._guest, self._thread)
        yield from self._setup.attach(self._guest, self._path, self._thread)

    def map(self, iova: int, ipa: int, size: int) -> None:
        """Map pages for all its streams."""
        for driver, sid in self._streams():
            driver.map(sid, iova, ipa, size)
        pages = self._pages()
        for offset in range(0, size, 4096):
            pages[iova + offset] = ipa + offset

    def unmap(self, iova: int, size: int) -> Program:
        """Unmap pages, invalidate and wait."""
        for driver, sid in self._streams():
            yield from driver.unmap(sid, iova, size)
        self._forget(iova, size)

    def clear(self, iova: int, size: int) -> None:
        """Unmap pages; the TLB may have them until `flush`."""
        for driver, sid in self._streams():
            driver.clear(sid, iova, size)
        self._setup.stale.setdefault((self._guest.name, self._path), []).append((iova, size))

    def flush(self) -> Program:
        """Invalidate the address space and wait."""
        due = self._setup.stale.pop((self._guest.name, self._path), [])
        for driver, sid in self._streams():
            yield from driver.flush(sid)
        for iova, size in due:
            self._forget(iova, size)

    def write(self, iova: int, data: bytes) -> Request:
        """A DMA write of the stream whose turn it is."""
        return self._port().write(iova, data)

    def read(self, iova: int, size: int) -> Request:
        """A DMA read."""
        return self._port().read(iova, size)

    def _port(self) -> DevicePort:
        port = self._ports[self._turn]
        self._turn = (self._turn + 1) % len(self._ports)
        return port

    def _streams(self) -> list[tuple[SmmuDriver, int]]:
        return [(driver, ids[0]) for driver, ids in self._guest.streams(self._path)]

    def _pages(self) -> dict[int, int]:
        pages = self._judge.pages.get((self._guest.name, self._path))
        if pages is None:
            raise GuestError(f"{self._path} is not attached")
        return pages

    def _forget(self, iova: int, size: int) -> None:
        pages = self._judge.pages.get((self._guest.name, self._path)) or {}
        for offset in range(0, size, 4096):
            pages.pop(iova + offset, None)


class Setup:
    """Boots guests and attaches devices once, whichever actor comes first; the others wait."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._busy: set[object] = set()
        # Ranges cleared and not invalidated yet, by guest and device.
        self.stale: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def boot(self, guest: Guest, thread: Thread) -> Program:
        """All drivers of a guest."""
        for driver in guest.drivers.values():
            yield from self._once(thread, (guest.name, driver.base), driver)

    def _once(self, thread: Thread, key: object, driver: SmmuDriver) -> Program:
        yield from thread.until(lambda: key not in self._busy)
        if driver.booted:
            return
        self._busy.add(key)
        try:
            yield from driver.boot()
        finally:
            self._busy.discard(key)

    def attach(self, guest: Guest, path: str, thread: Thread) -> Program:
        """All streams of a device to one address space."""
        key = (guest.name, path)
        yield from thread.until(lambda: key not in self._busy)
        if all(i in driver.contexts for driver, ids in guest.streams(path) for i in ids):
            return
        self._busy.add(key)
        try:
            self._judge.pages[key] = {}
            for driver, ids in guest.streams(path):
                yield from driver.attach(*ids)
            self._judge.followed.add(key)
        finally:
            self._busy.discard(key)


class Player:
    """An actor that is a program of its guest."""

    def __init__(self, actor: Actor, guest: Guest, thread: Thread, bench: Bench) -> None:
        self.actor, self.guest, self.thread, self._bench = actor, guest, thread, bench

    @property
    def ended(self) -> bool:
        """Whether it does nothing any more; so it is once its domain is destroyed."""
        return not self.thread.busy or self.guest.domain.dying

    @property
    def ready(self) -> bool:
        """Whether its guest is booted and its devices are attached, or never will be."""
        return self._bench.ready or self.ended

    def result(self) -> ActorResult:
        """What it has done."""
        bench = self._bench
        problems = list(dict.fromkeys(bench.problems))
        if self.thread.failure is not None and self.actor.do != "hostile":
            problems.append(str(self.thread.failure))
        return ActorResult(self.actor, bench.done, bench.outcomes, problems)


class Hotplug:
    """The toolstack takes a guest's devices and gives them back, one after the other."""

    def __init__(self, actor: Actor, machine: Machine, guest: Guest, devices: list[str]) -> None:
        self.actor, self.guest = actor, guest
        self._machine, self._devices = machine, devices
        self._done = 0
        self._start = self._next = machine.scheduler.turns
        self._taken: str | None = None
        self._problems: list[str] = []

    @property
    def ended(self) -> bool:
        """Whether it has come to its end and given everything back."""
        if self._problems or self.guest.domain.dying:
            return True
        turns = self._machine.scheduler.turns - self._start
        over = self.actor.turns is not None and turns >= self.actor.turns
        return self._taken is None and (over or self._done == self.actor.operations)

    def poll(self) -> None:
        """The next request, if it is time; it runs the machine until that is done."""
        scheduler = self._machine.scheduler
        if self.ended or scheduler.turns < self._next:
            return
        self._next = scheduler.turns + self.actor.every
        try:
            if self._taken is None:
                self._taken = self._devices[self._done % len(self._devices)]
                self._done += 1
                unassign(self._machine, self.guest, self._taken)
            else:
                device, self._taken = self._taken, None
                assign(self._machine, self.guest, device)
        except HypercallError as error:
            self._problems.append(str(error))

    def result(self) -> ActorResult:
        """What it has done."""
        return ActorResult(self.actor, self._done, problems=list(self._problems))


class Cast:
    """All actors of a scenario.

    Args:
        judge: told what devices map.
    """

    def __init__(self, scenario: Scenario, machine: Machine, judge: Judge) -> None:
        self._scenario, self._machine, self._judge = scenario, machine, judge
        self._setup = Setup(judge)
        self._players: dict[int, Player | Hotplug] = {}
        self._hotplugs: list[Hotplug] = []
        self._threads: Counter[str] = Counter()

    @property
    def busy(self) -> bool:
        """Whether an actor that was started has not ended."""
        return any(not player.ended for player in self._players.values())

    @property
    def hostile(self) -> bool:
        """Whether one of those is hostile: then the machine may have work without end."""
        return any(p.actor.do == "hostile" and not p.ended for p in self._players.values())

    def ready(self, guests: Collection[str]) -> bool:
        """Whether the actors of some guests that were started have made their devices ready."""
        return all(
            player.ready
            for player in self._players.values()
            if isinstance(player, Player) and player.guest.name in guests
        )

    def guests(self) -> set[str]:
        """Guests of actors that were started."""
        return {player.guest.name for player in self._players.values()}

    def start(self, after: int) -> None:
        """Start the actors that follow a step."""
        for actor in self._scenario.actors:
            if actor.after == after:
                self._players[actor.number] = self._player(actor)

    def poll(self) -> None:
        """What the toolstack does between two turns of the scheduler."""
        for hotplug in self._hotplugs:
            hotplug.poll()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every actor from beginning or going on, so that the machine can come to rest."""
        threads = [p.thread for p in self._players.values() if isinstance(p, Player)]
        for thread in threads:
            thread.hold(True)
        try:
            yield
        finally:
            for thread in threads:
                thread.hold(False)

    def unended(self) -> list[Actor]:
        """Actors that have not ended."""
        return [player.actor for player in self._players.values() if not player.ended]

    def results(self) -> list[ActorResult]:
        """What each actor did, in the order of the file."""
        return [self._players[number].result() for number in sorted(self._players)]

    def _player(self, actor: Actor) -> Player | Hotplug:
        machine, guest = self._machine, self._machine.guests[actor.guest]
        device = actor.device
        paths = list(guest.ports) if device is None else [self._scenario.machine.path(device)]
        if actor.do == "hotplug":
            self._hotplugs.append(Hotplug(actor, machine, guest, paths))
            return self._hotplugs[-1]
        self._threads[guest.name] += 1
        thread = Thread(machine.hypervisor, guest.domain, self._threads[guest.name])
        machine.scheduler.add(thread)
        devices = [GuestDevice(guest, path, self._judge, thread, self._setup) for path in paths]
        bench = self._bench(actor, guest, thread, devices)
        for driver in guest.drivers.values():
            driver.patience = min(driver.patience, _LITTLE if actor.do == "hostile" else _PATIENCE)
        if actor.do == "hostile":
            self._judge.by_hand.add(guest.name)
            ram = guest.view.ram
            thread.start(Hostile(bench, list(guest.drivers.values()), ram).program())
        else:
            thread.start(WORKLOADS[actor.do](bench))
        return Player(actor, guest, thread, bench)

    def _bench(
        self, actor: Actor, guest: Guest, thread: Thread, devices: Sequence[Device]
    ) -> Bench:
        scheduler = self._machine.scheduler
        return Bench(
            thread=thread,
            devices=devices,
            memory=guest.domain.memory,
            heap=guest.heap,
            random=Random(f"{scheduler.seed} {actor.number}"),
            clock=lambda: scheduler.turns,
            iova=actor.number << _IOVA_SHIFT,
            operations=actor.operations,
            turns=actor.turns,
            every=actor.every,
            buffers=actor.buffers,
            size=actor.size,
            lazy=actor.invalidation == "lazy",
        )
