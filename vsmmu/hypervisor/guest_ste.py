# SPDX-License-Identifier: BSD-2-Clause
"""Fetching a guest's STE (IHI 0070 §3.3.2, §5.1).

The guest's table is read through its stage 2 as the hardware would read it: linear or two-level,
with the guest's own SPLIT and LOG2SIZE, each 64-bit word once.
"""

from __future__ import annotations

from vsmmu.arch.events import CBadStreamid, Event, FSteFetch
from vsmmu.arch.registers import OAS_BITS, Idr5
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.hypervisor.domain import GuestMemory
from vsmmu.smmu.regfile import RegisterFile
from vsmmu.smmu.strtab import StreamTable


def fetch(regs: RegisterFile, sid: int, memory: GuestMemory) -> Ste | Event:
    """The STE of a StreamID, or the event that stands for it: C_BAD_STREAMID, F_STE_FETCH."""
    table = StreamTable.of(regs)
    if not table.covers(sid):
        return CBadStreamid.build()
    address = _level2(regs, table, sid, memory) if table.two_level else table.linear(sid)
    if isinstance(address, Event):
        return address
    words = memory.read_words(address, Ste.dwords)
    return Ste(words) if words is not None else _aborted(regs, address)


def _level2(regs: RegisterFile, table: StreamTable, sid: int, memory: GuestMemory) -> int | Event:
    slot = table.level1(sid)
    word = memory.read64(slot)
    if word is None:
        return _aborted(regs, slot)
    address = table.level2(sid, L1Std(word))
    return CBadStreamid.build() if address is None else address


def _aborted(regs: RegisterFile, address: int) -> Event:
    """F_STE_FETCH; FetchAddr[55:OAS] is RES0, by the guest's OAS (§7.3.4)."""
    oas = OAS_BITS[Idr5(regs["IDR5"]).oas]
    return FSteFetch.build(fetchaddr=address & (1 << oas) - 1)
