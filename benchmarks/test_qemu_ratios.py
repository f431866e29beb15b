# SPDX-License-Identifier: BSD-2-Clause
"""QEMU's SMMUv3 and this one on the same tables and addresses, measured in one run (`make bench`).

A `rocker` device moves 15 pages at a time; what the same costs with SMMUEN=0 is taken off, so that
translation is left. Time is processor time, QEMU's and this process', so that a busy machine does
not show. QEMU's TLB has 256 entries: addresses that come again after more pages than
that miss every time. Commands are read from one full queue.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vsmmu.arch.commands import CmdSync, CmdTlbiNhVa
from vsmmu.arch.context import Cd
from vsmmu.arch.registers import BY_NAME, Cr0, QueueBase, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import Memory
from vsmmu.smmu import Access, Features, Smmu

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.differential import qemu_machine

RAM, SIZE = qemu_machine.RAM, qemu_machine.RAM_SIZE
SLOT, SID = 7, 7 << 3
# The device's registers.
_ADDR, _SIZE, _CTRL, _CLEAR = 0x28, 0x30, 0x34, 1
PAGE, RUN = 4096, 15
MANY, FEW = 270, 1
TARGET = RAM + 0x180_0000
COMMANDS = 1 << 16
ROUNDS = 25


class Same:
    """Memory that both SMMUs see: one stream, stage 1 or nested, 4 levels each."""

    def __init__(self) -> None:
        self.memory = Memory([(RAM, SIZE)])
        self._next = RAM + 0x40_0000
        self.strtab, self.cd = self._page(64 * 256), self._page()
        self.queue = self._page(COMMANDS * 16)
        self.root1, self.root2 = self._page(), self._page()
        self.iovas = [(1 << 40) + (i * RUN << 12) for i in range(MANY)]
        for i, iova in enumerate(self.iovas):
            for page in range(RUN):
                self._map(self.root1, iova + (page << 12), self.target(i, page) | 0x743)
        for page in range(RAM, RAM + SIZE, PAGE):
            self._map(self.root2, page, page | 0x7FF)

    @staticmethod
    def target(run: int, page: int) -> int:
        return TARGET + (run * RUN % (1024 - RUN) + page << 12)

    def _page(self, size: int = PAGE) -> int:
        self._next = (self._next + size - 1) & -size
        self._next += size
        return self._next - size

    def _map(self, root: int, address: int, leaf: int) -> None:
        table = root
        for shift in (39, 30, 21):
            slot = table + 8 * (address >> shift & 511)
            entry = self.memory.read64(slot) or 0
            if not entry:
                entry = self._page() | 3
                self.memory.write64(slot, entry)
            table = entry & -PAGE
        self.memory.write64(table + 8 * (address >> 12 & 511), leaf)

    def configure(self, *, nested: bool) -> None:
        cd = Cd.build(v=1, aa64=1, a=1, r=1, t0sz=16, epd1=1, ips=4, asid=1, ttb0=self.root1)
        self.memory.write(self.cd, bytes(cd))
        fields = {"s2t0sz": 20, "s2sl0": 2, "s2ps": 4, "s2aa64": 1, "s2r": 1, "s2vmid": 1}
        fields = {**fields, "s2ttb": self.root2} if nested else {}
        ste = Ste.build(v=1, config=7 if nested else 5, s1ctxptr=self.cd, **fields)
        self.memory.write(self.strtab + 64 * SID, bytes(ste))

    def boot(self, write: Callable[[int, int, int], None], *, enabled: bool) -> None:
        for name, value in (
            ("CR0", 0),
            ("STRTAB_BASE", StrtabBase.build(addr=self.strtab).raw),
            ("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=8).raw),
            ("CMDQ_BASE", QueueBase.build(addr=self.queue, log2size=16).raw),
            ("CMDQ_PROD", 0),
            ("CMDQ_CONS", 0),
            ("CR0", Cr0.build(smmuen=enabled, cmdqen=1).raw),
        ):
            register = BY_NAME[name]
            write(register.offset, register.width // 8, value)

    def give(self, qemu: qemu_machine.Qemu) -> None:
        """All that was written, to QEMU's memory."""
        for frame in sorted(self.memory.page):
            data = self.memory.read(frame << 12, PAGE)
            assert data is not None
            qemu.write(frame << 12, data)

    def fill_queue(self) -> None:
        command = bytes(CmdTlbiNhVa.build(vmid=3, asid=1, addr=0x1000, leaf=1))
        self.memory.write(self.queue, command * (COMMANDS - 1) + bytes(CmdSync.build()))


@pytest.fixture(scope="module")
def same() -> Same:
    return Same()


@pytest.fixture(scope="module")
def qemu() -> Iterator[qemu_machine.Qemu]:
    binary = qemu_machine.find()
    if binary is None:
        pytest.skip(f"{qemu_machine.BINARY} is not installed")
    try:
        machine = qemu_machine.Qemu(binary, [f"rocker,addr={SLOT:#x},name=r"])
    except qemu_machine.QemuDied as error:
        pytest.skip(f"{binary} has no rocker device: {error}")
    yield machine
    machine.close()


def least(rounds: int, run: Callable[[], float]) -> float:
    return min(run() for _ in range(rounds))


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def dmas(bar: int, iovas: list[int]) -> list[str]:
    lines = [f"writel {bar + _SIZE:#x} {RUN * PAGE:#x}"]
    for iova in iovas:
        lines += [f"writeq {bar + _ADDR:#x} {iova:#x}", f"writel {bar + _CTRL:#x} {_CLEAR}"]
    return lines


@pytest.mark.parametrize("nested", [False, True], ids=["single stage", "nested"])
def test_translation(same: Same, qemu: qemu_machine.Qemu, nested: bool) -> None:
    same.configure(nested=nested)
    qemu.reset(1, [])
    bar = qemu.device(SLOT)
    same.give(qemu)
    plain = [same.target(i, 0) for i in range(MANY)]
    same.boot(qemu.mmio_write, enabled=True)
    pages = MANY * RUN
    last = same.target(MANY - 1, RUN - 1)
    qemu.write(last, b"not cleared")
    qemu.run(dmas(bar, same.iovas))
    assert qemu.read(last, 11) == bytes(11)
    runs = (("miss", same.iovas, plain), ("hit", same.iovas[:FEW] * MANY, plain[:FEW] * MANY))
    smmu = Smmu("smmu", same.memory, Features.default(sidsize=8))
    same.boot(smmu.mmio_write, enabled=True)
    for name, iovas, untranslated in runs:
        took = off = float("inf")
        for _ in range(ROUNDS):
            same.boot(qemu.mmio_write, enabled=False)
            off = min(off, qemu.run(dmas(bar, untranslated)))
            same.boot(qemu.mmio_write, enabled=True)
            took = min(took, qemu.run(dmas(bar, iovas)))
        theirs = (took - off) / pages * 1e9
        every = [iova + (page << 12) for iova in iovas for page in range(RUN)]
        accesses = [Access(SID, iova, True) for iova in every]
        smmu.tlb.capacity = 0 if name == "miss" else 8192
        smmu.tlb.invalidate_all()
        assert all(smmu.translate(access).status == "ok" for access in accesses[:RUN])

        def scalar(accesses: list[Access] = accesses) -> None:
            for access in accesses:
                smmu.translate(access)

        ours = least(5, lambda: timed(scalar)) / pages * 1e9
        many = np.tile(np.array(every, dtype=np.uint64), 64)
        found = smmu.translate_many(SID, many, write=True)
        assert found.status.max() == 0
        batch = least(
            5, lambda many=many: timed(lambda: smmu.translate_many(SID, many, write=True))
        )
        batch = batch / many.size * 1e9
        print(
            f"{'nested' if nested else 'single stage'} {name}: QEMU {theirs:.0f} ns a page; here "
            f"{ours:.0f} ns one by one ({ours / theirs:.1f} times QEMU's), "
            f"{batch:.0f} ns in a batch ({batch / theirs:.2f} times)"
        )


def test_commands(same: Same, qemu: qemu_machine.Qemu) -> None:
    same.fill_queue()
    qemu.reset(1, [])
    same.give(qemu)
    prod = BY_NAME["CMDQ_PROD"].offset
    same.boot(qemu.mmio_write, enabled=False)
    qemu.run([])
    start = qemu.cpu_seconds()
    qemu.mmio_write(prod, 4, COMMANDS)
    assert qemu.mmio_read(BY_NAME["CMDQ_CONS"].offset, 4) == COMMANDS
    theirs = (qemu.cpu_seconds() - start) / COMMANDS * 1e9
    smmu = Smmu("smmu", same.memory, Features.default(sidsize=8))
    same.boot(smmu.mmio_write, enabled=False)
    smmu.mmio_write(prod, 4, COMMANDS)

    def consume() -> None:
        while any(engine.step(4096) for engine in smmu.engines):
            pass

    ours = timed(consume) / COMMANDS * 1e9
    assert smmu.mmio_read(BY_NAME["CMDQ_CONS"].offset, 4) == COMMANDS
    print(f"a CMD_TLBI_NH_VA: QEMU {theirs:.0f} ns, here {ours:.0f} ns ({ours / theirs:.1f} times)")
