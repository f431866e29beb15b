# SPDX-License-Identifier: BSD-2-Clause
"""What an SMMU may answer while a driver changes what it uses (IHI 0070 §3.17, §3.21.3, §4.7.3).

Dictionaries hold every STE, CD and translation that memory gave since the last invalidation that
covers it, each with the time at which it was last there to take. An invalidation is complete at
its CMD_SYNC, and then removes what was not there to take after the command was posted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from .domains import PAGES, Domain, Effect, Master, SteValue, Value

if TYPE_CHECKING:
    from .driver import Driver

Answer = int | str
_K = TypeVar("_K")


def _note(held: dict[_K, int], value: _K, when: int) -> None:
    held[value] = max(held.get(value, -1), when)


def _forget(held: dict[_K, int], when: int) -> None:
    for value in [value for value, last in held.items() if last < when]:
        del held[value]


class Allowed:
    """What one SMMU may have taken in, and what it may answer.

    A stage 2 value may meet a stage 1 value at any time; `combined` has the pairs, with the times
    of both, and outlives CMD_TLBI_S2_IPA.
    """

    def __init__(self, driver: Driver, smmu: int) -> None:
        self.driver = driver
        self.smmu = smmu
        self.stes: dict[int, dict[SteValue, int]] = {}
        self.cds: dict[tuple[int, int], dict[Domain | None, int]] = {}
        self.first: dict[tuple[int, int, int], dict[Value, int]] = {}
        self.second: dict[tuple[int, int], dict[Value, int]] = {}
        self.combined: dict[tuple[int, int, int], dict[tuple[Value, Value], tuple[int, int]]] = {}

    @property
    def masters(self) -> list[Master]:
        return [master for master in self.driver.masters if master.smmu == self.smmu]

    # What may be taken, now.

    def learn(self) -> None:
        now = self.driver.now
        for domain in self._reachable(now):
            for page in PAGES:
                value = domain.pages[page]
                if value is None:
                    continue
                if domain.stage == 2:
                    _note(self.second.setdefault((domain.vmid, page), {}), value, now)
                else:
                    key = (domain.vmid, domain.asid, page)
                    _note(self.first.setdefault(key, {}), value, now)
        for (vmid, asid, page), firsts in self.first.items():
            for first, last1 in firsts.items():
                for second, last2 in self.second.get((vmid, first.output), {}).items():
                    pairs = self.combined.setdefault((vmid, asid, page), {})
                    pairs[first, second] = last1, last2

    def _reachable(self, now: int) -> set[Domain]:
        """The domains that some STE and CD may lead to; takes those in on the way."""
        found: set[Domain] = set()
        for master in self.masters:
            for sid in master.sids:
                stes = self.stes.setdefault(sid, {})
                _note(stes, master.ste, now)
                for ste, last in stes.items():
                    if ste.domain is not None:
                        found.add(ste.domain)
                    if ste.kind == "cds":
                        # A CD behind an old STE goes with it.
                        for ssid, domain in master.cds.items():
                            _note(self.cds.setdefault((sid, ssid), {}), domain, last)
                for ssid in master.cds:
                    found |= {d for d in self.cds.get((sid, ssid), ()) if d is not None}
        return found

    # What commands remove.

    def cfgi(self, sids: Iterable[int], ssids: set[int] | None) -> Effect:
        """STEs and all behind them, or with `ssids` these CDs."""
        named = set(sids)

        def complete(when: int) -> None:
            for sid, stes in self.stes.items():
                if ssids is None and sid in named:
                    _forget(stes, when)
            for (sid, index), cds in self.cds.items():
                if sid in named and (ssids is None or index in ssids):
                    _forget(cds, when)

        return complete

    def tlbi(self, vmid: int, asid: int | None, low: int, high: int) -> Effect:
        """Stage 1 and combined entries of an ASID, or of all, that [low, high] touches."""

        def touches(first: Value) -> bool:
            return first.low <= high and low <= first.high

        def complete(when: int) -> None:
            for key, firsts in self.first.items():
                if key[0] == vmid and asid in (None, key[1]):
                    for first in [f for f, t in firsts.items() if t < when and touches(f)]:
                        del firsts[first]
            for key, pairs in self.combined.items():
                if key[0] == vmid and asid in (None, key[1]):
                    for pair in [p for p, t in pairs.items() if t[0] < when and touches(p[0])]:
                        del pairs[pair]

        return complete

    def tlbi2(self, vmid: int, low: int, high: int) -> Effect:
        """Stage 2 entries that [low, high] touches."""

        def complete(when: int) -> None:
            for key, seconds in self.second.items():
                if key[0] == vmid:
                    for value in [
                        v
                        for v, t in seconds.items()
                        if t < when and v.low <= high and low <= v.high
                    ]:
                        del seconds[value]

        return complete

    def tlbi_both(self, vmid: int | None) -> Effect:
        """Both stages' entries of a VMID, or of all."""

        def complete(when: int) -> None:
            for held in (self.first, self.second):
                for key, values in held.items():
                    if vmid in (None, key[0]):
                        _forget(values, when)
            for key, pairs in self.combined.items():
                if vmid in (None, key[0]):
                    for pair in [p for p, t in pairs.items() if min(t) < when]:
                        del pairs[pair]

        return complete

    # What may be answered.

    def answers(self, master: Master, sid: int, ssid: int | None, page: int, *, write: bool
                ) -> set[Answer]:  # fmt: skip
        """Output addresses, event names, "abort": all that an access may get now."""
        found: set[Answer] = set()
        for ste in self.stes[sid]:
            found |= self._through_ste(master, ste, sid, ssid, page, write=write)
        return found

    def exact(self, master: Master, ssid: int | None, page: int, *, write: bool) -> Answer:
        """What memory says."""
        ste = master.ste
        nothing = Allowed(self.driver, self.smmu)
        nothing.cds[0, ssid or 0] = {master.cds[ssid or 0]: 0}
        (answer,) = nothing._through_ste(master, ste, 0, ssid, page, write=write)
        return answer

    def _through_ste(
        self, master: Master, ste: SteValue, sid: int, ssid: int | None, page: int, *, write: bool
    ) -> set[Answer]:
        if ste.kind == "invalid":
            return {"C_BAD_STE"}
        if ste.kind == "abort":
            return {"abort"}
        if ste.kind == "cds":
            found: set[Answer] = set()
            for domain in self.cds[sid, ssid or 0]:
                found |= {"C_BAD_CD"} if domain is None else self._stage1(domain, page, write=write)
            return found
        if ssid is not None:
            return {"C_BAD_SUBSTREAMID"}
        if ste.kind == "bypass":
            return {page}
        assert ste.domain is not None
        return self._stage2(ste.domain, page, write=write)

    def _stage1(self, domain: Domain, page: int, *, write: bool) -> set[Answer]:
        key = (domain.vmid, domain.asid, page)
        found: set[Answer] = set()
        for first in {domain.pages[page], *self.first.get(key, ())}:
            if first is None:
                found.add("F_TRANSLATION")
            elif write and not first.writable:
                found.add("F_PERMISSION")
            elif domain.parent is None:
                found.add(first.output)
            else:
                found |= self._stage2(domain.parent, first.output, write=write)
        for first, second in self.combined.get(key, ()) if domain.parent else ():
            refused = write and not (first.writable and second.writable)
            found.add("F_PERMISSION" if refused else second.output)
        return found

    def _stage2(self, domain: Domain, ipa: int, *, write: bool) -> set[Answer]:
        return {
            "F_TRANSLATION s2" if second is None
            else "F_PERMISSION" if write and not second.writable
            else second.output
            for second in {domain.pages[ipa], *self.second.get((domain.vmid, ipa), ())}
        }  # fmt: skip
