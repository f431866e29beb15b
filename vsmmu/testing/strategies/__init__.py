# SPDX-License-Identifier: BSD-2-Clause
"""Hypothesis strategies for SMMUs and what their software writes (docs/testing.md).

Three kinds, for STEs, CDs, commands, events and descriptors: `arbitrary(Ste)` is any bits at all;
`legal_stes()` and its like are what the architecture lets an SMMU with these `Features` carry out,
by the rules of `vsmmu.arch.legality`; `almost(...)` is one of those with one field changed, which
may still be legal.
"""

from __future__ import annotations

from vsmmu.testing.strategies.commands import command_sequences, legal_commands
from vsmmu.testing.strategies.contexts import legal_cds, legal_l1cds
from vsmmu.testing.strategies.events import legal_events
from vsmmu.testing.strategies.features import features
from vsmmu.testing.strategies.layouts import almost, arbitrary, values
from vsmmu.testing.strategies.pagetables import (
    Flaw,
    Mapping,
    Recipe,
    almost_tables,
    legal_leaves,
    page_tables,
)
from vsmmu.testing.strategies.streams import legal_l1stds, legal_stes

__all__ = [
    "Flaw",
    "Mapping",
    "Recipe",
    "almost",
    "almost_tables",
    "arbitrary",
    "command_sequences",
    "features",
    "legal_cds",
    "legal_commands",
    "legal_events",
    "legal_l1cds",
    "legal_l1stds",
    "legal_leaves",
    "legal_stes",
    "page_tables",
    "values",
]
