# SPDX-License-Identifier: BSD-2-Clause
"""Every limit and every allow-mask that guests are held to, in one place."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from vsmmu.arch.stream_table import Ste

# What a guest STE may contribute to the physical STE; all else comes from the hypervisor.
GUEST_STE_FIELDS = ("s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh")
GUEST_STE_MASK = Ste.mask(*GUEST_STE_FIELDS)


@dataclass(frozen=True, slots=True)
class Policy:
    """Named caps. Units are in the names or the comments."""

    # Guest commands that may wait for one physical CMD_SYNC.
    commands_per_flush: int = 64
    # Commands of one owner that go to a physical queue before the next owner's turn.
    commands_per_turn: int = 64
    # Events that wait for a guest's queue; past this the queue counts as full (OVFLG tells).
    pending_events: int = 64
    # Physical stream tables cover this many StreamID bits at most.
    stream_id_bits: int = 24
    # Command and event queues of the physical SMMUs, log2 of entries.
    physical_queue_log2: int = 8
    # Refusals that are kept with their reason, for a guest.
    refusals_kept: int = 32
    # What a vSMMU may offer where every physical SMMU behind it has it. A guest that maps memory
    # for DMA needs none of it, so each is off until somebody asks (docs/vsmmu-features.md).
    substreams: bool = False
    httu: bool = False
    msi: bool = False
    stalls: bool = False
    ats: bool = False
    pri: bool = False
    # Stalled transactions of a vSMMU on each physical SMMU behind it, set aside there for it.
    stalls_per_vsmmu: int = 16
    # Page requests that wait for a guest's queue; past this the queue counts as full.
    pending_page_requests: int = 64

    def to_json(self) -> dict[str, object]:
        """The caps by name, and the STE fields a guest may set."""
        return {**asdict(self), "guest_ste_fields": list(GUEST_STE_FIELDS)}


@dataclass(slots=True)
class Refusals:
    """Refusals counted by reason; the first few kept whole."""

    keep: int
    by_reason: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, reason: str, detail: str) -> None:
        """Count a refusal; `reason` is a short fixed text, `detail` names field and value."""
        self.by_reason[reason] += 1
        if len(self.first) < self.keep:
            self.first.append(f"{reason}: {detail}")
