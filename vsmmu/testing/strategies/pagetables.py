# SPDX-License-Identifier: BSD-2-Clause
"""Strategies for descriptors and for whole translation tables (Arm ARM D8)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache

from hypothesis import strategies as st

from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import BLOCK_LEVELS_52, CONTIGUOUS, G4K, G16K, G64K, Granule
from vsmmu.arch.registers import OAS_BITS
from vsmmu.smmu.features import Features
from vsmmu.testing.space import Space, store
from vsmmu.testing.strategies.contexts import stage1_sizes
from vsmmu.testing.strategies.features import everything
from vsmmu.testing.strategies.layouts import addresses, few, number
from vsmmu.testing.strategies.streams import stage2_sizes
from vsmmu.testing.tables import (
    Stage1Tables,
    Stage2Tables,
    place_output,
    table_forms,
)

_GRANULES = {"4K": G4K, "16K": G16K, "64K": G64K}
_KIND = ("valid", "table", "af", "oa", "oa_high", "nt")
_MOST = 3
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range that is mapped with leaves of one level."""

    address: int
    output: int
    size: int
    level: int
    contiguous: bool = False
    write: bool = True


@dataclass(frozen=True, slots=True)
class Flaw:
    """A bit that is inverted in a descriptor on the walk to an address, `depth` tables down.

    Where the walk is shorter it is the last one.
    """

    address: int
    depth: int
    bit: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Tables to be built: which form they have, and what they map, no two ranges overlapping.

    `flaw` is put in once they are built; `lookup` does not know of it.
    """

    stage: int
    granule: Granule
    input_bits: int
    output_bits: int
    start: int
    wide: bool
    mappings: tuple[Mapping, ...]
    flaw: Flaw | None = None

    def build(self, space: Space) -> Stage1Tables | Stage2Tables:
        """The tables, in memory. Raises ValueError: the space is used up."""
        tables: Stage1Tables | Stage2Tables
        if self.stage == 1:
            tables = Stage1Tables(space, self.granule, input_bits=self.input_bits, wide=self.wide)
        else:
            tables = Stage2Tables(
                space, self.granule, input_bits=self.input_bits, start=self.start, wide=self.wide
            )
        for m in self.mappings:
            tables.map(
                m.address, m.output, m.size, level=m.level, contiguous=m.contiguous, write=m.write
            )
        if self.flaw is not None:
            path = tables.path(self.flaw.address)
            found = path[min(self.flaw.depth, len(path) - 1)]
            store(space.memory, found.slot, (found.word ^ 1 << self.flaw.bit,))
        return tables

    def lookup(self, address: int) -> tuple[int, bool] | None:
        """(output address, whether it is writable) of an address; None if it is not mapped."""
        for m in self.mappings:
            if m.address <= address < m.address + m.size:
                return m.output + address - m.address, m.write
        return None


@st.composite
def legal_leaves(
    draw: st.DrawFn,
    stage: int,
    granule: Granule = G4K,
    level: int = 3,
    *,
    output_bits: int = 48,
    wide: bool = False,
) -> Layout:
    """A block or page descriptor that translates: AF=1, an output in range, any permissions.

    Args:
        stage: 1 or 2.
        granule, level: whose leaf; a level that has leaves.
        output_bits: effective IPS or S2PS.
        wide: the 52-bit form.
    """
    form, _ = table_forms(stage, granule, wide=wide)
    output = draw(addresses(output_bits, 1 << granule.shift(level)))
    last = int(level == granule.page_level)
    leaf = form.build(valid=1, table=last, af=1, **place_output(form, output))
    return leaf.replace(**few(draw, form, frozenset(form.fields) - frozenset(_KIND)))


@st.composite
def page_tables(
    draw: st.DrawFn,
    stage: int,
    features: Features | None = None,
    *,
    granule: Collection[str] | None = None,
    max_mappings: int = 6,
) -> Recipe:
    """Tables of one stage that an SMMU can walk: every granule, size, level, contiguous or not.

    Args:
        stage: 1 or 2.
        features: the SMMU's; everything by default.
        granule: names of granules to choose from.
        max_mappings: ranges mapped, at least one.
    """
    has = features or everything()
    forms = _forms(stage, has)
    known = [key for key in sorted(forms) if granule is None or key[0] in granule]
    name, wide = known[draw(number(0, len(known) - 1))]
    sizes = forms[name, wide]
    start, bits = sizes[draw(number(0, len(sizes) - 1))]
    output_bits = has.oas if wide else min(has.oas, OAS_BITS[5])
    made: list[Mapping] = []
    for _ in range(draw(number(1, max_mappings))):
        mapping = _mapping(draw, _GRANULES[name], start, bits, output_bits, wide=wide)
        if not any(_overlap(mapping, other) for other in made):
            made.append(mapping)
    return Recipe(stage, _GRANULES[name], bits, output_bits, start, wide, tuple(made))


@st.composite
def almost_tables(draw: st.DrawFn, recipes: st.SearchStrategy[Recipe]) -> Recipe:
    """One of these recipes with a bit inverted in a descriptor of a mapping that it has."""
    recipe = draw(recipes)
    mapping = recipe.mappings[draw(number(0, len(recipe.mappings) - 1))]
    flaw = Flaw(mapping.address, draw(number(0, _DEEPEST)), draw(number(0, 63)))
    return replace(recipe, flaw=flaw)


def _mapping(
    draw: st.DrawFn, granule: Granule, start: int, bits: int, output_bits: int, *, wide: bool
) -> Mapping:
    kinds = _leaf_kinds(granule, start, bits, output_bits, wide)
    level, contiguous, span = kinds[draw(number(0, len(kinds) - 1))]
    address = draw(addresses(bits, span))
    output = draw(addresses(output_bits, span))
    room = min(((1 << bits) - address) // span, ((1 << output_bits) - output) // span)
    count = draw(number(1, min(_MOST, room)))
    return Mapping(address, output, span * count, level, contiguous, bool(draw(number(0, 1))))


@cache
def _leaf_kinds(
    granule: Granule, start: int, bits: int, output_bits: int, wide: bool
) -> tuple[tuple[int, bool, int], ...]:
    """(level, contiguous, bytes) of the leaves that fit the input and the output."""
    blocks = BLOCK_LEVELS_52[granule.name] if wide else granule.block_levels
    out = []
    for level in (granule.page_level, *reversed(blocks)):
        for contiguous in (False, True):
            count = CONTIGUOUS[granule.name].get(level, 0) if contiguous else 1
            span = count << granule.shift(level)
            if level >= start and span and span <= 1 << min(bits, output_bits):
                out.append((level, contiguous, span))
    return tuple(out)


def _forms(stage: int, has: Features) -> dict[tuple[str, bool], tuple[tuple[int, int], ...]]:
    """(first level, input bits) that are legal, by granule and whether descriptors are 52-bit."""
    out: dict[tuple[str, bool], tuple[tuple[int, int], ...]] = {}
    for name, granule in _GRANULES.items():
        for ds in (0, 1) if has.idr5.ds and name != "64K" else (0,):
            wide = has.oas > OAS_BITS[5] if name == "64K" else bool(ds)
            if stage == 1:
                sizes = [64 - txsz for txsz in stage1_sizes(has, ds).get(name, ())]
                found = [(granule.start_level(bits), bits) for bits in sizes]
            else:
                every = stage2_sizes(has)
                found = [
                    (level, bits)
                    for (_, uses_ds), rows in every.items()
                    for level, bits, fields in rows
                    if uses_ds == ds and fields["s2tg"] == _code(name)
                ]
            if found:
                out[name, wide] = tuple(found)
    return out


def _code(name: str) -> int:
    return {"4K": 0, "64K": 1, "16K": 2}[name]


def _overlap(one: Mapping, other: Mapping) -> bool:
    return one.address < other.address + other.size and other.address < one.address + one.size
