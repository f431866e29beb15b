# SPDX-License-Identifier: BSD-2-Clause
"""A recording through the vSMMU of a guest: the driver's accesses trap, its memory is the guest's.

StreamIDs of the recording are vMasterIDs; an access goes to the physical SMMU behind the device
under its pMasterID, and what comes of it is told in the guest's addresses and StreamIDs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from vsmmu.arch.events import CBadSte, decode
from vsmmu.arch.registers import BY_NAME
from vsmmu.arch.stream_table import SteConfig
from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.recording.divergence import Difference, Result
from vsmmu.recording.entitled import leave_out, put_back, refusal
from vsmmu.recording.event_queue import new_records
from vsmmu.recording.explain import Sides, fields
from vsmmu.recording.format import Access as Kind
from vsmmu.recording.format import Dma, Mem, Progress, Read, Status
from vsmmu.recording.guest_machine import WINDOW, Choice, GuestMachine, RefusedError
from vsmmu.recording.identification import is_identification
from vsmmu.recording.physical import Physical
from vsmmu.smmu.regfile import RegisterFile
from vsmmu.smmu.transaction import READ, WRITE, Access, Outcome

# Units of work that a recording may ask for: so many at once, and so many more with each record.
# A command of a guest is several units: its own, those of the physical queues, the waiting.
WORK, WORK_PER_RECORD = 4 << 20, 256
_TURNS = 1 << 16
_RW = READ | WRITE
_PROGRESS = [(BY_NAME[name].offset, 4) for name in ("CMDQ_CONS", "GERROR", "EVENTQ_PROD")]
_CMDQ_PROD = BY_NAME["CMDQ_PROD"].offset
_ENDED = {"abort": Status.ABORT, "fault": Status.FAULT, "razwi": Status.FAULT}


def ending(vsmmu: VSmmu, stream: Stream, outcome: Outcome) -> int:
    """`Status` of a guest's access as the guest's own SMMU would have it.

    The physical SMMU translates by stage 2 what bypasses the guest's, and finds no valid STE where
    the hypervisor has not seen yet that the guest's has become one that aborts.

    Args:
        outcome: the physical one; the machine is at rest since.
    """
    if isinstance(outcome.event, CBadSte):
        ste = stream.host.read_ste(stream.pmaster_id)
        return Status.ABORT if ste.v and ste.config == SteConfig.ABORT else Status.FAULT
    if outcome.status in _ENDED:
        return _ENDED[outcome.status]
    if not vsmmu.regs.cr0.smmuen:
        return Status.DISABLED
    # Without a SubstreamID, as all accesses of a recording (STE.S1DSS).
    return Status.BYPASS if stream.bypass else Status.OK


class _Lines:
    """Counts what the vSMMU's wired interrupts tell (`interrupts.Irq`)."""

    def __init__(self) -> None:
        self.pulses = Counter[str]()

    def __call__(self, cause: str, level: bool, /) -> None:
        """A cause stands, or not: the occurrence has been told."""

    def pulse(self, cause: str, /) -> None:
        """A cause occurs."""
        self.pulses[cause] += 1


class Guest:
    """A guest's vSMMU, on a machine of the user's choice (`player.Target`).

    Args:
        choice: which machine.
        sids: StreamIDs of the recording's devices.

    Attributes:
        choice: as given.
    """

    def __init__(self, choice: Choice, sids: Collection[int]) -> None:
        self.choice = choice
        self._sids = sids
        self._lines = _Lines()
        self._recorded: Mapping[str, int] = {}
        self._clean = True
        # Commands by their address in the queue.
        self._left_out: dict[int, tuple[int, ...]] = {}
        # What the guest's structures say, and which records wrote them, for explanations alone.
        self._mirror = Physical()
        self._written: dict[int, int] = {}

    def start(self, ids: dict[str, int], ram: tuple[int, int]) -> tuple[str, ...]:
        """Make the machine. What it has otherwise than recorded is `advertised`.

        Raises:
            ValueError: a machine that cannot be.
            RefusedError: no vSMMU can stand in for what was recorded.
        """
        self._recorded = dict(ids)
        self.machine = GuestMachine(self.choice, ids, ram, self._sids, self._lines)
        self.vsmmu, self.layout = self.machine.vsmmu, self.machine.layout
        self._memory = self.machine.domain.memory
        self._scheduler = self.machine.scheduler
        self._start = self._scheduler.now
        self._engines = self._scheduler.engines
        ids = {name: self.vsmmu.regs.values.get(name, 0) for name in ids}
        self._mirror.start(ids, ram)
        self._run(0)
        return ()

    def advertised(self) -> list[tuple[str, int, int]]:
        """(IDRn.FIELD, recorded, advertised) where the vSMMU identifies itself otherwise."""
        out = []
        for name, value in self._recorded.items():
            if name not in self.vsmmu.regs.values or name not in BY_NAME:
                continue
            mine = self.vsmmu.regs[name]
            for field, at in BY_NAME[name].layout.fields.items():
                one, other = at.of((value,)), at.of((mine,))
                if one != other:
                    out.append((f"{name}.{field.upper()}", one, other))
        return out

    def to_json(self) -> dict[str, Any]:
        """The machine that the recording was played on."""
        choice, streams = self.choice, self.machine.streams
        return {
            "guest": choice.guest,
            "smmus": choice.smmus,
            "features": dict(choice.features),
            "seed": choice.seed,
            "caching": choice.caching,
            "streams": [
                {
                    "vmaster_id": f"{sid:#x}",
                    "smmu": stream.host.path,
                    "pmaster_id": f"{stream.pmaster_id:#x}",
                }
                for sid, stream in streams.items()
            ],
            "advertised": {
                field: {"recorded": f"{recorded:#x}", "vsmmu": f"{mine:#x}"}
                for field, recorded, mine in self.advertised()
            },
        }

    def reset(self) -> None:
        """The guest's SMMU is reset; its memory and devices stay."""
        if self._clean:
            return
        for name in ("CR0", "IRQ_CTRL"):
            self.vsmmu.mmio_write(BY_NAME[name].offset, 4, 0)
        self._run(0)
        fresh = RegisterFile(self.vsmmu.features.ids, lambda name: None)
        self.vsmmu.regs.values.update(fresh.values)
        self.vsmmu.mmio_write(BY_NAME["CR0"].offset, 4, 0)
        self._run(0)

    def store(self, number: int, record: Mem) -> None:
        """The guest changed its memory. Raises ValueError where it has none."""
        self._mirror.store(number, record)
        self._memory.write(record.pa, record.data)

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        """A trapped write, and all that it sets in motion."""
        self._clean = False
        self._written[offset] = number
        if offset == _CMDQ_PROD:
            self._left_out |= leave_out(self.vsmmu, self._recorded, value)
        self._trap(offset, size, value)
        self._run(number)
        if self._left_out:
            put_back(self.vsmmu, self._left_out)

    def read(self, offset: int, size: int) -> int:
        """A trapped read."""
        return self._trap(offset, size)

    def _trap(self, offset: int, size: int, value: int | None = None) -> int:
        machine = self.machine
        found = machine.hypervisor.trap(machine.domain, WINDOW[0] + offset, size, value)
        assert found is not None, "both pages lie in the window"
        return found

    def _run(self, number: int) -> None:
        """Run the machine to rest. Raises ValueError beyond the bound."""
        allowed = WORK + WORK_PER_RECORD * number
        scheduler, idle = self._scheduler, False
        while not idle:
            # Without a seed the order is that of the engines, and one quiet round is enough.
            if scheduler.seed:
                idle = scheduler.run_until_idle(_TURNS)
            else:
                idle = scheduler.settle(self._engines, _TURNS)
            if scheduler.now - self._start > allowed:
                raise ValueError("more commands and records than a driver asks for")

    def expected(self, read: Read) -> int:
        """What was recorded; of an identification register, what the vSMMU advertises."""
        if not is_identification(read.offset):
            return read.value
        return self.vsmmu.regs.read(read.offset, read.size)

    def progress(self) -> Progress:
        """The registers that a recording tells behind a write."""
        return Progress(*(self.vsmmu.regs.read(*place) for place in _PROGRESS))

    def access(self, number: int, dma: Dma) -> Result:
        """Have the device access memory, and take the records that its guest got."""
        stream = self.machine.streams[dma.sid]
        if dma.status in Status.WITH_PA:
            self.layout.map_around(self.machine.domain.stage2, dma.pa)
        before = self.vsmmu.regs["EVENTQ_PROD"]
        smmu = self.machine.smmus[stream.host.path]
        outcome = smmu.translate(Access(stream.pmaster_id, dma.iova, dma.access == Kind.WRITE))
        pa = None if outcome.pa is None else self.layout.to_ipa(outcome.pa)
        events: tuple[tuple[int, ...], ...] = ()
        if smmu.eventq.pending:
            self._run(number)
            oas = self.vsmmu.features.oas
            events = tuple(new_records(self.vsmmu.regs, self._memory, oas, before))
        ended = ending(self.vsmmu, stream, outcome)
        return Result(ended, pa, outcome.perms & _RW, events)

    def adopt(self, event: tuple[int, ...]) -> None:
        """Write a record that the model did not make."""
        self.vsmmu.event_writer.add(decode(event))
        self._run(0)

    def irqs(self) -> Counter[str]:
        """Occurrences so far, by cause."""
        return self._lines.pulses

    def explain(self, difference: Difference, record: Any) -> Sides:
        """Both sides: the shadow behind the access, and what the guest's structures say.

        Raises:
            RefusedError: the driver could not have run on a vSMMU.
        """
        pa = record.pa if isinstance(record, Dma) and record.status in Status.WITH_PA else 0
        reason = refusal(self.vsmmu, self._recorded, pa)
        if reason is not None:
            raise RefusedError(reason)
        self._mirror.adopt_registers(self.vsmmu.regs.values, self._written)
        sides = self._mirror.explain(difference, record)
        if not isinstance(record, Dma):
            return sides
        stream = self.machine.streams[record.sid]
        ste = stream.host.read_ste(stream.pmaster_id)
        raises = "" if stream.raises is None else f", which stands for {stream.raises.name}"
        shadow = (
            f"the vSMMU: vMasterID {record.sid:#x} is StreamID {stream.pmaster_id:#x} of "
            f"{stream.host.path}, caching {self.choice.caching}",
            f"shadow STE: {fields(ste)}{raises}",
            "what the guest's own structures say:",
        )
        return sides._replace(model=(*shadow, *sides.model))
