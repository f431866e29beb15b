# SPDX-License-Identifier: BSD-2-Clause
"""Invalidations that a change of a domain's stage 2 needs, on every physical SMMU it uses.

CMD_TLBI_S2_IPA drops stage 2 entries; entries that combine both stages are found by their stage 1
address alone, so all of the VMID's stage 1 goes after it (IHI 0070 §4.4.3). A CMD_SYNC stands
between the two: commands between CMD_SYNCs may be carried out in any order, and a walk could
combine with the old stage 2 entry what the other command has just dropped. An endpoint's cache
comes last, since a Translation Request could fill it again from the TLB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from vsmmu.arch.commands import (
    ATC_INV_ALL,
    CmdAtcInv,
    CmdTlbiNhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
    TlbiTg,
)
from vsmmu.arch.registers import Idr3
from vsmmu.hypervisor.domain import Domain, Stream
from vsmmu.hypervisor.fair_queue import Done
from vsmmu.hypervisor.host_smmu import HostSmmu
from vsmmu.hypervisor.jobs import Work
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.stage2 import Change
from vsmmu.memory import PAGE

_NUM_BITS = 5
_BBML_HITLESS = 2


class Flush:
    """Invalidates for domains.

    Args:
        streams: the streams a domain has, those that are being taken back included.
        policy: caps.
    """

    def __init__(self, streams: Callable[[Domain], Sequence[Stream]], policy: Policy) -> None:
        self._streams = streams
        self._policy = policy

    def hitless(self, domain: Domain) -> bool:
        """Whether every SMMU of a domain lets a block be replaced by a table at once (§3.21)."""
        return all(Idr3(host.ident("IDR3")).bbml == _BBML_HITLESS for host in self._hosts(domain))

    def stage2(self, domain: Domain, change: Change) -> Work[bool]:
        """Invalidate what was cleared and link what replaces it.

        Returns:
            Whether no device can reach the old pages any more: False if an endpoint did not
            answer.
        """
        submissions = []
        for host in self._hosts(domain):
            *first, last = self._batches(host, domain.vmid, change)
            for batch in first:
                host.submit(domain.domid, batch)
            submissions.append(partial(host.submit, domain.domid, last))
        yield from completed(submissions)
        domain.stage2.make()
        domain.stage2.free_tables(change.tables)
        return (yield from self.endpoints(domain.domid, self._streams(domain)))

    def endpoints(self, owner: int, streams: Iterable[Stream]) -> Work[bool]:
        """Empty the caches of the endpoints that have one; False if one did not answer."""
        commands: dict[HostSmmu, list[Command]] = {}
        for stream in streams:
            if stream.pmaster_id in stream.host.ats:
                command = CmdAtcInv.build(sid=stream.pmaster_id, size_lg2=ATC_INV_ALL)
                commands.setdefault(stream.host, []).append(command)
        silent: list[HostSmmu] = []
        yield from completed(
            [
                partial(h.submit, owner, c, timed_out=partial(silent.append, h))
                for h, c in commands.items()
            ]
        )
        return not silent

    def _hosts(self, domain: Domain) -> list[HostSmmu]:
        return list(dict.fromkeys(stream.host for stream in self._streams(domain)))

    def _batches(self, host: HostSmmu, vmid: int, change: Change) -> list[list[Command]]:
        """Commands that stand between CMD_SYNCs."""
        if Idr3(host.ident("IDR3")).ril:
            ranges = _ranges(vmid, change)
        elif change.size // PAGE <= self._policy.s2_ipa_per_flush:
            ranges = [
                CmdTlbiS2Ipa.build(vmid=vmid, addr=change.ipa + offset, leaf=int(change.leaf))
                for offset in range(0, change.size, PAGE)
            ]
        else:
            return [[CmdTlbiS12Vmall.build(vmid=vmid)]]
        return [ranges, [CmdTlbiNhAll.build(vmid=vmid)]]


def completed(submissions: Iterable[Callable[[Done], None]]) -> Work[None]:
    """Start things on physical SMMUs and wait until all of them are done."""
    left = 0

    def landed() -> None:
        nonlocal left
        left -= 1

    for submit in submissions:
        left += 1
        submit(landed)
    yield True
    while left:
        yield False


def _ranges(vmid: int, change: Change) -> list[Command]:
    """CMD_TLBI_S2_IPA by range: (NUM + 1) * 2^SCALE pages each (§4.4.1)."""
    commands: list[Command] = []
    ipa, pages = change.ipa, change.size // PAGE
    while pages:
        scale = (pages & -pages).bit_length() - 1
        num = pages >> scale & (1 << _NUM_BITS) - 1
        # A range of one page is CERROR_ILL without a TTL; it is no range then.
        single = not scale and num == 1
        by_range = {} if single else {"tg": TlbiTg.G4K, "num": num - 1, "scale": scale}
        commands.append(CmdTlbiS2Ipa.build(vmid=vmid, addr=ipa, leaf=int(change.leaf), **by_range))
        ipa, pages = ipa + (num << scale) * PAGE, pages - (num << scale)
    return commands
