# SPDX-License-Identifier: BSD-2-Clause
"""Broadcast TLB invalidation by PEs (IHI 0070 §3.17.2): what each TLBI operation does to an SMMU.

CR2.E2H does not matter: an operation names its regime. ASET=1 spares an ASID's entries from
invalidation by ASID, alone or with a VA; global entries are dropped whatever their ASET, which is
allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vsmmu.arch.registers import Cr2
from vsmmu.smmu.commands import Unit, vmid_tag
from vsmmu.smmu.intent import Cause
from vsmmu.smmu.tlb import WORLD_E2H, WORLD_EL2
from vsmmu.smmu.transaction import VA_MASK

if TYPE_CHECKING:
    from vsmmu.smmu.intent import Intent

_PTM = Cr2.mask("ptm")[0]
# No CD has this ASID: what is left are the global entries.
_NO_ASID = 1 << 16
_Broadcast = Callable[[Unit, int, int, int, int, Cause], int]


def _is_private(unit: Unit, tag: int, asid: int) -> bool:
    """Whether an ASID is spared. With CR0.VMW the tag stands for others that may be shared."""
    return not unit.tlb.vmw and (tag, asid) in unit.private


def _bc_va(unit: Unit, tag: int, asid: int, first: int, last: int, cause: Cause) -> int:
    named = _NO_ASID if _is_private(unit, tag, asid) else asid
    return unit.tlb.invalidate_va(tag, named, first, last, cause=cause)


def _bc_asid(unit: Unit, tag: int, asid: int, first: int, last: int, cause: Cause) -> int:
    if _is_private(unit, tag, asid):
        return 0
    return unit.tlb.invalidate_asid(tag, asid, cause=cause)


def _bc_vaa(unit: Unit, tag: int, asid: int, first: int, last: int, cause: Cause) -> int:
    return unit.tlb.invalidate_va(tag, None, first, last, cause=cause)


def _bc_vmall(unit: Unit, tag: int, asid: int, first: int, last: int, cause: Cause) -> int:
    return unit.tlb.invalidate_vmid(tag, stage2=False, cause=cause)


def _bc_vmalls12(unit: Unit, tag: int, asid: int, first: int, last: int, cause: Cause) -> int:
    return unit.tlb.invalidate_vmid(tag, stage2=True, cause=cause)


def _bc_all(unit: Unit, tag: int, asid: int, first: int, last: int, cause: Cause) -> int:
    return unit.tlb.invalidate_all(cause=cause)


def _bc_ipa(unit: Unit, tag: int, asid: int, first: int, last: int, cause: Cause) -> int:
    return unit.tlb.invalidate_ipa(tag, first, last, cause=cause)


_EL1: dict[str, _Broadcast] = {
    "VAE1": _bc_va, "VALE1": _bc_va, "VAAE1": _bc_vaa, "VAALE1": _bc_vaa, "ASIDE1": _bc_asid,
    "VMALLE1": _bc_vmall,
}  # fmt: skip
_EL2: dict[str, _Broadcast] = {"VAE2": _bc_va, "VALE2": _bc_va, "ALLE2": _bc_vmall}
_STAGE2: dict[str, _Broadcast] = {
    "VMALLS12E1": _bc_vmalls12, "ALLE1": _bc_all, "IPAS2E1": _bc_ipa, "IPAS2LE1": _bc_ipa,
}  # fmt: skip
_EVERY_VMID = frozenset({"ALLE1"})


def broadcast(
    unit: Unit, op: str, vmid: int, asid: int, address: int, size: int, *, e2h: bool,
    intent: Intent | None = None,
) -> int:  # fmt: skip
    """Carry out an operation that a PE broadcast; see `Smmu.broadcast_tlbi`."""
    effect = _EL1.get(op) or _EL2.get(op) or _STAGE2.get(op)
    if effect is None:
        raise ValueError(f"TLBI {op} is not an operation of a Non-secure regime")
    features = unit.features
    if not features.idr0.btm or unit.regs["CR2"] & _PTM:
        return 0
    unit.count("btm." + op)
    cause = Cause(op, intent)
    first, last = address & VA_MASK, min((address & VA_MASK) + max(size, 1) - 1, VA_MASK)
    if op in _EL2 or (e2h and op in _EL1):
        return effect(unit, WORLD_E2H if e2h else WORLD_EL2, asid if e2h else 0, first, last, cause)
    if op in _EVERY_VMID:
        return effect(unit, 0, asid, first, last, cause)
    # Without stage 2 entries have VMID 0; with 8-bit VMIDs a wider one matches nothing.
    if vmid >> (16 if features.idr0.vmid16 else 8) or (vmid and not features.s2p):
        return 0
    return effect(unit, vmid_tag(unit, vmid), asid, first, last, cause)
