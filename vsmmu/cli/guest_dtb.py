# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu guest-dtb`: a guest's device tree and its vMasterID map."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dt_tools.json_text import json_text
from vsmmu.cli.files import FileError, read, say, write
from vsmmu.cli.guest_options import add_guest_arguments, guest_options
from vsmmu.cli.inputs import (
    add_config_arguments,
    check_override,
    load_config,
    load_partial,
    load_platform,
    tree_change,
    tree_output,
)

if TYPE_CHECKING:
    from dt_tools.guest import GuestTree
    from dt_tools.platform import Platform
    from xl_configs import GuestConfig

# As libxl's: 1,024 bits.
_SEED_BYTES = 128
_NOT_LIBXLS = (
    "bindings",
    "bindings_in",
    "hypercalls",
    "iort",
    "acpi_path",
    "one_vsmmu_per_psmmu",
    "pci_topology",
    "pci_domain",
    "vits",
)
_PROFILES = ("xen-4.20", "xen-4.22", "xen-xlnx4.17", "xen-v3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument(
        "--host", metavar="HOST.dtb", help="the board; needed for a guest with devices"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="the guest's DTB, or its source if FILE ends in .dts (- for stdout)",
    )
    parser.add_argument(
        "--hypercalls", metavar="FILE", help="write the hypervisor calls for the devices as JSON"
    )
    parser.add_argument(
        "--iort",
        metavar="FILE",
        help="write the ACPI IORT of the guest too; each device of dtdev needs --acpi-path",
    )
    parser.add_argument(
        "--acpi-path",
        metavar="PATH=NAME",
        action="append",
        default=[],
        type=_acpi_path,
        help=r"name of a device in the guest's ACPI namespace, as \_SB.ETH0 (repeatable)",
    )
    parser.add_argument(
        "--profile",
        choices=_PROFILES,
        help="the tree that libxl of that version builds, oddities included",
    )
    parser.add_argument(
        "--rng-seed",
        metavar="SEED",
        default="omit",
        type=_seed,
        help="/chosen/rng-seed: omit (default), zero, random (128 bytes), or hex digits",
    )
    parser.add_argument(
        "--ramdisk-size",
        metavar="BYTES",
        type=_size,
        help="size of the ramdisk, when its file is not here",
    )
    add_guest_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print how the file would change, as a diff of device-tree source; write nothing",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Build and write."""
    check_override(arguments.overrides)
    _check_names(arguments)
    if arguments.profile is not None:
        return _run_profile(arguments)
    config = load_config(arguments.config, arguments.overrides)
    built = _build(arguments, config, _platform(arguments, config))
    if arguments.dry_run:
        print(tree_change(built.tree, arguments.output), end="")
        return 0
    outputs = {arguments.output: tree_output(built.tree, arguments.output)}
    if arguments.bindings is not None:
        outputs[arguments.bindings] = _json(built.bindings.to_json())
    if arguments.hypercalls is not None:
        from dt_tools.hypercalls import hypercalls

        outputs[arguments.hypercalls] = _json(hypercalls(config, built))
    if arguments.iort is not None:
        outputs[arguments.iort] = _iort(built, arguments.acpi_path)
    inputs = (arguments.config, arguments.host, config.device_tree)
    # An earlier map may be replaced by the one that goes on from it.
    again = arguments.bindings_in if arguments.bindings_in != arguments.bindings else None
    write(outputs, (*inputs, again))
    _say_notices(arguments, built.notices)
    return 0


def _build(
    arguments: argparse.Namespace, config: GuestConfig, platform: Platform | None
) -> GuestTree:
    from dt_tools.guest import build_guest

    return build_guest(
        config,
        platform=platform,
        partial=load_partial(config),
        ramdisk_size=_ramdisk_size(arguments, config.ramdisk),
        rng_seed=arguments.rng_seed,
        address_bits=arguments.gpaddr_bits,
        options=guest_options(arguments, config),
    )


def _run_profile(arguments: argparse.Namespace) -> int:
    from dt_tools.libxl import VERSIONS, build_libxl

    for option in _NOT_LIBXLS:
        if getattr(arguments, option):
            name = option.replace("_", "-")
            raise FileError(f"--{name} does not go with --profile, which builds what libxl builds")
    version = VERSIONS[arguments.profile]
    config = load_config(arguments.config, arguments.overrides, version.dialect)
    partial = None if config.device_tree is None else _partial_bytes(config.device_tree)
    built = build_libxl(
        config,
        version,
        _platform(arguments, config),
        partial,
        ramdisk_size=_ramdisk_size(arguments, config.ramdisk),
        rng_seed=arguments.rng_seed,
        address_bits=arguments.gpaddr_bits,
        domids=dict(arguments.domid),
    )
    if arguments.dry_run:
        print(tree_change(built.tree, arguments.output), end="")
        return 0
    source = arguments.output.endswith(".dts")
    data = tree_output(built.tree, arguments.output) if source else built.blob.data
    write({arguments.output: data}, (arguments.config, arguments.host, config.device_tree))
    _say_notices(arguments, built.notices)
    return 0


def _iort(built: GuestTree, names: list[tuple[str, str]]) -> bytes:
    """The guest's IORT: the vSMMU, its devices, its PCI bus."""
    from dt_tools.iort import Component, PciRoot, domu_iort
    from dt_tools.iort import write as iort_bytes

    nodes = {device.path: built.tree.node(device.guest_path) for device in built.bindings.devices}
    components = []
    for path, name in names:
        node = nodes.get(path)
        coherent = node is not None and "dma-coherent" in node.props
        components.append(Component(path, name, coherent))
    functions = tuple(
        (one.vbdf, s.smmu_path, s.stream_id) for one in built.pci for s in one.streams
    )
    roots = [PciRoot(0, functions)] if functions else []
    return iort_bytes(domu_iort(built.bindings, components, roots, coherent=True))


def _partial_bytes(name: str) -> bytes:
    """A partial tree as libxl reads it; source is compiled first."""
    from dt_tools.dts import compile_source, is_source

    data = read(name)
    if not is_source(data, name):
        return data
    folder = None if name == "-" else str(Path(name).resolve().parent)
    return compile_source(data, name, folder)


def _check_names(arguments: argparse.Namespace) -> None:
    names = (arguments.output, arguments.bindings, arguments.hypercalls, arguments.iort)
    given = [name for name in names if name is not None]
    if len(set(given)) < len(given):
        again = next(name for name in given if given.count(name) > 1)
        raise FileError(f"{again}: two outputs name the same file")


def _platform(arguments: argparse.Namespace, config: GuestConfig) -> Platform | None:
    devices = "dtdev" if config.dtdev else "pci" if config.pci else None
    if devices and not arguments.host:
        raise FileError(
            f"{arguments.config}: the guest has devices ({devices}); give --host HOST.dtb"
        )
    return load_platform(arguments.host) if arguments.host else None


def _say_notices(arguments: argparse.Namespace, notices: object) -> None:
    if not arguments.quiet and isinstance(notices, tuple):
        for notice in notices:
            say(f"vsmmu: notice: {notice}")


def _json(value: object) -> bytes:
    return (json_text(value, indent=2) + "\n").encode()


def _ramdisk_size(arguments: argparse.Namespace, path: str | None) -> int | None:
    """Bytes of the ramdisk; None, with a notice, when it is not on this machine."""
    if path is None:
        if arguments.ramdisk_size is not None:
            say("vsmmu: notice: --ramdisk-size has no effect: the guest has no ramdisk")
        return None
    if arguments.ramdisk_size is not None:
        return int(arguments.ramdisk_size)
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        text = f"ramdisk {path} is not here: linux,initrd-* are left out; --ramdisk-size says it"
        say(f"vsmmu: notice: {text}")
        return None


def _seed(text: str) -> bytes | None:
    if text == "omit":
        return None
    if text == "zero":
        return bytes(_SEED_BYTES)
    if text == "random":
        import secrets

        return secrets.token_bytes(_SEED_BYTES)
    if not re.fullmatch("(?:[0-9a-fA-F]{2}){1,1024}", text):
        raise argparse.ArgumentTypeError("omit, zero, random, or 1 to 1024 bytes as hex digits")
    return bytes.fromhex(text)


def _size(text: str) -> int:
    value = 0
    if re.fullmatch("0x[0-9a-fA-F]{1,12}|[0-9]{1,15}", text):
        value = int(text, 16 if text.startswith("0x") else 10)
    if not value:
        raise argparse.ArgumentTypeError(f"{text}: a number of bytes, 1 or more")
    return value


def _acpi_path(text: str) -> tuple[str, str]:
    path, _, name = text.rpartition("=")
    if not path.startswith("/") or not name:
        raise argparse.ArgumentTypeError(
            f"{text}: PATH=NAME, a host path and a name in the ACPI namespace"
        )
    return path, name
