# SPDX-License-Identifier: BSD-2-Clause
"""Keys about what a guest boots, and the devices of the host it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xl_configs.getters import as_i32
from xl_configs.readers import hvm
from xl_configs.specs.pci import PciSpec, parse_pci, parse_rdm
from xl_configs.specs.record import as_json
from xl_configs.specs.scan import U32_MAX, SpecError, ascii_lower, strtok

if TYPE_CHECKING:
    from xl_configs.getters import Reader
    from xl_configs.keys import Key

_TSC_MODES = ("default", "always_emulate", "native", "native_paravirt")
_TIMER_MODES = (
    "delay_for_missed_ticks",
    "no_delay_for_missed_ticks",
    "no_missed_ticks_pending",
    "one_missed_tick_pending",
)
_ALTP2M_MODES = ("disabled", "mixed", "external", "limited")
_PREBUILT = ("pvgrub32", "pvgrub64")
_FIRMWARE_DIR = "/usr/lib/xen-4.20/boot"


def read_rdm(reader: Reader, key: Key) -> None:
    """``rdm``: reserved memory of assigned devices; xl goes on whatever it says."""
    text = reader.string(key.name)
    if text is None:
        return
    try:
        strategy = parse_rdm(text, reader.sayer(key, unended=True))
    except SpecError as error:
        report = "".join(error.report)
        reader.note(
            "XL111", key.name, 'xl ignores the key, use "strategy=host"', report, unended=True
        )
        return
    reader.values[key.name] = strategy
    if reader.guest_type == "hvm":
        # What was not said was never written.
        reader.put("b_info/type.hvm/rdm/strategy", strategy)
        reader.put("b_info/type.hvm/rdm/policy", None)


def read_pci(reader: Reader, key: Key) -> None:
    """``pci``, on top of the ``pci_*`` flags."""

    def flag(name: str) -> bool:
        return bool((reader.values[f"pci_{name}"] or 0) & U32_MAX)

    preset = PciSpec(
        msitranslate=flag("msitranslate"),
        power_mgmt=flag("power_mgmt"),
        permissive=flag("permissive"),
        seize=flag("seize"),
    )
    found: list[PciSpec] = []
    for text in reader.strings(key.name) or ():
        try:
            found.append(parse_pci(text, preset))
        except SpecError as error:
            refusal = f"unable to parse PCI_SPEC_STRING `{text}' for passthrough"
            # xl ends the detail without a line feed.
            raise reader.refuse(
                key.name,
                "".join(f"{line}: " for line in error.report) + refusal,
                key.fix,
                code=error.exit_code,
                report=("".join(error.report) + refusal,),
            ) from None
    reader.values["pci"] = tuple(found)
    if found:
        shown = as_json(tuple(found))
        # After rdm, xl copies a policy to the devices that it never wrote.
        preset_policy = None if "rdm" in reader.values else "strict"
        for entry in shown:
            if reader.guest_type != "hvm" or preset_policy is None:
                entry.setdefault("rdm_policy", preset_policy)
        reader.put("pcidevs", shown)
        if reader.guest_type == "pv":
            reader.put_flag("b_info/type.pv/e820_host", True)


def read_mode(reader: Reader, key: Key, words: tuple[str, ...], into: str, *, warned: bool) -> None:
    """A word, or the deprecated number that stands for it."""
    number = reader.quiet_number(key.name)
    if number is None:
        text = reader.string(key.name)
        if text is None:
            return
        word = ascii_lower(text)
        if word not in words and not (key.name == "timer_mode" and word == "unknown"):
            reason = f'ERROR: invalid value "{text}" for "{key.name}"'
            raise reader.refuse(key.name, reason, f"use one of {', '.join(words)}")
    else:
        word = words[number] if 0 <= number < len(words) else ""
        if warned:
            _warn_mode(reader, key, number)
        if not word:
            reason = f'ERROR: invalid value {number} for "{key.name}"'
            raise reader.refuse(key.name, reason, f"use one of {', '.join(words)}")
    reader.values[key.name] = word
    reader.put(into, word)


def _warn_mode(reader: Reader, key: Key, number: int) -> None:
    # xl looks the example up by the low 32 bits.
    words = {"tsc_mode": _TSC_MODES, "timer_mode": _TIMER_MODES}[key.name]
    low = as_i32(number)
    shown = words[low] if 0 <= low < len(words) else ""
    if low == -1 and key.name == "timer_mode":
        shown = "unknown"
    example = f'e.g. {key.name}="{shown}"' if shown else ""
    message = f"a number is deprecated, {example}".removesuffix(", ")
    report = (
        f'WARNING: specifying "{key.name}" as an integer is deprecated. '
        f"Please use the named parameter variant. {example}"
    )
    reader.note("XL110", key.name, message, report)


def read_tsc_mode(reader: Reader, key: Key) -> None:
    """``tsc_mode``."""
    read_mode(reader, key, _TSC_MODES, "b_info/tsc_mode", warned=True)


def read_timer_mode(reader: Reader, key: Key) -> None:
    """``timer_mode``, which pv guests must not have."""
    if reader.guest_type == "pv" and isinstance(reader.raw(key.name), str):
        reason = 'ERROR: "timer_mode" option is not supported for PV guests.'
        raise reader.refuse(key.name, reason, "leave it out", code=3)
    read_mode(reader, key, _TIMER_MODES, "b_info/timer_mode", warned=True)


def read_altp2m(reader: Reader, key: Key) -> None:
    """``altp2m``."""
    read_mode(reader, key, _ALTP2M_MODES, "b_info/altp2m", warned=False)


def read_altp2m_count(reader: Reader, key: Key) -> None:
    """``altp2m_count``, 16 bits."""
    number = reader.quiet_number(key.name)
    if number is not None and not 0 <= number <= 0xFFFF:
        reason = f'ERROR: invalid value {number} for "altp2m_count"'
        raise reader.refuse(key.name, reason, "use 0 to 65535")


def read_vmtrace(reader: Reader, key: Key) -> None:
    """``vmtrace_buf_kb``."""
    number = reader.quiet_number(key.name)
    if number:
        reader.put("b_info/vmtrace_buf_kb", as_i32(number))


def read_vncviewer(reader: Reader, key: Key) -> None:
    """``vncviewer``, which xl ignores."""
    if reader.number(key.name) is not None:
        report = (
            'WARNING: ignoring "vncviewer" option. Use "-V" option of "xl create" to '
            "automatically spawn vncviewer."
        )
        reader.note("XL110", key.name, f"ignored by xl, use {key.instead}", report)


def read_cmdline(reader: Reader, key: Key) -> None:
    """``cmdline``, or else what ``root`` and ``extra`` make."""
    cmdline, root, extra = (reader.string(name) for name in ("cmdline", "root", "extra"))
    if cmdline is not None and (root is not None or extra is not None):
        said = "Warning: ignoring root= and extra= in favour of cmdline="
        reader.note("XL106", key.name, "root and extra are ignored beside it", said)
    made = cmdline
    if cmdline is None:
        made = extra
        if root is not None:
            made = f"root={root}" if extra is None else f"root={root} {extra}"
    reader.values["cmdline"] = made
    if made is not None:
        reader.put("b_info/cmdline", made)


def read_arguments(reader: Reader, key: Key) -> None:
    """A list of arguments; what is no string ends it."""
    into = {"": "extra", "_pv": "extra_pv", "_hvm": "extra_hvm"}[
        key.name.removeprefix("device_model_args")
    ]
    found = reader.strings(key.name)
    if found is None and reader.raw(key.name) is not None:
        reason = f"xl: Unable to parse {key.name}."
        raise reader.refuse(key.name, reason, key.fix, code=3)
    reader.values[key.name] = found or ()
    if found:
        reader.put(f"b_info/{into}", list(found))


def read_bootloader_args(reader: Reader, key: Key) -> None:
    """``bootloader_args``: a list, or a deprecated text of words."""
    found = reader.strings(key.name, quiet=True)
    text = reader.raw(key.name)
    if isinstance(text, str):
        report = (
            'WARNING: Specifying "bootloader_args" as a string is deprecated. '
            "Please use a list of arguments."
        )
        reader.note("XL110", key.name, "a text is deprecated, write a list of arguments", report)
        found = tuple(strtok(text, " \t\n"))
        if not found:
            reason = "no argument in the text, at which xl crashes"
            raise reader.refuse(key.name, reason, key.fix, code=-11)
    reader.values[key.name] = found or ()
    if found:
        reader.put("b_info/bootloader_args", list(found))


def read_firmware(reader: Reader, key: Key) -> None:
    """``firmware``: a prebuilt kernel; something must boot, and one thing alone."""
    if reader.guest_type == "hvm":
        hvm.read_firmware(reader, key)
        return
    firmware = reader.string(key.name)
    kernel, bootloader = reader.values["kernel"], reader.values["bootloader"]
    reader.values["firmware"] = firmware
    if firmware is not None:
        if kernel is not None:
            reason = "ERROR: both kernel and firmware specified"
            raise reader.refuse(key.name, reason, "keep one of them")
        if not any(word.startswith(firmware) for word in _PREBUILT):
            reason = "ERROR: only pvgrub{32|64} supported as firmware options"
            raise reader.refuse(key.name, reason, 'give a kernel="..." instead')
        reader.put("b_info/kernel", f"{_FIRMWARE_DIR}/{firmware}.bin")
    elif kernel is None and bootloader is None:
        reason = "Neither kernel nor bootloader specified"
        raise reader.refuse("kernel", reason, 'add kernel="PATH"')


READERS = {
    "rdm": read_rdm,
    "pci": read_pci,
    "tsc_mode": read_tsc_mode,
    "vncviewer": read_vncviewer,
    "cmdline": read_cmdline,
    "bootloader_args": read_bootloader_args,
    "timer_mode": read_timer_mode,
    "firmware": read_firmware,
    "altp2m": read_altp2m,
    "altp2m_count": read_altp2m_count,
    "vmtrace_buf_kb": read_vmtrace,
    "device_model_args": read_arguments,
    "device_model_args_pv": read_arguments,
    "device_model_args_hvm": read_arguments,
}
