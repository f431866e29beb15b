# SPDX-License-Identifier: BSD-2-Clause
"""One program on QEMU and on the model, and what differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from tests.differential.qemu_machine import CLEAR_FROM, RAM, RAM_SIZE, Qemu, QemuDied
from tests.differential.qemu_program import (
    ELSEWHERE,
    SCRATCH,
    Model,
    Program,
    Seen,
    pages_of,
    pattern,
    run,
)
from vsmmu.arch.events import Event, decode
from vsmmu.arch.registers import QueueBase
from vsmmu.memory import PAGE
from vsmmu.smmu.features import Features

# Makes what was seen of QEMU and of the model comparable: (qemu, model) -> (qemu, model).
Allow = Callable[[Seen, Seen], tuple[Seen, Seen]]


class Pair:
    """A QEMU that is started when it is needed, and models like it."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._qemu: Qemu | None = None
        self._dirty: list[int] = []
        self.starts = 0
        self.features = self._identify()

    def close(self) -> None:
        if self._qemu is not None:
            self._qemu.close()
        self._qemu = None

    def _identify(self) -> Features:
        qemu = self._fresh(1)
        ids = {f"idr{i}": qemu.mmio_read(4 * i, 4) for i in (0, 1, 3, 5)}
        return Features.from_ids(**ids, iidr=qemu.mmio_read(0x18, 4), aidr=qemu.mmio_read(0x1C, 4))

    def _fresh(self, bus: int) -> Qemu:
        if self._qemu is None:
            self._qemu = Qemu(self._binary)
            self._dirty = []
            self.starts += 1
        self._qemu.reset(bus, self._dirty)
        return self._qemu

    def differences(self, program: Program, allowed: Iterable[Allow] = ()) -> list[str]:
        """What differs, a line each; ["QEMU ends"] when the program ends it."""
        model = Model(self.features, program.bus)
        ours, _ = run(model, program)
        try:
            qemu = self._fresh(program.bus)
            theirs, buffers = run(qemu, program)
            found = _compare(theirs, ours, list(allowed))
            found += _buffers(program, buffers, model)
            found += _memory(qemu, model, ours)
            found.sort(key=lambda line: line.startswith("end"))
        except QemuDied:
            self.close()
            return ["QEMU ends"]
        # Whatever QEMU wrote elsewhere must not reach the next program.
        self._dirty = list(range(CLEAR_FROM >> 12, RAM + RAM_SIZE >> 12))
        if not found:
            self._dirty = list(pages_of(model.memory))
        return found

    def shrink(self, program: Program, allowed: list[Allow], tries: int = 400) -> Program:
        """A shorter program that differs in the same way."""
        size = len(program.steps) // 2
        kind = _kind(self.differences(program, allowed))
        while size and tries:
            at = program.fixed
            while at < len(program.steps) and tries:
                shorter = program.without(at, size)
                tries -= 1
                if _kind(self.differences(shorter, allowed)) == kind:
                    program = shorter
                else:
                    at += size
            size //= 2
        return program


def _kind(differences: list[str]) -> str:
    """The first difference without its place and numbers."""
    return re.sub(r"step \d+|0x[0-9a-f]+|[0-9a-f]{8,}", "", differences[0]) if differences else ""


def _compare(theirs: list[Seen], ours: list[Seen], allowed: list[Allow]) -> list[str]:
    found = []
    # The queue's index means nothing once the number of records is not compared.
    loose = False
    for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        place = f"step {i}" if i < len(ours) - 1 else "end"
        qemu, model = dict(a), dict(b)
        for allow in allowed:
            qemu, model = allow(qemu, model)
        loose |= "overflow" in b and len(model.get("events", ())) != len(b.get("events", "-"))
        for key in model:
            if loose and key in ("EVENTQ_PROD", "EVENTQ_CONS"):
                continue
            if qemu[key] != model[key]:
                found.append(f"{place}: {key}: QEMU {show(qemu[key])}, model {show(model[key])}")
    return found


def show(value: Any) -> str:
    """A value seen, as text: event records by name."""
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, tuple):
        return _event(decode(value))
    return str(value)


def _event(event: Event) -> str:
    rest = {n: f.of(event.words) for n, f in event.fields.items() if n != "type"}
    shown = [f"{n}={v:#x}" for n, v in rest.items() if v]
    shown += [f"reserved[{i}]={w:#x}" for i, w in enumerate(event.reserved()) if w]
    return f"{event.name}({', '.join(shown)})"


def _buffers(program: Program, theirs: list[bytes], model: Model) -> list[str]:
    """What reads brought; where the model's read failed, QEMU's must have brought nothing."""
    devices = sorted({step[1] for step in program.steps if step[0] == "dma"})
    found = []
    for step in range(len(program.steps)):
        if program.steps[step][0] != "dma" or program.steps[step][3]:
            continue
        _, device, _, _, size, slot, checked = program.steps[step]
        if not checked:
            continue
        got = theirs[devices.index(device)][slot : slot + size]
        want = model.buffers[device][slot : slot + size]
        failed = model.unserved[device][slot : slot + size]
        before = pattern(device)[slot : slot + size]
        for i in range(size):
            if failed[i] == ELSEWHERE:
                continue
            if got[i] != want[i] if not failed[i] else got[i] not in (0, before[i]):
                text = "nothing" if failed[i] else want.hex()
                found.append(f"step {step}: data: QEMU {got.hex()}, model {text}")
                break
    return found


def _memory(qemu: Qemu, model: Model, ours: list[Seen]) -> list[str]:
    """Every page that the model's memory has, but for the event queue, which was compared."""
    base = QueueBase(ours[-1]["EVENTQ_BASE"])
    skip = range(base.addr >> 12, (base.addr + (32 << base.log2size) - 1 >> 12) + 1)
    found = []
    for frame, data in pages_of(model.memory).items():
        if frame <= SCRATCH >> 12 or frame in skip:
            continue
        theirs = qemu.read(frame * PAGE, PAGE)
        if theirs != data:
            at = next(i for i in range(PAGE) if theirs[i] != data[i])
            found.append(
                f"end: memory {frame * PAGE + at:#x}: QEMU {theirs[at : at + 8].hex()}, "
                f"model {data[at : at + 8].hex()}"
            )
    return found
