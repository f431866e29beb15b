# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures for the tests of the physical SMMU."""

from __future__ import annotations

import pytest

from .machine import Machine


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make_machine() -> type[Machine]:
    return Machine
