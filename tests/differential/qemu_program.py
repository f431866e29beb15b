# SPDX-License-Identifier: BSD-2-Clause
"""Programs for an SMMUv3: what they are, the machine they need, how they run.

A program is an image of memory and a list of steps. The same steps run on a real QEMU and on the
model; each run gives a list of observations that can be compared entry by entry.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tests.differential.qemu_machine import BUFFER, RAM, RAM_SIZE, stream_ids
from vsmmu.arch.commands import CmdSync, Command
from vsmmu.arch.events import Event
from vsmmu.arch.registers import (
    BY_NAME,
    REGISTERS,
    CmdqCons,
    Cr0,
    EventqProd,
    Gbpa,
    Gerror,
    QueueBase,
)
from vsmmu.memory import PAGE, Memory
from vsmmu.queue import Ring
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access

# Where the devices' buffers are filled from and written to; no program has anything there.
SCRATCH = RAM + 0x40_0000
MAX_LOG2 = 19
# A read below the programs' memory: QEMU has devices and its own data there.
ELSEWHERE = 2

Step = tuple[Any, ...]
Seen = dict[str, Any]


@dataclass
class Program:
    """`bus` is the fourth device's bus. Steps, by their first word:

    ("mem", address, bytes), ("w", register, value), ("r", register),
    ("cmd", (words, ...)): posted in order, as the queue has room,
    ("ack",): repair the command that stopped the queue and acknowledge it,
    ("dma", device, iova, write, size, slot, checked): not checked where stale is legal.
    """

    bus: int = 1
    image: Memory = field(default_factory=lambda: Memory([(RAM, RAM_SIZE)]))
    steps: list[Step] = field(default_factory=list)
    # The first steps that a shorter program keeps: they bring the SMMU up.
    fixed: int = 0

    def without(self, first: int, count: int) -> Program:
        """The program less some of its steps."""
        return replace(self, steps=self.steps[:first] + self.steps[first + count :])

    def pages(self) -> dict[int, bytes]:
        """Frames of the image that hold anything."""
        return pages_of(self.image)

    def show(self) -> str:
        """Text to work with: the image is made by the seed, the steps are here."""
        sids = [f"{sid:#x}" for sid in stream_ids(self.bus)]
        lines = [f"devices 0 to 3 are StreamIDs {', '.join(sids)}"]
        return "\n".join(lines + [f"{i:4} {_shown(step)}" for i, step in enumerate(self.steps)])


def pages_of(memory: Memory) -> dict[int, bytes]:
    """Frames of a memory that were written, with their bytes."""
    found = {}
    for frame in memory.arrays()[1].tolist():
        data = memory.read(frame * PAGE, PAGE)
        assert data is not None
        found[frame] = data
    return found


def _shown(step: Step) -> str:
    def word(value: Any) -> str:
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, bool) or not isinstance(value, int):
            return str(value)
        return f"{value:#x}"

    if step[0] == "cmd":
        from vsmmu.arch.commands import decode

        return "cmd " + "; ".join(repr(decode(words)) for words in step[1])
    return " ".join(map(word, step))


class Machine(Protocol):
    """What a program runs on."""

    def write(self, address: int, data: bytes) -> None: ...
    def read(self, address: int, size: int) -> bytes: ...
    def mmio_write(self, offset: int, size: int, value: int) -> None: ...
    def mmio_reads(self, places: list[tuple[int, int]]) -> list[int]: ...
    def dma(self, device: int, iova: int, slot: int, size: int, *, write: bool) -> None: ...
    def irqs(self) -> list[str]: ...


class Model:
    """The model with the identification of the QEMU beside it."""

    def __init__(self, features: Features, bus: int, *, caching: str = "normal") -> None:
        self.memory = Memory([(RAM, RAM_SIZE)])
        self._pulses: list[str] = []
        self._smmu = Smmu(
            "smmu", self.memory, features,
            irq=self._pulses.append, caching=caching, page0_alias=False,
        )  # fmt: skip
        self._sids = stream_ids(bus)
        self._scheduler = Scheduler()
        for engine in self._smmu.engines:
            self._scheduler.add(engine)
        self.buffers = [bytearray(BUFFER) for _ in self._sids]
        # Bytes of the buffers that a read did not reach: what they hold is not fixed.
        self.unserved = [bytearray(BUFFER) for _ in self._sids]

    def write(self, address: int, data: bytes) -> None:
        self.memory.write(address, data)

    def read(self, address: int, size: int) -> bytes:
        return self.memory.read(address, size) or bytes(size)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        self._smmu.mmio_write(offset, size, value)
        assert self._scheduler.run_until_idle()

    def mmio_reads(self, places: list[tuple[int, int]]) -> list[int]:
        return [self._smmu.mmio_read(offset, size) for offset, size in places]

    def irqs(self) -> list[str]:
        pulses, self._pulses[:] = list(self._pulses), []
        return pulses

    def dma(self, device: int, iova: int, slot: int, size: int, *, write: bool) -> None:
        """Piece by piece as QEMU does it: to the end of a page, or 4 aligned bytes of a fault."""
        buffer, unserved = self.buffers[device], self.unserved[device]
        while size:
            n = min(size, PAGE - iova % PAGE)
            outcome = self._smmu.translate(Access(self._sids[device], iova, write))
            self._scheduler.run_until_idle()
            done = outcome.pa is not None and self._move(outcome.pa, buffer, slot, n, write=write)
            if outcome.pa is None:
                n = min(n, iova & -iova & 7 or 4, 4)
                while n & n - 1:
                    n &= n - 1
            if not write:
                elsewhere = outcome.pa is not None and outcome.pa < SCRATCH
                unserved[slot : slot + n] = bytes([ELSEWHERE if elsewhere else not done]) * n
            iova, slot, size = iova + n, slot + n, size - n

    def _move(self, pa: int, buffer: bytearray, slot: int, n: int, *, write: bool) -> bool:
        if write:
            return self.memory.write(pa, bytes(buffer[slot : slot + n]))
        data = self.memory.read(pa, n)
        if data is None:
            return False
        buffer[slot : slot + n] = data
        return True


# Running.


def pattern(device: int) -> bytes:
    """What a device's buffer holds at the start."""
    return random.Random(device).randbytes(BUFFER)


def run(machine: Machine, program: Program) -> tuple[list[Seen], list[bytes]]:
    """What is seen at each step and in the end, and the devices' buffers."""
    for frame, data in program.pages().items():
        machine.write(frame * PAGE, data)
    devices = sorted({step[1] for step in program.steps if step[0] == "dma"})
    for device in devices:
        machine.write(SCRATCH, pattern(device))
        machine.dma(device, SCRATCH, 0, BUFFER, write=False)
    machine.irqs()
    seen = []
    for step in program.steps:
        what = _STEPS[step[0]](machine, *step[1:])
        irqs = machine.irqs()
        if step[0] != "dma" or step[-1]:
            what["irqs"] = irqs
        seen.append(what)
    seen.append(gets(machine, *(r.name for r in REGISTERS if not r.needs)))
    put(machine, "CR0", 0)
    put(machine, "GBPA", Gbpa.build(update=1, shcfg=1).raw)
    buffers = []
    for device in devices:
        machine.dma(device, SCRATCH, 0, BUFFER, write=True)
        buffers.append(machine.read(SCRATCH, BUFFER))
    return seen, buffers


def get(machine: Machine, name: str) -> int:
    return gets(machine, name)[name]


def gets(machine: Machine, *names: str) -> dict[str, int]:
    places = [(BY_NAME[name].offset, BY_NAME[name].width // 8) for name in names]
    return dict(zip(names, machine.mmio_reads(places), strict=True))


def put(machine: Machine, name: str, value: int) -> None:
    reg = BY_NAME[name]
    machine.mmio_write(reg.offset, reg.width // 8, value)


def ring(base: int, size: int) -> Ring:
    found = QueueBase(base)
    return Ring.of(found.addr, found.log2size, MAX_LOG2, size)


def _mem(machine: Machine, address: int, data: bytes) -> Seen:
    machine.write(address, data)
    return {}


def _w(machine: Machine, name: str, value: int) -> Seen:
    put(machine, name, value)
    return {}


def _r(machine: Machine, name: str) -> Seen:
    return {name: get(machine, name)}


_ERR = Gerror.mask("cmdq_err")[0]
_RD = CmdqCons.mask("rd")[0]


def _stopped(machine: Machine) -> int:
    return (get(machine, "GERROR") ^ get(machine, "GERRORN")) & _ERR


def _cmd(machine: Machine, commands: tuple[tuple[int, ...], ...]) -> Seen:
    for words in commands:
        regs = gets(machine, "CMDQ_BASE", "CMDQ_PROD", "CMDQ_CONS")
        queue = ring(regs["CMDQ_BASE"], Command.size)
        prod, cons = regs["CMDQ_PROD"], regs["CMDQ_CONS"] & _RD
        if queue.is_full(prod, cons):
            break
        machine.write(queue.address(prod), bytes(Command(words)))
        put(machine, "CMDQ_PROD", queue.advance(prod))
    return gets(machine, "CMDQ_PROD", "CMDQ_CONS", "GERROR")


def _ack(machine: Machine) -> Seen:
    if _stopped(machine):
        queue = ring(get(machine, "CMDQ_BASE"), Command.size)
        place = queue.address(get(machine, "CMDQ_CONS") & _RD)
        machine.write(place, bytes(CmdSync.build()))
    put(machine, "GERRORN", get(machine, "GERROR"))
    return gets(machine, "CMDQ_CONS", "GERROR", "GERRORN")


_OVFLG = EventqProd.mask("ovflg")[0]
_WR = EventqProd.mask("wr")[0]
_EVENTQEN = Cr0.mask("eventqen")[0]


def _dma(
    machine: Machine, device: int, iova: int, write: bool, size: int, slot: int, checked: bool
) -> Seen:  # fmt: skip
    machine.dma(device, iova, slot, size, write=write)
    regs = gets(machine, "GERROR", "CR0ACK", "EVENTQ_BASE", "EVENTQ_PROD", "EVENTQ_CONS")
    seen: Seen = {"GERROR": regs["GERROR"]}
    events = []
    if regs["CR0ACK"] & _EVENTQEN:
        queue = ring(regs["EVENTQ_BASE"], Event.size)
        prod, cons = regs["EVENTQ_PROD"], regs["EVENTQ_CONS"] & _WR
        for _ in range(queue.used(prod & _WR, cons)):
            events.append(Event.from_bytes(machine.read(queue.address(cons), Event.size)).words)
            cons = queue.advance(cons)
        if events:
            put(machine, "EVENTQ_CONS", cons | prod & _OVFLG)
        seen["overflow"] = prod & _OVFLG
    if checked:
        seen["events"] = events
    return seen


_STEPS = {"mem": _mem, "w": _w, "r": _r, "cmd": _cmd, "ack": _ack, "dma": _dma}
