# SPDX-License-Identifier: BSD-2-Clause
"""The hypervisor: domains, their streams, the one entry point for trapped accesses, events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from vsmmu.arch.events import Event, FBadAtsTreq, FTranslForbidden, FUut
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import OAS_BITS
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.domain import Domain, GuestMemory, Stream
from vsmmu.hypervisor.events import Kept, to_guest
from vsmmu.hypervisor.features import UnfitError, advertise, lacking
from vsmmu.hypervisor.host_smmu import HYPERVISOR, Done, Hardware, HostSmmu
from vsmmu.hypervisor.pages import OutOfMemoryError, PageAllocator
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.pri import failure
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.hypervisor.stalls import terminate
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.hypervisor.withdrawal import last_commands
from vsmmu.memory import Memory
from vsmmu.scheduler import Scheduler
from vsmmu.trace import Trace

_ABORT = Ste.build(v=1, config=SteConfig.ABORT)
_BLOCK = 0x20_0000
# Records that an SMMU writes with SMMUEN=0 (§7.3).
_WITHOUT_SMMUEN = (FUut, FBadAtsTreq, FTranslForbidden)
# Turns that a request may take. Guests that stay busy lengthen it, but cannot hold it up.
_TURNS = 1_000_000


class HypercallError(Exception):
    """A request of the toolstack that cannot be met; one line that says why."""


class Hypervisor:
    """Everything above the physical SMMUs.

    Args:
        memory: the machine's memory.
        scheduler: where the drivers and vSMMUs are registered as engines.
        hardware: physical SMMUs by the path of their node in the host tree.
        policy: caps.
        trace: where what happens is recorded.
    """

    def __init__(
        self,
        memory: Memory,
        scheduler: Scheduler,
        hardware: Mapping[str, Hardware],
        policy: Policy | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.memory = memory
        self.scheduler = scheduler
        self.policy = policy or Policy()
        self.pages = PageAllocator(memory.regions)
        self.domains: dict[int, Domain] = {}
        self.kept: Counter[str] = Counter()
        self._trace = trace
        self._owner: dict[tuple[str, int], tuple[VSmmu, Stream]] = {}
        # The SMMUs whose features a vSMMU's are the intersection of.
        self._behind: dict[VSmmu, frozenset[str]] = {}
        self.hosts = {
            path: HostSmmu(
                path, hw, memory, self.pages, self.policy, self._event, self._page_request
            )
            for path, hw in hardware.items()
        }

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

        The VMID is never used by another domain, nor is 0.

        Raises:
            OutOfMemoryError: the machine has not that much RAM.
            HypercallError: no VMID is left, or RAM lies beyond what the SMMUs can address.
        """
        domid = max(self.domains, default=HYPERVISOR) + 1
        if domid >> (16 if all(h.idr0.vmid16 for h in self.hosts.values()) else 8):
            raise HypercallError("no VMID is left")
        oas = min((5, *(host.idr5.oas for host in self.hosts.values())))
        ipa_bits = min(ipa_bits, OAS_BITS[oas])
        for base, size in banks:
            if (base + size - 1) >> ipa_bits:
                raise HypercallError(f"RAM {base:#x}+{size:#x} is beyond {ipa_bits} bits")
        stage2 = Stage2(self.memory, self.pages, ipa_bits=ipa_bits, oas=oas)
        domain = Domain(domid, name, domid, stage2, GuestMemory(self.memory, stage2))
        try:
            for base, size in banks:
                self._populate(domain, base, size, direct=direct)
        except OutOfMemoryError:
            self._release(domain)
            raise
        self.domains[domid] = domain
        return domain

    def create_vsmmu(
        self,
        domain: Domain,
        base: int,
        size: int,
        wanted: Mapping[str, Mapping[str, int]],
        smmus: Sequence[str],
        irq: Callable[[str, bool], None] | None = None,
    ) -> VSmmu:
        """A vSMMU in a domain's window, offering at most `wanted`.

        Args:
            smmus: paths of the physical SMMUs that will stand behind it.

        Raises:
            HypercallError: the window overlaps another vSMMU's, or an SMMU is unknown.
            UnfitError: an SMMU cannot do nested translation.
        """
        for other in domain.vsmmus:
            if base < other.base + other.size and other.base < base + size:
                raise HypercallError(f"vSMMU window {base:#x} overlaps {other.name}")
        hosts = [self._host(path) for path in smmus]
        share = min((self.policy.stalls_per_vsmmu, *map(self._stall_places, hosts)))
        ids = advertise(wanted, hosts, replace(self.policy, stalls_per_vsmmu=share))
        vsmmu = VSmmu(domain, base, size, ids, self.policy, irq=irq, trace=self._trace)
        domain.vsmmus.append(vsmmu)
        self._behind[vsmmu] = frozenset(smmus)
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
                someone's, the vMasterID is taken or out of range, or the pMasterID is beyond what
                the SMMU's stream table covers.
        """
        host = self._host(smmu)
        owner = self._owner.get((smmu, pmaster_id))
        if owner is not None:
            raise HypercallError(
                f"({smmu}, {pmaster_id:#x}) is already assigned to {owner[0].domain.name}"
            )
        if vmaster_id in vsmmu.streams or vmaster_id >> vsmmu.idr1.sidsize:
            raise HypercallError(f"vMasterID {vmaster_id:#x} is taken or out of range")
        if pmaster_id >> host.sid_bits:
            raise HypercallError(
                f"{smmu}: StreamID {pmaster_id:#x} is beyond its {host.sid_bits} bits"
            )
        if smmu not in self._behind[vsmmu]:
            self._admit(vsmmu, host)
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
        host, owner = stream.host, vsmmu.domain.domid
        problem = f"({host.path}, {stream.pmaster_id:#x}) could not be stopped"
        unsent = vsmmu.withdraw(stream)
        self._wait(lambda: not stream.busy, problem)
        # What its owner had sent before may name it, so that has to pass first.
        self._complete(partial(host.submit, owner, []), problem)
        self._complete(partial(host.update_ste, HYPERVISOR, stream.pmaster_id, _ABORT), problem)
        last = last_commands(vsmmu, stream, unsent)
        self._complete(partial(host.submit, HYPERVISOR, last), problem)
        mark = host.pri_reader.mark()
        self._wait(lambda: host.pri_reader.passed(mark), problem)
        del self._owner[host.path, stream.pmaster_id]

    def owner(self, smmu: str, pmaster_id: int) -> str | None:
        """Name of the domain that has a stream."""
        found = self._owner.get((smmu, pmaster_id))
        return None if found is None else found[0].domain.name

    # What guests do.

    def trap(self, domain: Domain, ipa: int, size: int, value: int | None = None) -> int | None:
        """A trapped access of a domain's vCPU: a read when `value` is None.

        Returns:
            The value read, 0 after a write; None when nothing is emulated at that address, which
            the guest sees as an external abort.
        """
        for vsmmu in domain.vsmmus:
            if vsmmu.base <= ipa < vsmmu.base + vsmmu.size:
                offset = ipa - vsmmu.base
                if value is None:
                    return vsmmu.mmio_read(offset, size)
                vsmmu.mmio_write(offset, size, value)
                return 0
        return None

    # What the hardware reports.

    def _event(self, host: HostSmmu, event: Event) -> None:
        found = self._owner.get((host.path, event.sid))
        if found is None:
            self._keep(host, event, "unassigned StreamID")
            return
        vsmmu, stream = found
        if not vsmmu.enabled and not isinstance(event, _WITHOUT_SMMUEN):
            self._keep(host, event, "SMMUEN is 0")
            return
        record = to_guest(event, stream, vsmmu.domain)
        stalled: int = getattr(event, "stall", 0)
        if isinstance(record, Kept):
            self._keep(host, event, record.reason)
        elif not stalled:
            vsmmu.raise_event(record)
        elif vsmmu.streams.get(stream.vmaster_id) is stream:
            vsmmu.stalls.take(stream, record, event.fields["stag"].of(event.words))
        else:
            self._keep(host, event, "withdrawn StreamID")

    def _page_request(self, host: HostSmmu, entry: PriEntry) -> None:
        """To the owner; what has none fails at once, so that no device waits for it (§8.2)."""
        found = self._owner.get((host.path, entry.sid))
        if found is not None and found[0].streams.get(found[1].vmaster_id) is found[1]:
            found[0].pri.take(found[1], entry)
            return
        self.kept["page request: unassigned StreamID"] += 1
        if not entry.stop_marker:
            host.submit(HYPERVISOR, [failure(entry.sid, entry.prgindex)])

    def _keep(self, host: HostSmmu, event: Event, reason: str) -> None:
        """An event that no guest gets; what is stalled does not wait for an answer."""
        terminate(host, HYPERVISOR, event)
        self.kept[f"{event.name}: {reason}"] += 1
        if self._trace is not None:
            self._trace("hyp_event_kept", host.path, repr(event), reason)

    def _admit(self, vsmmu: VSmmu, host: HostSmmu) -> None:
        """Have an SMMU stand behind a vSMMU that was not made for it."""
        try:
            reason = lacking(vsmmu.regs.values, host)
        except UnfitError as error:
            reason = error.reason
        if self._stall_places(host) < vsmmu.stalls.share:
            reason = "IDR5.STALL_MAX"
        if reason is not None:
            raise HypercallError(f"{host.path} cannot stand behind {vsmmu.name}: lacks {reason}")
        self._behind[vsmmu] |= {host.path}

    def _stall_places(self, host: HostSmmu) -> int:
        """Stalled transactions of an SMMU that are no vSMMU's share yet."""
        behind = (v for v, smmus in self._behind.items() if host.path in smmus)
        return max(0, host.idr5.stall_max - sum(vsmmu.stalls.share for vsmmu in behind))

    def _host(self, path: str) -> HostSmmu:
        host = self.hosts.get(path)
        if host is None:
            raise HypercallError(f"{path} is not a physical SMMU of this machine")
        return host

    def _populate(self, domain: Domain, base: int, size: int, *, direct: bool) -> None:
        if direct:
            domain.owned.append((self.pages.allocate_at(base, size), size))
            domain.stage2.map(base, base, size)
            return
        align = _BLOCK if not (base | size) % _BLOCK else 0x1000
        while size:
            pa, taken = self.pages.allocate_some(size, align)
            domain.owned.append((pa, taken))
            domain.stage2.map(base, pa, taken)
            base, size = base + taken, size - taken

    def _release(self, domain: Domain) -> None:
        """Give back the pages of a domain that could not be made."""
        for base, size in domain.owned:
            self.pages.free(base, size)
        domain.stage2.release()

    def _complete(self, start: Callable[[Done], None], problem: str) -> None:
        """Start something on a physical SMMU and wait until it is done."""
        done: list[bool] = []
        start(lambda: done.append(True))
        self._wait(lambda: bool(done), problem)

    def _wait(self, ready: Callable[[], bool], problem: str) -> None:
        """Run the machine until something is so. It need not be at rest: guests may never be."""
        for _ in range(_TURNS):
            if ready():
                return
            self.scheduler.step()
        raise HypercallError(problem)
