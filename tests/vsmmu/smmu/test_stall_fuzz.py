# SPDX-License-Identifier: BSD-2-Clause
"""With every feature, no structure, command, register write or DMA raises or takes endless room."""

from __future__ import annotations

from random import Random

import pytest

from vsmmu.arch.commands import OPCODES
from vsmmu.arch.context import Cd
from vsmmu.arch.registers import BY_NAME
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, DevicePort, Features
from vsmmu.smmu.ats import ATC_ENTRIES, PENDING_INVALIDATIONS, AtsPort, TranslationRequest
from vsmmu.smmu.pri import PENDING_REQUESTS

from .machine import AF, RW_S2, Machine

FEATURES = Features.everything().replace(sidsize=16, stall_max=3)
OPS = ("VAE1", "ASIDE1", "VAAE1", "VMALLE1", "VMALLS12E1", "ALLE1", "IPAS2E1", "VAE2", "ALLE2")
OFFSETS = sorted(r.offset for r in BY_NAME.values())


class Fuzzed:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        model = self.random.choice([0, 2])
        self.machine = machine = Machine(
            FEATURES.replace(stall_model=model), eventq_log2=self.random.randrange(3)
        )
        machine.write("CR0", 0)
        machine.smmu.regs["CR2"] = self.random.randrange(16)
        machine.write("CR0", 0b11111)
        self.root2 = machine.s2_root()
        for page in range(16):
            machine.map(self.root2, page * PAGE, 0x8F00_0000 + page * PAGE, flags=AF | RW_S2)
        self.cds = machine.alloc(64 * 16)
        for sid in range(6):
            machine.cd(self.cds + 64 * sid, ttb0=self.root2, s=1, asid=sid)
            self.ste(sid)
        self.ports: list[DevicePort] = [
            DevicePort(f"d{sid}", machine.smmu, sid, may_stall=bool(sid % 3)) for sid in range(6)
        ]
        self.ports += [AtsPort(f"e{sid}", machine.smmu, sid, pages=bool(sid % 2)) for sid in (1, 2)]
        for port in self.ports:
            machine.scheduler.add(port)

    def ste(self, sid: int) -> None:
        random = self.random
        fields = self.machine.s2_fields(
            self.root2, s2s=random.randrange(2), eats=random.randrange(4), mev=random.randrange(2),
            s1cdmax=random.choice([0, 0, 2]), s1dss=random.randrange(3), ppar=random.randrange(2),
        )  # fmt: skip
        config = random.choice([0, 4, 5, 6, 7])
        self.machine.ste(sid, config=config, s1ctxptr=self.cds, **fields)

    def step(self) -> None:
        random, machine = self.random, self.machine
        kind = random.randrange(9)
        if kind == 0:
            layout = OPCODES[random.choice(sorted(OPCODES))]
            words = [random.getrandbits(64) & random.getrandbits(64) for _ in range(2)]
            command = layout(tuple(words)).replace(op=layout.opcode)
            small = {"sid": random.randrange(8), "stag": random.randrange(4), "ssec": 0}
            command = command.replace(**{k: v for k, v in small.items() if k in layout.fields})
            machine.post(command)
        elif kind < 4:
            port = random.choice(self.ports)
            ssid = random.choice([None, None, 0, 1, 9])
            if port.pending < 20:
                port.read(random.randrange(40) * PAGE, random.randrange(1, 6000), ssid=ssid,
                          priv=bool(ssid), instr=random.random() < 0.2)  # fmt: skip
        elif kind == 4:
            size = random.choice([Ste, Cd])
            base = machine.strtab if size is Ste else self.cds
            place = base + 8 * random.randrange(48)
            machine.memory.write64(place, random.getrandbits(64) & random.getrandbits(64))
        elif kind == 5:
            self.ste(random.randrange(6))
            request = TranslationRequest(
                random.randrange(-1, 9), random.getrandbits(random.choice([20, 70])), None,
                random.random() < 0.5, random.random() < 0.5, random.random() < 0.5,
            )  # fmt: skip
            machine.smmu.ats.request(request)
        elif kind == 6:
            machine.smmu.translated(Access(random.randrange(9), random.getrandbits(66), True))
            machine.smmu.broadcast_tlbi(
                random.choice(OPS), vmid=random.getrandbits(17), asid=random.getrandbits(17),
                address=random.getrandbits(66), size=random.getrandbits(random.choice([1, 66])),
                e2h=random.random() < 0.5,
            )  # fmt: skip
        elif kind == 7:
            machine.write("GERRORN", machine.read("GERROR"))
            machine.smmu.mmio_write(random.choice(OFFSETS), 4, random.getrandbits(32))
            machine.write("CR0", random.choice([0b11111, 0b11111, 0b11110, 0b11011, 0b01101]))
        else:
            machine.events()

    def check(self) -> None:
        smmu = self.machine.smmu
        assert len(smmu.stalls) <= len(self.ports)
        assert smmu.stalls.unwritten <= 3
        assert len(smmu.ats._sent) <= PENDING_INVALIDATIONS
        assert len(smmu.priq._pending) <= PENDING_REQUESTS
        for port in self.ports:
            if isinstance(port, AtsPort):
                assert len(port.atc) <= ATC_ENTRIES


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed: int) -> None:
    fuzzed = Fuzzed(seed)
    for _ in range(150):
        fuzzed.step()
        for _ in range(fuzzed.random.randrange(6)):
            fuzzed.machine.scheduler.step()
    fuzzed.check()
    fuzzed.machine.write("CR0", 0)
    fuzzed.machine.write("GBPA", 1 << 31 | 1 << 20)
    assert fuzzed.machine.scheduler.run_until_idle()
    waiting = [p for p in fuzzed.ports if p.pending and not isinstance(p, AtsPort)]
    assert waiting == []
    assert len(fuzzed.machine.smmu.stalls) == 0
