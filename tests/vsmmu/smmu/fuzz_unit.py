# SPDX-License-Identifier: BSD-2-Clause
"""One SMMU under the fuzzer: its driver, its devices, and what must hold of it at any time."""

from __future__ import annotations

from collections import Counter
from random import Random

from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.registers import QueueBase, Register, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.memory import Memory
from vsmmu.queue import Ring
from vsmmu.smmu import Access, DevicePort, Outcome, Smmu
from vsmmu.smmu.ats import ATC_ENTRIES, PENDING_INVALIDATIONS, AtsPort
from vsmmu.smmu.config import CACHING, DEFERRED, Caching
from vsmmu.smmu.eventq import PENDING_EVENTS
from vsmmu.smmu.pri import PENDING_REQUESTS
from vsmmu.smmu.regfile import register_at
from vsmmu.smmu.stall import HELD, Stalled
from vsmmu.smmu.strtab import StreamTable
from vsmmu.smmu.tlb import TLB_ENTRIES, Tlb
from vsmmu.smmu.transaction import CD, READ
from vsmmu.smmu.translate import PRIVATE
from vsmmu.smmu.walk import Walker
from vsmmu.trace import Trace

from .fuzz_words import RAM, Words

REGISTERS = {r.name: r for r in EVERY_REGISTER}
OFFSETS = sorted({r.offset & 0xFFFF for r in EVERY_REGISTER} | {r.offset for r in EVERY_REGISTER})
# StreamIDs of commands; an access may have others.
SIDS = [0, 1, 2, 3, 4, 5, 6, 7, 9, 70, 300, 1 << 20, (1 << 32) - 1]
DEVICES = 6

# Descriptors that hostile caches prefetch: an STE, whose L1STD alone is counted, and 16 CDs with
# their L1CDs, both behind a stage 2 of five levels.
PREFETCH = 1 + 16 * (1 + 2 * 5)
NEIGHBOURS, SPECULATED = 8 * PREFETCH, 64 * PREFETCH
READS = ("walk.ste", "walk.l1std", "walk.cd", "walk.l1cd", "walk.s1", "walk.s2")


class Unit:
    """One SMMU with its driver and its devices."""

    def __init__(self, name: str, random: Random, memory: Memory, words: Words) -> None:
        self.random, self.memory, self.words = random, memory, words
        self.caching = random.choice(["none", "none", "normal", "normal", "normal", "hostile"])
        self.irqs: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        trace = Trace(16) if random.random() < 0.1 else None
        self.smmu = Smmu(
            name, memory, words.features, trace=trace, irq=lambda line: self.irqs.update([line]),
            caching=self.caching, page0_alias=random.random() < 0.5,
        )  # fmt: skip
        if self.caching != "none":
            # Small caches, so that entries are evicted; structures that are read in pieces.
            room = random.choice([CACHING[self.caching].entries, 1, 2, 9])
            early = random.choice([255, 255, 1, 0b0101])
            self.smmu.config.caching = Caching(room, self.caching == "hostile", early)
            self.smmu.tlb.capacity = random.choice([TLB_ENTRIES, TLB_ENTRIES, 1, 5])
        hostile = self.caching == "hostile"
        self.neighbours, self.speculated = hostile * NEIGHBOURS, hostile * SPECULATED
        self.held: list[Stalled] = []
        self.ports: list[DevicePort] = [
            DevicePort(f"{name}d{sid}", self.smmu, sid, may_stall=bool(sid % 3)) for sid in range(4)
        ]
        self.ports += [AtsPort(f"{name}e{s}", self.smmu, s, pages=bool(s % 2)) for s in (4, 5)]
        self.before = Counter(self.smmu.counters)
        self.program()

    # The driver.

    def write(self, name: str, value: int) -> None:
        register: Register = REGISTERS[name]
        self.smmu.mmio_write(register.offset, register.width // 8, value)

    def program(self) -> None:
        """Set the SMMU up anew, mostly well."""
        random, words = self.random, self.words
        self.write("CR0", 0)
        self.write("IRQ_CTRL", 0)
        # Now and then one structure lies in another.
        own = words.places[:5]
        if random.random() < 0.1:
            own = [words.place() for _ in own]
        table, inner, *queues = own
        two_level = random.random() < 0.4
        self.write("STRTAB_BASE", StrtabBase.build(addr=table & (1 << 52) - 64).raw)
        cfg = StrtabBaseCfg.build(
            log2size=random.choice([0, 3, *[6] * 4, *[9] * 5, 16, 33]),
            split=random.choice([6, 8, 10, 3]), fmt=int(two_level),
        )  # fmt: skip
        self.write("STRTAB_BASE_CFG", cfg.raw)
        for queue, place in zip(("CMDQ", "EVENTQ", "PRIQ"), queues, strict=True):
            size = random.choice([0, 1, 3, 5, 5, 7, 7, 19])
            base = QueueBase.build(addr=place & (1 << 52) - 32, log2size=size)
            self.write(f"{queue}_BASE", base.raw)
            self.write(f"{queue}_PROD", 0)
            self.write(f"{queue}_CONS", 0)
        for name in ("GERROR", "EVENTQ", "PRIQ"):
            address = random.choice([0, words.place() + 8, random.choice(words.outside)])
            self.write(f"{name}_IRQ_CFG0", address)
            self.write(f"{name}_IRQ_CFG1", random.getrandbits(32))
        self.write("CR2", random.randrange(16))
        self.write("IRQ_CTRL", random.choice([7, 7, 0, 1]))
        table = StreamTable.of(self.smmu.regs).base
        if two_level:
            descriptor = L1Std.build(span=random.choice([4, 7]), l2ptr=inner)
            self.memory.write(table, bytes(descriptor))
            table = inner
        for sid in range(8):
            self.structures(table + Ste.size * sid)
        self.acknowledge()
        self.write("CR0", random.choice([0b11111, 0b11111, 0b01111, 0b11101]))

    def structures(self, place: int) -> None:
        """An STE, and CDs where it leads to."""
        random, words = self.random, self.words
        ste = words.ste()
        self.memory.write(place, bytes(ste))
        contexts = ste.s1ctxptr
        for stream in words.streams:
            if stream.ctxptr == contexts and stream.stage2 is not None and ste.config == 7:
                walker = Walker(self.memory, Tlb(Counter(), 0), Counter())
                found = walker.through_stage2(stream.stage2, 0, contexts, CD, READ)
                contexts = found if isinstance(found, int) else contexts
        if ste.s1fmt and ste.s1cdmax:
            inner = words.l1cd()
            self.memory.write(contexts, bytes(inner))
            if random.random() < 0.8:
                contexts = inner.l2ptr
        self.memory.write(contexts, b"".join(bytes(words.cd()) for _ in range(4)))

    def acknowledge(self) -> None:
        """Take errors and records note of; repair a command that was bad."""
        regs = self.smmu.regs
        if regs.gerror_active & 1:
            ring = self.ring()
            self.memory.write(ring.address(regs["CMDQ_CONS"]), bytes([0x46] + [0] * 15))
        self.write("GERRORN", regs["GERROR"])
        self.write("EVENTQ_CONS", regs["EVENTQ_PROD"])
        if self.smmu.features.pri:
            self.write("PRIQ_CONS", regs["PRIQ_PROD"])

    def ring(self) -> Ring:
        base = QueueBase(self.smmu.regs["CMDQ_BASE"])
        idr1, oas = self.smmu.features.idr1, self.smmu.features.oas
        return Ring.of(base.addr & (1 << oas) - 1, base.log2size, idr1.cmdqs, 16)

    def post(self) -> None:
        """Queue some commands."""
        if self.random.random() < 0.8:
            self.acknowledge()
        regs, ring = self.smmu.regs, self.ring()
        prod = regs["CMDQ_PROD"]
        for _ in range(self.random.choice([1, 1, 3])):
            if not ring.is_full(prod, regs["CMDQ_CONS"]):
                self.memory.write(ring.address(prod), bytes(self.words.command(SIDS)))
                prod = ring.advance(prod)
        self.write("CMDQ_PROD", prod)

    def poke(self) -> None:
        """Any register, at any offset, in any size."""
        random = self.random
        chance = random.random()
        if chance < 0.7:
            offset = random.choice(OFFSETS) + random.choice([0, 0, 0, 0, 4, 1, -4])
        else:
            offset = random.choice([random.randrange(-64, 0x3_0000), -random.getrandbits(70)])
        size = random.choice([4, 4, 4, 8, 8, 0, 1, 2, 3, 16])
        value = random.choice([self.words.number(), random.getrandbits(32), -1, 1 << 80])
        self.smmu.mmio_write(offset, size, value)
        found = self.smmu.mmio_read(offset, size)
        assert 0 <= found < 1 << 8 * max(size, 1)
        assert register_at(offset)

    # Devices.

    def sid(self) -> int:
        random = self.random
        if random.random() < 0.97:
            return random.randrange(min(8, 1 << self.smmu.features.idr1.sidsize))
        return random.choice([*SIDS, -1, 1 << 33, random.getrandbits(32)])

    def iova(self) -> int:
        random = self.random
        kind = random.randrange(16)
        if kind < 11:
            return random.getrandbits(random.choice([12, 13, 16, 20, 24, 30, 38]))
        if kind < 12:
            return -random.getrandbits(random.choice([13, 22, 30, 38])) & (1 << 64) - 1
        if kind == 12:
            return random.getrandbits(8) << 56 | random.getrandbits(24)
        if kind == 13:
            return self.words.number()
        return random.choice([RAM + random.getrandbits(18), -5, random.getrandbits(70), 1 << 55])

    def ssid(self) -> int | None:
        return self.random.choice([None] * 80 + [0, 1, 1, 2, 2, 5, 1 << 20, -1])

    def access(self) -> Access:
        r = self.random.randrange(16)
        return Access(
            self.sid(), self.iova(), bool(r & 1), r & 6 == 6, bool(r & 8), self.ssid()
        )  # fmt: skip

    def transact(self) -> None:
        """An access of a device that waits for the end of a stall."""
        self.held = [item for item in self.held if item.fate == HELD]
        if len(self.held) < DEVICES:
            found = self.smmu.transact(self.access())
            if isinstance(found, Stalled):
                self.held.append(found)
            else:
                self.judge(found)

    def judge(self, outcome: Outcome) -> None:
        translated = outcome.status in ("ok", "bypass")
        assert translated or outcome.status in ("abort", "fault", "razwi")
        assert (outcome.pa is not None) == translated
        assert outcome.event is None or not translated
        if outcome.event is not None:
            self.seen[outcome.event.name] += 1
        if outcome.pa is not None:
            assert 0 <= outcome.pa < 1 << self.smmu.features.oas
            assert outcome.perms

    def agree(self, seen: Counter[str]) -> None:
        """`translate_many` is `translate`, on memory as it was; without a TLB."""
        smmu, random = self.smmu, self.random
        access = self.access()
        count = random.choice([1, 1, 3, 40])
        iovas = [self.iova() & (1 << 64) - 1 for _ in range(count)]
        saved = bytes(self.memory._arena)
        first = smmu.counters["httu.af"] + smmu.counters["httu.dirty"]
        batch = smmu.translate_many(
            access.sid, iovas, write=access.write, instr=access.instr, priv=access.priv,
            ssid=access.ssid,
        )  # fmt: skip
        for lane in range(count):
            self.judge(batch.outcome(lane))
        if self.caching != "none":
            return
        updates = smmu.counters["httu.af"] + smmu.counters["httu.dirty"] - first
        after = bytes(self.memory._arena)
        assert updates or after == saved
        if updates and count > 1:
            # Tables that lie in each other: the order of updates decides.
            return
        self.memory._arena[:] = saved
        for lane, iova in enumerate(iovas):
            assert batch.outcome(lane) == smmu.translate(access._replace(iova=iova)), hex(iova)
            seen[f"agreed {batch.outcome(lane).status}"] += 1
        assert bytes(self.memory._arena) == after

    def dma(self) -> None:
        random = self.random
        port = random.choice(self.ports)
        size = random.choice([1, 4, 64, 5000])
        iova = min(self.iova() & (1 << 64) - 1, (1 << 64) - size)
        if port.pending < 20:
            priv, ssid = random.random() < 0.3, self.ssid()
            if random.random() < 0.5:
                port.read(iova, size, instr=random.random() < 0.2, priv=priv, ssid=ssid)
            else:
                port.write(iova, random.randbytes(min(size, 9)), priv=priv, ssid=ssid)

    # What must hold.

    def grown(self, *names: str) -> int:
        """How much these counters are above what they were at the last check."""
        counters = self.smmu.counters
        return sum(counters[name] - self.before[name] for name in names)

    def reads(self, bound: int) -> None:
        found = self.grown(*READS)
        assert found <= bound, (self.caching, found, bound)

    def check(self) -> None:
        counters = self.smmu.counters
        for name, value in self.before.items():
            assert counters[name] >= value, name
        self.before = Counter(counters)

    def check_bounds(self) -> None:
        smmu, config = self.smmu, self.smmu.config
        entries = config.caching.entries
        assert len(smmu.tlb) <= smmu.tlb.capacity <= TLB_ENTRIES
        assert len(smmu.tlb) == sum(1 for _ in smmu.tlb)
        assert len(smmu.tlb._order) <= 4 * smmu.tlb.capacity
        fetch, early = config._fetch, config._early._held
        for cache in (config._streams, config._contexts, fetch.l1stds, fetch.l1cds, early):
            assert len(cache) <= entries
        for cache in (config._contexts, fetch.l1cds, early):
            assert len(cache) == sum(len(inner) for inner in cache.entries.values())
        assert len(config.deferred) <= DEFERRED
        assert len(smmu.private) <= PRIVATE
        assert smmu.eventq.pending <= PENDING_EVENTS
        assert len(smmu._merger._waiting) <= PENDING_EVENTS
        assert len(smmu.stalls) <= len(self.ports) + DEVICES
        assert smmu.stalls.unwritten <= len(smmu.stalls._tagged) <= smmu.features.idr5.stall_max
        assert len(smmu.stalls._kinds) == len(smmu.stalls._tagged)
        assert len(smmu.ats._sent) <= PENDING_INVALIDATIONS
        assert len(smmu.priq._pending) <= PENDING_REQUESTS
        assert len(counters := smmu.counters) < 120, sorted(counters)
        for port in self.ports:
            if isinstance(port, AtsPort):
                assert len(port.atc) <= ATC_ENTRIES
                assert len(port.responses) <= ATC_ENTRIES
                assert len(port._invalidations) <= PENDING_INVALIDATIONS
