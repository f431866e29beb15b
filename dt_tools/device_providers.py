# SPDX-License-Identifier: BSD-2-Clause
"""Properties of assigned devices that name what stays outside the guest, by policy.

Such a property is dropped, or has a stand-in made for it where `dt_tools.stubs` has one, or its
device is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dt_tools.binding import Dropped, Notice
from dt_tools.carry import Lost
from dt_tools.errors import Refusal
from dt_tools.stubs import Stubs, merged

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from dt_tools.carry import Carried
    from dt_tools.device import Device, Notices
    from dt_tools.tree import Node

Providers = Literal["drop", "stub", "refuse"]
"""What becomes of a property that names a provider outside the guest."""


class DeviceProviders:
    """What one guest's devices have in place of providers outside.

    `clock_hz` is the rate of a stand-in for a clock of unknown rate; `notices` is added to.
    """

    def __init__(
        self, carried: Carried, policy: Providers, clock_hz: int, notices: Notices
    ) -> None:
        self._carried = carried
        self._policy = policy
        self._notices = notices
        self._stubs = Stubs(carried.phandles, clock_hz)

    def stand_ins(self, device: Device, node: Node) -> dict[str, list[int]]:
        """New cells for the properties of `node` that name clocks and supplies outside.

        Empty unless the policy is to make stand-ins.
        """
        found: dict[str, list[int]] = {}
        if self._policy != "stub":
            return found
        for name in node.props:
            if name != "clocks" and not name.endswith("-supply"):
                continue
            cells = self._clocks(node) if name == "clocks" else self._supply(node, name)
            if cells is not None:
                found[name] = cells
                device.stubbed.append(device.where(node, name))
        return found

    def lose(self, device: Device, node: Node, name: str, lost: Lost) -> None:
        """Drop a property, or refuse the device for it.

        Raises:
            Refusal: DT201, the policy is to refuse.
        """
        reason = lost.reason
        where = device.where(node, name)
        if lost.provider is not None and self._policy == "refuse":
            fix = "assign the provider too, or let the property be dropped (--providers drop)"
            raise Refusal("DT201", device.node.path, f"{where}: {reason}", fix)
        if lost.provider is not None and self._policy == "stub" and name != "memory-region":
            reason += "; Linux has no driver that could stand in for it"
            if name.endswith("-supply"):
                reason = f"{lost.reason}; its voltage is not fixed"
            elif name in ("clocks", "assigned-clocks", "assigned-clock-parents"):
                reason = lost.reason
        device.dropped.append(Dropped(where, reason))
        if lost.carve_out:
            self._notices.note("DT208", device.node, f"{where} dropped: {reason}")

    def emit(self, devices: Sequence[Device], bus: Node, names: Container[str]) -> None:
        """Append the stand-ins to `bus`, under none of `names`, and note whose they are."""
        unknown = self._stubs.emit(bus, names)
        for device in devices:
            if device.stubbed:
                text = f"{merged(device.stubbed)}: stand-ins, the host has to leave these on"
                self._notices.note("DT220", device.node, text)
        for stub in unknown:
            whose = f"{stub.name}, for a clock of {stub.provider.path}"
            text = f"{whose}: its rate is not known, {self._stubs.clock_hz} Hz is written"
            self._notices.append(Notice("DT221", stub.devices[0], text))

    def _clocks(self, node: Node) -> list[int] | None:
        entries = self._carried.entries(node, "clocks")
        if entries is None or isinstance(entries, Lost):
            return None
        inside = [entry.node is None or entry.node.path in self._carried.paths for entry in entries]
        if all(inside):
            return None
        cells: list[int] = []
        for index, entry in enumerate(entries):
            if inside[index]:
                cells += (entry.phandle, *entry.arguments)
                self._carried.referenced |= {entry.phandle} if entry.node is not None else set()
            else:
                cells.append(self._stubs.clock(node, entries, index))
        return cells

    def _supply(self, node: Node, name: str) -> list[int] | None:
        entries = self._carried.entries(node, name)
        if entries is None or isinstance(entries, Lost) or len(entries) != 1:
            return None
        provider = entries[0].node
        if provider is None or provider.path in self._carried.paths:
            return None
        phandle = self._stubs.regulator(node, provider)
        return None if phandle is None else [phandle]
