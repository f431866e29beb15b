# SPDX-License-Identifier: BSD-2-Clause
"""The register front end that a physical SMMU and a vSMMU share (IHI 0070 §6.2, §6.3).

Access widths, read-only registers, reserved bits, write guards, the CR0, IRQ_CTRL and GBPA
handshakes and the GERROR toggles are the same on both sides, so they are here once. What a write
sets in motion is the owner's business: it is told by `changed(name)`, after the value is in place.
Handshakes complete in the write itself, which §6.3.9 allows. Registers and fields of a feature
that the identification registers do not name are RES0 (§6.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.arch.feature_registers import (
    EVERY_REGISTER,
    PRI_PAGE0_ALIASES,
    PriqIrqCfg2,
    present,
)
from vsmmu.arch.registers import (
    CORESIGHT,
    PAGE0_ALIASES,
    CmdqCons,
    CmdqProd,
    Cr0,
    Cr2,
    EventqCons,
    EventqProd,
    Gbpa,
    Gerror,
    Idr0,
    Idr1,
    IrqCtrl,
    QueueBase,
    Register,
    StrtabBaseCfg,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NAMED = {r.offset: r for r in EVERY_REGISTER}
_ALIASES = {**PAGE0_ALIASES, **PRI_PAGE0_ALIASES}
_ACK = {"CR0": "CR0ACK", "IRQ_CTRL": "IRQ_CTRLACK"}
_GUARD: dict[str, tuple[str, int]] = {
    **{name: ("CR0", field.bits) for name, field in Cr0.fields.items()},
    **{name: ("IRQ_CTRL", field.bits) for name, field in IrqCtrl.fields.items()},
}

# Index registers: the *_BASE that says how many bits count, and the index field.
_INDEX = {
    "CMDQ_PROD": ("CMDQ_BASE", CmdqProd.mask("wr")[0]),
    "CMDQ_CONS": ("CMDQ_BASE", CmdqCons.mask("rd")[0]),
    "EVENTQ_PROD": ("EVENTQ_BASE", EventqProd.mask("wr")[0]),
    "EVENTQ_CONS": ("EVENTQ_BASE", EventqCons.mask("rd")[0]),
    "PRIQ_PROD": ("PRIQ_BASE", EventqProd.mask("wr")[0]),
    "PRIQ_CONS": ("PRIQ_BASE", EventqCons.mask("rd")[0]),
}


def register_at(offset: int) -> str:
    """The name of the register at an offset, or the offset itself where there is none."""
    offset = _ALIASES.get(offset, offset)
    reg = _NAMED.get(offset) or _NAMED.get(offset - 4)
    if reg is not None and offset - reg.offset < reg.width // 8:
        return reg.name
    return f"{offset:#x}"


def _field_masks(idr0: Idr0) -> dict[str, int]:
    """Bits that software can set, of the registers where that depends on features (§6.3).

    A field of a feature that is absent is RES0, and is never acknowledged.
    """
    have = {
        "CR0": (Cr0, ["smmuen", "eventqen", "cmdqen"]),
        "CR2": (Cr2, ["recinvsid"]),
        "IRQ_CTRL": (IrqCtrl, ["gerror_irqen", "eventq_irqen"]),
        "STRTAB_BASE_CFG": (StrtabBaseCfg, ["log2size"]),
        "PRIQ_IRQ_CFG2": (PriqIrqCfg2, ["lo"]),
    }
    optional = (
        (idr0.pri, "CR0", ["priqen"]), (idr0.pri, "IRQ_CTRL", ["priq_irqen"]),
        (idr0.ats, "CR0", ["atschk"]), (idr0.vmw, "CR0", ["vmw"]),
        (idr0.hyp, "CR2", ["e2h"]), (idr0.btm, "CR2", ["ptm"]),
        (idr0.atsrecerr, "CR2", ["rec_cfg_ats"]),
        (idr0.st_level, "STRTAB_BASE_CFG", ["split", "fmt"]),
        (idr0.msi, "PRIQ_IRQ_CFG2", ["memattr", "sh"]),
    )  # fmt: skip
    for there, name, fields in optional:
        if there:
            have[name][1].extend(fields)
    return {name: layout.mask(*fields)[0] for name, (layout, fields) in have.items()}


class RegisterFile:
    """Values of the registers by name, with the architected access rules.

    Args:
        ids: values of IDR0..IDR5, IIDR, AIDR by name, which say what exists; others read 0.
        changed: called with a register's name after a write took effect.
        page0_alias: whether EVENTQ_PROD, EVENTQ_CONS, PRIQ_PROD and PRIQ_CONS answer at their
            page 0 offsets too, which some drivers need; the architecture leaves it open (§6.2).
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        changed: Callable[[str], None],
        *,
        page0_alias: bool = True,
    ) -> None:
        registers = present(ids)
        idr0, idr1 = Idr0(ids.get("IDR0", 0)), Idr1(ids.get("IDR1", 0))
        self.values = {r.name: ids.get(r.name, 0) for r in registers}
        self.values["GBPA"] = Gbpa.build(shcfg=1).raw
        self._changed = changed
        self._layouts = {r.name: r.layout for r in registers}
        # *_IRQ_CFGn have a place, and hold nothing, without IDR0.MSI (§6.3.21).
        served = [r for r in registers if idr0.msi or "msi" not in r.needs]
        self._by_offset = {r.offset: r for r in served}
        self._aliases: Mapping[int, int] = {}
        if page0_alias:
            self._aliases = _ALIASES if idr0.pri else PAGE0_ALIASES
        self._masks = {r.name: r.layout.claimed[0] for r in served} | _field_masks(idr0)
        self._max_log2 = {
            "CMDQ_BASE": idr1.cmdqs,
            "EVENTQ_BASE": idr1.eventqs,
            "PRIQ_BASE": idr1.priqs,
        }

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
        reg = self._by_offset.get(self._aliases.get(offset, offset))
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
        reg = self._by_offset.get(offset)
        if reg is not None:
            self._store(reg, self.values[reg.name] >> 32 << 32 | value)
            return
        low = self._by_offset.get(offset - 4)
        if low is not None and low.width == 64:
            self._store(low, value << 32 | self.values[low.name] & 0xFFFF_FFFF)

    def _read32(self, offset: int) -> int:
        offset = self._aliases.get(offset, offset)
        reg = self._by_offset.get(offset)
        if reg is not None:
            return self._visible(reg.name) & 0xFFFF_FFFF
        low = self._by_offset.get(offset - 4)
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
        self.values[name] = self._layouts[name](self.values[name]).replace(**fields).raw

    def fields(self, name: str) -> Mapping[str, int]:
        """A register's fields by name."""
        layout = self._layouts[name]
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
        value = self._unguarded(reg, value & self._masks[reg.name])
        if reg.name in _ACK:
            self.values[reg.name] = self.values[_ACK[reg.name]] = value
        elif reg.name == "GBPA":
            update = Gbpa.mask("update")[0]
            if not value & update or self.values["GBPA"] & update:
                return
            self.values["GBPA"] = value & ~update
        else:
            self.values[reg.name] = value
        self._changed(reg.name)
