# SPDX-License-Identifier: BSD-2-Clause
"""The rules of dom0's trees, for the table of rules."""

from __future__ import annotations

from dt_tools.rules import rule

rule(
    "DT610",
    "error",
    "what is given away is no device",
    "CPUs, memory, the interrupt controller and nodes that hold settings are not a guest's.",
    "/cpus/cpu@0: is no device",
)
rule(
    "DT611",
    "note",
    "a device of dom0's names one that is given away",
    "It loses a clock, a reset, a PHY or another thing that it needs.",
    "/soc/clock@60000000: nodes that stay with dom0 name it: /soc/dma@60020000 (clocks)",
)
rule(
    "DT612",
    "error",
    "the host tree does not tell what dom0's tree holds",
    "Memory is filled in by boot loaders, and some values are in registers only.",
    "/intc@8000000/v2m@8020000: which SPIs are its own is in a register, not in the host tree",
)
rule(
    "DT613",
    "error",
    "Xen could not make dom0's tree, or would make a wrong one",
    "Xen stops when it boots, or dom0 gets an interrupt of another device.",
    "/: Xen 4.22 has no driver for an interrupt controller of it",
)
rule(
    "DT614",
    "error",
    "Xen would make two nodes of one name",
    "Xen writes its nodes without looking at those that it copied.",
    "/hypervisor: Xen would make a second hypervisor in /",
)
rule(
    "DT615",
    "error",
    "dom0's memory or ramdisk does not fit",
    "dom0's RAM is at its own physical addresses, in the host's free memory; its ramdisk is in it, "
    "and its grant table and extended regions are where nothing else is.",
    "/memory: 2048 MiB of RAM for dom0 do not fit the host's free memory",
)
rule(
    "DT616",
    "note",
    "an assumption about what no host tree tells",
    "Where Xen puts dom0's memory, its grant table and more is known when it has booted.",
    "/memory: assumed: dom0's 1024 MiB of RAM at 0x80000000+0x40000000",
)
rule(
    "DT617",
    "note",
    "a device that Xen keeps for itself",
    "Its console, the IOMMUs that it drives, and devices with private interrupts are not dom0's.",
    "/soc/serial@70000000: is Xen's console, not dom0's",
)
rule(
    "DT618",
    "note",
    "a guest's PCI functions are not hidden from dom0",
    "A host bridge has dom0's functions too; the toolstack takes a guest's from dom0 one by one.",
    "/soc/pcie@40000000: guest.cfg has PCI functions; host bridges stay enabled in dom0's tree",
)
