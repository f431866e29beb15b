# SPDX-License-Identifier: BSD-2-Clause
"""The meaning of configurations beside the real xl 4.20 for Arm: recorded, and live when there."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest

from tests.differential.xl_oracle import COMMAND, command, outcome
from tests.xl_configs.pools import configuration
from xl_configs import Dialect, Host, examine, parse

RECORDED = Path(__file__).with_name("xl") / "recorded.jsonl.xz"
live = pytest.mark.skipif(not command(), reason=f"no arm64 xl (set {COMMAND}, see xl/README.md)")


def shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def assert_same(text: str, recorded: dict[str, Any]) -> None:
    data = text.encode("utf-8", "surrogateescape")
    ours = examine(parse(data, "cfg"), "cfg", Dialect.STOCK, Host())
    assert ours.exit_code == recorded["rc"], text
    if recorded["rc"] < 0:
        assert ours.error is not None
        return
    assert [shown(line) for line in ours.report] == recorded["stderr"], text
    if recorded["rc"] == 0:
        domain = json.loads(json.dumps(ours.domain))
        made_up = domain["c_info"]["uuid"] == "<generated>"
        if made_up:
            recorded["config"]["c_info"]["uuid"] = "<generated>"
        hvm = recorded["config"]["b_info"].get("type.hvm", {})
        if "ms_vm_genid" in hvm:
            hvm["ms_vm_genid"] = "<generated>"
        assert domain == recorded["config"], text


def test_recorded_outcomes() -> None:
    rows = [json.loads(line) for line in lzma.decompress(RECORDED.read_bytes()).splitlines()]
    assert len(rows) > 2500
    assert {row["rc"] for row in rows} >= {0, 1, 3, 6, -11}
    for row in rows:
        assert_same(row["text"], row)


def compare(seed: int, count: int) -> None:
    rnd = random.Random(seed)
    for _ in range(count):
        text = configuration(rnd)
        assert_same(text, outcome(text))


@live
def test_live() -> None:
    compare(1, 100)


@live
@pytest.mark.soak
def test_live_soak() -> None:
    compare(2, 5000)
