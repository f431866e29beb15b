# SPDX-License-Identifier: BSD-2-Clause
"""The little languages inside the strings of a guest configuration.

Each reader accepts exactly the strings xl accepts and raises ``SpecError`` with xl's message
otherwise. Numbers follow the C conversions xl uses: 64 bits, saturating when too big, and a minus
sign wraps around.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xl_configs.specs import devices
from xl_configs.specs.cpus import members, parse_cpus, parse_llc_colors
from xl_configs.specs.devid_map import parse_devid_map
from xl_configs.specs.disk import parse_disk
from xl_configs.specs.nic import parse_rate, parse_vif
from xl_configs.specs.pci import parse_bdf, parse_pci, parse_rdm
from xl_configs.specs.resources import parse_dtdev, parse_iomem, parse_ioports, parse_irq
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
    reader = _READERS.get(kind)
    if reader is None:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    return reader(text, say, source)


_READERS: dict[str, Callable[[str, Callable[[str], None], str], Any]] = {
    "bdf": lambda text, say, source: parse_bdf(text),
    "channel": lambda text, say, source: devices.parse_channel(text, say),
    "cpus": lambda text, say, source: tuple(members(parse_cpus(text))),
    "disk": lambda text, say, source: parse_disk(text, source),
    "dtdev": lambda text, say, source: parse_dtdev(text),
    "iomem": lambda text, say, source: parse_iomem(text),
    "iommu_devid_map": lambda text, say, source: parse_devid_map(text),
    "ioports": lambda text, say, source: parse_ioports(text, say),
    "irqs": lambda text, say, source: parse_irq(text),
    "llc_colors": lambda text, say, source: parse_llc_colors(text),
    "p9": lambda text, say, source: devices.parse_p9(text, say),
    "pci": lambda text, say, source: parse_pci(text),
    "pvcalls": lambda text, say, source: devices.parse_pvcalls(text, say),
    "rate": lambda text, say, source: parse_rate(text, source),
    "rdm": lambda text, say, source: parse_rdm(text, say),
    "usbctrl": lambda text, say, source: devices.parse_usbctrl(text, say),
    "usbdev": lambda text, say, source: devices.parse_usbdev(text, say),
    "vdispl": lambda text, say, source: devices.parse_vdispl(text, say),
    "vfb": lambda text, say, source: devices.parse_vfb(text, say),
    "vif": parse_vif,
    "virtio": lambda text, say, source: devices.parse_virtio(text, say),
    "vkb": lambda text, say, source: devices.parse_vkb(text, say),
    "vtpm": lambda text, say, source: devices.parse_vtpm(text, say),
}

KINDS = tuple(_READERS)
"""The kinds that ``parse_spec`` reads."""
