# SPDX-License-Identifier: BSD-2-Clause
"""Sizes and codes of an IORT that its reader and its writer share (Arm DEN 0049)."""

from __future__ import annotations

import struct

SIGNATURE = b"IORT"
MAX_REVISION = 6
# Bytes of a table.
MAX_SIZE = 1 << 20

HEADER = struct.Struct("<4sIBB6s8sI4sIIII")
NODE = struct.Struct("<BHBIII")
MAPPING = struct.Struct("<IIIII")
IDS = 1 << 32
SINGLE = 1
COHACC, HTTU, PROXIMITY, DEVICE_ID = 1, 6, 8, 16
CAVIUM = 2
# A path of 255 names of four characters, the most that AML can write.
PATH = 1275


def is_path(name: bytes) -> bool:
    """Whether the bytes can be a path of the ACPI namespace: by its characters and length."""
    return 0 < len(name) <= PATH and all(0x21 <= byte <= 0x7E for byte in name)
