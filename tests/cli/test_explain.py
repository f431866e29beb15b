# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu explain` as a user meets it: forms of words, what it prints, exit codes."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.command import vsmmu
from tests.counts import sliced
from vsmmu import cli
from vsmmu.arch.commands import OPCODES, CmdTlbiNhVa
from vsmmu.arch.context import Cd
from vsmmu.arch.describe import EVERYTHING, SIZES, Context, describe, find_register
from vsmmu.arch.events import EVENTS, FTranslation
from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.layout import Layout
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.cli import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

NESTED = Ste.build(
    v=1, config=SteConfig.NESTED, s1ctxptr=0x1234_0000, s2aa64=1, s2t0sz=24, s2sl0=1, s2ps=4,
    s2vmid=7,
)  # fmt: skip
CD = Cd.build(v=1, aa64=1, a=1, r=1, s=1, t0sz=16, asid=0x100, ips=5, epd1=1)
TLBI = CmdTlbiNhVa.build(asid=1, vmid=2, addr=0xFFFF_F000, leaf=1)
FAULT = FTranslation.build(sid=0x100, rnw=1, cls=2, inputaddr=0x1234_F000)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subcommand is there, whatever the command's own list says."""
    monkeypatch.setitem(cli._COMMANDS, "explain", "decode a structure")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    return vsmmu(capsys, "explain", *arguments)


def words(view: Layout) -> list[str]:
    return [f"{word:#x}" for word in view.words]


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    class Stdin:
        buffer = io.BytesIO(text.encode())

    monkeypatch.setattr(sys, "stdin", Stdin)


TLBI_TEXT = """\
CMD_TLBI_NH_VA (IHI 0070 §4.4.2)
  0001000200000012 00000000fffff001
     [7:0] op    0x12
   [16:12] num   0x0
   [25:20] scale 0x0
   [47:32] vmid  0x2
   [63:48] asid  0x1
      [64] leaf  0x1
   [73:72] ttl   0x0
   [75:74] tg    0x0 NONE
  [127:76] addr  0xfffff000
legal
"""


def test_a_command(capsys):
    assert run(capsys, "cmd", *words(TLBI)) == (0, TLBI_TEXT, "")


def forms(view: Layout) -> dict[str, list[str]]:
    raw = bytes(view)
    halves = [f"{h:#010x}" for w in view.words for h in (w & 0xFFFF_FFFF, w >> 32)]
    return {
        "words": words(view),
        "padded words without 0x": [f"{word:016x}" for word in view.words],
        "one argument": [", ".join(words(view))],
        "32-bit words": halves,
        "32-bit words without zeros": [hex(int(h, 16)) for h in halves],
        "bytes": [f"{byte:02x}" for byte in raw],
        "one string of bytes": [raw.hex()],
        "capitals": [word.upper() for word in words(view)],
    }


@pytest.mark.parametrize("form", forms(TLBI))
@pytest.mark.parametrize(
    ("kind", "view"), [("cmd", TLBI), ("ste", NESTED), ("event", FAULT)], ids=lambda v: str(v)[:5]
)
def test_forms_of_words(capsys, kind, view, form):
    expected = run(capsys, kind, *words(view))
    assert expected[0] == 0
    assert run(capsys, kind, *forms(view)[form]) == expected


def test_stdin(capsys, monkeypatch):
    expected = run(capsys, "ste", *words(NESTED))
    stdin(monkeypatch, "\n".join(words(NESTED)) + "\n")
    assert run(capsys, "ste", "-") == expected


LOG = """\
[    5.101] arm-smmu-v3 2b400000.iommu: event 0x10 received:
[    5.102] arm-smmu-v3 2b400000.iommu: \t0x0000010000000010
[    5.103] arm-smmu-v3 2b400000.iommu: \t0x0000020800000000
[    5.104] arm-smmu-v3 2b400000.iommu: \t0x000000001234f000
[    5.105] arm-smmu-v3 2b400000.iommu: \t0x0000000000000000
"""


def test_a_kernel_log(capsys, monkeypatch):
    expected = run(capsys, "event", *words(FAULT))
    stdin(monkeypatch, LOG)
    assert run(capsys, "event", "-") == expected


def test_a_log_of_two_records(capsys, monkeypatch):
    stdin(monkeypatch, LOG + LOG)
    code, out, _ = run(capsys, "event", "-")
    assert code == 0
    assert out.count("F_TRANSLATION (IHI 0070 §7.3.13)\n") == 2


def test_a_trace_of_32_bit_words(capsys, monkeypatch):
    stdin(monkeypatch, "cmdq: 0x00000046, 0x00000000 0x00000000 0x00000000 at 17\n")
    code, out, _ = run(capsys, "cmd", "-")
    assert code == 0
    assert out.startswith("CMD_SYNC ")


def test_the_width_of_words_can_be_given(capsys):
    """Four small words are one command of 32-bit words; with --bits they are two commands."""
    code, out, _ = run(capsys, "cmd", "0x46", "0", "0x46", "0")
    assert (code, out.count("CMD_SYNC")) == (0, 1)
    code, out, _ = run(capsys, "cmd", "--bits", "64", "0x46", "0", "0x46", "0")
    assert (code, out.count("CMD_SYNC")) == (0, 2)


ILLEGAL_TEXT = """\
illegal: C_BAD_STE
  s2vmid: S2VMID=0x100 needs IDR0.VMID16=1 (IHI 0070 §5.2.2)
"""


def test_an_illegal_ste_names_field_reason_and_clause(capsys):
    ste = NESTED.replace(s2vmid=0x100)
    no_vmid16 = EVERYTHING.idr0.replace(vmid16=0).raw
    assert run(capsys, "ste", *words(ste))[1].endswith("\nlegal\n")
    code, out, err = run(capsys, "ste", *words(ste), "--idr", f"IDR0={no_vmid16:#x}")
    assert (code, err) == (0, "")
    assert out.endswith(ILLEGAL_TEXT)


def test_ignored_fields_and_reserved_bits_are_marked(capsys):
    ste = Ste.build(v=1, config=SteConfig.BYPASS, s2tg=3)
    raw = (ste.words[0] | 1 << 55 | 1 << 53 | 1 << 52, *ste.words[1:])
    _, out, _ = run(capsys, "ste", *(hex(word) for word in raw))
    assert "  [175:174] s2tg        0x3 reserved value (ignored)\n" in out
    assert "    [53:52] RES0        0x3 reserved, not 0\n" in out
    assert "       [55] RES0        0x1 reserved, not 0\n" in out
    assert out.endswith("\nlegal\n")


def ignored(capsys: pytest.CaptureFixture[str], *arguments: str) -> set[str]:
    found = json.loads(run(capsys, *arguments, "--json")[1])
    return {field["name"] for field in found["structures"][0]["fields"] if field["ignored"]}


def test_fields_of_an_ste_without_effect(capsys):
    """§5.2, §5.2.1."""
    nested = ignored(capsys, "ste", *words(NESTED))
    assert {"strw", "s1dss", "nscfg", "s_s2ttb", "mecid", "s2haft", "s2poe"} <= nested
    assert not {"v", "config", "s1ctxptr", "s2ttb", "s2vmid", "eats", "shcfg"} & nested
    bypass = ignored(capsys, "ste", *words(Ste.build(v=1, config=SteConfig.BYPASS)))
    assert {"s1ctxptr", "s2ttb", "s2vmid", "strw"} <= bypass
    assert not {"memattr", "shcfg", "privcfg"} & bypass
    abort = ignored(capsys, "ste", *words(Ste.build(v=1)))
    assert abort == set(Ste.fields) - {"v", "config"}
    model = ignored(capsys, "ste", *words(NESTED), "--idr", "IDR0=3", "--idr", "IDR1=0")
    assert {"eats", "ppar", "shcfg", "privcfg"} <= model


def test_fields_of_a_cd_without_effect(capsys):
    """§5.4, §5.4.1.1; StreamWorld EL2 has neither TTB1 nor ASID."""
    one = ignored(capsys, "cd", *words(CD))
    assert {"t1sz", "tg1", "ttb1", "had1", "uwxn", "nscfg0", "piip"} <= one
    assert not {"t0sz", "ttb0", "asid", "epd0", "had0", "e0pd0"} & one
    el2 = ignored(capsys, "cd", *words(CD.replace(epd0=1, epd1=0)), "--world", "el2")
    assert {"asid", "epd0", "epd1", "ttb1"} <= el2
    assert not {"ttb0", "t0sz"} & el2


def test_the_features_of_the_model(capsys):
    """The model has no ATS: CMD_ATC_INV is CERROR_ILL there, and legal with all features."""
    assert run(capsys, "cmd", "40", "0000000000000034")[1].endswith("\nlegal\n")
    _, out, _ = run(capsys, "cmd", "40", "0000000000000034", "--idr", "0=2")
    assert out.endswith(
        "illegal: CERROR_ILL\n  op: CMD_ATC_INV needs IDR0.ATS=1 (IHI 0070 §4.1.1)\n"
    )
    code, out, _ = run(capsys, "ste", *words(NESTED), "--features", "model")
    assert (code, out.endswith("\nlegal\n")) == (0, True)


def test_a_cd_is_judged_with_its_ste(capsys):
    assert run(capsys, "cd", *words(CD))[1].endswith("\nlegal\n")
    _, out, _ = run(capsys, "cd", *words(CD), "--s1stalld")
    assert out.endswith("illegal: C_BAD_CD\n  s: S=1 with STE.S1STALLD=1 (IHI 0070 §5.4.2)\n")
    narrow = f"idr0={EVERYTHING.idr0.replace(asid16=0).raw:#x}"
    _, out, _ = run(capsys, "cd", *words(CD), "--idr", narrow)
    assert "asid: ASID=0x100 needs IDR0.ASID16=1" in out
    _, out, _ = run(capsys, "cd", *words(CD), "--idr", narrow, "--world", "el2")
    assert out.endswith("\nlegal\n")


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["l1std", "0"], "span: Span=0: no level 2 table (IHI 0070 §5.1)"),
        (["l1std", "0x1c"], "span: Span=28 is reserved (IHI 0070 §5.1)"),
        (["l1std", "0x8", "--split", "6"], "span: Span=8 is more than SPLIT+1=7 (IHI 0070 §5.1)"),
        (["l1std", "0x80000000000001", "--idr", "IDR5=5"],
         "l2ptr: L2Ptr=0x80000000000000 is beyond OAS, 48 bits (F_STE_FETCH) (IHI 0070 §5.1)"),
        (["l1cd", "0"], "v: V=0: no CDs for these SubstreamIDs (IHI 0070 §5.3)"),
        (["l1cd", "0x80000000000001"], "l2ptr: L2Ptr=0x80000000000000 is beyond 52 bits "
         "(IHI 0070 §5.3)"),
        (["cmd", "0", "0"], "op: 0x00 is a reserved opcode (IHI 0070 §4.1.1)"),
        (["cmd", "85", "0"], "op: 0x85 is IMPLEMENTATION DEFINED, and not defined here "
         "(IHI 0070 §4.1.1)"),
        (["cmd", "7", "0"], "op: 0x07 is CMD_CFGI_VMS_PIDM: needs IDR3.MPAM=1 (IHI 0070 §4.1.1)"),
        (["cmd", "403", "0"], "ssec: SSec=1 on the Non-secure queue (IHI 0070 §4.1.6)"),
        (["cmd", "3046", "0"], "cs: CS=3 is reserved (IHI 0070 §4.7.3)"),
        (["cmd", "41", "3000"], "resp: Resp=3 is reserved (IHI 0070 §4.5.2)"),
        (["cmd", "44", "0", "--idr", "IDR0=1000000"],
         "op: CMD_RESUME with IDR0.STALL_MODEL=1 (terminate only) (IHI 0070 §4.1.1)"),
        (["cmd", "12", "400"], "tg: TG=1 with NUM=0, SCALE=0 and TTL=0, which acts as 0 "
         "(IHI 0070 §4.4.1)"),
        (["cmd", "12", "900", "--idr", "IDR5=0"],
         "tg: TG=2 with NUM=0, SCALE=0 and TTL=1, which acts as 0 (IHI 0070 §4.4.1)"),
        (["event", "24", "0", "0", "0"],
         "type: 0x24 is E_PAGE_REQUEST, which no SMMU here writes (IHI 0070 §7.3)"),
        (["event", "10", "30000000000", "0", "0"], "cls: CLASS=3 is reserved (IHI 0070 §7.3.13)"),
        (["event", "10", "80000000", "0", "0", "--idr", "IDR0=1000000", "--bits", "64"],
         "stall: Stall=1 with IDR0.STALL_MODEL=1 (terminate only) (IHI 0070 §3.12.2)"),
        (["event", "10", "400000000", "0", "0"],
         "ind: InD=1 with RnW=0: writes are data (IHI 0070 §7.3.13)"),
        (["event", "1810", "0", "0", "0", "--idr", "IDR1=0"],
         "ssid: SubstreamID=0x1 with IDR1.SSIDSIZE=0 (IHI 0070 §6.3.2)"),
        (["pri", "0x800000000000000", "0"], "ssv: X or Priv without a PASID (IHI 0070 §8)"),
        (["pri", "0", "0", "--idr", "IDR0=0"],
         "last: a Page Request needs IDR0.PRI=1 (IHI 0070 §6.3.1)"),
        (["reg", "PRIQ_BASE", "0", "--idr", "IDR0=0"],
         "PRIQ_BASE: needs IDR0.PRI=1 (IHI 0070 §6.3.26)"),
        (["reg", "GATOS_PAR", "1"], "GATOS_PAR: needs IDR0.ATOS=1 (IHI 0070 §6.3.40)"),
        (["reg", "GMPAM", "0"],
         "GMPAM: belongs to a feature that is refused here (IHI 0070 §6.2)"),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else "",
)  # fmt: skip
def test_reasons(capsys, arguments, last):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    start = max(i for i, line in enumerate(lines) if line.endswith(":") or "illegal:" in line)
    reasons = " ".join(line.strip() for line in lines[start + 1 :])
    assert reasons.endswith(last)
    assert len(lines[start]) <= 80


CR2_TEXT = """\
CR2 (IHI 0070 §6.3.12)
  offset 0x2c (page 0), 32 bits, RW
  writes are ignored while CR0.SMMUEN=1
  00000006
  [0] e2h         0x0
  [1] recinvsid   0x1
  [2] ptm         0x1
  [3] rec_cfg_ats 0x0
"""


@pytest.mark.parametrize("name", ["CR2", "cr2", "SMMU_CR2", "0x2c", "2C"])
def test_a_register_by_name_or_offset(capsys, name):
    assert run(capsys, "reg", name, "0x6") == (0, CR2_TEXT, "")


def test_a_register_of_64_bits(capsys):
    expected = run(capsys, "reg", "CMDQ_BASE", "0x4000000012340008")
    assert expected[0] == 0
    assert "  [55:5] addr     0x12340000\n" in expected[1]
    assert run(capsys, "reg", "0x90", "0x12340008", "0x40000000") == expected
    upper = run(capsys, "reg", "0x94", "0x40000000")
    assert "[62] hint     0x1" in upper[1]


def test_page_0_offsets_of_page_1_registers(capsys):
    assert run(capsys, "reg", "0xa8", "1") == run(capsys, "reg", "EVENTQ_PROD", "1")
    assert run(capsys, "reg", "0xc8", "1") == run(capsys, "reg", "0x100c8", "1")


def test_every_register_is_found_by_name_and_by_offset():
    for register in EVERY_REGISTER:
        assert find_register(register.name) == (register, 0)
        assert find_register(hex(register.offset)) == (register, 0)
    assert find_register("0x34") is not None
    assert find_register("0x35") is None
    assert find_register("0xfff0") is None


def test_json(capsys):
    code, out, err = run(capsys, "ste", *words(NESTED.replace(s2tg=3)), "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == ["schema", "features", "structures"]
    assert found["schema"] == "vsmmu.explain/1"
    assert found["features"]["IDR0"] == f"{EVERYTHING.idr0.raw:#x}"
    (one,) = found["structures"]
    assert one["kind"] == "ste"
    assert one["name"] == "STE"
    assert one["words"][0] == "0x000000001234000f"
    assert one["fields"][1] == {
        "name": "config", "bits": "[3:1]", "value": "0x7", "meaning": "NESTED", "ignored": False,
    }  # fmt: skip
    assert (one["legal"], one["outcome"]) == (False, "C_BAD_STE")
    assert one["reasons"] == [
        {"field": "s2tg", "text": "S2TG=3 is reserved", "clause": "IHI 0070 §5.2.2"}
    ]


ERRORS = {
    "no words": (["ste"], 1, "explain ste: which words? give them, or - for stdin"),
    "no register": (["reg"], 1, "explain reg: which register? give its name or offset"),
    "no value": (["reg", "CR0"], 1, "explain reg CR0: expected one value, not 0"),
    "not hexadecimal": (["cmd", "0x46", "sync"], 2, "cmd: 'sync' is not a hexadecimal number"),
    "too few": (
        ["ste", "1", "2"], 2, "ste: 2 words; expected 8 64-bit words, 16 32-bit words or 64 bytes",
    ),
    "too long": (
        ["l1std", "0x10000000000000000"], 2,
        "l1std: 1 word; expected 1 64-bit words, 2 32-bit words or 8 bytes",
    ),
    "unknown register": (["reg", "CMDQBASE", "0"], 2,
                         "reg: no register CMDQBASE; nearest: CMDQ_BASE"),
    "unknown offset": (["reg", "0x7f0", "0"], 2, "reg: no register 0x7f0"),
    "wide value": (["reg", "CR0", "0x100000000"], 1, "reg CR0: more than 32 bits"),
    "odd value": (["reg", "CR0", "x"], 1, "reg CR0: expected a hexadecimal number"),
    "IDR name": (
        ["cmd", "46", "0", "--idr", "IDR9=0"], 1,
        "--idr IDR9=0: expected NAME=VALUE with NAME of IDR0, IDR1, IDR3, IDR5, AIDR",
    ),
    "IDR value": (["cmd", "46", "0", "--idr", "0"], 1, "--idr 0: expected a hexadecimal number"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "line"), ERRORS.values(), ids=ERRORS)
def test_errors(capsys, arguments, code, line):
    assert run(capsys, *arguments) == (code, "", f"vsmmu: {line}\n")


def test_a_log_without_words(capsys, monkeypatch):
    stdin(monkeypatch, "nothing here\n")
    code, out, err = run(capsys, "event", "-")
    assert (code, out) == (2, "")
    assert err == "vsmmu: event: 0 words; expected 4 64-bit words, 8 32-bit words or 32 bytes\n"


def test_a_record_of_a_wrong_substreamid_may_hold_any(capsys):
    """§7.3.9: C_BAD_SUBSTREAMID is what becomes of it, without IDR1.SSIDSIZE too."""
    code, out, _ = run(capsys, "event", "5008", "0", "0", "0", "--idr", "IDR1=0")
    assert (code, out.splitlines()[0]) == (0, "C_BAD_SUBSTREAMID (IHI 0070 §7.3.9)")
    assert "features" not in out


def test_usage(capsys):
    code, out, err = run(capsys, "pte", "0")
    assert (code, out) == (1, "")
    assert "invalid choice: 'pte'" in err


def test_every_command_and_record_with_all_features_is_legal(capsys):
    """A built one has no reserved value and needs no refused feature."""
    for kind, classes in (("cmd", OPCODES), ("event", EVENTS)):
        for cls in classes.values():
            one = describe(kind, cls.build().words, Context())
            assert (one.name, one.reasons) == (cls.name, ())


@sliced(300)
@given(kind=st.sampled_from(sorted(SIZES)), data=st.data())
def test_any_words_have_a_description(kind: str, data: st.DataObject) -> None:
    """No bit is lost: fields and reserved bits together are the words."""
    count = SIZES[kind]
    drawn: Sequence[int] = data.draw(
        st.lists(st.integers(0, (1 << 64) - 1), min_size=count, max_size=count)
    )
    one = describe(kind, tuple(drawn), Context())
    assert all(len(line) <= 80 for line in explain._lines(one))
    total = 0
    for field in one.fields:
        msb, _, lsb = field.place.strip("[]").partition(":")
        low = int(lsb or msb)
        scale = field.value.bit_length() and _scale(kind, one.name, field.name)
        total |= field.value >> scale << low
    for place, value in one.reserved:
        low = int(place.strip("[]").split(":")[-1])
        total |= value << low
    assert total == sum(word << 64 * i for i, word in enumerate(drawn))
    assert json.dumps(one.to_json())


def _scale(kind: str, name: str, field: str) -> int:
    from vsmmu.arch import commands, events
    from vsmmu.arch.context import L1Cd
    from vsmmu.arch.pri import PriEntry
    from vsmmu.arch.stream_table import L1Std

    fixed = {"ste": Ste, "cd": Cd, "l1std": L1Std, "l1cd": L1Cd, "pri": PriEntry}
    if kind in fixed:
        return fixed[kind].fields[field].scale
    classes = commands.OPCODES if kind == "cmd" else events.EVENTS
    general = commands.Command if kind == "cmd" else events.Event
    cls = next((c for c in classes.values() if c.name == name), general)
    return cls.fields[field].scale
