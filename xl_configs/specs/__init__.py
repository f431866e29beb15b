# SPDX-License-Identifier: BSD-2-Clause
"""The little languages inside the strings of a guest configuration.

Each reader accepts exactly the strings xl accepts and raises ``SpecError`` with xl's message
otherwise. Numbers follow the C conversions xl uses: 64 bits, saturating when too big, and a minus
sign wraps around.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xl_configs.specs.scan import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KINDS", "SpecError", "parse_spec"]


def parse_spec(
    kind: str,
    text: str,
    say: Callable[[str], None] = lambda line: None,
    source: str = "cfg",
) -> Any:
    """Reads one entry of a list key, or one text of another key that has a language of its own.

    Args:
        kind: one of ``KINDS``: the key, or ``bdf`` and ``rate`` for parts of ``pci`` and ``vif``.
        text: the entry.
        say: takes the lines xl prints without refusing the entry.
        source: name of the configuration, with which some of xl's lines begin.

    Returns:
        A record of libxl's fields; for ``dtdev`` the text, for ``irqs`` the number, for ``cpus``
        the CPUs in ascending order, for ``llc_colors`` the first and last colour, for ``rdm`` the
        strategy or None.

    Raises:
        SpecError: xl refuses the entry, or crashes at it.
        ValueError: no such kind.
    """
    if kind not in _PARSERS:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    module, name, more = _PARSERS[kind]
    parser = getattr(import_module(f"xl_configs.specs.{module}"), name)
    found = parser(text, **{name: {"say": say, "source": source}[name] for name in more})
    if kind == "cpus":
        return tuple(import_module("xl_configs.specs.cpus").members(found))
    return found


# Kind -> module, function, and what it takes beside the text.
_PARSERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "bdf": ("pci", "parse_bdf", ()),
    "channel": ("devices", "parse_channel", ("say",)),
    "cpus": ("cpus", "parse_cpus", ()),
    "disk": ("disk", "parse_disk", ("source",)),
    "dtdev": ("resources", "parse_dtdev", ()),
    "iomem": ("resources", "parse_iomem", ()),
    "iommu_devid_map": ("devid_map", "parse_devid_map", ()),
    "ioports": ("resources", "parse_ioports", ("say",)),
    "irqs": ("resources", "parse_irq", ()),
    "llc_colors": ("cpus", "parse_llc_colors", ()),
    "p9": ("devices", "parse_p9", ("say",)),
    "pci": ("pci", "parse_pci", ()),
    "pvcalls": ("devices", "parse_pvcalls", ("say",)),
    "rate": ("nic", "parse_rate", ("source",)),
    "rdm": ("pci", "parse_rdm", ("say",)),
    "usbctrl": ("devices", "parse_usbctrl", ("say",)),
    "usbdev": ("devices", "parse_usbdev", ("say",)),
    "vdispl": ("display", "parse_vdispl", ("say",)),
    "vfb": ("display", "parse_vfb", ("say",)),
    "vif": ("nic", "parse_vif", ("say", "source")),
    "virtio": ("devices", "parse_virtio", ("say",)),
    "vkb": ("display", "parse_vkb", ("say",)),
    "vtpm": ("devices", "parse_vtpm", ("say",)),
}

KINDS = tuple(_PARSERS)
"""The kinds that ``parse_spec`` reads."""
