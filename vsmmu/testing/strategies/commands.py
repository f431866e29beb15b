# SPDX-License-Identifier: BSD-2-Clause
"""Strategies for commands and for what a driver queues (IHI 0070 §4)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from hypothesis import strategies as st

from vsmmu.arch.commands import (
    ATC_INV_ALL,
    OPCODES,
    CmdAtcInv,
    CmdCfgiCd,
    CmdSync,
    CmdTlbiS2Ipa,
    Command,
    Cs,
    Resp,
    TlbiTg,
)
from vsmmu.arch.legality_others import command_reasons
from vsmmu.arch.pagetable import G4K, G16K, G64K
from vsmmu.arch.stream_table import NARROW_ID_BITS
from vsmmu.smmu.features import Features
from vsmmu.testing.strategies.features import everything
from vsmmu.testing.strategies.layouts import addresses, flag, named, number, one

_RANGE_TG = {TlbiTg.G4K: G4K, TlbiTg.G16K: G16K, TlbiTg.G64K: G64K}
_RANGE_FIELDS = ("tg", "num", "scale", "ttl")
_SCALE_MAX, _NUM_MAX, _TTL_MAX = 31, 31, 3
_MSI_FIELDS = ("msh", "msiattr", "msidata", "msiaddress")
_PAGE = 1 << 12
_WIDE_ID_BITS = 16
# Commands of one batch, CMD_SYNC apart.
_BATCH = 6

Fields = dict[str, int]


def opcodes(features: Features) -> tuple[int, ...]:
    """The commands that an SMMU carries out."""
    legal = (op for op in OPCODES if not command_reasons(OPCODES[op].build().words, features))
    return tuple(sorted(legal))


@st.composite
def legal_commands(
    draw: st.DrawFn,
    /,
    features: Features | None = None,
    *,
    opcode: Collection[int] | None = None,
    **fields: st.SearchStrategy[int],
) -> Command:
    """A command that is carried out, not CERROR_ILL; fields that have no effect are 0.

    Args:
        features: the SMMU's; everything by default.
        opcode: opcodes to choose from.
        fields: where to take a field from, in commands that have it: `sid=st.just(1)`.
    """
    has = features or everything()
    choices = [op for op in opcodes(has) if opcode is None or op in opcode]
    kind = OPCODES[draw(one(*choices))]
    made: Fields = {}
    for name in kind.fields:
        if name in fields:
            made[name] = draw(fields[name])
        elif name not in ("op", *_RANGE_FIELDS, *_MSI_FIELDS):
            made[name] = draw(_one(kind, name, has))
    if "tg" in kind.fields and not fields.keys() & set(_RANGE_FIELDS):
        made |= _range(draw, made["addr"], has)
    if kind is CmdSync and made["cs"] == Cs.IRQ and has.idr0.msi:
        made = {**_message(draw, has), **made}
    if not made.get("ssv", 1) and "ssid" not in fields:
        made["ssid"] = 0
    command = kind.build(**made)
    assert fields or not command_reasons(command.words, has), command
    return command


@st.composite
def command_sequences(
    draw: st.DrawFn,
    /,
    features: Features | None = None,
    *,
    max_batches: int = 4,
    **fields: st.SearchStrategy[int],
) -> tuple[Command, ...]:
    """Batches of legal commands, each ended by a CMD_SYNC, as drivers queue them.

    Args:
        features: the SMMU's; everything by default.
        max_batches: at least one, at most so many.
        fields: as for `legal_commands`.
    """
    has = features or everything()
    others = [op for op in opcodes(has) if op != CmdSync.opcode]
    work = st.lists(legal_commands(has, opcode=others, **fields), max_size=_BATCH)
    sync = legal_commands(has, opcode=[CmdSync.opcode], **fields)
    batches = draw(st.lists(st.tuples(work, sync), min_size=1, max_size=max_batches))
    return tuple(command for batch, end in batches for command in (*batch, end))


def _one(kind: type[Command], name: str, has: Features) -> st.SearchStrategy[int]:
    """A field that no other decides about."""
    rule = _RULES.get(name)
    if rule is not None and not (kind is CmdCfgiCd and name == "ssv"):
        return rule(has)
    if name == "addr":
        return addresses(has.oas if kind is CmdTlbiS2Ipa else 64, _PAGE)
    if kind is CmdAtcInv and name == "size_lg2":
        return number(0, ATC_INV_ALL)
    return named(kind.fields[name])


def _id(wide: int) -> st.SearchStrategy[int]:
    return number(0, (1 << (_WIDE_ID_BITS if wide else NARROW_ID_BITS)) - 1)


_RULES: dict[str, Callable[[Features], st.SearchStrategy[int]]] = {
    "ssec": lambda has: number(0, 0),
    "sid": lambda has: number(0, (1 << has.idr1.sidsize) - 1),
    "ssv": lambda has: flag(has.idr1.ssidsize),
    "ssid": lambda has: number(0, (1 << has.idr1.ssidsize) - 1),
    "vmid": lambda has: _id(has.idr0.vmid16),
    "asid": lambda has: _id(has.idr0.asid16),
    "cs": lambda has: one(Cs.NONE, Cs.IRQ, *([Cs.SEV] if has.idr0.sev else [])),
    "resp": lambda has: one(*Resp),
}


def _range(draw: st.DrawFn, address: int, has: Features) -> Fields:
    """TG, NUM, SCALE and TTL, which say something together or nothing at all (§4.4.1)."""
    kinds = [tg for tg, granule in _RANGE_TG.items() if granule.name in has.granules]
    tg = TlbiTg(draw(one(TlbiTg.NONE, *kinds))) if has.idr3.ril else TlbiTg.NONE
    if tg == TlbiTg.NONE:
        return {"addr": address}
    first = 1 if tg != TlbiTg.G16K or has.idr5.ds else 2
    fields = {
        "num": draw(number(0, _NUM_MAX)),
        "scale": draw(number(0, _SCALE_MAX)),
        "ttl": draw(one(0, *range(first, _TTL_MAX + 1))),
    }
    if not any(fields.values()):
        fields["ttl"] = _TTL_MAX
    return {**fields, "tg": tg, "addr": address & -_RANGE_TG[tg].page_size}


def _message(draw: st.DrawFn, has: Features) -> Fields:
    fields = CmdSync.fields
    return {
        "msh": draw(named(fields["msh"])),
        "msiattr": draw(named(fields["msiattr"])),
        "msidata": draw(named(fields["msidata"])),
        "msiaddress": draw(addresses(has.oas, 4)),
    }
