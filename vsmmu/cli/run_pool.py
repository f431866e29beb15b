# SPDX-License-Identifier: BSD-2-Clause
"""The processes of `vsmmu run -j`: none of them is left when the command ends, however it does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from types import FrameType

# What asks this process to end, beside an interrupt from the keyboard, which Python raises itself.
_ENDING = ("SIGTERM", "SIGHUP")
# How a shell tells that a signal ended a command.
_SIGNALLED = 128


@contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh interpreters: what one inherits by a fork is not the same everywhere.

    Where something is raised within, what they are at is given up.

    Raises:
        SystemExit: SIGTERM or SIGHUP; 128 and the signal's number.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with (
        _ended_with_us(),
        ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_worker) as made,
    ):
        try:
            yield made
        except BaseException:
            _end_workers()
            raise


@contextmanager
def _ended_with_us() -> Iterator[None]:
    """A signal that would end this process alone ends the others first.

    One that is ignored, as under nohup, stays so; only the main thread may say what a signal does.
    """
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    ours = threading.current_thread() is threading.main_thread()
    numbers = [n for n in numbers if ours and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    """Not by the unwinding alone: what raises here may be caught until all cases have run."""
    _end_workers()
    sys.exit(_SIGNALLED + number)


def _end_workers() -> None:
    from multiprocessing import active_children

    for child in active_children():
        child.terminate()


# In a process of the pool.


def _worker() -> None:
    """An interrupt from the keyboard ends it without a word, and so does its parent's end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Waits for the parent, which may be killed and say nothing to anybody."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    assert parent is not None, "a pool's process has one"
    wait([parent.sentinel])
    os._exit(1)
