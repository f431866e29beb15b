# SPDX-License-Identifier: BSD-2-Clause
"""The guest of the fuzzer that only wants its devices to work, beside hostile ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vsmmu.arch.commands import CmdCfgiCd, CmdCfgiSte, CmdTlbiNhAsid, CmdTlbiNhVa, Command
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.queue import Ring
from vsmmu.smmu.port import Request

from .fuzz_guest import CDS, DATA, EVENTQ, EVENTQ_LOG2, IOVA, SYNC, TLBI, Guest
from .fuzz_memory import plain

if TYPE_CHECKING:
    from .fuzz_isolation import Device, World

POLLS = 60_000


class Victim(Guest):
    """Checks each access, each record and the time of each CMD_SYNC; `latencies` are in turns."""

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        self.latencies: list[int] = []
        self.expected: Counter[tuple[int, int]] = Counter()
        self.cons = 0

    def life(self) -> Iterator[None]:
        """Use the devices, change the configuration, and find each time what was asked for."""
        random = self.random
        while True:
            device = random.choice(self.devices)
            sid = device.vmaster_id
            yield from self.sync(random.choice([TLBI, CmdTlbiNhAsid.build(asid=1), SYNC]))
            yield from self.reaches(device)
            kind = random.randrange(4)
            if kind == 0:
                ste, record = random.choice([
                    (self.ste(sid, config=SteConfig.ABORT), None), (Ste(), (0x04, sid)),
                    (self.ste(sid, config=SteConfig.NESTED), (0x04, sid)),
                ])  # fmt: skip
                self.put_ste(sid, ste)
                yield from self.sync(CmdCfgiSte.build(sid=sid, leaf=1))
                yield from self.misses(device, record)
                self.put_ste(sid, self.ste(sid))
                yield from self.sync(CmdCfgiSte.build(sid=sid, leaf=1))
            elif kind == 1:
                self.memory.write64(self.leaf(1), 0)
                yield from self.sync(CmdTlbiNhVa.build(asid=sid % 8 + 1, addr=IOVA + 0x1000))
                yield from self.misses(device, (0x10, sid))
                self.memory.write64(self.leaf(1), DATA + 0x1000 | 0x743)
            elif kind == 2:
                cd = CDS + 64 * (sid % 8)
                word = self.memory.read64(cd)
                self.memory.write64(cd, word & ~(1 << 31))
                yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))
                yield from self.misses(device, (0x0A, sid))
                self.memory.write64(cd, word)
                yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))
            self.records()

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
        """The records in the queue are those of the victim's own faults, no more and no fewer."""
        ring, found = Ring(EVENTQ_LOG2, 32, EVENTQ), Counter[tuple[int, int]]()
        prod = self.read("EVENTQ_PROD")
        assert not prod >> 31, "overflow"
        while self.cons != prod:
            word = self.memory.read64(ring.address(self.cons))
            found[word & 0xFF, word >> 32] += 1
            self.cons = ring.advance(self.cons)
        self.write("EVENTQ_CONS", self.cons)
        assert found == self.expected, (found, self.expected)
        self.expected.clear()
