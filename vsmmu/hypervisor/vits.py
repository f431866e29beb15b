# SPDX-License-Identifier: BSD-2-Clause
"""Virtual ITSs: a message at a domain's doorbell is an LPI of that domain (GICv3, IHI 0069 §5).

A domain's stage 2 maps the translation page of the machine's ITS where its own tree has one. What a
device writes there arrives with its StreamID behind its SMMU, which the device cannot choose; the
owner's name for that, its vMasterID, is the DeviceID, and the data the EventID. A vSMMU's own
messages have the DeviceID that `msi-parent` gives its node.

Limits: the ITS's command queue is not modelled. `map` and `unmap` are what MAPTI and DISCARD do;
there is one collection, of one vCPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsmmu.hypervisor.domain import Stream
    from vsmmu.hypervisor.vsmmu import VSmmu

# Of the translation page, which is the second 64 KiB of an ITS.
TRANSLATION_PAGE, PAGE_SIZE = 0x1_0000, 0x1_0000
GITS_TRANSLATER = 0x40
LPI_FIRST, LPI_LAST = 8192, 0xFFFF
# Events that a domain may have mapped.
EVENTS_MAX = 1 << 14
_WIDTHS = (2, 4)


class VirtualIts:
    """One domain's ITS.

    Args:
        sink: told each LPI that becomes pending.
        senders: DeviceIDs of the domain's vSMMUs, by the base of their windows.

    Attributes:
        counters: "delivered", and "dropped": messages of a DeviceID and EventID without an LPI.
    """

    def __init__(self, sink: Callable[[int], None], senders: Mapping[int, int]) -> None:
        self.counters: Counter[str] = Counter()
        self._sink = sink
        self._senders = dict(senders)
        self._lpis: dict[tuple[int, int], int] = {}

    def map(self, device_id: int, event_id: int, lpi: int) -> bool:
        """Give an event an LPI; False for a number that is none, or past EVENTS_MAX."""
        key = (device_id, event_id)
        full = len(self._lpis) >= EVENTS_MAX and key not in self._lpis
        if full or not LPI_FIRST <= lpi <= LPI_LAST:
            return False
        self._lpis[key] = lpi
        return True

    def unmap(self, device_id: int, event_id: int) -> None:
        """Take an event's LPI away."""
        self._lpis.pop((device_id, event_id), None)

    def signal(self, device_id: int, event_id: int) -> None:
        """A message arrives; one that nobody mapped is lost, and its sender is not told."""
        lpi = self._lpis.get((device_id, event_id))
        self.counters["dropped" if lpi is None else "delivered"] += 1
        if lpi is not None:
            self._sink(lpi)

    def message(self, base: int, data: int) -> bool:
        """A message of a vSMMU, as `Doorbell.deliver` takes it; never an abort."""
        self.signal(self._senders.get(base, -1), data)
        return True


class TranslationPage:
    """The machine's ITS as devices reach it.

    Args:
        base: machine address of the page.
        holder: whose a stream (SMMU, pMasterID) is.
    """

    def __init__(
        self, base: int, holder: Callable[[str, int], tuple[VSmmu, Stream] | None]
    ) -> None:
        self.base = base
        self._holder = holder

    def write(self, smmu: str, sid: int, pa: int, data: bytes) -> bool:
        """A device's write; False where it is not to this page, and an external abort.

        Only GITS_TRANSLATER does something, for 16 or 32 bits; the rest of the page is RES0.
        """
        if not self.base <= pa < self.base + PAGE_SIZE:
            return False
        found = self._holder(smmu, sid)
        if pa == self.base + GITS_TRANSLATER and len(data) in _WIDTHS and found is not None:
            vsmmu, stream = found
            its = vsmmu.domain.its
            if its is not None:
                its.signal(stream.vmaster_id, int.from_bytes(data, "little"))
        return True
