# SPDX-License-Identifier: BSD-2-Clause
"""Circular queues: producer and consumer with a wrap bit (IHI 0070 §3.5.1).

Pure index arithmetic, the same for CMDQ, EVENTQ and PRIQ and for either side. An index register
holds the index in its low LOG2SIZE bits and the wrap flag just above; bits above that are
ignored.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ring:
    """Geometry of one queue: log2 of its entries, entry size in bytes, base address."""

    log2size: int
    entry: int
    base: int

    @staticmethod
    def of(base_addr: int, log2size: int, max_log2: int, entry: int) -> Ring:
        """The queue that a *_BASE register describes; the size is capped, the base aligned."""
        log2size = min(log2size, max_log2)
        align = max(32, entry << log2size)
        return Ring(log2size, entry, base_addr & ~(align - 1))

    @property
    def size(self) -> int:
        """Entries."""
        return 1 << self.log2size

    def clip(self, pointer: int) -> int:
        """The index and wrap bits of an index register."""
        return pointer & (2 << self.log2size) - 1

    def used(self, prod: int, cons: int) -> int:
        """Entries between consumer and producer.

        More than `size` means the registers are inconsistent (§3.5.1: CONSTRAINED UNPREDICTABLE).
        """
        return prod - cons & (2 << self.log2size) - 1

    def pending(self, prod: int, cons: int) -> int:
        """Entries to consume; 0 for inconsistent registers, so that nothing is processed."""
        used = prod - cons & (2 << self.log2size) - 1
        return used if used <= 1 << self.log2size else 0

    def is_full(self, prod: int, cons: int) -> bool:
        """No room for another entry; inconsistent registers count as full."""
        return self.used(prod, cons) >= self.size

    def advance(self, pointer: int, count: int = 1) -> int:
        """The pointer moved on, wrap bit included."""
        return pointer + count & (2 << self.log2size) - 1

    def address(self, pointer: int) -> int:
        """Address of the entry a pointer names."""
        return self.base + (pointer & (1 << self.log2size) - 1) * self.entry
