# SPDX-License-Identifier: BSD-2-Clause
"""Keys whose entries are devices, or ranges of the host to map.

The languages of the entries are imported by the keys that have any: they are many, and most
configurations have few.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xl_configs.frozen import replace
from xl_configs.getters import as_i32
from xl_configs.keys import Dialect
from xl_configs.specs.record import as_json
from xl_configs.specs.resources import Iomem, parse_iomem, parse_ioports, parse_irq
from xl_configs.specs.scan import ascii_lower, strtok

if TYPE_CHECKING:
    from collections.abc import Callable

    from xl_configs.getters import Reader
    from xl_configs.keys import Key
    from xl_configs.specs import devices as spec
    from xl_configs.specs.display import Vkb
    from xl_configs.specs.sound import Vsnd

    Say = Callable[[str], None]

_LOG_DIR = "/var/log/xen"


def read_dtdev(reader: Reader, key: Key) -> None:
    """``dtdev``: paths in the host's device tree, unchecked."""
    paths = reader.strings(key.name) or ()
    reader.values[key.name] = paths
    if paths:
        reader.put("dtdevs", [{"path": path} for path in paths])


def read_ioports(reader: Reader, key: Key) -> None:
    """``ioports``, which Arm guests have no use for."""
    say = reader.sayer(key)
    items = reader.all_strings(key, "xl: Unable to get element #{} in ioport list")
    found = tuple(reader.entry(key, parse_ioports, text, say) for text in items)
    reader.values[key.name] = found
    if found:
        reader.put("b_info/ioports", as_json(found))


def read_irqs(reader: Reader, key: Key) -> None:
    """``irqs``."""
    items = reader.all_strings(key, "xl: Unable to get element {} in irq list")
    found = tuple(reader.entry(key, parse_irq, text) for text in items)
    reader.values[key.name] = found
    if found:
        reader.put("b_info/irqs", list(found))


def read_iomem(reader: Reader, key: Key) -> None:
    """``iomem``."""
    found = []
    shown = []
    for text in reader.all_strings(key, "xl: Unable to get element {} in iomem list"):
        entry = reader.entry(key, parse_iomem, text)
        found.append(entry)
        shown.append(_range(entry, "@" in text))
    reader.values[key.name] = tuple(found)
    if found:
        reader.put("b_info/iomem", shown)


def _range(entry: Iomem, placed: bool) -> dict[str, int]:
    """A range as libxl writes it: what is zero, or no guest frame, is left out."""
    shown = {"start": entry.start, "number": entry.count}
    shown = {name: value for name, value in shown.items() if value}
    if placed and entry.gfn != (1 << 64) - 1:
        shown["gfn"] = entry.gfn
    return shown


def _entries(
    reader: Reader, key: Key, into: str, parser: Callable[[str], Any], *, numbered: bool = True
) -> None:
    """A list of devices, numbered in order unless an entry says its own number."""
    found: list[Any] = []
    for text in reader.strings(key.name) or ():
        entry = reader.entry(key, parser, text)
        if numbered and entry.devid is None:
            entry = replace(entry, devid=len(found))
        found.append(entry)
    reader.values[key.name] = tuple(found)
    if found:
        reader.put(into, as_json(tuple(found)))


def read_disk(reader: Reader, key: Key) -> None:
    """``disk``."""
    from xl_configs.specs.disk import parse_disk

    _entries(reader, key, "disks", lambda text: parse_disk(text, reader.source), numbered=False)


def read_p9(reader: Reader, key: Key) -> None:
    """``p9``; the daemon of Xen's own shares the guest's log folder unless it has a path."""
    from xl_configs.specs import devices as spec

    logs = f"{_LOG_DIR}/guests/{reader.values['name']}"

    def parse(text: str) -> spec.P9:
        entry = spec.parse_p9(text)
        bare = entry.type == "xen_9pfsd" and entry.path is None
        return replace(entry, path=logs) if bare else entry

    _entries(reader, key, "p9s", parse, numbered=False)


def read_vsnd(reader: Reader, key: Key) -> None:
    """``vsnd``: a list of cards, each a list of texts."""
    from xl_configs.specs.sound import parse_vsnd

    cards: list[Vsnd] = []
    for item in reader.list(key.name) or ():
        if isinstance(item, str):
            reason = "Failed to get vsnd card list: Invalid argument"
            place = f"{reader.source}:{reader.line(key.name)}:0"
            report = (f"{place}: warning: value is not a list", reason)
            raise reader.refuse(key.name, reason, key.fix, report=report)
        texts = []
        for text in item:
            if not isinstance(text, str):
                reader.note("XL103", key.name, "a card is cut at an element that is a list")
                break
            texts.append(text)
        card = reader.entry(key, parse_vsnd, texts)
        cards.append(replace(card, devid=len(cards)))
    reader.values[key.name] = tuple(cards)
    if cards:
        reader.put("vsnds", as_json(tuple(cards)))


def read_vif(reader: Reader, key: Key) -> None:
    """``vif``."""
    from xl_configs.specs.nic import nic_json, parse_vif

    say = reader.sayer(key)
    texts = reader.strings(key.name) or ()
    found = tuple(reader.entry(key, parse_vif, text, say, reader.source) for text in texts)
    reader.values[key.name] = found
    if found:
        reader.put("nics", [nic_json(nic, index) for index, nic in enumerate(found)])


def read_vif2(reader: Reader, key: Key) -> None:
    """``vif2``, which xl has never supported."""
    if reader.list(key.name) is not None:
        report = "WARNING: vif2: netchannel2 is deprecated and not supported by xl"
        reader.note("XL110", key.name, f"ignored by xl, use {key.instead}", report)


def read_vfb(reader: Reader, key: Key) -> None:
    """``vfb``; each has a keyboard."""
    from xl_configs.specs.display import parse_vfb

    _entries(reader, key, "vfbs", parse_vfb)
    count = len(reader.values[key.name])
    if count:
        reader.put("vkbs", [{"devid": at} for at in range(count)])


def read_vkb(reader: Reader, key: Key) -> None:
    """``vkb``, numbered on after the keyboards of ``vfb``."""
    from xl_configs.specs.display import parse_vkb

    before = reader.domain.get("vkbs", [])
    found: list[Vkb] = []
    for text in reader.strings(key.name) or ():
        entry = reader.entry(key, parse_vkb, text)
        found.append(replace(entry, devid=len(before) + len(found)))
    reader.values[key.name] = tuple(found)
    if found:
        reader.put("vkbs", before + as_json(tuple(found)))


def read_vnc(reader: Reader, key: Key) -> None:
    """``vnc`` and what goes with it; a pv guest without ``vfb`` gets a framebuffer for it."""
    if reader.guest_type != "pv" or reader.values["vfb"]:
        for level, fields in _display(reader).items():
            for name, value in fields.items():
                if reader.guest_type == "hvm":
                    reader.put(f"b_info/type.hvm/{level}/{name}", value)
    elif reader.number(key.name):
        screen: dict[str, Any] = {"devid": 0, **_display(reader)}
        keymap = reader.string("keymap")
        if keymap is not None:
            screen["keymap"] = keymap
        reader.put("vfbs", [screen])
        reader.put("vkbs", [{"devid": 0}])


_DISPLAY = {
    "vnc": {"vnc": "enable", "vnclisten": "listen", "vncpasswd": "passwd"}
    | {"vncdisplay": "display", "vncunused": "findunused"},
    "sdl": {"sdl": "enable", "opengl": "opengl", "display": "display", "xauthority": "xauthority"},
}
_TEXTS = ("vnclisten", "vncpasswd", "display", "xauthority")


def _display(reader: Reader) -> dict[str, dict[str, Any]]:
    """The keys of a screen, as libxl keeps them."""
    shown: dict[str, dict[str, Any]] = {}
    for level, keys in _DISPLAY.items():
        fields = shown.setdefault(level, {})
        for name, field in keys.items():
            if name in _TEXTS:
                value: Any = reader.string(name)
            else:
                value = reader.number(name)
                if value is not None:
                    value = as_i32(value) if name == "vncdisplay" else str(bool(value))
            if value is not None and value != 0:
                fields[field] = value
    return shown


def read_cpuid(reader: Reader, key: Key) -> None:
    """``cpuid``, of which Arm looks at nothing but the first word of a text."""
    text = reader.raw(key.name)
    if isinstance(text, str):
        words = strtok(text)
        if words and words[0] != "host":
            report = f'while parsing CPUID string: "{text}":\n  error: first word must be "host"'
            reader.note("XL111", key.name, 'ignored by xl: the first word must be "host"', report)
    else:
        reader.strings(key.name)


def read_device_model(reader: Reader, key: Key) -> None:
    """``device_model``, which xl ignores."""
    text = reader.string(key.name)
    if text is None:
        return
    report = (
        "WARNING: ignoring device_model directive.\n"
        'WARNING: Use "device_model_override" instead if you really want a non-default '
        "device_model"
    )
    if "stubdom-dm" in text:
        stubdom = '"device_model_stubdomain_override"'
        report += f"\nWARNING: ignoring {stubdom} directive for pv guest"
        if reader.guest_type == "hvm":
            report = report.rpartition("\n")[0]
            report += f"\nWARNING: Or use {stubdom} if you  want to enable stubdomains"
    reader.note("XL110", key.name, f"ignored by xl, use {key.instead}", report)


def read_device_model_version(reader: Reader, key: Key) -> None:
    """``device_model_version``; an override should come with one."""
    text = reader.string(key.name)
    names = {"qemu-xen": "qemu_xen"}
    if reader.dialect is not Dialect.SERIES:
        names["qemu-xen-traditional"] = "qemu_xen_traditional"
    if text is None:
        if reader.values["device_model_override"] is not None:
            report = "WARNING: device model override given without specific DM version"
            reader.note("XL110", "device_model_override", "give device_model_version too", report)
        return
    if text not in names:
        reason = f'Unknown device_model_version "{text}" specified'
        raise reader.refuse(key.name, reason, key.fix)
    reader.values[key.name] = text
    reader.put("b_info/device_model_version", names[text])


def read_arm_sci(reader: Reader, key: Key) -> None:
    """``arm_sci``: ``type=none`` or ``type=scmi_smc``; other fields are ignored."""
    text = reader.string(key.name, quiet=True)
    kind = None
    for item in strtok(text or ""):
        if item.startswith("type="):
            given = item.removeprefix("type=")
            kind = ascii_lower(given)
            if kind not in ("none", "scmi_smc"):
                raise reader.refuse(key.name, f"Unknown ARM_SCI type: {given}", key.fix)
    if text is not None and kind is None:
        reader.note("XL111", key.name, "there is no type= in it; it sets nothing")
    reader.values[key.name] = kind


def read_devid_map(reader: Reader, key: Key) -> None:
    """``iommu_devid_map``: vMasterIDs that the user wants, by pMasterID and SMMU."""
    from xl_configs.specs.devid_map import parse_devid_map

    items = reader.all_strings(key, "element {} is a list")
    found = tuple(reader.entry(key, parse_devid_map, text) for text in items)
    reader.values[key.name] = found


def read_msr_relaxed(reader: Reader, key: Key) -> None:
    """``msr_relaxed``, x86's, with its plea."""
    number = reader.number(key.name)
    if number is not None:
        reader.put_flag("b_info/arch_x86/msr_relaxed", bool(number))
        report = (
            "WARNING: msr_relaxed will be removed in future versions.\n"
            "If it fixes an issue you are having please report to "
            "xen-devel@lists.xenproject.org."
        )
        reader.note("XL110", key.name, "goes away in later versions of xl", report)


def _plain(into: str, parser: str, module: str = "devices", *, numbered: bool = True) -> Any:
    """A reader of a list whose entries need nothing but their own text."""

    def read(reader: Reader, key: Key) -> None:
        parse = getattr(import_module(f"xl_configs.specs.{module}"), parser)
        say = reader.sayer(key)
        _entries(reader, key, into, lambda text: parse(text, say), numbered=numbered)

    return read


ENTRIES = {
    "dtdev": read_dtdev,
    "ioports": read_ioports,
    "irqs": read_irqs,
    "iomem": read_iomem,
    "disk": read_disk,
    "p9": read_p9,
    "vtpm": _plain("vtpms", "parse_vtpm"),
    "vdispl": _plain("vdispls", "parse_vdispl", "display"),
    "pvcalls": _plain("pvcallsifs", "parse_pvcalls"),
    "vsnd": read_vsnd,
    "channel": _plain("channels", "parse_channel", numbered=False),
    "vif": read_vif,
    "vfb": read_vfb,
    "usbctrl": _plain("usbctrls", "parse_usbctrl"),
    "usbdev": _plain("usbdevs", "parse_usbdev", numbered=False),
    "iommu_devid_map": read_devid_map,
    "vkb": read_vkb,
    "virtio": _plain("virtios", "parse_virtio"),
}
"""Readers of lists of entries, which need not be asked when their key is absent."""

READERS = {
    "vif2": read_vif2,
    "cpuid": read_cpuid,
    "device_model": read_device_model,
    "device_model_version": read_device_model_version,
    "vnc": read_vnc,
    "arm_sci": read_arm_sci,
    "msr_relaxed": read_msr_relaxed,
}
