# SPDX-License-Identifier: BSD-2-Clause
"""What each guest cost on each physical SMMU: commands, invalidations, accesses, walks, faults.

A sink of trace records, so nothing is counted where nobody asks. An access belongs to the guest
that had its stream at that moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.smmu.smmu import Smmu
from vsmmu.trace import EVENTS, Record

# What is counted for a guest on an SMMU, with a text for each.
COLUMNS = {
    "physical_commands": "commands that entered the physical queue for it, CMD_SYNC included",
    "invalidations": "of these, CMD_CFGI_*, CMD_TLBI_* and CMD_ATC_INV of its own commands",
    "ste_updates": "changes of physical STEs",
    "accesses": "of its devices, each at most a page",
    "faults": "of these, ended by a fault",
    "aborts": "of these, ended by configuration without a fault",
    "config_reads": "STEs, CDs and their level 1 descriptors read for these accesses",
    "s1_reads": "stage 1 descriptors read likewise",
    "s2_reads": "stage 2 descriptors read likewise",
    "tlb_hits": "lookups of either stage that found an entry",
    "tlb_misses": "lookups that found none",
}
_FATES = {
    "smmuv3_translate_success": "", "smmuv3_translate_bypass": "", "smmuv3_translate_disable": "",
    "smmuv3_translate_abort": "aborts", "smmuv3_translate_fault": "faults",
}  # fmt: skip
_WALK = ("config_reads", "s1_reads", "s2_reads", "tlb_hits", "tlb_misses")
_MAINTENANCE = ("CMD_CFGI_", "CMD_TLBI_", "CMD_ATC_INV")
Costs = Mapping[tuple[str, str], Counter[str]]


class CostSink:
    """Counts by (guest, SMMU); give it to `Trace.sinks`."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.by: dict[tuple[str, str], Counter[str]] = {}
        self._hypervisor = hypervisor

    def __call__(self, record: Record) -> None:
        """Count a record."""
        name, args = record.name, record.args
        if name in _FATES or name == "smmuv3_walk":
            smmu, sid = str(args[0]), args[1]
            assert isinstance(sid, int)
            owner = self._hypervisor.owner(smmu, sid)
            if owner is not None:
                self._access(self._cell(owner, smmu), name, args)
        elif name == "vsmmu_shadow_cmd":
            if str(args[2]).startswith(_MAINTENANCE):
                self._cell(_guest(args[0]), str(args[1]))["invalidations"] += 1
        elif name == "vsmmu_shadow_ste":
            self._cell(_guest(args[0]), str(args[1]))["ste_updates"] += 1

    def _access(self, cell: Counter[str], name: str, args: tuple[object, ...]) -> None:
        if name == "smmuv3_walk":
            for column, value in zip(_WALK, args[3:], strict=True):
                assert isinstance(value, int)
                cell[column] += value
            return
        cell["accesses"] += 1
        if _FATES[name]:
            cell[_FATES[name]] += 1

    def _cell(self, guest: str, smmu: str) -> Counter[str]:
        return self.by.setdefault((guest, smmu), Counter())


def _guest(vsmmu: object) -> str:
    return str(vsmmu).removeprefix("vsmmu ").rpartition("@")[0]


def summary(
    costs: Costs,
    hypervisor: Hypervisor,
    smmus: Mapping[str, Smmu],
    guests: Mapping[str, tuple[int, Iterable[VSmmu]]],
) -> dict[str, Any]:
    """Costs as JSON values: what the guest's vSMMUs count, and what each SMMU did for it.

    Args:
        costs: of a `CostSink`.
        smmus: the physical models, by the paths of `hypervisor`.
        guests: domid and vSMMUs by name.
    """
    hosts = hypervisor.hosts
    rows = []
    for name, (domid, vsmmus) in guests.items():
        per, total = [], Counter[str]()
        for path, host in hosts.items():
            cell = Counter(costs.get((name, path), {}))
            cell["physical_commands"] = host.queue.entered[domid]
            total.update(cell)
            if +cell:
                per.append({"smmu": path, **{column: cell[column] for column in COLUMNS}})
        whole = {column: total[column] for column in COLUMNS}
        rows.append({"guest": name, **_asked(vsmmus), **whole, "smmus": per})
    return {"guests": rows, "smmus": [_smmu(smmu, path) for path, smmu in smmus.items()]}


def _asked(vsmmus: Iterable[VSmmu]) -> dict[str, int]:
    out = Counter({"trap_reads": 0, "trap_writes": 0, "commands": 0})
    for vsmmu in vsmmus:
        out["trap_reads"] += vsmmu.counters["trap read"]
        out["trap_writes"] += vsmmu.counters["trap write"]
        out["commands"] += sum(n for c, n in vsmmu.counters.items() if c.startswith("CMD_"))
    return dict(out)


def _smmu(smmu: Smmu, path: str) -> dict[str, Any]:
    """An SMMU's own counters since it was made, the hypervisor's commands included."""
    c = smmu.counters
    return {
        "smmu": path,
        "commands": sum(n for name, n in c.items() if name.startswith("cmd.CMD_")),
        "invalidations": sum(
            n for name, n in c.items() if name.removeprefix("cmd.").startswith(_MAINTENANCE)
        ),
        "accesses": sum(n for name, n in c.items() if name.startswith("txn.")),
        "faults": sum(n for name, n in c.items() if name.startswith("fault.")),
        "config_reads": sum(c[n] for n in _CONFIG),
        "s1_reads": c["walk.s1"],
        "s2_reads": c["walk.s2"],
        "tlb_hits": c["tlb.hit"],
        "tlb_misses": c["tlb.miss"],
        "tlb_invalidated": c["tlb.invalidated"],
        "tlb_over_invalidated": c["tlb.over"],
        "events_recorded": c["event.recorded"],
        "events_dropped": c["event.dropped"],
    }


_CONFIG = ("walk.l1std", "walk.ste", "walk.l1cd", "walk.cd")
assert _FATES.keys() | {"smmuv3_walk", "vsmmu_shadow_cmd", "vsmmu_shadow_ste"} <= EVENTS.keys()
