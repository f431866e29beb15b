# SPDX-License-Identifier: BSD-2-Clause
"""Emulator of physical SMMUv3s and of a hypervisor that gives each guest its own vSMMU."""

from __future__ import annotations

__version__ = "0.1.0"
