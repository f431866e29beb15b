# SPDX-License-Identifier: BSD-2-Clause
"""Memory at its edges: addresses a guest can choose, growth, what a failed access leaves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsmmu.memory import PAGE, Memory

BASE = 0x8000_0000


@pytest.mark.parametrize("address", [-1, -PAGE, 0, BASE - 8, BASE + 2 * PAGE, 1 << 63, 1 << 80])
def test_an_address_outside_aborts_and_allocates_nothing(address):
    memory = Memory([(BASE, 2 * PAGE)])
    assert memory.read64(address) is None
    assert memory.read(address, 1) is None
    assert memory.read_words(address, 2) is None
    assert not memory.write64(address, 1)
    assert not memory.write(address, b"x")
    assert memory.pages == 0


def test_words_stop_at_the_first_abort_and_bytes_store_all_or_nothing():
    memory = Memory([(BASE, PAGE)])
    end = BASE + PAGE
    assert not memory.write_words(end - 8, (1, 2))
    assert memory.read64(end - 8) == 1
    assert memory.read_words(end - 8, 2) is None
    assert not memory.write(end - 4, b"12345678")
    assert memory.read(end - 4, 4) == bytes(4)


def test_reading_takes_no_room():
    memory = Memory([(BASE, 1 << 40)])
    for i in range(1000):
        assert memory.read64(BASE + i * PAGE * 1001) == 0
    assert memory.read(BASE + 100, 3 * PAGE) == bytes(3 * PAGE)
    assert memory.pages == 0


def test_views_outlive_growth():
    """A view is of its moment: later pages move the arena, not what the view shows."""
    memory = Memory([(BASE, 1000 * PAGE)])
    memory.write64(BASE, 7)
    arena, frames, index = memory.arrays()
    for i in range(999, -1, -1):
        memory.write64(BASE + i * PAGE, i + 1)
    assert (int(frames[0]), len(frames), int(arena[int(index[0])])) == (BASE // PAGE, 1, 7)
    arena, frames, index = memory.arrays()
    assert [int(arena[int(i)]) for i in index] == list(range(1, 1001))


def test_the_low_bits_of_a_word_address_are_ignored():
    memory = Memory([(BASE, PAGE)])
    memory.write64(BASE + 13, 5)
    assert [memory.read64(BASE + i) for i in (7, 8, 15, 16)] == [0, 5, 5, 0]


PAGES = 200
OPS = st.tuples(
    st.sampled_from(["write64", "write", "clear", "place", "fix"]),
    st.integers(0, PAGES - 1),
    st.integers(1, 3),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(OPS, max_size=40))
def test_a_fixed_arena_holds_the_same_and_does_not_move(ops):
    """Beside a memory that is never fixed: same answers; and places stay true ever after."""
    regions = [(BASE, PAGES // 2 * PAGE), (BASE + PAGES * PAGE, PAGES // 2 * PAGE)]
    plain, fixed = Memory(regions), Memory(regions)
    words, places = None, {}
    for number, (op, page, count) in enumerate(ops):
        pa, size = BASE + page * 2 * PAGE, count * PAGE
        if op == "fix":
            fixed.fix()
            words = fixed.words if words is None else words
        elif op == "place":
            runs = fixed.place(pa, size)
            assert (runs is not None) == all(plain.is_ram(pa + i) for i in range(0, size, PAGE))
            if words is not None:
                places.update((at, (length, offset)) for at, length, offset in runs or ())
        elif op == "clear":
            if plain.is_ram(pa):
                plain.clear(pa, PAGE)
                fixed.clear(pa, PAGE)
        elif op == "write":
            data = bytes([number + 1]) * size
            assert plain.write(pa + 8, data) == fixed.write(pa + 8, data)
        else:
            assert plain.write64(pa, number) == fixed.write64(pa, number)
        assert plain.read(pa, size) == fixed.read(pa, size)
    assert words is None or fixed.words is words
    for at, (length, offset) in places.items():
        assert bytes(fixed.words)[offset : offset + length] == plain.read(at, length)


def test_pages_are_placed_side_by_side():
    memory = Memory([(BASE, 8 * PAGE)])
    memory.write64(BASE + 2 * PAGE, 1)
    assert memory.place(BASE, 8 * PAGE) == [
        (BASE, 2 * PAGE, 2 * PAGE),
        (BASE + 2 * PAGE, PAGE, PAGE),
        (BASE + 3 * PAGE, 5 * PAGE, 4 * PAGE),
    ]
    assert memory.place(BASE, 0) == []
    assert memory.place(BASE + 7 * PAGE, 2 * PAGE) is None
    assert memory.pages == 8


def test_ram_beyond_the_hosts_addresses_cannot_be_fixed():
    memory = Memory([(0, 1 << 60)])
    with pytest.raises(ValueError, match=r"^RAM of 0x1000000000001000 bytes does not fit the host"):
        memory.fix()
    assert memory.write64(8, 5)
    assert memory.read64(8) == 5
