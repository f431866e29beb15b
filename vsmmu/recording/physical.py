# SPDX-License-Identifier: BSD-2-Clause
"""A recording on the physical model, with the features that were recorded."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vsmmu.arch.commands import Command
from vsmmu.arch.events import Event, decode
from vsmmu.arch.layout import Field
from vsmmu.arch.registers import BY_NAME, Cr0, EventqProd, Idr1, QueueBase
from vsmmu.queue import Ring
from vsmmu.recording.divergence import Difference, Result, Sides
from vsmmu.recording.format import Access as Kind
from vsmmu.recording.format import Dma, Mem, Progress, Read, Status
from vsmmu.recording.identification import DEFAULTS
from vsmmu.recording.memory import RecordedMemory
from vsmmu.smmu.config_cache import CACHING, CONFIG_ENTRIES
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Access, Smmu
from vsmmu.smmu.tlb import Key

# Units of work (commands, records) that a recording may ask for: so many at once, and so many more
# with each record. A driver's batch is a few dozen commands.
WORK, WORK_PER_RECORD = 1 << 20, 64
_STEP = 4096
# Writes of CMDQ_PROD that are remembered.
_SENT = 1 << 14
# TLB entries whose filling is remembered.
_FILLED = 1 << 16
# Linux links a level 2 table without a command (and Xen too), so invalid level 1 descriptors are
# not kept.
_HOSTILE = replace(CACHING["hostile"], entries=CONFIG_ENTRIES, invalid=False)
_RW = 3
_PROGRESS = tuple(BY_NAME[name].offset for name in ("CMDQ_CONS", "GERROR", "EVENTQ_PROD"))
_CMDQ_PROD = BY_NAME["CMDQ_PROD"].offset
_new = tuple.__new__
_SMMUEN = Cr0.mask("smmuen")[0]
_WR = EventqProd.mask("wr")[0]
_DISABLED = {"bypass": Status.DISABLED, "abort": Status.ABORT}
_ENDED = {
    "ok": Status.OK, "bypass": Status.BYPASS, "abort": Status.ABORT, "fault": Status.FAULT,
    "razwi": Status.FAULT,
}  # fmt: skip


class Physical:
    """An SMMU with the recording's memory (`player.Target`).

    Args:
        caching: as in `Smmu`.

    Attributes:
        filled: by the key of a TLB entry without the entry, the record that filled it.
        looked_up: by StreamID, the record that looked its configuration up.
        sent: the latest writes of CMDQ_PROD: record, value before, value.
    """

    def __init__(self, caching: str = "none") -> None:
        self.caching = caching
        self._written: dict[int, int] = {}
        self.filled: dict[tuple[Any, ...], int] = {}
        self.looked_up: dict[int, int] = {}
        self.sent: deque[tuple[int, int, int]] = deque(maxlen=_SENT)
        self._number = 0
        self._irqs = Counter[str]()
        self._work = 0

    def start(
        self, ids: dict[str, int], ram: tuple[int, int], memory: RecordedMemory | None = None
    ) -> tuple[str, ...]:
        """Make the machine, around memory if given; what it has otherwise than recorded.

        Raises:
            ValueError: an identification that no model comes near.
        """
        named = {
            name: ids[name.upper()] for name in ("idr0", "idr1", "idr3", "idr5", "iidr", "aidr")
        }
        self._ids = ids
        self.features, notes = Features.nearest(**named)
        self.memory = memory or RecordedMemory(ram)
        self.reset()
        return notes

    def reset(self) -> None:
        """Another SMMU in front of the same memory."""
        self.filled.clear()
        self.looked_up.clear()
        self._written.clear()
        self.smmu = smmu = Smmu(
            "smmu", self.memory, self.features, irq=self._pulse, caching=self.caching
        )
        if self.caching == "hostile":
            smmu.config.caching = _HOSTILE
        for name in DEFAULTS:
            # The driver reads what was recorded, also where the model is another.
            smmu.regs[name] = self._ids[name]
        smmu.tlb.watch = self._filled_entry
        smmu.config.watch = self._missed
        self._engines = smmu.engines
        self._values = smmu.regs.values
        self._eventq = smmu.eventq
        self._translate = smmu.translate

    def store(self, number: int, record: Mem) -> None:
        """Memory changed."""
        self.memory.store(number, record)

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        """A register write, and all that it sets in motion."""
        self._number = number
        self._written[offset] = number
        if offset == _CMDQ_PROD:
            self.sent.append((number, self._values["CMDQ_PROD"], value))
        self.smmu.regs.write(offset, size, value)
        self._run(number)

    def _run(self, number: int) -> None:
        """Run the engines until none has work. Raises ValueError beyond the bound."""
        busy = True
        while busy:
            busy = False
            for engine in self._engines:
                done = engine.step(_STEP)
                if done:
                    busy = True
                    self._work += done
            if self._work > WORK + WORK_PER_RECORD * number:
                raise ValueError("more commands and records than a driver asks for")

    def wrote(self, name: str) -> int:
        """The record that wrote a register last; 0 where none did."""
        register = BY_NAME.get(name)
        if register is None:
            return 0
        places = range(register.offset, register.offset + register.width // 8, 4)
        return max(self._written.get(place, 0) for place in places)

    def command_ring(self) -> Ring:
        """The command queue as its registers describe it."""
        return self._ring("CMDQ_BASE", Idr1.cmdqs, Command.size)

    def _ring(self, name: str, limit: Field, entry: int) -> Ring:
        base = QueueBase(self._values[name])
        address = base.addr & (1 << self.features.oas) - 1
        return Ring.of(address, base.log2size, limit.of((self._values["IDR1"],)), entry)

    def read(self, offset: int, size: int) -> int:
        """What the driver reads."""
        return self.smmu.regs.read(offset, size)

    def expected(self, read: Read) -> int:
        """What was recorded."""
        return read.value

    def progress(self) -> Progress:
        """The registers that a recording tells behind a write."""
        read = self.smmu.regs.read
        return Progress(*(read(offset, 4) for offset in _PROGRESS))

    def access(self, number: int, dma: Dma) -> Result:
        """Translate, and take the records that the SMMU wrote."""
        self._number = number
        sid, kind, _, _, _, _, iova, _, _ = dma
        before = self._values["EVENTQ_PROD"]
        status, pa, _, perms = self._translate(
            _new(Access, (sid, iova, kind == Kind.WRITE, False, False, None))
        )
        if status == "ok":
            return _new(Result, (Status.OK, pa, perms & _RW, ()))
        ended = _ENDED[status]
        if not self._values["CR0ACK"] & _SMMUEN:
            ended = _DISABLED[status]
        events: tuple[tuple[int, ...], ...] = ()
        if self._eventq.pending:
            self._run(number)
            events = tuple(self._records(before))
        return Result(ended, pa, perms & _RW, events)

    def _records(self, before: int) -> Any:
        """Records between a value of EVENTQ_PROD and now, as they are in memory."""
        ring = self._ring("EVENTQ_BASE", Idr1.eventqs, Event.size)
        pointer, end = ring.clip(before & _WR), ring.clip(self._values["EVENTQ_PROD"] & _WR)
        while pointer != end:
            words = self.memory.read_words(ring.address(pointer), Event.dwords)
            if words is not None:
                yield words
            pointer = ring.advance(pointer)

    def adopt(self, event: tuple[int, ...]) -> None:
        """Write a record that the model did not make."""
        self._eventq.record(decode(event))
        self._eventq.step(1)

    def irqs(self) -> Counter[str]:
        """Pulses so far, by line; a CMD_SYNC that sends a message pulses none."""
        messages = self.smmu.counters["msi.cmdq-sync"]
        return self._irqs - Counter({"cmdq-sync": messages})

    def _pulse(self, line: str) -> None:
        self._irqs[line] += 1

    def _missed(self, sid: int) -> None:
        self.looked_up[sid] = self._number

    def _filled_entry(self, key: Key) -> None:
        if len(self.filled) >= _FILLED:
            self.filled.clear()
        self.filled[key[:4]] = self._number

    def adopt_registers(self, values: Mapping[str, int], written: Mapping[int, int]) -> None:
        """Take registers as they are in another SMMU, and the records that wrote them."""
        self.smmu.regs.values.update(values)
        self._written = dict(written)

    def explain(self, difference: Difference, record: Any) -> Sides:
        """Both sides."""
        from vsmmu.recording.account import account

        return account(self, difference, record)
