# SPDX-License-Identifier: BSD-2-Clause
"""The builder that all tests of this folder share, with other processes of the same run too."""

from __future__ import annotations

import os

import pytest

from .build import Builder


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    place = tmp_path_factory.getbasetemp()
    return Builder((place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "live")
