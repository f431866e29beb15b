# SPDX-License-Identifier: BSD-2-Clause
"""`[machine]`: a host's RAM and SMMUs, and a machine described in place as a device tree.

A machine in place is the tree that a board with these SMMUs and devices would have: the toolstack
and the hypervisor see no difference. A device or SMMU called `nic` is the node /nic.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dt_tools import blob
from dt_tools.platform import Platform
from dt_tools.tree import Tree
from vsmmu.scenario.reader import Reader, brief

MACHINE_FIELDS = ("ram", "caching", "devices", "smmus", "features")
CACHINGS = ("normal", "none", "hostile")
_ADDRESS_BITS = 48
_REGIONS_MAX = 64
_DEVICES_MAX = 1024
_STREAMS_MAX = 64
_SMMUS_MAX = 64
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,30}")
# Nodes that mean something else.
_RESERVED = ("aliases", "chosen", "cpus", "hypervisor", "memory", "passthrough", "reserved-memory")
_SIZE = 0x2_0000
_BASE, _APART = 0x2B40_0000, 0x10_0000
_RAM = ((0x8000_0000, 0x8000_0000),)
_GIC, _GIC_PHANDLE = 0x2F00_0000, 1
_DEVICE_BASE, _DEVICE_APART = 0x1_0000_0000, 0x1_0000
_SPI, _LEVEL = 0, 4

Stream = tuple[str, int]


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine.

    `ram` as (base, size), none to take the host tree's. `devices` are those of a machine described
    in place, with their streams as (SMMU, StreamID); None for a host tree. `smmus` are its SMMUs
    with the addresses of their registers. `features` are as written; `features_lines` has the lines
    of all of them under (), of a field, and of (SMMU, field).
    """

    ram: tuple[tuple[int, int], ...] = ()
    caching: str = "normal"
    devices: Mapping[str, tuple[Stream, ...]] | None = None
    smmus: Mapping[str, int] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    features_lines: Mapping[tuple[str, ...], int | None] = field(default_factory=dict)

    def features_line(self, reason: str) -> int | None:
        """The line of the feature that a complaint names, or that of all of them."""
        fits = [
            names
            for names in self.features_lines
            if all(
                re.search(rf"(?<!\w){re.escape(name)}(?!\w)", reason, re.IGNORECASE)
                for name in names
            )
        ]
        return self.features_lines[max(fits, key=len)] if fits else None

    def path(self, name: str) -> str:
        """The path of a device's or an SMMU's node; names stand for nodes of a machine in place."""
        return f"/{name}" if self.devices is not None and not name.startswith("/") else name


def read_machine(found: Reader) -> MachineSpec:
    """The `[machine]` table, checked. Raises ScenarioError."""
    found.keys(*MACHINE_FIELDS)
    devices = _devices(found.at("devices")) if "devices" in found else None
    if devices is None and "smmus" in found:
        found.at("smmus").fail("belongs to a machine in place, with machine.devices")
    smmus = {} if devices is None else _smmus(found.at("smmus", {}), devices)
    features = found.at("features", {})
    return MachineSpec(
        ram=_regions(found.at("ram", []).named("machine.ram")),
        caching=found.at("caching", "normal").named("caching").one_of(CACHINGS),
        devices=devices,
        smmus=smmus,
        features=features.table(),
        features_lines=_lines(features) if features.value else {},
    )


def _lines(found: Reader) -> dict[tuple[str, ...], int | None]:
    out: dict[tuple[str, ...], int | None] = {(): found.line}
    for name, reader in found.fields():
        out[(name,)] = reader.line
        if isinstance(reader.value, dict):
            out |= {(name, below): value.line for below, value in reader.fields()}
    return out


def _devices(found: Reader) -> dict[str, tuple[Stream, ...]]:
    out = {}
    for name, reader in found.fields():
        _check_name(name, reader)
        items = [reader] if isinstance(reader.value, str) else reader.items()
        if not 0 < len(items) <= _STREAMS_MAX:
            reader.fail(f'expected 1 to {_STREAMS_MAX} streams such as "smmu0:0x10"')
        out[name] = tuple(_stream(item) for item in items)
    if not 0 < len(out) <= _DEVICES_MAX:
        found.fail(f"expected 1 to {_DEVICES_MAX} devices")
    return out


def _check_name(name: str, found: Reader) -> None:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        found.fail("expected a letter, then letters, digits and _ . + -, at most 31 in all")


def _stream(found: Reader) -> Stream:
    smmu, colon, sid = found.string().rpartition(":")
    if not colon or not _NAME.fullmatch(smmu):
        found.fail(f'expected a stream such as "smmu0:0x10", not {brief(found.value)}')
    number = Reader(found.document, sid, found.path, found.where).number(0, 0xFFFF_FFFF)
    return smmu, number


def _smmus(found: Reader, devices: Mapping[str, tuple[Stream, ...]]) -> dict[str, int]:
    """The SMMUs that are listed, then those that streams name, with the addresses of registers."""
    out: dict[str, int] = {}
    for name, reader in found.fields():
        _check_name(name, reader)
        out[name] = reader.number(_SIZE, (1 << _ADDRESS_BITS) - _SIZE)
        if out[name] % _SIZE:
            reader.fail(f"expected a multiple of {_SIZE:#x}")
    for streams in devices.values():
        for smmu, _ in streams:
            if smmu not in out:
                out[smmu] = _free_base(out)
    if len(out) > _SMMUS_MAX:
        found.fail(f"more than {_SMMUS_MAX} SMMUs")
    for name in out:
        if name in devices:
            found.fail(f"{name} is a device and an SMMU")
    if len(set(out.values())) != len(out):
        found.fail("two SMMUs have one address")
    return out


def _free_base(smmus: Mapping[str, int]) -> int:
    base = _BASE
    while base in smmus.values():
        base += _APART
    return base


def _regions(found: Reader) -> tuple[tuple[int, int], ...]:
    items = found.items()
    if len(items) > _REGIONS_MAX:
        found.fail(f"more than {_REGIONS_MAX} regions")
    regions = sorted(_region(item) for item in items)
    for (base, size), (after, _) in pairwise(regions):
        if base + size > after:
            found.fail(f"{after:#x} is given twice")
    return tuple(regions)


def _region(found: Reader) -> tuple[int, int]:
    text, plus, size = found.string().partition("+")
    if not plus:
        found.fail(f'expected "BASE+SIZE", not {brief(found.value)}')
    base, length = (
        Reader(found.document, part, found.path, found.where).number() for part in (text, size)
    )
    if base % 4096 or length % 4096 or not length:
        found.fail(f"{found.value} is not made of 4 KiB pages")
    if (base + length - 1) >> _ADDRESS_BITS:
        found.fail(f"{found.value} is beyond {_ADDRESS_BITS} bits")
    return base, length


def platform_in_place(spec: MachineSpec, source: str, assigned: Collection[str] = ()) -> Platform:
    """The board that a machine described in place is.

    Args:
        source: the scenario's name, for messages.
        assigned: paths of devices that guests have, which dom0 does not see.
    """
    assert spec.devices is not None
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_strings("compatible", "vsmmu,scenario")
    root.set_cells("interrupt-parent", _GIC_PHANDLE)
    _add_gic(tree)
    for base, size in spec.ram or _RAM:
        memory = root.add(f"memory@{base:x}")
        memory.set_strings("device_type", "memory")
        memory.set_cells("reg", *_two(base), *_two(size))
    phandles = {name: 2 + index for index, name in enumerate(spec.smmus)}
    for index, (name, base) in enumerate(spec.smmus.items()):
        smmu = root.add(name)
        smmu.set_strings("compatible", "arm,smmu-v3")
        smmu.set_cells("reg", *_two(base), *_two(_SIZE))
        smmu.set_cells("interrupts", _SPI, 64 + index, 1)
        smmu.set_strings("interrupt-names", "combined")
        smmu.set_cells("#iommu-cells", 1)
        smmu.set_empty("dma-coherent")
        smmu.set_cells("phandle", phandles[name])
    for index, (name, streams) in enumerate(spec.devices.items()):
        node = root.add(name)
        node.set_strings("compatible", "vsmmu,device")
        base = _DEVICE_BASE + index * _DEVICE_APART
        node.set_cells("reg", *_two(base), *_two(0x1000))
        if node.path in assigned:
            node.set_empty("xen,passthrough")
        node.set_empty("dma-coherent")
        cells = [cell for smmu, sid in streams for cell in (phandles[smmu], sid)]
        node.set_cells("iommus", *cells)
    return Platform.from_tree(blob.read(blob.write(tree), source), source)


def _add_gic(tree: Tree) -> None:
    gic = tree.root.add(f"interrupt-controller@{_GIC:x}")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("#address-cells", 0)
    gic.set_empty("interrupt-controller")
    gic.set_cells("reg", *_two(_GIC), *_two(0x1_0000), *_two(_GIC + 0x10_0000), *_two(0x20_0000))
    gic.set_cells("phandle", _GIC_PHANDLE)


def _two(value: int) -> tuple[int, int]:
    return value >> 32, value & 0xFFFF_FFFF
