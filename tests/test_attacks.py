# SPDX-License-Identifier: BSD-2-Clause
"""docs/attacks.md names the attacks of the corpus: each row is whole, and its tests exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_suites import table, wrong

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/attacks.md"
HEAD = "| attack | test | the series | here | clause |"
# What the corpus has, by words that its rows contain.
ITEMS = (
    "CMD_CFGI_STE twice", "Config 1, 2, 3", "Config 6, 7", "V=0 after nested",
    "bypass after nested", "2^20 - 1", "not mapped", "equal StreamIDs", "SPLIT 6, 8, 10",
    "FMT linear", "65536th", "no ids", "queue is full", "three vCPUs", "same path", "65002",
    "grandchild", "#iommu-cells 2",
)  # fmt: skip


def problems(text: str) -> list[str]:
    """What is wrong with the document, a line each."""
    rows = table(text)
    out = [] if HEAD in text.splitlines() else ["no such head"]
    attacks = [row[0] for row in rows]
    out += [f"{item}: no row" for item in ITEMS if not any(item in name for name in attacks)]
    out += [f"{name}: twice" for name in sorted(set(attacks)) if attacks.count(name) > 1]
    for row in rows:
        if len(row) != 5 or not all(row):
            out.append(f"{row[0]}: a cell is missing")
        else:
            out += [f"{row[0]}: {problem}" for problem in wrong(row[1])]
    return out


def test_every_attack_has_a_test() -> None:
    assert problems(DOCUMENT.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("::test_a_linear_table", "::test_gone", "test_vsmmu.py::test_gone"),
        ("| walked as it is |", "|  |", "STRTAB_BASE_CFG.FMT linear: a cell is missing"),
        ("| bypass after nested |", "| another |", "bypass after nested: no row"),
        ("| bypass after nested |", "| STE.V=0 after nested |", "STE.V=0 after nested: twice"),
        ("`tests/dt_tools/test_attack_corpus.py::test_no_range_of_no_ids_is_asked_for`", "yes",
         "a range of no ids: neither tests nor a reason"),
        ("| clause |", "| section |", "no such head"),
    ],
)  # fmt: skip
def test_what_is_found(old: str, new: str, problem: str) -> None:
    text = DOCUMENT.read_text()
    assert old in text
    found = problems(text.replace(old, new, 1))
    assert any(problem in line for line in found), found
