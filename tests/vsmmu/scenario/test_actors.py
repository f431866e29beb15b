# SPDX-License-Identifier: BSD-2-Clause
"""Actors and what is expected of them, run on machines in place."""

from __future__ import annotations

import json
from functools import partial

import pytest

from vsmmu.arch.pagetable import output_address
from vsmmu.guest.driver import SmmuDriver
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.judge import Judge
from vsmmu.scenario import ScenarioError
from vsmmu.scenario.machine import platform_in_place
from vsmmu.scenario.run import load_scenario, run_scenario
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.smmu import Smmu
from vsmmu.toolstack import build_machine, create_dom0

HEAD = """schema = "vsmmu.scenario/1"
machine.devices = { nic = ["p0:0x10", "p1:0x10"], disk = "p0:0x20" }
guest = [{ name = "red", devices = ["nic"] }, { name = "blue", devices = ["disk"] }]
"""


def actor(guest: str, do: str, *fields: str) -> str:
    return "\n".join(["[[actor]]", f'guest = "{guest}"', f'do = "{do}"', *fields, ""])


def step(guest: str, do: str, *fields: str) -> str:
    return actor(guest, do, *fields).replace("actor", "step")


def expecting(**expected: str) -> str:
    """The head with expectations of guests."""
    text = HEAD
    for guest, fields in expected.items():
        text = text.replace(f'"{guest}", ', f'"{guest}", {fields}, ')
    return text


def played(text: str, seed: int = 1):
    result = run_scenario(text, seed)
    assert [str(problem) for problem in result.problems] == []
    return result


def commands(result, guest: str = "red"):
    (vsmmu,) = result.report.machine.guests[guest].vsmmus.values()
    return vsmmu.counters


@pytest.mark.parametrize("seed", [0, 1])
def test_a_strict_storm_invalidates_each_unmap(seed):
    text = expecting(red="events = 0, gerrors = 0, dma = { ok = 40, fault = 0, abort = 0 }")
    result = played(text + actor("red", "netdev-storm", "operations = 40", "buffers = 8"), seed)
    sent = commands(result)
    # A stream behind each of two SMMUs shares the address space: one unmap, one command.
    assert sent["CMD_TLBI_NH_VA"] == 40
    assert sent["CMD_TLBI_NH_ASID"] == 0
    (found,) = result.report.actors
    assert (found.operations, dict(found.outcomes), found.problems) == (40, {"ok": 40}, [])


def test_a_lazy_storm_invalidates_once_a_round():
    fields = ("operations = 40", "buffers = 8", 'invalidation = "lazy"')
    sent = commands(played(expecting(red="events = 0") + actor("red", "netdev-storm", *fields)))
    assert sent["CMD_TLBI_NH_VA"] == 0
    # Sixteen input addresses, and at the end: the first round is 16 long, as is the second.
    assert 3 <= sent["CMD_TLBI_NH_ASID"] <= 5


def test_a_faulting_device_faults():
    text = expecting(red='events = ">=1", dma = { fault = 12, ok = 0 }', blue="events = 0")
    text += actor("red", "faulting", "operations = 12")
    text += actor("blue", "static", "operations = 20")
    result = played(text)
    events = result.report.machine.guests["red"].events
    assert {event.name for event in events} == {"F_TRANSLATION"}


def test_hotplug_beside_a_storm():
    text = expecting(red='events = 0, dma = { ok = ">=1", abort = ">=1", fault = 0 }')
    text += actor("red", "netdev-storm", "operations = 100", "size = 64")
    text += actor("red", "hotplug", "operations = 3", "every = 200")
    result = played(text)
    assert result.report.actors[1].operations == 3
    assert len(commands(result)) > 0
    (vsmmu,) = result.report.machine.guests["red"].vsmmus.values()
    assert sorted(vsmmu.streams) == [0, 1]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_hostile_guest_does_no_harm(seed):
    text = expecting(
        blue='events = 0, gerrors = 0, dma = { fault = 0, abort = 0 }, sync = "<=3000"'
    )
    text += actor("red", "hostile", "operations = 40")
    text += actor("blue", "driver", "operations = 40") + actor(
        "blue", "netdev-storm", "operations = 40"
    )
    result = played(text, seed)
    assert result.report.machine.guests["red"].events is not None
    assert sum(result.report.dma["red"].values()) > 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 140))
def test_a_hostile_guest_does_no_harm_for_long(seed):
    text = expecting(blue="events = 0, gerrors = 0, dma = { fault = 0, abort = 0 }")
    text = 'machine.caching = "hostile"\n' + text
    text += actor("red", "hostile", "operations = 1500") + actor("red", "hotplug", "operations = 5")
    text += actor("blue", "driver") + actor("blue", "netdev-storm", 'invalidation = "lazy"')
    played(text, seed)


def test_turns_and_pace():
    text = HEAD + actor("red", "static", "turns = 3000", "every = 300")
    (found,) = played(text).report.actors
    assert 9 <= found.operations <= 10


def test_steps_beside_actors():
    """Steps wait for their own work; their guest's events are exact while others storm."""
    text = expecting(red='events = ">=1"', blue="events = 1")
    text += actor("red", "faulting", "turns = 8000", "every = 100")
    text += actor("red", "netdev-storm", "operations = 30", "after = 3")
    nic, disk = 'device = "nic"', 'device = "/disk"'
    text += step("blue", "boot") + step("blue", "attach", disk)
    text += step("blue", "map", disk, "iova = 0x10000", "size = 0x1000")
    text += step("blue", "dma", disk, "iova = 0x10000", "events = []")
    text += step("blue", "dma", disk, "iova = 0x20000", 'expect = "fault"',
                 "events = [{ type = 'F_TRANSLATION', vmaster_id = 0 }]")  # fmt: skip
    text += step("red", "map", nic, "iova = 0x10000", "size = 0x1000")
    text += step("red", "dma", nic, "iova = 0x10000", "stream = 1")
    result = played(text)
    assert result.report.actors[0].operations > 5
    assert dict(result.report.actors[1].outcomes) == {"ok": 30}


def test_stage_2_changes_below_a_storm():
    """A page of a buffer goes away while a device uses it: some DMA faults, none goes astray."""
    text = HEAD + actor("blue", "static", "turns = 4000", "buffers = 1", "after = 2")
    text += step("blue", "boot") + step("blue", "attach", 'device = "disk"')
    text += step("red", "boot") + step("red", "attach", 'device = "nic"')
    (driver,) = run_scenario(text, 1).report.machine.guests["blue"].drivers.values()
    ipa = output_address(driver.contexts[0].tables._find(1 << 32)[2], 12)
    result = played(text + step("blue", "decrease_reservation", f"ipa = {ipa}", "size = 4096"))
    assert result.report.dma["blue"]["ok"] > 0
    assert result.report.dma["blue"]["fault"] > 0


def test_a_machine_that_never_rests_ends_the_run(monkeypatch):
    """A guest that gives its own command queue away: its interrupt handler has work for ever."""
    monkeypatch.setattr("vsmmu.runner._TURNS", 5000)
    text = HEAD + step("blue", "boot")
    text += step("blue", "decrease_reservation", "ipa = 0x40100000", "size = 0x3000")
    text += step("blue", "attach", 'device = "disk"') + step("red", "boot")
    result = run_scenario(text, 1, source="s.toml")
    assert len(result.report.steps) == 3
    assert "s.toml:12: step 3: the machine did not come to rest" in map(str, result.problems)
    assert str(result.problems[-1]) == "s.toml:12: 1 steps after step 3 not run"


def test_a_step_that_destroys_a_guest_ends_its_actors():
    text = HEAD + actor("red", "netdev-storm", "operations = 100000") + actor("blue", "static")
    result = played(text + step("red", "destroy"))
    assert result.report.actors[0].operations < 100000


def test_same_seed_same_bytes():
    text = HEAD + actor("red", "hostile", "operations = 30")
    text += actor("blue", "driver", "operations = 20")
    one, two, other = (json.dumps(run_scenario(text, seed).to_json()) for seed in (5, 5, 6))
    assert one == two
    assert one != other


EXPECTED = [
    ("events = 3", "3: red: expected 3 events, got 0"),
    ('events = ">=1"', "3: red: expected at least 1 events, got 0"),
    ("dma = { ok = 9 }", "3: red: expected 9 DMA requests with outcome ok, got 5"),
    ("sync = 0", "3: red: expected 0 units for a CMD_SYNC, got "),
]


@pytest.mark.parametrize(("fields", "text"), EXPECTED)
def test_an_expectation_that_does_not_hold(fields, text):
    storm = actor("red", "netdev-storm", "operations = 5")
    result = run_scenario(expecting(red=fields) + storm, 1, source="s.toml")
    (problem,) = result.problems
    assert str(problem).startswith(f"s.toml:{text}")
    assert (problem.line, problem.guest, problem.step, problem.actor) == (3, "red", None, None)
    assert result.report.machine.guests["red"].events == []
    assert not result.ok


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (actor("green", "static"), "4: actor 1: no guest 'green'; guests are red, blue"),
        (
            actor("red", "static", 'device = "disk"'),
            "4: actor 1: red has no device disk; it has /nic",
        ),
    ],
)
def test_what_does_not_exist(text, line):
    with pytest.raises(ScenarioError) as caught:
        run_scenario(HEAD + text, source="s.toml")
    assert str(caught.value) == f"s.toml:{line}"


FEATURES = """
[machine.features]
oas = 4
[machine.features.p1]
oas = 5
"""


def test_features_of_a_machine_in_place():
    text = HEAD + actor("red", "static", "operations = 1")
    smmus = played(text + FEATURES).report.machine.smmus
    assert [smmus[path].features.idr5.oas for path in ("/p0", "/p1")] == [4, 5]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("oas = 4", "oass = 4", "9: machine.features: /p0: oass: no such field"),
        ("oas = 5", "oas = 9", "11: machine.features: /p1: IDR5.OAS: expected a number from 0 to"),
        ("features.p1", "features.p2", "10: machine.features: /p2: no such enabled arm,smmu-v3"),
        ("oas = 5", "ril = 0", "11: machine.features: /p1: SMMUv3.2 needs IDR3.RIL=1"),
    ],
)
def test_features_that_cannot_be(old, new, line):
    text = HEAD + actor("red", "static") + FEATURES.replace(old, new)
    with pytest.raises(ScenarioError) as caught:
        run_scenario(text, source="s.toml")
    assert str(caught.value).startswith(f"s.toml:{line}")


def test_dom0_has_what_no_guest_has():
    text = HEAD.replace('{ name = "blue", devices = ["disk"] }', "{ dom0 = true, memory = 32 }")
    result = played(text + actor("dom0", "driver", "operations = 10"))
    assert list(result.report.machine.guests["dom0"].ports) == ["/disk"]
    # A device that is set aside for a guest is not in dom0's tree, whether a guest has it or not.
    scenario = load_scenario(text + actor("red", "static"))
    machine = build_machine(platform_in_place(scenario.machine, "s.toml", {"/disk"}))
    assert list(create_dom0(machine, 32).ports) == ["/nic"]


def test_an_actor_whose_driver_gives_up_is_told():
    """Memory for buffers runs out; the other actors go on."""
    text = HEAD.replace('devices = ["nic"]', 'devices = ["nic"], memory = 8')
    text += actor("red", "netdev-storm", "buffers = 128", "size = 0x10000") + actor(
        "blue", "static"
    )
    result = run_scenario(text, 1, source="s.toml")
    assert [str(p) for p in result.problems] == ["s.toml:4: actor 1: the guest's heap is used up"]
    assert result.problems[0].actor == 1
    assert result.report.actors[1].operations == 100


# What the checks would find.


def test_a_hypervisor_that_forgets_an_invalidation_is_found(monkeypatch):
    """The page behind an input address changes and the TLB has the old one: the judge knows."""
    monkeypatch.setattr(
        SmmuDriver, "unmap",
        lambda self, sid, iova, size: iter(self._context(sid).tables.unmap(iova, size) or ()),
    )  # fmt: skip
    storm = actor("red", "netdev-storm", "operations = 60", "buffers = 5")
    mixed = actor("red", "driver", "operations = 80", "buffers = 5")
    result = run_scenario(HEAD + storm + mixed, 1, source="s.toml")
    assert not result.ok
    assert any("its driver has IPA" in p.text or "not what" in p.text for p in result.problems)


def test_a_page_of_another_guest_is_found(monkeypatch):
    """An SMMU that adds a guest's size to each address it gives out."""
    translate = Smmu.translate

    def wrong(self, access):
        found = translate(self, access)
        return found if found.pa is None else found._replace(pa=found.pa + (64 << 20))

    monkeypatch.setattr(Smmu, "translate", wrong)
    result = run_scenario(HEAD + actor("red", "static", "operations = 3"), 1, source="s.toml")
    assert [p.guest for p in result.problems] == ["red"] * 3
    assert str(result.problems[0]).startswith("s.toml:3: red: /nic: iova 0x1")
    assert result.problems[0].text.endswith("which is not in its stage 2")


def test_a_stream_that_is_nobodys_is_found(monkeypatch):
    monkeypatch.setattr(Hypervisor, "owner", lambda self, smmu, sid: None)
    result = run_scenario(HEAD + actor("red", "static", "operations = 1"), 1)
    assert result.problems[0].text.endswith("with a stream that is nobody's")


def test_events_of_another_are_found(monkeypatch):
    raise_event = VSmmu.raise_event

    def wrong(self, event):
        raise_event(self, event.replace(sid=7))

    monkeypatch.setattr(VSmmu, "raise_event", wrong)
    result = run_scenario(HEAD + actor("red", "faulting", "operations = 2"), 1)
    assert "F_TRANSLATION vMasterID 0x7 of streams that are not its own" in result.problems[0].text


def test_verdicts_are_bounded(monkeypatch):
    monkeypatch.setattr(Judge, "_isolated", lambda self, *rest: "wrong")
    result = run_scenario(HEAD + actor("red", "static", "operations = 40"), 1)
    assert len(result.problems) == 21
    smmus = result.report.machine.smmus.values()
    accesses = sum(smmu.counters["txn.ok"] for smmu in smmus)
    assert result.problems[-1].text == f"and {accesses - 20} more accesses like these"


def test_a_text_and_what_was_loaded_run_alike():
    text = HEAD + "seeds = [4, 5]\n" + actor("red", "static", "operations = 2")
    scenario = load_scenario(text, "s.toml")
    run = partial(run_scenario, source="s.toml")
    assert run(scenario).to_json() == run(text, 4).to_json()
    assert run(scenario, 5).seed == 5


@pytest.mark.parametrize("kind", ["driver", "netdev-storm"])
def test_data_that_is_not_what_was_moved_is_found(monkeypatch, kind):
    transfer = DevicePort._transfer

    def spoilt(self, request, pa, size):
        done = transfer(self, request, pa, size)
        if request.write:
            self.smmu.memory.write(pa, bytes(size))
        return done

    monkeypatch.setattr(DevicePort, "_transfer", spoilt)
    result = run_scenario(HEAD + actor("red", kind, "operations = 30"), 1)
    assert "is not what the DMA moved" in result.problems[0].text
