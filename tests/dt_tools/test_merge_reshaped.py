# SPDX-License-Identifier: BSD-2-Clause
"""A partial tree that `complete` writes, then re-shaped as people write them: the same vMasterIDs.

And mutated ones: merged or refused, never another error, in bounded work.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dt_tools import blob
from dt_tools.binding import MappedReg, allocate
from dt_tools.completed import complete
from dt_tools.errors import DtError, Refusal
from dt_tools.extended import PAGE
from dt_tools.merge import merge_partial
from dt_tools.partial import Partial
from dt_tools.platform import Platform
from dt_tools.profiles import GuestProfile
from dt_tools.tree import Node, Tree
from tests.dt_tools.test_checks import SMMU, cfg_of, tree_of
from xl_configs import GuestConfig, load

if TYPE_CHECKING:
    from pathlib import Path

GUEST = GuestProfile()
V = GUEST.vsmmu_phandle
SMMU_PHANDLES = (3, 4, 5)
# Phandles of the partial tree itself; that of a host's SMMU is among them.
STAND_INS = (3, 20, 21)
NOBODYS, LOST = 77, 78


@st.composite
def boards(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A host with three SMMUv3 and one to four devices, each on a bus of its own or on a shared."""
    spec: dict[str, Any] = {"#address-cells": [2], "#size-cells": [2]}
    for at, phandle in enumerate(SMMU_PHANDLES):
        base = 0x5000_0000 + at * 0x100_0000
        reg = [0, base, 0, 0x20000]
        spec[f"iommu@{base:x}"] = {**SMMU, "reg": reg, "phandle": [phandle]}
    paths = []
    taken: set[tuple[int, int]] = set()
    for at in range(draw(st.integers(1, 4))):
        free = [(p, s) for p in SMMU_PHANDLES for s in range(5) if (p, s) not in taken]
        streams = draw(st.lists(st.sampled_from(free), min_size=1, max_size=3, unique=True))
        taken.update(streams)
        unit = draw(st.sampled_from((0, 0x1000)))
        spec[f"bus@{at}"] = {
            "compatible": "simple-bus",
            "#address-cells": [1],
            "#size-cells": [1],
            "ranges": [0, 0, 0x6000_0000 + at * 0x10_0000, 0x10_0000],
            f"dma@{unit:x}": {
                "compatible": "t,dma",
                "reg": [unit, 0x1000],
                "iommus": [cell for stream in streams for cell in stream],
            },
        }
        paths.append(f"/bus@{at}/dma@{unit:x}")
    return spec, tuple(draw(st.permutations(paths)))


def config(paths: tuple[str, ...]) -> GuestConfig:
    keys = {"name": "g", "kernel": "/k", "memory": 64, "viommu": "smmuv3", "dtdev": list(paths)}
    return load(cfg_of(keys), "g.cfg")


def reshape(draw: st.DrawFn, tree: Tree, hosts: dict[str, str]) -> Tree:
    """The same devices deeper, under other names, with other phandles before the StreamIDs.

    `hosts` gives the host path of each guest path.
    """
    made = Tree()
    for at, phandle in enumerate(STAND_INS[:2]):
        made.root.add(f"stand-in-{at}").set_cells("phandle", phandle)
    made.root.children["stand-in-1"].set_cells("#iommu-cells", 2)
    bus = made.root.add("passthrough")
    bus.props.update(tree.root.children["passthrough"].props)
    bus.add("stand-in").set_cells("phandle", STAND_INS[2])
    for name, source in tree.root.children["passthrough"].children.items():
        place = bus
        for level in range(draw(st.integers(0, 3))):
            inner = f"bus-{level}"
            place = place.children.get(inner) or _bus(place, inner)
        known = draw(st.sampled_from(("name", "path", "both")))
        target = place.add(name if known == "name" else f"device-{len(list(bus.walk()))}")
        target.copy_from(source)
        if known != "name":
            target.set_strings("xen,path", hosts[source.path])
        if draw(st.booleans()):
            target.props["vendor,extra"] = draw(st.binary(max_size=9))
        target.set_cells("iommus", *_entries(draw, source.cells("iommus") or ()))
    return made


def _bus(place: Node, name: str) -> Node:
    bus = place.add(name)
    bus.set_strings("compatible", "simple-bus")
    bus.set_cells("#address-cells", 2)
    bus.set_cells("#size-cells", 2)
    bus.set_empty("ranges")
    return bus


def _entries(draw: st.DrawFn, cells: tuple[int, ...]) -> list[int]:
    """The host's entries, said otherwise where the id alone says which stream it is."""
    found: list[int] = []
    for phandle, stream_id in zip(cells[::2], cells[1::2], strict=True):
        others: tuple[int, ...] = ()
        if cells[1::2].count(stream_id) == 1:
            others = (V, NOBODYS, *STAND_INS)
        # A host's phandle that a stand-in has is the stand-in's.
        plain = (phandle,) if phandle not in STAND_INS else ()
        said = draw(st.sampled_from((*plain, *others) or (LOST,)))
        found += (said, stream_id, 0) if said == STAND_INS[1] else (said, stream_id)
    return found


# Shrinking such a case takes minutes, and what is drawn is small.
@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_a_reshaped_partial_tree_has_the_same_vmaster_ids(data: st.DataObject) -> None:
    spec, paths = data.draw(boards())
    platform = Platform.from_tree(tree_of(spec), "host.dtb")
    made = complete(config(paths), platform, "p.dtb")
    hosts = {device.guest_path: device.path for device in made.guest.bindings.devices}
    partial = reshape(data.draw, made.partial, hosts)
    pins = tuple(MappedReg(e.start * PAGE, e.gfn * PAGE, e.count * PAGE) for e in made.config.iomem)
    bindings = made.guest.bindings
    arguments: dict[str, Any] = {
        "guest": GUEST, "platform": platform, "devices": paths, "bindings": bindings, "pins": pins,
    }  # fmt: skip
    if any(LOST in (node.cells("iommus") or ()) for node in partial.walk()):
        # One id on two SMMUs, and nothing says which.
        with pytest.raises(Refusal, match="DT542"):
            merge_partial(Tree(), partial, **arguments)
        return
    again = merge_partial(Tree(), partial, **arguments)
    before = {d.path: d.vmaster_ids for d in bindings.devices}
    assert {d.path: d.vmaster_ids for d in again.devices} == before
    masters = {master.path: master for master in platform.masters}
    for device in again.devices:
        node = again.tree.node(device.guest_path)
        assert node is not None
        cells = node.cells("iommus") or ()
        assert set(cells[::2]) == {V}
        back = [bindings.resolve(vid) for vid in cells[1::2]]
        streams = masters[device.path].streams
        assert [(b.smmu, b.pmaster_id) for b in back if b] == [
            (s.smmu_path, s.stream_id) for s in streams
        ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40, unique=True), st.randoms())
def test_a_map_that_is_rewritten_and_resolved_gives_the_same_streams(
    ids: list[int], rng: random.Random
) -> None:
    from dt_tools.masters import Masters
    from tests.dt_tools.test_merge import bound

    path = "/iommu@50000000"
    vids = rng.sample(range(64), len(ids))
    bindings = bound(*((path, sid, vid) for sid, vid in zip(ids, vids, strict=True)))
    spec = {"iommu@50000000": {**SMMU, "phandle": [3]}}
    platform = Platform.from_tree(tree_of(spec), "host.dtb")
    # Rows of as many ids as follow each other, at requester ids of their own.
    cells: list[int] = []
    for at, sid in enumerate(sorted(ids)):
        if cells and cells[-2] + cells[-1] == sid and rng.random() < 0.8:
            cells[-1] += 1
        else:
            cells += (at * 64, 3, sid, 1)
    partial = tree_of({"passthrough": {"pcie": {"iommu-map": cells}}})
    made = merge_partial(
        Tree(), partial, guest=GUEST, platform=platform, bindings=bindings
    )  # fmt: skip
    vsmmu = platform.smmus[0]
    stand_in = Node("vsmmu")

    def fail(*words: object) -> None:
        raise AssertionError(words)

    reader = Masters({stand_in: vsmmu}, {V: stand_in}, fail)
    after = reader.of(made.tree.root.children["passthrough"].children["pcie"])
    reader = Masters({stand_in: vsmmu}, {3: stand_in}, fail)
    before = reader.of(partial.root.children["passthrough"].children["pcie"])
    for rid in range(64 * 41):
        was, now = before.map_id(rid), after.map_id(rid)
        back = None if now is None else bindings.resolve(now.stream_id)
        assert (was and was.stream_id) == (back and back.pmaster_id)


# Mutated trees.

_NAMES = (
    "iommus", "iommu-map", "iommu-map-mask", "#iommu-cells", "phandle", "linux,phandle", "reg",
    "ranges", "#address-cells", "#size-cells", "compatible", "xen,path", "interrupts",
    "interrupt-parent", "interrupts-extended", "interrupt-map", "#interrupt-cells", "msi-map",
    "clocks", "remote-endpoint", "vdd-supply", "device_type", "status",
)  # fmt: skip
_CELLS = (
    0, 1, 2, 3, 4, 5, 16, 20, 0x600, 65000, 65001, 65002, 65003, 0x1000, 0x6000_0000, 2**31,
    2**32 - 1,
)  # fmt: skip
_TEXTS = (
    "/bus@0/dma@0", "/bus@0", "/iommu@50000000", "t,dma", "arm,smmu-v3", "simple-bus", "x,iommu",
    "pci", "/",
)  # fmt: skip

WORLD: dict[str, Any] = {
    "#address-cells": [2],
    "#size-cells": [2],
    "iommu@50000000": {**SMMU, "reg": [0, 0x50000000, 0, 0x20000], "phandle": [3]},
    "iommu@51000000": {**SMMU, "reg": [0, 0x51000000, 0, 0x20000], "phandle": [4]},
    "bus@0": {
        "#address-cells": [1],
        "#size-cells": [1],
        "ranges": [0, 0, 0x6000_0000, 0x10_0000],
        "dma@0": {"compatible": "t,dma", "reg": [0, 0x1000], "iommus": [3, 1, 4, 1, 4, 2]},
        "eth@1000": {"compatible": "t,eth", "reg": [0x1000, 0x1000], "iommus": [3, 0x600]},
    },
    "pcie@70000000": {"device_type": "pci", "iommu-map": [0, 3, 0, 0x1000]},
}
DEVICES = ("/bus@0/dma@0", "/bus@0/eth@1000")
START: dict[str, Any] = {
    "stand-in": {"phandle": [20], "#iommu-cells": [2]},
    "passthrough": {
        "compatible": "simple-bus",
        "#address-cells": [2],
        "#size-cells": [2],
        "ranges": True,
        "intc": {"phandle": [16], "#interrupt-cells": [2], "interrupt-controller": True},
        "bus": {
            "#address-cells": [1],
            "#size-cells": [1],
            "ranges": [0, 0, 0x6000_0000, 0x10_0000],
            "dma@0": {"compatible": "t,dma", "reg": [0, 0x1000], "iommus": [3, 1, 4, 1, 20, 2, 0]},
        },
        "eth@1000": {"iommus": [65002, 0x600], "interrupts": [0, 5, 4]},
        "pcie@70000000": {"iommu-map": [0, 3, 1, 1, 4, 3, 0x600, 1], "iommu-map-mask": [0xFF]},
    },
    "aliases": {"a": "/passthrough/bus"},
}


def mutate(spec: dict[str, Any], rng: random.Random) -> None:
    path = [spec]
    while rng.random() < 0.8:
        inner = [value for value in path[-1].values() if isinstance(value, dict)]
        if not inner:
            break
        path.append(rng.choice(inner))
    at = path[-1]
    kind = rng.randrange(6)
    if kind == 0 and len(path) > 1:
        at[f"copy-{rng.randrange(4)}"] = copy.deepcopy(rng.choice(path[1:]))
    elif kind == 1 and at:
        del at[rng.choice(list(at))]
    elif kind == 2:
        values = [v for v in at.values() if isinstance(v, list) and v]
        if values:
            value = rng.choice(values)
            value[rng.randrange(len(value))] = rng.choice(_CELLS)
    else:
        value = [rng.choice(_CELLS) for _ in range(rng.randrange(9))]
        text = rng.choice(_TEXTS)
        raw = rng.randbytes(rng.randrange(9))
        at[rng.choice(_NAMES)] = rng.choice((value, value, value, text, text, raw, True))


def merge(spec: dict[str, Any], platform: Platform) -> Partial:
    bindings = allocate(platform, DEVICES)
    return merge_partial(
        Tree(), tree_of(spec), guest=GUEST, platform=platform, devices=DEVICES, bindings=bindings
    )


def fuzz(seeds: range) -> dict[str, int]:
    """Outcomes by rule; what is merged names only streams of the guest's."""
    platform = Platform.from_tree(tree_of(WORLD), "host.dtb")
    bindings = allocate(platform, DEVICES)
    known = {binding.vmaster_id for binding in bindings.entries}
    streams = {b.vmaster_id: (b.smmu, b.pmaster_id) for b in bindings.entries}
    smmus = {3: "/iommu@50000000", 4: "/iommu@51000000"}
    found: dict[str, int] = {}
    for seed in seeds:
        rng = random.Random(seed)
        spec = copy.deepcopy(START)
        for _ in range(rng.randrange(1, 7)):
            mutate(spec, rng)
        try:
            made = merge(spec, platform)
        except DtError as error:
            outcome = getattr(error, "rule", type(error).__name__)
        else:
            outcome = "merged"
            own = tree_of(spec).phandles()
            for node in made.tree.root.children["passthrough"].walk():
                cells = node.cells("iommus") or ()
                if cells and set(cells[::2]) == {V}:
                    assert set(cells[1::2]) <= known, seed
                    was = _cells(spec, node.path)
                    # Pair by pair, where the phandle is the host's.
                    for at in range(0, len(cells) if len(was) == len(cells) else 0, 2):
                        if was[at] in smmus and was[at] not in own:
                            stream = smmus[was[at]], was[at + 1]
                            assert streams[cells[at + 1]] == stream, seed
                rows = node.cells("iommu-map") or ()
                for vid, length in zip(rows[2::4], rows[3::4], strict=True):
                    assert set(range(vid, vid + length)) <= known, seed
        found[outcome] = found.get(outcome, 0) + 1
    return found


def _cells(spec: dict[str, Any], path: str) -> tuple[int, ...]:
    node = tree_of(spec).node(path)
    assert node is not None
    return node.cells("iommus") or ()


def test_the_start_is_merged() -> None:
    made = merge(START, Platform.from_tree(tree_of(WORLD), "host.dtb"))
    at = {device.path: (device.guest_path, device.vmaster_ids) for device in made.devices}
    assert at == {
        "/bus@0/dma@0": ("/passthrough/bus/dma@0", (0, 1, 2)),
        "/bus@0/eth@1000": ("/passthrough/eth@1000", (3,)),
        "/pcie@70000000": ("/passthrough/pcie@70000000", (0, 3)),
    }


def test_mutated_trees_are_merged_or_refused() -> None:
    found = fuzz(range(2_000))
    assert found["merged"] > 300
    assert {"DT211", "DT402", "DT403", "DT404", "DT405", "DT501", "DT505", "DT540",
            "DT542"} <= found.keys()  # fmt: skip


@pytest.mark.soak
def test_many_mutated_trees() -> None:
    fuzz(range(2_000, int(os.environ.get("VSMMU_SOAK_COUNT", "60000"))))


@pytest.mark.parametrize(
    "props",
    [
        {"iommus": [65002, 0x600] * 60_000},
        {"iommus": [3, 0x600] * 60_000},
        {"iommus": [20, 0x600, 0] * 40_000},
        {"iommu-map": [cell for at in range(30_000) for cell in (at, 3, 0x600, 1)]},
        {"interrupt-map": [65000, 0, 5, 4] * 30_000, "#address-cells": [0],
         "#interrupt-cells": [0]},
        {"clocks": [9] * 100_000},
        {"pinctrl-0": [9] * 100_000},
        {"reg": [0, 1] * 60_000},
        {"interrupts": [0, 1, 4] * 40_000},
    ],
)  # fmt: skip
def test_long_properties_take_bounded_work(props: dict[str, Any]) -> None:
    platform = Platform.from_tree(tree_of(WORLD), "host.dtb")
    spec = copy.deepcopy(START)
    spec["passthrough"]["eth@1000"].update(props)
    start = time.process_time()
    with contextlib.suppress(DtError):
        assert len(merge(spec, platform).notices) < 200
    assert time.process_time() - start < 3


def test_many_nodes_take_bounded_work() -> None:
    platform = Platform.from_tree(tree_of(WORLD), "host.dtb")
    spec = copy.deepcopy(START)
    deep = {f"eth@{at:x}": {"iommus": [3, 0x600], "phandle": [at + 100], "reg": [0, 0, 0, at]}
            for at in range(0x2000, 0x5000)}  # fmt: skip
    spec["passthrough"].update(deep)
    start = time.process_time()
    made = merge(spec, platform)
    assert made.tree.node("/passthrough/eth@2000") is not None
    assert time.process_time() - start < 5


# The recorded partial trees of real xl.


def recorded(corpus: Path) -> list[tuple[dict[str, Any], Path]]:
    folder = corpus / "libxl"
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    rows = [row for line in lines if (row := json.loads(line))["set"].startswith("xl-")]
    return [(row, folder / row["partial"]) for row in rows if "partial" in row]


def test_every_recorded_partial_tree_is_merged_or_refused(corpus: Path) -> None:
    outcomes: dict[str, set[str]] = {}
    folder = corpus / "libxl"
    rows = recorded(corpus)
    for row, path in rows:
        cfg = load((folder / row["cfg"]).read_bytes(), row["cfg"])
        name = "xlnx.host.dtb" if row["set"] == "xl-xlnx4.17-vsmmu" else "deb3-smmu.host.dtb"
        host = blob.read((folder / "dom0" / name).read_bytes(), name)
        if row["set"] == "xl-4.20-smmuv3":
            host.root.children["pl031@9010000"].set_cells("iommus", 0x8005, 0x10)
        try:
            partial = blob.read(path.read_bytes(), path.name)
            platform = Platform.from_tree(host, name)
            # Stock xl does not know the key.
            viommu = cfg.viommu == "smmuv3" and "xlnx" in row["set"]
            bindings = allocate(platform, cfg.dtdev, viommu=viommu)
            made = merge_partial(
                Tree(), partial, guest=GUEST, platform=platform, devices=cfg.dtdev,
                bindings=bindings if viommu else None,
            )  # fmt: skip
        except DtError as error:
            outcome = getattr(error, "rule", type(error).__name__)
        else:
            outcome = "merged"
            copied = made.tree.root.children["passthrough"]
            assert [n.name for n in copied.walk()] == [
                n.name for n in partial.root.children["passthrough"].walk()
            ]
        if row["rc"] == 139 or (row["rc"] == 3 and row["name"] != "e16-gicv2"):
            assert outcome != "merged", row["name"]
        outcomes.setdefault(outcome, set()).add(row["name"])
    assert len(rows) > 100
    assert {name for name in outcomes if name.startswith("DT") and name != "DtbError"} == {
        "DT211", "DT402", "DT403", "DT404", "DT405", "DT501", "DT505",
    }  # fmt: skip
    assert outcomes["DT405"] == {"e05-odd4"}
    assert outcomes["DT501"] == {"e06-passthrough-node"}
    assert outcomes["DT505"] == {"e13-iommu-map"}
    assert outcomes["DT211"] == {
        "b03-aliases-only", "b11-deep-path", "b11-prefix", "b11-unit", "b11-unit-and-plain",
        "b11-upper", "c14-noroot-name",
    }  # fmt: skip
    assert len(outcomes["merged"]) == 26
