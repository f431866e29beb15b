# SPDX-License-Identifier: BSD-2-Clause
"""Both halves of stage 1 in a batch, and the range of stage 2 (IHI 0070 §3.4.1, §5.2, §5.4)."""

from __future__ import annotations

import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features

from .machine import AF, RW_S1, RW_S2, Machine

TOP = (1 << 64) - (1 << 39)
PA = 0x8C00_0000
NO_UNPRIV_TABLE = 1 << 61
IOVAS = [
    0, 8, PAGE, 1 << 39, 1 << 55, TOP, TOP + 8, TOP + PAGE, TOP - PAGE, (1 << 64) - 1,
    0xAB << 56, 0xAB << 56 | TOP & (1 << 56) - 1, (1 << 55) - 8,
]  # fmt: skip
MAPPED = {0: PA, 8: PA + 8, TOP: PA + PAGE, TOP + 8: PA + PAGE + 8}
TAGGED = {IOVAS[10]: PA, IOVAS[11]: PA + PAGE}


def machine_with(**cd: int) -> Machine:
    """Stream 1 maps the first page of each half, below tables that forbid unprivileged access."""
    machine = Machine(Features.default(aidr=2).replace(archminrev=3, e0pd=1, ptwnnc=1))
    roots = [machine.alloc(PAGE) for _ in range(2)]
    for i, root in enumerate(roots):
        machine.map(root, 0, PA + i * PAGE, flags=AF | RW_S1)
        entry = machine.memory.read64(root)
        assert entry is not None
        machine.memory.write64(root, entry | NO_UNPRIV_TABLE)
    fields = {"ttb0": roots[0], "ttb1": roots[1], "epd1": 0, "tg1": 2, "t1sz": 25, **cd}
    machine.ste(1, config=5, s1ctxptr=machine.cd(**fields))
    return machine


@pytest.mark.parametrize(
    ("cd", "priv", "ok"),
    [
        ({"had0": 1, "had1": 1}, False, MAPPED),
        ({}, True, MAPPED),
        ({}, False, {}),
        ({"had0": 1}, False, {i: MAPPED[i] for i in (0, 8)}),
        ({"had1": 1}, False, {i: MAPPED[i] for i in (TOP, TOP + 8)}),
        ({"tbi0": 1, "tbi1": 1}, True, MAPPED | TAGGED),
        ({"tbi1": 1}, True, MAPPED | {IOVAS[11]: PA + PAGE}),
        ({"e0pd0": 1, "had0": 1, "had1": 1}, False, {i: MAPPED[i] for i in (TOP, TOP + 8)}),
        ({"e0pd1": 1, "had0": 1, "had1": 1}, False, {i: MAPPED[i] for i in (0, 8)}),
        ({"e0pd0": 1, "e0pd1": 1}, True, MAPPED),
        ({"epd0": 1}, True, {i: MAPPED[i] for i in (TOP, TOP + 8)}),
        ({"epd1": 1}, True, {i: MAPPED[i] for i in (0, 8)}),
    ],
)
def test_halves(cd: dict[str, int], priv: bool, ok: dict[int, int]) -> None:
    machine = machine_with(**cd)
    found = machine.smmu.translate_many(1, IOVAS, priv=priv)
    outcomes = [found.outcome(lane) for lane in range(len(IOVAS))]
    assert {i: o.pa for i, o in zip(IOVAS, outcomes, strict=True) if o.pa is not None} == ok
    for iova, outcome in zip(IOVAS, outcomes, strict=True):
        assert outcome == machine.smmu.translate(Access(1, iova, False, False, priv)), hex(iova)


@pytest.mark.parametrize("nested", [False, True])
def test_beyond_the_range_of_stage_2(nested: bool) -> None:
    """§5.2 S2T0SZ: 40 bits. A larger IPA has no translation, whatever its low bits would find."""
    machine = Machine()
    root2, root1 = machine.s2_root(), machine.alloc(PAGE)
    context = machine.cd(ttb0=root1)
    beyond = 1 << 40
    machine.map(root1, 0, 0, flags=AF | RW_S1)
    machine.map(root1, PAGE, beyond, flags=AF | RW_S1)
    for page in range(root2, machine._next, PAGE):
        machine.map(root2, page, page, flags=AF | RW_S2)
    machine.map(root2, 0, PA, flags=AF | RW_S2)
    config = 7 if nested else 6
    machine.ste(1, config=config, s1ctxptr=context, **machine.s2_fields(root2))
    iovas = [0, PAGE] if nested else [0, beyond]
    found = machine.smmu.translate_many(1, iovas)
    assert [found.outcome(lane).pa for lane in range(2)] == [PA, None]
    event = found.outcome(1).event
    assert event is not None
    fields = [event.fields[name].of(event.words) for name in ("s2", "cls", "ipa")]
    assert (event.name, fields) == ("F_TRANSLATION", [1, 2, beyond])
