# SPDX-License-Identifier: BSD-2-Clause
"""The strategies of `vsmmu.testing`: legal is what the decoders take, and all kinds are reached.

Each test draws once and looks at everything that was drawn, since a draw is most of the cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from vsmmu.arch.commands import OPCODES, CmdSync, Command
from vsmmu.arch.context import Cd
from vsmmu.arch.events import EVENTS, FTranslation
from vsmmu.arch.layout import Layout
from vsmmu.arch.legality_cd import cd_reasons
from vsmmu.arch.legality_others import (
    command_reasons,
    event_reasons,
    l1cd_reasons,
    l1std_reasons,
    ste_ignored,
)
from vsmmu.arch.legality_ste import ste_reasons
from vsmmu.arch.pagetable import G4K, G16K, G64K, Granule
from vsmmu.arch.registers import StallModel
from vsmmu.arch.stream_table import Eats, S1Dss, S1Fmt, Ste, SteConfig, World
from vsmmu.memory import Memory
from vsmmu.smmu import Features
from vsmmu.smmu.cd import decode_cd
from vsmmu.smmu.ste import Stream, decode_ste
from vsmmu.smmu.tlb import WORLD_EL2
from vsmmu.testing.bare import BareSmmu, make_cd, make_stage2
from vsmmu.testing.space import Space
from vsmmu.testing.strategies import (
    Recipe,
    almost,
    almost_tables,
    arbitrary,
    command_sequences,
    features,
    legal_cds,
    legal_commands,
    legal_events,
    legal_l1cds,
    legal_l1stds,
    legal_leaves,
    legal_stes,
    page_tables,
    values,
)
from vsmmu.testing.streams import CdTable
from vsmmu.testing.tables import Stage1Tables, Stage2Tables

T = TypeVar("T")
EVERYTHING = Features.everything()
LITTLE = Features.default(stages="1", oas=32, aidr=0).replace(asid16=0)


def drawn(strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """So many draws, the same in each run."""
    found: list[T] = []

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def draw(value: T) -> None:
        found.append(value)

    draw()
    return found


def with_features(
    make: Callable[[Features], st.SearchStrategy[T]],
) -> st.SearchStrategy[tuple[Features, T]]:
    """A value together with the features that it was drawn for."""
    return features().flatmap(lambda has: st.tuples(st.just(has), make(has)))


# STEs.


def test_legal_stes_reach_every_kind() -> None:
    """§5.2: Config, S1Fmt, S1DSS, STRW, EATS, granules."""
    each = st.tuples(*(legal_stes(config=[config]) for config in range(8)))
    for stes in drawn(each, 10):
        assert [ste.config for ste in stes] == list(range(8))
    nested = drawn(legal_stes(config=[SteConfig.NESTED]), 60)
    assert {ste.s1fmt for ste in nested if ste.s1cdmax} == set(S1Fmt)
    assert {ste.s1dss for ste in nested if ste.s1cdmax} == set(S1Dss)
    assert {ste.eats for ste in nested} == {Eats.NONE, Eats.FULL, Eats.SPLIT}
    assert {ste.s2tg for ste in nested} == {0, 1, 2}
    assert {ste.s2ds for ste in nested} == {0, 1}
    assert {s.strw for s in drawn(legal_stes(config=[SteConfig.S1]), 20)} == {0, 2}


def test_legal_stes_have_nothing_without_effect() -> None:
    for ste in drawn(legal_stes(), 60):
        assert decode_ste(ste, EVERYTHING) is not None
        assert not any(ste.reserved())
        assert not any(getattr(ste, name) for name in ste_ignored(ste, EVERYTHING))


@pytest.mark.parametrize("ignored", [False, True])
def test_legal_stes_are_legal_for_any_features(ignored: bool) -> None:
    for has, ste in drawn(with_features(lambda f: legal_stes(f, ignored=ignored)), 40):
        assert ste_reasons(ste, has) == ()
        assert decode_ste(ste, has) is not None


def test_ignored_fields_and_reserved_bits_are_used_when_asked_for() -> None:
    stes = drawn(legal_stes(config=[SteConfig.BYPASS], ignored=True), 40)
    assert {ste.config for ste in stes} == {SteConfig.BYPASS}
    assert any(ste.s2ttb for ste in stes)
    assert any(any(ste.reserved()) for ste in stes)


def test_almost_legal_stes_are_of_both_kinds() -> None:
    kinds = Counter(bool(ste_reasons(ste, EVERYTHING)) for ste in drawn(almost(legal_stes()), 50))
    assert min(kinds[True], kinds[False]) >= 4, kinds


# CDs.

WORLDS = {World.NS_EL1: 0, World.NS_EL2: WORLD_EL2}


def test_legal_cds_reach_every_kind() -> None:
    """§5.4: either half, both, none; every granule in each; every output size."""
    cds = drawn(legal_cds(), 100)
    assert {(cd.epd0, cd.epd1) for cd in cds} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {cd.tg0 for cd in cds if not cd.epd0} == {0, 1, 2}
    assert {cd.ds for cd in cds if not cd.epd0} == {0, 1}
    assert {cd.tg1 for cd in cds if not cd.epd1} == {1, 2, 3}
    assert len({cd.ips for cd in cds}) >= 5
    assert len({cd.t0sz for cd in cds if not cd.epd0}) >= 8


@pytest.mark.parametrize("world", list(WORLDS))
def test_legal_cds_are_legal_for_any_features(world: World) -> None:
    drawing = with_features(lambda f: legal_cds(f, world=world, ignored=True))
    stream = Stream(config=5, stage1=True, vmid=WORLDS[world])
    for has, cd in drawn(drawing, 30):
        assert cd_reasons(cd, has, world=world) == ()
        assert decode_cd(cd, has, stream) is not None


def test_cds_that_do_not_stall() -> None:
    has = EVERYTHING
    assert has.idr0.stall_model == StallModel.STALL_AND_TERMINATE
    assert not any(cd.s for cd in drawn(legal_cds(has, s1stalld=True), 30))


def test_almost_legal_cds_are_of_both_kinds() -> None:
    kinds = Counter(bool(cd_reasons(cd, EVERYTHING)) for cd in drawn(almost(legal_cds()), 50))
    assert min(kinds[True], kinds[False]) >= 4, kinds


# Commands.


def test_legal_commands_reach_every_opcode() -> None:
    commands = drawn(legal_commands(), 80)
    assert len({command.op for command in commands}) >= len(OPCODES) // 2
    ranges = drawn(legal_commands(opcode=[0x12, 0x2A]), 40)
    assert {getattr(command, "tg", None) for command in ranges} == {0, 1, 2, 3}
    each = st.tuples(*(legal_commands(opcode=[opcode]) for opcode in OPCODES))
    for several in drawn(each, 3):
        assert [command.op for command in several] == list(OPCODES)


def test_legal_commands_are_carried_out_by_any_smmu() -> None:
    """§4.1.1: a queue of them ends without CERROR_ILL."""
    for has, commands in drawn(with_features(lambda f: command_sequences(f, max_batches=2)), 15):
        assert not any(command_reasons(command.words, has) for command in commands)
        bare = BareSmmu(has, sid_bits=min(6, has.idr1.sidsize))
        bare.commands.put(*commands)
        bare.run()
        assert (bare.commands.empty, bare.commands.error) == (True, 0), commands


def test_sequences_are_batches_that_end_with_a_sync() -> None:
    for commands in drawn(command_sequences(max_batches=3), 15):
        syncs = [isinstance(command, CmdSync) for command in commands]
        assert syncs[-1]
        assert 1 <= sum(syncs) <= 3


def test_fields_can_be_given() -> None:
    strategy = legal_commands(opcode=[0x03, 0x12], sid=st.just(7), asid=st.sampled_from([1, 2]))
    for command in drawn(strategy, 30):
        assert command.op in (0x03, 0x12)
        assert getattr(command, "sid", 7) == 7
        assert getattr(command, "asid", 1) in (1, 2)


def test_almost_legal_commands_are_of_both_kinds() -> None:
    made = drawn(almost(legal_commands()), 80)
    kinds = Counter(bool(command_reasons(command.words, EVERYTHING)) for command in made)
    assert min(kinds[True], kinds[False]) >= 2, kinds


# Events.


def test_legal_events_reach_every_number() -> None:
    assert len({event.type for event in drawn(legal_events(), 60)}) >= len(EVENTS) // 2
    each = st.tuples(*(legal_events(number=[number]) for number in EVENTS))
    for several in drawn(each, 3):
        assert [event.type for event in several] == list(EVENTS)
    faults = drawn(legal_events(number=[FTranslation.number]), 30)
    assert {event.s2 for event in faults} == {event.stall for event in faults} == {0, 1}
    assert not any(event.ipa for event in faults if not event.s2)


def test_legal_events_are_legal_for_any_features() -> None:
    for has, event in drawn(with_features(legal_events), 25):
        assert event_reasons(event, has) == ()


def test_almost_legal_events_are_of_both_kinds() -> None:
    made = drawn(almost(legal_events(number=[0x10]), "cls", "rnw", "ind"), 40)
    kinds = Counter(bool(event_reasons(event, EVERYTHING)) for event in made)
    assert min(kinds[True], kinds[False]) >= 2, kinds


# Layouts.


@pytest.mark.parametrize("layout", [Ste, Cd, Command])
def test_arbitrary_structures_have_any_bits(layout: type[Layout]) -> None:
    made = drawn(arbitrary(layout), 30)
    ones = [0] * layout.dwords
    for structure in made:
        ones = [seen | word for seen, word in zip(ones, structure.words, strict=True)]
    assert ones == [(1 << 64) - 1] * layout.dwords


def test_almost_changes_exactly_one_field() -> None:
    base = Ste.build(v=1, config=SteConfig.S2, s2t0sz=24)
    for ste in drawn(almost(st.just(base)), 60):
        assert sum(getattr(ste, n) != getattr(base, n) for n in Ste.fields) == 1
    for ste in drawn(almost(st.just(base), "s2tg", "s2sl0"), 10):
        assert ste.replace(s2tg=0, s2sl0=0) == base


def test_values_fit_their_field() -> None:
    for field in (Ste.fields["s1ctxptr"], Cd.fields["ttb0"], Ste.fields["v"]):
        for value in drawn(values(field), 20):
            assert Ste.fields["v"].of((field.encode(value) >> field.low & 1,)) in (0, 1)
            assert field.encode(value) & ~field.bits == 0


def test_features_are_of_many_kinds() -> None:
    made = drawn(features(), 80)
    assert {(has.s1p, has.s2p) for has in made} == {(True, True), (True, False), (False, True)}
    assert len({has.oas for has in made}) >= 4
    assert len({has.idr0.stall_model for has in made}) >= 2
    assert len({has.aidr.archminrev for has in made}) >= 3
    assert all(has.s2p and not has.s1p for has in drawn(features(stages="2"), 10))


def test_a_counterexample_is_small() -> None:
    """What hypothesis reports of an STE has only what matters."""
    quick = settings(max_examples=100, database=None, derandomize=True)
    ste = find(legal_stes(), lambda ste: ste.config & 1 and ste.s1cdmax >= 3, settings=quick)
    assert ste == Ste.build(v=1, config=SteConfig.S1, s1cdmax=3)


# Descriptors and tables.

LEAVES = [(1, G4K, 2), (2, G16K, 3), (2, G64K, 2)]


@pytest.mark.parametrize(("stage", "granule", "level"), LEAVES)
def test_legal_leaves_translate_and_almost_legal_ones_may_not(
    stage: int, granule: Granule, level: int
) -> None:
    bare = BareSmmu(Features.default(), caching="none")
    make = bare.stage1 if stage == 1 else bare.stage2
    tables = make(1, granule, input_bits=39)
    tables.map(0, 0, tables.span(level), level=level)
    legal = legal_leaves(stage, granule, level)
    for leaf in drawn(legal, 20):
        tables.poke(0, leaf.raw)
        found = tables.find(0)
        assert found.output is not None
        outcome = bare.access(1, 0)
        assert outcome.pa == found.output or outcome.event.name == "F_PERMISSION", leaf
    kinds: Counter[bool] = Counter()
    slot = tables.find(0).slot
    for leaf in drawn(almost(legal), 40):
        bare.memory.write64(slot, leaf.raw)
        event = bare.access(1, 0).event
        kinds[event is None or event.name == "F_PERMISSION"] += 1
    assert min(kinds[True], kinds[False]) >= 2, kinds


@pytest.mark.parametrize("stage", [1, 2])
def test_page_tables_translate_as_they_say(stage: int) -> None:
    """Every granule, level and form, walked by an SMMU with all features."""
    seen: set[tuple[object, ...]] = set()
    for recipe in drawn(page_tables(stage), 30):
        check(recipe, EVERYTHING)
        seen |= {(recipe.granule.name, recipe.wide, m.level, m.contiguous) for m in recipe.mappings}
    assert {name for name, *_ in seen} == {"4K", "16K", "64K"}
    assert len(seen) >= 10


def test_almost_legal_page_tables_are_of_both_kinds() -> None:
    """A flaw changes what an address means, or not: an ignored bit, a permission nobody asks."""
    kinds: Counter[bool] = Counter()
    has = Features.default(sidsize=4)
    for recipe in drawn(almost_tables(page_tables(2, has)), 40):
        assert recipe.flaw is not None
        bare = BareSmmu(has, sid_bits=0)
        tables = recipe.build(bare.space)
        assert isinstance(tables, Stage2Tables)
        bare.streams.write(0, Ste.build(v=1, config=SteConfig.S2, **make_stage2(tables, has)))
        expected = recipe.lookup(recipe.flaw.address)
        assert expected is not None
        kinds[bare.access(0, recipe.flaw.address).pa == expected[0]] += 1
    assert min(kinds[True], kinds[False]) >= 2, kinds


def test_level_1_descriptors() -> None:
    for split in (6, 8, 10):
        made = with_features(lambda f, split=split: legal_l1stds(f, split=split))  # type: ignore[misc]
        for has, l1std in drawn(made, 15):
            assert l1std_reasons(l1std, has, split) == ()
    for has, l1cd in drawn(with_features(legal_l1cds), 15):
        assert l1cd_reasons(l1cd, has) == ()
    kinds = Counter(
        bool(l1std_reasons(d, EVERYTHING, 8)) for d in drawn(almost(legal_l1stds()), 40)
    )
    assert min(kinds[True], kinds[False]) >= 2, kinds


def test_page_tables_for_any_features() -> None:
    for has, recipe in drawn(
        features(stages="nested").flatmap(
            lambda has: st.tuples(st.just(has), page_tables(2, has) | page_tables(1, has))
        ),
        25,
    ):
        check(recipe, has)


def check(recipe: Recipe, has: Features) -> None:
    memory = Memory([(0x8000_0000, 0x1000_0000)])
    bare = BareSmmu(has, memory=memory, sid_bits=0)
    tables = recipe.build(bare.space)
    if isinstance(tables, Stage1Tables):
        contexts = CdTable(bare.space)
        contexts.write(make_cd(tables, has))
        fields, config = contexts.ste_fields(), SteConfig.S1
    else:
        fields, config = make_stage2(tables, has), SteConfig.S2
    bare.streams.write(0, Ste.build(v=1, config=config, **fields))
    last = (1 << recipe.input_bits) - recipe.granule.page_size
    ends = [a for m in recipe.mappings for a in (m.address, m.address + m.size)]
    for address in {0, last, *(end for end in ends if end <= last)}:
        expected = recipe.lookup(address)
        outcome = bare.access(0, address)
        assert outcome.pa == (None if expected is None else expected[0]), (recipe, hex(address))
        if expected is not None:
            wrote = bare.access(0, address, write=True)
            assert (wrote.pa is not None) is expected[1]


def test_space_for_tables_is_bounded() -> None:
    (recipe,) = drawn(page_tables(1, granule=["64K"]), 1)
    with pytest.raises(ValueError, match="are left in this space"):
        recipe.build(Space(Memory([(0x8000_0000, 0x1000)]), 0x8000_0000, 0x1000))


# What 1,000 draws reach.


@pytest.mark.soak
def test_a_thousand_draws_reach_everything() -> None:
    """Every Config, S1Fmt with every S1DSS, first level, granule, opcode, event, kind of leaf."""
    stes = drawn(legal_stes(), 1000)
    assert {ste.config for ste in stes} == set(range(8))
    assert {(ste.s1fmt, ste.s1dss) for ste in stes if ste.s1cdmax} == {
        (fmt, dss) for fmt in S1Fmt for dss in S1Dss
    }
    starts = {(s.s2tg, s.s2ds, s.s2sl0 | s.s2sl0_2 << 2) for s in stes if s.config in (6, 7)}
    assert len(starts) == 19
    cds = drawn(legal_cds(), 1000)
    assert {(cd.tg0, cd.ds) for cd in cds if not cd.epd0} == {
        (tg, ds) for tg in range(3) for ds in range(2)
    }
    assert {cd.ips for cd in cds} == set(range(7))
    assert {command.op for command in drawn(legal_commands(), 1000)} == set(OPCODES)
    assert {event.type for event in drawn(legal_events(), 600)} == set(EVENTS)
    for stage in (1, 2):
        leaves = {
            (recipe.granule.name, recipe.wide, m.level, m.contiguous)
            for recipe in drawn(page_tables(stage), 1000)
            for m in recipe.mappings
        }
        assert len(leaves) == 27
