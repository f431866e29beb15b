# SPDX-License-Identifier: BSD-2-Clause
"""Costs as ratios to a bare loop over the same data, measured in one run (`make bench`).

Each group has a floor: what plain Python needs for the least of the same work.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdSync, CmdTlbiNhVa, Cs
from vsmmu.arch.context import Cd
from vsmmu.arch.pagetable import G4K
from vsmmu.arch.registers import BY_NAME, Cr0, QueueBase, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import Ste
from vsmmu.hypervisor.pages import PageAllocator
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import Memory
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access

BASE = 0x40000000
ACCESSES = 2000


def _write(smmu: Smmu, name: str, value: int) -> None:
    register = BY_NAME[name]
    smmu.mmio_write(register.offset, register.width // 8, value)


def _nested(caching: str) -> tuple[Smmu, Memory, list[int]]:
    """An SMMU with StreamID 0 nested: 1:1 stage 2, `ACCESSES` pages mapped in stage 1."""
    memory = Memory([(BASE, 0x1000_0000)])
    pages = PageAllocator(memory.regions)
    smmu = Smmu("smmu", memory, Features.default(sidsize=8), caching=caching)
    stage2 = Stage2(memory, pages, ipa_bits=40, oas=5)
    stage2.map(BASE, BASE, 0x1000_0000)
    cd, strtab = pages.allocate(4096), pages.allocate(64 << 8, 64 << 8)
    tables = [pages.allocate(4096) for _ in range(3)]
    iovas = []
    for page in range(ACCESSES):
        iova = 0x1000_0000 + page * 4096
        if page % 512 == 0:
            leaf_table = pages.allocate(4096)
            memory.write64(tables[2] + 8 * (iova >> 21 & 511), leaf_table | 3)
        target = pages.allocate(4096)
        memory.write64(leaf_table + 8 * (iova >> 12 & 511), target | 0xF43)
        iovas.append(iova)
    memory.write64(tables[0], tables[1] | 3)
    memory.write64(tables[1], tables[2] | 3)
    words = Cd.build(t0sz=16, epd1=1, v=1, aa64=1, r=1, a=1, ips=5, asid=1, ttb0=tables[0])
    memory.write_words(cd, words.words)
    ste = Ste.build(v=1, config=7, s1ctxptr=cd, s2vmid=1, **stage2.ste_fields)
    memory.write_words(strtab, ste.words)
    _write(smmu, "STRTAB_BASE", StrtabBase.build(addr=strtab).raw)
    _write(smmu, "STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=8).raw)
    _write(smmu, "CR0", Cr0.build(smmuen=1).raw)
    assert smmu.translate(Access(0, iovas[0], False)).status == "ok"
    return smmu, memory, iovas


@pytest.mark.benchmark(group="a translation that the TLB has")
def test_floor_dict_in_a_method(benchmark):
    class Box:
        def __init__(self, items: dict[int, int]) -> None:
            self.items = items

        def get(self, key: int) -> int | None:
            return self.items.get(key)

    _, _, iovas = _nested("normal")
    box = Box({iova >> 12: iova for iova in iovas})
    benchmark(lambda: [box.get(iova >> 12) for iova in iovas])


@pytest.mark.benchmark(group="a translation that the TLB has")
def test_hit(benchmark):
    smmu, _, iovas = _nested("normal")
    accesses = [Access(0, iova, False) for iova in iovas]
    benchmark(lambda: [smmu.translate(access) for access in accesses])


@pytest.mark.benchmark(group="a nested translation from memory")
def test_floor_reads_alone(benchmark):
    """The descriptor reads of a nested 4-level walk with a 2 MiB stage 2: 4 x 2 + 4 + 2."""
    _, memory, iovas = _nested("none")
    read = memory.read64
    benchmark(lambda: [[read(BASE + 8 * (i & 511)) for i in range(14)] for _ in iovas])


@pytest.mark.benchmark(group="a nested translation from memory")
def test_miss(benchmark):
    smmu, _, iovas = _nested("none")
    accesses = [Access(0, iova, False) for iova in iovas]
    assert G4K.start_level(48) == 0
    benchmark(lambda: [smmu.translate(access) for access in accesses])


@pytest.mark.benchmark(group="commands")
def test_floor_decode(benchmark):
    _, memory, _ = _nested("normal")
    benchmark(lambda: [memory.read_words(BASE, 2)[0] & 0xFF for _ in range(ACCESSES)])


@pytest.mark.benchmark(group="commands")
def test_consume(benchmark):
    smmu, memory, _ = _nested("normal")
    queue = BASE + 0x0F00_0000
    command = CmdTlbiNhVa.build(vmid=1, asid=1, addr=0x1000, leaf=1)
    for i in range(2047):
        memory.write_words(queue + 16 * i, command.words)
    memory.write_words(queue + 16 * 2047, CmdSync.build(cs=Cs.NONE).words)
    _write(smmu, "CMDQ_BASE", QueueBase.build(addr=queue, log2size=11).raw)
    _write(smmu, "CR0", Cr0.build(smmuen=1, cmdqen=1).raw)
    prod = 0

    def run() -> None:
        nonlocal prod
        prod = (prod + 2048) & 0xFFF
        _write(smmu, "CMDQ_PROD", prod)
        while sum(engine.step(4096) for engine in smmu.engines):
            pass

    benchmark(run)
