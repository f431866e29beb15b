# SPDX-License-Identifier: BSD-2-Clause
"""A flood by one of eight guests costs another no more than docs/fairness.md derives."""

from __future__ import annotations

import re

import pytest

from vsmmu.hypervisor.policy import Policy

from .floods import (
    COMMANDS,
    FAULT_ROUNDS,
    FAULTING,
    FLOODS,
    GUESTS,
    RECORDS,
    ROUNDS,
    SEEDS,
    SVG,
    drawn,
    measure,
)


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_costs_no_more_than_the_bound(kind):
    """In round robin; random orders, for which there is no bound in rounds, in the soak."""
    cost = measure(kind, 0)
    assert cost.commands <= COMMANDS
    assert cost.records <= (RECORDS if kind in FAULTING else 0)
    assert cost.rounds <= (FAULT_ROUNDS if kind in FAULTING else ROUNDS)


def test_the_floods_are_floods():
    """The measure sees them: without a flood there is nothing to wait for."""
    assert measure(None, 1)[:2] == (0, 0)
    assert max(measure("TLBI", seed).commands for seed in SEEDS) > COMMANDS // 2
    assert measure("events", 1).records > 16


@pytest.mark.parametrize("turn", [2, 4, 64])
@pytest.mark.parametrize("share", [2, 8, 200])
def test_the_bound_follows_the_policy(turn, share):
    """2 commands of the victim's own need one turn, however short it is."""
    policy = Policy(commands_per_turn=turn, commands_in_queue=share)
    bound = share + turn * -(-2 // turn)
    assert max(measure("TLBI", seed, policy).commands for seed in (1, 2)) <= bound


@pytest.mark.parametrize("kind", ["TLBI", "traps"])
def test_all_the_others_flood(kind):
    """The bound is linear in those who flood, and never more than a full queue and their turns."""
    bound = min((GUESTS - 1) * COMMANDS, 256 + (GUESTS - 1) * 16)
    costs = [measure(kind, seed, floods=GUESTS - 1).commands for seed in (0, 1, 2)]
    assert 0 < max(costs) <= bound


def test_the_picture_keeps_to_the_bound():
    text = SVG.read_text()
    rows = re.findall(r'data-flood="([^"]*)" data-commands="([^"]*)"', text)
    assert [name for name, _ in rows] == ["no flood", *FLOODS]
    assert max(int(v) for _, values in rows for v in values.split()) <= COMMANDS
    assert f"bound {COMMANDS}</text>" in text
    document = SVG.with_suffix(".md").read_text()
    for number in (COMMANDS, RECORDS, ROUNDS, FAULT_ROUNDS):
        assert f"**{number}" in document


@pytest.mark.soak
def test_the_picture_is_of_this_tree():
    """`make fairness` draws it."""
    assert SVG.read_text() == drawn()


@pytest.mark.soak
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_costs_no_more_than_the_bound_soak(kind):
    for seed in range(100, 200):
        cost = measure(kind, seed)
        assert cost.commands <= COMMANDS
        assert cost.records <= RECORDS
