# SPDX-License-Identifier: BSD-2-Clause
"""What a scenario's run leaves: an outcome for each step, and all of it as JSON values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vsmmu.arch.events import Event
from vsmmu.costs import Costs, summary
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.scenario import Actor, Scenario, Step
from vsmmu.toolstack import Guest, Machine
from vsmmu.work import COUNTED, devices, invalidated, measure


@dataclass(slots=True)
class StepResult:
    """What a step did. `problems` is empty when its expectations hold."""

    step: Step
    outcome: str = "ok"
    detail: str = ""
    events: dict[str, list[Event]] = field(default_factory=dict)
    units: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ActorResult:
    """What an actor did: operations begun, DMA requests by status, what went wrong."""

    actor: Actor
    operations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Problem:
    """An expectation that does not hold, and where it is written.

    Attributes:
        text: what was expected and what was seen.
        source: the scenario file.
        line: the line of the step, actor or field there; None where nothing is written.
        step, actor: number of the step or actor that it is about, from 1.
        guest: name of the guest that it is about.
    """

    text: str
    source: str
    line: int | None = None
    step: int | None = None
    actor: int | None = None
    guest: str | None = None

    @property
    def place(self) -> str:
        """File and line."""
        return self.source if self.line is None else f"{self.source}:{self.line}"

    @property
    def reason(self) -> str:
        """What it is about, and the text."""
        for what, number in (("step", self.step), ("actor", self.actor)):
            if number is not None:
                return f"{what} {number}: {self.text}"
        return self.text if self.guest is None else f"{self.guest}: {self.text}"

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The problem as JSON values."""
        return {
            "file": self.source, "line": self.line, "step": self.step, "actor": self.actor,
            "guest": self.guest, "text": self.text,
        }  # fmt: skip


@dataclass(slots=True)
class Report:
    """A scenario's run.

    `work` is what maps and unmaps cost, by guest and action (`vsmmu.work`); `costs` what each guest
    cost, by guest and SMMU (`vsmmu.costs`). `dma` are DMA requests by guest and status. `problems`
    are those of the run as a whole; a step's are with the step.
    """

    scenario: Scenario
    machine: Machine
    steps: list[StepResult] = field(default_factory=list)
    actors: list[ActorResult] = field(default_factory=list)
    dma: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    work: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    costs: Costs = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every expectation held."""
        return not self.problems and not any(s.problems for s in self.steps)

    @property
    def failures(self) -> tuple[Problem, ...]:
        """Every expectation that does not hold: of steps in their order, then of the run."""
        source = self.scenario.source
        of_steps = [
            Problem(text, source, line=result.step.line, step=result.step.number)
            for result in self.steps
            for text in result.problems
        ]
        return (*of_steps, *self.problems)

    def summary(self) -> dict[str, Any]:
        """What each guest cost on each physical SMMU (`vsmmu.costs`)."""
        guests = {
            name: (guest.domain.domid, guest.vsmmus.values())
            for name, guest in self.machine.guests.items()
        }
        return summary(self.costs, self.machine.hypervisor, self.machine.smmus, guests)


def describe(report: Report) -> dict[str, Any]:
    """A report as JSON values (`vsmmu.run/1`): numbers that can be large as hex strings."""
    return {
        "schema": "vsmmu.run/1",
        "scenario": report.scenario.source,
        "title": report.scenario.title,
        "seed": report.scenario.seed,
        "ok": report.ok,
        "problems": [problem.reason for problem in report.problems],
        "failures": [problem.to_json() for problem in report.failures],
        "guests": [_guest_json(report, g) for g in report.machine.guests.values()],
        "steps": [_step_json(s) for s in report.steps],
        "actors": [_actor_json(a) for a in report.actors],
        "physical": [
            {
                "smmu": path,
                "commands": dict(sorted(_commands(host.counters).items())),
                "events": host.counters["events"],
                "tlb_invalidated": invalidated([report.machine.smmus[path]])[0],
                "tlb_over": invalidated([report.machine.smmus[path]])[1],
            }
            for path, host in report.machine.hypervisor.hosts.items()
        ],
        "work": [work_row(report, guest) for guest in report.machine.guests.values()],
        "kept_events": dict(sorted(report.machine.hypervisor.kept.items())),
        "units": report.machine.scheduler.now,
    }


def work_row(report: Report, guest: Guest) -> dict[str, Any]:
    """What a guest cost: SMMUs (m) and devices (k) in use, in all, and of its maps and unmaps."""
    hosts = report.machine.hypervisor.hosts.values()
    streams = [s for vsmmu in guest.vsmmus.values() for s in vsmmu.streams.values()]
    total = measure(guest.domain, hosts)
    row: dict[str, Any] = {
        "guest": guest.name,
        "smmus": len({s.host.path for s in streams}),
        "devices": devices(streams),
        "total": {name: total[name] for name in COUNTED},
    }
    for do in ("map", "unmap"):
        cost = report.work.get((guest.name, do), Counter())
        row[do] = {name: cost[name] for name in ("steps", *COUNTED)}
    return row


def _guest_json(report: Report, guest: Guest) -> dict[str, Any]:
    drivers = guest.drivers.values()
    return {
        "name": guest.name,
        "domid": guest.domain.domid,
        "vmid": guest.domain.vmid,
        "interrupts": guest.vcpu.interrupts,
        "events": [_event_json(e) for e in guest.events],
        "gerrors": [hex(g) for g in guest.gerrors],
        "dma": dict(sorted(report.dma.get(guest.name, Counter()).items())),
        "syncs": sum(driver.syncs for driver in drivers),
        "sync_units_max": max((driver.sync_units for driver in drivers), default=0),
        "vsmmus": [_vsmmu_json(vsmmu) for vsmmu in guest.vsmmus.values()],
    }


def _vsmmu_json(vsmmu: VSmmu) -> dict[str, Any]:
    return {
        "base": hex(vsmmu.base),
        "bindings": [
            {
                "vmaster_id": stream.vmaster_id,
                "smmu": stream.host.path,
                "pmaster_id": hex(stream.pmaster_id),
            }
            for stream in vsmmu.streams.values()
        ],
        "traps": vsmmu.counters["trap read"] + vsmmu.counters["trap write"],
        "commands": dict(sorted(_commands(vsmmu.counters).items())),
        "physical_commands": dict(sorted(_commands(vsmmu.physical).items())),
        "ste_updates": vsmmu.physical["STE update"],
        "refusals": dict(sorted(vsmmu.refusals.by_reason.items())),
    }


def _step_json(result: StepResult) -> dict[str, Any]:
    return {
        "step": result.step.number,
        "guests": list(result.step.guests),
        "do": result.step.do,
        "outcome": result.outcome,
        "detail": result.detail,
        "events": {n: [_event_json(e) for e in seen] for n, seen in result.events.items() if seen},
        "units": result.units,
        "problems": result.problems,
    }


def _actor_json(result: ActorResult) -> dict[str, Any]:
    return {
        "actor": result.actor.number,
        "guest": result.actor.guest,
        "do": result.actor.do,
        "operations": result.operations,
        "dma": dict(sorted(result.outcomes.items())),
        "problems": result.problems,
    }


def _event_json(event: Event) -> dict[str, Any]:
    """A record as its guest sees it; the StreamID is a vMasterID, a number as in the bindings."""
    fields = event.to_json()
    del fields["type"], fields["sid"]
    return {"name": event.name, "vmaster_id": event.sid, **fields}


def _commands(counters: Counter[str]) -> dict[str, int]:
    return {name: n for name, n in counters.items() if name.startswith("CMD_")}
