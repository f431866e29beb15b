# SPDX-License-Identifier: BSD-2-Clause
"""What a device tree says to the one who boots with it: vSMMUs, masters, RAM."""

from __future__ import annotations

from dataclasses import dataclass

from dt_tools import blob
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree, join_cells
from vsmmu.hypervisor.wires import edges, spis_by_cause
from vsmmu.memory import PAGE

SMMU_V3 = "arm,smmu-v3"
ITS = "arm,gic-v3-its"


@dataclass(frozen=True, slots=True)
class VsmmuView:
    """A vSMMU as a guest's tree describes it: node, window, interrupt (GIC id) by cause.

    `edges` are those of the interrupts that are edges; the others are levels. `device_id` is that
    of its own messages, where `msi-parent` names an ITS.
    """

    path: str
    base: int
    size: int
    spis: dict[str, int]
    edges: frozenset[int] = frozenset()
    device_id: int | None = None


@dataclass(frozen=True, slots=True)
class GuestView:
    """What a guest reads in its own device tree.

    `masters` holds for each node path its streams as (path of the vSMMU, vMasterID); `ram` the
    memory banks as (base, size), `its` the base of its ITS.
    """

    vsmmus: dict[str, VsmmuView]
    masters: dict[str, tuple[tuple[str, int], ...]]
    ram: tuple[tuple[int, int], ...]
    its: int | None = None

    @staticmethod
    def of(data: bytes, name: str) -> GuestView:
        """Read a guest's blob. Raises DtError."""
        platform = Platform.from_tree(blob.read(data, name), name)
        found = [s for s in platform.smmus if s.kind == SMMU_V3 and s.status == "okay"]
        its = next((node for node in platform.tree.walk() if node.is_compatible(ITS)), None)
        vsmmus = {
            s.path: VsmmuView(
                s.path,
                s.base,
                s.size,
                spis_by_cause([i.number or 0 for i in s.interrupts], s.interrupt_names),
                edges((i.number, i.flags) for i in s.interrupts if i.number),
                _device_id(s.node, its),
            )
            for s in found
            if s.base is not None and s.size is not None
        }
        masters = {
            m.path: tuple((s.smmu_path, s.stream_id) for s in m.streams)
            for m in platform.masters
            if m.status == "okay"
        }
        regs = () if its is None else platform.reg_of(its)
        base = regs[0].cpu_base if regs else None
        return GuestView(vsmmus, masters, tuple(host_ram(platform.tree)), base)


def host_ram(tree: Tree) -> list[tuple[int, int]]:
    """RAM of a host tree's memory nodes as page-aligned, disjoint (base, size), sorted."""
    found = sorted(r for n in tree.walk() if is_memory(n) for r in _memory_reg(n))
    out: list[tuple[int, int]] = []
    for base, size in found:
        start, end = -(-base // PAGE) * PAGE, (base + size) // PAGE * PAGE
        if out and start < out[-1][0] + out[-1][1]:
            start = out[-1][0] + out[-1][1]
        if start < end:
            out.append((start, end - start))
    return out


def is_memory(node: Node) -> bool:
    """Whether a node is an enabled memory node."""
    return node.string("device_type") == "memory" and node.status == "okay"


def _device_id(node: Node, its: Node | None) -> int | None:
    """The DeviceID in `msi-parent`, if that names the ITS."""
    cells = node.cells("msi-parent") or ()
    if its is None or len(cells) != 2 or cells[0] != its.phandle:
        return None
    return cells[1]


def _memory_reg(node: Node) -> list[tuple[int, int]]:
    parent = node.parent
    assert parent is not None, "a memory node is not the root"
    address, size = parent.u32("#address-cells") or 2, parent.u32("#size-cells") or 1
    cells = node.cells("reg") or ()
    step = address + size
    return [
        (join_cells(cells[i : i + address]), join_cells(cells[i + address : i + step]))
        for i in range(0, len(cells) - step + 1, step)
    ]
