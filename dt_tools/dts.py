# SPDX-License-Identifier: BSD-2-Clause
"""Device-tree source text: written here, read by `dtc`.

Compiling what `to_dts` gives makes the same nodes, properties, raw values and memory reservations;
the boot CPU id has no place in the source and stands in a comment (`dtc -b`). Values have no type
in a blob: text is written as strings, whole cells as cells and the rest as bytes, and each of the
three compiles to the bytes it was made from. `dtc` itself drops a property called `name` that
repeats its node's name, and refuses another value of it.

Source that is read goes through the `dtc` program: the language has a compiler, and a second one
would differ. Source is untrusted: `dtc` gets a time and a memory limit, and the files that it would
include have to be below the folder of the source.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from dt_tools.errors import DtbError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.tree import Node, Tree

MAX_SOURCE = 16 << 20
MAX_INCLUDES = 256
# What dtc may take: a board of 1,500 nodes takes 10 ms and 4 MiB.
DTC_SECONDS = 20
DTC_MEMORY = 512 << 20

_MAGIC = b"\xd0\x0d\xfe\xed"
_SUFFIXES = (".dts", ".dtsi")
_MENTION = re.compile(rb"/(include|incbin)/")
_BLANK = re.compile(rb"\s*")
_SPACE_OR_OPEN = re.compile(rb"[\s(]*")
_NAME = 4_096
_CPP = re.compile(rb"^[ \t]*#[ \t]*(include|define|ifn?def|if)\b", re.MULTILINE)
_MESSAGES = 3  # of dtc's, in one error

_PRINTABLE = frozenset(range(0x20, 0x7F))
_ESCAPES = {0x22: '\\"', 0x5C: "\\\\"}
# White space that is plausible inside a text value; any other control character is binary data.
_SPACE = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}
_WIDTH = 100


def is_source(data: bytes, name: str = "") -> bool:
    """Whether this is source rather than a blob: by its content, or else by the file's suffix."""
    if data.startswith(_MAGIC):
        return False
    return name.lower().endswith(_SUFFIXES) or b"/dts-v1/" in data[: 1 << 16]


def compile_source(data: bytes, source: str = "dts", folder: str | None = None) -> bytes:
    """The blob that `dtc` makes of device-tree source.

    Args:
        data: the source text.
        source: its name, for messages.
        folder: where `/include/` and `/incbin/` may find files, with what is below it; None: they
            are refused.

    Raises:
        DtbError: there is no `dtc`, it refuses the source or fails, or a file that is included is
            elsewhere.
    """
    import shutil

    dtc = shutil.which("dtc")
    if dtc is None:
        hint = "install dtc (package device-tree-compiler), or compile it where dtc is"
        raise DtbError(source, "device-tree source needs dtc, which is not on PATH", hint=hint)
    if len(data) > MAX_SOURCE:
        raise DtbError(source, f"source of {len(data)} bytes, limit {MAX_SOURCE}")
    _check_includes(data, source, folder)
    return _run_dtc(dtc, data, source, folder)


def _run_dtc(dtc: str, data: bytes, source: str, folder: str | None) -> bytes:
    import subprocess

    # The shell sets the limit and becomes dtc; where it knows no such limit, dtc runs without.
    limit = 'ulimit -v "$1" 2>/dev/null; shift; exec "$@"'
    command = ["/bin/sh", "-c", limit, "sh", str(DTC_MEMORY >> 10)]
    command += [os.path.abspath(dtc), "-q", "-I", "dts", "-O", "dtb", "-o", "-", "-"]
    try:
        done = subprocess.run(  # noqa: S603 - the program is dtc, the source comes by stdin
            command,
            input=data,
            capture_output=True,
            check=False,
            cwd=folder,
            timeout=DTC_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DtbError(source, f"dtc takes longer than {DTC_SECONDS} seconds") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise DtbError(source, f"dtc cannot be started: {error}") from None
    if done.returncode == 0:
        return done.stdout
    hint = None
    if _CPP.search(data):
        hint = "it has C preprocessor lines: put it through cpp first"
    raise DtbError(source, f"dtc: {_said(done.stderr, source, done.returncode)}", hint=hint)


def _said(stderr: bytes, source: str, code: int) -> str:
    """What dtc complains of on one line: its first messages, with the name that the user gave."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    texts = [re.sub(r"^(Error|ERROR):? +", "", line) for line in lines if line]
    texts = [text.replace("<stdin>", source)[:300] for text in texts]
    texts = ["".join(c if c.isprintable() else "?" for c in text) for text in texts]
    if not texts:
        return f"ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    more = [f"and {len(texts) - _MESSAGES} more lines"] if len(texts) > _MESSAGES else []
    return ", ".join([*texts[:_MESSAGES], *more])


def _check_includes(data: bytes, source: str, folder: str | None) -> None:
    """Refuse a source that would make dtc open a file that is not below its folder.

    Wherever the words stand, in a comment or a string too: telling these apart would take dtc's
    own lexer.
    """
    root = None if folder is None else os.path.realpath(folder)
    todo = [(data, root)]
    seen: set[str] = set()
    while todo:
        text, here = todo.pop()
        for word, name in _mentions(text, source):
            place = _inside(word, name, source, root, here)
            if place in seen or word == "incbin":
                continue
            seen.add(place)
            if len(seen) > MAX_INCLUDES:
                raise DtbError(source, f"includes more than {MAX_INCLUDES} files")
            todo.append((_included(place, name, source), os.path.dirname(place)))


def _included(place: str, name: str, source: str) -> bytes:
    try:
        with open(place, "rb") as file:
            text = file.read(MAX_SOURCE + 1)
    except OSError as error:
        raise DtbError(source, f'/include/ "{name}": cannot read: {error.strerror}') from None
    if len(text) > MAX_SOURCE:
        raise DtbError(source, f'/include/ "{name}": larger than {MAX_SOURCE} bytes')
    return text


def _mentions(text: bytes, source: str) -> Iterator[tuple[str, str]]:
    """Each file name that dtc would take for one to open, with the word before it."""
    for match in _MENTION.finditer(text):
        word = match[1].decode("ascii")
        space = _SPACE_OR_OPEN if word == "incbin" else _BLANK
        at = space.match(text, match.end()).end()  # type: ignore[union-attr] # it may be empty
        if word == "incbin" and text[at : at + 1] in (b"/", b"#"):
            raise DtbError(source, "/incbin/: the file name has to stand right behind it")
        if text[at : at + 1] != b'"':
            continue
        end = text.find(b'"', at + 1, at + 1 + _NAME)
        name = text[at + 1 : end if end >= 0 else at + _NAME]
        if end < 0 or b"\\" in name or not name.isascii() or not name.decode("ascii").isprintable():
            raise DtbError(source, f"/{word}/: file name {name[:80]!a} is not plain text")
        yield word, name.decode("ascii")


def _inside(word: str, name: str, source: str, root: str | None, here: str | None) -> str:
    """The file that is meant, which must be a regular one below `root`."""
    if root is None or here is None:
        raise DtbError(source, f'/{word}/ "{name}": source that is piped in cannot include files')
    # Not resolved, since dtc looks for what this file includes beside the name it has here.
    place = os.path.join(here, name)
    target = os.path.realpath(place)
    if os.path.isabs(name) or os.path.commonpath([root, target]) != root:
        raise DtbError(source, f'/{word}/ "{name}": is outside the folder of the source')
    if not os.path.isfile(target):
        raise DtbError(source, f'/{word}/ "{name}": there is no such file')
    return place


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
