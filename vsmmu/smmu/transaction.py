# SPDX-License-Identifier: BSD-2-Clause
"""A device's access, what became of it, and the event that a faulting one leaves."""

from __future__ import annotations

from typing import NamedTuple

from vsmmu.arch.events import CBadSubstreamid, Event, EventClass, FStreamDisabled

# What an access needs and what a translation grants.
READ, WRITE, EXEC = 1, 2, 4
# A translation's permissions hold both privileges: unprivileged low, privileged PRIV_SHIFT higher.
PRIV_SHIFT = 3
ALL_PERMS = 0o77
ANY_WRITE = WRITE | WRITE << PRIV_SHIFT

IN, TT, CD = int(EventClass.IN), int(EventClass.TT), int(EventClass.CD)

MASK64 = (1 << 64) - 1
# Input addresses are compared without the tag byte: TBI makes it no part of the address.
VA_MASK = (1 << 56) - 1
_ADDR56 = (1 << 56) - 1


class Access(NamedTuple):
    """One transaction of a device, at most one 4 KiB page of it.

    `priv`, `instr` and `ssid` are what the device says of it; most say nothing.
    """

    sid: int
    iova: int
    write: bool
    instr: bool = False
    priv: bool = False
    ssid: int | None = None


class Outcome(NamedTuple):
    """What became of an access.

    `status` is "ok" (translated), "bypass" (address unchanged), "abort" (terminated by
    configuration, silently) or "fault". A fault's `event` is None where the specification
    suppresses the record (CD.R, STE.S2R, CR2.RECINVSID). `perms` are the READ, WRITE and EXEC
    rights of this privilege at that address.
    """

    status: str
    pa: int | None = None
    event: Event | None = None
    perms: int = 0


class Fault(NamedTuple):
    """Why a lookup or a walk stopped: the event's number and the fields that depend on where.

    `update` is set where the walk was to write a stage 1 descriptor (HTTU), not to read it.
    """

    kind: type[Event]
    s2: int = 0
    cls: int = IN
    ipa: int = 0
    fetch: int = 0
    update: int = 0


def record(fault: Fault, access: Access, *, priv: bool, instr: bool) -> Event:
    """The event record of a fault (§7.3).

    Args:
        fault: what went wrong.
        access: the access, as the device made it.
        priv: privilege after STE.PRIVCFG.
        instr: instruction after STE.INSTCFG; a write is data.
    """
    fields = fault.kind.fields
    # F_STREAM_DISABLED has the StreamID alone (§7.3.7).
    ssid = None if fault.kind is FStreamDisabled else access.ssid
    values = {
        "sid": access.sid & 0xFFFF_FFFF,
        # C_BAD_SUBSTREAMID has no such bit: its SubstreamID is always valid (§7.3.9).
        "ssv": int(ssid is not None and fault.kind is not CBadSubstreamid),
        "ssid": (ssid or 0) & 0xF_FFFF,
        "pnu": int(priv),
        "ind": int(instr and not access.write),
        "rnw": int(not access.write),
        "inputaddr": access.iova & MASK64,
        "s2": fault.s2,
        "cls": fault.cls,
        "ipa": fault.ipa & _ADDR56 & ~0xFFF,
        "fetchaddr": fault.fetch & _ADDR56 & ~7,
        "ttrnw": int(fault.cls == TT and not fault.update),
    }
    return fault.kind.build(**{name: value for name, value in values.items() if name in fields})
