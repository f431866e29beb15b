# SPDX-License-Identifier: BSD-2-Clause
"""A judge of what devices reach while stage 2 tables change.

At every access that gets through: the page is one that the stream's domain has mapped at this
moment, or had when a call began that has not returned. Whenever the hypervisor gives pages back:
no SMMU's TLB and no endpoint's cache has a translation to them.
"""

from __future__ import annotations

from collections.abc import Callable

from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.jobs import Job
from vsmmu.memory import PAGE
from vsmmu.smmu.atc import Atc
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access, Outcome

from .world import World


class Reach:
    """Watches a world from now on.

    `accesses` counts what got through, `freed` pages given back; `failed` is set with a verdict.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.accesses = self.freed = 0
        self.failed = False
        self.atcs: list[Atc] = []
        self._calls: list[tuple[Domain, Callable[[], bool], set[int]]] = []
        for name, smmu in world.smmus.items():
            smmu.translate = self._judged(name, smmu)  # type: ignore[method-assign]
        pages = world.hypervisor.pages
        self._free = pages.free
        pages.free = self._given_back  # type: ignore[method-assign]

    def began(self, domain: Domain, job: Job[object]) -> None:
        """A call that changes a domain's stage 2 has just been queued."""
        self._calls.append((domain, lambda: job.done, self.pages(domain)))

    @staticmethod
    def pages(domain: Domain) -> set[int]:
        """Machine pages of a domain's stage 2."""
        return {pa + i for _, pa, n in domain.stage2.mappings() for i in range(0, n, PAGE)}

    def may_reach(self, domain: Domain, page: int) -> bool:
        self._calls = [call for call in self._calls if not call[1]()]
        if any(base <= page < base + n for _, base, n in domain.stage2.mappings()):
            return True
        return any(whose is domain and page in before for whose, _, before in self._calls)

    def _require(self, holds: bool, verdict: str) -> None:
        if not holds:
            self.failed = True
            raise AssertionError(verdict)

    def _judged(self, name: str, smmu: Smmu) -> Callable[[Access], Outcome]:
        original, owners = smmu.translate, self.world.hypervisor._owner

        def translate(access: Access) -> Outcome:
            outcome = original(access)
            if outcome.pa is not None:
                self.accesses += 1
                owner = owners.get((name, access.sid))
                self._require(owner is not None, f"{name} {access.sid:#x} is nobody's")
                assert owner is not None
                domain, page = owner[0].domain, outcome.pa & -PAGE
                reached = f"{domain.name} reached {page:#x}, gone"
                self._require(self.may_reach(domain, page), reached)
            return outcome

        return translate

    def _given_back(self, base: int, size: int) -> None:
        self.freed += size // PAGE
        for smmu in self.world.smmus.values():
            for tagged in smmu.tlb:
                start, end = tagged.entry.pa, tagged.entry.pa + tagged.entry.mask + 1
                overlap = start < base + size and base < end
                self._require(
                    not overlap, f"{smmu.name} still has VMID {tagged.vmid} -> {start:#x}"
                )
        for atc in self.atcs:
            for held in atc._held.values():
                overlap = held.address < base + size and base < held.address + held.size
                self._require(not overlap, f"an endpoint still has {held.address:#x}")
        self._free(base, size)
