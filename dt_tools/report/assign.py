# SPDX-License-Identifier: BSD-2-Clause
"""Whether each DMA master of a board can be given to a guest behind a vSMMU, and why not.

The same rules, by the same ids, as the builders apply to a `dtdev` list of one device; a report
lists all reasons, a builder refuses with the first.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from dt_tools.platform import OTHER, SMMU_V3
from dt_tools.report.facts import Facts
from dt_tools.report.streams import together_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dt_tools.platform import Master, Platform, Smmu

Effect = Literal["blocks", "together", "notice"]

# The rules in a few words each, for a summary.
TITLES = {
    "DT101": "no SMMU in front of it",
    "DT104": "its SMMU is not enabled",
    "DT105": "not enabled itself",
    "DT107": "a bridge or bus: its functions are the masters",
    "DT109": "behind another kind of IOMMU",
    "DT201": "providers stay outside the guest",
    "DT202": "no registers at CPU addresses",
    "DT205": "registers in another device's page",
    "DT208": "DMA offsets or reserved memory are not carried",
    "DT209": "other devices depend on it",
    "DT210": "has other devices inside",
    "DT302": "interrupts that are not SPIs",
    "DT307": "shares an SPI with another device",
    "DT401": "iommus names no IOMMU",
    "DT405": "iommus is malformed",
    "DT503": "shares a StreamID",
    "DT505": "rows of its iommu-map are refused or not reached",
}
# Providers that are not left behind: the vSMMU and the guest's GIC stand in for these.
_STAND_INS = frozenset({"iommus", "iommu-map", "interrupts", "interrupts-extended", "parent"})
_NAMED = 3


class Reason(NamedTuple):
    """One fact about a master: `blocks` assignment, ties it `together` with others, or a `notice`.

    `others` holds the full paths that have to be assigned with it.
    """

    rule: str
    effect: Effect
    text: str
    others: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """`answer` is `yes`, `together` (with the devices that the reasons name) or `no`."""

    master: Master
    answer: Literal["yes", "together", "no"]
    reasons: tuple[Reason, ...]


def verdicts(platform: Platform, facts: Facts | None = None) -> tuple[Verdict, ...]:
    """One verdict for each of `platform.masters`, in the same order.

    Raises:
        DtbError: the tree asks for more work than the platform's limit.
    """
    facts = facts or Facts(platform)
    smmus = {smmu.path: smmu for smmu in platform.smmus}
    behind = {m.path for m in platform.masters if m.streams and _all_v3(m, smmus)}
    shared = together_with(facts.shared)
    broken = {f.path: f for f in platform.findings if f.rule in ("DT401", "DT405")}
    refused: dict[str, list[str]] = {}
    for one in platform.findings:
        if one.rule == "DT505":
            refused.setdefault(one.path, []).append(one.text)
    found = []
    for master in platform.masters:
        finding = broken.get(master.path)
        unread = [Reason(finding.rule, "blocks", finding.text)] if finding else []
        unread += [
            Reason("DT505", "notice", f"{text}; rows from there on are not read")
            for text in refused.get(master.path, ())
        ]
        reasons = (
            *_placement(master, smmus, bool(finding)),
            *unread,
            *_sharing(master, shared.get(master.path, ())),
            *_resources(facts, master, behind),
            *_surroundings(facts, master),
        )
        found.append(Verdict(master, _answer(reasons), reasons))
    return tuple(found)


def _answer(reasons: tuple[Reason, ...]) -> Literal["yes", "together", "no"]:
    effects = {reason.effect for reason in reasons}
    if "blocks" in effects:
        return "no"
    return "together" if "together" in effects else "yes"


def _all_v3(master: Master, smmus: Mapping[str, Smmu]) -> bool:
    return all(smmus[stream.smmu_path].kind == SMMU_V3 for stream in master.streams)


def _placement(master: Master, smmus: Mapping[str, Smmu], unread: bool) -> Iterator[Reason]:
    """Where the master sits: its own status, and the SMMUs in front of it."""
    if master.status != "okay":
        yield Reason("DT105", "blocks", f'has status "{master.status}"')
    if "iommu-map" in master.node.props or master.is_pci:
        yield Reason("DT107", "blocks", "is a bridge or bus: the masters are the functions on it")
    elif not master.streams and not unread:
        yield Reason("DT101", "blocks", "no entry of its iommus names an SMMU")
    for path in dict.fromkeys(stream.smmu_path for stream in master.streams):
        smmu = smmus[path]
        if smmu.status != "okay":
            yield Reason("DT104", "blocks", f'its SMMU {path} has status "{smmu.status}"')
        if smmu.kind != SMMU_V3:
            kind = "not an Arm SMMU" if smmu.kind == OTHER else f"{smmu.kind}, not {SMMU_V3}"
            yield Reason("DT109", "blocks", f"its IOMMU {path} is {kind}")


def _sharing(master: Master, others: tuple[str, ...]) -> Iterator[Reason]:
    if others and master.status == "okay":
        text = f"shares a StreamID with {', '.join(others)}"
        yield Reason("DT503", "together", text, others)


def _resources(facts: Facts, master: Master, behind: set[str]) -> Iterator[Reason]:
    """Registers, the pages they are in, child nodes, interrupts."""
    regs = facts.platform.reg_of(master.node)
    if regs is None or any(reg.size == 0 for reg in regs):
        yield Reason("DT202", "blocks", "its reg does not translate to CPU addresses")
    elif not regs:
        yield Reason("DT202", "notice", "has no registers")
    inside = None if _is_bus(master) else _own_devices(facts, master)
    direct = facts.neighbours(master.node)
    further: tuple[str, ...] = ()
    if behind.issuperset(direct):
        further = tuple(path for path in facts.page_closure(master.node) if path not in direct)
    if facts.unsearched(master.node):
        yield Reason("DT205", "blocks", "too many devices share pages to look for its neighbours")
    for path in (*direct, *further):
        text = f"has registers in a 4 KiB page with {path}"
        if path not in direct:
            text = f"is tied through these to {path}"
        if path in behind:
            yield Reason("DT205", "together", text, (path,))
        else:
            yield Reason("DT205", "blocks", f"{text}, which cannot be assigned")
    if inside:
        yield Reason("DT210", "blocks", f"its child {inside} is a device of its own")
    lost = Counter(i.kind for i in facts.interrupts.get(master.node, ()) if i.kind != "SPI")
    if lost:
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(lost.items()))
        yield Reason("DT302", "notice", f"interrupts that are not SPIs are dropped: {what}")


def _is_bus(master: Master) -> bool:
    return "iommu-map" in master.node.props or master.is_pci


def _own_devices(facts: Facts, master: Master) -> str | None:
    """The first node below the master with DMA of its own, or with registers of no CPU address."""
    for node in master.node.walk():
        if node is master.node or node.parent is None:
            continue
        if "iommus" in node.props or "iommu-map" in node.props:
            return node.path
        if "reg" in node.props and "ranges" in node.parent.props:
            regs = facts.platform.reg_of(node)
            if not regs or any(reg.size == 0 for reg in regs):
                return node.path
    return None


def _surroundings(facts: Facts, master: Master) -> Iterator[Reason]:
    """What the device needs and is needed by; nothing here keeps it from being assigned."""
    left = [
        n for n in facts.needs(master.node) if n.depth == 1 and _STAND_INS.isdisjoint(n.properties)
    ]
    if left:
        names = dict.fromkeys(name for need in left for name in need.properties)
        what = "provider stays" if len(left) == 1 else "providers stay"
        yield Reason("DT201", "notice", f"{len(left)} {what} outside the guest: {_some(names)}")
    if "memory-region" in master.node.props:
        yield Reason(
            "DT208", "notice", "its memory-region is host memory; the guest has none there"
        )
    bus = next((p for p in master.node.ancestors() if facts.moves_dma(p)), None)
    if bus is not None:
        text = f"its DMA addresses are offset by dma-ranges of {bus.path}, which is not carried"
        yield Reason("DT208", "notice", text)
    users = [node.path for node in facts.references.outside_users(master.node)]
    if users:
        what = "node depends" if len(users) == 1 else "nodes depend"
        yield Reason("DT209", "notice", f"{len(users)} {what} on it: {_some(users)}")
    for number in sorted(
        {i.number for i in facts.interrupts.get(master.node, ()) if i.kind == "SPI"}
    ):
        others = [path for path in facts.spi_owners[number] if path != master.path]
        if others:
            yield Reason("DT307", "notice", f"interrupt {number} is {_some(others)}'s too")


def _some(names: Mapping[str, None] | list[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more
