# SPDX-License-Identifier: BSD-2-Clause
"""Strategies for CDs of a Non-secure stream (IHI 0070 §5.4)."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.legality import Ids, output_limit
from vsmmu.arch.legality_cd import cd_reasons
from vsmmu.arch.legality_others import cd_ignored
from vsmmu.arch.names import AddressSize
from vsmmu.arch.pagetable import TG0, TG1
from vsmmu.arch.registers import StallModel
from vsmmu.arch.stream_table import NARROW_ID_BITS, S1Fmt, World
from vsmmu.smmu.features import Features
from vsmmu.testing.strategies.features import everything
from vsmmu.testing.strategies.layouts import addresses, few, flag, noise, number, one
from vsmmu.testing.strategies.streams import Fields, of_sizes

_TTB_ALIGN = 64
_SECOND_LEVEL, _SECOND_LEVEL_64K = 1 << 12, 1 << 16
_RULED = frozenset(
    {"v", "aa64", "a", "s", "endi", "ha", "hd", "haft", "asid", "ips", "ds", "epd0", "epd1",
     "t0sz", "tg0", "ttb0", "t1sz", "tg1", "ttb1", "impdef"}
)  # fmt: skip


@st.composite
def legal_cds(
    draw: st.DrawFn,
    features: Features | None = None,
    *,
    world: World = World.NS_EL1,
    s1stalld: bool = False,
    ignored: bool = False,
) -> Cd:
    """A CD that does not cause C_BAD_CD: V=1, either half or both or none, every granule and size.

    Args:
        features: the SMMU's; everything by default.
        world: the StreamWorld of its STE.
        s1stalld: STE.S1STALLD.
        ignored: put anything into the fields and bits that have no effect; they are 0 else.
    """
    has = features or everything()
    idr0 = has.idr0
    stalls = idr0.stall_model == StallModel.STALL_AND_TERMINATE and not s1stalld
    forced = idr0.stall_model == StallModel.STALL_FORCED
    fields: Fields = {
        "v": 1, "aa64": 1,
        "a": 1 if idr0.term_model else draw(flag(allowed=True)),
        "s": 1 if forced else draw(flag(stalls)),
        "ha": draw(flag(idr0.httu)), "hd": draw(flag(idr0.httu > 1)),
        "asid": draw(number(0, (1 << (16 if idr0.asid16 else NARROW_ID_BITS)) - 1)),
        "ips": draw(number(AddressSize.BITS_32, AddressSize.BITS_52)),
        "ds": draw(flag(has.idr5.ds)),
    }  # fmt: skip
    for half in (0, 1):
        fields |= _half(draw, half, fields["ips"], fields["ds"], has)
    cd = Cd.build(**fields)
    unused = cd_ignored(cd, has, world)
    cd = cd.replace(**dict.fromkeys(unused, 0))
    cd = cd.replace(**few(draw, Cd, frozenset(Cd.fields) - unused - _RULED))
    if ignored:
        cd = noise(draw, cd, unused)
    reasons = cd_reasons(cd, has, world=world, s1stalld=s1stalld)
    assert not reasons, reasons
    return cd


@st.composite
def legal_l1cds(
    draw: st.DrawFn, features: Features | None = None, *, fmt: S1Fmt = S1Fmt.TWO_LEVEL_64K
) -> L1Cd:
    """A level 1 context descriptor that leads to a second level (§5.3).

    Args:
        features: the SMMU's; everything by default.
        fmt: S1Fmt of its STE, which says how large the second level is.
    """
    size = _SECOND_LEVEL if fmt == S1Fmt.TWO_LEVEL_4K else _SECOND_LEVEL_64K
    return L1Cd.build(v=1, l2ptr=draw(addresses((features or everything()).oas, size)))


def _half(draw: st.DrawFn, half: int, ips: int, ds: int, has: Features) -> Fields:
    codes = (TG0, TG1)[half]
    sizes = stage1_sizes(has, ds)
    granule = draw(one(*(tg for tg in codes if codes[tg].name in sizes)))
    txsz = draw(one(*sizes[codes[granule].name]))
    bits, form = 64 - txsz, codes[granule]
    table = 8 << bits - form.shift(form.start_level(bits))
    limit = output_limit(ips, form, bool(ds), has)
    return {
        f"epd{half}": draw(flag(allowed=True)),
        f"tg{half}": granule,
        f"t{half}sz": txsz,
        f"ttb{half}": draw(addresses(limit, max(table, _TTB_ALIGN))),
    }


def stage1_sizes(has: Features, ds: int) -> dict[str, tuple[int, ...]]:
    """T0SZ values that are legal, by the name of the granule; those of T1SZ are the same."""
    return _stage1_sizes(of_sizes(has), ds)


@cache
def _stage1_sizes(ids: Ids, ds: int) -> dict[str, tuple[int, ...]]:
    plain = {"v": 1, "aa64": 1, "a": 1, "epd1": 1, "ds": ds}
    out = {}
    for tg, granule in TG0.items():
        cds = [Cd.build(t0sz=size, tg0=tg, **plain) for size in range(64)]
        legal = tuple(cd.t0sz for cd in cds if not cd_reasons(cd, ids))
        if legal:
            out[granule.name] = legal
    return out
