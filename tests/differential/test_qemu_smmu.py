# SPDX-License-Identifier: BSD-2-Clause
"""The model beside the SMMUv3 of a real QEMU: random programs, and where QEMU is known to depart.

Compared after every step: registers, event records whole, interrupts, command queue state; in the
end all registers, what DMA reads brought, every page of memory. The machine is QEMU's `virt`; the
model gets its identification registers. VSMMU_QEMU names another program than the one in PATH.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.differential.qemu_allow import allowed
from tests.differential.qemu_author import DATA, Author
from tests.differential.qemu_compare import Allow, Pair
from tests.differential.qemu_deviation import AVOIDED, Deviation
from tests.differential.qemu_deviations import DEVIATIONS
from tests.differential.qemu_machine import BINARY, QemuDied, find, version
from tests.differential.qemu_program import Program
from tests.differential.qemu_random import program
from vsmmu.smmu.smmu import Access, Outcome, Smmu

SEEDS = 300
SOAK_SEEDS = 5000
PART = 50


@pytest.fixture(scope="module")
def binary() -> str:
    found = os.environ.get("VSMMU_QEMU") or find()
    if not found:
        pytest.skip(f"no {BINARY} (apt install qemu-system-arm)")
    if allowed(version(found)) is None:
        number = ".".join(map(str, version(found)))
        pytest.skip(f"QEMU {number}: its deviations are not known, those of 7 and from 10 on are")
    return found


@pytest.fixture(scope="module")
def pair(binary: str) -> Iterator[Pair]:
    try:
        made = Pair(binary)
    except QemuDied as error:
        pytest.skip(f"{binary} does not start: {error}")
    yield made
    made.close()


def check(pair: Pair, binary: str, seeds: range) -> None:
    number = version(binary)
    allow = allowed(number)
    assert allow is not None
    for seed in seeds:
        one = program(seed, pair.features, number).program
        found = pair.differences(one, allow)
        if found:
            short = pair.shrink(one, allow)
            rest = pair.differences(short, allow)
            text = "\n".join(["", *found[:5], "shortened:", short.show(), *rest[:5]])
            pytest.fail(f"seed {seed} on QEMU {number}: {len(found)} differences{text}")


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_random_programs(pair: Pair, binary: str, first: int) -> None:
    check(pair, binary, range(first, first + PART))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(SEEDS, SOAK_SEEDS, 10 * PART))
def test_many_random_programs(pair: Pair, binary: str, first: int) -> None:
    check(pair, binary, range(first, min(first + 10 * PART, SOAK_SEEDS)))


@pytest.mark.parametrize("row", DEVIATIONS, ids=lambda row: row.name)
def test_deviation_still_occurs(pair: Pair, binary: str, row: Deviation) -> None:
    """The row's program differs, in the row's words; where a comparison allows it, not any more."""
    number = version(binary)
    if not row.covers(number):
        pytest.skip(f"{row.name} is of other versions than {number}")
    author = Author()
    row.probe(author)
    found = pair.differences(author.program)
    assert found, f"{row.name} no longer occurs in QEMU {number}: end its range"
    assert found[0] == row.shows
    if row.allowed not in AVOIDED:
        assert pair.differences(author.program, allowed(number) or []) == []


def test_every_deviation_is_told_apart() -> None:
    assert len({row.name for row in DEVIATIONS}) == len(DEVIATIONS)
    for row in DEVIATIONS:
        assert row.clause.startswith(("§", "Arm ARM D8")), row.name
        assert row.qemu, row.name


def test_a_wrong_model_is_noticed_and_shortened(
    pair: Pair, binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Translations that are a page off: the comparison is not blind, the rest is dropped."""
    right = Smmu.translate

    def wrong(self: Smmu, access: Access) -> Outcome:
        outcome = right(self, access)
        if outcome.pa is None or outcome.pa >> 22 != DATA >> 22:
            return outcome
        return outcome._replace(pa=outcome.pa ^ 0x1000)

    allow = allowed(version(binary)) or []
    one = next(
        made
        for seed in range(100)
        if (made := program(seed, pair.features, version(binary)).program)
        and not pair.differences(made, allow)
        and ": data: QEMU" in _with(monkeypatch, wrong, pair, made, allow)
    )
    monkeypatch.setattr(Smmu, "translate", wrong)
    short = pair.shrink(one, allow, tries=60)
    assert len(short.steps) < len(one.steps)
    assert any(": data: QEMU" in line for line in pair.differences(short, allow))


def _with(
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[Smmu, Access], Outcome],
    pair: Pair,
    made: Program,
    allow: list[Allow],
) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(Smmu, "translate", wrong)
        return " ".join(pair.differences(made, allow)[:1])
