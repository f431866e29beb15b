# SPDX-License-Identifier: BSD-2-Clause
"""A structure in words: every field with its value, reserved bits, what is wrong and why.

What `vsmmu explain` prints. Decoding never fails: any words are some structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vsmmu.arch import commands, events
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.feature_registers import EVERY_REGISTER, PRI_PAGE0_ALIASES, GatosParFault, GerrorAll
from vsmmu.arch.layout import Field, Layout
from vsmmu.arch.legality import Ids, Reason
from vsmmu.arch.legality_cd import cd_reasons
from vsmmu.arch.legality_others import (
    cd_ignored,
    command_reasons,
    event_reasons,
    l1cd_reasons,
    l1std_reasons,
    pri_reasons,
    register_reasons,
    ste_ignored,
)
from vsmmu.arch.legality_ste import ste_reasons
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import (
    PAGE0_ALIASES,
    Aidr,
    Cr0,
    Idr0,
    Idr1,
    Idr3,
    Idr5,
    Register,
    StallModel,
    TtEndian,
    Ttf,
)
from vsmmu.arch.stream_table import L1Std, Ste, World

# Every Non-secure feature of SMMUv3.3 that is not refused: see `REFUSED` for those that are.
EVERYTHING = Ids(
    Idr0.build(
        s2p=1, s1p=1, ttf=Ttf.AARCH64, cohacc=1, btm=1, httu=2, hyp=1, ats=1, asid16=1, msi=1,
        sev=1, pri=1, vmw=1, vmid16=1, cd2l=1, ttendian=TtEndian.LITTLE, atsrecerr=1,
        stall_model=StallModel.STALL_AND_TERMINATE, st_level=1,
    ),
    Idr1.build(
        sidsize=32, ssidsize=20, priqs=19, eventqs=19, cmdqs=19, attr_perms_ovr=1,
        attr_types_ovr=1,
    ),
    Idr3.build(had=1, pps=1, xnx=1, fwb=1, stt=1, ril=1, bbml=2, e0pd=1, ptwnnc=1),
    Idr5.build(oas=6, gran4k=1, gran16k=1, gran64k=1, ds=1, vax=1, stall_max=0xFFFF),
    Aidr.build(archminrev=3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """A field: its place, its value, the name of the value, and whether it has no effect."""

    name: str
    place: str
    value: int
    meaning: str
    ignored: bool


@dataclass(frozen=True, slots=True)
class Description:
    """A decoded structure.

    Attributes:
        kind: "ste", "cd", "l1std", "l1cd", "cmd", "event", "pri" or "reg".
        name: the structure's name in the specification.
        clause: where it is defined.
        words: the 64-bit words, or a 32-bit register's value.
        width: bits of a word.
        fields: every field, from bit 0 up.
        reserved: (place, value) of bits that are set and that no field claims.
        outcome: what becomes of an illegal one: an event, a CERROR, RES0.
        reasons: why; empty for a legal one.
        facts: further lines, as a register's access.
    """

    kind: str
    name: str
    clause: str
    words: tuple[int, ...]
    width: int
    fields: tuple[Shown, ...]
    reserved: tuple[tuple[str, int], ...]
    outcome: str
    reasons: tuple[Reason, ...]
    facts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values; numbers are hexadecimal strings."""
        return {
            "kind": self.kind,
            "name": self.name,
            "clause": self.clause,
            "words": [f"{word:#0{self.width // 4 + 2}x}" for word in self.words],
            "fields": [
                {
                    "name": one.name,
                    "bits": one.place,
                    "value": f"{one.value:#x}",
                    "meaning": one.meaning or None,
                    "ignored": one.ignored,
                }
                for one in self.fields
            ],
            "reserved": [{"bits": place, "value": f"{v:#x}"} for place, v in self.reserved],
            "legal": not self.reasons,
            "outcome": self.outcome if self.reasons else None,
            "reasons": [reason._asdict() for reason in self.reasons],
            "facts": list(self.facts),
        }


@dataclass(frozen=True, slots=True)
class Context:
    """What legality depends on besides the words.

    Attributes:
        ids: identification registers.
        world: StreamWorld, for a CD.
        s1stalld: STE.S1STALLD, for a CD.
        split: STRTAB_BASE_CFG.SPLIT, for a level 1 descriptor; None if not known.
    """

    ids: Ids = EVERYTHING
    world: World = World.NS_EL1
    s1stalld: bool = False
    split: int | None = None


# 64-bit words of each kind of structure that is in memory.
SIZES = {"ste": 8, "cd": 8, "l1std": 1, "l1cd": 1, "cmd": 2, "event": 4, "pri": 2}


def describe(kind: str, words: tuple[int, ...], context: Context) -> Description:
    """Decode a structure of memory; `kind` is a key of SIZES and `words` are as many as it says."""
    return _KINDS[kind](words, context)


def _ste(words: tuple[int, ...], context: Context) -> Description:
    ste = Ste(words)
    reasons = ste_reasons(ste, context.ids)
    return _build("ste", "STE", ste, "C_BAD_STE", reasons, ste_ignored(ste, context.ids))


def _cd(words: tuple[int, ...], context: Context) -> Description:
    cd = Cd(words)
    reasons = cd_reasons(cd, context.ids, world=context.world, s1stalld=context.s1stalld)
    return _build("cd", "CD", cd, "C_BAD_CD", reasons, cd_ignored(cd, context.ids, context.world))


def _l1std(words: tuple[int, ...], context: Context) -> Description:
    descriptor = L1Std(words)
    reasons = l1std_reasons(descriptor, context.ids, context.split)
    return _build("l1std", "L1STD", descriptor, "C_BAD_STREAMID", reasons)


def _l1cd(words: tuple[int, ...], context: Context) -> Description:
    descriptor = L1Cd(words)
    reasons = l1cd_reasons(descriptor, context.ids)
    return _build("l1cd", "L1CD", descriptor, "C_BAD_SUBSTREAMID", reasons)


def _cmd(words: tuple[int, ...], context: Context) -> Description:
    command = commands.decode(words)
    reasons = command_reasons(words, context.ids)
    return _build("cmd", command.name, command, "CERROR_ILL", reasons)


def _event(words: tuple[int, ...], context: Context) -> Description:
    event = events.decode(words)
    reasons = event_reasons(event, context.ids)
    return _build("event", event.name, event, "not written by an SMMU with these features", reasons)


def _pri(words: tuple[int, ...], context: Context) -> Description:
    entry = PriEntry(words)
    reasons = pri_reasons(entry, context.ids)
    return _build(
        "pri", "PRI queue entry", entry, "not written by an SMMU with these features", reasons
    )


_KINDS: dict[str, Callable[[tuple[int, ...], Context], Description]] = {
    "ste": _ste, "cd": _cd, "l1std": _l1std, "l1cd": _l1cd, "cmd": _cmd, "event": _event,
    "pri": _pri,
}  # fmt: skip


def find_register(text: str) -> tuple[Register, int] | None:
    """The register of a name (SMMU_ may stand before it) or of an offset, and the bit offset.

    The second value is 32 for the upper half of a 64-bit register, else 0.
    """
    name = text.upper().removeprefix("SMMU_")
    for register in EVERY_REGISTER:
        if register.name == name:
            return register, 0
    try:
        offset = int(text, 16)
    except ValueError:
        return None
    offset = {**PAGE0_ALIASES, **PRI_PAGE0_ALIASES}.get(offset, offset)
    for register in EVERY_REGISTER:
        if 0 <= offset - register.offset < register.width // 8:
            return (register, 8 * (offset - register.offset)) if offset % 4 == 0 else None
    return None


def describe_register(register: Register, value: int, context: Context) -> Description:
    """Decode a register's value."""
    layout = register.layout
    if register.name in ("GERROR", "GERRORN"):
        layout = GerrorAll
    if register.name == "GATOS_PAR" and value & 1:
        layout = GatosParFault
    reasons = register_reasons(register, context.ids)
    facts = tuple(_facts(register))
    return _build("reg", register.name, layout((value,)), "RES0", reasons, facts=facts)


def _facts(register: Register) -> list[str]:
    page = "page 1" if register.offset >> 16 else "page 0"
    access = "RW" if register.writable else "RO"
    facts = [f"offset {register.offset:#x} ({page}), {register.width} bits, {access}"]
    if register.guard:
        facts.append(f"writes are ignored while {_guards(register.guard)}")
    for fields, guard in register.field_guards:
        facts.append(f"writes to {', '.join(fields)} are ignored while {_guards(guard)}")
    return facts


def _guards(guard: Sequence[str]) -> str:
    names = (f"CR0.{g.upper()}=1" if g in Cr0.fields else f"IRQ_CTRL.{g.upper()}=1" for g in guard)
    return " or ".join(names)


def _build(
    kind: str,
    name: str,
    view: Layout,
    outcome: str,
    reasons: tuple[Reason, ...],
    ignored: frozenset[str] = frozenset(),
    facts: tuple[str, ...] = (),
) -> Description:
    ordered = sorted(view.fields.values(), key=lambda field: field.lsb)
    shown = tuple(_show(field, view.words, field.name in ignored) for field in ordered)
    reserved = tuple(_runs(view.reserved()))
    return Description(
        kind, name, view.spec, view.words, view.width, shown, reserved, outcome, reasons, facts
    )


def _show(field: Field, words: tuple[int, ...], ignored: bool) -> Shown:
    value = field.of(words)
    meaning = ""
    if field.enum is not None:
        known = {member.value: member.name for member in field.enum}
        meaning = known.get(value, "reserved value")
    return Shown(field.name, _place(field.msb, field.lsb), value, meaning, ignored)


def _place(msb: int, lsb: int) -> str:
    return f"[{lsb}]" if msb == lsb else f"[{msb}:{lsb}]"


def _runs(words: tuple[int, ...]) -> list[tuple[str, int]]:
    """Runs of set bits, as (place, value)."""
    found = []
    for index, word in enumerate(words):
        at = 0
        while word >> at:
            low = at + ((word >> at) & -(word >> at)).bit_length() - 1
            length = (~(word >> low) & -(~(word >> low))).bit_length() - 1
            base = 64 * index + low
            found.append((_place(base + length - 1, base), (1 << length) - 1))
            at = low + length
    return found
