# SPDX-License-Identifier: BSD-2-Clause
"""What is wrong with a command, a record, a level 1 descriptor, a register (IHI 0070 §4 to §8).

STEs and CDs are in `legality_ste` and `legality_cd`. All of this is for diagnostics: the models
decide for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vsmmu.arch.commands import ATC_INV_ALL, REJECTED_OPCODES, Cs, Resp, TlbiTg
from vsmmu.arch.commands import decode as decode_command
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.events import TRANSLATION_FAULTS, Event, EventClass
from vsmmu.arch.feature_registers import REFUSED_REGISTERS
from vsmmu.arch.legality import Identification, Reason, ias_bits, oas_bits
from vsmmu.arch.legality_ste import strw_used
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import Idr0, Idr1, Idr3, Register, StallModel
from vsmmu.arch.stream_table import LIVE, SPAN_MAX, STAGE1, STAGE2, L1Std, Ste, World

# Opcode to the field of IDR0 without which the command is CERROR_ILL (§4.1.1).
_COMMAND_NEEDS = {
    **dict.fromkeys((0x05, 0x06, 0x10, 0x11, 0x12, 0x13), "s1p"),
    **dict.fromkeys((0x20, 0x21, 0x22, 0x23), "hyp"),
    **dict.fromkeys((0x28, 0x2A), "s2p"),
    0x40: "ats",
    0x41: "pri",
}
_STALL_OPCODES = (0x44, 0x45)
_IMPDEF_OPCODES = range(0x80, 0x90)
_IMPDEF_EVENTS = range(0xE0, 0xF0)
# Events of transactions whose SubstreamID has passed the check of C_BAD_SUBSTREAMID (§7.3.22).
_WITH_LEGAL_SSID = TRANSLATION_FAULTS | {0x06, 0x09, 0x0A, 0x0B}
_KNOWN_EVENTS = {0x24: "E_PAGE_REQUEST", 0x25: "F_VMS_FETCH"}

_STE_ALWAYS = frozenset({"v", "config"})
_STE_STAGE1 = frozenset(
    {"s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh", "s1pie", "s1mpam",
     "s1stalld"}
)  # fmt: skip
_STE_STAGE2 = frozenset(n for n in Ste.fields if n.startswith("s2") and n != "s2vmid")
_STE_SUBSTREAMS = frozenset({"s1fmt", "s1dss"})
# RES0 for a Non-secure stream, and RES0 without an identification field (§5.2, §5.4).
_STE_OTHER_STATES = frozenset(
    {"nscfg", "s2nsw", "s2nsa", "s2sw", "s2sa", "mecid", "mpam_ns"}
    | {name for name in Ste.fields if name.startswith("s_s2")}
)
_STE_NEEDS = {
    "s1pie": "s1pi", "s2pie": "s2pi", "s2poe": "s2po", "s2poi_lo": "s2po", "s2hwu": "pbha",
    "s1mpam": "mpam", "partid": "mpam", "pmg": "mpam", "vmsptr": "mpam", "dpt_vmatch": "dpt",
    "assuredonly": "the", "tl0": "the", "tl1": "the", "s2sl0_2": "ds", "s2ds": "ds",
    "s2fwb": "fwb", "eats": "ats", "ppar": "pri", "s2skl": "d128", "privcfg": "attr_perms_ovr",
    "instcfg": "attr_perms_ovr", "memattr": "attr_types_ovr", "mtcfg": "attr_types_ovr",
    "alloccfg": "attr_types_ovr", "shcfg": "attr_types_ovr",
}  # fmt: skip
_CD_OTHER_STATES = frozenset({"nscfg0", "nscfg1"})
_CD_NEEDS = {
    "had0": "had", "had1": "had", "e0pd0": "e0pd", "e0pd1": "e0pd", "epan": "epan", "pie": "s1pi",
    "piiu": "s1pi", "piip": "s1pi", "aie": "aie", "pnch": "the", "hwu059": "pbha",
    "hwu060": "pbha", "hwu061": "pbha", "hwu159": "pbha", "hwu161": "pbha", "ds": "ds",
    "partid": "mpam", "pmg": "mpam",
}  # fmt: skip
_HTTU_TABLES = 3


def command_reasons(words: tuple[int, ...], ids: Identification) -> tuple[Reason, ...]:
    """Why a command on the Non-secure queue is CERROR_ILL; empty for one that is carried out."""
    return tuple(_command_reasons(words, ids))


def _command_reasons(words: tuple[int, ...], ids: Identification) -> Iterator[Reason]:
    command = decode_command(words)
    op, clause = command.op, "IHI 0070 §4.1.1"
    if command.opcode < 0:
        yield Reason("op", _unknown_opcode(op), clause)
        return
    need = _COMMAND_NEEDS.get(op)
    if need and not getattr(ids.idr0, need):
        yield Reason("op", f"{command.name} needs IDR0.{need.upper()}=1", clause)
    if op in _STALL_OPCODES and ids.idr0.stall_model == StallModel.TERMINATE_ONLY:
        yield Reason("op", f"{command.name} with IDR0.STALL_MODEL=1 (terminate only)", clause)
    values = {name: f.of(words) for name, f in command.fields.items()}
    if values.get("ssec"):
        yield Reason("ssec", "SSec=1 on the Non-secure queue", "IHI 0070 §4.1.6")
    if values.get("cs", 0) > Cs.SEV:
        yield Reason("cs", f"CS={values['cs']} is reserved", "IHI 0070 §4.7.3")
    if values.get("resp", 0) > Resp.SUCCESS:
        yield Reason("resp", f"Resp={values['resp']} is reserved", "IHI 0070 §4.5.2")
    if command.name == "CMD_ATC_INV" and values["size_lg2"] > ATC_INV_ALL:
        text = f"Size={values['size_lg2']} is more than {ATC_INV_ALL} (may be CERROR_ILL)"
        yield Reason("size_lg2", text, "IHI 0070 §4.5.1")
    if "tg" in values and ids.idr3.ril:
        yield from _range(values, ids)


def _unknown_opcode(op: int) -> str:
    if op in REJECTED_OPCODES:
        name, why = REJECTED_OPCODES[op]
        return f"{op:#04x} is {name}: {why}"
    if op in _IMPDEF_OPCODES:
        return f"{op:#04x} is IMPLEMENTATION DEFINED, and not defined here"
    return f"{op:#04x} is a reserved opcode"


def _range(values: dict[str, int], ids: Identification) -> Iterator[Reason]:
    """A range of one granule without a level says nothing (§4.4.1)."""
    ttl = values["ttl"]
    if values["tg"] == TlbiTg.G16K and ttl == 1 and not ids.idr5.ds:
        ttl = 0
    if values["tg"] and not (values["num"] or values["scale"] or ttl):
        text = f"TG={values['tg']} with NUM=0, SCALE=0 and TTL={values['ttl']}, which acts as 0"
        yield Reason("tg", text, "IHI 0070 §4.4.1")


def event_reasons(event: Event, ids: Identification) -> tuple[Reason, ...]:
    """Why an SMMU with these features does not write such a record."""
    return tuple(_event_reasons(event, ids))


def _event_reasons(event: Event, ids: Identification) -> Iterator[Reason]:
    if event.number < 0:
        yield Reason("type", _unknown_event(event.type), "IHI 0070 §7.3")
        return
    values = {name: f.of(event.words) for name, f in event.fields.items()}
    if values.get("cls", 0) > EventClass.IN:
        yield Reason("cls", f"CLASS={values['cls']} is reserved", event.spec)
    if values.get("stall") and ids.idr0.stall_model == StallModel.TERMINATE_ONLY:
        text = "Stall=1 with IDR0.STALL_MODEL=1 (terminate only)"
        yield Reason("stall", text, "IHI 0070 §3.12.2")
    if values.get("ind") and not values.get("rnw"):
        yield Reason("ind", "InD=1 with RnW=0: writes are data", event.spec)
    narrow = ids.idr1.ssidsize < values["ssid"].bit_length()
    if narrow and event.number in _WITH_LEGAL_SSID:
        text = f"SubstreamID={values['ssid']:#x} with IDR1.SSIDSIZE={ids.idr1.ssidsize}"
        yield Reason("ssid", text, "IHI 0070 §6.3.2")


def _unknown_event(number: int) -> str:
    if number in _KNOWN_EVENTS:
        return f"{number:#04x} is {_KNOWN_EVENTS[number]}, which no SMMU here writes"
    if number in _IMPDEF_EVENTS:
        return f"{number:#04x} is IMPLEMENTATION DEFINED"
    return f"{number:#04x} is a reserved event number"


def pri_reasons(entry: PriEntry, ids: Identification) -> tuple[Reason, ...]:
    """What is wrong with a PRI queue entry."""
    found = []
    if not ids.idr0.pri:
        found.append(Reason("last", "a Page Request needs IDR0.PRI=1", "IHI 0070 §6.3.1"))
    if not entry.ssv and (entry.x or entry.priv):
        found.append(Reason("ssv", "X or Priv without a PASID", "IHI 0070 §8"))
    return tuple(found)


def l1std_reasons(
    descriptor: L1Std, ids: Identification, split: int | None = None
) -> tuple[Reason, ...]:
    """Why a level 1 stream table descriptor leads nowhere; `split` is STRTAB_BASE_CFG.SPLIT."""
    clause, span = "IHI 0070 §5.1", descriptor.span
    found = []
    if span == 0:
        found.append(Reason("span", "Span=0: no level 2 table", clause))
    elif span > SPAN_MAX:
        found.append(Reason("span", f"Span={span} is reserved", clause))
    elif split is not None and span > split + 1:
        found.append(Reason("span", f"Span={span} is more than SPLIT+1={split + 1}", clause))
    if descriptor.l2ptr >> oas_bits(ids):
        text = f"L2Ptr={descriptor.l2ptr:#x} is beyond OAS, {oas_bits(ids)} bits (F_STE_FETCH)"
        found.append(Reason("l2ptr", text, clause))
    return tuple(found)


def l1cd_reasons(descriptor: L1Cd, ids: Identification) -> tuple[Reason, ...]:
    """Why a level 1 context descriptor leads nowhere."""
    clause = "IHI 0070 §5.3"
    found = []
    if not descriptor.v:
        found.append(Reason("v", "V=0: no CDs for these SubstreamIDs", clause))
    elif descriptor.l2ptr >> ias_bits(ids):
        text = f"L2Ptr={descriptor.l2ptr:#x} is beyond {ias_bits(ids)} bits"
        found.append(Reason("l2ptr", text, clause))
    return tuple(found)


def register_reasons(register: Register, ids: Identification) -> tuple[Reason, ...]:
    """Why a register is RES0 on an SMMU with these features."""
    clause = register.layout.spec
    if register in REFUSED_REGISTERS:
        return (Reason(register.name, "belongs to a feature that is refused here", clause),)
    absent = [need for need in register.needs if not _identified(need, ids)]
    return tuple(Reason(register.name, f"needs {_where(need)}=1", clause) for need in absent)


def _identified(name: str, ids: Identification) -> bool:
    return any(getattr(idr, name, 0) for idr in (ids.idr0, ids.idr1, ids.idr3, ids.idr5))


def _where(name: str) -> str:
    for number, layout in ((0, Idr0), (1, Idr1), (3, Idr3)):
        if name in layout.fields:
            return f"IDR{number}.{name.upper()}"
    raise AssertionError(name)


def ste_ignored(ste: Ste, ids: Identification) -> frozenset[str]:
    """Fields of a Non-secure STE without effect: IGNORED or RES0 (§5.2, §5.2.1).

    Other fields or absent features make them so.
    """
    if not ste.v:
        return frozenset(Ste.fields) - {"v"}
    if not ste.config & LIVE:
        return frozenset(Ste.fields) - _STE_ALWAYS
    unused = _without(_STE_NEEDS, ids) | _STE_OTHER_STATES
    if ids.idr0.httu != _HTTU_TABLES:
        unused.add("s2haft")
    if not ste.config & STAGE1:
        unused |= _STE_STAGE1
    elif not ids.idr1.ssidsize or not ste.s1cdmax:
        unused |= _STE_SUBSTREAMS
    if not ste.config & STAGE2:
        unused |= _STE_STAGE2
    if not strw_used(ste, ids):
        unused.add("strw")
    if not ids.idr0.s2p or not ste.config & (STAGE1 | STAGE2) or (strw_used(ste, ids) and ste.strw):
        unused.add("s2vmid")
    return frozenset(unused)


def cd_ignored(cd: Cd, ids: Identification, world: World) -> frozenset[str]:
    """Fields of a CD without effect: IGNORED for V, EPDx or the StreamWorld, or RES0 (§5.4)."""
    if not cd.v:
        return frozenset(Cd.fields) - {"v"}
    unused = _without(_CD_NEEDS, ids) | _CD_OTHER_STATES
    if cd.aa64:
        unused.add("uwxn")
    if ids.idr0.httu != _HTTU_TABLES:
        unused.add("haft")
    if world == World.NS_EL2:
        unused |= {"asid", "epd0", "epd1"}
    if cd.epd0 and world != World.NS_EL2:
        unused |= _half(0)
    if cd.epd1 or world == World.NS_EL2:
        unused |= _half(1)
    return frozenset(unused)


def _half(half: int) -> set[str]:
    names = "tg", "ir", "or", "sh", "ttb", "had", "e0pd", "tbi"
    return {f"t{half}sz", *(f"{name}{half}" for name in names)}


def _without(needs: Mapping[str, str], ids: Identification) -> set[str]:
    """Fields whose identification field is 0."""
    return {name for name, need in needs.items() if not _identified(need, ids)}
