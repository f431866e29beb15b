# SPDX-License-Identifier: BSD-2-Clause
"""`[[guest]]`: a guest from an xl.cfg, described in place, or dom0, and what it must have seen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vsmmu.scenario.reader import Count, Reader

# What is counted at the end; `dma` has counts by outcome.
COUNTED = ("events", "gerrors", "sync")
DMA_OUTCOMES = ("ok", "fault", "abort")
GUEST_FIELDS = (
    "config", "name", "devices", "dom0", "memory", "one_vsmmu_per_psmmu", *COUNTED, "dma",
)  # fmt: skip
_KINDS = ("config", "name", "dom0")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_MIB_MAX = 1 << 22
_DEVICES_MAX = 256
DOM0_MIB, GUEST_MIB = 256, 64


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A guest, and what it must have seen at the end (by the names of `COUNTED`).

    `config` is the name of its xl.cfg; a guest described in place has a `name` and `devices`; dom0
    has neither. `memory` is in MiB. `dma` are its DMA requests by outcome. `lines` are those of its
    fields, `line` its own.
    """

    config: str | None = None
    name: str | None = None
    devices: tuple[str, ...] = ()
    memory: int = DOM0_MIB
    one_vsmmu_per_psmmu: bool = False
    counts: Mapping[str, Count] = field(default_factory=dict)
    dma: Mapping[str, Count] = field(default_factory=dict)
    lines: Mapping[str, int | None] = field(default_factory=dict)
    line: int | None = None


def read_guest(found: Reader, number: int) -> GuestSpec:
    """A `[[guest]]` table, checked. Raises ScenarioError."""
    found = found.named(f"guest {number}")
    found.keys(*GUEST_FIELDS)
    kinds = [kind for kind in _KINDS if kind in found]
    if kinds[1:] and "dom0" in kinds:
        found.at("dom0").fail("dom0 = true stands for a config")
    if kinds[1:]:
        found.at("name").fail("a guest with a config has its name there")
    if not kinds:
        found.fail("needs config, name or dom0")
    kind = kinds[0]
    _check_kind(found, kind)
    config = found.at("config").string() if kind == "config" else None
    default = DOM0_MIB if kind == "dom0" else GUEST_MIB
    if "memory" in found and not 0 < found.at("memory").number() <= _MIB_MAX:
        found.at("memory").fail(f"expected 1 to {_MIB_MAX} MiB")
    return GuestSpec(
        config=config,
        name=_name(found.at("name")) if kind == "name" else None,
        devices=_devices(found.at("devices", [])),
        memory=found.at("memory", default).number(),
        one_vsmmu_per_psmmu=found.at("one_vsmmu_per_psmmu", False).flag(),
        counts={name: found.at(name).count() for name in COUNTED if name in found},
        dma=_dma(found.at("dma", {})),
        lines={name: reader.line for name, reader in found.fields()},
        line=found.line,
    )


def _check_kind(found: Reader, kind: str) -> None:
    """Fields that a guest of this kind cannot have."""
    if kind == "dom0":
        if found.at("dom0").value is not True:
            found.at("dom0").fail("dom0 = true stands for a config")
        if "one_vsmmu_per_psmmu" in found:
            found.at("one_vsmmu_per_psmmu").fail("expected true or false, and a config")
    if kind == "config" and "memory" in found:
        found.at("memory").fail("belongs to dom0; a guest's is in its config")
    if kind != "name" and "devices" in found:
        found.at("devices").fail("belongs to a guest with a name; others are in the config")


def _name(found: Reader) -> str:
    if not _NAME.fullmatch(found.string()) or found.string() == "dom0":
        found.fail("expected letters, digits and _ . + -, at most 64, and not dom0")
    return found.string()


def _devices(found: Reader) -> tuple[str, ...]:
    devices = tuple(item.string() for item in found.items())
    if len(set(devices)) != len(devices) or len(devices) > _DEVICES_MAX:
        found.fail(f"expected different devices, at most {_DEVICES_MAX}")
    return devices


def _dma(found: Reader) -> dict[str, Count]:
    found.keys(*DMA_OUTCOMES)
    return {name: reader.count() for name, reader in found.fields()}
