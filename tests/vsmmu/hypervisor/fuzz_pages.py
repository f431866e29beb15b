# SPDX-License-Identifier: BSD-2-Clause
"""Who may reach which page of the machine, while stage 2 tables change under running devices.

Kept beside the hypervisor's own books: from what its stage 2 tables are told to map and to clear,
from the ends of the hypercalls, and from what goes back to the allocator.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.grants import Gntst
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.jobs import Job
from vsmmu.hypervisor.stage2 import Change
from vsmmu.memory import PAGE, PAGE_SHIFT
from vsmmu.smmu.smmu import Smmu

from .fuzz_memory import Holding, WatchedMemory

_ZERO = bytes(PAGE)
GRANTS = ("grant mapped", "grant unmapped")


class Estate(Holding):
    """What one domain has: it may reach what is mapped, and what is being taken until it is gone.

    Attributes:
        pages: IPA page number to machine address, as the guest's CPUs see it.
        jobs: its hypercalls that have not ended, in order, with what they are.
    """

    def __init__(self, land: Land, domain: Domain) -> None:
        super().__init__()
        self.domain = domain
        self.jobs: deque[tuple[str, Job[Any]]] = deque()
        self.pages: dict[int, int] = {}
        self.used: Counter[int] = Counter()
        self._writable: Counter[int] = Counter()
        self._write: dict[int, bool] = {}
        # (frame, the hypercall that takes it).
        self._leaving: list[tuple[int, Job[Any] | None]] = []
        self._land = land
        for ipa, pa, size in domain.stage2.mappings():
            self._add(ipa, pa, size, write=True)
        self._fill, self._clear = domain.stage2.fill, domain.stage2.clear
        domain.stage2.fill = self.fill  # type: ignore[method-assign]
        domain.stage2.clear = self.clear  # type: ignore[method-assign]

    def fill(self, ipa: int, pa: int, size: int, *, write: bool = True) -> None:
        self._fill(ipa, pa, size, write=write)
        self._add(ipa, pa, size, write=write)
        self._land.settle()

    def clear(self, ipa: int, size: int, *, hitless: bool) -> Change:
        change = self._clear(ipa, size, hitless=hitless)
        job = next((job for _, job in self.jobs if not job.done), None)
        for page in range(ipa >> PAGE_SHIFT, ipa + size >> PAGE_SHIFT):
            pa = self.pages.pop(page, None)
            if pa is not None:
                frame = pa >> PAGE_SHIFT
                self.used[frame] -= 1
                self._writable[frame] -= self._write.pop(page)
                self._leaving.append((frame, job))
        self._land.settle()
        return change

    def _add(self, ipa: int, pa: int, size: int, *, write: bool) -> None:
        for offset in range(0, size, PAGE):
            page, frame = ipa + offset >> PAGE_SHIFT, pa + offset >> PAGE_SHIFT
            assert page not in self.pages, hex(page)
            self.pages[page], self._write[page] = pa + offset, write
            self.used[frame] += 1
            self._writable[frame] += write

    def settle(self) -> None:
        self.frames = frozenset(+self.used) | {frame for frame, _ in self._leaving}
        writable = {frame for frame, _ in self._leaving} | set(+self._writable)
        self.readonly = self.frames - writable

    def forget(self, frame: int) -> None:
        """A frame goes back to the allocator."""
        assert self.domain.dying or not self.used[frame], f"{frame:#x} is free and mapped"
        self._leaving = [entry for entry in self._leaving if entry[0] != frame]
        del self.used[frame]
        del self._writable[frame]

    def ended(self) -> bool:
        """What hypercalls that have ended took is beyond reach now; whether there was any."""
        if not self.jobs or not self.jobs[0][1].done:
            return False
        over = set()
        while self.jobs and self.jobs[0][1].done:
            kind, job = self.jobs.popleft()
            # Bytes, a handle, or a negative GNTST_*; a balloon's 0 is none.
            self._land.seen[kind] += job.result > 0 or (job.result == 0 and kind in GRANTS)
            # A page that a silent device may still reach is nobody else's.
            if job.result != Gntst.GENERAL_ERROR:
                over.add(job)
        gone = [
            frame for frame, job in self._leaving
            if job in over and not self.domain.withheld.covers(frame << PAGE_SHIFT, PAGE)
        ]  # fmt: skip
        self._leaving = [entry for entry in self._leaving if entry[0] not in gone]
        self._land.uncached(self.domain, [frame for frame in gone if not self.used[frame]])
        return True


class Land:
    """All domains' pages, and the free ones; `seen` counts hypercalls that did something."""

    def __init__(
        self, memory: WatchedMemory, hypervisor: Hypervisor, smmus: Mapping[str, Smmu],
        seen: Counter[str],
    ) -> None:  # fmt: skip
        self.seen = seen
        self.estates: list[Estate] = []
        self.nobody = Holding()
        self._memory = memory
        self._smmus = smmus
        pages = hypervisor.pages
        self._free, self._allocate_at = pages.free, pages.allocate_at
        pages.free = self.free  # type: ignore[method-assign]
        pages.allocate_at = self.allocate_at  # type: ignore[method-assign]

    def add(self, domain: Domain) -> Estate:
        """A new domain has what is mapped for it."""
        estate = Estate(self, domain)
        self.estates.append(estate)
        self.settle()
        return estate

    def remove(self, estate: Estate) -> None:
        """A domain is gone, with all that it had."""
        assert not estate.domain.owned.total + estate.domain.withheld.total
        assert not [e for smmu in self._smmus.values() for e in smmu.tlb
                    if e.vmid == estate.domain.vmid], "left in a TLB"  # fmt: skip
        self.estates.remove(estate)
        self.settle()

    def settle(self) -> None:
        """Work out anew who may reach what."""
        for estate in self.estates:
            estate.settle()
        everyone = frozenset().union(*(estate.frames for estate in self.estates))
        for estate in self.estates:
            estate.strangers = everyone - estate.frames
        self.nobody.strangers = everyone
        self._memory.readable = everyone
        self._memory.frames.refresh()

    def sweep(self) -> None:
        """After a turn of the hypercalls."""
        ended = [estate.ended() for estate in self.estates]
        if any(ended):
            self.settle()

    def allocate_at(self, base: int, size: int) -> int:
        self._memory.frames.looks -= size // PAGE
        for at in range(base, base + size, PAGE):
            assert self._memory.read(at, PAGE) == _ZERO, f"{at:#x} holds what another one wrote"
        return self._allocate_at(base, size)

    def free(self, base: int, size: int) -> None:
        frames = range(base >> PAGE_SHIFT, base + size >> PAGE_SHIFT)
        self._memory.frames.looks -= len(frames)
        for frame in frames:
            for estate in self.estates:
                estate.forget(frame)
        self.settle()
        for frame in frames:
            assert self._memory.read(frame << PAGE_SHIFT, PAGE) == _ZERO, f"{frame:#x} is not zero"
        self.uncached(None, frames)
        self._free(base, size)

    def uncached(self, domain: Domain | None, frames: Iterable[int]) -> None:
        """No SMMU keeps a translation to any of these frames, of this domain or of any."""
        wanted = set(frames)
        if not wanted:
            return
        for smmu in self._smmus.values():
            for tagged in smmu.tlb:
                if domain is None or tagged.vmid == domain.vmid:
                    entry = tagged.entry
                    first, last = (end >> PAGE_SHIFT for end in (entry.pa, entry.pa | entry.mask))
                    assert not any(first <= f <= last for f in wanted), (smmu.name, tagged)
