# SPDX-License-Identifier: BSD-2-Clause
"""Options of the commands that build a guest: what neither configuration nor board says."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, read, say
from vsmmu.cli.inputs import add_gpaddr_argument, load_bindings

if TYPE_CHECKING:
    from dt_tools.guest import Options
    from dt_tools.pci import Topology
    from xl_configs import GuestConfig

# The ids of domains end below Xen's own (DOMID_FIRST_RESERVED).
_DOMIDS = 0x7FF0


def add_guest_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--bindings", metavar="FILE", help="write vMasterID -> (physical SMMU, pMasterID) as JSON"
    )
    parser.add_argument(
        "--bindings-in", metavar="FILE", help="an earlier --bindings: no id that it has changes"
    )
    parser.add_argument(
        "--one-vsmmu-per-psmmu",
        action="store_true",
        help="a vSMMU for each physical SMMU of the devices, instead of one for all",
    )
    parser.add_argument(
        "--interrupts",
        choices=("drop", "refuse"),
        default="drop",
        help="what becomes of those that are not SPIs of the GIC (default drop)",
    )
    add_providers_arguments(parser)
    parser.add_argument("--pci-topology", metavar="FILE", help="output of lspci -Dxxxx on the host")
    parser.add_argument(
        "--pci-domain",
        metavar="PATH=N",
        action="append",
        default=[],
        type=_pci_domain,
        help="PCI domain of a host bridge whose node does not tell it (repeatable)",
    )
    parser.add_argument(
        "--vits",
        action="store_true",
        help="the hypervisor gives the guest a virtual ITS: PCI functions have an msi-map",
    )
    parser.add_argument(
        "--domid",
        metavar="NAME=ID",
        action="append",
        default=[],
        type=_domid,
        help="id of a domain that serves virtio devices (repeatable)",
    )
    add_gpaddr_argument(parser)


def add_providers_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what becomes of clocks, regulators, resets ..."""
    parser.add_argument(
        "--providers",
        choices=("stub", "drop", "refuse"),
        default="drop",
        help="what becomes of properties that name clocks, regulators, resets ... outside the "
        "guest: stand-ins for clocks and fixed regulators, no such property, or no such guest "
        "(default drop)",
    )
    parser.add_argument(
        "--stub-clock-hz",
        metavar="HZ",
        type=_hertz,
        default=100_000_000,
        help="rate of a stand-in for a clock whose rate the board does not tell "
        "(default 100000000)",
    )


def add_pci_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what tells more of the host's PCI buses than its tree."""
    parser.add_argument("--pci-topology", metavar="FILE", help="output of lspci -Dxxxx on the host")
    parser.add_argument(
        "--pci-domain",
        metavar="PATH=N",
        action="append",
        default=[],
        type=_pci_domain,
        help="PCI domain of a host bridge whose node does not tell it (repeatable)",
    )


def load_topology(name: str | None) -> Topology | None:
    """The host's PCI functions. Raises FileError, UserError."""
    if name is None:
        return None
    from dt_tools.pci import read_lspci

    return read_lspci(read(name).decode("utf-8", "replace"), name)


def guest_options(arguments: argparse.Namespace, config: GuestConfig) -> Options:
    """What the arguments say.

    Raises:
        FileError: a file cannot be read.
        DtError: it is not of its form.
    """
    from dt_tools.guest import Options

    old = None if arguments.bindings_in is None else load_bindings(arguments.bindings_in)
    if old is not None and old.guest != config.name:
        text = f"DT510 /: {arguments.bindings_in} is of the guest {old.guest!r}"
        say(f"vsmmu: notice: {text}, not of {config.name!r}")
    _check_domids(arguments.domid, config)
    return Options(
        old=old,
        one_vsmmu_per_psmmu=arguments.one_vsmmu_per_psmmu,
        domids=dict(arguments.domid),
        topology=load_topology(arguments.pci_topology),
        pci_domains=dict(arguments.pci_domain),
        vits=arguments.vits,
        interrupts=arguments.interrupts,
        providers=arguments.providers,
        stub_clock_hz=arguments.stub_clock_hz,
    )


def _check_domids(domids: list[tuple[str, int]], config: GuestConfig) -> None:
    """Say which of them are for nobody; refuse two ids of one domain."""
    if len(dict(domids)) < len(set(domids)):
        raise FileError("--domid: one domain is given two ids")
    named = {entry.backend_domname for entry in config.virtio}
    named |= {disk.backend_domname for disk in config.disk}
    for name, _ in domids:
        if name not in named:
            say(f"vsmmu: notice: --domid {name}: no virtio device is served by it")


def _domid(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not re.fullmatch("[0-9]{1,5}", number) or int(number) >= _DOMIDS:
        raise argparse.ArgumentTypeError(f"{text}: NAME=ID, an id below {_DOMIDS}")
    return name, int(number)


def _pci_domain(text: str) -> tuple[str, int]:
    path, _, number = text.rpartition("=")
    if not path.startswith("/") or not re.fullmatch("0x[0-9a-fA-F]{1,8}|[0-9]{1,9}", number):
        raise argparse.ArgumentTypeError(f"{text}: PATH=N, the path of a host bridge and a number")
    return path, int(number, 16 if number.startswith("0x") else 10)


def _hertz(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
    if not 0 < value < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 to 4294967295")
    return value
