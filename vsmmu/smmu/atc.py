# SPDX-License-Identifier: BSD-2-Clause
"""The endpoint's side of ATS (IHI 0070 §3.9): messages, its translation cache, a device with one.

`vsmmu.smmu.ats` is the SMMU's side.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vsmmu.arch.events import Event
from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.memory import PAGE
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.stall import ABORT, RETRY, Stalled
from vsmmu.smmu.transaction import MASK64, Access, Outcome

if TYPE_CHECKING:
    from vsmmu.smmu.smmu import Smmu

# Translations of one ATC; the oldest makes room.
ATC_ENTRIES = 1024


class Status(IntEnum):
    """How a Translation Request or an Invalidate Request ends on PCIe."""

    SUCCESS = 0
    UR = 1
    CA = 2


class TranslationRequest(NamedTuple):
    """One ATS Translation Request; `no_write` is NW.

    `priv` and `execute` come with a PASID, and count for nothing without one.
    """

    sid: int
    iova: int
    ssid: int | None = None
    no_write: bool = False
    priv: bool = False
    execute: bool = False


class Completion(NamedTuple):
    """The answer: `size` bytes from `address`, aligned to it, and the rights.

    Without rights it says that there is no translation. `untranslated` is the U bit.
    """

    status: Status
    address: int = 0
    size: int = PAGE
    read: bool = False
    write: bool = False
    execute: bool = False
    priv: bool = False
    untranslated: bool = False


@dataclass(slots=True, eq=False)
class Invalidation:
    """An Invalidate Request: [address, address + size) of a PASID, or of all.

    `ssid` None has no PASID and covers translations of every PASID and of none; with `globl` those
    of every PASID. `status` stays None until the endpoint answers; `timed_out` if it never will.
    """

    address: int
    size: int
    ssid: int | None
    globl: bool
    status: Status | None = None
    timed_out: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing is to be waited for."""
        return self.timed_out or self.status is not None


class Endpoint(Protocol):
    """What the SMMU sends messages to."""

    def invalidate(self, request: Invalidation) -> None:
        """Take an Invalidate Request, to be answered at some time."""
        ...  # pragma: no cover

    def prg_response(self, ssid: int | None, prgindex: int, code: PrgResponse) -> None:
        """Take a PRG Response."""
        ...  # pragma: no cover


class Atc:
    """An endpoint's cache of completions, by PASID, privilege and address."""

    def __init__(self, capacity: int = ATC_ENTRIES) -> None:
        self.capacity = capacity
        # (ssid, privileged, size, address): completion, oldest first.
        self._held: OrderedDict[tuple[int | None, bool, int, int], Completion] = OrderedDict()
        self._sizes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def find(self, ssid: int | None, priv: bool, iova: int) -> Completion | None:
        """The completion that translates an address."""
        for size in self._sizes:
            found = self._held.get((ssid, priv, size, iova & -size))
            if found is not None:
                return found
        return None

    def keep(self, ssid: int | None, iova: int, completion: Completion) -> None:
        """Keep a completion that has rights."""
        key = (ssid, completion.priv, completion.size, iova & -completion.size)
        if key not in self._held:
            self._sizes[completion.size] = self._sizes.get(completion.size, 0) + 1
        self._held[key] = completion
        if len(self._held) > self.capacity:
            self._drop(next(iter(self._held)))

    def drop(self, request: Invalidation) -> int:
        """Forget what an Invalidate Request covers; how many."""
        victims = [key for key in self._held if _covers(request, key)]
        for key in victims:
            self._drop(key)
        return len(victims)

    def _drop(self, key: tuple[int | None, bool, int, int]) -> None:
        del self._held[key]
        self._sizes[key[2]] -= 1
        if not self._sizes[key[2]]:
            del self._sizes[key[2]]


def _covers(request: Invalidation, key: tuple[int | None, bool, int, int]) -> bool:
    ssid, _, size, address = key
    if request.ssid is not None and (ssid is None or not (request.globl or ssid == request.ssid)):
        return False
    return address < request.address + request.size and request.address < address + size


class AtsPort(DevicePort):
    """A device with an ATC; one unit of budget is one Invalidate Request or piece.

    A piece that the SMMU gives no right for is aborted, or waits for the answer to a Page Request.

    Args:
        name, smmu, sid: as in `DevicePort`.
        pages: whether it sends Page Requests (PRI).

    Attributes:
        atc: its cache.
        silent: it answers no more Invalidate Requests, and the root complex knows: they time out.
        deaf: as `silent`, and nobody knows; the SMMU gives them up after INVALIDATION_TURNS.
        responses: PRG Responses that arrived: PASID, PRG index, code.
    """

    def __init__(self, name: str, smmu: Smmu, sid: int, *, pages: bool = False) -> None:
        super().__init__(name, smmu, sid, may_stall=False)
        self.atc = Atc()
        self.silent = self.deaf = False
        self.pages = pages
        self.responses: list[tuple[int | None, int, PrgResponse]] = []
        self._invalidations: deque[Invalidation] = deque()
        self._waits: Stalled | None = None
        self._prgindex = 0
        smmu.ats.endpoints[sid] = self

    def step(self, budget: int) -> int:
        """Answer Invalidate Requests, then move pieces."""
        done = 0
        while done < budget and self._invalidations:
            request = self._invalidations.popleft()
            if self.silent:
                request.timed_out = True
            elif not self.deaf:
                self.atc.drop(request)
                request.status = Status.SUCCESS
            done += 1
        return done + super().step(budget - done)

    def reset(self) -> None:
        """As a port; its cache is empty, Invalidate Requests that it has are never answered."""
        super().reset()
        self.atc = Atc(self.atc.capacity)
        self._invalidations.clear()
        self._waits = None

    def invalidate(self, request: Invalidation) -> None:
        """Take an Invalidate Request; what the SMMU has given up makes room for it."""
        while self._invalidations and self._invalidations[0].over:
            self._invalidations.popleft()
        self._invalidations.append(request)
        self.bell.ring()

    def prg_response(self, ssid: int | None, prgindex: int, code: PrgResponse) -> None:
        """Take a PRG Response; what waits for it goes on, or fails."""
        if len(self.responses) < ATC_ENTRIES:
            self.responses.append((ssid, prgindex, code))
        if self._waits is not None and prgindex == self._prgindex:
            self._waits.end(RETRY if code == PrgResponse.SUCCESS else ABORT)
            self._waits = None

    def _submit_access(self, access: Access) -> Outcome | Stalled:
        if access.ssid is None:
            # Privilege and execution come with a PASID (§13.7).
            access = access._replace(priv=False, instr=False)
        found = self.atc.find(access.ssid, access.priv, access.iova)
        if found is None or not _grants(found, access):
            found = self.smmu.ats.request(
                TranslationRequest(
                    access.sid, access.iova, access.ssid, not access.write, access.priv,
                    access.instr,
                )
            )  # fmt: skip
            if found.status != Status.SUCCESS:
                return Outcome("abort")
            if not _grants(found, access):
                return self._page_request(access) if self.pages else Outcome("abort")
            self.atc.keep(access.ssid, access.iova, found)
        target = found.address | access.iova & found.size - 1
        return self.smmu.translated(access._replace(iova=target))

    def _page_request(self, access: Access) -> Outcome | Stalled:
        held = Stalled(access, Event())
        self._prgindex = (self._prgindex + 1) % (1 << PriEntry.fields["prgindex"].mask.bit_length())
        self._waits = held
        with_pasid = access.ssid is not None
        entry = PriEntry.build(
            sid=access.sid, ssid=access.ssid or 0, ssv=int(with_pasid),
            priv=int(access.priv), x=int(access.instr),
            r=int(not access.write), w=int(access.write), last=1, prgindex=self._prgindex,
            addr=access.iova & MASK64 & -PAGE,
        )  # fmt: skip
        self.smmu.priq.request(entry)
        return held


def _grants(completion: Completion, access: Access) -> bool:
    if access.write:
        return completion.write
    return completion.execute if access.instr else completion.read
