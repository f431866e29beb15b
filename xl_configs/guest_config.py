# SPDX-License-Identifier: BSD-2-Clause
"""From the text of a guest configuration to what the rest of the program uses.

Accepted and refused is what xl of Xen master accepts and refuses, for the keys in ``keys.KEYS``,
with three exceptions: ``memory``, ``maxmem``, ``vcpus`` and ``maxvcpus`` have bounds, a file has a
greatest size, and the ``viommu`` key of the vIOMMU series is read. Keys outside that table, and
the inside of ``disk`` entries, are not checked. Defaulting that libxl does after the parse is left
to the caller, but for ``memory``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xl_configs.errors import ConfigError, Diagnostic, shown
from xl_configs.getters import Reader
from xl_configs.keys import INSTEAD, KEYS, OTHER_KEYS
from xl_configs.parser import MAX_SIZE, ParseResult, parse
from xl_configs.specs import (
    U32_MAX,
    Iomem,
    PciSpec,
    SpecError,
    check_virtio,
    parse_dtdev,
    parse_iomem,
    parse_irq,
    parse_pci,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    _Entry = TypeVar("_Entry")

_KEY = {key.name: key for key in KEYS}
_DEFAULT_MEMORY = 32
_MOST_UNKNOWN = 64
_LONGEST_COMPARED = 40


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """A guest, as its configuration describes it.

    Attributes:
        name: of the domain; may be empty.
        type: ``pvh``, ``pv`` or ``hvm``; libxl runs pv as pvh on Arm and refuses hvm.
        memory_mib: memory at start; 32 when the configuration says nothing, ``maxmem`` when it
            says only that.
        maxmem_mib: greatest memory, or None for the same as at start.
        vcpus: virtual CPUs at start, 1..128.
        maxvcpus: greatest number of them, 1..128; below ``vcpus`` is refused.
        kernel: path, or None when ``bootloader`` or ``firmware`` stands for it.
        ramdisk: path or None.
        device_tree: path of the partial device tree, or None.
        cmdline: kernel command line from ``cmdline``, or ``root`` and ``extra``; None if none.
        dtdev: host device tree paths of devices to assign, unchecked.
        iomem: ranges of 4 KiB frames to map.
        irqs: GIC interrupt numbers to map (SPI n is n + 32).
        pci: PCI devices to assign.
        passthrough: ``default``, ``disabled``, ``enabled``, ``sync_pt`` or ``share_pt``.
        viommu: ``none`` or ``smmuv3``.
        gic_version: ``default``, ``v2`` or ``v3``.
        vuart: ``sbsa_uart`` or None.
        tee: ``none``, ``optee`` or ``ffa``.
        nr_spis: number of SPIs asked for, 32 bits, or None.
        virtio: entries as written.
        disk: entries as written, unchecked.
        warnings: what xl ignores or would not warn about, by line.
    """

    name: str
    type: str = "pvh"
    memory_mib: int = _DEFAULT_MEMORY
    maxmem_mib: int | None = None
    vcpus: int = 1
    maxvcpus: int = 1
    kernel: str | None = None
    ramdisk: str | None = None
    device_tree: str | None = None
    cmdline: str | None = None
    dtdev: tuple[str, ...] = ()
    iomem: tuple[Iomem, ...] = ()
    irqs: tuple[int, ...] = ()
    pci: tuple[PciSpec, ...] = ()
    passthrough: str = "default"
    viommu: str = "none"
    gic_version: str = "default"
    vuart: str | None = None
    tee: str = "none"
    nr_spis: int | None = None
    virtio: tuple[str, ...] = ()
    disk: tuple[str, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()


def load(
    data: bytes, source: str, overrides: Sequence[str] = (), *, max_size: int = MAX_SIZE
) -> GuestConfig:
    """Reads a guest configuration.

    Args:
        data: the file.
        source: its name, for messages.
        overrides: ``key=value`` arguments after the file name; later settings win, and ``+=``
            adds. Their lines are numbered on after the file and one blank line.
        max_size: bytes, overrides included.

    Raises:
        ConfigError: the syntax, a value or a combination is refused.
    """
    parsed = parse(_with_overrides(data, source, overrides), source, max_size=max_size)
    if not parsed.ok:
        raise _syntax_error(parsed, source)
    read = Reader(parsed, source)
    config = _Builder(read).build()
    warnings = [*read.warnings, *_unknown_keys(parsed), *_dropped(parsed)]
    warnings.sort(key=lambda warning: (warning.line or 0, warning.id))
    return replace(config, warnings=tuple(warnings))


def _with_overrides(data: bytes, source: str, overrides: Sequence[str]) -> bytes:
    """The text xl parses: the file, a line feed, and each argument on a line of its own."""
    if not overrides:
        return data
    for text in overrides:
        if "=" not in text:
            raise ConfigError(
                source, None, f"override {text!r} sets nothing", "write it as key=value"
            )
    try:
        added = "\n".join(overrides).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError(
            source, None, "an override is not text", "pass it in UTF-8 or raw bytes"
        ) from None
    return data + b"\n" + added + b"\n\n"


_REPORTED = re.compile(r":(\d+): (?:config parsing error )?(.*)", re.DOTALL)
_SYNTAX_FIXES = (
    ("\r': lexical error", "end lines with a line feed alone, without a carriage return"),
    ("`#': lexical error", "end the last line, a comment, with a line feed"),
    ("lexical error", "put text in quotes; keys and bare numbers are lower case"),
    ("escape in quoted string", "write the character itself; xl reads no numeric escapes"),
    ("invalid character after backlash", "write a backslash in a string as two"),
    ("can't add [list]", "make both sides of += strings, or both lists"),
    ("memory exhausted", "nest fewer lists"),
    ("NUL byte", "take the NUL byte out of the string"),
    ("expecting ']'", "separate list elements with commas and close the list with ]"),
    ("expecting STRING", "give the key a quoted string, a number or a [list] on the same line"),
    ("expecting +=", "write key = value on one line"),
    ("unexpected", "put each key = value on a line of its own, or a ; between them"),
    ("limit is", "make the file smaller"),
)


def _syntax_error(parsed: ParseResult, source: str) -> ConfigError:
    """The error for a text that is not a configuration."""
    first = parsed.report[0]
    rest = first.removeprefix(source)
    found = _REPORTED.fullmatch(rest)
    line, reason = (int(found[1]), found[2]) if found else (None, rest.lstrip(": "))
    if line is not None and "unexpected NEWLINE, expecting" in reason:
        line += 1  # xl counts one too few at the end of a line
    fix = next((fix for part, fix in _SYNTAX_FIXES if part in reason), "correct the line")
    if len(parsed.report) > 1 and parsed.report[-1].startswith("warning:"):
        fix = "write plain key = value settings; xl runs no Python"
    report = (*parsed.report, "Failed to parse config: Invalid argument")
    return ConfigError(source, line, reason, fix, report=report)


def _unknown_keys(parsed: ParseResult) -> list[Diagnostic]:
    """XL101 for each key xl does not look up, which it ignores without a word."""
    first_lines: dict[str, int] = {}
    for setting in parsed.settings:
        if setting.name not in _KEY and setting.name not in OTHER_KEYS:
            first_lines.setdefault(setting.name, setting.line)
    found = [
        Diagnostic("XL101", line, f"{shown(name)}: unknown key, ignored by xl{_meant(name)}")
        for name, line in list(first_lines.items())[:_MOST_UNKNOWN]
    ]
    if len(first_lines) > _MOST_UNKNOWN:
        more = len(first_lines) - _MOST_UNKNOWN
        found.append(Diagnostic("XL101", None, f"{more} more unknown keys, ignored by xl"))
    return found


def _dropped(parsed: ParseResult) -> list[Diagnostic]:
    """XL107 for a last byte that xl drops."""
    if not parsed.dropped:
        return []
    last = f"0x{ord(parsed.dropped):02x}"
    message = f"the last byte, {last}, is dropped by xl; take it out or end the line after it"
    return [Diagnostic("XL107", None, message)]


def _meant(name: str) -> str:
    """The known key that a spelling is closest to, as the end of a sentence."""
    from difflib import get_close_matches

    close = [INSTEAD[name]] if name in INSTEAD else []
    if not close and len(name) <= _LONGEST_COMPARED:
        close = get_close_matches(name, sorted({*_KEY, *OTHER_KEYS}), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


class _Builder:
    """Reads the keys in xl's order, so that the first error is xl's first error."""

    def __init__(self, read: Reader) -> None:
        self.read = read

    def string(self, name: str) -> str | None:
        return self.read.string(_KEY[name])

    def number(self, name: str) -> int | None:
        return self.read.number(_KEY[name])

    def flag(self, name: str) -> bool:
        return bool((self.number(name) or 0) & U32_MAX)

    def choice(self, name: str) -> str:
        return self.read.choice(_KEY[name]) or ""

    def items(self, name: str) -> tuple[str, ...]:
        return tuple(self.read.items(_KEY[name]))

    def refuse(self, name: str, reason: str, fix: str) -> ConfigError:
        """An error about how keys go together; the line is that of ``name``."""
        return ConfigError(self.read.source, self.read.line(name), reason, fix)

    def build(self) -> GuestConfig:
        """All keys, first to last."""
        kind = self.domain_type()
        name = self.name()
        memory, maxmem = self.number("memory"), self.number("maxmem")
        vcpus, maxvcpus = self.vcpus()
        vuart = self.choice("vuart")
        for event in ("poweroff", "reboot", "watchdog", "crash", "soft_reset"):
            self.choice(f"on_{event}")
        config = GuestConfig(
            name=name,
            type=kind,
            memory_mib=next((m for m in (memory, maxmem) if m is not None), _DEFAULT_MEMORY),
            maxmem_mib=maxmem,
            vcpus=vcpus,
            maxvcpus=maxvcpus,
            vuart=vuart if vuart == "sbsa_uart" else None,
            pci=self.pci(),
            dtdev=self.entries("dtdev", parse_dtdev),
            passthrough=self.choice("passthrough"),
        )
        return self.build_rest(self.boot(config))

    def build_rest(self, config: GuestConfig) -> GuestConfig:
        """The keys that xl reads after the kernel."""
        return replace(
            config,
            irqs=self.entries("irqs", parse_irq),
            iomem=self.entries("iomem", parse_iomem),
            disk=self.items("disk"),
            gic_version=self.choice("gic_version"),
            tee=self.choice("tee"),
            nr_spis=self.nr_spis(),
            viommu=self.choice("viommu"),
            virtio=self.virtio(),
        )

    def domain_type(self) -> str:
        """``type``, or the deprecated ``builder``; pvh when neither is there."""
        kind, builder = self.choice("type"), self.choice("builder")
        if not builder:
            return kind or "pvh"
        built = {"hvm": "hvm", "generic": "pv"}[builder]
        if kind and kind != built:
            raise self.refuse(
                "builder",
                'Contradicting "builder" and "type" options specified.',
                "leave builder out; it is deprecated",
            )
        return built

    def name(self) -> str:
        name = self.string("name")
        if name is None:
            raise self.refuse("name", "Domain name must be specified.", 'add name="..."')
        return name

    def vcpus(self) -> tuple[int, int]:
        """``vcpus`` and ``maxvcpus``, where 0 means 1 and the same as ``vcpus``."""
        vcpus = max(self.number("vcpus") or 0, 1)
        maxvcpus = self.number("maxvcpus") or vcpus
        if maxvcpus < vcpus:
            fix = f"make maxvcpus at least {vcpus} or leave it out"
            raise self.refuse("maxvcpus", "xl: maxvcpus < vcpus", fix)
        return vcpus, maxvcpus

    def pci(self) -> tuple[PciSpec, ...]:
        """``pci``, on top of the ``pci_*`` flags."""
        preset = PciSpec(
            msitranslate=self.flag("pci_msitranslate"),
            power_mgmt=self.flag("pci_power_mgmt"),
            permissive=self.flag("pci_permissive"),
            seize=self.flag("pci_seize"),
        )
        found: list[PciSpec] = []
        for text in self.read.items(_KEY["pci"]):
            try:
                found.append(parse_pci(text, preset))
            except SpecError as error:
                refusal = f"unable to parse PCI_SPEC_STRING `{text}' for passthrough"
                # xl ends the detail without a line feed.
                raise ConfigError(
                    self.read.source,
                    self.read.line("pci"),
                    "".join(f"{line}: " for line in error.report) + refusal,
                    "write [DDDD:]BB:DD.F[@SLOT][,KEY=VALUE]* in hex, without blanks",
                    report=("".join(error.report) + refusal,),
                    exit_code=-error.code,
                ) from None
        return tuple(found)

    def entries(self, name: str, parser: Callable[[str], _Entry]) -> tuple[_Entry, ...]:
        """The entries of a list key, each read by its own little language."""
        found: list[_Entry] = []
        for text in self.read.items(_KEY[name]):
            try:
                found.append(parser(text))
            except SpecError as error:
                raise self.read.error(_KEY[name], str(error)) from None
        return tuple(found)

    def boot(self, config: GuestConfig) -> GuestConfig:
        """Kernel, ramdisk, device tree and command line; something must boot."""
        kernel, ramdisk = self.string("kernel"), self.string("ramdisk")
        device_tree, cmdline = self.string("device_tree"), self.cmdline()
        bootloader = self.string("bootloader")
        if config.type != "hvm":
            self.firmware(kernel, bootloader)
        return replace(
            config, kernel=kernel, ramdisk=ramdisk, device_tree=device_tree, cmdline=cmdline
        )

    def firmware(self, kernel: str | None, bootloader: str | None) -> None:
        """Refuses a guest with nothing, or with two things, to boot."""
        firmware = self.string("firmware")
        if firmware is not None:
            if kernel is not None:
                raise self.refuse(
                    "firmware", "ERROR: both kernel and firmware specified", "keep one of them"
                )
            if not any(word.startswith(firmware) for word in ("pvgrub32", "pvgrub64")):
                raise self.refuse(
                    "firmware",
                    "ERROR: only pvgrub{32|64} supported as firmware options",
                    'give a kernel="..." instead',
                )
        elif kernel is None and bootloader is None:
            raise self.refuse(
                "kernel", "Neither kernel nor bootloader specified", 'add kernel="PATH"'
            )

    def cmdline(self) -> str | None:
        """``cmdline``, or else what ``root`` and ``extra`` make."""
        cmdline, root, extra = (self.string(name) for name in ("cmdline", "root", "extra"))
        if cmdline is not None and (root is not None or extra is not None):
            line = self.read.line("cmdline")
            said = "Warning: ignoring root= and extra= in favour of cmdline="
            message = "cmdline: root and extra are ignored beside it"
            self.read.warnings.append(Diagnostic("XL106", line, message, said))
        if cmdline is not None or root is None:
            return extra if cmdline is None else cmdline
        return f"root={root}" if extra is None else f"root={root} {extra}"

    def nr_spis(self) -> int | None:
        """``nr_spis``, cut to 32 bits; all ones means not given."""
        number = self.number("nr_spis")
        return None if number is None or number & U32_MAX == U32_MAX else number & U32_MAX

    def virtio(self) -> tuple[str, ...]:
        """``virtio``, checked but as written."""
        entries = self.items("virtio")
        for text in entries:
            try:
                check_virtio(text)
            except SpecError as error:
                reason = str(error) if error.report else f"virtio entry '{text}' is refused by xl"
                raise ConfigError(
                    self.read.source,
                    self.read.line("virtio"),
                    reason,
                    "write backend=DOM,type=virtio,device...,transport=mmio,grant_usage=0|1",
                    report=error.report,
                ) from None
        return entries
