# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run`: the sample scenarios under several interleavings, reports, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dt_tools import blob
from vsmmu.arch.stream_table import Ste
from vsmmu.cli import main
from vsmmu.cli.run import execute
from vsmmu.hypervisor.policy import REASONS, Policy
from vsmmu.hypervisor.reports import Reports
from vsmmu.scenario.run import run_scenario

SAMPLES = ("one-guest", "two-guests", "hostile")


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 99, 12345])
def test_samples_hold_in_any_order(name, seed, samples):
    report = execute(str(samples / f"{name}.toml"), seed)
    assert [(s.step.number, s.problems) for s in report.steps if s.problems] == []
    assert report.problems == []


@pytest.mark.parametrize("name", SAMPLES)
def test_same_seed_same_bytes(name, samples, capsys):
    outputs = []
    for _ in range(2):
        assert main(["run", "--json", str(samples / f"{name}.toml")]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["schema"] == "vsmmu.run/1"


@pytest.mark.parametrize("name", SAMPLES)
def test_text_report_is_golden(name, samples, capsys, monkeypatch, update_goldens):
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["run", str(samples / f"{name}.toml")]) == 0
    out = capsys.readouterr().out
    golden = Path(__file__).parent.parent / "golden" / f"run-{name}.txt"
    if update_goldens:
        golden.write_text(out)
    assert out == golden.read_text()


def test_a_physical_id_never_reaches_a_guest(samples):
    """The sample board's StreamIDs that are no vMasterID must not be in any guest's event."""
    report = execute(str(samples / "one-guest.toml"))
    guest = report.machine.guests["crypto"]
    ids = {event.sid for event in guest.events}
    (vsmmu,) = guest.vsmmus.values()
    assert ids <= set(vsmmu.streams)
    assert 0x600 not in ids


def test_trace_is_json_lines(samples, tmp_path, capsys):
    trace = tmp_path / "trace.jsonl"
    assert main(["run", "--trace", str(trace), str(samples / "two-guests.toml")]) == 0
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    assert {"vsmmu_cmd", "vsmmu_shadow_ste", "vsmmu_event"} <= {r["name"] for r in records}


def test_trace_events_as_json_lines(capsys):
    assert main(["run", "--trace-events"]) == 0
    text = capsys.readouterr().out
    assert main(["run", "--trace-events", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = [
        f"{'*' if e['qemu'] else ' '} {e['name']} {' '.join(e['args'])} {e['text']}" for e in events
    ]
    assert " ".join(text.split()) == " ".join(" ".join(shown).split())
    assert events[0] == {
        "name": "smmuv3_read_mmio",
        "args": ["smmu", "reg", "value", "size"],
        "text": "a register was read",
        "qemu": True,
    }


def test_policy_as_json(capsys):
    assert main(["run", "--policy", "--json"]) == 0
    policy = json.loads(capsys.readouterr().out)
    assert policy["schema"] == "vsmmu.policy/1"
    assert "s1ctxptr" in policy["guest_ste_fields"]
    masks = [int(word, 16) for word in policy["guest_ste_mask"]]
    wanted = [0] * 8
    for name in policy["guest_ste_fields"]:
        for i, word in enumerate(Ste.mask(name)):
            wanted[i] |= word
    assert masks == wanted
    assert {"CMD_SYNC", "CMD_TLBI_NH_VA"} <= set(policy["guest_commands"])
    assert not {"CMD_TLBI_S12_VMALL", "CMD_TLBI_EL2_ALL"} & set(policy["guest_commands"])
    caps = {f.name: getattr(Policy(), f.name) for f in dataclasses.fields(Policy)}
    assert {name: policy[name] for name in caps} == caps


@pytest.mark.parametrize("columns", [80, 160])
def test_policy_fits_the_terminal(columns, capsys, monkeypatch, update_goldens):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["run", "--policy"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    policy = Policy().to_json()
    words = out.replace(",", " ").split()
    for name in (*(f.name for f in dataclasses.fields(Policy)), *policy["guest_ste_fields"],
                 *policy["guest_commands"], *policy["refusals"]):  # fmt: skip
        assert set(name.split()) <= set(words), name
    golden = Path(__file__).parent.parent / "golden" / f"policy-{columns}.txt"
    if update_goldens:
        golden.write_text(out)
    assert out == golden.read_text()


def test_refusals_are_counted_by_the_reasons_of_the_policy(samples):
    report = execute(str(samples / "hostile.toml"))
    vsmmus = [v for g in report.machine.guests.values() for v in g.vsmmus.values()]
    seen = {reason for v in vsmmus for reason in v.refusals.by_reason}
    assert seen
    assert seen <= set(REASONS)


HEAD = 'schema = "vsmmu.scenario/1"\nhost = "board.dtb"\n'
GUEST = '[[guest]]\nconfig = "crypto.cfg"\n'
BOOT = '[[step]]\nguest = "crypto"\ndo = "boot"\n'


@pytest.fixture
def scenario(tmp_path, samples):
    for name in ("board.dtb", "crypto.cfg", "media.cfg"):
        (tmp_path / name).write_bytes((samples / name).read_bytes())

    def write(text: str) -> str:
        (tmp_path / "s.toml").write_text(text)
        return str(tmp_path / "s.toml")

    return write


def test_a_bypassed_device_is_expected_at_its_own_address(scenario):
    """What was mapped while it was attached does not count any more."""
    text = HEAD + GUEST + BOOT
    for do in ("attach", "map", "dma", "bypass", "dma"):
        text += f'[[step]]\nguest = "crypto"\ndo = "{do}"\ndevice = "/soc/crypto@60000000"\n'
        text += 'iova = "0x40200000"\n' if do in ("map", "dma") else ""
        text += 'size = "0x1000"\nipa = "0x40300000"\n' if do == "map" else ""
    report = execute(scenario(text))
    assert report.ok
    details = [s.detail for s in report.steps if s.step.do == "dma"]
    assert ["IPA 0x40300000" in details[0], "IPA 0x40200000" in details[1]] == [True, True]


def test_a_device_with_more_streams_than_the_queue_has_entries(scenario, tmp_path):
    tree = blob.read((tmp_path / "board.dtb").read_bytes())
    node = tree.node("/soc/crypto@60000000")
    smmu = tree.node("/soc/iommu@50000000")
    assert node is not None
    assert smmu is not None
    cells = [cell for sid in range(0x1000, 0x1000 + 300) for cell in (smmu.phandle, sid)]
    node.set_cells("iommus", *cells)
    (tmp_path / "board.dtb").write_bytes(blob.write(tree))
    step = '[[step]]\nguest = "crypto"\ndo = "attach"\ndevice = "/soc/crypto@60000000"\n'
    assert execute(scenario(HEAD + GUEST + BOOT + step)).ok


def test_unprintable_text_is_escaped(scenario, capsys):
    text = 'title = "a\\u001b[31mb"\n' + HEAD + GUEST + BOOT + 'note = "x\\u202ey"\n'
    assert main(["run", scenario(text)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a\\x1b[31mb" in out
    assert "x\\u202ey" in out


def test_dom0_has_a_vsmmu_for_each_physical_smmu(scenario):
    """dom0 beside a guest: same ids and bases, RAM at machine addresses, all other devices."""
    text = HEAD + GUEST + "[[guest]]\ndom0 = true\nmemory = 128\nevents = 1\ngerrors = 0\n"
    text += '[[step]]\nguests = ["crypto", "dom0"]\ndo = "boot"\n'
    for do in ("attach", "map", "dma", "unmap", "dma"):
        text += f'[[step]]\nguest = "dom0"\ndo = "{do}"\ndevice = "/soc/usb@60050000"\n'
        text += "" if do == "attach" else 'iova = "0x10000"\n'
        text += 'size = "0x1000"\n' if do in ("map", "unmap") else ""
    text += 'expect = "fault"\nevents = [{ type = "F_TRANSLATION", vmaster_id = 0x30 }]\n'
    report = execute(scenario(text))
    assert [(s.step.number, s.problems) for s in report.steps if s.problems] == []
    assert report.problems == []
    dom0 = report.machine.guests["dom0"]
    assert [(v.base, sorted(v.streams)) for v in dom0.vsmmus.values()] == [
        (0x50000000, [0x20, 0x21, 0x50]),
        (0x51000000, [0x2, 0x8, 0x30, 0x60]),
        (0x52000000, []),
    ]
    assert all(ipa == pa for ipa, pa, _ in dom0.domain.stage2.mappings())
    assert "/soc/crypto@60000000" not in dom0.ports


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = ", ":1: not a TOML file: Invalid value, at the end"),
        ("", ': schema: expected "vsmmu.scenario/1"'),
        ('schema = "vsmmu.scenario/2"', ':1: schema: expected "vsmmu.scenario/1"'),
        (
            'schema = "vsmmu.scenario/1"\n' + GUEST + BOOT,
            ": host: give the host's device tree, or machine.devices",
        ),
        (
            HEAD + "sed = 1\n" + GUEST + BOOT,
            ":3: sed: not a known field; known are schema, title, host, seed, seeds, "
            "profile, machine, policy, guest, actor, step",
        ),
        (
            HEAD + "seed = -1\n" + GUEST + BOOT,
            ":3: seed: expected a number from 0 to 2^64-1, not -1",
        ),
        (
            HEAD + '[machine]\nram = ["1"]\n' + GUEST + BOOT,
            ":4: machine.ram: expected \"BASE+SIZE\", not '1'",
        ),
        (
            HEAD + '[machine]\nram = ["1+0x1000"]\n' + GUEST + BOOT,
            ":4: machine.ram: 1+0x1000 is not made of 4 KiB pages",
        ),
        (HEAD + BOOT, ": guest: expected 1 to 64 [[guest]] tables"),
        (HEAD + GUEST, ": step: expected 1 to 10000 [[step]] tables, or an [[actor]]"),
        (HEAD + "seed = " + "9" * 5000 + "\n" + GUEST + BOOT, ":3: a number of too many digits"),
        (
            HEAD + 'seed = "0x' + "f" * 5000 + '"\n' + GUEST + BOOT,
            ":3: seed: expected a number from 0 to 2^64-1, not a number of 20000 bits",
        ),
        (
            HEAD + '[machine]\nram = ["0x1000+0x2000", "0x2000+0x1000"]\n' + GUEST + BOOT,
            ":4: machine.ram: 0x2000 is given twice",
        ),
        (
            HEAD + '[machine]\nram = ["0xfffffffff000+0x2000"]\n' + GUEST + BOOT,
            ":4: machine.ram: 0xfffffffff000+0x2000 is beyond 48 bits",
        ),
        (
            HEAD + "[[guest]]\ndom0 = true\nmemory = 0\n" + BOOT,
            ":5: guest 1: memory: expected 1 to 4194304 MiB",
        ),
        (
            HEAD + GUEST + "[[step]]\nguests = ['crypto', 'crypto']\ndo = 'boot'",
            ":6: step 1: guests: expected different guests, at least one",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest='crypto'\ndo='mmio'\noffset=0\nvalue=1\nsize=3",
            ":10: step 1: size: expected 1, 2, 4 or 8",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest='crypto'\ndo='mmio'\noffset=0\nvalue='0x100000000'",
            ":9: step 1: value: does not fit 4 bytes",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest='crypto'\ndo='map'\ndevice='x'\niova=0\nsize=0",
            ":10: step 1: size: expected a multiple of 4096",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest='crypto'\ndo='dma'\ndevice='x'\niova=0\n"
            "size=0x40000000",
            ":10: step 1: size: larger than 0x1000000",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest='crypto'\ndo='command'\nwords=[1]",
            ":5: step 1: a command is two words, at most 16384 times",
        ),
        (HEAD + GUEST + "[[step]]\ndo = 'boot'", ":5: step 1: needs either guest or guests"),
        (
            HEAD + GUEST + "dom0 = true\n" + BOOT,
            ":5: guest 1: dom0: dom0 = true stands for a config",
        ),
        (
            HEAD + GUEST + "memory = 64\n" + BOOT,
            ":5: guest 1: memory: belongs to dom0; a guest's is in its config",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest = 'crypto'\ndo = 'fly'",
            ":7: step 1: do: expected one of boot, attach, detach, bypass, map, unmap, dma, "
            "mmio, poke, ste, command, decrease_reservation, populate_physmap, unassign, "
            "assign, destroy, not 'fly'",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest = 'crypto'\ndo = 'attach'",
            ":5: step 1 (attach): needs device",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest = 'crypto'\ndo = 'boot'\niova = 1",
            ":8: step 1 (boot): iova: not a known field; known are guest, guests, do, note, "
            "expect, events",
        ),
        (
            HEAD + GUEST + "[[step]]\nguest = 'x'\ndo = 'boot'",
            ":5: step 1: no guest 'x'; guests are crypto",
        ),
        (
            HEAD
            + GUEST
            + "[[step]]\nguest = 'crypto'\ndo = 'attach'\ndevice = '/soc/usb@60050000'",
            ":5: step 1: crypto has no device /soc/usb@60050000; it has "
            "/soc/crypto@60000000, /soc/crypto@61000000, /soc/ethernet@60010000",
        ),
        (
            HEAD
            + GUEST
            + "[[step]]\nguest='crypto'\ndo='dma'\ndevice='/soc/crypto@60000000'\n"
            + "iova='0x1'\nsize=0",
            ":5: step 1: DMA of 0 bytes at 0x1 is no address range",
        ),
        (
            HEAD
            + GUEST
            + "[[step]]\nguest='crypto'\ndo='dma'\ndevice='/soc/crypto@60000000'\niova=1\nstream=9",
            ":5: step 1: /soc/crypto@60000000 has 1 streams",
        ),
    ],
)
def test_a_bad_scenario_is_one_line(text, line, scenario, capsys):
    name = scenario(text)
    assert main(["run", name]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"vsmmu: {name}{line}"


def test_expectations_that_fail_are_exit_3(scenario, capsys):
    text = HEAD + GUEST + "events = 5\n" + BOOT + 'expect = "fault"\n'
    assert main(["run", scenario(text)]) == 3
    out = capsys.readouterr().out
    assert "s.toml:5: crypto: expected 5 events, got 0" in out
    assert "s.toml:6: step 1: expected fault, got ok" in out
    assert out.endswith("0 of 1 steps as expected; 2 do not hold\n")


def test_a_wrong_event_is_told(scenario, capsys):
    text = HEAD + GUEST + BOOT + "events = [{ type = 'C_BAD_STE', vmaster_id = 1 }]\n"
    assert main(["run", scenario(text)]) == 3
    line = "s.toml:5: step 1: crypto: expected events C_BAD_STE vMasterID 0x1; got none"
    assert line in capsys.readouterr().out


def test_a_driver_that_gives_up_is_an_error_outcome(scenario, capsys):
    step = "[[step]]\nguest = 'crypto'\ndo = 'attach'\ndevice = '/soc/crypto@60000000'\n"
    assert main(["run", scenario(HEAD + GUEST + step)]) == 3
    out = capsys.readouterr().out
    assert "s.toml:5: step 1: expected ok, got error (crypto: the SMMU is not booted)" in out
    assert main(["run", scenario(HEAD + GUEST + step + "expect = 'error'\n")]) == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            HEAD + "[machine]\ncaching = 'none'\nram = ['0x80000000+0x1000']\n" + GUEST + BOOT,
            ":5: machine: MC101: /: 0x2000 bytes wanted, 0x0 bytes of machine RAM left; "
            "give more machine.ram",
        ),
        (
            HEAD + "[machine]\nfeatures.oas = 0\nram = ['0x100000000+0x1000000']\n" + GUEST + BOOT,
            ":4: machine: MC103: /soc/iommu@50000000: IDR5.OAS=0 (32 bits), but the machine has "
            "RAM up to 0x100ffffff; give it a larger oas",
        ),
        (
            HEAD + GUEST + GUEST + BOOT,
            ":5: guest 2: MC204: /: two guests are called crypto; rename one",
        ),
        (
            HEAD + '[machine]\nram = ["0x80000000+0x1000000"]\n' + GUEST + BOOT,
            ":5: guest 1: MC201: /: crypto wants 256 MiB, 15 MiB of machine RAM are left; lower "
            "its memory or give machine.ram",
        ),
    ],
)
def test_refusals_are_exit_4(text, line, scenario, capsys):
    name = scenario(text)
    assert main(["run", name]) == 4
    assert capsys.readouterr().err.splitlines()[-1] == f"vsmmu: {name}{line}"


def test_a_stream_in_two_guests_is_refused(scenario, tmp_path, capsys):
    other = (tmp_path / "crypto.cfg").read_text().replace('"crypto"', '"other"')
    (tmp_path / "other.cfg").write_text(other)
    text = HEAD + GUEST + '[[guest]]\nconfig = "other.cfg"\n' + BOOT
    name = scenario(text)
    assert main(["run", name]) == 4
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"vsmmu: {name}:5: guest 2: MC203: /soc/crypto@60000000: (/soc/iommu@50000000, 0x600) is "
        "already assigned to crypto; assign another device"
    )


def test_an_event_in_a_step_of_another_guest_is_told(samples, monkeypatch):
    """A hypervisor that gives events to the wrong guest does not pass the samples."""
    right = Reports.event

    def wrong(self, host, event):
        vsmmu, stream = next(p for p in self._owner.values() if p[0].domain.name == "media")
        if self._owner[host.path, event.sid][0] is vsmmu:
            right(self, host, event)
        else:
            right(self, stream.host, type(event)(event.words).replace(sid=stream.pmaster_id))

    monkeypatch.setattr(Reports, "event", wrong)
    report = execute(str(samples / "two-guests.toml"))
    problems = [p for step in report.steps for p in step.problems]
    assert "media got F_TRANSLATION vMasterID 0x0 of a step that is not its own" in problems


def test_an_event_of_a_guest_without_an_actor_is_told_between_steps(monkeypatch):
    """What an actor does to a guest that does nothing is no part of any step."""
    right = Reports.event

    def wrong(self, host, event):
        stream = self._owner[host.path, 0x20][1]
        right(self, host, type(event)(event.words).replace(sid=stream.pmaster_id))

    monkeypatch.setattr(Reports, "event", wrong)
    text = """schema = "vsmmu.scenario/1"
machine.devices = { nic = "smmu0:0x10", disk = "smmu0:0x20" }
guest = [{ name = "red", devices = ["nic"] }, { name = "idle", devices = ["disk"] }]
step = [{ guest = "idle", do = "boot" }, { guest = "idle", do = "attach", device = "disk" }]
actor = [{ guest = "red", do = "faulting", after = 2, operations = 3 }]
"""
    assert [str(problem) for problem in run_scenario(text).problems] == [
        "scenario:3: idle: got 3 events of no step, and it has no actor"
    ]
