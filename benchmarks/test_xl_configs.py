# SPDX-License-Identifier: BSD-2-Clause
"""Cost of reading guest configurations: per byte from 1 kB to 10 MB, beside libxlutil, at start.

Processor time, the least of a few rounds, all in one run; each test prints its table.
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xl_configs.parser import parse
from xl_configs.scanner import ended_lines

ROOT = Path(__file__).resolve().parent.parent
SIZES = (1_000, 100_000, 1_000_000, 10_000_000)
LIBXLUTIL_SIZE = 100_000
# Times the least cost per byte at any smaller size: what memory and its collector add.
GROWTH = 2.0
CONSTRUCTION_MS = 10.0

GUEST = b"""# a driver domain
name = "camera"
kernel = "/boot/Image"
memory = 512
vcpus = 2
extra = "console=hvc0 root=/dev/xvda rw"
viommu = "smmuv3"
dtdev = [
    "/soc/isp@60000000",  # image signal processor
    "/soc/csi@60010000",
]
iomem = [ "60000,10", "60010,1@fd000" ]
irqs = [ 112, 113 ]
disk = ['format=raw,vdev=xvda,access=rw,target=/dev/vg/camera']

"""
DEEP = b"a=" + b"[" * 1000 + b"]" * 1000 + b"\n"
SHAPES = {
    # Name: what comes first, what is repeated, what ends it.
    "guest": (b"", GUEST, b""),
    "short settings": (b"", b"a=1\n", b""),
    "sums": (b"", b"a+=1\n", b""),
    "one long list": (b"a=[", b"1,", b"]\n"),
    "deep lists": (b"", DEEP, b""),
    "syntax errors": (b"", b"a b\n", b""),
    "lexical errors": (b"", b"@ ", b""),
    "comments": (b"", b"# sixteen bytes\n", b""),
    "blank lines": (b"", b"\n", b""),
    "one huge string": (b'a="', b"x", b'"\n'),
    "escapes": (b'a="', b"\\n", b'"\n'),
}


def _shape(name: str, size: int) -> bytes:
    before, unit, after = SHAPES[name]
    return before + unit * max(1, size // len(unit)) + after


def _per_byte(data: bytes) -> float:
    """Nanoseconds a byte."""
    best = float("inf")
    repeats = max(1, 20_000 // len(data))
    for _ in range(3 if len(data) < SIZES[-1] else 1):
        begin = time.process_time_ns()
        for _ in range(repeats):
            parse(data, max_size=len(data))
        best = min(best, (time.process_time_ns() - begin) / repeats / len(data))
    return best


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<18}" + "".join(f"{cell:>10}" for cell in cells)


def test_cost_per_byte_does_not_grow(capsys):
    rows = []
    growth = {}
    for name in SHAPES:
        costs = [_per_byte(_shape(name, size)) for size in SIZES]
        growth[name] = max(costs[i] / min(costs[:i]) for i in range(1, len(costs)))
        rows.append(_row(name, [*(f"{cost:.0f}" for cost in costs), f"{growth[name]:.2f}"]))
    with capsys.disabled():
        print("\n\nns a byte")
        print(_row("", ["1 kB", "100 kB", "1 MB", "10 MB", "growth"]), *rows, sep="\n")
    assert max(growth.values()) <= GROWTH, growth


def test_beside_libxlutil(capsys):
    found = sorted(glob.glob("/usr/lib/*/libxlutil.so.*") + glob.glob("/usr/lib*/libxlutil.so.*"))
    if not found:
        pytest.skip("no libxlutil.so on this machine (Debian package libxenmisc4.17)")
    program = ROOT / "tests/differential/libxlutil.py"
    inputs = {name: _shape(name, LIBXLUTIL_SIZE) for name in SHAPES}
    frames = [len(data).to_bytes(4, "little") + data for data in inputs.values() for _ in range(3)]
    done = subprocess.run(
        [sys.executable, str(program), found[0]],
        input=b"".join(frames),
        stdout=subprocess.PIPE,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    rows = []
    for i, (name, data) in enumerate(inputs.items()):
        theirs = min(answer["ns"] for answer in answers[3 * i : 3 * i + 3]) / len(data)
        ours = _per_byte(data)
        assert parse(data).ok is answers[3 * i]["ok"]
        rows.append(_row(name, [f"{theirs:.0f}", f"{ours:.0f}", f"{ours / theirs:.1f}"]))
    with capsys.disabled():
        print("\n\nns a byte at 100 kB")
        print(_row("", ["libxlutil", "parse", "ratio"]), *rows, sep="\n")


def _in_fresh_process(program: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_construction(capsys, tmp_path):
    """Of the parser, in a process that has its standard modules; and of lark's, for comparison."""
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    own = re.compile(r"import time: +(\d+) \| .*xl_configs\.(?:parser|scanner|tables|quoting)\n")
    lark = (
        "import time; a = time.perf_counter(); import lark; b = time.perf_counter();"
        "lark.Lark(open('xl_configs/xlcfg.lark').read(), parser='lalr', lexer='basic',"
        "start='file'); print((b - a) * 1000, (time.perf_counter() - b) * 1000)"
    )
    ours, imports, grammars = [], [], []
    for _ in range(5):
        said = _in_fresh_process("import xl_configs.parser", env)
        assert len(own.findall(said)) >= 4, said
        ours.append(sum(map(int, own.findall(said))) / 1000)
        done = subprocess.run(
            [sys.executable, "-c", lark], cwd=ROOT, capture_output=True, check=True
        )
        imported, made = map(float, done.stdout.split())
        imports.append(imported)
        grammars.append(made)
    with capsys.disabled():
        print("\n\nms in a fresh process")
        print(_row("parser", [f"{min(ours):.1f}"]))
        print(_row("import lark", [f"{min(imports):.1f}"]))
        print(_row("lark's table", [f"{min(grammars):.1f}"]))
    assert min(ours) < CONSTRUCTION_MS


@pytest.mark.benchmark(group="a configuration of 100 kB")
def test_floor_tokens(benchmark):
    text = _shape("guest", 100_000).decode()
    benchmark(lambda: [len(tokens) for tokens in ended_lines(text, len(text))])


@pytest.mark.benchmark(group="a configuration of 100 kB")
def test_parse(benchmark):
    data = _shape("guest", 100_000)
    benchmark(lambda: parse(data))
