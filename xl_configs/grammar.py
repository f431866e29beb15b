# SPDX-License-Identifier: BSD-2-Clause
"""``xlcfg.lark`` compiled to one step a token, which ``python -m xl_configs.grammar`` writes out.

The result is ``tables.py``, so that reading a configuration takes neither lark nor the time to
compile a grammar.

lark makes an LALR table of the grammar, in which a token costs several reductions. Only lists nest
in this language, so what lies on the stack above the last open ``[`` is one of a few sequences of
states. Each of them is a place. Places that accept the same from there on are one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Steps = dict[str, dict[str, str]]
_Stack = tuple[int, ...]

PLACES = {
    "start": "",
    "key": "IDENT",
    "operator": "IDENT EQUALS",
    "value": "IDENT EQUALS NUMBER",
    "list": "IDENT EQUALS OPEN",
    "element": "IDENT EQUALS OPEN NUMBER",
}
"""Name of each place, and tokens that lead to it."""

_TEXT = '''\
# SPDX-License-Identifier: BSD-2-Clause
"""``xlcfg.lark`` as the parser uses it; written by ``python -m xl_configs.grammar``.

TERMINALS are regular expressions, the first that fits being the token. STEPS is what each place
accepts and where it leads; OPEN leads to where the reader stands after the whole list.
"""

from __future__ import annotations

# fmt: off
TERMINALS: dict[str, str] = {{
{terminals}
}}

STEPS: dict[str, dict[str, str]] = {{
{steps}
}}
# fmt: on
'''


def compile_grammar() -> tuple[dict[str, str], Steps]:
    """The terminals with their regular expressions, and the steps of each place.

    Raises:
        ValueError: the grammar is not of the form described above.
    """
    from lark import Lark

    text = Path(__file__).with_name("xlcfg.lark").read_text(encoding="utf-8")
    language = Lark(text, parser="lalr", lexer="basic", start="file")
    terminals = {t.name: t.pattern.to_regexp() for t in language.parser.lexer.terminals}
    table = language.parse_interactive("").parser_state.parse_conf.parse_table
    return terminals, _Places(table).steps()


class _Places:
    """The places of an LALR table.

    A place is the states on the stack from the last open list on, or from the bottom.
    """

    def __init__(self, table: Any) -> None:
        self.states = table.states
        self.start: _Stack = (table.start_states["file"],)
        self.end = table.end_states["file"]

    def shift(self, stack: _Stack, kind: str) -> _Stack | None:
        """The stack after one token, or None where it is an error."""
        while kind in self.states[stack[-1]]:
            action, to = self.states[stack[-1]][kind]
            if str(action) == "Shift":
                return (*stack, to)
            stack = self.goto(stack[: len(stack) - len(to.expansion)], to.origin.name)
            if stack[-1] == self.end:
                return stack
        return None

    def goto(self, stack: _Stack, rule: str) -> _Stack:
        if not stack:
            raise ValueError(f"{rule} reaches out of a list")
        return (*stack, self.states[stack[-1]][rule][1])

    def edges(self, stack: _Stack) -> dict[str, _Stack]:
        """Where each token leads that is accepted; ``()`` for the end of a list or of the file."""
        found: dict[str, _Stack] = {}
        for kind in filter(str.isupper, self.states[stack[-1]]):
            to = self.shift(stack, kind)
            if to is None:
                continue
            if kind == "CLOSE":
                self.check_close(to)
            if kind == "OPEN":
                if to[-1:] != self.follow(PLACES["list"].split()):
                    raise ValueError("lists are not alike")
                to = self.goto(to[:-1], "list")
            found[kind] = () if kind in ("CLOSE", "$END") else to
        return found

    def check_close(self, stack: _Stack) -> None:
        """After ``]`` nothing may be left to do but to make a list of exactly this."""
        actions = {(str(action), to) for action, to in self.states[stack[-1]].values()}
        ((action, rule),) = actions
        if (action, rule.origin.name, len(rule.expansion)) != ("Reduce", "list", len(stack)):
            raise ValueError("a list does not end at its ]")

    def steps(self) -> Steps:
        """The steps between named places."""
        names = {self.follow(path.split()): name for name, path in PLACES.items()}
        found = {stack: self.edges(stack) for stack in names}
        rest = list(found)
        while rest:
            for to in found[rest.pop()].values():
                if to and to not in found:
                    found[to] = self.edges(to)
                    rest.append(to)
        return _merged(found, names)

    def follow(self, path: list[str]) -> _Stack:
        """The place that some tokens lead to."""
        stack = self.start
        for kind in path:
            to = self.shift(stack, kind)
            if to is None:
                raise ValueError(f"no {kind} in {path}")
            stack = to[-1:] if kind == "OPEN" else to
        return stack


def _merged(edges: dict[_Stack, dict[str, _Stack]], names: dict[_Stack, str]) -> Steps:
    """One row for all places that accept the same, and lead to the same, from there on."""
    group: dict[_Stack, int] = dict.fromkeys(edges, 0)
    group[()] = -1
    count = 0
    while True:
        looks = {
            stack: frozenset((kind, group[to]) for kind, to in row.items())
            for stack, row in edges.items()
        }
        numbers = {look: i for i, look in enumerate(dict.fromkeys(looks.values()))}
        group |= {stack: numbers[look] for stack, look in looks.items()}
        if len(numbers) == count:
            break
        count = len(numbers)
    named = {group[stack]: name for stack, name in names.items()}
    if sorted(named) != list(range(count)) or len(names) != count:
        raise ValueError(f"{count} places, {len(named)} of them named")
    named[-1] = "end"
    return {
        name: {kind: named[group[to]] for kind, to in sorted(edges[stack].items())}
        for stack, name in names.items()
    }


def tables_source() -> str:
    """The text of ``tables.py``."""
    terminals, steps = compile_grammar()
    lines = [f"    {name!r}:\n        {regexp!r}," for name, regexp in terminals.items()]
    rows = []
    for name, row in steps.items():
        rows += [f"    {name!r}: {{", *(f"        {kind!r}: {to!r}," for kind, to in row.items())]
        rows.append("    },")
    return _TEXT.format(terminals="\n".join(lines), steps="\n".join(rows))


if __name__ == "__main__":
    Path(__file__).with_name("tables.py").write_text(tables_source(), encoding="utf-8")
