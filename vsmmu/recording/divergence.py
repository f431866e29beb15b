# SPDX-License-Identifier: BSD-2-Clause
"""Where a recording and its replay part, and the rules by which they are compared.

What is compared: every register read exactly; CMDQ_CONS, GERROR and EVENTQ_PROD behind each
write; an access's status and output address; of an event its number, StreamID and SubstreamID,
and of a translation fault RnW, S2, CLASS, InputAddr and the page of the IPA (where S2=1: stage 1
leaves it UNKNOWN). Interrupts are counted and not judged: how many pulses there are for how many
events is the implementation's affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from vsmmu.arch.events import TRANSLATION_FAULTS, Event, decode
from vsmmu.recording.format import Dma, Flag, Progress, Status


class Kind:
    """`Divergence.kind`: what differs."""

    READ = "register read"
    PROGRESS = "progress"
    STATUS = "access status"
    ADDRESS = "output address"
    RIGHTS = "access rights"
    EVENT = "event"
    INTERRUPT = "interrupt"
    FLUSH = "missing invalidation"
    COMMAND = "missing command"
    UNLIKE = "unlike all others"


class Source(NamedTuple):
    """A record that wrote something the model looked at: its number, and what it wrote."""

    record: int
    what: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first record that the replay does not agree with.

    Attributes:
        record: its number; the first of a file is 1.
        place: byte offset of its tag in the unpacked file.
        phase: the last note before it.
        kind: of `Kind`.
        what: the register, the access or the event, in a few words.
        recorded, model: the two values, a short text each.
        recorded_side, model_side: what the recorder saw and what the model did, a line each.
        provenance: records that wrote what the model looked at.
    """

    record: int
    place: int
    phase: str
    kind: str
    what: str
    recorded: str
    model: str
    recorded_side: tuple[str, ...] = ()
    model_side: tuple[str, ...] = ()
    provenance: tuple[Source, ...] = ()

    def __str__(self) -> str:
        return (
            f"record {self.record} (byte {self.place:#x}): {self.kind}: {self.what}: "
            f"recorded {self.recorded}, model {self.model}"
        )

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "record": self.record,
            "byte": f"{self.place:#x}",
            "phase": self.phase,
            "kind": self.kind,
            "what": self.what,
            "recorded": self.recorded,
            "model": self.model,
            "recorded_side": list(self.recorded_side),
            "model_side": list(self.model_side),
            "provenance": [source._asdict() for source in self.provenance],
        }


class Sides(NamedTuple):
    """Lines for what the recorder saw and for what the model did, and who wrote what it read."""

    recorded: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    provenance: tuple[Source, ...] = ()


class Difference(NamedTuple):
    """One difference before it is explained: `kind`, `what` and both values as texts."""

    kind: str
    what: str
    recorded: str
    model: str


class NoticedError(Exception):
    """Raised by a target: the recording contradicts itself, at a record before this one.

    Attributes:
        record: its number.
        difference: what is wrong.
        sides: its explanation.
    """

    def __init__(self, record: int, difference: Difference, sides: Sides) -> None:
        super().__init__(difference.what)
        self.record = record
        self.difference = difference
        self.sides = sides


class Result(NamedTuple):
    """What a replay made of an access.

    Attributes:
        status: `Status`.
        pa: output address; None where there is none.
        perm: `Perm` bits of the mapping; None where they are not known.
        events: the records written for it, as 64-bit words.
    """

    status: int
    pa: int | None = None
    perm: int | None = None
    events: tuple[tuple[int, ...], ...] = ()


# Words of a record from whose fields an event is named in a text.
_RULED = ("rnw", "s2", "cls", "inputaddr")


def access_difference(dma: Dma, result: Result) -> Difference | None:
    """How an access ended otherwise than recorded, if it did; events are not looked at."""
    if dma.flags & Flag.STALE:
        return None
    status, pa, perm, _ = result
    if status != dma.status:
        return Difference(Kind.STATUS, access_text(dma), ending(dma.status), ending(status))
    if status not in Status.WITH_PA:
        return None
    if pa != dma.pa:
        return Difference(Kind.ADDRESS, access_text(dma), f"{dma.pa:#x}", _hex(pa))
    if perm != dma.perm and status == Status.OK and perm is not None:
        return Difference(Kind.RIGHTS, access_text(dma), rights(dma.perm), rights(perm))
    return None


def progress_difference(recorded: Progress, model: Progress) -> Difference | None:
    """The first register of progress that differs, if one does."""
    names = "CMDQ_CONS", "GERROR", "EVENTQ_PROD"
    for name, one, other in zip(names, recorded, model, strict=True):
        if one != other:
            return Difference(Kind.PROGRESS, name, f"{one:#x}", f"{other:#x}")
    return None


def event_difference(
    dma: Dma | None, recorded: tuple[int, ...] | None, model: tuple[int, ...] | None
) -> Difference | None:
    """How a record differs from the one recorded, by the rules above; None is no record."""
    one = None if recorded is None else decode(recorded)
    other = None if model is None else decode(model)
    if one is not None and other is not None and judged(one) == judged(other):
        return None
    what = "no access" if dma is None else access_text(dma)
    return Difference(Kind.EVENT, what, _event(one), _event(other))


def judged(event: Event) -> dict[str, int]:
    """The fields of a record that count, by name."""
    fields = {"type": event.type, "sid": event.sid, "ssv": event.ssv}
    if event.ssv:
        fields["ssid"] = event.ssid
    if event.number in TRANSLATION_FAULTS:
        fields |= {name: event.fields[name].of(event.words) for name in _RULED}
        if fields["s2"]:
            fields["ipa"] = event.fields["ipa"].of(event.words)
    return fields


def access_text(dma: Dma) -> str:
    """An access in a few words."""
    kind = "write" if dma.access == 2 else "read"
    return f"{kind} by StreamID {dma.sid:#x} at {dma.iova:#x}"


def ending(status: int) -> str:
    """The name of a status."""
    return Status.NAMES[status]


def rights(perm: int) -> str:
    """`Perm` bits as letters."""
    return ("R" if perm & 1 else "") + ("W" if perm & 2 else "") or "none"


def _hex(value: int | None) -> str:
    return "none" if value is None else f"{value:#x}"


def _event(event: Event | None) -> str:
    if event is None:
        return "none"
    fields = judged(event)
    number = fields.pop("type")
    name = event.name if event.number >= 0 else f"event {number:#x}"
    return " ".join([name, *(f"{field}={value:#x}" for field, value in fields.items())])
