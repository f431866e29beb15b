# SPDX-License-Identifier: BSD-2-Clause
"""docs/conformance.md says what the sources say."""

from __future__ import annotations

import pytest

from vsmmu import conformance
from vsmmu.conformance_clauses import OUT_OF_SCOPE

ROWS = {row.number: row for row in conformance.rows()}


def test_the_document_is_up_to_date() -> None:
    """After a change of docstrings, features or marked tests: make conformance."""
    assert conformance.DOCUMENT.read_text() == conformance.render()


def test_every_clause_named_in_the_sources_has_a_row() -> None:
    assert conformance.unknown_tags() == {}


def test_clauses_stand_once_and_in_order() -> None:
    numbers = [[int(part) for part in row.number.split(".")] for row in conformance.rows()]
    assert numbers == sorted(numbers)
    assert len(ROWS) == len(numbers)


def test_modules_exist() -> None:
    for row in ROWS.values():
        for place in row.places:
            assert (conformance._ROOT / "vsmmu" / f"{place}.py").is_file(), (row.number, place)


def test_the_out_of_scope_list_stands_first() -> None:
    text = conformance.render()
    first = text.index("## ")
    assert text[first:].startswith("## Out of scope")
    for feature, _ in OUT_OF_SCOPE:
        assert f"- {feature}: " in text[first : text.index("## Clauses")]


@pytest.mark.parametrize("number", ["3.5.6", "3.10.2", "3.10.3", "3.24", "4.6", "10", "17"])
def test_what_is_out_of_scope_is_refused(number: str) -> None:
    row = ROWS[number]
    assert (row.status, row.why, row.places) == ("refused", "out of scope", ())


@pytest.mark.parametrize(
    "field",
    ["rme_impl", "dpt", "ecmdq", "vatos", "mpam", "d128", "s1pi", "s2pi", "s2po", "the", "aie",
     "tables_preset", "queues_preset", "rel"],
)  # fmt: skip
def test_what_is_out_of_scope_cannot_be_built(field: str) -> None:
    assert not conformance._has(field)


@pytest.mark.parametrize(
    ("number", "place"),
    [("7.3.13", "smmu/walk"), ("4.7.3", "smmu/commands"), ("5.2.2", "smmu/ste"),
     ("6.3.9", "smmu/regfile"), ("7.4", "smmu/eventq")],
)  # fmt: skip
def test_what_the_model_does_is_implemented(number: str, place: str) -> None:
    assert ROWS[number].status == "implemented"
    assert place in ROWS[number].places


def test_marks_come_from_docstrings_of_tests() -> None:
    assert "test_legality" in ROWS["5.2.2"].no_opinion
    assert "test_legality" in ROWS["5.4.2"].no_opinion
    assert ROWS["4.7.3"].title in conformance.render()


def test_a_range_of_clauses_names_each() -> None:
    text = "IHI 0070 §7.3.13 to §7.3.16 and §3.4"
    assert [*conformance._clauses_in(text)] == ["7.3.13", "7.3.14", "7.3.15", "7.3.16", "3.4"]


def test_status_of_a_clause() -> None:
    acting = {"smmu/walk"}
    status = conformance._status
    assert status("!", "", acting, acting) == ("refused", "out of scope")
    assert status("d128", "", acting, acting) == ("refused", "no D128")
    assert status("", "", {"arch/events"}, set()) == ("not claimed", "layout only")
    assert status("", "half", acting, acting) == ("partial", "half")
    assert status("s1p", "", acting, acting) == ("implemented", "")
