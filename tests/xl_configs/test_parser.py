# SPDX-License-Identifier: BSD-2-Clause
"""Syntax: settings, values, messages and their lines."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lark import Lark, Token, UnexpectedToken

from tests.counts import sliced
from xl_configs import ParseResult, Setting, parse, tables
from xl_configs.grammar import tables_source
from xl_configs.parser import MAX_REPORT, PYTHON_HINT, _Reader
from xl_configs.scanner import KIND_OF_FIRST, ended_lines, kind_of, last_line


def effective(data: bytes) -> dict[str, object]:
    result = parse(data)
    assert result.ok, result.report
    assert result.report == ()
    return dict(result.effective)


def report(data: bytes) -> list[str]:
    result = parse(data)
    assert result == ParseResult(ok=False, report=result.report)
    return [line.replace("config parsing error near ", "") for line in result.report]


def test_settings_carry_name_operator_line_and_value() -> None:
    result = parse(b"name='d' # it\n\ndtdev=[\n'/a',\n[1, []],\n]\ndtdev+=['/b'];vcpus = 0x2\n")
    assert result.settings == (
        Setting("name", "=", 1, "d"),
        Setting("dtdev", "=", 3, ("/a", ("1", ()))),
        Setting("dtdev", "+=", 7, ("/b",)),
        Setting("vcpus", "=", 7, "0x2"),
    )
    assert result.effective == {"name": "d", "dtdev": ("/a", ("1", ()), "/b"), "vcpus": "0x2"}


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"a=1", "1"),
        (b"a=12ab;", "12ab"),
        (b"\ta\t=\t1\t#\n", "1"),
        (b"a='x\"y'", 'x"y'),
        (b'a="#;,]"', "#;,]"),
        (rb'a="\a\b\f\n\r\t\v\\\'\""', "\a\b\f\n\r\t\v\\'\""),
        (rb'a="A\101B"', "AB"),
        (rb'a="\199999|"', "99|"),
        (rb'a="\1 12z"', "z"),
        (b"a='1'\na+='2'\na+='3'", "123"),
        (b"a+=[]\na+=[1]", ("1",)),
        (b"a=[1]\na='x'\na+='y'", "xy"),
        (b"a=[ # one\n1 # two\n, # three\n2,\n\n]", ("1", "2")),
        ("a='é日'".encode(), "é日"),
        (b"a=1\n@", "1"),
    ],
)
def test_values(data: bytes, value: object) -> None:
    assert effective(data) == {"a": value}


def test_bytes_that_are_not_utf8_survive() -> None:
    value = effective(b"a='\xff\xc3\xa9\xe9'")["a"]
    assert os.fsencode(str(value)) == b"\xff\xc3\xa9\xe9"


def test_accumulated_gives_the_sum_after_each_setting() -> None:
    result = parse(b"a=[1]\na+=[2]\na='x'\na+='y'\n")
    assert [value for _, value in result.accumulated()] == [("1",), ("1", "2"), "x", "xy"]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a b", ["cfg:1: `b': syntax error, unexpected IDENT, expecting += or '='"]),
        (b"a", ["cfg:1: `': syntax error, unexpected $end, expecting += or '='"]),
        (
            b"a=\n\n\n\nb 2",
            [
                "cfg:0: <newline>: syntax error, unexpected NEWLINE, "
                "expecting STRING or NUMBER or '['",
                "cfg:5: `2': syntax error, unexpected NUMBER, expecting += or '='",
            ],
        ),
        (
            b"a=# c  \n",
            ["cfg:0: `# c': syntax error, unexpected NEWLINE, expecting STRING or NUMBER or '['"],
        ),
        (b"a=[1 2]", ["cfg:1: `2': syntax error, unexpected NUMBER, expecting ']'"]),
        (b"a=[,]", ["cfg:1: `,': syntax error, unexpected ',', expecting ']'"]),
        (b"a=[\n1;\n]", ["cfg:2: `;': syntax error, unexpected ';', expecting ']'"]),
        (b"a=1 b=2\nc c\n", ["cfg:1: `b': syntax error, unexpected IDENT, expecting $end"]),
        (
            b"a=1]\n",
            ["cfg:1: `]': syntax error, unexpected ']', expecting $end"],
        ),
        (
            b"+=1",
            ["cfg:1: `+=': syntax error, unexpected +=, expecting $end or IDENT or NEWLINE or ';'"],
        ),
        (b"a=512M\n", ["cfg:1: `M': lexical error"]),
        (b"a=1 # c", ["cfg:1: `#': lexical error"]),
        (b"a=1\r\nb=2\r\n", ["cfg:1: `\r': lexical error", "cfg:2: `\r': lexical error"]),
        (b"a='x\n'", ["cfg:1: `'x': lexical error"]),
        (b"a=\xe9\x01 ", ["cfg:1: `\\xe9\x01': lexical error"]),
        (
            rb'a=["\q","\q"]',
            ['cfg:1: `"\\q"\': invalid character after backlash in quoted string'],
        ),
        (
            rb'a="\x41"',
            [
                'cfg:1: `"\\x41"\': invalid digit after backslash hexnumerical character '
                "escape in quoted string"
            ],
        ),
        (
            rb'a="\12"',
            [
                'cfg:1: `"\\12"\': invalid digit after backslash octalnumerical character '
                "escape in quoted string"
            ],
        ),
        (b"a='\0'", ["cfg:1: `'': NUL byte in quoted string"]),
        (
            b"a=[1]\na+='x'\n",
            ["cfg:2: `'x'': can't add [list] to \"string\" or vice versa"],
        ),
    ],
)
def test_messages(data: bytes, lines: list[str]) -> None:
    assert report(data) == lines


def test_a_lexical_error_hides_later_errors_up_to_its_line() -> None:
    assert report(b"a=1 @@ @@\nb b\n") == [
        "cfg:1: `@@': lexical error",
        "cfg:2: `b': syntax error, unexpected IDENT, expecting += or '='",
    ]
    # A bad byte right before a line feed counts as one of the next line.
    assert report(b"@\nb b\n") == ["cfg:1: `@': lexical error"]


def test_after_an_error_three_tokens_pass_before_the_next_message() -> None:
    first = "cfg:1: `b': syntax error, unexpected IDENT, expecting += or '='"
    assert report(b"a b\nc c\n") == [first]
    # The end of the line is the first of the three.
    assert report(b"a b\nc=d\n")[1:] == [
        "cfg:2: `d': syntax error, unexpected IDENT, expecting STRING or NUMBER or '['"
    ]
    assert report(b"a b\n\n\nc c\n")[1:] == [
        "cfg:4: `c': syntax error, unexpected IDENT, expecting += or '='"
    ]


def test_reading_ends_at_a_token_after_a_complete_value() -> None:
    assert len(report(b"a=1 b=2\n\n\nc c\n@@\n")) == 1


def test_after_an_error_strings_and_sums_are_not_looked_at() -> None:
    assert report(b"@@\na='\\q'\n") == ["cfg:1: `@@': lexical error"]
    assert report(b"@@\na=1\na+=[]\n") == ["cfg:1: `@@': lexical error"]
    assert report(b"'\\q' b\n") == [
        "cfg:1: `'\\q'': invalid character after backlash in quoted string"
    ]


def test_a_message_shows_a_token_up_to_a_nul_byte() -> None:
    assert report(b"a=@ \0\n") == ["cfg:1: `@': lexical error", "cfg:1: `': lexical error"]
    assert report(b"a=1 @@\n@# \0 b\n")[1:] == ["cfg:2: `@#': lexical error"]


def test_python_is_recognised() -> None:
    assert parse(b"import os\na=(1)\n").report[-3:] == PYTHON_HINT
    assert parse(b"import os\na=@@\n").report[-1] not in PYTHON_HINT


@pytest.mark.parametrize(
    ("unit", "deepest"), [(b"[", 4996), (b"[1,", 1999), (b"[\n", 4996), (b"[1,\n2,", 1999)]
)
def test_nesting_ends_where_xls_parser_stack_is_full(unit: bytes, deepest: int) -> None:
    def nested(levels: int) -> bytes:
        return b"a=" + unit * (levels - 1) + b"[" + b"]" * levels

    assert parse(nested(deepest)).ok
    refused = parse(nested(deepest + 1))
    assert not refused.ok
    assert refused.report[0].endswith(": memory exhausted")


def test_long_inputs_are_read_or_refused() -> None:
    assert len(parse(b"a=[" + b"1,\n" * 20_000 + b"]").effective["a"]) == 20_000
    assert parse(b"a+='x'\n" * 20_000).effective["a"] == "x" * 20_000
    assert parse(b"# " * 50_000).report == ("cfg:1: config parsing error near `#': lexical error",)
    many = parse(b"@@\n" * (MAX_REPORT + 10)).report
    assert len(many) == MAX_REPORT + 1
    assert many[-1] == f"cfg:{MAX_REPORT}: too many errors, reading stopped"
    assert parse(b"a=1", "x", max_size=2).report == ("x: 3 bytes, the limit is 2",)


def test_a_refused_sum_hides_later_errors_of_its_line() -> None:
    said = "cfg:2: `1': can't add [list] to \"string\" or vice versa"
    assert report(b"a=[]\na+=1;a\n") == [said]
    assert report(b"a=[]\na+=1;@@\nb b\n") == [
        said,
        "cfg:3: `b': syntax error, unexpected IDENT, expecting += or '='",
    ]


def test_the_tables_are_those_of_the_grammar() -> None:
    written = Path(tables.__file__).read_text(encoding="utf-8")
    assert written == tables_source(), "run python -m xl_configs.grammar"


LANGUAGE = Lark(
    Path(tables.__file__).with_name("xlcfg.lark").read_text(encoding="utf-8"),
    parser="lalr",
    lexer="basic",
    start="file",
)
TOKENS = {
    "IDENT": "a",
    "NUMBER": "1",
    "STRING": "'x'",
    "EQUALS": "=",
    "PLUS_EQUALS": "+=",
    "COMMA": ",",
    "SEMICOLON": ";",
    "NEWLINE": "\n",
    "OPEN": "[",
    "CLOSE": "]",
}


def test_after_any_tokens_the_reader_accepts_what_lark_does() -> None:
    """All sequences of up to seven tokens that may begin a configuration."""
    begun: list[tuple[str, ...]] = [()]
    compared = 0
    while begun:
        kinds = begun.pop()
        twin = LANGUAGE.parse_interactive("")
        reader = _Reader("cfg")
        for kind in kinds:
            twin.feed_token(Token(kind, ""))
        reader.take([TOKENS[kind] for kind in kinds])
        accepted = set(tables.STEPS[reader.place])
        assert accepted == twin.accepts(), kinds
        assert not reader.report
        compared += 1
        if len(kinds) < 7:
            begun += [(*kinds, kind) for kind in accepted - {"$END"}]
    assert compared > 2000


SOUPS = st.lists(
    st.sampled_from(
        [*TOKENS.values(), *" \t'\"#@.+\\A\xe9\0", "# c\n", "\n", "a=[", "a=1\n", "\\'"]
    )
).map("".join)


@sliced(1000)
@given(SOUPS)
def test_tokens_are_what_larks_lexer_makes(text: str) -> None:
    cut = text.rfind("\n") + 1
    last, lone = last_line(text, cut)
    tokens = [*itertools.chain.from_iterable(ended_lines(text, cut)), *last]
    ours = [(KIND_OF_FIRST.get(token[0]) or kind_of(token), token) for token in tokens]
    if lone:
        ours.append(("LAST_JUNK", lone))
    theirs = [(str(t.type), str(t.value)) for t in LANGUAGE.lex(text, dont_ignore=True)]
    assert [x for x in ours if x[0] != "BLANK"] == [x for x in theirs if x[0] != "BLANK"]
    assert all(KIND_OF_FIRST.get(token[0], kind_of(token)) == kind_of(token) for token in tokens)


LISTS = st.recursive(
    st.sampled_from(["1", "'x'"]),
    lambda inner: st.lists(inner | st.sampled_from(["", "\n"]), max_size=3).map(
        lambda items: f"[{','.join(items)}]"
    ),
    max_leaves=4,
)
STATEMENTS = st.lists(
    st.tuples(
        st.sampled_from(["a=", "b =", "\nc=", ";d=", "a"]), LISTS, st.sampled_from("\n;#\n ")
    ).map("".join),
    max_size=5,
).map("".join)


@sliced(500)
@given(STATEMENTS | SOUPS)
def test_accepted_is_what_larks_parser_accepts(text: str) -> None:
    """But for strings with bad escapes and sums of unlike values, which are no matter of syntax."""
    result = parse(text.encode("latin-1"))
    junk = any(t.type == "JUNK" for t in LANGUAGE.lex(text, dont_ignore=True))
    assume(not any("quoted string" in x or "vice versa" in x for x in result.report))
    try:
        LANGUAGE.parse(text)
        accepted = not junk
    except UnexpectedToken:
        accepted = False
    assert result.ok is accepted


def test_reading_takes_no_lark() -> None:
    """Nor much memory: the possessive strings of the grammar keep no places to go back to."""
    program = (
        "import sys, tracemalloc, xl_configs.parser as p\n"
        "data = b'a=\"' + b'\\\\n' * 100_000 + b'\"'\n"
        "tracemalloc.start()\n"
        "assert p.parse(data).ok\n"
        "print(tracemalloc.get_traced_memory()[1] >> 20, 'lark' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.stderr
    mib, lark = done.stdout.split()
    assert (int(mib) < 8, lark) == (True, "False")
