# SPDX-License-Identifier: BSD-2-Clause
"""What holds in every test of the emulator: no engine sleeps while it has work."""

from __future__ import annotations

import pytest

from vsmmu.scheduler import Engine, Scheduler


@pytest.fixture(autouse=True)
def _nobody_oversleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(self: Scheduler, engine: Engine) -> None:
        raise AssertionError(f"{engine.name} slept although it had work")

    monkeypatch.setattr(Scheduler, "_oversleeps", failed)
