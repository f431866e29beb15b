# SPDX-License-Identifier: BSD-2-Clause
"""Every limit and every allow-mask that guests are held to, in one place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vsmmu.arch.stream_table import Ste
from vsmmu.hypervisor.settings import SettingError, number, switch, unknown

# What a guest STE may contribute to the physical STE; all else comes from the hypervisor.
GUEST_STE_FIELDS = ("s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh")
GUEST_STE_MASK = Ste.mask(*GUEST_STE_FIELDS)

# Why something was refused, as `Refusals` counts it.
REASONS = {
    "CERROR_ILL": "a command that the vSMMU does not advertise, or an illegal field",
    "CERROR_ABT": "a command queue outside the guest's memory",
    "CERROR_ATC_INV_SYNC": "a device that did not answer a CMD_ATC_INV",
    "CMD_PRI_RESP never asked": "an answer to no page request that the guest was told of",
    "C_BAD_STE": "an STE that is illegal for what the vSMMU advertises",
    "event rate of a device": "device_events and device_event_turns",
    "event rate of a guest": "guest_events and guest_event_turns",
}


def _cap(value: int, unit: str, meaning: str, least: int = 1, most: int = 1 << 16) -> Any:
    allowed = range(least, most + 1)
    return field(default=value, metadata={"unit": unit, "meaning": meaning, "allowed": allowed})


@dataclass(frozen=True, slots=True)
class Policy:
    """Named caps. Each has its unit and meaning beside it; turns are the scheduler's."""

    commands_per_flush: int = _cap(
        64, "commands", "of a guest that may wait for one physical CMD_SYNC"
    )
    commands_per_turn: int = _cap(
        16,
        "commands",
        "of one owner that enter a physical queue before the next owner's turn",
        least=2,
    )
    commands_in_queue: int = _cap(
        64, "commands", "of one owner that are in a physical queue and not consumed", least=2
    )
    streams_per_unit: int = _cap(
        16, "streams", "of its own that a vSMMU looks at in one unit of work"
    )
    pending_events: int = _cap(
        64, "events", "that wait for a guest's queue; past this the queue counts as full (OVFLG)"
    )
    device_events: int = _cap(
        128, "events", "of one device at once; past this the guest's queue counts as full"
    )
    device_event_turns: int = _cap(64, "turns", "after which a device may have one more")
    guest_events: int = _cap(
        512, "events", "of one guest at once; past this its queue counts as full"
    )
    guest_event_turns: int = _cap(16, "turns", "after which a guest may have one more")
    stream_id_bits: int = _cap(
        24, "bits", "of StreamID that physical stream tables cover at most", most=32
    )
    physical_queue_log2: int = _cap(
        8, "log2", "of the entries of a physical command or event queue", least=2, most=19
    )
    stage2_pages_per_step: int = _cap(
        512,
        "pages",
        "of a domain's stage 2 that one step changes, before its invalidation",
        most=512,
    )
    s2_ipa_per_flush: int = _cap(
        32,
        "commands",
        "CMD_TLBI_S2_IPA on an SMMU without ranges; past it the VMID is flushed",
        least=0,
    )
    p2m_tables: int = _cap(
        256,
        "tables",
        "that a stage 2 may gain beyond those it was built with and one a MiB",
        least=0,
    )
    hypercalls: int = _cap(128, "hypercalls", "of a domain that have not returned")
    grants: int = _cap(1024, "grants", "that a domain may have", least=0)
    grant_mappings: int = _cap(
        1024, "mappings", "of other domains' grants that a domain may have", least=0
    )
    # What a vSMMU may offer where every physical SMMU behind it has it. A guest that maps memory
    # for DMA needs none of it, so each is off until somebody asks (docs/vsmmu-features.md).
    substreams: bool = _cap(False, "switch", "SubstreamIDs of vSMMUs")
    httu: bool = _cap(False, "switch", "hardware update of access flags and dirty state")
    msi: bool = _cap(False, "switch", "messages in place of wired interrupts")
    stalls: bool = _cap(False, "switch", "stalled transactions that a guest answers")
    ats: bool = _cap(False, "switch", "ATS of a guest's devices")
    pri: bool = _cap(False, "switch", "page requests of a guest's devices")
    stalls_per_vsmmu: int = _cap(
        16,
        "transactions",
        "stalled on each SMMU behind a vSMMU, set aside there for it",
        least=0,
        most=0xFFFF,
    )
    pending_page_requests: int = _cap(
        64, "requests", "that wait for a guest's queue; past this the queue counts as full"
    )
    refusals_kept: int = _cap(32, "refusals", "of a vSMMU that are kept with their detail", least=0)

    def caps(self) -> list[tuple[str, int, str, str]]:
        """(name, value, unit, meaning) of each cap."""
        return [
            (f.name, getattr(self, f.name), f.metadata["unit"], f.metadata["meaning"])
            for f in fields(self)
        ]

    def to_json(self) -> dict[str, object]:
        """The caps by name, what a guest's STE and commands may ask for, why it is refused."""
        # Its handlers import this module.
        from vsmmu.hypervisor.commands import accepted

        return {
            **{name: value for name, value, _, _ in self.caps()},
            "guest_ste_fields": list(GUEST_STE_FIELDS),
            "guest_ste_mask": [hex(word) for word in GUEST_STE_MASK],
            "guest_commands": list(accepted()),
            "refusals": dict(REASONS),
        }


def policy_from(table: Mapping[str, object]) -> Policy:
    """A policy from the names of `Policy` and values as a user types them; the rest as it is.

    Switches are true or false, caps are numbers; either may be text ("on", "0x20").

    Raises:
        SettingError: a name that is no limit, a value of another kind or out of range, or a
            switch that has no effect without another one.
    """
    known = {f.name: f for f in fields(Policy)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        found = known.get(name)
        if found is None:
            raise unknown(name, known, "limit")
        if isinstance(found.default, bool):
            values[name] = switch(name, value)
        else:
            unit = found.metadata["unit"].replace("log2", "")
            values[name] = number(name, value, found.metadata["allowed"], unit)
    policy = Policy(**values)
    if policy.pri and not policy.ats:
        raise SettingError("pri: has no effect without ats (IDR0.PRI=1 needs IDR0.ATS=1)")
    if policy.stalls and not policy.stalls_per_vsmmu:
        raise SettingError("stalls: has no effect with stalls_per_vsmmu = 0")
    return policy


@dataclass(slots=True)
class Refusals:
    """Refusals counted by reason; the first few kept whole."""

    keep: int
    by_reason: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, reason: str, detail: str) -> None:
        """Count a refusal; `reason` is one of `REASONS`, `detail` names field and value."""
        self.by_reason[reason] += 1
        if len(self.first) < self.keep:
            self.first.append(f"{reason}: {detail}")
