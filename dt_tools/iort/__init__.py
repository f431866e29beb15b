# SPDX-License-Identifier: BSD-2-Clause
"""ACPI's IO Remapping Table (IORT): `model`, `reader`, `writer`, and `domains` given one."""

from __future__ import annotations

from dt_tools.iort.domains import (
    Component,
    PciRoot,
    VirtualSmmu,
    check_dom0,
    dom0_vsmmus,
    domu_iort,
)
from dt_tools.iort.model import (
    AnySmmu,
    IdMapping,
    Iort,
    IortMaster,
    ItsGroup,
    Memory,
    NamedComponent,
    Node,
    Pmcg,
    RawNode,
    ReservedMemory,
    RootComplex,
    SmmuV2,
    SmmuV3,
)
from dt_tools.iort.reader import read
from dt_tools.iort.writer import write

__all__ = [
    "AnySmmu",
    "Component",
    "IdMapping",
    "Iort",
    "IortMaster",
    "ItsGroup",
    "Memory",
    "NamedComponent",
    "Node",
    "PciRoot",
    "Pmcg",
    "RawNode",
    "ReservedMemory",
    "RootComplex",
    "SmmuV2",
    "SmmuV3",
    "VirtualSmmu",
    "check_dom0",
    "dom0_vsmmus",
    "domu_iort",
    "read",
    "write",
]
