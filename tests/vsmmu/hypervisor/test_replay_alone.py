# SPDX-License-Identifier: BSD-2-Clause
"""What each guest sees is what an SMMU of its own, without stage 2, would have shown it.

All of it: accesses, event records, interrupts, what registers read as, final registers. That SMMU
is the physical model, in a machine whose RAM is where the guest has its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.vsmmu.hypervisor.vcases import Json
from tests.vsmmu.hypervisor.vcases_wild import alone, wild_case
from vsmmu.hypervisor import replay
from vsmmu.hypervisor.interrupts import Interrupts
from vsmmu.hypervisor.replay_format import check, guest_ram
from vsmmu.memory import PAGE, Memory
from vsmmu.smmu import replay as physical


def _seen_alone(case: Json, g: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Json, list[int]]:
    """Outcome of a guest's program on an SMMU of its own, with machine addresses as it has them."""
    guest = case["guests"][g]
    banks = guest_ram(guest)
    with monkeypatch.context() as patch:
        patch.setattr(
            physical, "TaggedMemory", lambda _: Memory([(ipa, size) for ipa, _, size in banks])
        )
        program, own = alone(case, g)
        outcome = physical.play(program)
    for result in outcome["results"]:
        for page in result.get("pages", []):
            _move(page, banks)
        if result["op"] == "dma":
            result.pop("pa", None)
            first = result["pages"][0]
            result.update((key, first[key]) for key in ("xlate", "pa") if key in first)
    return outcome, own


def _move(page: Json, banks: list[tuple[int, int, int]]) -> None:
    """From the guest's address to the machine's; where there is no RAM the access aborts."""
    if "pa" not in page:
        return
    at = int(page.pop("pa"), 16)
    found = [pa + at - ipa for ipa, pa, size in banks if ipa <= at < ipa + size]
    page.update({"pa": hex(found[0])} if found else {"xlate": "fault"})


def _comparable(result: Json) -> Json:
    """Without what may differ: of a structure that could not be fetched the page is known."""
    events = [
        {**e, "fetch": hex(int(e["fetch"], 16) & -PAGE)} if "fetch" in e else e
        for e in result.get("events", [])
    ]
    shown = {key: value for key, value in result.items() if key not in ("i", "g")}
    return {**shown, "events": events} if "events" in result else shown


def _differences(seed: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    case = wild_case(seed)
    check(case)
    played = replay.play(case)
    found = []
    for g in range(len(case["guests"])):
        outcome, own = _seen_alone(case, g, monkeypatch)
        wanted = {own[result["i"]]: result for result in outcome["results"]}
        for i in own:
            want: Json = wanted.get(i, {"op": case["vsteps"][i]["op"], "irq": []})
            # A read has no interrupts of its own.
            got = {k: v for k, v in played["results"][i].items() if want["op"] != "r" or k != "irq"}
            if _comparable(got) != _comparable(want):
                found.append(f"step {i}: {got}, alone {want}")
        if played["regs"][g] != outcome["regs"]:
            found.append(f"guest {g}: {played['regs'][g]}, alone {outcome['regs']}")
    return found


@pytest.mark.parametrize("seed", range(10))
def test_a_guest_sees_an_smmu_of_its_own(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _differences(seed, monkeypatch) == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 500))
def test_many_guests_see_an_smmu_of_their_own(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _differences(seed, monkeypatch) == []


def test_what_the_guests_meet() -> None:
    """The programs reach records, errors, overflow and interrupts of many kinds."""
    events: Counter[str] = Counter()
    irqs: Counter[int] = Counter()
    for seed in range(10):
        played = replay.play(wild_case(seed))
        for result in played["results"]:
            events.update(event["type"] for event in result.get("events", []))
            irqs.update(result["irq"])
    assert events.keys() >= {
        "C_BAD_STREAMID", "F_STE_FETCH", "C_BAD_STE", "F_CD_FETCH", "C_BAD_CD", "F_WALK_EABT",
        "F_TRANSLATION", "F_ADDR_SIZE", "F_ACCESS", "F_PERMISSION",
    }  # fmt: skip
    assert irqs.keys() >= {0, 2, 3}


LOSSES: dict[str, Any] = {
    "interrupts.occurred": lambda interrupts, source: None,
    "_stop": lambda vsmmu, error, detail: vsmmu._advance(),
    "_hold_smmuen": lambda vsmmu: None,
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_lost_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, _, method = name.rpartition(".")
    monkeypatch.setattr(Interrupts if where else replay.VSmmu, method, LOSSES[name])
    assert any(_differences(seed, monkeypatch) for seed in range(4))
