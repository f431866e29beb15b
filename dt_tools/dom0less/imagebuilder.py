# SPDX-License-Identifier: BSD-2-Clause
"""The configuration that ImageBuilder's uboot-script-gen sources: one set of lines a guest.

Written for a host tree that has the xen,passthrough marks and no nodes of domains: ImageBuilder
makes those, with addresses of its own. The names are those of its README.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.dom0less.space import memory_mib
from dt_tools.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.dom0less.merged import Domain

# Properties that no variable of ImageBuilder sets.
_UNSAID = ("viommu", "nr_spis", "sve", "max_grant_version", "max_grant_frames",
           "max_maptrack_frames", "xen,domain-p2m-mem-mb", "trap-unmapped-accesses")  # fmt: skip

# Characters that change between the double quotes of U-Boot's script, and what becomes of them.
_CHANGED = {
    "$": "U-Boot expands a variable there",
    "\\": "U-Boot takes it for a quote of what follows",
    "`": "whether it stays depends on U-Boot's shell",
}
_NAMES = {'"': "a double quote", "\n": "a newline", "\r": "a carriage return", "\0": "a NUL byte"}


def imagebuilder(
    domains: Sequence[Domain], partials: Sequence[str | None], device_tree: str | None = None
) -> tuple[str, tuple[Notice, ...]]:
    """The lines, and a DT632 for each property of a domain that they cannot say.

    `partials` are the names of the files with the domains' partial trees, `device_tree` that of
    the marked host tree, which has to be a blob; without it a DT632 says that the line is missing.
    ImageBuilder looks for all files below its -d folder.

    Raises:
        Refusal: DT632, a path or a command line that the lines, or U-Boot's script that
            ImageBuilder makes of them, cannot hold.
    """
    lines = ["# Written by vsmmu dom0less-dtb; for uboot-script-gen -c."]
    notices: list[Notice] = []
    if device_tree is not None:
        lines.append(f"DEVICE_TREE={shlex.quote(device_tree)}")
    else:
        text = "the lines have no DEVICE_TREE, as the marked host tree is in no file: add it"
        notices.append(Notice("DT632", "/chosen", text))
    lines.append(f"NUM_DOMUS={len(domains)}")
    for index, (domain, partial) in enumerate(zip(domains, partials, strict=True)):
        lines += [f"{name}[{index}]={value}" for name, value in _domain(domain, partial)]
        notices += _check_cmdline(domain)
        notices += _unsaid(domain, index)
    text = "\n".join(lines) + "\n"
    if "\0" in text:
        raise Refusal("DT632", "/chosen", "a NUL byte in a name or command line", "take it out")
    return text, tuple(notices)


def _domain(domain: Domain, partial: str | None) -> Iterator[tuple[str, str]]:
    config = domain.config
    if config.kernel is None:
        reason = "the configuration names no kernel, which ImageBuilder has to load"
        raise Refusal("DT632", domain.path, reason, "give kernel in the configuration")
    yield "DOMU_KERNEL", shlex.quote(config.kernel)
    if config.ramdisk is not None:
        yield "DOMU_RAMDISK", shlex.quote(config.ramdisk)
    if partial is not None:
        yield "DOMU_PASSTHROUGH_DTB", shlex.quote(partial)
    paths = domain.fragment.paths
    if paths:
        odd = next((path for path in paths if path.split() != [path]), None)
        if odd is not None:
            reason = "has a space, and ImageBuilder's list of paths is split at spaces"
            raise Refusal("DT632", odd, reason, "rename the node in the host tree")
        yield "DOMU_PASSTHROUGH_PATHS", shlex.quote(" ".join(paths))
    yield "DOMU_MEM", str(memory_mib(config))
    yield "DOMU_VCPUS", str(config.vcpus)
    yield "DOMU_VPL011", str(int(config.vuart == "sbsa_uart"))
    # Its default is 1 where there is a dom0, and then Xen wants one.
    yield "DOMU_ENHANCED", str(int(domain.enhanced == "enabled"))
    if config.llc_colors and "llc-colors" in domain.node.props:
        yield "DOMU_COLORS", shlex.quote(domain.node.string("llc-colors") or "")
    if config.cmdline:
        yield "DOMU_CMD", shlex.quote(config.cmdline)


def _unsaid(domain: Domain, index: int) -> Iterator[Notice]:
    if not domain.config.cmdline:
        text = "no command line: ImageBuilder gives the kernel console=ttyAMA0"
        yield Notice("DT632", domain.path, text)
    for name in _UNSAID:
        if name not in domain.node.props:
            continue
        value = "smmuv3" if name == "viommu" else _value(domain, name)
        command = f"fdt set /chosen/domU{index} {name} {value}".rstrip()
        text = f"{name} has no variable of ImageBuilder: {_line(command)}"
        yield Notice("DT632", domain.path, text)
    if domain.enhanced == "no-xenstore":
        command = f"fdt set /chosen/domU{index} xen,enhanced no-xenstore"
        yield Notice("DT632", domain.path, f"xen,enhanced has 0 and 1 alone: {_line(command)}")


def _line(command: str) -> str:
    return f"write the line `{command}` into the file that APPEND_EXTRA_CMDS names"


def _check_cmdline(domain: Domain) -> Iterator[Notice]:
    """The script has the command line between double quotes, as it is, in an `fdt set`.

    Raises:
        Refusal: DT632, the quotes would end, or the line.
    """
    cmdline = domain.config.cmdline or ""
    for char in dict.fromkeys(cmdline):
        name = _NAMES.get(char, repr(char))
        if char == '"' or (ord(char) < 32 and char != "\t") or char == "\x7f":
            reason = f"the command line has {name}, which ImageBuilder puts into U-Boot's script "
            reason += "as it is, where it breaks the command"
            raise Refusal("DT632", domain.path, reason, "take it out of the command line")
        if char in _CHANGED:
            text = f"the command line has {name}, which ImageBuilder puts into U-Boot's script as "
            yield Notice("DT632", domain.path, f"{text}it is: {_CHANGED[char]}")


def _value(domain: Domain, name: str) -> str:
    cells = domain.node.cells(name) or ()
    return f"<{' '.join(f'{cell:#x}' for cell in cells)}>" if cells else ""
