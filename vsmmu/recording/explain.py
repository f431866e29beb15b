# SPDX-License-Identifier: BSD-2-Clause
"""Both sides of a divergence in words: registers, commands, events, and the walk of an access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vsmmu.arch import commands, events
from vsmmu.arch.describe import Context, describe, describe_register, find_register
from vsmmu.arch.legality import Ids
from vsmmu.recording.divergence import Sides, Source

if TYPE_CHECKING:
    from vsmmu.arch.layout import Layout
    from vsmmu.recording.looks import Look
    from vsmmu.recording.memory import RecordedMemory
    from vsmmu.smmu.features import Features

__all__ = [
    "KINDS", "Sides", "command_line", "event_line", "fields", "look_lines", "register_lines",
    "sources", "writer",
]  # fmt: skip

# What `describe` calls the structures of a look.
KINDS = {"STE": "ste", "CD": "cd", "L1STD": "l1std", "L1CD": "l1cd"}


def fields(view: Layout) -> str:
    """The fields that are not zero."""
    shown = (
        f"{name}={field.show(field.of(view.words))}"
        for name, field in view.fields.items()
        if field.of(view.words)
    )
    return " ".join(shown) or "all fields 0"


def register_lines(offset: int, size: int, value: int) -> tuple[str, ...]:
    """A register's value, decoded; two registers for an access that has both."""
    lines = []
    done = 0
    while done < size:
        found = find_register(f"{offset + done:#x}")
        if found is None:
            part = value >> 8 * done & 0xFFFF_FFFF
            lines.append(f"{offset + done:#x}: {part:#x}, no register of SMMUv3")
            done += 4
            continue
        register, shift = found
        width = 4 if shift or size < register.width // 8 else register.width // 8
        part = value >> 8 * done & (1 << 8 * width) - 1
        shown = describe_register(register, part << shift, Context())
        text = " ".join(
            f"{one.name}={one.meaning or f'{one.value:#x}'}" for one in shown.fields if one.value
        )
        lines.append(f"{register.name} {part:#x}: {text or 'all fields 0'}")
        done += width
    return tuple(lines)


def event_line(words: tuple[int, ...]) -> str:
    """An event record."""
    event = events.decode(words)
    return f"{event.name}: {fields(event)}"


def command_line(words: tuple[int, ...]) -> str:
    """A command."""
    command = commands.decode(words)
    return f"{command.name}: {fields(command)}"


def look_lines(looks: Iterable[Look], memory: RecordedMemory, features: Features) -> Iterator[str]:
    """A line for each structure: address, words or fields, the record that wrote it."""
    ids = Ids(features.idr0, features.idr1, features.idr3, features.idr5, features.aidr)
    for one in looks:
        line = f"{one.what} at {one.address:#x}: "
        if one.view is None:
            yield line + "external abort"
            continue
        if one.what not in KINDS:
            line += f"{one.view.words[0]:#x}: "
        line += fields(one.view)
        yield f"{line} ({writer(memory.writer(one.address, one.size))})"
        kind = KINDS.get(one.what)
        if kind is not None:
            for reason in describe(kind, one.view.words, Context(ids)).reasons:
                yield f"  {reason.field}: {reason.text} ({reason.clause})"


def sources(looks: Iterable[Look], memory: RecordedMemory) -> Iterator[Source]:
    """The records that wrote what was looked at."""
    for one in looks:
        for record in memory.writers(one.address, one.size):
            yield Source(record, f"{one.what} at {one.address:#x}")


def writer(record: int) -> str:
    """The record that wrote something."""
    return f"record {record}" if record else "no record"
