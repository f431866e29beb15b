# SPDX-License-Identifier: BSD-2-Clause
"""Faults that are put into the hypervisor, each a line or two, to see that the fuzzer finds them.

Of changes of stage 2, grants, streams taken back, messages, and what reads physical queues.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vsmmu.arch.commands import CmdPriResp, CmdStallTerm, CmdTlbiNhAll, CmdTlbiS12Vmall
from vsmmu.hypervisor import flush, grants, withdrawal
from vsmmu.hypervisor.event_writer import EventWriter
from vsmmu.hypervisor.flush import Flush
from vsmmu.hypervisor.frames import Frames
from vsmmu.hypervisor.grants import Gntst, GrantTable
from vsmmu.hypervisor.interrupts import MessageBus
from vsmmu.hypervisor.queue_reader import QueueReader
from vsmmu.hypervisor.reports import Reports
from vsmmu.memory import Memory

Fault = Callable[[pytest.MonkeyPatch], None]

# Invalidations of stage 2.


def combined_entries_stay(patch):
    made = Flush._batches
    patch.setattr(Flush, "_batches", lambda self, *a: made(self, *a)[:1])


def stage_2_entries_stay(patch):
    made = Flush._batches
    patch.setattr(Flush, "_batches", lambda self, *a: made(self, *a)[-1:])


def pages_are_not_waited_for(patch):
    def completed(submissions):
        for submit in submissions:
            submit(lambda: None)
        yield True

    patch.setattr(flush, "completed", completed)


def one_smmu_is_enough(patch):
    made = Flush._hosts
    patch.setattr(Flush, "_hosts", lambda self, domain: made(self, domain)[:1])


# Pages.


def page_with_another_mapping(patch):
    def release(self, base, size):
        self._free(base, size)

    patch.setattr(Frames, "release", release)


def mapping_without_a_reference(patch):
    patch.setattr(Frames, "get", lambda self, pa: None)


def page_as_it_was(patch):
    def clear(self, pa, size):
        pass

    patch.setattr(Memory, "clear", clear)


def page_kept_for_ever(patch):
    patch.setattr(Frames, "put", lambda self, pa: None)


# Grants.


def grant_to_anybody(patch):
    made = grants._Entry

    class Anybody:
        def __eq__(self, other):
            return True

        def __ne__(self, other):
            return False

    patch.setattr(grants, "_Entry", lambda grantee, ipa, ro: made(Anybody(), ipa, ro))


def grant_to_write(patch):
    made = grants._Entry
    patch.setattr(grants, "_Entry", lambda grantee, ipa, ro: made(grantee, ipa, False))


def read_only_mapping_that_writes(patch):
    made = GrantTable.map_grant_ref

    def map_grant_ref(self, domain, *a, **k):
        fill = domain.stage2.fill
        domain.stage2.fill = lambda ipa, pa, size, *, write=True: fill(ipa, pa, size)
        try:
            return (yield from made(self, domain, *a, **k))
        finally:
            domain.stage2.fill = fill

    patch.setattr(GrantTable, "map_grant_ref", map_grant_ref)


def grant_passed_on(patch):
    from vsmmu.hypervisor.spans import Spans

    patch.setattr(Spans, "covers", lambda self, base, size: True)


def grant_that_never_ends(patch):
    patch.setattr(GrantTable, "end_foreign_access", lambda self, domain, reference: Gntst.OKAY)


def unmapping_without_an_invalidation(patch):
    def unmap_grant_ref(self, domain, handle):
        mapping = self._mappings.get(domain, {}).pop(handle, None)
        if mapping is None:
            return Gntst.BAD_HANDLE
        domain.stage2.clear(mapping.ipa, 0x1000, hitless=False)
        yield True
        self._put(mapping)
        return Gntst.OKAY

    patch.setattr(GrantTable, "unmap_grant_ref", unmap_grant_ref)


def own_grant_mapped(patch):
    """What a domain maps of its own can be given up at one address and stay at the other."""
    made = GrantTable.map_grant_ref

    def map_grant_ref(self, domain, ipa, granter, reference, *, readonly):
        if granter is not domain:
            return (yield from made(self, domain, ipa, granter, reference, readonly=readonly))
        yield True
        entry = self._entries.get(domain, {}).get(reference)
        pa = entry and domain.stage2.to_pa(entry.ipa, write=True)
        if pa is None or entry.grantee != domain.domid or domain.stage2.extent(ipa) is not None:
            return Gntst.BAD_PAGE
        if not (grants.fits(domain, ipa, 0x1000) and domain.owned.covers(pa, 0x1000)):
            return Gntst.BAD_PAGE
        domain.stage2.fill(ipa, pa, 0x1000)
        self._frames.get(pa)
        mappings = self._mappings.setdefault(domain, {})
        mappings[len(mappings)] = grants._Mapping(entry, pa, ipa)
        return len(mappings) - 1

    patch.setattr(GrantTable, "map_grant_ref", map_grant_ref)


# Streams taken back, domains destroyed.


def _without(patch, kind):
    made = withdrawal.last_commands
    patch.setattr(
        withdrawal, "last_commands", lambda *a: [c for c in made(*a) if not isinstance(c, kind)]
    )


def stall_left_behind(patch):
    _without(patch, CmdStallTerm)


def entries_left_behind(patch):
    _without(patch, CmdTlbiS12Vmall)


def page_requests_left_behind(patch):
    _without(patch, CmdPriResp)


def only_stage_1_of_a_lost_stream(patch):
    patch.setattr(withdrawal, "CmdTlbiS12Vmall", CmdTlbiNhAll)


# Messages.


def message_to_a_machine_address(patch):
    patch.setattr(
        MessageBus, "write32",
        lambda self, ipa, value: self._domain.memory._memory.write32(ipa, value),
    )  # fmt: skip


def message_to_a_read_only_page(patch):
    def write32(self, ipa, value):
        pa = self._domain.stage2.to_pa(ipa)
        return pa is not None and self._domain.memory._memory.write32(pa, value)

    patch.setattr(MessageBus, "write32", write32)


# Physical queues.


def overflow_that_nobody_hears_of(patch):
    patch.setattr(EventWriter, "overflow", lambda self: None)


def overflow_that_stays(patch):
    made = QueueReader.step

    def step(self, budget):
        write, self._write = self._write, lambda name, value: write(name, value & ~(1 << 31))
        try:
            return made(self, budget)
        finally:
            self._write = write

    patch.setattr(QueueReader, "step", step)


def record_handed_on_twice(patch):
    made = Reports.event

    def event(self, host, record):
        made(self, host, record)
        made(self, host, record)

    patch.setattr(Reports, "event", event)


def reader_that_thinks_all_is_quiet(patch):
    """PROD is the same after two rounds of the queue."""

    class Reader(QueueReader):
        @property
        def _quiet(self):
            return self._last

        @_quiet.setter
        def _quiet(self, raw):
            if raw is not None or not hasattr(self, "_last"):
                self._last = raw

    patch.setattr("vsmmu.hypervisor.host_smmu.QueueReader", Reader)


# Found where everything is offered.
# A CMD_TLBI_S2_IPA that lacks the end of its range is met too seldom here, where few ranges take
# more than one command: test_stage2_changes.py finds it.
FAULTS: tuple[Fault, ...] = (
    combined_entries_stay,
    stage_2_entries_stay,
    pages_are_not_waited_for,
    one_smmu_is_enough,
    page_with_another_mapping,
    mapping_without_a_reference,
    page_as_it_was,
    page_kept_for_ever,
    grant_to_anybody,
    grant_to_write,
    read_only_mapping_that_writes,
    grant_passed_on,
    grant_that_never_ends,
    unmapping_without_an_invalidation,
    own_grant_mapped,
    stall_left_behind,
    entries_left_behind,
    page_requests_left_behind,
    only_stage_1_of_a_lost_stream,
    message_to_a_machine_address,
    message_to_a_read_only_page,
    overflow_that_nobody_hears_of,
    overflow_that_stays,
    record_handed_on_twice,
    reader_that_thinks_all_is_quiet,
)
