# SPDX-License-Identifier: BSD-2-Clause
"""What a driver sends at once, against what it sent in the rest of the recording.

A command that is missing often changes no outcome: another one does the same later, or nothing was
cached. What it leaves is a write of CMDQ_PROD unlike all others of the recording. One such write,
where `HABIT` were otherwise, is told when the recording ends; where there are two, the driver does
so. None of them is a fault by itself. A CMD_SYNC alone counts only behind a mapping that was
removed: Linux 6.1 sends one for each new CD that no stream has yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vsmmu.arch.commands import (
    CFGI_ALL_RANGE,
    CmdCfgiCd,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPrefetchAddr,
    CmdPrefetchConfig,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    CmdTlbiNsnhAll,
    Command,
)
from vsmmu.queue import Ring
from vsmmu.recording.divergence import Difference, Kind
from vsmmu.recording.memory import RecordedMemory

# Writes of CMDQ_PROD that have to be as others are, and identical commands that have to be told.
HABIT = 8
# Commands sent at once from which on the CMD_SYNC may come with the next ones: Linux sends the
# commands of a large range 64 at a time, the last ones with a CMD_SYNC.
LARGE = 32
# Slots of a queue whose commands are remembered.
SLOTS = 1 << 19

_OP = Command.mask("op")[0]
_SYNC = CmdSync.opcode
_HINTS = frozenset((CmdPrefetchConfig.opcode, CmdPrefetchAddr.opcode))
# What no CMD_SYNC has to end.
_ALONE = _HINTS | {CmdPriResp.opcode, CmdResume.opcode, CmdStallTerm.opcode}

_CD = CmdCfgiCd.opcode
_NAMING = frozenset((CmdCfgiSte.opcode, _CD))
_SID, _SSID = CmdCfgiCd.sid, CmdCfgiCd.ssid
_RANGE, _LENGTH = CmdCfgiSteRange.opcode, CmdCfgiSteRange.range
# What forgets all that was cached before a reset, which leaves caches as they are (§3.21.3, §4.4).
_WHOLE = {_RANGE: "CMD_CFGI_ALL", CmdTlbiNsnhAll.opcode: "CMD_TLBI_NSNH_ALL"}

UNENDED = "not ended by a CMD_SYNC"
NOTHING = "a CMD_SYNC with nothing to wait for"
LONE = "a CMD_SYNC alone"
UNWRITTEN = "sent again, not written since"


class _Sent(NamedTuple):
    """What a slot held when it was sent: the record of CMDQ_PROD, and the words."""

    record: int
    words: tuple[int, ...]


class Batches:
    """Follows writes of CMDQ_PROD.

    Args:
        memory: where the queue is.

    Attributes:
        firsts: by what is odd about it, the record of the first write that is.
        streams: StreamID and SubstreamID of STEs and CDs that the latest write is about to
            invalidate.
        stale: what no command since the reset has invalidated whole; it may hold anything.
    """

    def __init__(self, memory: RecordedMemory) -> None:
        self._memory = memory
        self._slots: dict[int, _Sent] = {}
        self._counts = dict.fromkeys((UNENDED, NOTHING, LONE, UNWRITTEN), 0)
        self._ended = self._told_again = 0
        self.firsts: dict[str, int] = {}
        self.streams: list[tuple[int, int]] = []
        self.stale = dict(_WHOLE)

    def reset(self) -> None:
        """The SMMU is reset."""
        self._slots.clear()
        self.stale = dict(_WHOLE)

    def sent(
        self, number: int, ring: Ring, before: int, prod: int, removed: Callable[[], bool]
    ) -> list[str]:
        """CMDQ_PROD is about to be `prod`; what is odd about it for the first time.

        Args:
            removed: says whether a mapping was removed since the write before.
        """
        count = ring.pending(prod, before)
        self.streams.clear()
        if not count or ring.size > SLOTS:
            return []
        ops, unwritten = [], False
        for pointer in range(before, before + count):
            address = ring.address(pointer)
            words = self._memory.read_words(address, Command.dwords)
            if words is None:
                return []
            ops.append(words[0] & _OP)
            self._note(words[0] & _OP, words)
            last = self._slots.get(address)
            if last is not None:
                if self._memory.writer(address, Command.size) < last.record:
                    unwritten = True
                elif last.words == words:
                    self._told_again += 1
            self._slots[address] = _Sent(number, words)
        odd = [UNWRITTEN] if unwritten else []
        shape = self._shape(ops)
        if shape == LONE and not removed():
            # Usual from the first one on.
            self._counts[LONE] += 1
        if shape:
            odd.append(shape)
        new = []
        for what in odd:
            self._counts[what] += 1
            if what not in self.firsts:
                self.firsts[what] = number
                new.append(what)
        return new

    def _note(self, op: int, words: tuple[int, ...]) -> None:
        """What one command is for."""
        if op in _NAMING:
            self.streams.append((_SID.of(words), _SSID.of(words) if op == _CD else 0))
        elif op in self.stale and (op != _RANGE or _LENGTH.of(words) == CFGI_ALL_RANGE):
            del self.stale[op]

    def _shape(self, ops: list[int]) -> str:
        if _SYNC not in ops:
            return "" if len(ops) >= LARGE or _ALONE.issuperset(ops) else UNENDED
        if len(ops) == 1:
            return LONE
        if ops[-1] != _SYNC and not _ALONE.issuperset(ops[-1:]):
            return UNENDED
        first = ops.index(_SYNC)
        if all(op in _HINTS for op in ops[:first]):
            return NOTHING
        if ops[-1] != _SYNC:
            return ""
        self._ended += 1
        return ""

    def odd(self) -> tuple[str, Difference] | None:
        """The one write that is unlike all others, if there is one."""
        if self._ended < HABIT:
            return None
        for what, record in sorted(self.firsts.items(), key=lambda pair: pair[1]):
            if what == NOTHING and self._counts[LONE]:
                continue
            others = self._told_again if what == UNWRITTEN else self._ended
            if self._counts[what] == 1 and others >= HABIT:
                return what, Difference(
                    Kind.COMMAND, f"CMDQ_PROD of record {record}", what,
                    f"otherwise than all others, as {others} show",
                )  # fmt: skip
        return None
