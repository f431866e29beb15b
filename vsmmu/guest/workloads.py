# SPDX-License-Identifier: BSD-2-Clause
"""What guests do with their devices all day: workloads for scenarios.

Each is a program for a `Thread`, made of operations that are paced and counted by its `Bench`. It
sees devices as a guest's drivers do: it maps buffers, asks for DMA and waits for it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, Protocol

from vsmmu.guest.tables import PAGE, Heap
from vsmmu.guest.thread import Thread
from vsmmu.guest.vcpu import GuestError, Program
from vsmmu.hypervisor.domain import GuestMemory

# Requests that one actor has waiting at a device; ports take no more than 256 in all.
_IN_FLIGHT = 32
_FAULTING_PAGES = 1 << 16


class Dma(Protocol):
    """A DMA request; its status is "ok", "fault" or "abort" in the end."""

    @property
    def done(self) -> bool:
        """Whether every piece of it went through."""
        ...  # pragma: no cover

    @property
    def status(self) -> str:
        """The worst of its pieces."""
        ...  # pragma: no cover

    @property
    def data(self) -> bytes:
        """What a read got."""
        ...  # pragma: no cover


class Device(Protocol):
    """A device as its driver uses it; all its streams share an address space."""

    @property
    def room(self) -> int:
        """Requests that it takes now."""
        ...  # pragma: no cover

    def prepare(self) -> Program:
        """Boot the guest's SMMU drivers and attach the device, unless somebody has."""
        ...  # pragma: no cover

    def map(self, iova: int, ipa: int, size: int) -> None:
        """Map pages."""
        ...  # pragma: no cover

    def unmap(self, iova: int, size: int) -> Program:
        """Unmap pages, invalidate and wait."""
        ...  # pragma: no cover

    def clear(self, iova: int, size: int) -> None:
        """Unmap pages and leave the invalidation to `flush`."""
        ...  # pragma: no cover

    def flush(self) -> Program:
        """Invalidate the address space and wait."""
        ...  # pragma: no cover

    def write(self, iova: int, data: bytes) -> Dma:
        """A DMA write of the stream whose turn it is."""
        ...  # pragma: no cover

    def read(self, iova: int, size: int) -> Dma:
        """A DMA read."""
        ...  # pragma: no cover


@dataclass(slots=True)
class Bench:
    """An actor's place: its CPU, devices and memory, its length and pace, and what came of it.

    Attributes:
        iova: the start of 4 GiB of input addresses that no other actor uses.
        clock: tells the turns of the scheduler, by which `turns` and `every` count.
        done: operations begun.
        ready: whether its devices are ready for use.
        outcomes: DMA requests that ended, by status.
    """

    thread: Thread
    devices: Sequence[Device]
    memory: GuestMemory
    heap: Heap
    random: Random
    clock: Callable[[], int]
    iova: int
    operations: int | None
    turns: int | None
    every: int
    buffers: int
    size: int
    lazy: bool
    done: int = 0
    ready: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _start: int = -1
    _next: int = 0

    @property
    def pages(self) -> int:
        """Bytes of the pages that hold a buffer."""
        return -(-self.size // PAGE) * PAGE

    @property
    def device(self) -> Device:
        """The device whose turn it is."""
        return self.devices[self.done % len(self.devices)]

    def more(self) -> Generator[Any, None, bool]:
        """Wait for the time of the next operation; whether there is one."""
        if self._start < 0:
            self._start = self._next = self.clock()
        yield from self.thread.until(lambda: self.clock() >= self._next)
        over = self.turns is not None and self.clock() - self._start >= self.turns
        if over or self.done == self.operations:
            return False
        self.done += 1
        self._next = self.clock() + self.every
        return True

    def room(self, device: Device) -> Program:
        """Wait until a device takes a request."""
        yield from self.thread.until(lambda: device.room > 0)

    def ended(self, request: Dma) -> Program:
        """Wait for a request and count it."""
        yield from self.thread.until(lambda: request.done)
        self.outcomes[request.status] += 1

    def compare(self, request: Dma, ipa: int, data: bytes) -> None:
        """Hold memory against what a write that went through has moved."""
        if request.status == "ok" and self.memory.read(ipa, len(data)) not in (data, None):
            self.problems.append(f"the data at IPA {ipa:#x} is not what the DMA moved")

    def prepared(self) -> Program:
        """All its devices, ready for use."""
        for device in self.devices:
            yield from device.prepare()
        self.ready = True


class _Packet(NamedTuple):
    """A buffer under way."""

    device: Device
    iova: int
    request: Dma
    payload: bytes


def netdev_storm(bench: Bench) -> Program:
    """A network interface: map a buffer, receive into it, unmap it, over a ring of buffers.

    Strict unmaps each with its own invalidation. Lazy clears descriptors only, and takes new input
    addresses until the spare ones are used up, then invalidates the address spaces.
    """
    yield from bench.prepared()
    buffers = deque(bench.heap.allocate(bench.pages) for _ in range(bench.buffers))
    # One more than pairs up with the buffers: an address is used for another buffer each time.
    count = bench.buffers * (2 if bench.lazy else 1) + 1
    free = deque(bench.iova + slot * bench.pages for slot in range(count))
    places: dict[int, int] = {}
    ring: deque[_Packet] = deque()
    stale: list[tuple[Device, int]] = []

    def reap() -> Program:
        packet = ring.popleft()
        yield from bench.ended(packet.request)
        bench.compare(packet.request, places[packet.iova], packet.payload)
        buffers.append(places.pop(packet.iova))
        if bench.lazy:
            packet.device.clear(packet.iova, bench.pages)
            stale.append((packet.device, packet.iova))
        else:
            yield from packet.device.unmap(packet.iova, bench.pages)
            free.append(packet.iova)

    def flush() -> Program:
        due = stale[:]
        stale.clear()
        for device in dict.fromkeys(device for device, _ in due):
            yield from device.flush()
        free.extend(iova for _, iova in due)

    while (yield from bench.more()):
        device = bench.device
        while not buffers or len(ring) >= _IN_FLIGHT:
            yield from reap()
        if not free:
            yield from flush()
        yield from bench.room(device)
        iova, ipa = free.popleft(), buffers.popleft()
        places[iova] = ipa
        device.map(iova, ipa, bench.pages)
        payload = bench.random.randbytes(bench.size)
        ring.append(_Packet(device, iova, device.write(iova, payload), payload))
    while ring:
        yield from reap()
    yield from flush()


def static(bench: Bench) -> Program:
    """A device whose buffers stay mapped: reads and writes at random places in them."""
    yield from bench.prepared()
    span = bench.buffers * bench.pages
    ipa = bench.heap.allocate(span)
    for device in bench.devices:
        device.map(bench.iova, ipa, span)
    ring: deque[Dma] = deque()
    while (yield from bench.more()):
        device = bench.device
        while len(ring) >= _IN_FLIGHT:
            yield from bench.ended(ring.popleft())
        yield from bench.room(device)
        place = bench.iova + bench.random.randrange(span - bench.size + 1)
        if bench.random.getrandbits(1):
            ring.append(device.write(place, bench.random.randbytes(bench.size)))
        else:
            ring.append(device.read(place, bench.size))
    while ring:
        yield from bench.ended(ring.popleft())


def faulting(bench: Bench) -> Program:
    """A device that asks for what was never mapped, a page after the other."""
    yield from bench.prepared()
    while (yield from bench.more()):
        device = bench.device
        yield from bench.room(device)
        place = bench.iova + bench.done % _FAULTING_PAGES * bench.pages
        yield from bench.ended(device.write(place, bytes(bench.size)))


def driver(bench: Bench) -> Program:
    """A device's driver at work: maps, writes, reads back and unmaps in an order of the seed.

    What a device wrote is compared with memory, and what it reads with what was put there.
    """
    yield from bench.prepared()
    memory = deque(bench.heap.allocate(bench.pages) for _ in range(bench.buffers + 1))
    regions: dict[int, tuple[Device, int]] = {}
    slots = deque(range(bench.buffers))
    while (yield from bench.more()):
        device = bench.device
        if slots and (not regions or bench.random.random() < 0.3):
            iova = bench.iova + slots.popleft() * bench.pages
            regions[iova] = device, memory.popleft()
            device.map(iova, regions[iova][1], bench.pages)
            continue
        iova = bench.random.choice(list(regions))
        device, ipa = regions[iova]
        if not slots or bench.random.random() < 0.2:
            yield from device.unmap(iova, bench.pages)
            del regions[iova]
            slots.append((iova - bench.iova) // bench.pages)
            memory.append(ipa)
        else:
            yield from _compared(bench, device, iova, ipa)
    for iova, (device, _) in regions.items():
        yield from device.unmap(iova, bench.pages)


def _compared(bench: Bench, device: Device, iova: int, ipa: int) -> Program:
    """One DMA within a buffer, and its bytes held against memory."""
    data = bench.random.randbytes(bench.size)
    yield from bench.room(device)
    write = bench.random.getrandbits(1)
    if write:
        request = device.write(iova, data)
    else:
        if not bench.memory.write(ipa, data):
            raise GuestError(f"IPA {ipa:#x} is not RAM")
        request = device.read(iova, bench.size)
    yield from bench.ended(request)
    if write:
        bench.compare(request, ipa, data)
    elif request.status == "ok" and request.data != data:
        bench.problems.append(f"the data at IPA {ipa:#x} is not what the DMA moved")


WORKLOADS: dict[str, Callable[[Bench], Program]] = {
    "driver": driver,
    "netdev-storm": netdev_storm,
    "static": static,
    "faulting": faulting,
}
