# SPDX-License-Identifier: BSD-2-Clause
"""The machine under a recorded guest: physical SMMUs, the hypervisor, a domain with a vSMMU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from vsmmu.arch.registers import BY_NAME, OAS_BITS, Idr0, Idr1, Idr5
from vsmmu.hypervisor.domain import Domain, GuestMemory, Stream
from vsmmu.hypervisor.features import UnfitError
from vsmmu.hypervisor.hypervisor import HypercallError, Hypervisor
from vsmmu.hypervisor.interrupts import Irq
from vsmmu.hypervisor.pages import OutOfMemoryError, PageAllocator
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.stage2 import IPA_BITS_MAX
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.memory import Memory
from vsmmu.recording.entitled import STAGE1_ALONE
from vsmmu.recording.layout import Layout
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Smmu

# Where a guest sees its vSMMU, bytes. Nothing of a recording is read from there.
WINDOW = (0x0404_0000, 0x4_0000)
SMMUS_MAX = 64
STREAMS_MAX = 1024
_OFFERED = ("IDR0", "IDR1", "IDR3", "IDR5", "IIDR", "AIDR")
# pMasterIDs start here on every physical SMMU, so that they repeat.
_PMASTER_BASE = 0x400
_SID_BITS = 12


class RefusedError(Exception):
    """The hypervisor's policy or its machine has no vSMMU for this recording; one line."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """The user's choice of a machine.

    Attributes:
        smmus: physical SMMUs; the recording's streams are spread over them in turn.
        guest: "domU", behind a stage 2 that is no identity, or "dom0".
        features: fields of the physical identification registers, over `physical_features`.
        seed: of the scheduler.
        caching: of the physical SMMUs, as in `Smmu`.
    """

    smmus: int = 2
    guest: str = "domU"
    features: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    caching: str = "normal"


def physical_features(fields: Mapping[str, int]) -> Features:
    """All that is modelled, with 12 bits of StreamID, and these fields.

    Raises:
        ValueError: no such field, or a machine that cannot be.
    """
    try:
        return Features.everything().replace(sidsize=_SID_BITS).replace(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from None


def policy_for(ids: Mapping[str, int]) -> Policy:
    """A policy that allows what the recorded SMMU had.

    The caps on events are those of a machine in real time, and a replay has none: they are lifted.
    """
    idr0, idr1, idr5 = Idr0(ids["IDR0"]), Idr1(ids["IDR1"]), Idr5(ids["IDR5"])
    return replace(
        Policy(),
        substreams=bool(idr1.ssidsize), httu=bool(idr0.httu), msi=bool(idr0.msi),
        stalls=bool(idr5.stall_max), ats=bool(idr0.ats), pri=bool(idr0.pri),
        device_events=1 << 30, guest_events=1 << 30,
    )  # fmt: skip


def wanted(ids: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The recorded identification as the profile of a vSMMU: the most that it may offer.

    Raises:
        ValueError: what nothing modelled comes near.
    """
    near, _ = Features.nearest(**{name.lower(): ids[name] for name in _OFFERED})
    return {
        name: {field: at.of((near.ids[name],)) for field, at in BY_NAME[name].layout.fields.items()}
        for name in _OFFERED
    }


class SilentMemory(GuestMemory):
    """A guest's memory that messages of the vSMMU do not change.

    The recorded driver may have written over the word before the recorder looked again, and then
    no record says that it is what it was; a doorbell is no RAM.
    """

    def write32(self, ipa: int, value: int) -> bool:
        """A message arrives."""
        return True


class GuestMachine:
    """Physical SMMUs, hypervisor and one guest with the recorded devices.

    Args:
        choice: which machine.
        ids: the recorded identification registers by name.
        ram: the recording's RAM, (base, size) in bytes.
        sids: StreamIDs of the recording's devices, the vMasterIDs.
        irq: where the vSMMU's wired interrupts go.

    Raises:
        RefusedError: a vSMMU cannot stand in for what was recorded.
        ValueError: a machine that cannot be, or RAM or StreamIDs that it cannot have.
    """

    def __init__(
        self,
        choice: Choice,
        ids: Mapping[str, int],
        ram: tuple[int, int],
        sids: Collection[int],
        irq: Irq | None = None,
    ) -> None:
        _refuse_stage2_alone(Idr0(ids["IDR0"]))
        features = physical_features(choice.features)
        self.layout = Layout(ram, min(features.oas, IPA_BITS_MAX), direct=choice.guest == "dom0")
        self.memory = Memory(self.layout.regions)
        self.scheduler = Scheduler(choice.seed)
        self.smmus = {
            f"smmu{i}": Smmu(f"smmu{i}", self.memory, features, caching=choice.caching)
            for i in range(choice.smmus)
        }
        for smmu in self.smmus.values():
            for engine in smmu.engines:
                self.scheduler.add(engine)
        own = PageAllocator([self.layout.own])
        try:
            self.hypervisor = Hypervisor(
                self.memory, self.scheduler, self.smmus, policy_for(ids), pages=own
            )
            self.hypervisor.boot()
            self.domain = self._domain(choice, ids)
            self.vsmmu = self._vsmmu(ids, irq)
        except (HypercallError, UnfitError) as error:
            raise RefusedError(str(error)) from None
        except OutOfMemoryError as error:
            raise ValueError(str(error)) from None
        self.streams: dict[int, Stream] = {}
        self._assign(sids)

    def _domain(self, choice: Choice, ids: Mapping[str, int]) -> Domain:
        end = sum(self.layout.ram)
        code = Idr5(ids["IDR5"]).oas
        recorded = OAS_BITS[code] if code < len(OAS_BITS) else IPA_BITS_MAX
        bits = min(max(recorded, (end - 1).bit_length()), IPA_BITS_MAX)
        domain = self.hypervisor.create_domain(choice.guest, [], ipa_bits=bits)
        if (end - 1) >> domain.stage2.ipa_bits:
            raise ValueError(f"RAM up to {end - 1:#x}: stage 2 has {domain.stage2.ipa_bits} bits")
        # A stage 2 of the hypervisor's own grows with RAM that it gives out; this one is by hand.
        domain.stage2.tables_max = None
        domain.direct = self.layout.direct
        domain.memory = SilentMemory(self.memory, domain.stage2)
        self.layout.map_ram(domain.stage2)
        return domain

    def _vsmmu(self, ids: Mapping[str, int], irq: Irq | None) -> VSmmu:
        return self.hypervisor.create_vsmmu(
            self.domain, *WINDOW, wanted(ids), tuple(self.smmus), irq=irq
        )

    def _assign(self, sids: Collection[int]) -> None:
        """Spread the streams; a pMasterID is never the vMasterID, and repeats on each SMMU."""
        if len(sids) > STREAMS_MAX:
            raise ValueError(f"{len(sids)} StreamIDs, more than {STREAMS_MAX}")
        paths = tuple(self.smmus)
        for index, sid in enumerate(sorted(sids)):
            pmaster = _PMASTER_BASE + index // len(paths)
            if pmaster == sid:
                pmaster += STREAMS_MAX
            try:
                self.streams[sid] = self.hypervisor.assign(
                    self.vsmmu, sid, paths[index % len(paths)], pmaster
                )
            except HypercallError as error:
                raise ValueError(f"StreamID {sid:#x}: {error}") from None

    @property
    def advertised(self) -> Mapping[str, int]:
        """Identification registers of the vSMMU by name."""
        return self.vsmmu.regs.values


def _refuse_stage2_alone(idr0: Idr0) -> None:
    if not idr0.s1p:
        raise RefusedError(f"recorded with stage 2 alone (IDR0.S1P=0); {STAGE1_ALONE}")
