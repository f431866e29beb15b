# SPDX-License-Identifier: BSD-2-Clause
"""The guest of the fuzzer that only wants its devices to work, beside hostile ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vsmmu.arch.commands import (
    ATC_INV_ALL,
    CmdAtcInv,
    CmdCfgiCd,
    CmdCfgiSte,
    CmdPriResp,
    CmdResume,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    Command,
    Resp,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.events import Event, FTranslation, decode
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.jobs import Job
from vsmmu.memory import PAGE
from vsmmu.queue import Ring
from vsmmu.smmu.port import Request

from .fuzz_devices import AtsDevice, Device
from .fuzz_guest import (
    CDS,
    DATA,
    EVENTQ,
    EVENTQ_LOG2,
    IOVA,
    PRIQ,
    PRIQ_LOG2,
    SHARED,
    SYNC,
    TLBI,
    Guest,
)
from .fuzz_memory import plain

if TYPE_CHECKING:
    from .fuzz_isolation import World

POLLS = 60_000
OVERFLOW = 1 << 31
PATTERN = 0x5EC_0E7


class Victim(Guest):
    """Checks each access, each record and the time of each CMD_SYNC; `latencies` are in turns."""

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        self.latencies: list[int] = []
        self.expected: Counter[tuple[int, int]] = Counter()
        self.cons = self.pri_cons = 0
        # Overflows of the physical queues, when records were last read, and whether the guest is
        # still to be told of one.
        self.overflows = 0
        self.owed = False
        if self.ats:
            self.ste_fields = {"eats": 1}
        self.memory.write64(SHARED, PATTERN)

    def share(self, guest: Guest) -> None:
        """Let another guest read a page."""
        calls = self.world.hypervisor.hypercalls
        calls.grant_foreign_access(self.domain, guest.domain.domid, SHARED, readonly=True)

    def life(self) -> Iterator[None]:
        """Use the devices, change the configuration, and find each time what was asked for."""
        random = self.random
        kinds = [self.restreamed, self.unmapped, self.recontexted, self.ballooned, self.nothing]
        while True:
            device = random.choice(self.devices)
            yield from self.sync(random.choice([TLBI, CmdTlbiNhAsid.build(asid=1), SYNC]))
            yield from self.reaches(device)
            more = []
            if isinstance(device, AtsDevice):
                more = [self.cached] * (2 * self.ats)
            elif self.stalls:
                more = [self.stalled] * 2
            yield from random.choice(kinds + more)(device)
            self.records()
            assert self.memory.read64(SHARED) == PATTERN

    def nothing(self, device: Device) -> Iterator[None]:
        """Leave everything as it is."""
        yield from ()

    def restreamed(self, device: Device) -> Iterator[None]:
        """The STE aborts or is none, for a while."""
        sid = device.vmaster_id
        ste, record = self.random.choice([
            (self.ste(sid, config=SteConfig.ABORT), None), (Ste(), (0x04, sid)),
            (self.ste(sid, config=SteConfig.NESTED), (0x04, sid)),
        ])  # fmt: skip
        self.put_ste(sid, ste)
        yield from self.sync(CmdCfgiSte.build(sid=sid, leaf=1))
        yield from self.misses(device, record)
        self.put_ste(sid, self.ste(sid))
        yield from self.sync(CmdCfgiSte.build(sid=sid, leaf=1))

    def unmapped(self, device: Device) -> Iterator[None]:
        """A page is unmapped in stage 1."""
        yield from self.unmap(device)
        yield from self.misses(device, (0x10, device.vmaster_id))
        self.map()

    def recontexted(self, device: Device) -> Iterator[None]:
        """The CD is invalid, for a while."""
        sid = device.vmaster_id
        cd = CDS + 64 * (sid % 8)
        word = self.memory.read64(cd)
        self.memory.write64(cd, word & ~Cd.mask("v")[0])
        yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))
        yield from self.misses(device, (0x0A, sid))
        self.memory.write64(cd, word)
        yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))

    def ballooned(self, device: Device) -> Iterator[None]:
        """A page is given up, out of reach when that is done, and another one is zero."""
        calls, offset = self.world.hypervisor.hypercalls, 0x5000
        self.memory.write64(DATA + offset, PATTERN)
        yield from self.done("taken", calls.decrease_reservation(self.domain, DATA + offset, PAGE))
        request = device.read(IOVA + offset, 8)
        yield from self._wait(request)
        assert not request.ok
        yield from self.done("given", calls.populate_physmap(self.domain, DATA + offset, PAGE))
        request = device.read(IOVA + offset, 8)
        yield from self._wait(request)
        assert request.ok, request.outcomes
        assert request.data == bytes(8)

    def cached(self, device: AtsDevice) -> Iterator[None]:
        """By way of the ATC, which is emptied for a page that is unmapped."""
        device.ways = ("ats",)
        yield from self.reaches(device)
        yield from self._wait(device.read(IOVA + 0x1000, 8))
        yield from self.unmap(device)
        yield from self.sync(CmdAtcInv.build(sid=device.vmaster_id, size_lg2=ATC_INV_ALL))
        request = device.read(IOVA + 0x1000, 8)
        if self.pri:
            yield from self.paged_in(device, request)
        yield from self._wait(request)
        assert request.ok == self.pri, request.outcomes
        self.map()
        device.ways = ("plain",)

    def paged_in(self, device: AtsDevice, request: Request) -> Iterator[None]:
        """Its device asks for a page, and is given it."""
        ring = Ring(PRIQ_LOG2, PriEntry.size, PRIQ)
        for _ in range(POLLS):
            if self.read("PRIQ_PROD") != self.pri_cons:
                break
            yield
        at = ring.address(self.pri_cons)
        entry = PriEntry((self.memory.read64(at), self.memory.read64(at + 8)))
        assert (entry.sid, entry.addr, entry.last) == (device.vmaster_id, IOVA + 0x1000, 1)
        assert not request.done
        self.pri_cons = ring.advance(self.pri_cons)
        self.write("PRIQ_CONS", self.pri_cons)
        self.map()
        fields = {"sid": entry.sid, "prgindex": entry.prgindex, "resp": Resp.SUCCESS}
        yield from self.sync(CmdPriResp.build(**fields))

    def stalled(self, device: Device) -> Iterator[None]:
        """An access stalls, and goes on when the page is mapped."""
        sid = device.vmaster_id
        cd = CDS + 64 * (sid % 8)
        word = self.memory.read64(cd)
        self.memory.write64(cd, word | Cd.mask("s")[0])
        yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))
        yield from self.unmap(device)
        request = device.read(IOVA + 0x1000, 8)
        for _ in range(POLLS):
            if (self.read("EVENTQ_PROD") ^ self.cons) & ~OVERFLOW:
                break
            yield
        (event,) = self.taken_records()
        assert isinstance(event, FTranslation)
        assert (event.sid, event.stall, event.inputaddr) == (sid, 1, IOVA + 0x1000)
        assert not request.done
        self.map()
        yield from self.sync(CmdResume.build(sid=sid, stag=event.stag, ac=1))
        yield from self._wait(request)
        assert request.ok, request.outcomes
        self.memory.write64(cd, word)
        yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))

    def unmap(self, device: Device) -> Iterator[None]:
        self.memory.write64(self.leaf(1), 0)
        asid = device.vmaster_id % 8 + 1
        yield from self.sync(CmdTlbiNhVa.build(asid=asid, addr=IOVA + 0x1000))

    def map(self) -> None:
        self.memory.write64(self.leaf(1), DATA + 0x1000 | 0x743)

    def done(self, kind: str, job: Job[int]) -> Iterator[None]:
        self.estate.jobs.append((kind, job))
        for _ in range(POLLS):
            if job.done:
                break
            yield
        assert job.result == PAGE, job.result

    def sync(self, command: Command) -> Iterator[None]:
        scheduler = self.world.scheduler
        start = scheduler.turns
        prod, regs = self.post([command, SYNC]), self.vsmmu.regs
        scheduler.awaited = lambda: regs["CMDQ_CONS"] == prod
        while scheduler.awaited is not None:
            assert scheduler.turns - start <= self.world.latency, "CMD_SYNC is late"
            yield
        assert self.read("CMDQ_CONS") == prod
        self.latencies.append(scheduler.reached - start)
        assert self.latencies[-1] <= self.world.latency

    def reaches(self, device: Device) -> Iterator[None]:
        offset = self.random.randrange(0x3F) * 64
        data = plain(self.random.getrandbits(128)).to_bytes(16, "little")
        request = device.write(IOVA + offset, data)
        yield from self._wait(request)
        assert request.ok, request.outcomes
        assert self.memory.read(DATA + offset, 16) == data
        request = device.read(IOVA + offset, 16)
        yield from self._wait(request)
        assert request.data == data

    def misses(self, device: Device, record: tuple[int, int] | None) -> Iterator[None]:
        if record is not None:
            self.expected[record] += 1
        request = device.read(IOVA + 0x1000, 8)
        yield from self._wait(request)
        assert not request.ok
        # What it left is in the queue when an invalidation after it is complete.
        yield from self.sync(TLBI)

    def _wait(self, request: Request) -> Iterator[None]:
        for _ in range(POLLS):
            if request.done:
                return
            yield
        raise AssertionError("a device of the victim is held up")

    def records(self) -> None:
        """The records in the queue are those of the victim's own faults, no more and no fewer.

        Fewer where a physical queue was full. Then OVFLG tells, at the next time at the latest.
        """
        owed, overflows = self.owed, self.world.overflows()
        lost, self.overflows = overflows != self.overflows, overflows
        self.owed = False
        if (self.read("EVENTQ_PROD") ^ self.read("EVENTQ_CONS")) & OVERFLOW:
            assert lost or owed, "overflow"
            owed = False
        assert not owed, "records are lost, and nobody told"
        found = Counter((event.type, event.sid) for event in self.taken_records())
        if found != self.expected:
            assert lost, (found, self.expected)
            assert found <= self.expected, (found, self.expected)
            self.owed = True
        self.expected.clear()

    def taken_records(self) -> list[Event]:
        """The records in the queue, which is empty then."""
        ring, found = Ring(EVENTQ_LOG2, 32, EVENTQ), []
        prod = self.read("EVENTQ_PROD")
        while (self.cons ^ prod) & ~OVERFLOW:
            at = ring.address(self.cons)
            found.append(decode(tuple(self.memory.read64(at + 8 * i) for i in range(4))))
            self.cons = ring.advance(self.cons)
        self.write("EVENTQ_CONS", self.cons | prod & OVERFLOW)
        return found
