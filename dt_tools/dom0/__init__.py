# SPDX-License-Identifier: BSD-2-Clause
"""dom0's device tree: the one it should get, and the one that Xen of some version makes.

`build_dom0` makes the former from the host's tree, `build_xen_dom0` the latter; `Given` is the
list of devices that guests get, and `mark_host` the host's tree with these marked for Xen.
"""

from __future__ import annotations

from dt_tools.dom0.given import Given, mark_host, take
from dt_tools.dom0.own import Dom0Tree, build_dom0
from dt_tools.dom0.versions import VERSIONS, XenOptions, XenVersion
from dt_tools.dom0.xen import build_xen_dom0

__all__ = [
    "VERSIONS",
    "Dom0Tree",
    "Given",
    "XenOptions",
    "XenVersion",
    "build_dom0",
    "build_xen_dom0",
    "mark_host",
    "take",
]
