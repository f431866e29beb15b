# SPDX-License-Identifier: BSD-2-Clause
"""Reading of xl guest configurations: text to ``GuestConfig``."""

from __future__ import annotations

from xl_configs.errors import ConfigError, Diagnostic
from xl_configs.guest_config import GuestConfig, load
from xl_configs.parser import ParseResult, Setting, parse
from xl_configs.specs import Iomem, PciSpec, SpecError, parse_spec

__all__ = [
    "ConfigError",
    "Diagnostic",
    "GuestConfig",
    "Iomem",
    "ParseResult",
    "PciSpec",
    "Setting",
    "SpecError",
    "load",
    "parse",
    "parse_spec",
]
