# SPDX-License-Identifier: BSD-2-Clause
"""Ids that were given out stay: earlier maps, vSMMUs of their own, runs of PCI functions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools.binding import Bindings, Viommu, allocate
from dt_tools.errors import Refusal, UserError
from dt_tools.masters import Stream
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree
from tests.counts import sliced
from xl_configs.specs.devid_map import DevidMap

SMMUS = {2: "/iommu@5000000", 3: "/iommu@6000000", 4: "/iommu@7000000"}
BASES = {path: int(path.partition("@")[2], 16) for path in SMMUS.values()}


@dataclass(frozen=True)
class Function:
    path: str
    streams: tuple[Stream, ...]
    bridge: str = "/pcie@0"


def board(masters: dict[str, list[tuple[int, int]]]) -> Platform:
    """SMMUv3s with the phandles 2, 3 and 4, and masters by name."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    for phandle, path in SMMUS.items():
        node: Node = root.add(path[1:])
        node.set_strings("compatible", "arm,smmu-v3")
        node.set_cells("reg", 0, BASES[path], 0, 0x20000)
        node.set_cells("#iommu-cells", 1)
        node.set_cells("phandle", phandle)
    for name, streams in masters.items():
        root.add(name).set_cells("iommus", *(cell for stream in streams for cell in stream))
    return Platform.from_tree(tree, "board.dtb")


HOST = board(
    {
        "a": [(2, 0x600)],
        "b": [(3, 0x600), (3, 0x601)],
        "c": [(4, 0x600), (2, 7)],
        "d": [(2, 9)],
        "e": [(3, 1), (4, 1), (2, 1)],
    }
)
DEVICES = ("/a", "/b", "/c", "/d", "/e")


def again(bindings: Bindings, one_per_smmu: bool = False) -> Bindings:
    """The map as the next build reads it; the tree builder has filled in the vSMMUs."""
    filled = tuple(
        replace(v, base=0x4040000 + n * 0x40000, size=0x40000, spi=44 + n, phandle=65002 + n)
        for n, v in enumerate(bindings.viommus)
    )
    one = None if one_per_smmu else Viommu(0x4040000, 0x40000, 33, 65002)
    bindings = replace(bindings, viommu=one, viommus=filled)
    return Bindings.from_json(json.loads(json.dumps(bindings.to_json())))


lists = st.lists(st.sampled_from(DEVICES), unique=True, min_size=1)


@sliced(150)
@given(builds=st.lists(lists, min_size=2, max_size=6), one_per_smmu=st.booleans())
def test_no_id_ever_changes(builds: list[list[str]], one_per_smmu: bool) -> None:
    old, meaning, viommus = None, {}, {}
    for devices in builds:
        made = allocate(HOST, devices, old=old, one_per_smmu=one_per_smmu)
        wanted = {
            (s.smmu_path, s.stream_id) for m in HOST.masters if m.path in devices for s in m.streams
        }
        assert {(e.smmu, e.pmaster_id) for e in made.entries} == wanted
        for entry in made.entries:
            place = (entry.viommu, entry.vmaster_id)
            assert meaning.setdefault(place, (entry.smmu, entry.pmaster_id)) == (
                entry.smmu,
                entry.pmaster_id,
            )
            assert made.resolve(entry.vmaster_id, entry.viommu) == entry
        assert len(set(meaning.values())) == len(meaning)
        for index, viommu in enumerate(made.viommus):
            assert viommus.setdefault(index, viommu.smmu) == viommu.smmu
        assert all(made.viommus[e.viommu].smmu == e.smmu for e in made.entries if one_per_smmu)
        old = again(made, one_per_smmu)
        assert old.entries == made.entries
        assert {(e.smmu, e.pmaster_id) for e in (*old.entries, *old.retired)} == set(
            meaning.values()
        )


@sliced(100)
@given(
    masters=st.lists(
        st.lists(st.tuples(st.sampled_from((2, 3, 4)), st.integers(0, 12)), min_size=1, max_size=5),
        min_size=1,
        max_size=8,
    ),
    one_per_smmu=st.booleans(),
)
def test_ids_are_injective_and_dense(
    masters: list[list[tuple[int, int]]], one_per_smmu: bool
) -> None:
    host = board({f"m{at}": streams for at, streams in enumerate(masters)})
    devices = [f"/m{at}" for at in range(len(masters))]
    made = allocate(host, devices, one_per_smmu=one_per_smmu)
    by_viommu: dict[int, list[int]] = {}
    for entry in made.entries:
        by_viommu.setdefault(entry.viommu, []).append(entry.vmaster_id)
    assert all(ids == list(range(len(ids))) for ids in by_viommu.values())
    # Order of first use, which is the one total order: list order, then the node's own.
    order = list(dict.fromkeys((SMMUS[p], sid) for streams in masters for p, sid in streams))
    if not one_per_smmu:
        assert [(e.smmu, e.pmaster_id) for e in made.entries] == order
    else:
        assert [v.smmu for v in made.viommus] == list(dict.fromkeys(smmu for smmu, _ in order))


def test_a_stream_that_comes_back_has_its_id_again() -> None:
    first = allocate(HOST, ["/a", "/b"])
    second = allocate(HOST, ["/d"], old=again(first))
    assert [(e.vmaster_id, e.smmu) for e in second.entries] == [(3, SMMUS[2])]
    assert [e.vmaster_id for e in second.retired] == [0, 1, 2]
    assert all(not entry.devices for entry in second.retired)
    third = allocate(HOST, ["/d", "/b"], old=again(second))
    assert [(e.vmaster_id, e.pmaster_id) for e in third.entries] == [(1, 0x600), (2, 0x601), (3, 9)]
    assert [e.vmaster_id for e in third.retired] == [0]


def test_the_new_ids_of_a_function_are_consecutive() -> None:
    wanted = [DevidMap(0x600, 1, BASES[SMMUS[2]])]
    functions = [
        Function("0000:00:01.0", (Stream(SMMUS[3], 8), Stream(SMMUS[3], 9))),
        Function("0000:00:02.0", (Stream(SMMUS[3], 10),)),
        Function("0000:00:03.0", (Stream(SMMUS[3], 9), Stream(SMMUS[4], 9))),
    ]
    made = allocate(HOST, ["/a"], wanted=wanted, pci=functions)
    ids = {(e.smmu, e.pmaster_id): e.vmaster_id for e in made.entries}
    # 0 is free and one id long: the pair goes behind 1, the single one takes it.
    assert ids == {
        (SMMUS[2], 0x600): 1,
        (SMMUS[3], 8): 2,
        (SMMUS[3], 9): 3,
        (SMMUS[3], 10): 0,
        (SMMUS[4], 9): 4,
    }
    owners = {(e.smmu, e.pmaster_id): e.devices for e in made.entries}
    assert owners[SMMUS[3], 9] == ("0000:00:01.0", "0000:00:03.0")


def test_platform_devices_come_before_functions() -> None:
    made = allocate(HOST, ["/a"], pci=[Function("0000:00:01.0", (Stream(SMMUS[3], 8),))])
    assert [(e.vmaster_id, e.devices) for e in made.entries] == [
        (0, ("/a",)),
        (1, ("0000:00:01.0",)),
    ]


BARE = board({"x": [(3, 1)]})


def test_65536_ids_and_no_more() -> None:
    streams = tuple(Stream(SMMUS[2], sid) for sid in range(0x10000))
    made = allocate(BARE, [], pci=[Function("all", streams)])
    assert [e.vmaster_id for e in made.entries] == list(range(0x10000))
    more = Function("one more", (Stream(SMMUS[3], 0),))
    with pytest.raises(Refusal) as error:
        allocate(BARE, [], pci=[Function("all", streams), more])
    assert str(error.value) == (
        "DT506: one more: the guest would need more than 65536 vMasterIDs; "
        "assign fewer devices to this guest"
    )
    # As many again with a vSMMU of their own.
    both = allocate(BARE, [], pci=[Function("all", streams)], one_per_smmu=True)
    assert len(both.entries) == 0x10000


def test_retired_ids_count() -> None:
    streams = tuple(Stream(SMMUS[2], sid) for sid in range(0x100, 0x10100))
    old = again(allocate(BARE, [], pci=[Function("all", streams)]))
    with pytest.raises(Refusal) as error:
        allocate(BARE, ["/x"], old=old)
    assert error.value.rule == "DT506"
    assert error.value.path == "/x"


OLD = again(allocate(HOST, ["/a", "/b"]))


@pytest.mark.parametrize(
    ("old", "devices", "arguments", "text"),
    [
        (
            replace(OLD, entries=(replace(OLD.entries[0], smmu="/iommu@1"),)),
            ["/a"],
            {},
            "DT510: /iommu@1: the earlier map has an SMMU there at 0x5000000; this host has not; "
            "give the map that was made from this host",
        ),
        (
            OLD,
            ["/a"],
            {"one_per_smmu": True},
            "DT510: /: the earlier map is of a guest with one vSMMU; build the guest as before, "
            "or start a new map",
        ),
        (
            again(allocate(HOST, ["/a"], one_per_smmu=True), one_per_smmu=True),
            ["/a"],
            {},
            "DT510: /: the earlier map is of a guest with one vSMMU for each SMMU; build the "
            "guest as before, or start a new map",
        ),
        (
            OLD,
            ["/a"],
            {"wanted": [DevidMap(0x600, 5, 0x5000000)]},
            "DT510: /iommu@5000000: pMasterID 0x600 of it was given vMasterID 0x0 before; "
            "iommu_devid_map says otherwise; take the entry out, or start a new map",
        ),
        (
            OLD,
            ["/d", "/b"],
            {"wanted": [DevidMap(9, 0, 0x5000000)]},
            "DT510: /iommu@5000000: pMasterID 0x600 of it was given vMasterID 0x0 before; "
            "iommu_devid_map says otherwise; take the entry out, or start a new map",
        ),
        (
            OLD,
            ["/d", "/b"],
            {"wanted": [DevidMap(9, 1, 0x5000000)]},
            "DT510: /iommu@6000000: pMasterID 0x600 of it was given vMasterID 0x1 before; "
            "iommu_devid_map says otherwise; take the entry out, or start a new map",
        ),
    ],
)
def test_an_earlier_map_that_does_not_fit(old, devices, arguments, text) -> None:
    with pytest.raises(Refusal) as error:
        allocate(HOST, devices, old=old, **arguments)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"viommus": 1}, "m.json: viommus: expected a list; schema vsmmu.bindings/1"),
        (
            {"retired": [{"vmaster_id": 0, "smmu": "/x", "pmaster_id": "0x1", "smmu_base": "0x0",
                          "devices": []}]},
            "m.json: retired: expected no vmaster_id that is given out already; "
            "schema vsmmu.bindings/1",
        ),
        (
            {"viommus": [{"smmu": "/x", "base": "0x0", "size": "0x0", "spi": 1, "phandle": "0x1"}]},
            "m.json: bindings[0].viommu: expected a number below 2**16; schema vsmmu.bindings/1",
        ),
    ],
)  # fmt: skip
def test_a_map_that_is_none(change: dict[str, object], text: str) -> None:
    with pytest.raises(UserError) as error:
        Bindings.from_json({**OLD.to_json(), **change}, "m.json")
    assert str(error.value) == text


def test_an_index_of_no_vsmmu() -> None:
    made = again(allocate(HOST, ["/a", "/b"], one_per_smmu=True), one_per_smmu=True).to_json()
    made["bindings"][1]["viommu"] = 2
    with pytest.raises(UserError) as error:
        Bindings.from_json(made, "m.json")
    assert "bindings[1].viommu: expected an index below 2" in str(error.value)
    made["bindings"][1]["viommu"] = 0
    made["bindings"][1]["vmaster_id"] = 9
    with pytest.raises(UserError):
        # Another id of the same index has to come first, and the SMMU is not its own.
        Bindings.from_json({**made, "bindings": made["bindings"][::-1]}, "m.json")
    mixed = Bindings.from_json({**made, "bindings": made["bindings"][:2]}, "m.json")
    with pytest.raises(Refusal) as error:
        allocate(HOST, ["/a"], old=mixed, one_per_smmu=True)
    assert str(error.value) == (
        "DT510: /iommu@6000000: the earlier map has it behind vSMMU 0, which is another SMMU's; "
        "give the map as it was written"
    )
