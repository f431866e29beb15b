# SPDX-License-Identifier: BSD-2-Clause
"""What an SMMU says about itself: the identification registers (IHI 0070 §6.3.1 to §6.3.8).

Advertise little: a feature that this model lacks is refused here, with its name, so that it is
absent from the ID registers and everything that depends on it is illegal to use.

Not modelled, hence refused: AArch32 tables, ATOS, MPAM, ECMDQ, preset bases, memory type
overrides, and what SMMUv3.4 brought. `Features.default` offers neither substreams nor HTTU, 52-bit
addresses, small translation tables, stalling, ATS, PRI, BTM, MSI nor SEV, and EL2 contexts only
where they are mandatory; `replace` adds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from vsmmu.arch.registers import (
    OAS_BITS,
    Aidr,
    Idr0,
    Idr1,
    Idr3,
    Idr5,
    Iidr,
    StallModel,
    TtEndian,
    Ttf,
)

if TYPE_CHECKING:
    from vsmmu.arch.layout import Layout

_LAYOUTS: dict[str, type[Layout]] = {
    "idr0": Idr0,
    "idr1": Idr1,
    "idr3": Idr3,
    "idr5": Idr5,
    "iidr": Iidr,
    "aidr": Aidr,
}
_REGISTER_OF = {field: reg for reg, layout in _LAYOUTS.items() for field in layout.fields}

# IDR5.OAS of 52 bits.
_OAS_52 = 6
# IDR5.OAS of 40 bits: a level 0 block of the 4K granule, which DS brings, has 39 (Arm ARM D8.2).
_OAS_40 = 2

# Whether it holds, and what is said where it does not.
_Rules = tuple[tuple[object, str], ...]

# The values this model can act on; a field that is not listed must be 0.
_MODELLED: dict[str, range] = {
    "s2p": range(2),
    "s1p": range(2),
    "ttf": range(Ttf.AARCH64, Ttf.AARCH64 + 1),
    "cohacc": range(2),
    "httu": range(3),
    "hyp": range(2),
    "btm": range(2),
    "ats": range(2),
    "ns1ats": range(2),
    "atsrecerr": range(2),
    "pri": range(2),
    "priqs": range(20),
    "pps": range(2),
    "asid16": range(2),
    "msi": range(2),
    "sev": range(2),
    "vmw": range(2),
    "vmid16": range(2),
    "cd2l": range(2),
    "ttendian": range(TtEndian.LITTLE, TtEndian.LITTLE + 1),
    "stall_model": range(3),
    "term_model": range(2),
    "st_level": range(2),
    "sidsize": range(33),
    "ssidsize": range(21),
    "eventqs": range(20),
    "cmdqs": range(20),
    "attr_perms_ovr": range(2),
    "had": range(2),
    "xnx": range(2),
    "fwb": range(2),
    "stt": range(2),
    "ril": range(2),
    "bbml": range(3),
    "e0pd": range(2),
    "ptwnnc": range(2),
    "oas": range(7),
    "ds": range(2),
    "vax": range(2),
    "gran4k": range(2),
    "gran16k": range(2),
    "gran64k": range(2),
    "implementer": range(1 << 12),
    "revision": range(1 << 4),
    "variant": range(1 << 4),
    "productid": range(1 << 12),
    "stall_max": range(1 << 16),
    "archminrev": range(4),
}

# Fields that can be chosen, by name: their register and the values that are modelled.
CHOICES: dict[str, tuple[str, range]] = {
    name: (_REGISTER_OF[name].upper(), values)
    for name, values in _MODELLED.items()
    if len(values) > 1
}

# What a refused field stands for, where its name alone does not say.
_FEATURE = {
    "ttf": "AArch32 tables",
    "ttendian": "big-endian tables",
    "stall_model": "a reserved value",
    "httu": "access flags of table descriptors",
    "vax": "56-bit addresses",
    "oas": "56-bit addresses",
    "archminrev": "SMMUv3.4",
}


@dataclass(frozen=True)
class Features:
    """Identification registers of one SMMU.

    Raises:
        ValueError: a feature that is not modelled, or fields that contradict each other (§6.3).
    """

    idr0: Idr0
    idr1: Idr1
    idr3: Idr3
    idr5: Idr5
    iidr: Iidr
    aidr: Aidr

    def __post_init__(self) -> None:
        for name, layout in _LAYOUTS.items():
            _refuse_unmodelled(name, layout, getattr(self, name))
        _require(self._needs())
        _require(self._architecture())

    @classmethod
    def from_ids(
        cls, *, idr0: int, idr1: int, idr3: int, idr5: int, iidr: int = 0, aidr: int = 0
    ) -> Self:
        """From register values. Raises ValueError as the constructor does."""
        return cls(Idr0(idr0), Idr1(idr1), Idr3(idr3), Idr5(idr5), Iidr(iidr), Aidr(aidr))

    @classmethod
    def recorded(
        cls, *, idr0: int, idr1: int, idr3: int, idr5: int, iidr: int = 0, aidr: int = 0
    ) -> Self:
        """As `from_ids`, of an SMMU that exists: it may contradict the architecture.

        Raises:
            ValueError: a feature that is not modelled, or a lack without which nothing works.
        """
        values = (Idr0(idr0), Idr1(idr1), Idr3(idr3), Idr5(idr5), Iidr(iidr), Aidr(aidr))
        self = object.__new__(cls)
        for (name, layout), value in zip(_LAYOUTS.items(), values, strict=True):
            _refuse_unmodelled(name, layout, value)
            object.__setattr__(self, name, value)
        _require(self._needs())
        return self

    @classmethod
    def nearest(cls, **registers: int) -> tuple[Self, tuple[str, ...]]:
        """As `recorded`, with the nearest that is modelled in place of what is not.

        Returns:
            The features, and a note for each field that is another than given.

        Raises:
            ValueError: what nothing here comes near: no AArch64 or no little-endian tables, no
                stage, no granule.
        """
        given = {name: layout(registers.get(name, 0)) for name, layout in _LAYOUTS.items()}
        near = {f: getattr(layout, f) for layout in given.values() for f in layout.fields}
        notes: list[str] = []

        def play(field: str, value: int) -> None:
            if near[field] != value:
                what = f"{_REGISTER_OF[field].upper()}.{field.upper()}"
                notes.append(f"{what}={near[field]} is played as {value}")
                near[field] = value

        if near["stall_model"] not in iter(StallModel):
            play("stall_model", StallModel.TERMINATE_ONLY)
        if near["ttendian"] == TtEndian.MIXED:
            play("ttendian", TtEndian.LITTLE)
        for field, value in list(near.items()):
            if field != "ttendian":
                play(field, min(value, _MODELLED.get(field, range(1))[-1]))
        stalls = near["stall_model"] != StallModel.TERMINATE_ONLY
        play("stall_max", max(near["stall_max"], 1) if stalls else 0)
        if not near["pri"]:
            play("priqs", 0)
        built = {
            name: layout.build(**{f: near[f] for f in layout.fields}).raw
            for name, layout in _LAYOUTS.items()
        }
        return cls.recorded(**built), tuple(notes)

    @classmethod
    def default(
        cls, *, stages: str = "nested", sidsize: int = 20, oas: int = 48, aidr: int = 2
    ) -> Self:
        """A machine with what drivers commonly find; see `everything` for the rest.

        Args:
            stages: "1", "2" or "nested".
            sidsize: StreamID bits, 0 to 32.
            oas: output address bits: 32, 36, 40, 42, 44, 48 or 52.
            aidr: architecture minor revision, 0 to 3: 2 is SMMUv3.2, with IDR3.FWB if there is
                stage 2 and IDR0.HYP if there are both; 3 adds IDR3.E0PD and IDR3.PTWNNC.
        """
        if stages not in ("1", "2", "nested"):
            raise ValueError(f'stages are "1", "2" or "nested", not {stages!r}')
        if oas not in OAS_BITS:
            raise ValueError(f"OAS is one of {OAS_BITS}, not {oas}")
        s1, s2 = int(stages != "2"), int(stages != "1")
        return cls(
            Idr0.build(
                s1p=s1, s2p=s2, ttf=Ttf.AARCH64, cohacc=1, asid16=1, vmid16=1,
                hyp=int(s1 and s2 and aidr >= 2),
                ttendian=TtEndian.LITTLE, stall_model=StallModel.TERMINATE_ONLY, term_model=1,
                st_level=1,
            ),
            Idr1.build(sidsize=sidsize, eventqs=19, cmdqs=19),
            Idr3.build(
                had=s1, xnx=int(s2 and aidr >= 1), fwb=int(s2 and aidr >= 2), ril=1, bbml=2,
                e0pd=int(s1 and aidr >= 3), ptwnnc=int(s2 and aidr >= 3),
            ),
            Idr5.build(oas=OAS_BITS.index(oas), gran4k=1, gran16k=1, gran64k=1),
            Iidr(),
            Aidr.build(archminrev=aidr),
        )  # fmt: skip

    @classmethod
    def everything(cls) -> Self:
        """SMMUv3.3 with all that is modelled."""
        return cls.default(sidsize=32, oas=52, aidr=3).replace(
            httu=2, vmw=1, cd2l=1, ssidsize=20, attr_perms_ovr=1, stt=1, ds=1, vax=1,
            stall_model=StallModel.STALL_AND_TERMINATE, stall_max=256, term_model=0,
            msi=1, sev=1, btm=1, ats=1, atsrecerr=1, pri=1, priqs=19, pps=1,
        )  # fmt: skip

    def replace(self, **fields: int) -> Self:
        """A copy with these register fields changed, named as in the layouts.

        Raises:
            ValueError: a value that does not fit, or a result the constructor refuses.
            TypeError: a name that no identification register has.
        """
        changes: dict[str, dict[str, int]] = {name: {} for name in _LAYOUTS}
        for field, value in fields.items():
            if field not in _REGISTER_OF:
                raise TypeError(f"no identification register has a field {field}")
            changes[_REGISTER_OF[field]][field] = value
        return type(self)(
            self.idr0.replace(**changes["idr0"]),
            self.idr1.replace(**changes["idr1"]),
            self.idr3.replace(**changes["idr3"]),
            self.idr5.replace(**changes["idr5"]),
            self.iidr.replace(**changes["iidr"]),
            self.aidr.replace(**changes["aidr"]),
        )

    @cached_property
    def ids(self) -> dict[str, int]:
        """Register values by name, for a `RegisterFile`."""
        return {name.upper(): getattr(self, name).raw for name in _LAYOUTS}

    @cached_property
    def s1p(self) -> bool:
        """Stage 1 is implemented."""
        return bool(self.idr0.s1p)

    @cached_property
    def s2p(self) -> bool:
        """Stage 2 is implemented."""
        return bool(self.idr0.s2p)

    @cached_property
    def hyp(self) -> bool:
        """StreamWorlds NS-EL2 and NS-EL2-E2H are implemented."""
        return bool(self.idr0.hyp)

    @cached_property
    def ats(self) -> bool:
        """ATS is implemented."""
        return bool(self.idr0.ats)

    @cached_property
    def pri(self) -> bool:
        """The PRI queue is implemented."""
        return bool(self.idr0.pri)

    @cached_property
    def stalls(self) -> bool:
        """Faulting transactions can stall."""
        return self.idr0.stall_model != StallModel.TERMINATE_ONLY

    @cached_property
    def oas(self) -> int:
        """Output address bits. The IPA size is the same: AArch32 tables are not modelled."""
        return OAS_BITS[self.idr5.oas]

    @cached_property
    def granules(self) -> frozenset[str]:
        """Names of the granules."""
        have = {"4K": self.idr5.gran4k, "16K": self.idr5.gran16k, "64K": self.idr5.gran64k}
        return frozenset(name for name, bit in have.items() if bit)

    def _needs(self) -> _Rules:
        """What has to hold for a model of this SMMU to work at all."""
        idr0, idr1, idr5, v = self.idr0, self.idr1, self.idr5, self.aidr.archminrev
        return (
            (idr0.s1p or idr0.s2p, "neither stage is implemented: IDR0.S1P=0 and IDR0.S2P=0"),
            (self.granules, "IDR5 has no granule"),
            (idr0.pri or not idr1.priqs, "IDR1.PRIQS needs IDR0.PRI=1"),
            (not self.stalls or idr5.stall_max, "IDR0.STALL_MODEL!=1 needs IDR5.STALL_MAX>=1"),
            (self.stalls or not idr5.stall_max, "IDR5.STALL_MAX needs IDR0.STALL_MODEL!=1"),
            (v >= 1 or (idr5.oas < _OAS_52 and not idr5.vax), "52-bit addresses need SMMUv3.1"),
            (idr5.vax or not idr5.ds, "IDR5.DS=1 needs IDR5.VAX>=1"),
            (
                idr5.gran4k or idr5.gran16k or not idr5.ds,
                "IDR5.DS=1 needs IDR5.GRAN4K=1 or IDR5.GRAN16K=1",
            ),
            (idr5.gran64k or idr5.ds or not idr5.vax, "IDR5.VAX=1 needs GRAN64K or DS"),
            (idr5.oas < _OAS_52 or idr5.gran64k or idr5.ds, "IDR5.OAS=6 needs GRAN64K or DS"),
            (idr5.oas >= _OAS_40 or not idr5.ds, "IDR5.DS=1 needs IDR5.OAS>=2"),
        )

    def _architecture(self) -> _Rules:
        """What the architecture says besides of features together (§6.3)."""
        idr0, idr1, idr3 = self.idr0, self.idr1, self.idr3
        v = self.aidr.archminrev
        return (
            (idr0.s1p or not idr3.had, "IDR3.HAD=1 needs IDR0.S1P=1"),
            (idr0.s2p or not idr3.xnx, "IDR3.XNX=1 needs IDR0.S2P=1"),
            (idr0.s2p or not idr3.fwb, "IDR3.FWB=1 needs IDR0.S2P=1"),
            (idr0.s2p or not idr0.vmw, "IDR0.VMW=1 needs IDR0.S2P=1"),
            (idr0.s1p or not idr0.hyp, "IDR0.HYP=1 needs IDR0.S1P=1"),
            (idr0.s2p or not idr0.hyp, "IDR0.HYP=1 needs IDR0.S2P=1"),
            (idr1.sidsize < 7 or idr0.st_level, "IDR1.SIDSIZE>=7 needs IDR0.ST_LEVEL=1"),
            (idr0.ats or not idr0.pri, "IDR0.PRI=1 needs IDR0.ATS=1"),
            (idr0.ats or not idr0.atsrecerr, "IDR0.ATSRECERR=1 needs IDR0.ATS=1"),
            (
                (idr0.ats and idr0.s1p and idr0.s2p) or not idr0.ns1ats,
                "IDR0.NS1ATS=1 needs IDR0.ATS=1 and both stages",
            ),
            (idr1.ssidsize or not idr3.pps, "IDR3.PPS=1 needs IDR1.SSIDSIZE>=1"),
            (idr0.pri or not idr3.pps, "IDR3.PPS=1 needs IDR0.PRI=1"),
            (v < 1 or not idr0.s1p or idr3.had, "SMMUv3.1 with stage 1 needs IDR3.HAD=1"),
            (v < 1 or not idr0.s2p or idr3.xnx, "SMMUv3.1 with stage 2 needs IDR3.XNX=1"),
            (idr0.s1p or not idr3.e0pd, "IDR3.E0PD=1 needs IDR0.S1P=1"),
            (idr0.s2p or not idr3.ptwnnc, "IDR3.PTWNNC=1 needs IDR0.S2P=1"),
            (v >= 1 or not idr3.xnx, "IDR3.XNX=1 needs SMMUv3.1"),
            (
                v < 2 or not (idr0.s1p and idr0.s2p) or idr0.hyp,
                "SMMUv3.2 with both stages needs IDR0.HYP=1",
            ),
            (v < 2 or idr3.ril, "SMMUv3.2 needs IDR3.RIL=1"),
            (v < 2 or idr3.bbml, "SMMUv3.2 needs IDR3.BBML>=1"),
            (v < 2 or not idr0.s2p or idr3.fwb, "SMMUv3.2 with stage 2 needs IDR3.FWB=1"),
            (v < 3 or not idr0.s1p or idr3.e0pd, "SMMUv3.3 with stage 1 needs IDR3.E0PD=1"),
            (v < 3 or not idr0.s2p or idr3.ptwnnc, "SMMUv3.3 with stage 2 needs IDR3.PTWNNC=1"),
        )


def _require(rules: _Rules) -> None:
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


def _refuse_unmodelled(name: str, layout: type[Layout], register: Layout) -> None:
    if any(register.reserved()):
        raise ValueError(f"{name.upper()} sets reserved bits {register.reserved()[0]:#x}")
    for field in layout.fields:
        value = layout.fields[field].of(register.words)
        if value not in _MODELLED.get(field, range(1)):
            feature = _FEATURE.get(field, field.upper())
            raise ValueError(f"{name.upper()}.{field.upper()}={value}: not modelled ({feature})")
