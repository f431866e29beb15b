# SPDX-License-Identifier: BSD-2-Clause
"""Devices of a board: a console, an exit register, a DMA engine behind an SMMU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vsmmu.scheduler import Bell
from vsmmu.smmu.port import DevicePort, Request

_WORD = 0xFFFF_FFFF
CONSOLE_MAX = 1 << 16
LEN_MAX = 1 << 16


class Device(Protocol):
    """What answers accesses to a window of a board."""

    def __call__(self, offset: int, size: int, value: int | None, vcpu: int) -> int | None:
        """One aligned access of 1, 2, 4 or 8 bytes; a read when `value` is None.

        Returns:
            The value read, any number after a write; None for an external abort.
        """
        ...  # pragma: no cover


class Words:
    """A device of 32-bit registers: `read(offset)` and `write(offset, value)`.

    A 64-bit access is two, the low word first; a narrower one sees the word's low bytes.
    """

    def __call__(self, offset: int, size: int, value: int | None, vcpu: int) -> int:
        """An access, see `Device`."""
        if value is None:
            value = self.read(offset & ~3) >> 8 * (offset & 3) & (1 << 8 * min(size, 4)) - 1
            return value | self.read(offset + 4) << 32 if size == 8 else value
        if not offset & 3:
            self.write(offset, value & _WORD)
        if size == 8:
            self.write(offset + 4, value >> 32)
        return 0

    def read(self, offset: int) -> int:
        """The word at an offset."""
        raise NotImplementedError

    def write(self, offset: int, value: int) -> None:
        """Store a word."""
        raise NotImplementedError


class Console(Words):
    """The transmitter of a PL011: DR at 0x00 takes a character, FR at 0x18 says there is room.

    Attributes:
        dropped: characters after the first `CONSOLE_MAX`.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self.dropped = 0

    @property
    def text(self) -> str:
        """What was written; bytes that are no UTF-8 are shown as U+FFFD."""
        return self._text.decode("utf-8", "replace")

    def read(self, offset: int) -> int:
        """FR: transmit and receive FIFOs are empty."""
        return 0x90 if offset == 0x18 else 0

    def write(self, offset: int, value: int) -> None:
        """DR; the other registers need no setting."""
        if offset:
            return
        if len(self._text) < CONSOLE_MAX:
            self._text.append(value & 0xFF)
        else:
            self.dropped += 1


class Exit(Words):
    """A word at 0x00: writing it ends the run with that exit code."""

    def __init__(self) -> None:
        self.code: int | None = None

    def read(self, offset: int) -> int:
        """Nothing is to be read."""
        return 0

    def write(self, offset: int, value: int) -> None:
        """The first code counts."""
        if not offset and self.code is None:
            self.code = value


class DmaEngine(Words):
    """Copies `len` bytes from `src` to `dst`, both addresses as its SMMU sees them.

    Registers: SRC 0x00 and DST 0x08 (64 bits), LEN 0x10, GO 0x14 (write 1), STATUS 0x18. STATUS is
    BUSY (1) while it copies, then DONE (2) or ERR (4): a read that failed writes nothing. Stores
    while it is busy have no effect.

    Args:
        port: the device's side of the bus, an engine of its own.
        wrote: told of every write that was put through, some or all of it.
    """

    BUSY, DONE, ERR = 1, 2, 4

    def __init__(self, port: DevicePort, wrote: Callable[[Request], None] | None = None) -> None:
        self.name = f"dma {port.name}"
        self.bell = Bell()
        self.port = port
        self.copies = 0
        self._wrote = wrote
        self._registers = dict.fromkeys((0x00, 0x04, 0x08, 0x0C, 0x10), 0)
        self._status = 0
        self._request: Request | None = None

    def read(self, offset: int) -> int:
        """A register."""
        return self._status if offset == 0x18 else self._registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """A register, or GO."""
        if self._status == self.BUSY:
            return
        if offset in self._registers:
            self._registers[offset] = value
        elif offset == 0x14 and value & 1:
            self._start()

    def _start(self) -> None:
        source, target, size = self._address(0x00), self._address(0x08), self._registers[0x10]
        fits = 0 < size <= LEN_MAX and max(source, target) + size <= 1 << 64
        if not fits:
            self._status = self.ERR
            return
        self._request = self.port.read(source, size)
        self.bell.ring()
        self._status = self.BUSY

    def _address(self, offset: int) -> int:
        return self._registers[offset] | self._registers[offset + 4] << 32

    def step(self, budget: int) -> int:
        """Go on when the port has put a request through; one unit of work."""
        request = self._request
        if request is None:
            return 0
        # A port does not say that it is done.
        self.bell.ring()
        if not request.done:
            return 0
        self._request = None
        if request.write and self._wrote is not None:
            self._wrote(request)
        if not request.ok:
            self._status = self.ERR
        elif request.write:
            self._status = self.DONE
            self.copies += 1
        else:
            self._request = self.port.write(self._address(0x08), request.data)
        return 1
