# SPDX-License-Identifier: BSD-2-Clause
"""A vMasterID map as JSON, schema `vsmmu.bindings/1`: written, and read back member by member."""

from __future__ import annotations

from typing import Any

from dt_tools.binding import (
    MAX_VMASTER_IDS,
    SCHEMA,
    Binding,
    Bindings,
    DeviceBinding,
    Dropped,
    GuestInterrupt,
    MappedReg,
    Notice,
    Viommu,
)
from dt_tools.errors import UserError


def written(bindings: Bindings) -> dict[str, Any]:
    """The map as JSON values: numbers as hex strings, ids of the guest as numbers."""
    viommu, several = bindings.viommu, bool(bindings.viommus)
    return {
        "schema": SCHEMA,
        "guest": bindings.guest,
        "viommu": None if viommu is None else _viommu(viommu),
        "viommus": [{"smmu": v.smmu, **_viommu(v)} for v in bindings.viommus],
        "bindings": [_binding(entry, several) for entry in bindings.entries],
        "retired": [_binding(entry, several) for entry in bindings.retired],
        "devices": [_device(device) for device in bindings.devices],
        "notices": [
            {"rule": n.rule, "path": n.path, "message": n.message} for n in bindings.notices
        ],
    }


def _viommu(viommu: Viommu) -> dict[str, Any]:
    return {
        "base": f"{viommu.base:#x}",
        "size": f"{viommu.size:#x}",
        "spi": viommu.spi,
        "phandle": f"{viommu.phandle:#x}",
    }


def _binding(entry: Binding, several: bool) -> dict[str, Any]:
    """`several`: the guest has a vSMMU for each SMMU, and the id is one of `viommu`'s."""
    return {
        **({"viommu": entry.viommu} if several else {}),
        "vmaster_id": entry.vmaster_id,
        "smmu": entry.smmu,
        "smmu_base": f"{entry.smmu_base:#x}",
        "pmaster_id": f"{entry.pmaster_id:#x}",
        "devices": list(entry.devices),
    }


def _device(device: DeviceBinding) -> dict[str, Any]:
    return {
        "path": device.path,
        "guest_path": device.guest_path,
        "vmaster_ids": list(device.vmaster_ids),
        "regs": [
            {"host": f"{r.host:#x}", "guest": f"{r.guest:#x}", "size": f"{r.size:#x}"}
            for r in device.regs
        ],
        "interrupts": [{"number": i.number, "flags": i.flags} for i in device.interrupts],
        "dropped": [{"property": d.property, "reason": d.reason} for d in device.dropped],
    }


class _Reader:
    """Checks JSON values member by member; `source` names the file in messages."""

    def __init__(self, source: str) -> None:
        self.source = source

    def bad(self, where: str, expected: str) -> UserError:
        return UserError(self.source, where, f"expected {expected}", f"schema {SCHEMA}")

    def obj(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.bad(where, "an object")
        return value

    def rows(self, owner: dict[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
        value = owner.get(key)
        if not isinstance(value, list):
            raise self.bad(f"{where}{key}", "a list")
        return [(f"{where}{key}[{i}]", item) for i, item in enumerate(value)]

    def text(self, owner: dict[str, Any], key: str, where: str) -> str:
        value = owner.get(key)
        if not isinstance(value, str):
            raise self.bad(f"{where}.{key}", "a string")
        return value

    def number(self, owner: dict[str, Any], key: str, where: str, bits: int) -> int:
        value = owner.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value >> bits:
            raise self.bad(f"{where}.{key}", f"a number below 2**{bits}")
        return value

    def hex(self, owner: dict[str, Any], key: str, where: str, bits: int) -> int:
        text = owner.get(key)
        digits = text[2:] if isinstance(text, str) and text.startswith("0x") else ""
        short = 0 < len(digits) <= 16 and all(c in "0123456789abcdef" for c in digits)
        if not short or int(digits, 16) >> bits:
            raise self.bad(f"{where}.{key}", f'a string "0x..." below 2**{bits}')
        return int(digits, 16)

    def strings(self, owner: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
        rows = self.rows(owner, key, f"{where}.")
        for place, value in rows:
            if not isinstance(value, str):
                raise self.bad(place, "a string")
        return tuple(value for _, value in rows)

    def bindings(self, data: object) -> Bindings:
        top = self.obj(data, "")
        if top.get("schema") != SCHEMA:
            raise self.bad("schema", f'"{SCHEMA}"')
        viommus = tuple(self.mirror(v, w) for w, v in self.optional_rows(top, "viommus"))
        if len({v.smmu for v in viommus}) != len(viommus):
            raise self.bad("viommus", "each smmu once")
        entries = tuple(self.entry(v, w, len(viommus)) for w, v in self.rows(top, "bindings", ""))
        ids = [(e.viommu, e.vmaster_id) for e in entries]
        if ids != sorted(set(ids)):
            raise self.bad("bindings", "each vmaster_id once, in ascending order")
        retired = tuple(
            self.entry(v, w, len(viommus)) for w, v in self.optional_rows(top, "retired")
        )
        both = (*entries, *retired)
        if len({(e.viommu, e.vmaster_id) for e in both}) != len(both):
            raise self.bad("retired", "no vmaster_id that is given out already")
        if len({(e.smmu, e.pmaster_id) for e in both}) != len(both):
            raise self.bad("bindings", "each (smmu, pmaster_id) once")
        if len(entries) > MAX_VMASTER_IDS:
            raise self.bad("bindings", f"at most {MAX_VMASTER_IDS} entries")
        devices = tuple(self.device(v, w) for w, v in self.rows(top, "devices", ""))
        notices = tuple(self.notice(v, w) for w, v in self.rows(top, "notices", ""))
        guest, viommu = self.text(top, "guest", ""), self.viommu(top.get("viommu"))
        if viommu is not None and viommus:
            raise self.bad("viommus", "no more vSMMUs beside viommu")
        return Bindings(entries, guest, viommu, devices, notices, viommus, retired)

    def optional_rows(self, owner: dict[str, Any], key: str) -> list[tuple[str, Any]]:
        return self.rows(owner, key, "") if key in owner else []

    def viommu(self, value: object) -> Viommu | None:
        return None if value is None else self.window(self.obj(value, "viommu"), "viommu", "")

    def mirror(self, value: object, where: str) -> Viommu:
        row = self.obj(value, where)
        return self.window(row, where, self.text(row, "smmu", where))

    def window(self, row: dict[str, Any], where: str, smmu: str) -> Viommu:
        return Viommu(
            self.hex(row, "base", where, 64),
            self.hex(row, "size", where, 64),
            self.number(row, "spi", where, 32),
            self.hex(row, "phandle", where, 32),
            smmu,
        )

    def entry(self, value: object, where: str, viommus: int) -> Binding:
        """One row; `viommus` is the number of vSMMUs that it may name by index, 0 for none."""
        row = self.obj(value, where)
        viommu = self.number(row, "viommu", where, 16) if viommus else 0
        if viommu >= max(viommus, 1):
            raise self.bad(f"{where}.viommu", f"an index below {viommus}")
        return Binding(
            self.number(row, "vmaster_id", where, 16),
            self.text(row, "smmu", where),
            self.hex(row, "pmaster_id", where, 32),
            self.strings(row, "devices", where),
            self.hex(row, "smmu_base", where, 64),
            viommu,
        )

    def device(self, value: object, where: str) -> DeviceBinding:
        row = self.obj(value, where)
        path, guest_path = self.text(row, "path", where), self.text(row, "guest_path", where)
        ids = self.rows(row, "vmaster_ids", f"{where}.")
        return DeviceBinding(
            path,
            guest_path,
            tuple(self.number({"id": v}, "id", w, 16) for w, v in ids),
            tuple(self.reg(v, w) for w, v in self.rows(row, "regs", f"{where}.")),
            tuple(self.interrupt(v, w) for w, v in self.rows(row, "interrupts", f"{where}.")),
            tuple(self.dropped(v, w) for w, v in self.rows(row, "dropped", f"{where}.")),
        )

    def reg(self, value: object, where: str) -> MappedReg:
        row = self.obj(value, where)
        host, guest, size = (self.hex(row, key, where, 64) for key in ("host", "guest", "size"))
        return MappedReg(host, guest, size)

    def interrupt(self, value: object, where: str) -> GuestInterrupt:
        row = self.obj(value, where)
        return GuestInterrupt(
            self.number(row, "number", where, 32), self.number(row, "flags", where, 32)
        )

    def dropped(self, value: object, where: str) -> Dropped:
        row = self.obj(value, where)
        return Dropped(self.text(row, "property", where), self.text(row, "reason", where))

    def notice(self, value: object, where: str) -> Notice:
        row = self.obj(value, where)
        rule, path = self.text(row, "rule", where), self.text(row, "path", where)
        return Notice(rule, path, self.text(row, "message", where))


def read(data: object, source: str) -> Bindings:
    """The map that `written` gave.

    Raises:
        UserError: not an object of this schema; the message names the member.
    """
    return _Reader(source).bindings(data)
