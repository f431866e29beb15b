# SPDX-License-Identifier: BSD-2-Clause
"""The register front end that a physical SMMU and a vSMMU share (IHI 0070 §6.2, §6.3).

Access widths, read-only registers, reserved bits, write guards, the CR0, IRQ_CTRL and GBPA
handshakes and the GERROR toggles are the same on both sides, so they are here once. What a write
sets in motion is the owner's business: it is told by `changed(name)`, after the value is in place.
Handshakes complete in the write itself, which §6.3.9 allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.arch.registers import (
    BY_NAME,
    CORESIGHT,
    PAGE0_ALIASES,
    REGISTERS,
    CmdqCons,
    CmdqProd,
    Cr0,
    EventqCons,
    EventqProd,
    Gbpa,
    Gerror,
    Idr0,
    Idr1,
    IrqCtrl,
    QueueBase,
    Register,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BY_OFFSET = {r.offset: r for r in REGISTERS}
_ACK = {"CR0": "CR0ACK", "IRQ_CTRL": "IRQ_CTRLACK"}
_GUARD: dict[str, tuple[str, int]] = {
    **{name: ("CR0", field.bits) for name, field in Cr0.fields.items()},
    **{name: ("IRQ_CTRL", field.bits) for name, field in IrqCtrl.fields.items()},
}
_MSI = frozenset(n for n in BY_NAME if "_IRQ_CFG" in n)

# Index registers: the *_BASE that says how many bits count, and the index field.
_INDEX = {
    "CMDQ_PROD": ("CMDQ_BASE", CmdqProd.mask("wr")[0]),
    "CMDQ_CONS": ("CMDQ_BASE", CmdqCons.mask("rd")[0]),
    "EVENTQ_PROD": ("EVENTQ_BASE", EventqProd.mask("wr")[0]),
    "EVENTQ_CONS": ("EVENTQ_BASE", EventqCons.mask("rd")[0]),
}


def register_at(offset: int) -> str:
    """The name of the register at an offset, or the offset itself where there is none."""
    offset = PAGE0_ALIASES.get(offset, offset)
    reg = _BY_OFFSET.get(offset) or _BY_OFFSET.get(offset - 4)
    if reg is not None and offset - reg.offset < reg.width // 8:
        return reg.name
    return f"{offset:#x}"


class RegisterFile:
    """Values of the registers by name, with the architected access rules.

    Args:
        ids: values of IDR0..IDR5, IIDR, AIDR by name; others read 0.
        changed: called with a register's name after a write took effect.
        page0_alias: whether EVENTQ_PROD and EVENTQ_CONS answer at their page 0 offsets too, which
            some drivers need; the architecture leaves it open (§6.2).
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        changed: Callable[[str], None],
        *,
        page0_alias: bool = True,
    ) -> None:
        self.values = {r.name: ids.get(r.name, 0) for r in REGISTERS}
        self.values["GBPA"] = Gbpa.build(shcfg=1).raw
        self._changed = changed
        self._aliases = PAGE0_ALIASES if page0_alias else {}
        idr0 = Idr0(self.values["IDR0"])
        self._cr0_mask = Cr0.mask("smmuen", "eventqen", "cmdqen")[0]
        self._irq_mask = IrqCtrl.mask("gerror_irqen", "eventq_irqen")[0]
        if idr0.pri:
            self._cr0_mask |= Cr0.mask("priqen")[0]
            self._irq_mask |= IrqCtrl.mask("priq_irqen")[0]
        if idr0.ats:
            self._cr0_mask |= Cr0.mask("atschk")[0]
        if idr0.vmw:
            self._cr0_mask |= Cr0.mask("vmw")[0]
        self._msi = bool(idr0.msi)
        idr1 = Idr1(self.values["IDR1"])
        self._max_log2 = {"CMDQ_BASE": idr1.cmdqs, "EVENTQ_BASE": idr1.eventqs}

    # What software sees.

    def read(self, offset: int, size: int) -> int:
        """The value at an offset; 0 for an unknown offset, a wrong width or alignment (§6.2)."""
        if size not in (4, 8) or offset % size:
            return 0
        if size == 8:
            return self._read32(offset) | self._read32(offset + 4) << 32
        return self._read32(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store at an offset. Ignored: an unknown place, a wrong width, a guarded register."""
        if size not in (4, 8) or offset % size:
            return
        value &= (1 << (8 * size)) - 1
        reg = _BY_OFFSET.get(self._aliases.get(offset, offset))
        if size == 4:
            self._write32(offset, value)
        elif reg is not None and reg.width == 64:
            self._store(reg, value)
        else:
            # Two 32-bit registers in one access: both written, in the order of their offsets.
            self._write32(offset, value & 0xFFFF_FFFF)
            self._write32(offset + 4, value >> 32)

    def _write32(self, offset: int, value: int) -> None:
        offset = self._aliases.get(offset, offset)
        reg = _BY_OFFSET.get(offset)
        if reg is not None:
            self._store(reg, self.values[reg.name] >> 32 << 32 | value)
            return
        low = _BY_OFFSET.get(offset - 4)
        if low is not None and low.width == 64:
            self._store(low, value << 32 | self.values[low.name] & 0xFFFF_FFFF)

    def _read32(self, offset: int) -> int:
        offset = self._aliases.get(offset, offset)
        reg = _BY_OFFSET.get(offset)
        if reg is not None:
            return self._visible(reg.name) & 0xFFFF_FFFF
        low = _BY_OFFSET.get(offset - 4)
        if low is not None and low.width == 64:
            return self.values[low.name] >> 32
        return CORESIGHT.get(offset, 0)

    def _visible(self, name: str) -> int:
        """A register as software reads it: index bits above the wrap bit are zero (§6.3.27)."""
        value = self.values[name]
        if name not in _INDEX:
            return value
        base, index = _INDEX[name]
        log2size = min(QueueBase.log2size.of((self.values[base],)), self._max_log2[base])
        return value & (~index | (2 << log2size) - 1)

    # What the SMMU itself sees and sets.

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def __setitem__(self, name: str, value: int) -> None:
        self.values[name] = value

    @property
    def cr0(self) -> Cr0:
        """The acknowledged enables, which are what acts."""
        return Cr0(self.values["CR0ACK"])

    @property
    def gerror_active(self) -> int:
        """GERROR bits that software has not acknowledged."""
        return (self.values["GERROR"] ^ self.values["GERRORN"]) & Gerror.claimed[0]

    def raise_gerror(self, field: str) -> bool:
        """Activate an error; False when it was active already, and then nothing changes."""
        mask = Gerror.mask(field)[0]
        if self.gerror_active & mask:
            return False
        self.values["GERROR"] ^= mask
        return True

    def set_fields(self, name: str, **fields: int) -> None:
        """Change fields of a register from the SMMU's side, without guards."""
        self.values[name] = BY_NAME[name].layout(self.values[name]).replace(**fields).raw

    def fields(self, name: str) -> Mapping[str, int]:
        """A register's fields by name."""
        layout = BY_NAME[name].layout
        return {f: field.of((self.values[name],)) for f, field in layout.fields.items()}

    def _guarded(self, guard: tuple[str, ...]) -> bool:
        for field in guard:
            name, mask = _GUARD[field]
            if (self.values[name] | self.values[_ACK[name]]) & mask:
                return True
        return False

    def _unguarded(self, reg: Register, value: int) -> int:
        """The value to store: fields whose own guard is set keep what they have."""
        for fields, guard in reg.field_guards:
            if self._guarded(guard):
                mask = reg.layout.mask(*fields)[0]
                value = value & ~mask | self.values[reg.name] & mask
        return value

    def _store(self, reg: Register, value: int) -> None:
        if not reg.writable or self._guarded(reg.guard):
            return
        if reg.name in _MSI and not self._msi:
            return
        value = self._unguarded(reg, value & reg.layout.claimed[0])
        if reg.name == "CR0":
            self.values["CR0"] = self.values["CR0ACK"] = value & self._cr0_mask
        elif reg.name == "IRQ_CTRL":
            self.values["IRQ_CTRL"] = self.values["IRQ_CTRLACK"] = value & self._irq_mask
        elif reg.name == "GBPA":
            update = Gbpa.mask("update")[0]
            if not value & update or self.values["GBPA"] & update:
                return
            self.values["GBPA"] = value & ~update
        else:
            self.values[reg.name] = value
        self._changed(reg.name)
