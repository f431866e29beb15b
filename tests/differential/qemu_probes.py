# SPDX-License-Identifier: BSD-2-Clause
"""Programs that show where QEMU departs from the architecture, one for each row of the table.

Device 0 is StreamID 8; DATA is mapped at VA unless a program says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.differential.qemu_author import DATA, NOWHERE, ON, S1_OK, S2_OK, S2_READ, Author, Table
from vsmmu.arch import commands as c
from vsmmu.arch.commands import Command
from vsmmu.arch.pagetable import G4K, G16K, TABLE, Granule, S1Leaf, TableDesc
from vsmmu.arch.registers import Cr0, Gbpa

Probe = Callable[[Author], None]
SID = 8
VA = 0x1000_0000
OTHER = DATA + 0x5000
DELTA = 0x2_0000_0000


def _s1(a: Author, granule: Granule = G4K, bits: int = 39, **cd: int) -> Table:
    a.linear()
    a.data_page(DATA)
    a.data_page(OTHER)
    table = a.table(granule, bits)
    a.ste(SID, config=5, s1ctxptr=a.cd(**{"ttb0": table.root, "t0sz": 64 - bits, **cd}))
    return table


def _s2(a: Author, **ste: int) -> Table:
    a.linear()
    a.data_page(DATA)
    table = a.table(G4K, 39, "second")
    fields = {
        "config": 6, "s2t0sz": 25, "s2sl0": 1, "s2ps": 4, "s2aa64": 1, "s2r": 1, "s2vmid": 7,
        "s2ttb": table.root,
    }  # fmt: skip
    a.ste(SID, **{**fields, **ste})
    return table


def _nested(
    a: Author, granule: Granule = G4K, bits: int = 39, ste: dict[str, int] | None = None, **cd: int
) -> tuple[Table, Table]:
    """Stage 1 with all it reads mapped by 4K stage 2 at DELTA; DATA is at the same IPA."""
    second = _s2(a)
    first = a.table(granule, bits, delta=DELTA)
    fields = {"ttb0": first.root + DELTA, "t0sz": 64 - bits, **cd}
    place = a.cd(**fields)
    first.map(VA, DATA, S1_OK)
    start = first.root & -(1 << 16)
    for page in range(start, a.used("first") + 4096, 4096):
        second.map(page + DELTA, page, S2_OK)
    second.map(DATA, DATA, S2_OK)
    a.ste(SID, **{
        "config": 7, "s1ctxptr": place + DELTA, "s2t0sz": 25, "s2sl0": 1, "s2ps": 4, "s2aa64": 1,
        "s2r": 1, "s2vmid": 7, "s2ttb": second.root, **(ste or {}),
    })  # fmt: skip
    return first, second


def _unmap2(a: Author, second: Table, ipa: int) -> None:
    slot = second.slot(ipa, 3)
    assert slot is not None
    a.poke(slot, 0)


def _go(a: Author, *addresses: int, write: bool = False) -> None:
    a.boot()
    for address in addresses:
        a.dma(0, address, write=write)


def ste_s1(**fields: int) -> Probe:
    def probe(a: Author) -> None:
        table = _s1(a)
        table.map(VA, DATA, S1_OK)
        cd = a.cd(ttb0=table.root)
        a.ste(SID, **{"config": 5, "s1ctxptr": cd, **fields})
        _go(a, VA)

    return probe


def ste_s2(**fields: int) -> Probe:
    def probe(a: Author) -> None:
        _s2(a, **fields).map(VA, DATA, S2_OK)
        _go(a, VA)

    return probe


def cd_s1(**fields: int) -> Probe:
    def probe(a: Author) -> None:
        _s1(a, **fields).map(VA, DATA, S1_OK)
        _go(a, VA)

    return probe


def s1_leaf(flags: int, output: int = DATA, *, write: bool = False) -> Probe:
    def probe(a: Author) -> None:
        _s1(a).map(VA, output, flags)
        _go(a, VA, write=write)

    return probe


def command(*words: Command) -> Probe:
    def probe(a: Author) -> None:
        _s1(a)
        a.boot()
        a.cmd(*words)

    return probe


def aptable_tlb(a: Author) -> None:
    table = _s1(a)
    table.map(VA, DATA, S1_OK)
    a.poke(table.made[-1], a.word(table.made[-1]) | TableDesc.mask("aptable1")[0])
    a.boot()
    a.dma(0, VA)
    a.dma(0, VA, write=True)


def aptable_prio(a: Author) -> None:
    table = _s1(a)
    table.map(VA, DATA, S1_OK & ~S1Leaf.mask("af")[0])
    a.poke(table.made[-1], a.word(table.made[-1]) | TableDesc.mask("aptable1")[0])
    _go(a, VA, write=True)


def table_addrsize(a: Author) -> None:
    table = _s1(a, ips=0)
    table.map(VA, DATA, S1_OK)
    a.poke(table.made[-1], NOWHERE | 3)
    _go(a, VA)


def illegal_block(a: Author) -> None:
    _s1(a, bits=48).map(VA, 0, S1_OK & ~TABLE, level=0)
    _go(a, DATA)


def tbi1(a: Author) -> None:
    table = _s1(a, epd1=1, tbi0=0, tbi1=0)
    high = a.table(high=True)
    high.map(high.base + VA, DATA, S1_OK)
    cd = a.cd(ttb0=table.root, ttb1=high.root, epd1=0, t1sz=25, tg1=2, tbi1=1)
    a.ste(SID, config=5, s1ctxptr=cd)
    _go(a, high.base + VA & (1 << 56) - 1 | 0xA5 << 56)


def global_entry(a: Author) -> None:
    table = _s1(a)
    slot = table.map(VA, DATA, S1_OK & ~S1Leaf.mask("ng")[0])
    assert slot
    a.boot()
    a.dma(0, VA)
    a.poke(slot, 0)
    a.sync(c.CmdTlbiNhVa.build(asid=99, addr=VA, leaf=1))
    a.dma(0, VA)


def tbi_tlbi(a: Author) -> None:
    table = _s1(a, tbi0=1)
    slot = table.map(VA, DATA, S1_OK)
    assert slot
    a.boot()
    a.dma(0, VA | 0x5A << 56)
    a.poke(slot, 0)
    a.sync(c.CmdTlbiNhVa.build(asid=1, addr=VA, leaf=1))
    a.dma(0, VA | 0x5A << 56)


def s2_concat(a: Author) -> None:
    a.linear()
    a.data_page(DATA)
    a.data_page(OTHER)
    table = a.table(G4K, 40, "second", tables=2, start=1)
    table.map(VA, DATA, S2_OK)
    table.map(VA + (1 << 39), OTHER, S2_OK)
    a.ste(SID, config=6, s2t0sz=24, s2sl0=1, s2ps=4, s2aa64=1, s2r=1, s2vmid=7, s2ttb=table.root)
    _go(a, VA + (1 << 39))


def s2_write_only(a: Author) -> None:
    _s2(a).map(VA, DATA, S2_OK & ~(1 << 6))
    a.boot()
    a.dma(0, VA, write=True)
    a.dma(0, VA)


def s2_tlb_event(a: Author) -> None:
    _s2(a).map(VA, DATA, S2_READ)
    a.boot()
    a.dma(0, VA)
    a.dma(0, VA, write=True)


def s2_ias(a: Author) -> None:
    _s2(a).map(VA, DATA, S2_OK)
    _go(a, 1 << 45)


def s2_sl_min(a: Author) -> None:
    _s2(a, s2t0sz=35, s2sl0=1).map(VA, DATA, S2_OK)
    _go(a, VA)


def s2_ptw(a: Author) -> None:
    first, second = _nested(a, ste={"s2ptw": 1})
    slot = second.slot((first.root & -4096) + DELTA, 3)
    assert slot
    a.poke(slot, a.word(slot) & ~(15 << 2))
    _go(a, VA)


def bypass_oas(a: Author) -> None:
    a.linear()
    a.ste(SID, config=4)
    _go(a, 1 << 45)


def tt_contig(a: Author) -> None:
    """The second 4K page of a 16K table is at another place in stage 2."""
    first, second = _nested(a, G16K, 36, tg0=2)
    entry = a.word(first.made[-1]) & 0xFFFF_FFFF_C000
    slot = first.slot(VA, 3)
    assert slot
    # VA's descriptor is in the first page of its table: put another into the third page.
    far = first.slot(VA + 1030 * (1 << 14), 3)
    assert far
    a.poke(far, DATA | S1_OK)
    _unmap2(a, second, entry + (far & 0x3000))
    _go(a, VA + 1030 * (1 << 14))


def tt_fault(a: Author, *, write: bool = False, r: int = 1, s2r: int = 1) -> None:
    first, second = _nested(a, ste={"s2r": s2r}, r=r)
    _unmap2(a, second, a.word(first.made[-1]) & 0xFFFF_FFFF_F000)
    _go(a, VA, write=write)


def cd_fault(a: Author) -> None:
    first, second = _nested(a)
    _unmap2(a, second, (first.root & -4096) + DELTA)
    _go(a, VA, write=True)


def ttb_cached(a: Author) -> None:
    """Another root table appears behind the same IPA; TLBI alone is enough to see it."""
    first, second = _nested(a)
    empty = a.alloc(4096, "second")
    slot = second.slot((first.root & -4096) + DELTA, 3)
    assert slot
    a.boot()
    a.dma(0, VA)
    a.poke(slot, empty | S2_OK)
    a.sync(c.CmdTlbiS12Vmall.build(vmid=7))
    a.dma(0, VA)


def ttb_both(a: Author) -> None:
    _nested(a, epd1=0, t1sz=25, tg1=2, ttb1=DELTA >> 1)
    _go(a, VA)


def l1_span(a: Author) -> None:
    """Span 3 has four STEs; the fifth to eighth are beyond it."""
    a.two_level(16, 8)
    a.l2(SID, span=4)
    a.ste(SID, config=0)
    _go2(a)


def l1_span_reserved(a: Author) -> None:
    a.two_level(16, 6)
    a.l2(SID, span=9)
    a.ste(SID, config=0)
    _go2(a, 6)


def _go2(a: Author, split: int = 8, fmt_split: int | None = None) -> None:
    a.data_page(DATA)
    a.boot(split=split, fmt_split=fmt_split)
    a.dma(0, DATA)


def split_reserved(a: Author) -> None:
    a.two_level(16, 6)
    a.ste(a.sids[3], config=4)
    a.data_page(DATA)
    a.boot(split=6, fmt_split=7)
    a.dma(3, DATA)


def rec_inv_sid(a: Author) -> None:
    a.linear(2)
    a.boot(log2size=2, cr2=0)
    a.dma(0, DATA)


def cd_fetch_nowhere(a: Author) -> None:
    a.linear()
    a.ste(SID, config=5, s1ctxptr=NOWHERE)
    _go(a, VA)


def evtq_overflow(a: Author) -> None:
    a.linear()
    a.boot(eventq=0)
    a.program.steps.append(("dma", 0, VA, False, 8, 0, True))


def evtq_irq(a: Author) -> None:
    a.linear()
    a.boot()
    a.program.steps.append(("dma", 0, VA, False, 8, 0, True))


def s2_ipa_low(a: Author) -> None:
    _s2(a)
    _go(a, VA + 0x124)


def guard(a: Author) -> None:
    a.linear()
    a.boot()
    a.w("STRTAB_BASE", 0)
    a.r("STRTAB_BASE")


def cr0_res(a: Author) -> None:
    a.linear()
    a.boot()
    a.w("CR0", ON | Cr0.mask("priqen", "atschk")[0])
    a.r("CR0ACK")


def irq_res(a: Author) -> None:
    a.linear()
    a.boot()
    a.w("IRQ_CTRL", 7)
    a.r("IRQ_CTRLACK")


def queue_index(a: Author) -> None:
    a.linear()
    a.boot()
    a.w("EVENTQ_CONS", 0x1000)
    a.r("EVENTQ_CONS")
    a.w("EVENTQ_CONS", 0)


def high_half(a: Author) -> None:
    _s1(a)
    high = a.table(high=True)
    high.map(high.base + VA, DATA, S1_OK)
    cd = a.cd(epd0=1, ttb1=high.root, epd1=0, t1sz=25, tg1=2)
    a.ste(SID, config=5, s1ctxptr=cd)
    _go(a, high.base + VA)


def gbpa(a: Author) -> None:
    a.linear()
    a.boot()
    a.w("GBPA", Gbpa.build(update=1, abort=1, shcfg=1).raw)
    a.r("GBPA")
