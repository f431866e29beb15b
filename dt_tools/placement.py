# SPDX-License-Identifier: BSD-2-Clause
"""Guest addresses for the register pages of assigned devices: as iomem says, 1:1, or elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import MappedReg, Notice
from dt_tools.errors import Refusal
from dt_tools.extended import IOMEM, page_window
from dt_tools.profiles import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.extended import AddressMap


def place_registers(
    registers: Iterable[tuple[Window, str]], space: AddressMap, pins: Sequence[MappedReg]
) -> tuple[list[MappedReg], list[Notice]]:
    """Give every page of `registers` a guest address; whole runs of pages stay together.

    `registers` are host windows, each with the path of its device. Where iomem names registers it
    has each place, whatever lies beside them. Returns whole pages in the order of host addresses,
    and a DT207 for each run that is neither pinned nor 1:1.

    Raises:
        Refusal: DT207, a run has no place or not the one that iomem gives; DT212.
    """
    placed: list[MappedReg] = []
    homeless: list[tuple[Window, str, str]] = []
    free: list[tuple[Window, str]] = []
    whole = ((page_window(reg.base, reg.size), path) for reg, path in registers)
    for window, path in _runs(whole, gap=-1):
        pinned = _pinned(window, path, pins)
        if pinned is None:
            free.append((window, path))
            continue
        _check_pin(space, Window(pinned, window.size), path)
        placed.append(MappedReg(window.base, pinned, window.size))
    for window, path in _runs(free):
        clash = space.clash(window)
        if clash is None:
            space.claim_device(window, path)
            placed.append(MappedReg(window.base, window.base, window.size))
        else:
            homeless.append((window, path, clash))
    notices: list[Notice] = []
    for window, path, clash in homeless:
        base = _move(space, window, path)
        placed.append(MappedReg(window.base, base, window.size))
        text = f"registers {window.base:#x}+{window.size:#x} placed at guest {base:#x}: 1:1 {clash}"
        notices.append(Notice("DT207", path, text))
    return sorted(placed, key=lambda reg: reg.host), notices


def joined(registers: Iterable[MappedReg]) -> list[MappedReg]:
    """Registers that have their places as whole runs of pages, in the order of host addresses."""
    runs: list[MappedReg] = []
    for reg in sorted(registers, key=lambda reg: (reg.host, reg.size)):
        window = page_window(reg.host, reg.size)
        if runs and window.base <= runs[-1].host + runs[-1].size:
            last = runs[-1]
            size = max(last.size, window.end - last.host)
            runs[-1] = MappedReg(last.host, last.guest, size)
        else:
            runs.append(MappedReg(window.base, page_window(reg.guest, 1).base, window.size))
    return runs


def _check_pin(space: AddressMap, target: Window, path: str) -> None:
    if space.owner(target) != IOMEM:
        clash = space.clash(target) or "is not claimed"
        reason = f"iomem puts its registers at {target.base:#x}, which {clash}"
        raise Refusal("DT207", path, reason, "choose another @GFN")


def _move(space: AddressMap, window: Window, path: str) -> int:
    """Take free room for `window` and return its guest address."""
    target = space.place(window.size)
    if target is None:
        reason = f"its registers {window.base:#x}+{window.size:#x} find no room in the guest"
        raise Refusal("DT207", path, reason, "assign fewer devices or give an iomem @GFN")
    space.claim_device(target, path)
    return target.base


def _runs(windows: Iterable[tuple[Window, str]], gap: int = 0) -> list[tuple[Window, str]]:
    """Windows that overlap, and with `gap` 0 adjacent ones, as one; the path is the first one's."""
    runs: list[tuple[Window, str]] = []
    for window, path in sorted(windows, key=lambda item: (item[0].base, item[0].end)):
        if runs and window.base <= runs[-1][0].end + gap:
            last, owner = runs[-1]
            runs[-1] = (Window(last.base, max(last.end, window.end) - last.base), owner)
        else:
            runs.append((window, path))
    return runs


def _pinned(window: Window, path: str, pins: Sequence[MappedReg]) -> int | None:
    """The guest address that iomem gives to `window`, None when iomem does not name it."""
    for pin in pins:
        host = Window(pin.host, pin.size)
        if not host.overlaps(window):
            continue
        if window.base < host.base or window.end > host.end:
            reason = (
                f"iomem covers {host.base:#x}+{host.size:#x} of its registers "
                f"{window.base:#x}+{window.size:#x} only"
            )
            raise Refusal("DT207", path, reason, "let one iomem entry cover all, or none")
        return pin.guest + window.base - pin.host
    return None
