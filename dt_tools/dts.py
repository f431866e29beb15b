# SPDX-License-Identifier: BSD-2-Clause
"""A tree as device-tree source text, for people to read and for `dtc` to compile.

Compiling the text gives the same nodes, properties, raw values and memory reservations; the boot
CPU id has no place in the source and stands in a comment (`dtc -b`). Values have no type in a
blob: text is written as strings, whole cells as cells and the rest as bytes, and each of the three
compiles to the bytes it was made from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.tree import Node, Tree

_PRINTABLE = frozenset(range(0x20, 0x7F))
_ESCAPES = {0x22: '\\"', 0x5C: "\\\\"}
# White space that is plausible inside a text value; any other control character is binary data.
_SPACE = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}
_WIDTH = 100


def to_dts(tree: Tree) -> str:
    """The whole tree as source, tab indented."""
    head = ["/dts-v1/;"]
    if tree.boot_cpuid:
        head.append(f"/* boot CPU {tree.boot_cpuid:#x}: dtc -b {tree.boot_cpuid} */")
    head += [f"/memreserve/ {base:#018x} {size:#018x};" for base, size in tree.memreserve]
    return "\n".join([*head, "", *_lines(tree.root, "/"), ""])


def node_to_dts(node: Node) -> str:
    """One node and all below it as source, tab indented from column 0."""
    return "\n".join([*_lines(node, node.name or "/"), ""])


def value_to_dts(raw: bytes) -> str:
    """One value as it stands right of the `=`; it must not be empty."""
    texts = _texts(raw)
    if texts is not None:
        return ", ".join(f'"{text}"' for text in texts)
    if len(raw) % 4 == 0:
        words = (raw[i : i + 4].hex().lstrip("0") or "0" for i in range(0, len(raw), 4))
        return f"<{' '.join('0x' + word for word in words)}>"
    return f"[{raw.hex(' ')}]"


def _lines(top: Node, top_name: str) -> Iterator[str]:
    # A None stands for the closing brace of the node opened at that depth.
    stack: list[tuple[int, str, Node | None]] = [(0, top_name, top)]
    after_brace = False
    while stack:
        depth, name, node = stack.pop()
        tabs = "\t" * depth
        if node is None:
            yield f"{tabs}}};"
            after_brace = False
            continue
        if depth and not after_brace:
            yield ""
        yield f"{tabs}{name} {{"
        after_brace = not node.props
        for prop, raw in node.props.items():
            yield _property(f"{tabs}\t", prop, raw)
        stack.append((depth, name, None))
        stack.extend((depth + 1, child.name, child) for child in reversed(node.children.values()))


def _property(tabs: str, name: str, raw: bytes) -> str:
    if not raw:
        return f"{tabs}{name};"
    value = value_to_dts(raw)
    line = f"{tabs}{name} = {value};"
    if len(line) > _WIDTH and value.startswith("<"):
        line = _wrap(tabs, name, value[1:-1].split(" "))
    return line


def _wrap(tabs: str, name: str, words: list[str], per_line: int = 8) -> str:
    rows = [" ".join(words[i : i + per_line]) for i in range(0, len(words), per_line)]
    return f"{tabs}{name} = <" + f"\n{tabs}\t".join(rows) + ">;"


def _texts(raw: bytes) -> list[str] | None:
    """The value as escaped strings; None when it does not look like text.

    An empty string is text only beside one that is not: a lone zero byte is more likely a number.
    """
    if raw[-1:] != b"\0" or not raw.strip(b"\0") or raw[0] == 0:
        return None
    texts = []
    for part in raw[:-1].split(b"\0"):
        if not all(char in _PRINTABLE or char in _SPACE for char in part):
            return None
        texts.append("".join(_ESCAPES.get(c) or _SPACE.get(c) or chr(c) for c in part))
    return texts
