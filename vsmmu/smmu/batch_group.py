# SPDX-License-Identifier: BSD-2-Clause
"""Descriptors of many lanes at one level of their tables: kinds, addresses, permissions."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vsmmu.arch.pagetable import TABLE, VALID, S1Leaf, S2Leaf, TableDesc
from vsmmu.smmu.transaction import ALL_PERMS, ANY_WRITE
from vsmmu.smmu.walk import Step, Table, is_device, stage1_perms, stage2_perms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vsmmu.smmu.arena import Lanes, Mask, Words

_KIND = VALID | TABLE
_DBM = S1Leaf.mask("dbm")[0]
_HIERARCHICAL = TableDesc.mask("pxntable", "uxntable", "aptable0", "aptable1")[0]
_READ_ONLY, _S2_WRITE = S1Leaf.mask("ap2")[0], S2Leaf.mask("s2ap_w")[0]

# Beside the permissions of a leaf.
CLEAN, DEVICE = ALL_PERMS + 1, 2 * (ALL_PERMS + 1)
NOT_WRITE = (CLEAN | DEVICE | ALL_PERMS) & ~ANY_WRITE

# The runs of a descriptor that decide permissions, of either stage: memory type and access,
# execution and DBM, and what tables above add.
_LOW, _LOW_BITS = S2Leaf.memattr.lsb, (1 << (S2Leaf.s2ap_w.msb - S2Leaf.memattr.lsb + 1)) - 1
_MID, _MID_BITS = S1Leaf.dbm.lsb, (1 << (S1Leaf.uxn.msb - S1Leaf.dbm.lsb + 1)) - 1
_TOP, _TOP_BITS = TableDesc.pxntable.lsb, _HIERARCHICAL >> TableDesc.pxntable.lsb
_MID_TO = _LOW_BITS.bit_length()
_TOP_TO = _MID_TO + _MID_BITS.bit_length()
_DECIDES = _LOW_BITS << _LOW | _MID_BITS << _MID


class Group(NamedTuple):
    """Lanes at one level.

    `words` are their descriptors, whose address is `at`; `every` has the bits that are set in all
    of them and `some` those that are set in any.
    """

    lanes: Lanes
    inputs: Words
    at: Words
    words: Words
    every: int
    some: int
    attributes: Words | None

    def only(self, mask: Mask) -> Group:
        """The lanes that the mask selects."""
        attributes = None if self.attributes is None else self.attributes[mask]
        words = self.words[mask]
        return Group(
            self.lanes[mask], self.inputs[mask], self.at[mask], words, *bits(words), attributes
        )

    def kinds(self, step: Step) -> tuple[Mask | bool, Mask | bool]:
        """Which descriptors are tables and which leaves; a bool where they all agree."""
        kind = self.every & _KIND
        if kind == self.some & _KIND:
            return kind == step.table, kind == step.leaf
        kinds = self.words & _KIND
        return kinds == step.table, kinds == step.leaf

    def beyond(self, table: Table, mask: int, bits: int) -> bool:
        """Whether one of the output addresses may have more than `bits` bits."""
        return bool((self.some & mask | (self.some & table.high_mask) << table.high_shift) >> bits)

    def inherited(self) -> Words | None:
        """Hierarchical attributes of the tables on the way, this one's included."""
        if not self.some & _HIERARCHICAL:
            return self.attributes
        own = self.words & _HIERARCHICAL
        return own if self.attributes is None else own | self.attributes

    def outputs(self, table: Table, mask: int) -> Words:
        """Output addresses of descriptors."""
        address = self.words & mask
        if table.high_mask:
            address |= (self.words & table.high_mask) << table.high_shift
        return address

    def decisive(self) -> int | Words:
        """Place in `perms1` or `perms2`; one number where all lanes agree."""
        every, some, words, attributes = self.every, self.some, self.words, self.attributes
        if attributes is None and not (every ^ some) & _DECIDES:
            return every >> _LOW & _LOW_BITS | (every >> _MID & _MID_BITS) << _MID_TO
        index: Words = words >> _LOW & _LOW_BITS | (words >> _MID & _MID_BITS) << _MID_TO
        if attributes is not None:
            index |= (attributes >> _TOP & _TOP_BITS) << _TOP_TO
        return index


def bits(words: Words) -> tuple[int, int]:
    """The bits that are set in all words, and those that are set in any."""
    return int(np.bitwise_and.reduce(words)), int(np.bitwise_or.reduce(words))


# Permissions by the bits of a descriptor that decide them, in three runs.


def _every_leaf() -> Iterator[tuple[int, int]]:
    """(descriptor, hierarchical attributes) of each place."""
    for index in range(1 << _TOP_TO + _TOP_BITS.bit_length()):
        leaf = (index & _LOW_BITS) << _LOW | (index >> _MID_TO & _MID_BITS) << _MID
        yield leaf, (index >> _TOP_TO & _TOP_BITS) << _TOP


@lru_cache(maxsize=32)
def perms1(wxn: bool, pan: bool, hd: bool, el2: bool) -> NDArray[np.uint16]:
    """Permissions of stage 1 by `Group.decisive`, with CLEAN."""
    out = []
    for leaf, attributes in _every_leaf():
        effective = leaf & ~_READ_ONLY if hd and leaf & _DBM else leaf
        perms = stage1_perms(effective, attributes, wxn=wxn, pan=pan, el2=el2)
        clean = effective != leaf and perms & ANY_WRITE
        out.append(perms | (CLEAN if clean else 0))
    return np.array(out, dtype=np.uint16)


@lru_cache(maxsize=32)
def perms2(xnx: bool, hd: bool, fwb: bool) -> NDArray[np.uint16]:
    """Permissions of stage 2 by `Group.decisive`, with CLEAN and DEVICE."""
    out = []
    for leaf, _ in _every_leaf():
        effective = leaf | _S2_WRITE if hd and leaf & _DBM else leaf
        perms = stage2_perms(effective, xnx=xnx)
        device = is_device(S2Leaf.memattr.of((leaf,)), fwb=fwb)
        out.append(perms | (CLEAN if effective != leaf else 0) | (DEVICE if device else 0))
    return np.array(out, dtype=np.uint16)
