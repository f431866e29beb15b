# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu dom0less-dtb`: the host's tree with guests that Xen starts itself, and their trees."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.json_text import json_text
from vsmmu.cli.files import FileError, say, write
from vsmmu.cli.guest_options import add_providers_arguments
from vsmmu.cli.inputs import (
    add_gpaddr_argument,
    load_config,
    load_partial,
    load_platform,
    tree_change,
    tree_output,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.binding import Notice
    from dt_tools.dom0less import Dom0less, GuestInput, Module
    from dt_tools.tree import Node, Tree
    from xl_configs import GuestConfig

_KINDS = ("kernel", "ramdisk", "dtb")
_PROFILES = ("series", "xen-4.20", "xen-4.22", "xen-xlnx4.17")
_ENHANCED = ("enabled", "no-xenstore", "disabled")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19}")
_PLACE = re.compile(rf"(?:(?P<name>.+?)=)?(?P<base>{_NUMBER.pattern})(?:,(?P<size>.+))?", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "inputs", metavar="GUEST.cfg", nargs="+", help="guest configurations, in order of start"
    )
    parser.add_argument("--host", metavar="HOST.dtb", required=True, help="the board")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the host's tree for Xen, or its source if FILE ends in .dts (- for stdout)",
    )
    parser.add_argument(
        "--partial-dir",
        metavar="DIR",
        help="where each guest's partial DTB goes, as NAME-passthrough.dtb (default: beside FILE)",
    )
    parser.add_argument(
        "--guest-dir", metavar="DIR", help="write the tree that Xen builds as NAME-guest.dtb too"
    )
    _add_module_arguments(parser)
    parser.add_argument(
        "--enhanced",
        metavar="[NAME=]VALUE",
        action="append",
        default=[],
        help="xen,enhanced: enabled, no-xenstore or disabled (default: none)",
    )
    parser.add_argument(
        "--unsafe-no-iommu",
        metavar="PATH",
        action="append",
        default=[],
        help="assign this device though no SMMU contains its DMA",
    )
    add_providers_arguments(parser)
    parser.add_argument(
        "--profile",
        choices=_PROFILES,
        default="series",
        help="the Xen that reads the trees (default series: with the vSMMUv3 series)",
    )
    parser.add_argument(
        "--imagebuilder",
        metavar="FILE",
        help="write a configuration for ImageBuilder; the host's tree (-o, a blob) then gets the"
        " marks alone, and addresses are not used",
    )
    parser.add_argument(
        "--bindings", metavar="FILE", help="write each guest's vMasterID map as JSON, a line each"
    )
    add_gpaddr_argument(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the change of the host's tree, and of the partial trees against the files that"
        " are there, as diffs; write nothing",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr")


def _add_module_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the boot loader puts what Xen starts the guests from."""
    for kind in ("kernel", "ramdisk"):
        parser.add_argument(
            f"--{kind}",
            metavar="[NAME=]ADDR[,SIZE]",
            action="append",
            default=[],
            help=f"host address of the guest's {kind}; SIZE is bytes or a file (default: that of "
            "the configuration)",
        )
    parser.add_argument(
        "--dtb",
        metavar="[NAME=]ADDR",
        action="append",
        default=[],
        help="host address of the guest's partial DTB",
    )
    parser.add_argument(
        "--modules-at",
        metavar="ADDR",
        type=_address,
        help="place modules without an address from ADDR on, each at the next free 2 MiB",
    )


def run(arguments: argparse.Namespace) -> int:
    """Build and write."""
    from dt_tools.dom0less import XENS, build_dom0less

    if not (arguments.output or arguments.imagebuilder or arguments.dry_run):
        raise FileError("nothing to write: give -o FILE, --imagebuilder FILE or --dry-run")
    _check_imagebuilder(arguments)
    configs = [load_config(name) for name in arguments.inputs]
    names = _names(arguments, configs)
    platform = load_platform(arguments.host)
    guests = _guests(arguments, configs, names)
    built = build_dom0less(
        platform,
        guests,
        xen=XENS[arguments.profile],
        unsafe=arguments.unsafe_no_iommu,
        modules_at=None if arguments.imagebuilder else arguments.modules_at,
        addresses=not arguments.imagebuilder,
        providers=arguments.providers,
        stub_clock_hz=arguments.stub_clock_hz,
        address_bits=arguments.gpaddr_bits,
    )
    extra: list[Notice] = []
    partials = _partials(arguments, built, names)
    outputs = _outputs(arguments, built, names, partials, extra)
    if arguments.dry_run:
        _print_change(arguments, built, platform.tree, partials)
    else:
        inputs = [arguments.host, *arguments.inputs, *(c.device_tree for c in configs)]
        write(outputs, inputs)
    if not arguments.quiet:
        for notice in (*built.notices, *extra):
            say(f"vsmmu: notice: {notice}")
    return 0


def _check_imagebuilder(arguments: argparse.Namespace) -> None:
    output = arguments.output or ""
    if arguments.imagebuilder and output.endswith(".dts"):
        raise FileError(f"{output}: ImageBuilder's DEVICE_TREE is a blob, not source; name it .dtb")


def _print_change(
    arguments: argparse.Namespace, built: Dom0less, host: Tree, partials: Sequence[str | None]
) -> None:
    from vsmmu.cli.dry_run import tree_diff

    name = arguments.output or "host tree for Xen"
    tree = built.marked if arguments.imagebuilder else built.tree
    text = tree_diff(host, tree, arguments.host, name)
    for file, domain in zip(partials, built.domains, strict=True):
        text += "" if file is None else tree_change(domain.fragment.tree, file)
    write({"-": text.encode("utf-8", "surrogateescape")})


# Arguments that say which guest they are about.


class _Place(NamedTuple):
    """One --kernel, --ramdisk or --dtb."""

    text: str
    name: str | None
    base: int
    size: str | None


def _address(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write 0x50000000 or decimal")
    return int(text, 0) if text[:2].lower() == "0x" else int(text)


def _names(arguments: argparse.Namespace, configs: Sequence[GuestConfig]) -> list[str]:
    """What the guests are called in arguments and files: their names, which must differ."""
    names = [config.name for config in configs]
    for name, file in zip(names, arguments.inputs, strict=True):
        if names.count(name) > 1:
            raise FileError(f"{file}: another guest is called {name!r} too; change name")
    return names


def _places(option: str, texts: Sequence[str]) -> Iterator[_Place]:
    for text in texts:
        match = _PLACE.fullmatch(text)
        if match is None or (option == "dtb" and match["size"]):
            form = "[NAME=]ADDR" if option == "dtb" else "[NAME=]ADDR[,SIZE]"
            raise FileError(f"--{option} {text}: expected {form}")
        yield _Place(text, match["name"], _address(match["base"]), match["size"])


def _of(option: str, name: str | None, text: str, names: Sequence[str]) -> int:
    """The guest that an argument is about; it may leave the name out where there is one guest."""
    if name is None and len(names) == 1:
        return 0
    if name is None:
        raise FileError(f"--{option} {text}: which guest? give NAME= ({', '.join(names)})")
    if name not in names:
        raise FileError(f"--{option} {text}: no guest is called {name} ({', '.join(names)})")
    return names.index(name)


def _guests(
    arguments: argparse.Namespace, configs: Sequence[GuestConfig], names: Sequence[str]
) -> list[GuestInput]:
    from dt_tools.dom0less import GuestInput, Module

    modules: list[dict[str, Module]] = [{} for _ in configs]
    for option in _KINDS:
        for place in _places(option, getattr(arguments, option)):
            at = _of(option, place.name, place.text, names)
            kind = "device-tree" if option == "dtb" else option
            if kind in modules[at]:
                raise FileError(f"--{option} {place.text}: {names[at]} has one already")
            unsized = option == "dtb" or arguments.imagebuilder
            size = 0 if unsized else _size(option, place, configs[at])
            modules[at][kind] = Module(kind, place.base, size)  # type: ignore[arg-type]
    enhanced = _enhanced(arguments, names)
    guests = []
    for index, config in enumerate(configs):
        sizes: dict[str, int] = {}
        if not arguments.imagebuilder:
            if arguments.modules_at is not None:
                sizes = _sizes(config, modules[index])
            _check_placed(arguments, config, names[index], modules[index])
        guests.append(
            GuestInput(
                config,
                tuple(modules[index].values()),
                load_partial(config),
                enhanced.get(index),
                tuple(sizes.items()),
            )
        )
    return guests


def _enhanced(arguments: argparse.Namespace, names: Sequence[str]) -> dict[int, str]:
    found = {}
    for text in arguments.enhanced:
        name, _, value = text.rpartition("=")
        if value not in _ENHANCED:
            raise FileError(f"--enhanced {text}: expected one of {', '.join(_ENHANCED)}")
        found[_of("enhanced", name or None, text, names)] = value
    return found


def _size(option: str, place: _Place, config: GuestConfig) -> int:
    """Bytes of a module: as given, of the file given, or of the file that the cfg names."""
    if place.size is not None and _NUMBER.fullmatch(place.size):
        return _address(place.size)
    file = place.size or (config.kernel if option == "kernel" else config.ramdisk)
    if file is None:
        raise FileError(f"--{option} {place.text}: the configuration names no {option}; give SIZE")
    return _file_size(file, f"--{option} {place.text}")


def _file_size(file: str, what: str) -> int:
    try:
        size = Path(file).stat().st_size
    except (OSError, ValueError):
        raise FileError(f"{what}: {file} is not here; give its SIZE in bytes") from None
    return size


def _sizes(config: GuestConfig, given: dict[str, Module]) -> dict[str, int]:
    files = {"kernel": config.kernel, "ramdisk": config.ramdisk}
    return {
        kind: _file_size(file, f"--modules-at: {kind}")
        for kind, file in files.items()
        if file is not None and kind not in given
    }


def _check_placed(
    arguments: argparse.Namespace, config: GuestConfig, name: str, given: dict[str, Module]
) -> None:
    """Every module needs a place, unless they are all given one."""
    if arguments.modules_at is not None:
        if config.kernel is None and "kernel" not in given:
            raise FileError(f"{name}: the configuration names no kernel; give --kernel ADDR,SIZE")
        return
    needed = {
        "kernel": True,
        "ramdisk": config.ramdisk is not None,
        "device-tree": bool(config.dtdev or config.device_tree),
    }
    for kind, wanted in needed.items():
        if wanted and kind not in given:
            option = "dtb" if kind == "device-tree" else kind
            raise FileError(f"{name}: where is its {kind}? give --{option} or --modules-at ADDR")


# Files.


def _partials(
    arguments: argparse.Namespace, built: Dom0less, names: Sequence[str]
) -> list[str | None]:
    """The file of each guest's partial tree, None for a guest without one."""
    folder = arguments.partial_dir
    if folder is None:
        beside = arguments.output if arguments.output not in (None, "-") else arguments.imagebuilder
        folder = os.path.dirname(beside or "")
    return [
        None
        if domain.blob is None
        else os.path.join(folder, f"{_file_name(name, domain.node.name)}-passthrough.dtb")
        for name, domain in zip(names, built.domains, strict=True)
    ]


def _outputs(
    arguments: argparse.Namespace,
    built: Dom0less,
    names: Sequence[str],
    partials: Sequence[str | None],
    extra: list[Notice],
) -> dict[str, bytes]:
    from dt_tools import blob
    from dt_tools.dom0less import XENS

    outputs: dict[str, bytes] = {}
    for name, domain, partial in zip(names, built.domains, partials, strict=True):
        if partial is not None and domain.blob is not None:
            _add(outputs, partial, domain.blob)
            extra += _renamed(name, domain.node, partial)
    if arguments.guest_dir is not None:
        if arguments.imagebuilder:
            raise FileError("--guest-dir: ImageBuilder decides where modules go; leave it out")
        trees = built.guests(XENS[arguments.profile], arguments.gpaddr_bits)
        for name, domain, tree in zip(names, built.domains, trees, strict=True):
            file = f"{_file_name(name, domain.node.name)}-guest.dtb"
            file = os.path.join(arguments.guest_dir, file)
            _add(outputs, file, blob.write(tree))
            extra += _renamed(name, domain.node, file)
    tree = built.marked if arguments.imagebuilder else built.tree
    for file, data in _main(arguments, built, tree, partials, extra):
        _add(outputs, file, data)
    return outputs


def _add(outputs: dict[str, bytes], file: str, data: bytes) -> None:
    if file in outputs:
        raise FileError(f"{file}: two outputs name the same file")
    outputs[file] = data


def _renamed(name: str, node: Node, file: str) -> list[Notice]:
    """A notice when a file has the name of the guest's node, as the guest's own is not fit."""
    from dt_tools.binding import Notice

    if _PLAIN.fullmatch(name):
        return []
    return [Notice("DT620", node.path, f"name {name!r} is no plain file name: the file is {file}")]


def _main(
    arguments: argparse.Namespace,
    built: Dom0less,
    tree: Tree,
    partials: Sequence[str | None],
    extra: list[Notice],
) -> Iterator[tuple[str, bytes]]:
    from dt_tools.binding import Notice
    from dt_tools.dom0less import imagebuilder

    if arguments.output:
        yield arguments.output, tree_output(tree, arguments.output)
    if arguments.imagebuilder:
        here = os.path.dirname(arguments.imagebuilder)
        near = [None if file is None else _near(file, here) for file in partials]
        host = None if arguments.output in (None, "-") else _near(arguments.output, here)
        text, notices = imagebuilder(built.domains, near, host)
        extra += notices
        if arguments.modules_at is not None or any(getattr(arguments, one) for one in _KINDS):
            unused = "addresses of modules are not used: ImageBuilder chooses its own"
            extra.append(Notice("DT632", "/chosen", unused))
        yield arguments.imagebuilder, text.encode("utf-8", "surrogateescape")
    if arguments.bindings:
        objects = (json_text(d.fragment.bindings.to_json()) for d in built.domains)
        yield arguments.bindings, "".join(f"{line}\n" for line in objects).encode()


def _near(file: str, folder: str) -> str:
    """A file's name as seen from the folder of ImageBuilder's configuration."""
    return os.path.relpath(file, folder or ".")


def _file_name(name: str, node: str) -> str:
    """A guest's name where it is fit for a file, else its node's."""
    return name if _PLAIN.fullmatch(name) else node
