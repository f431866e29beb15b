# SPDX-License-Identifier: BSD-2-Clause
"""What a flood by one of eight guests costs another, in virtual time (docs/fairness.md).

`make fairness` runs this module, which draws docs/fairness.svg from what it measures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vsmmu.arch.commands import CmdCfgiSte, CmdCfgiSteRange, CmdSync, CmdTlbiNhVa, Command, Cs
from vsmmu.guest.vcpu import Program
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.eventq import PENDING_EVENTS

from .world import BASE, BUFFER, Guest, World

GUESTS = 8
DEVICES = 8
BUDGET = 16
REPEATS = 6
SYNC = CmdSync.build(cs=Cs.SEV)
SVG = Path(__file__).parents[3] / "docs" / "fairness.svg"

# The bounds, from the budgets alone.
POLICY = Policy()
OWN = 2
SYNCS = (POLICY.commands_in_queue + POLICY.commands_per_turn) // 2
COMMANDS = POLICY.commands_in_queue + POLICY.commands_per_turn
RECORDS = (1 << POLICY.physical_queue_log2) + BUDGET


def _up(value: int) -> int:
    return -(-value // BUDGET)


ROUNDS = 4 + _up(POLICY.commands_per_turn + OWN + SYNCS) + _up(COMMANDS + OWN)
FAULT_ROUNDS = ROUNDS + SYNCS * _up(PENDING_EVENTS) + _up(RECORDS)


class Cost(NamedTuple):
    """The most that one unmap of the victim met: commands and records of others, rounds."""

    commands: int
    records: int
    rounds: float


def _post(guest: Guest, commands: list[Command]) -> Program:
    while True:
        yield from guest.driver.post(*commands)
        yield


def _tlbi(guest: Guest) -> Program:
    """Different addresses, so that none is sent once for two; a CMD_SYNC behind 63."""
    return _post(guest, [*(CmdTlbiNhVa.build(asid=1, addr=i << 12) for i in range(63)), SYNC])


def _tlbi_sync(guest: Guest) -> Program:
    return _post(guest, [CmdTlbiNhVa.build(asid=1), SYNC])


def _cfgi(guest: Guest) -> Program:
    return _post(guest, [CmdCfgiSteRange.build(range=31), SYNC])


def _ste(guest: Guest) -> Program:
    """Every STE changes each time: updates of several phases, each with a CMD_SYNC."""
    while True:
        for i, _ in enumerate(guest.ports):
            words = guest.memory.read_words(guest.driver.ste_address(i), 8) or ()
            guest.memory.write64(guest.driver.ste_address(i), words[0] ^ 0xA)
            yield from guest.driver.post(CmdCfgiSte.build(sid=i, leaf=1))
        yield from guest.driver.post(SYNC)
        yield


def _traps(guest: Guest) -> Program:
    """SMMUEN on and off: each write makes every shadow stale."""
    value = 0xD
    while True:
        value ^= 1
        guest.world.hypervisor.trap(guest.domain, BASE + 0x20, 4, value)
        yield


def _events(guest: Guest) -> Program:
    """Devices that do nothing but fault."""
    while True:
        for port in guest.ports:
            while port.pending < 64:
                port.read(0x90000, 4)
        yield


def _all(guest: Guest) -> Program:
    while True:
        for flood in (_tlbi(guest), _events(guest)):
            for _ in range(70):
                next(flood)
                yield


FLOODS: dict[str, Callable[[Guest], Program]] = {
    "TLBI": _tlbi,
    "TLBI, SYNC": _tlbi_sync,
    "CFGI_ALL": _cfgi,
    "STE changes": _ste,
    "traps": _traps,
    "events": _events,
    "TLBI and events": _all,
}
FAULTING = ("events", "TLBI and events")


def _world(seed: int, policy: Policy) -> World:
    """Eight guests on one SMMU: `flood` with eight devices, the others with one each."""
    streams = {f"g{i}": [("a", 100 + i)] for i in range(GUESTS - 1)}
    streams["flood"] = [("a", 200 + i) for i in range(DEVICES)]
    world = World(streams, seed=seed, policy=policy, smmus="a")
    for guest in world.guests.values():
        guest.boot()
        for i, _ in enumerate(guest.ports):
            guest.attach(i)
            guest.map(i, 0x10000, BUFFER)
    world.scheduler.budget = BUDGET
    return world


def measure(kind: str | None, seed: int, policy: Policy = POLICY, floods: int = 1) -> Cost:
    """The dearest of some unmaps of a victim while guests flood; None is no flood."""
    world = _world(seed, policy)
    victim, host, scheduler = world["g3"], world.hypervisor.hosts["a"], world.scheduler
    if kind is not None:
        for name in ("flood", "g0", "g1", "g2", "g4", "g5", "g6")[:floods]:
            world[name].vcpu.start(FLOODS[kind](world[name]))
        scheduler.run(40 * len(scheduler.engines))
    host.queue.waited.clear()
    records = turns = 0
    for _ in range(REPEATS):
        victim.driver.map(0, 0x50000, BUFFER, 0x1000)
        victim.vcpu.start(victim.driver.unmap(0, 0x50000, 0x1000))
        start, synced, taken = scheduler.turns, None, 0
        while victim.vcpu.busy:
            scheduler.step()
            # Records that were handed on from when the SMMU passed the victim's CMD_SYNC.
            if synced is None and _passed(world, victim):
                synced = host.counters["events"]
            if synced is not None and victim.vsmmu._outstanding:
                taken = host.counters["events"] - synced
        assert victim.vcpu.failure is None
        records, turns = max(records, taken), max(turns, scheduler.turns - start)
    assert victim.events() == []
    waited = host.queue.waited[victim.domain.domid]
    return Cost(waited, records, turns / len(scheduler.engines))


def _passed(world: World, victim: Guest) -> bool:
    """Whether the SMMU has consumed all that the victim has entered."""
    host, smmu = world.hypervisor.hosts["a"], world.smmus["a"]
    if not victim.vsmmu._outstanding or victim.domain.domid in host.queue._waiting:
        return False
    ahead = host._cmdq.clip(smmu.regs["CMDQ_CONS"] - host._consumed)
    inside = 0
    for owner, count in host.queue._inside:
        inside += count
        if owner == victim.domain.domid and inside > ahead:
            return False
    return True


# The picture.

_WIDTH, _BAR, _GAP, _LEFT, _SCALE = 760, 14, 34, 150, 4.6


def picture(costs: dict[str, list[int]], quiet: int) -> str:
    """Bars of the most commands of others that the victim waited for, by flood, as SVG."""
    height = 90 + _GAP * (len(costs) + 1)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="12" y="22" font-size="15">Commands of one flooding guest that an unmap of '
        "another waits for</text>",
        '<text x="12" y="42" fill="#555">dot: the most over '
        f"{REPEATS} unmaps of one seed; bar: over all seeds; line: the bound</text>",
    ]
    rows = {"no flood": [quiet], **costs}
    bottom = 62 + _GAP * len(rows)
    for value in range(0, COMMANDS + 41, 20):
        x = _LEFT + value * _SCALE
        out.append(f'<path d="M{x:.0f} 54V{bottom}" stroke="#ddd"/>')
        out.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{value}</text>')
    for row, (name, seen) in enumerate(rows.items()):
        y = 62 + _GAP * row
        out.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{name}</text>')
        size = max(seen) * _SCALE
        out.append(f'<g data-flood="{name}" data-commands="{" ".join(map(str, seen))}">')
        out.append(f'<rect x="{_LEFT}" y="{y}" width="{size:.0f}" height="{_BAR}" fill="#9bc"/>')
        out += [
            f'<circle cx="{_LEFT + v * _SCALE:.0f}" cy="{y + 7}" r="3" fill="#247"/>'
            for v in sorted(set(seen))
        ]
        out.append("</g>")
    x = _LEFT + COMMANDS * _SCALE
    out.append(f'<path d="M{x:.0f} 54V{bottom}" stroke="#b22" stroke-width="2"/>')
    out.append(f'<text x="{x + 5:.0f}" y="64" fill="#b22">bound {COMMANDS}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


SEEDS = range(6)


def drawn() -> str:
    """The picture of this tree."""
    costs = {kind: [measure(kind, seed).commands for seed in SEEDS] for kind in FLOODS}
    return picture(costs, max(measure(None, seed).commands for seed in SEEDS))


if __name__ == "__main__":
    SVG.write_text(drawn())
