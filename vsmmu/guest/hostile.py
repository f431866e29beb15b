# SPDX-License-Identifier: BSD-2-Clause
"""A guest that is out to break things: registers, rings, STEs, CDs, tables and DMA at random.

It boots as its driver does and then writes whatever it likes wherever it may. Nothing it does
can fail: what the hypervisor makes of it is for the others to feel, and they must not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random

from vsmmu.arch.commands import OPCODES, CmdCfgiCd, CmdCfgiSte, CmdCfgiSteRange, CmdSync, Command
from vsmmu.arch.registers import BY_NAME, REGISTERS, Cr0, Gbpa, QueueBase
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.vcpu import GuestError, Program
from vsmmu.guest.workloads import Bench
from vsmmu.memory import PAGE
from vsmmu.queue import Ring

_WINDOW = 0x2_0000
_MASK64 = (1 << 64) - 1
_ENABLED = Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw
_SWITCHES = (
    _ENABLED,
    _ENABLED,
    Cr0.build(eventqen=1, cmdqen=1).raw,
    Cr0.build(smmuen=1, cmdqen=1).raw,
    Cr0.build(smmuen=1).raw,
    0,
)
_QUEUE_LOG2_MAX = 19
_FLOOD = 60
_CD_WORDS = 8
# What it puts right now and then, so that what it does reaches further than a dead SMMU; and how
# long it waits for CR0ACK then.
_MENDED = ("STRTAB_BASE", "STRTAB_BASE_CFG", "CMDQ_BASE", "EVENTQ_BASE", "CR1", "CR2", "IRQ_CTRL")
_MENDS = 0.08
_PATIENCE = 50


class Hostile:
    """Its moves.

    Args:
        bench: CPU, devices, length; `bench.random` decides everything.
        drivers: of its vSMMUs, whose registers, tables and rings it knows.
        ram: its memory as (base, size).
    """

    def __init__(
        self, bench: Bench, drivers: Sequence[SmmuDriver], ram: Sequence[tuple[int, int]]
    ) -> None:
        self._bench = bench
        self._drivers = drivers
        self._ram = ram
        self._random: Random = bench.random
        self._moves: tuple[Callable[[], None], ...] = (
            self._poke, self._poke, self._switch, self._commands, self._commands, self._commands,
            self._jump, self._rebase, self._ste, self._ste, self._ste, self._cd, self._cd,
            self._scribble, self._dma, self._dma, self._dma, self._dma,
        )  # fmt: skip

    def program(self) -> Program:
        """Boot, move by move do harm, and leave with everything off."""
        bench = self._bench
        yield from bench.prepared()
        good = [self._registers(driver) for driver in self._drivers]
        tables = [self._stes(driver) for driver in self._drivers]
        while (yield from bench.more()):
            if self._random.random() < _MENDS:
                for driver, registers, stes in zip(self._drivers, good, tables, strict=True):
                    yield from self._mend(driver, registers, stes)
                continue
            with suppress(GuestError):
                self._random.choice(self._moves)()
            # Others have their turns before it spoils the effect.
            for _ in range(self._random.choice([1, 1, 1, 4])):
                yield True
        for driver in self._drivers:
            for name in ("CR0", "IRQ_CTRL"):
                self._write(driver, name, 0)

    # Putting right what it broke.

    def _registers(self, driver: SmmuDriver) -> dict[str, int]:
        return {name: self._read(driver, name) for name in _MENDED}

    def _stes(self, driver: SmmuDriver) -> dict[int, tuple[int, ...]]:
        places = [driver.ste_address(sid) for sid in sorted(driver.contexts)]
        return {place: self._bench.memory.read_words(place, 8) or () for place in places}

    def _mend(
        self, driver: SmmuDriver, registers: dict[str, int], stes: dict[int, tuple[int, ...]]
    ) -> Program:
        """An SMMU as its driver would have it, but for CDs, tables and what is cached."""
        self._write(driver, "CR0", 0)
        for _ in range(_PATIENCE):
            if not self._read(driver, "CR0ACK"):
                break
            yield True
        for name, value in registers.items():
            self._write(driver, name, value)
        for name in ("CMDQ_PROD", "CMDQ_CONS", "EVENTQ_PROD", "EVENTQ_CONS"):
            self._write(driver, name, 0)
        for place, words in stes.items():
            self._bench.memory.write_words(place, words)
        self._write(driver, "GERRORN", self._read(driver, "GERROR"))
        self._write(driver, "CR0", _ENABLED)

    # Numbers and places.

    @property
    def _driver(self) -> SmmuDriver:
        return self._random.choice(self._drivers)

    def _number(self) -> int:
        r = self._random
        kind = r.randrange(8)
        if kind == 0:
            return r.choice([0, 1, 0xFFFF_FFFF, _MASK64, 1 << r.randrange(64)])
        if kind < 4:
            return self._place()
        return r.getrandbits(r.choice([8, 12, 20, 32, 48, 64]))

    def _place(self) -> int:
        """An address in its memory, aligned to 8."""
        base, size = self._random.choice(self._ram)
        return base + self._random.randrange(size // 8) * 8

    def _sid(self, driver: SmmuDriver) -> int:
        known = sorted(driver.contexts)
        other = self._random.getrandbits(self._random.choice([3, 8, 16, 32]))
        return self._random.choice([*known, *known, other])

    # Registers.

    def _write(self, driver: SmmuDriver, name: str, value: int) -> None:
        register = BY_NAME[name]
        self._bench.thread.write(driver.base + register.offset, value, register.width // 8)

    def _read(self, driver: SmmuDriver, name: str) -> int:
        register = BY_NAME[name]
        return self._bench.thread.read(driver.base + register.offset, register.width // 8)

    def _poke(self) -> None:
        """Any register or place between them, in any width."""
        r, driver = self._random, self._driver
        offset = r.choice(REGISTERS).offset if r.random() < 0.8 else r.randrange(_WINDOW)
        size = r.choice([4, 4, 4, 8, 8, 1, 2])
        value = self._number() & (1 << 8 * size) - 1
        self._bench.thread.write(driver.base + offset + r.choice([0, 0, 0, 4]), value, size)
        self._bench.thread.read(driver.base + offset, size)

    def _switch(self) -> None:
        """Enables on and off, GBPA, errors acknowledged."""
        r, driver = self._random, self._driver
        for _ in range(r.randrange(1, 4)):
            self._write(driver, "CR0", r.choice(_SWITCHES))
            if r.random() < 0.3:
                self._write(driver, "GBPA", Gbpa.build(update=1, abort=r.getrandbits(1)).raw)
        self._write(driver, "GERRORN", self._read(driver, "GERROR"))

    def _rebase(self) -> None:
        """A queue of any size anywhere."""
        r, driver = self._random, self._driver
        name = r.choice(["CMDQ", "EVENTQ"])
        self._write(driver, "CR0", r.choice(_SWITCHES))
        place = self._number() & (1 << 52) - 32
        base = QueueBase.build(addr=place, log2size=r.choice([0, 4, 8, 8, 19, 31]))
        for register, value in (("BASE", base.raw), ("PROD", r.getrandbits(4)), ("CONS", 0)):
            self._write(driver, f"{name}_{register}", value)
        self._write(driver, "CR0", _ENABLED)

    # Rings.

    def _ring(self, driver: SmmuDriver) -> Ring:
        base = QueueBase(self._read(driver, "CMDQ_BASE"))
        return Ring.of(base.addr, base.log2size, _QUEUE_LOG2_MAX, Command.size)

    def _command(self, driver: SmmuDriver) -> Command:
        r = self._random
        sid = self._sid(driver)
        kind = r.randrange(5)
        if kind == 0:
            return CmdCfgiSte.build(sid=sid, leaf=r.getrandbits(1))
        if kind == 1:
            return r.choice([
                CmdCfgiSteRange.build(sid=sid, range=r.randrange(32)), CmdCfgiCd.build(sid=sid),
                CmdSync.build(),
            ])  # fmt: skip
        opcode = r.choice([*OPCODES, r.randrange(256)])
        if kind == 2:
            # Few bits set: more of these are legal.
            named = CmdCfgiSte.build(sid=sid).replace(op=opcode).words[0]
            return Command((named, r.getrandbits(1) | self._place() & -PAGE))
        return Command((self._number(), self._number())).replace(op=opcode)

    def _commands(self) -> None:
        """Some commands, or a flood of them, and the error before them taken away."""
        r, driver = self._random, self._driver
        if r.random() < 0.6:
            self._write(driver, "GERRORN", self._read(driver, "GERROR"))
        ring, prod = self._ring(driver), self._read(driver, "CMDQ_PROD")
        for _ in range(r.choice([1, 2, 5, _FLOOD])):
            self._bench.memory.write_words(ring.address(prod), self._command(driver).words)
            prod = ring.advance(prod)
        self._write(driver, "CMDQ_PROD", prod)

    def _jump(self) -> None:
        """PROD or CONS anywhere."""
        r, driver = self._random, self._driver
        name = r.choice(["CMDQ_PROD", "CMDQ_PROD", "CMDQ_CONS", "EVENTQ_CONS"])
        ahead = r.choice([1, 255, 256, 257, (1 << 20) - 1, r.getrandbits(20)])
        self._write(driver, name, self._read(driver, "CMDQ_CONS") + ahead & 0xF_FFFF)

    # Structures.

    def _ste(self) -> None:
        """An STE as hardware would not have it, words in any order, sometimes told of."""
        r, driver = self._random, self._driver
        sid = r.choice(sorted(driver.contexts) or [0])
        place = driver.ste_address(sid)
        fields: dict[str, int] = r.choice([
            {"config": r.randrange(8)}, {"config": SteConfig.BYPASS}, {"config": SteConfig.ABORT},
            {"config": SteConfig.S1, "s1ctxptr": self._number() & (1 << 52) - 64},
            {"config": SteConfig.S1, "s1ctxptr": self._place() & -64, "s1fmt": r.randrange(4),
             "s1cdmax": r.choice([0, 1, 31]), "strw": r.randrange(4)},
            {"config": SteConfig.S2, "s2ttb": self._number() & (1 << 52) - 16,
             "s2vmid": r.getrandbits(16), "s2aa64": 1},
        ])  # fmt: skip
        words = list(Ste.build(v=int(r.random() < 0.9), **fields).words)
        if r.random() < 0.3:
            words[r.randrange(8)] ^= 1 << r.randrange(64)
        for index in r.sample(range(8), 8):
            self._bench.memory.write64(place + 8 * index, words[index])
        if r.random() < 0.8:
            self._post(driver, CmdCfgiSte.build(sid=sid, leaf=1), CmdSync.build())

    def _cd(self) -> None:
        """A word of a CD or of a table changed."""
        r, driver = self._random, self._driver
        contexts = [driver.contexts[sid] for sid in sorted(driver.contexts)]
        if not contexts:
            return
        context = r.choice(contexts)
        place = r.choice([
            context.cd + 8 * r.randrange(_CD_WORDS), context.tables.ttb + 8 * r.randrange(512)
        ])  # fmt: skip
        word = self._bench.memory.read64(place) or 0
        changed = r.choice([word ^ 1 << r.randrange(64), self._number() & ~0xFFF | 3])
        self._bench.memory.write64(place, changed & _MASK64)
        if r.random() < 0.5:
            self._post(driver, CmdCfgiCd.build(sid=self._sid(driver), leaf=1), CmdSync.build())

    def _post(self, driver: SmmuDriver, *commands: Command) -> None:
        ring, prod = self._ring(driver), self._read(driver, "CMDQ_PROD")
        for command in commands:
            self._bench.memory.write_words(ring.address(prod), command.words)
            prod = ring.advance(prod)
        self._write(driver, "CMDQ_PROD", prod)

    def _scribble(self) -> None:
        """Words anywhere in its memory."""
        for _ in range(self._random.choice([1, 1, 5])):
            self._bench.memory.write64(self._place(), self._number() & _MASK64)

    def _dma(self) -> None:
        """DMA to any address, not waited for."""
        r = self._random
        device = r.choice(list(self._bench.devices))
        if not device.room:
            return
        iova = r.choice([self._bench.iova, self._number(), self._place()]) & _MASK64
        size = min(r.choice([1, 8, 64, 5000]), (1 << 64) - iova)
        if r.random() < 0.5:
            device.write(iova, r.randbytes(size))
        else:
            device.read(iova, size)
