# SPDX-License-Identifier: BSD-2-Clause
"""What devices reached while a scenario ran, held against what they may.

At every access that gets through, its stream is the guest's and the page is one of its stage 2: RAM
that it was given and has not got rid of. That holds for every guest whatever it does. Of a device
that only workloads use, the page is also the one that its driver mapped there.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from vsmmu.smmu.port import DevicePort, Request
from vsmmu.smmu.transaction import Outcome
from vsmmu.toolstack import Guest, Machine

# Verdicts on a guest that are kept; the others are counted.
_KEPT = 20

# A device of a guest, by name and path.
Place = tuple[str, str]


class Judge:
    """Watches every port of a machine's guests from now on.

    Attributes:
        dma: requests that ended, by guest and status.
        pages: what a device's address space maps, IPA by iova, of whole pages; None while it has
            none (bypass). Whoever maps and unmaps keeps it.
        followed: devices whose every page is checked against `pages`.
        by_hand: guests that went behind their driver's back, of whose pages nothing is known.
        verdicts: by guest, what must not have happened.
        dropped: by guest, how many verdicts more there were than are kept.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.dma: dict[str, Counter[str]] = {}
        self.pages: dict[Place, dict[int, int] | None] = {}
        self.followed: set[Place] = set()
        self.by_hand: set[str] = set()
        self.verdicts: dict[str, list[str]] = {}
        self.dropped = Counter[str]()
        for guest in machine.guests.values():
            self.dma[guest.name] = Counter()
            for device, ports in guest.ports.items():
                for port in ports:
                    port.watch = partial(self._seen, guest, device, port)

    def _seen(
        self, guest: Guest, device: str, port: DevicePort, request: Request, iova: int, size: int,
        outcome: Outcome,
    ) -> None:  # fmt: skip
        if request.done:
            self.dma[guest.name][request.status] += 1
        if outcome.pa is None or outcome.status == "abort":
            return
        reason = self._isolated(guest, port, outcome.pa, size)
        followed = guest.name not in self.by_hand and (guest.name, device) in self.followed
        if reason is None and followed:
            reason = self._mapped(guest, device, iova, outcome.pa)
        if reason is None:
            return
        kept = self.verdicts.setdefault(guest.name, [])
        if len(kept) < _KEPT:
            kept.append(f"{device}: iova {iova:#x} reached PA {outcome.pa:#x}, {reason}")
        else:
            self.dropped[guest.name] += 1

    def _isolated(self, guest: Guest, port: DevicePort, pa: int, size: int) -> str | None:
        owner = self._machine.hypervisor.owner(port.smmu.name, port.sid)
        if owner != guest.name:
            return "with a stream that is " + ("nobody's" if owner is None else f"{owner}'s")
        domain = guest.domain
        # RAM on its way out of the domain may be reached until its invalidation is complete.
        if any(spans.covers(pa, size) for spans in (domain.owned, domain.withheld)):
            return None
        if domain.stage2.to_ipa(pa) is not None:
            return None
        return "which is not in its stage 2"

    def _mapped(self, guest: Guest, device: str, iova: int, pa: int) -> str | None:
        pages = self.pages.get((guest.name, device))
        ipa: int | None = iova
        if pages is not None:
            page = pages.get(iova & -4096)
            ipa = None if page is None else page + iova % 4096
        if ipa is None:
            return "where nothing is mapped"
        wanted = guest.domain.stage2.to_pa(ipa)
        if wanted == pa or wanted is None:
            return None
        return f"and its driver has IPA {ipa:#x} there, which is PA {wanted:#x}"
