# SPDX-License-Identifier: BSD-2-Clause
"""A device's DMA, piece by piece."""

from __future__ import annotations

import re

import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu import DevicePort
from vsmmu.smmu.eventq import PENDING_EVENTS
from vsmmu.smmu.port import PENDING_REQUESTS

from .machine import NOWHERE, Machine

DATA = 0x8F00_0000


@pytest.fixture
def port(machine: Machine) -> DevicePort:
    root = machine.s1_stream(1)
    for i in range(4):
        machine.map(root, i * PAGE, DATA + (3 - i) * PAGE)
    machine.map(root, 5 * PAGE, NOWHERE)
    return DevicePort("nic0", machine.smmu, 1)


def test_pieces_go_where_their_pages_are(machine: Machine, port: DevicePort) -> None:
    data = bytes(range(256)) * 40
    write = port.write(0x800, data)
    read = port.read(0x800, len(data))
    assert (write.done, port.step(2), write.done) == (False, 2, False)
    assert machine.memory.read(DATA + 3 * PAGE + 0x800, 0x800) == data[:0x800]
    assert port.step(1) == 1
    assert write.done
    assert write.ok
    assert port.step(100) == 3
    assert read.data == data
    assert [o.pa for o in read.outcomes] == [DATA + 3 * PAGE + 0x800, DATA + 2 * PAGE, DATA + PAGE]
    assert port.step(1) == 0


def test_a_fault_is_data(machine: Machine, port: DevicePort) -> None:
    request = port.read(3 * PAGE + 0xFF8, 16)
    assert port.step(10) == 2
    assert request.done
    assert not request.ok
    assert [o.status for o in request.outcomes] == ["ok", "fault"]
    assert request.data == bytes(16)
    assert [e.name for e in machine.events()] == ["F_TRANSLATION"]


def test_nothing_behind_the_address(machine: Machine, port: DevicePort) -> None:
    """The bus aborts; the SMMU records nothing."""
    read, write = port.read(5 * PAGE, 8), port.write(5 * PAGE, b"12345678")
    port.step(10)
    for request in (read, write):
        assert [(o.status, o.pa) for o in request.outcomes] == [("abort", NOWHERE)]
        assert not request.ok
    assert machine.events() == []


def test_waits_while_no_event_could_be_kept(machine: Machine, port: DevicePort) -> None:
    for _ in range(PENDING_EVENTS + 2):
        port.read(1 << 30, 4)
    # A fault ends the turn, so that devices behind this one get theirs.
    assert [port.step(1000) for _ in range(PENDING_EVENTS)] == [1] * PENDING_EVENTS
    assert port.step(1000) == 0
    machine.smmu.eventq.step(1)
    assert port.step(1000) == 1
    machine.smmu.eventq.step(1000)
    assert port.step(1000) == 1
    assert machine.smmu.counters["event.dropped"] == 0


def test_requests_are_bounded(port: DevicePort) -> None:
    for _ in range(PENDING_REQUESTS):
        port.read(0, 1)
    with pytest.raises(BufferError, match=r"^nic0 has 256 DMA requests waiting$"):
        port.read(0, 1)


@pytest.mark.parametrize(("iova", "size"), [(0, 0), (-1, 4), ((1 << 64) - 1, 2)])
def test_what_is_no_range(port: DevicePort, iova: int, size: int) -> None:
    message = f"DMA of {size} bytes at {iova:#x} is no address range"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        port.read(iova, size)


def test_wide_streamid(machine: Machine) -> None:
    with pytest.raises(ValueError, match=r"^StreamID 0x100000000 has more than 32 bits$"):
        DevicePort("x", machine.smmu, 1 << 32)


def test_instruction_and_privilege_reach_the_smmu(machine: Machine) -> None:
    machine.s1_stream(1)
    port = DevicePort("npu", machine.smmu, 1)
    request = port.read(0, 4, instr=True, priv=True)
    port.step(1)
    event = request.outcomes[0].event
    assert event is not None
    assert (event.fields["ind"].of(event.words), event.fields["pnu"].of(event.words)) == (1, 1)


def test_a_device_without_a_room_goes_on_when_there_is_one(machine: Machine) -> None:
    """More devices fault at once than records can wait: each has its turn, and none sleeps."""
    ports = [DevicePort(f"nic{i}", machine.smmu, 1) for i in range(PENDING_EVENTS + 20)]
    machine.s1_stream(1)
    requests = [port.read(0, 8) for port in ports]
    for port in ports:
        machine.scheduler.add(port)
    assert machine.scheduler.run_until_idle()
    assert all(request.done for request in requests)
    assert machine.scheduler.awake == ()
