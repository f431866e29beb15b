# SPDX-License-Identifier: BSD-2-Clause
"""Agreement with recorded outcomes of libxlutil 4.17 and of xl 4.20 for Arm, crashes included."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from xl_configs import Dialect, Host, SpecError, examine, parse, parse_spec
from xl_configs.guest_config import with_overrides
from xl_configs.specs.record import as_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xl_configs import ParseResult


def rows(corpus: Path, name: str) -> list[dict[str, Any]]:
    place = corpus / "xl" / name
    if not place.is_file():
        pytest.skip(f"no {place}")
    return [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]


def depth(value: Any) -> int:
    levels, layer = 0, [value]
    while layer := [x for x in layer if not isinstance(x, str)]:
        levels += 1
        layer = [x for inner in layer for x in inner]
    return levels


def thawed(value: Any) -> Any:
    if depth(value) > 200:
        return f"<list nested {depth(value)} deep>"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [thawed(x) for x in value]


def as_libxlutil_keeps_them(result: ParseResult) -> Iterator[dict[str, Any]]:
    """Its list of settings: a ``+=`` moves the elements of the earlier list into the new one."""
    kept: list[dict[str, Any]] = []
    latest: dict[str, dict[str, Any]] = {}
    for setting, total in result.accumulated():
        row = {
            "line": setting.line,
            "name": setting.name,
            "op": setting.op,
            "value": thawed(total),
        }
        if setting.op == "+=" and setting.name in latest and isinstance(total, tuple):
            latest[setting.name]["value"] = []
        latest[setting.name] = row
        kept.append(row)
    return iter(kept)


def assert_same(data: bytes, recorded: dict[str, Any], name: str) -> None:
    result = parse(data)
    if recorded["outcome"] == "abort":
        assert not result.ok, name
        return
    assert result.ok is (recorded["outcome"] == "ok"), name
    assert list(result.report) == recorded["report"], name
    if result.ok:
        assert {k: thawed(v) for k, v in result.effective.items()} == recorded["effective"], name
        assert list(as_libxlutil_keeps_them(result)) == recorded["settings"], name


@pytest.mark.parametrize("name", ["syntax-adversarial.jsonl", "syntax-random.jsonl"])
def test_hostile_syntax(corpus: Path, name: str) -> None:
    cases = rows(corpus, name)
    assert len(cases) > 200
    for case in cases:
        assert_same(base64.b64decode(case["b64"]), case["oracle"], case["id"])


def test_real_configurations(corpus: Path) -> None:
    cases = rows(corpus, "real.jsonl")
    assert len(cases) >= 39
    for case in cases:
        data = (corpus / "xl" / "real" / case["file"]).read_bytes()
        assert_same(data, case["libxlutil"], case["file"])


def spec_outcome(kind: str, text: str) -> tuple[int, list[str], dict[str, Any]]:
    """Return code, lines printed, and the fields that are not zero, as libxlutil has them."""
    printed: list[str] = []
    try:
        found = parse_spec(kind, text, printed.append)
    except SpecError as error:
        return error.code, list(error.report), {}
    if kind == "rdm":
        return 0, printed, {"strategy": found} if found else {}
    shown = {name: value for name, value in as_json(found).items() if value or value == ""}
    return 0, printed, shown


# Words that libxlutil 4.17 does not know yet; disk-specs.jsonl has what 4.20 makes of them.
LATER = re.compile(r"trusted|grant_usage")


def test_little_languages(corpus: Path) -> None:
    cases = rows(corpus, "spec-strings.jsonl")
    assert len(cases) > 100
    for case in cases:
        if case["kind"] == "disk" and LATER.search(case["text"]):
            continue
        recorded = case["oracle"]
        got = spec_outcome(case["kind"], case["text"])
        expected = (recorded["rc"], recorded["report"], recorded.get("value") or {})
        assert got == expected, case["id"]


def plain(report: tuple[str, ...]) -> list[str]:
    """Lines with bytes that are no UTF-8 as the recordings show them."""
    return [
        line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for line in report
    ]


def same_domain(ours: Any, recorded: Any) -> bool:
    """Equal domain configurations, but for what xl makes up."""
    recorded["c_info"].setdefault("uuid", "<generated>")
    if not LITERAL_UUID.fullmatch(ours["c_info"]["uuid"]):
        recorded["c_info"]["uuid"] = ours["c_info"]["uuid"]
    return bool(json.loads(json.dumps(ours)) == recorded)


LITERAL_UUID = re.compile("[0-9a-f-]{36}")


def assert_agrees(data: bytes, recorded: dict[str, Any], name: str, extra: Any = ()) -> None:
    parsed = parse(with_overrides(data, "cfg", extra or ()), "cfg")
    outcome = examine(parsed, "cfg", Dialect.STOCK, Host())
    assert outcome.exit_code == recorded["rc"], name
    if recorded["rc"] < 0:
        assert outcome.error is not None
        return
    assert plain(outcome.report) == recorded["stderr"], name
    if recorded["rc"] == 0:
        assert same_domain(dict(outcome.domain), recorded["config"]), name


def test_meaning(corpus: Path) -> None:
    cases = rows(corpus, "semantics-arm64.jsonl")
    assert len(cases) > 280
    for case in cases:
        data = case["text"].encode("utf-8", "surrogateescape")
        assert_agrees(data, case["xl"], case["id"], case.get("extra"))


def test_meaning_of_real_configurations(corpus: Path) -> None:
    for case in rows(corpus, "real.jsonl"):
        data = (corpus / "xl" / "real" / case["file"]).read_bytes()
        assert_agrees(data, case["xl_arm64"], case["file"])


def test_disks(corpus: Path) -> None:
    cases = rows(corpus, "disk-specs.jsonl")
    assert len(cases) > 40
    for case in cases:
        try:
            got = 0, [], [as_json(parse_spec("disk", case["text"]))]
        except SpecError as error:
            got = 1, list(error.report), None
        assert got == (case["xl"]["rc"], case["xl"]["stderr"], case["disks"]), case["id"]
