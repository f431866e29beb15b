# SPDX-License-Identifier: BSD-2-Clause
"""The machine of the ATS tests."""

from __future__ import annotations

from vsmmu.arch.events import Event
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.arch.stream_table import S1Dss
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.ats import Completion, Status, TranslationRequest

from .machine import AF, NOWHERE, RW_S2, Machine

ATS = Features.default().replace(
    ats=1, atsrecerr=1, ssidsize=4, httu=2, attr_perms_ovr=1, stall_model=0, stall_max=4
)
DATA = 0x8F00_0000
IOVA = 0x12_3000
UNPRIV = 1 << 6
READ_ONLY = 1 << 7
NG, DBM = 1 << 11, 1 << 51
UXN, PXN = 1 << 54, 1 << 53
BASE = Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw
SUCCESS, UR, CA = Status.SUCCESS, Status.UR, Status.CA


class AtsMachine(Machine):
    """Stream 1 has stage 1 and EATS=1."""

    def __init__(self, features: Features = ATS, *, atschk: int = 1, rec: int = 1) -> None:
        super().__init__(features, boot=True)
        self.write("CR0", 0)
        self.write("CR2", Cr2.build(recinvsid=1, rec_cfg_ats=rec).raw)
        self.write("CR0", Cr0(BASE).replace(atschk=atschk).raw)
        self.root = self.alloc(PAGE)
        self.stream(1)

    def stream(self, sid: int, *, cd: dict[str, int] | None = None, **ste: int) -> None:
        place = self.cd(**{"ttb0": self.root, **(cd or {})})
        self.ste(sid, **{"config": 5, "s1ctxptr": place, "eats": 1, **ste})

    def substreams(self, sid: int, **ste: int) -> None:
        """A stream whose PASID 1 has the tables of `root`, as it has without one."""
        place = self.alloc(128, 128)
        for i in range(2):
            self.cd(place + 64 * i, ttb0=self.root)
        self.stream(sid, s1ctxptr=place, s1cdmax=1, s1dss=S1Dss.SSID0, **ste)

    def nested(self, sid: int, root2: int, *, mapped: bool = True, **ste: int) -> None:
        """A nested stream over `root`; with `mapped` its tables and CD are mapped 1:1."""
        place = self.cd(ttb0=self.root)
        fields = self.s2_fields(root2, **{"eats": 1, **ste})
        self.ste(sid, config=7, s1ctxptr=place, **fields)
        if mapped:
            low = min(self.root, place) & -PAGE
            for page in range(low, self._next + 4 * PAGE, PAGE):
                self.map(root2, page, page, flags=AF | RW_S2)

    def ask(self, iova: int = IOVA, sid: int = 1, **how: object) -> Completion:
        return self.smmu.ats.request(TranslationRequest(sid, iova, **how))  # type: ignore[arg-type]


def field(event: Event, name: str) -> int:
    return event.fields[name].of(event.words)


def broken(ats: AtsMachine, name: str) -> dict[str, int]:
    """What a request has to say to meet this fault."""
    if name == "C_BAD_STREAMID":
        return {"sid": 1 << 9}
    if name == "C_BAD_STE":
        return {"sid": 9}
    if name == "F_STE_FETCH":
        ats.write("CR0", BASE & ~1)
        ats.write("STRTAB_BASE", NOWHERE)
        ats.write("CR0", Cr0(BASE).replace(atschk=1).raw)
    elif name == "C_BAD_SUBSTREAMID":
        return {"ssid": 3}
    elif name == "F_STREAM_DISABLED":
        ats.stream(1, s1cdmax=1)
    elif name == "F_CD_FETCH":
        ats.stream(1, s1ctxptr=NOWHERE)
    elif name == "C_BAD_CD":
        ats.stream(1, cd={"v": 0})
    else:
        ats.stream(1, cd={"ttb0": NOWHERE})
    return {}
