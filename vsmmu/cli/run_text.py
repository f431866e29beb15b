# SPDX-License-Identifier: BSD-2-Clause
"""A scenario's report for a terminal: plain lines, coloured only where a terminal is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from vsmmu.cli.files import plain
from vsmmu.cli.junit import told_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vsmmu.cli.run_cases import Outcome
    from vsmmu.report import Report, StepResult
    from vsmmu.toolstack import Guest

# Problems of one run among several that are printed; the JSON has all.
_PROBLEMS_SHOWN = 10
_STYLES = {"ok": "green", "fault": "yellow", "abort": "yellow", "error": "yellow"}


def print_report(report: Report) -> None:
    """Print guests, steps, events, commands and the verdict to stdout."""
    console = _console()
    scenario = report.scenario
    title = plain(scenario.title or scenario.source)
    console.print(Text(f"{title} (seed {scenario.seed})", style="bold"))
    _guests(report, console)
    console.print()
    for result in report.steps:
        _step(result, console, labels(report))
    _actors(report, console)
    _commands(report, console)
    _translations(report, console)
    _work(report, console)
    console.print()
    problems = report.failures
    for problem in problems:
        console.print(Text(plain(f"FAILED {problem}"), style="red"))
    held = len(report.steps) - sum(bool(s.problems) for s in report.steps)
    verdict = "every expectation holds" if report.ok else f"{len(problems)} do not hold"
    steps = f"{held} of {len(report.steps)} steps as expected; " if report.steps else ""
    console.print(f"{steps}{verdict}")


def print_outcome(outcome: Outcome) -> None:
    """A line for one run of several, and what is wrong with it."""
    console = _console()
    name = plain(outcome.path) + ("" if outcome.seed is None else f" seed {outcome.seed}")
    if outcome.error is not None:
        word, style = ("skipped", "yellow") if outcome.skipped else ("ERROR", "red")
        console.print(Text(f"{word:7} ", style=style) + Text(name))
        console.print(Text(f"        {plain(outcome.error.text)}"))
        return
    word, style = ("ok", "green") if outcome.ok else ("FAILED", "red")
    console.print(Text(f"{word:7} ", style=style) + Text(f"{name}: {told_of(outcome)}"))
    for problem in outcome.problems[:_PROBLEMS_SHOWN]:
        console.print(Text(f"        {plain(str(problem))}"))
    if len(outcome.problems) > _PROBLEMS_SHOWN:
        console.print(f"        and {len(outcome.problems) - _PROBLEMS_SHOWN} more")


def print_totals(outcomes: Sequence[Outcome]) -> None:
    """How many runs of how many scenarios went how."""
    files = len({outcome.path for outcome in outcomes})
    counts = {
        "as expected": sum(outcome.ok for outcome in outcomes),
        "not as expected": sum(bool(outcome.problems) for outcome in outcomes),
        "could not be run": sum(
            outcome.error is not None and not outcome.skipped for outcome in outcomes
        ),
        "skipped": sum(outcome.skipped for outcome in outcomes),
    }
    shown = [f"{count} {what}" for what, count in counts.items() if count]
    runs, scenarios = len(outcomes), "scenario" if files == 1 else "scenarios"
    _console().print(f"{runs} runs of {files} {scenarios}: {', '.join(shown)}")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def _guests(report: Report, console: Console) -> None:
    names = labels(report)
    for path, label in names.items():
        console.print(f"{label} = {plain(path)}")
    for guest in report.machine.guests.values():
        console.print(f"guest {plain(guest.name)}: domid {guest.domain.domid}")
        for path, vsmmu in guest.vsmmus.items():
            spis = sorted(set(guest.view.vsmmus[path].spis.values()))
            console.print(f"  vSMMU {vsmmu.base:#x} SPI {' '.join(map(str, spis)) or 'none'}")
            for stream in vsmmu.streams.values():
                console.print(
                    f"    vMasterID {stream.vmaster_id:#x} = {names[stream.host.path]} "
                    f"StreamID {stream.pmaster_id:#x}  {', '.join(stream.devices)}"
                )


def _step(result: StepResult, console: Console, names: dict[str, str]) -> None:
    step = result.step
    what = [step.do]
    if "device" in step.fields:
        what.append(step.fields["device"])
    if "iova" in step.fields:
        what.append(f"iova {step.fields['iova']:#x}")
    if step.do == "mmio":
        what.append(f"{step.fields['offset']:#x} <- {step.fields['value']:#x}")
    line = Text(plain(f"{step.number:3} {','.join(step.guests)}: {' '.join(what)}: "))
    line.append(result.outcome, style=_STYLES[result.outcome])
    if result.problems:
        line.append(" UNEXPECTED", style="red")
    console.print(line)
    if step.note:
        console.print(Text(f"      {plain(step.note)}", style="dim"))
    if result.detail:
        console.print(f"      {plain(_short(result.detail, names))}")
    for name, seen in result.events.items():
        for event in seen[:8]:
            address = getattr(event, "inputaddr", None)
            where = "" if address is None else f" InputAddr {address:#x}"
            console.print(f"      {plain(name)} sees {event.name} vMasterID {event.sid:#x}{where}")
        if len(seen) > 8:
            console.print(f"      and {len(seen) - 8} more")


def _actors(report: Report, console: Console) -> None:
    for result in report.actors:
        actor = result.actor
        counts = [f"{n} {status}" for status, n in sorted(result.outcomes.items())]
        dma = f", DMA {', '.join(counts)}" if counts else ""
        line = f"actor {actor.number} {plain(actor.guest)}: {actor.do}: "
        console.print(f"{line}{result.operations} operations{dma}")
        if actor.note:
            console.print(Text(f"      {plain(actor.note)}", style="dim"))


def _short(detail: str, names: dict[str, str]) -> str:
    """A detail that starts with an SMMU's path, with the SMMU's label instead."""
    path, blank, rest = detail.partition(" ")
    return f"{names[path]}{blank}{rest}" if path in names else detail


def _commands(report: Report, console: Console) -> None:
    """What each guest asked, and what reached each physical queue that a guest's stream uses."""
    names = labels(report)
    columns: list[tuple[str, Counter[str]]] = []
    guests = report.machine.guests.values()
    for guest in guests:
        if guest.vsmmus:
            total: Counter[str] = Counter()
            for vsmmu in guest.vsmmus.values():
                total += vsmmu.counters
            columns.append((plain(guest.name), total))
    used = {s.host for g in guests for v in g.vsmmus.values() for s in v.streams.values()}
    for path, host in report.machine.hypervisor.hosts.items():
        if host in used:
            columns.append((names[path], host.counters))
    rows = sorted({n for _, c in columns for n in c if n.startswith("CMD_")})
    if not rows:
        return
    console.print("\ncommands a guest put into its queue, and that reached each physical queue")
    cells = [[[title, *(str(counts[row] or "-") for row in rows)]] for title, counts in columns]
    _print_grid(console, ["", *rows], cells)


def _print_grid(console: Console, names: list[str], groups: Sequence[list[list[str]]]) -> None:
    """A table of columns, each with its heading and its cells; `names` are those of the rows.

    On a terminal it goes on below where it is wider; a group of columns stays together.
    """
    label = max(map(len, names))
    room = console.width - label - 2 if console.is_terminal else None
    block: list[tuple[list[str], int]] = []
    for group in groups:
        more = [(column, max(6, *map(len, column))) for column in group]
        if block and room is not None and sum(w + 2 for _, w in block + more) > room:
            _print_block(console, names, label, block)
            block = []
        block += more
    _print_block(console, names, label, block)


def _print_block(
    console: Console, names: list[str], label: int, block: list[tuple[list[str], int]]
) -> None:
    for index, name in enumerate(names):
        cells = "".join(f"  {column[index]:>{width}}" for column, width in block)
        console.print(f"  {name:{label}}{cells}")


def _translations(report: Report, console: Console) -> None:
    names = labels(report)
    for path, smmu in report.machine.smmus.items():
        fates = [
            f"{name.partition('.')[2]} {count}"
            for name, count in sorted(smmu.counters.items())
            if name.startswith("txn.")
        ]
        if fates:
            console.print(f"\n{names[path]} transactions: {', '.join(fates)}")
    for guest in report.machine.guests.values():
        vsmmus = guest.vsmmus.values()
        traps = sum(v.counters["trap read"] + v.counters["trap write"] for v in vsmmus)
        console.print(
            f"{plain(guest.name)}: {traps} traps, {guest.vcpu.interrupts} interrupts, "
            f"{len(guest.events)} events"
        )
        if report.actors:
            console.print(f"  {_traffic(report, guest)}")
        for vsmmu in vsmmus:
            for reason, count in sorted(vsmmu.refusals.by_reason.items()):
                console.print(f"  refused {count} x {reason}")
    for reason, count in sorted(report.machine.hypervisor.kept.items()):
        console.print(f"kept by the hypervisor: {count} x {reason}")


def _traffic(report: Report, guest: Guest) -> str:
    """What the expectations `dma` and `sync` are held against."""
    counts = [f"{n} {status}" for status, n in sorted(report.dma[guest.name].items())]
    slowest = max((driver.sync_units for driver in guest.drivers.values()), default=0)
    return f"DMA {', '.join(counts) or 'none'}; slowest CMD_SYNC {slowest} units"


def _work(report: Report, console: Console) -> None:
    """Traps and physical commands of each guest, and what its commands dropped needlessly."""
    from vsmmu.report import work_row
    from vsmmu.work import COUNTED, invalidated

    rows = [work_row(report, guest) for guest in report.machine.guests.values()]
    rows = [row for row in rows if row["devices"]]
    if not rows:
        return
    console.print("\nwork: in all, and of strict unmaps (m SMMUs and k devices)")

    def column(title: str, row: dict[str, Any], part: str) -> list[str]:
        counts = row[part]
        head = [title, f"{row['smmus']}, {row['devices']}", str(counts.get("steps", "-"))]
        return [*head, *(str(counts[name]) for name in COUNTED)]

    groups = [
        [column(plain(row["guest"]), row, "total"), column("unmap", row, "unmap")] for row in rows
    ]
    _print_grid(console, ["", "m, k", "steps", *COUNTED.values()], groups)
    for path, smmu in report.machine.smmus.items():
        dropped, over = invalidated([smmu])
        if dropped:
            name = labels(report)[path]
            console.print(f"{name} TLB entries invalidated: {dropped}, over-invalidated: {over}")


def labels(report: Report) -> dict[str, str]:
    """Short names of the physical SMMUs by path."""
    return {path: f"p{i}" for i, path in enumerate(report.machine.hypervisor.hosts)}
