# SPDX-License-Identifier: BSD-2-Clause
"""Memory that tells who looks where, and a guest that rewrites what was just read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random

from vsmmu.hypervisor.domain import GuestMemory
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import PAGE, PAGE_SHIFT, Memory
from vsmmu.scheduler import Engine

# What no guest knows, in hexadecimal digits that no number of a guest has: 9, B and D.
MACHINE = 0x9DB9_0000_0000
VMIDS = (0xD9BD, 0xB9DB, 0x9BD9)
SIDS = (0x9B_9DDB, 0xDB_9BD9, 0xBD_99BD)
_PARTS = sorted(
    {f"{MACHINE >> 32:x}", *(f"{n:x}" for n in VMIDS)}
    | {f"{sid:x}"[at : at + 4] for sid in SIDS for at in (0, 2)}
)
SECRET = re.compile("|".join(_PARTS))
_ONES = int("1" * 40, 16)


def plain(value: int) -> int:
    """The number without the digits of secrets: 9, B, D and F become 8, A, C and E."""
    return value & ~(value >> 3 & _ONES)


def leaks(words: Iterable[int]) -> str | None:
    """The first secret in some words, at any digit."""
    found = SECRET.search(" ".join([f"{word:016x}" for word in words]))
    return found and found[0]


class Frames(dict[int, int]):
    """`Memory.page` that counts looks and notes those at frames of `strangers`."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.strangers: frozenset[int] = frozenset()
        self.foreign: list[int] = []

    def get(self, frame: int, default: int | None = None) -> int | None:  # type: ignore[override]
        self.looks += 1
        if frame in self.strangers:
            self.foreign.append(frame)
        return dict.get(self, frame, default)


class WatchedMemory(Memory):
    """The machine's memory.

    Attributes:
        readable: frames of guests, in which no secret may come to stand.
        entries: the 64-byte entries that are watched, by address.
        changed: those of them that were written since this was cleared.
        blind: whether guests know no secret, so that one in their frames is a leak.
    """

    def __init__(self, size: int) -> None:
        super().__init__([(MACHINE, size)])
        self.page = self.frames = Frames()
        self.readable: set[int] = set()
        self.entries: set[int] = set()
        self.changed: set[int] = set()
        self.blind = False

    def write64(self, pa: int, value: int) -> bool:
        if pa & -64 in self.entries:
            self.changed.add(pa & -64)
        if self.blind and pa >> PAGE_SHIFT in self.readable:
            assert not leaks([value]), f"{value:#x} at {pa:#x}"
        return super().write64(pa, value)

    def write(self, pa: int, data: bytes) -> bool:
        if self.blind and pa >> PAGE_SHIFT in self.readable:
            assert not SECRET.search(data.hex()), data
            assert not SECRET.search(data[::-1].hex()), data
        return super().write(pa, data)


class RacingMemory(GuestMemory):
    """A guest's memory whose words change as soon as the hypervisor has read them.

    A decision begins when `seen` is cleared. Who reads a word twice in one gets other bytes, and
    `again` tells. A descriptor may lie in an STE, so either kind of reader may come once.
    """

    def __init__(
        self, memory: Memory, stage2: Stage2, random: Random, written: Callable[..., None]
    ) -> None:
        super().__init__(memory, stage2)
        self._random = random
        self._written = written
        self._kind = 1
        self.chance = 0.0
        self.seen: set[tuple[int, int]] = set()
        self.again: list[int] = []

    def read64(self, ipa: int) -> int | None:
        value = super().read64(ipa)
        if value is None:
            return None
        place = (ipa & -8, self._kind)
        if place in self.seen:
            self.again.append(ipa)
            return value ^ self._random.getrandbits(64)
        self.seen.add(place)
        if self.chance and self._random.random() < self.chance:
            bit = 1 << self._random.choice([0, 1, 2, 3, 5, 17, 40, self._random.randrange(64)])
            super().write64(ipa, plain(value ^ bit))
        return value

    def read_words(self, ipa: int, count: int) -> tuple[int, ...] | None:
        self._kind = count
        try:
            return super().read_words(ipa, count)
        finally:
            self._kind = 1

    def write_words(self, ipa: int, words: tuple[int, ...]) -> bool:
        self._written(words)
        return super().write_words(ipa, words)


class Judged:
    """An engine that may do no more than its budget, in guests' frames that are not strangers'.

    Args:
        engine: what is stepped.
        frames: who looks where.
        strangers: frames that it has no business with.
        each: looks at memory that one unit of its work may take.
        racing: the guest's memory, if each unit is one decision.
    """

    def __init__(
        self, engine: Engine, frames: Frames, strangers: frozenset[int], each: int,
        racing: RacingMemory | None = None,
    ) -> None:  # fmt: skip
        self.name = engine.name
        self.engine = engine
        self.strangers = strangers
        self._frames = frames
        self._each = each
        self._racing = racing

    def step(self, budget: int) -> int:
        frames = self._frames
        frames.strangers, before = self.strangers, frames.looks
        done = self.engine.step(budget) if self._racing is None else self._decide(budget)
        assert 0 <= done <= budget, self.name
        assert frames.looks - before <= self._each * (done + 1), (self.name, frames.looks - before)
        assert not frames.foreign, (self.name, [hex(frame) for frame in frames.foreign])
        frames.strangers = frozenset()
        return done

    def _decide(self, budget: int) -> int:
        racing, done = self._racing, 0
        assert racing is not None
        while done < budget:
            racing.seen.clear()
            unit = self.engine.step(1)
            assert not racing.again, [hex(ipa) for ipa in racing.again]
            if not unit:
                break
            assert unit == 1
            done += 1
        return done


def frames_of(spans: Sequence[tuple[int, int]]) -> set[int]:
    """Frame numbers of (base, size) spans in bytes."""
    return {at >> PAGE_SHIFT for base, size in spans for at in range(base, base + size, PAGE)}
