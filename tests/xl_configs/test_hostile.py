# SPDX-License-Identifier: BSD-2-Clause
"""Whatever the bytes are: a result or a ConfigError; and beside libxlutil where it is installed."""

from __future__ import annotations

import ctypes
import glob
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xl_configs import ConfigError, ParseResult, SpecError, load, parse, parse_spec
from xl_configs.keys import KEYS

PIECES = (
    *(b"a", b"b", b"=", b"+=", b"1", b"0x1f", b"'x'", b'"\\q"', b'"\\101"', b'"\\12"', b'"a b"'),
    *(b"[", b"]", b",", b";", b"\n", b"\n", b" ", b"\t", b"# c\n", b"#", b"@", b"(", b".", b"+"),
    *(b"-", b"A", b"\xc3\xa9", b"\xff", b"\r", b"a=1\n", b"a+=[1]\n", b"b=[1,2]\n", b"'", b'"'),
    *(b"\\", b"\x0b", b"a=", b"a=[", b'"\\n"'),
)
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


def libxlutil() -> ctypes.CDLL:
    found = sorted(glob.glob("/usr/lib/*/libxlutil.so.*") + glob.glob("/usr/lib*/libxlutil.so.*"))
    if not found:
        pytest.skip("no libxlutil.so on this machine")
    try:
        library = ctypes.CDLL(found[0])
    except OSError as error:
        pytest.skip(f"libxlutil: {error}")
    library.xlu_cfg_init.restype = ctypes.c_void_p
    library.xlu_cfg_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.xlu_cfg_readdata.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    library.xlu_cfg_destroy.argtypes = [ctypes.c_void_p]
    library.xlu_cfg_get_string.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_int,
    ]
    return library


def asked(library: ctypes.CDLL, data: bytes) -> tuple[bool, list[str], dict[str, bytes]]:
    """Acceptance, report, and those of the keys a and b that hold one value."""
    libc = ctypes.CDLL(None)
    libc.open_memstream.restype = ctypes.c_void_p
    for name in ("fflush", "fclose", "free"):
        getattr(libc, name).argtypes = [ctypes.c_void_p]
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
    config = library.xlu_cfg_init(stream, b"cfg")
    ok = library.xlu_cfg_readdata(config, data, len(data)) == 0
    values = {}
    for name in ("a", "b") if ok else ():
        value = ctypes.c_char_p()
        if not library.xlu_cfg_get_string(config, name.encode(), ctypes.byref(value), 1):
            values[name] = value.value or b""
    libc.fflush(stream)
    report = ctypes.string_at(text.value, size.value).decode("utf-8", "backslashreplace")
    library.xlu_cfg_destroy(config)
    libc.fclose(stream)
    libc.free(text)
    return ok, report.split("\n")[:-1], values


def test_beside_libxlutil() -> None:
    library = libxlutil()
    rnd = random.Random(2026)
    accepted = 0
    for _ in range(1500):
        some = rnd.sample(PIECES, rnd.randint(4, len(PIECES)))
        data = b"".join(rnd.choice(some) for _ in range(rnd.randint(1, rnd.choice((3, 20)))))
        ok, report, values = asked(library, data)
        result = parse(data)
        assert (result.ok, list(result.report)) == (ok, report), data
        single = {
            name: value.encode("utf-8", "surrogateescape")
            for name, value in result.effective.items()
            if isinstance(value, str) and name in ("a", "b")
        }
        assert single == values, data
        accepted += ok
    assert accepted > 100
