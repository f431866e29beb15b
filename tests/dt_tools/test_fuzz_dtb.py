# SPDX-License-Identifier: BSD-2-Clause
"""Mutated blobs: one exception type, bounded time and memory, and no laxer than dtc.

Seeds are boards made here, the sample board and, when they are there, real ones. Every mutant is
named by its seed's name and a number, so a failure can be repeated. `make soak` runs 100,000.
"""

from __future__ import annotations

import random
import shutil
import signal
import struct
import subprocess
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from dt_tools import scan
from dt_tools.blob import read, read_with_fdt, same_content, write
from dt_tools.errors import DtbError
from dt_tools.platform import Platform
from dt_tools.report.jsonreport import inspect_report
from dt_tools.tree import Node, Tree

SLICE = 900
SOAK = 100_000
SECONDS = 10  # of CPU for one mutant; the slowest seen takes a fraction of one
PEAK = 32 << 20  # bytes for reading one blob
DTC = shutil.which("dtc")

BEGIN, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9
NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 9, 16, 17, 40, 64, 255, 256, 0xFFFF, 0x10000, 0x7FFFFFFF),
    *(0x80000000, 0xD00DFEED, 0xFFFFFFF0, 0xFFFFFFFC, 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF),
)


# Seeds.


def a_bus(parent: Node, name: str, address: int, size: int) -> Node:
    bus = parent.add(name)
    bus.set_strings("compatible", "simple-bus")
    bus.set_cells("#address-cells", address)
    bus.set_cells("#size-cells", size)
    return bus


def a_board() -> Tree:
    """A bit of all that the platform reads: ranges, maps, SMMUs, foreign interrupt parents."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", 1)
    gic = root.add("gic@2f000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("#address-cells", 0)
    gic.set_empty("interrupt-controller")
    gic.set_cells("reg", 0, 0x2F000000, 0, 0x10000)
    gic.set_cells("phandle", 1)
    bus = a_bus(root, "bus@0", 1, 1)
    bus.set_cells("ranges", 0, 0, 0x40000000, 0x10000000, 0x10000000, 1, 0, 0x10000000)
    for i in range(3):
        smmu = bus.add(f"iommu@{i}0000")
        smmu.set_strings("compatible", "arm,smmu-v3" if i < 2 else "arm,mmu-500")
        smmu.set_cells("#iommu-cells", 1 if i < 2 else 2)
        smmu.set_cells("reg", i << 16, 0x10000)
        smmu.set_cells("interrupts", 0, 10 + i, 4, 0, 20 + i, 4)
        smmu.set_strings("interrupt-names", "eventq", "gerror")
        smmu.set_cells("phandle", 10 + i)
        device = bus.add(f"dma@1{i}000000")
        device.set_cells("reg", 0x1000000 * i + 0x1000000, 0x3500)
        device.set_cells("iommus", *((10, 5, 11, 5), (11, 5), (12, 5, 0xFF))[i])
        device.set_cells("interrupts-extended", 1, 0, 40, 4, 2, 7)
    pcie = bus.add("pcie@18000000")
    pcie.set_strings("device_type", "pci")
    pcie.set_cells("#address-cells", 3)
    pcie.set_cells("#interrupt-cells", 1)
    pcie.set_cells("iommu-map", 0, 10, 0x100, 0x100, 0x100, 11, 0, 0x10000)
    pcie.set_cells("iommu-map-mask", 0xFFFF)
    pcie.set_cells("interrupt-map", 0, 0, 0, 1, 1, 0, 50, 4)
    pcie.set_cells("interrupt-map-mask", 0, 0, 0, 7)
    pcie.set_cells("interrupts", 1)
    pcie.set_cells("interrupt-parent", 3)
    pcie.set_cells("phandle", 3)
    other = bus.add("mbigen")
    other.set_cells("#interrupt-cells", 1)
    other.set_cells("phandle", 2)
    other.set_cells("msi-parent", 1)
    tree.memreserve = [(0x80000000, 0x10000)]
    return tree


def a_deep_tree() -> Tree:
    tree = Tree()
    node = tree.root
    for i in range(scan.MAX_DEPTH - 1):
        node = a_bus(node, f"b{i % 4}", 1, 1)
        node.set_empty("ranges")
        node.set_cells("reg", i << 12, 0x800)
    return tree


def a_wide_tree() -> Tree:
    """Many masters over a few ids, all in a few pages."""
    tree = Tree()
    bus = a_bus(tree.root, "soc", 1, 1)
    bus.set_empty("ranges")
    smmu = bus.add("iommu@0")
    smmu.set_strings("compatible", "arm,smmu-v3")
    smmu.set_cells("#iommu-cells", 1)
    smmu.set_cells("phandle", 1)
    smmu.set_cells("reg", 0, 0x20000)
    for i in range(60):
        device = bus.add(f"d@{i:x}")
        device.set_cells("reg", 0x100000 + i * 0x400, 0x400)
        device.set_cells("iommus", *(cell for k in range(4) for cell in (1, (i + k) % 16)))
    return tree


@cache
def own_seeds() -> dict[str, bytes]:
    trees = {"board": a_board(), "deep": a_deep_tree(), "wide": a_wide_tree(), "empty": Tree()}
    seeds = {name: write(tree) for name, tree in trees.items()}
    seeds["sample"] = (Path(__file__).parents[2] / "samples" / "board.dtb").read_bytes()
    return seeds


def board_seeds(corpus: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((corpus / "dtbs").glob("*.dtb"))}


# Mutations.


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


@cache
def tags(seed: bytes) -> tuple[int, ...]:
    """Offsets of the structure block's tags, by a walk that trusts the seed."""
    at = int.from_bytes(seed[8:12])
    found = []
    while True:
        found.append(at)
        tag = int.from_bytes(seed[at : at + 4])
        if tag == BEGIN:
            at = (seed.index(b"\0", at + 4) + 4) & ~3
        elif tag == PROP:
            at = (at + 12 + int.from_bytes(seed[at + 4 : at + 8]) + 3) & ~3
        elif tag == END:
            return tuple(found)
        else:
            at += 4


def resized(data: bytearray, at: int, change: bytes, cut: int = 0) -> None:
    """Replace `cut` bytes in the structure block, and let the header know of the difference."""
    data[at : at + cut] = change
    more = len(change) - cut
    total, struct_at, strings_at, reserve_at = struct.unpack_from(">4I", data, 4)
    size = int.from_bytes(data[36:40]) + more
    strings_at += more * (strings_at > struct_at)
    reserve_at += more * (reserve_at > struct_at)
    fields = (total + more, struct_at, strings_at, reserve_at)
    data[4:20] = words(*(value & 0xFFFFFFFF for value in fields))
    data[36:40] = words(size & 0xFFFFFFFF)


def header_word(rng: random.Random, data: bytearray, seed: bytes) -> None:
    at = 4 * rng.randrange(10)
    old = int.from_bytes(data[at : at + 4])
    near = (old + rng.choice((-8, -4, -1, 1, 4, 8, 16))) & 0xFFFFFFFF
    data[at : at + 4] = words(rng.choice((near, near, len(data), *NUMBERS)))


def structure_word(rng: random.Random, data: bytearray, seed: bytes) -> None:
    at = rng.choice(tags(seed)) + rng.choice((0, 0, 4, 8))
    old = int.from_bytes(data[at : at + 4])
    data[at : at + 4] = words(rng.choice((old ^ 1, (old + 4) & 0xFFFFFFFF, *NUMBERS)))


def value_word(rng: random.Random, data: bytearray, seed: bytes) -> None:
    """Another cell in a property value, or another length of one."""
    at = rng.choice(tags(seed))
    size = int.from_bytes(seed[at + 4 : at + 8]) if seed[at + 3] == PROP else 0
    if 4 <= size < len(seed):
        at += 12 + 4 * rng.randrange(size // 4)
        data[at : at + 4] = words(rng.choice(NUMBERS))


def value_size(rng: random.Random, data: bytearray, seed: bytes) -> None:
    """A property value made shorter or longer, everything else in step."""
    at = rng.choice(tags(seed))
    size = int.from_bytes(seed[at + 4 : at + 8]) if seed[at + 3] == PROP else 0
    if size and size < len(seed):
        new = max(0, size + rng.choice((-8, -4, -1, 1, 4, 8)))
        value = bytes(data[at + 12 : at + 12 + min(new, size)]).ljust((new + 3) & ~3, b"\0")
        resized(
            data, at + 4, words(new) + bytes(data[at + 8 : at + 12]) + value, 8 + (size + 3 & ~3)
        )


def bit_flip(rng: random.Random, data: bytearray, seed: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncation(rng: random.Random, data: bytearray, seed: bytes) -> None:
    del data[rng.randrange(len(data)) :]
    if rng.random() < 0.5 and len(data) >= 8:
        data[4:8] = words(len(data))


def splice(rng: random.Random, data: bytearray, seed: bytes) -> None:
    """A run of whole items copied to, or moved over, another place."""
    places = tags(seed)
    first, last = sorted(rng.choices(range(len(places)), k=2))
    run = bytes(data[places[first] : places[min(last, first + 40)]])
    target = rng.randrange(len(places) - 1)
    cut = places[target + 1] - places[target] if rng.random() < 0.5 else 0
    resized(data, places[target], run, cut)


def raw_splice(rng: random.Random, data: bytearray, seed: bytes) -> None:
    at, source = rng.randrange(len(data)), rng.randrange(len(data))
    data[at:at] = data[source : source + rng.choice((1, 4, 12, 64))]


def nops(rng: random.Random, data: bytearray, seed: bytes) -> None:
    """NOPs between items, or over a whole item."""
    places = tags(seed)
    i = rng.randrange(len(places) - 1)
    if rng.random() < 0.5:
        resized(data, places[i], words(NOP) * rng.randrange(1, 4))
    else:
        size = places[i + 1] - places[i]
        data[places[i] : places[i + 1]] = words(NOP) * (size // 4)


def giant_length(rng: random.Random, data: bytearray, seed: bytes) -> None:
    at = rng.choice(tags(seed)) + 4
    data[at : at + 4] = words(rng.choice((len(data), 1 << 20, 1 << 24, 0x7FFFFFFC, 0xFFFFFFF4)))


# Those that keep the places of the seed's tags may be combined; the others come last, alone.
IN_PLACE = (header_word, structure_word, value_word, value_word, bit_flip, giant_length)
MOVING = (value_size, truncation, splice, raw_splice, nops)


def mutant(name: str, seed: bytes, number: int) -> bytes:
    rng = random.Random(f"{name}:{number}")
    data = bytearray(seed)
    if rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(IN_PLACE)(rng, data, seed)
    else:
        if rng.random() < 0.4:
            value_word(rng, data, seed)
        rng.choice(MOVING)(rng, data, seed)
    return bytes(data)


def mutants(seeds: dict[str, bytes], count: int) -> Iterator[tuple[str, bytes]]:
    names = sorted(seeds)
    for number in range(count):
        name = names[number % len(names)]
        yield f"{name}:{number}", mutant(name, seeds[name], number)


# What has to hold.


class TooLong(BaseException):
    """Not an Exception, so that nothing under test can swallow it."""


@contextmanager
def watchdog(label: str) -> Iterator[None]:
    """CPU time, not wall time: a busy machine is no hang."""

    def bark(signum: int, frame: object) -> None:
        raise TooLong(label)

    before = signal.signal(signal.SIGVTALRM, bark)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def attempt(label: str, data: bytes) -> Tree | None:
    """The tree, None when it is refused; anything but DtbError fails, named by its label."""
    try:
        with watchdog(label):
            try:
                tree = read(data, label)
            except DtbError as error:
                one_line(error)
                return None
            try:
                inspect_report(Platform.from_tree(tree, label))
            except DtbError as error:
                one_line(error)
            return tree
    except Exception as error:
        pytest.fail(f"{label}: {type(error).__name__}: {error}")


def one_line(error: DtbError) -> None:
    assert "\n" not in str(error)
    assert str(error).isprintable()


def sweep(seeds: dict[str, bytes], count: int) -> Counter[str]:
    answers: Counter[str] = Counter()
    for label, data in mutants(seeds, count):
        tree = attempt(label, data)
        answers["refused" if tree is None else "accepted"] += 1
    return answers


def assert_both_happen(answers: Counter[str]) -> None:
    total = answers.total()
    assert answers["accepted"] > total // 10, answers
    assert answers["refused"] > total // 10, answers


def test_mutants_of_own_boards() -> None:
    assert_both_happen(sweep(own_seeds(), SLICE - SLICE // 10))


def test_mutants_of_real_boards(corpus: Path) -> None:
    assert_both_happen(sweep(board_seeds(corpus), SLICE // 10))


@pytest.mark.soak
def test_soak_mutants_of_own_boards() -> None:
    assert_both_happen(sweep(own_seeds(), SOAK - SOAK // 10))


@pytest.mark.soak
def test_soak_mutants_of_real_boards(corpus: Path) -> None:
    assert_both_happen(sweep(board_seeds(corpus), SOAK // 10))


def test_both_readers_see_the_same_in_what_is_accepted() -> None:
    """`read` against its slow twin, the fdt package."""
    agreed = 0
    for label, data in mutants(own_seeds(), 400):
        try:
            tree = read(data, label)
        except DtbError:
            continue
        assert same_content(read_with_fdt(data, label), tree), label
        agreed += 1
    assert agreed > 80


def test_what_is_accepted_can_be_written() -> None:
    for label, data in mutants(own_seeds(), 400):
        try:
            tree = read(data, label)
        except DtbError:
            continue
        assert same_content(read(write(tree)), tree), label


# Time and memory.


@cache
def giants() -> dict[str, bytes]:
    """Blobs at the limits: as much of one thing as there can be."""
    head = words(BEGIN, 0)
    tail = words(END_NODE, END)
    node = words(BEGIN) + b"n%05x\0\0"
    grouped = b"".join(
        words(BEGIN) + b"g%02x\0" % g
        + b"".join(node % i + words(END_NODE) for i in range(500)) + words(END_NODE)
        for g in range(130)
    )  # fmt: skip
    props = b"".join(
        words(BEGIN) + b"g%02x\0" % g
        + b"".join(words(PROP, 4, i * 6, i) for i in range(500)) + words(END_NODE)
        for g in range(130)
    )  # fmt: skip
    names = b"".join(b"p%04x\0" % i for i in range(500))
    long = words(BEGIN) + b"n" * 250 + bytes(2)
    return {
        "nodes": blob(head + grouped + tail),
        "properties": blob(head + props + tail, names),
        "names": blob(head + (long + words(END_NODE)) * 2 + tail),
        "nops": blob(head + words(NOP) * 200_000 + tail),
        "value": blob(head + words(PROP, 2_000_000, 0) + bytes(2_000_000) + tail, b"a\0"),
        "depth": blob(head + (words(BEGIN) + b"n\0\0\0") * 100_000 + tail),
        "roots": blob((head + words(END_NODE)) * 100_000 + words(END)),
    }


def blob(structure: bytes, strings: bytes = b"") -> bytes:
    total = 56 + len(structure) + len(strings)
    header = words(
        *(0xD00DFEED, total, 56, 56 + len(structure), 40, 17, 16, 0, len(strings), len(structure))
    )
    return header + bytes(16) + structure + strings


@pytest.mark.parametrize(
    "name", ["depth", "names", "nodes", "nops", "properties", "roots", "value"]
)
def test_the_largest_blobs_take_bounded_time_and_memory(name: str) -> None:
    data = giants()[name]
    attempt(name, data)
    tracemalloc.start()
    try:
        with suppress(DtbError):
            read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK, f"{peak >> 20} MiB for {len(data)} bytes"


def test_memory_of_mutants_is_bounded() -> None:
    tracemalloc.start()
    try:
        for label, data in mutants(own_seeds(), 60):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            attempt(label, data)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 1000 * len(data) + (1 << 20), f"{label}: {peak} bytes"
    finally:
        tracemalloc.stop()


# dtc as the judge of structure.

needs_dtc = pytest.mark.skipif(DTC is None, reason="no dtc to judge by (device-tree-compiler)")


def dtc_refuses(data: bytes) -> str | None:
    """What dtc says of a structure it cannot read; None when it can, or when it crashes itself.

    With -f it writes whatever it could parse: its judgement of contents does not count here.
    """
    assert DTC is not None
    command = [DTC, "-q", "-f", "-I", "dtb", "-O", "dtb", "-o", "/dev/null"]
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return None
    return done.stderr.decode("latin-1").strip() if done.returncode == 1 else None


def laxer_than_dtc(seeds: dict[str, bytes], count: int) -> tuple[list[str], int]:
    """Mutants that dtc refuses and we accept, and how many it refuses in all."""
    cases = list(mutants(seeds, count))
    with ThreadPoolExecutor(4) as pool:
        opinions = list(pool.map(dtc_refuses, (data for _, data in cases)))
    lax = []
    for (label, data), opinion in zip(cases, opinions, strict=True):
        if opinion is None:
            continue
        try:
            read(data, label)
        except DtbError:
            continue
        lax.append(f"{label}: dtc: {opinion}")
    return lax, sum(opinion is not None for opinion in opinions)


@needs_dtc
def test_what_dtc_refuses_is_refused() -> None:
    lax, refused = laxer_than_dtc(own_seeds(), 300)
    assert lax == []
    assert refused > 60


@needs_dtc
@pytest.mark.soak
def test_soak_what_dtc_refuses_is_refused(corpus: Path) -> None:
    lax, refused = laxer_than_dtc(own_seeds() | board_seeds(corpus), 10_000)
    assert lax == []
    assert refused > 2_000
