# SPDX-License-Identifier: BSD-2-Clause
"""The format: what is read, every complaint with its line, and any bytes at all."""

from __future__ import annotations

import pickle
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsmmu.hypervisor.policy import Policy
from vsmmu.scenario import Count, ScenarioError, parse
from vsmmu.scenario.machine import platform_in_place

SAMPLES = sorted(Path(__file__).parents[3].glob("samples/*.toml"))
HEAD = 'schema = "vsmmu.scenario/1"\n'
PLACE = HEAD + '[machine.devices]\nnic = "smmu0:0x10"\n'
GUEST = '[[guest]]\nname = "red"\ndevices = ["nic"]\n'
STORM = '[[actor]]\nguest = "red"\ndo = "netdev-storm"\n'
GOOD = PLACE + GUEST + STORM


def read(text: str):
    return parse(text.encode(), "s.toml")


def test_a_machine_in_place_is_a_board():
    text = """schema = "vsmmu.scenario/1"
machine.devices.nic = ["smmu0:0x10", "b.c:17"]
machine.devices.gpu = "smmu0:0xffffffff"
machine.smmus = { late = "0x2b400000", smmu0 = "0x20000000" }
machine.ram = ["0x40000000+0x40000000"]
guest = [{ name = "red" }]
actor = [{ guest = "red", do = "static" }]
"""
    platform = platform_in_place(read(text).machine, "s.toml")
    assert {s.path: s.base for s in platform.smmus} == {
        "/late": 0x2B400000, "/smmu0": 0x20000000, "/b.c": 0x2B500000,
    }  # fmt: skip
    assert [
        (m.path, [(s.smmu_path, s.stream_id) for s in m.streams]) for m in platform.masters
    ] == [
        ("/nic", [("/smmu0", 0x10), ("/b.c", 17)]),
        ("/gpu", [("/smmu0", 0xFFFFFFFF)]),
    ]
    node = platform.tree.node("/memory@40000000")
    assert node is not None
    assert node.cells("reg") == (0, 0x40000000, 0, 0x40000000)


def test_what_is_not_placed_is_placed_where_nothing_is():
    text = """schema = "vsmmu.scenario/1"
machine.ram = ["0x2b400000+0x200000", "0x80000000+0x80000000"]
machine.smmus.a = "0x100000000"
guest = [{ name = "red" }]
actor = [{ guest = "red", do = "static" }]
[machine.devices]
"""
    text += "".join(f"d{i} = 's{i}:1'\n" for i in range(63))
    platform = platform_in_place(read(text).machine, "s.toml")
    bases = [s.base for s in platform.smmus]
    assert bases[:3] == [0x1_0000_0000, 0x2B60_0000, 0x2B70_0000]
    assert bases[-1] == 0x2F70_0000
    assert not {base for base in bases if 0x2F00_0000 <= base < 0x2F30_0000}
    node = platform.tree.node("/d0")
    assert node is not None
    assert node.cells("reg") == (1, 0x2_0000, 0, 0x1000)


def test_values_of_a_guest_and_an_actor():
    text = GOOD + 'size = "0x100"\nturns = 7\nevery = 3\ninvalidation = "lazy"\n'
    text = text.replace(STORM, 'events = "<=3"\nsync = "5-9"\ndma = { ok = ">=1" }\n' + STORM)
    scenario = read(text)
    (guest,), (actor,) = scenario.guests, scenario.actors
    assert guest.counts == {"events": Count(0, 3), "sync": Count(5, 9)}
    assert guest.dma == {"ok": Count(1, None)}
    assert [str(c) for c in (*guest.counts.values(), *guest.dma.values())] == [
        "at most 3", "5 to 9", "at least 1",
    ]  # fmt: skip
    assert (actor.size, actor.turns, actor.operations, actor.every) == (256, 7, None, 3)
    assert (actor.invalidation, actor.after, actor.line) == ("lazy", 0, 10)
    assert (guest.memory, guest.line, guest.lines["sync"]) == (64, 4, 8)


def test_hotplug_may_come_before_a_step_that_boots():
    text = GOOD.replace("netdev-storm", "hotplug") + "[[step]]\nguest = 'red'\ndo = 'boot'\n"
    assert read(text).actors[0].after == 0


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("", (0,)),
        ('seed = "0x10"\n', (16,)),
        ("seeds = [3, 1, '0x2']\n", (3, 1, 2)),
        ('seeds = "1-4"\n', (1, 2, 3, 4)),
        ("seeds = 9\n", (9,)),
    ],
)
def test_seeds(text, seeds):
    assert read(text + GOOD).seeds == seeds


def test_policy_by_names():
    assert read("policy.ats = true\npolicy.pri = 'on'\n" + GOOD).policy == Policy(
        ats=True, pri=True
    )


CHAIN = ".".join("abcdefgh" * 9)
ERRORS = [
    ('seed = 1\nseeds = "1-2"\n' + GOOD, "2: seeds: give either seed or seeds"),
    (
        'seeds = "0-5000"\n' + GOOD,
        '1: seeds: expected 1 to 1000 different numbers, or a range such as "1-20"',
    ),
    ('seeds = "3-1"\n' + GOOD, "1: seeds: expected the smaller number first, not '3-1'"),
    (
        "seeds = [1,\n1]\n" + GOOD,
        '1: seeds: expected 1 to 1000 different numbers, or a range such as "1-20"',
    ),
    ("seeds = [1,\n-1]\n" + GOOD, "2: seeds: expected a number from 0 to 2^64-1, not -1"),
    ('host = "b.dtb"\n' + GOOD, "1: host: give either host or machine.devices"),
    ('profile = "xen"\n' + GOOD, "1: profile: expected one of strict, xen-v3, not 'xen'"),
    ("policy.pri = true\n" + GOOD, "1: policy: pri: has no effect without ats (IDR0.PRI=1 needs "
     "IDR0.ATS=1)"),
    (
        GOOD + "[policy]\nhypercalls = 1\ngrants = -1\n",
        "12: policy: grants: expected a number of grants from 0 to 65536, not -1",
    ),
    (
        HEAD + "machine.devices = {}\n" + GUEST + STORM,
        "2: machine: devices: expected 1 to 1024 devices",
    ),
    (
        GOOD.replace("smmu0:0x10", "smmu0"),
        "3: machine: devices: nic: expected a stream such as \"smmu0:0x10\", not 'smmu0'",
    ),
    (
        GOOD.replace("smmu0:0x10", "smmu0:x"),
        "3: machine: devices: nic: expected a number such as \"0x1000\", not 'x'",
    ),
    (
        GOOD.replace("smmu0:0x10", "nic:1"),
        "2: machine: smmus: nic is a device and an SMMU",
    ),
    (
        "machine.smmus.a = 1\n" + HEAD + "machine.devices.nic = 'a:1'\n" + GUEST + STORM,
        f"1: machine: smmus: a: expected a number from {0x20000} to {(1 << 48) - 0x20000}, not 1",
    ),
    (
        HEAD + "[machine]\nsmmus.a = 0x80000000\ndevices.nic = 'a:1'\n" + GUEST + STORM,
        "3: machine: smmus: a: its registers lie in RAM, 0x80000000+0x80000000",
    ),
    (
        HEAD + '[machine]\nram = ["0x40000000+0x1000"]\nsmmus.a = 0x40000000\n'
        "devices.nic = 'a:1'\n" + GUEST + STORM,
        "4: machine: smmus: a: its registers lie in RAM, 0x40000000+0x1000",
    ),
    (
        HEAD + "[machine]\nsmmus.a = 0x2f2e0000\ndevices.nic = 'a:1'\n" + GUEST + STORM,
        "3: machine: smmus: a: its registers lie in the interrupt controller, 0x2f100000+0x200000",
    ),
    (
        HEAD + "[machine]\nsmmus.a = 0x20000\nsmmus.b = 0x20000\ndevices.nic = 'a:1'\n" + GUEST
        + STORM,
        "4: machine: smmus: b: its registers lie in the registers of a, 0x20000+0x20000",
    ),
    (
        HEAD + '[machine]\nram = [\n"0x40000000+0x1000",\n"0x2f00f000+0x1000"]\n'
        "devices.nic = 'a:1'\n" + GUEST + STORM,
        "5: machine.ram: 0x2f00f000+0x1000 is partly in the interrupt controller, "
        "0x2f000000+0x10000",
    ),
    (
        HEAD + '[machine]\nram = ["0x30000000+0xffffd0000000"]\n'
        "devices.nic = 'a:1'\n" + GUEST + STORM,
        "4: machine: devices: there is no room for 0x10000 bytes of registers beside RAM",
    ),
    (
        HEAD + "[machine.devices]\n" + "".join(f"d{i} = 's{i}:1'\n" for i in range(65)) + GUEST,
        "2: machine: smmus: more than 64 SMMUs",
    ),
    (
        "machine.smmus.a = 0x40000\n" + HEAD + 'host = "b"\n' + GUEST + STORM,
        "1: machine: smmus: belongs to a machine in place, with machine.devices",
    ),
    (
        GOOD.replace("nic =", '"a/b" ='),
        "3: machine: devices: a/b: expected a letter, then letters, digits and _ . + -, at most 31 "
        "in all",
    ),
    (
        GOOD.replace("nic =", "chosen ="),
        "3: machine: devices: chosen: expected a letter, then letters, digits and _ . + -, at most "
        "31 in all",
    ),
    (PLACE + "[[guest]]\n" + STORM, "4: guest 1: needs config, name or dom0"),
    (
        PLACE + GUEST + 'config = "x"\n' + STORM,
        "5: guest 1: name: a guest with a config has its name there",
    ),
    (
        PLACE + '[[guest]]\nname = "dom0"\n' + STORM,
        "5: guest 1: name: expected letters, digits and _ . + -, at most 64, and not dom0",
    ),
    (
        PLACE + '[[guest]]\nconfig = "x"\ndevices = []\n' + STORM,
        "6: guest 1: devices: belongs to a guest with a name; others are in the config",
    ),
    (
        PLACE + GUEST + "dma = { okay = 1 }\n" + STORM,
        "7: guest 1: dma: okay: not a known field; known are ok, fault, abort",
    ),
    (
        PLACE + GUEST + 'events = "<=x"\n' + STORM,
        "7: guest 1: events: expected a number such as \"0x1000\", not 'x'",
    ),
    (
        GOOD + "operations = 1\nturns = 2\n",
        "11: actor 1: turns: give either operations or turns",
    ),
    (GOOD + "operations = 0\n", "10: actor 1: operations: expected a number from 1 to 1000000, "
     "not 0"),
    (GOOD + "after = 1\n", "10: actor 1: after: expected a number from 0 to 0, not 1"),
    (
        GOOD.replace("netdev-storm", "hostile") + "size = 1\n",
        "10: actor 1 (hostile): size: not a known field; known are guest, do, device, operations, "
        "turns, every, after, note",
    ),
    (
        GOOD.replace("netdev-storm", "flood"),
        "9: actor 1: do: expected one of driver, netdev-storm, static, faulting, hotplug, hostile, "
        "not 'flood'",
    ),
    (
        GOOD + "[[step]]\nguest = 'red'\ndo = 'boot'\n",
        "7: actor 1: step 1 boots red; give after = 1",
    ),
    (
        GOOD + "[[step]]\nguest = 'red'\ndo = 'dma'\niova = 0\ndevice = 'nic'\nevents = [\n"
        "{ type = 'F_TRANSLATION' },\n{ type = 'F' } ]",
        None,
    ),
    ("a = 1\n" + CHAIN + " = 1\n" + GOOD, "2: more than 64 names with dots"),
    ("a = 1\nb = [\n" + GOOD, "3: not a TOML file: Invalid value, column 1"),
    ("a = " + "[" * 5000, " not a TOML file: nested too deeply"),
    ("x" * ((4 << 20) + 1), " larger than 4 MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), ERRORS, ids=[str(n) for n in range(len(ERRORS))])
def test_each_complaint_has_file_and_line(text, line):
    with pytest.raises(ScenarioError) as caught:
        read(text)
    if line is None:
        assert str(caught.value).startswith("s.toml:17: step 1: events: type: expected one of ")
    else:
        assert str(caught.value) == f"s.toml:{line}"


def test_bytes_that_are_no_text():
    with pytest.raises(ScenarioError, match=r"^s.toml:2: not a TOML file: 'utf-8' codec") as caught:
        parse(b"a = 1\nb = '\xff'\n", "s.toml")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.line) == (str(caught.value), 2)


def test_a_chain_of_names_costs_no_time():
    """tomllib takes time by the square of the names in a key: they are counted before."""
    start = time.process_time()
    for text in ("a." * 200_000 + "a = 1", "x = '" + "a-" * 500_000 + "'", '"' * 100_000):
        with pytest.raises(ScenarioError):
            read(text)
    assert time.process_time() - start < 5


def _mutated(text: str, seed: int) -> str:
    """A sample with lines and words taken out, doubled, swapped or replaced."""
    r = random.Random(seed)
    words = sorted(set(re.findall(r'"[^"\n]*"|[\w.\[\]{}=-]+', text)))
    values = ["0", "-1", '""', "[]", "{}", "true", "1.5", '"0x"', "1979-05-27", str(1 << 70),
              '["a:1"]', "[[1]]", '"' + "9" * 50 + '"', '"<=1"', '"1-"', "'\\'"]  # fmt: skip
    lines = text.splitlines()
    for _ in range(r.randrange(1, 4)):
        at = r.randrange(len(lines))
        kind = r.randrange(5)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, r.choice(lines))
        elif kind == 2 and "=" in lines[at]:
            lines[at] = lines[at].split("=")[0] + "= " + r.choice(values)
        elif kind == 3 and lines[at].strip():
            old = r.choice(re.findall(r'"[^"\n]*"|[\w.\[\]{}=-]+', lines[at]) or ["x"])
            lines[at] = lines[at].replace(old, r.choice(words))
        else:
            place = r.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + r.choice("\"'[]{}=.#\\,") + lines[at][place:]
        lines = lines or [""]
    return "\n".join(lines)


def _refused(text: str) -> ScenarioError | None:
    try:
        read(text)
    except ScenarioError as error:
        return error
    return None


def _only_scenario_errors(text: str) -> bool:
    """Whether a text is taken; what is refused is so in one line that says where."""
    error = _refused(text)
    if error is not None:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        assert error.line is not None or error.where, str(error)
    return error is None


@pytest.mark.parametrize("sample", [*SAMPLES, None], ids=lambda s: s.stem if s else "place")
def test_mutated_files_are_read_or_refused(sample):
    text = sample.read_text() if sample else GOOD + "every = 1\n" + 'title = "x"\n'[:0]
    read(text)
    taken = sum(_only_scenario_errors(_mutated(text, seed)) for seed in range(60))
    assert 0 < taken < 60


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_tables_are_read_or_refused(data):
    """Known fields with values of any type in any place."""
    value = data.draw(st.recursive(
        st.sampled_from(["0", "-1", "true", '"x"', '"nic"', '"red"', "1.5", '"smmu0:1"', '"1-3"']),
        lambda inner: st.lists(inner, max_size=2).map(lambda v: "[" + ", ".join(v) + "]")
        | st.dictionaries(
            st.sampled_from(["name", "do", "guest", "nic", "config", "ok", "type", "ats", "ram"]),
            inner, max_size=2,
        ).map(lambda d: "{ " + ", ".join(f"{k} = {v}" for k, v in d.items()) + " }"),
        max_leaves=6,
    ))  # fmt: skip
    field = data.draw(st.sampled_from([
        "title", "seed", "seeds", "profile", "policy", "host", "machine", "guest", "step", "actor",
        "machine.ram", "machine.features", "machine.devices", "machine.smmus",
    ]))  # fmt: skip
    _only_scenario_errors(f"{field} = {value}\n" + GOOD)
    rest = data.draw(st.sampled_from([
        "after", "device", "size", "note", "every", "events", "dma", "devices", "memory", "words",
    ]))  # fmt: skip
    _only_scenario_errors(PLACE + GUEST + f"{rest} = {value}\n" + STORM + f"{rest} = {value}\n")
    step = f"[[step]]\nguest = 'red'\ndo = 'ste'\ndevice = 'nic'\nwords = []\n{rest} = {value}\n"
    _only_scenario_errors(
        GOOD + step.replace("words = []\n", "" if rest == "words" else "words=[]\n")
    )
