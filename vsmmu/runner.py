# SPDX-License-Identifier: BSD-2-Clause
"""Carries out a scenario step by step and keeps what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vsmmu.arch.commands import Command
from vsmmu.arch.events import Event
from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.vcpu import GuestError, Program
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.jobs import Job
from vsmmu.report import Problem, Report, StepResult
from vsmmu.scenario import Scenario, ScenarioError, Step
from vsmmu.scenario.steps import BY_HAND
from vsmmu.smmu.port import DevicePort, Request
from vsmmu.toolstack import Guest, Machine, assign, destroy_guest, unassign
from vsmmu.work import measure

_TURNS = 2_000_000


class Runner:
    """Runs one scenario on a machine whose guests exist.

    Args:
        guests: the guests in the order of the scenario's.
        progress: called before each step.
    """

    def __init__(
        self,
        scenario: Scenario,
        machine: Machine,
        guests: Sequence[Guest],
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        self._scenario = scenario
        self._machine = machine
        self._guests = tuple(guests)
        self._progress = progress
        # Pages that a device's address space maps, by iova; None while it has none (bypass). A
        # guest that wrote registers, tables or commands by hand is not followed any further.
        self._maps: dict[tuple[str, str], dict[int, int] | None] = {}
        self._by_hand: set[str] = set()

    def run(self) -> Report:
        """All steps in order, each until the machine is idle; then the end's expectations."""
        report = Report(self._scenario, self._machine)
        self._check_names()
        for step in self._scenario.steps:
            if self._progress is not None:
                self._progress(step)
            before = {name: self._cost(name) for name in step.guests}
            report.steps.append(self._step(step))
            if step.do in ("map", "unmap"):
                for name, cost in before.items():
                    total = report.work.setdefault((name, step.do), Counter())
                    total.update(self._cost(name))
                    total.subtract(cost)
                    total["steps"] += 1
        self._check_end(report)
        return report

    def _check_names(self) -> None:
        """Every guest and device a step names must exist, before anything runs."""
        for step in self._scenario.steps:
            for name in step.guests:
                guest = self._machine.guests.get(name)
                if guest is None:
                    known = ", ".join(self._machine.guests)
                    raise self._bad(step, f"no guest {name!r}; guests are {known}")
                if not guest.drivers:
                    raise self._bad(step, f'guest {name!r} has no vSMMU (viommu = "smmuv3")')
                device = step.fields.get("device")
                if device is not None and not guest.ports.get(device):
                    known = ", ".join(guest.ports) or "none"
                    raise self._bad(step, f"{name} has no device {device}; it has {known}")

    def _cost(self, guest: str) -> Counter[str]:
        hosts = self._machine.hypervisor.hosts.values()
        return measure(self._machine.guests[guest].domain, hosts)

    def _bad(self, step: Step, reason: str) -> ScenarioError:
        return ScenarioError(self._scenario.source, f"step {step.number}", reason, step.line)

    # One step.

    def _step(self, step: Step) -> StepResult:
        result = StepResult(step)
        guests = self._machine.guests
        seen = {name: len(guest.events) for name, guest in guests.items()}
        before = self._machine.scheduler.now
        if step.do in BY_HAND:
            self._by_hand |= set(step.guests)
        action = getattr(self, f"_do_{step.do}")
        finishers = [action(guests[name], step, result) for name in step.guests]
        if not self._machine.scheduler.run_until_idle(_TURNS):
            result.problems.append("the machine did not come to rest")
        for name in step.guests:
            failure = guests[name].vcpu.failure
            if failure is not None:
                result.outcome, result.detail = "error", f"{name}: {failure}"
            elif guests[name].domain.dying and step.do not in ("dma", "destroy", "assign"):
                result.outcome, result.detail = "error", f"{name} is destroyed"
        for finish in finishers:
            if finish is not None:
                finish()
        result.units = self._machine.scheduler.now - before
        for name, start in seen.items():
            result.events[name] = guests[name].events[start:]
        self._check(step, result)
        return result

    def _check(self, step: Step, result: StepResult) -> None:
        if result.outcome != step.expect:
            detail = f" ({result.detail})" if result.detail else ""
            result.problems.append(f"expected {step.expect}, got {result.outcome}{detail}")
        for name, seen in result.events.items():
            if name not in step.guests and seen:
                result.problems.append(f"{name} got {_events(seen)} of a step that is not its own")
        if step.events is None:
            return
        for name in step.guests:
            seen = result.events.get(name, [])
            wanted = [(e.type, e.vmaster_id) for e in step.events]
            got = [(e.name, e.sid) for e in seen]
            matches = len(wanted) == len(got) and all(
                w[0] == g[0] and w[1] in (None, g[1]) for w, g in zip(wanted, got, strict=True)
            )
            if not matches:
                text = ", ".join(_expected(t, v) for t, v in wanted) or "none"
                result.problems.append(f"{name}: expected events {text}; got {_events(seen)}")

    def _check_end(self, report: Report) -> None:
        for spec, guest in zip(self._scenario.guests, self._guests, strict=True):
            seen = {"events": len(guest.events), "gerrors": len(guest.gerrors)}
            for what, wanted in spec.counts.items():
                if not wanted.holds(seen[what]):
                    text = f"expected {wanted} {what}, got {seen[what]}"
                    line = spec.lines.get(what)
                    report.problems.append(
                        Problem(text, self._scenario.source, line, guest=guest.name)
                    )

    # Actions. Each starts its work; what it returns runs when the machine is idle again.

    def _do_boot(self, guest: Guest, step: Step, result: StepResult) -> None:
        for driver in guest.drivers.values():
            guest.vcpu.start(driver.boot())

    def _do_attach(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._maps[guest.name, step.fields["device"]] = {}
        for driver, ids in guest.streams(step.fields["device"]):
            guest.vcpu.start(driver.attach(*ids))

    def _do_detach(self, guest: Guest, step: Step, result: StepResult) -> None:
        for driver, ids in guest.streams(step.fields["device"]):
            guest.vcpu.start(driver.detach(*ids))

    def _do_bypass(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._maps[guest.name, step.fields["device"]] = None
        for driver, ids in guest.streams(step.fields["device"]):
            guest.vcpu.start(driver.bypass(*ids))

    def _do_map(self, guest: Guest, step: Step, result: StepResult) -> None:
        f = step.fields

        def program() -> Program:
            ipa = f.get("ipa")
            if ipa is None:
                ipa = guest.heap.allocate(f["size"], min(f["size"], 0x20_0000))
            for driver, ids in guest.streams(f["device"]):
                write = not f.get("readonly", False)
                driver.map(_attached(driver, ids), f["iova"], ipa, f["size"], write=write)
            pages = self._pages(guest, step)
            for offset in range(0, f["size"], 4096):
                pages[f["iova"] + offset] = ipa + offset
            result.detail = f"IPA {ipa:#x}"
            yield

        guest.vcpu.start(program())

    def _do_unmap(self, guest: Guest, step: Step, result: StepResult) -> None:
        f = step.fields

        def program() -> Program:
            for driver, ids in guest.streams(f["device"]):
                yield from driver.unmap(_attached(driver, ids), f["iova"], f["size"])
            pages = self._pages(guest, step)
            for offset in range(0, f["size"], 4096):
                pages.pop(f["iova"] + offset, None)

        guest.vcpu.start(program())

    def _do_dma(self, guest: Guest, step: Step, result: StepResult) -> Callable[[], None]:
        f = step.fields
        ports, index = guest.ports[f["device"]], f.get("stream", 0)
        if index >= len(ports):
            raise self._bad(step, f"{f['device']} has {len(ports)} streams")
        iova, size = f["iova"], f.get("size", 64)
        data = bytes((step.number + i) & 0xFF for i in range(size))
        try:
            if f.get("op", "write") == "write":
                request = ports[index].write(iova, data)
            else:
                request = ports[index].read(iova, size)
        except (ValueError, BufferError) as error:
            raise self._bad(step, str(error)) from None
        return lambda: self._dma_done(guest, step, result, ports[index], request)

    def _dma_done(
        self, guest: Guest, step: Step, result: StepResult, port: DevicePort, request: Request
    ) -> None:
        if not request.done:
            result.problems.append("the DMA did not finish")
            return
        statuses = [o.status for o in request.outcomes]
        result.outcome = next((s for s in ("fault", "abort") if s in statuses), "ok")
        first = request.outcomes[0]
        where = f"{port.smmu.name} StreamID {port.sid:#x} iova {request.iova:#x}"
        pa = "" if first.pa is None else f" -> PA {first.pa:#x}"
        result.detail = f"{where}{pa}" + ("" if first.event is None else f" {first.event.name}")
        if result.outcome == "ok":
            self._verify(guest, step, result, request)

    def _verify(self, guest: Guest, step: Step, result: StepResult, request: Request) -> None:
        """A DMA that went through must have met exactly the page the guest mapped there.

        Of a guest that changed things by hand, only that the page is its own.
        """
        iova, end = request.iova, request.iova + request.size
        shown: list[str] = []
        for outcome in request.outcomes:
            n = min(end - iova, 4096 - iova % 4096)
            ipa = None if outcome.pa is None else guest.domain.stage2.to_ipa(outcome.pa)
            if outcome.pa is None or ipa is None:
                result.problems.append(f"iova {iova:#x} reached a page that is not {guest.name}'s")
                return
            shown.append(f" -> IPA {ipa:#x} -> PA")
            wanted = self._expected(guest, step, iova)
            if guest.name not in self._by_hand and ipa != wanted:
                text = "no page" if wanted is None else f"IPA {wanted:#x}"
                result.problems.append(f"iova {iova:#x} reached IPA {ipa:#x}, expected {text}")
                return
            start = iova - request.iova
            moved = request.payload if request.write else request.data
            if guest.domain.memory.read(ipa, n) != moved[start : start + n]:
                result.problems.append(f"the data at IPA {ipa:#x} is not what the DMA moved")
                return
            iova += n
        result.detail = result.detail.replace(" -> PA", shown[0], 1)

    def _expected(self, guest: Guest, step: Step, iova: int) -> int | None:
        """The IPA that the guest's own book-keeping has for an iova; identity in bypass."""
        pages = self._maps.get((guest.name, step.fields["device"]))
        if pages is None:
            return iova
        page = pages.get(iova & ~0xFFF)
        return None if page is None else page + (iova & 0xFFF)

    def _pages(self, guest: Guest, step: Step) -> dict[int, int]:
        pages = self._maps.get((guest.name, step.fields["device"]))
        if pages is None:
            raise GuestError(f"{step.fields['device']} is not attached")
        return pages

    # What changes a guest's memory, devices and life.

    def _do_decrease_reservation(self, guest: Guest, step: Step, result: StepResult) -> None:
        calls, f = self._machine.hypervisor.hypercalls, step.fields
        _call(guest, lambda: calls.decrease_reservation(guest.domain, f["ipa"], f["size"]), f)

    def _do_populate_physmap(self, guest: Guest, step: Step, result: StepResult) -> None:
        calls, f = self._machine.hypervisor.hypercalls, step.fields
        _call(guest, lambda: calls.populate_physmap(guest.domain, f["ipa"], f["size"]), f)

    def _do_unassign(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._ask(unassign, result, guest, step.fields["device"])

    def _do_assign(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._ask(assign, result, guest, step.fields["device"])

    def _do_destroy(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._ask(destroy_guest, result, guest)

    def _ask(self, request: Callable[..., None], result: StepResult, *args: object) -> None:
        try:
            request(self._machine, *args)
        except HypercallError as error:
            result.outcome, result.detail = "error", str(error)

    # What a guest that misbehaves does.

    def _do_mmio(self, guest: Guest, step: Step, result: StepResult) -> None:
        f, base = step.fields, _first(guest).base
        _once(guest, lambda: guest.vcpu.write(base + f["offset"], f["value"], f.get("size", 4)))

    def _do_poke(self, guest: Guest, step: Step, result: StepResult) -> None:
        f = step.fields
        _once(guest, lambda: _store(guest, f["ipa"], f["words"]))

    def _do_ste(self, guest: Guest, step: Step, result: StepResult) -> None:
        """Overwrite STEs in the guest's table without any command."""
        words = (*step.fields["words"], *(0,) * 8)[:8]

        def write() -> None:
            for driver, ids in guest.streams(step.fields["device"]):
                for sid in ids:
                    _store(guest, driver.ste_address(sid), words)

        _once(guest, write)

    def _do_command(self, guest: Guest, step: Step, result: StepResult) -> None:
        words, count = step.fields["words"], step.fields.get("count", 1)

        def program() -> Program:
            for _ in range(count):
                yield from _first(guest).post(Command(words))

        guest.vcpu.start(program())


def _first(guest: Guest) -> SmmuDriver:
    """The driver of a guest's first vSMMU, for raw register and queue access."""
    return next(iter(guest.drivers.values()))


def _attached(driver: SmmuDriver, ids: tuple[int, ...]) -> int:
    """One of a device's streams, which share an address space. Raises GuestError."""
    if ids[0] not in driver.contexts:
        raise GuestError(f"vMasterID {ids[0]:#x} is not attached")
    return ids[0]


def _call(guest: Guest, start: Callable[[], Job[int]], fields: Mapping[str, Any]) -> None:
    """A hypercall of the guest's balloon driver, which waits for it."""

    def program() -> Program:
        job = start()
        while not job.done:
            yield
        if job.result != fields["size"]:
            raise GuestError(f"{job.result:#x} of {fields['size']:#x} bytes")

    guest.vcpu.start(program())


def _once(guest: Guest, action: Callable[[], None]) -> None:
    def program() -> Program:
        action()
        yield

    guest.vcpu.start(program())


def _store(guest: Guest, ipa: int, words: tuple[int, ...]) -> None:
    if not guest.domain.memory.write_words(ipa, words):
        raise GuestError(f"IPA {ipa:#x} is not RAM")


def _event(event: Event) -> str:
    return f"{event.name} vMasterID {event.sid:#x}"


def _events(seen: list[Event]) -> str:
    return ", ".join(map(_event, seen)) or "none"


def _expected(kind: str, vmaster_id: int | None) -> str:
    return kind if vmaster_id is None else f"{kind} vMasterID {vmaster_id:#x}"
