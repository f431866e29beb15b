# SPDX-License-Identifier: BSD-2-Clause
"""Runs a real driver, built for AArch64 with no operating system, on the emulated SMMUs.

A `Board` has RAM, device windows and an interrupt controller on a machine that exists; a program
(`Image`) runs on it until it writes the exit register. docs/live.md has an example.
"""

from vsmmu.testing.live.board import Board, Master, Places, Window, missing
from vsmmu.testing.live.boards import board_of_guest, board_of_smmus
from vsmmu.testing.live.devices import Console, Device, DmaEngine, Exit, Words
from vsmmu.testing.live.gic import Gic
from vsmmu.testing.live.image import Image, LiveError, Segment
from vsmmu.testing.live.ram import Ram
from vsmmu.testing.live.result import Result, Trap, VcpuEnd

__all__ = [
    "Board",
    "Console",
    "Device",
    "DmaEngine",
    "Exit",
    "Gic",
    "Image",
    "LiveError",
    "Master",
    "Places",
    "Ram",
    "Result",
    "Segment",
    "Trap",
    "VcpuEnd",
    "Window",
    "Words",
    "board_of_guest",
    "board_of_smmus",
    "missing",
]
