# SPDX-License-Identifier: BSD-2-Clause
"""Strategies for STEs of a Non-secure stream (IHI 0070 §5.2)."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from hypothesis import strategies as st

from vsmmu.arch.legality import Ids, oas_bits, output_limit
from vsmmu.arch.legality_others import ste_ignored
from vsmmu.arch.legality_ste import ste_reasons
from vsmmu.arch.names import AddressSize
from vsmmu.arch.pagetable import TG0
from vsmmu.arch.registers import Aidr, Idr0, Idr1, Idr3, StallModel, Ttf
from vsmmu.arch.stream_table import (
    LIVE,
    NARROW_ID_BITS,
    SPAN_MAX,
    STAGE1,
    STAGE2,
    Eats,
    L1Std,
    S1Dss,
    S1Fmt,
    Ste,
    SteConfig,
    Strw,
    sl0_fields,
)
from vsmmu.smmu.features import Features
from vsmmu.testing.strategies.features import everything
from vsmmu.testing.strategies.layouts import addresses, few, flag, noise, number, one
from vsmmu.testing.tables import start_codes

_CD, _L1CD = 64, 8
_SPLIT = {S1Fmt.TWO_LEVEL_4K: 6, S1Fmt.TWO_LEVEL_64K: 10}
_TTB_ALIGN = 64
_INPUT_BITS = range(12, 53)
# Fields that others decide about, drawn one by one below; the rest is free where it counts.
_RULED = frozenset(
    {"v", "config", "s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1stalld", "strw", "eats", "s2vmid",
     "s2t0sz", "s2sl0", "s2sl0_2", "s2ds", "s2tg", "s2ps", "s2ttb", "s2aa64", "s2endi", "s2ha",
     "s2hd", "s2haft", "s2s", "impdef1", "impdef2"}
)  # fmt: skip

Fields = dict[str, int]


def configs(features: Features) -> tuple[int, ...]:
    """The values of STE.Config that an SMMU carries out, the four that abort among them."""
    legal = [*range(LIVE), SteConfig.BYPASS]
    legal += [SteConfig.S1] * features.s1p + [SteConfig.S2] * features.s2p
    legal += [SteConfig.NESTED] * (features.s1p and features.s2p)
    return tuple(int(config) for config in legal)


@st.composite
def legal_stes(
    draw: st.DrawFn,
    features: Features | None = None,
    *,
    config: Collection[int] | None = None,
    ignored: bool = False,
) -> Ste:
    """An STE that does not cause C_BAD_STE: V=1, every Config, format, granule and size.

    Args:
        features: the SMMU's; everything by default.
        config: values of STE.Config to choose from.
        ignored: put anything into the fields and bits that have no effect; they are 0 else.
    """
    has = features or everything()
    choices = [c for c in configs(has) if config is None or c in config]
    fields: Fields = {"v": 1, "config": draw(one(*choices))}
    if fields["config"] & LIVE:
        fields |= _live(draw, fields["config"], has)
    ste = Ste.build(**fields)
    unused = ste_ignored(ste, has)
    ste = ste.replace(**dict.fromkeys(unused, 0))
    ste = ste.replace(**few(draw, Ste, frozenset(Ste.fields) - unused - _RULED))
    if ignored:
        ste = noise(draw, ste, unused)
    assert not ste_reasons(ste, has), ste_reasons(ste, has)
    return ste


@st.composite
def legal_l1stds(draw: st.DrawFn, features: Features | None = None, *, split: int = 8) -> L1Std:
    """A level 1 descriptor of a stream table that leads to a second level (§5.1).

    Args:
        features: the SMMU's; everything by default.
        split: STRTAB_BASE_CFG.SPLIT.
    """
    has = features or everything()
    span = draw(number(1, min(split + 1, SPAN_MAX)))
    return L1Std.build(span=span, l2ptr=draw(addresses(oas_bits(has), Ste.size << span - 1)))


def _live(draw: st.DrawFn, config: int, has: Features) -> Fields:
    fields: Fields = {}
    if config & STAGE1:
        fields |= _stage1(draw, has)
    if config == SteConfig.S1 and has.hyp:
        fields["strw"] = draw(one(Strw.NS_EL1, Strw.NS_EL2))
    if config & STAGE2:
        fields |= _stage2(draw, has)
    fields["s2vmid"] = draw(number(0, (1 << (16 if has.idr0.vmid16 else NARROW_ID_BITS)) - 1))
    kinds = [Eats.NONE, *([Eats.FULL] if not fields.get("s2s") else [])]
    if config == SteConfig.NESTED and not has.idr0.ns1ats and not fields["s2s"]:
        kinds.append(Eats.SPLIT)
    fields["eats"] = draw(one(*kinds))
    return fields


def _stage1(draw: st.DrawFn, has: Features) -> Fields:
    bits = draw(number(0, has.idr1.ssidsize))
    two_level = (S1Fmt.TWO_LEVEL_4K, S1Fmt.TWO_LEVEL_64K) if has.idr0.cd2l and bits else ()
    fmt = S1Fmt(draw(one(S1Fmt.LINEAR, *two_level)))
    size = _L1CD << max(0, bits - _SPLIT[fmt]) if fmt else _CD << bits
    return {
        "s1cdmax": bits,
        "s1fmt": fmt,
        "s1dss": draw(one(*S1Dss)) if bits else 0,
        "s1ctxptr": draw(addresses(oas_bits(has), max(size, _CD))),
        "s1stalld": draw(flag(has.idr0.stall_model == StallModel.STALL_AND_TERMINATE)),
    }


def _stage2(draw: st.DrawFn, has: Features) -> Fields:
    forms = stage2_sizes(has)
    tg, ds = tuple(forms)[draw(number(0, len(forms) - 1))]
    level, bits, size = forms[tg, ds][draw(number(0, len(forms[tg, ds]) - 1))]
    granule = TG0[tg]
    ps = draw(number(AddressSize.BITS_32, AddressSize.BITS_52))
    limit = output_limit(ps, granule, bool(ds), has)
    table = 8 << bits - granule.shift(level)
    return {
        **size,
        "s2ps": ps,
        "s2ttb": draw(addresses(limit, max(table, _TTB_ALIGN))),
        "s2ha": draw(flag(has.idr0.httu)),
        "s2hd": draw(flag(has.idr0.httu > 1)),
        "s2s": draw(_stalls(has)),
    }


def _stalls(has: Features) -> st.SearchStrategy[int]:
    """CD.S and STE.S2S, by IDR0.STALL_MODEL."""
    model = has.idr0.stall_model
    if model == StallModel.STALL_FORCED:
        return number(1, 1)
    return flag(model == StallModel.STALL_AND_TERMINATE)


def stage2_sizes(has: Features) -> dict[tuple[int, int], tuple[tuple[int, int, Fields], ...]]:
    """By (S2TG, S2DS): first level, input bits, and the STE fields that say so, each legal."""
    return _stage2_sizes(of_sizes(has))


def of_sizes(has: Features) -> Ids:
    """The identification of an SMMU as far as sizes of tables depend on it."""
    return Ids(
        Idr0.build(s1p=1, s2p=1, ttf=Ttf.AARCH64, stall_model=StallModel.TERMINATE_ONLY),
        Idr1(),
        Idr3.build(stt=has.idr3.stt),
        has.idr5.replace(stall_max=0),
        Aidr.build(archminrev=int(has.aidr.archminrev > 0)),
    )


@cache
def _stage2_sizes(ids: Ids) -> dict[tuple[int, int], tuple[tuple[int, int, Fields], ...]]:
    out: dict[tuple[int, int], tuple[tuple[int, int, Fields], ...]] = {}
    for tg, granule in TG0.items():
        for ds in (0, 1) if granule.name != "64K" and ids.idr5.ds else (0,):
            found = []
            for bits in _INPUT_BITS:
                for level, code in start_codes(granule, bits, ds=bool(ds)).items():
                    fields = {
                        "s2tg": tg, "s2t0sz": 64 - bits, **sl0_fields(code),
                        "s2ds": ds, "s2aa64": 1,
                    }  # fmt: skip
                    if not ste_reasons(Ste.build(v=1, config=SteConfig.S2, **fields), ids):
                        found.append((level, bits, fields))
            if found:
                out[tg, ds] = tuple(found)
    return out
