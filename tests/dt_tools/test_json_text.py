# SPDX-License-Identifier: BSD-2-Clause
"""JSON as it is given out."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dt_tools.json_text import json_text

ANY = st.text(st.characters() | st.sampled_from('\\"u\ud83d\ude00\udcff\U0001f600'), max_size=12)


@given(ANY, ANY)
def test_text_is_what_another_reader_takes(name: str, value: str) -> None:
    text = json_text({name: [value, 1]})
    # Two halves that follow each other are one character to whoever reads them.
    whole, there = (
        one.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for one in (name, value)
    )
    assert json.loads(text) == {whole: [there, 1]}
    assert text.isascii()


def test_forms() -> None:
    assert json_text({"a": "\ud800"}, indent=2) == '{\n  "a": "\\ufffd"\n}'
    assert json_text([1, 2], separators=(",", ":")) == "[1,2]"
