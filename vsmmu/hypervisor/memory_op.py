# SPDX-License-Identifier: BSD-2-Clause
"""XENMEM_decrease_reservation and XENMEM_populate_physmap: a balloon's side of the hypervisor.

Both work through a range a bounded piece at a time and may stop early; the result says how much
was done, as the hypercalls do. A page that is taken is invisible to the hypervisor's own accesses
at once, and given back when no SMMU can reach it.
"""

from __future__ import annotations

from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.flush import Flush
from vsmmu.hypervisor.frames import Frames
from vsmmu.hypervisor.jobs import Work
from vsmmu.hypervisor.pages import OutOfMemoryError, PageAllocator
from vsmmu.hypervisor.policy import Policy
from vsmmu.memory import PAGE

_BLOCK = 0x20_0000


class MemoryOp:
    """Changes of how much RAM a domain has.

    Args:
        pages, frames: where pages come from and go to.
        flush: the invalidations.
        policy: caps.
    """

    def __init__(self, pages: PageAllocator, frames: Frames, flush: Flush, policy: Policy) -> None:
        self._pages = pages
        self._frames = frames
        self._flush = flush
        self._step = policy.stage2_pages_per_step * PAGE

    def decrease_reservation(self, domain: Domain, ipa: int, size: int) -> Work[int]:
        """Take RAM from a domain, as its balloon driver asks.

        Returns:
            Bytes taken: fewer than `size` from the first page on that is not the domain's own RAM.
        """
        done = 0
        while done < size and fits(domain, ipa, size):
            spans = self._own(domain, ipa + done, self._piece(ipa + done, size - done))
            length = sum(n for _, n in spans)
            if not length:
                break
            try:
                change = domain.stage2.clear(
                    ipa + done, length, hitless=self._flush.hitless(domain)
                )
            except OutOfMemoryError:
                break
            gone = yield from self._flush.stage2(domain, change)
            for base, n in spans:
                domain.owned.remove(base, n)
                if gone:
                    self._frames.release(base, n)
                else:
                    domain.withheld.add(base, n)
            done += length
        return done

    def populate_physmap(self, domain: Domain, ipa: int, size: int) -> Work[int]:
        """Give a domain zeroed RAM where it has none, up to what it was created with.

        Returns:
            Bytes given.
        """
        done = 0
        while done < size and fits(domain, ipa, size):
            at = ipa + done
            length = self._piece(at, min(size - done, self._room(domain)))
            if not length or any(
                domain.stage2.extent(at + offset) for offset in range(0, length, PAGE)
            ):
                break
            try:
                length = self._give(domain, at, length)
            except OutOfMemoryError:
                break
            done += length
            yield True
        return done

    def _room(self, domain: Domain) -> int:
        return domain.max_memory - domain.owned.total - domain.withheld.total

    def _piece(self, ipa: int, size: int) -> int:
        """What one step does of a range: nothing that crosses a block's boundary."""
        return min(size, _BLOCK - ipa % _BLOCK, self._step)

    def _own(self, domain: Domain, ipa: int, size: int) -> list[tuple[int, int]]:
        """Machine ranges behind a piece, up to the first page that is not the domain's own RAM."""
        spans: list[tuple[int, int]] = []
        while size:
            found = domain.stage2.extent(ipa)
            if found is None:
                break
            pa, length = found[0], min(found[1], size)
            if not domain.owned.covers(pa, length):
                break
            spans.append((pa, length))
            ipa, size = ipa + length, size - length
        return spans

    def _give(self, domain: Domain, ipa: int, size: int) -> int:
        """Map one contiguous machine range; as much as there is."""
        if domain.direct:
            pa, taken = self._pages.allocate_at(ipa, size), size
        else:
            pa, taken = self._some(size)
        domain.owned.add(pa, taken)
        try:
            domain.stage2.fill(ipa, pa, taken)
        except OutOfMemoryError:
            # No page for a table: what was mapped stays, the rest goes back unused.
            mapped = sum(n for _, n in self._own(domain, ipa, taken))
            domain.owned.remove(pa + mapped, taken - mapped)
            self._frames.release(pa + mapped, taken - mapped)
            if not mapped:
                raise
            return mapped
        return taken

    def _some(self, size: int) -> tuple[int, int]:
        try:
            return self._pages.allocate_some(size, _BLOCK if size == _BLOCK else PAGE)
        except OutOfMemoryError:
            return self._pages.allocate_some(size, PAGE)


def fits(domain: Domain, ipa: int, size: int) -> bool:
    """Whether a range is made of pages of a domain's address space."""
    limit = 1 << domain.stage2.ipa_bits
    return not (ipa | size) % PAGE and 0 <= ipa <= limit and 0 < size <= limit - ipa
