# SPDX-License-Identifier: BSD-2-Clause
"""Stage 2 changed while endpoints have translations of their own (ATS)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vsmmu.arch.commands import CmdAtcInv
from vsmmu.arch.stream_table import Eats, Ste
from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.memory import PAGE
from vsmmu.smmu.atc import AtsPort
from vsmmu.smmu.transaction import Access

from .reach import Reach
from .test_binding import sent
from .test_stage2_changes import IOVA, give, made, reaches, take
from .world import BUFFER, MACHINE, RAM_SIZE, World


def _with_ats(made_ste: Callable[..., Ste]) -> Callable[..., Ste]:
    def made_with_ats(self: Domain, *args: Ste, **kwargs: bool) -> Ste:
        return made_ste(self, *args, **kwargs).replace(eats=Eats.FULL)

    return made_with_ats


@pytest.fixture
def endpoints(monkeypatch: pytest.MonkeyPatch) -> World:
    """Devices of x with an ATC; every shadow STE lets them have one."""
    for name in ("nested_ste", "stage2_ste"):
        monkeypatch.setattr(Domain, name, _with_ats(getattr(Domain, name)))
    world = made(ats=1)
    guest = world["x"]
    for i, port in enumerate(guest.ports):
        world.scheduler.remove(port)
        guest.ports[i] = AtsPort(port.name, port.smmu, port.sid)
        world.scheduler.add(guest.ports[i])
    return world


def test_a_taken_page_leaves_the_caches_of_endpoints(endpoints: World) -> None:
    guest, hv = endpoints["x"], endpoints.hypervisor
    reach = Reach(endpoints)
    reach.atcs = [port.atc for port in guest.ports]  # type: ignore[attr-defined]
    assert reaches(guest, BUFFER) == [True, True]
    assert [len(atc) for atc in reach.atcs] == [1, 1]
    seen = sent(guest, "a")
    assert take(guest, BUFFER) == PAGE
    assert [len(atc) for atc in reach.atcs] == [0, 0]
    # Last of all: an endpoint could fill its cache again from the TLB.
    assert seen[-1] == CmdAtcInv.build(sid=0x600, size_lg2=52)
    assert reaches(guest, BUFFER) == [False, False]
    hv.deassign(guest.vsmmu, guest.vsmmu.streams[0])
    assert not guest.dma(0, IOVA + PAGE, b"n").ok
    assert 0x600 not in hv.hosts["a"].ats


def test_an_endpoint_that_does_not_answer_keeps_the_page_from_others(endpoints: World) -> None:
    guest, hv = endpoints["x"], endpoints.hypervisor
    assert reaches(guest, BUFFER) == [True, True]
    guest.ports[0].silent = True  # type: ignore[attr-defined]
    left, place = hv.pages.left, guest.domain.stage2.to_pa(BUFFER)
    assert take(guest, BUFFER) == PAGE
    assert list(guest.domain.withheld) == [(place, PAGE)]
    assert hv.pages.left == left - PAGE, "the table that replaces the block"
    assert give(guest, BUFFER) == 0, "it counts as the guest's still"
    hv.deassign(guest.vsmmu, guest.vsmmu.streams[0])
    for iova in (IOVA, IOVA + PAGE):
        assert not guest.dma(0, iova, b"n").ok, "Translated transactions are checked (ATSCHK)"
    with pytest.raises(HypercallError, match="did not answer an invalidation"):
        hv.assign(endpoints["y"].vsmmu, 5, "a", 0x600)
    guest.destroy()
    assert hv.pages.left > left + RAM_SIZE


def test_translated_transactions_of_a_stream_that_nobody_has(endpoints: World) -> None:
    """Without CR0.ATSCHK a device that says it translated would reach any page."""
    smmu = endpoints.smmus["a"]
    for sid in (0x600, 0x601, 0x700, 0x5000):
        outcome = smmu.translated(Access(sid, MACHINE + 0x10_0000, True))
        owned = sid in (0x600, 0x700)
        assert (outcome.pa is not None) == owned
