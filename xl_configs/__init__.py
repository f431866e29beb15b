# SPDX-License-Identifier: BSD-2-Clause
"""Reading of xl guest configurations: text to ``GuestConfig``, and back."""

from __future__ import annotations

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
