# SPDX-License-Identifier: BSD-2-Clause
"""The hypervisor: domains, their streams, the one entry point for trapped accesses, events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from vsmmu.arch.commands import CmdTlbiS12Vmall
from vsmmu.arch.registers import OAS_BITS
from vsmmu.hypervisor.behind import Behind
from vsmmu.hypervisor.domain import Domain, GuestMemory, Stream
from vsmmu.hypervisor.fair_queue import Done
from vsmmu.hypervisor.features import advertise
from vsmmu.hypervisor.flush import Flush, completed
from vsmmu.hypervisor.frames import Frames
from vsmmu.hypervisor.host_smmu import HYPERVISOR, Hardware, HostSmmu
from vsmmu.hypervisor.hypercalls import Hypercalls
from vsmmu.hypervisor.ids import lowest_free, next_free
from vsmmu.hypervisor.interrupts import Irq
from vsmmu.hypervisor.jobs import Job, Jobs, Work
from vsmmu.hypervisor.pages import OutOfMemoryError, PageAllocator
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.rate import Rate
from vsmmu.hypervisor.reports import Reports
from vsmmu.hypervisor.stage2 import OAS_MAX, Stage2
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.hypervisor.waiting import HypercallError, wait_until
from vsmmu.hypervisor.withdrawal import empty_atc, stop
from vsmmu.memory import Memory
from vsmmu.scheduler import Scheduler
from vsmmu.trace import Trace

_BLOCK = 0x20_0000
# Domain ids end here (DOMID_FIRST_RESERVED).
_DOMIDS = 0x7FF0
T = TypeVar("T")

__all__ = ["HypercallError", "Hypervisor"]


class Hypervisor:
    """Everything above the physical SMMUs.

    Args:
        memory: the machine's memory.
        scheduler: where the drivers and vSMMUs are registered as engines.
        hardware: physical SMMUs by the path of their node in the host tree.
        policy: caps.
        trace: where what happens is recorded.
        pages: what of the memory may be given out; all of it by default.
    """

    def __init__(
        self,
        memory: Memory,
        scheduler: Scheduler,
        hardware: Mapping[str, Hardware],
        policy: Policy | None = None,
        trace: Trace | None = None,
        pages: PageAllocator | None = None,
    ) -> None:
        self.memory = memory
        self.scheduler = scheduler
        self.policy = policy or Policy()
        self.pages = pages or PageAllocator(memory.regions)
        self.domains: dict[int, Domain] = {}
        self._trace = trace
        self._owner: dict[tuple[str, int], tuple[VSmmu, Stream]] = {}
        self._last_domid = HYPERVISOR
        # Streams whose endpoint did not answer when it was taken back.
        self._quarantined: set[tuple[str, int]] = set()
        self._behind = Behind()
        self.reports = Reports(self._owner, trace)
        self.kept = self.reports.kept
        told = self.reports.event, self.reports.page_request, self.reports.overflow
        self.hosts = {
            path: HostSmmu(path, hw, memory, self.pages, self.policy, *told, trace)
            for path, hw in hardware.items()
        }
        self.frames = Frames(memory, self.pages)
        self.flush = Flush(self._streams, self.policy)
        self.jobs = Jobs("hypercalls")
        self.hypercalls = Hypercalls(
            self.domains, self.pages, self.frames, self.flush, self.policy, self.jobs
        )
        scheduler.add(self.jobs)

    def boot(self) -> None:
        """Bring the physical SMMUs up and run until they are.

        Raises:
            HypercallError: an SMMU did not answer.
        """
        for host in self.hosts.values():
            host.boot()
            self.scheduler.add(host)
            self.scheduler.add(host.event_reader)
            if host.uses_pri:
                self.scheduler.add(host.pri_reader)
        self._wait(
            lambda: all(host.idle for host in self.hosts.values()),
            "the physical SMMUs did not come up",
        )

    # What the toolstack asks for.

    def create_domain(
        self,
        name: str,
        banks: Sequence[tuple[int, int]],
        *,
        ipa_bits: int = 40,
        direct: bool = False,
    ) -> Domain:
        """A domain with RAM at these guest (base, size) banks, mapped in its stage 2.

        `direct` gives it the machine's own pages at these addresses, as dom0 has them.

        No other domain has its VMID, nor is it 0; it is free again once the domain is destroyed
        and nothing tagged with it is left.

        Raises:
            OutOfMemoryError: the machine has not that much RAM.
            HypercallError: no VMID is left, or RAM lies beyond what the SMMUs can address.
        """
        vmid = self._free_vmid()
        domid = next_free(self.domains, self._last_domid, HYPERVISOR + 1, _DOMIDS)
        if domid is None:
            raise HypercallError("no domain id is left")
        oas = min((OAS_MAX, *(host.idr5.oas for host in self.hosts.values())))
        ipa_bits = min(ipa_bits, OAS_BITS[oas])
        for base, size in banks:
            if (base + size - 1) >> ipa_bits:
                raise HypercallError(f"RAM {base:#x}+{size:#x} is beyond {ipa_bits} bits")
        stage2 = Stage2(self.memory, self.pages, ipa_bits=ipa_bits, oas=oas)
        rate = Rate(self.policy.guest_events, self.policy.guest_event_turns)
        seen = GuestMemory(self.memory, stage2)
        domain = Domain(domid, name, vmid, stage2, seen, direct=direct, event_rate=rate)
        try:
            for base, size in banks:
                self._populate(domain, base, size, direct=direct)
        except OutOfMemoryError:
            for _ in self._release(domain):
                pass
            raise
        domain.max_memory = domain.owned.total
        stage2.tables_max = stage2.tables + self.policy.p2m_tables + (domain.max_memory >> 20)
        self._last_domid = domid
        self.domains[domid] = domain
        return domain

    def destroy_domain(self, domain: Domain) -> Job[None]:
        """Stop a domain's streams, then give back its vSMMUs, its VMID and its pages.

        Its vCPUs run no more from now on. What other domains have mapped of it stays theirs. The
        job takes its turns after what the domain asked for before; `wait` for it.

        Raises:
            HypercallError: it is being destroyed already.
        """
        self._alive(domain)
        domain.dying = True
        return self.jobs.start(domain.domid, self._destroy(domain))

    def wait(self, job: Job[T], problem: str = "the request did not end") -> T:
        """Run the machine until a job is done; its result. Raises HypercallError if it is not."""
        self._wait(lambda: job.done, problem)
        return job.result

    def create_vsmmu(
        self,
        domain: Domain,
        base: int,
        size: int,
        wanted: Mapping[str, Mapping[str, int]],
        smmus: Sequence[str],
        irq: Irq | None = None,
    ) -> VSmmu:
        """A vSMMU in a domain's window, offering at most `wanted`.

        Args:
            smmus: paths of the physical SMMUs that will stand behind it.

        Raises:
            HypercallError: the window overlaps another vSMMU's, or an SMMU is unknown.
            UnfitError: an SMMU cannot do nested translation.
        """
        self._alive(domain)
        for other in domain.vsmmus:
            if base < other.base + other.size and other.base < base + size:
                raise HypercallError(f"vSMMU window {base:#x} overlaps {other.name}")
        hosts = [self._host(path) for path in smmus]
        share = min((self.policy.stalls_per_vsmmu, *map(self._behind.stall_places, hosts)))
        ids = advertise(wanted, hosts, replace(self.policy, stalls_per_vsmmu=share))
        vsmmu = VSmmu(
            domain, base, size, ids, self.policy, irq=irq, trace=self._trace,
            clock=lambda: self.scheduler.turns,
        )  # fmt: skip
        domain.vsmmus.append(vsmmu)
        self._behind.add(vsmmu, smmus)
        self.scheduler.add(vsmmu)
        self.scheduler.add(vsmmu.event_writer)
        if vsmmu.idr0.pri:
            self.scheduler.add(vsmmu.pri)
        return vsmmu

    def assign(
        self,
        vsmmu: VSmmu,
        vmaster_id: int,
        smmu: str,
        pmaster_id: int,
        devices: tuple[str, ...] = (),
    ) -> Stream:
        """Give a guest the stream (SMMU, pMasterID) under the name vMasterID.

        Raises:
            HypercallError: the SMMU lacks what the vSMMU advertises, the stream is already
                someone's or its endpoint once did not answer, the vMasterID is taken or out of
                range, or the pMasterID is beyond what the SMMU's stream table covers.
        """
        host = self._host(smmu)
        owner = self._owner.get((smmu, pmaster_id))
        if owner is not None:
            raise HypercallError(
                f"({smmu}, {pmaster_id:#x}) is already assigned to {owner[0].domain.name}"
            )
        self._alive(vsmmu.domain)
        if (smmu, pmaster_id) in self._quarantined:
            raise HypercallError(
                f"({smmu}, {pmaster_id:#x}) is in quarantine: did not answer an invalidation"
            )
        if vmaster_id in vsmmu.streams or vmaster_id >> vsmmu.idr1.sidsize:
            raise HypercallError(f"vMasterID {vmaster_id:#x} is taken or out of range")
        if pmaster_id >> host.sid_bits:
            raise HypercallError(
                f"{smmu}: StreamID {pmaster_id:#x} is beyond its {host.sid_bits} bits"
            )
        reason = self._behind.admit(vsmmu, host)
        if reason is not None:
            raise HypercallError(f"{smmu} cannot stand behind {vsmmu.name}: lacks {reason}")
        problem = f"({smmu}, {pmaster_id:#x}) could not be assigned"
        self._complete(partial(host.cover, pmaster_id), problem)
        stream = Stream(vmaster_id, host, pmaster_id, devices)
        self._owner[smmu, pmaster_id] = (vsmmu, stream)
        vsmmu.assign(stream)
        self._wait(lambda: not (stream.stale or stream.busy), problem)
        return stream

    def deassign(self, vsmmu: VSmmu, stream: Stream) -> None:
        """Take a stream back: its DMA is stopped and nothing cached of it is left.

        Events of its past are still the old owner's; they have been handed on.

        Raises:
            HypercallError: the stream is not assigned to this vSMMU, or could not be stopped.
        """
        if vsmmu.streams.get(stream.vmaster_id) is not stream:
            raise HypercallError(
                f"vMasterID {stream.vmaster_id:#x} is not assigned to {vsmmu.name}"
            )
        problem = f"({stream.host.path}, {stream.pmaster_id:#x}) could not be stopped"
        self.wait(self.jobs.start(vsmmu.domain.domid, self._stop(vsmmu, stream)), problem)

    @property
    def quarantined(self) -> frozenset[tuple[str, int]]:
        """Streams (SMMU, pMasterID) that are given to nobody; `release` ends it."""
        return frozenset(self._quarantined)

    def release(self, smmu: str, pmaster_id: int) -> None:
        """Take a stream out of quarantine. The toolstack has reset its device before.

        Raises:
            HypercallError: it is not in quarantine, or the device does not answer still.
        """
        host, name = self._host(smmu), f"({smmu}, {pmaster_id:#x})"
        if (smmu, pmaster_id) not in self._quarantined:
            raise HypercallError(f"{name} is not in quarantine")
        job = self.jobs.start(smmu, empty_atc(host, pmaster_id))
        if not self.wait(job, f"{name} could not be invalidated"):
            raise HypercallError(f"{name} did not answer an invalidation: it stays in quarantine")
        self._quarantined.discard((smmu, pmaster_id))

    def owner(self, smmu: str, pmaster_id: int) -> str | None:
        """Name of the domain that has a stream."""
        found = self._owner.get((smmu, pmaster_id))
        return None if found is None else found[0].domain.name

    # What guests do.

    def trap(
        self, domain: Domain, ipa: int, size: int, value: int | None = None, vcpu: int = 0
    ) -> int | None:
        """A trapped access of a domain's vCPU: a read when `value` is None.

        Args:
            ipa, size: address and width, bytes.
            vcpu: number of the vCPU in its domain.

        Returns:
            The value read, 0 after a write; None when nothing is emulated at that address, which
            the guest sees as an external abort.
        """
        if self._trace is not None:
            access = "read" if value is None else f"{value:#x}"
            self._trace("vsmmu_trap", domain.name, vcpu, ipa, size, access)
        for vsmmu in domain.vsmmus:
            if vsmmu.base <= ipa < vsmmu.base + vsmmu.size:
                offset = ipa - vsmmu.base
                if value is None:
                    return vsmmu.mmio_read(offset, size)
                vsmmu.mmio_write(offset, size, value)
                return 0
        return None

    def _host(self, path: str) -> HostSmmu:
        host = self.hosts.get(path)
        if host is None:
            raise HypercallError(f"{path} is not a physical SMMU of this machine")
        return host

    def _populate(self, domain: Domain, base: int, size: int, *, direct: bool) -> None:
        if direct:
            domain.owned.add(self.pages.allocate_at(base, size), size)
            domain.stage2.map(base, base, size)
            return
        align = _BLOCK if not (base | size) % _BLOCK else 0x1000
        while size:
            pa, taken = self.pages.allocate_some(size, align)
            domain.owned.add(pa, taken)
            domain.stage2.map(base, pa, taken)
            base, size = base + taken, size - taken

    def _stop(self, vsmmu: VSmmu, stream: Stream) -> Work[None]:
        """Stop a stream's DMA and leave nothing cached of it."""
        if vsmmu.streams.get(stream.vmaster_id) is not stream:
            return
        key = (stream.host.path, stream.pmaster_id)
        if not (yield from stop(vsmmu, stream, self.flush)):
            self._quarantined.add(key)
        del self._owner[key]

    def _destroy(self, domain: Domain) -> Work[None]:
        hosts = dict.fromkeys(stream.host for stream in self._streams(domain))
        for vsmmu in domain.vsmmus:
            self.scheduler.remove(vsmmu)
            self.scheduler.remove(vsmmu.event_writer)
            if vsmmu.idr0.pri:
                self.scheduler.remove(vsmmu.pri)
            for stream in list(vsmmu.streams.values()):
                yield from self._stop(vsmmu, stream)
            self._behind.forget(vsmmu)
        flush = CmdTlbiS12Vmall.build(vmid=domain.vmid)
        yield from completed([partial(host.submit, HYPERVISOR, [flush]) for host in hosts])
        domain.vsmmus.clear()
        self.hypercalls.grants.forget(domain)
        yield from self._release(domain)
        del self.domains[domain.domid]

    def _release(self, domain: Domain) -> Work[None]:
        """Give back the pages of a domain that nothing can reach."""
        for spans in (domain.owned, domain.withheld):
            for base, size in list(spans):
                spans.remove(base, size)
                self.frames.release(base, size)
                yield True
        domain.stage2.release()

    def _streams(self, domain: Domain) -> list[Stream]:
        return [stream for vsmmu, stream in self._owner.values() if vsmmu.domain is domain]

    def _alive(self, domain: Domain) -> None:
        if domain.dying:
            raise HypercallError(f"{domain.name} is being destroyed")

    def _free_vmid(self) -> int:
        vmid = lowest_free({domain.vmid for domain in self.domains.values()}, 1)
        if vmid >> (16 if all(h.idr0.vmid16 for h in self.hosts.values()) else 8):
            raise HypercallError("no VMID is left")
        return vmid

    def _complete(self, start: Callable[[Done], None], problem: str) -> None:
        """Start something on a physical SMMU and wait until it is done."""
        done: list[bool] = []
        start(lambda: done.append(True))
        self._wait(lambda: bool(done), problem)

    def _wait(self, ready: Callable[[], bool], problem: str) -> None:
        wait_until(self.scheduler, ready, problem)
