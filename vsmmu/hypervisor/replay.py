# SPDX-License-Identifier: BSD-2-Clause
"""Plays what guests do to their vSMMUs, and compares it with the physical program of the same.

A case is one of `vsmmu.smmu.replay` with stage "nested" and two keys more: `guests` gives each
guest its RAM, its VMID and its devices, `vsteps` are what guests do, in their own addresses and
StreamIDs. `steps` is the equivalent physical program: an access of it has `v`, the index of the
guest step that is the same access.

The machine is that of the physical programs, under the hypervisor. What the hypervisor itself
needs lies in RAM of its own, so a guest's RAM is wherever the case says.
"""

from __future__ import annotations

from functools import partial

from vsmmu.arch.events import Event
from vsmmu.arch.registers import BY_NAME, QueueBase
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.replay_format import (
    OWN,
    check,
    check_outcome,
    guest_ram,
    guest_sids,
    number,
)
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.hypervisor.wires import Wires
from vsmmu.memory import PAGE
from vsmmu.queue import Ring
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.cases import FINAL_REGS, CaseError, Json
from vsmmu.smmu.replay import (
    IRQ_LINES,
    RAM,
    Difference,
    TaggedMemory,
    machine_features,
    new_events,
)
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access

__all__ = ("CaseError", "Difference", "check", "check_outcome", "compare", "play")

# Units of work that the steps of one case may make: commands, records, STEs.
WORK_MAX = 1 << 18
_PATH = "smmu"
_WINDOW = 0x4_0000


def play(case: Json, *, caching: str = "normal") -> Json:
    """The results of a case's guest steps, and the guests' final registers.

    Args:
        case: `guests` and `vsteps`, as `check` demands them.
        caching: as in `Smmu`, of the physical SMMU.

    Returns:
        {"results": [...], "regs": [...]}: a result for each guest step, final registers by name
        for each guest.

    Raises:
        CaseError: the steps make more work than a case may take.
        KeyError, ValueError: the case is malformed.
    """
    return _Player(case["guests"], caching).play(case["vsteps"])


def compare(case: Json, played: Json, expected: Json) -> list[Difference]:
    """What differs from the outcome of the physical program; none when they agree.

    An access that is marked `stale_ok`, in either program, may show any result. Registers and
    interrupts of the physical program are the hypervisor's, so they are not compared. An event
    that no access of the guest explains is a difference.
    """
    found: list[Difference] = []
    rest = dict(enumerate(played["results"]))
    for want in expected["results"]:
        step = case["steps"][want["i"]]
        if want["op"] != "dma" or "v" not in step:
            continue
        i = step["v"]
        got = rest.pop(i, played["results"][i])
        if not (step.get("stale_ok") or case["vsteps"][i].get("stale_ok")):
            guest = case["guests"][case["vsteps"][i]["g"]]
            found += _differences(i, want, got, guest)
        found += _elsewhere(i, got)
    for i, got in rest.items():
        found += _elsewhere(i, got)
        if got["op"] != "dma" and got.get("events"):
            found.append(Difference(i, "events", got["events"], []))
    return sorted(found, key=lambda one: one.step or 0)


def _elsewhere(i: int, got: Json) -> list[Difference]:
    return [Difference(i, "elsewhere", got["elsewhere"], None)] if "elsewhere" in got else []


def _differences(i: int, want: Json, got: Json, guest: Json) -> list[Difference]:
    found = [
        Difference(i, key, got.get(key), want[key])
        for key in ("pages", "xlate", "pa")
        if key in want and got.get(key) != want[key]
    ]
    expected: list[Json] = []
    for event in want["events"]:
        seen = as_guest(event, guest)
        if seen is not None and seen not in expected:
            expected.append(seen)
    if [_shown(event, expected) for event in got["events"]] != expected:
        found.append(Difference(i, "events", got["events"], expected))
    return found


def as_guest(event: Json, guest: Json) -> Json | None:
    """The record that a guest reads for one of the physical program; None where it has none.

    The StreamID is the guest's own, and so is an address of one of its structures. A fault of
    stage 2 is no fault that the guest's SMMU has: for the access itself there is no record, for a
    structure the fetch aborts. The stage 2 fault names the page of the structure alone.
    """
    virtual = {physical: sid for sid, physical in guest_sids(guest).items()}
    out = {**event, "sid": virtual.get(event["sid"], event["sid"])}
    if not event.get("s2"):
        if "fetch" in event:
            out["fetch"] = f"{_ipa(int(event['fetch'], 16), guest):#x}"
        return out
    page = f"{int(event.get('ipa', '0x0'), 16) & -PAGE:#x}"
    if event.get("cls") == "CD":
        return {"type": "F_CD_FETCH", "sid": out["sid"], "fetch": page}
    if event.get("cls") == "TT":
        kept: Json = {key: out[key] for key in ("sid", "cls", "rnw", "iaddr") if key in out}
        return {"type": "F_WALK_EABT", **kept, "s2": 0, "fetch": page}
    return None


def _ipa(pa: int, guest: Json) -> int:
    """The lowest address at which a guest has a machine address; 0 where it has it not."""
    found = [ipa + pa - at for ipa, at, size in guest_ram(guest) if at <= pa < at + size]
    return min(found, default=0)


def _shown(event: Json, expected: list[Json]) -> Json:
    """A guest's record, without the low bits of an address of which the page is known."""
    if "fetch" in event:
        page = {**event, "fetch": f"{int(event['fetch'], 16) & -PAGE:#x}"}
        return page if event not in expected and page in expected else event
    return event


class _Player:
    def __init__(self, guests: list[Json], caching: str) -> None:
        self._irqs: list[int] = []
        self._guest = 0
        self._memory = TaggedMemory([OWN, RAM])
        self._smmu = Smmu(
            "smmu", self._memory, machine_features("nested"), caching=caching, page0_alias=False
        )
        self._scheduler = Scheduler()
        for engine in self._smmu.engines:
            self._scheduler.add(engine)
        self._hypervisor = Hypervisor(self._memory, self._scheduler, {_PATH: self._smmu})
        self._hypervisor.boot()
        self._sids = [guest_sids(guest) for guest in guests]
        self._vsmmus = [self._create(g, guest) for g, guest in enumerate(guests)]
        self._booted = self._scheduler.now

    def _create(self, g: int, guest: Json) -> VSmmu:
        """A guest as the case has it: its own VMID, its RAM where it is in the machine."""
        ids = machine_features("1").ids
        wanted = {
            name: {field: at.of((value,)) for field, at in BY_NAME[name].layout.fields.items()}
            for name, value in ids.items()
        }
        ram = guest_ram(guest)
        bits = max(40, *((ipa + size - 1).bit_length() for ipa, _, size in ram))
        domain = self._hypervisor.create_domain(f"guest{g}", [], ipa_bits=bits)
        domain.vmid = number(guest["vmid"])
        for ipa, pa, size in ram:
            domain.stage2.map(ipa, pa, size)
        irq = Wires(IRQ_LINES, partial(self._pulse, g), IRQ_LINES.values())
        vsmmu = self._hypervisor.create_vsmmu(domain, 0, _WINDOW, wanted, [_PATH], irq)
        for virtual, physical in self._sids[g].items():
            self._hypervisor.assign(vsmmu, virtual, _PATH, physical)
        return vsmmu

    def play(self, steps: list[Json]) -> Json:
        results = [self._step(i, step) for i, step in enumerate(steps)]
        regs = [
            {name: f"{vsmmu.mmio_read(BY_NAME[name].offset, 4):#x}" for name in FINAL_REGS}
            for vsmmu in self._vsmmus
        ]
        return {"results": results, "regs": regs}

    def _pulse(self, g: int, line: int, level: bool) -> None:
        if level and g == self._guest:
            self._irqs.append(line)

    def _step(self, i: int, step: Json) -> Json:
        op = step["op"]
        self._guest = g = step["g"]
        self._irqs = []
        vsmmu = self._vsmmus[g]
        result: Json = {"i": i, "g": g, "op": op}
        if op == "r":
            value = vsmmu.mmio_read(int(step["off"], 16), step["size"])
            return {**result, "val": f"{value:#x}", "irq": self._irqs}
        if op == "mem":
            vsmmu.domain.memory.write(int(step["addr"], 16), bytes.fromhex(step["hex"]))
            return {**result, "irq": self._irqs}
        if op == "w":
            vsmmu.mmio_write(int(step["off"], 16), step["size"], int(step["val"], 16))
        # After the write: it may be one of the queue's own registers.
        before = [vsmmu.regs["EVENTQ_PROD"] for vsmmu in self._vsmmus]
        if op == "w":
            self._run(i)
        else:
            result |= self._dma(i, step)
        events = [
            _new_events(vsmmu, prod) for vsmmu, prod in zip(self._vsmmus, before, strict=True)
        ]
        if op == "dma" or events[g]:
            result["events"] = events[g]
        elsewhere = {str(other): e for other, e in enumerate(events) if e and other != g}
        if elsewhere:
            result["elsewhere"] = elsewhere
        return {**result, "irq": self._irqs}

    def _dma(self, i: int, step: Json) -> Json:
        sid = self._sids[step["g"]][int(step["vsid"], 16)]
        iova, size = int(step["iova"], 16), step["size"]
        pages: list[Json] = []
        while size > 0:
            n = min(size, PAGE - iova % PAGE)
            outcome = self._smmu.translate(Access(sid, iova, step["rw"] == "w"))
            page: Json = {"iova": f"{iova:#x}", "n": n, "xlate": "fault"}
            if outcome.pa is not None:
                page |= {"xlate": "ok", "pa": f"{outcome.pa:#x}"}
            pages.append(page)
            iova, size = iova + n, size - n
            self._run(i)
        # The whole access is described by its first page.
        whole: Json = {key: pages[0][key] for key in ("xlate", "pa") if key in pages[0]}
        return {"pages": pages, **whole}

    def _run(self, i: int) -> None:
        """Run the machine until it is at rest: every engine in turn had nothing to do."""
        quiet = 0
        while quiet <= len(self._scheduler.engines):
            if self._scheduler.now - self._booted > WORK_MAX:
                raise CaseError(
                    f"guest step {i}: the case makes more than {WORK_MAX} units of work"
                )
            quiet = 0 if self._scheduler.step() else quiet + 1


def _new_events(vsmmu: VSmmu, before: int) -> list[Json]:
    """What a guest finds in its event queue behind an earlier EVENTQ_PROD."""
    base = QueueBase(vsmmu.regs["EVENTQ_BASE"])
    address = base.addr & vsmmu.address_mask
    ring = Ring.of(address, base.log2size, vsmmu.idr1.eventqs, Event.size)
    return new_events(vsmmu.domain.memory, ring, before, vsmmu.regs["EVENTQ_PROD"])
