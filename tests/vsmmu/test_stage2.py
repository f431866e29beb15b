# SPDX-License-Identifier: BSD-2-Clause
"""Stage 2 tables: pages come back, shared pieces stay, addresses a guest can choose."""

from __future__ import annotations

import random

import pytest

from vsmmu.hypervisor.domain import GuestMemory
from vsmmu.hypervisor.pages import PageAllocator
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import PAGE, Memory

BASE = 0x8000_0000
GIB = 1 << 30


def made(ipa_bits: int = 40) -> tuple[Stage2, PageAllocator, Memory]:
    memory = Memory([(BASE, 0x400_0000)])
    pages = PageAllocator([(BASE, 0x400_0000)])
    return Stage2(memory, pages, ipa_bits=ipa_bits, oas=5), pages, memory


@pytest.mark.parametrize("ipa_bits", [32, 36, 40, 42, 48])
def test_released_tables_are_zero_when_they_are_used_again(ipa_bits):
    stage2, pages, memory = made(ipa_bits)
    left = pages.left
    for i in range(40):
        stage2.map(i * 0x1234_5000 % (1 << 32), 0x1000, PAGE)
    stage2.map(0x4000_0000, 0, GIB)
    stage2.unmap(0x4000_1000, PAGE)
    assert pages.left < left
    stage2.release()
    again = Stage2(memory, pages, ipa_bits=ipa_bits, oas=5)
    assert again.mappings() == []
    again.map(0x4000_0000, 0x5000, PAGE)
    assert again.mappings() == [(0x4000_0000, 0x5000, PAGE)]


@pytest.mark.parametrize("seed", range(6))
def test_every_page_against_a_dict(seed):
    """Blocks made, cut, replaced and removed in 8 MiB; each of 2,048 pages is compared."""
    r = random.Random(seed)
    stage2, _, _memory = made(r.choice([32, 36, 40, 48]))
    first = r.choice([0, GIB - 0x40_0000])
    reference: dict[int, tuple[int, bool]] = {}
    for _ in range(25):
        start, count = r.choice([0, 1, 511, 512, 513, 1024, r.randrange(1500)]), r.randrange(1, 548)
        count = r.choice([count, 512, 1])
        ipa, write = first + start * PAGE, r.random() < 0.5
        span = range(ipa, ipa + count * PAGE, PAGE)
        if r.random() < 0.4:
            stage2.unmap(ipa, count * PAGE)
            for page in span:
                reference.pop(page, None)
            continue
        pa = GIB + r.choice([ipa, r.randrange(1 << 20) * PAGE])
        stage2.map(ipa, pa, count * PAGE, write=write)
        reference.update({p: (pa + p - ipa, write) for p in span})
        for page in range(first, first + 0x80_0000, PAGE):
            wanted, writable = reference.get(page, (None, False))
            assert stage2.to_pa(page) == wanted
            assert stage2.to_pa(page, write=True) == (wanted if writable else None)
    flat = {ipa + i: pa + i for ipa, pa, n in stage2.mappings() for i in range(0, n, PAGE)}
    assert flat == {page: pa for page, (pa, _) in reference.items()}


@pytest.mark.parametrize("ipa", [-8, 1 << 40, 1 << 55, (1 << 64) - 8, 1 << 70, 0x1000])
def test_what_is_not_mapped_is_not_the_guests(ipa):
    stage2, _, memory = made()
    guest = GuestMemory(memory, stage2)
    assert stage2.to_pa(ipa) is None
    assert guest.read64(ipa) is None
    assert guest.read_words(ipa, 8) is None
    assert guest.read(ipa, 4) is None
    assert not guest.write64(ipa, 1)
    assert not guest.write_words(ipa, (1,))
    assert not guest.write(ipa, b"x")


def test_guest_accesses_stop_at_the_end_of_what_is_mapped():
    stage2, pages, memory = made()
    guest = GuestMemory(memory, stage2)
    place = pages.allocate(2 * PAGE)
    stage2.map(0x4000_0000, place, PAGE)
    stage2.map(0x4000_1000, place + PAGE, PAGE, write=False)
    assert guest.write(0x4000_0FF8, b"12345678")
    assert not guest.write64(0x4000_1000, 1)
    assert not guest.write(0x4000_0FFC, b"12345678")
    assert guest.read(0x4000_0FF8, 16) == b"12341234" + bytes(8)
    assert guest.read(0x4000_1FF8, 16) is None
    assert memory.read64(place + PAGE) == 0


def test_a_device_page_that_is_not_ram_is_no_memory():
    """Mapped MMIO: the hypervisor does not read a guest's queue from there."""
    stage2, _, memory = made()
    stage2.map(0x1000, 0x0900_0000, PAGE, device=True)
    guest = GuestMemory(memory, stage2)
    assert stage2.to_pa(0x1008) == 0x0900_0008
    assert guest.read64(0x1008) is None
    assert not guest.write64(0x1008, 1)
