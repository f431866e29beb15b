# SPDX-License-Identifier: BSD-2-Clause
"""Whose commands go to a physical queue next: many owners, one queue, turns of a bounded length.

Owners take turns. A turn is at most `turn` commands, CMD_SYNC included, and an owner has at most
`share` commands in the queue that the SMMU has not consumed. So what an owner's commands wait for
depends on the other owners' number, never on how much they have queued (docs/fairness.md).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vsmmu.arch.commands import Command
from vsmmu.smmu.intent import ConfigScope, TlbScope

Done = Callable[[], None]
Scope = TlbScope | ConfigScope


@dataclass(slots=True)
class Batch:
    """Commands that end with a CMD_SYNC; `entered` of them are in the queue.

    `scopes` are what the commands are meant for, by command. `others` is how many commands of
    other owners the SMMU had consumed when the batch was submitted. `end` counts all commands that
    were entered with it and before, once all of it is. A batch with `timed_out` enters in one turn.
    """

    commands: Sequence[Command]
    scopes: Sequence[Scope | None]
    done: Done | None
    timed_out: Done | None
    others: int
    entered: int = 0
    end: int = 0


class FairQueue:
    """The order in which owners' batches enter one queue.

    Args:
        turn: commands of one owner before the next owner's turn; at least 2.
        share: commands of one owner that may be in the queue; at least 2.

    Attributes:
        entered, consumed: commands since boot, by owner.
        whole: the most commands, CMD_SYNC included, of a batch that enters in one turn.
        waited: the most commands of other owners that the SMMU had to take between a batch's
            submission and its CMD_SYNC, by owner.
    """

    def __init__(self, turn: int, share: int) -> None:
        self.entered: Counter[int] = Counter()
        self.consumed: Counter[int] = Counter()
        self.waited: Counter[int] = Counter()
        # A command and its CMD_SYNC have to fit.
        self._turn, self._share = max(turn, 2), max(share, 2)
        self.whole = min(self._turn, self._share)
        self._waiting: dict[int, deque[Batch]] = {}
        self._turns: deque[int] = deque()
        self._left = self._turn
        self._total_entered = self._total_consumed = 0
        # What is in the queue: (owner, commands), in order.
        self._inside: deque[tuple[int, int]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def submit(
        self,
        owner: int,
        commands: Sequence[Command],
        scopes: Sequence[Scope | None],
        done: Done | None,
        timed_out: Done | None = None,
    ) -> None:
        """Queue a batch behind the owner's own; with `timed_out`, of `whole` commands at most."""
        if owner not in self._waiting:
            self._waiting[owner] = deque()
            self._turns.append(owner)
        others = self._total_consumed - self.consumed[owner]
        self._waiting[owner].append(Batch(commands, scopes, done, timed_out, others))

    def forget(self, owner: int) -> None:
        """Drop what is not in the queue yet."""
        if self._waiting.pop(owner, None) is None:
            return
        if self._turns[0] == owner:
            self._left = self._turn
        self._turns.remove(owner)

    def take(self, count: int) -> list[tuple[int, Batch, int, int]]:
        """What enters next: (owner, batch, first, last), `count` commands at most in all."""
        out: list[tuple[int, Batch, int, int]] = []
        passed = 0
        while count > 0 and passed < len(self._turns):
            owner = self._turns[0]
            room = self._share - (self.entered[owner] - self.consumed[owner])
            batch = self._waiting[owner][0]
            needed = self._needed(batch)
            if min(self._left, room) < needed:
                # Where only its turn is too short, the owner's next one is not.
                passed += room < needed
                self._pass()
                continue
            limit = min(count, self._left, room)
            first, last = batch.entered, min(batch.entered + limit, len(batch.commands))
            out.append((owner, batch, first, last))
            self._enter(owner, batch, last - first)
            count -= last - first
            passed = 0
        return out

    def _needed(self, batch: Batch) -> int:
        """Commands that must have room before any of a batch may enter."""
        if batch.timed_out is None or batch.entered:
            return 1
        return min(len(batch.commands), self.whole)

    def consume(self, count: int) -> None:
        """The SMMU has consumed so many commands more."""
        self._total_consumed += count
        while count:
            owner, held = self._inside.popleft()
            taken = min(held, count)
            self.consumed[owner] += taken
            count -= taken
            if held > taken:
                self._inside.appendleft((owner, held - taken))

    def _enter(self, owner: int, batch: Batch, count: int) -> None:
        batch.entered += count
        self.entered[owner] += count
        self._total_entered += count
        self._inside.append((owner, count))
        self._left -= count
        if batch.entered == len(batch.commands):
            ahead = self._total_entered - self.entered[owner] - batch.others
            self.waited[owner] = max(self.waited[owner], ahead)
            self._waiting[owner].popleft()
            if not self._waiting[owner]:
                self.forget(owner)
                return
        if not self._left:
            self._pass()

    def _pass(self) -> None:
        self._turns.rotate(-1)
        self._left = self._turn
