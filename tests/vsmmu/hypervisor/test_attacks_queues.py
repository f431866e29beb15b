# SPDX-License-Identifier: BSD-2-Clause
"""Attacks by the contents, places and indexes of queues, by registers and by floods."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdPrefetchConfig,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    Command,
)
from vsmmu.arch.registers import EventqProd, QueueBase

from .attack import (
    CMDQ_ERR,
    EVENTQ_ABT,
    SYNC,
    TLBI,
    UNMAPPED,
    line,
    post,
    records,
    settle,
)
from .world import BASE, BUFFER, NOWHERE, RAM, RAM_SIZE, World

# The rest of the corpus.


def test_a_queue_that_aborted_goes_on_where_it_is_told(guest):
    """CERROR_ABT: the guest points the queue at its RAM, acknowledges, and it is consumed."""
    guest.write("CR0", 0)
    good = guest.read("CMDQ_BASE")
    guest.write("CMDQ_BASE", QueueBase.build(addr=NOWHERE, log2size=8).raw)
    guest.write("CMDQ_PROD", 2)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 8)
    assert guest.read("CMDQ_CONS") == 2 << 24
    guest.write("CR0", 0)
    for i in range(2):
        guest.memory.write_words(guest.driver._cmdq.address(i), SYNC.words)
    guest.write("CMDQ_BASE", good)
    guest.write("CR0", 8)
    assert guest.read("CMDQ_CONS") & 0xFFFFF == 0, "toggling CMDQEN is no acknowledgement"
    guest.write("GERRORN", guest.read("GERROR"))
    assert guest.read("CMDQ_CONS") & 0xFFFFF == 2


def test_an_event_queue_that_aborted_goes_on_after_the_acknowledgement(world, guest):
    good = guest.read("EVENTQ_BASE")
    for base, acknowledge in ((QueueBase.build(addr=NOWHERE, log2size=4).raw, False), (good, True)):
        guest.write("CR0", 9)
        guest.write("EVENTQ_BASE", base)
        guest.write("EVENTQ_PROD", 0)
        guest.write("EVENTQ_CONS", 0)
        guest.write("CR0", 0xD)
        guest.dma(0, UNMAPPED, 4)
        assert guest.vsmmu.regs.gerror_active == EVENTQ_ABT
        assert guest.read("EVENTQ_PROD") == 0
        if acknowledge:
            guest.write("GERRORN", guest.read("GERROR"))
    guest.dma(1, UNMAPPED, 4)
    assert records(guest) == [(0x10, 1)]


def test_a_queue_half_inside_the_guests_memory(world, guest):
    """The ring's last entries are outside: what is inside is written, then the abort."""
    end = RAM + RAM_SIZE
    guest.write("CR0", 9)
    guest.write("EVENTQ_BASE", QueueBase.build(addr=end - 32, log2size=0).raw)
    guest.write("EVENTQ_PROD", 0)
    guest.write("EVENTQ_CONS", 0)
    guest.write("CR0", 0xD)
    for _ in range(3):
        guest.dma(0, UNMAPPED, 4)
    prod = EventqProd(guest.read("EVENTQ_PROD"))
    assert (prod.wr, prod.ovflg, guest.vsmmu.regs.gerror_active) == (1, 1, 0)
    assert guest.memory.read64(end - 32) == 0x10


def test_an_address_is_invalidated_alone(guest):
    """TLBI by VA: the neighbouring page stays cached."""
    tables = guest.driver.contexts[0].tables
    guest.map(0, 0x11000, BUFFER + 0x4000)
    for iova in (0x10000, 0x11000):
        assert guest.dma(0, iova, b"x").ok
    tables.unmap(0x10000, 0x2000)
    guest.put(CmdTlbiNhVa.build(asid=guest.driver.contexts[0].asid, addr=0x10000), SYNC)
    assert not guest.dma(0, 0x10000, b"x").ok
    assert guest.dma(0, 0x11000, b"x").ok, "still cached: nobody invalidated it"


def test_another_asid_is_not_invalidated(guest):
    guest.run(guest.driver.unmap(0, 0x20000, 0x1000))
    assert guest.dma(0, 0x10000, b"x").ok
    guest.driver.contexts[0].tables.unmap(0x10000, 0x1000)
    guest.put(CmdTlbiNhAsid.build(asid=guest.driver.contexts[1].asid), SYNC)
    assert guest.dma(0, 0x10000, b"x").ok
    guest.put(CmdTlbiNhAsid.build(asid=guest.driver.contexts[0].asid), SYNC)
    assert not guest.dma(0, 0x10000, b"x").ok


def test_a_guests_flush_does_not_touch_another_guests_entries(world, guest):
    other = world["o"].boot()
    other.attach(0)
    other.map(0, 0x10000, BUFFER)
    assert other.dma(0, 0x10000, b"x").ok
    other.driver.contexts[0].tables.unmap(0x10000, 0x1000)
    for vmid in (0, other.domain.vmid, guest.domain.vmid):
        guest.put(
            CmdTlbiNhAll.build(vmid=vmid),
            CmdTlbiNhAsid.build(vmid=vmid, asid=1),
            CmdTlbiNhVaa.build(vmid=vmid, addr=0x10000),
            Command((0x30, 0)),
            SYNC,
        )
    assert other.dma(0, 0x10000, b"x").ok, "its entry is still cached"


def test_a_substream_is_not_there(world, guest):
    guest.ports[0].read(0x10000, 4, ssid=7)
    settle(world)
    (record,) = records(guest)
    assert record == (0x08, 0)


def test_global_errors_raise_the_line_only_if_enabled(guest):
    guest.write("IRQ_CTRL", 4)
    guest.put(Command((0xFF, 0)))
    assert (guest.vsmmu.regs.gerror_active, line(guest)) == (CMDQ_ERR, False)
    guest.write("IRQ_CTRL", 1)
    assert line(guest)
    guest.memory.write_words(guest.driver._cmdq.address(guest.read("CMDQ_CONS")), SYNC.words)
    guest.write("GERRORN", guest.read("GERROR"))
    assert not line(guest)


def test_indexes_are_in_page_1(guest):
    """And at their page 0 aliases, which some drivers use; pages 2 and 3 are empty."""
    hv = guest.world.hypervisor
    guest.dma(0, UNMAPPED, 4)
    for offset, value in ((0x100A8, 1), (0xA8, 1), (0x200A8, 0), (0x300A8, 0), (0x100AC, 0)):
        assert hv.trap(guest.domain, BASE + offset, 4) == value, hex(offset)
    hv.trap(guest.domain, BASE + 0x200AC, 4, 1)
    assert guest.read("EVENTQ_CONS") == 0
    hv.trap(guest.domain, BASE + 0x100AC, 4, 1)
    assert guest.read("EVENTQ_CONS") == 1
    assert not line(guest)
    hv.trap(guest.domain, BASE + 0x100A8, 4, 9)
    assert guest.read("EVENTQ_PROD") == 1, "read-only while EVENTQEN is 1"
    assert hv.trap(guest.domain, BASE + 0x10020, 4) == 0, "no alias of page 0 in page 1"


def test_each_size_and_alignment_of_every_offset(guest):
    """No size but 4 and 8, aligned, changes or shows anything; none raises."""
    hv = guest.world.hypervisor
    before = dict(guest.vsmmu.regs.values)
    for offset in [*range(0x210), *range(0x100A0, 0x100D8), 0xFD0, 0xFFC, 0x3FFFF]:
        for size in (0, 1, 2, 3, 5, 6, 7, 16):
            assert hv.trap(guest.domain, BASE + offset, size) == 0
            assert hv.trap(guest.domain, BASE + offset, size, (1 << 128) - 1) == 0
        for size in (4, 8):
            if offset % size:
                assert hv.trap(guest.domain, BASE + offset, size) == 0
                assert hv.trap(guest.domain, BASE + offset, size, -1) == 0
    assert guest.vsmmu.regs.values == before


def test_a_write_wider_than_its_register_touches_two(guest):
    """64 bits over CR0 and CR0ACK: the second is read-only."""
    hv = guest.world.hypervisor
    hv.trap(guest.domain, BASE + 0x20, 8, 0xFFFF_FFFF_0000_000D)
    settle(guest.world)
    assert (guest.read("CR0"), guest.read("CR0ACK")) == (0xD, 0xD)


@pytest.mark.parametrize("log2size", [0, 1, 19, 31])
def test_a_queue_of_any_size(guest, log2size):
    """LOG2SIZE is capped at IDR1.CMDQS for use and read back as written."""
    guest.write("CR0", 5)
    base = guest.driver.heap.allocate(0x1000)
    guest.write("CMDQ_BASE", QueueBase.build(addr=base, log2size=log2size).raw)
    guest.write("CMDQ_PROD", 0)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 0xD)
    capped = min(log2size, 19)
    start = base & -(max(32, 16 << capped))
    for i in range(3):
        if not guest.memory.write_words(start + 16 * (i % (1 << capped)), SYNC.words):
            return
        guest.write("CMDQ_PROD", (i + 1) % (2 << capped))
        assert guest.read("CMDQ_CONS") == (i + 1) % (2 << capped)
    assert QueueBase(guest.read("CMDQ_BASE")).log2size == log2size


def test_a_long_queue_of_hints_is_worked_off_in_pieces(world, guest):
    """2^17 commands in one write of PROD: the trap returns, a victim's DMA goes on meanwhile."""
    other = world["o"].boot()
    other.attach(0)
    other.map(0, 0x10000, BUFFER)
    guest.write("CR0", 5)
    base = RAM + 0x20_0000
    guest.write("CMDQ_BASE", QueueBase.build(addr=base, log2size=17).raw)
    for i in range(0x20_0000 // 4096):
        guest.memory.write(base + 4096 * i, bytes(CmdPrefetchConfig.build()) * 256)
    guest.write("CMDQ_PROD", 0)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 0xD)
    guest.write("CMDQ_PROD", 1 << 17, rest=False)
    assert guest.read("CMDQ_CONS") == 0
    request = other.ports[0].write(0x10000, b"victim")
    world.scheduler.run(100)
    assert request.done
    assert guest.read("CMDQ_CONS") < 1000


def test_devices_that_only_fault_do_not_keep_others_from_their_turn():
    """Round robin, six faulting ports ahead of the victim's on one SMMU."""
    world = World({"g": [("b", 0x600 + i) for i in range(6)], "o": [("b", 0x700)]})
    guest, other = world["g"].boot(), world["o"].boot()
    other.attach(0)
    other.map(0, 0x10000, BUFFER)
    request = None
    for turn in range(5000):
        for port in guest.ports:
            while port.pending < 200:
                port.read(UNMAPPED, 4)
        world.scheduler.step()
        if turn == 500:
            # By now the SMMU's list of events is full.
            request = other.ports[0].write(0x10000, b"through")
        if request is not None and request.done:
            break
    assert request is not None
    assert request.ok
    assert other.memory.read(BUFFER, 7) == b"through"


@pytest.mark.parametrize("commands", [[SYNC], [TLBI, SYNC]])
def test_a_sync_with_nothing_before_it_waits_for_records_of_hardware(guest, commands):
    """§4.7.3: an access that was terminated has its record in the guest's queue by then."""
    world, eventq = guest.world, guest.world.smmus["a"].eventq
    world.scheduler.remove(eventq)
    request = guest.ports[0].read(UNMAPPED, 4)
    while not request.done:
        world.scheduler.step()
    prod = post(guest, *commands)
    assert world.scheduler.run_until_idle()
    assert (guest.read("CMDQ_CONS") == prod, records(guest)) == (False, [])
    world.scheduler.add(eventq)
    settle(world)
    assert guest.read("CMDQ_CONS") == prod
    assert records(guest) == [(0x10, 0)]
