# SPDX-License-Identifier: BSD-2-Clause
"""Domains: identity, memory behind a stage 2, assigned streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vsmmu.arch.events import Event
from vsmmu.arch.stream_table import Eats, ShCfg, Ste, SteConfig
from vsmmu.hypervisor.host_smmu import HostSmmu
from vsmmu.hypervisor.policy import GUEST_STE_FIELDS
from vsmmu.hypervisor.rate import Rate
from vsmmu.hypervisor.spans import Spans
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import Memory

if TYPE_CHECKING:
    from vsmmu.hypervisor.vits import VirtualIts
    from vsmmu.hypervisor.vsmmu import VSmmu


@dataclass(slots=True, eq=False)
class Stream:
    """One assigned stream: the pair (physical SMMU, pMasterID) and the guest's name for it.

    `raises` is the event that the guest's own configuration stands for while the physical STE
    can only abort: None when the guest's STE is one that hardware carries out. `s1ctxptr`,
    `cd_bits` and `cd_split` say where its CDs are, `ppar` is its STE.PPAR (`smmu.ste.Stream`).
    `oas` is how many bits its guest's SMMU outputs, `bypass` whether that one has accesses without
    SubstreamID pass its stage 1.
    """

    vmaster_id: int
    host: HostSmmu
    pmaster_id: int
    devices: tuple[str, ...] = ()
    raises: Event | None = None
    s1ctxptr: int = 0
    cd_bits: int = 0
    cd_split: int = 0
    ppar: bool = False
    oas: int = 64
    bypass: bool = False
    busy: bool = False
    stale: bool = False


class GuestMemory:
    """A domain's memory as its own addresses see it; each word is read once.

    A guest can change any byte at any time, so callers decode what they were given and never look
    twice. None or False stands for an address that is not the domain's.
    """

    def __init__(self, memory: Memory, stage2: Stage2) -> None:
        self._memory = memory
        self._stage2 = stage2

    def read64(self, ipa: int) -> int | None:
        """The aligned 64-bit word at an IPA."""
        pa = self._stage2.to_pa(ipa)
        return None if pa is None else self._memory.read64(pa)

    def write64(self, ipa: int, value: int) -> bool:
        """Store an aligned 64-bit word."""
        pa = self._stage2.to_pa(ipa, write=True)
        return pa is not None and self._memory.write64(pa, value)

    def write32(self, ipa: int, value: int) -> bool:
        """Store an aligned 32-bit word, as a message does."""
        pa = self._stage2.to_pa(ipa, write=True)
        return pa is not None and self._memory.write32(pa, value)

    def read_words(self, ipa: int, count: int) -> tuple[int, ...] | None:
        """`count` consecutive words; None when any is not the domain's."""
        out = []
        for i in range(count):
            word = self.read64(ipa + 8 * i)
            if word is None:
                return None
            out.append(word)
        return tuple(out)

    def write_words(self, ipa: int, words: tuple[int, ...]) -> bool:
        """Store words one after the other; False at the first that is not the domain's."""
        return all(self.write64(ipa + 8 * i, word) for i, word in enumerate(words))

    def read(self, ipa: int, size: int) -> bytes | None:
        """`size` bytes, for a guest's CPU and for checks."""
        out = bytearray()
        while size:
            n = min(size, 0x1000 - ipa % 0x1000)
            pa = self._stage2.to_pa(ipa)
            part = None if pa is None else self._memory.read(pa, n)
            if part is None:
                return None
            out += part
            ipa, size = ipa + n, size - n
        return bytes(out)

    def write(self, ipa: int, data: bytes) -> bool:
        """Store bytes; False at the first page that is not the domain's."""
        while data:
            n = min(len(data), 0x1000 - ipa % 0x1000)
            pa = self._stage2.to_pa(ipa, write=True)
            if pa is None or not self._memory.write(pa, data[:n]):
                return False
            ipa, data = ipa + n, data[n:]
        return True


class Doorbell(NamedTuple):
    """The translation register of a domain's virtual ITS.

    `deliver` is told the base of the vSMMU that sends and the data; False is an abort.
    """

    address: int
    deliver: Callable[[int, int], bool]


@dataclass(slots=True, eq=False)
class Domain:
    """A guest. `vmid` tags its translations on every physical SMMU.

    `max_memory` is the RAM it was created with, bytes; `direct` domains have it at its machine
    address. `dying` is set when its destruction begins:
    its vCPUs run no more.
    """

    domid: int
    name: str
    vmid: int
    stage2: Stage2
    memory: GuestMemory
    # Machine ranges given to the domain, to be returned with it; and those it gave up while an
    # endpoint could still reach them.
    owned: Spans = field(default_factory=Spans)
    withheld: Spans = field(default_factory=Spans)
    max_memory: int = 0
    direct: bool = False
    dying: bool = False
    vsmmus: list[VSmmu] = field(default_factory=list)
    # The cap on events of all its vSMMUs together.
    event_rate: Rate | None = None
    doorbell: Doorbell | None = None
    its: VirtualIts | None = None

    def nested_ste(
        self, guest: Ste, *, stall_disabled: bool, ats: bool = False, ppar: bool = False
    ) -> Ste:
        """The physical STE for a guest's stage 1: its allowed fields over our stage 2.

        Args:
            stall_disabled: sets S1STALLD, on an SMMU that could stall.
            ats: split-stage ATS, the only kind that stage 2 contains (§3.9.2).
            ppar: STE.PPAR.
        """
        fields = {name: getattr(guest, name) for name in GUEST_STE_FIELDS}
        fields |= self._stage2_fields | {
            "s1stalld": int(stall_disabled),
            "eats": Eats.SPLIT if ats else Eats.NONE,
            "ppar": int(ppar),
        }
        return Ste.build(v=1, config=SteConfig.NESTED, **fields)

    def stage2_ste(self) -> Ste:
        """The physical STE while the guest bypasses its stage 1."""
        return Ste.build(v=1, config=SteConfig.S2, **self._stage2_fields)

    @property
    def _stage2_fields(self) -> dict[str, int]:
        """What both kinds of STE have in common.

        SHCFG too, although stage 1 replaces it: a change between the two is hitless that way.
        """
        return {"shcfg": ShCfg.INCOMING, "s2vmid": self.vmid, **self.stage2.ste_fields}
