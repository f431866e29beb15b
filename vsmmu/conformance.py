# SPDX-License-Identifier: BSD-2-Clause
"""Writes docs/conformance.md from the sources: `python -m vsmmu.conformance`.

A clause of IHI 0070 (issue G.b) is implemented where a module of the physical SMMU model names it
in a docstring or comment, as in `IHI 0070 §7.3`, or uses the layout that names it. It is refused
where the identification field it depends on cannot be set. What is missing of a clause is said in
`vsmmu.conformance_clauses`. A test whose docstring says "no second opinion" marks the
clauses that the docstring names, or else those of its module.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vsmmu.conformance_clauses import CLAUSES, OUT_OF_SCOPE

_ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = _ROOT / "docs" / "conformance.md"
_SOURCES = ("vsmmu/arch", "vsmmu/smmu", "vsmmu/memory.py", "vsmmu/queue.py")
_TESTS = "tests/vsmmu"
# Diagnostics and replay: they name clauses and carry none of them out.
_TALK = (
    "arch/legality", "arch/legality_cd", "arch/legality_others", "arch/legality_ste",
    "arch/describe", "smmu/replay",
)  # fmt: skip
# Registers are found by their names, and served by one module.
_REGISTERS, _REGISTER_FILE = "6.3", "smmu/regfile"
_TAG = re.compile(r"§(\d+(?:\.\d+)*)(?: to §(\d+(?:\.\d+)*))?")
_NO_OPINION = "no second opinion"


@dataclass(frozen=True, slots=True)
class Row:
    """One clause: its status is "implemented", "partial", "refused" or "absent"."""

    number: str
    title: str
    status: str
    why: str
    places: tuple[str, ...]
    no_opinion: tuple[str, ...]


def rows() -> list[Row]:
    """Every clause, in the order of the specification."""
    tagged, used, marks = _tags(), _uses(), _marks()
    found = []
    for number, title, needs, missing, unnamed in _table():
        named = {place for place in unnamed.replace(" ", "").split(",") if place}
        places = tagged[number] | used[number] | _users(title) | named
        acting = {place for place in places if not place.startswith("arch/")}
        status, why = _status(needs, missing, places, acting)
        shown = () if status == "refused" else tuple(sorted(acting or places))
        marked = tuple(sorted(marks[number])) if shown else ()
        found.append(Row(number, title, status, why, shown, marked))
    return found


def unknown_tags() -> dict[str, tuple[str, ...]]:
    """Clauses named in the sources that no row stands for, nor a row above or below them."""
    return {
        number: tuple(sorted(places))
        for number, places in _raw_tags().items()
        if not any(_within(number, row[0]) or _within(row[0], number) for row in _table())
    }


def _table() -> list[tuple[str, str, str, str, str]]:
    """Number, title, needs, what is missing, modules: the columns of CLAUSES."""
    found = []
    for line in filter(None, CLAUSES.splitlines()):
        columns = [part.strip() for part in line.split("|")]
        number, title, needs, missing, unnamed = (columns + [""] * 4)[:5]
        found.append((number, title, needs, missing, unnamed))
    return found


def _status(needs: str, missing: str, places: set[str], acting: set[str]) -> tuple[str, str]:
    if needs == "!":
        return "refused", "out of scope"
    absent = [name for name in needs.replace(" ", "").split(",") if name and not _has(name)]
    if absent:
        return "refused", ", ".join(f"no {name.upper()}" for name in absent)
    if not acting:
        layout = "layout only" if places else ""
        return "not claimed", "; ".join(filter(None, (layout, missing)))
    return ("partial", missing) if missing else ("implemented", "")


@cache
def _has(field: str) -> bool:
    """Whether an SMMU can be made that sets this identification field."""
    from vsmmu.smmu.features import Features

    try:
        Features.default().replace(**{field: 1})
    except ValueError as error:
        return "not modelled" not in str(error)
    return True


# What the sources name.


def _files(*tops: str) -> Iterator[tuple[str, str]]:
    """(path from the root, text) of each source file, in a fixed order."""
    for top in tops:
        place = _ROOT / top
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if _short(str(path.relative_to(_ROOT))) not in _TALK:
                yield str(path.relative_to(_ROOT)), path.read_text()


def _short(path: str) -> str:
    return path.removeprefix("vsmmu/").removesuffix(".py")


def _clauses_in(text: str) -> Iterator[str]:
    """Clause numbers in a text; a range names each clause of its last level."""
    for first, last in _TAG.findall(text):
        yield first
        if last:
            stem, _, low = first.rpartition(".")
            for number in range(int(low) + 1, int(last.rpartition(".")[2]) + 1):
                yield f"{stem}.{number}"


@cache
def _raw_tags() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path, text in _files(*_SOURCES):
        for number in _clauses_in(text):
            found[number].add(_short(path))
    return found


def _tags() -> dict[str, set[str]]:
    """Modules by clause; a row has the modules that name it or a clause below it without a row."""
    numbers = [row[0] for row in _table()]
    found: dict[str, set[str]] = defaultdict(set)
    for number, places in _raw_tags().items():
        above = [row for row in numbers if _within(number, row)]
        if above:
            found[max(above, key=len)] |= places
    return found


def _within(number: str, above: str) -> bool:
    return number == above or number.startswith(above + ".")


def _uses() -> dict[str, set[str]]:
    """Modules by clause that import a layout whose `spec` is that clause, but for registers."""
    layouts = _layouts()
    found: dict[str, set[str]] = defaultdict(set)
    for path, text in _files("vsmmu/smmu"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vsmmu.arch"):
                for alias in (one.name for one in node.names):
                    found[layouts.get(alias, "")].add(_short(path))
    return found


def _layouts() -> dict[str, str]:
    """Clause by the name of a layout."""
    import inspect
    from importlib import import_module

    from vsmmu.arch.layout import Layout

    found = {}
    for path, _ in _files("vsmmu/arch"):
        module = import_module(path.removesuffix(".py").replace("/", "."))
        for name, cls in inspect.getmembers(module, inspect.isclass):
            clause = cls.spec.removeprefix("IHI 0070 §") if issubclass(cls, Layout) else ""
            if clause and not _within(clause, _REGISTERS):
                found[name] = clause
    return found


def _users(register: str) -> set[str]:
    """Modules that name a register; the register file has all of `REGISTERS`."""
    from vsmmu.arch.feature_registers import FEATURE_REGISTERS
    from vsmmu.arch.registers import REGISTERS

    name = f'"{register}"'
    found = {_short(path) for path, text in _files("vsmmu/smmu") if name in text}
    served = {one.name for one in (*REGISTERS, *FEATURE_REGISTERS)}
    return found | {_REGISTER_FILE} if register in served else found


def _marks() -> dict[str, set[str]]:
    """Test modules by clause whose vectors nothing else confirms."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, text in _files(_TESTS):
        tree = ast.parse(text)
        module = ast.get_docstring(tree) or ""
        documented = ast.AsyncFunctionDef | ast.ClassDef | ast.FunctionDef
        texts = [ast.get_docstring(n) or "" for n in ast.walk(tree) if isinstance(n, documented)]
        for one in (module, *texts):
            if _NO_OPINION in " ".join(one.lower().split()):
                for number in [*_clauses_in(one)] or [*_clauses_in(module)]:
                    found[number].add(Path(path).stem)
    return found


# The document.


def render() -> str:
    """The text of docs/conformance.md."""
    table = rows()
    lines = [
        "# Conformance",
        "",
        "The physical SMMU model against Arm IHI 0070 issue G.b: Non-secure, SMMUv3.0 to v3.3.",
        "Written by `make conformance` from the sources: do not edit.",
        "",
        "## Out of scope",
        "",
        "Absent from the identification registers and refused when an SMMU is made:",
        "",
        *(f"- {feature}: {seen}." for feature, seen in OUT_OF_SCOPE),
        "",
        "## Clauses",
        "",
        *_legend(table),
        "",
        "| Clause | Title | Status | Modules | No second opinion |",
        "| :--- | :--- | :--- | :--- | :--- |",
        *(_line(row) for row in table),
        "",
    ]
    return "\n".join(lines)


def _legend(table: list[Row]) -> list[str]:
    count = {s: sum(row.status == s for row in table) for s in _MEANING}
    return [f"- {s} ({count[s]}): {meaning}" for s, meaning in _MEANING.items()]


_MEANING = {
    "implemented": "the modules named carry it out;",
    "partial": "they carry out a part; what is missing is said;",
    "not claimed": "no module of the model names it;",
    "refused": "the feature cannot be built into an SMMU here.",
}


def _line(row: Row) -> str:
    status = f"{row.status}: {row.why}" if row.why else row.status
    places = ", ".join(f"`{place}`" for place in row.places) or "-"
    marks = ", ".join(f"`{mark}`" for mark in row.no_opinion) or "-"
    return f"| §{row.number} | {row.title} | {status} | {places} | {marks} |"


def main() -> int:
    """Write the document; with --check, say whether it is up to date."""
    text = render()
    if sys.argv[1:] == ["--check"]:
        current = DOCUMENT.read_text() if DOCUMENT.exists() else ""
        if current != text:
            print("docs/conformance.md is not up to date: make conformance", file=sys.stderr)
        return int(current != text)
    DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
