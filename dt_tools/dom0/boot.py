# SPDX-License-Identifier: BSD-2-Clause
"""What a host tree's /chosen tells Xen: its command line, dom0's, and the files it boots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dt_tools.tree import join_cells, reg_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.platform import Platform
    from dt_tools.tree import Node, Tree

_MODULES = ("multiboot,module", "xen,multiboot-module")
_KINDS = (
    ("kernel", ("xen,linux-zimage", "multiboot,kernel")),
    ("ramdisk", ("xen,linux-initrd", "multiboot,ramdisk")),
    ("other", ("xen,xsm-policy", "multiboot,device-tree")),
)
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([bBkKmMgGtT]?)")
_SHIFTS = {"": 10, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_FALSE = ("0", "no", "off", "false", "disable")


@dataclass(frozen=True, slots=True)
class Module:
    """A file in memory: what it is, its first address, its size, and the command line with it."""

    kind: str
    start: int
    size: int
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Boot:
    """`xen` is Xen's command line; `modules` are dom0's, in order."""

    xen: str
    modules: tuple[Module, ...]

    def module(self, kind: str) -> Module | None:
        """The first module of that kind."""
        return next((module for module in self.modules if module.kind == kind), None)

    def value(self, name: str) -> str | None:
        """The last NAME=VALUE of Xen's command line; "" when NAME stands alone, None without."""
        found = None
        for word in self.xen.split():
            key, _, value = word.partition("=")
            if key == name:
                found = value
        return found

    def is_off(self, name: str) -> bool:
        """Whether a boolean option, or the first part of a list option, says no."""
        words = self.xen.split()
        return f"no-{name}" in words or (self.value(name) or "").split(",")[0] in _FALSE

    def is_on(self, name: str) -> bool:
        """Whether an option that is off by default is switched on."""
        return self.value(name) is not None and not self.is_off(name)

    def number(self, name: str) -> int | None:
        """The option's number; None when absent, not one, or not from 1 to 2^20."""
        text = self.value(name) or ""
        try:
            number = int(text, 0) if len(text) < 16 else 0
        except ValueError:
            return None
        return number if 0 < number <= 1 << 20 else None

    def size(self, name: str) -> int | None:
        """The option's size in bytes; without a unit it is in KiB."""
        found = _SIZE.fullmatch((self.value(name) or "")[:24])
        return None if found is None else int(found[1], 0) << _SHIFTS[found[2].lower()]


def read_boot(tree: Tree) -> Boot:
    """Read /chosen."""
    chosen = tree.root.children.get("chosen")
    if chosen is None:
        return Boot("", ())
    modules = tuple(_modules(chosen))
    xen = chosen.string("xen,xen-bootargs")
    kernel = next((module for module in modules if module.kind == "kernel"), None)
    if xen is None and ("xen,dom0-bootargs" in chosen.props or (kernel and kernel.cmdline)):
        xen = chosen.string("bootargs")
    return Boot(xen or "", modules)


def find_console(tree: Tree, boot: Boot) -> Node | None:
    """The node that the tree and Xen's command line name as the console of Xen."""
    console = boot.value("console")
    if console is not None and "dtuart" not in console.split(","):
        return None
    chosen = tree.root.children.get("chosen")
    stdout = None if chosen is None else chosen.string("stdout-path")
    path = _console_path(tree, boot.value("dtuart") or stdout or "none")
    return tree.node(path) if path else None


def resolve_console(platform: Platform, name: str) -> Node | None:
    """The node that the user names by path or alias; None for `none`.

    Raises:
        UserError: there is none.
    """
    if name == "none":
        return None
    return platform.resolve(_console_path(platform.tree, name) or name)


def _console_path(tree: Tree, name: str) -> str | None:
    """The path, without the line's settings after a colon; None for an alias that is not there."""
    path = name.partition(":")[0]
    if path.startswith("/"):
        return path
    aliases = tree.root.children.get("aliases")
    return None if aliases is None or not path else aliases.string(path)


def _modules(chosen: Node) -> Iterator[Module]:
    """A ramdisk that a boot loader told Linux of, then the modules in the tree's order."""
    given = [chosen.cells(f"linux,initrd-{which}") for which in ("start", "end")]
    if all(given):
        start, end = (join_cells(cells or ()) for cells in given)
        yield Module("ramdisk", start, max(0, end - start))
    guesses = ["kernel", "ramdisk"]
    for node in chosen.walk():
        parent = node.parent
        if parent is None or not any(node.is_compatible(name) for name in _MODULES):
            continue
        known = (kind for kind, names in _KINDS if any(node.is_compatible(n) for n in names))
        kind = next(known, None) or (guesses.pop(0) if guesses else "other")
        if parent.is_compatible("xen,domain"):
            kind = "domU"
        for start, size in (reg_entries(node) or ())[:1]:
            yield Module(kind, start, size, node.string("bootargs") or "")
