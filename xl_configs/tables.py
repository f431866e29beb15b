# SPDX-License-Identifier: BSD-2-Clause
"""``xlcfg.lark`` as the parser uses it; written by ``python -m xl_configs.grammar``.

TERMINALS are regular expressions, the first that fits being the token. STEPS is what each place
accepts and where it leads; OPEN leads to where the reader stands after the whole list.
"""

from __future__ import annotations

# fmt: off
TERMINALS: dict[str, str] = {
    'STRING':
        '\'[^\'\\\\\n]*+(?:\\\\[^\n][^\'\\\\\n]*+)*+\'|"[^"\\\\\n]*+(?:\\\\[^\n][^"\\\\\n]*+)*+"',
    'IDENT':
        '[a-z][a-z0-9._]*',
    'NUMBER':
        '[0-9][0-9a-fx]*',
    'NEWLINE':
        '(?:#[^\n]*)?\n',
    'BLANK':
        '[ \t]+',
    'PLUS_EQUALS':
        '\\+=',
    'CLOSE':
        '\\]',
    'COMMA':
        ',',
    'EQUALS':
        '=',
    'OPEN':
        '\\[',
    'SEMICOLON':
        ';',
    'JUNK':
        '[^a-z0-9 \t\n](?:[^ \t\n]+|[ \t]|(?=\n))',
    'LAST_JUNK':
        '[^a-z0-9 \t\n]',
}

STEPS: dict[str, dict[str, str]] = {
    'start': {
        '$END': 'end',
        'IDENT': 'key',
        'NEWLINE': 'start',
        'SEMICOLON': 'start',
    },
    'key': {
        'EQUALS': 'operator',
        'PLUS_EQUALS': 'operator',
    },
    'operator': {
        'NUMBER': 'value',
        'OPEN': 'value',
        'STRING': 'value',
    },
    'value': {
        '$END': 'end',
        'NEWLINE': 'start',
        'SEMICOLON': 'start',
    },
    'list': {
        'CLOSE': 'end',
        'NEWLINE': 'list',
        'NUMBER': 'element',
        'OPEN': 'element',
        'STRING': 'element',
    },
    'element': {
        'CLOSE': 'end',
        'COMMA': 'list',
        'NEWLINE': 'element',
    },
}
# fmt: on
