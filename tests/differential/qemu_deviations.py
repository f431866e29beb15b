# SPDX-License-Identifier: BSD-2-Clause
"""Where QEMU departs from the architecture: what it does, the clause, how a comparison allows it.

A row's `probe` is a program that shows the departure, `shows` the first difference it makes, word
for word. Random programs either leave the cause out (`qemu_random` never makes it) or compare with
`allow`. A row stands from version `since` on and before `until`. It was tried on
QEMU 10.0.2, those named D-OLD on 7.2.22; versions 8 and 9 were not tried and are not compared. A
row that no longer shows what it says fails its test, which is the moment to close its range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.differential import qemu_probes as p
from tests.differential.qemu_author import S1_OK
from tests.differential.qemu_compare import Allow
from tests.differential.qemu_program import Seen
from vsmmu.arch import commands as c
from vsmmu.arch.events import (
    Event,
    EventClass,
    FCdFetch,
    FPermission,
    decode,
)
from vsmmu.arch.layout import Field
from vsmmu.arch.pagetable import S1Leaf

Words = tuple[int, ...]


# How differences are made equal. Each function does one thing to what was seen of both.


def _rewrite(seen: Seen, change: Callable[[Event], Event]) -> Seen:
    if not seen.get("events"):
        return seen
    return {**seen, "events": [change(decode(words)).words for words in seen["events"]]}


def _cleared(event: Event, *fields: Field) -> Event:
    words = list(event.words)
    for field in fields:
        words[field.word] &= ~field.bits
    return type(event)(tuple(words))


def ipa_low12(qemu: Seen, model: Seen) -> tuple[Seen, Seen]:
    def change(event: Event) -> Event:
        if "ipa" not in event.fields:
            return event
        return type(event)((*event.words[:3], event.words[3] & ~0xFFF))

    return _rewrite(qemu, change), model


def one_pulse(qemu: Seen, model: Seen) -> tuple[Seen, Seen]:
    if "irqs" not in qemu:
        return qemu, model
    pulses = qemu["irqs"]
    first = [p for i, p in enumerate(pulses) if p != "eventq" or "eventq" not in pulses[:i]]
    return {**qemu, "irqs": first}, model


def of_tables(qemu: Seen, model: Seen) -> tuple[Seen, Seen]:
    """Stage 2 faults on a CD or on stage 1's tables: type, StreamID, input address count."""

    def change(event: Event) -> Event:
        fields = event.fields
        if "cls" not in fields or fields["cls"].of(event.words) == EventClass.IN:
            return event
        gone = [fields[name] for name in ("s2", "rnw") if name in fields]
        if fields["cls"].of(event.words) == EventClass.TT and "ipa" in fields:
            gone.append(fields["ipa"])
        return _cleared(event, *gone)

    return _rewrite(qemu, change), _rewrite(model, change)


def cd_fetch(qemu: Seen, model: Seen) -> tuple[Seen, Seen]:
    def change(event: Event) -> Event:
        if not isinstance(event, FCdFetch):
            return event
        return FCdFetch((*event.words[:2], 0, event.words[2]))

    return _rewrite(qemu, change), model


def s2_tlb(qemu: Seen, model: Seen) -> tuple[Seen, Seen]:
    """F_PERMISSION of stage 2: QEMU may lack the record or its IPA."""
    if not model.get("events"):
        return qemu, model

    def weak(words: Words) -> bool:
        event = decode(words)
        return isinstance(event, FPermission) and bool(
            FPermission.s2.of(words) and FPermission.cls.of(words) == EventClass.IN
        )

    if not any(map(weak, model["events"])):
        return qemu, model
    want, rest = [], list(qemu["events"])
    for words in model["events"]:
        if not weak(words):
            want.append(words)
            continue
        zero = (*words[:3], 0)
        for form in (words, zero):
            if form in rest:
                rest.remove(form)
                break
    irqs = {} if rest else {"irqs": []}
    return {**qemu, "events": rest, **irqs}, {**model, "events": want, **irqs}


def no_records(qemu: Seen, model: Seen) -> tuple[Seen, Seen]:
    gone = ("events", "irqs", "overflow", "GBPA", "EVENTQ_PROD", "EVENTQ_CONS")
    return qemu, {name: value for name, value in model.items() if name not in gone}


# What random programs are compared with, by version; others were not tried.
_OLD: list[Allow] = [no_records]
_NEW: list[Allow] = [ipa_low12, one_pulse, of_tables, cd_fetch, s2_tlb]


def allowed(version: tuple[int, ...]) -> list[Allow] | None:
    """The allowances for a version of QEMU; None for one that was not tried."""
    if version < (8,):
        return _OLD
    return _NEW if version >= (10,) else None


@dataclass(frozen=True)
class Deviation:
    """A row: `name` is the row's id, `clause` IHI 0070's unless it says otherwise."""

    name: str
    clause: str
    qemu: str
    allowed: str
    probe: p.Probe
    shows: str
    since: tuple[int, ...] = (10, 0, 0)
    until: tuple[int, ...] = (999,)

    def covers(self, version: tuple[int, ...]) -> bool:
        """Whether the row speaks of a version."""
        return self.since <= version < self.until


def _old(
    name: str, clause: str, qemu: str, allowed: str, probe: p.Probe, shows: str
) -> Deviation:  # fmt: skip
    return Deviation(name, clause, qemu, allowed, probe, shows, (7,), (8,))


_AVOID = "not made by random programs"
_SAME_R = "random programs with such faults have R=S2R"
AVOIDED = (_AVOID, _SAME_R, "data and memory are compared, records are not", "no TTB1, no tags")
R = Deviation

DEVIATIONS: tuple[Deviation, ...] = (
    # Isolation.
    R(
        "D-S2CONCAT",
        "Arm ARM D8.2.2",
        "the second concatenated table is the first",
        _AVOID,
        p.s2_concat,
        "step 9: data: QEMU 000060d1, model 001460d1",
    ),
    R(
        "D-TT-CONTIG",
        "§7.3.13",
        "only a table's first page is translated by stage 2",
        _AVOID,
        p.tt_contig,
        "step 9: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x11018000, s2=0x1, cls=0x1, ipa=0x24100a000)]",
    ),
    R(
        "D-TTB-CACHED",
        "§4.4.3",
        "TLBI keeps the stage 2 translation of TTB0",
        _AVOID,
        p.ttb_cached,
        "step 12: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-UNPRIV",
        "Arm ARM D8.4.1",
        "AP[1] is ignored: every access is privileged",
        _AVOID,
        p.s1_leaf(S1_OK & ~S1Leaf.mask("ap1")[0]),
        "step 9: events: QEMU [], model [F_PERMISSION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-APTABLE-TLB",
        "Arm ARM D8.4.3",
        "a TLB entry forgets APTable",
        _AVOID,
        p.aptable_tlb,
        "step 10: events: QEMU [], model [F_PERMISSION(sid=0x8, inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-S2WO-TLB",
        "§7.3.16",
        "a read of write-only stage 2 hits the TLB, without an event",
        _AVOID,
        p.s2_write_only,
        "step 10: events: QEMU [], model [F_PERMISSION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, s2=0x1, cls=0x2, ipa=0x10000000)]",
    ),
    R(
        "D-S2PTW",
        "§5.2 S2PTW",
        "ignored",
        _AVOID,
        p.s2_ptw,
        "step 9: events: QEMU [], model [F_PERMISSION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, s2=0x1, cls=0x1, ipa=0x241000000, ttrnw=0x1)]",
    ),
    R(
        "D-GLOBAL",
        "§4.4.2",
        "a global entry stays when the TLBI has another ASID",
        _AVOID,
        p.global_entry,
        "step 12: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-TBI-TLBI",
        "§4.4.2",
        "an entry made with a tag stays when the TLBI has none",
        _AVOID,
        p.tbi_tlbi,
        "step 12: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x5a00000010000000, cls=0x2)]",
    ),
    R(
        "D-BYPASS-OAS",
        "§3.4",
        "a bypassed address above OAS passes",
        _AVOID,
        p.bypass_oas,
        "step 9: events: QEMU [], model [F_ADDR_SIZE(sid=0x8, rnw=0x1, "
        "inputaddr=0x200000000000, cls=0x2)]",
    ),
    R(
        "D-CTXPTR-OAS",
        "§5.2 S1ContextPtr",
        "an S1ContextPtr above OAS is fetched",
        _AVOID,
        p.ste_s1(s1ctxptr=1 << 45),
        "step 9: events: QEMU [F_CD_FETCH(sid=0x8, reserved[2]=0x200000000000)], model "
        "[C_BAD_STE(sid=0x8)]",
    ),
    R(
        "D-S2TTB-TRUNC",
        "§5.2 S2TTB",
        "high bits of S2TTB are dropped",
        _AVOID,
        p.ste_s2(s2ttb=1 << 50),
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "s2=0x1, cls=0x2, ipa=0x10000000)], model [C_BAD_STE(sid=0x8)]",
    ),
    # Ends the process.
    R(
        "D-CRASH-S2AA64",
        "§5.2 S2AA64",
        "S2AA64=0 ends QEMU",
        _AVOID,
        p.ste_s2(s2aa64=0),
        "QEMU ends",
    ),
    R("D-CRASH-IPS", "§5.4 IPS", "IPS of 6 or 7 ends QEMU", _AVOID, p.cd_s1(ips=6), "QEMU ends"),
    # Configuration.
    R(
        "D-L1SPAN",
        "§5.1",
        "Span n has 2^n STEs",
        _AVOID,
        p.l1_span,
        "step 9: events: QEMU [], model [C_BAD_STREAMID(sid=0x8)]",
    ),
    R(
        "D-L1SPAN-RES",
        "§5.1",
        "Span beyond SPLIT+1 is accepted",
        _AVOID,
        p.l1_span_reserved,
        "step 9: events: QEMU [], model [C_BAD_STREAMID(sid=0x8)]",
    ),
    R(
        "D-SPLIT-RES",
        "§6.3.25",
        "a reserved SPLIT is used as it is",
        _AVOID,
        p.split_reserved,
        "step 9: events: QEMU [C_BAD_STREAMID(sid=0x100)], model []",
    ),
    R(
        "D-RECINVSID",
        "§7.3.3",
        "C_BAD_STREAMID is recorded with RECINVSID=0",
        _AVOID,
        p.rec_inv_sid,
        "step 9: events: QEMU [C_BAD_STREAMID(sid=0x8)], model []",
    ),
    R(
        "D-S1CDMAX",
        "§5.2 S1CDMax",
        "S1CDMax is not ignored with SSIDSIZE=0",
        _AVOID,
        p.ste_s1(s1cdmax=1),
        "step 9: events: QEMU [C_BAD_STE(sid=0x8)], model []",
    ),
    R(
        "D-S1STALLD",
        "§5.2 S1STALLD",
        "S1STALLD is not ignored without stage 1",
        _AVOID,
        p.ste_s2(s1stalld=1),
        "step 9: events: QEMU [C_BAD_STE(sid=0x8)], model []",
    ),
    R(
        "D-S2HTTU",
        "§5.2 S2HA",
        "S2HA is accepted with HTTU=0",
        _AVOID,
        p.ste_s2(s2ha=1),
        "step 9: events: QEMU [], model [C_BAD_STE(sid=0x8)]",
    ),
    R(
        "D-S2T0SZ-PS",
        "§5.2 S2T0SZ",
        "the least S2T0SZ comes from S2PS",
        _AVOID,
        p.ste_s2(s2ps=0),
        "step 9: events: QEMU [C_BAD_STE(sid=0x8)], model []",
    ),
    R(
        "D-S2SL-MIN",
        "§5.2 S2SL0",
        "a first level above what the input needs is accepted",
        _AVOID,
        p.s2_sl_min,
        "step 9: events: QEMU [], model [C_BAD_STE(sid=0x8)]",
    ),
    R(
        "D-ILLEGAL-BLOCK",
        "Arm ARM D8.3.1",
        "a 4K level 0 block is honoured",
        _AVOID,
        p.illegal_block,
        "step 9: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x41800000, cls=0x2)]",
    ),
    R(
        "D-TBI1",
        "§5.4 TBI1",
        "TBI0 is read in its place",
        _AVOID,
        p.tbi1,
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0xa5ffff8010000000, cls=0x2)], model []",
    ),
    R(
        "D-TTB-BOTH",
        "§3.4",
        "both TTBs are translated when the CD is read",
        _AVOID,
        p.ttb_both,
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "s2=0x1, cls=0x1, ipa=0x100000000)], model []",
    ),
    # Faults.
    R(
        "D-TT-S2BIT",
        "§7.3.13",
        "S2=0 and IPA=table where stage 2 faults on a table",
        "S2, RnW and IPA of CLASS TT and CD are not compared",
        p.tt_fault,
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x1, ipa=0x241003000)], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, s2=0x1, cls=0x1, ipa=0x241003000)]",
    ),
    R(
        "D-TT-S2R",
        "§5.2 S2R",
        "such a fault is recorded by CD.R, not by STE.S2R",
        _SAME_R,
        lambda a: p.tt_fault(a, s2r=0),
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x1, ipa=0x241003000)], model []",
    ),
    R(
        "D-TT-R",
        "§5.4 R",
        "and suppressed by CD.R",
        _SAME_R,
        lambda a: p.tt_fault(a, r=0),
        "step 9: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, s2=0x1, cls=0x1, ipa=0x241003000)]",
    ),
    R(
        "D-RNW-CDTT",
        "§7.3.13",
        "RnW=1 for a write whose CD stage 2 does not map",
        "S2, RnW and IPA of CLASS TT and CD are not compared",
        p.cd_fault,
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "s2=0x1, cls=0x1, ipa=0x241000000)], model [F_TRANSLATION(sid=0x8, "
        "inputaddr=0x10000000, s2=0x1, cls=0x1, ipa=0x241000000)]",
    ),
    R(
        "D-CDFETCH-ADDR",
        "§7.3.10",
        "FetchAddr is in the record's third word",
        "the word is moved",
        p.cd_fetch_nowhere,
        "step 9: events: QEMU [F_CD_FETCH(sid=0x8, reserved[2]=0x480000000)], model "
        "[F_CD_FETCH(sid=0x8, fetchaddr=0x480000000)]",
    ),
    R(
        "D-TABLE-ADDRSIZE",
        "§3.4",
        "F_WALK_EABT for a table beyond IPS",
        _AVOID,
        p.table_addrsize,
        "step 9: events: QEMU [F_WALK_EABT(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x1, fetchaddr=0x480000000)], model [F_ADDR_SIZE(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-PRIO-ADDRSIZE",
        "§7.3.14",
        "F_ACCESS comes before F_ADDR_SIZE",
        _AVOID,
        p.s1_leaf(S1_OK & ~S1Leaf.mask("af")[0], 1 << 45),
        "step 9: events: QEMU [F_ACCESS(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x2)], model [F_ADDR_SIZE(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x2)]",
    ),
    R(
        "D-APTABLE-PRIO",
        "Arm ARM D8.4.3",
        "APTable is tried before the leaf is read",
        _AVOID,
        p.aptable_prio,
        "step 9: events: QEMU [F_PERMISSION(sid=0x8, inputaddr=0x10000000, cls=0x2)], "
        "model [F_ACCESS(sid=0x8, inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-S2-IAS",
        "§3.4",
        "no record for an input above IAS",
        _AVOID,
        p.s2_ias,
        "step 9: events: QEMU [], model [F_ADDR_SIZE(sid=0x8, rnw=0x1, "
        "inputaddr=0x200000000000, cls=0x2)]",
    ),
    R(
        "D-S2TLB-EVENT",
        "§7.3.16",
        "a stage 2 permission fault on a TLB hit has no record",
        "the record may lack",
        p.s2_tlb_event,
        "step 10: events: QEMU [], model [F_PERMISSION(sid=0x8, inputaddr=0x10000000, "
        "s2=0x1, cls=0x2, ipa=0x10000000)]",
    ),
    R(
        "D-IPA-LOW12",
        "§7.3.13",
        "IPA has its low 12 bits",
        "they are not compared",
        p.s2_ipa_low,
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000124, "
        "s2=0x1, cls=0x2, ipa=0x10000000, reserved[3]=0x124)], model "
        "[F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000124, s2=0x1, cls=0x2, "
        "ipa=0x10000000)]",
    ),
    R(
        "D-EVTQ-OVF",
        "§7.4",
        "a full queue is EVENTQ_ABT_ERR, not OVFLG",
        _AVOID,
        p.evtq_overflow,
        "step 9: GERROR: QEMU 0x4, model 0x0",
    ),
    R(
        "D-EVTQ-IRQ",
        "§3.18",
        "a pulse for each record",
        "counted once for an access",
        p.evtq_irq,
        "step 9: irqs: QEMU [eventq, eventq], model [eventq]",
    ),
    # Commands and registers.
    R(
        "D-CMD-EL2",
        "§4.1.1",
        "CMD_TLBI_EL2_ALL is accepted without Hyp",
        _AVOID,
        p.command(c.CmdTlbiEl2All.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-ATC",
        "§4.1.1",
        "CMD_ATC_INV is accepted without ATS",
        _AVOID,
        p.command(c.CmdAtcInv.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-PRI",
        "§4.1.1",
        "CMD_PRI_RESP is accepted without PRI",
        _AVOID,
        p.command(c.CmdPriResp.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-RESUME",
        "§4.1.1",
        "CMD_RESUME is accepted without stalling",
        _AVOID,
        p.command(c.CmdResume.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-STALL",
        "§4.1.1",
        "CMD_STALL_TERM is accepted without stalling",
        _AVOID,
        p.command(c.CmdStallTerm.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-SYNC-CS3",
        "§4.7.3",
        "CS=3 is accepted",
        _AVOID,
        p.command(c.CmdSync((c.CmdSync.opcode | 3 << 12, 0))),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-RIL-RES",
        "§4.4.1",
        "TG without a range is accepted",
        _AVOID,
        p.command(c.CmdTlbiNhVa.build(tg=1)),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-PREFETCH-SSEC",
        "§4.1.6",
        "SSec=1 is accepted in CMD_PREFETCH_CONFIG",
        _AVOID,
        p.command(c.CmdPrefetchConfig.build(ssec=1)),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-GUARD",
        "§6.3.24",
        "STRTAB_BASE can be written with SMMUEN=1",
        _AVOID,
        p.guard,
        "step 10: STRTAB_BASE: QEMU 0x0, model 0x40800000",
    ),
    R(
        "D-CR0-RES",
        "§6.3.10",
        "CR0ACK shows enables of absent features",
        _AVOID,
        p.cr0_res,
        "step 10: CR0ACK: QEMU 0x1f, model 0xd",
    ),
    R(
        "D-IRQ-RES",
        "§6.3.17",
        "IRQ_CTRLACK shows PRIQ_IRQEN without PRI",
        _AVOID,
        p.irq_res,
        "step 10: IRQ_CTRLACK: QEMU 0x7, model 0x5",
    ),
    R(
        "D-QIDX-RAZ",
        "§6.3.96",
        "index bits above the queue's size read back",
        _AVOID,
        p.queue_index,
        "step 10: EVENTQ_CONS: QEMU 0x1000, model 0x0",
    ),
    # Version 7, which has stage 1 alone.
    _old(
        "D-OLD-RECORDS",
        "§7.3",
        "records lack CLASS and RnW",
        "data and memory are compared, records are not",
        p.cd_s1(epd0=1),
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000)], "
        "model [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, cls=0x2)]",
    ),
    _old(
        "D-OLD-48BIT",
        "§3.4.1",
        "an address above 48 bits does not reach the SMMU",
        "no TTB1, no tags",
        p.high_half,
        "step 9: data: QEMU 00000000, model 000060d1",
    ),
    _old(
        "D-OLD-AF",
        "Arm ARM D8.4.5",
        "the access flag is ignored",
        _AVOID,
        p.s1_leaf(S1_OK & ~S1Leaf.mask("af")[0]),
        "step 9: events: QEMU [], model [F_ACCESS(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    _old(
        "D-OLD-GBPA",
        "§6.3.14",
        "GBPA cannot be written",
        _AVOID,
        p.gbpa,
        "step 10: GBPA: QEMU 0x0, model 0x101000",
    ),
    _old(
        "D-OLD-S2CMD",
        "§4.1.1",
        "CMD_TLBI_S12_VMALL is accepted without stage 2",
        _AVOID,
        p.command(c.CmdTlbiS12Vmall.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
)
