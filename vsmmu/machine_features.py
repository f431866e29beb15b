# SPDX-License-Identifier: BSD-2-Clause
"""The features of a machine's physical SMMUs: as a user asks for them, and what a board allows.

A table has register fields by the names of IHI 0070 §6.3.1 ff. in lower case, and their values:

    preset = "everything"                   # or "default"; the rest changes that
    ats    = 1
    oas    = 5                              # the field, not the bits that it stands for
    ["/soc/iommu@50000000"]                 # of one SMMU alone
    httu   = 2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dt_tools.errors import Refusal
from dt_tools.platform import Platform, Smmu
from vsmmu.guest_view import SMMU_V3
from vsmmu.hypervisor.settings import SettingError, brief, number, unknown
from vsmmu.smmu.features import CHOICES, Features

PRESET = "preset"
_PRESETS = ("default", "everything")
_KNOWN = (PRESET, *sorted(CHOICES))
_STREAM_ID_BITS = 16


def features_from(table: Mapping[str, object], base: Features | None = None) -> Features:
    """Features from field names and values as a user types them; the rest is `base`'s.

    Values are numbers or their text ("0x10"); true and false stand for 1 and 0 in a field of one
    bit. Without `base` it is `Features.default()`.

    Raises:
        SettingError: a name that is no field, a value that is no number or not modelled, or fields
            that contradict each other, in the words of `Features`.
    """
    base = base or Features.default()
    if PRESET in table:
        base = _preset(table[PRESET], base)
    changes = {name: _value(name, value) for name, value in table.items() if name != PRESET}
    try:
        return base.replace(**changes)
    except ValueError as error:
        raise SettingError(str(error)) from None


def board_features(platform: Platform, table: Mapping[str, object]) -> dict[str, Features]:
    """The features of each enabled SMMUv3 of a board, by path, for `build_machine`.

    `table` has fields for all of them, and by path a table with more for one SMMU. What neither
    says is as `build_machine` has it: `default_features`.

    Raises:
        SettingError: as `features_from`, after the path of the SMMU that it is about; a path that
            is none.
    """
    nodes = {node.path: node for node in enabled_smmus(platform)}
    common = {name: value for name, value in table.items() if not name.startswith("/")}
    for path, value in table.items():
        if not path.startswith("/"):
            continue
        if path not in nodes:
            raise unknown(path, nodes, "enabled arm,smmu-v3")
        if not isinstance(value, Mapping):
            raise SettingError(f"{path}: expected a table of fields, not {brief(value)}")
    made = {}
    for path, node in nodes.items():
        own = table.get(path, {})
        assert isinstance(own, Mapping), "looked at above"
        try:
            made[path] = features_from({**common, **own}, default_features(platform, node))
        except SettingError as error:
            raise SettingError(f"{path}: {error}") from None
    return made


def default_features(platform: Platform, node: Smmu) -> Features:
    """What an SMMU has that nobody asked anything of: StreamIDs and coherency as the board says."""
    bits = max(_STREAM_ID_BITS, stream_id_bits(platform))
    return Features.default(sidsize=bits).replace(cohacc=int(node.dma_coherent))


def enabled_smmus(platform: Platform) -> list[Smmu]:
    """The enabled SMMUv3s of a board, in its tree's order."""
    return [s for s in platform.smmus if s.kind == SMMU_V3 and s.status == "okay"]


def stream_id_bits(platform: Platform, smmu: str | None = None) -> int:
    """Bits that the largest StreamID of the board needs, or the largest behind one SMMU."""
    ids = [
        s.stream_id
        for m in platform.masters
        for s in m.streams
        if smmu is None or s.smmu_path == smmu
    ]
    ids += [
        row.sid_base + row.length - 1
        for m in platform.masters
        for row in m.maps
        if smmu is None or row.smmu_path == smmu
    ]
    return min(max(ids, default=0).bit_length(), 32)


def chosen_features(
    platform: Platform,
    ram: Iterable[tuple[int, int]],
    features: Mapping[str, Features],
    default: Features | None,
) -> dict[str, Features]:
    """Features of each enabled SMMUv3, held against its board.

    Raises:
        Refusal: MC103, a path that is no enabled SMMUv3, an SMMU whose StreamIDs or RAM the
            features do not reach.
    """
    nodes = {node.path: node for node in enabled_smmus(platform)}
    for path in features:
        if path not in nodes:
            fix = f"take one of {', '.join(nodes)}"
            raise Refusal("MC103", path, "features for what is no enabled arm,smmu-v3", fix)
    made = {
        path: features.get(path) or default or default_features(platform, node)
        for path, node in nodes.items()
    }
    end = max((base + size for base, size in ram), default=0)
    for path, found in made.items():
        reason = _contradiction(platform, path, found, end)
        if reason is not None:
            raise Refusal("MC103", path, *reason)
    return made


def _preset(value: object, base: Features) -> Features:
    if value not in _PRESETS:
        expected = " or ".join(_PRESETS)
        raise SettingError(f"{PRESET}: expected {expected}, not {brief(value)}")
    if value == "default":
        return base
    return Features.everything().replace(cohacc=base.idr0.cohacc)


def _value(name: str, value: object) -> int:
    if name not in CHOICES:
        raise unknown(name, _KNOWN, "field of an identification register")
    register, allowed = CHOICES[name]
    if isinstance(value, bool) and allowed == range(2):
        return int(value)
    return number(f"{register}.{name.upper()}", value, allowed)


def _contradiction(
    platform: Platform, path: str, features: Features, end: int
) -> tuple[str, str] | None:
    """Reason and fix where an SMMU with these features cannot do its work on the board."""
    bits = features.idr1.sidsize
    for master in platform.masters:
        for stream in master.streams:
            if stream.smmu_path == path and stream.stream_id >> bits:
                who = f"{master.path} has StreamID {stream.stream_id:#x}"
                return f"IDR1.SIDSIZE={bits}, but {who}", "give it a larger sidsize"
    if end > 1 << features.oas:
        field = f"IDR5.OAS={features.idr5.oas} ({features.oas} bits)"
        return f"{field}, but the machine has RAM up to {end - 1:#x}", "give it a larger oas"
    return None
