# SPDX-License-Identifier: BSD-2-Clause
"""Event records: 32 bytes, one class for each number (IHI 0070 §7.3)."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar, Self

from vsmmu.arch.layout import Layout, addr, bit, bits, choice


class EventClass(IntEnum):
    """CLASS: what the access that faulted was for."""

    CD = 0
    TT = 1
    IN = 2


class Event(Layout, dwords=4, spec="IHI 0070 §7.3"):
    """A record. A concrete class has a `number` and the name of the specification."""

    number: ClassVar[int] = -1
    name: ClassVar[str] = "RESERVED"

    type = bits(7, 0)
    ssv = bit(11)
    ssid = bits(31, 12)
    sid = bits(63, 32)

    def __init_subclass__(
        cls, number: int | None = None, name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if number is not None and name is not None:
            cls.number = number
            cls.name = name
            EVENTS[number] = cls

    @classmethod
    def build(cls, /, **values: int) -> Self:
        """A record with its number and these fields."""
        return super().build(type=cls.number, **values)


EVENTS: dict[int, type[Event]] = {}


def decode(words: tuple[int, ...]) -> Event:
    """The record in four 64-bit words; an `Event` itself when the number is not known."""
    return EVENTS.get(words[0] & 0xFF, Event)(words)


class _Access(Event):
    """Records that describe an access: its kind and its input address."""

    pnu = bit(97)
    ind = bit(98)
    rnw = bit(99)
    inputaddr = bits(191, 128)


class _Fetch(Event):
    reason = bits(79, 64)
    gpcf = bit(80)
    fetchaddr = addr(247, 195, low=3)


class FUut(_Access, number=0x01, name="F_UUT", spec="IHI 0070 §7.3.2"):
    """Unsupported upstream transaction."""

    reason = bits(79, 64)


class CBadStreamid(Event, number=0x02, name="C_BAD_STREAMID", spec="IHI 0070 §7.3.3"):
    """StreamID out of range of the stream table."""


class FSteFetch(_Fetch, number=0x03, name="F_STE_FETCH", spec="IHI 0070 §7.3.4"):
    """External abort fetching the STE."""


class CBadSte(Event, number=0x04, name="C_BAD_STE", spec="IHI 0070 §7.3.5"):
    """STE invalid or ILLEGAL."""


class FBadAtsTreq(Event, number=0x05, name="F_BAD_ATS_TREQ", spec="IHI 0070 §7.3.6"):
    """ATS Translation Request not allowed."""

    span = bits(67, 64)
    p = bit(92)
    x = bit(93)
    w = bit(94)
    r = bit(95)
    inputaddr = addr(191, 140, low=12)


class FStreamDisabled(Event, number=0x06, name="F_STREAM_DISABLED", spec="IHI 0070 §7.3.7"):
    """Transaction without (or with) SubstreamID that S1DSS forbids."""


class FTranslForbidden(Event, number=0x07, name="F_TRANSL_FORBIDDEN", spec="IHI 0070 §7.3.8"):
    """ATS Translated transaction not allowed."""

    rnw = bit(99)
    inputaddr = bits(191, 128)


class CBadSubstreamid(Event, number=0x08, name="C_BAD_SUBSTREAMID", spec="IHI 0070 §7.3.9"):
    """SubstreamID out of range."""


class FCdFetch(_Fetch, number=0x09, name="F_CD_FETCH", spec="IHI 0070 §7.3.10"):
    """External abort fetching the CD."""


class CBadCd(Event, number=0x0A, name="C_BAD_CD", spec="IHI 0070 §7.3.11"):
    """CD invalid or ILLEGAL."""


class FWalkEabt(_Access, number=0x0B, name="F_WALK_EABT", spec="IHI 0070 §7.3.12"):
    """External abort on a translation table walk."""

    reason = bits(79, 64)
    gpcf = bit(80)
    s2 = bit(103)
    cls = choice(105, 104, EventClass)
    fetchaddr = addr(247, 195, low=3)


class _Translation(_Access):
    """The four translation faults share a layout (§7.3.13 to §7.3.16)."""

    stag = bits(79, 64)
    stall = bit(95)
    nsipa = bit(102)
    s2 = bit(103)
    cls = choice(105, 104, EventClass)
    ipa = addr(247, 204, low=12)


class FTranslation(_Translation, number=0x10, name="F_TRANSLATION", spec="IHI 0070 §7.3.13"):
    """No translation."""


class FAddrSize(_Translation, number=0x11, name="F_ADDR_SIZE", spec="IHI 0070 §7.3.14"):
    """Output address out of range."""


class FAccess(_Translation, number=0x12, name="F_ACCESS", spec="IHI 0070 §7.3.15"):
    """Access flag clear."""


class FPermission(_Translation, number=0x13, name="F_PERMISSION", spec="IHI 0070 §7.3.16"):
    """No permission."""

    ttrnw = bit(108)


class FTlbConflict(_Access, number=0x20, name="F_TLB_CONFLICT", spec="IHI 0070 §7.3.17"):
    """TLB conflict."""

    reason = bits(79, 64)
    s2 = bit(103)
    ipa = addr(247, 204, low=12)


class FCfgConflict(Event, number=0x21, name="F_CFG_CONFLICT", spec="IHI 0070 §7.3.18"):
    """Configuration cache conflict, or a misuse of STE.CONT."""

    reason = bits(79, 64)


TRANSLATION_FAULTS = frozenset({0x10, 0x11, 0x12, 0x13})
