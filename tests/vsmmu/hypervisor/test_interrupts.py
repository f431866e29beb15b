# SPDX-License-Identifier: BSD-2-Clause
"""Wired interrupts of a vSMMU with the trigger that the guest's tree states (IHI 0070 §3.18).

A level stands until its cause is gone; an edge is a pulse each time that a cause occurs. `seen` has
what the guest's GIC is told, (interrupt, level).
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vsmmu.arch.commands import CmdSync, CmdTlbiNhAll, Command
from vsmmu.arch.registers import EventqCons, EventqProd, Gerror, IrqCtrl
from vsmmu.guest_view import GuestView
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.wires import CAUSES, Wires, edges
from vsmmu.smmu.features import Features
from vsmmu.toolstack import build_machine, create_dom0

from .world import BUFFER, Guest, World

SEPARATE = dict(zip(CAUSES, (96, 97, 98, 99), strict=True))
EVENTQ, _, GERROR, SYNC = SEPARATE.values()
SIG_IRQ = CmdSync.build(cs=1)
ILLEGAL = Command((0xFF, 0))
BOTH = IrqCtrl.build(gerror_irqen=1, eventq_irqen=1).raw


class Listening(Guest):
    """A guest whose GIC is `seen` and whose driver takes no interrupts once it has booted."""

    def boot(self) -> Guest:
        super().boot()
        self.vcpu.handlers.clear()
        self.attach(0)
        self.seen: list[tuple[int, bool]] = []
        self.vsmmu.interrupts._irq = Wires(self.spis, self.tell, self.edges)
        return self

    def tell(self, spi: int, level: bool) -> None:
        self.seen.append((spi, level))

    def taken(self) -> list[tuple[int, bool]]:
        seen, self.seen = self.seen, []
        return seen

    def event(self) -> None:
        """One F_TRANSLATION."""
        assert not self.dma(0, 0x5_0000, b"x").ok

    def read_events(self) -> None:
        self.write("EVENTQ_CONS", self.read("EVENTQ_PROD"))

    def error(self) -> None:
        """CERROR_ILL on the next command."""
        self.put(ILLEGAL)

    def repair(self) -> None:
        """The bad command becomes a CMD_SYNC, and the error is acknowledged."""
        at = self.driver._cmdq.address(self.read("CMDQ_CONS") & 0xFFFFF)
        self.memory.write_words(at, CmdTlbiNhAll.build().words)
        self.write("GERRORN", self.read("GERROR"))


class Level(Listening):
    spis: Mapping[str, int] = SEPARATE


class Edge(Listening):
    spis: Mapping[str, int] = SEPARATE
    edges = frozenset(SEPARATE.values())


class CombinedEdge(Listening):
    edges = frozenset({33})


def listening(kind: type[Listening], **world: object) -> Listening:
    guest = World({"g": [("a", 1)]}, guest=kind, **world)["g"].boot()  # type: ignore[arg-type]
    assert isinstance(guest, Listening)
    return guest


def pulse(*spis: int) -> list[tuple[int, bool]]:
    return [(spi, level) for spi in spis for level in (True, False)]


# A level.


def test_a_level_stands_until_the_queue_is_read() -> None:
    g = listening(Level)
    g.event()
    assert g.taken() == [(EVENTQ, True)]
    g.event()
    assert g.taken() == []
    prod = EventqProd(g.read("EVENTQ_PROD"))
    g.write("EVENTQ_CONS", EventqCons.build(rd=prod.wr - 1).raw)
    assert g.taken() == []
    g.read_events()
    assert g.taken() == [(EVENTQ, False)]


def test_a_level_stands_until_the_error_is_acknowledged() -> None:
    g = listening(Level)
    g.error()
    assert g.taken() == [(GERROR, True)]
    g.repair()
    assert g.taken() == [(GERROR, False)]


def test_a_level_follows_its_enable() -> None:
    """IRQ_CTRL makes it fall and rise while the cause stands."""
    g = listening(Level)
    g.event()
    g.error()
    g.taken()
    g.write("IRQ_CTRL", IrqCtrl.build(gerror_irqen=1).raw)
    assert g.taken() == [(EVENTQ, False)]
    g.write("IRQ_CTRL", 0)
    assert g.taken() == [(GERROR, False)]
    g.write("IRQ_CTRL", BOTH)
    assert sorted(g.taken()) == [(EVENTQ, True), (GERROR, True)]
    g.write("CR0", g.read("CR0") & ~4)
    assert g.taken() == [(EVENTQ, False)]


def test_a_combined_level_falls_with_the_last_of_two_causes() -> None:
    for first, second in ((Listening.read_events, Listening.repair),
                          (Listening.repair, Listening.read_events)):  # fmt: skip
        g = listening(Listening)
        g.event()
        g.error()
        assert g.taken() == [(33, True)]
        first(g)
        assert g.taken() == []
        second(g)
        assert g.taken() == [(33, False)]


def test_a_sync_does_not_lower_a_level_that_stands() -> None:
    g = listening(Listening)
    g.put(SIG_IRQ)
    assert g.taken() == pulse(33)
    g.event()
    g.put(SIG_IRQ)
    assert g.taken() == [(33, True)]
    g.read_events()
    assert g.taken() == [(33, False)]


# An edge.


def test_an_edge_is_a_pulse_when_the_queue_is_no_longer_empty() -> None:
    g = listening(Edge)
    g.event()
    assert g.taken() == pulse(EVENTQ)
    g.event()
    assert g.taken() == [], "the queue was not empty"
    g.read_events()
    assert g.taken() == []
    g.event()
    assert g.taken() == pulse(EVENTQ)


def test_an_edge_is_a_pulse_for_each_error_that_becomes_active() -> None:
    g = listening(Edge)
    g.error()
    assert g.taken() == pulse(GERROR)
    g.vsmmu.interrupts.gerror("cmdq_err")
    assert g.taken() == [], "it was active already"
    g.vsmmu.interrupts.gerror("eventq_abt_err")
    assert g.taken() == pulse(GERROR)
    g.repair()
    assert g.taken() == []
    g.error()
    assert g.taken() == pulse(GERROR)


def test_an_edge_is_a_pulse_for_each_sync_that_asks() -> None:
    g = listening(Edge)
    g.put(SIG_IRQ, CmdSync.build(cs=0), SIG_IRQ)
    assert g.taken() == pulse(SYNC, SYNC)


def test_an_edge_that_was_not_enabled_is_not_made_up_for() -> None:
    g = listening(Edge)
    g.write("IRQ_CTRL", 0)
    g.event()
    g.error()
    g.write("IRQ_CTRL", BOTH)
    assert g.taken() == []
    g.event()
    assert g.taken() == [], "the queue was not empty"
    g.read_events()
    g.event()
    assert g.taken() == pulse(EVENTQ)


def test_two_causes_of_a_combined_edge_are_two_pulses() -> None:
    """Also while the other one stands: nothing is swallowed."""
    g = listening(CombinedEdge)
    g.event()
    g.error()
    assert g.taken() == pulse(33, 33)
    g.read_events()
    g.event()
    assert g.taken() == pulse(33)
    g.repair()
    g.put(SIG_IRQ)
    assert g.taken() == pulse(33)


@pytest.mark.parametrize("kind", [Edge, Level])
def test_the_error_of_the_gerror_message_has_no_interrupt(kind: type[Listening]) -> None:
    """IHI 0070 §6.3.19."""
    g = listening(kind)
    g.vsmmu.interrupts.gerror("msi_gerror_abt_err")
    assert g.vsmmu.regs.gerror_active == Gerror.mask("msi_gerror_abt_err")[0]
    assert g.taken() == []


@pytest.mark.parametrize("kind", [Edge, Level])
def test_a_message_takes_the_place_of_either(kind: type[Listening]) -> None:
    g = listening(
        kind, policy=Policy(msi=True), features=Features.default(sidsize=16).replace(msi=1)
    )
    g.write("IRQ_CTRL", 0)
    g.write("EVENTQ_IRQ_CFG0", BUFFER)
    g.write("EVENTQ_IRQ_CFG1", 0x77)
    g.write("IRQ_CTRL", BOTH)
    g.event()
    assert g.taken() == []
    assert g.memory.read(BUFFER, 4) == b"\x77\0\0\0"


# The guest's side.


@pytest.mark.parametrize("seed", range(4))
def test_a_driver_on_an_edge_misses_nothing(seed: int) -> None:
    """Records and errors that come while the handler runs, in many interleavings."""

    class Driven(Guest):
        edges = frozenset({33})

    g = World({"g": [("a", 1)]}, seed=seed, guest=Driven)["g"].boot()
    g.attach(0)
    for turn in range(12):
        g.ports[0].write(0x5_0000 + turn * 0x1000, b"x")
        g.ports[0].write(0x9_0000 + turn * 0x1000, b"x")
        if turn % 4 == 0:
            g.put_without_rest(ILLEGAL)
        for _ in range(turn):
            g.world.scheduler.step()
    assert g.world.scheduler.run_until_idle()
    assert len(g.driver.events) == 24
    assert len(g.driver.gerrors) == 3
    assert g.read("EVENTQ_CONS") == g.read("EVENTQ_PROD")
    assert g.vcpu.lines == {33: False}


def test_a_pulse_before_the_handler_is_there_is_pending() -> None:
    g = World({"g": [("a", 1)]}, guest=CombinedEdge)["g"]
    ran: list[int] = []

    def handler():  # type: ignore[no-untyped-def]
        ran.append(1)
        yield

    for level in (True, False, True, False):
        g.vcpu.interrupt(33, level)
    assert g.vcpu.interrupts == 2
    g.vcpu.handlers[33] = handler
    assert g.world.scheduler.run_until_idle()
    assert ran == [1], "pulses before it begins are one"


# What a tree says.


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([(33, 4)], set()), ([(33, 0xF04)], set()), ([(33, 8)], set()), ([(33, 0)], set()),
        ([(33, 1)], {33}), ([(33, 0xF01)], {33}), ([(33, 2)], {33}), ([(33, 5)], set()),
        ([(96, 1), (97, 4), (98, 1)], {96, 98}), ([(96, 1), (96, 4)], set()), ([], set()),
    ],
)  # fmt: skip
def test_triggers_of_a_tree(lines: list[tuple[int, int]], found: set[int]) -> None:
    assert edges(lines) == found
    assert edges(reversed(lines)) == found


def test_dom0_has_the_triggers_of_the_hosts_tree(samples) -> None:  # type: ignore[no-untyped-def]
    """A sample's SMMUs with edges; a guest's vSMMU is a level."""
    from dt_tools import blob
    from dt_tools.platform import Platform

    tree = blob.read((samples / "board.dtb").read_bytes(), "board")
    node = tree.node("/soc/iommu@52000000")
    assert node is not None
    node.set_cells("interrupts", 0, 72, 4, 0, 73, 1)
    platform = Platform.from_tree(tree, "board")
    machine = build_machine(platform)
    view: GuestView = (dom0 := create_dom0(machine, 64)).view
    assert [window.edges for window in view.vsmmus.values()] == [{96, 97, 98, 99}, {100}, {105}]
    assert dom0.vcpu.edges == {96, 97, 98, 99, 100, 105}
    for window, vsmmu in zip(view.vsmmus.values(), dom0.vsmmus.values(), strict=True):
        wires = vsmmu.interrupts._irq
        assert isinstance(wires, Wires)
        assert wires._edges == window.edges


# Any order of causes.


class Lines(RuleBasedStateMachine):
    """Against the definition: a level is the OR of what stands; an edge counts occurrences."""

    def __init__(self) -> None:
        super().__init__()
        spis = {"eventq": 1, "gerror": 1, "priq": 2, "cmdq-sync": 2}
        self.level: dict[int, bool] = {1: False, 2: False}
        self.pulses = {3: 0, 4: 0}
        self.stands: set[str] = set()
        self.occurred = {"eventq": 0, "gerror": 0, "priq": 0, "cmdq-sync": 0}
        self.levels = Wires(spis, self.tell)
        self.shifted = Wires({c: s + 2 for c, s in spis.items()}, self.count, (3, 4))
        self.spis = spis

    def tell(self, spi: int, level: bool) -> None:
        assert self.level[spi] != level, "a change"
        self.level[spi] = level

    def count(self, spi: int, level: bool) -> None:
        self.pulses[spi] += level

    @rule(cause=st.sampled_from(["eventq", "gerror", "priq"]))
    def occur(self, cause: str) -> None:
        for wires in (self.levels, self.shifted):
            wires.pulse(cause)
            wires(cause, True)
        self.occurred[cause] += 1
        self.stands.add(cause)

    @rule(cause=st.sampled_from(["eventq", "gerror", "priq"]))
    def end(self, cause: str) -> None:
        for wires in (self.levels, self.shifted):
            wires(cause, False)
        self.stands.discard(cause)

    @rule()
    def sync(self) -> None:
        for wires in (self.levels, self.shifted):
            wires.pulse("cmdq-sync")
        self.occurred["cmdq-sync"] += 1

    @invariant()
    def lines(self) -> None:
        for spi in (1, 2):
            mine = [cause for cause, line in self.spis.items() if line == spi]
            assert self.level[spi] == any(cause in self.stands for cause in mine)
            assert self.pulses[spi + 2] == sum(self.occurred[cause] for cause in mine)


Lines.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestLines = Lines.TestCase
