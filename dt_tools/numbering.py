# SPDX-License-Identifier: BSD-2-Clause
"""First-fit numbering of a guest's streams, around the ids that are spoken for.

An id is spoken for by `iommu_devid_map` (the user chose it, rule DT507) or by the map of an earlier
build (`--bindings-in`, rule DT510): a static guest has it in its tree already. An earlier id whose
stream the guest no longer has is retired, so that no id ever means another stream than it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import MAX_VMASTER_IDS, Binding, Bindings, Notice, Users, Viommu
from dt_tools.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dt_tools.platform import Platform
    from xl_configs.specs.devid_map import DevidMap

_Key = tuple[str, int]
"""(SMMU path, pMasterID)."""


class Numbering:
    """The vMasterIDs of the streams in `users`, once `number` has been called.

    Attributes:
        ids: (SMMU path, pMasterID) -> vMasterID.
        viommus: the vSMMUs of a guest with one for each SMMU, with their SMMUs only: the lowest
            indices are those of `old`.
        retired: what `old` gave to streams that are not in `users`.
        notices: what the user should know.
    """

    def __init__(
        self,
        platform: Platform,
        users: Users,
        wanted: Sequence[DevidMap],
        old: Bindings | None,
        one_per_smmu: bool,
    ) -> None:
        self.users = users
        self.notices: list[Notice] = []
        earlier = () if old is None else (*old.entries, *old.retired)
        self._groups = _groups(users, old) if one_per_smmu else None
        _check_old(platform, old, one_per_smmu)
        self.ids = _chosen(platform, wanted, users, one_per_smmu)
        self._keep(earlier)
        self.retired = tuple(
            Binding(e.vmaster_id, e.smmu, e.pmaster_id, (), e.smmu_base, self._group_of(e.smmu))
            for e in earlier
            if (e.smmu, e.pmaster_id) not in users
        )
        self._taken: dict[int, set[int]] = {}
        for key, vmaster_id in self.ids.items():
            self._taken.setdefault(self.group(key), set()).add(vmaster_id)
        for entry in self.retired:
            self._check_retired(entry)
            self._taken.setdefault(entry.viommu, set()).add(entry.vmaster_id)
        self._next: dict[int, int] = {}
        given = () if old is None else old.viommus
        self.viommus = tuple(
            given[index] if index < len(given) else Viommu(0, 0, 0, 0, smmu)
            for smmu, index in (self._groups or {}).items()
        )

    def group(self, key: _Key) -> int:
        """The index of the vSMMU that has the stream."""
        return self._group_of(key[0])

    def number(self, runs: Iterable[Sequence[_Key]]) -> None:
        """Give each stream without an id the first free ones, those of a run consecutive.

        Raises:
            Refusal: DT506, the ids are used up.
        """
        for run in runs:
            by_group: dict[int, list[_Key]] = {}
            for key in run:
                if key not in self.ids:
                    by_group.setdefault(self.group(key), []).append(key)
            for group, keys in by_group.items():
                first = self._first_fit(group, keys)
                self.ids.update((key, first + at) for at, key in enumerate(keys))
                self._taken.setdefault(group, set()).update(range(first, first + len(keys)))

    def _first_fit(self, group: int, keys: Sequence[_Key]) -> int:
        taken = self._taken.setdefault(group, set())
        # Below the lowest free id nothing has to be looked at again.
        at = self._next.get(group, 0)
        while at in taken:
            at += 1
        self._next[group] = at
        free = 0
        for vmaster_id in range(at, MAX_VMASTER_IDS):
            free = 0 if vmaster_id in taken else free + 1
            if free == len(keys):
                return vmaster_id - free + 1
        reason = f"the guest would need more than {MAX_VMASTER_IDS} vMasterIDs"
        raise Refusal("DT506", self.users[keys[0]][0], reason, "assign fewer devices to this guest")

    def _group_of(self, smmu: str) -> int:
        return 0 if self._groups is None else self._groups[smmu]

    def _keep(self, earlier: Iterable[Binding]) -> None:
        """The ids of `earlier` for the streams that are still there."""
        holders = {(self.group(key), vmaster_id): key for key, vmaster_id in self.ids.items()}
        for entry in earlier:
            key = (entry.smmu, entry.pmaster_id)
            if key not in self.users:
                continue
            chosen = self.ids.setdefault(key, entry.vmaster_id)
            other = holders.get((self.group(key), entry.vmaster_id), key)
            if chosen != entry.vmaster_id or other != key:
                self._contradiction(entry)

    def _check_retired(self, entry: Binding) -> None:
        if entry.vmaster_id in self._taken.get(entry.viommu, ()):
            self._contradiction(entry)

    def _contradiction(self, entry: Binding) -> None:
        reason = (
            f"pMasterID {entry.pmaster_id:#x} of it was given vMasterID {entry.vmaster_id:#x} "
            "before; iommu_devid_map says otherwise"
        )
        raise Refusal("DT510", entry.smmu, reason, "take the entry out, or start a new map")


def _groups(users: Iterable[_Key], old: Bindings | None) -> dict[str, int]:
    """SMMU path -> index of its vSMMU: the earlier ones first, then in the order of use."""
    earlier = [] if old is None else [viommu.smmu for viommu in old.viommus]
    paths = dict.fromkeys((*earlier, *(smmu for smmu, _ in users)))
    return {path: index for index, path in enumerate(paths)}


def check_without(old: Bindings | None) -> None:
    """An earlier map does not go with a guest without a vSMMU, which has no ids.

    Raises:
        Refusal: DT510.
    """
    if old is not None and (old.viommu is not None or old.viommus):
        fix = 'set viommu = "smmuv3", or leave the map out'
        raise Refusal("DT510", "/", "the earlier map is of a guest with a vSMMU", fix)


def _check_old(platform: Platform, old: Bindings | None, one_per_smmu: bool) -> None:
    """Whether the earlier map is one of this host, and of the same kind of guest."""
    if old is None:
        return
    if (old.viommu is not None and one_per_smmu) or (old.viommus and not one_per_smmu):
        what = "one vSMMU for each SMMU" if old.viommus else "one vSMMU"
        fix = "build the guest as before, or start a new map"
        raise Refusal("DT510", "/", f"the earlier map is of a guest with {what}", fix)
    bases = {smmu.path: smmu.base or 0 for smmu in platform.smmus}
    for entry in (*old.entries, *old.retired):
        if one_per_smmu and old.viommus[entry.viommu].smmu != entry.smmu:
            reason = f"the earlier map has it behind vSMMU {entry.viommu}, which is another SMMU's"
            raise Refusal("DT510", entry.smmu, reason, "give the map as it was written")
        if bases.get(entry.smmu) != entry.smmu_base:
            reason = f"the earlier map has an SMMU there at {entry.smmu_base:#x}; this host has not"
            raise Refusal("DT510", entry.smmu, reason, "give the map that was made from this host")


def _chosen(
    platform: Platform,
    wanted: Sequence[DevidMap],
    users: Mapping[_Key, Sequence[str]],
    one_per_smmu: bool,
) -> dict[_Key, int]:
    """The vMasterIDs that the user chose, by (SMMU path, pMasterID); checked by rule DT507."""
    bases = {smmu.base: smmu.path for smmu in platform.smmus if smmu.base is not None}
    chosen: dict[_Key, int] = {}
    owners: dict[tuple[str, int], _Key] = {}
    for entry in wanted:
        path = bases.get(entry.base)
        if path is None:
            known = ", ".join(f"{base:#x}" for base in bases) or "none"
            reason = f"iommu_devid_map: no SMMU of the host is at {entry.base:#x}"
            raise Refusal("DT507", "/", reason, f"use the address of one (SMMUs: {known})")
        key = (path, entry.pmaster)
        if key not in users:
            reason = f"iommu_devid_map: no assigned device has pMasterID {entry.pmaster:#x} of it"
            raise Refusal("DT507", path, reason, "take the entry out, or assign the device")
        if entry.vmaster >= MAX_VMASTER_IDS:
            reason = f"iommu_devid_map: vMasterID {entry.vmaster:#x} is not below 0x10000"
            raise Refusal("DT507", path, reason, "choose a smaller one")
        if chosen.setdefault(key, entry.vmaster) != entry.vmaster:
            reason = f"iommu_devid_map: pMasterID {entry.pmaster:#x} of it has two vMasterIDs"
            raise Refusal("DT507", path, reason, "keep one of the entries")
        # Without a vSMMU of its own an SMMU shares the ids of the one there is.
        place = (path if one_per_smmu else "", entry.vmaster)
        if owners.setdefault(place, key) != key:
            other, sid = owners[place]
            reason = (
                f"iommu_devid_map: vMasterID {entry.vmaster:#x} is wanted for pMasterID "
                f"{entry.pmaster:#x} of it and for {sid:#x} of {other}"
            )
            raise Refusal("DT507", path, reason, "choose different ones")
    return chosen
