# SPDX-License-Identifier: BSD-2-Clause
"""What the policy adds to a vSMMU's features, and physical SMMUs that come later."""

from __future__ import annotations

import re
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from dt_tools.profiles import DEFAULT
from vsmmu.arch.commands import OPCODES, CmdCfgiCd, CmdSync, Command
from vsmmu.arch.context import Cd
from vsmmu.arch.pagetable import S1Leaf
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import BY_NAME, Cr0, Gerror, Idr0, Idr1, Idr3, Idr5, QueueBase, StallModel
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.features import UnfitError, advertise, lacking
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.ats import AtsPort
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.smmu import Smmu

from .test_host_features import Host, host
from .world import BASE as BASE_ADDRESS
from .world import BUFFER, RAM, Guest, World

SWITCHES = ("substreams", "httu", "msi", "stalls", "ats", "pri")
EVERYTHING = Policy(**dict.fromkeys(SWITCHES, True))
RICH = Features.everything().replace(sidsize=16)
FIELDS = {"IDR0": Idr0, "IDR1": Idr1, "IDR3": Idr3, "IDR5": Idr5}
SYNC = CmdSync.build(cs=0)
# Opcodes of commands that the vSMMUs here have.
_LIKELY = (0x03, 0x05, 0x10, 0x12, 0x40, 0x40, 0x41, 0x41, 0x44, 0x44, 0x44, 0x45, 0x46)


def rich(path: str = "/rich", **fields: int) -> Host:
    return Host(path, dict(RICH.replace(**fields).ids))


def offered(*hosts: Host, policy: Policy = EVERYTHING) -> dict[str, int]:
    return advertise(DEFAULT.vsmmu.idr, hosts, policy)


def changed(found: dict[str, int], base: dict[str, int]) -> dict[str, int]:
    """Fields that differ, with their values in `found`."""
    out = {}
    for register, layout in FIELDS.items():
        mine, theirs = layout(found[register]), layout(base[register])
        for name in layout.fields:
            if getattr(mine, name) != getattr(theirs, name):
                out[name] = getattr(mine, name)
    return out


BASE = offered(rich(), policy=Policy())


@pytest.mark.parametrize(
    ("switches", "fields"),
    [
        ({"substreams"}, {"ssidsize": 20, "cd2l": 1}),
        ({"httu"}, {"httu": 2}),
        ({"msi"}, {"msi": 1}),
        ({"stalls"}, {"stall_model": StallModel.STALL_AND_TERMINATE, "stall_max": 16}),
        ({"ats"}, {"ats": 1}),
        ({"pri"}, {}),
        ({"ats", "pri"}, {"ats": 1, "pri": 1, "priqs": 19}),
        (
            {"ats", "pri", "substreams"},
            {"ats": 1, "pri": 1, "priqs": 19, "ssidsize": 20, "cd2l": 1, "pps": 1},
        ),
    ],
)
def test_a_switch_adds_its_own_fields(switches: set[str], fields: dict[str, int]) -> None:
    policy = Policy(**dict.fromkeys(switches, True))
    assert changed(offered(rich(), policy=policy), BASE) == fields


def test_every_switch_is_off_by_default() -> None:
    assert not any(getattr(Policy(), name) for name in SWITCHES)
    assert changed(offered(host(), policy=EVERYTHING), BASE) == {}


def test_the_document_has_every_switch() -> None:
    text = (Path(__file__).parents[3] / "docs/vsmmu-features.md").read_text()
    named = re.findall(r"^\| `(\w+)` \| IDR", text, re.MULTILINE)
    switches = [f.name for f in fields_of(Policy) if f.type == "bool"]
    assert named == list(SWITCHES) == switches


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"ssidsize": 4}, {"ssidsize": 4}),
        ({"ssidsize": 0, "pps": 0}, {"ssidsize": 0, "cd2l": 0, "pps": 0}),
        ({"cd2l": 0}, {"cd2l": 0}),
        ({"httu": 1}, {"httu": 1}),
        ({"msi": 0}, {"msi": 0}),
        ({"stall_max": 3}, {"stall_max": 3}),
        (
            {"stall_model": StallModel.TERMINATE_ONLY, "stall_max": 0},
            {"stall_model": StallModel.TERMINATE_ONLY, "stall_max": 0},
        ),
        ({"ns1ats": 1}, {"ats": 0, "pri": 0, "priqs": 0, "pps": 0}),
        ({"pri": 0, "priqs": 0, "pps": 0}, {"pri": 0, "priqs": 0, "pps": 0}),
        ({"priqs": 5}, {"priqs": 5}),
        ({"pps": 0}, {"pri": 0, "priqs": 0, "pps": 0}),
    ],
)
def test_one_smmu_without_it_is_enough(fields: dict[str, int], lost: dict[str, int]) -> None:
    """In either order; and a late one with as little is refused, where it is less."""
    full, lesser = offered(rich()), rich("/lesser", **fields)
    for hosts in ((rich(), lesser), (lesser, rich())):
        found = offered(*hosts)
        assert changed(found, full) == lost
        assert lacking(found, rich()) is None
        assert lacking(found, lesser) is None
    # Fewer places for stalls are no reason, none at all are.
    assert (lacking(full, lesser) is None) == (lost == {"stall_max": 3})


def test_two_smmus_that_answer_differently_are_not_offered_pri() -> None:
    """With IDR3.PPS on one alone, the guest could not know which answers have a PASID."""
    found = offered(rich(), rich("/b", pps=0))
    assert Idr0(found["IDR0"]).pri == 0
    alone = offered(rich("/b", pps=0))
    assert Idr0(alone["IDR0"]).pri == 1
    assert lacking(alone, rich()) == "IDR3.PPS"


def test_what_is_wanted_bounds_what_the_policy_adds() -> None:
    """And what nobody knows is not offered, whoever wants it."""
    wanted = {name: dict(fields) for name, fields in DEFAULT.vsmmu.idr.items()}
    wanted["IDR1"] |= {"ssidsize": 6, "ecmdq": 1}
    wanted["IDR0"] |= {"btm": 1, "hyp": 1, "s2p": 1, "atos": 1, "ats": 1}
    wanted["IDR3"] |= {"mpam": 1, "fwb": 1}
    found = advertise(wanted, [rich()], Policy(substreams=True))
    assert changed(found, BASE) == {"ssidsize": 6, "cd2l": 1}


def test_the_result_is_always_consistent() -> None:
    """No combination of switches and hardware gives registers that contradict each other."""
    rng = Random(5)
    for _ in range(300):
        policy = Policy(**{name: bool(rng.getrandbits(1)) for name in SWITCHES})
        fields = {name: 0 for name in ("msi", "httu", "cd2l", "ns1ats") if rng.getrandbits(1)}
        if rng.getrandbits(1):
            fields |= {"pri": 0, "priqs": 0, "pps": 0}
        if rng.getrandbits(1):
            fields |= {"stall_model": 1, "stall_max": 0}
        found = offered(rich(), rich("/b", **fields), policy=policy)
        Features.from_ids(**{name.lower(): value for name, value in found.items()})


def test_a_later_smmu_that_has_it_all_may_stand_behind() -> None:
    """One that lacks something is refused by name, and so is one that does not fit at all."""
    machine = World({"g": [("a", 1)]}, features=RICH, policy=EVERYTHING)
    hv, g = machine.hypervisor, machine["g"]
    before = {name: g.read(name) for name in FIELDS}
    for name, fields, reason in (
        ("asid", {"asid16": 0}, "lacks IDR0.ASID16"),
        ("small", {"oas": 4, "ds": 0, "vax": 0}, "lacks IDR5.OAS"),
        ("quiet", {"stall_model": 1, "stall_max": 0}, "lacks IDR5.STALL_MAX"),
        ("one", {"s2p": 0, "xnx": 0, "fwb": 0, "vmw": 0, "hyp": 0, "ptwnnc": 0}, "needs both"),
    ):
        add(machine, name, RICH.replace(**fields))
        with pytest.raises(HypercallError, match=reason):
            hv.assign(g.vsmmu, 9, name, 2)
        assert hv.owner(name, 2) is None
    hv.assign(g.vsmmu, 9, "b", 2)
    assert hv.owner("b", 2) == "g"
    assert {name: g.read(name) for name in FIELDS} == before


def add(machine: World, name: str, features: Features) -> None:
    """One more physical SMMU under the hypervisor."""
    smmu = Smmu(name, machine.memory, features)
    like = machine.hypervisor.hosts["a"]
    machine.hypervisor.hosts[name] = type(like)(
        name, smmu, machine.memory, machine.hypervisor.pages, machine.hypervisor.policy,
        machine.hypervisor.reports.event, machine.hypervisor.reports.page_request,
        machine.hypervisor.reports.overflow,
    )  # fmt: skip


def test_places_that_are_taken_keep_a_later_smmu_away() -> None:
    few = RICH.replace(stall_max=16)
    machine = World({"g": [("a", 1)], "o": [("b", 1)]}, features=few, policy=EVERYTHING)
    with pytest.raises(HypercallError, match=r"lacks IDR5\.STALL_MAX"):
        machine.hypervisor.assign(machine["g"].vsmmu, 9, "b", 2)
    machine.hypervisor.assign(machine["g"].vsmmu, 9, "c", 2)


def test_an_smmu_that_cannot_nest_is_unfit() -> None:
    with pytest.raises(UnfitError, match="needs both stages"):
        lacking(BASE, host(s2p=0))


def test_dirty_state_by_hardware() -> None:
    """CD.HA and CD.HD: the SMMU updates the guest's descriptors through stage 2."""
    g = World({"g": [("a", 1)]}, features=RICH, policy=Policy(httu=True))["g"].boot()
    assert Idr0(g.read("IDR0")).httu == 2
    g.attach(0)
    g.map(0, 0x10000, BUFFER)
    context = g.driver.contexts[0]
    words = g.memory.read_words(context.cd, Cd.dwords)
    assert words is not None
    g.memory.write_words(context.cd, Cd(words).replace(ha=1, hd=1).words)
    g.put(CmdCfgiCd.build(sid=0, leaf=1), SYNC)
    _, slot, word = context.tables._find(0x10000)
    clean = S1Leaf(word).replace(af=0, ap2=1, dbm=1)
    g.memory.write64(slot, clean.raw | BUFFER)
    assert g.dma(0, 0x10000, b"x").ok
    after = g.memory.read64(slot)
    assert after is not None
    assert (S1Leaf(after).af, S1Leaf(after).ap2) == (1, 0)


@pytest.mark.parametrize("seed", range(1, 7))
def test_hostile_commands_stop_nobody_else(seed: int) -> None:
    """All features, random commands and registers, devices that fault, stall and ask for pages.

    The hypervisor builds no command that hardware refuses, the other guest's queue goes on, and
    at the end no stall is left.
    """
    rng = Random(seed)
    policy = replace(EVERYTHING, stalls_per_vsmmu=2)
    machine = World(
        {"g": [("a", 1), ("a", 2), ("b", 1)], "o": [("a", 7)]},
        seed=seed, features=RICH.replace(stall_max=4), policy=policy,
    )  # fmt: skip
    g, o = machine["g"].boot(), machine["o"].boot()
    g.vcpu.handlers.clear()
    for guest in (g, o):
        guest.attach(*range(len(guest.ports)))
        guest.map(0, 0x10000, BUFFER)
    asking = AtsPort("asking", machine.smmus["a"], 2, pages=True)
    machine.scheduler.add(asking)
    cd = g.driver.contexts[0].cd
    words = g.memory.read_words(cd, Cd.dwords)
    assert words is not None
    g.memory.write_words(cd, Cd(words).replace(s=1).words)
    # A queue or stream table elsewhere would end the test instead of adding to it.
    names = [name for name in BY_NAME if not name.startswith(("CMDQ_", "STRTAB_"))]
    base = QueueBase.build(log2size=3, addr=RAM + 0x8000).raw
    machine.hypervisor.trap(g.domain, BASE_ADDRESS + 0xC0, 8, base)
    for turn in range(120):
        port: DevicePort = rng.choice([*g.ports, asking])
        if port.pending < 4:
            port.read(rng.choice((0x10000, 0x9000, 0x9000 + 0x1000 * turn)), 8)
        machine.smmus["a"].priq.request(
            PriEntry.build(sid=rng.choice((1, 2, 9)), prgindex=turn % 8, r=1, last=turn & 1)
        )
        if not turn % 5:
            eats, stalld = rng.choice((0, 1, 1, 1, 2, 3)), rng.choice((0, 0, 0, 1))
            ste = Ste.build(
                v=1, config=SteConfig.S1, s1ctxptr=cd, s1dss=rng.choice((1, 2, 2)), s1stalld=stalld,
                eats=eats, s1cdmax=rng.choice((0, 0, 1)), ppar=stalld,
            )  # fmt: skip
            g.ste(rng.randrange(3), ste)
        commands: list[Command] = []
        for _ in range(6):
            kind = rng.choice(_LIKELY if rng.random() < 0.9 else list(OPCODES))
            low = rng.getrandbits(32) & ~0x4FF | kind | (0 if rng.random() < 0.95 else 0x400)
            commands.append(Command((rng.randrange(4) << 32 | low, rng.getrandbits(3))))
        post(g, *commands, SYNC)
        if not turn % 7:
            value = rng.choice((0, 1, 2, 0xF, 0x1F, rng.getrandbits(32)))
            g.write(rng.choice(names), value, rest=False)
            g.write("CR0", rng.choice((0xC, 0xD, 0xF, 0x1F, 0x1F, 0xF)), rest=False)
        machine.scheduler.run(200)
        if Gerror(g.read("GERROR") ^ g.read("GERRORN")).cmdq_err:
            g.memory.write_words(g.driver._cmdq.address(g.read("CMDQ_CONS")), SYNC.words)
            g.write("GERRORN", g.read("GERROR"), rest=False)
    # A full PRI queue has a device ask again and again (§8.1), for as long as it likes.
    asking.pages = False
    o.run(o.driver.issue(SYNC))
    assert o.dma(0, 0x10000, b"undisturbed").ok
    assert o.read("GERROR") == o.read("GERRORN")
    g.write("CR0", Cr0.build(cmdqen=1, eventqen=1).raw)
    assert sum(len(smmu.stalls) for smmu in machine.smmus.values()) == 0
    seen = g.vsmmu.counters
    assert min(seen["stall"], seen["CMD_RESUME"], seen["CMD_ATC_INV"], seen["page request"]) > 2
    for physical in machine.hypervisor.hosts.values():
        errors = {name for name in physical.counters if name.startswith("CERROR")}
        assert errors <= {"CERROR_ATC_INV_SYNC"}


def post(guest: Guest, *commands: Command) -> None:
    """Commands into the queue, as far as there is room; nothing is stepped."""
    ring, prod = guest.driver._cmdq, guest.read("CMDQ_PROD")
    for command in commands:
        if ring.is_full(prod, guest.read("CMDQ_CONS")):
            break
        guest.memory.write_words(ring.address(prod), command.words)
        prod = ring.advance(prod)
    guest.write("CMDQ_PROD", prod, rest=False)
