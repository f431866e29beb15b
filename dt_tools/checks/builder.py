# SPDX-License-Identifier: BSD-2-Clause
"""The tree builder as the last rule: what it refuses or says, and no other rule has found.

So a guest without errors here is one that `vsmmu guest-dtb` builds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.errors import Refusal, UserError
from dt_tools.rules import Diagnosis, declared, rule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from dt_tools.checks.view import Board, Given

rule(
    "DT220",
    "note",
    "stand-ins for clocks or regulators",
    "The guest sees a fixed rate or voltage; it cannot switch or change what is behind it.",
    "/soc/dma@0: clocks: fixed-clock in place of /clocks/apb",
)
rule(
    "DT221",
    "note",
    "the rate of a clock is not known",
    "A driver that computes with it goes wrong.",
    "/soc/dma@0: clock-0 stands for /clocks/apb, whose rate the host tree does not tell",
)
rule(
    "DT304",
    "error",
    "more virtio devices than SPIs for them",
    "libxl keeps eleven SPIs for virtio-mmio.",
    "/: Ran out of reserved range for Virtio MMIO IRQ 45",
)
rule(
    "DT305",
    "error",
    "nr_spis does not suffice, or is too large",
    "Xen 4.20 raises a number that is too small, 4.22 refuses it; 960 is the most.",
    "/: nr_spis 1000, a guest has 960 SPIs at most",
)
rule(
    "DT506",
    "error",
    "more streams than vMasterIDs",
    "A StreamID of the vSMMU has 16 bits.",
    "/soc/dma@0: the guest would need more than 65536 vMasterIDs",
)
rule(
    "DT601",
    "error",
    "more vCPUs than the guest's GIC serves",
    "A GICv2 guest has 8 at most, a GICv3 guest 128.",
    "/cpus: 9 vCPUs, a GICv2 guest has 8 at most",
)

rule(
    "DT603",
    "error",
    "the ramdisk does not fit",
    "Ramdisk and tree lie in the guest's first RAM bank.",
    "/chosen: a ramdisk of 99999999 bytes does not fit 32 MiB of RAM",
)
rule(
    "DT606",
    "error",
    "ACPI tables for the guest",
    "libxl's tree for such a guest has a property behind a child node, which no reader finds.",
    "/chosen: acpi = 1: libxl's tree for it has /chosen/rng-seed behind a child node",
)
rule(
    "DT607",
    "error",
    "a GIC version that the host cannot run",
    "Xen refuses the domain (ENODEV): a GICv3 runs GICv2 guests only with GICC, GICH and GICV.",
    "/intc@8000000: is a GICv3, which runs no guest with a GICv2",
)
rule(
    "DT608",
    "error",
    "the id of a backend domain is not known",
    "Grants of a virtio device are for one domain id, which the guest's tree names.",
    "/: the id of the domain DomD, which virtio grants name, is in no tree",
)
rule(
    "DT609",
    "error",
    "altp2m on Arm",
    "Xen refuses the domain (EINVAL).",
    "/: altp2m is not for Arm: Xen refuses the domain",
)

_KEYS = {
    **dict.fromkeys((f"DT{number}" for number in range(520, 540)), "pci"),
    "DT304": "virtio",
    "DT305": "nr_spis",
    "DT507": "iommu_devid_map",
    "DT601": "vcpus",
    "DT602": "memory",
    "DT603": "ramdisk",
    "DT606": "acpi",
    "DT607": "gic_version",
    "DT608": "virtio",
}
# Rules that say of the same node what the builder says under another id, and why.
_CLOSER = {
    "DT207": ("DT215", "DT206"),  # iomem has a part of its registers, or bytes for frames
    "DT501": ("DT102", "DT113"),  # xen,path is not in dtdev
    "DT504": ("DT112",),  # no node has its streams
}
_FIX = "see the rule: vsmmu check --list "


def check(board: Board, given: Given, found: Collection[Diagnosis]) -> Iterator[Diagnosis]:
    """Build the guest; `found` is what the other rules have found about it."""
    from dt_tools.guest import Options, build_guest

    partial = given.input.partial
    if partial is None and given.config.device_tree:
        return  # its /passthrough is not generated, and not known
    known = {one.rule for one in found}
    told = {(one.rule, one.path) for one in found}
    errors = {one.rule for one in found if one.severity == "error"}
    try:
        tree = build_guest(
            given.config,
            platform=board.platform,
            partial=None if partial is None else partial.tree,
            ramdisk_size=given.input.ramdisk_size,
            address_bits=given.bits,
            options=Options(
                topology=given.input.topology, pci_domains=dict(given.input.pci_domains)
            ),
        )
    except Refusal as error:
        closer = {(rule, error.path) for rule in _CLOSER.get(error.rule, ())}
        if error.rule not in errors and not closer & told:
            fix = error.fix or _FIX + error.rule
            one, key = declared()[error.rule], _key(error.rule, error.reason)
            yield one.at(error.path, error.reason, fix, severity="error", key=key)
    except UserError:
        # A path that the host does not have: DT102 has said so.
        assert errors, "an error of the builder that no rule has found"
    else:
        for notice in tree.notices:
            closer = {(rule, notice.path) for rule in _CLOSER.get(notice.rule, ())}
            if notice.rule not in known and not closer & told:
                fix = _FIX + notice.rule
                one, key = declared()[notice.rule], _KEYS.get(notice.rule, "dtdev")
                yield one.at(notice.path, notice.message, fix, severity="note", key=key)


def _key(rule: str, reason: str) -> str:
    """The key of the configuration that a refusal of the builder is about."""
    return reason.split(maxsplit=1)[0] if rule == "DT609" else _KEYS.get(rule, "dtdev")
