# SPDX-License-Identifier: BSD-2-Clause
"""Keys of hvm guests, which xl for Arm reads like any other before libxl refuses such a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xl_configs.specs.scan import U64_MAX, ascii_lower

if TYPE_CHECKING:
    from collections.abc import Callable

    from xl_configs.getters import Reader
    from xl_configs.keys import Key

_HVM = "b_info/type.hvm/"
_BIOSES = ("unknown", "rombios", "seabios", "ovmf")
_ENLIGHTENMENTS = (
    *("base", "freq", "time_ref_count", "reference_tsc", "hcall_remote_tlb_flush"),
    *("apic_assist", "crash_ctl", "synic", "stimer", "hcall_ipi", "ex_processor_masks"),
    *("no_vp_limit", "cpu_hotplug"),
)
_SMBIOS = (
    *("bios_vendor", "bios_version", "system_manufacturer", "system_product_name"),
    *("system_version", "system_serial_number", "baseboard_manufacturer"),
    *("baseboard_product_name", "baseboard_version", "baseboard_serial_number"),
    *("baseboard_asset_tag", "baseboard_location_in_chassis", "enclosure_manufacturer"),
    *("enclosure_serial_number", "enclosure_asset_tag", "battery_manufacturer"),
    *("battery_device_name", "oem"),
)
_VIRIDIAN_BITS = 64
_MOST_OEM = 99
_LOW_MMIO, _HIGH_MMIO = 1 << 28, 0xF0000000


def read_kernel(reader: Reader, key: Key) -> None:
    """``kernel``, when it names the firmware of old."""
    kernel = reader.values["kernel"]
    if kernel is not None and kernel.rpartition("/")[2] == "hvmloader":
        report = (
            'WARNING: you seem to be using "kernel" directive to override HVM guest firmware. '
            'Ignore that. Use "firmware_override" instead if you really want a non-default '
            "firmware"
        )
        reader.note("XL110", "kernel", "ignored by xl, use firmware_override", report)
        reader.domain["b_info"].pop("kernel", None)


def read_bios(reader: Reader, key: Key) -> None:
    """``bios``; a path for one should come with its name."""
    text = reader.string(key.name)
    if text is None:
        if reader.values["bios_path_override"] is not None:
            report = "WARNING: bios_path_override given without specific bios name"
            reader.note("XL110", "bios_path_override", "give bios too", report)
        return
    _enumerated(reader, key, text, _BIOSES)
    reader.put(_HVM + "bios", ascii_lower(text))


def _enumerated(reader: Reader, key: Key, text: str, words: tuple[str, ...]) -> None:
    if ascii_lower(text) not in words:
        reason = f'ERROR: invalid value "{text}" for "{key.name}"'
        raise reader.refuse(key.name, reason, f"use one of {', '.join(words)}")


def read_viridian(reader: Reader, key: Key) -> None:
    """``viridian``: enlightenments by name, or a number."""
    listed = reader.list(key.name, quiet=True)
    if listed is None:
        number = reader.quiet_number(key.name)
        if number is not None:
            reader.put_flag(_HVM + "viridian", bool(number))
        return
    on: set[int] = set()
    off: set[int] = set()
    for text in listed:
        if not isinstance(text, str):
            reason = "an element is a list, at which xl crashes"
            raise reader.refuse(key.name, reason, "list names of enlightenments", code=-11)
        if text == "defaults":
            reader.put_flag(_HVM + "viridian", True)
        elif text == "all":
            on.update(range(_VIRIDIAN_BITS))
        else:
            name = text.removeprefix("!")
            if ascii_lower(name) not in _ENLIGHTENMENTS:
                reason = f"xl: unknown viridian enlightenment '{name}'"
                raise reader.refuse(key.name, reason, "correct it", code=3)
            bit = _ENLIGHTENMENTS.index(ascii_lower(name))
            added, removed = (off, on) if name != text else (on, off)
            added.add(bit)
            removed.discard(bit)
    for name, bits in (("viridian_enable", on), ("viridian_disable", off)):
        if bits:
            reader.put(_HVM + name, sorted(bits))


def read_mmio_hole(reader: Reader, key: Key) -> None:
    """``mmio_hole``, MiB."""
    number = reader.number(key.name)
    if number is None:
        return
    kilobytes = (number * 1024) & U64_MAX
    if not _LOW_MMIO <= (kilobytes * 1024) & U64_MAX <= _HIGH_MMIO:
        reason = f'ERROR: invalid value {number} for "mmio_hole"'
        raise reader.refuse(key.name, reason, "use 256 to 3840")
    reader.put(_HVM + "mmio_hole_memkb", kilobytes)


def read_altp2mhvm(reader: Reader, key: Key) -> None:
    """``altp2mhvm``, deprecated."""
    number = reader.number(key.name)
    if number is not None:
        reader.put_flag(_HVM + "altp2m", bool(number))
        report = 'WARNING: Specifying "altp2mhvm" is deprecated. Please use "altp2m" instead.'
        reader.note("XL110", key.name, f"deprecated, use {key.instead}", report)


def read_smbios(reader: Reader, key: Key) -> None:
    """``smbios``, a list of ``name=text``."""
    listed = reader.list(key.name)
    if listed is None:
        if reader.raw(key.name) is not None:
            reason = "xl: Unable to parse smbios options."
            raise reader.refuse(key.name, reason, "write a list")
        return
    found = []
    oem = 0
    for index, text in enumerate(listed):
        reason = _smbios_trouble(index, text)
        if reason:
            raise reader.refuse(key.name, reason, 'write smbios=["NAME=TEXT", ...]')
        assert isinstance(text, str)
        name, _, value = text.partition("=")
        found.append({"key": ascii_lower(name), "value": value})
        oem += name.lower() == "oem"
        if oem > _MOST_OEM:
            reason = "xl: smbios limited to 99 oem strings"
            raise reader.refuse(key.name, reason, "leave some out")
    if found:
        reader.put(_HVM + "smbios", found)


def _smbios_trouble(index: int, text: object) -> str:
    """Why xl refuses an entry; empty if it does not."""
    if not isinstance(text, str):
        return f"xl: Unable to get element #{index} in smbios list"
    name, equals, value = text.partition("=")
    if not equals:
        return f"xl: failed to split \"{text}\" at '='"
    if not value:
        return f'xl: empty value not allowed for smbios "{name}="'
    if ascii_lower(name) not in _SMBIOS:
        return f"xl: unknown smbios type '{name}'"
    return ""


def read_ms_vm_genid(reader: Reader, key: Key) -> None:
    """``ms_vm_genid``: ``generate`` or ``none``."""
    text = reader.string(key.name)
    if text not in (None, "generate", "none"):
        reason = 'ERROR: "ms_vm_genid" option must be "generate" or "none"'
        raise reader.refuse(key.name, reason, "use one of them")
    if text == "generate":
        reader.put(_HVM + "ms_vm_genid", "<generated>")


def read_mca_caps(reader: Reader, key: Key) -> None:
    """``mca_caps``, of which there is one."""
    listed = reader.list(key.name, quiet=True)
    if listed is None:
        if reader.raw(key.name) is not None:
            reason = "ERROR: unable to parse mca_caps."
            raise reader.refuse(key.name, reason, 'write mca_caps=["lmce"]', code=3)
        return
    for text in listed:
        if text != "lmce":
            if not isinstance(text, str):
                reason = "an element is a list, at which xl crashes"
                raise reader.refuse(key.name, reason, 'write mca_caps=["lmce"]', code=-11)
            reason = f"ERROR: unrecognized MCA capability '{text}'."
            raise reader.refuse(key.name, reason, 'write mca_caps=["lmce"]', code=3)
        reader.put(_HVM + "mca_caps", 1)


def read_firmware(reader: Reader, key: Key) -> None:
    """``firmware`` of an hvm guest: a bios by name, or a path."""
    text = reader.string(key.name)
    reader.values[key.name] = text
    if text is None:
        return
    if ascii_lower(text) in _BIOSES:
        reader.domain["b_info"]["type.hvm"].pop("bios", None)
        reader.put(_HVM + "bios", ascii_lower(text))
    elif "uefi".startswith(text):
        reader.put(_HVM + "bios", "ovmf")
    elif not "bios".startswith(text):
        reader.put(_HVM + "firmware", text)


def read_vga(reader: Reader, key: Key) -> None:
    """``vga``, or ``stdvga``."""
    text = reader.string(key.name)
    kinds = {"stdvga": "std", "cirrus": "cirrus", "none": "none", "qxl": "qxl"}
    if text is not None:
        if text not in kinds:
            reason = f'Unknown vga "{text}" specified'
            raise reader.refuse(key.name, reason, f"use one of {', '.join(kinds)}")
        reader.put(_HVM + "vga/kind", kinds[text])
    else:
        number = reader.number("stdvga")
        if number is not None:
            reader.put(_HVM + "vga/kind", "std" if number else "cirrus")


def read_hdtype(reader: Reader, key: Key) -> None:
    """``hdtype``."""
    text = reader.string(key.name)
    if text is not None:
        _enumerated(reader, key, text, ("ide", "ahci"))
        reader.put(_HVM + "hdtype", ascii_lower(text))


def read_gfx_passthru(reader: Reader, key: Key) -> None:
    """``gfx_passthru``: a number or a kind."""
    number = reader.quiet_number(key.name)
    if number is not None:
        reader.put_flag(_HVM + "gfx_passthru", bool(number))
        return
    text = reader.string(key.name)
    if text is not None:
        _enumerated(reader, key, text, ("default", "igd"))
        reader.put(_HVM + "gfx_passthru_kind", ascii_lower(text))
        reader.put_flag(_HVM + "gfx_passthru", True)


def _one_or_more(into: str) -> Callable[[Reader, Key], None]:
    """A text, or a list of them."""

    def read(reader: Reader, key: Key) -> None:
        found = reader.strings(key.name, quiet=True)
        if found is None:
            text = reader.raw(key.name)
            if isinstance(text, str):
                reader.put(_HVM + into, text)
        elif found:
            reader.put(_HVM + into + "_list", list(found))

    return read


def check_vnc(reader: Reader, key: Key) -> None:
    """``vnclisten`` and ``vncdisplay`` must not both say the display."""
    vnc = reader.domain["b_info"]["type.hvm"]["vnc"]
    if vnc.get("display") and ":" in vnc.get("listen", ""):
        reason = "ERROR: Display specified both in vnclisten and vncdisplay!"
        raise reader.refuse("vncdisplay", reason, "leave vncdisplay out")


def read_vendor_device(reader: Reader, key: Key) -> None:
    """``vendor_device``."""
    text = reader.string(key.name)
    if text is None:
        return
    if ascii_lower(text) not in ("none", "xenserver"):
        reason = f"xl: unknown vendor_device '{text}'"
        raise reader.refuse(key.name, reason, "use none or xenserver", code=3)
    reader.put(_HVM + "vendor_device", ascii_lower(text))


READERS = {
    "hvm_kernel": read_kernel,
    "bios": read_bios,
    "viridian": read_viridian,
    "mmio_hole": read_mmio_hole,
    "altp2mhvm": read_altp2mhvm,
    "smbios": read_smbios,
    "ms_vm_genid": read_ms_vm_genid,
    "mca_caps": read_mca_caps,
    "vga": read_vga,
    "hdtype": read_hdtype,
    "gfx_passthru": read_gfx_passthru,
    "serial": _one_or_more("serial"),
    "usbdevice": _one_or_more("usbdevice"),
    "hvm_vnc": check_vnc,
    "vendor_device": read_vendor_device,
}
