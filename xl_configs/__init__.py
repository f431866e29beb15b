# SPDX-License-Identifier: BSD-2-Clause
"""Reading of xl guest configurations: text to ``GuestConfig``, and back.

The names below are imported from their modules when they are first asked for: a command that needs
one of the modules does not wait for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xl_configs.errors import ConfigError, Diagnostic
    from xl_configs.guest_config import GuestConfig, Outcome, examine, load
    from xl_configs.keys import Dialect
    from xl_configs.parser import ParseResult, Setting, parse
    from xl_configs.specs import SpecError, parse_spec
    from xl_configs.specs.cpus import Host
    from xl_configs.specs.pci import PciSpec
    from xl_configs.specs.resources import Iomem

__all__ = [
    "ConfigError",
    "Diagnostic",
    "Dialect",
    "GuestConfig",
    "Host",
    "Iomem",
    "Outcome",
    "ParseResult",
    "PciSpec",
    "Setting",
    "SpecError",
    "examine",
    "load",
    "parse",
    "parse_spec",
]

_NAMES = {
    "errors": ("ConfigError", "Diagnostic"),
    "guest_config": ("GuestConfig", "Outcome", "examine", "load"),
    "keys": ("Dialect",),
    "parser": ("ParseResult", "Setting", "parse"),
    "specs": ("SpecError", "parse_spec"),
    "specs.cpus": ("Host",),
    "specs.pci": ("PciSpec",),
    "specs.resources": ("Iomem",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A name of ``__all__``, of its module. Raises AttributeError for any other."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
