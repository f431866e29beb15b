# SPDX-License-Identifier: BSD-2-Clause
"""Devices of the fuzzer: every transfer is judged, and those of hostile guests make things up."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.smmu.atc import AtsPort
from vsmmu.smmu.port import DevicePort, Request
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.stall import Stalled
from vsmmu.smmu.transaction import Access, Outcome

from .fuzz_memory import MACHINE

if TYPE_CHECKING:
    from .fuzz_guest import Guest
    from .fuzz_isolation import World


class Device(DevicePort):
    """A device whose transfers go to pages of whoever has the stream."""

    world: World
    owner: Guest | None
    vmaster_id: int

    def __init__(self, world: World, smmu: Smmu, sid: int) -> None:
        super().__init__(f"device {smmu.name} {sid:#x}", smmu, sid)
        self._join(world)

    def _join(self, world: World) -> None:
        self.world, self.owner, self.vmaster_id = world, None, 0

    def _transfer(self, request: Request, pa: int, size: int) -> bytes | None:
        assert self.owner is not None, f"{self.name} reached {pa:#x}, and nobody has it"
        estate = self.owner.estate
        assert pa >> 12 in estate.frames, f"{self.name} reached {pa:#x}"
        assert not (request.write and pa >> 12 in estate.readonly), f"{self.name} wrote {pa:#x}"
        self.world.seen["transfer"] += 1
        return super()._transfer(request, pa, size)


class AtsDevice(Device, AtsPort):
    """A device with an ATC, that asks for pages where the SMMU can.

    Attributes:
        ways: how its accesses reach the SMMU, one of them for each at random: "plain"
            (Untranslated), "ats", "forged" (Translated, at the address that it was told to use).
        sent, lasts, answered: page requests, those that end a group, and responses, by group.
        asked: requests of each group.
        told: groups that a guest was told of in full and has not answered, with the requests that
            had been sent by then; -1 where others of the group are on their way.
        answers: what the guest answered and has not arrived: (group, code).
    """

    def __init__(self, world: World, smmu: Smmu, sid: int) -> None:
        AtsPort.__init__(self, f"device {smmu.name} {sid:#x}", smmu, sid)
        self._join(world)
        self.pages = smmu.features.pri
        self.ways: tuple[str, ...] = ("plain",)
        self.forget()

    def forget(self) -> None:
        """Its groups are over, and what it has cached of a former owner is gone."""
        self.sent, self.lasts, self.answered = Counter[int](), Counter[int](), Counter[int]()
        self.asked: dict[int, list[PriEntry]] = {}
        self.told: dict[int, int] = {}
        self.answers: Counter[tuple[int, int]] = Counter()

    def _submit_access(self, access: Access) -> Outcome | Stalled:
        way = self.world.random.choice(self.ways)
        self.world.seen[way] += 1
        if way == "ats":
            return super()._submit_access(access)
        return self.smmu.translate(access) if way == "plain" else self.smmu.translated(access)

    def forge(self, entry: PriEntry) -> None:
        """Send a page request that no access stands behind."""
        self.smmu.priq.request(entry)

    def requested(self, entry: PriEntry) -> None:
        """A page request of its own is on its way."""
        group = entry.prgindex
        self.asked.setdefault(group, []).append(entry)
        # A PASID Stop Marker is a request like others where there are no PASIDs.
        self.sent[group] += 1
        self.lasts[group] += entry.last and not entry.stop_marker

    def prg_response(self, ssid: int | None, prgindex: int, code: PrgResponse) -> None:
        self.world.seen["page response"] += 1
        assert self.owner is not None, f"{self.name} is answered, and nobody has it"
        self.answered[prgindex] += 1
        assert self.answered[prgindex] <= self.sent[prgindex], f"{self.name}: never asked"
        if prgindex in self.told:
            self._judge(prgindex, code)
        super().prg_response(ssid, prgindex, code)

    def _judge(self, group: int, code: PrgResponse) -> None:
        """What its guest was asked only its guest answers, unless it loses the device."""
        assert self.owner is not None
        alone = self.told.pop(group) == self.sent[group]
        if self.answers[group, code]:
            self.answers[group, code] -= 1
            self.world.seen["page request answered"] += 1
        elif alone:
            withdrawn = self.vmaster_id not in self.owner.vsmmu.streams
            assert withdrawn, f"{self.name}: somebody else answered {code}"
            assert code == PrgResponse.FAILURE, f"{self.name}: answered {code}"

    def hung(self) -> list[int]:
        """Groups without any response."""
        return [group for group in self.lasts if not self.answered[group]]


def judge_completions(smmu: Smmu) -> None:
    """What a device may keep is an address of its guest's."""
    original = smmu.ats.request

    def request(request):
        completion = original(request)
        assert completion.address < MACHINE, completion
        return completion

    smmu.ats.request = request  # type: ignore[method-assign]


def watch_requests(world: World, smmu: Smmu) -> None:
    """Devices know what they asked for."""
    original = smmu.priq.request

    def request(entry: PriEntry) -> None:
        device = world.devices[smmu.name, entry.sid]
        assert isinstance(device, AtsDevice)
        device.requested(entry)
        original(entry)

    smmu.priq.request = request  # type: ignore[method-assign]
