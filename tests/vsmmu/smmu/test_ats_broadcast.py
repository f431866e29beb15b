# SPDX-License-Identifier: BSD-2-Clause
"""Broadcast TLB invalidation by PEs (IHI 0070 §3.17.2, §6.3.12).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdCfgiCd
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.tlb import WORLD_E2H, WORLD_EL2
from vsmmu.smmu.translate import PRIVATE

from .machine import AF, RW_S2, Machine

BTM = Features.default().replace(btm=1, hyp=1)
DATA = 0x8F00_0000
NG = 1 << 11
UNPRIV = 1 << 6
BASE = Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw
# Streams: (ASID, ASET, VMID), nested with VMID 9, EL2.
STREAMS = {1: (1, 0, 0), 2: (2, 1, 0), 3: (1, 0, 5)}
NESTED, EL2 = 4, 5


class Broadcast(Machine):
    """Every stream has page 0 non-global and page 1 global, both in the TLB."""

    def __init__(self, features: Features = BTM, *, e2h: int = 0, ptm: int = 0) -> None:
        super().__init__(features)
        self.write("CR0", 0)
        self.write("CR2", Cr2.build(recinvsid=1, e2h=e2h, ptm=ptm).raw)
        self.write("CR0", BASE)
        for sid, (asid, aset, vmid) in STREAMS.items():
            if vmid and not features.s2p:
                continue
            root = self.pages()
            cd = self.cd(ttb0=root, asid=asid, aset=aset)
            self.ste(sid, config=5, s1ctxptr=cd, s2vmid=vmid)
            self.touch(sid)
        if features.s2p:
            root2 = self.s2_root()
            cd = self.cd(ttb0=self.pages(), asid=1, aset=0)
            self.ste(NESTED, config=7, s1ctxptr=cd, **self.s2_fields(root2, s2vmid=9))
            for page in range(cd & -(64 * PAGE), self._next + 64 * PAGE, PAGE):
                self.map(root2, page, page, flags=AF | RW_S2)
            for page in range(DATA, DATA + 2 * PAGE, PAGE):
                self.map(root2, page, page, flags=AF | RW_S2)
            for page in range(self._root1, self._root1 + 8 * PAGE, PAGE):
                self.map(root2, page, page, flags=AF | RW_S2)
            self.touch(NESTED)
        if features.hyp:
            cd = self.cd(ttb0=self.pages(), asid=1, aset=0)
            self.ste(EL2, config=5, s1ctxptr=cd, strw=2)
            self.touch(EL2)

    def pages(self) -> int:
        root = self._root1 = self.alloc(PAGE)
        for page, flags in ((0, NG), (1, 0)):
            self.map(root, page * PAGE, DATA + page * PAGE, flags=AF | UNPRIV | flags)
        return root

    def touch(self, sid: int) -> None:
        for page in range(2):
            outcome = self.go(sid, page * PAGE)
            assert outcome.status == "ok", (sid, outcome)

    def left(self) -> set[tuple[int, str]]:
        """(tag, "a<ASID>" or "global") of the stage 1 entries that are there, 2 for stage 2."""
        found = set()
        for held in self.smmu.tlb:
            if held.stage == 2:
                found.add((held.vmid, "s2"))
            else:
                found.add((held.vmid, "global" if held.asid is None else f"a{held.asid}"))
        return found


ALL = {
    (0, "a1"), (0, "a2"), (0, "global"), (5, "a1"), (5, "global"), (9, "a1"), (9, "global"),
    (9, "s2"), (WORLD_EL2, "global"),
}  # fmt: skip


def test_everything_is_there() -> None:
    assert Broadcast().left() == ALL


@pytest.mark.parametrize(
    ("op", "how", "dropped"),
    [
        ("VAE1", {"asid": 1}, {(0, "a1")}),
        ("VALE1", {"asid": 1}, {(0, "a1")}),
        ("VAE1", {"asid": 1, "address": PAGE}, {(0, "global")}),
        ("VAE1", {"asid": 1, "size": PAGE}, {(0, "a1")}),
        ("VAE1", {"asid": 1, "size": PAGE + 1}, {(0, "a1"), (0, "global")}),
        ("VAE1", {"asid": 1, "size": 2 * PAGE}, {(0, "a1"), (0, "global")}),
        ("VAE1", {"asid": 1, "vmid": 5}, {(5, "a1")}),
        ("VAE1", {"asid": 1, "vmid": 6}, set()),
        ("VAE1", {"asid": 3}, set()),
        # ASET=1.
        ("VAE1", {"asid": 2}, set()),
        ("VAE1", {"asid": 2, "address": PAGE}, {(0, "global")}),
        ("ASIDE1", {"asid": 2}, set()),
        ("ASIDE1", {"asid": 1}, {(0, "a1")}),
        ("VAAE1", {}, {(0, "a1"), (0, "a2")}),
        ("VAALE1", {"address": PAGE}, {(0, "global")}),
        ("VMALLE1", {}, {(0, "a1"), (0, "a2"), (0, "global")}),
        # A VMID has 16 bits: more names no EL2 regime.
        ("VMALLE1", {"vmid": WORLD_EL2}, set()),
        ("VMALLE1", {"vmid": 9}, {(9, "a1"), (9, "global")}),
        ("VMALLS12E1", {"vmid": 9}, {(9, "a1"), (9, "global"), (9, "s2")}),
        ("ALLE1", {}, ALL - {(WORLD_EL2, "global")}),
        # EL2.
        ("VAE2", {"size": 2 * PAGE}, {(WORLD_EL2, "global")}),
        ("ALLE2", {}, {(WORLD_EL2, "global")}),
        ("ALLE2", {"e2h": True}, set()),
        ("VMALLE1", {"e2h": True}, set()),
        ("ASIDE1", {"asid": 1, "e2h": True}, set()),
    ],
)
def test_what_each_drops(op: str, how: dict[str, int], dropped: set[tuple[int, str]]) -> None:
    """§3.17.2: ASET=1 is spared by VA and ASID alone; EL2 and EL2-E2H do not cross."""
    machine = Broadcast()
    before = len(machine.smmu.tlb)
    count = machine.smmu.broadcast_tlbi(op, **how)  # type: ignore[arg-type]
    assert ALL - machine.left() == dropped
    assert before - len(machine.smmu.tlb) == count


def test_ipas2_drops_stage2_alone() -> None:
    machine = Broadcast()
    before = [held for held in machine.smmu.tlb if held.stage == 2]
    assert machine.smmu.broadcast_tlbi("IPAS2E1", vmid=9, address=DATA) == 1
    assert machine.smmu.broadcast_tlbi("IPAS2LE1", vmid=9, size=1 << 40) == len(before) - 1
    assert ALL - machine.left() == {(9, "s2")}


@pytest.mark.parametrize(
    ("op", "how", "dropped"),
    [
        ("VAE2", {"asid": 1, "e2h": True}, {(WORLD_E2H, "a1")}),
        ("VAE1", {"asid": 1, "e2h": True}, {(WORLD_E2H, "a1")}),
        ("ASIDE1", {"asid": 1, "e2h": True}, {(WORLD_E2H, "a1")}),
        ("ALLE2", {"e2h": True}, {(WORLD_E2H, "a1"), (WORLD_E2H, "global")}),
        ("VMALLE1", {"e2h": True}, {(WORLD_E2H, "a1"), (WORLD_E2H, "global")}),
        ("ALLE2", {}, set()),
        ("VAE2", {}, set()),
    ],
)
def test_e2h(op: str, how: dict[str, int], dropped: set[tuple[int, str]]) -> None:
    machine = Broadcast(e2h=1)
    before = machine.left()
    machine.smmu.broadcast_tlbi(op, **how)  # type: ignore[arg-type]
    assert before - machine.left() == dropped


@pytest.mark.parametrize("how", ["no btm", "ptm"])
def test_ignored(how: str) -> None:
    """IDR0.BTM=0, or CR2.PTM=1."""
    features = BTM.replace(btm=0) if how == "no btm" else BTM
    machine = Broadcast(features, ptm=int(how == "ptm"))
    assert machine.smmu.broadcast_tlbi("ALLE1") == 0
    assert machine.left() == ALL


def test_without_stage2_only_vmid_0_matches() -> None:
    machine = Broadcast(Features.default(stages="1").replace(btm=1))
    assert machine.smmu.broadcast_tlbi("VMALLE1", vmid=5) == 0
    assert machine.smmu.broadcast_tlbi("VMALLE1", vmid=0) > 0


def test_8_bit_vmids() -> None:
    """IDR0.VMID16=0: the low 8 bits match if the others are 0."""
    machine = Broadcast(BTM.replace(vmid16=0))
    assert machine.smmu.broadcast_tlbi("VMALLE1", vmid=0x105) == 0
    assert machine.smmu.broadcast_tlbi("VMALLE1", vmid=5) > 0


@pytest.mark.parametrize(
    "features",
    [BTM, BTM.replace(vmid16=0), Features.default(stages="1").replace(btm=1)],
)
def test_alle1_takes_every_vmid(features: Features) -> None:
    """§3.17.2: ALLE1 has no VMID to match; the PE's own does not matter."""
    machine = Broadcast(features)
    assert machine.smmu.broadcast_tlbi("ALLE1", vmid=0x105) > 0
    assert machine.left() <= {(WORLD_EL2, "global")}


@pytest.mark.parametrize(("op", "vmid"), [("ASIDE1", 1), ("VAE1", 1), ("ASIDE1", 0)])
def test_vmw_reaches_what_is_not_private(op: str, vmid: int) -> None:
    """§3.17.2, §6.3.9 VMW: a VMID that stands for another one does not spare that one's ASIDs."""
    machine = Broadcast(BTM.replace(vmw=1))
    root = machine.pages()
    machine.ste(20, config=5, s1ctxptr=machine.cd(ttb0=root, asid=1, aset=1), s2vmid=1)
    machine.touch(20)
    machine.write("CR0", BASE | 1 << 6)
    machine.smmu.broadcast_tlbi(op, vmid=vmid, asid=1)
    assert (0, "a1") not in machine.left()


def test_vmw_applies() -> None:
    machine = Broadcast(BTM.replace(vmw=1))
    machine.write("CR0", BASE | 1 << 6)
    machine.smmu.broadcast_tlbi("VMALLE1", vmid=4)
    assert not {tag for tag, _ in machine.left()} & {4, 5}


def test_an_asid_that_stops_being_private_is_dropped() -> None:
    """ASET changes with its CD: what is used with ASET=0 reacts again."""
    machine = Broadcast()
    root = machine.pages()
    machine.ste(20, config=5, s1ctxptr=machine.cd(ttb0=root, asid=2, aset=0))
    machine.touch(20)
    assert machine.smmu.broadcast_tlbi("ASIDE1", asid=2) > 0


def test_entries_from_before_an_asid_was_private() -> None:
    """§5.4 ASET: a change does not reach what is cached; the shared entries still react."""
    machine = Broadcast()
    cd = machine.cd(ttb0=machine.pages(), asid=7, aset=0)
    machine.ste(20, config=5, s1ctxptr=cd)
    machine.touch(20)
    root = machine.pages()
    machine.cd(cd, ttb0=root, asid=7, aset=1)
    machine.command(CmdCfgiCd.build(sid=20, leaf=1))
    assert machine.go(20, PAGE).status == "ok"
    machine.smmu.broadcast_tlbi("ASIDE1", asid=7)
    assert (0, "a7") not in machine.left()


def test_unknown_operation() -> None:
    with pytest.raises(ValueError, match=r"^TLBI VAE3 is not an operation of a Non-secure regime$"):
        Broadcast().smmu.broadcast_tlbi("VAE3")


def test_too_many_private_asids_are_forgotten() -> None:
    """Which drops more, without a broadcast in between."""
    machine = Broadcast()
    machine.smmu.private.clear()
    machine.smmu.private.update((6, asid) for asid in range(PRIVATE))
    machine.touch(2)
    assert machine.smmu.private == {(0, 2)}
    machine.touch(2)
    assert machine.smmu.private == {(0, 2)}
