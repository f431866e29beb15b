# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# By its module's name: an editable install may be older than its entry point.
pytest_plugins = ["pytester", "vsmmu.testing.plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite tests/golden from this run's output"
    )


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-goldens"))


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real boards, configs and SMMU programs; absent on most machines."""
    place = Path(os.environ.get("VSMMU_CORPUS", ROOT.parent / "shared" / "corpus"))
    if not place.is_dir():
        pytest.skip(f"no corpus at {place} (set VSMMU_CORPUS)")
    return place


@pytest.fixture(scope="session")
def samples() -> Path:
    return ROOT / "samples"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the full counts of the fuzzers for `make soak`."""
    if os.environ.get("VSMMU_SOAK"):
        return
    full = [item for item in items if item.get_closest_marker("soak")]
    if full:
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in full]
