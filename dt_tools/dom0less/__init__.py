# SPDX-License-Identifier: BSD-2-Clause
"""dom0less: what Xen needs to start guests with assigned devices before, or without, dom0.

A guest is a node under /chosen of the host's tree, its modules (kernel, ramdisk, partial tree) and
marks on the nodes of its devices. `build_dom0less` makes them from guest configurations;
`xen_guest` is a model of what Xen makes of them, refusing what Xen refuses.
"""

from __future__ import annotations

from dt_tools.dom0less.chosen import Module, add_domain
from dt_tools.dom0less.fragment import Fragment, build_fragment, read_fragment
from dt_tools.dom0less.guest import xen_guest
from dt_tools.dom0less.imagebuilder import imagebuilder
from dt_tools.dom0less.merged import Dom0less, Domain, GuestInput, build_dom0less
from dt_tools.dom0less.rules import Found, check_fragment
from dt_tools.dom0less.xens import SERIES, XENS, Xen

__all__ = [
    "SERIES",
    "XENS",
    "Dom0less",
    "Domain",
    "Found",
    "Fragment",
    "GuestInput",
    "Module",
    "Xen",
    "add_domain",
    "build_dom0less",
    "build_fragment",
    "check_fragment",
    "imagebuilder",
    "read_fragment",
    "xen_guest",
]
