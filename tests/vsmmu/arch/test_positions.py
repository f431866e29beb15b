# SPDX-License-Identifier: BSD-2-Clause
"""Every field of every layout against positions typed a second time, from the written tables.

A line is `name msb:lsb` or `name bit`, absolute. Both sides must name the same fields, so that a
field nobody has checked cannot appear. No second opinion beyond these tables: neither QEMU nor
Linux has the fields of ATOS, PRIQ_IRQ_CFG2 and permission indirection.
"""

from __future__ import annotations

import inspect

import pytest

from vsmmu.arch import (
    commands,
    context,
    events,
    feature_registers,
    pagetable,
    pri,
    registers,
    stream_table,
)
from vsmmu.arch.layout import Layout

MODULES = (
    commands, context, events, feature_registers, pagetable, pri, registers, stream_table,
)  # fmt: skip
LAYOUTS = {
    name: cls
    for module in MODULES
    for name, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, Layout) and cls is not Layout and not name.startswith("_")
}

COMMAND = "op 7:0"
SID = f"{COMMAND}, ssec 10, sid 63:32"
SSID = f"{SID}, ssv 11, ssid 31:12"
RANGE = f"{COMMAND}, num 16:12, scale 25:20, leaf 64, ttl 73:72, tg 75:74, addr 127:76"
EVENT = "type 7:0, ssv 11, ssid 31:12, sid 63:32"
ACCESS = f"{EVENT}, pnu 97, ind 98, rnw 99, inputaddr 191:128"
FETCH = f"{EVENT}, reason 79:64, gpcf 80, fetchaddr 247:195"
TRANSLATION = f"{ACCESS}, stag 79:64, stall 95, nsipa 102, s2 103, cls 105:104, ipa 247:204"
S1 = (
    "valid 0, table 1, attrindx 4:2, ns 5, ap1 6, ap2 7, af 10, ng 11, dbm 51, contig 52, pxn 53, "
    "uxn 54, pbha 62:59"
)
S2 = (
    "valid 0, table 1, memattr 5:2, s2ap_r 6, s2ap_w 7, af 10, dbm 51, contig 52, xn0 53, xn1 54, "
    "pbha 62:59"
)
TABLE = "valid 0, table 1, pxntable 59, uxntable 60, aptable0 61, aptable1 62, nstable 63"
CR0 = "smmuen 0, priqen 1, eventqen 2, cmdqen 3, atschk 4, vmw 8:6"
GERROR = (
    "cmdq_err 0, eventq_abt_err 2, priq_abt_err 3, msi_cmdq_abt_err 4, msi_eventq_abt_err 5, "
    "msi_priq_abt_err 6, msi_gerror_abt_err 7, sfm_err 8"
)
IRQ_CFG2 = "memattr 3:0, sh 5:4"

TYPED = {
    # §5 of the fact sheet.
    "L1Std": "span 4:0, l2ptr 55:6",
    "Ste": """
        v 0, config 3:1, s1fmt 5:4, s1ctxptr 51:6, s1cdmax 63:59,
        s1dss 65:64, s1cir 67:66, s1cor 69:68, s1csh 71:70, s2hwu 75:72, dre 76, cont 80:77,
        dcp 81, ppar 82, mev 83, software 87:84, s1pie 88, s2fwb 89, s1mpam 90, s1stalld 91,
        eats 93:92, strw 95:94, memattr 99:96, mtcfg 100, alloccfg 104:101, shcfg 109:108,
        nscfg 111:110, privcfg 113:112, instcfg 115:114, impdef1 127:116,
        s2vmid 143:128, impdef2 159:144, s2t0sz 165:160, s2sl0 167:166, s2ir0 169:168,
        s2or0 171:170, s2sh0 173:172, s2tg 175:174, s2ps 178:176, s2aa64 179, s2endi 180,
        s2affd 181, s2ptw 182, s2hd 183, s2ha 184, s2s 185, s2r 186, s2haft 187, s2pie 188,
        s2poe 189, dpt_vmatch 191:190,
        s2nsw 192, s2nsa 193, s2sl0_2 194, s2ds 195, s2ttb 243:196, s2skl 254:253,
        partid 287:272, s_s2t0sz 293:288, s_s2sl0 295:294, s_s2tg 303:302, mecid 319:304,
        pmg 327:320, mpam_ns 328, assuredonly 329, tl0 330, tl1 331, vmsptr 375:332,
        s2sw 384, s2sa 385, s_s2sl0_2 386, s_s2ttb 439:388, s_s2skl 446:445, s2poi_lo 511:448""",
    # §6.
    "L1Cd": "v 0, l2ptr 55:12",
    "Cd": """
        t0sz 5:0, tg0 7:6, ir0 9:8, or0 11:10, sh0 13:12, epd0 14, endi 15, t1sz 21:16, tg1 23:22,
        ir1 25:24, or1 27:26, sh1 29:28, epd1 30, v 31, ips 34:32, affd 35, wxn 36, uwxn 37,
        tbi0 38, tbi1 39, pan 40, aa64 41, hd 42, ha 43, s 44, r 45, a 46, aset 47, asid 63:48,
        nscfg0 64, had0 65, e0pd0 66, haft 67, ttb0 115:68, pnch 122, epan 123, hwu059 124,
        hwu060 125, hwu061 127:126,
        nscfg1 128, had1 129, e0pd1 130, aie 131, ttb1 179:132, ds 186, pie 187, hwu159 189:188,
        hwu161 191:190, mair0 223:192, mair1 255:224, amair 319:256, impdef 351:320,
        partid 367:352, pmg 375:368, piiu 431:384, piip 495:448""",
    # §3.
    "Command": COMMAND,
    "CmdPrefetchConfig": SSID,
    "CmdPrefetchAddr": f"{SSID}, size_lg2 68:64, stride 73:69, addr 127:76",
    "CmdCfgiSte": f"{SID}, leaf 64",
    "CmdCfgiSteRange": f"{SID}, range 68:64",
    "CmdCfgiCd": f"{SID}, ssid 31:12, leaf 64",
    "CmdCfgiCdAll": SID,
    "CmdTlbiNhAll": f"{COMMAND}, vmid 47:32",
    "CmdTlbiNhAsid": f"{COMMAND}, vmid 47:32, asid 63:48",
    "CmdTlbiNhVa": f"{RANGE}, vmid 47:32, asid 63:48",
    "CmdTlbiNhVaa": f"{RANGE}, vmid 47:32",
    "CmdTlbiEl2All": COMMAND,
    "CmdTlbiEl2Asid": f"{COMMAND}, asid 63:48",
    "CmdTlbiEl2Va": f"{RANGE}, asid 63:48",
    "CmdTlbiEl2Vaa": RANGE,
    "CmdTlbiS12Vmall": f"{COMMAND}, vmid 47:32",
    "CmdTlbiS2Ipa": f"{RANGE}, vmid 47:32",
    "CmdTlbiNsnhAll": COMMAND,
    "CmdAtcInv": f"{SSID}, globl 9, size_lg2 69:64, addr 127:76",
    "CmdPriResp": f"{SSID}, prgindex 72:64, resp 77:76",
    "CmdResume": f"{SID}, ac 12, ab 13, stag 79:64",
    "CmdStallTerm": SID,
    "CmdSync": f"{COMMAND}, cs 13:12, msh 23:22, msiattr 27:24, msidata 63:32, msiaddress 119:66",
    # §4.
    "Event": EVENT,
    "FUut": f"{ACCESS}, reason 79:64",
    "CBadStreamid": EVENT,
    "FSteFetch": FETCH,
    "CBadSte": EVENT,
    "FBadAtsTreq": f"{EVENT}, span 67:64, p 92, x 93, w 94, r 95, inputaddr 191:140",
    "FStreamDisabled": EVENT,
    "FTranslForbidden": f"{EVENT}, rnw 99, inputaddr 191:128",
    "CBadSubstreamid": EVENT,
    "FCdFetch": FETCH,
    "CBadCd": EVENT,
    "FWalkEabt": f"{ACCESS}, reason 79:64, gpcf 80, s2 103, cls 105:104, fetchaddr 247:195",
    "FTranslation": TRANSLATION,
    "FAddrSize": TRANSLATION,
    "FAccess": TRANSLATION,
    "FPermission": f"{TRANSLATION}, ttrnw 108",
    "FTlbConflict": f"{ACCESS}, reason 79:64, s2 103, ipa 247:204",
    "FCfgConflict": f"{EVENT}, reason 79:64",
    # §11.4.
    "PriEntry": "sid 31:0, ssid 51:32, priv 58, x 59, r 60, w 61, last 62, ssv 63, "
    "prgindex 72:64, addr 127:76",
    # §7.2.
    "S1Leaf": f"{S1}, sh 9:8, oa 49:12",
    "S2Leaf": f"{S2}, sh 9:8, oa 49:12",
    "TableDesc": f"{TABLE}, oa 49:12",
    "S1Block": f"{S1}, sh 9:8, nt 16, oa 49:21",
    "S2Block": f"{S2}, sh 9:8, nt 16, oa 49:21",
    "S1LeafLpa2": f"{S1}, oa_high 9:8, oa 49:12",
    "S2LeafLpa2": f"{S2}, oa_high 9:8, oa 49:12",
    "TableDescLpa2": f"{TABLE}, oa_high 9:8, oa 49:12",
    "S1LeafLpa": f"{S1}, sh 9:8, oa_high 15:12, oa 47:16",
    "S2LeafLpa": f"{S2}, sh 9:8, oa_high 15:12, oa 47:16",
    "TableDescLpa": f"{TABLE}, oa_high 15:12, oa 47:16",
    # §1.
    "Idr0": """
        s2p 0, s1p 1, ttf 3:2, cohacc 4, btm 5, httu 7:6, dormhint 8, hyp 9, ats 10, ns1ats 11,
        asid16 12, msi 13, sev 14, atos 15, pri 16, vmw 17, vmid16 18, cd2l 19, vatos 20,
        ttendian 22:21, atsrecerr 23, stall_model 25:24, term_model 26, st_level 28:27,
        rme_impl 30""",
    "Idr1": """
        sidsize 5:0, ssidsize 10:6, priqs 15:11, eventqs 20:16, cmdqs 25:21, attr_perms_ovr 26,
        attr_types_ovr 27, rel 28, queues_preset 29, tables_preset 30, ecmdq 31""",
    "Idr2": "ba_vatos 9:0",
    "Idr3": """
        had 2, pbha 3, xnx 4, pps 5, mpam 7, fwb 8, stt 9, ril 10, bbml 12:11, e0pd 13, ptwnnc 14,
        dpt 15, pasidtt 16, epan 17, s1pi 18, s2pi 19, s2po 20, the 21, mteperm 22, aie 23""",
    "Idr4": "impdef 31:0",
    "Idr5": "oas 2:0, gran4k 4, gran16k 5, gran64k 6, ds 7, d128 8, vax 11:10, stall_max 31:16",
    "Iidr": "implementer 11:0, revision 15:12, variant 19:16, productid 31:20",
    "Aidr": "archminrev 3:0, archmajrev 7:4",
    "Cr0": CR0,
    "Cr1": "queue_ic 1:0, queue_oc 3:2, queue_sh 5:4, table_ic 7:6, table_oc 9:8, table_sh 11:10",
    "Cr2": "e2h 0, recinvsid 1, ptm 2, rec_cfg_ats 3",
    "Statusr": "dormant 0",
    "Gbpa": """
        memattr 3:0, mtcfg 4, alloccfg 11:8, shcfg 13:12, privcfg 17:16, instcfg 19:18, abort 20,
        update 31""",
    "IrqCtrl": "gerror_irqen 0, priq_irqen 1, eventq_irqen 2",
    "Gerror": GERROR,
    "GerrorAll": f"{GERROR}, cmdqp_err 9, dpt_err 10",
    "IrqCfg0": "addr 55:2",
    "IrqCfg1": "data 31:0",
    "IrqCfg2": IRQ_CFG2,
    "PriqIrqCfg2": f"{IRQ_CFG2}, lo 31",
    "StrtabBase": "addr 55:6, ra 62",
    "StrtabBaseCfg": "log2size 5:0, split 10:6, fmt 17:16",
    "QueueBase": "log2size 4:0, addr 55:5, hint 62",
    "CmdqProd": "wr 19:0",
    "CmdqCons": "rd 19:0, err 30:24",
    "EventqProd": "wr 19:0, ovflg 31",
    "EventqCons": "rd 19:0, ovackflg 31",
    "GatosCtrl": "run 0",
    "GatosSid": "streamid 31:0, substreamid 51:32, ssid_valid 52",
    "GatosAddr": "httui 6, ind 7, rnw 8, pnu 9, type 11:10, addr 63:12",
    "GatosPar": "fault 0, sh 9:8, size_flag 11, addr 55:12, attr 63:56",
    "GatosParFault": "fault 0, reason 2:1, faultcode 11:4, faddr 55:12, impdef 63:60",
    "Unmodelled": "",
    "Unmodelled64": "",
}

# Name, offset, bits, writable: §1.2 and §1.3.
REGISTERS = """
    IDR0 0 32 ro, IDR1 4 32 ro, IDR2 8 32 ro, IDR3 c 32 ro, IDR4 10 32 ro, IDR5 14 32 ro,
    IIDR 18 32 ro, AIDR 1c 32 ro, CR0 20 32 rw, CR0ACK 24 32 ro, CR1 28 32 rw, CR2 2c 32 rw,
    S2PII 30 64 rw, STATUSR 40 32 ro, GBPA 44 32 rw, AGBPA 48 32 rw, IRQ_CTRL 50 32 rw,
    IRQ_CTRLACK 54 32 ro, GERROR 60 32 ro, GERRORN 64 32 rw, GERROR_IRQ_CFG0 68 64 rw,
    GERROR_IRQ_CFG1 70 32 rw, GERROR_IRQ_CFG2 74 32 rw, STRTAB_BASE 80 64 rw,
    STRTAB_BASE_CFG 88 32 rw, CMDQ_BASE 90 64 rw, CMDQ_PROD 98 32 rw, CMDQ_CONS 9c 32 rw,
    EVENTQ_BASE a0 64 rw, EVENTQ_IRQ_CFG0 b0 64 rw, EVENTQ_IRQ_CFG1 b8 32 rw,
    EVENTQ_IRQ_CFG2 bc 32 rw, PRIQ_BASE c0 64 rw, PRIQ_IRQ_CFG0 d0 64 rw, PRIQ_IRQ_CFG1 d8 32 rw,
    PRIQ_IRQ_CFG2 dc 32 rw, GATOS_CTRL 100 32 rw, GATOS_SID 108 64 rw, GATOS_ADDR 110 64 rw,
    GATOS_PAR 118 64 ro, MPAMIDR 130 32 ro, GMPAM 138 32 rw, GBPMPAM 13c 32 rw,
    VATOS_SEL 180 32 rw, IDR6 190 32 ro, DPT_BASE 200 64 rw, DPT_BASE_CFG 208 32 rw,
    DPT_CFG_FAR 210 64 rw, EVENTQ_PROD 100a8 32 rw, EVENTQ_CONS 100ac 32 rw,
    PRIQ_PROD 100c8 32 rw, PRIQ_CONS 100cc 32 rw"""
GUARDS = {
    "CR2": ("smmuen",), "STRTAB_BASE": ("smmuen",), "STRTAB_BASE_CFG": ("smmuen",),
    "CMDQ_BASE": ("cmdqen",), "CMDQ_CONS": ("cmdqen",), "EVENTQ_BASE": ("eventqen",),
    "EVENTQ_PROD": ("eventqen",), "PRIQ_BASE": ("priqen",), "PRIQ_PROD": ("priqen",),
    **{f"GERROR_IRQ_CFG{n}": ("gerror_irqen",) for n in range(3)},
    **{f"EVENTQ_IRQ_CFG{n}": ("eventq_irqen",) for n in range(3)},
    **{f"PRIQ_IRQ_CFG{n}": ("priq_irqen",) for n in range(3)},
}  # fmt: skip


def typed(text: str) -> dict[str, tuple[int, int]]:
    fields = {}
    for item in filter(str.strip, text.split(",")):
        name, place = item.split()
        msb, _, lsb = place.partition(":")
        fields[name] = int(msb), int(lsb or msb)
    return fields


def test_the_tables_name_the_same_structures() -> None:
    assert set(TYPED) == set(LAYOUTS)


@pytest.mark.parametrize("name", TYPED)
def test_fields(name: str) -> None:
    declared = {f.name: (f.msb, f.lsb) for f in LAYOUTS[name].fields.values()}
    assert declared == typed(TYPED[name])


def test_register_map() -> None:
    declared = {(r.name, r.offset, r.width, r.writable) for r in feature_registers.EVERY_REGISTER}
    rows = (item.split() for item in REGISTERS.split(","))
    assert declared == {(n, int(o, 16), int(w), a == "rw") for n, o, w, a in rows}


def test_register_guards() -> None:
    every = {r.name: r.guard for r in feature_registers.EVERY_REGISTER if r.guard}
    assert every == GUARDS


def test_registers_of_a_feature_exist_with_it() -> None:
    """§1.2: PRIQ_* with IDR0.PRI, CFG0 and CFG1 with MSI too; LO of CFG2 acts without MSI."""
    common = {r.name for r in registers.REGISTERS}

    def more(**fields: int) -> set[str]:
        idr0 = registers.Idr0.build(**fields).raw
        return {r.name for r in feature_registers.present({"IDR0": idr0})} - common

    priq = {"PRIQ_BASE", "PRIQ_PROD", "PRIQ_CONS", "PRIQ_IRQ_CFG2"}
    assert more() == more(msi=1) == set()
    assert more(pri=1) == priq
    assert more(pri=1, msi=1) == priq | {"PRIQ_IRQ_CFG0", "PRIQ_IRQ_CFG1"}
    assert more(atos=1) == {"GATOS_CTRL", "GATOS_SID", "GATOS_ADDR", "GATOS_PAR"}
    assert more(dormhint=1) == {"STATUSR"}


def test_registers_do_not_overlap() -> None:
    taken = [
        r.offset + at for r in feature_registers.EVERY_REGISTER for at in range(0, r.width // 8, 4)
    ]
    assert len(taken) == len(set(taken))


def test_addresses_have_their_low_bit_where_the_field_says() -> None:
    """The lowest address bit that each address field can hold."""
    lowest = {
        ("Ste", "s1ctxptr"): 6, ("Ste", "s2ttb"): 4, ("Ste", "vmsptr"): 12, ("Cd", "ttb0"): 4,
        ("Cd", "ttb1"): 4, ("L1Cd", "l2ptr"): 12, ("L1Std", "l2ptr"): 6,
        ("CmdTlbiNhVa", "addr"): 12, ("CmdAtcInv", "addr"): 12, ("CmdSync", "msiaddress"): 2,
        ("FTranslation", "ipa"): 12, ("FWalkEabt", "fetchaddr"): 3, ("FCdFetch", "fetchaddr"): 3,
        ("FBadAtsTreq", "inputaddr"): 12, ("PriEntry", "addr"): 12, ("StrtabBase", "addr"): 6,
        ("QueueBase", "addr"): 5, ("IrqCfg0", "addr"): 2, ("GatosPar", "addr"): 12,
        ("GatosAddr", "addr"): 12,
    }  # fmt: skip
    for (layout, field), low in lowest.items():
        assert LAYOUTS[layout].fields[field].scale == low, (layout, field)
