# SPDX-License-Identifier: BSD-2-Clause
"""An SMMU without caches, in less time: what cannot have changed is not looked up again.

The slow twin is `Physical("none")`. Here the configuration is kept until memory changes in a page
that it was read from, or a register changes on which it depends; and what an access to a page
found is kept until memory changes at all. With HTTU the SMMU itself changes it (§3.13), so nothing
that an access found is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vsmmu.arch.registers import BY_NAME
from vsmmu.memory import PAGE, PAGE_SHIFT
from vsmmu.recording.divergence import Result
from vsmmu.recording.format import Dma, Mem
from vsmmu.recording.physical import Physical
from vsmmu.smmu.config_cache import Caching
from vsmmu.smmu.transaction import Fault

_IN_PAGE = PAGE - 1
_ALL_SIDS = 0, 0xFFFF_FFFF
_new = tuple.__new__
_Asked = TypeVar("_Asked")
# Writes on which no translation depends, where nothing is cached.
_QUEUES = frozenset(BY_NAME[name].offset for name in ("CMDQ_PROD", "EVENTQ_CONS"))


class Uncached(Physical):
    """`Physical("none")`, fast."""

    def __init__(self) -> None:
        super().__init__("none")
        # Frames that the configuration was read from. With nested streams that is not known.
        self._frames: set[int] = set()
        self._nested = self._looked = False
        # By StreamID, page and kind of access: status, output page, rights.
        self._known: dict[tuple[int, int, int], tuple[int, int, int | None]] = {}

    def reset(self) -> None:
        """As in `Physical`."""
        super().reset()
        self.smmu.config.caching = Caching()
        self._frames.clear()
        self._known.clear()

    def store(self, number: int, record: Mem) -> None:
        """Memory changed."""
        self.memory.store(number, record)
        self.changed(record)

    def changed(self, record: Mem) -> None:
        """What memory says is another since this record."""
        self._known.clear()
        if self._frames or self._nested:
            first = record.pa >> PAGE_SHIFT
            last = (record.pa + len(record.data) - 1) >> PAGE_SHIFT
            if self._nested or not self._frames.isdisjoint(range(first, last + 1)):
                self._forget()

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        """As in `Physical`."""
        if offset not in _QUEUES or size != 4:
            self._known.clear()
            self._forget()
        super().write(number, offset, size, value)

    def access(self, number: int, dma: Dma) -> Result:
        """As in `Physical`."""
        sid, iova = dma.sid, dma.iova
        known = self._known.get((sid, iova >> PAGE_SHIFT, dma.access))
        if known is not None:
            status, page, perm = known
            return _new(Result, (status, page | iova & _IN_PAGE, perm, ()))
        self._looked = False
        self.memory.noted = self._frames
        result = super().access(number, dma)
        self.memory.noted = None
        if self._looked and not self._nested:
            self._nested = self._is_nested(sid)
        if result.pa is not None and not result.events and not self.features.idr0.httu:
            page = result.pa & -PAGE
            self._known[sid, iova >> PAGE_SHIFT, dma.access] = result.status, page, result.perm
        return result

    def noting(self, ask: Callable[[_Asked], object], about: _Asked) -> None:
        """Let something ask for the configuration, so that it is not kept too long."""
        self.memory.noted = self._frames
        ask(about)
        self.memory.noted = None

    def _missed(self, sid: int) -> None:
        super()._missed(sid)
        self._looked = True

    def _is_nested(self, sid: int) -> bool:
        stream = self.smmu.config.stream(sid)
        return not isinstance(stream, Fault) and stream.stage1 and stream.stage2 is not None

    def _forget(self) -> None:
        self.smmu.config.invalidate_range(*_ALL_SIDS, l1=True)
        self._frames.clear()
