# SPDX-License-Identifier: BSD-2-Clause
"""Where QEMU departs from the architecture: what it does, the clause, how a comparison allows it.

A row's `probe` is a program that shows the departure, `shows` the first difference it makes, word
for word. Random programs either leave the cause out (`qemu_random` never makes it) or compare with
`qemu_allow`. A row stands from version `since` on and before `until`. It was tried on
QEMU 10.0.2, those named D-OLD on 7.2.22; versions 8 and 9 were not tried and are not compared. A
row that no longer shows what it says fails its test, which is the moment to close its range.
"""

from __future__ import annotations

from tests.differential import qemu_probes as p
from tests.differential.qemu_author import S1_OK
from tests.differential.qemu_deviation import AVOID, Deviation
from tests.differential.qemu_deviation import Deviation as R
from tests.differential.qemu_deviations_records import RECORDS
from vsmmu.arch import commands as c
from vsmmu.arch.pagetable import S1Leaf


def _old(
    name: str, clause: str, qemu: str, allowed: str, probe: p.Probe, shows: str
) -> Deviation:  # fmt: skip
    return Deviation(name, clause, qemu, allowed, probe, shows, (7,), (8,))


DEVIATIONS: tuple[Deviation, ...] = (
    # Isolation.
    R(
        "D-S2CONCAT",
        "Arm ARM D8.2.2",
        "the second concatenated table is the first",
        AVOID,
        p.s2_concat,
        "step 9: data: QEMU 000060d1, model 001460d1",
    ),
    R(
        "D-TT-CONTIG",
        "§7.3.13",
        "only a table's first page is translated by stage 2",
        AVOID,
        p.tt_contig,
        "step 9: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x11018000, s2=0x1, cls=0x1, ipa=0x24100a000)]",
    ),
    R(
        "D-TTB-CACHED",
        "§4.4.3",
        "TLBI keeps the stage 2 translation of TTB0",
        AVOID,
        p.ttb_cached,
        "step 12: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-UNPRIV",
        "Arm ARM D8.4.1",
        "AP[1] is ignored: every access is privileged",
        AVOID,
        p.s1_leaf(S1_OK & ~S1Leaf.mask("ap1")[0]),
        "step 9: events: QEMU [], model [F_PERMISSION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-APTABLE-TLB",
        "Arm ARM D8.4.3",
        "a TLB entry forgets APTable",
        AVOID,
        p.aptable_tlb,
        "step 10: events: QEMU [], model [F_PERMISSION(sid=0x8, inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-S2WO-TLB",
        "§7.3.16",
        "a read of write-only stage 2 hits the TLB, without an event",
        AVOID,
        p.s2_write_only,
        "step 10: events: QEMU [], model [F_PERMISSION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, s2=0x1, cls=0x2, ipa=0x10000000)]",
    ),
    R(
        "D-S2PTW",
        "§5.2 S2PTW",
        "ignored",
        AVOID,
        p.s2_ptw,
        "step 9: events: QEMU [], model [F_PERMISSION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, s2=0x1, cls=0x1, ipa=0x241000000, ttrnw=0x1)]",
    ),
    R(
        "D-GLOBAL",
        "§4.4.2",
        "a global entry stays when the TLBI has another ASID",
        AVOID,
        p.global_entry,
        "step 12: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-TBI-TLBI",
        "§4.4.2",
        "an entry made with a tag stays when the TLBI has none",
        AVOID,
        p.tbi_tlbi,
        "step 12: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x5a00000010000000, cls=0x2)]",
    ),
    R(
        "D-BYPASS-OAS",
        "§3.4",
        "a bypassed address above OAS passes",
        AVOID,
        p.bypass_oas,
        "step 9: events: QEMU [], model [F_ADDR_SIZE(sid=0x8, rnw=0x1, "
        "inputaddr=0x200000000000, cls=0x2)]",
    ),
    R(
        "D-CTXPTR-OAS",
        "§5.2 S1ContextPtr",
        "an S1ContextPtr above OAS is fetched",
        AVOID,
        p.ste_s1(s1ctxptr=1 << 45),
        "step 9: events: QEMU [F_CD_FETCH(sid=0x8, reserved[2]=0x200000000000)], model "
        "[C_BAD_STE(sid=0x8)]",
    ),
    R(
        "D-S2TTB-TRUNC",
        "§5.2 S2TTB",
        "high bits of S2TTB are dropped",
        AVOID,
        p.ste_s2(s2ttb=1 << 50),
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "s2=0x1, cls=0x2, ipa=0x10000000)], model [C_BAD_STE(sid=0x8)]",
    ),
    # Ends the process.
    R(
        "D-CRASH-S2AA64",
        "§5.2 S2AA64",
        "S2AA64=0 ends QEMU",
        AVOID,
        p.ste_s2(s2aa64=0),
        "QEMU ends",
    ),
    R("D-CRASH-IPS", "§5.4 IPS", "IPS of 6 or 7 ends QEMU", AVOID, p.cd_s1(ips=6), "QEMU ends"),
    # Configuration.
    R(
        "D-L1SPAN",
        "§5.1",
        "Span n has 2^n STEs",
        AVOID,
        p.l1_span,
        "step 9: events: QEMU [], model [C_BAD_STREAMID(sid=0x8)]",
    ),
    R(
        "D-L1SPAN-RES",
        "§5.1",
        "Span beyond SPLIT+1 is accepted",
        AVOID,
        p.l1_span_reserved,
        "step 9: events: QEMU [], model [C_BAD_STREAMID(sid=0x8)]",
    ),
    R(
        "D-SPLIT-RES",
        "§6.3.25",
        "a reserved SPLIT is used as it is",
        AVOID,
        p.split_reserved,
        "step 9: events: QEMU [C_BAD_STREAMID(sid=0x100)], model []",
    ),
    R(
        "D-RECINVSID",
        "§7.3.3",
        "C_BAD_STREAMID is recorded with RECINVSID=0",
        AVOID,
        p.rec_inv_sid,
        "step 9: events: QEMU [C_BAD_STREAMID(sid=0x8)], model []",
    ),
    R(
        "D-S1CDMAX",
        "§5.2 S1CDMax",
        "S1CDMax is not ignored with SSIDSIZE=0",
        AVOID,
        p.ste_s1(s1cdmax=1),
        "step 9: events: QEMU [C_BAD_STE(sid=0x8)], model []",
    ),
    R(
        "D-S1STALLD",
        "§5.2 S1STALLD",
        "S1STALLD is not ignored without stage 1",
        AVOID,
        p.ste_s2(s1stalld=1),
        "step 9: events: QEMU [C_BAD_STE(sid=0x8)], model []",
    ),
    R(
        "D-S2HTTU",
        "§5.2 S2HA",
        "S2HA is accepted with HTTU=0",
        AVOID,
        p.ste_s2(s2ha=1),
        "step 9: events: QEMU [], model [C_BAD_STE(sid=0x8)]",
    ),
    R(
        "D-S2T0SZ-PS",
        "§5.2 S2T0SZ",
        "the least S2T0SZ comes from S2PS",
        AVOID,
        p.ste_s2(s2ps=0),
        "step 9: events: QEMU [C_BAD_STE(sid=0x8)], model []",
    ),
    R(
        "D-S2SL-MIN",
        "§5.2 S2SL0",
        "a first level above what the input needs is accepted",
        AVOID,
        p.s2_sl_min,
        "step 9: events: QEMU [], model [C_BAD_STE(sid=0x8)]",
    ),
    R(
        "D-ILLEGAL-BLOCK",
        "Arm ARM D8.3.1",
        "a 4K level 0 block is honoured",
        AVOID,
        p.illegal_block,
        "step 9: events: QEMU [], model [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0x41800000, cls=0x2)]",
    ),
    R(
        "D-TBI1",
        "§5.4 TBI1",
        "TBI0 is read in its place",
        AVOID,
        p.tbi1,
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, "
        "inputaddr=0xa5ffff8010000000, cls=0x2)], model []",
    ),
    R(
        "D-TTB-BOTH",
        "§3.4",
        "both TTBs are translated when the CD is read",
        AVOID,
        p.ttb_both,
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "s2=0x1, cls=0x1, ipa=0x100000000)], model []",
    ),
    *RECORDS,
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
        AVOID,
        p.s1_leaf(S1_OK & ~S1Leaf.mask("af")[0]),
        "step 9: events: QEMU [], model [F_ACCESS(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    _old(
        "D-OLD-GBPA",
        "§6.3.14",
        "GBPA cannot be written",
        AVOID,
        p.gbpa,
        "step 10: GBPA: QEMU 0x0, model 0x101000",
    ),
    _old(
        "D-OLD-S2CMD",
        "§4.1.1",
        "CMD_TLBI_S12_VMALL is accepted without stage 2",
        AVOID,
        p.command(c.CmdTlbiS12Vmall.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
)
