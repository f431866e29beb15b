# SPDX-License-Identifier: BSD-2-Clause
"""A board: RAM, windows of devices, an interrupt controller, and programs that run on it."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.profiles import DEFAULT
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.memory import PAGE
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.port import DevicePort, Request
from vsmmu.smmu.smmu import Smmu
from vsmmu.testing.live.devices import Console, Device, DmaEngine, Exit
from vsmmu.testing.live.gic import Gic
from vsmmu.testing.live.image import Image, LiveError
from vsmmu.testing.live.ram import Ram
from vsmmu.testing.live.result import Result, Trap

if TYPE_CHECKING:
    from vsmmu.testing.live.cpu import Cpu

ACCESSES_KEPT = 1 << 16
_TURNS = 5_000_000
_DMA_STRIDE = PAGE


class Window(NamedTuple):
    """A device's registers at [base, base + size)."""

    name: str
    base: int
    size: int
    device: Device


class Master(NamedTuple):
    """A DMA engine as a program needs to know it.

    `smmu` is the base of the SMMU, or vSMMU, that it is behind and `sid` its StreamID there; the
    SPIs are GIC ids, 0 where there is none; `edges` has bit 0 set where the first is an edge, bit 1
    for the second; `dma` is the base of its own registers.
    """

    smmu: int
    eventq_spi: int
    gerror_spi: int
    edges: int
    sid: int
    dma: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where a board's own devices are; a guest's map of Xen has these addresses free."""

    gicd: int = DEFAULT.guest.gicv2_gicd.base
    gicc: int = DEFAULT.guest.gicv2_gicc.base
    console: int = DEFAULT.guest.pl011.base
    exit: int = DEFAULT.guest.pl011.base + 0x1_0000
    dma: int = DEFAULT.guest.pl011.base + 0x10_0000


class Board:
    """A board on a machine that exists.

    Args:
        scheduler: the machine's.
        ram: what its vCPUs see.
        gic: where the SMMU's wires end.
        places: where its devices are.

    Attributes:
        masters: its DMA engines, in the order of `add_dma`.

    Raises:
        LiveError: windows overlap.
    """

    def __init__(
        self, scheduler: Scheduler, ram: Ram, gic: Gic, places: Places | None = None
    ) -> None:
        self.places = places or Places()
        self.scheduler = scheduler
        self.ram = ram
        self.gic = gic
        self.console = Console()
        self.exit = Exit()
        self.masters: list[Master] = []
        self._windows: list[Window] = []
        self._vcpus: list[Cpu] = []
        self._traps: Counter[str] = Counter()
        self._accesses: list[Trap] = []
        self.add("gicd", self.places.gicd, PAGE, gic.distributor)
        self.add("gicc", self.places.gicc, PAGE, gic.interface)
        self.add("console", self.places.console, PAGE, self.console)
        self.add("exit", self.places.exit, PAGE, self.exit)

    # What is on it.

    def add(self, name: str, base: int, size: int, device: Device) -> None:
        """A window of a device, in whole pages.

        Raises:
            LiveError: it is not made of pages, or overlaps another window or RAM.
        """
        if base % PAGE or size % PAGE or size <= 0 or base < 0:
            raise LiveError(f"{name} at {base:#x}+{size:#x} is not made of 4 KiB pages")
        others = [(w.name, w.base, w.size) for w in self._windows]
        others += [("RAM", address, length) for address, _, length in self.ram.mappings()]
        for other, start, length in others:
            if base < start + length and start < base + size:
                raise LiveError(
                    f"{name} at {base:#x}+{size:#x} overlaps {other} at {start:#x}+{length:#x};"
                    " give it another place"
                )
        self._windows.append(Window(name, base, size, device))

    def add_vsmmus(self, hypervisor: Hypervisor) -> None:
        """Trap the windows of the domain's vSMMUs into the hypervisor."""
        domain = self.ram.domain
        assert domain is not None
        for vsmmu in domain.vsmmus:
            base = vsmmu.base

            def trap(
                offset: int, size: int, value: int | None, vcpu: int, base: int = base
            ) -> int | None:
                return hypervisor.trap(domain, base + offset, size, value, vcpu)

            self.add(vsmmu.name, base, vsmmu.size, trap)

    def add_smmu(self, base: int, smmu: Smmu, size: int = 0x2_0000) -> None:
        """A physical SMMU's two pages, with no hypervisor between."""

        def access(offset: int, size: int, value: int | None, vcpu: int) -> int:
            if value is None:
                return smmu.mmio_read(offset, size)
            smmu.mmio_write(offset, size, value)
            return 0

        self.add(smmu.name, base, size, access)

    def add_dma(
        self, port: DevicePort, smmu: int, sid: int, spis: Mapping[str, int] | None = None,
        edges: Container[int] = (),
    ) -> Master:  # fmt: skip
        """A DMA engine on a device's port.

        Args:
            port: becomes an engine of the scheduler if it is none yet.
            smmu, sid: base of the SMMU or vSMMU and the StreamID, as the program knows them.
            spis: GIC ids by cause (`wires.CAUSES`) of that SMMU.
            edges: those of them that are edges; the others are levels.
        """
        base = self.places.dma + _DMA_STRIDE * len(self.masters)
        engine = DmaEngine(port, self._dma_wrote)
        for part in (port, engine):
            if part not in self.scheduler.engines:
                self.scheduler.add(part)
        self.add(engine.name, base, PAGE, engine)
        eventq, gerror = ((spis or {}).get(cause, 0) for cause in ("eventq", "gerror"))
        triggers = (eventq in edges) | (gerror in edges) << 1
        master = Master(smmu, eventq, gerror, triggers, sid, base)
        self.masters.append(master)
        return master

    def table(self) -> bytes:
        """The masters for a program: their number, then six words for each, 64 bits all."""
        words = [len(self.masters), *(word for master in self.masters for word in master)]
        return struct.pack(f"<{len(words)}Q", *words)

    # Programs.

    def run(
        self, image: Image, *, args: Sequence[int] = (), data: Mapping[int, bytes] | None = None,
        vcpus: int = 1, instructions: int = 1_000_000, grain: int = 8, turns: int = _TURNS,
    ) -> Result:  # fmt: skip
        """Load a program and run the machine until it is at rest.

        Args:
            image: the program.
            args: X0 and up of every vCPU, at most 8; MPIDR_EL1.Aff0 is its number.
            data: bytes by address that it finds in RAM, as a device tree.
            vcpus: how many run it.
            instructions: of each vCPU, at most.
            grain: instructions that no other engine comes between, times the scheduler's budget.
            turns: of the scheduler, at most.

        Raises:
            LiveError: no unicorn, or the program does not fit the board.
        """
        self.start(image, args=args, data=data, vcpus=vcpus, instructions=instructions, grain=grain)
        try:
            rest = self.scheduler.run_until_idle(turns)
        finally:
            self.stop()
        return self.result(rest=rest)

    def start(
        self, image: Image, *, args: Sequence[int] = (), data: Mapping[int, bytes] | None = None,
        vcpus: int = 1, instructions: int = 1_000_000, grain: int = 8,
    ) -> None:  # fmt: skip
        """As `run`, but whoever owns the scheduler runs it; `stop` ends it, `result` tells."""
        if self._vcpus:
            raise LiveError("a board runs one program; make another board for the next")
        if not 1 <= vcpus <= self.gic.cpus:
            raise LiveError(f"{vcpus} vCPUs, but the GIC has {self.gic.cpus} CPU interfaces")
        if len(args) > 8 or instructions < 1 or grain < 1:
            raise LiveError("args are at most 8; instructions and grain at least 1")
        make = _cpu_class()
        for segment in image.segments:
            self._load(image.name, segment.address, segment.data, segment.size)
        for address, content in (data or {}).items():
            self._load("data", address, content, len(content))
        name = "machine" if self.ram.domain is None else self.ram.domain.name
        self._vcpus = [
            make(
                f"live {name}.{number}", number, self, self.ram, entry=image.entry, args=args,
                instructions=instructions, grain=grain,
            )
            for number in range(vcpus)
        ]  # fmt: skip
        for cpu in self._vcpus:
            self.scheduler.add(cpu)

    def stop(self) -> None:
        """Take the vCPUs from the scheduler."""
        for cpu in self._vcpus:
            if cpu in self.scheduler.engines:
                self.scheduler.remove(cpu)

    def result(self, *, rest: bool = True) -> Result:
        """What became of the program so far; `rest` says whether the machine came to rest."""
        return Result(
            reason=self._reason(rest=rest),
            exit_code=self.exit.code,
            console=self.console.text,
            instructions=sum(cpu.executed for cpu in self._vcpus),
            vcpus=tuple(cpu.end for cpu in self._vcpus),
            traps=dict(sorted(self._traps.items())),
            accesses=tuple(self._accesses),
        )

    def _reason(self, *, rest: bool) -> str:
        if self.exit.code is not None:
            return "exit"
        if self.ram.gone:
            return "destroyed"
        if not rest:
            return "turns"
        if any(cpu.lockup for cpu in self._vcpus):
            return "lockup"
        return "instructions" if any(cpu.left <= 0 for cpu in self._vcpus) else "waits"

    def _load(self, name: str, address: int, data: bytes, size: int) -> None:
        if not self.ram.holds(address, size):
            raise LiveError(f"{name}: {address:#x}+{size:#x} is not all RAM of the board")
        for offset in range(0, size, PAGE):
            piece = data[offset : offset + PAGE].ljust(min(PAGE, size - offset), b"\0")
            if not self.ram.write(address + offset, piece):
                raise LiveError(f"{name}: {address + offset:#x} cannot be written")

    def _dma_wrote(self, request: Request) -> None:
        """Instructions that a device has written are the ones to execute from now on."""
        frames = {o.pa // PAGE for o in request.outcomes if o.pa is not None}
        for cpu in self._vcpus:
            code = (self.ram.to_pa(page) for page in cpu.code)
            if any(pa is not None and pa // PAGE in frames for pa in code):
                cpu.flush()

    # The vCPUs' side, `cpu.Bus`.

    @property
    def windows(self) -> list[tuple[int, int]]:
        """(base, size) of what is trapped."""
        return [(window.base, window.size) for window in self._windows]

    @property
    def ended(self) -> bool:
        """Whether the exit register was written."""
        return self.exit.code is not None

    def irq(self, vcpu: int) -> bool:
        """Whether a vCPU's IRQ input is high."""
        return self.gic.irq(vcpu)

    def trap(self, vcpu: int, address: int, size: int, value: int | None) -> int | None:
        """An access of a vCPU to a window.

        Raises:
            LiveError: a device of the user's raised something.
        """
        window = next((w for w in self._windows if w.base <= address < w.base + w.size), None)
        if window is None:
            return None
        try:
            got = window.device(address - window.base, size, value, vcpu)
        except Exception as error:
            raise LiveError(
                f"{window.name}: offset {address - window.base:#x}: {error!r}"
            ) from error
        self._traps[window.name] += 1
        if len(self._accesses) < ACCESSES_KEPT:
            shown = got if value is None else (None if got is None else value)
            self._accesses.append(Trap(vcpu, window.name, address, size, value is not None, shown))
        return got


def missing() -> str | None:
    """Why no program can be run here; None when it can."""
    if find_spec("unicorn") is None:
        return "unicorn is not installed (pip install 'vsmmu[live]')"
    return None


def _cpu_class() -> type[Cpu]:
    reason = missing()
    if reason is not None:
        raise LiveError(reason)
    from vsmmu.testing.live.cpu import Cpu

    return Cpu
