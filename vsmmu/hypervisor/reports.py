# SPDX-License-Identifier: BSD-2-Clause
"""What physical SMMUs report, and whom it is told: event records and page requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vsmmu.arch.events import CBadSte, Event, FBadAtsTreq, FCdFetch, FTranslForbidden, FUut
from vsmmu.arch.pri import PriEntry
from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.events import Kept, to_guest
from vsmmu.hypervisor.host_smmu import HYPERVISOR, HostSmmu
from vsmmu.hypervisor.pri import failure
from vsmmu.hypervisor.stalls import terminate
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.trace import Trace

# Records that an SMMU writes with SMMUEN=0 (§7.3).
_WITHOUT_SMMUEN = (FUut, FBadAtsTreq, FTranslForbidden)


class Reports:
    """Hands reports on.

    Args:
        owner: whose each (path of the SMMU, pMasterID) is, streams that are being taken back
            included.
        trace: where events that no guest gets are recorded.

    Attributes:
        kept: reports that no guest gets, by reason.
    """

    def __init__(
        self, owner: Mapping[tuple[str, int], tuple[VSmmu, Stream]], trace: Trace | None
    ) -> None:
        self.kept: Counter[str] = Counter()
        self._owner = owner
        self._trace = trace

    def holder(self, smmu: str, pmaster_id: int) -> tuple[VSmmu, Stream] | None:
        """Whose a stream is."""
        return self._owner.get((smmu, pmaster_id))

    def event(self, host: HostSmmu, event: Event) -> None:
        """An event record."""
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
            missing_cd = isinstance(record, FCdFetch) and stream.cd_split
            asks = isinstance(event, CBadSte) or missing_cd
            vsmmu.rechecks.deliver(record, stream if asks else None)
        elif vsmmu.streams.get(stream.vmaster_id) is stream:
            vsmmu.stalls.take(stream, record, event.fields["stag"].of(event.words))
        else:
            self._keep(host, event, "withdrawn StreamID")

    def overflow(self, host: HostSmmu) -> None:
        """An SMMU lost records, of nobody knows which streams: the queues of all tell (§7.4)."""
        behind = (vsmmu for (path, _), (vsmmu, _) in self._owner.items() if path == host.path)
        for vsmmu in dict.fromkeys(behind):
            if vsmmu.enabled:
                vsmmu.event_writer.overflow()

    def page_request(self, host: HostSmmu, entry: PriEntry) -> None:
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
