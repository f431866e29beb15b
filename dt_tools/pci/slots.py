# SPDX-License-Identifier: BSD-2-Clause
"""Where a guest sees its PCI functions: the vBDFs of Xen's vPCI.

Xen (4.20 to 4.22) gives a domU one host bridge with segment 0 and puts every device on bus 0, in
the first free of 32 slots, in the order in which devices are assigned, as function 0; a physical
function other than 0 it refuses. The `@SLOT` of a `pci` entry does not reach it. Here a slot that
is asked for is given when it is free, the other functions get the first free ones in list order,
whatever their own function number, and DT530 tells where Xen would do otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS = 32
_FUNCTION = "is no function 0: the vPCI of Xen 4.20 to 4.22 refuses it"


def slots(
    wanted: Sequence[tuple[str, int, int]],
) -> tuple[tuple[int, ...], tuple[Notice, ...]]:
    """The vBDFs of functions, in order.

    `wanted` has for each the text naming it, its physical function number and the vdevfn asked
    for, or 0.

    Raises:
        Refusal: DT526: a slot asked for twice, more than 32.
    """
    asked: dict[int, str] = {}
    for name, _, vdevfn in wanted:
        slot = vdevfn >> 3
        if slot and asked.setdefault(slot, name) != name:
            reason = f"asks for virtual slot {slot:#x}, which {asked[slot]} asks for too"
            raise Refusal("DT526", name, reason, "ask for another, or leave it out")
    if len(wanted) > SLOTS:
        reason = f"{len(wanted)} functions, the virtual PCI bus has {SLOTS} slots"
        raise Refusal("DT526", wanted[SLOTS][0], reason, "assign fewer")
    free = (slot for slot in range(SLOTS) if slot not in asked)
    found = [vdevfn >> 3 or next(free) for _, _, vdevfn in wanted]
    notices = tuple(
        Notice("DT530", name, _differs(slot, place) if place != slot else _FUNCTION)
        for place, ((name, func, _), slot) in enumerate(zip(wanted, found, strict=True))
        if place != slot or func
    )
    return tuple(slot << 3 for slot in found), notices


def _differs(slot: int, place: int) -> str:
    return (
        f"is put at 00:{slot:02x}.0 for the slots asked for; the vPCI of Xen 4.20 to 4.22 does not "
        f"see them and puts it at 00:{place:02x}.0"
    )
