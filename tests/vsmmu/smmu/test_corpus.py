# SPDX-License-Identifier: BSD-2-Clause
"""Every recorded program, compared with the outcome the architecture demands."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vsmmu.smmu.replay import differences, play

# Where the corpus and IHI 0070 G.b disagree, with the clause.
SPEC_DIFFERS = {
    # §4.3.4: CMD_CFGI_CD_ALL raises CERROR_ILL when stage 1 is not implemented.
    "cmd-op-046": [
        "step 14: reads 0x1, expected 0x0",
        "final GERROR: 0x1, expected 0x0",
    ],
}


@pytest.fixture(scope="module")
def cases(corpus: Path) -> list[dict[str, Any]]:
    path = corpus / "smmu" / "cases.jsonl.xz"
    if not path.is_file():
        pytest.skip(f"no SMMU programs at {path}")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("caching", ["normal", "none"])
def test_every_program_ends_as_the_architecture_says(
    cases: list[dict[str, Any]], caching: str
) -> None:
    wrong = {}
    for case in cases:
        program = case["case"]
        found = differences(program, play(program, caching=caching), case["arch"])
        if found != SPEC_DIFFERS.get(program["id"], []):
            wrong[program["id"]] = found
    assert wrong == {}
    assert len(cases) >= 568


def test_the_comparison_sees_what_differs(cases: list[dict[str, Any]]) -> None:
    """A comparison that cannot fail proves nothing: each kind of spoilt outcome is noticed."""
    spoilt: Counter[str] = Counter()
    for case in cases:
        program, arch = case["case"], case["arch"]
        played = play(program)
        for result in played["results"]:
            if result["op"] == "dma" and not program["steps"][result["i"]].get("stale_ok"):
                kind = "pa" if "pa" in result else "fault"
                result["xlate"] = "other"
                result["events"] = [{"type": "F_UUT"}]
                assert differences(program, played, arch), program["id"]
                spoilt[kind] += 1
                break
        else:
            played["regs"]["GERROR"] = "0x8"
            assert differences(program, played, arch), program["id"]
            spoilt["regs"] += 1
    assert min(spoilt.values()) > 10


def test_stale_answers_are_seen_until_invalidated(cases: list[dict[str, Any]]) -> None:
    """With caches some accesses marked `stale_ok` show the old result, without caches none do."""

    def stale(caching: str) -> int:
        count = 0
        for case in cases:
            program = case["case"]
            free = [i for i, step in enumerate(program["steps"]) if step.get("stale_ok")]
            if free:
                got = {r["i"]: r.get("pa") for r in play(program, caching=caching)["results"]}
                want = {r["i"]: r.get("pa") for r in case["arch"]["results"]}
                count += sum(got[i] != want[i] for i in free)
        return count

    assert stale("none") == 0
    assert stale("normal") > 20
