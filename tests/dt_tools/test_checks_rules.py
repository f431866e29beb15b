# SPDX-License-Identifier: BSD-2-Clause
"""Each rule about boards, devices and streams: a world that breaks it, one that does not."""

from __future__ import annotations

import pytest

from tests.dt_tools.test_checks import said

DMA, DMB = "soc/dma@60000000", "soc/dma@61000000"
BOTH = ["/soc/dma@60000000", "/soc/dma@61000000"]
PCI = {
    "device_type": "pci",
    "compatible": "pci-host-ecam-generic",
    "reg": [0x40000000, 0x1000000],
    "#address-cells": [3],
    "#size-cells": [2],
    "iommu-map": [0, 4, 0x1000, 0x100],
}
BUS = {
    "compatible": "simple-bus",
    "#address-cells": [1],
    "#size-cells": [1],
    "ranges": [0, 0x62000000, 0x100000],
    "dma@1000": {"reg": [0x1000, 0x1000], "iommus": [4, 0x60], "interrupts": [0, 103, 4]},
}

# Rule, edits that break it, what is said of that rule, edits that do not.
CASES = [
    (
        "DT101",
        {"cfg": {"dtdev": ["/soc/uart@70000000"]}},
        [
            "a.cfg:5 error DT101 /soc/uart@70000000: is not a DMA master of any SMMU of the host "
            "tree (SMMUs: /soc/iommu@50000000, /soc/iommu@51000000); assign a device that has "
            "iommus; without an SMMU its DMA is not contained",
        ],
        {"cfg": {}},
    ),
    (
        "DT101",
        {"host": {"soc/uart@70000000/xen,passthrough": True}},
        [
            "host.dtb: note DT101 /soc/uart@70000000: is marked xen,passthrough, but is not a DMA"
            " master of any SMMU; give it iommus if it does DMA; without an SMMU its DMA is not "
            "contained",
        ],
        {},
    ),
    (
        "DT102",
        {"cfg": {"dtdev": ["/amba/dma@61000000", "soc", "/soc/dma@61000000/"]}},
        [
            "a.cfg:5 error DT102 /amba/dma@61000000: no such node in the host tree; nearest: "
            "/soc/dma@61000000",
            "a.cfg:5 error DT102 /soc/dma@61000000/: is not the node's full path as Xen compares "
            "it; write /soc/dma@61000000",
            "a.cfg:5 error DT102 soc: is not an absolute path of the host tree; nearest: /soc",
        ],
        {"cfg": {"dtdev": ["/soc/dma@61000000"]}},
    ),
    (
        "DT103",
        {"cfg": {}, "other": {}},
        [
            "a.cfg:5 error DT103 /soc/dma@60000000: is b.cfg's too; give it to one guest",
            "b.cfg:5 error DT103 /soc/dma@60000000: is a.cfg's too; give it to one guest",
        ],
        {"cfg": {}, "other": {"dtdev": ["/soc/dma@61000000"]}},
    ),
    (
        "DT103",
        {"host": {f"{DMA}/xen,passthrough": None}, "cfg": {}},
        [
            "a.cfg:5 warning DT103 /soc/dma@60000000: has no xen,passthrough in the host tree: "
            "dom0 has it too; in the boot loader: fdt set /soc/dma@60000000 xen,passthrough",
        ],
        {"cfg": {}},
    ),
    (
        "DT103",
        {"host": {f"{DMA}/xen,passthrough": None, f"{DMB}/xen,passthrough": None}, "cfg": {}},
        [
            "a.cfg:5 note DT103 /soc/dma@60000000: has no xen,passthrough in the host tree: dom0 "
            "has it too; in the boot loader: fdt set /soc/dma@60000000 xen,passthrough",
        ],
        {"cfg": {}},
    ),
    (
        "DT104",
        {"host": {"soc/iommu@50000000/status": "disabled"}, "cfg": {}},
        [
            "a.cfg:5 error DT104 /soc/dma@60000000: its SMMU /soc/iommu@50000000 has status "
            '"disabled"; set status = "okay" on /soc/iommu@50000000 in the host tree',
        ],
        {"cfg": {}},
    ),
    (
        "DT104",
        {"host": {"soc/iommu@50000000/status": "reserved"}},
        [
            'host.dtb: note DT104 /soc/iommu@50000000: has status "reserved"; enabled masters '
            'behind it: /soc/dma@60000000; set its status = "okay" to give one of them to a guest',
        ],
        {"host": {"soc/iommu@50000000/status": "reserved", f"{DMA}/status": "disabled"}},
    ),
    (
        "DT105",
        {"host": {f"{DMA}/status": "disabled"}, "cfg": {}},
        [
            'a.cfg:5 error DT105 /soc/dma@60000000: has status "disabled"; set status = "okay" on'
            " /soc/dma@60000000 in the host tree",
        ],
        {"host": {f"{DMB}/status": "disabled"}, "cfg": {}},
    ),
    (
        "DT105",
        {"host": {"soc/status": "disabled"}, "cfg": {}},
        [
            'a.cfg:5 error DT105 /soc/dma@60000000: lies below /soc, which has status "disabled";'
            ' set status = "okay" on /soc in the host tree',
        ],
        {"cfg": {}},
    ),
    (
        "DT106",
        {"cfg": {"dtdev": ["/soc/iommu@50000000"]}},
        [
            "a.cfg:5 error DT106 /soc/iommu@50000000: is an SMMU; the guest gets a vSMMU in its "
            "place; take it out of dtdev",
        ],
        {"cfg": {}},
    ),
    (
        "DT107",
        {"host": {"soc/pcie@40000000": PCI}, "cfg": {"dtdev": ["/soc/pcie@40000000"]}},
        [
            "a.cfg:5 error DT107 /soc/pcie@40000000: is a bus with an iommu-map or a PCI host "
            "bridge, whose functions are the masters; assign a platform device",
        ],
        {"host": {"soc/pcie@40000000": PCI}, "cfg": {}},
    ),
    (
        "DT108",
        {"cfg": {"dtdev": ["/soc/dma@60000000", "/soc/dma@60000000"]}},
        [
            "a.cfg:5 error DT108 /soc/dma@60000000: is listed twice in dtdev; list it once",
        ],
        {"cfg": {"dtdev": BOTH}},
    ),
    (
        "DT109",
        {"host": {"soc/iommu@50000000/compatible": "arm,mmu-500"}, "cfg": {}},
        [
            "a.cfg:4 error DT109 /soc/dma@60000000: its SMMU /soc/iommu@50000000 is arm,mmu-500; "
            'a vSMMU needs arm,smmu-v3 behind it; set viommu = "none" for this guest',
        ],
        {"host": {"soc/iommu@50000000/compatible": "arm,mmu-500"}, "cfg": {"viommu": None}},
    ),
    (
        "DT109",
        {"host": {"soc/iommu@50000000/compatible": "test,iommu"}, "cfg": {"viommu": None}},
        [
            "a.cfg:4 error DT109 /soc/dma@60000000: its IOMMU /soc/iommu@50000000 is no Arm SMMU "
            "(test,iommu); assign a device behind an Arm SMMU",
        ],
        {"cfg": {}},
    ),
    (
        "DT110",
        {"host": {f"{DMA}/port": {}}, "cfg": {"dtdev": [f"/{DMA}", f"/{DMA}/port"]}},
        [
            "a.cfg:5 error DT110 /soc/dma@60000000/port: lies inside /soc/dma@60000000, which is "
            "in dtdev too; list /soc/dma@60000000 alone",
        ],
        {"host": {f"{DMA}/port": {}}, "cfg": {}},
    ),
    (
        "DT205",
        {"host": {f"{DMA}/reg": [0x60000000, 0x800], "soc/rng@60000800": {"reg": [0x60000800, 4]}}},
        [
            "host.dtb: note DT205 /soc/dma@60000000: has registers in a 4 KiB page with "
            "/soc/rng@60000800; assign them together, or neither",
        ],
        {"host": {f"{DMA}/reg": [0x60000000, 0x800], "soc/rng@60001000": {"reg": [0x60001000, 4]}}},
    ),
    (
        "DT205",
        {
            "host": {
                f"{DMA}/reg": [0x60000000, 0x800],
                "soc/rng@60000800": {"reg": [0x60000800, 4]},
            },
            "cfg": {},
        },
        [
            "a.cfg:5 error DT205 /soc/dma@60000000: shares a 4 KiB page of registers with "
            "/soc/rng@60000800; it is not behind an SMMU: keep the page to the host",
        ],
        {
            "host": {f"{DMA}/reg": [0x60000000, 0x800], f"{DMB}/reg": [0x60000800, 0x800]},
            "cfg": {"dtdev": BOTH},
        },
    ),
    (
        "DT206",
        {"host": {"soc/bus@62000000": BUS}},
        [
            "host.dtb: note DT206 /soc/bus@62000000/dma@1000: ranges above it: bus address 0x1000"
            " is CPU address 0x62001000; use the CPU addresses in iomem and xen,reg",
        ],
        {"host": {"soc/bus@62000000": {**BUS, "ranges": True}}},
    ),
    (
        "DT206",
        {
            "host": {"soc/bus@62000000": BUS},
            "cfg": {"dtdev": ["/soc/bus@62000000/dma@1000"], "iomem": ["0x1,1"], "irqs": [135]},
        },
        [
            "a.cfg:6 error DT206 /soc/bus@62000000/dma@1000: iomem maps bus address 0x1000; its "
            "CPU address is 0x62001000; map 0x62001,0x1",
        ],
        {
            "host": {"soc/bus@62000000": BUS},
            "cfg": {"dtdev": ["/soc/bus@62000000/dma@1000"], "iomem": ["62001,1"], "irqs": [135]},
        },
    ),
    (
        "DT210",
        {"host": {f"{DMA}/port": {"iommus": [3, 0x12]}}, "cfg": {}},
        [
            "a.cfg:5 error DT210 /soc/dma@60000000: its child /soc/dma@60000000/port is a DMA "
            "master of its own; assign a device without such children, or write a partial tree by"
            " hand",
        ],
        {"host": {f"{DMA}/port": {}}, "cfg": {}},
    ),
    (
        "DT302",
        {
            "host": {
                "mux": {"interrupt-controller": True, "#interrupt-cells": [1], "phandle": [9]},
                f"{DMA}/interrupt-parent": [9],
                f"{DMA}/interrupts": [7],
            },
            "cfg": {},
        },
        [
            "a.cfg:5 warning DT302 /soc/dma@60000000: 1 of its interrupts cannot be an SPI of the"
            " guest's GIC (goes to /mux: its controller (no compatible) is not the GIC); the "
            "guest's driver has to do without; assign another device if it cannot",
        ],
        {"cfg": {}},
    ),
    (
        "DT302",
        {"host": {f"{DMA}/interrupts": [1, 3, 4]}},
        [
            "host.dtb: note DT302 /soc/dma@60000000: has interrupts that are not SPIs of the GIC:"
            " 1 (a PPI is a CPU's own); a guest with the device has to do without them",
        ],
        {"host": {f"{DMA}/interrupts": [0, 3, 4]}},
    ),
    (
        "DT401",
        {"host": {f"{DMA}/iommus": [2, 0x10], f"{DMB}/clocks": [2, 0x55]}},
        [
            "host.dtb: error DT401 /soc/dma@60000000: iommus: <0x2> is /clock, not an IOMMU; name"
            " the provider by its own phandle",
            "host.dtb: error DT401 /soc/dma@61000000: clocks[1]: <0x55> is no node's phandle; "
            "name the provider by its own phandle",
        ],
        {"host": {f"{DMA}/iommus": [3, 0x10], f"{DMB}/clocks": [2, 0, 2]}},
    ),
    (
        "DT403",
        {"host": {f"{DMA}/phandle": [2]}},
        [
            "host.dtb: error DT403 /soc/dma@60000000: phandle 0x2 is /clock's too; give each node"
            " a phandle of its own",
        ],
        {"host": {f"{DMA}/phandle": [5]}},
    ),
    (
        "DT405",
        {"host": {f"{DMA}/iommus": [3]}},
        [
            "host.dtb: error DT405 /soc/dma@60000000: iommus: /soc/iommu@50000000 takes 1 cells, "
            "0 left; write one <phandle ids> entry for each stream, as #iommu-cells counts",
        ],
        {"host": {f"{DMA}/iommus": [3, 1]}},
    ),
    (
        "DT406",
        {"host": {"soc/iommu@50000000/#iommu-cells": None}},
        [
            "host.dtb: warning DT406 /soc/iommu@50000000: no valid #iommu-cells; 1 is assumed; "
            "give the IOMMU its #iommu-cells (1 for SMMUv3)",
        ],
        {},
    ),
    (
        "DT502",
        {"host": {f"{DMB}/iommus": [4, 0x10]}},
        [
            "host.dtb: note DT502 /soc/iommu@50000000: StreamID 0x10 is on /soc/iommu@50000000, "
            "/soc/iommu@51000000; a guest with devices behind several of them needs vMasterIDs",
        ],
        {"host": {f"{DMB}/iommus": [3, 0x20]}},
    ),
    (
        "DT502",
        {"host": {f"{DMB}/iommus": [4, 0x10]}, "cfg": {"dtdev": BOTH}},
        [
            "a.cfg:5 note DT502 /soc/dma@60000000: StreamID 0x10 is this guest's on 2 SMMUs: "
            "/soc/iommu@50000000, /soc/iommu@51000000; each gets a vMasterID of its own",
        ],
        {"cfg": {"dtdev": BOTH}},
    ),
    (
        "DT503",
        {"host": {f"{DMB}/iommus": [3, 0x10]}},
        [
            "host.dtb: note DT503 /soc/dma@60000000: StreamID 0x10 of /soc/iommu@50000000 is used"
            " by /soc/dma@60000000, /soc/dma@61000000; assign these devices together; the SMMU "
            "cannot tell them apart",
        ],
        {"host": {f"{DMB}/iommus": [3, 0x20]}},
    ),
    (
        "DT503",
        {"host": {f"{DMB}/iommus": [3, 0x10]}, "cfg": {}, "other": {"dtdev": [f"/{DMB}"]}},
        [
            "a.cfg:5 error DT503 /soc/dma@60000000: shares StreamID 0x10 of /soc/iommu@50000000 "
            "with /soc/dma@61000000, which is b.cfg's; assign /soc/dma@61000000 too, or neither",
            "b.cfg:5 error DT503 /soc/dma@61000000: shares StreamID 0x10 of /soc/iommu@50000000 "
            "with /soc/dma@60000000, which is a.cfg's; assign /soc/dma@60000000 too, or neither",
        ],
        {"host": {f"{DMB}/iommus": [3, 0x10]}, "cfg": {"dtdev": BOTH}},
    ),
    (
        "DT503",
        {
            "host": {"soc/pcie@40000000": {**PCI, "iommu-map": [0, 3, 0, 0x100]}},
            "cfg": {},
        },
        [
            "a.cfg:5 note DT503 /soc/dma@60000000: StreamID 0x10 of /soc/iommu@50000000 is in the"
            " iommu-map of /soc/pcie@40000000; keep functions behind /soc/pcie@40000000 off that "
            "StreamID",
        ],
        {"host": {"soc/pcie@40000000": PCI}, "cfg": {}},
    ),
    (
        "DT505",
        {"host": {"soc/pcie@40000000": {**PCI, "iommu-map": [0, 4, 0, 0x100, 0x80, 4, 0x200, 1]}}},
        [
            "host.dtb: warning DT505 /soc/pcie@40000000: iommu-map: rows 0x0+0x100 and 0x80 "
            "overlap; write rows of <id-base phandle StreamID-base length> that do not overlap",
        ],
        {"host": {"soc/pcie@40000000": {**PCI, "iommu-map": [0, 4, 0, 0x100, 0x100, 4, 0x200, 1]}}},
    ),
    (
        "DT505",
        {
            "host": {
                "soc/pcie@40000000": {**PCI, "iommu-map": [0, 4, 0, 0, 0x200, 4, 0, 1]},
                "soc/pcie@40000000/iommu-map-mask": [0x1FF],
            }
        },
        [
            "host.dtb: error DT505 /soc/pcie@40000000: iommu-map: id base 0x200 has bits outside "
            "iommu-map-mask 0x1ff; write rows of <id-base phandle StreamID-base length> that do "
            "not overlap",
            "host.dtb: note DT505 /soc/pcie@40000000: iommu-map: row 0x0 has length 0 and holds "
            "no id; firmware has to fill it in before a system starts",
        ],
        {"host": {"soc/pcie@40000000": PCI}},
    ),
    (
        "DT505",
        {"host": {"soc/pcie@40000000": PCI}, "cfg": {"pci": ["01:00.0", "00:01.0"]}},
        [
            "a.cfg:6 error DT505 /soc/pcie@40000000 0000:01:00.0: requester id 0x0100 is in no "
            "row of iommu-map; its DMA would not be translated; extend iommu-map in the host tree",
        ],
        {"host": {"soc/pcie@40000000": PCI}, "cfg": {"pci": ["00:01.0"]}},
    ),
    (
        "DT507",
        {"cfg": {"iommu_devid_map": ["0x10,0x4f000000"]}},
        [
            "a.cfg:6 error DT507 /: iommu_devid_map: no SMMU of the host is at 0x4f000000; use "
            "the address of one (SMMUs: 0x50000000, 0x51000000)",
        ],
        {"cfg": {"iommu_devid_map": ["0x10@7,0x50000000"]}},
    ),
    (
        "DT507",
        {"cfg": {"iommu_devid_map": ["0x10,0x50000000"], "viommu": None}},
        [
            'a.cfg:5 warning DT507 /: iommu_devid_map has no effect without viommu = "smmuv3" and'
            " dtdev; give both, or take it out",
        ],
        {"cfg": {}},
    ),
    (
        "DT508",
        {"host": {f"{DMB}/iommus": [4, 0x10]}, "cfg": {"dtdev": BOTH, "viommu": None}},
        [
            "a.cfg:4 note DT508 /soc/dma@60000000: StreamID 0x10 is this guest's on 2 SMMUs: "
            '/soc/iommu@50000000, /soc/iommu@51000000; set viommu = "smmuv3" if the guest is to '
            "manage its DMA",
        ],
        {"host": {f"{DMB}/iommus": [4, 0x10]}, "cfg": {"dtdev": BOTH}},
    ),
    (
        "DT101",
        {"cfg": {"dtdev": ["/"]}},
        [
            'a.cfg:5 error DT101 /: dtdev has "/", the root of the host tree, which is no '
            "device; name the device by its full path",
        ],
        {"cfg": {}},
    ),
    (
        "DT110",
        {"cfg": {"dtdev": ["/soc/dma@60000000", "/soc/iommu@50000000", "/soc"]}},
        [
            "a.cfg:5 error DT110 /soc/dma@60000000: lies inside /soc, which is in dtdev too; "
            "take /soc out",
            "a.cfg:5 error DT110 /soc/iommu@50000000: lies inside /soc, which is in dtdev too; "
            "take /soc out",
        ],
        {"cfg": {}},
    ),
    (
        "DT106",
        {"cfg": {"dtdev": ["/soc/iommu@50000000", "/soc"]}},
        [
            "a.cfg:5 error DT106 /soc/iommu@50000000: is an SMMU; the guest gets a vSMMU in its "
            "place; take it out of dtdev",
        ],
        {"cfg": {}},
    ),
    (
        "DT202",
        {"host": {"soc/iommu@51000000/reg": None}},
        [
            "host.dtb: error DT202 /soc/iommu@51000000: its reg does not translate to CPU "
            "addresses; give every bus above it ranges that cover its reg",
        ],
        {},
    ),
    (
        "DT205",
        {
            "host": {
                "soc/dma@60000000/reg": [1610612736, 1024],
                "soc/dma@61000000/reg": [1610613760, 1024],
                "soc/rng@60000800": {"reg": [1610614784, 4]},
            },
            "cfg": {},
        },
        [
            "a.cfg:5 error DT205 /soc/dma@60000000: shares a 4 KiB page of registers with "
            "/soc/dma@61000000, /soc/rng@60000800; /soc/rng@60000800: not behind an SMMU; keep "
            "the page to the host",
        ],
        {
            "host": {
                "soc/dma@60000000/reg": [1610612736, 2048],
                "soc/dma@61000000/reg": [1610614784, 2048],
            },
            "cfg": {"dtdev": ["/soc/dma@60000000", "/soc/dma@61000000"]},
        },
    ),
    (
        "DT205",
        {
            "host": {
                "soc/dma@60000000/reg": [1610612736, 2048],
                "soc/dma@61000000/reg": [1610614784, 2048],
            },
            "cfg": {},
        },
        [
            "a.cfg:5 error DT205 /soc/dma@60000000: shares a 4 KiB page of registers with "
            "/soc/dma@61000000; assign /soc/dma@61000000 too, or neither",
        ],
        {
            "host": {
                "soc/dma@60000000/reg": [1610612736, 2048],
                "soc/dma@61000000/reg": [1610614784, 2048],
            },
            "cfg": {"dtdev": ["/soc/dma@60000000", "/soc/dma@61000000"]},
        },
    ),
    (
        "DT302",
        {
            "host": {
                "soc/iommu@51000000/interrupts": [5, 4],
                "soc/iommu@51000000/interrupt-parent": [9],
                "soc/mux@53000000": {
                    "#interrupt-cells": [2],
                    "interrupt-controller": True,
                    "phandle": [9],
                },
            }
        },
        [
            "host.dtb: note DT302 /soc/iommu@51000000: 1 interrupts of /soc/mux@53000000: its "
            "controller (no compatible) is not the GIC; Xen has no interrupt of this SMMU then",
        ],
        {},
    ),
    (
        "DT406",
        {"host": {"soc/iommu@50000000/#iommu-cells": [2], "soc/dma@60000000/iommus": [3, 16, 0]}},
        [
            "host.dtb: error DT406 /soc/iommu@50000000: #iommu-cells is 2; an SMMUv3 has 1; give "
            "the IOMMU its #iommu-cells (1 for SMMUv3)",
        ],
        {},
    ),
]


@pytest.mark.parametrize(("rule", "bad", "expected", "good"), CASES)
def test_rule(rule, bad, expected, good):
    assert said(rule, bad) == expected
    assert said(rule, good) == []
