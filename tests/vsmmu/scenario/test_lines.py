# SPDX-License-Identifier: BSD-2-Clause
"""Lines of keys and tables: every shape that TOML has, held against what tomllib reads."""

from __future__ import annotations

import tomllib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsmmu.scenario.lines import Lines

TEXT = """\
# a comment with [brackets] and "quotes"
a.b."c.d".'e f' = 1 # x = 2

s = \"\"\"
x = 1
[y]
\\"\\"\\" \"\"\"\"\"
[t]
q = [ 1, # one ]
      [ 2, { k.l = "]", m = [ ] } ],
    ]
"\\u00e9\\U0001F600\\n\\\\U" = 'a # b'
[[u]]
a = 1979-05-27 07:32:00
[[u.v]]
[[u]]
[u.w.x]
z = '''a = 1
b''''
[[u.v]]
p = { q = { r = [ {}, { s = 1 } ] } }
"""


def paths(value, at=()):
    """Path of everything below a value of tomllib's."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, below in items:
        yield (*at, key)
        yield from paths(below, (*at, key))


def test_each_shape_has_its_line():
    lines = Lines(TEXT)
    assert set(paths(tomllib.loads(TEXT))) == set(lines.lines)
    for path, line in {
        ("a", "b", "c.d", "e f"): 2,
        ("s",): 4,
        ("t",): 8,
        ("t", "q"): 9,
        ("t", "q", 0): 9,
        ("t", "q", 1, 1, "k", "l"): 10,
        ("t", "é😀\n\\U"): 12,
        ("u", 0): 13,
        ("u", 0, "a"): 14,
        ("u", 0, "v", 0): 15,
        ("u", 1): 16,
        ("u", 1, "w"): 17,
        ("u", 1, "w", "x", "z"): 18,
        ("u", 1, "v", 0): 20,
        ("u", 1, "v", 0, "p", "q", "r", 1, "s"): 21,
    }.items():
        assert lines.of(path) == line, path


def test_what_is_not_written_has_the_line_of_what_is_around_it():
    lines = Lines(TEXT)
    assert lines.of(("u", 1, "w", "x", "none", 3)) == 17
    assert lines.of(("u", 1, "none")) == 16
    assert lines.of(("none",)) is None
    assert lines.of(()) is None


class Author:
    """Writes TOML with everything that moves lines, and notes the line of each key itself."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.text = ""
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.count = 0

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def name(self) -> tuple[str, str]:
        """A new key: as written, and its value."""
        self.count += 1
        plain = f"k{self.count}"
        return self.random.choice([
            (plain, plain), (f'"{plain}.#"', f"{plain}.#"), (f"'{plain} ='", f"{plain} ="),
            (f'"{plain}\\u005D\\\\"', f"{plain}]\\"), (f'"{plain}\\n\\""', f'{plain}\n"'),
        ])  # fmt: skip

    def key(self, at: tuple) -> tuple:
        """A key of one to three parts, written; the path of the last."""
        line = self.line
        for i in range(self.random.choice([1, 1, 1, 2, 3])):
            text, value = self.name()
            self.text += (self.random.choice([".", " . ", "\t."]) if i else "") + text
            at = (*at, value)
            self.lines[at] = line
        return at

    def value(self, at: tuple, depth: int = 0, *, one_line: bool = False) -> None:
        r = self.random
        plain = [
            "1", "true", "1.5e3", "1979-05-27 07:32:00", "'#]}'", '"\\"=,\\\\"', '""',
        ]  # fmt: skip
        kind = r.randrange(4) if depth < 3 else 0
        if kind == 0:
            self.text += r.choice(plain)
        elif kind == 1 and not one_line:
            self.text += r.choice(
                ['"""\na = "" 1\n\\""" ""\\\n  """', "'''\n[x]\n'' '''''", '""""""']
            )
        elif kind == 2:
            self.text += "["
            for index in range(r.randrange(3)):
                self.text += (", " if index else "") + self.gap(one_line)
                self.lines[(*at, index)] = self.line
                self.value((*at, index), depth + 1, one_line=one_line)
                self.text += self.gap(one_line)
            self.text += "]"
        else:
            self.text += "{"
            for index in range(r.randrange(3)):
                self.text += ", " if index else " "
                where = self.key(at)
                self.text += r.choice([" = ", "="])
                self.value(where, depth + 1, one_line=True)
            self.text += " }"

    def gap(self, one_line: bool) -> str:
        return " " if one_line else self.random.choice(["", " ", "\n", " # ]\n\t", "\r\n"])

    def pairs(self, at: tuple) -> None:
        for _ in range(self.random.randrange(3)):
            self.text += self.random.choice(["", "\n", "# c = 1\n", "  "])
            where = self.key(at)
            self.text += " = "
            self.value(where)
            self.text += self.random.choice(["\n", " # [z]\n", "\r\n"])

    def document(self) -> None:
        r = self.random
        self.pairs(())
        arrays: dict[tuple, int] = {}
        for _ in range(r.randrange(5)):
            known = r.choice([None, *arrays])
            line, (text, value) = self.line, self.name()
            if known is not None and r.random() < 0.5:
                # Another item of an array, or a table below its last one.
                written, path = r.choice(
                    [(f"[[{known[0]}]]", None), (f"[{known[0]} . {text}]", value)]
                )
                if path is None:
                    arrays[known] += 1
                    at = (known[1], arrays[known])
                else:
                    at = (known[1], arrays[known], path)
            elif r.random() < 0.5:
                arrays[text, value] = 0
                self.lines[(value,)] = line
                written, at = f"[[ {text} ]]", (value, 0)
            else:
                written, at = f"[{text}]", (value,)
            self.lines[at] = line
            self.text += written + r.choice(["\n", " # x\n"])
            self.pairs(at)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_lines_of_written_documents(first):
    """The author's own notes, and the same keys as tomllib has."""
    for seed in range(first, first + 100):
        author = Author(seed)
        author.document()
        found = Lines(author.text).lines
        assert set(found) == set(paths(tomllib.loads(author.text))), seed
        assert found == author.lines, seed


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab.=[]{}\"'\\\n\r\t #,1-", max_size=40))
def test_any_text_that_tomllib_reads(text):
    try:
        root = tomllib.loads(text)
    except ValueError:
        return
    assert set(Lines(text).lines) == set(paths(root))
