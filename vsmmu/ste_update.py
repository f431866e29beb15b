# SPDX-License-Identifier: BSD-2-Clause
"""Changing a live STE without an open window (IHI 0070 §3.21.3.1).

The SMMU may read the 64-bit words of an entry at any moment and in any order. An update is
therefore a list of phases; after each phase the entry is invalidated and synchronised. An update
is hitless when every state in between means the old or the new entry to a device; where no such
order exists, the entry passes through V=0, which aborts.
"""

from __future__ import annotations

from vsmmu.arch.stream_table import LIVE, STAGE1, STAGE2, Eats, S1Dss, Ste, SteConfig

Words = tuple[int, ...]

_S1_USED = (
    *("s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh", "s1stalld"),
    *("strw", "eats", "mev", "s2vmid"),
)
_S2_USED = (
    *("s2fwb", "eats", "shcfg", "mev", "s2vmid", "s2t0sz", "s2sl0", "s2ir0", "s2or0", "s2sh0"),
    *("s2tg", "s2ps", "s2aa64", "s2endi", "s2affd", "s2ptw", "s2hd", "s2ha", "s2s", "s2r"),
    *("s2sl0_2", "s2ds", "s2ttb"),
)


def used(ste: Ste) -> Words:
    """The bits of this entry that an SMMU acts on, a mask for each word."""
    names = ["v"]
    if ste.v:
        names.append("config")
        if ste.config & LIVE and ste.config & STAGE1:
            names += _S1_USED
            if ste.s1dss == S1Dss.BYPASS:
                names.append("shcfg")
        if ste.config & LIVE and ste.config & STAGE2:
            names += _S2_USED
        if ste.config == SteConfig.BYPASS:
            names.append("shcfg")
    return Ste.mask(*set(names))


def safe(old: Ste, new: Ste) -> Words:
    """The bits that may change at any moment, a mask for each word.

    STE.MEV only says how many records there are. Full ATS only answers requests of a device that
    was told to make some; beside split-stage ATS and stalls it is no such bit.
    """
    names = ["mev"]
    if not any(e.eats not in (Eats.NONE, Eats.FULL) or e.s2s for e in (old, new)):
        names.append("eats")
    bits = zip(Ste.mask(*names), used(old), used(new), strict=True)
    return tuple(m & o & n for m, o, n in bits)


def phases(old: Ste, new: Ste) -> list[list[tuple[int, int]]]:
    """The update as phases, each a list of (word index, value) to store and then synchronise."""
    used_new = used(new)
    kept = tuple(u & ~s for u, s in zip(used(old), safe(old, new), strict=True))
    # Everything the old entry does not depend on can take its new value first, unseen.
    unseen = tuple(o & u | n & ~u for o, n, u in zip(old.words, new.words, kept, strict=True))
    critical = [i for i in range(8) if (unseen[i] ^ new.words[i]) & used_new[i]]
    if not critical:
        steps = [new.words]
    elif len(critical) == 1:
        k = critical[0]
        before = tuple(old.words[i] if i == k else unseen[i] for i in range(8))
        switch = tuple(new.words[i] if i == k else before[i] for i in range(8))
        steps = [before, switch, new.words]
    else:
        steps = [(0, *old.words[1:]), (0, *new.words[1:]), new.words]
    out, state = [], old.words
    for target in steps:
        phase = [(i, target[i]) for i in range(8) if target[i] != state[i]]
        if phase:
            out.append(phase)
        state = target
    return out


def is_hitless(old: Ste, new: Ste) -> bool:
    """Whether no phase in between leaves the entry invalid."""
    state = list(old.words)
    for phase in phases(old, new):
        for index, value in phase:
            state[index] = value
        if not Ste(tuple(state)).v and old.v and new.v:
            return False
    return True
