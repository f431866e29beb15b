# SPDX-License-Identifier: BSD-2-Clause
"""The format of cases with guests: what is a guest, what is a step of one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from vsmmu.arch.registers import OAS_BITS
from vsmmu.memory import PAGE
from vsmmu.smmu import cases
from vsmmu.smmu.cases import CaseError, Json, check_head, check_step, is_hex, require

GUESTS_MAX = 16
# Of one guest: ranges of RAM, and their bytes.
BANKS_MAX = 64
RAM_MAX = 64 << 20
# Of all guests.
STREAMS_MAX = 1024
# Where the hypervisor's pages lie, as (base, size) in bytes: below all RAM of guests.
OWN = (0x1000_0000, 0x800_0000)
_ADDRESS_BITS = OAS_BITS[4]


def check(case: Any) -> None:
    """Whether this is a case that can be played. Raises CaseError."""
    check_head(case)
    require(case.get("stage") == "nested", 'stage: expected "nested"')
    guests = case.get("guests")
    if not isinstance(guests, list) or not 0 < len(guests) <= GUESTS_MAX:
        raise CaseError(f"guests: expected a list of 1 to {GUESTS_MAX}")
    for g, guest in enumerate(guests):
        _check_guest(guest, f"guest {g}")
    _check_apart(guests)
    require(isinstance(case.get("vsteps"), list), "vsteps: expected a list")
    sids = [guest_sids(guest) for guest in guests]
    for i, step in enumerate(case["vsteps"]):
        where = f"guest step {i}"
        check_step(step, where, sid="vsid")
        known = type(step.get("g")) is int and 0 <= step["g"] < len(guests)
        require(known, f"{where}: g: expected the index of a guest")
        if step["op"] == "dma":
            theirs = int(step["vsid"], 16) in sids[step["g"]]
            require(theirs, f"{where}: vsid: guest {step['g']} has no device {step['vsid']}")
    if "steps" in case:
        cases.check(case)
        _check_answers(case)


def check_outcome(case: Json, outcome: Any) -> None:
    """Whether this is an outcome of the physical program of a case that `check` passed.

    Raises CaseError.
    """
    require("steps" in case, "steps: expected a list")
    cases.check_outcome(case, outcome)
    for at, result in enumerate(outcome["results"]):
        for event in result["events"] if result["op"] == "dma" else ():
            require(_is_record(event), f"result {at}: events: no event record {event!r:.40}")


def _is_record(event: Any) -> bool:
    """Whether the StreamID and the addresses of a record can be made a guest's."""
    if not isinstance(event, dict) or type(event.get("sid")) is not int:
        return False
    return all(is_hex(event.get(name, "0x0")) for name in ("ipa", "fetch"))


def guest_ram(guest: Json) -> list[tuple[int, int, int]]:
    """RAM of a guest as (IPA, PA, size) in bytes."""
    return [
        (int(bank["ipa"], 16), int(bank["pa"], 16), int(bank["size"], 16)) for bank in guest["ram"]
    ]


def guest_sids(guest: Json) -> dict[int, int]:
    """Physical StreamIDs of a guest's devices by virtual StreamID."""
    return {int(virtual, 16): int(sid, 16) for virtual, sid in guest["sids"].items()}


def number(value: int | str) -> int:
    """A number that may stand as itself or as a hexadecimal string."""
    return value if isinstance(value, int) else int(value, 16)


def _check_guest(guest: Any, where: str) -> None:
    require(isinstance(guest, dict), f"{where}: expected an object")
    vmid = guest.get("vmid")
    fits = type(vmid) is int or is_hex(vmid)
    require(fits and 0 <= number(vmid) < 1 << 16, f"{where}: vmid: expected 0 to 65535")
    ram, sids = guest.get("ram"), guest.get("sids")
    if not isinstance(ram, list) or not 0 < len(ram) <= BANKS_MAX:
        raise CaseError(f"{where}: ram: expected a list of 1 to {BANKS_MAX}")
    for at, bank in enumerate(ram):
        _check_bank(bank, f"{where}: ram {at}")
    _check_ram(guest_ram(guest), where)
    if not isinstance(sids, dict):
        raise CaseError(f"{where}: sids: expected an object")
    for virtual, physical in sids.items():
        for sid in (virtual, physical):
            # More would not fit IDR1.SIDSIZE of the machine.
            small = is_hex(sid) and int(sid, 16) >> 16 == 0
            require(small, f"{where}: sids: {sid!r:.40}: expected a StreamID of at most 16 bits")
    twice = len(guest_sids(guest)) < len(sids)
    require(not twice, f"{where}: sids: a virtual StreamID stands there twice")


def _check_bank(bank: Any, where: str) -> None:
    require(isinstance(bank, dict), f"{where}: expected an object")
    for name in ("ipa", "pa", "size"):
        require(is_hex(bank.get(name)), f"{where}: {name}: expected {cases.NUMBER}")
        require(int(bank[name], 16) % PAGE == 0, f"{where}: {name}: expected whole pages")
    require(int(bank["size"], 16) > 0, f"{where}: size: expected at least a page")


def _check_ram(ram: list[tuple[int, int, int]], where: str) -> None:
    total = sum(size for _, _, size in ram)
    require(total <= RAM_MAX, f"{where}: ram: more than {RAM_MAX >> 20} MiB")
    for at, (ipa, pa, size) in enumerate(ram):
        inside = (max(ipa, pa) + size - 1) >> _ADDRESS_BITS == 0
        require(inside, f"{where}: ram {at}: beyond {_ADDRESS_BITS} bits")
        own = pa < OWN[0] + OWN[1] and OWN[0] < pa + size
        require(not own, f"{where}: ram {at}: pa: the hypervisor's own RAM is at {OWN[0]:#x}")
    banks = sorted(ram)
    for (ipa, _, size), (after, _, _) in pairwise(banks):
        require(ipa + size <= after, f"{where}: ram: two ranges at {after:#x}")


def _check_apart(guests: list[Json]) -> None:
    """No two guests have the same VMID or the same device."""
    vmids: set[int] = set()
    taken: set[int] = set()
    for g, guest in enumerate(guests):
        vmid = number(guest["vmid"])
        require(vmid not in vmids, f"guest {g}: vmid: another guest has {vmid}")
        vmids.add(vmid)
        for sid in guest_sids(guest).values():
            require(sid not in taken, f"guest {g}: sids: {sid:#x} is assigned already")
            taken.add(sid)
    require(len(taken) <= STREAMS_MAX, f"guests: more than {STREAMS_MAX} devices")


def _check_answers(case: Json) -> None:
    """Each access of the physical program that names a guest step names an access."""
    for i, step in enumerate(case["steps"]):
        if step["op"] == "dma" and "v" in step:
            v = step["v"]
            known = type(v) is int and 0 <= v < len(case["vsteps"])
            known = known and case["vsteps"][v]["op"] == "dma"
            require(known, f"step {i}: v: expected the index of a guest's access")
