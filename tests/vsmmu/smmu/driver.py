# SPDX-License-Identifier: BSD-2-Clause
"""A driver of two SMMUs that share memory: domains, masters, and the commands a change needs.

`Driver` changes memory and sends commands; `allowed.Allowed` keeps what each SMMU may answer.
The driver holds itself to IHI 0070 §3.21.3: an STE or CD changes by way of V=0, with an
invalidation and a CMD_SYNC before each next write. What it leaves open is when the last
invalidation comes, and when translations are invalidated at all.
"""

from __future__ import annotations

from collections.abc import Callable

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.stream_table import S1Dss, S1Fmt, Ste
from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .allowed import Allowed
from .domains import ALL, INVALID, PAGES, Domain, Effect, Master, SteValue, Value
from .machine import Machine

MIB2 = 2 << 20


def chunks(low: int, size: int, ttl: int = 0) -> list[dict[str, int]]:
    """Fields of the leaf invalidations of a range, as Linux cuts it: five bits of the page count
    at a time, the lowest first."""
    pages, out = size // PAGE, []
    while pages:
        scale = (pages & -pages).bit_length() - 1
        num = pages >> scale & 31
        span = {"addr": low, "leaf": 1, "tg": 1, "scale": scale, "num": num - 1, "ttl": ttl}
        # One page of no level is no range (§4.4.1).
        out.append(span if ttl or scale or num > 1 else {"addr": low, "leaf": 1})
        low += num << scale + 12
        pages -= num << scale
    return out


def covered(span: dict[str, int]) -> tuple[int, int]:
    """First and last address of a range."""
    pages = span.get("num", 0) + 1 << span.get("scale", 0)
    return span["addr"], span["addr"] + pages * PAGE - 1


class Driver:
    """Two machines, their masters and domains.

    `probe` is called between any two steps of a change to a master. `how` chooses what invalidates
    configuration: 0 names one STE or CD, 1 a range of STEs or all CDs of a stream, 2 all STEs.
    """

    def __init__(self, caching: str) -> None:
        features = Features.default().replace(ssidsize=8, cd2l=1)
        first = Machine(features, caching=caching)
        self.machines = [first, Machine(features, caching=caching, beside=first)]
        self.allowed = [Allowed(self, smmu) for smmu in (0, 1)]
        self.pending: list[list[tuple[int, Effect]]] = [[], []]
        self.now = 0
        self.probe: Callable[[Master], None] = lambda master: None
        self.how = 0
        # Both SMMUs have StreamIDs 1 and 3, and use VMID 1 and ASID 1 for domains of their own.
        self.masters = [
            Master(0, (1, 2), two_level=False), Master(0, (3,), two_level=True),
            Master(1, (1,), two_level=True), Master(1, (3, 9), two_level=False),
        ]  # fmt: skip
        s2 = [Domain(2, 1, {0}), Domain(2, 1, {1}), Domain(2, 2, {0, 1})]
        self.domains = [
            *s2, Domain(1, 1, {0}), Domain(1, 1, {1}), Domain(1, 2, {0, 1}),
            Domain(1, 1, {0}, s2[0]), Domain(1, 2, {0}, s2[0]),
            Domain(1, 1, {1}, s2[1]), Domain(1, 2, {0, 1}, s2[2]),
        ]  # fmt: skip
        for master in self.masters:
            master.build(first)
        for domain in self.domains:
            domain.build(first)
        self.memory = first.memory

    def tick(self) -> None:
        """Before anything changes: what was there until now may have been taken."""
        for allowed in self.allowed:
            allowed.learn()
        self.now += 1

    # Commands.

    def post(self, smmu: int, *commands: tuple[Command, Effect]) -> None:
        """Have commands consumed, without a CMD_SYNC."""
        machine = self.machines[smmu]
        for command, effect in commands:
            self.tick()
            machine.post(command)
            assert machine.scheduler.run_until_idle()
            self.pending[smmu].append((self.now, effect))

    def sync(self, smmu: int) -> None:
        """A CMD_SYNC: what was posted is complete."""
        self.tick()
        self.machines[smmu].command()
        waiting, self.pending[smmu] = self.pending[smmu], []
        for when, effect in waiting:
            effect(when)

    def cfgi_ste(self, master: Master, how: int | None = None) -> None:
        """Invalidate the STEs of a master, as `how` or else `self.how` says."""
        cfgi = self.allowed[master.smmu].cfgi
        how = self.how if how is None else how
        if how == 1:
            command = CmdCfgiSteRange.build(sid=master.sids[0], range=3)
            self.post(master.smmu, (command, cfgi(range(16), None)))
        elif how > 1:
            command = CmdCfgiSteRange.build(range=31)
            self.post(master.smmu, (command, cfgi(range(16), None)))
        else:
            for sid in master.sids:
                self.post(master.smmu, (CmdCfgiSte.build(sid=sid, leaf=1), cfgi([sid], None)))

    def cfgi_cd(self, master: Master, ssid: int | None) -> None:
        """Invalidate one CD or all, for each StreamID that leads to it."""
        cfgi = self.allowed[master.smmu].cfgi
        for sid in master.sids:
            if ssid is None:
                command: Command = CmdCfgiCdAll.build(sid=sid)
                self.post(master.smmu, (command, cfgi([sid], set(master.cds))))
            else:
                command = CmdCfgiCd.build(sid=sid, ssid=ssid, leaf=1)
                self.post(master.smmu, (command, cfgi([sid], {ssid})))

    def tlbi(self, domain: Domain, low: int, high: int, *, ttl: int = 0, sync: bool = True) -> None:
        """Invalidate a range of a domain wherever it may be in use.

        For stage 2 that is its own entries, and after them the combined ones (§4.4.3).
        """
        spans = chunks(low, high + 1 - low, ttl)
        for smmu in sorted(domain.smmus):
            allowed = self.allowed[smmu]
            for span in spans:
                first, last = covered(span)
                if domain.stage == 1:
                    command: Command = CmdTlbiNhVa.build(vmid=domain.vmid, asid=domain.asid, **span)
                    effect = allowed.tlbi(domain.vmid, domain.asid, first, last)
                else:
                    command = CmdTlbiS2Ipa.build(vmid=domain.vmid, **span)
                    effect = allowed.tlbi2(domain.vmid, first, last)
                self.post(smmu, (command, effect))
            if domain.stage == 2 and sync:
                self.sync(smmu)
                combined = allowed.tlbi(domain.vmid, None, 0, ALL)
                self.post(smmu, (CmdTlbiNhAll.build(vmid=domain.vmid), combined))
            if sync:
                self.sync(smmu)

    def tlbi_domain(self, domain: Domain, *, sync: bool = True) -> None:
        """Invalidate all of a domain: by ASID, or by VMID."""
        for smmu in sorted(domain.smmus):
            allowed = self.allowed[smmu]
            if domain.stage == 1:
                command: Command = CmdTlbiNhAsid.build(vmid=domain.vmid, asid=domain.asid)
                effect = allowed.tlbi(domain.vmid, domain.asid, 0, ALL)
            else:
                command = CmdTlbiS12Vmall.build(vmid=domain.vmid)
                effect = allowed.tlbi_both(domain.vmid)
            self.post(smmu, (command, effect))
            if sync:
                self.sync(smmu)

    def tlbi_all(self, smmu: int) -> None:
        self.post(smmu, (CmdTlbiNsnhAll.build(), self.allowed[smmu].tlbi_both(None)))

    # Translations.

    def map(self, domain: Domain, page: int, output: int, size: int, *, writable: bool) -> bool:
        """Map a free page or block; False if it is not free. No command is needed."""
        low = page & -size
        inside = [p for p in PAGES if p & -size == low]
        if any(domain.pages[p] for p in inside):
            return False
        block, flags = page & -MIB2, domain.flags(writable=writable)
        self.tick()
        if size == PAGE:
            self.memory.write64(domain.leaves[block][page], output | flags | 3)
        else:
            output &= -MIB2
            self.memory.write64(domain.upper[block], output | flags | 1)
        for p in inside:
            domain.pages[p] = Value(output | p & (size - 1), writable, low, low + size - 1)
        return True

    def unmap(self, domain: Domain, page: int) -> tuple[int, int] | None:
        """Clear the leaf of a page in memory; its range, or None if there is none."""
        value = domain.pages[page]
        if value is None:
            return None
        self.tick()
        block = page & -MIB2
        if value.low == value.high + 1 - PAGE:
            self.memory.write64(domain.leaves[block][page], 0)
        else:
            self.memory.write64(domain.upper[block], self._below(domain, block))
        for p in PAGES:
            if value.low <= p <= value.high:
                domain.pages[p] = None
        return value.low, value.high

    def _below(self, domain: Domain, block: int) -> int:
        return next(iter(domain.leaves[block].values())) & -PAGE | 3

    def renew(self, domain: Domain) -> None:
        """Free a domain that nothing uses, and give its ASID to an empty one."""
        self.tlbi_domain(domain)
        self.tick()
        domain.build(self.machines[0])

    # Configuration.

    def settle(self, master: Master) -> None:
        """Invalidate where an STE or CD that was replaced may still be in use."""
        allowed = self.allowed[master.smmu]
        self.tick()
        if any(len(allowed.stes[sid]) > 1 for sid in master.sids):
            self.cfgi_ste(master)
            self.sync(master.smmu)
        for ssid in master.cds:
            if any(len(allowed.cds.get((sid, ssid), ())) > 1 for sid in master.sids):
                self.cfgi_cd(master, None if self.how else ssid)
                self.sync(master.smmu)

    def attach(
        self, master: Master, ste: SteValue, cds: dict[int, Domain | None], *, finish: bool = True
    ) -> None:
        """Give a master another STE, and the CDs behind it while it is invalid.

        Without `finish` the last invalidation is left for later.
        """
        self.settle(master)
        if master.ste != INVALID:
            self._ste_words(master, {0: 0}, INVALID)
            self.cfgi_ste(master)
            self.probe(master)
            self.sync(master.smmu)
            self.probe(master)
        for ssid in master.cds:
            self.tick()
            master.cds[ssid] = cds.get(ssid)
            self.memory.write(master.table + 64 * ssid, bytes(self._cd(master.cds[ssid])))
        if ste == INVALID:
            return
        words = self._ste(master, ste).words
        self._ste_words(master, dict(enumerate(words[1:], 1)), INVALID)
        self.cfgi_ste(master)
        self.sync(master.smmu)
        self._ste_words(master, {0: words[0]}, ste)
        if finish:
            self.cfgi_ste(master)
            self.sync(master.smmu)
            self.probe(master)

    def switch(self, master: Master, ste: SteValue) -> None:
        """Change between entries that differ in word 0 alone, or make one invalid."""
        self.settle(master)
        word = 0 if ste == INVALID else self._ste(master, ste).words[0]
        self._ste_words(master, {0: word}, ste)

    def bind(
        self, master: Master, ssid: int, domain: Domain | None, *, finish: bool = True
    ) -> None:
        """Give a substream of a master another CD, or none (SubstreamID 0: the plain stream's)."""
        self.settle(master)
        slot = master.table + 64 * ssid
        if master.cds[ssid] is not None:
            self._cd_words(master, ssid, {0: 0}, None)
            if domain is None and not finish:
                return
            self.cfgi_cd(master, None if self.how else ssid)
            self.probe(master)
            self.sync(master.smmu)
            self.probe(master)
        if domain is None:
            return
        words = self._cd(domain).words
        for index in range(1, 8):
            self.memory.write64(slot + 8 * index, words[index])
        self.cfgi_cd(master, None if self.how else ssid)
        self.sync(master.smmu)
        self._cd_words(master, ssid, {0: words[0]}, domain)
        if finish:
            self.cfgi_cd(master, None if self.how else ssid)
            self.sync(master.smmu)
            self.probe(master)

    def _ste_words(self, master: Master, words: dict[int, int], then: SteValue) -> None:
        machine = self.machines[master.smmu]
        self.tick()
        for sid in master.sids:
            for index, value in words.items():
                self.memory.write64(machine.strtab + 64 * sid + 8 * index, value)
        master.ste = then
        self.probe(master)

    def _cd_words(
        self, master: Master, ssid: int, words: dict[int, int], then: Domain | None
    ) -> None:
        self.tick()
        for index, value in words.items():
            self.memory.write64(master.table + 64 * ssid + 8 * index, value)
        master.cds[ssid] = then
        self.probe(master)

    def _ste(self, master: Master, ste: SteValue) -> Ste:
        if ste.kind in ("abort", "bypass"):
            return Ste.build(v=1, config=4 if ste.kind == "bypass" else 0)
        stage2 = {}
        if ste.domain is not None:
            stage2 = self.machines[0].s2_fields(ste.domain.root, s2vmid=ste.domain.vmid)
        if ste.kind == "s2":
            return Ste.build(v=1, config=6, **stage2)
        fmt, bits = (S1Fmt.TWO_LEVEL_4K, 7) if master.two_level else (S1Fmt.LINEAR, 3)
        return Ste.build(
            v=1, config=7 if stage2 else 5, s1ctxptr=master.first, s1fmt=fmt, s1cdmax=bits,
            s1dss=S1Dss.SSID0, **stage2,
        )  # fmt: skip

    @staticmethod
    def _cd(domain: Domain | None) -> Cd:
        if domain is None:
            return Cd.build()
        return Cd.build(
            v=1, aa64=1, a=1, r=1, t0sz=25, epd1=1, ips=5, asid=domain.asid, aset=1,
            ttb0=domain.root,
        )  # fmt: skip
