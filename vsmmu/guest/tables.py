# SPDX-License-Identifier: BSD-2-Clause
"""Stage 1 tables that a guest builds in its own memory (VMSAv8-64, 4 KiB granule)."""

from __future__ import annotations

from vsmmu.arch.pagetable import G4K, TABLE, VALID, S1Leaf, output_address
from vsmmu.guest.vcpu import GuestError
from vsmmu.hypervisor.domain import GuestMemory

PAGE = 4096
_ENTRIES = 512
# MAIR index of normal write-back memory in the CDs of `vsmmu.guest.driver`.
_ATTR_WB = 1
_OUTPUT_BITS = 48


class Heap:
    """Pages of guest RAM that the guest's kernel uses for itself; zeroed when handed out."""

    def __init__(self, memory: GuestMemory, base: int, size: int) -> None:
        self._memory = memory
        self._next, self._end = base, base + size

    def allocate(self, size: int, align: int = PAGE) -> int:
        """An IPA range, `size` rounded up to pages. Raises GuestError when RAM is used up."""
        base = -(-self._next // align) * align
        size = -(-size // PAGE) * PAGE
        if base + size > self._end:
            raise GuestError("the guest's heap is used up")
        self._next = base + size
        if not self._memory.write(base, bytes(size)):
            raise GuestError(f"heap page {base:#x} is not RAM")
        return base


class S1Tables:
    """A translation table for one CD.

    Args:
        ias: input address size in bits (64 - T0SZ).
    """

    def __init__(self, memory: GuestMemory, heap: Heap, *, ias: int = 48) -> None:
        self._memory = memory
        self._heap = heap
        self.ias = ias
        self.start = G4K.start_level(ias)
        self.ttb = heap.allocate(PAGE)

    def map(self, iova: int, ipa: int, size: int, *, write: bool = True) -> None:
        """Map pages, blocks where alignment allows. Raises GuestError."""
        self._check(iova, size)
        if ipa % PAGE or (ipa + size - 1) >> _OUTPUT_BITS:
            raise GuestError(f"IPA {ipa:#x}+{size:#x} is not made of pages of {_OUTPUT_BITS} bits")
        while size:
            level = 3
            if not (iova | ipa) % (1 << G4K.shift(2)) and size >= 1 << G4K.shift(2):
                level = 2
            step = 1 << G4K.shift(level)
            leaf = S1Leaf.build(
                valid=1,
                table=int(level == 3),
                attrindx=_ATTR_WB,
                ap1=1,
                ap2=int(not write),
                sh=3,
                af=1,
                ng=1,
                pxn=1,
                uxn=1,
            )
            self._memory.write64(self._slot(iova, level), leaf.raw | ipa)
            iova, ipa, size = iova + step, ipa + step, size - step

    def unmap(self, iova: int, size: int) -> None:
        """Clear the leaves of a range; invalidation is the driver's work.

        Raises:
            GuestError: not pages, out of range, or a part of a block, which Linux refuses too.
        """
        self._check(iova, size)
        end = iova + size
        while iova < end:
            level, slot, word = self._find(iova)
            step = 1 << G4K.shift(level)
            if word & VALID:
                if iova % step or end - iova < step:
                    raise GuestError(f"{iova:#x} is part of a block of {step:#x} bytes")
                self._memory.write64(slot, 0)
            iova = (iova // step + 1) * step

    def _check(self, iova: int, size: int) -> None:
        if (iova | size) % PAGE or size <= 0:
            raise GuestError(f"iova {iova:#x}+{size:#x} is not made of 4 KiB pages")
        if (iova + size - 1) >> self.ias:
            raise GuestError(f"iova {iova:#x}+{size:#x} does not fit {self.ias} bits")

    def _read(self, ipa: int) -> int:
        word = self._memory.read64(ipa)
        if word is None:
            raise GuestError(f"table page {ipa:#x} is not RAM")
        return word

    def _find(self, iova: int) -> tuple[int, int, int]:
        table, level = self.ttb, self.start
        while True:
            slot = table + 8 * (iova >> G4K.shift(level) & _ENTRIES - 1)
            word = self._read(slot)
            if level == 3 or word & (VALID | TABLE) != VALID | TABLE:
                return level, slot, word
            table, level = output_address(word, 12), level + 1

    def _slot(self, iova: int, wanted: int) -> int:
        while True:
            level, slot, word = self._find(iova)
            if level == wanted:
                return slot
            if level > wanted or word & VALID:
                raise GuestError(f"{iova:#x} is mapped with another size")
            table = self._heap.allocate(PAGE)
            self._memory.write64(slot, table | TABLE | VALID)
