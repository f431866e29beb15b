# SPDX-License-Identifier: BSD-2-Clause
"""Rules by which only the builders refuse: no mistake of a guest that `check` could find itself.

They are declared here so that `vsmmu check --list` explains every id that any command prints.
"""

from __future__ import annotations

from dt_tools.checks.rules import rule

_RULES = (
    (
        "DT219",
        "iomem gives the guest the host's GIC",
        "Xen 4.22 refuses the domain; 4.20 maps the registers of its own interrupt controller.",
        "/intc@8000000: iomem 0x8000,0x1 is the host's GIC",
    ),
    (
        "DT510",
        "an earlier vMasterID map does not fit",
        "A guest with a static tree relies on the ids it was given; none may mean another stream.",
        "/iommu@4000000: the earlier map has an SMMU there at 0x4000000; this host has not",
    ),
    (
        "DT550",
        "a partial tree that libxl fails on",
        "libxl refuses it, crashes on it, or writes a tree with the fault in it.",
        "/passthrough: partial tree: property reg stands there twice",
    ),
    (
        "DT551",
        "a guest tree larger than libxl makes",
        "libxl gives up when the tree does not fit a buffer of 1 MiB.",
        "/passthrough: the guest's tree takes 1050042 bytes while it is made, 1048576 is the most",
    ),
)

IDS = frozenset(rule(id_, "error", *texts).id for id_, *texts in _RULES)
"""The ids."""
