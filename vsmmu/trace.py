# SPDX-License-Identifier: BSD-2-Clause
"""Trace events: a static table of names with their arguments, and a sink that keeps them.

Names are QEMU's where QEMU 10 has one for the same thing, because people grep for them; `smmu` as
the first argument says whose it is, since a machine here has several. docs/trace.md is the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Kind(NamedTuple):
    """What a trace event says: its arguments in order, what happened, whether QEMU has it."""

    args: tuple[str, ...]
    text: str
    qemu: bool = False


def _qemu(args: str, text: str) -> Kind:
    return Kind(tuple(args.split()), text, qemu=True)


def _ours(args: str, text: str) -> Kind:
    return Kind(tuple(args.split()), text)


EVENTS: dict[str, Kind] = {
    # The physical SMMU.
    "smmuv3_read_mmio": _qemu("smmu reg value size", "a register was read"),
    "smmuv3_write_mmio": _qemu("smmu reg value size", "a register was written"),
    "smmuv3_cmdq_opcode": _qemu("smmu opcode", "a command was fetched"),
    "smmuv3_cmdq_cfgi_ste": _qemu("smmu sid", "CMD_CFGI_STE"),
    "smmuv3_cmdq_cfgi_ste_range": _qemu("smmu start end", "CMD_CFGI_STE_RANGE, CMD_CFGI_ALL"),
    "smmuv3_cmdq_cfgi_cd": _qemu("smmu sid", "CMD_CFGI_CD, CMD_CFGI_CD_ALL"),
    "smmuv3_cmdq_tlbi_nh": _qemu("smmu vmid", "CMD_TLBI_NH_ALL"),
    "smmuv3_cmdq_tlbi_nh_asid": _qemu("smmu asid vmid", "CMD_TLBI_NH_ASID"),
    "smmuv3_cmdq_tlbi_nsnh": _qemu("smmu", "CMD_TLBI_NSNH_ALL"),
    "smmuv3_cmdq_tlbi_s12_vmid": _qemu("smmu vmid", "CMD_TLBI_S12_VMALL"),
    "smmuv3_range_inval": _qemu(
        "smmu vmid asid addr tg num_pages ttl leaf stage", "CMD_TLBI_NH_VA, _VAA, CMD_TLBI_S2_IPA"
    ),
    "smmuv3_cmdq_consume_error": _qemu("smmu cmd_name cmd_error", "a command stopped the queue"),
    "smmuv3_write_gerror": _qemu("smmu toggled gerror", "a global error became active"),
    "smmuv3_write_gerrorn": _qemu("smmu acked gerrorn", "global errors were acknowledged"),
    "smmuv3_record_event": _qemu("smmu type sid", "an event record was written"),
    "smmuv3_trigger_irq": _qemu("smmu irq", "an edge on an interrupt line"),
    "smmuv3_translate_disable": _qemu("smmu sid iova is_write", "an access while SMMUEN is 0"),
    "smmuv3_translate_bypass": _qemu("smmu sid iova is_write", "an access that bypassed"),
    "smmuv3_translate_abort": _qemu("smmu sid iova is_write", "an access that was aborted"),
    "smmuv3_translate_success": _qemu("smmu sid iova translated perm", "an access was translated"),
    "smmuv3_translate_fault": _ours("smmu sid iova status event", "an access faulted"),
    "smmuv3_walk": _ours(
        "smmu sid iova config s1 s2 tlb_hit tlb_miss",
        "structures and descriptors that an access made the SMMU read, and its TLB lookups",
    ),
    # The hypervisor.
    "vsmmu_trap": _ours("domain vcpu ipa size access", "an access of a vCPU was trapped"),
    "vsmmu_mmio_write": _ours("vsmmu reg value", "a trapped write took effect"),
    "vsmmu_cmd": _ours("vsmmu cmd fields", "a guest's command was taken"),
    "vsmmu_sync": _ours("vsmmu state", "a guest's CMD_SYNC: begin, end"),
    "vsmmu_shadow_cmd": _ours("vsmmu smmu cmd fields", "a physical command was queued for it"),
    "vsmmu_shadow_ste": _ours("vsmmu smmu vsid psid config", "a physical STE follows the guest's"),
    "vsmmu_refuse": _ours("vsmmu reason", "a guest's command was refused"),
    "vsmmu_event": _ours("vsmmu event", "a record was written to a guest's event queue"),
    "vsmmu_irq": _ours("vsmmu cause level", "a wired cause of a vSMMU changed"),
    "hyp_submit": _ours("smmu batch domid commands", "commands wait for a physical queue"),
    "hyp_complete": _ours("smmu batch domid", "their CMD_SYNC has completed"),
    "hyp_event_kept": _ours("smmu event reason", "an event record that no guest gets"),
    # Devices and scenarios.
    "dma_start": _ours("device smmu sid iova size is_write", "a device started a request"),
    "dma_done": _ours("device smmu sid iova outcome", "a request went through"),
    "scenario_step": _ours("number guests do", "a step began"),
    "scenario_step_done": _ours("number outcome", "a step ended: the machine is at rest"),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One trace record: virtual time, event name, arguments in the table's order."""

    time: int
    name: str
    args: tuple[object, ...]

    def __str__(self) -> str:
        names = EVENTS[self.name].args
        return self.name + "".join(
            f" {n} {_show(v)}" for n, v in zip(names, self.args, strict=True)
        )

    def fields(self) -> dict[str, str]:
        """Arguments by name; numbers in hexadecimal."""
        return dict(zip(EVENTS[self.name].args, map(_show, self.args), strict=True))


@dataclass
class Trace:
    """A bounded list of records; the oldest half is dropped when full and counted.

    `clock` tells the virtual time. Each of `sinks` is told every record, dropped or not.
    """

    limit: int = 200_000
    records: list[Record] = field(default_factory=list)
    dropped: int = 0
    clock: Callable[[], int] = lambda: 0
    sinks: list[Callable[[Record], None]] = field(default_factory=list)

    def __call__(self, name: str, *args: object) -> None:
        """Append a record. The name must be in the table."""
        if len(args) != len(EVENTS[name].args):
            raise TypeError(f"trace event {name} takes {EVENTS[name].args}")
        if len(self.records) >= self.limit:
            half = max(len(self.records) // 2, 1)
            del self.records[:half]
            self.dropped += half
        record = Record(self.clock(), name, args)
        self.records.append(record)
        for sink in self.sinks:
            sink(record)


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    return str(value)
