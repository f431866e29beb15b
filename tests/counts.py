# SPDX-License-Identifier: BSD-2-Clause
"""How many examples a property gets: a slice in `make test`, all of them in `make soak`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import settings

SLICE = 4
Test = TypeVar("Test", bound=Callable[..., object])


def sliced(examples: int) -> Callable[[Test], Test]:
    """A property of so many examples, always the same, of which `make test` draws a quarter."""
    count = examples if os.environ.get("VSMMU_SOAK") else examples // SLICE

    def apply(test: Test) -> Test:
        drawn = settings(max_examples=count, deadline=None, derandomize=True)(test)
        return pytest.mark.sliced(drawn)

    return apply
