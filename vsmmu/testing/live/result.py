# SPDX-License-Identifier: BSD-2-Clause
"""What became of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Trap(NamedTuple):
    """One access that a vCPU did not do by itself: a read when `written` is None.

    `value` is what was read or written; None where nothing answered, which the vCPU took as an
    abort.
    """

    vcpu: int
    window: str
    address: int
    size: int
    written: bool
    value: int | None


class VcpuEnd(NamedTuple):
    """Where a vCPU was at the end, and why it did not go on; `state` is empty where it would."""

    pc: int
    instructions: int
    state: str


@dataclass(frozen=True, slots=True)
class Result:
    """A run's result.

    Attributes:
        reason: "exit", the program wrote the exit register; "instructions", they were used up;
            "waits", every vCPU waits for an interrupt and nothing is left that could raise one;
            "lockup", a vCPU could not go on, see its `state`; "turns", the machine did not come to
            rest; "destroyed", its domain is.
        exit_code: what was written to the exit register.
        console: what was written to the console.
        instructions: executed by all vCPUs.
        traps: accesses by window.
        accesses: the first of them in order, at most `board.ACCESSES_KEPT`.
    """

    reason: str
    exit_code: int | None
    console: str
    instructions: int
    vcpus: tuple[VcpuEnd, ...]
    traps: dict[str, int]
    accesses: tuple[Trap, ...]

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return self.reason == "exit" and self.exit_code == 0

    def __str__(self) -> str:
        code = f" {self.exit_code}" if self.reason == "exit" else ""
        states = [f"; vcpu {i}: {v.state}" for i, v in enumerate(self.vcpus) if v.state]
        return f"{self.reason}{code} after {self.instructions} instructions{''.join(states)}"
