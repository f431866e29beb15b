# SPDX-License-Identifier: BSD-2-Clause
"""The streams of a vSMMU whose shadow STE has to be made anew, found a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from vsmmu.hypervisor.domain import Stream

Wanted = Callable[[Stream], bool]


class StaleStreams:
    """Streams in the order in which they became stale.

    A stream that is busy is not among them, so that those behind another SMMU do not wait for it;
    `ended` puts it back.

    Args:
        per_unit: streams that `look` looks at.
    """

    def __init__(self, per_unit: int) -> None:
        self._per_unit = max(per_unit, 1)
        self._ready: deque[Stream] = deque()
        # Streams still to be looked at, and which of them are wanted (None: all); `_all` before
        # they are listed.
        self._all = False
        self._looked_at: deque[Stream] = deque()
        self._wanted: Wanted | None = None

    def __bool__(self) -> bool:
        return self.looking or bool(self._ready)

    @property
    def looking(self) -> bool:
        """Whether `look` has something to do."""
        return self._all or bool(self._looked_at)

    def mark(self, stream: Stream) -> None:
        """One stream is stale."""
        if not stream.stale:
            stream.stale = True
            if not stream.busy:
                self._ready.append(stream)

    def mark_all(self) -> None:
        """All streams are stale; constant work, `look` does the rest."""
        self._all, self._wanted = True, None
        self._looked_at.clear()

    def mark_where(self, wanted: Wanted) -> None:
        """Those that are `wanted` when they are looked at are stale. Nothing else is looked for."""
        self._all, self._wanted = True, wanted

    def look(self, streams: Iterable[Stream]) -> None:
        """Mark what is wanted of the next few of `streams`."""
        if self._all:
            self._all = False
            self._looked_at.extend(streams)
        for _ in range(min(self._per_unit, len(self._looked_at))):
            stream = self._looked_at.popleft()
            if self._wanted is None or self._wanted(stream):
                self.mark(stream)

    def take(self) -> Stream | None:
        """The next stream, which is stale no longer."""
        if not self._ready:
            return None
        stream = self._ready.popleft()
        stream.stale = False
        return stream

    def ended(self, stream: Stream) -> None:
        """A stream is busy no longer."""
        stream.busy = False
        if stream.stale:
            self._ready.append(stream)

    def forget(self, stream: Stream) -> None:
        """A stream is not the vSMMU's any longer."""
        for waiting in (self._ready, self._looked_at):
            if stream in waiting:
                waiting.remove(stream)
        stream.stale = False
