# SPDX-License-Identifier: BSD-2-Clause
"""Memory that tells who looks where, and a guest that rewrites what was just read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from random import Random

from vsmmu.hypervisor.domain import GuestMemory
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import PAGE_SHIFT, Memory
from vsmmu.scheduler import Engine

# What no guest knows, in hexadecimal digits that no number of a guest has: 9, B and D.
MACHINE = 0x9DB9_0000_0000
VMIDS = (0xD9BD, 0xB9DB, 0x9BD9)
SIDS = (0x9B_9DDB, 0xDB_9BD9, 0xBD_99BD)
# What SMMUs name stalled transactions.
STAGS = (
    0x9B9B, 0x9D9D, 0xB9B9, 0xBDBD, 0xD9D9, 0xDBDB, 0x99BB, 0x99DD, 0xBB99, 0xDD99, 0xBBDD, 0xDDBB,
)  # fmt: skip
SECRET = re.compile("[9bd]{4}")
_ONES = int("1" * 40, 16)


def plain(value: int) -> int:
    """The number without the digits of secrets: 9, B, D and F become 8, A, C and E."""
    return value & ~(value >> 3 & _ONES)


def leaks(words: Iterable[int]) -> str | None:
    """The first secret in some words, at any digit."""
    found = SECRET.search(" ".join([f"{word:016x}" for word in words]))
    return found and found[0]


class Holding:
    """The frames that somebody may reach.

    Attributes:
        frames: what may be read.
        readonly: those of them that may not be written.
        strangers: frames of guests that are not among them.
    """

    def __init__(self) -> None:
        self.frames: frozenset[int] = frozenset()
        self.readonly: frozenset[int] = frozenset()
        self.strangers: frozenset[int] = frozenset()


ANYBODY = Holding()


class Frames(dict[int, int]):
    """`Memory.page` that counts looks and notes those at strangers' frames."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.foreign: list[int] = []
        self.enter(ANYBODY)

    def enter(self, holding: Holding) -> None:
        """Looks are at this one's frames from now on."""
        self._holding = holding
        self.refresh()

    def refresh(self) -> None:
        """Its frames have changed."""
        self.strangers, self.readonly = self._holding.strangers, self._holding.readonly

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
        if pa >> PAGE_SHIFT in self.frames.readonly:
            self.frames.foreign.append(pa >> PAGE_SHIFT)
        if self.blind and pa >> PAGE_SHIFT in self.readable:
            assert not leaks([value]), f"{value:#x} at {pa:#x}"
        return super().write64(pa, value)

    def write(self, pa: int, data: bytes) -> bool:
        if pa >> PAGE_SHIFT in self.frames.readonly:
            self.frames.foreign.append(pa >> PAGE_SHIFT)
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
        done = super().write_words(ipa, words)
        if done:
            self._written(words)
        return done


class Judged:
    """An engine that may do no more than its budget, in frames that it may reach.

    Args:
        engine: what is stepped.
        frames: who looks where.
        holding: whose frames are its business.
        each: looks at memory that one unit of its work may take.
        racing: the guest's memory, if each unit is one decision.
        after: called when it has had a turn.
    """

    def __init__(
        self, engine: Engine, frames: Frames, holding: Holding, each: int,
        racing: RacingMemory | None = None, after: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.name = engine.name
        self.engine = engine
        self.bell = getattr(engine, "bell", None)
        self.holding = holding
        self._frames = frames
        self._each = each
        self._racing = racing
        self._after = after

    def step(self, budget: int) -> int:
        frames = self._frames
        before = frames.looks
        frames.enter(self.holding)
        done = self.engine.step(budget) if self._racing is None else self._decide(budget)
        frames.enter(ANYBODY)
        assert 0 <= done <= budget, self.name
        assert frames.looks - before <= self._each * (done + 1), (self.name, frames.looks - before)
        assert not frames.foreign, (self.name, [hex(frame) for frame in frames.foreign])
        if self._after is not None:
            self._after()
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
