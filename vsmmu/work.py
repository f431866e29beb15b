# SPDX-License-Identifier: BSD-2-Clause
"""What guests' commands cost: traps, physical commands, entries over-invalidated.

For one page unmapped strictly, a TLBI and a CMD_SYNC in the guest's queue, the design here costs
one write of CMDQ_PROD, at least one read of CMDQ_CONS, and a TLBI and a CMD_SYNC on each of the
`m` physical SMMUs behind the guest's devices: `2m`. The series for Xen that was posted to
xen-devel flushes all of the VMID once for each of the guest's `k` devices: `2k` (`posted`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vsmmu.arch.commands import CmdTlbiNhAsid, CmdTlbiNhVa, CmdTlbiNsnhAll
from vsmmu.hypervisor.domain import Domain, Stream
from vsmmu.hypervisor.host_smmu import HostSmmu
from vsmmu.smmu.smmu import Smmu

# Guest commands that the posted series turns into a flush of the whole domain.
FLUSHES = (CmdTlbiNhAsid.name, CmdTlbiNhVa.name, CmdTlbiNsnhAll.name)

# What `measure` counts, with a text for each.
COUNTED = {
    "trap_reads": "trapped reads",
    "trap_writes": "trapped writes",
    "guest_commands": "guest commands",
    "physical_commands": "physical commands",
    "posted_commands": "posted series (2k)",
}


def measure(domain: Domain, hosts: Iterable[HostSmmu]) -> Counter[str]:
    """What a domain has cost so far, by the names of `COUNTED`.

    `physical_commands` are those in the physical queues that are there for it, CMD_SYNC and the
    invalidations of STE updates included. `posted_commands` is computed, and of TLBI alone.
    """
    out: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    for vsmmu in domain.vsmmus:
        out["trap_reads"] += vsmmu.counters["trap read"]
        out["trap_writes"] += vsmmu.counters["trap write"]
        for name, count in vsmmu.counters.items():
            if name.startswith("CMD_"):
                out["guest_commands"] += count
        flushes = sum(vsmmu.counters[name] for name in FLUSHES)
        out["posted_commands"] += flushes * posted(devices(vsmmu.streams.values()))
    out["physical_commands"] = sum(host.queue.entered[domain.domid] for host in hosts)
    return out


def devices(streams: Iterable[Stream]) -> int:
    """Devices that have these streams; a stream without a device's name counts as one."""
    found: set[str | tuple[str, int]] = set()
    for stream in streams:
        found.update(stream.devices or [(stream.host.path, stream.pmaster_id)])
    return len(found)


def precise(smmus: int) -> int:
    """Physical commands of one TLBI and one CMD_SYNC with `m` SMMUs in use."""
    return 2 * smmus


def posted(devices: int) -> int:
    """Physical commands of one TLBI in the posted series with `k` devices."""
    return 2 * devices


def invalidated(smmus: Iterable[Smmu]) -> tuple[int, int]:
    """TLB entries that were dropped, and those of them that no guest's command meant."""
    found = [smmu.counters for smmu in smmus]
    return sum(c["tlb.invalidated"] for c in found), sum(c["tlb.over"] for c in found)
