# SPDX-License-Identifier: BSD-2-Clause
"""`[machine]`: a host's RAM and SMMUs, and a machine described in place as a device tree.

A machine in place is the tree that a board with these SMMUs and devices would have: the toolstack
and the hypervisor see no difference. A device or SMMU called `nic` is the node /nic.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
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
_GIC_PHANDLE = 1
# Distributor and redistributors.
_GIC = ((0x2F00_0000, 0x1_0000), (0x2F10_0000, 0x20_0000))
_DEVICE_BASE, _DEVICE_APART = 0x1_0000_0000, 0x1_0000
_SPI, _LEVEL = 0, 4

Stream = tuple[str, int]
# Base and size in bytes of what has a place in the machine, and what it is called.
Place = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine.

    `ram` as (base, size), none to take the host tree's. `devices` are those of a machine described
    in place, with their streams as (SMMU, StreamID); None for a host tree. `smmus` are its SMMUs
    with the addresses of their registers; those of the first device are at `device_base`.
    `features` are as written; `features_lines` has the lines of all of them under (), of a field,
    and of (SMMU, field). `line` and `ram_line` are those of the table and of `ram`.
    """

    ram: tuple[tuple[int, int], ...] = ()
    caching: str = "normal"
    devices: Mapping[str, tuple[Stream, ...]] | None = None
    smmus: Mapping[str, int] = field(default_factory=dict)
    device_base: int = _DEVICE_BASE
    features: Mapping[str, Any] = field(default_factory=dict)
    features_lines: Mapping[tuple[str, ...], int | None] = field(default_factory=dict)
    line: int | None = None
    ram_line: int | None = None

    def refused_line(self, rule: str, reason: str) -> int | None:
        """The line that a refusal of the machine is about."""
        return self.ram_line if rule == "MC101" else self.features_line(reason) or self.line

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
    ram = _regions(found.at("ram", []).named("machine.ram"), () if devices is None else _gic())
    smmus, device_base = {}, _DEVICE_BASE
    if devices is not None:
        taken = [*_gic(), *((base, size, "RAM") for base, size in ram or _RAM)]
        smmus = _smmus(found.at("smmus", {}), devices, taken)
        room = len(devices) * _DEVICE_APART
        device_base = _free(found.at("devices"), _DEVICE_BASE, room, _DEVICE_APART, taken)
    features = found.at("features", {})
    return MachineSpec(
        ram=ram,
        caching=found.at("caching", "normal").named("caching").one_of(CACHINGS),
        devices=devices,
        smmus=smmus,
        device_base=device_base,
        features=features.table(),
        features_lines=_lines(features) if features.value else {},
        line=found.line,
        ram_line=found.at("ram").line,
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


def _smmus(
    found: Reader, devices: Mapping[str, tuple[Stream, ...]], taken: list[Place]
) -> dict[str, int]:
    """The SMMUs that are listed, then those that streams name, with the addresses of registers.

    Those of the list have to be free of what is `taken`, the others are placed so. All are added.
    """
    out: dict[str, int] = {}
    named = {smmu: None for streams in devices.values() for smmu, _ in streams}
    if len({**named, **found.table()}) > _SMMUS_MAX:
        found.fail(f"more than {_SMMUS_MAX} SMMUs")
    for name, reader in found.fields():
        _check_name(name, reader)
        out[name] = reader.number(_SIZE, (1 << _ADDRESS_BITS) - _SIZE)
        if out[name] % _SIZE:
            reader.fail(f"expected a multiple of {_SIZE:#x}")
        _check_free(reader, "its registers lie", out[name], _SIZE, taken)
        taken.append((out[name], _SIZE, f"the registers of {name}"))
    for smmu in named:
        if smmu not in out:
            out[smmu] = _free(found, _BASE, _SIZE, _APART, taken)
            taken.append((out[smmu], _SIZE, f"the registers of {smmu}"))
    for name in out:
        if name in devices:
            found.fail(f"{name} is a device and an SMMU")
    return out


def _gic() -> list[Place]:
    return [(base, size, "the interrupt controller") for base, size in _GIC]


def _meets(base: int, size: int, taken: Iterable[Place]) -> Place | None:
    return next((p for p in taken if base < p[0] + p[1] and p[0] < base + size), None)


def _check_free(found: Reader, what: str, base: int, size: int, taken: Iterable[Place]) -> None:
    """Complain of what a scenario places where something else is."""
    met = _meets(base, size, taken)
    if met is not None:
        found.fail(f"{what} in {met[2]}, {met[0]:#x}+{met[1]:#x}")


def _free(found: Reader, base: int, size: int, apart: int, taken: Iterable[Place]) -> int:
    """The first place from `base` on in steps of `apart` that is free; else a complaint."""
    while met := _meets(base, size, taken):
        base = -(-(met[0] + met[1]) // apart) * apart
    if (base + size - 1) >> _ADDRESS_BITS:
        found.fail(f"there is no room for {size:#x} bytes of registers beside RAM")
    return base


def _regions(found: Reader, taken: Iterable[Place]) -> tuple[tuple[int, int], ...]:
    items = found.items()
    if len(items) > _REGIONS_MAX:
        found.fail(f"more than {_REGIONS_MAX} regions")
    regions = sorted(_region(item, taken) for item in items)
    for (base, size), (after, _) in pairwise(regions):
        if base + size > after:
            found.fail(f"{after:#x} is given twice")
    return tuple(regions)


def _region(found: Reader, taken: Iterable[Place]) -> tuple[int, int]:
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
    _check_free(found, f"{found.value} is partly", base, length, taken)
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
        base = spec.device_base + index * _DEVICE_APART
        node.set_cells("reg", *_two(base), *_two(0x1000))
        if node.path in assigned:
            node.set_empty("xen,passthrough")
        node.set_empty("dma-coherent")
        cells = [cell for smmu, sid in streams for cell in (phandles[smmu], sid)]
        node.set_cells("iommus", *cells)
    return Platform.from_tree(blob.read(blob.write(tree), source), source)


def _add_gic(tree: Tree) -> None:
    gic = tree.root.add(f"interrupt-controller@{_GIC[0][0]:x}")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("#address-cells", 0)
    gic.set_empty("interrupt-controller")
    gic.set_cells("reg", *(cell for base, size in _GIC for cell in (*_two(base), *_two(size))))
    gic.set_cells("phandle", _GIC_PHANDLE)


def _two(value: int) -> tuple[int, int]:
    return value >> 32, value & 0xFFFF_FFFF
