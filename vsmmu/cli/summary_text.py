# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run --summary` on a terminal: a table of guests, a table of physical SMMUs."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vsmmu.cli.files import plain

# Heading, then what it shows; sums where there are two.
_GUEST = {
    "traps": ("trap_reads", "trap_writes"),
    "cmds": ("commands",),
    "phys": ("physical_commands",),
    "inval": ("invalidations",),
    "STEs": ("ste_updates",),
    "DMA": ("accesses",),
    "fault": ("faults",),
    "config": ("config_reads",),
    "walk": ("s1_reads", "s2_reads"),
}
_SMMU = {
    "cmds": ("commands",),
    "inval": ("invalidations",),
    "DMA": ("accesses",),
    "fault": ("faults",),
    "config": ("config_reads",),
    "walk": ("s1_reads", "s2_reads"),
    "TLB hit": ("tlb_hits",),
    "miss": ("tlb_misses",),
    "dropped": ("tlb_invalidated",),
}
_LEGEND = (
    "traps: accesses to vSMMU registers; cmds: taken from the guest's queue; phys:",
    "put into physical queues for it; inval: CFGI, TLBI, ATC_INV of these; DMA:",
    "accesses of at most a page; config, walk: structures and descriptors that the",
    "SMMU read for it",
)


def print_summary(summary: dict[str, Any], labels: dict[str, str]) -> None:
    """Both tables to stdout; `labels` are short names of SMMUs by path."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    table = _table(("guest", "SMMU"), _GUEST)
    for row in summary["guests"]:
        table.add_row(plain(row["guest"]), "all", *_cells(row, _GUEST))
        for part in row["smmus"]:
            table.add_row("", labels[part["smmu"]], *_cells(part, _GUEST))
    console.print("\ncost of each guest, in all and on each physical SMMU")
    console.print(table)
    table = _table(("SMMU",), _SMMU)
    for row in summary["smmus"]:
        table.add_row(labels[row["smmu"]], *_cells(row, _SMMU))
    console.print("cost on each physical SMMU, what the hypervisor itself asked for included")
    console.print(table)
    for line in _LEGEND:
        console.print(line)


def _table(names: tuple[str, ...], columns: dict[str, tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in names:
        table.add_column(name, max_width=20, no_wrap=True, overflow="ellipsis")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(row: dict[str, Any], columns: dict[str, tuple[str, ...]]) -> list[str]:
    """Values; a dash where a guest's row for one SMMU has none of its own."""
    return [
        str(sum(row[name] for name in names)) if names[0] in row else "-"
        for names in columns.values()
    ]
