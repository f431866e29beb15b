# SPDX-License-Identifier: BSD-2-Clause
"""The rules of dom0less, for the table of all rules."""

from __future__ import annotations

from dt_tools.rules import rule

DT620 = rule(
    "DT620",
    "warning",
    "a key of the configuration has no dom0less form",
    "Xen starts the guest from its node under /chosen: what that has no property for, or what only "
    "a toolstack in dom0 can do, the guest goes without.",
    "/chosen/domU1: disk has no dom0less form and is left out",
)
DT621 = rule(
    "DT621",
    "error",
    "an interrupt of the device that Xen cannot route",
    "Xen maps every interrupt of the node that xen,path names, and refuses the whole domain when "
    "one is a PPI or cannot be read.",
    "/soc/pmu@70000000: interrupt 23 is a PPI: Xen routes SPIs alone",
)
DT622 = rule(
    "DT622",
    "error",
    "interrupts of a device's child nodes",
    "Xen maps the interrupts of the node that xen,path names, and none of the nodes below it: the "
    "guest's drivers of those wait for interrupts that never come.",
    "/soc/qup@1000000: its child /soc/qup@1000000/i2c@1001000 has interrupt 77, which Xen does not"
    " map: dom0less takes interrupts from the node of xen,path alone",
)
DT623 = rule(
    "DT623",
    "warning",
    "interrupts without an interrupt parent",
    "The root of a dom0less guest has no interrupt-parent, unlike that of a guest of libxl: a node "
    "with interrupts has to name /gic itself.",
    "/passthrough/dma@60020000: has interrupts and no interrupt-parent: the root of a dom0less "
    "guest has none",
)
DT624 = rule(
    "DT624",
    "error",
    "a domain's node is not what Xen reads",
    "Without memory, cpus, a kernel module or a viommu that it knows Xen stops the boot.",
    "/chosen/domU1: memory is missing, a number of 8 bytes is needed; Xen stops there",
)
DT625 = rule(
    "DT625",
    "error",
    "xen,enhanced without a dom0",
    "Xen 4.20 stops the boot where a guest is to have xenstore and no dom0 is there to run it.",
    "/chosen/domU1: xen,enhanced with xenstore needs a dom0, and the host tree boots none",
)
DT626 = rule(
    "DT626",
    "error",
    "a domain whose tree is not modelled",
    "Static memory, direct map and shared memory put RAM where the host's memory is.",
    "/chosen/domU1: has xen,static-mem: where its RAM is follows from the host's memory",
)
DT627 = rule(
    "DT627",
    "error",
    "the guest's tree is larger than Xen's buffer",
    "Xen writes it into 4 KiB (18 KiB from 4.22 on) and the size of the partial tree; 4.20 has no "
    "room for the nodes of many vCPUs, and says -3 at most.",
    "/chosen/domU1: the guest's tree takes 5312 bytes, xen-4.20 has room for 4096",
)
DT628 = rule(
    "DT628",
    "error",
    "a command line is too long",
    "Xen keeps 1,023 bytes of a guest's command line, cuts the rest off or stops the boot.",
    "/chosen/domU1: the kernel's command line has 1200 bytes, Xen keeps 1023",
)
DT629 = rule(
    "DT629",
    "error",
    "the host tree lacks what Xen copies into a guest's",
    "The guest's CPUs have the compatible of the host's first CPU; the timer is the host's.",
    "/cpus: the host tree has no CPU with a compatible, which Xen copies to the guest's",
)
DT630 = rule(
    "DT630",
    "error",
    "a vSMMU from a Xen that has none",
    "Xen without the vSMMUv3 series passes the property viommu over: the devices' iommus then name "
    "nothing.",
    '/chosen/domU1: viommu = "smmuv3": xen-4.20 gives no guest a vSMMU',
)
DT631 = rule(
    "DT631",
    "note",
    "a guest without a console",
    "xl gives every guest a console of its own; a dom0less guest has the virtual pl011 or nothing.",
    '/chosen/domU1: no vuart = "sbsa_uart": the guest has no console at all',
)
DT632 = rule(
    "DT632",
    "warning",
    "what ImageBuilder's configuration cannot say",
    "Its variables cover the most usual properties of a domain; the rest are commands for U-Boot.",
    "/chosen/domU1: viommu has no variable of ImageBuilder: write the line `fdt set /chosen/domU0"
    " viommu smmuv3` into the file that APPEND_EXTRA_CMDS names",
)
DT633 = rule(
    "DT633",
    "note",
    "the host tree has a domain or a device given away already",
    "They stay; a domain's partial tree is in a file that is not known here, and so are its "
    "devices.",
    "/chosen/domU1: is in the host tree already; it starts before the others, and whether its "
    "devices are those of the 1 new guests is not known",
)
DT634 = rule(
    "DT634",
    "error",
    "a boot module is where it cannot be",
    "Xen passes over a module that overlaps another or reserved memory, and then misses it.",
    "/chosen/domU1/module@54000000: module [0x54000000, 0x54100000) overlaps"
    " /chosen/domU1/module@50000000 [0x50000000, 0x54800000), and Xen passes it over",
)

IDS = frozenset(
    one.id
    for one in (
        DT620,
        DT621,
        DT622,
        DT623,
        DT624,
        DT625,
        DT626,
        DT627,
        DT628,
        DT629,
        DT630,
        DT631,
        DT632,
        DT633,
        DT634,
    )
)
"""The ids: all of them are of `dom0less-dtb`, none of `check`."""
