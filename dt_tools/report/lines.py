# SPDX-License-Identifier: BSD-2-Clause
"""Lines of a report: pieces of text with a style each, folded at a width.

The folding is done here, so that a terminal and a pipe get the same lines; rich is imported only
where colours are wanted, since it takes longer to load than a board takes to read. Text of a tree
is untrusted: `clean` shows control characters as escapes, and nothing is read as markup.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Wide enough that no line of a file or a pipe is folded: paths stay whole for grep.
_UNFOLDED = 10_000
# What stands in front of a folding text may take so much of the width, or the text goes below.
_NARROW = 24

Piece = tuple[str, str]


def clean(text: object) -> str:
    """Text of a tree, safe to print: anything but printable ASCII as an escape."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in plain)


class Lines:
    """Collects lines; every text is cleaned on its way in."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[list[Piece]] = []

    def blank(self) -> None:
        """An empty line."""
        self.lines.append([])

    def title(self, text: str) -> None:
        """A heading, behind an empty line."""
        self.blank()
        self.add(0, (text, "bold"))

    def add(self, indent: int, *pieces: Piece) -> None:
        """Pieces side by side, a space between; only the last one folds, under its own start."""
        *head, (text, style) = [(clean(part), kind) for part, kind in pieces]
        start = indent + sum(len(part) + 1 for part, _ in head)
        line: list[Piece] = [(" " * indent, "")] if indent else []
        for part, kind in head:
            line += [(part, kind), (" ", "")]
        if start + len(text) <= self.width:
            self.lines.append([*line, (text, style)])
            return
        if head and self.width - start < _NARROW:
            self.lines.append(line[:-1])
            start, line = min(indent + 4, self.width // 2), []
        for at, piece in enumerate(fold(text, self.width - start)):
            self.lines.append(
                [*(line if at == 0 and line else [(" " * start, "")]), (piece, style)]
            )

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()
    ) -> None:
        """Columns under a heading; the last one on a line of its own below where it does not fit.

        `styles` holds a style for the first cell of each row.
        """
        cells = [[clean(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        beside = sum(widths) + 2 * (len(widths) - 1) <= self.width
        shown = len(head) if beside or len(head) == 1 else len(head) - 1
        self.add(0, (_columns(head[:shown], widths), "dim"))
        for at, row in enumerate(cells):
            line = _columns(row[:shown], widths)
            size = min(len(row[0]), len(line))
            style = styles[at] if styles else ""
            self.lines.append([(line[:size], style), (line[size:], "")])
            if shown < len(head):
                self.add(2, (row[-1], ""))


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(cells, widths, strict=False)
    return "  ".join(f"{cell:{width}}" for cell, width in pairs).rstrip()


def fold(text: str, width: int) -> list[str]:
    """`text` in pieces of at most `width`: at spaces, else behind a slash, else cut."""
    width = max(width, 1)
    pieces = []
    while len(text) > width:
        at = text.rfind(" ", 0, width + 1)
        if at > 0:
            pieces.append(text[:at].rstrip())
            text = text[at + 1 :].lstrip()
            continue
        at = text.rfind("/", width // 2, width) + 1 or width
        pieces.append(text[:at])
        text = text[at:]
    return [*pieces, text] if text or not pieces else pieces


def width_of(out: TextIO) -> int:
    """Columns of a terminal, or of COLUMNS; elsewhere more than any line has."""
    if os.environ.get("COLUMNS", "").isdigit() and int(os.environ["COLUMNS"]) > 0:
        return int(os.environ["COLUMNS"])
    if not out.isatty():
        return _UNFOLDED
    try:
        return max(os.get_terminal_size(out.fileno()).columns, 20)
    except (OSError, ValueError, AttributeError):
        return 80


def show(lines: Iterable[Sequence[Piece]], out: TextIO | None = None) -> None:
    """Print to `out` (default: stdout), in colour on a terminal unless NO_COLOR is set."""
    stream = sys.stdout if out is None else out
    if stream.isatty():
        _colour(lines, stream)
        return
    text = "\n".join("".join(piece for piece, _ in line).rstrip() for line in lines)
    stream.write(text + "\n")


def _colour(lines: Iterable[Sequence[Piece]], stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, width=_UNFOLDED, markup=False, highlight=False, emoji=False)
    whole = Text("\n").join(Text.assemble(*line) if line else Text("") for line in lines)
    console.print(whole, soft_wrap=True)
