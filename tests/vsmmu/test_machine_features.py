# SPDX-License-Identifier: BSD-2-Clause
"""Features of a machine's SMMUs and the policy of its guests, as a user types them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from dt_tools.errors import Refusal
from dt_tools.platform import Platform
from vsmmu.arch.registers import Idr0, Idr5, StallModel
from vsmmu.cli.inputs import load_config, load_partial, load_platform
from vsmmu.hypervisor.policy import Policy, policy_from
from vsmmu.hypervisor.settings import SettingError
from vsmmu.machine_features import board_features, features_from
from vsmmu.smmu.features import CHOICES, Features
from vsmmu.toolstack import build_machine, create_guest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
FIRST, SECOND = "/soc/iommu@50000000", "/soc/iommu@51000000"


@pytest.fixture(scope="module")
def board() -> Platform:
    return load_platform(str(SAMPLES / "board.dtb"))


def refused(error: pytest.ExceptionInfo[BaseException], text: str) -> None:
    assert str(error.value) == text
    assert "\n" not in text


# Features of one SMMU.


def test_nothing_asked_is_the_default() -> None:
    assert features_from({}) == Features.default()
    assert features_from({"preset": "default"}) == Features.default()


def test_every_field_can_be_named_and_set() -> None:
    """With the values of the SMMU that has everything, read back from its registers."""
    everything = Features.everything()
    table = {
        name: getattr(getattr(everything, register.lower()), name)
        for name, (register, _) in CHOICES.items()
    }
    assert features_from(table) == everything
    as_text = {name: hex(value) for name, value in table.items()}
    assert features_from(as_text) == everything


def test_a_preset_is_changed_by_the_fields_beside_it() -> None:
    found = features_from({"preset": "everything", "pri": False, "priqs": 0, "pps": 0, "oas": "5"})
    assert found == Features.everything().replace(pri=0, priqs=0, pps=0, oas=5)


KNOWN = ", ".join(["preset", *sorted(CHOICES)])


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            {"atss": 1},
            "atss: no such field of an identification register; did you mean ats? "
            f"known are {KNOWN}",
        ),
        (
            {"mpam": 1},
            f"mpam: no such field of an identification register; known are {KNOWN}",
        ),
        ({"ats": 2}, "IDR0.ATS: expected a number from 0 to 1, not 2"),
        ({"ats": "yes"}, "IDR0.ATS: expected a number from 0 to 1, not yes"),
        ({"ats": [1]}, "IDR0.ATS: expected a number from 0 to 1, not a list"),
        ({"sidsize": True}, "IDR1.SIDSIZE: expected a number from 0 to 32, not True"),
        ({"oas": 48}, "IDR5.OAS: expected a number from 0 to 6, not 48"),
        ({"oas": 5.0}, "IDR5.OAS: expected a number from 0 to 6, not 5.0"),
        ({"cmdqs": -1}, "IDR1.CMDQS: expected a number from 0 to 19, not -1"),
        ({"cmdqs": 1 << 400}, "IDR1.CMDQS: expected a number from 0 to 19, not a number of 401 "
         "bits"),
        ({"preset": "all"}, "preset: expected default or everything, not all"),
        ({"preset": ["default"]}, "preset: expected default or everything, not a list"),
        ({"pri": 1}, "IDR0.PRI=1 needs IDR0.ATS=1"),
        ({"stall_max": 4}, "IDR5.STALL_MAX needs IDR0.STALL_MODEL!=1"),
        ({"gran4k": 0, "gran16k": 0, "gran64k": 0}, "IDR5 has no granule"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(table: dict[str, object], text: str) -> None:
    with pytest.raises(SettingError) as error:
        features_from(table)
    refused(error, text)
    assert isinstance(error.value, ValueError)


def test_a_line_stays_short_whatever_was_typed() -> None:
    for table in ({"x" * 100_000: 1}, {"ats": "1" * 100_000}, {"ats": "a\nb"}, {"a\nb": 1}):
        with pytest.raises(SettingError) as error:
            features_from(table)
        assert len(str(error.value)) < 600
        assert "\n" not in str(error.value)


# Of a board.


def test_each_smmu_is_what_was_asked_for_it(board: Platform) -> None:
    table = {"ats": 1, SECOND: {"httu": 2, "ats": 0}}
    made = board_features(board, table)
    machine = build_machine(board, features=made)
    first, second = (machine.smmus[path].features for path in (FIRST, SECOND))
    assert (first.idr0.ats, first.idr0.httu) == (1, 0)
    assert (second.idr0.ats, second.idr0.httu) == (0, 2)
    # The hypervisor reads registers.
    assert Idr0(machine.hypervisor.hosts[SECOND].ident("IDR0")).httu == 2
    plain = build_machine(board)
    assert plain.smmus[FIRST].features == first.replace(ats=0)


def test_the_default_is_for_those_that_are_not_named(board: Platform) -> None:
    named, others = Features.default(sidsize=16, oas=44), Features.everything()
    machine = build_machine(board, features={FIRST: named}, default_features=others)
    assert {path: smmu.features for path, smmu in machine.smmus.items()} == {
        path: named if path == FIRST else others for path in machine.smmus
    }
    assert len(machine.smmus) > 1


def test_a_preset_keeps_what_the_tree_says_of_coherency(board: Platform) -> None:
    made = board_features(board, {"preset": "everything"})
    coherent = {s.path: int(s.dma_coherent) for s in board.smmus if s.path in made}
    assert {path: f.idr0.cohacc for path, f in made.items()} == coherent
    assert all(f == Features.everything().replace(cohacc=coherent[p]) for p, f in made.items())


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({SECOND: {"pri": 1}}, f"{SECOND}: IDR0.PRI=1 needs IDR0.ATS=1"),
        ({"ats": 7}, f"{FIRST}: IDR0.ATS: expected a number from 0 to 1, not 7"),
        ({FIRST: 1}, f"{FIRST}: expected a table of fields, not 1"),
        ({FIRST: {SECOND: {}}}, f"{FIRST}: {SECOND}: no such field of an identification register; "
         f"known are {KNOWN}"),
        ({"/soc/iommu@5100000": {}}, "/soc/iommu@5100000: no such enabled arm,smmu-v3; did you "
         f"mean {SECOND}? known are {{paths}}"),
    ],
)  # fmt: skip
def test_a_line_names_the_smmu(board: Platform, table: dict[str, object], text: str) -> None:
    paths = ", ".join(build_machine(board).smmus)
    with pytest.raises(SettingError) as error:
        board_features(board, table)
    refused(error, text.replace("{paths}", paths))


def test_features_that_contradict_the_board_are_refused(board: Platform) -> None:
    small = Features.default(sidsize=8)
    with pytest.raises(Refusal) as error:
        build_machine(board, features={SECOND: small})
    reason = "IDR1.SIDSIZE=8, but /soc/crypto@61000000 has StreamID 0x600"
    refused(error, f"MC103: {SECOND}: {reason}; give it a larger sidsize")
    # Without masters behind it a size is nobody's concern.
    narrow = Features.default(sidsize=16, oas=32)
    with pytest.raises(Refusal) as error:
        build_machine(board, ram=[(1 << 32, 1 << 28)], features={FIRST: narrow})
    reason = "IDR5.OAS=0 (32 bits), but the machine has RAM up to 0x10fffffff"
    refused(error, f"MC103: {FIRST}: {reason}; give it a larger oas")
    assert build_machine(board, ram=[(0xF000_0000, 1 << 28)], default_features=narrow)
    with pytest.raises(Refusal) as error:
        build_machine(board, features={"/soc": small})
    fix = "take one of " + ", ".join(build_machine(board).smmus)
    refused(error, f"MC103: /soc: features for what is no enabled arm,smmu-v3; {fix}")


@pytest.mark.parametrize(
    "table",
    [
        {"preset": "everything"}, {"st_level": 0, "sidsize": 6}, {"ril": 0, "archminrev": 1},
        {"cmdqs": 1, "eventqs": 0}, {"hyp": 0, "archminrev": 0, "had": 0, "xnx": 0, "fwb": 0},
        {"vmid16": 0, "asid16": 0, "oas": 2, "gran16k": 0, "gran64k": 0, "bbml": 1},
    ],
)  # fmt: skip
def test_machines_of_other_features_boot(board: Platform, table: dict[str, object]) -> None:
    path = "/soc/iommu@52000000"
    machine = build_machine(board, features=board_features(board, {path: table}))
    assert machine.hypervisor.hosts[path].idle


def test_the_vsmmu_is_lowered_to_it(board: Platform) -> None:
    """And raised where the policy allows: features and policy are what `vsmmu run` hands over."""
    config = load_config(str(SAMPLES / "crypto.cfg"))
    policy = policy_from({"stalls": True, "substreams": "on"})
    table = {"oas": 4, "stall_model": 0, "stall_max": 8, "ssidsize": 10, "cd2l": 1}
    machine = build_machine(board, features=board_features(board, table), policy=policy)
    guest = create_guest(machine, config, load_partial(config))
    (vsmmu,) = guest.vsmmus.values()
    idr5 = Idr5(vsmmu.regs["IDR5"])
    assert (idr5.oas, idr5.stall_max) == (4, 8)
    assert vsmmu.idr0.stall_model == StallModel.STALL_AND_TERMINATE
    assert (vsmmu.idr1.ssidsize, vsmmu.idr0.cd2l) == (10, 1)


# The policy.


def test_a_policy_of_names_and_values() -> None:
    assert policy_from({}) == Policy()
    found = policy_from({"substreams": True, "commands_per_flush": 32})
    assert found == Policy(substreams=True, commands_per_flush=32)
    assert policy_from({"substreams": "On", "commands_per_flush": "0x20"}) == found


def test_every_limit_takes_its_default_and_its_ends() -> None:
    for field in fields(Policy):
        assert policy_from({field.name: field.default, "ats": True}).ats
        if not isinstance(field.default, bool):
            allowed = field.metadata["allowed"]
            assert field.default in allowed
            for value in (allowed[0], allowed[-1]):
                assert getattr(policy_from({field.name: value}), field.name) == value
            for value in (allowed[0] - 1, allowed[-1] + 1):
                with pytest.raises(SettingError, match=f"^{field.name}: expected a number "):
                    policy_from({field.name: value})


LIMITS = ", ".join(field.name for field in fields(Policy))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            {"commands_per_flsh": 1},
            "commands_per_flsh: no such limit; did you mean commands_per_flush? "
            f"known are {LIMITS}",
        ),
        ({"": 1}, f"'': no such limit; known are {LIMITS}"),
        ({"substreams": 1}, "substreams: expected true or false, not 1"),
        ({"substreams": "maybe"}, "substreams: expected true or false, not maybe"),
        (
            {"commands_per_flush": True},
            "commands_per_flush: expected a number of commands from 1 to 65536, not True",
        ),
        (
            {"commands_per_flush": "lots of them"},
            "commands_per_flush: expected a number of commands from 1 to 65536, "
            "not 'lots of them'",
        ),
        (
            {"physical_queue_log2": 20},
            "physical_queue_log2: expected a number from 2 to 19, not 20",
        ),
        ({"hypercalls": {}}, "hypercalls: expected a number of hypercalls from 1 to 65536, "
         "not a table"),
        ({"pri": True}, "pri: has no effect without ats (IDR0.PRI=1 needs IDR0.ATS=1)"),
        (
            {"stalls": True, "stalls_per_vsmmu": 0},
            "stalls: has no effect with stalls_per_vsmmu = 0",
        ),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_is_one_line(table: dict[str, object], text: str) -> None:
    with pytest.raises(SettingError) as error:
        policy_from(table)
    refused(error, text)


@pytest.mark.parametrize("end", ["first", "last"])
def test_a_guest_runs_at_either_end_of_every_limit(board: Platform, end: str) -> None:
    """No limit that a user may type stops a machine, or raises."""
    index = 0 if end == "first" else -1
    table = {
        f.name: f.metadata["allowed"][index]
        for f in fields(Policy)
        if not isinstance(f.default, bool) and f.name != "stream_id_bits"
    }
    machine = build_machine(board, policy=policy_from({**table, "stream_id_bits": 16}))
    config = load_config(str(SAMPLES / "crypto.cfg"))
    guest = create_guest(machine, config, load_partial(config))
    (driver,) = guest.drivers.values()
    guest.vcpu.start(driver.boot())
    assert machine.scheduler.run_until_idle()
    assert guest.vcpu.failure is None
