# SPDX-License-Identifier: BSD-2-Clause
"""`dt_tools.checks`: a sound world has nothing to say, the registry, order, bounds, hostile trees.

Also the builders of boards, guests and partial trees for the tables of the other `test_checks_`
files: a tree is a nested dict of nodes and properties, and a case is a few edits of a sound world.
"""

from __future__ import annotations

import copy
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dt_tools import blob
from dt_tools.checks import (
    COMMANDS_ONLY,
    MAX_DIAGNOSES,
    RULES,
    GuestInput,
    PartialTree,
    check,
    match,
)
from dt_tools.errors import DtbError, Refusal
from dt_tools.platform import Platform
from dt_tools.rules import Diagnosis
from dt_tools.tree import Node, Tree
from xl_configs import load, parse

SMMU = {"compatible": "arm,smmu-v3", "#iommu-cells": [1]}
# Node names to nodes; a list is cells, a string a string, True an empty property.
HOST: dict[str, Any] = {
    "#address-cells": [2],
    "#size-cells": [2],
    "interrupt-parent": [1],
    "gic@10000000": {
        "compatible": "arm,gic-v3",
        "interrupt-controller": True,
        "#interrupt-cells": [3],
        "#address-cells": [0],
        "reg": [0, 0x10000000, 0, 0x10000],
        "phandle": [1],
    },
    "memory@80000000": {"device_type": "memory", "reg": [0, 0x80000000, 0, 0x40000000]},
    "clock": {"compatible": "fixed-clock", "#clock-cells": [0], "phandle": [2]},
    "soc": {
        "compatible": "simple-bus",
        "#address-cells": [1],
        "#size-cells": [1],
        "ranges": True,
        "iommu@50000000": {**SMMU, "reg": [0x50000000, 0x20000], "phandle": [3]},
        "iommu@51000000": {**SMMU, "reg": [0x51000000, 0x20000], "phandle": [4]},
        "dma@60000000": {
            "compatible": "test,dma",
            "reg": [0x60000000, 0x1000],
            "interrupts": [0, 100, 4, 0, 101, 4],
            "iommus": [3, 0x10, 3, 0x11],
            "dma-coherent": True,
            "xen,passthrough": True,
        },
        "dma@61000000": {
            "compatible": "test,dma",
            "reg": [0x61000000, 0x2000],
            "interrupts": [0, 102, 4],
            "iommus": [4, 0x20],
            "xen,passthrough": True,
        },
        "uart@70000000": {"reg": [0x70000000, 0x1000], "interrupts": [0, 110, 4]},
    },
}
PARTIAL: dict[str, Any] = {
    "#address-cells": [2],
    "#size-cells": [2],
    "passthrough": {
        "compatible": "simple-bus",
        "#address-cells": [2],
        "#size-cells": [2],
        "ranges": True,
        "dma@60000000": {
            "compatible": "test,dma",
            "reg": [0, 0x60000000, 0, 0x1000],
            "interrupts": [0, 100, 4, 0, 101, 4],
            "interrupt-parent": [65000],
            "iommus": [3, 0x10, 3, 0x11],
            "dma-coherent": True,
        },
    },
}
GUEST: dict[str, Any] = {
    "name": "a",
    "kernel": "/k",
    "memory": 128,
    "viommu": "smmuv3",
    "dtdev": ["/soc/dma@60000000"],
}
# What a guest with a partial tree has to say itself.
BY_HAND = {"device_tree": "p.dtb", "iomem": ["0x60000,1"], "irqs": [132, 133]}


def edited(spec: dict[str, Any], edits: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tree with properties or nodes set by path; None takes one out."""
    found = copy.deepcopy(spec)
    for path, value in edits.items():
        *nodes, name = path.split("/")
        at = found
        for node in nodes:
            at = at.setdefault(node, {})
        if value is None:
            del at[name]
        else:
            at[name] = copy.deepcopy(value)
    return found


def tree_of(spec: dict[str, Any]) -> Tree:
    tree = Tree()
    _fill(tree.root, spec)
    return tree


def _fill(node: Node, spec: dict[str, Any]) -> None:
    for name, value in spec.items():
        if isinstance(value, dict):
            _fill(node.add(name), value)
        elif value is True:
            node.set_empty(name)
        elif isinstance(value, str):
            node.set_strings(name, value)
        elif isinstance(value, bytes):
            node.props[name] = value
        else:
            node.set_cells(name, *value)


def cfg_of(keys: dict[str, Any]) -> bytes:
    """One `key=value` a line."""
    lines = []
    for key, value in keys.items():
        if isinstance(value, list):
            value = "[" + ", ".join(f'"{v}"' for v in value) + "]"
        elif isinstance(value, str):
            value = f'"{value}"'
        lines.append(f"{key}={value}\n")
    return "".join(lines).encode()


def guest_of(keys: dict[str, Any], file: str = "a.cfg", partial: Tree | None = None) -> GuestInput:
    """A guest; a value of None takes the key out."""
    data = cfg_of({k: v for k, v in {**GUEST, **keys}.items() if v is not None})
    lines = {setting.name: setting.line for setting in parse(data, file).settings}
    given = None if partial is None else PartialTree("p.dtb", partial)
    return GuestInput(file, load(data, file), lines, given)


def diagnoses(
    host: dict[str, Any] | None = None,
    cfg: dict[str, Any] | None = None,
    other: dict[str, Any] | None = None,
    partial: dict[str, Any] | None = None,
    loose: dict[str, Any] | None = None,
) -> tuple[Diagnosis, ...]:
    """What is found after edits of the host, the guest's keys, its partial tree.

    `other` are the keys of a second guest, `loose` edits of a partial tree for dom0less.
    """
    platform = Platform.from_tree(tree_of(edited(HOST, host or {})), "host.dtb")
    guests = []
    if cfg is not None or partial is not None:
        tree = None if partial is None else tree_of(edited(PARTIAL, partial))
        keys = {**({} if partial is None else BY_HAND), **(cfg or {})}
        guests.append(guest_of(keys, "a.cfg", tree))
    if other is not None:
        guests.append(guest_of({"name": "b", **other}, "b.cfg"))
    dom0less = [] if loose is None else [PartialTree("q.dtb", tree_of(edited(PARTIAL, loose)))]
    return check(platform, guests, dom0less)


def lines(found: tuple[Diagnosis, ...]) -> list[str]:
    return [
        f"{d.file}:{d.line or ''} {d.severity} {d.rule} {d.path}: {d.fact}; {d.fix}" for d in found
    ]


def said(rule: str, world: dict[str, Any]) -> list[str]:
    """The lines of one rule."""
    return [line for line in lines(diagnoses(**world)) if f" {rule} " in line]


# The sound world, so that every case of the tables is due to its edits.


@pytest.mark.parametrize(
    "world",
    [
        {},
        {"cfg": {}},
        {"cfg": {"dtdev": ["/soc/dma@60000000", "/soc/dma@61000000"]}},
        {"cfg": {}, "other": {"dtdev": ["/soc/dma@61000000"]}},
        {"cfg": {"iomem": BY_HAND["iomem"], "irqs": BY_HAND["irqs"]}},
        {"partial": {}},
        {"cfg": {"dtdev": None, "viommu": None}},
    ],
)
def test_a_sound_world_has_nothing_to_say(world):
    assert lines(diagnoses(**world)) == []


def test_the_sample_board_alone_has_notes_only(samples):
    data = (samples / "board.dtb").read_bytes()
    found = check(Platform.from_tree(blob.read(data), "board.dtb"))
    assert {one.rule for one in found} == {"DT205", "DT206", "DT302", "DT502"}
    assert {one.severity for one in found} == {"note"}


# The registry.


def test_every_rule_is_explained():
    assert list(RULES) == sorted(RULES)
    for id_, rule in RULES.items():
        assert id_ == rule.id
        assert rule.title
        assert rule.title[-1] != "."
        assert rule.why[-1] == "."
        # An IORT has no paths.
        assert rule.example[0] == "/" or rule.id.startswith("DT71")
        assert ": " in rule.example


def test_every_rule_has_a_case():
    here = Path(__file__).parent
    tables = "".join(p.read_text() for p in here.glob("test_checks_*.py"))
    named = {id_ for id_ in RULES if f'        "{id_}",\n' in tables}
    # PCI has a suite of its own.
    pci = "".join(p.read_text() for p in here.glob("test_pci*.py"))
    named |= {id_ for id_ in RULES if "DT520" <= id_ <= "DT539" and f"{id_}" in pci}
    # The command line reads files: DT001, DT603 (tests/cli/test_check.py). DT506 is below.
    # Stand-ins are made on request only: DT220, DT221 (test_stubs.py).
    expected = {"DT001", "DT220", "DT221", "DT506", "DT603"}
    assert set(RULES) - named - COMMANDS_ONLY == expected
    assert not COMMANDS_ONLY & named


def test_the_twenty_mistakes_have_rules():
    ids = (101, 201, 301, 102, 302, 203, 204, 205, 206, 401, 402, 501, 502, 503, 504, 505, 207)
    assert {f"DT{n}" for n in (*ids, 103, 208, 209)} <= set(RULES)


def test_every_rule_of_the_other_commands_is_here():
    import re

    package = Path(__file__).resolve().parents[2] / "dt_tools"
    text = "".join(p.read_text() for p in package.rglob("*.py"))
    assert set(re.findall(r'"(DT\d{3})"', text)) <= set(RULES)


# Order, bounds.


def test_errors_come_first_then_rules_files_and_paths():
    found = diagnoses(
        host={"soc/dma@61000000/iommus": [3, 0x10], "soc/dma@61000000/xen,passthrough": None},
        cfg={"dtdev": ["/nope", "/soc/dma@60000000"]},
        other={"dtdev": ["/soc/dma@61000000", "/soc/uart@70000000"]},
    )
    keys = [(one.severity, one.rule, one.file) for one in found]
    assert keys == [
        ("error", "DT101", "b.cfg"),
        ("error", "DT102", "a.cfg"),
        ("error", "DT503", "a.cfg"),
        ("error", "DT503", "b.cfg"),
        ("warning", "DT103", "b.cfg"),
    ]
    again = [replace(one) for one in reversed(found)]
    from dt_tools.checks import ordered

    assert ordered([*again, *found]) == found


def test_a_hostile_configuration_is_bounded():
    dtdev = ["/soc/dma@60000000"] + [f"/soc/dma@{n:x}" for n in range(20_000)]
    found = diagnoses(
        cfg={
            "dtdev": dtdev,
            "iomem": [f"{n:x},1" for n in range(0x60000, 0x60000 + 5_000)],
            "irqs": list(range(5_000)),
        }
    )
    assert sum(one.rule == "DT102" for one in found) == 1023
    assert {one.fact for one in found if one.rule == "DT212"} >= {
        "20001 dtdev entries, more than 1024; the rest is not looked at",
        "5000 iomem entries, more than 1024; the rest is not looked at",
        "5000 irqs entries, more than 1024; the rest is not looked at",
    }


def test_a_hostile_board_is_bounded():
    nodes = {f"n{at}": {"clocks": [0x7777], "reg": [at * 16, 16]} for at in range(30_000)}
    host = edited(HOST, {f"soc/{name}": spec for name, spec in nodes.items()})
    platform = Platform.from_tree(tree_of(host), "host.dtb")
    guests = [guest_of({"iomem": ["0,ffff"], "irqs": [132, 133]})]
    found = check(platform, guests)
    assert sum(one.rule == "DT401" for one in found) == MAX_DIAGNOSES
    assert sum(one.rule == "DT111" for one in found) <= MAX_DIAGNOSES


def test_nested_devices_are_walked_once():
    path, deep = "/soc", {}
    spec: dict[str, Any] = deep
    dtdev = []
    for at in range(60):
        spec[f"d{at}"] = {}
        spec = spec[f"d{at}"]
        path += f"/d{at}"
        dtdev.append(path)
    for at in range(3_000):
        spec[f"leaf{at}"] = {"interrupts": [0, 200, 4]}
    found = diagnoses(host={"soc/d0": deep["d0"]}, cfg={"dtdev": dtdev})
    assert sum(one.rule == "DT110" for one in found) == 59


def test_too_many_streams():
    cells = [cell for sid in range(65_537) for cell in (3, sid)]
    found = diagnoses(host={"soc/dma@60000000/iommus": cells}, cfg={})
    assert [line for line in lines(found) if "DT506" in line] == [
        "a.cfg:5 error DT506 /soc/dma@60000000: the guest would need more than 65536 vMasterIDs; "
        "assign fewer devices to this guest"
    ]


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_world_is_told_or_refused(seed):
    """Random properties of random nodes: findings, or DtbError by the platform's work limit."""
    rng = random.Random(seed)
    host, partial = copy.deepcopy(HOST), copy.deepcopy(PARTIAL)
    for spec in (host, partial):
        for _ in range(rng.randrange(1, 8)):
            _damage(spec, rng)
    guest = guest_of(_damaged_keys(rng), "a.cfg", tree_of(partial))
    other = guest_of({"dtdev": ["/soc/dma@61000000"]}, "b.cfg")
    try:
        platform = Platform.from_tree(tree_of(host), "host.dtb")
        found = check(platform, [guest, other], [PartialTree("q.dtb", tree_of(partial))])
    except DtbError:
        return
    assert {one.rule for one in found} <= set(RULES)
    assert {one.severity for one in found} <= {"error", "warning", "note"}


_PROPERTIES = (
    "reg", "interrupts", "interrupt-parent", "iommus", "iommu-map", "ranges", "#address-cells",
    "#size-cells", "phandle", "xen,path", "xen,reg", "clocks", "status", "compatible", "dma-ranges",
    "#iommu-cells", "device_type", "test,syscon",
)  # fmt: skip


def _damage(spec: dict[str, Any], rng: random.Random) -> None:
    while rng.random() < 0.8:
        inner = [value for value in spec.values() if isinstance(value, dict)]
        if not inner:
            break
        spec = rng.choice(inner)
    name = rng.choice(_PROPERTIES)
    cells = (0, 1, 2, 3, 4, 65000, 0x60000000, 2**32 - 1)
    value: Any = [rng.choice(cells) for _ in range(rng.randrange(7))]
    spec[name] = rng.choice((value, bytes(rng.randrange(9)), "/soc/dma@60000000", "pci", True))


def _damaged_keys(rng: random.Random) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if rng.random() < 0.5:
        keys["iomem"] = [f"{rng.getrandbits(rng.choice((8, 20, 52))):x},{rng.getrandbits(9):x}"]
    if rng.random() < 0.5:
        keys["irqs"] = [rng.randrange(2**32 - 1), 132, 133]
    if rng.random() < 0.3:
        keys["dtdev"] = ["/", "/soc", "/soc/dma@60000000", ""]
    if rng.random() < 0.3:
        keys["memory"] = rng.choice((0, 1, 2**40))
    return keys


# Which partial tree is whose.


def test_partial_trees_find_their_guests():
    one, two = (
        guest_of({"dtdev": ["/soc/dma@60000000"]}),
        guest_of({"dtdev": ["/soc/dma@61000000"]}),
    )
    by_name = PartialTree("x.dtb", tree_of(PARTIAL))
    edits = {"passthrough": {"e": {"xen,path": "/soc/dma@61000000"}}}
    by_path = PartialTree("y.dtb", tree_of(edited(PARTIAL, edits)))
    alien = PartialTree("z.dtb", tree_of({"passthrough": {"rtc": {}}}))
    assert match([one, two], [by_path, by_name, alien]) == {1: 0, 0: 1}
    assert match([two], [alien]) == {0: 0}
    assert match([], [alien]) == {}


# Real boards.


def _boards() -> list[Path]:
    place = os.environ.get("VSMMU_BOARDS")
    return sorted(Path(place).glob("*.dtb")) if place else []


@pytest.mark.skipif(not os.environ.get("VSMMU_BOARDS"), reason="VSMMU_BOARDS is not set")
def test_a_board_alone_is_never_at_fault():
    """No mistake of a board's tree is known among these: an error or warning is a false alarm."""
    assert _boards()
    for path in _boards():
        found = check(Platform.from_tree(blob.read(path.read_bytes(), path.name), path.name))
        assert [one for one in found if one.severity != "note"] == [], path.name


def test_the_boards_of_the_corpus_have_notes_only(corpus):
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        found = check(Platform.from_tree(blob.read(path.read_bytes(), path.name), path.name))
        assert [one for one in found if one.severity != "note"] == [], path.name


def test_the_agilex_5_guide(corpus):
    """Of 17 interrupts one is missing, the system manager is the guest's, a size is rounded."""
    place = corpus / "dtbs" / "socfpga_agilex5_socdk.dtb"
    platform = Platform.from_tree(blob.read(place.read_bytes(), "host.dtb"), "host.dtb")
    guide = {
        "viommu": None,
        "dtdev": ["/soc@0/ethernet@10830000"],
        "iomem": ["0x10830,4", "0x10d12,1"],
        "irqs": [*range(256, 266), *range(267, 273)],
    }
    found = lines(check(platform, [guest_of(guide)]))
    ethernet = "/soc@0/ethernet@10830000"
    assert [line for line in found if any(f"DT{n} " in line for n in (301, 209, 204))] == [
        "a.cfg:5 error DT209 /soc@0/sysmgr@10d12000: iomem maps 0x10d12000+0x1000, shared (system "
        "control): 3 nodes name it: /soc@0/ethernet@10810000, /soc@0/ethernet@10820000, "
        f"{ethernet}; leave a shared control block to the host",
        f"a.cfg:6 error DT301 {ethernet}: has SPIs 256..272 (17), irqs has 16 of them: missing "
        "266; add 266 to irqs",
        f"a.cfg:5 note DT204 {ethernet}: 0x10830000+0x3500 needs pages 0x10830,0x4 (0x4000); "
        "neighbours in the pages: none; map the whole pages, 0x10830,0x4",
    ]


def test_what_the_builder_gives_a_guest_is_sound(corpus):
    """Its /passthrough, iomem and irqs as a configuration by hand: only what the board makes so."""
    from dt_tools.guest import build_guest

    built = 0
    for place in sorted((corpus / "dtbs").glob("*.dtb")):
        platform = Platform.from_tree(blob.read(place.read_bytes(), place.name), place.name)
        for master in [m for m in platform.masters if m.status == "okay" and m.streams][:6]:
            keys: dict[str, Any] = {"viommu": None, "dtdev": [master.path]}
            try:
                made = build_guest(guest_of(keys).config, platform=platform)
            except Refusal:
                assert any(one.severity == "error" for one in check(platform, [guest_of(keys)]))
                continue
            built += 1
            keys |= {"iomem": list(made.iomem_strings()) or None, "irqs": list(made.irqs) or None}
            partial = Tree()
            partial.root.add("passthrough").copy_from(made.tree.root.children["passthrough"])
            found = check(platform, [guest_of(keys, "a.cfg", partial)])
            told = {one.rule for one in found if one.severity != "note"}
            assert told <= {"DT208", "DT209", "DT302", "DT307"}, (place.name, master.path)
    assert built > 20


def test_hip07_crypto_engines(corpus):
    place = corpus / "dtbs" / "hip07-d05.dtb"
    platform = Platform.from_tree(blob.read(place.read_bytes(), "host.dtb"), "host.dtb")
    engines = ["/soc/crypto@d0000000", "/soc/crypto@400d0000000"]
    found = check(platform, [guest_of({"dtdev": engines})])
    assert [one.fact for one in found if one.rule == "DT502"] == [
        "StreamID 0x600 is this guest's on 2 SMMUs: /iommu@d0040000, /iommu@400d0040000"
    ]
    assert {one.rule for one in found if one.severity != "note"} == {"DT302"}
