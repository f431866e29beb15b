# SPDX-License-Identifier: BSD-2-Clause
"""A world for the fuzzer: SMMUs that share a hostile memory, and what must hold after each step."""

from __future__ import annotations

from collections import Counter
from random import Random

from vsmmu.memory import PAGE, Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.ats import AtsPort, TranslationRequest
from vsmmu.smmu.config import DEFERRED

from .fuzz_unit import SIDS, Unit
from .fuzz_words import RAM, Words, features

# Pages: of tables, and for each SMMU of everything else. Work of an engine in one turn.
TABLES, PLACES, TURN = 32, 9, 4
BROADCASTS = ("VAE1", "VALE1", "VAAE1", "VAALE1", "ASIDE1", "VMALLE1", "VMALLS12E1", "ALLE1",
              "IPAS2E1", "VAE2", "ALLE2")  # fmt: skip
# Descriptors that one thing may read. Walks have five levels at most; stage 2 translates each
# descriptor of stage 1, the update of the last one, and the result; and a CD with its L1CD.
LEVELS = 5
WALK = LEVELS + LEVELS * (LEVELS + 2)
CONFIGURATION = 4 + 2 * LEVELS
ACCESS = CONFIGURATION + WALK
REQUEST = CONFIGURATION + 2 * WALK
FATES = ("txn.ok", "txn.bypass", "txn.abort", "txn.fault", "txn.razwi", "txn.stall")
ANSWERS = ("ats.success", "ats.ur", "ats.ca")


class World:
    """Memory full of tables, SMMUs, and a scheduler; everything follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        far = random.choice([RAM + (1 << 20), 1 << 36, 1 << 44])
        units = random.choice([1, 1, 2, 3])
        count = TABLES + PLACES * units
        self.memory = Memory([(RAM, count * PAGE), (far, 2 * PAGE)])
        pages = [RAM + PAGE * i for i in range(count)]
        outside = [far, far + PAGE, 0, PAGE, RAM - PAGE, RAM + count * PAGE, 1 << 33, 1 << 47,
                   (1 << 52) - PAGE]  # fmt: skip
        everything = []
        for i in range(units):
            places = pages[TABLES + PLACES * i : TABLES + PLACES * (i + 1)]
            everything.append(Words(random, features(random), pages[:TABLES], places, outside))
        for place in [*pages, far, far + PAGE]:
            self.memory.write(place, everything[0].table())
        self.pages = self.memory.pages
        self.units = [
            Unit(f"smmu{i}", random, self.memory, words) for i, words in enumerate(everything)
        ]
        self.scheduler = Scheduler(random.randrange(1, 1 << 30), TURN)
        for unit in self.units:
            for engine in (*unit.smmu.engines, *unit.ports):
                self.scheduler.add(engine)
        self.seen: Counter[str] = Counter()

    def step(self) -> None:
        """One register write, memory word, command, access or turn of the engines."""
        unit = self.random.choice(self.units)
        unit.check()
        self.random.choice(ACTIONS)(self, unit)

    def translate(self, unit: Unit) -> None:
        outcome = unit.smmu.translate(unit.access())
        unit.judge(outcome)
        assert unit.grown(*FATES) == 1
        unit.reads(ACCESS + unit.neighbours)
        self.seen[outcome.status] += 1

    def transact(self, unit: Unit) -> None:
        unit.transact()
        assert unit.grown(*FATES) <= 1
        unit.reads(ACCESS + unit.neighbours)

    def translated(self, unit: Unit) -> None:
        outcome = unit.smmu.translated(unit.access())
        assert unit.grown("ats.translated") == 1
        unit.reads(ACCESS + unit.neighbours)
        self.seen[f"translated {outcome.status}"] += 1

    def request(self, unit: Unit) -> None:
        flags = [self.random.random() < 0.5 for _ in range(3)]
        request = TranslationRequest(unit.sid(), unit.iova(), unit.ssid(), *flags)
        completion = unit.smmu.ats.request(request)
        assert unit.grown("ats.request") == unit.grown(*ANSWERS) == 1
        unit.reads(REQUEST + unit.neighbours)
        assert completion.address % completion.size == 0
        self.seen[f"request {completion.status.name}"] += 1

    def agree(self, unit: Unit) -> None:
        if self.random.random() < 0.3:
            unit.agree(self.seen)

    def broadcast(self, unit: Unit) -> None:
        random = self.random
        unit.smmu.broadcast_tlbi(
            random.choice(BROADCASTS), vmid=random.choice([0, 1, 7, random.getrandbits(17)]),
            asid=random.choice([0, 1, 2, random.getrandbits(17)]), address=unit.iova(),
            size=random.getrandbits(random.choice([1, 66])), e2h=random.random() < 0.5,
        )  # fmt: skip

    def post(self, unit: Unit) -> None:
        unit.post()

    def poke(self, unit: Unit) -> None:
        unit.poke()
        unit.reads(unit.speculated)

    def corrupt(self, unit: Unit) -> None:
        place = self.random.choice([unit.words.place(), unit.words.page()])
        self.memory.write(place + 8 * self.random.randrange(512), unit.words.something(SIDS))

    def dma(self, unit: Unit) -> None:
        unit.dma()

    def page_request(self, unit: Unit) -> None:
        unit.smmu.priq.request(unit.words.pri_entry(self.random.choice(SIDS)))

    def revive(self, unit: Unit) -> None:
        if not unit.smmu.regs["CR0ACK"] & 1 or self.random.random() < 0.1:
            unit.program()
        for port in unit.ports:
            if isinstance(port, AtsPort):
                port.silent = self.random.random() < 0.2

    def work(self, unit: Unit) -> None:
        self.turns(self.random.randrange(1, 12) * len(self.units))

    def turns(self, count: int) -> None:
        for unit in self.units:
            unit.check()
        bound = 0
        for _ in range(count):
            bound += TURN * (1 + self.scheduler.step())
        for unit in self.units:
            unit.reads(bound * (REQUEST + ACCESS + (DEFERRED + 1) * unit.speculated))

    def run(self, steps: int) -> None:
        """Steps, and then the end of everything that is under way."""
        for i in range(steps):
            self.step()
            if i % 64 == 0:
                for unit in self.units:
                    unit.check_bounds()
        for unit in self.units:
            unit.write("CR0", 0)
            unit.write("GBPA", 1 << 31 | 1 << 20)
        assert self.scheduler.run_until_idle(20_000)
        assert self.memory.pages == self.pages
        for unit in self.units:
            unit.check_bounds()
            assert len(unit.smmu.stalls) == unit.smmu.eventq.pending == 0
            assert not any(p.pending for p in unit.ports if not isinstance(p, AtsPort))
            self.seen += unit.seen + unit.smmu.counters


# As often as they are here.
ACTIONS = (
    *[World.translate] * 7, *[World.transact] * 2, World.translated, *[World.request] * 2,
    World.agree, World.broadcast, *[World.post] * 4, *[World.poke] * 3, *[World.corrupt] * 4,
    World.dma, World.page_request, World.revive, *[World.work] * 4,
)  # fmt: skip
