# SPDX-License-Identifier: BSD-2-Clause
"""Where QEMU departs from the architecture: event records, commands, registers.

Rows as in `qemu_deviations`.
"""

from __future__ import annotations

from tests.differential import qemu_probes as p
from tests.differential.qemu_author import S1_OK
from tests.differential.qemu_deviation import AVOID, SAME_R, Deviation
from tests.differential.qemu_deviation import Deviation as R
from vsmmu.arch import commands as c
from vsmmu.arch.pagetable import S1Leaf

RECORDS: tuple[Deviation, ...] = (
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
        SAME_R,
        lambda a: p.tt_fault(a, s2r=0),
        "step 9: events: QEMU [F_TRANSLATION(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x1, ipa=0x241003000)], model []",
    ),
    R(
        "D-TT-R",
        "§5.4 R",
        "and suppressed by CD.R",
        SAME_R,
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
        AVOID,
        p.table_addrsize,
        "step 9: events: QEMU [F_WALK_EABT(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x1, fetchaddr=0x480000000)], model [F_ADDR_SIZE(sid=0x8, rnw=0x1, "
        "inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-PRIO-ADDRSIZE",
        "§7.3.14",
        "F_ACCESS comes before F_ADDR_SIZE",
        AVOID,
        p.s1_leaf(S1_OK & ~S1Leaf.mask("af")[0], 1 << 45),
        "step 9: events: QEMU [F_ACCESS(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x2)], model [F_ADDR_SIZE(sid=0x8, rnw=0x1, inputaddr=0x10000000, "
        "cls=0x2)]",
    ),
    R(
        "D-APTABLE-PRIO",
        "Arm ARM D8.4.3",
        "APTable is tried before the leaf is read",
        AVOID,
        p.aptable_prio,
        "step 9: events: QEMU [F_PERMISSION(sid=0x8, inputaddr=0x10000000, cls=0x2)], "
        "model [F_ACCESS(sid=0x8, inputaddr=0x10000000, cls=0x2)]",
    ),
    R(
        "D-S2-IAS",
        "§3.4",
        "no record for an input above IAS",
        AVOID,
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
        AVOID,
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
        AVOID,
        p.command(c.CmdTlbiEl2All.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-ATC",
        "§4.1.1",
        "CMD_ATC_INV is accepted without ATS",
        AVOID,
        p.command(c.CmdAtcInv.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-PRI",
        "§4.1.1",
        "CMD_PRI_RESP is accepted without PRI",
        AVOID,
        p.command(c.CmdPriResp.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-RESUME",
        "§4.1.1",
        "CMD_RESUME is accepted without stalling",
        AVOID,
        p.command(c.CmdResume.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-CMD-STALL",
        "§4.1.1",
        "CMD_STALL_TERM is accepted without stalling",
        AVOID,
        p.command(c.CmdStallTerm.build()),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-SYNC-CS3",
        "§4.7.3",
        "CS=3 is accepted",
        AVOID,
        p.command(c.CmdSync((c.CmdSync.opcode | 3 << 12, 0))),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-RIL-RES",
        "§4.4.1",
        "TG without a range is accepted",
        AVOID,
        p.command(c.CmdTlbiNhVa.build(tg=1)),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-PREFETCH-SSEC",
        "§4.1.6",
        "SSec=1 is accepted in CMD_PREFETCH_CONFIG",
        AVOID,
        p.command(c.CmdPrefetchConfig.build(ssec=1)),
        "step 9: CMDQ_CONS: QEMU 0x1, model 0x1000000",
    ),
    R(
        "D-GUARD",
        "§6.3.24",
        "STRTAB_BASE can be written with SMMUEN=1",
        AVOID,
        p.guard,
        "step 10: STRTAB_BASE: QEMU 0x0, model 0x40800000",
    ),
    R(
        "D-CR0-RES",
        "§6.3.10",
        "CR0ACK shows enables of absent features",
        AVOID,
        p.cr0_res,
        "step 10: CR0ACK: QEMU 0x1f, model 0xd",
    ),
    R(
        "D-IRQ-RES",
        "§6.3.17",
        "IRQ_CTRLACK shows PRIQ_IRQEN without PRI",
        AVOID,
        p.irq_res,
        "step 10: IRQ_CTRLACK: QEMU 0x7, model 0x5",
    ),
    R(
        "D-QIDX-RAZ",
        "§6.3.96",
        "index bits above the queue's size read back",
        AVOID,
        p.queue_index,
        "step 10: EVENTQ_CONS: QEMU 0x1000, model 0x0",
    ),
)
