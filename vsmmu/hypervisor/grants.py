# SPDX-License-Identifier: BSD-2-Clause
"""Grant table: pages of a domain that another one maps into its own stage 2, and its devices reach.

Results are GNTST_* where they are negative, as the hypercalls' are. A mapped page has a reference:
the granter may give the page up or be destroyed, the page goes back when the last mapping has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.flush import Flush
from vsmmu.hypervisor.frames import Frames
from vsmmu.hypervisor.ids import lowest_free
from vsmmu.hypervisor.jobs import Work
from vsmmu.hypervisor.memory_op import fits
from vsmmu.hypervisor.pages import OutOfMemoryError
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.stage2 import Change
from vsmmu.memory import PAGE


class Gntst(IntEnum):
    """GNTST_* of xen/include/public/grant_table.h."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    EAGAIN = -12


@dataclass(slots=True)
class _Entry:
    """A granted page: whom it is for, its IPA, how many mappings there are."""

    grantee: int
    ipa: int
    readonly: bool
    mapped: int = 0


@dataclass(slots=True)
class _Mapping:
    """A mapping: the entry it is of, the machine page, where the mapper has it.

    `change` is what an unmapping took out while an endpoint did not answer.
    """

    entry: _Entry
    pa: int
    ipa: int
    change: Change | None = None


class GrantTable:
    """All domains' grant tables.

    Args:
        frames: references to pages.
        flush: the invalidations.
        policy: caps.
    """

    def __init__(self, frames: Frames, flush: Flush, policy: Policy) -> None:
        self._frames = frames
        self._flush = flush
        self._policy = policy
        self._entries: dict[Domain, dict[int, _Entry]] = {}
        self._mappings: dict[Domain, dict[int, _Mapping]] = {}

    def grant_foreign_access(
        self, domain: Domain, grantee: int, ipa: int, *, readonly: bool = False
    ) -> int:
        """Let a domain map the page at an IPA; the grant reference.

        As a guest does by writing its table: the page is looked up when it is mapped.
        """
        entries = self._entries.setdefault(domain, {})
        if len(entries) >= self._policy.grants:
            return Gntst.NO_DEVICE_SPACE
        if not fits(domain, ipa, PAGE):
            return Gntst.BAD_PAGE
        reference = lowest_free(entries)
        entries[reference] = _Entry(grantee, ipa, readonly)
        return reference

    def end_foreign_access(self, domain: Domain, reference: int) -> Gntst:
        """Take a grant back; EAGAIN while it is mapped."""
        entry = self._entries.get(domain, {}).get(reference)
        if entry is None:
            return Gntst.BAD_GNTREF
        if entry.mapped:
            return Gntst.EAGAIN
        del self._entries[domain][reference]
        return Gntst.OKAY

    def map_grant_ref(
        self, domain: Domain, ipa: int, granter: Domain | None, reference: int, *, readonly: bool
    ) -> Work[int]:
        """Map a granted page where a domain has nothing; the handle."""
        yield True
        mappings = self._mappings.setdefault(domain, {})
        if granter is None or granter.dying:
            return Gntst.BAD_DOMAIN
        entry = self._entries.get(granter, {}).get(reference)
        if entry is None:
            return Gntst.BAD_GNTREF
        # A page at two addresses of its owner could be given up at one and kept at the other.
        if granter is domain or entry.grantee != domain.domid or (entry.readonly and not readonly):
            return Gntst.PERMISSION_DENIED
        if len(mappings) >= self._policy.grant_mappings:
            return Gntst.NO_DEVICE_SPACE
        if not fits(domain, ipa, PAGE) or domain.stage2.extent(ipa) is not None:
            return Gntst.BAD_VIRT_ADDR
        pa = granter.stage2.to_pa(entry.ipa, write=not readonly)
        # What the granter itself has by a grant is not its own to pass on.
        if pa is None or not granter.owned.covers(pa, PAGE):
            return Gntst.BAD_PAGE
        try:
            domain.stage2.fill(ipa, pa, PAGE, write=not readonly)
        except OutOfMemoryError:
            return Gntst.NO_DEVICE_SPACE
        self._frames.get(pa)
        entry.mapped += 1
        handle = lowest_free(mappings)
        mappings[handle] = _Mapping(entry, pa, ipa)
        return handle

    def unmap_grant_ref(self, domain: Domain, handle: int) -> Work[Gntst]:
        """Unmap; the reference is put when no device of the domain can reach the page."""
        mapping = self._mappings.get(domain, {}).get(handle)
        if mapping is None:
            return Gntst.BAD_HANDLE
        if mapping.change is None:
            mapping.change = domain.stage2.clear(mapping.ipa, PAGE, hitless=False)
        gone = yield from self._flush.stage2(domain, mapping.change)
        if not gone:
            # An endpoint may still reach it: the page stays referenced, and this can be repeated.
            mapping.change = Change(mapping.ipa, PAGE)
            return Gntst.GENERAL_ERROR
        del self._mappings[domain][handle]
        self._put(mapping)
        return Gntst.OKAY

    def forget(self, domain: Domain) -> None:
        """A domain is gone, and nothing of it can reach memory."""
        for mapping in self._mappings.pop(domain, {}).values():
            self._put(mapping)
        self._entries.pop(domain, None)

    def _put(self, mapping: _Mapping) -> None:
        mapping.entry.mapped -= 1
        self._frames.put(mapping.pa)
