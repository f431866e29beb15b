# SPDX-License-Identifier: BSD-2-Clause
"""The recording format, version 1: a JSON header line, then tagged binary records.

A record is one tag byte and little-endian fields. Recordings are untrusted input: every length is
capped, every field that has a range is checked, and a complaint names the record and its place.

| tag | record | fields |
|---|---|---|
| M | `Mem` | u64 pa, u32 n, n bytes |
| W, R | `Write`, `Read` | u32 offset, u8 size, u64 value |
| P | `Progress` | u32 cmdq_cons, u32 gerror, u32 eventq_prod |
| D | `Dma` | u32 sid, u8 access, status, perm, event, flags, u64 iova, pa, mask |
| E | `EventRecord` | 32 bytes |
| I | `Irq` | u8 line |
| N | `Note` | u16 n, n bytes of text |
| Z | `Reset` | |
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

MAGIC = "vsmmu-trace"
VERSION = 1
# Caps: of the header line, and of the bytes of one memory record.
HEADER_MAX = 1 << 20
MEM_MAX = 16 << 20
_TEXT_MAX = 0xFFFF


class RecordingError(Exception):
    """A recording that cannot be read: one line with the file, the record and its place."""

    exit_code = 2


class Access:
    """`Dma.access`."""

    READ, WRITE = 1, 2
    ALL = (READ, WRITE)


class Status:
    """`Dma.status`: how a device access ended."""

    OK, BYPASS, ABORT, FAULT, DISABLED = range(5)
    NAMES = ("ok", "bypass", "abort", "fault", "SMMU disabled")
    # Those whose output address means something. A bypassing stream's address is its input.
    WITH_PA = (OK, BYPASS, DISABLED)


class Perm:
    """`Dma.perm`: rights of the mapping, as bits."""

    READ, WRITE = 1, 2


class Flag:
    """`Dma.flags`."""

    # A stale TLB entry answered: whether that was allowed cannot be told from the recording.
    STALE = 1


class Mem(NamedTuple):
    """Memory changed since the record before."""

    pa: int
    data: bytes


class Write(NamedTuple):
    """The driver wrote a register; `offset` from page 0's start, page 1 is at 0x10000."""

    offset: int
    size: int
    value: int


class Read(NamedTuple):
    """The driver read a register and got `value`."""

    offset: int
    size: int
    value: int


class Progress(NamedTuple):
    """CMDQ_CONS, GERROR and EVENTQ_PROD after the write before, where one differs."""

    cmdq_cons: int
    gerror: int
    eventq_prod: int


class Dma(NamedTuple):
    """A device access and how it ended.

    Attributes:
        sid: StreamID as the driver knows it.
        access: `Access`.
        status: `Status`.
        perm: `Perm` bits of the mapping.
        event: number of the event record; means something with `Status.FAULT`.
        flags: `Flag` bits.
        iova: input address.
        pa: output address; means something with `Status.OK`, BYPASS and DISABLED.
        mask: low bits of the address that are known to share the mapping.
    """

    sid: int
    access: int
    status: int
    perm: int
    event: int
    flags: int
    iova: int
    pa: int
    mask: int


class EventRecord(NamedTuple):
    """The event record of the access before: four little-endian 64-bit words."""

    words: tuple[int, int, int, int]


class Irq(NamedTuple):
    """A wired interrupt was pulsed: 0 eventq, 1 priq, 2 cmd-sync, 3 gerror."""

    line: int


class Note(NamedTuple):
    """A phase of what the guest did."""

    text: str


class Reset(NamedTuple):
    """The SMMU was reset."""


Record: TypeAlias = Mem | Write | Read | Progress | Dma | EventRecord | Irq | Note | Reset

TAGS: dict[type, bytes] = {
    Mem: b"M", Write: b"W", Read: b"R", Progress: b"P", Dma: b"D", EventRecord: b"E", Irq: b"I",
    Note: b"N", Reset: b"Z",
}  # fmt: skip

_ACCESS = struct.Struct("<IBQ")
_PROGRESS = struct.Struct("<III")
_DMA = struct.Struct("<IBBBBBQQQ")
_EVENT = struct.Struct("<4Q")
_MEM = struct.Struct("<QI")
_LENGTH = struct.Struct("<H")
_SIZES = (1, 2, 4, 8)
_new = tuple.__new__
_REGISTERS_END = 0x2_0000


class Header:
    """The header line.

    Attributes:
        fields: every member of the JSON object.
        ram: (base, size) of the guest's RAM in bytes, whole 4 KiB pages.
    """

    __slots__ = ("fields", "ram")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Raises ValueError with what is wrong."""
        if fields.get("magic") != MAGIC:
            raise ValueError(f'magic: expected "{MAGIC}", not {_brief(fields.get("magic"))}')
        if type(fields.get("version")) is not int or fields["version"] != VERSION:
            raise ValueError(f"version: expected {VERSION}, not {_brief(fields.get('version'))}")
        base, size = (_address(fields, name) for name in ("ram_base", "ram_size"))
        if not size or (base + size - 1) >> 52:
            raise ValueError("ram_size: expected RAM that ends below 2^52")
        self.fields = dict(fields)
        self.ram = (base, size)

    @property
    def name(self) -> str:
        """What the recording calls itself; empty where it does not."""
        name = self.fields.get("name", "")
        return name if isinstance(name, str) else ""


def _address(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < 1 << 52 or value % 4096:
        raise ValueError(f"{name}: expected a multiple of 4096 below 2^52, not {_brief(value)}")
    return value


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Reader:
    """Reads a recording from blocks of its unpacked bytes.

    Iterating gives the records; `number` is the last one's number (the first is 1) and `place`
    the byte offset of its tag.

    Args:
        blocks: the file's bytes, of any lengths.
        source: its name, for messages.

    Raises:
        RecordingError: the header is not one of this format; while iterating, a record that is
            cut short, has an unknown tag or a field that nothing can mean.
    """

    def __init__(self, blocks: Iterable[bytes], source: str) -> None:
        self.source = source
        self.number = self.place = 0
        self._blocks = iter(blocks)
        self._rest = b""
        self._at = self._behind = 0
        self.header = self._header()

    def __iter__(self) -> Iterator[Record]:
        decoders = _DECODERS
        while True:
            if self._at == len(self._rest) and not self._more():
                return
            self.place = self._behind + self._at
            self.number += 1
            tag = self._rest[self._at]
            decode = decoders.get(tag)
            if decode is None:
                raise self.error(f"tag {_tag(tag)} is none of M W R P D E I N Z")
            self._at += 1
            try:
                yield decode(self)
            except ValueError as error:
                raise self.error(f"{chr(tag)}: {error}") from None

    def error(self, reason: str) -> RecordingError:
        """A complaint about the record that was read last."""
        return RecordingError(
            f"{self.source}: record {self.number} (byte {self.place:#x}): {reason}"
        )

    def take(self, count: int) -> bytes:
        """The next bytes. Raises ValueError when the file ends before."""
        while len(self._rest) - self._at < count:
            if not self._more():
                raise ValueError("the file ends within this record")
        start = self._at
        self._at += count
        return self._rest[start : self._at]

    def span(self, count: int) -> tuple[bytes, int]:
        """As `take`, without a copy: bytes in which they are, and where."""
        if self._at + count > len(self._rest):
            return self.take(count), 0
        self._at += count
        return self._rest, self._at - count

    def _more(self) -> bool:
        """One more block behind the bytes that are left; False at the end of the file."""
        for block in self._blocks:
            if block:
                self._behind += self._at
                self._rest = self._rest[self._at :] + block
                self._at = 0
                return True
        return False

    def _header(self) -> Header:
        line = b""
        while b"\n" not in self._rest:
            if len(self._rest) > HEADER_MAX or not self._more():
                raise RecordingError(f"{self.source}: header: no line of JSON at its start")
        line, _, self._rest = self._rest.partition(b"\n")
        self._behind = len(line) + 1
        try:
            return Header(_members(line))
        except (ValueError, RecursionError) as error:
            reason = "not JSON" if not isinstance(error, ValueError) else str(error)
            raise RecordingError(f"{self.source}: header: {reason}") from None


def _members(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises ValueError, RecursionError."""
    try:
        fields = json.loads(line.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        # The one that is left is Python's limit on the digits of a number.
        raise ValueError("a number of too many digits") from None
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    return fields


def _tag(tag: int) -> str:
    return repr(chr(tag)) if 0x20 < tag < 0x7F else f"{tag:#04x}"


def _fields(reader: Reader, form: struct.Struct) -> tuple[Any, ...]:
    return form.unpack_from(*reader.span(form.size))


def _register(reader: Reader) -> tuple[int, int, int]:
    offset, size, value = _fields(reader, _ACCESS)
    if size not in _SIZES or value >> 8 * size:
        raise ValueError(f"value {value:#x} of size {size}: expected 1, 2, 4 or 8 bytes")
    if offset >= _REGISTERS_END:
        raise ValueError(f"offset {offset:#x} is behind both register pages")
    return offset, size, value


def _mem(reader: Reader) -> Mem:
    pa, size = _fields(reader, _MEM)
    if size > MEM_MAX:
        raise ValueError(f"{size} bytes, more than {MEM_MAX >> 20} MiB")
    return Mem(pa, reader.take(size))


def _dma(reader: Reader) -> Dma:
    dma = _new(Dma, _fields(reader, _DMA))
    if dma.access not in Access.ALL:
        raise ValueError(f"access {dma.access} is neither 1 (read) nor 2 (write)")
    if dma.status >= len(Status.NAMES):
        raise ValueError(f"status {dma.status} is beyond {len(Status.NAMES) - 1}")
    return dma


def _event(reader: Reader) -> EventRecord:
    one, two, three, four = _fields(reader, _EVENT)
    return EventRecord((one, two, three, four))


def _irq(reader: Reader) -> Irq:
    line = reader.take(1)[0]
    if line > 3:
        raise ValueError(f"line {line} is beyond 3")
    return Irq(line)


def _note(reader: Reader) -> Note:
    (size,) = _fields(reader, _LENGTH)
    # Not as escapes: those would be made one by one, and are four characters a byte.
    return Note(reader.take(size).decode("utf-8", "replace"))


_DECODERS: dict[int, Callable[[Reader], Record]] = {
    ord("M"): _mem,
    ord("W"): lambda reader: Write(*_register(reader)),
    ord("R"): lambda reader: Read(*_register(reader)),
    ord("P"): lambda reader: Progress(*_fields(reader, _PROGRESS)),
    ord("D"): _dma,
    ord("E"): _event,
    ord("I"): _irq,
    ord("N"): _note,
    ord("Z"): lambda reader: Reset(),
}


def header_line(fields: Mapping[str, Any]) -> bytes:
    """The first line of a file. Raises ValueError as `Header` does."""
    whole = {"magic": MAGIC, "version": VERSION, **fields}
    Header(whole)
    return json.dumps(whole).encode() + b"\n"


def encode(record: Record) -> bytes:
    """A record as bytes. Raises struct.error or ValueError for a value that does not fit."""
    match record:
        case Mem(pa, data):
            if len(data) > MEM_MAX:
                raise ValueError(f"{len(data)} bytes, more than {MEM_MAX >> 20} MiB")
            body = _MEM.pack(pa, len(data)) + data
        case Write() | Read():
            body = _ACCESS.pack(*record)
        case Progress():
            body = _PROGRESS.pack(*record)
        case Dma():
            body = _DMA.pack(*record)
        case EventRecord(words):
            body = _EVENT.pack(*words)
        case Irq(line):
            body = bytes((line,))
        case Note(text):
            # A character that is cut in two would not be text any more.
            raw = text.encode()[:_TEXT_MAX].decode(errors="ignore").encode()
            body = _LENGTH.pack(len(raw)) + raw
        case Reset():
            body = b""
    return TAGS[type(record)] + body
