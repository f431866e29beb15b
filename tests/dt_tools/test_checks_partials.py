# SPDX-License-Identifier: BSD-2-Clause
"""Each rule about partial trees, broken and kept: with a guest (p.dtb), for dom0less (q.dtb)."""

from __future__ import annotations

import pytest

from dt_tools.checks import check
from dt_tools.errors import Refusal
from dt_tools.guest import build_guest
from dt_tools.platform import Platform
from tests.dt_tools.test_checks import (
    BY_HAND,
    HOST,
    PARTIAL,
    diagnoses,
    edited,
    guest_of,
    said,
    tree_of,
)

DMA, DMB = "soc/dma@60000000", "soc/dma@61000000"
HERE = "passthrough/dma@60000000"
XEN = {
    f"{HERE}/xen,path": "/soc/dma@60000000",
    f"{HERE}/xen,reg": [0, 0x60000000, 0, 0x1000, 0, 0x60000000],
}
BUS = {
    "compatible": "simple-bus",
    "#address-cells": [1],
    "#size-cells": [1],
    "ranges": [0, 0x62000000, 0x100000],
    "dma@1000": {"reg": [0x1000, 0x1000], "iommus": [4, 0x60]},
}

CASES = [
    (
        "DT101",
        {"loose": {**XEN, f"{HERE}/xen,force-assign-without-iommu": [1]}},
        [
            "q.dtb: warning DT101 /passthrough/dma@60000000: xen,force-assign-without-iommu: its "
            "DMA is not contained; assign a device behind an SMMU",
        ],
        {"loose": XEN},
    ),
    (
        "DT102",
        {"loose": {**XEN, f"{HERE}/xen,path": "/amba/dma@60000000"}},
        [
            "q.dtb: error DT102 /passthrough/dma@60000000: xen,path /amba/dma@60000000: no such "
            "node in the host tree; nearest: /soc/dma@60000000",
        ],
        {"loose": XEN},
    ),
    (
        "DT201",
        {"host": {f"{DMA}/clocks": [2]}, "partial": {}},
        [
            "p.dtb: note DT201 /passthrough/dma@60000000: has no clocks, and /soc/dma@60000000 "
            "has; put stand-ins such as a fixed-clock into /passthrough if the driver needs them",
        ],
        {
            "host": {f"{DMA}/clocks": [2]},
            "partial": {
                f"{HERE}/clocks": [5],
                "passthrough/clock": {"#clock-cells": [0], "phandle": [5]},
            },
        },
    ),
    (
        "DT203",
        {"loose": {f"{HERE}/xen,reg": XEN[f"{HERE}/xen,reg"]}},
        [
            "q.dtb: error DT203 /passthrough/dma@60000000: has xen,reg but no xen,path; name the "
            "host's node in xen,path",
        ],
        {"loose": XEN},
    ),
    (
        "DT203",
        {"loose": {f"{HERE}/xen,path": "/soc/dma@60000000"}},
        [
            "q.dtb: error DT203 /passthrough/dma@60000000: has xen,path but no xen,reg; give each"
            " register's host address, size and guest address in xen,reg",
        ],
        {"loose": XEN},
    ),
    (
        "DT203",
        {"partial": {f"{HERE}/xen,path": "/soc/dma@60000000"}},
        [
            "p.dtb: note DT203 /passthrough/dma@60000000: has xen,path but no xen,reg; give each "
            "register's host address, size and guest address in xen,reg",
        ],
        {"partial": {}},
    ),
    (
        "DT204",
        {"loose": {**XEN, f"{HERE}/xen,reg": [0, 0x60000000, 0, 0x800, 0, 0x60000000]}},
        [
            "q.dtb: error DT204 /passthrough/dma@60000000: xen,reg 0x60000000+0x800 at guest "
            "0x60000000 is not whole 4 KiB pages; round it to pages, and look who else is in them",
        ],
        {"loose": XEN},
    ),
    (
        "DT206",
        {"loose": {**XEN, f"{HERE}/xen,reg": [0x60000000, 0x1000, 0x60000000]}},
        [
            "q.dtb: error DT206 /passthrough/dma@60000000: xen,reg has 12 bytes, not <host size "
            "guest> in the 2 + 2 cells of /passthrough; write it in the cells of /passthrough, 1 "
            "or 2 each",
        ],
        {"loose": XEN},
    ),
    (
        "DT206",
        {
            "host": {"soc/bus@62000000": BUS},
            "loose": {
                "passthrough/dma@1000": {
                    "xen,path": "/soc/bus@62000000/dma@1000",
                    "xen,reg": [0, 0x1000, 0, 0x1000, 0, 0x62001000],
                }
            },
        },
        [
            "q.dtb: error DT206 /passthrough/dma@1000: xen,reg has bus address 0x1000; its CPU "
            "address is 0x62001000; its registers: 0x62001000+0x1000",
        ],
        {
            "host": {"soc/bus@62000000": BUS},
            "loose": {
                "passthrough/dma@1000": {
                    "xen,path": "/soc/bus@62000000/dma@1000",
                    "xen,reg": [0, 0x62001000, 0, 0x1000, 0, 0x1000],
                }
            },
        },
    ),
    (
        "DT206",
        {"partial": {f"{HERE}/reg": [0x60000000, 0x1000]}},
        [
            "p.dtb: error DT206 /passthrough/dma@60000000: reg has 8 bytes, not entries of 2 + 2 "
            "cells; write it in the cells of /passthrough",
        ],
        {"partial": {}},
    ),
    (
        "DT206",
        {"partial": {f"{HERE}/reg": [0x60000000, 0x1000, 0]}},
        [
            "p.dtb: error DT206 /passthrough/dma@60000000: reg has 12 bytes, not entries of 2 + 2"
            " cells; write it in the cells of /passthrough",
        ],
        {"partial": {}},
    ),
    (
        "DT206",
        {
            "partial": {f"{HERE}/reg": [0, 0x5000000, 0, 0x1000]},
            "cfg": {"iomem": ["0x60000,1", "0x70000,1@0x5000"]},
        },
        [
            "p.dtb: error DT206 /passthrough/dma@60000000: reg 0x5000000+0x1000 is host "
            "0x70000000 by iomem, no register of /soc/dma@60000000; its registers: "
            "0x60000000+0x1000",
        ],
        {
            "partial": {f"{HERE}/reg": [0, 0x5000000, 0, 0x1000]},
            "cfg": {"iomem": ["0x60000,1@0x5000"]},
        },
    ),
    (
        "DT207",
        {"partial": {f"{HERE}/reg": [0, 0x40000000, 0, 0x1000]}, "cfg": {"iomem": None}},
        [
            "p.dtb: error DT207 /passthrough/dma@60000000: reg 0x40000000+0x1000 overlaps RAM "
            "bank 0 [0x40000000, 0x48000000); a free guest address is 0x6000000; iomem needs the "
            "same @GFN, 0x6000",
        ],
        {"partial": {}, "cfg": {"iomem": None}},
    ),
    (
        "DT208",
        {"partial": {f"{HERE}/dma-coherent": None}},
        [
            "p.dtb: warning DT208 /passthrough/dma@60000000: is not dma-coherent, and "
            "/soc/dma@60000000 is; add dma-coherent",
        ],
        {"partial": {}},
    ),
    (
        "DT208",
        {"host": {f"{DMA}/dma-coherent": None}, "partial": {}},
        [
            "p.dtb: error DT208 /passthrough/dma@60000000: is dma-coherent, and /soc/dma@60000000"
            " is not; take dma-coherent out",
        ],
        {"host": {f"{DMA}/dma-coherent": None}, "partial": {f"{HERE}/dma-coherent": None}},
    ),
    (
        "DT208",
        {
            "host": {"reserved-memory/pool": {"phandle": [7]}, f"{DMA}/memory-region": [7]},
            "partial": {},
        },
        [
            "p.dtb: warning DT208 /passthrough/dma@60000000: has no memory-region, and "
            "/soc/dma@60000000 has; the device has to work without reserved memory",
        ],
        {
            "host": {"reserved-memory/pool": {"phandle": [7]}, f"{DMA}/memory-region": [7]},
            "partial": {f"{HERE}/memory-region": [8], "passthrough/pool": {"phandle": [8]}},
        },
    ),
    (
        "DT211",
        {"loose": {"passthrough": None}},
        [
            "q.dtb: error DT211 /passthrough: is missing in the partial tree; name the node "
            "exactly /passthrough",
        ],
        {"loose": {}},
    ),
    (
        "DT211",
        {"loose": {"passthrough@0": {}}},
        [
            "q.dtb: error DT211 /passthrough: is /passthrough@0 in the partial tree; name the "
            "node exactly /passthrough",
        ],
        {"loose": {}},
    ),
    (
        "DT213",
        {"partial": {"passthrough/ranges": None, "passthrough/compatible": "bus"}},
        [
            'p.dtb: warning DT213 /passthrough: lacks compatible = "simple-bus", ranges: a guest '
            "will not probe what is in it; add what is missing",
        ],
        {"partial": {}},
    ),
    (
        "DT301",
        {"partial": {"passthrough/rtc": {"interrupts": [0, 2, 4]}}},
        [
            "p.dtb: error DT301 /passthrough/rtc: has interrupts 34 (SPI + 32), which irqs does "
            "not have; add 34 to irqs",
        ],
        {
            "partial": {"passthrough/rtc": {"interrupts": [0, 2, 4]}},
            "cfg": {"irqs": [132, 133, 34]},
        },
    ),
    (
        "DT301",
        {"partial": {f"{HERE}/interrupts": [0, 100, 4]}},
        [
            "p.dtb: warning DT301 /passthrough/dma@60000000: lacks interrupts 133 (SPI + 32) of "
            "/soc/dma@60000000; copy the host node's interrupts",
        ],
        {"partial": {}},
    ),
    (
        "DT301",
        {"partial": {f"{HERE}/interrupts": [0, 100, 4, 0, 101, 4, 0, 110, 4]}},
        [
            "p.dtb: error DT301 /passthrough/dma@60000000: has interrupts 142 (SPI + 32), which "
            "/soc/dma@60000000 has not; copy the host node's interrupts",
        ],
        {"partial": {}},
    ),
    (
        "DT302",
        {"partial": {f"{HERE}/interrupt-parent": [1]}},
        [
            "p.dtb: error DT302 /passthrough/dma@60000000: interrupt-parent <0x1> is "
            "/gic@10000000 of the host tree, not in the partial; write <0 SPI flags> under the "
            "guest's GIC, phandle 65000",
        ],
        {"partial": {f"{HERE}/interrupt-parent": None}},
    ),
    (
        "DT302",
        {"partial": {f"{HERE}/interrupts": [0, 100]}},
        [
            "p.dtb: error DT302 /passthrough/dma@60000000: interrupts has 8 bytes, not the GIC's "
            "specifiers of 3 cells; write <0 SPI flags> under the guest's GIC, phandle 65000",
        ],
        {"partial": {}},
    ),
    (
        "DT302",
        {"partial": {f"{HERE}/interrupts-extended": [0x55, 0, 100, 4]}},
        [
            "p.dtb: error DT302 /passthrough/dma@60000000: interrupts-extended: <0x55> is no "
            "controller in the guest; write <0 SPI flags> under the guest's GIC, phandle 65000",
        ],
        {"partial": {f"{HERE}/interrupts-extended": [65000, 0, 100, 4, 65000, 0, 101, 4]}},
    ),
    (
        "DT302",
        {"loose": {f"{HERE}/interrupt-parent": [0xFDE9]}},
        [
            "q.dtb: error DT302 /passthrough/dma@60000000: interrupt-parent <0xfde9> is no node "
            "of the partial tree; write <0 SPI flags> under the guest's GIC, phandle 65000",
        ],
        {"loose": {f"{HERE}/interrupt-parent": [9], "gic": {"phandle": [9]}}},
    ),
    (
        "DT401",
        {"partial": {f"{HERE}/clocks": [2], f"{HERE}/resets": [0x55]}},
        [
            "p.dtb: error DT401 /passthrough/dma@60000000: clocks[0]: <0x2> is /clock of the host"
            " tree, not in the partial; put the provider into /passthrough, or drop the property",
            "p.dtb: error DT401 /passthrough/dma@60000000: resets[0]: <0x55> is no node of the "
            "partial tree; put the provider into /passthrough, or drop the property",
        ],
        {
            "partial": {
                f"{HERE}/clocks": [5],
                "passthrough/clock": {"#clock-cells": [0], "phandle": [5]},
            }
        },
    ),
    (
        "DT401",
        {"loose": {f"{HERE}/clocks": [5], "clock": {"#clock-cells": [0], "phandle": [5]}}},
        [
            "q.dtb: error DT401 /passthrough/dma@60000000: clocks[0]: <0x5> is /clock, which is "
            "not copied into the guest; put the provider into /passthrough, or drop the property",
        ],
        {"loose": {}},
    ),
    (
        "DT402",
        {"loose": {f"{HERE}/phandle": [65002], "passthrough/clock": {"phandle": [65010]}}},
        [
            "q.dtb: error DT402 /passthrough/clock: phandle 65010 is the toolstack's to give; use 1"
            " to 64999",
            "q.dtb: error DT402 /passthrough/dma@60000000: phandle 65002 is reserved for the "
            "vSMMU; use 1 to 64999",
        ],
        {"loose": {f"{HERE}/phandle": [64999]}},
    ),
    (
        "DT403",
        {"loose": {f"{HERE}/phandle": [5], "passthrough/clock": {"phandle": [5]}}},
        [
            "q.dtb: error DT403 /passthrough/clock: phandle 0x5 is /passthrough/dma@60000000's "
            "already; give each node its own phandle",
        ],
        {"loose": {f"{HERE}/phandle": [5], "passthrough/clock": {"phandle": [6]}}},
    ),
    (
        "DT404",
        {"loose": {f"{HERE}/phandle": [0]}},
        [
            "q.dtb: error DT404 /passthrough/dma@60000000: phandle 0x0 is no phandle; use 1 to "
            "64999",
        ],
        {"loose": {f"{HERE}/phandle": [1]}},
    ),
    (
        "DT405",
        {"partial": {f"{HERE}/iommus": [3, 0x10, 3]}},
        [
            "p.dtb: error DT405 /passthrough/dma@60000000: iommus has 12 bytes, not pairs of "
            "cells; write <phandle StreamID> pairs",
        ],
        {
            "partial": {
                f"{HERE}/iommus": [7, 0x10, 0, 7, 0x11, 0],
                "smmu": {"phandle": [7], "#iommu-cells": [2]},
            }
        },
    ),
    (
        "DT501",
        {"partial": {f"{HERE}/iommus": [4, 0x10, 4, 0x11]}},
        [
            "p.dtb: error DT501 /passthrough/dma@60000000: iommus says (/soc/iommu@51000000, "
            "0x10), the host's /soc/dma@60000000 has (/soc/iommu@50000000, 0x10), "
            "(/soc/iommu@50000000, 0x11); copy the host node's iommus unchanged",
        ],
        {"partial": {}},
    ),
    (
        "DT501",
        {"partial": {f"{HERE}/iommus": [3, 0x10, 3, 0x12]}},
        [
            "p.dtb: error DT501 /passthrough/dma@60000000: iommus says (/soc/iommu@50000000, "
            "0x12), the host's /soc/dma@60000000 has (/soc/iommu@50000000, 0x10), "
            "(/soc/iommu@50000000, 0x11); copy the host node's iommus unchanged",
        ],
        {"partial": {f"{HERE}/iommus": [0x55, 0x10, 0x55, 0x11]}},
    ),
    (
        "DT501",
        {"partial": {"passthrough/other": {"iommus": [4, 0x20]}}},
        [
            "p.dtb: error DT501 /passthrough/other: iommus <0x4 0x20> is no stream of a device in "
            "dtdev; name the node like its host node, or give xen,path, and list it in dtdev",
        ],
        {"partial": {}},
    ),
    (
        "DT501",
        {"loose": {f"{HERE}/iommus": [0x55, 0x10]}},
        [
            "q.dtb: error DT501 /passthrough/dma@60000000: iommus <0x55 0x10>: no host device is "
            "known for it; name the node like its host node, or give xen,path, and list it in "
            "dtdev",
        ],
        {"loose": {}},
    ),
    (
        "DT504",
        {"partial": {f"{HERE}/iommus": [3, 0x11]}},
        [
            "p.dtb: error DT504 /passthrough/dma@60000000: has 1 of the 2 streams of "
            "/soc/dma@60000000: missing 0x10; copy the host node's iommus unchanged",
        ],
        {"partial": {}},
    ),
    (
        "DT504",
        {"partial": {f"{HERE}/iommus": [3, 0x11, 3, 0x10]}},
        [
            "p.dtb: note DT504 /passthrough/dma@60000000: has the streams of /soc/dma@60000000 in"
            " another order; keep the host's order",
        ],
        {"partial": {}},
    ),
    (
        "DT504",
        {"partial": {f"{HERE}/iommus": None}},
        [
            "p.dtb: warning DT504 /passthrough/dma@60000000: has 0 of the 2 streams of "
            "/soc/dma@60000000: missing 0x10, 0x11; copy the host node's iommus unchanged",
        ],
        {"partial": {f"{HERE}/iommus": None}, "cfg": {"viommu": None}},
    ),
    (
        "DT505",
        {"partial": {f"{HERE}/iommu-map": [0, 3, 0, 1]}},
        [
            "a.cfg:5 error DT505 /passthrough/dma@60000000: iommu-map: row 0x0+0x1 to 0x0: 0x0 of "
            "/soc/iommu@50000000 is no stream of this guest; cut the row to the ids of the "
            "guest's devices",
        ],
        {"partial": {}},
    ),
    (
        "DT505",
        {"loose": {f"{HERE}/iommu-map": [0, 3, 0, 1]}},
        [
            "q.dtb: error DT505 /passthrough/dma@60000000: has an iommu-map, which Xen does not "
            "rewrite for a dom0less guest; assign devices with iommus",
        ],
        {"partial": {f"{HERE}/iommu-map": [0, 3, 0x10, 2]}},
    ),
    (
        "DT508",
        {"partial": {}, "cfg": {"viommu": None}},
        [
            'p.dtb: warning DT508 /passthrough/dma@60000000: has iommus, but viommu = "none": the'
            ' guest has no SMMU for it; set viommu = "smmuv3", or drop iommus',
        ],
        {"partial": {}},
    ),
    (
        "DT108",
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 1610612736],
                "passthrough/again": {
                    "xen,path": "/soc/dma@60000000",
                    "xen,reg": [0, 1610612736, 0, 4096, 0, 1610612736],
                },
            }
        },
        [
            "q.dtb: error DT108 /passthrough/again: xen,path /soc/dma@60000000 is "
            "/passthrough/dma@60000000's too; describe a device by one node",
        ],
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 1610612736],
            }
        },
    ),
    (
        "DT112",
        {"partial": {}, "cfg": {"dtdev": ["/soc/dma@60000000", "/soc/dma@61000000"]}},
        [
            "a.cfg:5 warning DT112 /soc/dma@61000000: p.dtb has no node for it; describe it "
            'there, with xen,path = "/soc/dma@61000000", or take it out of dtdev',
        ],
        {
            "partial": {"passthrough/other": {"reg": [0, 1627389952, 0, 8192]}},
            "cfg": {"dtdev": ["/soc/dma@60000000", "/soc/dma@61000000"]},
        },
    ),
    (
        "DT113",
        {"partial": {"passthrough/dma@60000000/xen,path": "/soc/dma@61000000"}},
        [
            "p.dtb: error DT113 /passthrough/dma@60000000: stands for /soc/dma@61000000, which "
            "the guest is not given: dtdev does not name it; add /soc/dma@61000000 to dtdev, or "
            "take the node out",
        ],
        {"partial": {"passthrough/dma@60000000/xen,path": "/soc/dma@60000000"}},
    ),
    (
        "DT113",
        {
            "partial": {"passthrough/dma@60000000/xen,path": "/soc/dma@60000000"},
            "cfg": {"dtdev": None, "irqs": None},
        },
        [
            "p.dtb: error DT113 /passthrough/dma@60000000: stands for /soc/dma@60000000, which "
            "is in iomem, but not in dtdev; add /soc/dma@60000000 to dtdev, or take the node out",
        ],
        {"partial": {"passthrough/dma@60000000/xen,path": "/soc/dma@60000000"}},
    ),
    (
        "DT206",
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 1610612736],
                "passthrough/#address-cells": [1],
                "passthrough/#size-cells": [1],
                "passthrough/dma@60000000/reg": [1610612736, 4096],
            }
        },
        [
            "q.dtb: error DT206 /passthrough/dma@60000000: xen,reg is in 2 + 2 cells; "
            "/passthrough has 1 + 1; write it in the cells of /passthrough",
        ],
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [1610612736, 4096, 1610612736],
                "passthrough/#address-cells": [1],
                "passthrough/#size-cells": [1],
                "passthrough/dma@60000000/reg": [1610612736, 4096],
            }
        },
    ),
    (
        "DT206",
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 12288, 0, 1610612736],
            }
        },
        [
            "q.dtb: error DT206 /passthrough/dma@60000000: xen,reg 0x60000000+0x3000 has "
            "0x60001000+0x2000 beyond the registers of /soc/dma@60000000; its registers: "
            "0x60000000+0x1000",
        ],
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 1610612736],
            }
        },
    ),
    (
        "DT206",
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 83886080],
            }
        },
        [
            "q.dtb: error DT206 /passthrough/dma@60000000: reg 0x60000000+0x1000 is not where "
            "xen,reg puts anything; xen,reg has guest addresses 0x5000000+0x1000",
        ],
        {
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 83886080],
                "passthrough/dma@60000000/reg": [0, 83886080, 0, 4096],
            }
        },
    ),
    (
        "DT207",
        {
            "partial": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 50335744],
            }
        },
        [
            "p.dtb: error DT207 /passthrough/dma@60000000: xen,reg's guest address "
            "0x3001000+0x1000 overlaps the GIC [0x3001000, 0x4020000); a free guest address is "
            "0x6000000; iomem needs the same @GFN, 0x6000",
        ],
        {
            "partial": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 1610612736],
            }
        },
    ),
    (
        "DT215",
        {
            "host": {"soc/dma@60000000/reg": [1610612736, 4096, 1610629120, 4096]},
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [0, 1610612736, 0, 4096, 0, 1610612736],
            },
        },
        [
            "q.dtb: error DT215 /passthrough/dma@60000000: xen,reg lacks 0x60004000+0x1000 of "
            "/soc/dma@60000000; give each register its host address, size and guest address",
        ],
        {
            "host": {"soc/dma@60000000/reg": [1610612736, 4096, 1610629120, 4096]},
            "loose": {
                "passthrough/dma@60000000/xen,path": "/soc/dma@60000000",
                "passthrough/dma@60000000/xen,reg": [
                    0,
                    1610612736,
                    0,
                    4096,
                    0,
                    1610612736,
                    0,
                    1610629120,
                    0,
                    4096,
                    0,
                    1610629120,
                ],
            },
        },
    ),
    (
        "DT218",
        {
            "host": {"soc/dma@60000000/reg": [1610612736, 4096, 1610629120, 4096]},
            "partial": {
                "passthrough/dma@60000000/reg": [0, 1610629120, 0, 4096, 0, 1610612736, 0, 4096]
            },
            "cfg": {"iomem": ["0x60000,1", "0x60004,1"]},
        },
        [
            "p.dtb: warning DT218 /passthrough/dma@60000000: reg[0] is reg[1] of "
            "/soc/dma@60000000; keep the host's order: 0x60000000+0x1000, 0x60004000+0x1000",
        ],
        {
            "host": {"soc/dma@60000000/reg": [1610612736, 4096, 1610629120, 4096]},
            "partial": {
                "passthrough/dma@60000000/reg": [0, 1610612736, 0, 4096, 0, 1610629120, 0, 4096]
            },
            "cfg": {"iomem": ["0x60000,1", "0x60004,1"]},
        },
    ),
    (
        "DT218",
        {
            "host": {"soc/dma@60000000/reg": [1610612736, 4096, 1610629120, 4096]},
            "partial": {},
            "cfg": {"iomem": ["0x60000,1", "0x60004,1"]},
        },
        [
            "p.dtb: warning DT218 /passthrough/dma@60000000: reg lacks 0x60004000+0x1000 of "
            "/soc/dma@60000000; describe all registers, in the host's order",
        ],
        {
            "host": {
                "soc/dma@60000000/reg": [1610612736, 4096, 1610629120, 4096],
                "soc/dma@60000000/reg-names": b"a\x00b\x00",
            },
            "partial": {
                "passthrough/dma@60000000/reg": [0, 1610629120, 0, 4096, 0, 1610612736, 0, 4096],
                "passthrough/dma@60000000/reg-names": b"b\x00a\x00",
            },
            "cfg": {"iomem": ["0x60000,1", "0x60004,1"]},
        },
    ),
    (
        "DT302",
        {"partial": {"passthrough/dma@60000000/interrupts": [1, 100, 4, 0, 101, 4]}},
        [
            "p.dtb: error DT302 /passthrough/dma@60000000: interrupt 0 <0x1 0x64 0x4> is a PPI; "
            "a device has SPIs; copy the host node's interrupts",
        ],
        {"partial": {"passthrough/pmu": {"interrupts": [1, 7, 4]}}},
    ),
    (
        "DT308",
        {"partial": {"passthrough/dma@60000000/interrupts": [0, 100, 1, 0, 101, 4]}},
        [
            "p.dtb: error DT308 /passthrough/dma@60000000: flags are not the host's: 132 (0x1, "
            "not 0x4); copy the interrupts of /soc/dma@60000000",
        ],
        {"partial": {}},
    ),
    (
        "DT308",
        {"partial": {"passthrough/dma@60000000/interrupts": [0, 101, 4, 0, 100, 4]}},
        [
            "p.dtb: warning DT308 /passthrough/dma@60000000: interrupts are 133, 132; the host "
            "has 132, 133; keep the host's order",
        ],
        {
            "host": {"soc/dma@60000000/interrupt-names": b"a\x00b\x00"},
            "partial": {
                "passthrough/dma@60000000/interrupts": [0, 101, 4, 0, 100, 4],
                "passthrough/dma@60000000/interrupt-names": b"b\x00a\x00",
            },
        },
    ),
    (
        "DT308",
        {
            "host": {"soc/dma@60000000/interrupt-names": b"a\x00b\x00"},
            "partial": {"passthrough/dma@60000000/interrupt-names": b"b\x00a\x00"},
        },
        [
            'p.dtb: error DT308 /passthrough/dma@60000000: interrupt "b" is 132, the host\'s is '
            "133; copy interrupts and names of /soc/dma@60000000",
        ],
        {
            "host": {"soc/dma@60000000/interrupt-names": b"a\x00b\x00"},
            "partial": {"passthrough/dma@60000000/interrupt-names": b"a\x00b\x00"},
        },
    ),
    (
        "DT401",
        {
            "partial": {
                "passthrough/dma@60000000/clocks": [5],
                "passthrough/clock": {"phandle": [5]},
            }
        },
        [
            "p.dtb: error DT401 /passthrough/dma@60000000: clocks[0]: <0x5> is "
            "/passthrough/clock, which has no #clock-cells; name a provider of this kind",
        ],
        {
            "partial": {
                "passthrough/dma@60000000/clocks": [5],
                "passthrough/clock": {"#clock-cells": [0], "phandle": [5]},
            }
        },
    ),
    (
        "DT401",
        {
            "partial": {
                f"{HERE}/port/endpoint/remote-endpoint": [0x31],
                f"{HERE}/msi-map": [0, 0x32, 0, 0x10, 0x10, 0x33, 0, 1],
                "passthrough/pcie": {
                    "#address-cells": [3],
                    "#interrupt-cells": [1],
                    "interrupt-map": [0, 0, 0, 1, 65000, 0, 9, 4, 0, 0, 0, 2, 0x34, 0, 9, 4],
                },
            }
        },
        [
            "p.dtb: error DT401 /passthrough/dma@60000000: msi-map[0]: <0x32> is no node of the "
            "partial tree; put the provider into /passthrough, or drop the property",
            "p.dtb: error DT401 /passthrough/dma@60000000: msi-map[1]: <0x33> is no node of the "
            "partial tree; put the provider into /passthrough, or drop the property",
            "p.dtb: error DT401 /passthrough/dma@60000000/port/endpoint: remote-endpoint[0]: "
            "<0x31> is no node of the partial tree; put the provider into /passthrough, or drop "
            "the property",
            "p.dtb: error DT401 /passthrough/pcie: interrupt-map[1]: <0x34> is no node of the "
            "partial tree; put the provider into /passthrough, or drop the property",
        ],
        {
            "partial": {
                f"{HERE}/port/endpoint": {"remote-endpoint": [0x31], "phandle": [0x31]},
                f"{HERE}/msi-map": [0, 0x31, 0, 0x10],
                "passthrough/pcie": {
                    "#address-cells": [3],
                    "#interrupt-cells": [1],
                    "interrupt-map": [0, 0, 0, 1, 65000, 0, 9, 4, 0, 0, 0, 2, 65000, 0, 9, 4],
                },
            }
        },
    ),
    (
        "DT540",
        {
            "partial": {
                f"{HERE}/iommus": [7, 0x10, 7, 0x11],
                "smmu": {"phandle": [7], "xen,path": "/soc/smmu@0"},
            }
        },
        [
            "p.dtb: error DT540 /smmu: stands in for xen,path /soc/smmu@0, which is no SMMU of "
            "the host; name one (SMMUs: /soc/iommu@50000000, /soc/iommu@51000000)",
        ],
        {
            "partial": {
                f"{HERE}/iommus": [7, 0x10, 7, 0x11],
                "smmu": {"phandle": [7], "xen,path": "/soc/iommu@50000000"},
            }
        },
    ),
    (
        "DT541",
        {
            "partial": {
                "passthrough/iommu@50000000": {
                    "compatible": "arm,smmu-v3",
                    "reg": [0, 0x50000000, 0, 0x20000],
                }
            }
        },
        [
            "a.cfg:5 error DT541 /passthrough/iommu@50000000: is an SMMU with registers, and the "
            "guest's SMMU is the vSMMU; put the stand-in outside /passthrough, or take its reg out",
        ],
        {"partial": {"iommu@50000000": {"compatible": "arm,smmu-v3", "phandle": [7]}}},
    ),
    (
        "DT542",
        {
            "partial": {
                "passthrough/x": {"iommus": [7, 0x10]},
                "smmu": {"phandle": [7]},
            },
        },
        [
            "p.dtb: error DT542 /passthrough/x: iommus <0x7 0x10> says no SMMU of the host, and "
            "the node no device; it may be (/soc/iommu@50000000, 0x10); give xen,path with the "
            "device's host path",
        ],
        {"partial": {"smmu": {"phandle": [7]}, f"{HERE}/iommus": [7, 0x10, 7, 0x11]}},
    ),
    (
        "DT543",
        {
            "partial": {
                HERE: None,
                "passthrough/both": {"iommus": [3, 0x10, 3, 0x11, 4, 0x20]},
            },
            "cfg": {"dtdev": [f"/{DMA}", f"/{DMB}"]},
        },
        [
            "a.cfg:5 note DT543 /passthrough/both: has streams of 2 devices: /soc/dma@60000000, "
            "/soc/dma@61000000; see the rule: vsmmu check --list DT543",
        ],
        {"partial": {}},
    ),
]


@pytest.mark.parametrize(("rule", "bad", "expected", "good"), CASES)
def test_rule(rule, bad, expected, good):
    assert said(rule, bad) == expected
    assert said(rule, good) == []


X = "passthrough/x"
STAND_IN = {"smmu": {"phandle": [7], "xen,path": "/soc/iommu@50000000"}}
WITHOUT = {HERE: None}
BOTH = {"dtdev": [f"/{DMA}", f"/{DMB}"]}
IOMMU = {"passthrough/mmu": {"compatible": "t,iommu", "#iommu-cells": [1], "phandle": [9]}}


@pytest.mark.parametrize(
    ("partial", "cfg", "refused"),
    [
        ({}, {}, None),
        # Streams of /passthrough itself, of a node that only its entries tell.
        ({**WITHOUT, "passthrough/iommus": [3, 0x10, 3, 0x11]}, {}, None),
        ({**WITHOUT, **STAND_IN, f"{X}/iommus": [7, 0x10, 7, 0x11]}, {}, None),
        ({**WITHOUT, **STAND_IN, f"{X}/y/iommus": [7, 0x10]}, {}, None),
        ({**WITHOUT, "smmu/phandle": [7], f"{X}/iommus": [7, 0x10]}, {}, "DT542"),
        ({"smmu/phandle": [7], f"{HERE}/x/iommus": [7, 0x10]}, {}, None),
        ({f"{X}/iommus": [3, 0x12]}, {}, "DT501"),
        ({f"{X}/iommus": [65002, 0x10]}, {}, "DT542"),
        ({f"{HERE}/iommus": [65002, 0x10, 65002, 0x11]}, {}, None),
        ({f"{HERE}/iommus": [65002, 0x12]}, {}, "DT501"),
        # By compatible and address.
        (
            {
                **WITHOUT,
                X: {"compatible": "test,dma", "reg": [0, 0x60000000, 0, 4096], "iommus": [9, 16]},
            },
            {},
            None,
        ),
        ({**IOMMU, f"{X}/iommus": [9, 5]}, {}, None),
        ({**IOMMU, f"{X}/iommus": [9, 5, 3, 0x77]}, {}, "DT501"),
        ({"aliases/iommus": [3, 0x77]}, {}, None),
        ({"smmu": {"phandle": [7], "#iommu-cells": [3]}, f"{X}/iommus": [7, 1]}, {}, "DT540"),
        ({f"{X}/iommus": [3, 0x10, 3]}, {}, "DT405"),
        # Name and registers of two devices.
        ({f"{HERE}/reg": [0, 0x61000000, 0, 0x1000]}, BOTH, "DT542"),
        ({f"{HERE}/reg": [0, 0x61000000, 0, 0x1000], f"{HERE}/xen,path": f"/{DMA}"}, BOTH, None),
        # Without a vSMMU entries are copied as they stand.
        ({f"{X}/iommus": [3, 0x12, 1]}, {"viommu": None}, None),
        # Phandles.
        ({f"{X}/phandle": [65003]}, {}, None),
        ({f"{X}/phandle": [65002]}, {}, "DT402"),
        ({f"{X}/phandle": [65130]}, {}, "DT402"),
        ({f"{X}/linux,phandle": [65001]}, {}, "DT402"),
        ({f"{X}/phandle": b"\1"}, {}, "DT404"),
        ({f"{X}/phandle": [65004], f"{X}/y/phandle": [65004]}, {}, "DT403"),
    ],
)
def test_check_and_the_builder_agree(partial, cfg, refused):
    """On phandles and streams check has errors where the builder refuses, and no others."""
    keys = {**BY_HAND, "iomem": [], **cfg}
    guest = guest_of(keys, "a.cfg", tree_of(edited(PARTIAL, partial)))
    platform = Platform.from_tree(tree_of(HOST), "host.dtb")
    rule = None
    try:
        build_guest(guest.config, platform=platform, partial=guest.partial.tree)
    except Refusal as error:
        rule = error.rule
    assert rule == refused
    found = {one.rule for one in check(platform, [guest]) if one.severity == "error"}
    judged = {"DT402", "DT403", "DT404", "DT405", "DT501", "DT505", "DT540", "DT541", "DT542"}
    assert found & judged == ({refused} if refused else set())


def test_every_entry_that_is_refused_is_told():
    """The builder stops at the first."""
    world = {
        "partial": {
            f"{X}/iommus": [65002, 0x10],
            "passthrough/y/iommus": [3, 0x12],
            f"{HERE}/reg": [0, 0x61000000, 0, 0x1000],
        },
        "cfg": {**BOTH, "iomem": []},
    }
    end = "its iommus can be each one's; give xen,path with the host path of the one that is meant"
    assert said("DT542", world) == [
        "p.dtb: error DT542 /passthrough/dma@60000000: has the name of /soc/dma@60000000 and "
        f"registers of /soc/dma@61000000: {end}",
        "p.dtb: error DT542 /passthrough/x: iommus <0xfdea 0x10> says no SMMU of the host, and "
        "the node no device; it may be (/soc/iommu@50000000, 0x10); give xen,path with the "
        "device's host path",
    ]
    assert [line.partition(" is ")[0] for line in said("DT501", world)] == [
        "p.dtb: error DT501 /passthrough/y: iommus <0x3 0x12>"
    ]


def test_xen_path_and_registers_of_two_devices():
    reg = {f"{HERE}/reg": [0, 0x61000000, 0, 0x1000], f"{HERE}/xen,path": f"/{DMA}"}
    assert said("DT206", {"partial": reg, "cfg": {**BOTH, "iomem": []}}) == [
        "p.dtb: warning DT206 /passthrough/dma@60000000: has registers of /soc/dma@61000000, and "
        "its xen,path says /soc/dma@60000000; give xen,path and registers of one device"
    ]


def test_a_node_that_its_streams_tell_describes_the_device():
    nodes = {**WITHOUT, **STAND_IN, f"{X}/iommus": [7, 0x10, 7, 0x11]}
    assert said("DT112", {"partial": nodes}) == []
    # Streams tell before a name without its unit address does.
    nodes = {**WITHOUT, "passthrough/dma": {"iommus": [4, 0x20]}}
    world = {"partial": nodes, "cfg": BOTH}
    assert [line.split()[2:4] for line in said("DT112", world)] == [["DT112", f"/{DMA}:"]]


def test_a_phandle_that_no_node_has_is_a_note():
    assert said("DT402", {"partial": {f"{X}/phandle": [65003]}}) == [
        "p.dtb: note DT402 /passthrough/x: phandle 65003 is the toolstack's to give; use 1 to 64999"
    ]


def test_a_cell_count_that_is_there_and_wrong_is_said():
    absurd = {"partial": {"passthrough/#address-cells": [0x80000000]}}
    assert said("DT213", absurd) == [
        "p.dtb: warning DT213 /passthrough: #address-cells is 0x80000000, not 1 or 2: a guest will "
        "not probe what is in it; write 1 or 2 there"
    ]
    assert said("DT206", absurd) == [
        "p.dtb: error DT206 /passthrough/dma@60000000: reg has 16 bytes, and #address-cells of "
        "/passthrough is 0x80000000; write 1 or 2 there"
    ]
    assert said("DT206", {"loose": {**XEN, **absurd["partial"]}})[-1] == (
        "q.dtb: error DT206 /passthrough/dma@60000000: xen,reg has 24 bytes, and #address-cells "
        "of /passthrough is 0x80000000; write it in the cells of /passthrough, 1 or 2 each"
    )


@pytest.mark.parametrize(
    ("world", "rules"),
    [
        # A wrong xen,path is neither a device that dtdev lacks nor one without a node.
        ({"partial": {**XEN, f"{HERE}/xen,path": "/axi/dma@60000000"}}, {"DT102"}),
        # What the builder refuses as DT207 is told as the registers that are missing.
        (
            {"cfg": {"dtdev": ["/soc/dma@61000000"], "iomem": ["0x61000,1"], "irqs": [134]}},
            {"DT215"},
        ),
        ({"cfg": {"iomem": ["0x60000000,1"], "irqs": [132, 133]}}, {"DT206", "DT215"}),
        # A stream without a node is the device's that has no node.
        (
            {
                "partial": {},
                "cfg": {
                    "dtdev": ["/soc/dma@60000000", "/soc/dma@61000000"],
                    "iomem": ["0x60000,1", "0x61000,2"],
                    "irqs": [132, 133, 134],
                },
            },
            {"DT112"},
        ),
    ],
)
def test_a_mistake_is_told_once(world, rules):
    assert {found.rule for found in diagnoses(**world)} == rules
