# SPDX-License-Identifier: BSD-2-Clause
"""Rules about a configuration as a whole: memory, address map, passthrough, what is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.checks.devices import DT206
from dt_tools.checks.references import references
from dt_tools.checks.view import MAX_ITEMS, MAX_NAMED, frames, named, pages, text
from dt_tools.errors import Refusal
from dt_tools.extended import PAGE, AddressMap, ram_banks
from dt_tools.profiles import Window
from dt_tools.rules import Diagnosis, Severity, declared, rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.checks.view import Board, Given
    from dt_tools.tree import Node

DT201 = rule(
    "DT201",
    "warning",
    "what the device depends on is not the guest's",
    "Clocks, power domains, resets and PHYs are nodes of the host. The guest's driver waits for"
    " them (deferred probe) or finds the device without a clock.",
    "/soc/ethernet@60010000: needs clocks (/clock-125m), which the guest does not get",
)
DT207 = rule(
    "DT207",
    "error",
    "a device lies on something else in the guest's address space",
    "iomem maps over whatever the guest has there: RAM that is not RAM, a vGIC without its "
    "registers.",
    "/: iomem 0x40000,0x10 at guest 0x40000000+0x10000 overlaps RAM bank 0",
)
DT208 = rule(
    "DT208",
    "error",
    "the guest's DMA is not the host's",
    "A device that is coherent for one and not for the other corrupts data; reserved memory and"
    " dma-ranges that are not carried send DMA to other addresses.",
    "/passthrough/dma@60020000: is dma-coherent, and its host node is not",
)
DT217 = rule(
    "DT217",
    "note",
    "the partial tree was not looked at",
    "The rules about it are not checked.",
    '/: device_tree = "guest.dtb" cannot be read here',
)
DT509 = rule(
    "DT509",
    "note",
    "a vSMMU without devices",
    "The guest gets an SMMU, an SPI and a window for nothing.",
    '/: viommu = "smmuv3", and dtdev is empty',
)
DT602 = rule(
    "DT602",
    "error",
    "memory does not fit the guest's address map",
    "The guest's RAM banks have an end; a maxmem below memory is what the guest gets.",
    "/memory: memory = 0 MiB does not fit the RAM banks below 40 address bits",
)
DT604 = rule(
    "DT604",
    "error",
    "passthrough contradicts the rest",
    'On Arm there are "disabled" and "share_pt"; devices need one that is not "disabled".',
    '/: passthrough = "disabled" with devices in dtdev',
)
DT605 = rule(
    "DT605",
    "error",
    "two guests have one name",
    "xl creates the first and refuses the second: a name is one domain's.",
    '/: name = "guest" is guest-b.cfg\'s too',
)
DT212 = rule(
    "DT212",
    "error",
    "more entries or registers than a guest can have",
    "Lists are read up to a bound.",
    "/: 2000 iomem entries, more than 1024; the rest is not looked at",
)

# Without these a driver does not come up; the others it can mostly do without.
VITAL = ("clocks", "power-domains", "phys")
_NOT_LOST = ("iommus", "interrupt-parent", "interrupts-extended", "msi-parent")


def check(board: Board, given: Given, others: Sequence[Given]) -> Iterator[Diagnosis]:
    """The configuration's own sense, and where its devices come to lie."""
    yield from _limits(given)
    same = [other.label for other in others if other.config.name == given.config.name]
    if same:
        fact = f'name = "{given.config.name}" is {named(same)}\'s too'
        yield DT605.at("/", fact, "give each guest a name of its own", key="name")
    yield from _combinations(given)
    yield from _memory(given)
    yield from _placed(board, given)
    yield from _pci(board, given)
    if given.input.partial is None and not given.config.device_tree:
        for node in given.nodes:
            yield from _lost(board, given, node)


def _limits(given: Given) -> Iterator[Diagnosis]:
    for key in ("dtdev", "iomem", "irqs"):
        count = len(getattr(given.config, key))
        if count > MAX_ITEMS:
            fact = f"{count} {key} entries, more than {MAX_ITEMS}; the rest is not looked at"
            yield DT212.at("/", fact, "join adjacent ranges", key=key)


def _combinations(given: Given) -> Iterator[Diagnosis]:
    config = given.config
    if config.passthrough == "sync_pt":
        fact = 'passthrough = "sync_pt" is not supported on Arm'
        yield DT604.at("/", fact, 'use "share_pt" or leave it out', key="passthrough")
    elif config.passthrough == "disabled" and (config.dtdev or config.pci):
        fact = 'passthrough = "disabled" with devices in ' + ("dtdev" if config.dtdev else "pci")
        yield DT604.at("/", fact, "take one of the two out", key="passthrough")
    elif config.passthrough == "disabled" and given.viommu:
        fact = 'passthrough = "disabled" with viommu = "smmuv3"'
        yield DT604.at("/", fact, "take one of the two out", key="passthrough")
    if given.viommu and not config.dtdev and not config.pci:
        fact = 'viommu = "smmuv3", and dtdev is empty'
        yield DT509.at("/", fact, "name the devices in dtdev", key="viommu")
    if config.device_tree and given.input.partial is None:
        fact = f'device_tree = "{config.device_tree}" cannot be read here'
        yield DT217.at("/", fact, "give the partial tree as an argument", key="device_tree")


def _memory(given: Given) -> Iterator[Diagnosis]:
    config = given.config
    if config.maxmem_mib is not None and config.maxmem_mib < config.memory_mib:
        fact = f"maxmem = {config.maxmem_mib} is below memory = {config.memory_mib}: it wins"
        yield DT602.at(
            "/memory", fact, "raise maxmem or leave it out", severity="warning", key="maxmem"
        )
    try:
        _banks(given)
    except Refusal as error:
        yield DT602.at(error.path, error.reason, error.fix or "change memory", key="memory")


def _banks(given: Given) -> tuple[Window, ...]:
    config = given.config
    memory = config.memory_mib
    memory = memory if config.maxmem_mib is None else min(memory, config.maxmem_mib)
    return ram_banks(memory, given.profile, given.bits)


def address_map(given: Given) -> AddressMap:
    """The guest's address space with what the toolstack puts there; no device is in it yet."""
    profile = given.profile
    try:
        space = AddressMap(profile, _banks(given), given.bits)
    except Refusal:
        space = AddressMap(profile, (), given.bits)
    gic = Window(profile.gicv3_gicd.base, profile.gicv3_gicr.end - profile.gicv3_gicd.base)
    windows = [
        ("the GIC", gic),
        ("the grant table", profile.grant_table),
        ("the magic pages", profile.magic),
    ]
    windows += [("the vSMMU", profile.vsmmu)] if given.viommu else []
    windows += [("the pl011", profile.pl011)] if given.config.vuart == "sbsa_uart" else []
    windows += [("virtio-mmio", profile.virtio_mmio)] if given.config.virtio else []
    for name, window in windows:
        space.claim(window, name)
    return space


def _placed(board: Board, given: Given) -> Iterator[Diagnosis]:
    """Guest addresses of iomem against the guest's map and each other."""
    space = address_map(given)
    homeless: list[tuple[Window, Window, str]] = []
    seen: set[tuple[Window, Window]] = set()
    for host, guest in given.iomem:
        address = host.base // PAGE
        meant = board.as_address(host)
        if meant is not None:
            window, node = meant
            fact = f"iomem {frames(host)}: {address:#x} looks like an address of {node.path}"
            fact += f"; its frame is {address // PAGE:#x}"
            fix = f"write frames: {frames(pages(window))}"
            yield DT206.at("/", fact, fix, key="iomem")
        elif (host, guest) in seen:
            fact = f"iomem lists {frames(host)} at guest {text(guest)} twice"
            yield DT207.at("/", fact, "list it once", severity="warning", key="iomem")
        elif (clash := space.clash(guest)) is None:
            space.claim(guest, f"iomem {frames(host)}")
        elif space.owner(guest) != f"iomem {frames(host)}":
            homeless.append((host, guest, clash))
        seen.add((host, guest))
    for at, (host, guest, clash) in enumerate(homeless):
        what = f"iomem {frames(host)} at guest {text(guest)}"
        fix = _elsewhere(space, host) if at < MAX_NAMED else "give it a free guest address"
        yield DT207.at("/", f"{what} {clash}", fix, key="iomem")


def _elsewhere(space: AddressMap, host: Window) -> str:
    """Where the guest has room for the window, which is then taken."""
    room = space.place(host.size)
    if room is None:
        return "the guest has no room of that size: map less"
    space.claim(room, f"iomem {frames(host)}")
    return f'give it a free guest address, as in "{frames(host)}@{room.base // PAGE:#x}"'


def _pci(board: Board, given: Given) -> Iterator[Diagnosis]:
    """Each PCI function by itself; what several of them make together is the builder's to tell."""
    if not given.config.pci:
        return
    from dt_tools.pci import functions

    for spec in given.config.pci[:MAX_NAMED]:
        try:
            functions(
                (spec,),
                board.platform,
                given.input.topology,
                viommu=given.viommu,
                domains=given.input.pci_domains,
            )
        except Refusal as error:
            known = declared()[error.rule]
            fix = error.fix or "leave it out"
            yield known.at(error.path, error.reason, fix, severity="error", key="pci")


def _lost(board: Board, given: Given, node: Node) -> Iterator[Diagnosis]:
    """Providers that a generated node does without."""
    lost: dict[str, list[str]] = {}
    memory: list[str] = []
    for ref in references(node, board.phandles):
        provider = board.phandles.get(ref.phandle)
        if provider is None or provider in given.own or ref.name in _NOT_LOST:
            continue
        if ref.name == "memory-region":
            memory.append(provider.path)
        else:
            lost.setdefault(ref.name, []).append(provider.path)
    if lost:
        severity: Severity = "warning" if any(name in VITAL for name in lost) else "note"
        what = "; ".join(f"{name} ({named(paths)})" for name, paths in lost.items())
        fact = f"needs {what}, which the guest does not get"
        fix = "give the guest a partial tree with fixed-clock and the like, or a driver without"
        yield DT201.at(node.path, fact, fix, severity=severity, key="dtdev")
    if memory:
        fact = f"memory-region ({named(memory)}) is not the guest's"
        fix = "the device has to work without reserved memory"
        yield DT208.at(node.path, fact, fix, severity="warning", key="dtdev")
    for parent in node.ancestors():
        if parent.props.get("dma-ranges"):
            fact = f"dma-ranges of {parent.path} is not carried into the guest"
            fix = "the device has to reach the guest's addresses as they are"
            yield DT208.at(node.path, fact, fix, severity="note", key="dtdev")
