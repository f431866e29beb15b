# SPDX-License-Identifier: BSD-2-Clause
"""Translation tables of either stage, any granule, blocks and contiguous groups (Arm ARM D8).

    tables = Stage1Tables(space, G16K, input_bits=47)
    tables.map(0x4000_0000, 0x8000_0000, 0x200_0000)
    cd = Cd.build(v=1, aa64=1, a=1, epd1=1, ips=5, **tables.cd_fields())

What is built is what is asked for: nothing here asks which of it an SMMU has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import (
    BLOCK_LEVELS_52,
    CONTIGUOUS,
    G4K,
    S2_CONCATENATION,
    S2_START,
    S2_START_DS,
    TABLE,
    TG0,
    TG1,
    VALID,
    Granule,
    S1Leaf,
    S1LeafLpa,
    S1LeafLpa2,
    S2Leaf,
    S2LeafLpa,
    S2LeafLpa2,
    TableDesc,
    TableDescLpa,
    TableDescLpa2,
)
from vsmmu.arch.stream_table import sl0_fields
from vsmmu.testing.space import Space, load, store

_FIRST_TABLE_ALIGN = 64
_LPA_GRANULE = "64K"


def place_output(form: type[Layout], address: int) -> dict[str, int]:
    """The fields of a descriptor that hold an output address, `oa` and maybe `oa_high`.

    Raises:
        ValueError: the form has not that many bits.
    """
    oa = form.fields["oa"]
    fields = {"oa": address >> oa.lsb & oa.mask}
    high = address >> oa.msb + 1
    if "oa_high" in form.fields:
        fields["oa_high"] = high
    elif high:
        raise ValueError(f"{form.__name__} cannot hold output address {address:#x}")
    return fields


def take_output(form: type[Layout], word: int) -> int:
    """The output address in a descriptor."""
    oa, high = form.fields["oa"], form.fields.get("oa_high")
    low = oa.of((word,)) << oa.lsb
    return low if high is None else low | high.of((word,)) << oa.msb + 1


@dataclass(frozen=True, slots=True)
class Found:
    """A descriptor of a walk: level, place, the descriptor itself.

    `output` and `size` are those of a leaf; None and 0 for a table, and where nothing is mapped.
    """

    level: int
    slot: int
    word: int
    output: int | None = None
    size: int = 0


# Forms of 48-bit outputs, of 52-bit ones with 4K and 16K, of those with 64K.
_LEAVES: dict[int, tuple[type[Layout], ...]] = {
    1: (S1Leaf, S1LeafLpa2, S1LeafLpa),
    2: (S2Leaf, S2LeafLpa2, S2LeafLpa),
}
_TABLES: tuple[type[Layout], ...] = (TableDesc, TableDescLpa2, TableDescLpa)


def table_forms(stage: int, granule: Granule, *, wide: bool) -> tuple[type[Layout], type[Layout]]:
    """The layouts of leaves and of table descriptors; `wide` is the 52-bit form."""
    form = 0 if not wide else 2 if granule.name == _LPA_GRANULE else 1
    return _LEAVES[stage][form], _TABLES[form]


class _Tables:
    """What tables of both stages have in common; use `Stage1Tables` or `Stage2Tables`."""

    stage: ClassVar[int]
    defaults: ClassVar[dict[str, int]]
    readonly: ClassVar[dict[str, int]]

    def __init__(
        self, space: Space, granule: Granule, input_bits: int, start: int, *, wide: bool
    ) -> None:
        self.space = space
        self.granule = granule
        self.input_bits = input_bits
        self.wide = wide
        self.start = start
        self.leaf, self.table = table_forms(self.stage, granule, wide=wide)
        self.block_levels = BLOCK_LEVELS_52[granule.name] if wide else granule.block_levels
        size = 8 << (input_bits - granule.shift(start))
        self.root = space.allocate(size, max(size, _FIRST_TABLE_ALIGN))

    def map(
        self,
        address: int,
        output: int,
        size: int,
        *,
        write: bool = True,
        level: int | None = None,
        contiguous: bool = False,
        **fields: int,
    ) -> None:
        """Map a range with the largest leaves that fit.

        Args:
            address, output, size: whole pages of the granule, bytes.
            write: whether it is writable.
            level: use leaves of this level alone.
            contiguous: set the Contiguous bit of whole groups; the range must be made of them.
            fields: of the leaf layout, over the defaults: `ap2=1`, `af=0`, `memattr=0` and so on.

        Raises:
            ValueError: not aligned, out of range, or mapped with another size already.
        """
        levels = self._levels(level, contiguous)
        span = min(self.span(at, contiguous=contiguous) for at in levels)
        if size <= 0 or (address | output | size) % span:
            raise ValueError(f"{address:#x} -> {output:#x}+{size:#x} is not whole {span:#x} bytes")
        self._check(address, size)
        values = {**self.defaults, **({} if write else self.readonly), **fields}
        values["contig"] = int(contiguous)
        while size:
            at = next(at for at in levels if self._fits(at, address, output, size, contiguous))
            for _ in range(self.span(at, contiguous=contiguous) >> self.granule.shift(at)):
                self._put(address, output, at, values)
                step = 1 << self.granule.shift(at)
                address, output, size = address + step, output + step, size - step

    def unmap(self, address: int, size: int) -> None:
        """Clear the leaves of a range; invalidating them is the caller's work.

        Raises:
            ValueError: not whole pages, out of range, or a part of a block.
        """
        if size <= 0 or (address | size) % self.granule.page_size:
            raise ValueError(f"{address:#x}+{size:#x} is not made of {self.granule.name} pages")
        self._check(address, size)
        end = address + size
        while address < end:
            found = self.find(address)
            step = 1 << self.granule.shift(found.level)
            if found.output is not None:
                if address % step or end - address < step:
                    raise ValueError(f"{address:#x} is part of a block of {step:#x} bytes")
                store(self.space.memory, found.slot, (0,))
            address = (address // step + 1) * step

    def find(self, address: int) -> Found:
        """The end of the walk for an address. Raises ValueError: the address is out of range."""
        return self.path(address)[-1]

    def path(self, address: int) -> list[Found]:
        """Every descriptor of the walk for an address. Raises ValueError: it is out of range."""
        self._check(address, 1)
        table, found = self.root, []
        for level in range(self.start, self.granule.page_level + 1):
            slot = table + 8 * self._index(address, level)
            (word,) = load(self.space.memory, slot, 1)
            found.append(self._found(level, slot, word))
            if level == self.granule.page_level or word & (VALID | TABLE) != VALID | TABLE:
                break
            table = take_output(self.table, word)
        return found

    def _found(self, level: int, slot: int, word: int) -> Found:
        if not self._is_leaf(word, level):
            return Found(level, slot, word)
        size = 1 << self.granule.shift(level)
        return Found(level, slot, word, take_output(self.leaf, word) & -size, size)

    def poke(self, address: int, word: int) -> Found:
        """Replace the descriptor where the walk for an address ends; what was there."""
        found = self.find(address)
        store(self.space.memory, found.slot, (word,))
        return found

    def span(self, level: int, *, contiguous: bool = False) -> int:
        """Bytes of a leaf of a level, or of a contiguous group of them."""
        size = 1 << self.granule.shift(level)
        return size * CONTIGUOUS[self.granule.name].get(level, 1) if contiguous else size

    def _levels(self, level: int | None, contiguous: bool) -> tuple[int, ...]:
        """Levels that may have the leaves asked for, and that these tables reach."""
        known = (*self.block_levels, self.granule.page_level)
        levels = tuple(at for at in known if at >= self.start and level in (None, at))
        if contiguous:
            most = 1 << self.input_bits
            groups = {at: self.span(at, contiguous=True) for at in CONTIGUOUS[self.granule.name]}
            levels = tuple(at for at in levels if groups.get(at, most + 1) <= most)
        if not levels:
            what = "contiguous groups" if contiguous else "leaves"
            where = "" if level is None else f" at level {level}"
            raise ValueError(f"no {what}{where} with the {self.granule.name} granule here")
        return levels

    def _fits(self, level: int, address: int, output: int, size: int, contiguous: bool) -> bool:
        span = self.span(level, contiguous=contiguous)
        return not (address | output) % span and size >= span

    def _check(self, address: int, size: int) -> None:
        if address < 0 or (address + size - 1) >> self.input_bits:
            raise ValueError(f"{address:#x}+{size:#x} does not fit {self.input_bits} bits")

    def _index(self, address: int, level: int) -> int:
        index = address >> self.granule.shift(level)
        return index if level == self.start else index & (1 << self.granule.stride) - 1

    def _is_leaf(self, word: int, level: int) -> bool:
        if not word & VALID:
            return False
        if level == self.granule.page_level:
            return bool(word & TABLE)
        return not word & TABLE and level in self.block_levels

    def _put(self, address: int, output: int, level: int, values: dict[str, int]) -> None:
        leaf = self.leaf.build(
            valid=1,
            table=int(level == self.granule.page_level),
            **{name: value for name, value in values.items() if name in self.leaf.fields},
            **place_output(self.leaf, output),
        )
        store(self.space.memory, self._slot(address, level), leaf.words)

    def _slot(self, address: int, wanted: int) -> int:
        """Place of the descriptor for an address at a level, tables made on the way."""
        while True:
            found = self.find(address)
            if found.level == wanted:
                return found.slot
            if found.level > wanted or found.word & VALID:
                raise ValueError(f"{address:#x} is mapped with another size")
            place = self.space.allocate(self.granule.page_size)
            word = self.table.build(valid=1, table=1, **place_output(self.table, place))
            store(self.space.memory, found.slot, word.words)


def _code(codes: Mapping[int, Granule], granule: Granule) -> int:
    return next(code for code, known in codes.items() if known is granule)


class Stage1Tables(_Tables):
    """Stage 1 tables of one TTB.

    Args:
        space: where tables are put.
        granule: `G4K`, `G16K` or `G64K` of `vsmmu.arch.pagetable`.
        input_bits: 64 - TxSZ.
        wide: descriptors with 52-bit outputs: with 4K and 16K those of CD.DS, with 64K those of an
            SMMU whose IDR5.OAS is 52 bits.

    Leaves are accessible to unprivileged accesses, non-global and not executable; `fields` of
    `map` change that. Addresses are offsets from where the TTB's range begins.
    """

    stage = 1
    defaults: ClassVar[dict[str, int]] = {
        "ap1": 1, "sh": 3, "af": 1, "ng": 1, "pxn": 1, "uxn": 1,
    }  # fmt: skip
    readonly: ClassVar[dict[str, int]] = {"ap2": 1}

    def __init__(
        self, space: Space, granule: Granule = G4K, *, input_bits: int = 48, wide: bool = False
    ) -> None:
        super().__init__(space, granule, input_bits, granule.start_level(input_bits), wide=wide)

    def cd_fields(self, half: int = 0) -> dict[str, int]:
        """TTBx, TGx and TxSZ of the CD, and DS; `half` 1 is TTB1."""
        codes = TG1 if half else TG0
        return {
            f"ttb{half}": self.root,
            f"tg{half}": _code(codes, self.granule),
            f"t{half}sz": 64 - self.input_bits,
            "ds": int(self.wide and self.granule.name != _LPA_GRANULE),
        }


class Stage2Tables(_Tables):
    """Stage 2 tables; the first level has as many tables side by side as it may, so is low.

    Args:
        space, granule, wide: as for `Stage1Tables`, with STE.S2DS in the place of CD.DS.
        input_bits: 64 - S2T0SZ.
        start: the first level instead.

    Raises:
        ValueError: no S2SL0 says that.
    """

    stage = 2
    defaults: ClassVar[dict[str, int]] = {
        "memattr": 0xF, "s2ap_r": 1, "s2ap_w": 1, "sh": 3, "af": 1,
    }  # fmt: skip
    readonly: ClassVar[dict[str, int]] = {"s2ap_w": 0}

    def __init__(
        self,
        space: Space,
        granule: Granule = G4K,
        *,
        input_bits: int = 40,
        start: int | None = None,
        wide: bool = False,
    ) -> None:
        self.codes = start_codes(granule, input_bits, ds=wide)
        if start is None:
            # The last level has no blocks, and with 4K needs IDR3.STT.
            last = granule.page_level
            start = max(self.codes, key=lambda level: (level < last, level), default=None)
        if start is None or start not in self.codes:
            raise ValueError(
                f"no S2SL0 for {input_bits} bits of the {granule.name} granule"
                + ("" if start is None else f" from level {start}")
            )
        super().__init__(space, granule, input_bits, start, wide=wide)

    def ste_fields(self) -> dict[str, int]:
        """S2TTB, S2TG, S2T0SZ, S2SL0, S2SL0_2, S2DS and S2AA64 of the STE."""
        code = self.codes[self.start]
        return {
            "s2ttb": self.root,
            "s2tg": _code(TG0, self.granule),
            "s2t0sz": 64 - self.input_bits,
            **sl0_fields(code),
            "s2ds": int(self.wide and self.granule.name != _LPA_GRANULE),
            "s2aa64": 1,
        }


def start_codes(granule: Granule, input_bits: int, *, ds: bool) -> dict[int, int]:
    """First levels that an input size may start at, with the S2SL0 (and S2SL0_2) of each."""
    codes = S2_START_DS.get(granule.name, {}) if ds else {}
    out = {}
    for code, level in (codes or S2_START[granule.name]).items():
        shift = granule.shift(level)
        if shift + 1 <= input_bits <= shift + granule.stride + S2_CONCATENATION:
            out[level] = code
    return out
