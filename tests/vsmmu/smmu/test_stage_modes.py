# SPDX-License-Identifier: BSD-2-Clause
"""A device's DMA under each mode of a stream: bypass, stage 1, stage 2, both.

The constants are those that tests of other SMMUs and their drivers use: a linear stream table of
2^5 entries, T0SZ 16 (48 bits from level 0), S2T0SZ 20 (44 bits from level 0), 4K.
"""

from __future__ import annotations

from random import Random

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdTlbiNsnhAll
from vsmmu.arch.events import Event
from vsmmu.arch.registers import StrtabBaseCfg
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import PAGE
from vsmmu.smmu import DevicePort, Request

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine

SID = 8
IOVA, IPA, DATA = 0x8060_4567_8000, 0x0806_0456_0000, 0x8F00_0000
PATTERN = bytes.fromhex("78563412")
MODES = ["s1-only", "s2-only", "nested"]


class Modes(Machine):
    """A machine with a linear table of 32 entries and a device with StreamID 8."""

    def __init__(self, *, caching: str = "normal") -> None:
        super().__init__(caching=caching)
        self.write("CR0", 0xC)
        self.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=5).raw)
        self.write("CR0", 0xD)
        self.s2root = self.alloc(PAGE)
        self.root = self.alloc(PAGE)
        self.context = self.cd(ttb0=self.root, t0sz=16)
        self.port = DevicePort("dma", self.smmu, SID)
        self.scheduler.add(self.port)

    def second(self, ipa: int, pa: int) -> None:
        self.map(self.s2root, ipa, pa, flags=AF | RW_S2, level=0)

    def configure(self, mode: str) -> int:
        """The stream in this mode, leading to DATA; returns the address for the device."""
        fields = self.s2_fields(self.s2root, s2t0sz=20, s2sl0=2)
        if mode == "bypass":
            self.ste(SID, config=4)
            return DATA
        if mode == "s1-only":
            self.ste(SID, config=5, s1ctxptr=self.context)
            self.map(self.root, IOVA, DATA, flags=AF | RW_S1, level=0)
            return IOVA
        if mode == "s2-only":
            self.ste(SID, config=6, **fields)
            self.second(IPA, DATA)
            return IPA
        self.ste(SID, config=7, s1ctxptr=self.context, **fields)
        self.map(self.root, IOVA, IPA, flags=AF | RW_S1, level=0)
        self.second(IPA, DATA)
        # The CD and the stage 1 tables are read through stage 2 as well.
        for page in range(self.root, self._next, PAGE):
            self.second(page, page)
        return IOVA

    def done(self, request: Request) -> Request:
        assert self.scheduler.run_until_idle()
        assert request.done
        return request

    def word(self, address: int) -> bytes | None:
        return self.memory.read(address, 4)


@pytest.fixture
def modes() -> Modes:
    return Modes()


def field(event: Event, name: str) -> int:
    return event.fields[name].of(event.words)


@pytest.mark.parametrize("mode", ["bypass", *MODES])
def test_a_write_reaches_its_page(modes: Modes, mode: str) -> None:
    iova = modes.configure(mode)
    assert modes.done(modes.port.write(iova + 0x10, PATTERN)).ok
    assert modes.memory.read(DATA, 24) == bytes(16) + PATTERN + bytes(4)
    assert modes.done(modes.port.read(iova + 0x10, 4)).data == PATTERN
    assert modes.events() == []
    assert modes.irqs == []


@pytest.mark.parametrize(
    ("mode", "walks"), [("s1-only", (4, 0)), ("s2-only", (0, 4)), ("nested", (4, 24))]
)
def test_four_levels_in_each_stage(mode: str, walks: tuple[int, int]) -> None:
    """Nested: a walk of stage 2 for the CD, for each of the four tables and for the page."""
    modes = Modes(caching="none")
    modes.go(SID, modes.configure(mode))
    assert (modes.smmu.counters["walk.s1"], modes.smmu.counters["walk.s2"]) == walks


@pytest.mark.parametrize("mode", MODES)
def test_a_write_without_a_mapping(modes: Modes, mode: str) -> None:
    iova = modes.configure(mode) + PAGE
    assert not modes.done(modes.port.write(iova, PATTERN)).ok
    (event,) = modes.events()
    assert (event.name, event.sid) == ("F_TRANSLATION", SID)
    assert field(event, "inputaddr") == iova
    assert field(event, "s2") == int(mode == "s2-only")
    assert (modes.word(DATA), modes.word(DATA + PAGE)) == (bytes(4), bytes(4))


def test_nested_needs_the_cd_in_stage_2(modes: Modes) -> None:
    """§7.3.13: CLASS=CD where stage 2 does not map the CD."""
    iova = modes.configure("nested")
    beside = modes.cd(modes.alloc(2 * PAGE) + PAGE, ttb0=modes.root, t0sz=16)
    fields = modes.s2_fields(modes.s2root, s2t0sz=20, s2sl0=2)
    modes.ste(SID, config=7, s1ctxptr=beside, **fields)
    assert not modes.done(modes.port.write(iova, PATTERN)).ok
    (event,) = modes.events()
    assert [field(event, n) for n in ("s2", "cls", "ipa")] == [1, 0, beside]
    modes.second(beside, beside)
    assert modes.done(modes.port.write(iova, PATTERN)).ok
    assert modes.word(DATA) == PATTERN


def test_no_stream_beyond_the_table(modes: Modes) -> None:
    """§3.3.1: 2^5 entries."""
    modes.ste(31, config=4)
    modes.ste(32, config=4)
    assert modes.go(31, DATA).status == "bypass"
    event = modes.go(32, DATA).event
    assert event is not None
    assert event.name == "C_BAD_STREAMID"


@pytest.mark.parametrize("mode", ["bypass", *MODES])
def test_a_master_that_fills_copies_and_sums(modes: Modes, mode: str) -> None:
    """Two frames of a page each: random words into one, copied to the other, compared by a CPU."""
    iova = modes.configure(mode)
    other = iova + PAGE
    if mode in ("s1-only", "nested"):
        target = DATA + PAGE if mode == "s1-only" else IPA + PAGE
        modes.map(modes.root, other, target, flags=AF | RW_S1, level=0)
    if mode in ("s2-only", "nested"):
        modes.second(IPA + PAGE, DATA + PAGE)
    data = Random(mode).randbytes(PAGE)
    assert modes.done(modes.port.write(iova, data)).ok
    # Beats of different lengths, some of them across both frames' ends.
    at = 0
    while at < PAGE:
        size = min(1 + at % 300, PAGE - at)
        got = modes.done(modes.port.read(iova + at, size)).data
        assert modes.done(modes.port.write(other + at, got)).ok
        at += size
    assert modes.memory.read(DATA, PAGE) == modes.memory.read(DATA + PAGE, PAGE) == data
    summed = modes.done(modes.port.read(iova, 2 * PAGE)).data
    assert sum(summed) == 2 * sum(data)


@pytest.mark.parametrize("mode", ["bypass", *MODES])
def test_a_message_of_a_device_is_a_write(modes: Modes, mode: str) -> None:
    """A device's MSI goes where its address leads; nothing rings where there is no mapping."""
    doorbell = modes.configure(mode) + 0x40
    assert modes.done(modes.port.write(doorbell, PATTERN)).ok
    assert modes.word(DATA + 0x40) == PATTERN
    lost = NOWHERE if mode == "bypass" else doorbell + PAGE
    assert not modes.done(modes.port.write(lost, PATTERN)).ok
    assert [e.name for e in modes.events()] == ([] if mode == "bypass" else ["F_TRANSLATION"])


@pytest.mark.parametrize("mode", ["bypass", *MODES])
def test_directed_cache_prefetches_change_no_translation(modes: Modes, mode: str) -> None:
    """§5.2 DCP: a hint; there are no caches of data here."""
    iova = modes.configure(mode)
    words = modes.memory.read_words(modes.strtab + 64 * SID, 8)
    assert words is not None
    found = []
    for dcp in (0, 1):
        ste = Ste(words).replace(dcp=dcp)
        modes.memory.write_words(modes.strtab + 64 * SID, ste.words)
        modes.command(CmdCfgiSte.build(sid=SID, leaf=1), CmdTlbiNsnhAll.build())
        found.append((modes.go(SID, iova).pa, modes.go(SID, iova, write=True).pa))
    assert found == [(DATA, DATA)] * 2
