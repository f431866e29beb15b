# SPDX-License-Identifier: BSD-2-Clause
"""What guests ask for: hypercalls that change a stage 2 at run time.

Each is a job that takes its turns among the engines. None raises, whatever the arguments: they are
a guest's.
"""

from __future__ import annotations

from typing import TypeVar

from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.flush import Flush
from vsmmu.hypervisor.frames import Frames
from vsmmu.hypervisor.grants import Gntst, GrantTable
from vsmmu.hypervisor.jobs import Job, Jobs, Work
from vsmmu.hypervisor.memory_op import MemoryOp
from vsmmu.hypervisor.pages import PageAllocator
from vsmmu.hypervisor.policy import Policy

T = TypeVar("T")


class Hypercalls:
    """The hypercalls.

    Args:
        domains: the domains by domid.
        pages, frames: where pages come from and go to.
        flush: the invalidations.
        policy: caps.
        jobs: the engine that runs them.
    """

    def __init__(
        self,
        domains: dict[int, Domain],
        pages: PageAllocator,
        frames: Frames,
        flush: Flush,
        policy: Policy,
        jobs: Jobs,
    ) -> None:
        self.grants = GrantTable(frames, flush, policy)
        self._memory = MemoryOp(pages, frames, flush, policy)
        self._domains = domains
        self._policy = policy
        self._jobs = jobs

    def decrease_reservation(self, domain: Domain, ipa: int, size: int) -> Job[int]:
        """XENMEM_decrease_reservation, see `MemoryOp`; the bytes taken."""
        return self._start(domain, self._memory.decrease_reservation(domain, ipa, size), 0)

    def populate_physmap(self, domain: Domain, ipa: int, size: int) -> Job[int]:
        """XENMEM_populate_physmap, see `MemoryOp`; the bytes given."""
        return self._start(domain, self._memory.populate_physmap(domain, ipa, size), 0)

    def grant_foreign_access(
        self, domain: Domain, grantee: int, ipa: int, *, readonly: bool = False
    ) -> int:
        """A grant of a page to a domid, see `GrantTable`; the reference or GNTST_*."""
        return self.grants.grant_foreign_access(domain, grantee, ipa, readonly=readonly)

    def end_foreign_access(self, domain: Domain, reference: int) -> Gntst:
        """Take a grant back, see `GrantTable`."""
        return self.grants.end_foreign_access(domain, reference)

    def map_grant_ref(
        self, domain: Domain, ipa: int, granter: int, reference: int, *, readonly: bool = False
    ) -> Job[int]:
        """GNTTABOP_map_grant_ref of a domid's grant, see `GrantTable`; the handle or GNTST_*."""
        found = self._domains.get(granter)
        work = self.grants.map_grant_ref(domain, ipa, found, reference, readonly=readonly)
        return self._start(domain, work, int(Gntst.GENERAL_ERROR))

    def unmap_grant_ref(self, domain: Domain, handle: int) -> Job[Gntst]:
        """GNTTABOP_unmap_grant_ref, see `GrantTable`."""
        work = self.grants.unmap_grant_ref(domain, handle)
        return self._start(domain, work, Gntst.GENERAL_ERROR)

    def _start(self, domain: Domain, work: Work[T], refused: T) -> Job[T]:
        """Queue what a guest asks for; `refused` if it has too many, or is being destroyed."""
        if domain.dying or self._jobs.waiting(domain.domid) >= self._policy.hypercalls:
            work.close()
            return Job.ended(refused)
        return self._jobs.start(domain.domid, work)
