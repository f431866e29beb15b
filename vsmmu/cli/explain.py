# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu explain`: an STE, a CD, a command, a record, a register in words."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import TYPE_CHECKING

from dt_tools.json_text import json_text
from vsmmu.cli.files import FileError, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vsmmu.arch.describe import Context, Description
    from vsmmu.arch.legality import Ids
    from vsmmu.arch.registers import Register

SCHEMA = "vsmmu.explain/1"
_KINDS = ("ste", "cd", "l1std", "l1cd", "cmd", "event", "pri", "reg")
# Software writes these, so they are legal or not; the SMMU writes records and has registers.
_JUDGED = ("ste", "cd", "l1std", "l1cd", "cmd")
_WORLDS = ("el1", "el2", "el2-e2h")
_COLUMNS = 80
_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*")
_LOGGED = re.compile(r"\b0[xX]([0-9a-fA-F]{16})\b"), re.compile(r"\b0[xX]([0-9a-fA-F]{8})\b")
_SHOWN = 40


class ExplainError(Exception):
    """Words that are not a structure, or a register that does not exist: one line."""

    exit_code = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", metavar="KIND", choices=_KINDS, help=f"one of {', '.join(_KINDS)}")
    parser.add_argument(
        "inputs",
        metavar="WORD",
        nargs="*",
        default=[],
        help=(
            "hexadecimal: 64-bit words, pairs of 32-bit words (low first), or the bytes in memory "
            "order; - reads stdin, a log too; for reg NAME or OFFSET stands before"
        ),
    )
    parser.add_argument(
        "--features",
        choices=("all", "model"),
        default="all",
        help="judge for an SMMU with all Non-secure features (default), or the model's own",
    )
    parser.add_argument(
        "--idr",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="value of IDR0, IDR1, IDR3, IDR5 or AIDR instead; may be given again",
    )
    parser.add_argument(
        "--world", choices=_WORLDS, default="el1", help="StreamWorld of a CD (default el1)"
    )
    parser.add_argument("--s1stalld", action="store_true", help="a CD's STE has S1STALLD=1")
    parser.add_argument(
        "--split", type=int, choices=(6, 8, 10), help="STRTAB_BASE_CFG.SPLIT, for l1std"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 32, 64),
        help="bits of a WORD; by default 32 where that makes exactly one structure",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Decode and print; 0 whatever is found, legal or not."""
    context = _context(arguments)
    if arguments.kind == "reg":
        found = [_register(arguments.inputs, context)]
    else:
        found = [*_structures(arguments, context)]
    if arguments.json:
        print(json_text(_json(found, context.ids), indent=2))
    else:
        print("\n\n".join("\n".join(_lines(one)) for one in found))
    return 0


# What the structure is judged by.


def _context(arguments: argparse.Namespace) -> Context:
    from vsmmu.arch.describe import Context
    from vsmmu.arch.stream_table import World

    return Context(
        ids=_ids(arguments.features, arguments.idr),
        world=World(_WORLDS.index(arguments.world)),
        s1stalld=arguments.s1stalld,
        split=arguments.split,
    )


def _ids(features: str, given: Sequence[str]) -> Ids:
    import dataclasses

    from vsmmu.arch.describe import EVERYTHING
    from vsmmu.arch.legality import Ids

    ids = EVERYTHING
    if features == "model":
        from vsmmu.smmu.features import Features

        model = Features.default()
        ids = Ids(model.idr0, model.idr1, model.idr3, model.idr5, model.aidr)
    for text in given:
        name, _, value = text.partition("=")
        name = name.lower() if not name.isdecimal() else f"idr{name}"
        known = [field.name for field in dataclasses.fields(Ids)]
        if name not in known:
            shown = ", ".join(one.upper() for one in known)
            raise FileError(f"--idr {text[:_SHOWN]}: expected NAME=VALUE with NAME of {shown}")
        layout = type(getattr(ids, name))
        ids = dataclasses.replace(ids, **{name: layout((_number(value, 32, "--idr " + text),))})
    return ids


def _number(text: str, bits: int, where: str) -> int:
    if not _HEX.fullmatch(text):
        raise FileError(f"{where[:_SHOWN]}: expected a hexadecimal number")
    value = int(text, 16)
    if value >> bits:
        raise FileError(f"{where[:_SHOWN]}: more than {bits} bits")
    return value


# Words.


def _structures(arguments: argparse.Namespace, context: Context) -> Iterator[Description]:
    from vsmmu.arch.describe import SIZES, describe

    kind, count = arguments.kind, SIZES[arguments.kind]
    if not arguments.inputs:
        raise FileError(f"explain {kind}: which words? give them, or - for stdin")
    tokens = _tokens(arguments.inputs, kind)
    words = _grouped(tokens, count, arguments.bits)
    if words is None:
        forms = f"{count} 64-bit words, {2 * count} 32-bit words or {8 * count} bytes"
        plural = "word" if len(tokens) == 1 else "words"
        raise ExplainError(f"{kind}: {len(tokens)} {plural}; expected {forms}")
    for at in range(0, len(words), count):
        yield describe(kind, tuple(words[at : at + count]), context)


def _tokens(inputs: Sequence[str], kind: str) -> list[str]:
    """Digits without 0x of what was given. Raises ExplainError."""
    text = " ".join(inputs)
    if list(inputs) == ["-"]:
        text = read("-").decode("utf-8", "replace")
    tokens = text.replace(",", " ").split()
    bad = next((token for token in tokens if not _HEX.fullmatch(token)), None)
    if bad is None:
        return [token.lower().removeprefix("0x").replace("_", "") for token in tokens]
    if list(inputs) != ["-"]:
        raise ExplainError(f"{kind}: {bad[:_SHOWN]!r} is not a hexadecimal number")
    return _logged(text)


def _logged(text: str) -> list[str]:
    """The words of a log: what is 0x and 16 digits, or else 0x and 8 digits."""
    for pattern in _LOGGED:
        found = pattern.findall(text)
        if found:
            return [str(one) for one in found]
    return []


def _grouped(tokens: list[str], count: int, bits: int | None) -> list[int] | None:
    """Tokens as 64-bit words, a multiple of `count`; None where they are not that many.

    One string may hold all bytes of a structure, in memory order.
    """
    size = 8 * count
    if bits is None and len(tokens) == 1 and len(tokens[0]) % (2 * size) == 0 and size > 8:
        return _from_bytes(bytes.fromhex(tokens[0]))
    bits = bits or _guessed(tokens, count)
    values = [int(token, 16) for token in tokens]
    if not values or len(values) * bits % (64 * count) or any(v >> bits for v in values):
        return None
    return _from_bytes(b"".join(value.to_bytes(bits // 8, "little") for value in values))


def _guessed(tokens: list[str], count: int) -> int:
    """Bits of each token, from how many there are and how many digits they have."""
    if len(tokens) == 8 * count and all(len(token) == 2 for token in tokens):
        return 8
    padded = all(len(token) == 8 for token in tokens)
    if all(len(token) <= 8 for token in tokens) and (padded or len(tokens) == 2 * count):
        return 32
    return 64


def _from_bytes(raw: bytes) -> list[int]:
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]


def _register(inputs: Sequence[str], context: Context) -> Description:
    from vsmmu.arch.describe import describe_register, find_register

    if not inputs:
        raise FileError("explain reg: which register? give its name or offset")
    found = find_register(inputs[0])
    if found is None:
        raise ExplainError(f"reg: no register {inputs[0][:_SHOWN]}{_nearest(inputs[0])}")
    register, shift = found
    value = _register_value(register, shift, list(inputs[1:]))
    return describe_register(register, value, context)


def _register_value(register: Register, shift: int, tokens: list[str]) -> int:
    """One number, or two 32-bit halves of a 64-bit register, low first."""
    if tokens == ["-"]:
        tokens = read("-").decode("utf-8", "replace").split()
    if len(tokens) == 2 and register.width == 64 and not shift:
        low, high = (_number(token, 32, f"reg {register.name}") for token in tokens)
        return low | high << 32
    if len(tokens) != 1:
        raise FileError(f"explain reg {register.name}: expected one value, not {len(tokens)}")
    return _number(tokens[0], register.width - shift, f"reg {register.name}") << shift


def _nearest(name: str) -> str:
    import difflib

    from vsmmu.arch.feature_registers import EVERY_REGISTER

    names = [register.name for register in EVERY_REGISTER]
    near = difflib.get_close_matches(name.upper().removeprefix("SMMU_"), names, 1)
    return f"; nearest: {near[0]}" if near else ""


# Output.


def _json(found: Sequence[Description], ids: Ids) -> dict[str, object]:
    import dataclasses

    registers = {
        field.name.upper(): f"{getattr(ids, field.name).raw:#x}"
        for field in dataclasses.fields(ids)
    }
    return {
        "schema": SCHEMA,
        "features": registers,
        "structures": [one.to_json() for one in found],
    }


def _lines(one: Description) -> Iterator[str]:
    yield f"{one.name} ({one.clause})"
    for fact in one.facts:
        yield from _wrapped(fact, "  ")
    digits, per_line = one.width // 4, 4 if len(one.words) > 4 else 2
    for at in range(0, len(one.words), per_line):
        yield "  " + " ".join(f"{word:0{digits}x}" for word in one.words[at : at + per_line])
    places = max((len(field.place) for field in one.fields), default=0)
    names = max((len(field.name) for field in one.fields), default=0)
    for field in one.fields:
        notes = [field.meaning] if field.meaning else []
        notes += ["(ignored)"] if field.ignored else []
        head = f"  {field.place:>{places}} {field.name:<{names}} {field.value:#x}"
        yield " ".join([head, *notes])
    for place, value in one.reserved:
        yield f"  {place:>{places}} {'RES0':<{names}} {value:#x} reserved, not 0"
    yield from _verdict(one)


def _verdict(one: Description) -> Iterator[str]:
    if not one.reasons:
        if one.kind in _JUDGED:
            yield "legal"
        return
    yield f"illegal: {one.outcome}" if one.kind in _JUDGED else f"{one.outcome}:"
    for reason in one.reasons:
        yield from _wrapped(f"{reason.field}: {reason.text} ({reason.clause})", "  ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent=indent, subsequent_indent=indent + "  ")
