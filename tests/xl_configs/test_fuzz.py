# SPDX-License-Identifier: BSD-2-Clause
"""Whatever the input: a result, a ConfigError or a SpecError, and in bounded time."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from xl_configs import ConfigError, GuestConfig, ParseResult, SpecError, load, parse, parse_spec
from xl_configs.keys import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SLICE = 500
SOAK_RUNS = 40_000
SECONDS = 20.0

NAMES = sorted({key.name for key in KEYS})
WORDS = sorted({word for key in KEYS for word in key.choices})
NUMBERS = ("0", "1", "-1", "08", "0x7fffffffffffffff", "99999999999999999999", "4096", "127", "")
ATOMS = "0178afx:.,@*= +-bdfnmevslot\t'\"\\\0\u00e9/#;[]"
SAMPLE = b"""# a driver domain
name = "camera"
type = "pvh"
kernel = '/boot/Image'
memory = 512; maxmem = 0x400
vcpus = 2
cpus = "0-3,^1"
extra = "console=hvc0 root=/dev/xvda rw"
viommu = "smmuv3"
passthrough = "enabled"
device_tree = "/etc/xen/camera.dtb"
dtdev = [ "/soc/isp@60000000", '/soc/csi@60010000', # two of them
]
dtdev += ["/soc/codec@62001000"]
iomem = [ "0x60000,10", "fd010,1@fd000", ]
irqs = [ 112, 113, "114" ]
pci = ['0000:01:00.0@8,msitranslate=1,permissive=1', "01:00.1"]
disk = ['format=raw,vdev=xvda,access=rw,target=/dev/vg/camera', 'phy:/dev/x,xvdb,w']
vif = ['mac=00:16:3e:00:00:01,bridge=xenbr0,rate=10MB/s@20ms', '']
virtio = ["backend=0,type=virtio,device22,transport=mmio,grant_usage=1"]
on_crash = "preserve"
"""
PIECES = (
    *(b"a", b"name", b"=", b"+=", b"1", b"0x1f", b"'x'", b'"\\q"', b'"\\101"', b'"\\12"', b"'\0'"),
    *(b"[", b"]", b",", b";", b"\n", b"\n", b" ", b"\t", b"# c\n", b"#", b"@", b"(", b".", b"+"),
    *(b"-", b"A", b"\xc3\xa9", b"\xff", b"\r", b"a=1\n", b"dtdev+=[1]\n", b"irqs=[1,2]\n", b"'"),
    *(b"\\", b"\x0b", b'"', b"a=[", b'"\\n"', b"[" * 300, b"[1," * 300, b"\n" * 50, b"@ " * 50),
)


def some_bytes(rnd: random.Random) -> bytes:
    return rnd.randbytes(rnd.choice((3, 30, 300)))


def soup(rnd: random.Random) -> bytes:
    some = rnd.sample(PIECES, rnd.randint(4, len(PIECES)))
    return b"".join(rnd.choice(some) for _ in range(rnd.randint(1, rnd.choice((3, 20, 100)))))


def mutated(rnd: random.Random) -> bytes:
    lines = SAMPLE.splitlines(keepends=True)
    if rnd.random() < 0.3:
        rnd.shuffle(lines)
    data = bytearray(b"".join(lines))
    for _ in range(rnd.choice((1, 2, 5, 20))):
        at = rnd.randrange(len(data))
        end = at + rnd.choice((0, 1, 1, 4, 40))
        data[at:end] = rnd.choice((b"", rnd.randbytes(1), rnd.choice(PIECES), data[at:end] * 2))
        data = data or bytearray(b"\n")
    return bytes(data)


def entry(rnd: random.Random) -> str:
    """What stands inside a string: words, numbers, and specs that are nearly right."""
    kind = rnd.random()
    if kind < 0.3:
        return rnd.choice(WORDS or NUMBERS)
    if kind < 0.5:
        return rnd.choice(NUMBERS)
    if kind < 0.7:
        return "".join(rnd.choice(ATOMS) for _ in range(rnd.randint(0, 14)))
    text = list(rnd.choice([x for x in SAMPLE.decode().split('"') if x and "\n" not in x]))
    for _ in range(rnd.randint(0, 2)):
        at = rnd.randrange(len(text) + 1)
        text[at : at + rnd.randint(0, 2)] = rnd.choice(ATOMS)
    return "".join(text)


def value(rnd: random.Random) -> str:
    if rnd.random() < 0.4:
        return "[" + ",".join(value(rnd) for _ in range(rnd.randint(0, 3))) + "]"
    text = entry(rnd)
    if rnd.random() < 0.9:
        text = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{text}'"


def keys(rnd: random.Random) -> bytes:
    some = rnd.sample(NAMES, min(len(NAMES), rnd.choice((2, 6, 12))))
    lines = ["name='d'", "kernel='/k'"] * (rnd.random() < 0.9)
    for _ in range(rnd.randint(1, 12)):
        lines.append(rnd.choice(some) + rnd.choice(("=", "=", "+=")) + value(rnd))
    return "\n".join(lines).encode("utf-8", "surrogateescape")


GENERATORS: dict[str, Callable[[random.Random], bytes]] = {
    "bytes": some_bytes,
    "soup": soup,
    "mutated": mutated,
    "keys": keys,
}


class Hang(BaseException):
    """Not an Exception, so that no handler in between takes it for its own."""


@contextlib.contextmanager
def bounded(shown: object, seconds: float = SECONDS) -> Iterator[None]:
    """Fails the test when the body takes more processor time, showing the input."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except Hang:
        pytest.fail(f"still reading after {seconds:.1f} s: {shown!r:.4000}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def read(data: bytes, overrides: tuple[str, ...]) -> bool:
    """One input through the parser and the loader; true if it makes a guest."""
    result = parse(data)
    assert isinstance(result, ParseResult)
    assert result.ok is not bool(result.report), data
    assert result.ok or not (result.settings or result.effective), data
    error = None
    try:
        config = load(data, "c", overrides)
    except ConfigError as caught:
        error = caught
    if error is not None:
        assert error.fix, data
        assert str(error).isprintable(), data
        return False
    assert isinstance(config, GuestConfig)
    assert result.ok or overrides, data
    return True


def run(generator: str, runs: int, start: int) -> int:
    accepted = 0
    for number in range(start, start + runs):
        rnd = random.Random(f"{generator} {number}")
        data = GENERATORS[generator](rnd)
        overrides = (f"{rnd.choice(NAMES)}={value(rnd)}",) if rnd.random() < 0.1 else ()
        with bounded((generator, number, data, overrides)):
            try:
                accepted += read(data, overrides)
            except Exception as error:
                raise AssertionError((generator, number, data, overrides)) from error
    return accepted


def kinds() -> list[str]:
    """The kinds ``parse_spec`` knows, as its refusal of another one lists them."""
    with pytest.raises(ValueError, match="one of") as caught:
        parse_spec("?", "")  # type: ignore[call-overload]
    return str(caught.value).partition("one of ")[2].split(", ")


def run_specs(runs: int, start: int) -> int:
    accepted = 0
    known = kinds()
    for number in range(start, start + runs):
        rnd = random.Random(f"spec {number}")
        kind, text = rnd.choice(known), entry(rnd)
        with bounded((kind, text)):
            try:
                parse_spec(kind, text)  # type: ignore[call-overload]
                accepted += 1
            except SpecError:
                pass
            except Exception as error:
                raise AssertionError((kind, number, text)) from error
    return accepted


@pytest.mark.parametrize("generator", GENERATORS)
def test_no_input_raises_but_a_config_error(generator: str) -> None:
    accepted = run(generator, SLICE, 0)
    # Each generator reaches as far as it is meant to.
    assert (
        accepted >= {"bytes": 0, "soup": 0, "mutated": SLICE // 50, "keys": SLICE // 50}[generator]
    )


def test_no_spec_raises_but_a_spec_error() -> None:
    assert run_specs(SLICE, 0) > SLICE // 20


@pytest.mark.soak
@pytest.mark.parametrize("generator", GENERATORS)
def test_no_input_raises_but_a_config_error_soak(generator: str) -> None:
    run(generator, SOAK_RUNS, SLICE)


@pytest.mark.soak
def test_no_spec_raises_but_a_spec_error_soak() -> None:
    run_specs(SOAK_RUNS, SLICE)


def test_a_hang_fails_with_the_input_shown() -> None:
    shown = r"still reading after 0\.1 s: b'a=1'"
    with pytest.raises(pytest.fail.Exception, match=shown), bounded(b"a=1", 0.1):
        all(True for _ in itertools.count())


@pytest.mark.parametrize(
    "unit",
    [
        *(
            b"'",
            b'"',
            b"' ",
            b"'\" ",
            b"\\' ",
            b"'\\",
            b"@'",
            b"@ ",
            b"#",
            b"# ",
            b"@\n",
            b"=",
            b"[",
        ),
        *(b"a", b"a ", b"1,", b"a=", b"a=[", b"a=1;", b"a+='x'\n", b"a+=[1]\n", b"\n", b" ", b";"),
        *(
            b"a=[1,\n",
            b"a b\n",
            b"'\\n'",
            b"'\\q'",
            b"\0",
            b"'\0'",
            b"a=1 #\n",
            b"]\n",
            b"+",
            b"\t@",
        ),
    ],
)
def test_no_unit_repeated_takes_more_than_linear_time(unit: bytes) -> None:
    """64 kB in a second of processor time; time that grows with the square is several."""
    for before in (b"", b"a='", b"a=["):
        data = before + unit * ((1 << 16) // len(unit))
        with bounded((before, unit), 1.0):
            parse(data)
