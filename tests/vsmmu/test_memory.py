# SPDX-License-Identifier: BSD-2-Clause
"""Memory at its edges: addresses a guest can choose, growth, what a failed access leaves."""

from __future__ import annotations

import pytest

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
