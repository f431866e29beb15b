# SPDX-License-Identifier: BSD-2-Clause
"""The small parts against brute-force references: rings, memory, pages, scheduler, stage 2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsmmu.arch.registers import BY_NAME, Cr0, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.pages import OutOfMemoryError, PageAllocator
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import PAGE, Memory
from vsmmu.queue import Ring
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access

BASE = 0x8000_0000
SLICE = settings(max_examples=100, deadline=None, derandomize=True)


# Rings, against counters that never wrap.


@SLICE
@given(st.integers(0, 19), st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=40))
def test_a_ring_against_infinite_counters(log2size, moves):
    ring = Ring(log2size, 16, 0x1000)
    produced = consumed = 0
    prod = cons = 0
    for produce, count in moves:
        if produce:
            count = min(count, ring.size - (produced - consumed))
            produced, prod = produced + count, ring.advance(prod, count)
        else:
            count = min(count, produced - consumed)
            consumed, cons = consumed + count, ring.advance(cons, count)
        assert ring.used(prod, cons) == ring.pending(prod, cons) == produced - consumed
        assert ring.is_full(prod, cons) == (produced - consumed == ring.size)
        assert ring.address(prod) == 0x1000 + 16 * (produced % ring.size)


@SLICE
@given(st.integers(0, 19), st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 20) - 1))
def test_inconsistent_registers_process_nothing_and_count_as_full(log2size, prod, cons):
    ring = Ring(log2size, 16, 0)
    entries = ring.clip(prod - cons)
    if entries > ring.size:
        assert ring.pending(prod, cons) == 0
        assert ring.is_full(prod, cons)
    else:
        assert ring.pending(prod, cons) == entries


def test_ring_of_a_base_register_is_capped_and_aligned():
    assert Ring.of(0x1234_5678, 31, 8, 16) == Ring(8, 16, 0x1234_5000)
    assert Ring.of(0x1234_567F, 0, 8, 16) == Ring(0, 16, 0x1234_5660)


# Memory, against a dict of bytes.


ADDRESS = st.one_of(
    st.integers(BASE - 16, BASE + 3 * PAGE), st.integers(BASE + 0x10_0000 - 16, BASE + 0x10_1010)
)


@SLICE
@given(st.lists(st.tuples(ADDRESS, st.binary(min_size=1, max_size=5000)), max_size=12))
def test_memory_against_a_dict(writes):
    regions = [(BASE, 2 * PAGE), (BASE + 0x10_0000, PAGE)]
    memory, reference = Memory(regions), {}
    ram = {a for base, size in regions for a in range(base, base + size)}
    for address, data in writes:
        span = range(address, address + len(data))
        assert memory.write(address, data) == all(a in ram for a in span)
        if all(a in ram for a in span):
            reference.update(zip(span, data, strict=True))
    for base, size in regions:
        wanted = bytes(reference.get(a, 0) for a in range(base, base + size))
        assert memory.read(base, size) == wanted
        for offset in range(0, size, 512):
            word = int.from_bytes(wanted[offset : offset + 8], "little")
            assert memory.read64(base + offset) == word
    assert memory.read(BASE + 2 * PAGE - 4, 8) is None
    assert memory.read64(BASE - 8) is None


@SLICE
@given(st.dictionaries(st.integers(0, 200), st.integers(0, (1 << 64) - 1), max_size=80))
def test_the_arrays_are_what_scalar_reads_see(words):
    memory = Memory([(BASE, 256 * PAGE)])
    for page, word in words.items():
        assert memory.write64(BASE + page * PAGE + 8, word)
    arena, frames, index = memory.arrays()
    assert list(frames) == sorted(BASE // PAGE + page for page in words)
    for frame, first in zip(frames, index, strict=True):
        assert int(arena[int(first) + 1]) == memory.read64(int(frame) * PAGE + 8)


@pytest.mark.parametrize(
    ("regions", "text"),
    [
        ([(0, 100)], "RAM 0x0+0x64 is not made of 4 KiB pages"),
        ([(0, 0x2000), (0x1000, 0x1000)], "RAM at 0x1000 overlaps RAM at 0x0"),
    ],
)
def test_bad_regions(regions, text):
    with pytest.raises(ValueError, match="RAM") as caught:
        Memory(regions)
    assert str(caught.value) == text


# Pages.


@SLICE
@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 16])), max_size=30))
def test_pages_are_given_out_once_and_come_back(requests):
    allocator = PageAllocator([(0, 64 * PAGE), (0x100_0000, 64 * PAGE)])
    before, held = allocator.left, []
    assert before == 127 * PAGE, "the page at 0 is never given out"
    for pages, align in requests:
        try:
            base = allocator.allocate(pages * PAGE, align * PAGE)
        except OutOfMemoryError:
            continue
        assert base % (align * PAGE) == 0
        span = (base, base + pages * PAGE)
        assert all(span[1] <= a or b <= span[0] for a, b in held)
        held.append(span)
    assert allocator.left == before - sum(b - a for a, b in held)
    for a, b in held:
        allocator.free(a, b - a)
    assert allocator.left == before
    assert allocator.allocate(63 * PAGE) == PAGE


# The scheduler.


class Counter:
    """An engine with so much work."""

    def __init__(self, name: str, work: int, log: list[str]) -> None:
        self.name, self.work, self.log = name, work, log

    def step(self, budget: int) -> int:
        done = min(budget, self.work)
        self.work -= done
        self.log.extend([self.name] * done)
        return done


def run(seed: int) -> tuple[list[str], int]:
    log: list[str] = []
    scheduler = Scheduler(seed, budget=3)
    for name, work in (("a", 50), ("b", 7), ("c", 0)):
        scheduler.add(Counter(name, work, log))
    assert scheduler.run_until_idle()
    return log, scheduler.now


def test_one_seed_is_one_order_and_other_seeds_are_others():
    assert run(5) == run(5)
    assert len({tuple(run(seed)[0]) for seed in range(10)}) > 5
    for seed in range(10):
        log, now = run(seed)
        assert (log.count("a"), log.count("b"), now) == (50, 7, 57)


def test_round_robin_starves_nobody():
    log, _ = run(0)
    assert log[:12] == ["a"] * 3 + ["b"] * 3 + ["a"] * 3 + ["b"] * 3


def test_work_without_end_is_told():
    class Busy:
        name = "busy"

        def step(self, budget: int) -> int:
            return 1

    scheduler = Scheduler()
    scheduler.add(Busy())
    assert not scheduler.run_until_idle(1000)


# Stage 2, against a dict of pages, and walked by the physical SMMU.


def stage2_smmu(memory: Memory, stage2: Stage2) -> Smmu:
    """An SMMU without caches whose StreamID 0 goes through this stage 2 alone."""
    smmu = Smmu("smmu", memory, Features.default(sidsize=0), caching="none")
    strtab = BASE + 0xF_0000
    ste = Ste.build(v=1, config=SteConfig.S2, s2vmid=1, **stage2.ste_fields)
    memory.write_words(strtab, ste.words)
    for name, value in (
        ("STRTAB_BASE", StrtabBase.build(addr=strtab).raw),
        ("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=0).raw),
        ("CR0", Cr0.build(smmuen=1).raw),
    ):
        register = BY_NAME[name]
        smmu.mmio_write(register.offset, register.width // 8, value)
    return smmu


SPAN = st.tuples(
    st.sampled_from(["map", "map", "ro", "unmap"]),
    st.sampled_from([0, 0x1F_F000, 0x20_0000, 0x3FFF_F000, 0x4000_0000, 0x60_0000]),
    st.sampled_from([1, 2, 511, 512, 513, 1024]),
    st.sampled_from([0, 0x20_0000, 0x1000]),
)


@SLICE
@given(st.sampled_from([32, 36, 40, 42, 44, 48]), st.lists(SPAN, min_size=1, max_size=8))
def test_stage_2_against_a_dict_of_pages(ipa_bits, spans):
    memory = Memory([(BASE, 0x100_0000)])
    allocator = PageAllocator([(BASE + 0x10_0000, 0xF0_0000)])
    stage2 = Stage2(memory, allocator, ipa_bits=ipa_bits, oas=5)
    reference: dict[int, tuple[int, bool]] = {}
    for action, ipa, pages, offset in spans:
        frames = range(pages)
        if action == "unmap":
            stage2.unmap(ipa, pages * PAGE)
            for i in frames:
                reference.pop(ipa + i * PAGE, None)
        else:
            pa = 0x10_0000_0000 + ipa + offset
            stage2.map(ipa, pa, pages * PAGE, write=action == "map")
            for i in frames:
                reference[ipa + i * PAGE] = (pa + i * PAGE, action == "map")
    smmu = stage2_smmu(memory, stage2)
    edges = {page + delta for page in list(reference)[::97] for delta in (-PAGE, 0, PAGE)}
    for page in sorted({0, 0x20_0000, 0x4000_0000, *edges}):
        if page < 0:
            continue
        pa, write = reference.get(page, (None, False))
        assert stage2.to_pa(page + 5) == (None if pa is None else pa + 5)
        assert stage2.to_pa(page, write=True) == (pa if write else None)
        outcome = smmu.translate(Access(0, page + 5, False))
        assert outcome.pa == (None if pa is None else pa + 5)
        assert (smmu.translate(Access(0, page, True)).pa == pa) == (write or pa is None)
    mapped = {ipa + i: pa + i for ipa, pa, n in stage2.mappings() for i in range(0, n, PAGE)}
    assert mapped == {page: pa for page, (pa, _) in reference.items()}


@pytest.mark.parametrize("ipa_bits", [32, 36, 40, 42, 44, 48])
def test_stage_2_ends_at_its_size(ipa_bits):
    memory = Memory([(BASE, 0x100_0000)])
    allocator = PageAllocator([(BASE + 0x10_0000, 0xF0_0000)])
    stage2 = Stage2(memory, allocator, ipa_bits=ipa_bits, oas=5)
    last = (1 << ipa_bits) - PAGE
    stage2.map(last, 0x1000, PAGE)
    smmu = stage2_smmu(memory, stage2)
    assert smmu.translate(Access(0, last, True)).pa == stage2.to_pa(last) == 0x1000
    assert stage2.to_pa(1 << ipa_bits) is None
    event = smmu.translate(Access(0, 1 << ipa_bits, True)).event
    assert event is not None
    # An input beyond the SMMU's own IAS (48 bits here) is F_ADDR_SIZE before stage 2 (§3.4).
    assert event.name == ("F_TRANSLATION" if ipa_bits < 48 else "F_ADDR_SIZE")
    with pytest.raises(ValueError, match="is out of range"):
        stage2.map(last, 0x1000, 2 * PAGE)
