# SPDX-License-Identifier: BSD-2-Clause
"""Trace events: a static table of names with their arguments, and a sink that keeps them.

Names follow QEMU's where QEMU has one, because people grep for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

EVENTS: dict[str, tuple[str, ...]] = {
    "smmu_mmio_read": ("smmu", "reg", "value"),
    "smmu_mmio_write": ("smmu", "reg", "value"),
    "smmuv3_cmdq_opcode": ("smmu", "cmd"),
    "smmuv3_cmdq_error": ("smmu", "cmd", "err"),
    "smmuv3_record_event": ("smmu", "event"),
    "smmuv3_trigger_irq": ("smmu", "irq"),
    "smmuv3_translate_success": ("smmu", "sid", "iova", "pa", "perm"),
    "smmuv3_translate_fault": ("smmu", "sid", "iova", "event"),
    "vsmmu_trap": ("domain", "vcpu", "ipa", "size", "access"),
    "vsmmu_mmio_write": ("vsmmu", "reg", "value"),
    "vsmmu_cmd": ("vsmmu", "cmd"),
    "vsmmu_shadow_cmd": ("vsmmu", "smmu", "cmd"),
    "vsmmu_shadow_ste": ("vsmmu", "smmu", "vsid", "psid", "config"),
    "vsmmu_refuse": ("vsmmu", "reason"),
    "vsmmu_event": ("vsmmu", "event"),
    "vsmmu_irq": ("vsmmu", "cause", "level"),
    "hyp_event_kept": ("smmu", "event", "reason"),
    "dma": ("device", "iova", "outcome"),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One trace record: virtual time, event name, arguments in the table's order."""

    time: int
    name: str
    args: tuple[object, ...]

    def __str__(self) -> str:
        names = EVENTS[self.name]
        return self.name + "".join(
            f" {n} {_show(v)}" for n, v in zip(names, self.args, strict=True)
        )


@dataclass
class Trace:
    """A bounded list of records; the oldest half is dropped when full and counted.

    `clock` tells the virtual time.
    """

    limit: int = 200_000
    records: list[Record] = field(default_factory=list)
    dropped: int = 0
    clock: Callable[[], int] = lambda: 0

    def __call__(self, name: str, *args: object) -> None:
        """Append a record. The name must be in the table."""
        if len(args) != len(EVENTS[name]):
            raise TypeError(f"trace event {name} takes {EVENTS[name]}")
        if len(self.records) >= self.limit:
            half = len(self.records) // 2
            del self.records[:half]
            self.dropped += half
        self.records.append(Record(self.clock(), name, args))


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    return str(value)
