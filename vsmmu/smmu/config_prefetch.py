# SPDX-License-Identifier: BSD-2-Clause
"""Hostile caching of configuration: STEs and CDs that are read before they are used.

IHI 0070 §3.21.3: any structure that is reachable may be read at any time, 64 bits at a time and in
any order, and what was read is kept until it is invalidated. Nothing is reachable with SMMUEN=0,
outside the tables, or behind an invalid pointer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vsmmu.arch.registers import Cr0
from vsmmu.smmu.config_cache import ALL_WORDS, Bounded, PerStream
from vsmmu.smmu.ste import Stream
from vsmmu.smmu.transaction import Fault

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.smmu.cd import Context
    from vsmmu.smmu.config_fetch import ConfigFetch, Words
    from vsmmu.smmu.regfile import RegisterFile

# StreamIDs, and CDs of each, that are prefetched at a time.
_STES = 64
_CDS = 16
# A miss also prefetches its neighbours in an aligned block of this many STEs.
_NEIGHBOURS = 8

# Key of an STE among what was prefetched for a stream; a CD's is its index.
_STE = -1
_SMMUEN = Cr0.mask("smmuen")[0]


class ConfigPrefetch:
    """What was prefetched: address and words of STEs and CDs. Without hostile caching, nothing.

    Args:
        regs: CR0.
        fetch: reads tables; its `caching` says whether to prefetch.
        streams, contexts: what is cached already.
        counters: takes `config.prefetched`.
    """

    def __init__(
        self, regs: RegisterFile, fetch: ConfigFetch, streams: Bounded[int, Stream | Fault],
        contexts: PerStream[int, Context | Fault], counters: Counter[str],
    ) -> None:  # fmt: skip
        self._regs = regs
        self._fetch = fetch
        self._streams = streams
        self._contexts = contexts
        self._counters = counters
        self._held: PerStream[int, tuple[int, Words]] = PerStream()

    @property
    def possible(self) -> bool:
        """Whether caching is hostile, and structures are reachable."""
        return self._fetch.caching.hostile and bool(self._regs["CR0ACK"] & _SMMUEN)

    def holds(self, sid: int, ssid: int | None = None) -> bool:
        """Whether this CD, or with None the STE, was prefetched and not used since."""
        return self._held.get(sid, _STE if ssid is None else ssid) is not None

    # Reading ahead.

    def beginning(self) -> None:
        """Prefetch the beginning of the stream table."""
        self.range(0, _STES - 1)

    def neighbours(self, sid: int) -> None:
        """Prefetch around a StreamID that was looked up."""
        first = sid & -_NEIGHBOURS
        self.range(first, first + _NEIGHBOURS - 1)

    def range(self, first: int, last: int) -> None:
        """Prefetch STEs and their CDs, within their tables and behind valid pointers only."""
        if not self.possible:
            return
        for sid in range(first, min(last, first + _STES - 1) + 1):
            if sid in self._streams or self.holds(sid):
                continue
            address = self._fetch.ste_address(sid)
            words = address if isinstance(address, Fault) else self._fetch.ste_words(address)
            if isinstance(address, Fault) or isinstance(words, Fault):
                continue
            self._hold(sid, _STE, address, words)
            self._contexts_of(sid, self._fetch.stream(words), None)

    def contexts(self, sid: int, ssid: int | None) -> None:
        """Prefetch a CD, or with None the first ones, of a stream that is known."""
        if not self.possible:
            return
        stream = self._streams.get(sid)
        held = self._held.get(sid, _STE)
        if stream is None and held is not None:
            stream = self._fetch.stream(held[1])
        if stream is not None:
            self._contexts_of(sid, stream, ssid)

    def _contexts_of(self, sid: int, stream: Stream | Fault, ssid: int | None) -> None:
        if isinstance(stream, Fault) or not stream.stage1:
            return
        count = 1 << stream.cd_bits
        for index in range(min(count, _CDS)) if ssid is None else (ssid,):
            if index < count:
                self._context(sid, stream, index)

    def _context(self, sid: int, stream: Stream, ssid: int) -> None:
        if self._contexts.get(sid, ssid) is not None or self.holds(sid, ssid):
            return
        address = self._fetch.cd_address(sid, stream, ssid)
        if isinstance(address, Fault):
            return
        words = self._fetch.cd_words(stream, address)
        if not isinstance(words, Fault):
            self._hold(sid, ssid, address, words)

    def _hold(self, sid: int, key: int, address: int, words: Words) -> None:
        self._counters["config.prefetched"] += 1
        self._held.keep(sid, key, (address, words), self._fetch.caching.entries)

    # What a lookup takes.

    def ste(self, sid: int, address: int, read: Callable[[], Words | Fault]) -> Words | Fault:
        """The words of an STE: prefetched from this address, or else read now."""
        return self._take(sid, _STE, address, read)

    def cd(
        self, sid: int, ssid: int, address: int, read: Callable[[], Words | Fault]
    ) -> Words | Fault:
        """The words of a CD, the same way."""
        return self._take(sid, ssid, address, read)

    def _take(
        self, sid: int, key: int, address: int, read: Callable[[], Words | Fault]
    ) -> Words | Fault:
        """Each word as it was when it was read. What was prefetched is taken once."""
        caching = self._fetch.caching
        held = self._held.pop(sid, key) if caching.hostile else None
        if held is None or held[0] != address:
            return read()
        early = held[1]
        if caching.early == ALL_WORDS:
            return early
        now = read()
        if isinstance(now, Fault):
            return now
        pairs = enumerate(zip(early, now, strict=True))
        return tuple(e if caching.early >> i & 1 else n for i, (e, n) in pairs)

    # Invalidation.

    def drop(self, first: int, last: int) -> None:
        """Forget what was prefetched for StreamIDs in [first, last]."""
        self._held.drop(first, last)

    def drop_contexts(self, sid: int, ssid: int | None) -> None:
        """Forget a CD, or with None all CDs, of a StreamID."""
        keys = list(self._held.keys(sid)) if ssid is None else [ssid]
        for key in keys:
            if key != _STE:
                self._held.pop(sid, key)
