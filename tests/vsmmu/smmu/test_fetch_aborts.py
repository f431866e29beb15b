# SPDX-License-Identifier: BSD-2-Clause
"""Each word that a translation reads is made to abort, for each kind of access (IHI 0070 §7.3).

The stream has everything that is read: a two-level stream table, a two-level CD table behind
stage 2, three levels of stage 1, each table behind stage 2, and the page itself behind stage 2.
"""

from __future__ import annotations

from itertools import product

import pytest

from vsmmu.arch.commands import CmdCfgiSteRange, CmdTlbiNsnhAll
from vsmmu.arch.context import L1Cd
from vsmmu.arch.events import Event, EventClass
from vsmmu.arch.registers import StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import S1Dss, Ste
from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, RW_S1, RW_S2, Machine

FEATURES = Features.default().replace(ssidsize=8, cd2l=1)
SID, IOVA, DATA = 0x105, 0x12_3000, 0x8F00_0000
# Behind stage 2, everything lies at its address and this.
IPA = 0x20_0000_0000
# SSID 70 has a level 1 descriptor of its own.
SSIDS = (None, 3, 70)
KINDS = list(product((False, True), (False, True), (False, True), SSIDS))

CD, TT, IN = EventClass.CD, EventClass.TT, EventClass.IN
_S2_WALK = 3
_CONTEXT = [("F_WALK_EABT", 1, CD)] * _S2_WALK
_TABLE = [("F_WALK_EABT", 1, TT)] * _S2_WALK + [("F_WALK_EABT", 0, TT)]
# What each word read in turn is for: L1STD, STE, L1CD, CD, three tables, the page.
EXPECTED: list[tuple[str, int, int]] = [
    *[("F_STE_FETCH", 0, 0)] * (1 + Ste.dwords),
    *_CONTEXT,
    ("F_CD_FETCH", 0, 0),
    *_CONTEXT,
    *[("F_CD_FETCH", 0, 0)] * 8,
    *_TABLE * 3,
    *[("F_WALK_EABT", 1, IN)] * _S2_WALK,
]


class Failing(Machine):
    """A machine whose memory aborts at the `fails`-th word that the SMMU reads."""

    def __init__(self, caching: str) -> None:
        super().__init__(FEATURES, caching=caching, boot=False)
        self.write("CMDQ_BASE", self.cmdq | self.cmdq_log2)
        self.write("EVENTQ_BASE", self.eventq | self.eventq_log2)
        level1 = self.alloc(8 << 8)
        level2 = self.alloc(64 << 8)
        self.write("STRTAB_BASE", StrtabBase.build(addr=level1).raw)
        self.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=16, split=8, fmt=1).raw)
        self.l1std(level1 + 8 * (SID >> 8), span=9, l2ptr=level2)
        self._tables(level2 + 64 * (SID & 0xFF))
        self.write("CR0", 0xD)
        self.read_from: list[int] = []
        self.fails: int | None = None
        self._read64 = self.memory.read64
        # The walker reads pages that were written without a call: hide them.
        walker = self.smmu._walker
        walker._page = {}
        walker._read64 = self.observed
        self.memory.read64 = self.observed  # type: ignore[method-assign]
        self.memory.read_words = self._words  # type: ignore[method-assign]

    def _words(self, pa: int, count: int) -> tuple[int, ...] | None:
        found = []
        for i in range(count):
            word = self.observed(pa + 8 * i)
            if word is None:
                return None
            found.append(word)
        return tuple(found)

    def _tables(self, ste: int) -> None:
        s2root = self.s2_root()
        contexts, leaves = self.alloc(PAGE), [self.alloc(64 << 6) for _ in range(2)]
        for index, leaf in enumerate(leaves):
            self.memory.write(contexts + 8 * index, bytes(L1Cd.build(v=1, l2ptr=leaf + IPA)))
        root = self.alloc(PAGE)
        self.map(root, IOVA, DATA + IPA, flags=AF | RW_S1)
        # What unprivileged accesses can write is not executable for privileged ones.
        self.map(root, IOVA + PAGE, DATA + PAGE + IPA, flags=AF)
        table = root
        for shift in (30, 21):
            slot = table + 8 * (IOVA >> shift & 511)
            below = self.memory.read64(slot)
            assert below is not None
            self.memory.write64(slot, below + IPA)
            table = below & -PAGE
        for ssid in (0, 3, 70):
            self.cd(leaves[ssid >> 6] + 64 * (ssid & 63), ttb0=root + IPA)
        fields = self.s2_fields(s2root)
        words = Ste.build(
            v=1, config=7, s1ctxptr=contexts + IPA, s1cdmax=7, s1fmt=1, s1dss=S1Dss.SSID0, **fields
        )
        self.memory.write(ste, bytes(words))
        for page in (*range(contexts, self._next, PAGE), DATA, DATA + PAGE):
            self.map(s2root, page + IPA, page, flags=AF | RW_S2)

    def observed(self, pa: int) -> int | None:
        self.read_from.append(pa)
        return None if self.fails == len(self.read_from) - 1 else self._read64(pa)

    def access(self, kind: tuple[bool, bool, bool, int | None], fails: int | None) -> object:
        """The output address, or the event; the addresses read are in `read_from`."""
        write, instr, priv, ssid = kind
        self.read_from, self.fails = [], fails
        iova = IOVA + PAGE if instr and priv else IOVA
        outcome = self.go(SID, iova, write=write, instr=instr, priv=priv, ssid=ssid)
        self.smmu.eventq.drop_uncommitted()
        self.fails = None
        return outcome.event or outcome.pa


def field(event: Event, name: str) -> int:
    return event.fields[name].of(event.words) if name in event.fields else 0


@pytest.fixture(scope="module")
def failing() -> Failing:
    return Failing("none")


def output(kind: tuple[bool, bool, bool, int | None]) -> int:
    return DATA + PAGE if kind[1] and kind[2] else DATA


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_word_of_every_kind_of_access(
    failing: Failing, kind: tuple[bool, bool, bool, int | None]
) -> None:
    """§7.3.4, §7.3.10, §7.3.12: which event, at which stage, for what, and what the access was."""
    write, instr, priv, ssid = kind
    assert failing.access(kind, None) == output(kind)
    addresses = list(failing.read_from)
    assert len(addresses) == len(EXPECTED)
    for index, (name, s2, cls) in enumerate(EXPECTED):
        event = failing.access(kind, index)
        assert isinstance(event, Event), index
        assert (event.name, field(event, "s2"), field(event, "cls")) == (name, s2, cls), index
        assert failing.read_from == addresses[: index + 1], "nothing is read behind an abort"
        assert addresses[index] - 56 <= field(event, "fetchaddr") <= addresses[index]
        assert (event.sid, event.ssv, event.ssid) == (SID, int(ssid is not None), ssid or 0)
        if name == "F_WALK_EABT":
            assert field(event, "fetchaddr") == addresses[index]
            assert field(event, "rnw") == int(not write)
            assert field(event, "ind") == int(instr and not write)
            assert field(event, "pnu") == int(priv)
        assert failing.access(kind, None) == output(kind)


@pytest.mark.parametrize("caching", ["normal", "hostile"])
def test_nothing_of_an_abort_is_cached(caching: str) -> None:
    """§3.21.3: the next access goes where it would have gone."""
    failing = Failing(caching)
    kind = (False, False, False, 70)
    for index in range(len(EXPECTED)):
        failing.command(CmdCfgiSteRange.build(range=31), CmdTlbiNsnhAll.build())
        first = failing.access(kind, index)
        assert isinstance(first, Event) or first == DATA
        assert failing.access(kind, None) == DATA, index
