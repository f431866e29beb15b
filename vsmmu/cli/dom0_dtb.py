# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu dom0-dtb`: dom0's device tree, and the host's marked for the devices that guests get."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, say, write
from vsmmu.cli.inputs import load_config, load_platform, tree_output

if TYPE_CHECKING:
    from dt_tools.binding import Notice
    from dt_tools.dom0 import Given, XenOptions
    from dt_tools.platform import Platform
    from dt_tools.profiles import Window
    from dt_tools.tree import Tree
    from xl_configs import GuestConfig

_PROFILES = ("xen-4.20", "xen-4.22", "xen-xlnx4.17")
_DRIVERS = ("smmu", "smmuv3", "ipmmu", "its")
_MAX_VCPUS = 128
_RANGE = re.compile(r"([^:]+):([^:]+)")
# What the second number of an option is, where it is no size.
_SECOND = {"--initrd": "the end", "--v2m-spis": "the number of SPIs"}
# Options that say something about Xen's own tree, by the name of their argument.
_XEN_ONLY = {
    "memory": "--dom0-memory",
    "vcpus": "--dom0-vcpus",
    "bootargs": "--dom0-bootargs",
    "initrd": "--initrd",
    "grant_table": "--grant-table",
    "regions": "--extended-regions",
    "ipa_bits": "--ipa-bits",
    "drivers": "--drivers",
    "dtuart": "--dtuart",
    "v2m_spis": "--v2m-spis",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("host", metavar="HOST.dtb", help="the board (- for stdin)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="dom0's DTB, or its source if FILE ends in .dts (- for stdout)",
    )
    parser.add_argument(
        "--host-out",
        metavar="FILE",
        help="the host's tree for Xen, xen,passthrough on what is given away",
    )
    parser.add_argument(
        "--give-away",
        metavar="PATH",
        action="append",
        default=[],
        help="a device that dom0 does not get (repeatable)",
    )
    parser.add_argument(
        "--guest",
        metavar="GUEST.cfg",
        action="append",
        default=[],
        help="a guest whose dtdev dom0 does not get (repeatable; a name given twice counts once)",
    )
    parser.add_argument(
        "--viommu",
        choices=("smmuv3", "none"),
        help="whether dom0 has vSMMUs (default smmuv3; with --profile what Xen does)",
    )
    parser.add_argument(
        "--interrupts",
        choices=("combined", "refuse"),
        help="what becomes of a vSMMU whose interrupts are not the GIC's (default combined)",
    )
    parser.add_argument(
        "--profile", choices=_PROFILES, help="the tree that Xen of that version gives dom0"
    )
    _add_xen_arguments(parser.add_argument_group("with --profile, what the board does not tell"))
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the changes against HOST.dtb as a diff, whatever is in FILE; write nothing",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr")


def _add_xen_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dom0-memory",
        dest="memory",
        metavar="BASE:SIZE",
        action="append",
        help="a bank of dom0's RAM (repeatable)",
    )
    group.add_argument("--dom0-vcpus", dest="vcpus", metavar="N", help="dom0's vCPUs")
    group.add_argument("--dom0-bootargs", dest="bootargs", metavar="TEXT", help="its command line")
    group.add_argument("--initrd", metavar="START:END", help="its ramdisk's place, or none")
    group.add_argument("--grant-table", metavar="BASE:SIZE", help="place of its grant table")
    group.add_argument(
        "--extended-regions",
        dest="regions",
        metavar="BASE:SIZE,...",
        help="its extended regions, or none",
    )
    group.add_argument("--ipa-bits", metavar="N", help="width of guest physical addresses")
    group.add_argument(
        "--drivers", metavar="LIST", help=f"drivers of this build, of {','.join(_DRIVERS)}, or none"
    )
    group.add_argument("--dtuart", metavar="PATH", help="UART that Xen keeps, or none")
    group.add_argument(
        "--v2m-spis",
        metavar="FIRST:COUNT",
        action="append",
        help="SPIs (GIC ids) of a GICv2m frame (repeatable)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Build and write."""
    _check(arguments)
    platform = load_platform(arguments.host)
    given, extra = _given(arguments, platform)
    tree, notices = _build(arguments, platform, given)
    marked = _marked(arguments, platform, given)
    if arguments.dry_run:
        write({"-": _diff(arguments, platform.tree, tree, marked)})
    else:
        outputs = {}
        if arguments.output is not None:
            outputs[arguments.output] = tree_output(tree, arguments.output)
        if marked is not None:
            outputs[arguments.host_out] = tree_output(marked, arguments.host_out)
        write(outputs, (arguments.host, *arguments.guest))
    if not arguments.quiet:
        for notice in (*notices, *extra):
            say(f"vsmmu: notice: {notice}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """What argparse cannot tell."""
    outputs = [n for n in (arguments.output, arguments.host_out) if n is not None]
    if not outputs and not arguments.dry_run:
        raise FileError("nothing to do: give -o FILE, --host-out FILE or --dry-run")
    if len(outputs) == 2 and outputs[0] == outputs[1]:
        raise FileError(f"{outputs[0]}: --output and --host-out name the same file")
    if arguments.profile is None:
        for name, option in _XEN_ONLY.items():
            if getattr(arguments, name) is not None:
                raise FileError(f"{option}: says something about Xen's own tree; give --profile")
    elif arguments.interrupts is not None:
        raise FileError("--interrupts: Xen's own tree has no choice; leave --profile out")


def _given(arguments: argparse.Namespace, platform: Platform) -> tuple[Given, tuple[Notice, ...]]:
    """What dom0 does not get, and what is to be said of the guests' PCI functions."""
    from dt_tools.dom0 import take

    owners: list[tuple[str, tuple[str, ...]]] = []
    extra: list[Notice] = []
    taken: set[str] = set()
    for name in dict.fromkeys(arguments.guest):
        config = load_config(name)
        owners.append((name, config.dtdev))
        taken.update(config.dtdev)
        extra += _pci_notices(platform, name, config)
    own = tuple(path for path in arguments.give_away if path not in taken)
    if own:
        owners.append(("--give-away", own))
    return take(platform, owners), tuple(extra)


def _pci_notices(platform: Platform, name: str, config: GuestConfig) -> list[Notice]:
    from dt_tools.binding import Notice

    if not config.pci:
        return []
    bridges = [m.path for m in platform.masters if m.is_pci and m.status == "okay"]
    text = f"{name} has PCI functions; host bridges stay enabled in dom0's tree"
    return [Notice("DT618", bridges[0] if bridges else "/", text)]


def _build(
    arguments: argparse.Namespace, platform: Platform, given: Given
) -> tuple[Tree, tuple[Notice, ...]]:
    from dt_tools.dom0 import VERSIONS, build_dom0, build_xen_dom0

    if arguments.profile is None:
        made = build_dom0(
            platform,
            viommu=arguments.viommu != "none",
            interrupts=arguments.interrupts or "combined",
            given=given,
        )
    else:
        made = build_xen_dom0(platform, VERSIONS[arguments.profile], _options(arguments), given)
    return made, made.notices


def _marked(arguments: argparse.Namespace, platform: Platform, given: Given) -> Tree | None:
    """The host's tree with marks, when it is wanted."""
    from dt_tools.dom0 import mark_host

    wanted = arguments.host_out is not None or (arguments.dry_run and given.paths)
    return mark_host(platform, given) if wanted else None


def _diff(arguments: argparse.Namespace, host: Tree, tree: Tree, marked: Tree | None) -> bytes:
    from vsmmu.cli.dry_run import tree_diff

    name = arguments.host
    text = tree_diff(host, tree, name, arguments.output or "dom0")
    if marked is not None:
        text += tree_diff(host, marked, name, arguments.host_out or "host for Xen")
    return text.encode()


def _options(arguments: argparse.Namespace) -> XenOptions:
    """The options about Xen's tree. Raises FileError for one that cannot be read."""
    from dt_tools.dom0 import XenOptions

    memory, initrd = arguments.memory, arguments.initrd
    spis = [_pair("--v2m-spis", text) for text in arguments.v2m_spis or ()]
    for first, count in spis:
        if first < 32 or first + count > 1020:
            raise FileError(f"--v2m-spis {first}:{count}: SPIs have GIC ids 32 to 1019")
    bootargs = arguments.bootargs
    if bootargs is not None and not (bootargs.isascii() and bootargs.isprintable()):
        raise FileError("--dom0-bootargs: not printable ASCII")
    return XenOptions(
        memory=None if memory is None else tuple(_window("--dom0-memory", m) for m in memory),
        vcpus=_number("--dom0-vcpus", arguments.vcpus, 1, _MAX_VCPUS),
        bootargs=bootargs,
        initrd=None if initrd is None else _span("--initrd", initrd),
        grant_table=_optional_window("--grant-table", arguments.grant_table),
        regions=_regions(arguments.regions),
        ipa_bits=_number("--ipa-bits", arguments.ipa_bits, 32, 48),
        drivers=_drivers(arguments.drivers),
        dtuart=arguments.dtuart,
        v2m_spis=tuple(spis),
        viommu=None if arguments.viommu is None else arguments.viommu == "smmuv3",
    )


def _number(option: str, text: str | None, least: int, most: int) -> int | None:
    if text is None:
        return None
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not least <= value <= most:
        raise FileError(f"{option} {text}: expected a number from {least} to {most}")
    return value


def _pair(option: str, text: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    try:
        first, second = (int(part, 0) for part in found.groups()) if found else (-1, -1)
    except ValueError:
        first = second = -1
    if min(first, second) < 0:
        raise FileError(f"{option} {text}: expected two numbers, as in 0x80000000:0x40000000")
    if not second:
        raise FileError(f"{option} {text}: {_SECOND.get(option, 'the size')} is 0")
    if first >= 1 << 48 or second > 1 << 48:
        raise FileError(f"{option} {text}: above 48 bits, the widest address there is")
    return first, second


def _window(option: str, text: str) -> Window:
    from dt_tools.profiles import Window

    base, size = _pair(option, text)
    if (base | size) & 0xFFF:
        raise FileError(f"{option} {text}: not whole pages of 4 KiB")
    return Window(base, size)


def _optional_window(option: str, text: str | None) -> Window | None:
    return None if text is None else _window(option, text)


def _span(option: str, text: str) -> tuple[int, int] | tuple[()]:
    if text == "none":
        return ()
    start, end = _pair(option, text)
    if end <= start:
        raise FileError(f"{option} {text}: ends before it starts")
    return start, end


def _regions(text: str | None) -> tuple[Window, ...] | None:
    if text is None:
        return None
    parts = () if text == "none" else text.split(",")
    return tuple(_window("--extended-regions", part) for part in parts)


def _drivers(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in _DRIVERS:
            raise FileError(f"--drivers {name}: unknown; known: {', '.join(_DRIVERS)}")
    return frozenset(names)
