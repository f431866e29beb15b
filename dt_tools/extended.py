# SPDX-License-Identifier: BSD-2-Clause
"""The guest's physical address space: RAM banks, extended regions, room for device registers.

All addresses and sizes are bytes of guest physical address (IPA) space. RAM fills the profile's
banks in order; what a bank has left over is offered to the guest as extended regions (space for
foreign and grant mappings) in `/hypervisor`'s `reg`, in whole 2 MiB blocks of at least 64 MiB.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from dt_tools.errors import Refusal
from dt_tools.profiles import GuestProfile, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The name under which an iomem entry of the configuration is claimed.
IOMEM = "iomem"
PAGE = 0x1000
MIB = 1 << 20
BLOCK = 2 * MIB
EXTENDED_MIN = 64 * MIB
# libxl puts initrd and tree 128 MiB above the start of RAM when they fit there.
_MODULES_OFFSET = 128 * MIB
# Register windows one guest may hold; host trees stay far below (the largest master has 55).
MAX_WINDOWS = 1024


def align_down(value: int, alignment: int) -> int:
    """`value` rounded down to a multiple of `alignment`, a power of two."""
    return value & -alignment


def align_up(value: int, alignment: int) -> int:
    """`value` rounded up to a multiple of `alignment`, a power of two."""
    return -(-value & -alignment)


def page_window(base: int, size: int) -> Window:
    """The whole 4 KiB pages that hold `size` bytes at `base`."""
    start = align_down(base, PAGE)
    return Window(start, align_up(base + size, PAGE) - start)


def ram_banks(memory_mib: int, guest: GuestProfile, bits: int) -> tuple[Window, ...]:
    """The banks that `memory_mib` MiB of RAM fill, each cut to what is used.

    Raises:
        Refusal: DT602, no memory, or more than the banks hold below 2**`bits`.
    """
    left = memory_mib * MIB
    used: list[Window] = []
    for bank in guest.ram_banks:
        size = min(left, max(0, min(bank.end, 1 << bits) - bank.base))
        if size:
            used.append(Window(bank.base, size))
            left -= size
    if memory_mib <= 0 or left:
        reason = f"memory = {memory_mib} MiB does not fit the RAM banks below {bits} address bits"
        raise Refusal("DT602", "/memory", reason, "set memory between 1 MiB and the banks' sum")
    return tuple(used)


def extended_regions(
    used: Iterable[Window], guest: GuestProfile, bits: int, holes: Iterable[Window] = ()
) -> tuple[Window, ...]:
    """What RAM leaves of the banks below 2**`bits`, less `holes`, in 2 MiB blocks.

    Pieces smaller than 64 MiB are not offered, as in libxl. Holes are the places of assigned
    devices' registers.
    """
    filled = {window.base: window.end for window in used}
    cuts = sorted((hole.base, hole.end) for hole in holes)
    regions: list[Window] = []
    for bank in guest.ram_banks:
        start, end = filled.get(bank.base, bank.base), min(bank.end, 1 << bits)
        for cut_start, cut_end in [*cuts, (end, end)]:
            if cut_end <= start and cut_start < end:
                continue
            _add_region(regions, start, min(cut_start, end))
            start = max(start, cut_end)
            if start >= end:
                break
    return tuple(regions)


def _add_region(regions: list[Window], start: int, end: int) -> None:
    start, end = align_up(start, BLOCK), align_down(end, BLOCK)
    if end - start >= EXTENDED_MIN:
        regions.append(Window(start, end - start))


def initrd_place(bank: Window, size: int, tree_size: int) -> tuple[int, int]:
    """First and last-plus-one address of the ramdisk, in whole pages, as libxc places it.

    The tree follows the ramdisk; both lie 128 MiB into RAM or, in a small guest, at its top.
    The kernel is taken to end below them.

    Raises:
        Refusal: DT603, the first bank of RAM is too small.
    """
    length = align_up(size, PAGE)
    both = length + align_up(tree_size, PAGE)
    # libxc ends the kernel, however small, on a 2 MiB boundary.
    if both + BLOCK >= bank.size:
        what = f"a ramdisk of {size} bytes" if size else "a kernel and its device tree"
        reason = f"{what} does not fit {bank.size // MIB} MiB of RAM"
        raise Refusal("DT603", "/chosen", reason, "raise memory")
    start = bank.end - both
    if bank.size >= _MODULES_OFFSET + both:
        start = bank.base + _MODULES_OFFSET
    return start, start + length


class AddressMap:
    """Who has which part of the guest's address space; windows of one map never overlap.

    `bits` is the width of a guest physical address. `claim` takes a fixed place, `place` finds
    one. Both are deterministic: the same calls give the same addresses.
    """

    def __init__(self, guest: GuestProfile, banks: tuple[Window, ...], bits: int = 40) -> None:
        self.guest = guest
        self.banks = banks
        self.bits = bits
        self.devices: list[Window] = []
        self._bases: list[int] = []
        self._claims: list[tuple[Window, str]] = []
        for index, bank in enumerate(banks):
            self.claim(bank, f"RAM bank {index}")

    def clash(self, window: Window) -> str | None:
        """Why `window` cannot be had: what it overlaps or that it is out of reach; else None."""
        if window.end > 1 << self.bits:
            return f"lies beyond the guest's {self.bits} address bits"
        at = bisect_right(self._bases, window.base)
        for index in (at - 1, at):
            if 0 <= index < len(self._claims) and self._claims[index][0].overlaps(window):
                other, name = self._claims[index]
                return f"overlaps {name} [{other.base:#x}, {other.end:#x})"
        return None

    def owner(self, window: Window) -> str | None:
        """The name under which a window that holds all of `window` was taken; else None."""
        at = bisect_right(self._bases, window.base) - 1
        if at < 0 or window.end > self._claims[at][0].end:
            return None
        return self._claims[at][1]

    def claim(self, window: Window, name: str) -> None:
        """Take `window`, which must be free (see `clash`)."""
        assert self.clash(window) is None, f"{name} at {window.base:#x} is taken"
        at = bisect_right(self._bases, window.base)
        self._bases.insert(at, window.base)
        self._claims.insert(at, (window, name))

    def claim_device(self, window: Window, path: str) -> None:
        """Take `window` for the registers of the device at host `path`.

        Raises:
            Refusal: DT212, the guest has more register windows than `MAX_WINDOWS`.
        """
        if len(self.devices) >= MAX_WINDOWS:
            reason = f"the guest would have more than {MAX_WINDOWS} register windows"
            raise Refusal("DT212", path, reason, "assign fewer devices")
        self.claim(window, path)
        self.devices.append(window)

    def place(self, size: int) -> Window | None:
        """The first free window of `size` bytes, naturally aligned up to 2 MiB; None if full.

        Searched: the profile's placement windows, then the RAM banks behind the guest's RAM.
        The window is not taken yet.
        """
        alignment = min(max(PAGE, 1 << (size - 1).bit_length()), BLOCK)
        # Every fixed window is kept clear, also those that this guest does not use, so that a
        # placed device never stands in the way of a key added to the configuration.
        fixed = [window for _, window in self.guest.fixed_windows()]
        for room in (*self.guest.placement, *self.guest.ram_banks):
            for start, end in self._gaps(room, fixed):
                base = align_up(start, alignment)
                if base + size <= min(end, 1 << self.bits):
                    return Window(base, size)
        return None

    def _gaps(self, room: Window, fixed: list[Window]) -> Iterator[tuple[int, int]]:
        taken = [w for w, _ in self._claims if w.overlaps(room)]
        taken += [w for w in fixed if w.overlaps(room)]
        start = room.base
        for window in sorted(taken, key=lambda w: w.base):
            if window.base > start:
                yield start, window.base
            start = max(start, window.end)
        if start < room.end:
            yield start, room.end
