# SPDX-License-Identifier: BSD-2-Clause
"""From the text of a guest configuration to what the rest of the program uses.

Accepted and refused is what xl 4.20 accepts and refuses, with these exceptions: keys that later
versions or the vIOMMU series read are checked as those check them, a file has a greatest size, and
so have a few numbers (``MOST_VCPUS``, ``MOST_COLORS``). Defaulting that libxl does after the parse
is left to the caller, but for ``memory``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from xl_configs.errors import ConfigError, Diagnostic, printed, shown
from xl_configs.frozen import field, fields, frozen, is_record, replace
from xl_configs.getters import Reader
from xl_configs.keys import INSTEAD, KNOWN_KEYS, Dialect
from xl_configs.parser import MAX_SIZE, ParseResult, Value, parse
from xl_configs.quoting import NUL_IN_STRING
from xl_configs.readers import read_all
from xl_configs.specs.scan import U32_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xl_configs.readers.domain import VnumaNode
    from xl_configs.specs.cpus import Host
    from xl_configs.specs.devices import P9, Channel, Pvcallsif, Usbctrl, Usbdev, Virtio, Vtpm
    from xl_configs.specs.devid_map import DevidMap
    from xl_configs.specs.disk import Disk
    from xl_configs.specs.display import Vdispl, Vfb, Vkb
    from xl_configs.specs.nic import Nic
    from xl_configs.specs.pci import PciSpec
    from xl_configs.specs.resources import Iomem, Ioports
    from xl_configs.specs.sound import Vsnd

_DEFAULT_MEMORY = 32
_MOST_UNKNOWN = 64
_LONGEST_COMPARED = 40


@frozen
class GuestConfig:
    """A guest, as its configuration describes it: every key of xl.cfg that an Arm guest can have.

    A key that is absent, or that xl ignores, is None or empty unless a default is given here. An
    attribute has the name of its key; sizes say their unit.

    Attributes:
        name: of the domain; may be empty.
        type: ``pvh``, ``pv`` or ``hvm``; libxl runs pv as pvh on Arm and refuses hvm.
        uuid: lower case, or None for libxl to make one up.
        init_seclabel: FLASK label while it is built.
        seclabel: FLASK label while it runs.
        pool: name of a cpupool.
        memory_mib: memory at start; 32 when the configuration says nothing, ``maxmem`` when it
            says only that. Any 64-bit number, as xl takes it; 0..2^32 is sensible.
        maxmem_mib: greatest memory, or None for the same as at start.
        shadow_memory_mib: size of the pool for its page tables.
        vcpus: virtual CPUs at start, 1..``MOST_VCPUS``.
        maxvcpus: greatest number of them.
        cpus: for each vCPU the physical CPUs it may run on, as written; vCPUs beyond are free.
        cpus_soft: for each vCPU the physical CPUs it should run on.
        cpu_weight: of the scheduler, as are the next two.
        cap: percent of one physical CPU.
        period: nanoseconds.
        llc_colors: cache colours, in order.
        vnuma: virtual NUMA nodes.
        max_grant_frames: 0..2^31-1; as are the next two.
        max_maptrack_frames: see there.
        max_grant_version: see there.
        max_event_channels: greatest number of them.
        on_poweroff: what to do then, as for the next four.
        on_reboot: see there.
        on_watchdog: see there.
        on_crash: see there.
        on_soft_reset: see there.
        hap: hardware-assisted paging.
        nomigrate: never to be moved or saved.
        driver_domain: it serves devices to other domains.
        acpi: it gets ACPI tables.
        vpmu: it gets a performance monitor.
        kernel: path, or None when ``bootloader`` or ``firmware`` stands for it.
        ramdisk: path or None.
        device_tree: path of the partial device tree, or None.
        cmdline: kernel command line from ``cmdline``, or ``root`` and ``extra``; None if none.
        bootloader: path of a program that finds the kernel.
        bootloader_args: its arguments.
        bootloader_user: the user it runs as.
        bootloader_restrict: whether it is confined.
        firmware: name of a prebuilt kernel.
        dtdev: host device tree paths of devices to assign, unchecked.
        iomem: ranges of 4 KiB frames to map.
        irqs: GIC interrupt numbers to map (SPI n is n + 32).
        ioports: of no use on Arm.
        pci: PCI devices to assign.
        passthrough: ``default``, ``disabled``, ``enabled``, ``sync_pt`` or ``share_pt``.
        viommu: ``none`` or ``smmuv3``.
        iommu_devid_map: vMasterIDs that the user wants; the rest are given out.
        gic_version: ``default``, ``v2`` or ``v3``.
        vuart: ``sbsa_uart`` or None.
        tee: ``none``, ``optee`` or ``ffa``.
        sve: ``disabled``, ``hw`` or a vector length in bits.
        nr_spis: number of SPIs asked for, 32 bits, or None.
        trap_unmapped_accesses: whether they fault.
        arm_sci: ``none`` or ``scmi_smc``, or None.
        disk: see ``specs.disk``, as for the next ones.
        vif: networks.
        virtio: virtio devices.
        p9: shared folders.
        vtpm: TPMs.
        vdispl: displays.
        vsnd: sound cards.
        pvcalls: sockets of the backend.
        channel: private consoles.
        vfb: framebuffers.
        vkb: keyboards and pointers.
        usbctrl: USB controllers.
        usbdev: USB devices.
        device_model_override: path of a device model.
        device_model_version: of which kind it is.
        device_model_user: the user it runs as.
        device_model_args: its further arguments.
        others: every other key, as it stands: those for x86, for other versions, for nobody.
        warnings: what xl ignores or would not warn about, by line.
    """

    name: str
    type: str = "pvh"
    uuid: str | None = None
    init_seclabel: str | None = None
    seclabel: str | None = None
    pool: str | None = None
    memory_mib: int = _DEFAULT_MEMORY
    maxmem_mib: int | None = None
    shadow_memory_mib: int | None = None
    vcpus: int = 1
    maxvcpus: int = 1
    cpus: tuple[str, ...] = ()
    cpus_soft: tuple[str, ...] = ()
    cpu_weight: int | None = None
    cap: int | None = None
    period: int | None = None
    llc_colors: tuple[int, ...] = ()
    vnuma: tuple[VnumaNode, ...] = ()
    max_grant_frames: int | None = None
    max_maptrack_frames: int | None = None
    max_grant_version: int | None = None
    max_event_channels: int | None = None
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_watchdog: str = "destroy"
    on_crash: str = "destroy"
    on_soft_reset: str = "soft-reset"
    hap: bool | None = None
    nomigrate: bool | None = None
    driver_domain: bool | None = None
    acpi: bool | None = None
    vpmu: bool | None = None
    kernel: str | None = None
    ramdisk: str | None = None
    device_tree: str | None = None
    cmdline: str | None = None
    bootloader: str | None = None
    bootloader_args: tuple[str, ...] = ()
    bootloader_user: str | None = None
    bootloader_restrict: bool | None = None
    firmware: str | None = None
    dtdev: tuple[str, ...] = ()
    iomem: tuple[Iomem, ...] = ()
    irqs: tuple[int, ...] = ()
    ioports: tuple[Ioports, ...] = ()
    pci: tuple[PciSpec, ...] = ()
    passthrough: str = "default"
    viommu: str = "none"
    iommu_devid_map: tuple[DevidMap, ...] = ()
    gic_version: str = "default"
    vuart: str | None = None
    tee: str = "none"
    sve: str = "disabled"
    nr_spis: int | None = None
    trap_unmapped_accesses: bool | None = None
    arm_sci: str | None = None
    disk: tuple[Disk, ...] = ()
    vif: tuple[Nic, ...] = ()
    virtio: tuple[Virtio, ...] = ()
    p9: tuple[P9, ...] = ()
    vtpm: tuple[Vtpm, ...] = ()
    vdispl: tuple[Vdispl, ...] = ()
    vsnd: tuple[Vsnd, ...] = ()
    pvcalls: tuple[Pvcallsif, ...] = ()
    channel: tuple[Channel, ...] = ()
    vfb: tuple[Vfb, ...] = ()
    vkb: tuple[Vkb, ...] = ()
    usbctrl: tuple[Usbctrl, ...] = ()
    usbdev: tuple[Usbdev, ...] = ()
    device_model_override: str | None = None
    device_model_version: str | None = None
    device_model_user: str | None = None
    device_model_args: tuple[str, ...] = ()
    others: tuple[tuple[str, Value], ...] = ()
    warnings: tuple[Diagnostic, ...] = ()


@frozen
class Outcome:
    """What one reader makes of a configuration.

    Attributes:
        config: the guest; None when it is refused.
        error: why it is refused, or None.
        said: the warnings, in the order in which they were met.
        report: what xl prints, line by line; complete for the dialects of xl.
        exit_code: of ``xl create -n``; minus the signal where it crashes.
        domain: libxl's domain configuration, as ``xl create -n`` prints it; empty when refused.
    """

    config: GuestConfig | None
    error: ConfigError | None
    said: tuple[Diagnostic, ...]
    report: tuple[str, ...]
    exit_code: int
    domain: Mapping[str, Any] = field(default_factory=dict)


def load(
    data: bytes,
    source: str,
    overrides: Sequence[str] = (),
    *,
    max_size: int = MAX_SIZE,
    strict: bool = True,
    dialect: Dialect = Dialect.OURS,
) -> GuestConfig:
    """Reads a guest configuration.

    Args:
        data: the file.
        source: its name, for messages.
        overrides: ``key=value`` arguments after the file name; later settings win, and ``+=``
            adds. Their lines are numbered on after the file and one blank line.
        max_size: bytes, overrides included.
        strict: whether to keep the warnings that xl does not print.
        dialect: whose reading it is.

    Raises:
        ConfigError: the syntax, a value or a combination is refused.
    """
    parsed = parse(with_overrides(data, source, overrides), source, max_size=max_size)
    outcome = examine(parsed, source, dialect)
    if outcome.config is None:
        assert outcome.error is not None
        raise outcome.error
    if strict:
        return outcome.config
    printed_too = tuple(w for w in outcome.config.warnings if w.report)
    return replace(outcome.config, warnings=printed_too)


def examine(
    parsed: ParseResult,
    source: str,
    dialect: Dialect = Dialect.OURS,
    host: Host | None = None,
) -> Outcome:
    """Reads a parsed configuration as one of the readers does; never raises.

    Args:
        parsed: of the whole text.
        source: its name, for messages.
        dialect: whose reading it is.
        host: the machine whose CPUs count for ``cpus`` and ``vnuma``; without one, none is left
            out for not being there.
    """
    if not parsed.ok:
        error = _syntax_error(parsed, source)
        return Outcome(None, error, (), error.report, error.exit_code)
    reader = Reader(parsed, source, dialect, host)
    try:
        read_all(reader)
    except ConfigError as error:
        return Outcome(None, error, error.said, error.report, error.exit_code)
    said = tuple(reader.said)
    warnings = [*said, *_unknown_keys(parsed), *_dropped(parsed)]
    warnings.sort(key=lambda warning: (warning.line or 0, warning.id))
    config = _guest(reader, parsed, tuple(warnings))
    return Outcome(config, None, said, printed(said), 0, reader.domain)


_RENAMED = {"memory_mib": "memory", "maxmem_mib": "maxmem", "shadow_memory_mib": "shadow_memory"}
_NOT_KEYS = {"others", "warnings"}
_TYPED = {_RENAMED.get(attribute.name, attribute.name) for attribute in fields(GuestConfig)}
_TYPED |= {"builder", "root", "extra"}
_TYPED |= {"pci_msitranslate", "pci_power_mgmt", "pci_permissive", "pci_seize"}


def _guest(reader: Reader, parsed: ParseResult, warnings: tuple[Diagnostic, ...]) -> GuestConfig:
    """The typed guest, of the values that were read."""
    found: dict[str, Any] = {"warnings": warnings}
    for attribute in fields(GuestConfig):
        value = reader.values.get(_RENAMED.get(attribute.name, attribute.name))
        if value is not None and attribute.name not in _NOT_KEYS:
            found[attribute.name] = value
    found["type"] = reader.guest_type
    found["vcpus"] = max(found["vcpus"], 1)
    found["maxvcpus"] = max(found.get("maxvcpus", 0), found["vcpus"])
    if found.get("vuart") == "unknown":
        del found["vuart"]
    if "nr_spis" in found:
        found["nr_spis"] &= U32_MAX
        if found["nr_spis"] == U32_MAX:
            del found["nr_spis"]
    if "memory_mib" not in found and "maxmem_mib" in found:
        found["memory_mib"] = found["maxmem_mib"]
    found["others"] = tuple(
        (name, value) for name, value in parsed.effective.items() if name not in _TYPED
    )
    return GuestConfig(**found)


def with_overrides(data: bytes, source: str, overrides: Sequence[str]) -> bytes:
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
_FAILED_TO_PARSE = "Failed to parse config: Invalid argument"
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


def syntax_errors(parsed: ParseResult, source: str) -> list[ConfigError]:
    """One error for each message about a text that is not a configuration."""
    hinted = parsed.report[-1].startswith("warning:")
    messages = [line for line in parsed.report if not line.startswith("warning:")]
    return [_message(line, source, python=hinted) for line in messages]


def _message(text: str, source: str, *, python: bool) -> ConfigError:
    """The error that one of xl's lines stands for."""
    rest = text.removeprefix(source)
    found = _REPORTED.fullmatch(rest)
    line, reason = (int(found[1]), found[2]) if found else (None, rest.lstrip(": "))
    if line is not None and "unexpected NEWLINE, expecting" in reason:
        line += 1  # xl counts one too few at the end of a line
    fix = next((fix for part, fix in _SYNTAX_FIXES if part in reason), "correct the line")
    if python:
        fix = "write plain key = value settings; xl runs no Python"
    crash = NUL_IN_STRING in reason
    report = (text,) if crash else (text, _FAILED_TO_PARSE)
    return ConfigError(source, line, reason, fix, report=report, exit_code=-6 if crash else 1)


def _syntax_error(parsed: ParseResult, source: str) -> ConfigError:
    """The error for a text that is not a configuration: its first, with all that xl prints."""
    errors = syntax_errors(parsed, source)
    first = errors[0]
    # At a NUL byte in a string xl ends itself, whatever came before.
    code = min(error.exit_code for error in errors)
    report = parsed.report if code < 0 else (*parsed.report, _FAILED_TO_PARSE)
    return ConfigError(source, first.line, first.reason, first.fix, report=report, exit_code=code)


def refused(error: ConfigError) -> ParseResult:
    """A parse result for what could not even be put together."""
    return ParseResult(ok=False, report=(f"{error.source}: {error.reason}",))


_HEX_FIELDS = {"start", "gfn", "base", "first"}


def guest_json(config: GuestConfig) -> dict[str, Any]:
    """A guest as plain data: every attribute but the warnings; addresses as hex strings."""
    shown = {
        attribute.name: _plain(getattr(config, attribute.name))
        for attribute in fields(GuestConfig)
        if attribute.name not in _NOT_KEYS
    }
    return {**shown, "others": dict(config.others)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not is_record(value):
        return value
    return {
        field.name: hex(held) if field.name in _HEX_FIELDS else _plain(held)
        for field in fields(value)
        for held in (getattr(value, field.name),)
    }


def _unknown_keys(parsed: ParseResult) -> list[Diagnostic]:
    """XL101 for each key xl does not look up, which it ignores without a word."""
    first_lines: dict[str, int] = {}
    for setting in parsed.settings:
        if setting.name not in KNOWN_KEYS:
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
    """XL109 for escapes that stand for nothing, XL107 for a last byte that xl drops."""
    text = "an octal escape stands for nothing in xl; write the character itself"
    found = [Diagnostic("XL109", line, text) for line in parsed.vanished[:_MOST_UNKNOWN]]
    if not parsed.dropped:
        return found
    last = f"0x{ord(parsed.dropped):02x}"
    message = f"the last byte, {last}, is dropped by xl; take it out or end the line after it"
    return [*found, Diagnostic("XL107", None, message)]


def _meant(name: str) -> str:
    """The known key that a spelling is closest to, as the end of a sentence."""
    from difflib import get_close_matches

    close = [INSTEAD[name]] if name in INSTEAD else []
    if not close and len(name) <= _LONGEST_COMPARED:
        close = get_close_matches(name, sorted(KNOWN_KEYS), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""
