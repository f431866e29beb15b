# SPDX-License-Identifier: BSD-2-Clause
"""No register write, memory content, command or access may raise, or take unbounded room."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsmmu.arch.commands import OPCODES
from vsmmu.arch.registers import BY_NAME
from vsmmu.memory import PAGE, Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu import Access, DevicePort, Features, Outcome, Smmu
from vsmmu.smmu.config import CONFIG_ENTRIES
from vsmmu.smmu.eventq import PENDING_EVENTS
from vsmmu.smmu.tlb import TLB_ENTRIES

from .machine import RAM, RAM_SIZE, Machine

OFFSETS = sorted(r.offset for r in BY_NAME.values())
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

word = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 3, 0xB, 0xD, 0xF, (1 << 64) - 1]),
    st.builds(lambda page, low: RAM + page * PAGE | low, st.integers(0, 15), st.integers(0, 0xFFF)),
    st.builds(
        lambda op, high: op | high << 32, st.sampled_from(sorted(OPCODES)), st.integers(0, 300)
    ),
)
register = st.tuples(
    st.just("w"), st.one_of(st.sampled_from(OFFSETS), st.integers(-4, 0x3_0000)),
    st.sampled_from([4, 8, 8, 4, 1, 3]), word,
)  # fmt: skip
memory_word = st.tuples(
    st.just("m"), st.builds(lambda page, slot: RAM + page * PAGE + 8 * slot,
                            st.integers(0, 15), st.integers(0, 511)), word, st.just(0),
)  # fmt: skip
access = st.tuples(
    st.just("a"), st.one_of(st.integers(0, 40), st.integers(-1, 1 << 33)),
    st.one_of(st.integers(0, 1 << 22), word, st.integers(-5, 1 << 70)), st.integers(0, 15),
)  # fmt: skip


def check_bounds(smmu: Smmu) -> None:
    assert len(smmu.tlb) <= TLB_ENTRIES
    assert len(smmu.config._streams) <= CONFIG_ENTRIES
    assert smmu.eventq.pending <= PENDING_EVENTS


def apply(smmu: Smmu, memory: Memory, step: tuple[str, int, int, int]) -> None:
    kind, a, b, c = step
    if kind == "w":
        smmu.mmio_write(a, b, c)
        assert smmu.mmio_read(a, b) >= 0
    elif kind == "m":
        memory.write64(a, b)
    else:
        flags = [bool(c >> i & 1) for i in range(4)]
        outcome = smmu.translate(
            Access(a, b, flags[0], flags[1], flags[2], c if flags[3] else None)
        )
        assert isinstance(outcome, Outcome)
        assert outcome.status in {"ok", "bypass", "abort", "fault"}
        assert (outcome.pa is not None) == (outcome.status in {"ok", "bypass"})


@FUZZ
@given(
    steps=st.lists(st.one_of(register, memory_word, access), max_size=60),
    stages=st.sampled_from(["1", "2", "nested"]),
    seed=st.integers(0, 3),
)
def test_from_reset(steps: list[tuple[str, int, int, int]], stages: str, seed: int) -> None:
    memory = Memory([(RAM, 16 * PAGE)])
    smmu = Smmu("smmu0", memory, Features.default(stages=stages))
    scheduler = Scheduler(seed)
    for engine in smmu.engines:
        scheduler.add(engine)
    for step in steps:
        apply(smmu, memory, step)
        scheduler.step()
    scheduler.run_until_idle(5000)
    check_bounds(smmu)


@FUZZ
@given(
    structures=st.lists(st.tuples(st.integers(0, 31), st.integers(0, 7), word), max_size=40),
    commands=st.lists(st.tuples(word, word), max_size=10),
    accesses=st.lists(access, max_size=30),
    config=st.integers(0, 7),
)
def test_booted_with_hostile_tables(
    structures: list[tuple[int, int, int]],
    commands: list[tuple[int, int]],
    accesses: list[tuple[str, int, int, int]],
    config: int,
) -> None:
    """A running SMMU whose STEs, CDs and tables are arbitrary words."""
    machine = Machine()
    root = machine.s2_root()
    for sid in range(32):
        cd = machine.cd(ttb0=root)
        machine.ste(sid, config=config, s1ctxptr=cd, **machine.s2_fields(root))
    for i in range(64):
        machine.memory.write64(root + 8 * i, RAM + i % 16 * PAGE | 0x4C0 | 3)
    for sid, dword, value in structures:
        machine.memory.write64(machine.strtab + 64 * sid + 8 * dword, value)
        machine.memory.write64(root + 8 * sid, value)
    for i, words in enumerate(commands):
        machine.memory.write_words(machine.cmdq + 16 * i, words)
    machine.write("CMDQ_PROD", len(commands))
    for step in accesses:
        apply(machine.smmu, machine.memory, step)
        machine.scheduler.step()
    machine.scheduler.run_until_idle(5000)
    check_bounds(machine.smmu)
    assert all(RAM <= page << 12 < RAM + RAM_SIZE for page in machine.memory.page)


@FUZZ
@given(
    dmas=st.lists(
        st.tuples(st.booleans(), st.integers(0, 64 * PAGE), st.integers(1, 3 * PAGE)), max_size=12
    ),
    seed=st.integers(1, 9),
    holes=st.sets(st.integers(0, 63)),
)
def test_dma_sees_flat_memory(
    dmas: list[tuple[bool, int, int]], seed: int, holes: set[int]
) -> None:
    """Reads return what earlier writes of the same device stored, in any interleaving."""
    machine = Machine()
    root = machine.s1_stream(1)
    for page in range(64):
        if page not in holes:
            machine.map(root, page * PAGE, 0x8800_0000 + (63 - page) * PAGE)
    scheduler = Scheduler(seed, budget=2)
    port = DevicePort("dev", machine.smmu, 1)
    for engine in (*machine.smmu.engines, port):
        scheduler.add(engine)
    flat = bytearray(70 * PAGE)
    expected = []
    for i, (is_write, iova, size) in enumerate(dmas):
        good = [o for o in range(iova, iova + size) if o < 64 * PAGE and o // PAGE not in holes]
        if is_write:
            data = bytes((i + j) % 251 + 1 for j in range(size))
            expected.append((port.write(iova, data), b"", len(good) == size))
            for offset in good:
                flat[offset] = data[offset - iova]
        else:
            want = bytearray(size)
            for offset in good:
                want[offset - iova] = flat[offset]
            expected.append((port.read(iova, size), bytes(want), len(good) == size))
    assert scheduler.run_until_idle()
    for request, data, ok in expected:
        assert (request.done, request.data, request.ok) == (True, data, ok)
