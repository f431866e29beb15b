# SPDX-License-Identifier: BSD-2-Clause
"""Where a recorder listens: register accesses, and accesses of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vsmmu.smmu.transaction import Access, Outcome


class Tap(Protocol):
    """Told what software does to registers, at a physical SMMU or a vSMMU."""

    def read(self, offset: int, size: int, value: int) -> None:
        """A register was read."""
        ...  # pragma: no cover

    def written(self, offset: int, size: int, value: int) -> None:
        """A register was written; nothing has come of it yet."""
        ...  # pragma: no cover


class DmaTap(Protocol):
    """Told what devices do, at a physical SMMU."""

    def before(self, access: Access) -> None:
        """A device is about to access memory."""
        ...  # pragma: no cover

    def after(self, access: Access, outcome: Outcome) -> None:
        """What became of it; its event waits for the event writer."""
        ...  # pragma: no cover
