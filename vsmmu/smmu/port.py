# SPDX-License-Identifier: BSD-2-Clause
"""A device's side of the bus: DMA requests that pass an SMMU piece by piece.

A transaction that stalls (IHI 0070 §3.12.2) stays in its port, and those behind it wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vsmmu.memory import PAGE
from vsmmu.scheduler import Bell
from vsmmu.smmu.stall import HELD, RETRY, Stalled
from vsmmu.smmu.transaction import Access, Outcome

if TYPE_CHECKING:
    from vsmmu.smmu.smmu import Smmu

# Requests that may wait in one port; further ones are refused.
PENDING_REQUESTS = 256


@dataclass(slots=True, eq=False)
class Request:
    """One DMA request.

    `done` once every piece went through; then `ok` says whether all of them did their work,
    `outcomes` has one entry for each piece and `data` what a read got, zeros where it failed.
    """

    iova: int
    size: int
    write: bool
    payload: bytes = b""
    instr: bool = False
    priv: bool = False
    ssid: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    position: int = 0
    _read: bytearray = field(default_factory=bytearray)

    @property
    def done(self) -> bool:
        """Whether every piece went through."""
        return self.position >= self.size

    @property
    def ok(self) -> bool:
        """Whether it is done and every piece reached memory."""
        return self.done and all(o.status in ("ok", "bypass") for o in self.outcomes)

    @property
    def status(self) -> str:
        """The worst of its pieces so far: "fault", "abort" or "ok"."""
        statuses = [outcome.status for outcome in self.outcomes]
        return next((s for s in ("fault", "abort") if s in statuses), "ok")

    @property
    def data(self) -> bytes:
        """What was read so far."""
        return bytes(self._read)


class DevicePort:
    """A device behind an SMMU with one StreamID; one unit of budget is one piece of a request.

    A piece lies in one 4 KiB page. While the SMMU has no room for an event, or a piece is stalled,
    the port waits. A stalled piece that software ends has the outcome "fault", or "razwi".

    Args:
        name: engine name.
        smmu: the SMMU in front of the device.
        sid: its StreamID there.
        may_stall: whether transactions may be held; where a device cannot wait, as over PCIe, a
            fault that would stall is terminated (§3.12.2).

    `watch`, where set, is told of each piece when it has been through: the request, its address,
    its bytes and what became of it.
    """

    def __init__(self, name: str, smmu: Smmu, sid: int, *, may_stall: bool = True) -> None:
        if not 0 <= sid < 1 << 32:
            raise ValueError(f"StreamID {sid:#x} has more than 32 bits")
        self.name = name
        self.bell = Bell()
        self.smmu = smmu
        self.sid = sid
        self.may_stall = may_stall
        self.watch: Callable[[Request, int, int, Outcome], None] | None = None
        self._queue: deque[Request] = deque()
        self._held: Stalled | None = None

    def read(
        self, iova: int, size: int, *, instr: bool = False, priv: bool = False,
        ssid: int | None = None,
    ) -> Request:  # fmt: skip
        """Queue a read of `size` bytes. Raises ValueError, BufferError as `write` does."""
        return self._submit(Request(iova, size, False, b"", instr, priv, ssid))

    def write(
        self, iova: int, data: bytes, *, priv: bool = False, ssid: int | None = None
    ) -> Request:
        """Queue a write.

        Raises:
            ValueError: no bytes, or an address range that does not fit 64 bits.
            BufferError: PENDING_REQUESTS are waiting.
        """
        return self._submit(Request(iova, len(data), True, bytes(data), False, priv, ssid))

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def stalled(self) -> Stalled | None:
        """The transaction that is stalled now."""
        return self._held if self._held is not None and self._held.fate == HELD else None

    def reset(self) -> None:
        """A function-level reset: what it asked for and was not done yet aborts."""
        while self._queue:
            request = self._queue.popleft()
            request.outcomes.append(Outcome("abort"))
            request.position = request.size
        self._held = None

    def step(self, budget: int) -> int:
        """Put up to `budget` pieces through; returns how many.

        A piece that left an event ends the turn: a device that does nothing but fault must not
        take every place in the SMMU's list before the devices behind it have had theirs.
        """
        done = 0
        while done < budget and self._queue and self.stalled is None:
            if not self.smmu.admits(self):
                # It has a place in the line, and has to ask again.
                self.bell.ring()
                break
            request = self._queue[0]
            outcome = self._translate(request)
            done += 1
            if outcome is None:
                break
            self._piece(request, outcome)
            if request.done:
                self._queue.popleft()
                self._finished(request)
            if outcome.event is not None:
                break
        return done

    def _finished(self, request: Request) -> None:
        if self.smmu.trace is not None:
            failed = [o.status for o in request.outcomes if o.status not in ("ok", "bypass")]
            place = (self.name, self.smmu.name, self.sid, request.iova)
            self.smmu.trace("dma_done", *place, failed[0] if failed else "ok")

    def _submit(self, request: Request) -> Request:
        if request.size <= 0 or request.iova < 0 or request.iova + request.size > 1 << 64:
            raise ValueError(
                f"DMA of {request.size} bytes at {request.iova:#x} is no address range"
            )
        if len(self._queue) >= PENDING_REQUESTS:
            raise BufferError(f"{self.name} has {PENDING_REQUESTS} DMA requests waiting")
        self._queue.append(request)
        if self.smmu.trace is not None:
            place = (self.name, self.smmu.name, self.sid, request.iova)
            self.smmu.trace("dma_start", *place, request.size, int(request.write))
        self.bell.ring()
        return request

    def _translate(self, request: Request) -> Outcome | None:
        """What becomes of the next piece; None if it stalled."""
        held, self._held = self._held, None
        if held is not None and held.fate != RETRY:
            return held.outcome
        access = Access(
            self.sid, request.iova + request.position, request.write, request.instr, request.priv,
            request.ssid,
        )  # fmt: skip
        found = self._submit_access(access)
        if isinstance(found, Stalled):
            self._held, found.bell = found, self.bell
            return None
        return found

    def _submit_access(self, access: Access) -> Outcome | Stalled:
        if self.may_stall and self.smmu.features.stalls:
            return self.smmu.transact(access)
        return self.smmu.translate(access)

    def _piece(self, request: Request, outcome: Outcome) -> None:
        iova = request.iova + request.position
        size = min(request.size - request.position, PAGE - iova % PAGE)
        data = None
        if outcome.pa is not None:
            data = self._transfer(request, outcome.pa, size)
            if data is None:
                # Nothing answers at that address: the bus aborts, the SMMU knows nothing of it.
                outcome = Outcome("abort", outcome.pa)
        request.outcomes.append(outcome)
        if not request.write:
            request._read += data if data is not None else bytes(size)
        request.position += size
        if self.watch is not None:
            self.watch(request, iova, size, outcome)

    def _transfer(self, request: Request, pa: int, size: int) -> bytes | None:
        memory = self.smmu.memory
        if not request.write:
            return memory.read(pa, size)
        piece = request.payload[request.position : request.position + size]
        if memory.write(pa, piece):
            return b""
        outside = self.smmu.outside
        return b"" if outside is not None and outside(self.sid, pa, piece) else None
