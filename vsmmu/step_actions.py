# SPDX-License-Identifier: BSD-2-Clause
"""What the actions of a scenario's steps do, one method for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vsmmu.arch.commands import Command
from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.vcpu import GuestError, Program
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.jobs import Job
from vsmmu.judge import Judge
from vsmmu.memory import PAGE
from vsmmu.report import StepResult
from vsmmu.scenario import Scenario, ScenarioError, Step
from vsmmu.smmu.port import DevicePort, Request
from vsmmu.toolstack import Guest, Machine, assign, destroy_guest, unassign

# What runs once the machine is at rest again; None where nothing has to.
Finish = Callable[[], None] | None


class StepActions:
    """Starts the work of steps.

    Args:
        judge: keeps what devices map.

    `requests` are the DMA requests that were asked for.
    """

    def __init__(self, scenario: Scenario, machine: Machine, judge: Judge) -> None:
        self._scenario, self._machine, self._judge = scenario, machine, judge
        self.requests: list[Request] = []

    def start(self, guest: Guest, step: Step, result: StepResult) -> Finish:
        """Begin a step for one of its guests."""
        action: Callable[[Guest, Step, StepResult], Finish] = getattr(self, f"_do_{step.do}")
        return action(guest, step, result)

    def _bad(self, step: Step, reason: str) -> ScenarioError:
        return ScenarioError(self._scenario.source, f"step {step.number}", reason, step.line)

    def _changed(self, guest: Guest, step: Step) -> None:
        """A step takes the device's address space over from the actors."""
        self._judge.followed.discard((guest.name, self._device(step)))

    def _device(self, step: Step) -> str:
        return self._scenario.machine.path(step.fields["device"])

    # Actions. Each starts its work; what it returns runs when the machine is idle again.

    def _do_boot(self, guest: Guest, step: Step, result: StepResult) -> None:
        for driver in guest.drivers.values():
            guest.vcpu.start(driver.boot())

    def _do_attach(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._changed(guest, step)
        self._judge.pages[guest.name, self._device(step)] = {}
        for driver, ids in guest.streams(self._device(step)):
            guest.vcpu.start(driver.attach(*ids))

    def _do_detach(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._changed(guest, step)
        for driver, ids in guest.streams(self._device(step)):
            guest.vcpu.start(driver.detach(*ids))

    def _do_bypass(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._changed(guest, step)
        self._judge.pages[guest.name, self._device(step)] = None
        for driver, ids in guest.streams(self._device(step)):
            guest.vcpu.start(driver.bypass(*ids))

    def _do_map(self, guest: Guest, step: Step, result: StepResult) -> None:
        f = step.fields

        def program() -> Program:
            ipa = f.get("ipa")
            if ipa is None:
                ipa = guest.heap.allocate(f["size"], min(f["size"], 0x20_0000))
            for driver, ids in guest.streams(self._device(step)):
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
            for driver, ids in guest.streams(self._device(step)):
                yield from driver.unmap(_attached(driver, ids), f["iova"], f["size"])
            pages = self._pages(guest, step)
            for offset in range(0, f["size"], 4096):
                pages.pop(f["iova"] + offset, None)

        guest.vcpu.start(program())

    def _do_dma(self, guest: Guest, step: Step, result: StepResult) -> Callable[[], None]:
        f = step.fields
        ports, index = guest.ports[self._device(step)], f.get("stream", 0)
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
        self.requests.append(request)
        return lambda: self._dma_done(guest, step, result, ports[index], request)

    def _dma_done(
        self, guest: Guest, step: Step, result: StepResult, port: DevicePort, request: Request
    ) -> None:
        if not request.done:
            result.problems.append("the DMA did not finish")
            return
        result.outcome = request.status
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
            if guest.name not in self._judge.by_hand and ipa != wanted:
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
        pages = self._judge.pages.get((guest.name, self._device(step)))
        if pages is None:
            return iova
        page = pages.get(iova & -PAGE)
        return None if page is None else page + iova % PAGE

    def _pages(self, guest: Guest, step: Step) -> dict[int, int]:
        pages = self._judge.pages.get((guest.name, self._device(step)))
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
        self._ask(unassign, result, guest, self._device(step))

    def _do_assign(self, guest: Guest, step: Step, result: StepResult) -> None:
        self._ask(assign, result, guest, self._device(step))

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
            for driver, ids in guest.streams(self._device(step)):
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
