# SPDX-License-Identifier: BSD-2-Clause
"""How a comparison with QEMU allows a departure: both sides are made equal there."""

from __future__ import annotations

from collections.abc import Callable

from tests.differential.qemu_compare import Allow
from tests.differential.qemu_program import Seen
from vsmmu.arch.events import Event, EventClass, FCdFetch, FPermission, decode
from vsmmu.arch.layout import Field

Words = tuple[int, ...]


# Each function does one thing to what was seen of both.


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
