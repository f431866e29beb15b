# SPDX-License-Identifier: BSD-2-Clause
"""The parser beside the real libxlutil: outcome, settings, effective values and report text."""

from __future__ import annotations

import glob
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from xl_configs.parser import parse
from xl_configs.quoting import NUL_IN_STRING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xl_configs.parser import ParseResult, Value

PROGRAM = Path(__file__).with_name("libxlutil.py")
SOAK_RUNS = 100_000

PIECES = (
    *(b"a", b"b", b"=", b"+=", b"1", b"0x1f", b"'x'", b'"\\q"', b'"\\101"', b'"\\12"', b'"a b"'),
    *(b"[", b"]", b",", b";", b"\n", b"\n", b" ", b"\t", b"# c\n", b"#", b"@", b"(", b".", b"+"),
    *(b"-", b"A", b"\xc3\xa9", b"\xff", b"\r", b"a=1\n", b"a+=[1]\n", b"b=[1,2]\n", b"'", b'"'),
    *(
        b"\\",
        b"\x0b",
        b"\0",
        b"a=",
        b"a=[",
        b'"\\n"',
        b"[[",
        b"]]",
        b"1,",
        b"[1,",
        b"\n\n",
        b"a 1\n",
    ),
)
# Rare ones: what xl aborts on, and lists at the depths where its parser stack is full.
RARE = (
    b"'\0'",
    b"a=" + b"[" * 4995,
    b"a=" + b"[1," * 1998,
    b"[" * 4996 + b"]" * 4996,
    b"#\n" * 900,
)

VALUES = st.recursive(
    st.sampled_from(
        [b"1", b"08", b"0x1f", b"'x'", b'"y"', b"''", b'"\\n\\\\"', b"'\xff'", b'"\\101"']
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]"),
    max_leaves=4,
)
STATEMENTS = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from([b"a", b"b", b"c.d_1"]),
    st.sampled_from([b"=", b"+=", b" = ", b"\t+=\t"]),
    VALUES,
    st.sampled_from([b"\n", b";", b" # c\n", b"\n\n", b" ; "]),
)
SOUPS = st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join)
# Mostly right, with a soup somewhere.
SPOILT = st.builds(
    lambda before, soup, after: b"".join([*before, soup, *after]),
    st.lists(STATEMENTS, max_size=4),
    st.just(b"") | st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join),
    st.lists(STATEMENTS, max_size=3),
)


class Oracle:
    """libxlutil in a child process, started again when an input makes it abort."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.aborts = 0
        self.child = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), self.library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, data: bytes) -> dict[str, Any] | None:
        """What libxlutil makes of it; None when it aborts."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(len(data).to_bytes(4, "little") + data)
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if line:
            return dict(json.loads(line))
        self.close()
        assert self.child.returncode == -6, (self.child.returncode, data)
        self.aborts += 1
        self.child = self.start()
        return None

    def close(self) -> None:
        self.child.communicate()


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    found = sorted(glob.glob("/usr/lib/*/libxlutil.so.*") + glob.glob("/usr/lib*/libxlutil.so.*"))
    if not found:
        pytest.skip("no libxlutil.so on this machine (Debian package libxenmisc4.17)")
    child = Oracle(found[0])
    try:
        if child.ask(b"a=1\n") is None:
            pytest.skip(f"{found[0]} aborts")
    except AssertionError:
        pytest.skip(f"{found[0]} cannot be loaded")
    yield child
    child.close()


def flat(value: Value) -> list[str]:
    """A value in the oracle's words."""
    out: list[str] = []
    rest: list[Value | None] = [value]
    while rest:
        item = rest.pop()
        if item is None:
            out.append("]")
        elif isinstance(item, str):
            out.append("'" + item.encode("utf-8", "surrogateescape").decode("latin-1"))
        else:
            out.append("[")
            rest += [None, *item[::-1]]
    return out


def kept(result: ParseResult) -> list[list[Any]]:
    """The settings as libxlutil keeps them: a ``+=`` moves a list's elements to the new setting."""
    rows: list[list[Any]] = []
    latest: dict[str, list[Any]] = {}
    for setting, total in result.accumulated():
        row = [setting.name, setting.op, setting.line, flat(total)]
        if setting.op == "+=" and setting.name in latest and not isinstance(total, str):
            latest[setting.name][3] = ["[", "]"]
        latest[setting.name] = row
        rows.append(row)
    return rows


def assert_same(oracle: Oracle, data: bytes) -> bool:
    """Compares everything; true if the configuration is accepted."""
    result = parse(data)
    said = oracle.ask(data)
    if said is None:
        assert any(line.endswith(NUL_IN_STRING) for line in result.report), data
        return False
    report = [x.encode("latin-1").decode("utf-8", "backslashreplace") for x in said["report"]]
    assert (result.ok, list(result.report)) == (said["ok"], report), data
    assert kept(result) == said["settings"], data
    assert {k: flat(v) for k, v in result.effective.items()} == said["effective"], data
    return result.ok


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@seed(417)
@bounded(1500)
@given(data=SOUPS)
def test_token_soups(oracle: Oracle, data: bytes) -> None:
    assert_same(oracle, data)


@seed(417)
@bounded(1200)
@given(data=SPOILT)
def test_settings_with_a_soup_among_them(oracle: Oracle, data: bytes) -> None:
    assert_same(oracle, data)


def seeded(oracle: Oracle, runs: int, start: int) -> None:
    accepted = 0
    before = oracle.aborts
    for run in range(start, start + runs):
        rnd = random.Random(run)
        some = rnd.sample(PIECES, rnd.randint(4, len(PIECES)))
        pieces = [rnd.choice(some) for _ in range(rnd.randint(1, rnd.choice((3, 20, 40))))]
        if rnd.random() < 0.02:
            pieces.insert(rnd.randrange(len(pieces) + 1), rnd.choice(RARE))
        accepted += assert_same(oracle, b"".join(pieces))
    assert accepted > runs // 20
    assert oracle.aborts > before


def test_seeded_soups(oracle: Oracle) -> None:
    seeded(oracle, 1500, 2026)


@pytest.mark.soak
def test_seeded_soups_soak(oracle: Oracle) -> None:
    seeded(oracle, SOAK_RUNS, 1_000_000)


@pytest.mark.parametrize(
    "data",
    [
        b"a='\0'\n",
        b"a=1\n'\0'\n",
        b"a=[1,'x\0y']\n",
        b"a=\"\\q\"\nb='\0'\n",
        b"@@\na='\0'\n",
        b"a b '\0'\n",
    ],
)
def test_an_abort_is_a_clean_error_here(oracle: Oracle, data: bytes) -> None:
    assert_same(oracle, data)


@pytest.mark.parametrize(("unit", "deepest"), [(b"[", 4996), (b"[1,", 1999), (b"[1,\n2,\n", 1999)])
def test_the_deepest_lists(oracle: Oracle, unit: bytes, deepest: int) -> None:
    for levels in (deepest, deepest + 1):
        for inside in (b"", b"1", b"\n", b"1,", b"1,1", b"1,1,\n", b"\n,"):
            head = b"a=" + unit * (levels - 1) + b"[" + inside
            for data in (head + b"]" * levels, head, head + b"]\n]]"):
                assert_same(oracle, data + b"\nb=1\n")
