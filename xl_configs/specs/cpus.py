# SPDX-License-Identifier: BSD-2-Clause
"""Sets of physical CPUs (``cpus``), and ranges of cache colours (``llc_colors``)."""

from __future__ import annotations

from xl_configs.frozen import frozen
from xl_configs.specs.scan import U32_MAX, U64_MAX, SpecError, as_u64, scan_number, strtok, strtoul

MOST_CPUS = 1 << 14
"""Above every CPU number that Xen can be built for; larger ones are in no host."""

MOST_COLORS = 1 << 20
"""Colours in one guest; xl has no bound but its memory."""


@frozen
class Host:
    """What a set of CPUs is read against: xl drops the CPUs that the host does not have.

    Attributes:
        cpus: number of physical CPUs; they belong to the NUMA nodes in equal parts, in order.
        nodes: number of NUMA nodes.
    """

    cpus: int = 8
    nodes: int = 2

    @property
    def all(self) -> int:
        """All its CPUs, one bit each."""
        return (1 << self.cpus) - 1

    def node(self, number: int) -> int:
        """The CPUs of a node, one bit each; none when there is no such node."""
        if number >= self.nodes:
            return 0
        each = self.cpus // self.nodes
        return ((1 << each) - 1) << (number * each)


def parse_range(text: str) -> tuple[int, int, bool]:
    """``N`` or ``N-M`` in decimal: both ends, and whether xl takes it.

    What was read before a fault is in the ends, for ``vnuma``, where xl does not look for one.
    """
    first, end = strtoul(text, 10)
    if end == 0 or first == U64_MAX:
        return first, first, False
    last = first
    if text.startswith("-", end):
        start = end + 1
        last, end = strtoul(text, 10, start)
        if end == start or last == U64_MAX or last < first:
            return first, last, False
    return first, last, end == len(text)


def _bits(first: int, last: int) -> int:
    # xl keeps 32 bits of a CPU's number.
    last -= first & ~U32_MAX
    first &= U32_MAX
    last = min(last, MOST_CPUS - 1)
    return 0 if first > last else ((1 << (last - first + 1)) - 1) << first


def parse_cpus(text: str, host: Host | None = None) -> int:
    """A list of ``N``, ``N-M``, ``all``, ``node:N-M``, each possibly after ``^`` to take it out.

    Args:
        text: the list, applied from left to right.
        host: the machine; without one every CPU exists and a node has none.

    Returns:
        The CPUs, one bit each.

    Raises:
        SpecError: an item xl refuses.
    """
    machine = Host(MOST_CPUS, 1) if host is None else host
    chosen = 0
    for item in strtok(text):
        rest = item.removeprefix("^")
        without = rest != item
        bare = rest.removeprefix("node:")
        if bare == rest:
            bare = rest.removeprefix("nodes:")
        if bare == "all":
            if without:
                raise SpecError('Can\'t combine "^" and "all".')
            chosen = machine.all
            continue
        first, last, fine = parse_range(bare)
        if not fine:
            raise SpecError(f"Invalid pcpu range: {bare}.")
        if bare == rest:
            named = _bits(first, last) & machine.all
        elif host is None:
            named = 0
        else:
            named = 0
            for number in range(first, min(last, machine.nodes - 1) + 1):
                named |= machine.node(number)
        chosen = chosen & ~named if without else chosen | named
    return chosen


def members(bits: int) -> list[int]:
    """The CPUs of a set, ascending."""
    return [at for at, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]


def parse_llc_colors(text: str) -> tuple[int, int]:
    """``N`` or ``N-M`` in decimal as scanf reads them: first and last colour.

    What follows the numbers is ignored, as in xl: ``1,2`` is 1 and ``0x10`` is 0.

    Raises:
        SpecError: no number, a reversed range, or colour 2^32-1, where xl crashes.
    """
    found = scan_number(text, 0, 10)
    if found is None:
        raise SpecError(f"xl: Invalid LLC color range: {text}")
    first = last = as_u64(found[0]) & U32_MAX
    if text.startswith("-", found[1]):
        second = scan_number(text, found[1] + 1, 10)
        if second is not None:
            last = as_u64(second[0]) & U32_MAX
    if first > last:
        raise SpecError(f"xl: Start LLC color is greater than end: {text}")
    if last == U32_MAX:
        raise SpecError(f"LLC color {last}, at which xl counts past the end: {text}", crash=11)
    return first, last
