# SPDX-License-Identifier: BSD-2-Clause
"""Rules about StreamIDs: who shares one, and what a guest's vMasterIDs stand for."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from dt_tools.checks.view import named
from dt_tools.errors import DtError
from dt_tools.rules import Diagnosis, rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.checks.view import Board, Given
    from dt_tools.platform import Master

DT502 = rule(
    "DT502",
    "note",
    "one StreamID on several SMMUs",
    "A StreamID means nothing without its SMMU. A guest with devices behind several SMMUs gets "
    "one vSMMU, where equal ids would collide: each stream needs a vMasterID of its own.",
    "/soc/crypto@60000000: StreamID 0x600 of /soc/iommu@50000000 becomes vMasterID 0x0, the one"
    " of /soc/iommu@51000000 0x1",
)
DT503 = rule(
    "DT503",
    "error",
    "devices that share a (SMMU, StreamID) are apart",
    "The SMMU sees one stream: whatever one domain sets up for it holds for the other domain's "
    "device too, so neither is isolated.",
    "/soc/dma@60020000: shares StreamID 0x20 of /soc/iommu@50000000 with /soc/dma@60030000, "
    "which is guest-b.cfg's",
)
DT507 = rule(
    "DT507",
    "error",
    "iommu_devid_map does not fit the board or dtdev",
    "An entry names an SMMU address that no SMMU has, a StreamID that no device of the guest "
    "has, or a vMasterID twice; or it stands in a configuration without a vSMMU and says "
    "nothing.",
    "/: iommu_devid_map: no SMMU of the host is at 0x4f000000",
)
DT508 = rule(
    "DT508",
    "warning",
    "vMasterIDs are needed, and there is no vSMMU",
    'Without viommu = "smmuv3" nothing rewrites iommus: a partial tree\'s entries reach the '
    "guest as they stand and name an SMMU it does not have, and two devices whose StreamIDs are"
    " equal behind different SMMUs cannot be told apart by the guest.",
    '/passthrough/crypto@60000000: has iommus, but viommu = "none": the guest has no SMMU for it',
)


def check(board: Board, given: Given, others: Sequence[Given]) -> Iterator[Diagnosis]:
    """A guest's streams, against the board and the other guests."""
    masters = [board.masters[n.path] for n in given.nodes if n.path in board.masters]
    users: dict[tuple[str, int], list[str]] = {}
    for master in masters:
        for stream in master.streams:
            users.setdefault((stream.smmu_path, stream.stream_id), []).append(master.path)
    yield from _repeated(given, users)
    yield from _apart(board, given, others, users)
    yield from _wanted(board, given)


def _repeated(given: Given, users: dict[tuple[str, int], list[str]]) -> Iterator[Diagnosis]:
    by_id: dict[int, list[str]] = {}
    for smmu, stream_id in users:
        by_id.setdefault(stream_id, []).append(smmu)
    for stream_id, smmus in sorted(by_id.items()):
        if len(smmus) < 2:
            continue
        path = users[smmus[0], stream_id][0]
        fact = f"StreamID {stream_id:#x} is this guest's on {len(smmus)} SMMUs: {named(smmus)}"
        if given.viommu:
            yield DT502.at(path, fact, "each gets a vMasterID of its own", key="dtdev")
        else:
            fix = 'set viommu = "smmuv3" if the guest is to manage its DMA'
            yield DT508.at(path, fact, fix, severity="note", key="dtdev")


def _apart(
    board: Board,
    given: Given,
    others: Sequence[Given],
    users: dict[tuple[str, int], list[str]],
) -> Iterator[Diagnosis]:
    owner = {node.path: other for other in others for node in other.nodes}
    own = {node.path for node in given.own}
    by_smmu: dict[str, list[int]] = {}
    for smmu, stream_id in sorted(users):
        by_smmu.setdefault(smmu, []).append(stream_id)
    for master in board.platform.masters:
        if master.path in own or (master.status != "okay" and master.path not in owner):
            continue
        for key in dict.fromkeys((s.smmu_path, s.stream_id) for s in master.streams):
            if key in users:
                other = owner.get(master.path)
                whose = f"{other.label}'s" if other else "not assigned to this guest"
                fact = (
                    f"shares StreamID {key[1]:#x} of {key[0]} with {master.path}, which is {whose}"
                )
                yield DT503.at(
                    users[key][0], fact, f"assign {master.path} too, or neither", key="dtdev"
                )
        yield from _in_rows(master, users, by_smmu)


def _in_rows(
    master: Master, users: dict[tuple[str, int], list[str]], by_smmu: dict[str, list[int]]
) -> Iterator[Diagnosis]:
    """A bus whose iommu-map could give one of its functions the guest's StreamID."""
    for row in master.maps:
        ids = by_smmu.get(row.smmu_path, [])
        at = bisect_left(ids, row.sid_base)
        if at < len(ids) and ids[at] < row.sid_base + row.length:
            key = row.smmu_path, ids[at]
            fact = f"StreamID {key[1]:#x} of {key[0]} is in the iommu-map of {master.path}"
            fix = f"keep functions behind {master.path} off that StreamID"
            yield DT503.at(users[key][0], fact, fix, severity="note", key="dtdev")
            return


def _wanted(board: Board, given: Given) -> Iterator[Diagnosis]:
    config = given.config
    if not config.iommu_devid_map:
        return
    if not (given.viommu and config.dtdev):
        fact = 'iommu_devid_map has no effect without viommu = "smmuv3" and dtdev'
        fix = "give both, or take it out"
        yield DT507.at("/", fact, fix, severity="warning", key="iommu_devid_map")
        return
    from dt_tools.binding import allocate

    try:
        allocate(board.platform, config.dtdev, wanted=config.iommu_devid_map)
    except DtError as error:
        if getattr(error, "rule", "") == "DT507":
            path, reason = getattr(error, "path", "/"), getattr(error, "reason", str(error))
            fix = getattr(error, "fix", None) or "correct the entry"
            yield DT507.at(path, reason, fix, key="iommu_devid_map")
