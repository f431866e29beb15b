# SPDX-License-Identifier: BSD-2-Clause
"""Whatever the bytes are: a result or a ConfigError."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from xl_configs import ConfigError, ParseResult, SpecError, load, parse, parse_spec
from xl_configs.keys import KEYS

VALUES = (
    "''",
    "'x'",
    "-1",
    "1",
    "0x7fffffffffffffff",
    "[]",
    "['x']",
    "[['x']]",
    "['1,1']",
    "'\\q'",
)
bounded = settings(max_examples=150, deadline=None, derandomize=True)


@bounded
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    result = parse(data)
    assert isinstance(result, ParseResult)
    assert result.ok is not bool(result.report)


@bounded
@given(
    st.lists(
        st.tuples(
            st.sampled_from([key.name for key in KEYS]),
            st.sampled_from(["=", "+="]),
            st.sampled_from(VALUES) | st.text(max_size=12),
        ),
        max_size=12,
    ),
    st.lists(st.text(max_size=12), max_size=2),
)
def test_any_settings(items: list[tuple[str, str, str]], overrides: list[str]) -> None:
    text = "name='d'\nkernel='/k'\n" + "".join(f"{n}{op}{value}\n" for n, op, value in items)
    error = None
    try:
        config = load(text.encode("utf-8", "replace"), "c", overrides)
    except ConfigError as caught:
        error = caught
    if error is None:
        assert 1 <= config.vcpus <= config.maxvcpus <= 128
        return
    assert error.exit_code in (1, 3, 6)
    assert str(error).isprintable()
    assert error.fix


@bounded
@given(
    st.sampled_from(["iomem", "irqs", "pci"]), st.text("0178afx:.,@*= +-bdfnmevslot", max_size=14)
)
def test_any_spec(kind: str, text: str) -> None:
    code = -6
    try:
        parse_spec(kind, text)  # type: ignore[call-overload]
    except SpecError as error:
        code = error.code
    assert code in (-1, -3, -6)
