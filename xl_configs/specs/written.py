# SPDX-License-Identifier: BSD-2-Clause
"""Records back to the texts of list entries; those of devices are in ``written_devices``.

Each writer is the inverse of the reader of its key: reading what it gives makes the record again,
for every record that the reader can give. A field that has its default is left out, and a record
that no text stands for gives one that reads differently.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from xl_configs.frozen import fields
from xl_configs.specs.scan import U32_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from xl_configs.specs.devid_map import DevidMap
    from xl_configs.specs.pci import PciSpec
    from xl_configs.specs.resources import Iomem, Ioports


def ranges(numbers: Iterable[int]) -> list[str]:
    """``N`` and ``N-M`` for numbers in order, each run of successive ones as a range."""
    runs = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ends = (list(run) for _, run in runs)
    return [f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in ends]


def _value(held: Any) -> str:
    """The value of a field."""
    if isinstance(held, tuple):
        return ";".join(map(str, held))
    if held == -1:
        return str(U32_MAX)  # all 64 bits set are no number to some of xl's readers
    return str(int(held) if isinstance(held, bool) else held)


def options(record: Any, names: Iterable[tuple[str, str]], empty: str = "") -> Iterator[str]:
    """``key=value`` for each field that does not have its default.

    Args:
        record: whose fields they are.
        names: key and field.
        empty: what reads as an empty value.
    """
    defaults = {field.name: field.default for field in fields(record)}
    for key, name in names:
        held = getattr(record, name)
        if held != defaults[name]:
            yield f"{key}={_value(held) or empty}"


def write_iomem(entry: Iomem) -> str:
    """``START,NUM`` or ``START,NUM@GFN``."""
    placed = "" if entry.gfn == entry.start else f"@{entry.gfn:#x}"
    return f"{entry.start:#x},{entry.count:#x}{placed}"


def write_ioports(entry: Ioports) -> str:
    """``A`` or ``A-B``."""
    last = (entry.first + entry.number - 1) & U32_MAX
    return f"{entry.first:x}" if entry.number == 1 else f"{entry.first:x}-{last:x}"


def write_devid_map(entry: DevidMap) -> str:
    """``PMASTER_ID,BASE`` or ``PMASTER_ID@VMASTER_ID,BASE``."""
    chosen = "" if entry.vmaster == entry.pmaster else f"@{entry.vmaster:#x}"
    return f"{entry.pmaster:#x}{chosen},{entry.base:#x}"


_PCI_OPTIONS = [
    (name, name) for name in ("permissive", "msitranslate", "power_mgmt", "seize", "rdm_policy")
]


def write_pci(entry: PciSpec) -> str:
    """``DDDD:BB:DD.F@SLOT`` or ``name=NAME``, with the options, whether preset or its own."""
    slot = f"{entry.vdevfn >> 3:x}"
    if entry.name is None:
        function = "*" if entry.vfunc_mask == U32_MAX else f"{entry.func:x}"
        place = f"{entry.domain:04x}:{entry.bus:02x}:{entry.dev:02x}.{function}"
        place += f"@{slot}" if entry.vdevfn else ""
    else:
        place = f"name={entry.name}" + (f",vslot={slot}" if entry.vdevfn else "")
    return ",".join([place, *options(entry, _PCI_OPTIONS)])


_WRITERS: dict[str, Callable[[Any], str]] = {
    "iomem": write_iomem,
    "ioports": write_ioports,
    "iommu_devid_map": write_devid_map,
    "pci": write_pci,
}
_DEVICES = (
    *("disk", "vif", "virtio", "p9", "vtpm", "vdispl", "vsnd", "pvcalls", "channel"),
    *("vfb", "vkb", "usbctrl", "usbdev"),
)
WRITTEN = frozenset((*_WRITERS, *_DEVICES))
"""The keys whose entries are records."""


def writer(key: str) -> Callable[[Any], str | tuple[str, ...]]:
    """What makes the text of an entry of a key of ``WRITTEN``; for ``vsnd`` the texts of a card."""
    if key in _WRITERS:
        return _WRITERS[key]
    # The languages of devices are many, and most configurations have few.
    from xl_configs.specs.written_devices import WRITERS

    return WRITERS[key]
