# SPDX-License-Identifier: BSD-2-Clause
"""Plays recorded SMMUv3 programs, and compares what happened with what should have.

A case is a dictionary with `stage` ("1", "2" or "nested") and `steps`: `mem` writes RAM, `w` and
`r` access a register, `dma` is a device access. Numbers are hexadecimal strings. The machine is
one SMMUv3 with RAM at 0x4000_0000; each step is complete before the next one starts.

Device accesses are translated only: no data moves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vsmmu.arch.events import EVENTS, Event, EventClass, decode
from vsmmu.arch.registers import BY_NAME, OAS_BITS, EventqProd, Idr1, QueueBase
from vsmmu.memory import PAGE, PAGE_SHIFT, Memory
from vsmmu.queue import Ring
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access

RAM = (0x4000_0000, 0x400_0000)
# This part of RAM holds a tag and its own address in every word.
TAGGED = range(0x4200_0000 >> PAGE_SHIFT, 0x43F0_0000 >> PAGE_SHIFT)
_TAG = 0xD1A6 << 48

FINAL_REGS = (
    "CMDQ_PROD", "CR0ACK", "EVENTQ_CONS", "EVENTQ_PROD", "GERROR", "GERRORN", "IRQ_CTRLACK",
)  # fmt: skip
IRQ_LINES = {"eventq": 0, "cmdq-sync": 2, "gerror": 3}
STAGES = ("1", "2", "nested")
# Bytes of one device access, and of one register access.
DMA_MAX = 4096
_ACCESS_SIZES = (1, 2, 4, 8)

Json = dict[str, Any]

_HEX = re.compile(r"0[xX][0-9a-fA-F]{1,16}")
_BYTES = re.compile(r"(?:[0-9a-fA-F]{2})*")


class CaseError(ValueError):
    """A case that is not of the format: one line, naming the step or the result."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as expected.

    Attributes:
        step: index of the step; None for a final register.
        what: "val", another key of a result, "result" for one that nobody expects, or the name of
            a final register.
        got: what the model did; None where it did nothing.
        expected: what should have been.
    """

    step: int | None
    what: str
    got: Any
    expected: Any

    def __str__(self) -> str:
        if self.step is None:
            return f"final {self.what}: {self.got}, expected {self.expected}"
        if self.what == "val":
            return f"step {self.step}: reads {self.got}, expected {self.expected}"
        if self.what == "result":
            return f"step {self.step}: unexpected {self.got}"
        return f"step {self.step}: {self.what} {self.got}, expected {self.expected}"


def machine_features(stage: str) -> Features:
    """Identification of the machine that the recorded programs ran on."""
    both = Features.default(sidsize=16, oas=OAS_BITS[4], aidr=1)
    if stage == "1":
        return both.replace(s2p=0, xnx=0)
    return both if stage == "nested" else both.replace(s1p=0, had=0)


def play(case: Json, *, caching: str = "normal") -> Json:
    """The results and final registers of a case.

    Args:
        case: `stage` and `steps`.
        caching: as in `Smmu`.

    Returns:
        {"results": [...], "regs": {...}}: a result for each `dma` and `r` step, and for each
        other step that caused an interrupt.

    Raises:
        KeyError, ValueError: the case is malformed.
    """
    return _Player(case["stage"], caching).play(case["steps"])


def differences(case: Json, played: Json, expected: Json) -> list[str]:
    """What differs, a line each; none when the outcomes agree (`compare`)."""
    return [str(one) for one in compare(case, played, expected)]


def compare(case: Json, played: Json, expected: Json) -> list[Difference]:
    """What differs; none when the outcomes agree.

    An access marked `stale_ok` may show any result. The final EVENTQ_PROD counts only where no
    access is marked so and no faulting access has more than 4 bytes.
    """
    found: list[Difference] = []
    steps = case["steps"]
    ours = {result["i"]: result for result in played["results"]}
    for want in expected["results"]:
        i = want["i"]
        if not steps[i].get("stale_ok"):
            found += _result_differences(want, ours.pop(i, {}))
        ours.pop(i, None)
    found += [Difference(i, "result", result, None) for i, result in ours.items()]
    loose = any(
        steps[r["i"]].get("stale_ok") or (r["events"] and steps[r["i"]]["size"] > 4)
        for r in expected["results"]
        if r["op"] == "dma"
    )
    for name, value in expected["regs"].items():
        if played["regs"][name] != value and not (loose and name == "EVENTQ_PROD"):
            found.append(Difference(None, name, played["regs"][name], value))
    return found


def _result_differences(want: Json, got: Json) -> list[Difference]:
    i = want["i"]
    if want["op"] == "r":
        mask = int(want.get("mask", "0xffffffffffffffff"), 16)
        if want["val"] is None or not (int(want["val"], 16) ^ int(got["val"], 16)) & mask:
            return []
        return [Difference(i, "val", got["val"], want["val"])]
    return [
        Difference(i, key, got.get(key), value)
        for key, value in want.items()
        if got.get(key) != value
    ]


# The format.


def check(case: Any) -> None:
    """Whether this is a case that can be played. Raises CaseError."""
    _require(isinstance(case, dict), "a case is an object")
    _require(isinstance(case.get("id"), str), "id: expected text")
    _require(isinstance(case.get("family", ""), str), "family: expected text")
    _require(case.get("stage") in STAGES, 'stage: expected "1", "2" or "nested"')
    _require(isinstance(case.get("steps"), list), "steps: expected a list")
    for i, step in enumerate(case["steps"]):
        where = f"step {i}"
        _require(isinstance(step, dict), f"{where}: expected an object")
        op = step.get("op")
        if not isinstance(op, str) or op not in _STEPS:
            raise CaseError(f"{where}: no such operation {op!r:.40}")
        for name in _STEPS[op]:
            _require(_KINDS[name](step.get(name)), f"{where}: {name}: expected {_FORMS[name]}")
        size = step.get("size", 1)
        _require(op == "dma" or size in _ACCESS_SIZES, f"{where}: size: expected 1, 2, 4 or 8")
        if op == "dma":
            _require(int(step["sid"], 16) >> 32 == 0, f"{where}: sid: more than 32 bits")
            last = int(step["iova"], 16) + size - 1
            _require(last >> 64 == 0, f"{where}: iova: the access does not fit 64 bits")


def check_outcome(case: Json, outcome: Any) -> None:
    """Whether this is an outcome of a case that `check` passed. Raises CaseError."""
    _require(isinstance(outcome, dict), "an outcome is an object")
    results, regs = outcome.get("results"), outcome.get("regs")
    _require(isinstance(results, list), "results: expected a list")
    _require(isinstance(regs, dict), "regs: expected an object")
    for name in regs:
        _require(name in FINAL_REGS, f"regs: {name!r:.40}: not a final register")
    seen: set[int] = set()
    for at, result in enumerate(results):
        where = f"result {at}"
        _require(isinstance(result, dict), f"{where}: expected an object")
        i = result.get("i")
        known = type(i) is int and 0 <= i < len(case["steps"])
        _require(known, f"{where}: i: expected the index of a step")
        _require(i not in seen, f"{where}: i: step {i} has a result already")
        seen.add(i)
        op = case["steps"][i]["op"]
        _require(result.get("op") == op, f"{where}: op: step {i} is {op!r}")
        if op == "dma":
            _require(isinstance(result.get("events"), list), f"{where}: events: expected a list")
        if op == "r":
            value, mask = result.get("val", ""), result.get("mask", "0x0")
            _require(value is None or _hex(value), f"{where}: val: expected {_FORMS['val']}")
            _require(_hex(mask), f"{where}: mask: expected {_FORMS['val']}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CaseError(message)


def _hex(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


_NUMBER = "a hexadecimal string of at most 64 bits"
_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("addr", "off", "val", "sid", "iova"), _hex),
    "hex": lambda value: isinstance(value, str) and _BYTES.fullmatch(value) is not None,
    "rw": lambda value: value in ("r", "w"),
    "size": lambda value: type(value) is int and 0 < value <= DMA_MAX,
}
_FORMS = {
    **dict.fromkeys(("addr", "off", "val", "sid", "iova"), _NUMBER),
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


class _TaggedMemory(Memory):
    """RAM whose tagged part appears when it is first touched."""

    def read64(self, pa: int) -> int | None:
        self._touch(pa)
        return super().read64(pa)

    def _touch(self, pa: int) -> None:
        if pa >> PAGE_SHIFT in TAGGED and pa >> PAGE_SHIFT not in self.page:
            self._allocate(pa >> PAGE_SHIFT)

    def _allocate(self, frame: int) -> int:
        index = super()._allocate(frame)
        if frame in TAGGED:
            for offset in range(0, PAGE, 8):
                self.words[index + offset // 8] = _TAG | frame << PAGE_SHIFT | offset
        return index


class _Player:
    def __init__(self, stage: str, caching: str) -> None:
        self._irqs: list[int] = []
        self._memory = _TaggedMemory([RAM])
        self._smmu = Smmu(
            "smmu", self._memory, machine_features(stage),
            irq=self._pulse, caching=caching, page0_alias=False,
        )  # fmt: skip
        self._scheduler = Scheduler()
        for engine in self._smmu.engines:
            self._scheduler.add(engine)

    def play(self, steps: list[Json]) -> Json:
        results = [result for i, step in enumerate(steps) if (result := self._step(i, step))]
        regs = {name: f"{self._smmu.mmio_read(BY_NAME[name].offset, 4):#x}" for name in FINAL_REGS}
        return {"results": results, "regs": regs}

    def _pulse(self, line: str) -> None:
        self._irqs.append(IRQ_LINES[line])

    def _step(self, i: int, step: Json) -> Json | None:
        op = step["op"]
        result: Json = {"i": i, "op": op}
        self._irqs = []
        if op == "mem":
            self._memory.write(int(step["addr"], 16), bytes.fromhex(step["hex"]))
        elif op == "w":
            self._smmu.mmio_write(int(step["off"], 16), step["size"], int(step["val"], 16))
            self._scheduler.run_until_idle()
        elif op == "r":
            result["val"] = f"{self._smmu.mmio_read(int(step['off'], 16), step['size']):#x}"
            return result
        elif op == "dma":
            return {**result, **self._dma(step)}
        else:
            raise ValueError(f"step {i}: no such operation {op!r}")
        return {**result, "irq": self._irqs} if self._irqs else None

    def _dma(self, step: Json) -> Json:
        before = self._smmu.regs["EVENTQ_PROD"]
        sid, iova, size = int(step["sid"], 16), int(step["iova"], 16), step["size"]
        pages: list[Json] = []
        while size > 0:
            n = min(size, PAGE - iova % PAGE)
            outcome = self._smmu.translate(Access(sid, iova, step["rw"] == "w"))
            page: Json = {"iova": f"{iova:#x}", "n": n, "xlate": "fault"}
            if outcome.pa is not None:
                page |= {"xlate": "ok", "pa": f"{outcome.pa:#x}"}
            pages.append(page)
            iova, size = iova + n, size - n
            self._scheduler.run_until_idle()
        # The whole access is described by its first page.
        result: Json = {"pages": pages, "xlate": pages[0]["xlate"]}
        if "pa" in pages[0]:
            result["pa"] = pages[0]["pa"]
        return {**result, "events": self._new_events(before), "irq": self._irqs}

    def _new_events(self, before: int) -> list[Json]:
        """Records written since EVENTQ_PROD was `before`; equal ones are merged."""
        regs = self._smmu.regs
        base = QueueBase(regs["EVENTQ_BASE"])
        # Queue addresses are truncated to OAS (§3.4.3).
        address = base.addr & (1 << self._smmu.features.oas) - 1
        ring = Ring.of(address, base.log2size, Idr1.eventqs.of((regs["IDR1"],)), Event.size)
        wr = EventqProd.mask("wr")[0]
        pointer, found = before & wr, []
        for _ in range(ring.used(regs["EVENTQ_PROD"] & wr, pointer)):
            words = self._memory.read_words(ring.address(pointer), Event.dwords)
            if words is not None and (event := describe(decode(words))) not in found:
                found.append(event)
            pointer = ring.advance(pointer)
        return found


_NAMED = {event.name: event for event in EVENTS.values()}
# The addresses of a record: their names in a case, and the fields.
ADDRESSES = {"iaddr": "inputaddr", "ipa": "ipa", "fetch": "fetchaddr"}


def record(described: Json) -> Event:
    """A record with the fields that `describe` gave, zeros elsewhere.

    Raises:
        KeyError, TypeError, ValueError: nothing that `describe` gives.
    """
    values: dict[str, int] = {"sid": described["sid"]}
    for name in ("rnw", "s2"):
        if name in described:
            values[name] = described[name]
    if "cls" in described:
        values["cls"] = EventClass[described["cls"]]
    for name, field in ADDRESSES.items():
        if name in described:
            values[field] = int(described[name], 16)
    return _NAMED[described["type"]].build(**values)


def describe(event: Event) -> Json:
    """The fields of a record that its kind has and its circumstances define."""
    fields = event.fields
    out: Json = {"type": event.name, "sid": event.sid}
    if "cls" in fields:
        out["cls"] = EventClass(fields["cls"].of(event.words)).name
    for name in ("rnw", "s2"):
        if name in fields:
            out[name] = fields[name].of(event.words)
    for name, field in ADDRESSES.items():
        # The IPA is UNKNOWN where stage 1 faulted.
        if field in fields and (name != "ipa" or out["s2"]):
            out[name] = f"{fields[field].of(event.words):#x}"
    return out
