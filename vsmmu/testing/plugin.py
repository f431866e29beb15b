# SPDX-License-Identifier: BSD-2-Clause
"""The pytest plugin: scenario files as tests, fixtures for machines (docs/testing.md).

It is loaded in every suite of an environment that has vsmmu installed. In one that does not use it
nothing changes: no file is opened whose name does not match, and nothing of the emulator is
imported.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vsmmu.memory import Memory
    from vsmmu.smmu.features import Features
    from vsmmu.testing.bare import BareSmmu
    from vsmmu.testing.machine import Guest, Machine
    from vsmmu.testing.space import Space

SEED_OPTION = "--vsmmu-seed"
PATTERNS = "vsmmu_scenarios"
MARKER = "vsmmu_scenario"
DEFAULT_PATTERNS = ("*.scenario.toml",)
_SEED_BITS = 64
# Never a scenario, whatever the patterns say: pytest's own configuration.
_NEVER = ("pyproject.toml", "pytest.toml", ".pytest.toml")
_LARGEST = 1 << 24


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option, and the setting of the configuration file."""
    group = parser.getgroup("vsmmu", "SMMU emulator")
    group.addoption(
        SEED_OPTION,
        action="append",
        type=_seed,
        metavar="N",
        help="seed of the interleaving, instead of those of the scenario files; may be repeated",
    )
    parser.addini(
        PATTERNS,
        type="args",
        default=list(DEFAULT_PATTERNS),
        help="patterns of the names of scenario files (default: *.scenario.toml)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker of scenario items."""
    config.addinivalue_line("markers", f"{MARKER}: a scenario file run under one seed")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Scenario files: those whose name matches, and those named on the command line.

    A file that does not mention the schema is left alone, so that another tool may have files of
    such names.
    """
    if file_path.suffix != ".toml" or file_path.name in _NEVER:
        return None
    patterns = parent.config.getini(PATTERNS)
    matches = any(fnmatch(file_path.name, pattern) for pattern in patterns)
    if not (matches or parent.session.isinitpath(file_path)) or not _means_scenario(file_path):
        return None
    from vsmmu.testing.scenarios import ScenarioFile

    return ScenarioFile.from_parent(parent, path=file_path)


def _seed(text: str) -> int:
    try:
        seed = int(text, 0)
    except ValueError:
        seed = -1
    if not 0 <= seed < 1 << _SEED_BITS:
        raise ArgumentTypeError(f"expected a number from 0 to 2^{_SEED_BITS}-1, not {text[:40]!r}")
    return seed


def _means_scenario(path: Path) -> bool:
    from vsmmu.scenario import is_scenario

    try:
        with path.open("rb") as file:
            return is_scenario(file.read(_LARGEST))
    except OSError:
        return False


# Fixtures. A suite overrides `vsmmu_features` and `vsmmu_seed` in its conftest.py.


@pytest.fixture
def vsmmu_seed(request: pytest.FixtureRequest) -> int:
    """Seed of the interleaving: the first `--vsmmu-seed`, or 0 (round robin)."""
    seeds: list[int] | None = request.config.getoption(SEED_OPTION)
    return seeds[0] if seeds else 0


@pytest.fixture
def vsmmu_features() -> Features:
    """Features of the physical SMMUs that the other fixtures make."""
    from vsmmu.smmu.features import Features

    return Features.default(sidsize=16)


@pytest.fixture
def vsmmu_memory() -> Memory:
    """256 MiB of RAM at 0x8000_0000."""
    from vsmmu.memory import Memory
    from vsmmu.testing.bare import RAM, RAM_SIZE

    return Memory([(RAM, RAM_SIZE)])


@pytest.fixture
def vsmmu_space(vsmmu_memory: Memory) -> Space:
    """Places in `vsmmu_memory` for tables, rings and buffers."""
    from vsmmu.testing.space import Space

    return Space(vsmmu_memory, *vsmmu_memory.regions[0])


@pytest.fixture
def vsmmu_smmu(
    vsmmu_memory: Memory, vsmmu_space: Space, vsmmu_features: Features, vsmmu_seed: int
) -> Callable[..., BareSmmu]:
    """Makes physical SMMUs without a hypervisor, in one memory and under one scheduler.

    Arguments are those of `vsmmu.testing.bare.BareSmmu`.
    """
    from vsmmu.scheduler import Scheduler
    from vsmmu.testing.bare import BareSmmu

    scheduler, made = Scheduler(vsmmu_seed), [0]

    def make(features: Features | None = None, **arguments: Any) -> BareSmmu:
        shared = {
            "name": f"smmu{made[0]}", "memory": vsmmu_memory, "space": vsmmu_space,
            "scheduler": scheduler,
        }  # fmt: skip
        made[0] += 1
        return BareSmmu(features or vsmmu_features, **{**shared, **arguments})

    return make


@pytest.fixture
def vsmmu_machine(vsmmu_features: Features, vsmmu_seed: int) -> Callable[..., Machine]:
    """Makes machines with a hypervisor and guests.

    Arguments are those of `vsmmu.testing.machine.Machine`; the SMMUs that streams name and `smmus`
    does not are made with `vsmmu_features`.
    """
    from vsmmu.testing.machine import Machine

    def make(guests: Any, *, smmus: Any = None, **arguments: Any) -> Machine:
        named = {path: vsmmu_features for streams in guests.values() for path, _ in streams}
        return Machine(
            guests, smmus={**named, **(smmus or {})}, **{"seed": vsmmu_seed, **arguments}
        )

    return make


@pytest.fixture
def vsmmu_guest(vsmmu_machine: Callable[..., Machine]) -> Guest:
    """A booted guest whose one device, vMasterID 0, is attached to an empty address space."""
    guest = vsmmu_machine({"guest": [("smmu0", 0x600)]})["guest"].boot()
    guest.attach(0)
    return guest
