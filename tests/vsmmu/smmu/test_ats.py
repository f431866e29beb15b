# SPDX-License-Identifier: BSD-2-Clause
"""ATS: completions, Translated transactions, ATC maintenance.

IHI 0070 §3.9.1, §3.13.7, §4.5.1, §7.3.6, §7.3.8 and §13.6. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import re

import pytest

from vsmmu.arch.commands import CmdAtcInv, CmdSync
from vsmmu.arch.events import Event
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.arch.stream_table import S1Dss
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features
from vsmmu.smmu.ats import PENDING_INVALIDATIONS, AtsPort, Completion, Status, TranslationRequest

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


@pytest.fixture
def ats() -> AtsMachine:
    return AtsMachine()


# Completions (§3.9.1).


def test_a_page(ats: AtsMachine) -> None:
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV)
    assert ats.ask(IOVA + 0x123) == Completion(SUCCESS, DATA, PAGE, True, True)
    assert ats.events() == []


def test_a_block(ats: AtsMachine) -> None:
    ats.map(ats.root, 1 << 21, 0x9000_0000, size=1 << 21, flags=AF | UNPRIV)
    assert ats.ask((1 << 21) + 0x5000) == Completion(SUCCESS, 0x9000_0000, 1 << 21, True, True)


def test_read_only(ats: AtsMachine) -> None:
    """F_PERMISSION is not recorded: fewer rights are answered."""
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV | READ_ONLY)
    assert ats.ask() == Completion(SUCCESS, DATA, PAGE, True, False)
    assert ats.events() == []


def test_no_rights_for_this_privilege(ats: AtsMachine) -> None:
    ats.map(ats.root, IOVA, DATA, flags=AF)
    assert ats.ask() == Completion(SUCCESS)
    assert ats.ask(priv=True) == Completion(SUCCESS, DATA, PAGE, True, True, False, True)
    assert ats.events() == []


def test_execute_needs_read_and_the_request(ats: AtsMachine) -> None:
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV | READ_ONLY)
    ats.map(ats.root, IOVA + PAGE, DATA, flags=AF | UNPRIV | READ_ONLY | UXN)
    assert ats.ask(execute=True).execute
    assert not ats.ask().execute
    assert not ats.ask(IOVA + PAGE, execute=True).execute


def test_execute_only(ats: AtsMachine) -> None:
    """A page that can only be executed gives nothing, unless STE.INSTCFG makes reads fetches."""
    ats.stream(3, instcfg=3)
    ats.map(ats.root, IOVA, DATA, flags=AF | READ_ONLY | PXN)
    # Privileged only for data, executable for all: unprivileged has execution and nothing else.
    assert ats.ask(execute=True) == Completion(SUCCESS)
    assert ats.ask(sid=3, execute=True) == Completion(SUCCESS, DATA, PAGE, True, False, True)
    assert ats.ask(sid=3) == Completion(SUCCESS, DATA, PAGE, True, False, False)


def test_instcfg_data_forbids_execution(ats: AtsMachine) -> None:
    ats.stream(3, instcfg=2)
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV | READ_ONLY)
    assert ats.ask(sid=3, execute=True) == Completion(SUCCESS, DATA, PAGE, True)


def test_privcfg(ats: AtsMachine) -> None:
    """STE.PRIVCFG applies to requests; Priv in the answer is the request's."""
    ats.stream(3, privcfg=3)
    ats.map(ats.root, IOVA, DATA, flags=AF)
    assert ats.ask(sid=3) == Completion(SUCCESS, DATA, PAGE, True, True, False, False)


def test_write_only(ats: AtsMachine) -> None:
    root2 = ats.s2_root()
    ats.map(root2, IOVA, DATA, flags=AF | 2 << 6)
    ats.ste(3, config=6, eats=1, **ats.s2_fields(root2))
    assert ats.ask(sid=3) == Completion(SUCCESS, DATA, PAGE, False, True)
    assert ats.ask(sid=3, no_write=True) == Completion(SUCCESS)


@pytest.mark.parametrize(
    ("kind", "flags", "pa"),
    [("F_TRANSLATION", None, 0), ("F_ACCESS", UNPRIV, DATA), ("F_ADDR_SIZE", AF, 1 << 41)],
)
def test_faults_without_translation(ats: AtsMachine, kind: str, flags: int | None, pa: int) -> None:
    """F_TRANSLATION, F_ADDR_SIZE, F_ACCESS: Success without rights, nothing recorded."""
    ats.stream(3, cd={"ips": 2})
    if flags is not None:
        ats.map(ats.root, IOVA, pa, flags=flags)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    assert ats.events() == []
    event = ats.go(3, IOVA).event
    assert event is not None
    assert event.name == kind


def test_stalls_do_not_apply(ats: AtsMachine) -> None:
    """CD.S=1: a request is answered at once (§3.12.2)."""
    ats.stream(3, cd={"s": 1})
    assert ats.ask(sid=3) == Completion(SUCCESS)
    assert len(ats.smmu.stalls) == 0
    assert ats.events() == []


def test_stage2_faults_do_not_show(ats: AtsMachine) -> None:
    """CLASS=CD, TT and IN: all are an answer without rights."""
    root2 = ats.s2_root()
    ats.nested(3, root2, mapped=False)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    ats.nested(4, root2)
    ats.map(ats.root, IOVA, 0x1000, flags=AF | UNPRIV)
    assert ats.ask(sid=4) == Completion(SUCCESS)
    ats.map(root2, 0x1000, DATA, flags=AF | 1 << 6)
    assert ats.ask(sid=4) == Completion(SUCCESS, DATA, PAGE, True, False)
    assert ats.events() == []


def test_size_is_the_smaller_of_both_stages(ats: AtsMachine) -> None:
    root2 = ats.s2_root()
    ats.nested(3, root2)
    ats.map(ats.root, 1 << 21, 1 << 21, size=1 << 21, flags=AF | UNPRIV)
    ats.map(root2, (1 << 21) + PAGE, DATA, flags=AF | RW_S2)
    answer = ats.ask((1 << 21) + PAGE + 8, sid=3)
    assert answer == Completion(SUCCESS, DATA, PAGE, True, True)


@pytest.mark.parametrize(("no_write", "dirty"), [(False, True), (True, False)])
def test_only_requests_for_writing_make_dirty(ats: AtsMachine, no_write: bool, dirty: bool) -> None:
    """§3.13.7: NW=1 grants no write to a clean page and leaves it clean."""
    ats.stream(3, cd={"ha": 1, "hd": 1})
    ats.map(ats.root, IOVA, DATA, flags=UNPRIV | READ_ONLY | DBM)
    answer = ats.ask(sid=3, no_write=no_write)
    assert (answer.read, answer.write) == (True, dirty)
    assert ats.smmu.counters["httu.af"] == 1
    assert ats.smmu.counters["httu.dirty"] == int(dirty)


# UR and F_BAD_ATS_TREQ (§7.3.6).


@pytest.mark.parametrize("how", ["disabled", "bypass", "no eats", "dpt", "unchecked split"])
def test_refused(how: str) -> None:
    ats = AtsMachine(atschk=int(how != "unchecked split"))
    if how == "disabled":
        ats.write("CR0", BASE & ~1)
    elif how == "bypass":
        ats.ste(1, config=4, eats=1)
    elif how == "no eats":
        ats.stream(1, eats=0)
    elif how == "dpt":
        ats.stream(1, eats=3)
    else:
        ats.nested(1, ats.s2_root(), eats=2)
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV)
    assert ats.ask(IOVA + 0x18, ssid=5, no_write=True, priv=True).status == UR
    (event,) = ats.events()
    names = ("sid", "ssv", "ssid", "r", "w", "x", "p", "span", "inputaddr")
    assert event.name == "F_BAD_ATS_TREQ"
    assert [field(event, n) for n in names] == [1, 1, 5, 1, 0, 0, 1, 1, IOVA]


def test_aborting_stream(ats: AtsMachine) -> None:
    """Config=0b0xx: UR, nothing recorded."""
    ats.ste(1, config=0, eats=1)
    assert ats.ask() == Completion(UR)
    assert ats.events() == []


def test_without_ats() -> None:
    machine = Machine()
    assert machine.smmu.ats.request(TranslationRequest(1, 0)) == Completion(UR)
    assert machine.events() == []


# CA, recorded with CR2.REC_CFG_ATS (§6.3.12).


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


CONFIG_FAULTS = (
    "C_BAD_STREAMID", "F_STE_FETCH", "C_BAD_STE", "C_BAD_SUBSTREAMID", "F_STREAM_DISABLED",
    "F_CD_FETCH", "C_BAD_CD", "F_WALK_EABT",
)  # fmt: skip


@pytest.mark.parametrize("rec", [0, 1])
@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_configuration_faults(name: str, rec: int) -> None:
    ats = AtsMachine(rec=rec)
    assert ats.ask(**broken(ats, name)) == Completion(CA)
    assert [e.name for e in ats.events()] == [name] * rec


def test_recinvsid_counts_for_requests(ats: AtsMachine) -> None:
    ats.write("CR0", BASE & ~1)
    ats.write("CR2", Cr2.build(rec_cfg_ats=1).raw)
    ats.write("CR0", Cr0(BASE).replace(atschk=1).raw)
    assert ats.ask(sid=1 << 9) == Completion(CA)
    assert ats.events() == []


def test_rec_cfg_ats_needs_its_feature() -> None:
    ats = AtsMachine(ATS.replace(atsrecerr=0))
    assert ats.ask(sid=9) == Completion(CA)
    assert ats.events() == []


# Substreams.


def test_stage1_skipped(ats: AtsMachine) -> None:
    """STE.S1DSS=1 without PASID: identity, U=0, read and write (§3.9.1)."""
    ats.stream(3, s1cdmax=1, s1dss=S1Dss.BYPASS)
    assert ats.ask(sid=3) == Completion(SUCCESS, IOVA, PAGE, True, True)
    assert ats.ask(1 << 48, sid=3) == Completion(SUCCESS)
    assert ats.events() == []


def test_stage1_skipped_split_stage(ats: AtsMachine) -> None:
    """§13.6.5: the identity is an IPA with the rights of stage 2, which has yet to translate it."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2, s1cdmax=1, s1dss=S1Dss.BYPASS)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    ats.map(root2, IOVA, DATA, flags=AF | 1 << 6)
    assert ats.ask(IOVA + 8, sid=3) == Completion(SUCCESS, IOVA, PAGE, True, False)
    ats.map(root2, 1 << 21, DATA & -(1 << 21), size=1 << 21, flags=AF | RW_S2)
    assert ats.ask((1 << 21) + PAGE, sid=3) == Completion(SUCCESS, 1 << 21, 1 << 21, True, True)
    assert ats.smmu.translated(Access(3, IOVA + 8, False)).pa == DATA + 8


def test_split_stage_size_is_the_smaller_of_both_stages(ats: AtsMachine) -> None:
    """§13.6.3: a block of stage 1 over pages of stage 2 gives one page."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2)
    block = 1 << 21
    ats.map(ats.root, 5 * block, 7 * block, size=block, flags=AF | UNPRIV)
    ats.map(root2, 7 * block + PAGE, DATA, flags=AF | RW_S2)
    found = ats.ask(5 * block + PAGE + 8, sid=3)
    assert found == Completion(SUCCESS, 7 * block + PAGE, PAGE, True, True)
    assert ats.ask(5 * block, sid=3) == Completion(SUCCESS)


def test_stage1_skipped_nested(ats: AtsMachine) -> None:
    root2 = ats.s2_root()
    ats.nested(3, root2, s1cdmax=1, s1dss=S1Dss.BYPASS)
    ats.map(root2, IOVA, DATA, flags=AF | 1 << 6)
    assert ats.ask(sid=3) == Completion(SUCCESS, DATA, PAGE, True, False)


def test_pasid_selects_the_context(ats: AtsMachine) -> None:
    place = ats.alloc(128, 128)
    roots = [ats.alloc(PAGE) for _ in range(2)]
    for i, root in enumerate(roots):
        ats.cd(place + 64 * i, ttb0=root, asid=i + 1)
        ats.map(root, IOVA, DATA + i * PAGE, flags=AF | UNPRIV | NG)
    ats.ste(3, config=5, eats=1, s1ctxptr=place, s1cdmax=1, s1dss=S1Dss.SSID0)
    assert [ats.ask(sid=3, ssid=s).address for s in (None, 1)] == [DATA, DATA + PAGE]


# Split-stage ATS (EATS=2).


def test_split_stage(ats: AtsMachine) -> None:
    """§13.6.3: an IPA, with the rights of both stages; stage 2 comes with the transaction too."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2)
    ats.map(ats.root, IOVA, 0x5000, flags=AF | UNPRIV)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    outcome = ats.smmu.translated(Access(3, 0x5008, True))
    assert outcome.status == "fault"
    (event,) = ats.events()
    names = ("s2", "cls", "rnw", "pnu", "inputaddr", "ipa")
    assert event.name == "F_TRANSLATION"
    assert [field(event, n) for n in names] == [1, 2, 0, 0, 0x5008, 0x5000]
    ats.map(root2, 0x5000, DATA, flags=AF | 1 << 6)
    assert ats.ask(sid=3) == Completion(SUCCESS, 0x5000, PAGE, True, False)
    assert ats.smmu.translated(Access(3, 0x5008, False)).pa == DATA + 8
    assert ats.smmu.translated(Access(3, 0x5008, True)).event is not None
    assert ats.ask(IOVA + PAGE, sid=3) == Completion(SUCCESS)


@pytest.mark.parametrize(("s1", "s2"), [(1 << 21, PAGE), (PAGE, 1 << 21), (1 << 21, 1 << 21)])
def test_size_with_split_stage(ats: AtsMachine, s1: int, s2: int) -> None:
    """§13.6.3: of both stages the smaller one, aligned to it."""
    root2, ipa = ats.s2_root(), 0x4000_0000
    ats.nested(3, root2, eats=2)
    ats.map(ats.root, 1 << 21, ipa, size=s1, flags=AF | UNPRIV)
    ats.map(root2, ipa, DATA & -(1 << 21), size=s2, flags=AF | RW_S2)
    assert ats.ask(1 << 21, sid=3) == Completion(SUCCESS, ipa, min(s1, s2), True, True)


def test_split_stage_and_a_writable_clean_stage_2(ats: AtsMachine) -> None:
    """§3.13.7: it counts as writable; without NW=0 nothing is made dirty."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2, s2ha=1, s2hd=1)
    ats.map(ats.root, IOVA, 0x5000, flags=AF | UNPRIV)
    ats.map(root2, 0x5000, DATA, flags=AF | 1 << 6 | DBM)
    assert not ats.ask(sid=3, no_write=True).write
    assert ats.smmu.counters["httu.dirty"] == 0
    assert ats.ask(sid=3) == Completion(SUCCESS, 0x5000, PAGE, True, True)
    assert ats.smmu.translated(Access(3, 0x5008, True)).pa == DATA + 8
    assert ats.smmu.counters["httu.dirty"] == 1


def test_split_stage_address_size(ats: AtsMachine) -> None:
    ats.nested(3, ats.s2_root(), eats=2)
    assert ats.smmu.translated(Access(3, 1 << 50, False)).status == "fault"
    (event,) = ats.events()
    assert (event.name, field(event, "s2"), field(event, "cls")) == ("F_ADDR_SIZE", 0, 2)


def test_split_stage_quiet_with_s2r_0(ats: AtsMachine) -> None:
    ats.nested(3, ats.s2_root(), eats=2, s2r=0)
    assert ats.smmu.translated(Access(3, 0x5000, False)) == ("fault", None, None, 0)


@pytest.mark.parametrize(
    ("ste", "features"),
    [({"eats": 2, "s2s": 1}, ATS), ({"eats": 1, "s2s": 1}, ATS),
     ({"eats": 2}, ATS.replace(ns1ats=1))],
)  # fmt: skip
def test_illegal_stes(ste: dict[str, int], features: Features) -> None:
    """§5.2.2."""
    ats = AtsMachine(features)
    ats.nested(3, ats.s2_root(), **ste)
    event = ats.go(3, 0).event
    assert event is not None
    assert event.name == "C_BAD_STE"


# Translated transactions (§3.9.1, §7.3.8).


def test_unchecked(ats: AtsMachine) -> None:
    """CR0.ATSCHK=0: passed, whatever the STE says."""
    ats.write("CR0", BASE)
    for sid in (1, 9, 1 << 9):
        assert ats.smmu.translated(Access(sid, DATA, True)).pa == DATA
    assert ats.events() == []


@pytest.mark.parametrize("how", ["disabled", "bypass", "no eats", "no ats"])
def test_forbidden(how: str) -> None:
    ats: Machine = AtsMachine() if how != "no ats" else Machine()
    if how == "disabled":
        ats.write("CR0", BASE & ~1)
    elif how == "bypass":
        ats.ste(1, config=4, eats=1)
    elif isinstance(ats, AtsMachine):
        ats.stream(1, eats=0)
    assert ats.smmu.translated(Access(1, DATA + 8, True)).status == "fault"
    (event,) = ats.events()
    assert event.name == "F_TRANSL_FORBIDDEN"
    assert [field(event, n) for n in ("sid", "ssv", "rnw", "inputaddr")] == [1, 0, 0, DATA + 8]


def test_checked(ats: AtsMachine) -> None:
    """EATS=1: the address is a PA."""
    assert ats.smmu.translated(Access(1, DATA + 8, False)).pa == DATA + 8
    ats.ste(2, config=0, eats=1)
    assert ats.smmu.translated(Access(2, DATA, False)).status == "abort"
    assert ats.events() == []


@pytest.mark.parametrize("rec", [0, 1])
@pytest.mark.parametrize("name", ["C_BAD_STREAMID", "C_BAD_STE", "F_STE_FETCH"])
def test_checked_configuration_faults(name: str, rec: int) -> None:
    """Aborted; recorded with REC_CFG_ATS, whatever RECINVSID is."""
    ats = AtsMachine(rec=rec)
    ats.write("CR0", BASE & ~1)
    ats.write("CR2", Cr2.build(rec_cfg_ats=rec).raw)
    ats.write("CR0", Cr0(BASE).replace(atschk=1).raw)
    sid = broken(ats, name).get("sid", 1)
    assert ats.smmu.translated(Access(sid, DATA, False)).status == "fault"
    assert [e.name for e in ats.events()] == [name] * rec


# CMD_ATC_INV and CMD_SYNC (§4.5.1, §4.7.3, §7.1).


class WithPort(AtsMachine):
    def __init__(self) -> None:
        super().__init__()
        self.port = AtsPort("nic", self.smmu, 1)
        self.scheduler.add(self.port)
        for page in range(4):
            self.map(self.root, page * PAGE, DATA + page * PAGE, flags=AF | UNPRIV)


@pytest.fixture
def nic() -> WithPort:
    return WithPort()


def test_dma_goes_by_the_atc(nic: WithPort) -> None:
    """The ATC answers until it is told otherwise, as after an unmap without CMD_ATC_INV."""
    write = nic.port.write(0x800, bytes(range(200)) * 20)
    nic.scheduler.run_until_idle()
    assert write.ok
    assert nic.smmu.counters["ats.request"] == 2
    nic.memory.write64(nic.root, 0)
    assert nic.memory.read(DATA + 0x800, 8) == bytes(range(8))
    again = nic.port.read(0x800, 8)
    nic.scheduler.run_until_idle()
    assert (again.data, nic.smmu.counters["ats.request"]) == (bytes(range(8)), 2)


def test_a_read_completion_grants_no_write(nic: WithPort) -> None:
    nic.stream(1, cd={"ha": 1, "hd": 1})
    nic.map(nic.root, 0, DATA, flags=AF | UNPRIV | READ_ONLY | DBM)
    nic.port.read(0, 4)
    write = nic.port.write(0, b"abcd")
    nic.scheduler.run_until_idle()
    assert (write.ok, nic.smmu.counters["ats.request"]) == (True, 2)
    assert nic.smmu.counters["httu.dirty"] == 1


def test_no_rights_abort(nic: WithPort) -> None:
    request = nic.port.read(1 << 30, 4)
    nic.scheduler.run_until_idle()
    assert [o.status for o in request.outcomes] == ["abort"]
    assert nic.events() == []


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ({"size_lg2": 52}, []),
        ({"addr": 0x1000}, [(None, 0), (None, 2), (1, 0), (1, 2), (2, 0), (2, 2)]),
        ({"addr": 0x1000, "size_lg2": 1}, [(None, 2), (1, 2), (2, 2)]),
        ({"addr": 0x1000, "ssv": 1, "ssid": 1}, [
            (None, 0), (None, 1), (None, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]),
        ({"addr": 0x1000, "ssv": 1, "ssid": 1, "globl": 1}, [
            (None, 0), (None, 1), (None, 2), (1, 0), (1, 2), (2, 0), (2, 2)]),
        ({"addr": 0x1000, "globl": 1}, [(None, 0), (None, 2), (1, 0), (1, 2), (2, 0), (2, 2)]),
        ({"addr": 0x8000, "size_lg2": 2}, [
            (s, p) for s in (None, 1, 2) for p in range(3)]),
        ({"addr": 0, "size_lg2": 52, "sid": 7}, [(s, p) for s in (None, 1, 2) for p in range(3)]),
    ],
)  # fmt: skip
def test_atc_inv(
    nic: WithPort, command: dict[str, int], left: list[tuple[int | None, int]]
) -> None:
    """Ranges are aligned down; without a PASID all are covered, Global covers every PASID."""
    for ssid in (None, 1, 2):
        for page in range(3):
            nic.port.atc.keep(ssid, page * PAGE, Completion(SUCCESS, DATA, PAGE, True))
    nic.command(CmdAtcInv.build(**{"sid": 1, **command}))
    found = [
        (ssid, page) for ssid in (None, 1, 2) for page in range(3)
        if nic.port.atc.find(ssid, False, page * PAGE)
    ]  # fmt: skip
    assert found == left


def test_a_larger_translation_is_dropped_by_any_part(nic: WithPort) -> None:
    nic.port.atc.keep(None, 0x20_0000, Completion(SUCCESS, DATA, 1 << 21, True))
    nic.command(CmdAtcInv.build(sid=1, addr=0x3F_F000))
    assert len(nic.port.atc) == 0


def test_sync_waits_for_the_endpoint(nic: WithPort) -> None:
    """§4.7.3: CMD_SYNC completes once the endpoint has answered; CMD_ATC_INV alone does not."""
    nic.port.read(0, 4)
    nic.scheduler.run_until_idle()
    nic.post(CmdAtcInv.build(sid=1, size_lg2=52), CmdSync.build())
    assert nic.smmu.cmdq.step(9) == 1
    assert len(nic.port.atc) == 1
    nic.port.step(1)
    assert nic.smmu.cmdq.step(9) == 1
    assert len(nic.port.atc) == 0


def test_timeout(nic: WithPort) -> None:
    """§7.1: CERROR_ATC_INV_SYNC at the CMD_SYNC; issued again it completes."""
    nic.port.silent = True
    nic.post(CmdAtcInv.build(sid=1, size_lg2=52), CmdSync.build(cs=1))
    nic.scheduler.run_until_idle()
    assert nic.read("CMDQ_CONS") == 1 | 3 << 24
    assert nic.read("GERROR") == 1
    assert nic.irqs == ["gerror"]
    nic.write("GERRORN", 1)
    nic.scheduler.run_until_idle()
    assert nic.read("CMDQ_CONS") & 0xFFFF == 2
    assert nic.irqs == ["gerror", "cmdq-sync"]


def test_unanswered_invalidations_are_bounded(nic: WithPort) -> None:
    """The queue waits with the command that finds no room."""
    nic.smmu.cmdq.step(9)
    for _ in range(2):
        nic.post(*[CmdAtcInv.build(sid=1)] * (PENDING_INVALIDATIONS // 2))
        while nic.smmu.cmdq.step(64):
            pass
    nic.post(CmdAtcInv.build(sid=1))
    assert nic.smmu.cmdq.step(9) == 0
    nic.port.step(1)
    assert nic.smmu.cmdq.step(9) == 1
    nic.command()


def test_ignored_with_smmuen_0(nic: WithPort) -> None:
    nic.port.atc.keep(None, 0, Completion(SUCCESS, DATA, PAGE, True))
    nic.write("CR0", BASE & ~1)
    nic.command(CmdAtcInv.build(sid=1, size_lg2=52))
    assert len(nic.port.atc) == 1


@pytest.mark.parametrize(
    ("features", "command"),
    [
        (Features.default(), CmdAtcInv.build(sid=1)),
        (ATS, CmdAtcInv.build(sid=1, size_lg2=53)),
        (ATS, CmdAtcInv.build(sid=1, ssec=1)),
    ],
)
def test_illegal_commands(features: Features, command: CmdAtcInv) -> None:
    machine = Machine(features)
    machine.post(command)
    machine.scheduler.run_until_idle()
    assert machine.read("CMDQ_CONS") >> 24 == 1


def test_the_atc_is_bounded() -> None:
    from vsmmu.smmu.ats import Atc

    atc = Atc(2)
    for page in range(3):
        atc.keep(None, page * PAGE, Completion(SUCCESS, 0, PAGE, True))
    assert [bool(atc.find(None, False, page * PAGE)) for page in range(3)] == [False, True, True]
    assert len(atc) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pri": 1}, "IDR0.PRI=1 needs IDR0.ATS=1"),
        ({"atsrecerr": 1}, "IDR0.ATSRECERR=1 needs IDR0.ATS=1"),
        ({"ns1ats": 1}, "IDR0.NS1ATS=1 needs IDR0.ATS=1 and both stages"),
        ({"priqs": 3}, "IDR1.PRIQS needs IDR0.PRI=1"),
        ({"pps": 1}, "IDR3.PPS=1 needs IDR1.SSIDSIZE>=1"),
        ({"pps": 1, "ssidsize": 1}, "IDR3.PPS=1 needs IDR0.PRI=1"),
    ],
)
def test_identification(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Features.default().replace(**change)
