# SPDX-License-Identifier: BSD-2-Clause
"""The format of recorded SMMUv3 programs: what is a case, what is an outcome of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

FINAL_REGS = (
    "CMDQ_PROD", "CR0ACK", "EVENTQ_CONS", "EVENTQ_PROD", "GERROR", "GERRORN", "IRQ_CTRLACK",
)  # fmt: skip
STAGES = ("1", "2", "nested")
# Bytes of one device access, and of one register access.
DMA_MAX = 4096
_ACCESS_SIZES = (1, 2, 4, 8)

Json = dict[str, Any]

_HEX = re.compile(r"0[xX][0-9a-fA-F]{1,16}")
_BYTES = re.compile(r"(?:[0-9a-fA-F]{2})*")


class CaseError(ValueError):
    """A case that is not of the format: one line, naming the step or the result."""


def check(case: Any) -> None:
    """Whether this is a case that can be played. Raises CaseError."""
    check_head(case)
    require(case.get("stage") in STAGES, 'stage: expected "1", "2" or "nested"')
    require(isinstance(case.get("steps"), list), "steps: expected a list")
    for i, step in enumerate(case["steps"]):
        check_step(step, f"step {i}")


def check_head(case: Any) -> None:
    """What cases of every kind have in common. Raises CaseError."""
    require(isinstance(case, dict), "a case is an object")
    require(isinstance(case.get("id"), str), "id: expected text")
    require(isinstance(case.get("family", ""), str), "family: expected text")


def check_step(step: Any, where: str, *, sid: str = "sid") -> None:
    """Whether this is a step; `sid` is what an access calls its StreamID. Raises CaseError."""
    require(isinstance(step, dict), f"{where}: expected an object")
    op = step.get("op")
    if not isinstance(op, str) or op not in _STEPS:
        raise CaseError(f"{where}: no such operation {op!r:.40}")
    for kind in _STEPS[op]:
        name = sid if kind == "sid" else kind
        require(_KINDS[kind](step.get(name)), f"{where}: {name}: expected {_FORMS[kind]}")
    size = step.get("size", 1)
    require(op == "dma" or size in _ACCESS_SIZES, f"{where}: size: expected 1, 2, 4 or 8")
    if op == "dma":
        require(int(step[sid], 16) >> 32 == 0, f"{where}: {sid}: more than 32 bits")
        last = int(step["iova"], 16) + size - 1
        require(last >> 64 == 0, f"{where}: iova: the access does not fit 64 bits")


def check_outcome(case: Json, outcome: Any) -> None:
    """Whether this is an outcome of a case that `check` passed. Raises CaseError."""
    require(isinstance(outcome, dict), "an outcome is an object")
    results, regs = outcome.get("results"), outcome.get("regs")
    require(isinstance(results, list), "results: expected a list")
    require(isinstance(regs, dict), "regs: expected an object")
    for name in regs:
        require(name in FINAL_REGS, f"regs: {name!r:.40}: not a final register")
    seen: set[int] = set()
    for at, result in enumerate(results):
        where = f"result {at}"
        require(isinstance(result, dict), f"{where}: expected an object")
        i = result.get("i")
        known = type(i) is int and 0 <= i < len(case["steps"])
        require(known, f"{where}: i: expected the index of a step")
        require(i not in seen, f"{where}: i: step {i} has a result already")
        seen.add(i)
        op = case["steps"][i]["op"]
        require(result.get("op") == op, f"{where}: op: step {i} is {op!r}")
        if op == "dma":
            require(isinstance(result.get("events"), list), f"{where}: events: expected a list")
        if op == "r":
            value, mask = result.get("val", ""), result.get("mask", "0x0")
            require(value is None or is_hex(value), f"{where}: val: expected {NUMBER}")
            require(is_hex(mask), f"{where}: mask: expected {NUMBER}")


def require(holds: bool, message: str) -> None:
    """Raises CaseError with a message where something does not hold."""
    if not holds:
        raise CaseError(message)


def is_hex(value: Any) -> bool:
    """Whether this is a number as cases have them."""
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


NUMBER = "a hexadecimal string of at most 64 bits"
_NUMBERS = ("addr", "off", "val", "sid", "iova")
_KINDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_NUMBERS, is_hex),
    "hex": lambda value: isinstance(value, str) and _BYTES.fullmatch(value) is not None,
    "rw": lambda value: value in ("r", "w"),
    "size": lambda value: type(value) is int and 0 < value <= DMA_MAX,
}
_FORMS = {
    **dict.fromkeys(_NUMBERS, NUMBER),
    "hex": "bytes as hexadecimal digits",
    "rw": '"r" or "w"',
    "size": f"1 to {DMA_MAX}",
}
# The operations, and what each step of one has.
_STEPS = {
    "mem": ("addr", "hex"),
    "w": ("off", "size", "val"),
    "r": ("off", "size"),
    "dma": ("sid", "iova", "rw", "size"),
}
