# SPDX-License-Identifier: BSD-2-Clause
"""Stage 2 changed under a running guest: what it sends, when pages go back, who sees what."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vsmmu.arch.commands import (
    CmdTlbiNhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.hypervisor import flush
from vsmmu.hypervisor.flush import Flush
from vsmmu.hypervisor.policy import Policy
from vsmmu.memory import PAGE
from vsmmu.smmu.features import Features

from .reach import Reach
from .test_binding import sent
from .world import BUFFER, RAM, RAM_SIZE, Guest, World

IOVA = 0x1000_0000
BLOCK = 0x20_0000
WINDOW = 0x6000_0000
NO_RIL = {"ril": 0}


def made(caching: str = "hostile", policy: Policy | None = None, **fields: int) -> World:
    """Guest x: stream 0 behind `a` translates, stream 1 behind `b` bypasses stage 1. Guest y."""
    aidr = 1 if "ril" in fields or "bbml" in fields else 2
    features = Features.default(sidsize=16, aidr=aidr).replace(**fields)
    streams = {"x": [("a", 0x600), ("b", 0x600)], "y": [("a", 0x700)]}
    world = World(streams, features=features, caching=caching, policy=policy)
    guest = world["x"].boot()
    guest.attach(0)
    guest.map(0, IOVA, BUFFER, 0x10_0000)
    guest.run(guest.driver.bypass(1))
    other = world["y"].boot()
    other.run(other.driver.bypass(0))
    return world


@pytest.fixture
def world() -> World:
    return made()


def reaches(guest: Guest, ipa: int) -> list[bool]:
    """Whether a DMA to an IPA passes: through both stages, and through stage 2 alone."""
    both = guest.dma(0, IOVA + ipa - BUFFER, b"n").ok
    return [both, guest.dma(1, ipa, b"s").ok]


def take(guest: Guest, ipa: int, size: int = PAGE) -> int:
    hv = guest.world.hypervisor
    return hv.wait(hv.hypercalls.decrease_reservation(guest.domain, ipa, size))


def give(guest: Guest, ipa: int, size: int = PAGE) -> int:
    hv = guest.world.hypervisor
    return hv.wait(hv.hypercalls.populate_physmap(guest.domain, ipa, size))


# What a balloon does.


def test_a_page_that_is_taken_is_gone_for_everyone(world: World) -> None:
    guest, pages = world["x"], world.hypervisor.pages
    reach = Reach(world)
    assert reaches(guest, BUFFER) == [True, True]
    left = pages.left
    assert take(guest, BUFFER) == PAGE
    assert reaches(guest, BUFFER) == [False, False]
    assert reaches(guest, BUFFER + PAGE) == [True, True]
    assert guest.memory.read64(BUFFER) is None
    assert guest.memory.read64(BUFFER + PAGE) is not None
    # A page came back, and one became the table that replaces the block.
    assert (reach.freed, pages.left) == (1, left)
    assert guest.events() == []
    assert world.hypervisor.kept["F_TRANSLATION: stage 2 fault"] == 2


def test_a_page_that_is_given_is_zero_and_reached_without_an_invalidation(world: World) -> None:
    guest = world["x"]
    assert guest.memory.write64(BUFFER, 0x5EC2E7)
    take(guest, BUFFER)
    assert reaches(guest, BUFFER) == [False, False]
    seen = [sent(guest, "a"), sent(guest, "b")]
    assert give(guest, BUFFER) == PAGE
    assert guest.memory.read64(BUFFER) == 0
    assert reaches(guest, BUFFER) == [True, True]
    assert seen == [[], []]


def test_no_domain_reads_what_another_wrote(world: World) -> None:
    """Data pages and tables, of a balloon and of a domain that is destroyed."""
    x, y = world["x"], world["y"]
    take(y, RAM, RAM_SIZE)
    world.hypervisor.pages.allocate_some(world.hypervisor.pages.left - 0x8_0000, PAGE)
    for i in range(0, 0x10_0000, PAGE):
        assert x.memory.write64(BUFFER + i, 0x5EC2E7)
    x.destroy()
    given = give(y, RAM, RAM_SIZE)
    assert given > RAM_SIZE // 2
    # The guest's own queues and tables were beside the buffer.
    assert y.memory.read(RAM, given) == bytes(given)


def test_free_memory_is_zero(world: World) -> None:
    """Data pages, tables of a domain that is destroyed, tables that a balloon emptied."""
    hv, y = world.hypervisor, world["y"]
    take(y, BUFFER, 3 * PAGE)
    give(y, WINDOW)
    assert y.memory.write64(WINDOW, 0x5EC2E7)
    take(y, WINDOW)
    world["x"].destroy()
    frames = [f << 12 for f in world.memory.page if hv.pages._free.covers(f << 12, PAGE)]
    assert len(frames) > 16
    assert [pa for pa in frames if world.memory.read(pa, PAGE) != bytes(PAGE)] == []


@pytest.mark.parametrize(
    ("ipa", "size", "taken"),
    [
        (RAM + RAM_SIZE - PAGE, 4 * PAGE, PAGE),
        (RAM - PAGE, 2 * PAGE, 0),
        (RAM + 1, PAGE, 0),
        (RAM, 0, 0),
        (RAM, -PAGE, 0),
        (-PAGE, 2 * PAGE, 0),
        (RAM, 1 << 70, 0),
        (1 << 70, PAGE, 0),
        (RAM, RAM_SIZE, RAM_SIZE),
    ],
)
def test_a_range_that_is_not_all_the_guests(ipa: int, size: int, taken: int) -> None:
    guest = made("normal")["y"]
    assert take(guest, ipa, size) == taken
    assert guest.domain.owned.total == RAM_SIZE - taken
    assert give(guest, ipa, size) == taken
    assert guest.domain.owned.total == RAM_SIZE


def test_a_domain_gets_no_more_than_it_was_made_with(world: World) -> None:
    guest = world["x"]
    assert give(guest, WINDOW, BLOCK) == 0
    take(guest, BUFFER, 3 * PAGE)
    assert give(guest, WINDOW, BLOCK) == 3 * PAGE
    assert reaches(guest, BUFFER) == [False, False]
    assert guest.dma(1, WINDOW + 2 * PAGE, b"s").ok


def test_tables_that_hold_nothing_go_back(world: World) -> None:
    guest, pages = world["x"], world.hypervisor.pages
    take(guest, BUFFER)
    left = pages.left
    for i in range(8):
        assert give(guest, WINDOW + i * BLOCK) == PAGE
        assert pages.left < left
        assert take(guest, WINDOW + i * BLOCK) == PAGE
        assert pages.left == left


def test_a_machine_without_a_page_for_a_table(world: World) -> None:
    guest, pages = world["x"], world.hypervisor.pages
    while pages.left:
        pages.allocate_some(pages.left, PAGE)
    assert take(guest, BUFFER) == 0
    assert reaches(guest, BUFFER) == [True, True]
    assert take(guest, RAM, BLOCK) == BLOCK, "a whole block needs no table"


def test_tables_are_capped() -> None:
    """A page in each block would take as much again for tables."""
    world = made("normal", Policy(p2m_tables=8))
    guest, pages = world["y"], world.hypervisor.pages
    take(guest, RAM + BLOCK, BLOCK)
    left = pages.left
    given = [give(guest, WINDOW + i * BLOCK) for i in range(64)]
    assert given == [PAGE] * 12 + [0] * 52
    assert left - pages.left == 2 * 12 * PAGE
    assert guest.dma(0, WINDOW + 11 * BLOCK, b"s").ok
    assert take(guest, RAM) == 0, "no table to cut the block with"
    assert guest.memory.read64(RAM) is not None


def test_hypercalls_are_capped() -> None:
    world = made("normal", Policy(hypercalls=2))
    guest, calls = world["y"], world.hypervisor.hypercalls
    jobs = [calls.decrease_reservation(guest.domain, RAM + i * PAGE, PAGE) for i in range(4)]
    assert [job.done for job in jobs] == [False, False, True, True]
    assert [world.hypervisor.wait(job) for job in jobs] == [PAGE, PAGE, 0, 0]


# What the physical SMMUs are sent.


def test_both_halves_on_every_smmu_of_the_domain(world: World) -> None:
    guest, vmid = world["x"], world["x"].domain.vmid
    take(guest, BUFFER)
    seen = {name: sent(guest, name) for name in "abc"}
    take(guest, BUFFER + 3 * PAGE, 35 * PAGE)
    for name in "ab":
        covered = [page for c in seen[name] if isinstance(c, CmdTlbiS2Ipa) for page in span(c)]
        assert covered == [BUFFER + i * PAGE for i in range(3, 38)]
        assert seen[name][-1] == CmdTlbiNhAll.build(vmid=vmid)
        assert all(c.vmid == vmid for c in seen[name])  # type: ignore[attr-defined]
        assert len(seen[name]) <= 4
    assert seen["c"] == []


def span(command: CmdTlbiS2Ipa) -> list[int]:
    pages = (command.num + 1) << command.scale if command.tg else 1
    return [command.addr + i * PAGE for i in range(pages)]


@pytest.mark.parametrize(("pages", "whole"), [(1, False), (32, False), (33, True)])
def test_without_ranges(pages: int, whole: bool) -> None:
    world = made(**NO_RIL)
    guest, vmid = world["x"], world["x"].domain.vmid
    take(guest, BUFFER)
    seen = sent(guest, "a")
    assert take(guest, BUFFER + PAGE, pages * PAGE) == pages * PAGE
    if whole:
        assert seen == [CmdTlbiS12Vmall.build(vmid=vmid)]
    else:
        at = [BUFFER + (i + 1) * PAGE for i in range(pages)]
        single = [CmdTlbiS2Ipa.build(vmid=vmid, addr=ipa, leaf=1) for ipa in at]
        assert seen == [*single, CmdTlbiNhAll.build(vmid=vmid)]


def test_a_sync_stands_between_stage_2_and_stage_1(world: World) -> None:
    """Else a walk could combine anew what one command dropped with what the other will."""
    guest = world["x"]
    batches: list[list[Command]] = []
    host = world.hypervisor.hosts["a"]
    original = host.submit

    def submit(owner: int, commands: list[Command], done: object = None, **watch: object) -> None:
        batches.append(list(commands))
        original(owner, commands, done, **watch)  # type: ignore[arg-type]

    host.submit = submit  # type: ignore[method-assign, assignment]
    take(guest, BUFFER)
    assert [{type(c) for c in batch} for batch in batches] == [{CmdTlbiS2Ipa}, {CmdTlbiNhAll}]


def test_one_step_changes_no_more_than_its_budget() -> None:
    world = made("normal", Policy(stage2_pages_per_step=8))
    guest, stage2 = world["x"], world["x"].domain.stage2
    sizes = []
    original = stage2.clear
    stage2.clear = lambda ipa, size, *, hitless: (  # type: ignore[method-assign]
        sizes.append(size), original(ipa, size, hitless=hitless)
    )[1]  # fmt: skip
    assert take(guest, BUFFER, 60 * PAGE) == 60 * PAGE
    assert sizes == [8 * PAGE] * 7 + [4 * PAGE]


# A block that is cut.


@pytest.mark.parametrize("bbml", [0, 1, 2])
def test_break_before_make(bbml: int) -> None:
    """Without BBML 2 no moment has a block and a table both in use; hypervisor accesses go on."""
    world = made(bbml=bbml)
    guest, hv = world["x"], world.hypervisor
    stage2, memory = guest.domain.stage2, world.memory
    _, slot, block = stage2._find(BUFFER)
    assert block & 3 == 1
    reach = Reach(world)
    job = hv.hypercalls.decrease_reservation(guest.domain, BUFFER, PAGE)
    reach.began(guest.domain, job)
    states, broken = [block], []
    neighbour = guest.ports[1]
    while not job.done:
        request = neighbour.write(BUFFER + PAGE, b"n")
        world.scheduler.step()
        word = memory.read64(slot)
        assert word is not None
        assert guest.memory.read64(BUFFER + PAGE) is not None
        if word != states[-1]:
            assert guest.memory.read64(BUFFER) is None
            states.append(word)
        while not request.done:
            neighbour.step(1)
            world.smmus["b"].eventq.step(8)
        broken.append(not request.ok)
    assert states[1:-1] == ([] if bbml == 2 else [0])
    assert states[-1] & 3 == 3
    assert any(broken) == (bbml < 2), "the window is there, and only where it has to be"
    assert world.scheduler.run_until_idle()
    assert reaches(guest, BUFFER + PAGE) == [True, True]
    assert guest.events() == []


def test_a_block_of_a_gigabyte() -> None:
    world = made("normal")
    stage2 = world["y"].domain.stage2
    stage2.map(1 << 38, 1 << 31, 1 << 30)
    change = stage2.clear((1 << 38) + 0x12_3000, PAGE, hitless=False)
    assert (change.ipa, change.size) == (1 << 38, 1 << 30)
    assert stage2.to_pa((1 << 38) + 0x12_3000) is None
    assert stage2.to_pa((1 << 38) + 0x12_4000) == (1 << 31) + 0x12_4000
    stage2.make()
    flat = {ipa + i for ipa, _, n in stage2.mappings() for i in range(0, n, PAGE)}
    whole = {(1 << 38) + i for i in range(0, 1 << 30, PAGE)}
    assert whole - flat == {(1 << 38) + 0x12_3000}


# One-line faults: what each of them lets through.


def without(kind: type[Command]) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        batches = Flush._batches

        def fewer(*args: object) -> list[list[Command]]:
            found = batches(*args)  # type: ignore[arg-type]
            return [[c for c in batch if not isinstance(c, kind)] for batch in found]

        monkeypatch.setattr(Flush, "_batches", fewer)

    return patch


def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(submissions):  # type: ignore[no-untyped-def]
        for submit in submissions:
            submit(None)
        yield True

    monkeypatch.setattr(flush, "completed", started)


def one_smmu(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Flush._hosts
    monkeypatch.setattr(Flush, "_hosts", lambda self, domain: hosts(self, domain)[:1])


def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page goes back before its invalidation."""
    stage2 = Flush.stage2

    def first(self: Flush, domain, change):  # type: ignore[no-untyped-def]
        for base, size in list(domain.owned):
            page = base + size - PAGE
            if page not in Reach.pages(domain):
                domain.owned.remove(page, PAGE)
                self.frames.release(page, PAGE)  # type: ignore[attr-defined]
        return (yield from stage2(self, domain, change))

    monkeypatch.setattr(Flush, "stage2", first)


@pytest.mark.parametrize(
    "fault",
    [without(CmdTlbiS2Ipa), without(CmdTlbiNhAll), no_sync, one_smmu, early],
    ids=["no S2_IPA", "no NH_ALL", "no CMD_SYNC", "one SMMU", "early"],
)
def test_the_judge_sees_a_fault(
    world: World, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = world["x"]
    reach = Reach(world)
    last = RAM + RAM_SIZE - PAGE
    assert reaches(guest, last) == [True, True]
    world.hypervisor.flush.frames = world.hypervisor.frames  # type: ignore[attr-defined]
    fault(monkeypatch)

    def changed() -> None:
        take(guest, last)
        reaches(guest, last)

    with pytest.raises(AssertionError, match=r"still has|gone"):
        changed()
    assert reach.accesses
