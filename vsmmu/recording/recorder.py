# SPDX-License-Identifier: BSD-2-Clause
"""Records runs of our own: of guests' vSMMUs, or of a physical SMMU.

A recording is of a machine where each write is complete before the next record. So is one of a
run: whatever a driver's write sets in motion is finished within its trap, and an access of a
device leaves its event before anything else goes on. With a recorder, a run is another
interleaving of the same machine.

The memory records hold everything that changed in the RAM of the recorded side and that the SMMU
did not write itself: more than it can reach, never less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.memory import PAGE
from vsmmu.recording.changes import Changes, GuestPlaces, MachinePlaces, Watched
from vsmmu.recording.format import Status
from vsmmu.recording.guest import ending
from vsmmu.recording.log import Before, Ending, Log, Pulses
from vsmmu.scheduler import Engine, Scheduler
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access, Outcome

_ENDINGS = {
    "ok": Status.OK, "bypass": Status.BYPASS, "abort": Status.ABORT, "fault": Status.FAULT,
    "razwi": Status.FAULT,
}  # fmt: skip


class SmmuRecorder:
    """Records a physical SMMU and everything that its driver does to the machine's memory.

    Args:
        smmu: as after reset.
        scheduler: whose turns its engines take.
        name: of the recording.
        header: more members of the header line.

    Raises:
        UnrecordableError: as `Log`.
    """

    def __init__(
        self,
        smmu: Smmu,
        scheduler: Scheduler,
        name: str,
        header: Mapping[str, Any] | None = None,
        watched: Watched | None = None,
    ) -> None:
        self._smmu = smmu
        memory = smmu.memory
        self.log = Log(
            {"name": name, "source": "vsmmu", **_ram(memory.regions), **(header or {})},
            smmu.regs,
            memory,
            smmu.features.oas,
            Changes(watched or Watched(memory), MachinePlaces(memory)),
            lambda: scheduler.settle(smmu.engines),
            self._pulses,
        )
        self._before: Before | None = None
        smmu.tap, smmu.dma_tap = self.log, self

    def before(self, access: Access) -> None:
        """A device is about to access memory (`tap.DmaTap`)."""
        self._before = self.log.before()

    def after(self, access: Access, outcome: Outcome) -> None:
        """It did."""
        assert self._before is not None, "an access begins before it ends"
        enabled = self._smmu.regs.cr0.smmuen
        self.log.after(access, access.sid, self._before, lambda: _physical(outcome, enabled))

    def _pulses(self) -> Pulses:
        counters = self._smmu.counters
        return {line: counters["irq." + line] for line in ("eventq", "cmdq-sync", "gerror")}


def _physical(outcome: Outcome, enabled: int) -> Ending:
    status = _ENDINGS[outcome.status]
    if status == Status.BYPASS and not enabled:
        status = Status.DISABLED
    return Ending(status, outcome.pa or 0, outcome.perms)


class VsmmuRecorder:
    """Records one vSMMU: what its guest does to it and in its RAM, what its devices get.

    Args:
        machine: the recorder of the machine.
        vsmmu: as after reset.
    """

    def __init__(
        self,
        machine: MachineRecorder,
        vsmmu: VSmmu,
        header: Mapping[str, Any],
        settled_after: int = 1,
    ) -> None:
        self._vsmmu = vsmmu
        domain = vsmmu.domain
        self._places = GuestPlaces(domain)
        self._syncs: dict[str, int] = {}
        self.log = Log(
            header, vsmmu.regs, domain.memory, vsmmu.features.oas,
            Changes(machine.watched, self._places), machine.settle, self._pulses, settled_after,
        )  # fmt: skip
        vsmmu.tap = self.log

    def after(self, access: Access, stream: Stream, before: Before, outcome: Outcome) -> None:
        """One of its devices accessed memory."""
        vmaster_id = stream.vmaster_id
        self.log.after(access, vmaster_id, before, lambda: self._ending(stream, outcome))

    def _ending(self, stream: Stream, outcome: Outcome) -> Ending:
        """In the guest's terms.

        An access that stage 2 stopped, since the guest gave the page away, is not judged: a
        machine that replays it has all of the RAM.
        """
        judged = not getattr(outcome.event, "s2", 0)
        status, pa = ending(self._vsmmu, stream, outcome), 0
        if outcome.pa is not None:
            frame = self._places.address(outcome.pa & -PAGE)
            assert frame is not None, "stage 2 contains the guest's devices"
            pa = frame | outcome.pa % PAGE
        return Ending(status, pa, outcome.perms, judged)

    def _pulses(self) -> Pulses:
        levels = {cause: int(level) for cause, level in self._vsmmu.levels.items()}
        return {**levels, "cmdq-sync": self._vsmmu.interrupts.syncs}


class _Port:
    """Tells which vSMMU an access at a physical SMMU belongs to (`tap.DmaTap`)."""

    def __init__(self, machine: MachineRecorder, path: str) -> None:
        self._machine = machine
        self._path = path
        self._found: tuple[VsmmuRecorder, Stream, Before] | None = None

    def before(self, access: Access) -> None:
        found = self._machine.find(self._path, access.sid)
        self._found = None if found is None else (*found, found[0].log.before())

    def after(self, access: Access, outcome: Outcome) -> None:
        if self._found is None:
            self._machine.settle()
            return
        recorder, stream, before = self._found
        recorder.after(access, stream, before, outcome)


class MachineRecorder:
    """Records vSMMUs of a running machine.

    Args:
        hypervisor: with its SMMUs booted.
        smmus: the physical ones by path.

    Attributes:
        recorders: in the order in which they were added.
    """

    def __init__(self, hypervisor: Hypervisor, smmus: Mapping[str, Smmu]) -> None:
        self._hypervisor = hypervisor
        self._smmus = dict(smmus)
        self.watched = Watched(_only(smmus).memory)
        self.recorders: list[VsmmuRecorder] = []
        self._by_vsmmu: dict[VSmmu, VsmmuRecorder] = {}
        for path, smmu in self._smmus.items():
            smmu.dma_tap = _Port(self, path)

    def add(
        self,
        vsmmu: VSmmu,
        name: str,
        header: Mapping[str, Any] | None = None,
        settled_after: int = 1,
    ) -> Log:
        """Record a vSMMU from now on. Arguments and UnrecordableError as of `Log`."""
        banks = [(ipa, size) for ipa, _, size in vsmmu.domain.stage2.mappings()]
        fields = {"name": name, "source": "vsmmu", **_ram(banks), **(header or {})}
        recorder = VsmmuRecorder(self, vsmmu, fields, settled_after)
        self.recorders.append(recorder)
        self._by_vsmmu[vsmmu] = recorder
        return recorder.log

    def note(self, text: str) -> None:
        """A phase begins, for all."""
        for recorder in self.recorders:
            recorder.log.note(text)

    def find(self, path: str, sid: int) -> tuple[VsmmuRecorder, Stream] | None:
        """Whose recording an access belongs to; None where nobody's."""
        for vsmmu, recorder in self._by_vsmmu.items():
            for stream in vsmmu.streams.values():
                if stream.pmaster_id == sid and stream.host.path == path:
                    return recorder, stream
        return None

    def settle(self) -> None:
        """Run everything but guests and devices until it is at rest."""
        self._hypervisor.scheduler.settle(self._engines())

    def _engines(self) -> list[Engine]:
        hypervisor = self._hypervisor
        engines: list[Engine] = [e for smmu in self._smmus.values() for e in smmu.engines]
        for host in hypervisor.hosts.values():
            engines += [host, host.event_reader]
            engines += [host.pri_reader] if host.uses_pri else []
        engines.append(hypervisor.jobs)
        for domain in hypervisor.domains.values():
            for vsmmu in domain.vsmmus:
                engines += [vsmmu, vsmmu.event_writer]
                engines += [vsmmu.pri] if vsmmu.idr0.pri else []
        return engines


def _only(smmus: Mapping[str, Smmu]) -> Smmu:
    return next(iter(smmus.values()))


def _ram(banks: Any) -> dict[str, int]:
    base = min(base for base, _ in banks)
    return {"ram_base": base, "ram_size": max(base + size for base, size in banks) - base}
