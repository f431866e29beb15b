# SPDX-License-Identifier: BSD-2-Clause
"""A program for a board: a flat binary, or the PT_LOAD segments of an ELF file.

Two fixed structures are all that is needed of ELF (System V ABI, chapter 5), so they are read
here, each field checked, rather than by a library that also reads what nobody asked for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_MAGIC = b"\x7fELF"
_LSB64 = b"\x02\x01\x01"
_EXEC, _AARCH64, _LOAD = 2, 183, 1
SEGMENTS_MAX = 64


class LiveError(Exception):
    """A program or a board that cannot be run; one line that says why and what to do."""


class Segment(NamedTuple):
    """Bytes at an address, zeros after them up to `size`."""

    address: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """What is loaded into a board's RAM.

    Attributes:
        entry: where every vCPU starts.
    """

    name: str
    entry: int
    segments: tuple[Segment, ...]

    @staticmethod
    def of(data: bytes, name: str = "image", *, at: int | None = None) -> Image:
        """Read a program.

        Args:
            data: an ELF file for AArch64, or a flat binary.
            name: for messages.
            at: where a flat binary is loaded and starts; refused with ELF, which says so itself.

        Raises:
            LiveError: it is neither, or not one that can be loaded.
        """
        if not data.startswith(_MAGIC):
            if at is None:
                raise LiveError(f"{name}: no ELF file; a flat binary needs an address (at=)")
            if at % 4 or not 0 <= at < 1 << 64:
                raise LiveError(f"{name}: at={at:#x} is no address of an instruction")
            if not data:
                raise LiveError(f"{name}: empty; give a program")
            return Image(name, at, (Segment(at, data, len(data)),))
        if at is not None:
            raise LiveError(f"{name}: an ELF file has its own addresses; leave at= out")
        return _elf(data, name)


def _elf(data: bytes, name: str) -> Image:
    if len(data) < _EHDR.size:
        raise LiveError(f"{name}: ELF header is cut off at {len(data)} of {_EHDR.size} bytes")
    ident, kind, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = _EHDR.unpack_from(data)
    if ident[4:7] != _LSB64 or machine != _AARCH64:
        raise LiveError(f"{name}: ELF, but not little-endian AArch64 (machine {machine})")
    if kind != _EXEC:
        raise LiveError(f"{name}: ELF type {kind}, expected 2 (link it with -static -no-pie)")
    if phentsize != _PHDR.size or phnum > SEGMENTS_MAX:
        raise LiveError(f"{name}: {phnum} program headers of {phentsize} bytes, expected at most "
                        f"{SEGMENTS_MAX} of {_PHDR.size}")  # fmt: skip
    if phoff + phnum * _PHDR.size > len(data):
        raise LiveError(f"{name}: program headers at {phoff:#x} lie beyond the end of the file")
    if entry % 4:
        raise LiveError(f"{name}: entry {entry:#x} is no address of an instruction")
    found = [_segment(data, name, phoff, i) for i in range(phnum)]
    segments = tuple(segment for segment in found if segment is not None)
    if not segments:
        raise LiveError(f"{name}: no PT_LOAD segment")
    return Image(name, entry, segments)


def _segment(data: bytes, name: str, phoff: int, index: int) -> Segment | None:
    """A PT_LOAD segment at its physical address; None for other kinds and empty ones."""
    kind, _, offset, _, address, filesz, memsz, _ = _PHDR.unpack_from(
        data, phoff + index * _PHDR.size
    )
    if kind != _LOAD or not memsz:
        return None
    if filesz > memsz or offset + filesz > len(data):
        raise LiveError(f"{name}: program header {index}: {filesz:#x} bytes at {offset:#x} are not "
                        f"in the file, or more than the {memsz:#x} in memory")  # fmt: skip
    if address + memsz > 1 << 64:
        raise LiveError(f"{name}: program header {index}: {address:#x}+{memsz:#x} is no range")
    return Segment(address, data[offset : offset + filesz], memsz)
