# SPDX-License-Identifier: BSD-2-Clause
"""What a hostile guest does with features beyond plain translation, and with its stage 2."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vsmmu.arch.commands import (
    CmdAtcInv,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    Command,
    Cs,
)
from vsmmu.arch.pri import PriEntry
from vsmmu.hypervisor.jobs import Job
from vsmmu.memory import PAGE

from .fuzz_devices import AtsDevice
from .fuzz_guest import (
    CDS,
    DATA,
    HIGH,
    IOVA,
    MAILBOX,
    RAM,
    RAM_PAGES,
    SYNC,
    WINDOW,
    WINDOW_PAGES,
)
from .fuzz_hostile import Hostile
from .fuzz_memory import STAGS, plain

if TYPE_CHECKING:
    from .fuzz_isolation import World

SOURCES = ("EVENTQ", "GERROR", "PRIQ")


class Rogue(Hostile):
    """Its moves; those that its vSMMU does not advertise it tries as well, if less often."""

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        rich = self.stalls or self.ats or self.msi
        r = self.random
        if rich and r.random() < 0.8:
            self.ste_fields = {"eats": int(self.ats), "ppar": int(self.pri and r.getrandbits(1))}
            self.cd_fields = {"s": int(self.stalls), "ha": r.getrandbits(1), "hd": r.getrandbits(1)}
        # Where it mapped grants lately.
        self.places: deque[int] = deque(maxlen=3)
        # As often as they are here.
        self.moves: tuple[Callable[[Rogue], None], ...] = MOVES + STAGE2
        self.moves += FEATURES if rich else FEATURES[:1]

    # Answers.

    def answer(self) -> None:
        """To what it was told, and to what it was not."""
        r = self.random
        self.acknowledge()
        self.write("PRIQ_CONS", self.read("PRIQ_PROD"))
        commands = [r.choice(ANSWERS)(self) for _ in range(r.choice([1, 2, 5]))]
        self.post([*commands, SYNC][: r.choice([5, 6])])

    def _resume(self) -> Command:
        r = self.random
        sid, stag = r.choice(self.told) if self.told and r.random() < 0.7 else (
            self.stream(), r.choice([*range(8), *STAGS])
        )  # fmt: skip
        if r.random() < 0.15:
            sid = self.stream()
        if self.world.memory.blind and stag in STAGS:
            stag = 0
        return CmdResume.build(sid=sid, stag=stag, ac=r.getrandbits(1), ab=r.getrandbits(1))

    def _stall_term(self) -> Command:
        return CmdStallTerm.build(sid=self.stream())

    def _pri_resp(self) -> Command:
        r = self.random
        if self.paged and r.random() < 0.7:
            sid, group, ssid = r.choice(self.paged)
        else:
            sid, group, ssid = self.stream(), r.choice([0, 1, 2, 3, r.randrange(512)]), None
        if r.random() < 0.1:
            sid = self.stream()
        fields = {"ssv": 1, "ssid": ssid or r.randrange(8)} if ssid or r.random() < 0.1 else {}
        resp = r.choice([0, 1, 2, 2, 2, 2]) if r.random() < 0.97 else 3
        return CmdPriResp.build(sid=sid, prgindex=group, resp=resp, **fields)

    def _atc_inv(self) -> Command:
        r = self.random
        fields = {"ssv": 1, "ssid": r.randrange(8), "globl": r.getrandbits(1)}
        return CmdAtcInv.build(
            sid=self.stream(), size_lg2=r.choice([0, 0, 3, 52, 52, r.randrange(64)]),
            addr=r.choice([IOVA, self.number() & (1 << 64) - PAGE]),
            **(fields if r.random() < 0.3 else {}),
        )  # fmt: skip

    def _sync(self) -> Command:
        r = self.random
        place = r.choice([MAILBOX, MAILBOX + 4 * r.randrange(1024), self.number()])
        return CmdSync.build(
            cs=r.choice([Cs.IRQ, Cs.IRQ, Cs.SEV, Cs.NONE]), msidata=plain(r.getrandbits(32)),
            msiaddress=place & (1 << 52) - 4,
        )  # fmt: skip

    def message(self) -> None:
        """Interrupts as messages, to its memory and to anywhere."""
        r = self.random
        self.write("IRQ_CTRL", r.choice([0, 0, 7]))
        name = r.choice(SOURCES)
        place = r.choice([0, MAILBOX, self.number(), self.number()]) & (1 << 52) - 4
        self.write(f"{name}_IRQ_CFG0", place)
        self.write(f"{name}_IRQ_CFG1", plain(r.getrandbits(32)))
        self.write("IRQ_CTRL", 7)

    # Contexts.

    def recast(self) -> None:
        """CDs that stall, that have hardware update flags; several of them behind one STE."""
        r = self.random
        slot = r.randrange(8)
        fields = {"s": r.getrandbits(1), "ha": r.getrandbits(1), "hd": r.getrandbits(1)}
        self.memory.write_words(CDS + 64 * slot, self.cd(slot, **fields, r=r.getrandbits(1)).words)
        sid = self.ids[slot]
        if r.random() < 0.5:
            ste = self.ste(
                sid, s1cdmax=r.choice([0, 1, 2]), s1dss=r.choice([0, 1, 2]), s1fmt=0,
                eats=r.getrandbits(1), s1stalld=int(r.random() < 0.2), ppar=r.getrandbits(1),
            )  # fmt: skip
            self.put_ste(sid, ste)
        self.post([CmdCfgiCdAll.build(sid=sid), CmdCfgiSte.build(sid=sid, leaf=1), SYNC])

    # Devices.

    def forge(self) -> None:
        """A device of its own says what it likes, or nothing at all."""
        r = self.random
        devices = [device for device in self.devices if isinstance(device, AtsDevice)]
        if not devices:
            return
        device = r.choice(devices)
        device.ways = r.choice([("plain",), ("ats",), ("ats",), ("plain", "ats", "forged")])
        device.silent = r.random() < 0.04
        place = r.choice([DATA, WINDOW, self.number()]) & (1 << 64) - PAGE
        if r.random() < 0.5 and device.pending < 30:
            device.ways = ("forged",)
            device.write(place, b"forged") if r.random() < 0.5 else device.read(place, 64)
        if device.pages:
            for _ in range(r.choice([0, 1, 3, 20])):
                device.forge(self._page_request(device.sid))

    def _page_request(self, sid: int) -> PriEntry:
        r = self.random
        return PriEntry.build(
            sid=sid, prgindex=r.choice([0, 1, 2, r.randrange(512)]), last=int(r.random() < 0.9),
            r=r.getrandbits(1), w=r.getrandbits(1), ssv=int(r.random() < 0.3),
            ssid=r.randrange(8), priv=r.getrandbits(1), x=r.getrandbits(1),
            addr=plain(r.getrandbits(40)) & -PAGE,
        )  # fmt: skip

    def flood(self) -> None:
        """A device does nothing but fault for a while."""
        r = self.random
        if self.devices:
            device = r.choice(self.devices)
            if device.pending < 8:
                device.read(
                    r.choice([0x8000_0000, IOVA + 0x1000, WINDOW]), PAGE * r.choice([9, 80])
                )

    # Stage 2.

    def _started(self, kind: str, job: Job[Any]) -> None:
        self.estate.jobs.append((kind, job))

    def _page(self) -> int:
        """A page of its address space, most often one that its devices use."""
        r = self.random
        return r.choice([
            DATA + (r.randrange(8) << 12), DATA + (r.randrange(8) << 12),
            WINDOW + (r.randrange(WINDOW_PAGES) << 12), RAM + (r.randrange(RAM_PAGES) << 12),
            HIGH + (r.randrange(8) << 12), self.number() & (1 << 48) - PAGE, *self.places,
        ])  # fmt: skip

    def balloon(self) -> None:
        """Pages given up and taken back, in any order, while devices and queues use them."""
        r, calls = self.random, self.world.hypervisor.hypercalls
        if r.random() < 0.5:
            self.dma()
        for _ in range(r.choice([1, 1, 2, 3])):
            page, count = self._page(), r.choice([1, 1, 1, 2, 8, 70])
            if r.random() < 0.03:
                page, count = r.choice([(-PAGE, 2), (page + 8, 1), (page, 0), (0, 1 << 60)])
            if r.random() < 0.5:
                self._started("taken", calls.decrease_reservation(self.domain, page, count * PAGE))
            else:
                self._started("given", calls.populate_physmap(self.domain, page, count * PAGE))
            if r.random() < 0.4:
                self.world.turns(r.randrange(30))

    def share(self) -> None:
        """Grants to the others and to itself, mapped and unmapped."""
        r, calls = self.random, self.world.hypervisor.hypercalls
        others = [guest.domain.domid for guest in self.world.guests]
        for _ in range(r.choice([1, 2, 3])):
            kind, readonly = r.randrange(8), r.random() < 0.4
            if kind < 2:
                grantee = r.choice([*others, self.domain.domid, r.randrange(9)])
                calls.grant_foreign_access(self.domain, grantee, self._page(), readonly=readonly)
            elif kind == 2:
                calls.end_foreign_access(self.domain, r.randrange(4))
            elif kind < 6:
                place = r.choice([WINDOW + (r.randrange(WINDOW_PAGES) << 12), self._page()])
                granter, reference = r.choice([*others, r.randrange(9)]), r.choice([0, 0, 1, 2, 3])
                self.places.append(place & (1 << 48) - PAGE)
                self._started("grant mapped", calls.map_grant_ref(
                    self.domain, place, granter, reference, readonly=readonly
                ))  # fmt: skip
            else:
                handle = r.choice([0, 0, 1, 2, 7])
                self._started("grant unmapped", calls.unmap_grant_ref(self.domain, handle))
            if r.random() < 0.3:
                self.world.turns(r.randrange(30))


ANSWERS = (
    *[Rogue._resume] * 3, Rogue._stall_term, *[Rogue._pri_resp] * 3, *[Rogue._atc_inv] * 2,
    Rogue._sync,
)  # fmt: skip
# As often as they are here.
MOVES = (
    *[Hostile.poke] * 2, Hostile.switch, *[Hostile.commands] * 3, Hostile.jump, Hostile.point,
    Hostile.race, *[Hostile.rewrite_ste] * 3, *[Hostile.rewrite_cd] * 2,
    *[Hostile.rewrite_table] * 2, Hostile.scribble, *[Hostile.dma] * 6,
)  # fmt: skip
STAGE2 = (*[Rogue.balloon] * 2, *[Rogue.share] * 2, Rogue.flood)
FEATURES = (*[Rogue.answer] * 4, Rogue.message, *[Rogue.recast] * 2, *[Rogue.forge] * 3)
