# SPDX-License-Identifier: BSD-2-Clause
"""What every account of legality has in common: reasons, identification registers, granules.

`vsmmu.arch.legality_ste`, `legality_cd` and `legality_others` say why a structure is ILLEGAL: every
reason, with its clause. They are slow twins of the decoders of `vsmmu.smmu`, which only answer
whether: a structure has a reason exactly when it causes C_BAD_STE or C_BAD_CD. Where
the architecture leaves a choice (SMMUv3.0 with a T0SZ out of range, S1ContextPtr beyond the IPA
size) the structure is ILLEGAL. VMSAv9-128 tables (IDR5.D128) are not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from vsmmu.arch.pagetable import TXSZ_MAX, TXSZ_MAX_STT, Granule
from vsmmu.arch.registers import OAS_BITS, Aidr, Idr0, Idr1, Idr3, Idr5, TtEndian, Ttf

# A field's name, and what is wrong with its value.
Found = Iterator[tuple[str, str]]

_HTTU_AF, _HTTU_TABLES = 1, 3
_BITS_48 = 48


class Reason(NamedTuple):
    """One reason: the field's name, what is wrong with its value, the clause."""

    field: str
    text: str
    clause: str


class Identification(Protocol):
    """Identification registers, as far as legality depends on them."""

    @property
    def idr0(self) -> Idr0:
        """IDR0."""
        ...  # pragma: no cover

    @property
    def idr1(self) -> Idr1:
        """IDR1."""
        ...  # pragma: no cover

    @property
    def idr3(self) -> Idr3:
        """IDR3."""
        ...  # pragma: no cover

    @property
    def idr5(self) -> Idr5:
        """IDR5."""
        ...  # pragma: no cover

    @property
    def aidr(self) -> Aidr:
        """AIDR."""
        ...  # pragma: no cover


@dataclass(frozen=True, slots=True)
class Ids:
    """Identification registers that nobody has checked for consistency."""

    idr0: Idr0 = field(default_factory=Idr0)
    idr1: Idr1 = field(default_factory=Idr1)
    idr3: Idr3 = field(default_factory=Idr3)
    idr5: Idr5 = field(default_factory=Idr5)
    aidr: Aidr = field(default_factory=Aidr)


def oas_bits(ids: Identification) -> int:
    """Output address bits. The IPA size is the same without AArch32 tables."""
    return OAS_BITS[ids.idr5.oas]


def ias_bits(ids: Identification) -> int:
    """Input address bits of stage 2, at least 40 with AArch32 tables (§3.4)."""
    return max(40, oas_bits(ids)) if ids.idr0.ttf & Ttf.AARCH32 else oas_bits(ids)


def endian(name: str, big: int, ids: Identification) -> Found:
    """What is wrong with the endianness that a field asks for."""
    if big and ids.idr0.ttendian == TtEndian.LITTLE:
        yield name, f"{name.upper()}=1 with IDR0.TTENDIAN=2 (little-endian only)"
    if not big and ids.idr0.ttendian == TtEndian.BIG:
        yield name, f"{name.upper()}=0 with IDR0.TTENDIAN=3 (big-endian only)"


def flag_updates(
    names: tuple[str, str, str], values: tuple[int, int, int], ids: Identification
) -> Found:
    """What is wrong with HA, HD and HAFT."""
    access, dirty, tables = values
    httu = ids.idr0.httu
    if access and not httu:
        yield names[0], f"{names[0].upper()}=1 needs IDR0.HTTU>=1"
    if dirty and httu <= _HTTU_AF:
        yield names[1], f"{names[1].upper()}=1 needs IDR0.HTTU>=2, not {httu}"
    if tables and not access and httu == _HTTU_TABLES:
        yield names[2], f"{names[2].upper()}=1 needs {names[0].upper()}=1"


def granule_missing(name: str, tg: int, granule: Granule | None, ids: Identification) -> str:
    """Why there is no such granule; empty if there is."""
    if granule is None:
        return f"{name}={tg} is reserved"
    flag = f"gran{granule.name.lower()}"
    if not getattr(ids.idr5, flag):
        return f"{name}={tg} ({granule.name} granule) needs IDR5.{flag.upper()}=1"
    return ""


def output_limit(code: int, granule: Granule, ds: bool, ids: Identification) -> int:
    """Effective IPS or S2PS; 48 bits at most without a 52-bit descriptor form (§3.4)."""
    limit = min(OAS_BITS[code], oas_bits(ids))
    return limit if granule.name == "64K" or ds else min(limit, _BITS_48)


def largest_txsz(granule: Granule, ids: Identification) -> int:
    """The largest T0SZ, T1SZ or S2T0SZ (§5.2, §5.4)."""
    return TXSZ_MAX_STT[granule.name] if ids.idr3.stt else TXSZ_MAX
