# SPDX-License-Identifier: BSD-2-Clause
"""``iommu_devid_map`` entries: vMasterIDs that the user wants.

The key comes from a proposal of 2022 and is in no version of xl. Without it the toolstack gives
out the vMasterIDs.
"""

from __future__ import annotations

import re

from xl_configs.frozen import frozen
from xl_configs.specs.scan import U32_MAX, U64_MAX, SpecError

_ENTRY = re.compile(
    r"[ \t]*(0[xX][0-9a-fA-F]+|[0-9]+)(?:@(0[xX][0-9a-fA-F]+|[0-9]+))?"
    r"[ \t]*,[ \t]*(0[xX][0-9a-fA-F]+|[0-9]+)[ \t]*"
)


@frozen
class DevidMap:
    """One ``iommu_devid_map`` entry.

    Attributes:
        pmaster: the pMasterID, a StreamID of the SMMU at ``base``.
        vmaster: the vMasterID the guest is to see; equal to ``pmaster`` when the entry does not
            say.
        base: physical address of the SMMU's registers.
    """

    pmaster: int
    vmaster: int
    base: int


def parse_devid_map(text: str) -> DevidMap:
    """``PMASTER_ID[@VMASTER_ID],IOMMU_BASE_ADDRESS``, each decimal or hexadecimal with ``0x``.

    Raises:
        SpecError: malformed, or a number that does not fit: 32 bits for the ids, 64 for the base.
    """
    found = _ENTRY.fullmatch(text)
    if found is None:
        raise SpecError(f"iommu_devid_map entry '{text}' is malformed")
    pmaster, base = _number(found[1]), _number(found[3])
    vmaster = pmaster if found[2] is None else _number(found[2])
    if pmaster > U32_MAX or vmaster > U32_MAX or base > U64_MAX:
        raise SpecError(f"iommu_devid_map entry '{text}' has a number that is too big")
    return DevidMap(pmaster, vmaster, base)


def _number(text: str) -> int:
    # 64 digits exceed 64 bits in either radix: more make it no bigger.
    hexadecimal = text[:2] in ("0x", "0X")
    digits = (text[2:] if hexadecimal else text).lstrip("0")[:64]
    return int(digits or "0", 16 if hexadecimal else 10)
