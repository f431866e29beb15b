# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run`: a guest with several vSMMUs; memory, devices and domains that go and come."""

from __future__ import annotations

import pytest

from vsmmu.cli.run import execute
from vsmmu.guest.vcpu import VCpu
from vsmmu.scenario import ScenarioError

from .test_run import BOOT, GUEST, HEAD, scenario

__all__ = ["scenario"]

ENGINES = ("/soc/crypto@60000000", "/soc/crypto@61000000")


def step(do: str, *fields: str, guest: str = "crypto") -> str:
    return "\n".join(("[[step]]", f'guest = "{guest}"', f'do = "{do}"', *fields, ""))


def device(path: str) -> str:
    return f'device = "{path}"'


def used(path: str, ipa: str = "0x48000000") -> str:
    where = (device(path), 'iova = "0x10000"')
    return (
        step("attach", device(path))
        + step("map", *where, 'size = "0x2000"', f'ipa = "{ipa}"')
        + step("dma", *where)
    )


def dma(path: str, expect: str, iova: str = "0x10000") -> str:
    return step("dma", device(path), f'iova = "{iova}"', f'expect = "{expect}"')


def held(report) -> bool:
    problems = [(s.step.number, s.problems) for s in report.steps if s.problems]
    assert (problems, report.problems) == ([], [])
    return True


def test_a_vsmmu_for_each_physical_smmu(scenario):
    """The engines have the same StreamID and, each on its own vSMMU, the same vMasterID."""
    text = HEAD + GUEST + "one_vsmmu_per_psmmu = true\n" + BOOT
    text += "".join(used(path) for path in ENGINES)
    text += "".join(
        step("unmap", device(path), 'iova = "0x10000"', 'size = "0x1000"') + dma(path, "fault")
        + f'events = [{{ type = "F_TRANSLATION", vmaster_id = {number} }}]\n'
        for number, path in enumerate((ENGINES[0],))
    )  # fmt: skip
    text += dma(ENGINES[1], "ok")
    report = execute(scenario(text))
    assert held(report)
    guest = report.machine.guests["crypto"]
    streams = [list(v.streams.values()) for v in guest.vsmmus.values()]
    assert len(streams) > 1
    smmus = [{s.host.path for s in of_one} for of_one in streams]
    assert all(len(of_one) == 1 for of_one in smmus)
    assert len(set.union(*smmus)) == len(smmus)
    firsts = [next(s for s in of_one if s.pmaster_id == 0x600) for of_one in streams[:2]]
    assert [s.vmaster_id for s in firsts] == [0, 0]
    # A driver probes what its own SMMU has: no other SMMU's commands are sent.
    sent = [host.counters["CMD_TLBI_NH_VA"] for host in report.machine.hypervisor.hosts.values()]
    assert sorted(sent)[-2:] == [0, 1]


def test_a_balloon_while_devices_run(scenario):
    text = HEAD + GUEST + BOOT + used(ENGINES[0])
    page = ('ipa = "0x48000000"', 'size = "0x1000"')
    text += step("decrease_reservation", *page) + dma(ENGINES[0], "fault") + "events = []\n"
    text += dma(ENGINES[0], "ok", "0x11000")
    text += step("decrease_reservation", *page, 'expect = "error"')
    text += step("populate_physmap", *page) + dma(ENGINES[0], "ok")
    text += step("populate_physmap", *page, 'expect = "error"')
    assert held(execute(scenario(text)))


def test_a_device_is_unplugged_and_comes_back(scenario):
    text = HEAD + GUEST + BOOT + used(ENGINES[0]) + used(ENGINES[1])
    text += step("unassign", device(ENGINES[0])) + dma(ENGINES[0], "abort") + "events = []\n"
    text += dma(ENGINES[1], "ok")
    text += step("assign", device(ENGINES[0])) + dma(ENGINES[0], "ok")
    assert held(execute(scenario(text)))


def test_a_destroyed_guest(scenario):
    media = '[[guest]]\nconfig = "media.cfg"\n'
    text = HEAD + GUEST + media + '[[step]]\nguests = ["crypto", "media"]\ndo = "boot"\n'
    usb = "/soc/usb@60050000"
    text += used(ENGINES[0]) + used(usb, "0x42000000").replace("crypto", "media")
    text += step("destroy") + dma(ENGINES[0], "abort")
    text += step("boot", 'expect = "error"') + step("destroy", 'expect = "error"')
    text += dma(usb, "ok").replace("crypto", "media")
    report = execute(scenario(text))
    assert held(report)
    assert [d.name for d in report.machine.hypervisor.domains.values()] == ["media"]


@pytest.mark.parametrize("value", ["1", '"yes"'])
def test_a_mirror_is_true_or_false(scenario, value):
    with pytest.raises(ScenarioError, match="one_vsmmu_per_psmmu: expected true or false"):
        execute(scenario(HEAD + GUEST + f"one_vsmmu_per_psmmu = {value}\n" + BOOT))


def test_a_trap_is_recorded_with_its_vcpu(scenario):
    report = execute(scenario(HEAD + GUEST + BOOT))
    traps = [r for r in report.machine.trace.records if r.name == "vsmmu_trap"]
    assert {r.args[:2] for r in traps} == {("crypto", 0)}
    assert any(r.args[4] == "read" for r in traps)
    VCpu(report.machine.hypervisor, report.machine.guests["crypto"].domain, 3).read(0x4040000)
    assert report.machine.trace.records[-1].args == ("crypto", 3, 0x4040000, 4, "read")
    assert str(traps[0]).startswith("vsmmu_trap domain crypto vcpu 0x0 ipa 0x4040")
