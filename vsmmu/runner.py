# SPDX-License-Identifier: BSD-2-Clause
"""Carries out a scenario, its steps one after the other and its actors beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from vsmmu.arch.events import Event
from vsmmu.cast import Cast
from vsmmu.judge import Judge
from vsmmu.report import Problem, Report, StepResult
from vsmmu.scenario import Actor, Scenario, ScenarioError, Step
from vsmmu.scenario.steps import BY_HAND
from vsmmu.step_actions import StepActions
from vsmmu.toolstack import Guest, Machine
from vsmmu.work import measure

# Turns that a step may take, and the machine to come to rest beside a hostile guest.
_TURNS = 2_000_000
_SETTLE = 20_000
# Turns that an operation of an actor may take, and those in which nothing at all is done.
_OPERATION_TURNS = 10_000
_STALLED = 200_000
# Turns after which it is asked whether all actors have ended.
_BETWEEN = 32


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
        self._judge = Judge(machine)
        # Set by a step that leaves work without end: nothing after it would mean anything.
        self._restless = False
        self._actions = StepActions(scenario, machine, self._judge)
        self._cast = Cast(scenario, machine, self._judge)
        for guest in guests:
            for driver in guest.drivers.values():
                driver.clock = lambda: machine.scheduler.now

    def run(self) -> Report:
        """All steps in order, each until the machine is idle but for actors; then the end."""
        report = Report(self._scenario, self._machine)
        self._check_names()
        self._cast.start(0)
        for step in self._scenario.steps:
            if self._progress is not None:
                self._progress(step)
            before = {name: self._cost(name) for name in step.guests}
            self._machine.trace("scenario_step", step.number, ",".join(step.guests), step.do)
            report.steps.append(self._step(step))
            self._machine.trace("scenario_step_done", step.number, report.steps[-1].outcome)
            if step.do in ("map", "unmap"):
                for name, cost in before.items():
                    total = report.work.setdefault((name, step.do), Counter())
                    total.update(self._cost(name))
                    total.subtract(cost)
                    total["steps"] += 1
            if self._restless:
                left = len(self._scenario.steps) - step.number
                if left:
                    self._add(report, f"{left} steps after step {step.number} not run", step.line)
                break
            self._cast.start(step.number)
        self._end_actors(report)
        self._check_end(report)
        return report

    def _check_names(self) -> None:
        """Every guest and device that is named must exist, before anything runs."""
        for step in self._scenario.steps:
            for name in step.guests:
                self._check_name(name, step.fields.get("device"), f"step {step.number}", step.line)
        for actor in self._scenario.actors:
            where = f"actor {actor.number}"
            self._check_name(actor.guest, actor.device, where, actor.line, any_device=True)

    def _check_name(
        self, name: str, device: str | None, where: str, line: int | None,
        *, any_device: bool = False,
    ) -> None:  # fmt: skip
        source = self._scenario.source
        guest = self._machine.guests.get(name)
        if guest is None:
            known = ", ".join(self._machine.guests)
            raise ScenarioError(source, where, f"no guest {name!r}; guests are {known}", line)
        if not guest.drivers:
            reason = f'guest {name!r} has no vSMMU (viommu = "smmuv3")'
            raise ScenarioError(source, where, reason, line)
        path = None if device is None else self._scenario.machine.path(device)
        if (any_device and not guest.ports) or (path is not None and not guest.ports.get(path)):
            known = ", ".join(guest.ports) or "none"
            reason = f"{name} has no device{'' if device is None else f' {device}'}; it has {known}"
            raise ScenarioError(source, where, reason, line)

    def _cost(self, guest: str) -> Counter[str]:
        hosts = self._machine.hypervisor.hosts.values()
        return measure(self._machine.guests[guest].domain, hosts)

    # One step.

    def _step(self, step: Step) -> StepResult:
        result = StepResult(step)
        guests = self._machine.guests
        self._turns_until(lambda: self._cast.ready(step.guests))
        seen = {name: len(guest.events) for name, guest in guests.items()}
        before = self._machine.scheduler.now
        if step.do in BY_HAND:
            self._judge.by_hand |= set(step.guests)
        self._actions.requests.clear()
        finishers = [self._actions.start(guests[name], step, result) for name in step.guests]
        self._restless = not self._settle(step)
        if self._restless:
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

    def _settle(self, step: Step) -> bool:
        """Run until the step's work is done and, with the actors held, all that follows of it."""
        scheduler, cast = self._machine.scheduler, self._cast
        if not cast.busy:
            return scheduler.run_until_idle(_TURNS)
        self._turns_until(lambda: not cast.busy or self._stepped(step))
        with cast.held():
            idle = scheduler.run_until_idle(_SETTLE if cast.hostile else _TURNS)
        return idle or cast.hostile

    def _turns_until(self, ready: Callable[[], bool]) -> None:
        for _ in range(_TURNS):
            if ready():
                return
            self._machine.scheduler.step()
            self._cast.poll()

    def _stepped(self, step: Step) -> bool:
        guests = [self._machine.guests[name] for name in step.guests]
        busy = any(guest.vcpu.busy and not guest.domain.dying for guest in guests)
        return not busy and all(request.done for request in self._actions.requests)

    def _check(self, step: Step, result: StepResult) -> None:
        if result.outcome != step.expect:
            detail = f" ({result.detail})" if result.detail else ""
            result.problems.append(f"expected {step.expect}, got {result.outcome}{detail}")
        others = self._cast.guests() | set(step.guests)
        for name, seen in result.events.items():
            if name not in others and seen:
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

    # The end.

    def _end_actors(self, report: Report) -> None:
        """Run until every actor has ended, then until the machine is at rest."""
        scheduler, cast = self._machine.scheduler, self._cast
        if not self._scenario.actors or self._restless:
            return
        last = scheduler.turns + sum(map(_allowed, self._scenario.actors))
        done, moved = scheduler.now, scheduler.turns
        stalled = _STALLED + max(actor.every for actor in self._scenario.actors)
        while cast.busy and scheduler.turns < min(last, moved + stalled):
            for _ in range(_BETWEEN):
                scheduler.step()
                cast.poll()
            if scheduler.now != done:
                done, moved = scheduler.now, scheduler.turns
        for actor in cast.unended():
            self._add(report, "did not end", actor.line, actor=actor.number)
        hostile = any(actor.do == "hostile" for actor in self._scenario.actors)
        if not scheduler.run_until_idle(_TURNS) and not hostile:
            self._add(report, "the machine did not come to rest", None)
        report.actors = cast.results()
        for result in report.actors:
            if result.actor.guest in self._judge.by_hand and result.actor.do != "hotplug":
                continue
            for problem in result.problems:
                self._add(report, problem, result.actor.line, actor=result.actor.number)

    def _check_end(self, report: Report) -> None:
        report.dma = self._judge.dma
        for spec, guest in zip(self._scenario.guests, self._guests, strict=True):
            for verdict in self._judge.verdicts.get(guest.name, ()):
                self._add(report, verdict, spec.line, guest=guest.name)
            if self._judge.dropped[guest.name]:
                more = f"and {self._judge.dropped[guest.name]} more accesses like these"
                self._add(report, more, spec.line, guest=guest.name)
            if guest.name not in self._judge.by_hand:
                self._check_events(report, guest, spec.line)
            self._check_strays(report, guest, spec.line)
            seen = {
                "events": len(guest.events),
                "gerrors": len(guest.gerrors),
                "sync": max((d.sync_units for d in guest.drivers.values()), default=0),
            }
            for what, wanted in spec.counts.items():
                if not wanted.holds(seen[what]):
                    unit = " units for a CMD_SYNC" if what == "sync" else f" {what}"
                    text = f"expected {wanted}{unit}, got {seen[what]}"
                    self._add(report, text, spec.lines.get(what), guest=guest.name)
            for outcome, wanted in spec.dma.items():
                got = self._judge.dma[guest.name][outcome]
                if not wanted.holds(got):
                    text = f"expected {wanted} DMA requests with outcome {outcome}, got {got}"
                    self._add(report, text, spec.lines.get("dma"), guest=guest.name)

    def _check_events(self, report: Report, guest: Guest, line: int | None) -> None:
        """No event names a stream that the guest's own tree does not."""
        own = {sid for streams in guest.view.masters.values() for _, sid in streams}
        strange = [event for event in guest.events if event.sid not in own]
        if strange:
            text = f"got {_events(strange[:8])} of streams that are not its own"
            self._add(report, text, line, guest=guest.name)

    def _check_strays(self, report: Report, guest: Guest, line: int | None) -> None:
        """A guest without an actor sees events during steps alone, where each is judged."""
        known = sum(len(result.events.get(guest.name, ())) for result in report.steps)
        actors = {actor.guest for actor in self._scenario.actors}
        if len(guest.events) != known and guest.name not in actors:
            text = f"got {len(guest.events) - known} events of no step, and it has no actor"
            self._add(report, text, line, guest=guest.name)

    def _add(
        self, report: Report, text: str, line: int | None, *, actor: int | None = None,
        guest: str | None = None,
    ) -> None:  # fmt: skip
        source = self._scenario.source
        report.problems.append(Problem(text, source, line, actor=actor, guest=guest))


def _allowed(actor: Actor) -> int:
    """Turns in which an actor must have ended."""
    operations = (actor.operations or 1) + 1
    return _TURNS + (actor.turns or 0) + operations * (_OPERATION_TURNS + 2 * actor.every)


def _event(event: Event) -> str:
    return f"{event.name} vMasterID {event.sid:#x}"


def _events(seen: list[Event]) -> str:
    return ", ".join(map(_event, seen)) or "none"


def _expected(kind: str, vmaster_id: int | None) -> str:
    return kind if vmaster_id is None else f"{kind} vMasterID {vmaster_id:#x}"
