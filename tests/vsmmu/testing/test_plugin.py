# SPDX-License-Identifier: BSD-2-Clause
"""The pytest plugin, as a suite of someone else meets it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Loaded here once: what a run in this process loads, it also unloads.
import vsmmu.testing.bare
import vsmmu.testing.machine
import vsmmu.testing.scenarios  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]
# Other plugins stay out of the runs here: they are most of the cost of one.
ALONE = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "benchmark", "xdist")]

SCENARIO = """\
schema = "vsmmu.scenario/1"
title = "one device"
seeds = [1, 2]
machine.devices = { nic = "smmu0:0x600" }

[[guest]]
name = "g"
devices = ["nic"]

[[step]]
guest = "g"
do = "boot"

[[step]]
guest = "g"
do = "attach"
device = "/nic"

[[step]]
guest = "g"
do = "dma"
device = "/nic"
iova = "0x10000"
expect = "fault"
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-pvsmmu.testing.plugin", *ALONE, *arguments)


def write(pytester: pytest.Pytester, name: str, text: str = SCENARIO) -> None:
    pytester.path.joinpath(name).write_text(text)


def test_an_item_for_each_file_and_seed(pytester: pytest.Pytester) -> None:
    write(pytester, "a.scenario.toml")
    write(pytester, "b.scenario.toml", SCENARIO.replace("seeds = [1, 2]", "seed = 5"))
    result = run(pytester, "-v")
    result.assert_outcomes(passed=3)
    for item in ("a.scenario.toml::seed=1", "a.scenario.toml::seed=2", "b.scenario.toml::seed=5"):
        result.stdout.fnmatch_lines(f"{item} PASSED*")
    assert run(pytester, "-q", "-m", "not vsmmu_scenario").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_seed_of_the_command_line_replaces_those_of_the_file(pytester: pytest.Pytester) -> None:
    write(pytester, "a.scenario.toml")
    result = run(pytester, "--collect-only", "-q", "--vsmmu-seed=0x10", "--vsmmu-seed=3")
    result.stdout.fnmatch_lines(["a.scenario.toml::seed=16", "a.scenario.toml::seed=3"])
    assert "seed=1\n" not in result.stdout.str()
    bad = run(pytester, "--vsmmu-seed=-1")
    assert bad.ret == pytest.ExitCode.USAGE_ERROR
    bad.stderr.fnmatch_lines("*--vsmmu-seed: expected a number from 0 to 2^64-1, not '-1'")
    long = run(pytester, f"--vsmmu-seed=-{'9' * 5000}")
    long.stderr.fnmatch_lines(f"*--vsmmu-seed: expected a number *, not '-{'9' * 39}'")


def test_a_failure_has_file_line_step_and_reason_and_no_traceback(
    pytester: pytest.Pytester,
) -> None:
    write(pytester, "a.scenario.toml", SCENARIO.replace('expect = "fault"\n', ""))
    result = run(pytester, "--vsmmu-seed=7", "--junit-xml=out.xml")
    result.assert_outcomes(failed=1)
    lines = result.stdout.lines
    at = next(i for i, line in enumerate(lines) if "FAILURES" in line)
    assert "a.scenario.toml seed=7 one device" in lines[at + 1]
    place = "a.scenario.toml:19: step 3: expected ok, got fault"
    where = "(/smmu0 StreamID 0x600 iova 0x10000 F_TRANSLATION)"
    assert lines[at + 2] == f"{place} {where}"
    assert lines[at + 3] == "again: vsmmu run --seed 7 a.scenario.toml"
    assert lines[at + 4].startswith("- generated xml file")
    assert "Traceback" not in result.stdout.str()
    assert "runtest" not in result.stdout.str()
    junit = pytester.path.joinpath("out.xml").read_text()
    assert 'failures="1"' in junit
    assert "a.scenario.toml:19: step 3" in junit


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("scenario/1", "scenario/2", 'a.scenario.toml:1: schema: expected "vsmmu.scenario/1"'),
        ('do = "boot"', 'do = "jump"', "a.scenario.toml:12: step 1: do: expected one of boot, *"),
        ("seeds = [1, 2]", "seeds = [1", "a.scenario.toml:*: not a TOML file: *"),
    ],
)
def test_a_file_that_is_no_scenario_is_one_line(
    pytester: pytest.Pytester, old: str, new: str, line: str
) -> None:
    write(pytester, "a.scenario.toml", SCENARIO.replace(old, new))
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ERROR collecting a.scenario.toml*", line])
    assert "Traceback" not in result.stdout.str()


def test_what_is_found_wrong_when_the_machine_is_built_is_one_line(
    pytester: pytest.Pytester,
) -> None:
    text = SCENARIO.replace('machine.devices = { nic = "smmu0:0x600" }', 'host = "none.dtb"')
    write(pytester, "a.scenario.toml", text.replace('name = "g"', 'config = "g.cfg"').replace(
        'devices = ["nic"]\n', ""
    ))  # fmt: skip
    result = run(pytester, "--vsmmu-seed=0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("none.dtb: *")
    assert "Traceback" not in result.stdout.str()


def test_other_toml_files_are_left_alone(pytester: pytest.Pytester) -> None:
    """Nothing but `*.scenario.toml` that names the schema; pyproject.toml never."""
    write(pytester, "plain.toml")
    write(pytester, "other.scenario.toml", 'title = "of another tool"\n')
    write(pytester, "broken.scenario.toml", "[")
    comment = "# vsmmu.scenario/1\n[tool.pytest.ini_options]\nvsmmu_scenarios = ['*.toml']\n"
    write(pytester, "pyproject.toml", comment)
    result = run(pytester, "--collect-only", "-q")
    assert [line for line in result.stdout.lines if "::" in line] == [
        "plain.toml::seed=1", "plain.toml::seed=2",
    ]  # fmt: skip
    write(pytester, "pyproject.toml", "[tool.pytest.ini_options]\n")
    assert run(pytester, "-q").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    run(pytester, "-q", "plain.toml").assert_outcomes(passed=2)


def test_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from vsmmu.smmu import Features

        @pytest.fixture
        def vsmmu_features():
            return Features.default(sidsize=16, oas=44)
        """
    )
    pytester.makepyfile(
        """
        from vsmmu.arch.commands import CmdTlbiNsnhAll
        from vsmmu.smmu import Features
        from vsmmu.testing.tables import Stage1Tables

        def test_guest(vsmmu_guest):
            page = vsmmu_guest.buffer()
            vsmmu_guest.map(0, 0x10000, page)
            assert vsmmu_guest.dma(0, 0x10000, b"data").ok
            assert vsmmu_guest.memory.read(page, 4) == b"data"
            vsmmu_guest.unmap(0, 0x10000)
            assert not vsmmu_guest.dma(0, 0x10000, 4).ok
            (event,) = vsmmu_guest.take_events()
            assert (event.name, event.sid) == ("F_TRANSLATION", 0)

        def test_two_smmus_in_one_memory(vsmmu_smmu, vsmmu_memory):
            one, two = vsmmu_smmu(), vsmmu_smmu(Features.everything().replace(sidsize=16))
            assert one.features.oas == 44
            assert one.memory is two.memory is vsmmu_memory
            assert [s.smmu.name for s in (one, two)] == ["smmu0", "smmu1"]
            page = one.page()
            for smmu in (one, two):
                smmu.stage1(5).map(0, page, 0x1000)
                assert smmu.dma(5, 0, smmu.smmu.name.encode()).ok
            assert vsmmu_memory.read(page, 5) == b"smmu1"

        def test_machine(vsmmu_machine, vsmmu_seed):
            machine = vsmmu_machine(
                {"a": [("p", 1), ("q", 1)], "b": [("q", 2)]},
                smmus={"q": Features.default(sidsize=8)}, caching="none",
            )
            assert machine.scheduler.seed == vsmmu_seed == 9
            assert machine.smmus["p"].features.oas == 44
            assert machine.smmus["q"].features.idr1.sidsize == 8
            guest = machine["a"].boot()
            guest.attach(0, 1)
            guest.map(0, 0x1000, guest.buffer())
            assert guest.dma(0, 0x1000, b"x").ok and guest.dma(1, 0x1000, b"x").ok
            guest.issue(CmdTlbiNsnhAll.build())
            guest.detach(1)
            assert not guest.dma(1, 0x1000, b"x").ok
            machine["b"].destroy()

        def test_space(vsmmu_space, vsmmu_memory):
            tables = Stage1Tables(vsmmu_space)
            tables.map(0, 0x8000_0000, 0x1000)
            assert vsmmu_memory.read64(tables.root)
        """
    )
    run(pytester, "--vsmmu-seed=9").assert_outcomes(passed=4)


# How the plugin comes in.

PROBE = """
def test_probe(pytestconfig):
    known = pytestconfig.pluginmanager.list_name_plugin()
    assert [name for name, plugin in known if plugin and "vsmmu" in name] == {expected}
"""
FOUND = ["vsmmu", "vsmmu.testing.plugin"]


def install(pytester: pytest.Pytester) -> Path:
    """A folder of packages that has the entry point."""
    metadata = pytester.path / "site" / "elsewhere-1.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\n")
    metadata.joinpath("entry_points.txt").write_text("[pytest11]\nvsmmu = vsmmu.testing.entry\n")
    return metadata.parent


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], FOUND),
        (["-p", "vsmmu"], FOUND),
        (["-p", "vsmmu.testing.plugin"], FOUND[::-1]),
        (["-p", "no:vsmmu"], []),
    ],
)
def test_the_plugin_is_there_once(
    pytester: pytest.Pytester, arguments: list[str], expected: list[str]
) -> None:
    """With the entry point, by name, with -p too; and not at all."""
    pytester.syspathinsert(install(pytester))
    write(pytester, "test_probe.py", PROBE.format(expected=expected))
    result = pytester.runpytest_inprocess(*ALONE, *arguments)
    result.assert_outcomes(passed=1)


def test_the_plugin_in_a_process_of_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways at once, where every warning is an error."""
    monkeypatch.setenv("PYTHONPATH", f"{install(pytester)}:{ROOT}")
    write(pytester, "a.scenario.toml")
    pytester.makeconftest('pytest_plugins = ["vsmmu.testing.plugin"]')
    result = pytester.run(sys.executable, "-m", "pytest", "-Werror", *ALONE)
    result.assert_outcomes(passed=2)


def test_a_suite_that_uses_nothing_loads_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No module of the emulator, and no hypothesis by our doing; nor does it need pytest itself."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = (
        "import sys, vsmmu.cli, vsmmu.testing\n"
        "assert not {'pytest', 'hypothesis'} & set(sys.modules)\n"
        "for name in [m for m in sys.modules if m.startswith('vsmmu')]: del sys.modules[name]\n"
        "import vsmmu.testing.plugin\n"
        "loaded = {m for m in sys.modules if m.startswith('vsmmu')}\n"
        "assert loaded == {'vsmmu', 'vsmmu.testing', 'vsmmu.testing.plugin'}, loaded\n"
        "assert 'hypothesis' not in sys.modules\n"
    )
    result = pytester.run(sys.executable, "-c", code)
    assert result.ret == 0, result.stderr.str()


def test_what_a_terminal_would_act_on_is_escaped(pytester: pytest.Pytester) -> None:
    title = 'title = "a\\u001b[31m\\u0000"'
    text = SCENARIO.replace('expect = "fault"\n', "").replace('title = "one device"', title)
    write(pytester, "a.scenario.toml", text)
    for options in ((), ("-v",), ("-rA",)):
        said = run(pytester, "--color=no", "--vsmmu-seed=1", *options).stdout.str()
        assert "_ a.scenario.toml seed=1 a\\x1b[31m\\x00 _" in said
        assert not {"\x1b", "\0"} & {*said}
