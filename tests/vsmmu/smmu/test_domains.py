# SPDX-License-Identifier: BSD-2-Clause
"""Domains over two SMMUs: random map, unmap, attach, detach, invalidate and access.

A driver with real STEs, CDs, tables and commands against dictionaries of what it set up. Before
the CMD_SYNC of an invalidation an access may get what was there since the last one; after it, what
the dictionaries say and nothing else (IHI 0070 §3.17, §3.21.3, §4.7.3). Without caches that is so
at every moment.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from vsmmu.memory import PAGE

from .domains import ABORT, BYPASS, INVALID, MIB2, PAGES, PAS, SSIDS, Domain, Master, SteValue
from .driver import Driver

DOMAINS = st.integers(0, 9)
MASTERS = st.integers(0, 3)
PAGE_OF = st.integers(0, len(PAGES) - 1)
FLAGS = st.booleans()
# What follows an unmap.
HOW = ("posted", "synced", "all", "ends", "none")


class DomainMachine(RuleBasedStateMachine):
    """The rules; `caching` is that of both SMMUs."""

    caching = "normal"

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(self.caching)
        self.masters = self.driver.masters
        self.domains = self.driver.domains
        self.fill(0)

    # Translations.

    @rule(seed=st.integers(0, 255))
    def fill(self, seed: int) -> None:
        """Something everywhere, so that there is much to serve."""
        random = Random(seed)
        self.driver.how = seed % 3
        self.probe(False)
        for master in self.masters:
            fitting = [d for d in self.domains if master.smmu in d.smmus]
            first = random.choice(fitting)
            others = [d for d in fitting if d.stage == 1 and d.parent is first.parent]
            cds = {1: random.choice([*others, None]), 2: random.choice([*others, None])}
            self.attach_all(master, first, cds)
        for domain in self.domains:
            for page in PAGES:
                size = MIB2 if random.random() < 0.4 else PAGE
                self.put(domain, page, random.randrange(8), size, writable=random.random() < 0.7)
        self.access_all()

    def put(self, domain: Domain, page: int, goal: int, size: int, *, writable: bool) -> None:
        output = PAGES[goal % len(PAGES)] if domain.parent else PAS[goal % 3] + PAGE * (goal // 3)
        self.driver.map(domain, page, output, size, writable=writable)

    @rule(d=DOMAINS, page=PAGE_OF, goal=st.integers(0, 7), block=FLAGS, writable=FLAGS)
    def map(self, d: int, page: int, goal: int, block: bool, writable: bool) -> None:
        size = MIB2 if block else PAGE
        self.put(self.domains[d], PAGES[page], goal, size, writable=writable)

    @rule(
        d=DOMAINS, page=PAGE_OF, count=st.integers(1, 4),
        how=st.sampled_from(HOW),
    )  # fmt: skip
    def unmap(self, d: int, page: int, count: int, how: str) -> None:
        """Some neighbours at a time, with one invalidation for them all."""
        domain = self.domains[d]
        self.look_at(domain)
        found = [self.driver.unmap(domain, p) for p in PAGES[page : page + count]]
        spans = [span for span in found if span is not None]
        if not spans:
            return
        if how == "all":
            self.driver.tlbi_domain(domain)
        elif how == "ends":
            # The last page of a block stands for all of it.
            for _, high in spans:
                self.driver.tlbi(domain, high + 1 - PAGE, high)
        elif how != "none":
            sizes = {high + 1 - low for low, high in spans}
            # The level of the leaves, where a driver knows it.
            ttl = {PAGE: 3, MIB2: 2}[sizes.pop()] if len(sizes) == 1 else 0
            low, high = min(spans)[0], max(spans)[1]
            self.driver.tlbi(domain, low, high, ttl=ttl, sync=how == "synced")
        self.look_at(domain)

    @rule(d=DOMAINS)
    def clear(self, d: int) -> None:
        """A batch: an invalidation for each leaf of a domain, and one CMD_SYNC."""
        domain = self.domains[d]
        self.look_at(domain)
        for page in PAGES:
            span = self.driver.unmap(domain, page)
            if span is not None:
                self.driver.tlbi(domain, *span, sync=False)
        for smmu in sorted(domain.smmus):
            self.driver.sync(smmu)
        self.look_at(domain)

    @rule(d=DOMAINS, page=PAGE_OF, goal=st.integers(0, 7), block=FLAGS, writable=FLAGS)
    def remap(self, d: int, page: int, goal: int, block: bool, writable: bool) -> None:
        """Break before make."""
        self.unmap(d, page, 1, "synced")
        self.map(d, page, goal, block, writable)
        self.look_at(self.domains[d])

    # Configuration.

    def probe(self, probing: bool) -> None:
        """Whether the device comes between the steps of a change."""

        def probe(master: Master) -> None:
            if probing:
                self.look(master)

        self.driver.probe = probe

    def attach_all(
        self, master: Master, domain: Domain, cds: dict[int, Domain | None], *, finish: bool = True
    ) -> None:
        if domain.stage == 2:
            self.driver.attach(master, SteValue("s2", domain), {}, finish=finish)
        else:
            ste = SteValue("cds", domain.parent)
            self.driver.attach(master, ste, {**cds, 0: domain}, finish=finish)

    @rule(how=st.integers(0, 2))
    def prefer(self, how: int) -> None:
        self.driver.how = how

    @rule(m=MASTERS, d=DOMAINS, finish=FLAGS, probing=FLAGS)
    def attach(self, m: int, d: int, finish: bool, probing: bool) -> None:
        master = self.masters[m]
        fitting = [domain for domain in self.domains if master.smmu in domain.smmus]
        self.probe(probing)
        self.attach_all(master, fitting[d % len(fitting)], {}, finish=finish)

    @rule(m=MASTERS, to=st.sampled_from([INVALID, ABORT, BYPASS]), finish=FLAGS, probing=FLAGS)
    def detach(self, m: int, to: SteValue, finish: bool, probing: bool) -> None:
        master = self.masters[m]
        self.probe(probing)
        if to == INVALID or master.ste in (ABORT, BYPASS):
            self.driver.switch(master, to)
            if finish:
                self.driver.settle(master)
        else:
            self.driver.attach(master, to, {}, finish=finish)

    @rule(m=MASTERS, ssid=st.integers(0, 2), d=st.none() | DOMAINS, finish=FLAGS, probing=FLAGS)
    def bind(self, m: int, ssid: int, d: int | None, finish: bool, probing: bool) -> None:
        master = self.masters[m]
        if master.ste.kind != "cds":
            return
        fitting = [x for x in self.domains if x.stage == 1 and x.parent is master.ste.domain]
        fitting = [x for x in fitting if master.smmu in x.smmus]
        domain = None if d is None else fitting[d % len(fitting)]
        self.probe(probing)
        self.driver.bind(master, ssid, domain, finish=finish)

    @rule(d=DOMAINS)
    def renew(self, d: int) -> None:
        """A domain that nothing uses any more goes, and its ASID or VMID comes back empty."""
        domain = self.domains[d]
        self.driver.tick()
        used = {c for m in self.masters for c in (m.ste.domain, *m.cds.values())}
        for allowed in self.driver.allowed:
            used |= {s.domain for stes in allowed.stes.values() for s in stes}
            used |= {c for cds in allowed.cds.values() for c in cds}
        if domain not in used:
            self.driver.renew(domain)

    # Invalidation, and its end.

    @rule(d=DOMAINS, page=PAGE_OF, pages=st.integers(1, 31), sync=FLAGS)
    def invalidate_range(self, d: int, page: int, pages: int, sync: bool) -> None:
        low = PAGES[page] - pages // 2 * PAGE
        self.driver.tlbi(self.domains[d], low, low + pages * PAGE - 1, sync=sync)
        self.look_at(self.domains[d])

    @rule(d=DOMAINS, sync=FLAGS)
    def invalidate_domain(self, d: int, sync: bool) -> None:
        self.driver.tlbi_domain(self.domains[d], sync=sync)
        self.look_at(self.domains[d])

    @rule(m=MASTERS, how=st.integers(0, 2))
    def invalidate_ste(self, m: int, how: int) -> None:
        self.driver.cfgi_ste(self.masters[m], how)

    @rule(m=MASTERS, ssid=st.none() | st.integers(0, 2))
    def invalidate_cd(self, m: int, ssid: int | None) -> None:
        self.driver.cfgi_cd(self.masters[m], ssid)

    @rule(smmu=st.integers(0, 1))
    def sync(self, smmu: int) -> None:
        self.driver.sync(smmu)

    @rule()
    def quiesce(self) -> None:
        """Invalidate everything: then there is one answer to each access."""
        for smmu in (0, 1):
            self.driver.tlbi_all(smmu)
            for master in self.masters:
                if master.smmu == smmu:
                    self.driver.cfgi_ste(master, 2)
            self.driver.sync(smmu)
        assert self.look() == 0

    # Accesses.

    @rule(m=MASTERS, ssid=st.sampled_from(SSIDS), page=PAGE_OF, write=FLAGS)
    def access(self, m: int, ssid: int | None, page: int, write: bool) -> None:
        self.driver.tick()
        for sid in self.masters[m].sids:
            self.check(self.masters[m], sid, ssid, PAGES[page], write=write)

    @rule()
    def access_all(self) -> None:
        self.look()

    def look_at(self, domain: Domain) -> None:
        """All masters that use a domain."""
        users = [m for m in self.masters if domain in (m.ste.domain, *m.cds.values())]
        if users:
            self.look(*users)

    def look(self, *masters: Master) -> int:
        """Every stream, substream and page of masters, or of all; how many had several answers."""
        self.driver.tick()
        loose = 0
        for master in masters or self.masters:
            for sid in master.sids:
                for ssid in SSIDS:
                    for i, page in enumerate(PAGES):
                        write = bool(i + self.driver.now & 1)
                        loose += self.check(master, sid, ssid, page, write=write)
            self.driver.machines[master.smmu].events()
        return loose

    def check(self, master: Master, sid: int, ssid: int | None, page: int, *, write: bool) -> bool:
        outcome = self.driver.machines[master.smmu].go(sid, page, write=write, ssid=ssid)
        answer: int | str = outcome.status if outcome.pa is None else outcome.pa
        if outcome.event is not None:
            answer = outcome.event.name
            if answer == "F_TRANSLATION" and getattr(outcome.event, "s2", False):
                answer += " s2"
        allowed = self.driver.allowed[master.smmu]
        exact = allowed.exact(master, ssid, page, write=write)
        answers = allowed.answers(master, sid, ssid, page, write=write)
        assert exact in answers
        if self.caching == "none":
            answers = {exact}
        assert answer in answers
        return len(answers) > 1


class UncachedMachine(DomainMachine):
    caching = "none"


class HostileMachine(DomainMachine):
    caching = "hostile"


MACHINES = {"none": UncachedMachine, "normal": DomainMachine, "hostile": HostileMachine}
QUICK = {"none": 3, "normal": 4, "hostile": 5}


def run(caching: str, examples: int, steps: int, *, derandomize: bool) -> None:
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
        derandomize=derandomize, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(MACHINES[caching], settings=chosen)


@pytest.mark.parametrize("caching", MACHINES)
def test_every_domain_in_turn(caching: str) -> None:
    machine = MACHINES[caching]()
    machine.quiesce()
    for d, domain in enumerate(machine.domains):
        for master in machine.masters:
            if master.smmu in domain.smmus:
                machine.attach_all(master, domain, {})
        for config in range(3):
            machine.prefer(config)
            for m in range(4):
                machine.bind(m, 1, d, True, True)
                machine.bind(m, 1, None, True, True)
        machine.clear(d)
        for how in HOW:
            for block in (True, False):
                machine.map(d, 0, 0, block, True)
                machine.unmap(d, 0, 1, how)
        machine.quiesce()


@pytest.mark.parametrize("caching", MACHINES)
def test_nothing_stale_after_the_sync(caching: str) -> None:
    run(caching, QUICK[caching], 40, derandomize=True)


@pytest.mark.soak
@pytest.mark.parametrize("caching", MACHINES)
def test_nothing_stale_soak(caching: str) -> None:
    run(caching, 100, 80, derandomize=False)
