# SPDX-License-Identifier: BSD-2-Clause
"""Domains that come, change and go while their devices do DMA, against a model.

Calls are queued and return some turns later; DMA is in flight all the time and the SMMUs keep
whatever they may keep. `Reach` judges every access and every page that goes back. The model knows
which IPAs each domain has and whose memory is behind them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from vsmmu.hypervisor import flush
from vsmmu.hypervisor.jobs import Job
from vsmmu.memory import PAGE
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort

from .reach import Reach
from .test_stage2_changes import no_sync, one_smmu, without
from .world import BUFFER, RAM, RAM_SIZE, Guest, World

IOVA = 0x1000_0000
WINDOW = 0x6000_0000
PAGES = 24
# Streams that anyone may have; each guest starts with the first two that are free.
STREAMS = [("a", 0x600), ("b", 0x600), ("a", 0x700), ("b", 0x701), ("c", 0x600), ("a", 0x601)]
GUESTS = st.integers(0, 1)
PAGE_NUMBERS = st.integers(0, PAGES - 1)
COUNTS = st.integers(1, 6)


@dataclass
class Known:
    """A guest as the model knows it; `calls` have not returned yet."""

    guest: Guest
    ports: dict[int, DevicePort]
    missing: set[int] = field(default_factory=set)
    grants: dict[int, int] = field(default_factory=dict)
    handles: dict[int, int] = field(default_factory=dict)
    calls: list[tuple[Job[Any], str, int]] = field(default_factory=list)


class Domains(RuleBasedStateMachine):
    """Two guests at a time, one physical memory, six streams."""

    @initialize(
        seed=st.integers(0, 1 << 16), budget=st.sampled_from([1, 4, 16]),
        bbml=st.sampled_from([0, 2]), ril=st.booleans(),
    )  # fmt: skip
    def start(self, seed: int, budget: int, bbml: int, ril: bool) -> None:
        features = Features.default(sidsize=16, aidr=1).replace(bbml=bbml, ril=int(ril))
        self.world = World({}, seed=seed, features=features, caching="hostile")
        self.world.scheduler.budget = budget
        self.hv = self.world.hypervisor
        self.reach = Reach(self.world)
        self.made = 0
        self.free = {(p, s): DevicePort(f"{p}{s:x}", self.world.smmus[p], s) for p, s in STREAMS}
        for port in self.free.values():
            self.world.scheduler.add(port)
        self.left = self.hv.pages.left
        self.known = [self._create(), self._create()]

    def _create(self) -> Known:
        self.made += 1
        keys = sorted(self.free)[:2]
        guest = Guest(self.world, f"d{self.made}", keys)
        for port in guest.ports:
            self.world.scheduler.remove(port)
        known = Known(guest, {i: self.free.pop(key) for i, key in enumerate(keys)})
        guest.ports = list(known.ports.values())
        guest.boot().attach(0)
        guest.map(0, IOVA, BUFFER, PAGES * PAGE)
        guest.map(0, IOVA + PAGES * PAGE, WINDOW, PAGES * PAGE)
        guest.run(guest.driver.bypass(1))
        return known

    def _queue(self, known: Known, job: Job[Any], what: str, page: int) -> None:
        self.reach.began(known.guest.domain, job)
        known.calls.append((job, what, page))

    # What guests and devices do.

    @rule(who=GUESTS, page=st.integers(0, 2 * PAGES - 1), write=st.booleans(), far=st.booleans())
    def dma(self, who: int, page: int, write: bool, far: bool) -> None:
        known = self.known[who]
        for number, port in known.ports.items():
            if number == 0:
                at = IOVA + page * PAGE
            elif page < PAGES:
                at = (RAM + (page * 37 % 1024) * PAGE) if far else BUFFER + page * PAGE
            else:
                at = WINDOW + (page - PAGES) * PAGE
            if port.pending < 100:
                if write:
                    port.write(at, b"\xd0" * 8)
                else:
                    port.read(at, 8)

    @rule(turns=st.integers(1, 60))
    def run(self, turns: int) -> None:
        self.world.scheduler.run(turns)
        for known in self.known:
            self._returned(known)

    @rule(who=GUESTS, page=PAGE_NUMBERS, count=COUNTS)
    def decrease(self, who: int, page: int, count: int) -> None:
        known = self.known[who]
        job = self.hv.hypercalls.decrease_reservation(
            known.guest.domain, BUFFER + page * PAGE, count * PAGE
        )
        self._queue(known, job, "decrease", page)

    @rule(who=GUESTS, page=PAGE_NUMBERS, count=COUNTS)
    def populate(self, who: int, page: int, count: int) -> None:
        known = self.known[who]
        job = self.hv.hypercalls.populate_physmap(
            known.guest.domain, BUFFER + page * PAGE, count * PAGE
        )
        self._queue(known, job, "populate", page)

    @rule(who=GUESTS, page=PAGE_NUMBERS, readonly=st.booleans())
    def grant(self, who: int, page: int, readonly: bool) -> None:
        """And map it in the other guest."""
        granter, mapper = self.known[who].guest.domain, self.known[1 - who]
        calls = self.hv.hypercalls
        ref = calls.grant_foreign_access(
            granter, mapper.guest.domain.domid, BUFFER + page * PAGE, readonly=readonly
        )
        job = calls.map_grant_ref(
            mapper.guest.domain, WINDOW + page * PAGE, granter.domid, ref, readonly=readonly
        )
        self._queue(mapper, job, "map", page)

    @rule(who=GUESTS, data=st.data())
    def unmap_grant(self, who: int, data: st.DataObject) -> None:
        known = self.known[who]
        if known.handles:
            page = data.draw(st.sampled_from(sorted(known.handles)))
            job = self.hv.hypercalls.unmap_grant_ref(known.guest.domain, known.handles.pop(page))
            self._queue(known, job, "unmap", page)

    def _returned(self, known: Known) -> None:
        """Take what has returned, in order, into the model."""
        while known.calls and known.calls[0][0].done:
            job, what, page = known.calls.pop(0)
            if what == "decrease":
                done = job.result // PAGE
                assert not known.missing & set(range(page, page + done))
                known.missing |= set(range(page, page + done))
            elif what == "populate":
                done = job.result // PAGE
                assert set(range(page, page + done)) <= known.missing
                known.missing -= set(range(page, page + done))
            elif what == "map" and job.result >= 0:
                known.handles[page] = job.result
            elif what == "unmap":
                assert job.result == 0

    # What the toolstack does.

    @rule(who=GUESTS, data=st.data())
    def unplug(self, who: int, data: st.DataObject) -> None:
        known = self.known[who]
        if known.ports:
            number = data.draw(st.sampled_from(sorted(known.ports)))
            stream = known.guest.vsmmu.streams[number]
            self.hv.deassign(known.guest.vsmmu, stream)
            self.free[stream.host.path, stream.pmaster_id] = known.ports.pop(number)

    @rule(who=GUESTS, data=st.data())
    def plug(self, who: int, data: st.DataObject) -> None:
        known = self.known[who]
        fit = sorted(self.free)
        number = next((i for i in range(2) if i not in known.ports), None)
        if fit and number is not None:
            key = data.draw(st.sampled_from(fit))
            self.hv.assign(known.guest.vsmmu, number, *key)
            known.ports[number] = self.free.pop(key)

    @rule(who=GUESTS)
    def destroy(self, who: int) -> None:
        known, job = self.known[who], self.hv.destroy_domain(self.known[who].guest.domain)
        domain = known.guest.domain
        self.reach.began(domain, job)
        keys = [(s.host.path, s.pmaster_id) for s in known.guest.vsmmu.streams.values()]
        self.hv.wait(job)
        for smmu in self.world.smmus.values():
            assert not any(tagged.vmid == domain.vmid for tagged in smmu.tlb)
        self.world.scheduler.remove(known.guest.vcpu)
        self.free |= dict(zip(keys, known.ports.values(), strict=True))
        self.known[who] = self._create()

    # What holds at all times.

    @invariant()
    def memory_has_one_owner(self) -> None:
        if not hasattr(self, "known"):
            return
        spans = sorted(span for k in self.known for span in k.guest.domain.owned)
        for (base, size), (after, _) in pairwise(spans):
            assert base + size <= after

    @invariant()
    def the_model_agrees(self) -> None:
        for known in getattr(self, "known", ()):
            self._returned(known)
            if known.calls:
                continue
            for page in range(PAGES):
                mapped = known.guest.domain.stage2.to_pa(BUFFER + page * PAGE) is not None
                assert mapped == (page not in known.missing)
            owned = known.guest.domain.owned.total
            assert owned == RAM_SIZE - len(known.missing) * PAGE

    def teardown(self) -> None:
        """All calls return, the devices come to rest, and nothing has been lost."""
        if not hasattr(self, "known") or self.reach.failed:
            return
        assert self.world.scheduler.run_until_idle()
        for known in self.known:
            self._returned(known)
            assert not known.calls
        for known in self.known:
            self.hv.wait(self.hv.destroy_domain(known.guest.domain))
        assert not self.hv.frames.held
        tables = sum(0x4000 * len(host.table._l2) for host in self.hv.hosts.values())
        assert self.left - self.hv.pages.left <= tables
        for host in self.hv.hosts.values():
            assert not [name for name in host.counters if name.startswith("CERROR")]


def search(examples: int, steps: int, *, shrink: bool = True) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Domains,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
            derandomize=True, suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        ),
    )  # fmt: skip


def test_domains_that_change_under_dma() -> None:
    search(8, 40)


@pytest.mark.soak
def test_domains_that_change_under_dma_soak() -> None:
    search(int(os.environ.get("VSMMU_EXAMPLES", "150")), 100)


@pytest.mark.soak
@pytest.mark.parametrize(
    "fault", [no_sync, one_smmu, without(flush.CmdTlbiS2Ipa)], ids=["sync", "smmu", "ipa"]
)
def test_the_search_finds_a_fault(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"still has|gone"):
        search(120, 60, shrink=False)
