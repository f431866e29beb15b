# SPDX-License-Identifier: BSD-2-Clause
"""Plays recorded SMMUv3 programs, and compares what happened with what should have.

A case is a dictionary with `stage` ("1", "2" or "nested") and `steps`: `mem` writes RAM, `w` and
`r` access a register, `dma` is a device access. Numbers are hexadecimal strings. The machine is
one SMMUv3 with RAM at 0x4000_0000; each step is complete before the next one starts.

Device accesses are translated only: no data moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from vsmmu.arch.events import EVENTS, Event, EventClass, decode
from vsmmu.arch.registers import BY_NAME, OAS_BITS, EventqProd, Idr1, QueueBase
from vsmmu.memory import PAGE, PAGE_SHIFT, Memory
from vsmmu.queue import Ring
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.cases import FINAL_REGS, CaseError, Json, check, check_outcome
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access

__all__ = (
    "IRQ_LINES", "RAM", "CaseError", "Difference", "TaggedMemory", "check", "check_outcome",
    "compare", "describe", "differences", "machine_features", "new_events", "play", "record",
)  # fmt: skip

RAM = (0x4000_0000, 0x400_0000)
# This part of RAM holds a tag and its own address in every word.
TAGGED = range(0x4200_0000 >> PAGE_SHIFT, 0x43F0_0000 >> PAGE_SHIFT)
_TAG = 0xD1A6 << 48

IRQ_LINES = {"eventq": 0, "cmdq-sync": 2, "gerror": 3}


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


class TaggedMemory(Memory):
    """RAM whose tagged part appears when it is first touched."""

    def read64(self, pa: int) -> int | None:
        """As `Memory.read64`."""
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
        self._memory = TaggedMemory([RAM])
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
        regs = self._smmu.regs
        base = QueueBase(regs["EVENTQ_BASE"])
        # Queue addresses are truncated to OAS (§3.4.3).
        address = base.addr & (1 << self._smmu.features.oas) - 1
        ring = Ring.of(address, base.log2size, Idr1.eventqs.of((regs["IDR1"],)), Event.size)
        return new_events(self._memory, ring, before, regs["EVENTQ_PROD"])


class _Words(Protocol):
    def read_words(self, address: int, count: int, /) -> tuple[int, ...] | None: ...


def new_events(memory: _Words, ring: Ring, before: int, after: int) -> list[Json]:
    """Records of an event queue between two values of EVENTQ_PROD; equal ones are merged."""
    wr = EventqProd.mask("wr")[0]
    pointer, found = before & wr, []
    for _ in range(ring.used(after & wr, pointer)):
        words = memory.read_words(ring.address(pointer), Event.dwords)
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
