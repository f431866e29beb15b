# SPDX-License-Identifier: BSD-2-Clause
"""Rules of the house that a test can hold: arrows between packages, bit numbers, documents."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from vsmmu.cli import build_parser
from vsmmu.scenario import (
    ACTIONS,
    ACTOR_COMMON,
    ACTORS,
    COMMON,
    FIELDS,
    GUEST_FIELDS,
    MACHINE_FIELDS,
)
from xl_configs.errors import DIAGNOSTICS
from xl_configs.guest_config import GuestConfig
from xl_configs.keys import KNOWN_KEYS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    p for top in ("vsmmu", "dt_tools", "xl_configs") for p in (ROOT / top).rglob("*.py")
)

# Package -> packages of ours it may import (itself included).
MAY = {
    "xl_configs": {"xl_configs"},
    "dt_tools": {"dt_tools", "xl_configs"},
    "vsmmu.arch": {"vsmmu.arch"},
    "vsmmu.smmu": {"vsmmu.arch", "vsmmu.smmu", "vsmmu.memory", "vsmmu.queue", "vsmmu.trace",
                   "vsmmu.scheduler"},
    "vsmmu.hypervisor": {"vsmmu.arch", "vsmmu.smmu", "vsmmu.hypervisor", "vsmmu.memory",
                         "vsmmu.queue", "vsmmu.scheduler", "vsmmu.ste_update", "vsmmu.trace"},
    "vsmmu.recording": {"vsmmu.arch", "vsmmu.smmu", "vsmmu.hypervisor", "vsmmu.recording",
                        "vsmmu.memory", "vsmmu.queue", "vsmmu.scheduler"},
    "vsmmu.guest": {"vsmmu.arch", "vsmmu.guest", "vsmmu.hypervisor", "vsmmu.memory", "vsmmu.queue",
                    "vsmmu.scheduler", "vsmmu.ste_update"},
    "vsmmu.testing.live": {"vsmmu.hypervisor", "vsmmu.memory", "vsmmu.scheduler", "vsmmu.smmu",
                           "vsmmu.testing.live", "vsmmu.toolstack", "dt_tools.profiles"},
}  # fmt: skip
# Third-party modules, and where they may be imported at the top of a module.
HEAVY = {
    "rich": {"vsmmu/cli/run_text.py", "vsmmu/cli/summary_text.py"},
    "lark": set(),
    # Imported where a batch is asked for, and not before.
    "numpy": {"vsmmu/smmu/arena.py", "vsmmu/smmu/batch.py", "vsmmu/smmu/batch_group.py",
              "vsmmu/smmu/batch_tables.py", "vsmmu/smmu/batch_walk.py"},
    "fdt": set(),
    # Imported by the one class that runs machine code, itself imported when a board is started.
    "unicorn": {"vsmmu/testing/live/cpu.py"},
}  # fmt: skip


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    package = _module(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*base, *((node.module or "").split("."))]).rstrip("."))
    return found


def _room(name: str) -> str:
    return max((m for m in MAY if name == m or name.startswith(m + ".")), key=len, default="")


@pytest.mark.parametrize("path", [p for p in SOURCES if _room(_module(p))], ids=_module)
def test_arrows_point_one_way(path):
    allowed = MAY[_room(_module(path))]
    for name in _imports(path):
        if name.split(".")[0] in ("vsmmu", "dt_tools", "xl_configs"):
            assert any(name == a or name.startswith(a + ".") for a in allowed), name


# They come with the extra `testing`.
HEAVY["pytest"] = {f"vsmmu/testing/{name}.py" for name in ("plugin", "scenarios")}
HEAVY["hypothesis"] = {
    f"vsmmu/testing/strategies/{name}.py"
    for name in ("commands", "contexts", "events", "features", "layouts", "pagetables", "streams")
}


@pytest.mark.parametrize("path", SOURCES, ids=_module)
def test_heavy_imports_are_lazy(path):
    relative = str(path.relative_to(ROOT))
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in names:
                top = (name or "").split(".")[0]
                assert top not in HEAVY or relative in HEAVY[top], name


def test_only_blob_touches_fdt():
    users = [_module(p) for p in SOURCES if any(n.split(".")[0] == "fdt" for n in _imports(p))]
    assert users == ["dt_tools.blob"]


def test_json_is_given_out_in_one_place():
    users = {str(p.relative_to(ROOT)) for p in SOURCES if "json.dump" in p.read_text()}
    assert users == {"dt_tools/json_text.py", "vsmmu/recording/format.py"}


def test_nothing_needs_what_is_for_tests():
    inside = ROOT / "vsmmu/testing"
    others = [p for p in SOURCES if not p.is_relative_to(inside)]
    assert not [
        p for p in others if re.search(r"import.*\btesting\b|vsmmu\.testing", p.read_text())
    ]


@pytest.mark.parametrize("path", SOURCES, ids=_module)
def test_spdx_line(path):
    assert path.read_text().startswith("# SPDX-License-Identifier: BSD-2-Clause\n")


def _subparsers() -> dict[str, argparse.ArgumentParser]:
    parser = build_parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def test_the_manual_names_every_command_and_option():
    source = (ROOT / "docs/man/vsmmu.1").read_text()
    manual = re.sub(r"\\f[A-Z]", "", source).replace("\\", "")
    sections = dict(re.findall(r"\.SS vsmmu (\S+)(.*?)(?=\n\.S[SH] )", manual, re.DOTALL))
    parsers = _subparsers()
    assert set(sections) == set(parsers)
    for name, parser in parsers.items():
        options = {o for a in parser._actions for o in a.option_strings} - {"-h", "--help"}
        named = set(re.findall(r"(?<![\w-])(?:--[a-z][a-z0-9-]*|-[A-Za-z]\b)", sections[name]))
        assert named == options, name


def _scenario_rows(title: str) -> dict[str, list[str]]:
    """The rows of the tables in a section of docs/scenarios.md, cells by the name in the first."""
    text = (ROOT / "docs/scenarios.md").read_text()
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    return {name: row[1:] for row in rows for name in re.findall(r"`([\w-]+)`", row[0])}


def test_the_scenario_document_names_every_action_and_field():
    steps = _scenario_rows("`[[step]]`")
    for action, (required, optional) in ACTIONS.items():
        assert set(re.findall(r"`([a-z]+)`", steps[action][0])) == {*required, *optional}
    assert set(steps) == {*ACTIONS, *COMMON}
    actors = _scenario_rows("`[[actor]]`")
    for actor, fields_ in ACTORS.items():
        assert set(re.findall(r"`([a-z]+)`", actors[actor][0])) == set(fields_)
    assert set(actors) == {*ACTORS, *ACTOR_COMMON}
    assert set(_scenario_rows("`[[guest]]`")) == set(GUEST_FIELDS)
    assert set(_scenario_rows("`[machine]`")) == set(MACHINE_FIELDS)
    assert set(_scenario_rows("Top level")) == set(FIELDS)


def test_the_configuration_document_names_every_key_and_id():
    text = (ROOT / "docs/config.md").read_text()
    named = set(re.findall(r"`([a-z0-9_]+)`", text))
    assert named >= KNOWN_KEYS
    rows = re.findall(r"^\| (XL\d+) \| (error|warning)", text, re.MULTILINE)
    assert [id_ for id_, _ in rows] == list(DIAGNOSTICS)
    assert all((kind == "error") is id_.startswith("XL0") for id_, kind in rows)


def test_every_diagnostic_is_emitted_somewhere():
    source = "".join(p.read_text() for p in (ROOT / "xl_configs").rglob("*.py"))
    for id_ in DIAGNOSTICS:
        assert source.count(f'"{id_}"') > 1, id_


def test_every_attribute_of_a_guest_is_described():
    text = inspect.cleandoc(GuestConfig.__doc__ or "")
    described = re.findall(r"^    (\w+): ", text, re.MULTILINE)
    assert described == [field.name for field in fields(GuestConfig)]


def test_the_readme_shows_the_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"^vsmmu ([a-z0-9-]+)", text, re.MULTILINE))
    assert shown == set(_subparsers()) - {"completion"}
