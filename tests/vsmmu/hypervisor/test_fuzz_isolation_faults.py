# SPDX-License-Identifier: BSD-2-Clause
"""The judges of the isolation fuzzer can fail: faults put into the hypervisor are found."""

from __future__ import annotations

import pytest

from vsmmu.hypervisor import commands, guest_ste, reports, shadow
from vsmmu.hypervisor.domain import Domain, GuestMemory
from vsmmu.hypervisor.host_smmu import HostSmmu
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.queue import Ring

from . import fuzz_faults, fuzz_faults_pages
from .fuzz_isolation import World

SEEDS, STEPS = 80, 300


def record_as_it_is(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reports, "to_guest", lambda event, stream, domain: event)


def wrong_stream_in_a_record(patch: pytest.MonkeyPatch) -> None:
    made = reports.to_guest

    def to_guest(event, stream, domain):
        record = made(event, stream, domain)
        return record.replace(sid=event.sid) if hasattr(record, "sid") else record

    patch.setattr(reports, "to_guest", to_guest)


def stage_2_field_of_the_guest(patch: pytest.MonkeyPatch) -> None:
    made = Domain.nested_ste

    def nested_ste(self, guest, **fields):
        return made(self, guest, **fields).replace(eats=guest.eats)

    patch.setattr(Domain, "nested_ste", nested_ste)


def bypass_without_stage_2(patch: pytest.MonkeyPatch) -> None:
    made = Domain.stage2_ste
    patch.setattr(Domain, "stage2_ste", lambda self: made(self).replace(config=4))


def command_as_it_is(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commands, "_rebuilt", lambda command, **changes: command)


def read_without_stage_2(patch: pytest.MonkeyPatch) -> None:
    def read64(self, ipa):
        return self._memory.read64(self._stage2.to_pa(ipa) or ipa)

    patch.setattr(GuestMemory, "read64", read64)


def write_without_stage_2(patch: pytest.MonkeyPatch) -> None:
    def write64(self, ipa, value):
        return self._memory.write64(self._stage2.to_pa(ipa, write=True) or ipa, value)

    patch.setattr(GuestMemory, "write64", write64)


def ste_read_twice(patch: pytest.MonkeyPatch) -> None:
    made = guest_ste.fetch

    def fetch(*arguments):
        made(*arguments)
        return made(*arguments)

    patch.setattr(shadow, "fetch", fetch)


def index_without_its_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ring, "address", lambda self, pointer: self.base + pointer * self.entry)


def jump_taken_as_it_is(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ring, "pending", Ring.used)


def trap_that_works(patch: pytest.MonkeyPatch) -> None:
    made = VSmmu.mmio_write

    def mmio_write(self, offset, size, value):
        made(self, offset, size, value)
        self.step(4)

    patch.setattr(VSmmu, "mmio_write", mmio_write)


def drain_without_a_budget(patch: pytest.MonkeyPatch) -> None:
    made = VSmmu.step
    patch.setattr(VSmmu, "step", lambda self, budget: made(self, 8 * budget))


def ste_without_an_invalidation(patch: pytest.MonkeyPatch) -> None:
    made = HostSmmu.update_ste

    def update_ste(self, owner, sid, new, done):
        submit, self.submit = self.submit, lambda owner, commands, done=None: done and done()
        try:
            made(self, owner, sid, new, done)
        finally:
            self.submit = submit

    patch.setattr(HostSmmu, "update_ste", update_ste)


def device_that_goes_on(patch: pytest.MonkeyPatch) -> None:
    """A stream that is taken back keeps its STE."""
    made = HostSmmu.update_ste

    def update_ste(self, owner, sid, new, done):
        if owner:
            made(self, owner, sid, new, done)
        else:
            done()

    patch.setattr(HostSmmu, "update_ste", update_ste)


def vmid_in_a_register(patch: pytest.MonkeyPatch) -> None:
    made = VSmmu.mmio_read
    patch.setattr(
        VSmmu, "mmio_read", lambda self, offset, size: made(self, offset, size) or self.domain.vmid
    )


FAULTS = (
    record_as_it_is, wrong_stream_in_a_record, stage_2_field_of_the_guest, bypass_without_stage_2,
    command_as_it_is, read_without_stage_2, write_without_stage_2, ste_read_twice,
    index_without_its_mask, jump_taken_as_it_is, trap_that_works, drain_without_a_budget,
    ste_without_an_invalidation, device_that_goes_on, vmid_in_a_register,
)  # fmt: skip


MORE = fuzz_faults.FAULTS + fuzz_faults_pages.FAULTS


def runs(*, full: bool) -> None:
    for seed in range(SEEDS):
        World(seed, full=full).run(STEPS)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("fault", "full"),
    [*[(f, False) for f in FAULTS + fuzz_faults.UNOFFERED], *[(f, True) for f in MORE]],
)  # fmt: skip
def test_a_fault_is_found(monkeypatch, fault, full):
    fault(monkeypatch)
    with pytest.raises((AssertionError, ValueError)) as found:
        runs(full=full)
    # The hypervisor's own books refuse a page that is given back twice.
    assert found.errisinstance(AssertionError) or "is there already" in str(found.value)
    # An error of the fault itself would be no AssertionError; without it the first world is well.
    monkeypatch.undo()
    World(0, full=full).run(10)
