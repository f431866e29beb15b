# SPDX-License-Identifier: BSD-2-Clause
"""From a ``GuestConfig`` back to the text of a guest configuration.

Reading the text gives the same guest. To xl it is the same domain as the text the guest was read
from, but for what a ``GuestConfig`` does not say:

* whether a key was written that has its default: ``vcpus=1``, and a ``memory`` that is ``maxmem``
  or 32, are left out; libxl makes the same of it, but for 32 MiB beside ``vnuma``. So is an
  ``nr_spis`` of 2^32-1, which stands for none, and a guest frame that is the host's (``iomem``).
  One vCPU that is pinned is written, since xl 4.20 pins none where ``vcpus`` is absent. ``pnode``
  is written.
* whether ``cpus`` was one text or a list of as many equal ones as there are vCPUs, or whether a
  list of them was empty: it is written as one text or not at all, which leaves NUMA placement to
  libxl.
* whether a key of ``others`` was added to with ``+=``, at which xl ignores a number. It is written
  with ``=``, unless that makes another guest.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

from xl_configs.errors import ConfigError, shown
from xl_configs.frozen import fields, replace
from xl_configs.guest_config import GuestConfig, load
from xl_configs.quoting import _ESCAPES
from xl_configs.readers.devices import _LOG_DIR
from xl_configs.readers.domain import MOST_VCPUS
from xl_configs.specs.cpus import parse_cpus
from xl_configs.specs.scan import U64_MAX, SpecError
from xl_configs.specs.written import WRITTEN, ranges, writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    # A number is written bare where xl reads a bare number, a text in quotes.
    Written: TypeAlias = str | int | tuple["Written", ...]

_WIDTH = 90
_INDENT = "    "
# Lists in lists that are broken into lines; below, a list is one line however long.
_BROKEN_LEVELS = 2

_GROUPS = (
    "name type uuid",
    "kernel ramdisk device_tree cmdline firmware"
    " bootloader bootloader_args bootloader_user bootloader_restrict",
    "memory_mib maxmem_mib shadow_memory_mib vcpus maxvcpus cpus cpus_soft"
    " cpu_weight cap period llc_colors vnuma",
    "passthrough viommu iommu_devid_map dtdev iomem irqs ioports pci",
    "gic_version vuart tee sve nr_spis trap_unmapped_accesses arm_sci"
    " hap acpi vpmu nomigrate driver_domain",
    "disk vif virtio p9 vtpm vdispl vsnd pvcalls channel vfb vkb usbctrl usbdev",
    "device_model_override device_model_version device_model_user device_model_args",
    "on_poweroff on_reboot on_watchdog on_crash on_soft_reset",
    "pool init_seclabel seclabel"
    " max_grant_frames max_maptrack_frames max_grant_version max_event_channels",
)
GROUPS = tuple(tuple(group.split()) for group in _GROUPS)
"""The attributes in the order in which they are written, a blank line between the groups."""


def to_cfg(config: GuestConfig) -> str:
    """A guest as an xl.cfg: one setting a line, long lists broken, keys with defaults left out.

    The text is read back before it is handed out, so that no caller gets one that means something
    else. As bytes it is ``text.encode("utf-8", "surrogateescape")``, and may be somewhat longer
    than what the guest was read from.

    Args:
        config: a guest; a device without ``devid`` gets the one that xl gives it.

    Raises:
        ValueError: no configuration gives a key its value, which happens to no guest that ``load``
            makes; the text begins with the key.
    """
    refusal = None
    others = {name for name, _ in config.others}
    present = [name for name in _ADDED if name in others]
    for count in range(len(present) + 1):
        for added in combinations(present, count):
            text = _text(config, added)
            try:
                _check(config, text)
            except ValueError as error:
                refusal = refusal or error
            else:
                return text
    assert refusal is not None
    raise refusal


# Numbers that make another guest, or none, but stand for nothing where += made them.
_ADDED = ("altp2m_count", "mmio_hole", "vnc", "vncdisplay")


def _text(config: GuestConfig, added: tuple[str, ...]) -> str:
    """The text, with ``+=`` for some of the other keys."""
    groups = [list(_settings(config, names)) for names in GROUPS]
    groups.append([])
    for name, value in config.others:
        operator = "+=" if name in added else "="
        groups[-1].append(_setting(name, value, _as_it_stands, operator))
    return "\n\n".join("\n".join(group) for group in groups if group) + "\n"


def _settings(config: GuestConfig, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        key = name.removesuffix("_mib")
        try:
            value = _written(config, name)
        except SpecError as error:
            raise ValueError(f"{key}: {shown(str(error))}") from None
        if value is not None:
            yield _setting(key, value)


# Values


def _written(config: GuestConfig, name: str) -> Written | None:
    """What is written for an attribute, or None where its key is left out."""
    if name in _SPECIAL:
        return _SPECIAL[name](config)
    value = _said(config, name)
    if value is not None and name in WRITTEN:
        return tuple(map(writer(name), value))
    return int(value) if isinstance(value, bool) else value


_DEFAULTS: dict[str, Any] = {attribute.name: attribute.default for attribute in fields(GuestConfig)}


def _said(config: GuestConfig, name: str) -> Any:
    """A value, or None where it is the default."""
    value = getattr(config, name)
    return None if value == _DEFAULTS.get(name) else value


def _memory(config: GuestConfig) -> int | None:
    unsaid = _DEFAULTS["memory_mib"] if config.maxmem_mib is None else config.maxmem_mib
    return None if config.memory_mib == unsaid else config.memory_mib


def _vcpus(config: GuestConfig) -> int | None:
    if config.vcpus != 1 or (config.maxvcpus == 1 and _pinned(config)):
        return config.vcpus
    return None


def _pinned(config: GuestConfig) -> bool:
    """Whether CPUs are named, and not in a way that xl refuses where there are vCPUs."""
    if not config.cpus:
        return bool(config.cpus_soft)
    try:
        return "node" in config.cpus[0] or bool(parse_cpus(config.cpus[0]))
    except SpecError:
        return True


def _maxvcpus(config: GuestConfig) -> int | None:
    # With vnuma, xl wants as many as the host has CPUs at most, unless they are written.
    placed = any(node.vcpus for node in config.vnuma)
    return config.maxvcpus if placed or config.maxvcpus != config.vcpus else None


def _cpus(texts: tuple[str, ...], config: GuestConfig) -> Written | None:
    if len(texts) == config.maxvcpus and len(set(texts)) == 1:
        return texts[0]
    return texts or None


def _vnuma(config: GuestConfig) -> Written | None:
    named = sum(len(node.vcpus) for node in config.vnuma)
    # xl counts a vCPU as often as it is named, and those that it has no room for.
    more = config.maxvcpus - named if named or config.maxvcpus != config.vcpus else 0
    nodes = []
    for node in config.vnuma:
        parts = [f"pnode={node.pnode}"]
        if node.memkb != U64_MAX:
            parts.append(f"size={node.memkb >> 10}")
        if node.vcpus:
            parts.append(f"vcpus={','.join(ranges(node.vcpus))}")
        if more > 0:
            parts.append(f"vcpus={MOST_VCPUS}-{MOST_VCPUS + more - 1}")
            more = 0
        said = max((at for at, far in enumerate(node.distances, 1) if far), default=0)
        if said:
            parts.append(f"vdistances={','.join(map(str, node.distances[:said]))}")
        nodes.append(tuple(parts))
    return tuple(nodes) or None


def _p9(config: GuestConfig) -> Written | None:
    # The default path depends on the name, and may be one that cannot be written.
    unsaid = f"{_LOG_DIR}/guests/{config.name}"
    return tuple(
        writer("p9")(
            replace(entry, path=None)
            if (entry.type, entry.path) == ("xen_9pfsd", unsaid)
            else entry
        )
        for entry in config.p9
    )


_SPECIAL: dict[str, Callable[[GuestConfig], Written | None]] = {
    "memory_mib": _memory,
    "vcpus": _vcpus,
    "maxvcpus": _maxvcpus,
    "cpus": lambda config: _cpus(config.cpus, config),
    "cpus_soft": lambda config: _cpus(config.cpus_soft, config),
    "llc_colors": lambda config: tuple(ranges(config.llc_colors)) or None,
    "vnuma": _vnuma,
    "sve": lambda config: int(config.sve) if config.sve.isdecimal() else _said(config, "sve"),
    "arm_sci": lambda config: None if config.arm_sci is None else f"type={config.arm_sci}",
    "p9": lambda config: _p9(config) or None,
}

# Layout

_QUOTED = {ord(char): f"\\{letter}" for letter, char in _ESCAPES.items() if char != "'"}
_BARE = re.compile("0|[1-9][0-9]*|0x[0-9a-f]+")


def _atom(value: str | int) -> str:
    """A text in quotes, a number without them unless it has a sign."""
    if isinstance(value, int):
        return str(value) if value >= 0 else f'"{value}"'
    return f'"{value.translate(_QUOTED)}"'


def _as_it_stands(value: str | int) -> str:
    """A text that nobody knows the meaning of: what looks like a number is bare."""
    text = str(value)
    return text if _BARE.fullmatch(text) else _atom(text)


def _setting(
    key: str, value: Written, atom: Callable[[str | int], str] = _atom, operator: str = "="
) -> str:
    """``key = value``, a list over several lines where it is long.

    Raises:
        ValueError: characters that no file holds.
    """
    text = f"{key} {operator} "
    text += _listed(value, atom, len(text)) if isinstance(value, tuple) else atom(value)
    if "\0" in text:
        raise ValueError(f"{key}: a NUL character")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{key}: a character that is not of UTF-8") from None
    return text


def _listed(
    value: tuple[Written, ...], atom: Callable[[str | int], str], before: int, level: int = 0
) -> str:
    """A list on one line where there is room, or broken: numbers share lines, texts do not."""
    line = _line(value, atom)
    if level == _BROKEN_LEVELS or before + len(line) <= _WIDTH:
        return line
    inner = _INDENT * (level + 1)
    if all(isinstance(item, int) for item in value):
        from textwrap import wrap

        items = wrap(line[1:-1] + ",", _WIDTH - len(inner), break_on_hyphens=False)
    else:
        items = [
            (_listed(item, atom, len(inner), level + 1) if isinstance(item, tuple) else atom(item))
            + ","
            for item in value
        ]
    return "".join(["[\n", *(f"{inner}{item}\n" for item in items), _INDENT * level, "]"])


def _line(value: tuple[Written, ...], atom: Callable[[str | int], str]) -> str:
    """A list of any depth on one line."""
    parts = ["["]
    around = [iter(value)]
    while around:
        for item in around[-1]:
            if parts[-1] != "[":
                parts.append(", ")
            if isinstance(item, tuple):
                parts.append("[")
                around.append(iter(item))
                break
            parts.append(atom(item))
        else:
            parts.append("]")
            around.pop()
    return "".join(parts)


# The promise


def _check(config: GuestConfig, text: str) -> None:
    """Reads the text back.

    Raises:
        ValueError: it does not make the guest.
    """
    data = text.encode("utf-8", "surrogateescape")
    try:
        found = load(data, "xl.cfg", max_size=len(data))
    except ConfigError as error:
        line = text.split("\n")[(error.line or 1) - 1]
        key = line.partition(" ")[0] if error.line else "name"
        raise ValueError(f"{key}: {shown(error.reason)}") from None
    for name in _DEFAULTS:
        key, held, wanted = name.removesuffix("_mib"), getattr(found, name), getattr(config, name)
        if name in WRITTEN and len(held) == len(wanted):
            wanted = tuple(map(_numbered, wanted, held))
        if name not in ("others", "warnings") and held != wanted:
            raise ValueError(f"{key}: no configuration gives it {shown(repr(wanted))}")
    if [name for name, _ in found.others] != [name for name, _ in config.others]:
        raise ValueError("others: a key with an attribute of its own, or one that is there twice")
    for (name, held), (_, wanted) in zip(found.others, config.others, strict=True):
        if not _same(held, wanted):
            raise ValueError(f"{name}: no configuration gives it this value")


def _numbered(entry: Any, held: Any) -> Any:
    """An entry with the number that it gets, where it has none."""
    return replace(entry, devid=held.devid) if getattr(entry, "devid", 0) is None else entry


def _same(one: Written, other: Written) -> bool:
    """Whether two values are equal, of any depth."""
    pairs = [(one, other)]
    while pairs:
        left, right = pairs.pop()
        if not (isinstance(left, tuple) and isinstance(right, tuple)):
            if left != right:
                return False
        elif len(left) != len(right):
            return False
        else:
            pairs += zip(left, right, strict=True)
    return True
