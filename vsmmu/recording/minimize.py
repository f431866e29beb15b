# SPDX-License-Identifier: BSD-2-Clause
"""Shrinks a recording that does not replay to a small one that fails in the same way.

Delta debugging (Zeller and Hildebrandt, 2002) over the units of `units`: whole kinds of records
first, then runs of units, ever shorter, then the words of memory records. Every candidate is a
recording and is replayed; it is taken if the same record of it fails in the same way.

Leaving things out can make a recording wrong by itself: without the descriptor that mapped a page,
of course the access faults. Two things prevent that. Where there is a reference that agreed with
the whole recording, it has to agree with what is left. And where there is none, the records that
wrote what the model looked at stay; those are what is shown.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vsmmu.arch import commands
from vsmmu.arch.commands import CmdCfgiSte, CmdCfgiSteRange
from vsmmu.arch.registers import BY_NAME
from vsmmu.recording.divergence import Divergence, Kind
from vsmmu.recording.format import (
    Dma,
    Irq,
    Mem,
    Note,
    Read,
    Record,
    RecordingError,
    Reset,
    Write,
    encode,
    header_line,
)
from vsmmu.recording.guest_machine import RefusedError
from vsmmu.recording.identification import is_identification
from vsmmu.recording.units import Cut, Dismantled, IrregularError, Unit, rough_units

# Replays of one minimization.
REPLAYS_MAX = 2000
_WORD = 8
# Words of one memory record that are left out one by one.
_WORDS_MAX = 4096

# How an account says that a cache answered, and that none did.
_CACHED, _PLAIN = re.compile("cached|filled"), re.compile("none caching")
_RECORD = re.compile(r"records? \d+")

# Replays bytes of a recording to the first divergence.
Play = Callable[[bytes], Divergence | None]


class NoFailureError(Exception):
    """There is nothing to minimize; one line."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Smallest:
    """What is left.

    Attributes:
        data: the recording, unpacked.
        divergence: how it fails.
        before, after: (records, bytes unpacked).
        replays: how many were needed.
        complete: whether nothing more could be left out, or the replays were used up.
    """

    data: bytes
    divergence: Divergence
    before: tuple[int, int]
    after: tuple[int, int]
    replays: int
    complete: bool


def signature(found: Divergence) -> tuple[str, ...]:
    """What has to stay for a failure to be the same.

    A register's name; the two endings of an access; the two kinds of event.
    """
    if found.kind in (Kind.READ, Kind.PROGRESS):
        return found.kind, found.what
    if found.kind == Kind.EVENT:
        return found.kind, found.recorded.split(" ")[0], found.model.split(" ")[0]
    if found.kind == Kind.STATUS:
        return found.kind, found.recorded, found.model
    return (found.kind,)


class Minimizer:
    """Minimizes one recording.

    Args:
        header: its header line's members.
        records: all of them.
        play: the replay that fails.
        references: others, the strictest first; the first that agrees with the whole has to agree
            with what is left.
        limit: replays with `play` at most.
        progress: told (replays, units left) after each.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        ram: tuple[int, int],
        records: Sequence[Record],
        play: Play,
        references: Sequence[Play] = (),
        *,
        limit: int = REPLAYS_MAX,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._line = header_line(header)
        self._ram, self._records = ram, records
        self._play, self._references = play, references
        self._reference: Play | None = None
        self._limit, self._progress = limit, progress
        self._replays = 0
        self._removable: Callable[[Unit], bool] = bool
        self._account: list[str] | None = None
        self._wanted: tuple[str, ...] = ()
        self._culprit = 0

    def run(self) -> Smallest:
        """Shrink it.

        Raises:
            NoFailureError: it does not diverge.
        """
        whole = self._bytes(self._records)
        found = self._play(whole)
        if found is None:
            raise NoFailureError("it replays without divergence: there is nothing to minimize")
        self._wanted, self._culprit = signature(found), found.record
        self._reference = next((one for one in self._references if one(whole) is None), None)
        numbered = list(self._needed(found))
        cut = _tried(self._play, self._bytes(record for _, record in numbered))
        if cut is None or signature(cut) != self._wanted:
            # It takes what comes behind to see it, as what is told when a recording ends.
            numbered = list(enumerate(self._records, 1))
        try:
            units = Dismantled(numbered, self._ram).units
        except IrregularError:
            units = rough_units(numbered)
        self._cut = Cut(units)
        stay = self._must_stay(found, units)
        self._removable = lambda unit: not stay.intersection(unit.numbers)
        units = self._shrink(units)
        left = [record for _, record in self._cut.records(units)]
        data = self._bytes(left)
        final = self._play(data)
        assert final is not None, "every step was replayed"
        return Smallest(
            data, final, (len(self._records), len(whole)), (len(left), len(data)),
            self._replays, self._replays < self._limit,
        )  # fmt: skip

    def _needed(self, found: Divergence) -> Iterator[tuple[int, Record]]:
        """Records up to the one that differs, those that belong to it, and identification."""
        ends = (Mem, Write, Read, Dma, Reset)
        over = False
        for number, record in enumerate(self._records, 1):
            over = over or (number > found.record and type(record) in ends)
            if not over or (type(record) is Read and is_identification(record.offset)):
                yield number, record

    def _must_stay(self, found: Divergence, units: Sequence[Unit]) -> set[int]:
        """Records that no candidate leaves out."""
        stay = {found.record}
        seen: set[int] = set()
        for unit in units:
            record = unit.record
            if type(record) is Reset and not seen:
                stay.update(unit.numbers)
            if (
                type(record) is Read
                and is_identification(record.offset)
                and record.offset not in seen
            ):
                seen.add(record.offset)
                stay.update(unit.numbers)
        if self._reference is None:
            stay.update(source.record for source in found.provenance)
            filled = [s.record for s in found.provenance if _CACHED.search(s.what)]
            if filled and not any(_PLAIN.match(line) for line in found.model_side):
                # Which of the commands since then should have made it forget cannot be told.
                stay.update(_sent(units, lambda unit: max(unit.numbers) >= min(filled)))
        else:
            # A reference that keeps no invalid STE needs no command for a new one; a vSMMU does.
            culprit = self._records[found.record - 1]
            sid = culprit.sid if type(culprit) is Dma else -1
            stay.update(_sent(units, lambda unit: _configures(unit, sid)))
        return stay - {0}

    # Shrinking.

    def _shrink(self, units: list[Unit]) -> list[Unit]:
        for kind in (_is_talk, _is_read, _is_access, _is_prod):
            units = self._without(units, [u for u in units if kind(u.record)])
        units = self._runs(units)
        return self._narrow(units)

    def _narrow(self, units: list[Unit]) -> list[Unit]:
        """Leave out words of memory records.

        Without a reference, any but what the model looked at: its account has to stay the same.
        """
        wide = [unit for unit in units if len(_pieces(unit)) > 1]
        if not wide:
            return units
        if self._reference is None:
            left = (record for _, record in self._cut.records(units))
            self._account = _account(self._play(self._bytes(left)))
        narrowed = [piece for unit in units for piece in _pieces(unit)]
        pieces = {id(unit) for unit in narrowed} - {id(unit) for unit in units}
        self._removable = lambda unit: id(unit) in pieces
        return self._runs(narrowed, again=False)

    def _without(self, units: list[Unit], some: Sequence[Unit]) -> list[Unit]:
        """Leave out all of these if that fails as well, else as they are."""
        gone = {id(unit) for unit in some if self._removable(unit)}
        rest = [unit for unit in units if id(unit) not in gone]
        left = self._replays < self._limit
        return rest if gone and left and self._fails(rest) else units

    def _runs(self, units: list[Unit], *, again: bool = True) -> list[Unit]:
        """Leave out runs of units, from long ones to single ones."""
        size = max(len(units) // 2, 1)
        while self._replays < self._limit:
            before = len(units)
            at = len(units) - size
            while at > -size and self._replays < self._limit:
                run = units[max(at, 0) : at + size]
                units = self._without(units, run)
                at -= size
            if size == 1 and (len(units) == before or not again):
                break
            size = max(size // 2, 1)
        return units

    def _fails(self, units: Iterable[Unit]) -> bool:
        """Whether what is left fails in the same way."""
        self._replays += 1
        units = list(units)
        left = list(self._cut.records(units))
        data = self._bytes(record for _, record in left)
        found = _tried(self._play, data)
        if self._progress is not None:
            self._progress(self._replays, len(units))
        if found is None or signature(found) != self._wanted:
            return False
        if self._culprit not in left[found.record - 1][0].numbers:
            return False
        if self._account is not None and _account(found) != self._account:
            return False
        return self._reference is None or self._reference(data) is None

    def _bytes(self, records: Iterable[Record]) -> bytes:
        return self._line + b"".join(map(encode, records))


def _tried(play: Play, data: bytes) -> Divergence | None:
    """A replay of what may not make sense any more, such as memory that nothing maps."""
    try:
        return play(data)
    except (RecordingError, RefusedError):
        return None


def _account(found: Divergence | None) -> list[str]:
    """The model's account without the numbers of records, which change."""
    assert found is not None, "every step was replayed"
    return [_RECORD.sub("", line) for line in found.model_side]


def _sent(units: Iterable[Unit], wanted: Callable[[Unit], bool]) -> set[int]:
    """Records of some commands, and of the writes that send them."""
    found: set[int] = set()
    waits = False
    for unit in units:
        if unit.command is not None and wanted(unit):
            found.update(unit.numbers)
            waits = True
        elif waits and _is_prod(unit.record):
            found.update(unit.numbers)
            waits = False
    return found


def _configures(unit: Unit, sid: int) -> bool:
    """Whether a command makes an SMMU look at an STE again."""
    assert isinstance(unit.record, Mem)
    command = commands.decode(struct.unpack("<2Q", unit.record.data))
    if isinstance(command, CmdCfgiSteRange):
        return command.sid >> command.range + 1 == sid >> command.range + 1
    return isinstance(command, CmdCfgiSte) and command.sid == sid


def _is_talk(record: Record) -> bool:
    return type(record) in (Note, Irq)


def _is_read(record: Record) -> bool:
    return type(record) is Read


def _is_access(record: Record) -> bool:
    return type(record) is Dma


def _is_prod(record: Record) -> bool:
    return type(record) is Write and record.offset == BY_NAME["CMDQ_PROD"].offset


def _pieces(unit: Unit) -> Sequence[Unit]:
    """A memory record word by word."""
    record = unit.record
    if type(record) is not Mem or unit.command is not None:
        return (unit,)
    size = max(_WORD, -(-len(record.data) // _WORDS_MAX) // _WORD * _WORD)
    if len(record.data) <= size:
        return (unit,)
    return [
        replace(unit, record=Mem(record.pa + at, record.data[at : at + size]))
        for at in range(0, len(record.data), size)
    ]
