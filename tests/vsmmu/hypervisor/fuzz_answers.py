# SPDX-License-Identifier: BSD-2-Clause
"""Judges of stalled transactions and page requests: whom they are told, whose answers count."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from vsmmu.arch.commands import CmdPriResp
from vsmmu.arch.events import Event
from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.stall import RETRY, Stalled

from .fuzz_devices import AtsDevice
from .fuzz_memory import STAGS, leaks

if TYPE_CHECKING:
    from .fuzz_devices import Device
    from .fuzz_guest import Guest
    from .fuzz_isolation import World

_CODES = (PrgResponse.FAILURE, PrgResponse.INVALID_REQUEST, PrgResponse.SUCCESS)


@dataclass(slots=True, eq=False)
class _Stall:
    """A physical record of a stalled transaction, and whom it was told under which STAG."""

    event: Event
    guest: Guest | None = None
    stag: int = 0


class Answers:
    """The judge; `asked` are the CMD_RESUMEs that guests were seen to give, by what they name."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stalls: dict[tuple[str, int, int], _Stall] = {}
        self._asked: set[tuple[Guest, int, int, bool]] = set()

    def watch(self, smmu: Smmu) -> None:
        """STAGs of an SMMU are numbers that no guest knows; CMD_RESUMEs are looked at."""
        stalls, resume = smmu.stalls, smmu.stalls.resume

        def free_stag() -> int:
            return next(stag for stag in STAGS if stag not in stalls._tagged)

        def resumed(sid: int, stag: int, fate: int) -> None:
            item = stalls._tagged.get(stag)
            if item is not None and item.recorded and item.access.sid == sid:
                self._resumed(smmu, item, fate)
            resume(sid, stag, fate)

        stalls._free_stag = free_stag  # type: ignore[method-assign]
        stalls.resume = resumed  # type: ignore[method-assign]

    def listen(self, guest: Guest) -> None:
        """Note what a guest answers."""
        stalls, pri = guest.vsmmu.stalls, guest.vsmmu.pri
        resume, respond = stalls.resume, pri.respond

        def resumes(sid: int, vstag: int, *, retry: bool) -> None:
            self._asked.add((guest, sid, vstag, retry))
            resume(sid, vstag, retry=retry)

        def responds(stream, command: CmdPriResp) -> None:
            device = self._device(guest, command.sid)
            if isinstance(device, AtsDevice) and command.prgindex in device.told:
                device.answers[command.prgindex, _CODES[command.resp]] += 1
            respond(stream, command)

        stalls.resume = resumes  # type: ignore[method-assign]
        pri.respond = responds  # type: ignore[method-assign]

    def forget(self, device: Device) -> None:
        """A stream is taken back: nothing of it is stalled or waits for an answer."""
        smmu = device.smmu
        for item in chain(smmu.stalls._tagged.values(), smmu.stalls._behind):
            assert item.access.sid != device.sid, "a stall is left"
        for key in [k for k in self._stalls if k[:2] == (smmu.name, device.sid)]:
            del self._stalls[key]
        if isinstance(device, AtsDevice):
            assert not device._invalidations
            device.forget()

    # Stalled transactions.

    def physical(self, smmu: str, event: Event) -> None:
        """The hypervisor was given a record of a stalled transaction."""
        stag = event.fields["stag"].of(event.words)
        self._stalls[smmu, event.sid, stag] = _Stall(event)

    def told(self, guest: Guest, event: Event) -> None:
        """A guest has such a record: of a transaction of its own that it was not told yet."""
        device = self._device(guest, event.sid)
        assert device is not None, event
        names = [name for name in ("ssv", "ssid", "rnw", "inputaddr") if name in event.fields]
        for (name, sid, _), stall in self._stalls.items():
            if (name, sid) != (device.smmu.name, device.sid) or stall.guest is not None:
                continue
            if all(getattr(stall.event, n) == getattr(event, n) for n in names):
                stall.guest, stall.stag = guest, event.fields["stag"].of(event.words)
                guest.told.append((event.sid, stall.stag))
                return
        raise AssertionError(f"no such transaction is stalled: {event}")

    def _resumed(self, smmu: Smmu, item: Stalled, fate: int) -> None:
        stall = self._stalls.pop((smmu.name, item.access.sid, item.stag or 0), None)
        assert stall is not None, f"resumed before its record was read: {item}"
        if stall.guest is None:
            self._world.seen["stall ended by the hypervisor"] += 1
            return
        device = self._world.devices[smmu.name, item.access.sid]
        assert item.event.words == stall.event.words, (item, stall)
        key = (stall.guest, device.vmaster_id, stall.stag, fate == RETRY)
        assert key in self._asked, f"its guest did not answer: {item}"
        self._world.seen["stall answered"] += 1

    # Page requests.

    def asked(self, guest: Guest, words: tuple[int, ...]) -> None:
        """A page request in a guest's queue: of its device, that did ask, and all named."""
        entry = PriEntry(words)
        assert not (self._world.memory.blind and leaks(words)), entry
        device = self._device(guest, entry.sid)
        assert isinstance(device, AtsDevice), entry
        if entry.stop_marker:
            return
        assert any(
            (e.addr, e.r, e.w, e.last) == (entry.addr, entry.r, entry.w, entry.last)
            for e in device.asked.get(entry.prgindex, ())
        ), f"{device.name} did not ask for {entry}"
        self._world.seen["page request told"] += 1
        if entry.last:
            sent = device.sent[entry.prgindex]
            alone = sent - device.answered[entry.prgindex] == 1
            device.told[entry.prgindex] = sent if alone else -1
            guest.paged.append((entry.sid, entry.prgindex, entry.ssid if entry.ssv else None))

    def _device(self, guest: Guest, vmaster_id: int) -> Device | None:
        return next((d for d in guest.devices if d.vmaster_id == vmaster_id), None)
