# SPDX-License-Identifier: BSD-2-Clause
"""The software side of the queues: a producer of commands, readers of records (IHI 0070 §3.5).

Each takes the registers of the SMMU as two functions, by name, so the same ring serves a physical
SMMU and a vSMMU that is reached by trapped accesses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vsmmu.arch import commands, events
from vsmmu.arch.commands import Command
from vsmmu.arch.events import Event
from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import CmdqCons, EventqCons, EventqProd, QueueBase
from vsmmu.queue import Ring
from vsmmu.testing.space import Space, load, store

_Record = TypeVar("_Record")
# The smallest alignment of a queue's base (§6.3.26).
_QUEUE_ALIGN = 32
_PLACES = {register.name: (register.offset, register.width // 8) for register in EVERY_REGISTER}


@dataclass(frozen=True, slots=True)
class Registers:
    """Registers by name, over an access by offset and size in bytes."""

    load: Callable[[int, int], int]
    store: Callable[[int, int, int], object]

    def read(self, name: str) -> int:
        """A register's value. Raises KeyError: there is none of that name."""
        return self.load(*_PLACES[name])

    def write(self, name: str, value: int) -> None:
        """Store to a register. Raises KeyError."""
        self.store(*_PLACES[name], value)


class _Queue:
    def __init__(
        self, space: Space, registers: Registers, name: str, log2size: int, entry: int
    ) -> None:
        self.space = space
        self.registers = registers
        self._name = name
        size = entry << log2size
        self.ring = Ring(log2size, entry, space.allocate(size, max(size, _QUEUE_ALIGN)))

    def program(self) -> None:
        """Write the queue's BASE, PROD and CONS; the enable in CR0 is the caller's to set."""
        base = QueueBase.build(log2size=self.ring.log2size, addr=self.ring.base, hint=1)
        self.registers.write(f"{self._name}_BASE", base.raw)
        self.registers.write(f"{self._name}_PROD", 0)
        self.registers.write(f"{self._name}_CONS", 0)

    @property
    def prod(self) -> int:
        """The PROD register, whole."""
        return self.registers.read(f"{self._name}_PROD")

    @property
    def cons(self) -> int:
        """The CONS register, whole."""
        return self.registers.read(f"{self._name}_CONS")


class CommandRing(_Queue):
    """The command queue.

    Args:
        space: where it is put.
        registers: of the SMMU.
        log2size: log2 of its entries.
    """

    def __init__(self, space: Space, registers: Registers, log2size: int = 8) -> None:
        super().__init__(space, registers, "CMDQ", log2size, Command.size)

    @property
    def room(self) -> int:
        """Commands that can be put now."""
        return self.ring.size - self.ring.pending(self.prod, self.cons)

    @property
    def empty(self) -> bool:
        """Whether all that was put is consumed."""
        return not self.ring.used(self.prod, self.cons)

    @property
    def error(self) -> int:
        """CMDQ_CONS.ERR, a `Cerror` (§7.1)."""
        return CmdqCons(self.cons).err

    def put(self, *entries: Command) -> None:
        """Write commands and then PROD. Raises ValueError: there is not that much room."""
        if len(entries) > self.room:
            raise ValueError(f"{len(entries)} commands, room for {self.room}")
        prod = self.prod
        for command in entries:
            store(self.space.memory, self.ring.address(prod), command.words)
            prod = self.ring.advance(prod)
        self.registers.write("CMDQ_PROD", prod)

    def at(self, pointer: int) -> Command:
        """The command at a PROD or CONS value, as at `cons` after an error."""
        return commands.decode(load(self.space.memory, self.ring.address(pointer), Command.dwords))

    def replace(self, pointer: int, command: Command) -> None:
        """Overwrite the command at a PROD or CONS value, as a driver does after CERROR_ILL."""
        store(self.space.memory, self.ring.address(pointer), command.words)


class RecordRing(_Queue, Generic[_Record]):
    """A queue that the SMMU writes; `overflows` counts those that `take` acknowledged."""

    def __init__(
        self,
        space: Space,
        registers: Registers,
        name: str,
        log2size: int,
        entry: int,
        decode: Callable[[tuple[int, ...]], _Record],
    ) -> None:
        super().__init__(space, registers, name, log2size, entry)
        self.overflows = 0
        self._decode = decode

    def take(self) -> list[_Record]:
        """The records that wait, which are then consumed; an overflow is acknowledged."""
        prod, cons = EventqProd(self.prod), EventqCons(self.cons)
        found = []
        pointer = self.ring.clip(cons.rd)
        for _ in range(self.ring.pending(prod.wr, cons.rd)):
            words = load(self.space.memory, self.ring.address(pointer), self.ring.entry // 8)
            found.append(self._decode(words))
            pointer = self.ring.advance(pointer)
        self.overflows += int(prod.ovflg != cons.ovackflg)
        consumed = EventqCons.build(rd=pointer, ovackflg=prod.ovflg)
        self.registers.write(f"{self._name}_CONS", consumed.raw)
        return found


class EventRing(RecordRing[Event]):
    """The event queue; arguments as for `CommandRing`."""

    def __init__(self, space: Space, registers: Registers, log2size: int = 7) -> None:
        super().__init__(space, registers, "EVENTQ", log2size, Event.size, events.decode)


class PriRing(RecordRing[PriEntry]):
    """The PRI queue; arguments as for `CommandRing`."""

    def __init__(self, space: Space, registers: Registers, log2size: int = 7) -> None:
        super().__init__(space, registers, "PRIQ", log2size, PriEntry.size, PriEntry)
