# SPDX-License-Identifier: BSD-2-Clause
"""The player of recorded programs, on programs small enough to read."""

from __future__ import annotations

from typing import Any

import pytest

from vsmmu.smmu.replay import differences, machine_features, play

BYPASS: dict[str, Any] = {
    "stage": "nested",
    "steps": [
        {"op": "dma", "sid": "0x8", "iova": "0x42000ffc", "rw": "r", "size": 8},
        {"op": "w", "off": "0x44", "val": "0x80100000", "size": 4},
        {"op": "dma", "sid": "0x8", "iova": "0x42000000", "rw": "w", "size": 4},
        {"op": "r", "off": "0x44", "size": 4},
    ],
}
PLAYED = {
    "results": [
        {
            "i": 0, "op": "dma", "xlate": "ok", "pa": "0x42000ffc", "events": [], "irq": [],
            "pages": [
                {"iova": "0x42000ffc", "n": 4, "xlate": "ok", "pa": "0x42000ffc"},
                {"iova": "0x42001000", "n": 4, "xlate": "ok", "pa": "0x42001000"},
            ],
        },
        {
            "i": 2, "op": "dma", "xlate": "fault", "events": [], "irq": [],
            "pages": [{"iova": "0x42000000", "n": 4, "xlate": "fault"}],
        },
        {"i": 3, "op": "r", "val": "0x100000"},
    ],
    "regs": {
        "CMDQ_PROD": "0x0", "CR0ACK": "0x0", "EVENTQ_CONS": "0x0", "EVENTQ_PROD": "0x0",
        "GERROR": "0x0", "GERRORN": "0x0", "IRQ_CTRLACK": "0x0",
    },
}  # fmt: skip


def test_play() -> None:
    assert play(BYPASS) == PLAYED
    assert differences(BYPASS, play(BYPASS), PLAYED) == []


def test_differences_are_named() -> None:
    expected = {
        "results": [
            {**PLAYED["results"][0], "pa": "0x1"},  # type: ignore[index]
            {"i": 3, "op": "r", "val": "0x1", "mask": "0xff"},
        ],
        "regs": {"GERROR": "0x1"},
    }
    assert differences(BYPASS, play(BYPASS), expected) == [
        "step 0: pa 0x42000ffc, expected 0x1",
        "step 3: reads 0x100000, expected 0x1",
        "step 2: unexpected " + str(play(BYPASS)["results"][1]),
        "final GERROR: 0x0, expected 0x1",
    ]


def test_masked_and_unjudged_reads() -> None:
    for judged in ({"val": None}, {"val": "0x1", "mask": "0xfffffffe"}):
        case = {"stage": "1", "steps": [{"op": "r", "off": "0x24", "size": 4}]}
        expected = {"results": [{"i": 0, "op": "r", **judged}], "regs": {}}
        assert differences(case, play(case), expected) == []


def test_interrupts_belong_to_their_step() -> None:
    steps = [
        {"op": "w", "off": "0x50", "val": "0x1", "size": 4},
        {"op": "w", "off": "0x90", "val": "0x480000005", "size": 8},
        {"op": "w", "off": "0x20", "val": "0x8", "size": 4},
        {"op": "w", "off": "0x98", "val": "0x1", "size": 4},
    ]
    assert play({"stage": "2", "steps": steps})["results"] == [{"i": 3, "op": "w", "irq": [3]}]


def test_records_are_read_where_the_event_queue_is() -> None:
    """§3.4.3: address bits of EVENTQ_BASE above OAS are truncated."""
    steps = [
        {"op": "w", "off": "0x2c", "val": "0x2", "size": 4},
        {"op": "w", "off": "0xa0", "val": "0x400040100007", "size": 8},
        {"op": "w", "off": "0x20", "val": "0x5", "size": 4},
        {"op": "dma", "sid": "0x1", "iova": "0x0", "rw": "r", "size": 4},
    ]
    (result,) = play({"stage": "1", "steps": steps})["results"]
    assert result["events"] == [{"type": "C_BAD_STREAMID", "sid": 1}]


def test_tagged_memory_is_there_before_it_is_written() -> None:
    """A level 1 descriptor there is invalid by its tag; an STE there has V=0."""
    steps = [
        {"op": "w", "off": "0x80", "val": "0x42000000", "size": 8},
        {"op": "w", "off": "0x88", "val": "0x10186", "size": 4},
        {"op": "w", "off": "0xa0", "val": "0x40100007", "size": 8},
        {"op": "w", "off": "0x20", "val": "0x5", "size": 4},
        {"op": "dma", "sid": "0x0", "iova": "0x0", "rw": "r", "size": 4},
        {"op": "mem", "addr": "0x42000000", "hex": "0700004200000000"},
        {"op": "dma", "sid": "0x1", "iova": "0x0", "rw": "r", "size": 4},
    ]
    first, second = (r["events"] for r in play({"stage": "1", "steps": steps})["results"])
    assert first == []
    assert second == [{"type": "C_BAD_STE", "sid": 1}]


@pytest.mark.parametrize(
    ("stage", "idr0"), [("1", 0x0D44_101A), ("2", 0x0D44_1019), ("nested", 0x0D44_101B)]
)
def test_identification_of_the_recorded_machine(stage: str, idr0: int) -> None:
    ids = machine_features(stage).ids
    assert ids["IDR0"] == idr0
    assert (ids["IDR1"], ids["IDR5"], ids["AIDR"]) == (0x0273_0010, 0x74, 1)


def test_unknown_operation() -> None:
    with pytest.raises(ValueError, match=r"^step 0: no such operation 'jump'$"):
        play({"stage": "1", "steps": [{"op": "jump"}]})
