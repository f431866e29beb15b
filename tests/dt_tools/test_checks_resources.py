# SPDX-License-Identifier: BSD-2-Clause
"""Each rule about registers, interrupts and the rest of a configuration, broken and kept."""

from __future__ import annotations

import pytest

from tests.dt_tools.test_checks import said

DMA, DMB = "soc/dma@60000000", "soc/dma@61000000"
BOTH = ["/soc/dma@60000000", "/soc/dma@61000000"]
# Everything the device has, by hand.
ALL = {"iomem": ["0x60000,1"], "irqs": [132, 133]}
# A control block that two devices name, one of them disabled.
SYSCON = {
    "soc/sysmgr@62000000": {"reg": [0x62000000, 0x500], "phandle": [7]},
    f"{DMA}/test,sysmgr-syscon": [7, 0x4C, 0],
    f"{DMB}/test,sysmgr-syscon": [7, 0x48, 0],
    f"{DMB}/status": "disabled",
}
MANY = ["type=virtio,device22,transport=mmio"]

CASES = [
    (
        "DT111",
        {"cfg": {"iomem": ["0x60000,1", "0x70000,1"], "irqs": [132, 133]}},
        [
            "a.cfg:6 note DT111 /soc/uart@70000000: iomem maps 0x70000000+0x1000; dtdev does not "
            "name it; name it in dtdev, or leave it to the host",
        ],
        {"cfg": ALL},
    ),
    (
        "DT111",
        {"cfg": {"dtdev": None, **ALL}},
        [
            "a.cfg:5 warning DT111 /soc/dma@60000000: iomem maps 0x60000000+0x1000; dtdev does "
            "not name it; name it in dtdev, or leave it to the host",
        ],
        {"cfg": ALL},
    ),
    (
        "DT201",
        {"host": {f"{DMA}/clocks": [2, 2]}, "cfg": {}},
        [
            "a.cfg:5 warning DT201 /soc/dma@60000000: needs clocks (/clock), which the guest does"
            " not get; give the guest a partial tree with fixed-clock and the like, or a driver "
            "without",
        ],
        {"cfg": {}},
    ),
    (
        "DT201",
        {"host": {"supply": {"phandle": [7]}, f"{DMA}/vdd-supply": [7]}, "cfg": {}},
        [
            "a.cfg:5 note DT201 /soc/dma@60000000: needs vdd-supply (/supply), which the guest "
            "does not get; give the guest a partial tree with fixed-clock and the like, or a "
            "driver without",
        ],
        {"host": {f"{DMA}/vdd-supply": [0]}, "cfg": {}},
    ),
    (
        "DT202",
        {"host": {f"{DMA}/reg": [0x60000000, 0]}, "cfg": {}},
        [
            "a.cfg:5 error DT202 /soc/dma@60000000: its reg is not CPU addressable (bus address, "
            "ranges or size); assign a device whose reg translates to CPU addresses through every"
            " ranges",
        ],
        {"cfg": {}},
    ),
    (
        "DT202",
        {"host": {f"{DMA}/reg": None}, "cfg": {}},
        [
            "a.cfg:5 note DT202 /soc/dma@60000000: has no reg; the guest node has no registers; "
            "see the rule: vsmmu check --list DT202",
        ],
        {"cfg": {}},
    ),
    (
        "DT204",
        {"host": {f"{DMA}/reg": [0x60000000, 0x3500]}, "cfg": {}},
        [
            "a.cfg:5 note DT204 /soc/dma@60000000: 0x60000000+0x3500 needs pages 0x60000,0x4 "
            "(0x4000); neighbours in the pages: none; map the whole pages, 0x60000,0x4",
        ],
        {"host": {f"{DMA}/reg": [0x60000000, 0x4000]}, "cfg": {}},
    ),
    (
        "DT204",
        {
            "host": {
                f"{DMA}/reg": [0x60000000, 0x3500],
                "soc/rng@60003800": {"reg": [0x60003800, 0x100]},
            },
            "cfg": {**ALL, "iomem": ["0x60000,4"]},
        },
        [
            "a.cfg:6 note DT204 /soc/dma@60000000: 0x60000000+0x3500 needs pages 0x60000,0x4 "
            "(0x4000); neighbours in the pages: /soc/rng@60003800; map the whole pages, "
            "0x60000,0x4",
        ],
        {"cfg": ALL},
    ),
    (
        "DT205",
        {"cfg": ALL, "other": {"dtdev": ["/soc/dma@61000000"], "iomem": ["0x60000,1@0x5000"]}},
        [
            "a.cfg:6 error DT205 /: iomem maps 0x60000000+0x1000, which b.cfg maps too; give each"
            " page to one guest",
            "b.cfg:6 error DT205 /: iomem maps 0x60000000+0x1000, which a.cfg maps too; give each"
            " page to one guest",
        ],
        {"cfg": ALL, "other": {"dtdev": ["/soc/dma@61000000"], "iomem": ["0x61000,2"]}},
    ),
    (
        "DT207",
        {"cfg": {**ALL, "iomem": ["0x60000,1@0x40000"]}},
        [
            "a.cfg:6 error DT207 /: iomem 0x60000,0x1 at guest 0x40000000+0x1000 overlaps RAM "
            "bank 0 [0x40000000, 0x48000000); give it a free guest address, as in "
            '"0x60000,0x1@0x6000"',
        ],
        {"cfg": {**ALL, "iomem": ["0x60000,1@0x60000"]}},
    ),
    (
        "DT207",
        {"cfg": {**ALL, "iomem": ["0x60000,1@0x4050", "0x61000,1@3001", "0x61001,1@0x10000000"]}},
        [
            "a.cfg:6 error DT207 /: iomem 0x60000,0x1 at guest 0x4050000+0x1000 overlaps the "
            "vSMMU [0x4040000, 0x4080000); give it a free guest address, as in "
            '"0x60000,0x1@0x6000"',
            "a.cfg:6 error DT207 /: iomem 0x61000,0x1 at guest 0x3001000+0x1000 overlaps the GIC "
            "[0x3001000, 0x4020000); give it a free guest address, as in "
            '"0x61000,0x1@0x6001"',
            "a.cfg:6 error DT207 /: iomem 0x61001,0x1 at guest 0x10000000000+0x1000 lies beyond "
            "the guest's 40 address bits; give it a free guest address, as in "
            '"0x61001,0x1@0x6002"',
        ],
        {"cfg": {**ALL, "iomem": ["0x60000,1@0x5000", "0x61000,1@0x5001"]}},
    ),
    (
        "DT207",
        {"cfg": {**ALL, "iomem": ["0x60000,1@0x5000", "0x61000,1@0x5000"]}},
        [
            "a.cfg:6 error DT207 /: iomem 0x61000,0x1 at guest 0x5000000+0x1000 overlaps iomem "
            "0x60000,0x1 [0x5000000, 0x5001000); give it a free guest address, as in "
            '"0x61000,0x1@0x6000"',
        ],
        {"cfg": {**ALL, "iomem": ["0x60000,1@0x5000", "0x61000,1@0x5001"]}},
    ),
    (
        "DT208",
        {
            "host": {
                "reserved-memory/pool": {"phandle": [7]},
                f"{DMA}/memory-region": [7],
                "soc/dma-ranges": [0, 0x80000000, 0x40000000],
            },
            "cfg": {},
        },
        [
            "a.cfg:5 warning DT208 /soc/dma@60000000: memory-region (/reserved-memory/pool) is "
            "not the guest's; the device has to work without reserved memory",
            "a.cfg:5 note DT208 /soc/dma@60000000: dma-ranges of /soc is not carried into the "
            "guest; the device has to reach the guest's addresses as they are",
        ],
        {"cfg": {}},
    ),
    (
        "DT209",
        {"host": SYSCON, "cfg": {**ALL, "iomem": ["0x60000,1", "0x62000,1"]}},
        [
            "a.cfg:6 error DT209 /soc/sysmgr@62000000: iomem maps 0x62000000+0x1000, shared "
            "(system control): 2 nodes name it: /soc/dma@60000000, /soc/dma@61000000; leave a "
            "shared control block to the host",
        ],
        {"host": SYSCON, "cfg": ALL},
    ),
    (
        "DT209",
        {
            "host": {
                f"{DMA}/phandle": [7],
                f"{DMA}/#dma-cells": [1],
                "soc/uart@70000000/dmas": [7, 0],
            },
            "cfg": {},
        },
        [
            "a.cfg:5 warning DT209 /soc/dma@60000000: is shared: 1 node names it: "
            "/soc/uart@70000000; its users lose it: give them to the same guest, or leave it to "
            "the host",
        ],
        {
            "host": {
                f"{DMA}/phandle": [7],
                f"{DMA}/#dma-cells": [1],
                "soc/uart@70000000": {"dmas": [7, 0], "status": "disabled"},
            },
            "cfg": {},
        },
    ),
    (
        "DT209",
        {
            "host": {
                f"{DMA}/phandle": [7],
                f"{DMA}/#clock-cells": [1],
                f"{DMB}/clocks": [7, 0],
            },
            "cfg": {},
        },
        [
            "a.cfg:5 warning DT209 /soc/dma@60000000: is shared (clocks): 1 node names it: "
            "/soc/dma@61000000; its users lose it: give them to the same guest, or leave it to "
            "the host",
        ],
        {
            "host": {f"{DMA}/phandle": [7], f"{DMA}/#clock-cells": [1], f"{DMB}/clocks": [7, 0]},
            "cfg": {"dtdev": BOTH},
        },
    ),
    (
        "DT212",
        {"cfg": {"irqs": list(range(1025))}},
        [
            "a.cfg:6 error DT212 /: 1025 irqs entries, more than 1024; the rest is not looked at;"
            " join adjacent ranges",
        ],
        {"cfg": ALL},
    ),
    (
        "DT215",
        {"cfg": {"irqs": [132, 133]}},
        [
            "a.cfg:5 error DT215 /soc/dma@60000000: iomem lacks 0x60000000+0x1000; add "
            '"0x60000,0x1"',
        ],
        {"cfg": ALL},
    ),
    (
        "DT215",
        {"cfg": {"dtdev": ["/soc/dma@61000000"], "iomem": ["0x61000,1"], "irqs": [134]}},
        [
            "a.cfg:6 error DT215 /soc/dma@61000000: iomem lacks 0x61001000+0x1000; add "
            '"0x61001,0x1"',
        ],
        {"cfg": {"dtdev": ["/soc/dma@61000000"], "iomem": ["0x61001,1", "61000,1"], "irqs": [134]}},
    ),
    (
        "DT216",
        {"cfg": {**ALL, "iomem": ["0x60000,1", "0x51000,1", "0x10000,1", "0x80000,1@0x6000"]}},
        [
            "a.cfg:6 error DT216 /: iomem maps 0x80000000+0x1000, in RAM of the host "
            "0x80000000+0x40000000; map device registers only",
            "a.cfg:6 error DT216 /gic@10000000: iomem maps 0x10000000+0x1000, registers of the "
            "interrupt controller; take it out",
            "a.cfg:6 error DT216 /soc/iommu@51000000: iomem maps 0x51000000+0x1000, registers of "
            "an SMMU; take it out",
        ],
        {"cfg": ALL},
    ),
    (
        "DT216",
        {
            "host": {
                "reserved-memory": {
                    "#address-cells": [2],
                    "#size-cells": [2],
                    "ranges": True,
                    "pool@90000000": {"reg": [0, 0x90000000, 0, 0x1000]},
                },
            },
            "cfg": {**ALL, "iomem": ["0x60000,1", "0x90000,1@0x6000"]},
        },
        [
            "a.cfg:6 warning DT216 /reserved-memory/pool@90000000: iomem maps 0x90000000+0x1000, "
            "memory reserved as /reserved-memory/pool@90000000; map it only if it is kept for "
            "this guest",
        ],
        {"cfg": ALL},
    ),
    (
        "DT217",
        {"cfg": {**ALL, "device_tree": "p.dtb"}},
        [
            'a.cfg:8 note DT217 /: device_tree = "p.dtb" cannot be read here; give the partial '
            "tree as an argument",
        ],
        {"partial": {}},
    ),
    (
        "DT301",
        {"cfg": {**ALL, "irqs": [132]}},
        [
            "a.cfg:7 error DT301 /soc/dma@60000000: has SPIs 132..133 (2), irqs has 1 of them: "
            "missing 133; add 133 to irqs",
        ],
        {"cfg": ALL},
    ),
    (
        "DT301",
        {"cfg": {**ALL, "irqs": None}},
        [
            "a.cfg:5 error DT301 /soc/dma@60000000: has SPIs 132..133 (2), irqs has none of them;"
            " add 132, 133 to irqs",
        ],
        {"cfg": {}},
    ),
    (
        "DT301",
        {"cfg": {**ALL, "irqs": [132, 133, 142, 200, 201]}},
        [
            "a.cfg:7 warning DT301 /: irqs has 200..201, which no node of the host tree has; take"
            " it out of irqs",
            "a.cfg:7 warning DT301 /soc/uart@70000000: irqs has 142, which is "
            "/soc/uart@70000000's; no device of the guest has it; take 142 out, or assign "
            "/soc/uart@70000000",
        ],
        {"cfg": ALL},
    ),
    (
        "DT301",
        {"cfg": {"dtdev": None, "iomem": ["0x60000,1"], "irqs": [133]}},
        [
            "a.cfg:6 error DT301 /soc/dma@60000000: has SPIs 132..133 (2), irqs has 1 of them: "
            "missing 132; add 132 to irqs",
        ],
        {"cfg": {"dtdev": None, **ALL}},
    ),
    (
        "DT301",
        {"cfg": {**ALL, "irqs": [132, 133, 142]}},
        [
            "a.cfg:7 warning DT301 /soc/uart@70000000: irqs has 142, which is "
            "/soc/uart@70000000's; no device of the guest has it; take 142 out, or assign "
            "/soc/uart@70000000",
        ],
        {"cfg": {"iomem": ["0x60000,1", "0x70000,1"], "irqs": [132, 133, 142]}},
    ),
    (
        "DT303",
        {"cfg": {**ALL, "irqs": [31, 33, 132, 133, 1024]}},
        [
            "a.cfg:7 error DT303 /: irq 1024 is not an SPI (32 to 991); write the SPI's number + "
            "32",
            "a.cfg:7 error DT303 /: irq 31 is not an SPI (32 to 991); write the SPI's number + 32",
            "a.cfg:7 error DT303 /: irq 33 is the vSMMU's SPI in the guest; assign a device with "
            "another interrupt",
        ],
        {"cfg": ALL},
    ),
    (
        "DT303",
        {
            "host": {f"{DMA}/interrupts": [0, 0, 4, 0, 2, 4]},
            "cfg": {"vuart": "sbsa_uart", "virtio": MANY, "irqs": [32, 34], "iomem": ["60000,1"]},
        },
        [
            "a.cfg:8 error DT303 /: irq 32 is the pl011's SPI in the guest; assign a device with "
            "another interrupt",
            "a.cfg:8 error DT303 /: irq 34 is a virtio device's SPI in the guest; assign a device"
            " with another interrupt",
        ],
        {
            "host": {f"{DMA}/interrupts": [0, 0, 4, 0, 2, 4]},
            "cfg": {"irqs": [32, 34], "iomem": ["60000,1"]},
        },
    ),
    (
        "DT304",
        {"cfg": {"virtio": MANY * 12}},
        [
            "a.cfg:6 error DT304 /: Ran out of reserved range for Virtio MMIO IRQ 45; keep 11 "
            "virtio devices",
        ],
        {"cfg": {"virtio": MANY * 11}},
    ),
    (
        "DT305",
        {"cfg": {"nr_spis": 2}},
        [
            "a.cfg:6 note DT305 /: nr_spis 2 raised to 102, the number the guest's devices need; "
            "see the rule: vsmmu check --list DT305",
        ],
        {"cfg": {"nr_spis": 102}},
    ),
    (
        "DT305",
        {"cfg": {"nr_spis": 961}},
        [
            "a.cfg:6 error DT305 /: nr_spis 961, a guest has 960 SPIs at most; lower nr_spis",
        ],
        {"cfg": {"nr_spis": 960}},
    ),
    (
        "DT307",
        {"host": {"soc/uart@70000000/interrupts": [0, 100, 4]}, "cfg": {}},
        [
            "a.cfg:5 warning DT307 /soc/dma@60000000: interrupt 132 is /soc/uart@70000000's too; "
            "assign these devices together",
        ],
        {"cfg": {}},
    ),
    (
        "DT307",
        {"cfg": ALL, "other": {"dtdev": ["/soc/dma@61000000"], "irqs": [134, 133]}},
        [
            "a.cfg:7 error DT307 /: irqs has 133, which b.cfg has too; route each interrupt to "
            "one guest",
            "b.cfg:6 error DT307 /: irqs has 133, which a.cfg has too; route each interrupt to "
            "one guest",
        ],
        {"cfg": ALL, "other": {"dtdev": ["/soc/dma@61000000"], "irqs": [134]}},
    ),
    (
        "DT509",
        {"cfg": {"dtdev": None}},
        [
            'a.cfg:4 note DT509 /: viommu = "smmuv3", and dtdev is empty; name the devices in '
            "dtdev",
        ],
        {"cfg": {"dtdev": None, "viommu": None}},
    ),
    (
        "DT601",
        {"cfg": {"vcpus": 129}},
        [
            "a.cfg:6 error DT601 /cpus: 129 vCPUs, a GICv3 guest has 128 at most; lower vcpus "
            "and maxvcpus",
        ],
        {"cfg": {"vcpus": 128}},
    ),
    (
        "DT606",
        {"cfg": {"acpi": 1}},
        [
            "a.cfg:6 error DT606 /chosen: acpi = 1: libxl's tree for it has /chosen/rng-seed "
            "behind a child node; leave acpi out; the guest has a device tree",
        ],
        {"cfg": {"acpi": 0}},
    ),
    (
        "DT607",
        {"cfg": {"gic_version": "v2"}},
        [
            "a.cfg:6 error DT607 /gic@10000000: is a GICv3, which runs no guest with a GICv2; "
            'use gic_version = "v3"',
        ],
        {"cfg": {"gic_version": "v3"}},
    ),
    (
        "DT608",
        {"cfg": {"virtio": ["type=virtio,device22,transport=mmio,backend=DomD"]}},
        [
            "a.cfg:6 error DT608 /: the id of the domain DomD, which virtio grants name, is in "
            "no tree; say it: --domid DomD=ID",
        ],
        {"cfg": {"virtio": ["type=virtio,device22,transport=mmio,backend=2"]}},
    ),
    (
        "DT609",
        {"cfg": {"altp2m": "external"}},
        [
            "a.cfg:6 error DT609 /: altp2m is not for Arm: Xen refuses the domain; leave it out",
        ],
        {"cfg": {"altp2m": "disabled"}},
    ),
    (
        "DT602",
        {"cfg": {"memory": 0}},
        [
            "a.cfg:3 error DT602 /memory: memory = 0 MiB does not fit the RAM banks below 40 "
            "address bits; set memory between 1 MiB and the banks' sum",
        ],
        {"cfg": {"memory": 1}},
    ),
    (
        "DT602",
        {"cfg": {"memory": 2000000}},
        [
            "a.cfg:3 error DT602 /memory: memory = 2000000 MiB does not fit the RAM banks below "
            "40 address bits; set memory between 1 MiB and the banks' sum",
        ],
        {"cfg": {"memory": 4000}},
    ),
    (
        "DT602",
        {"cfg": {"memory": 128, "maxmem": 64}},
        [
            "a.cfg:6 warning DT602 /memory: maxmem = 64 is below memory = 128: it wins; raise "
            "maxmem or leave it out",
        ],
        {"cfg": {"memory": 64, "maxmem": 64}},
    ),
    (
        "DT602",
        {"cfg": {"memory": 128, "maxmem": 256}},
        [
            "a.cfg:3 error DT602 /memory: maxmem = 256 is more than memory = 128: the domain runs "
            "out of memory while it is built; leave maxmem out, or lower it",
        ],
        {"cfg": {"memory": 256, "maxmem": 256}},
    ),
    (
        "DT604",
        {"cfg": {"passthrough": "sync_pt"}},
        [
            'a.cfg:6 error DT604 /: passthrough = "sync_pt" is not supported on Arm; use '
            '"share_pt" or leave it out',
        ],
        {"cfg": {"passthrough": "share_pt"}},
    ),
    (
        "DT604",
        {"cfg": {"passthrough": "disabled"}},
        [
            'a.cfg:6 error DT604 /: passthrough = "disabled" with devices in dtdev; take one of '
            "the two out",
        ],
        {"cfg": {"passthrough": "enabled"}},
    ),
    (
        "DT604",
        {"cfg": {"passthrough": "disabled", "dtdev": None}},
        [
            'a.cfg:5 error DT604 /: passthrough = "disabled" with viommu = "smmuv3"; take one of '
            "the two out",
        ],
        {"cfg": {"passthrough": "disabled", "dtdev": None, "viommu": None}},
    ),
    (
        "DT206",
        {"cfg": {"iomem": ["0x60000000,0x1000"], "irqs": [132, 133]}},
        [
            "a.cfg:6 error DT206 /: iomem 0x60000000,0x1000: 0x60000000 looks like an address of "
            "/soc/dma@60000000; its frame is 0x60000; write frames: 0x60000,0x1",
        ],
        {"cfg": {"iomem": ["0x60000,1"], "irqs": [132, 133]}},
    ),
    (
        "DT207",
        {"cfg": {"iomem": ["0x60000,1", "0x60000,1"], "irqs": [132, 133]}},
        [
            "a.cfg:6 warning DT207 /: iomem lists 0x60000,0x1 at guest 0x60000000+0x1000 twice; "
            "list it once",
        ],
        {"cfg": {"iomem": ["0x60000,1"], "irqs": [132, 133]}},
    ),
    (
        "DT215",
        {"cfg": {"dtdev": ["/soc/dma@61000000"], "irqs": [134], "iomem": ["0x61001,1"]}},
        ['a.cfg:7 error DT215 /soc/dma@61000000: iomem lacks 0x61000000+0x1000; add "0x61000,0x1"'],
        {"cfg": {"dtdev": ["/soc/dma@61000000"], "irqs": [134], "iomem": ["0x61000,2"]}},
    ),
    (
        "DT301",
        {"cfg": {"iomem": ["0x60000,1"], "irqs": [132, 133, 132]}},
        ["a.cfg:7 warning DT301 /: irqs lists 132 more than once; list each once"],
        {"cfg": {"iomem": ["0x60000,1"], "irqs": [132, 133]}},
    ),
    (
        "DT605",
        {"cfg": {}, "other": {"name": "a", "dtdev": ["/soc/dma@61000000"]}},
        [
            'a.cfg:1 error DT605 /: name = "a" is b.cfg\'s too; give each guest a name of its own',
            'b.cfg:1 error DT605 /: name = "a" is a.cfg\'s too; give each guest a name of its own',
        ],
        {"cfg": {}, "other": {"dtdev": ["/soc/dma@61000000"]}},
    ),
]


@pytest.mark.parametrize(("rule", "bad", "expected", "good"), CASES)
def test_rule(rule, bad, expected, good):
    assert said(rule, bad) == expected
    assert said(rule, good) == []
