# SPDX-License-Identifier: BSD-2-Clause
"""Non-secure registers: layouts and the map of pages 0 and 1 (IHI 0070 §6.2, §6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vsmmu.arch.layout import Layout, addr, bit, bits, choice
from vsmmu.arch.names import (
    AddressSize,
    Cacheability,
    InstCfg,
    MemAttr,
    PrivCfg,
    Sh,
)
from vsmmu.arch.stream_table import ShCfg


class Ttf(IntEnum):
    """IDR0.TTF: translation table formats."""

    AARCH32 = 1
    AARCH64 = 2
    BOTH = 3


class StallModel(IntEnum):
    """IDR0.STALL_MODEL."""

    STALL_AND_TERMINATE = 0
    TERMINATE_ONLY = 1
    STALL_FORCED = 2


class TtEndian(IntEnum):
    """IDR0.TTENDIAN."""

    MIXED = 0
    LITTLE = 2
    BIG = 3


class StrtabFmt(IntEnum):
    """STRTAB_BASE_CFG.FMT."""

    LINEAR = 0
    TWO_LEVEL = 1


class Cerror(IntEnum):
    """CMDQ_CONS.ERR (§7.1)."""

    NONE = 0
    ILL = 1
    ABT = 2
    ATC_INV_SYNC = 3


class Idr0(Layout, width=32, spec="IHI 0070 §6.3.1"):
    """Features of stages, formats, models."""

    s2p = bit(0)
    s1p = bit(1)
    ttf = choice(3, 2, Ttf)
    cohacc = bit(4)
    btm = bit(5)
    httu = bits(7, 6)
    dormhint = bit(8)
    hyp = bit(9)
    ats = bit(10)
    ns1ats = bit(11)
    asid16 = bit(12)
    msi = bit(13)
    sev = bit(14)
    atos = bit(15)
    pri = bit(16)
    vmw = bit(17)
    vmid16 = bit(18)
    cd2l = bit(19)
    vatos = bit(20)
    ttendian = choice(22, 21, TtEndian)
    atsrecerr = bit(23)
    stall_model = choice(25, 24, StallModel)
    term_model = bit(26)
    st_level = bits(28, 27)
    rme_impl = bit(30)


class Idr1(Layout, width=32, spec="IHI 0070 §6.3.2"):
    """Sizes of StreamIDs, SubstreamIDs and queues (log2)."""

    sidsize = bits(5, 0)
    ssidsize = bits(10, 6)
    priqs = bits(15, 11)
    eventqs = bits(20, 16)
    cmdqs = bits(25, 21)
    attr_perms_ovr = bit(26)
    attr_types_ovr = bit(27)
    rel = bit(28)
    queues_preset = bit(29)
    tables_preset = bit(30)
    ecmdq = bit(31)


class Idr2(Layout, width=32, spec="IHI 0070 §6.3.3"):
    """Place of the VATOS page: 0x20000 + BA_VATOS * 0x10000 (IDR0.VATOS)."""

    ba_vatos = bits(9, 0)


class Idr3(Layout, width=32, spec="IHI 0070 §6.3.4"):
    """Features since SMMUv3.1."""

    had = bit(2)
    pbha = bit(3)
    xnx = bit(4)
    pps = bit(5)
    mpam = bit(7)
    fwb = bit(8)
    stt = bit(9)
    ril = bit(10)
    bbml = bits(12, 11)
    e0pd = bit(13)
    ptwnnc = bit(14)
    dpt = bit(15)
    pasidtt = bit(16)
    epan = bit(17)
    s1pi = bit(18)
    s2pi = bit(19)
    s2po = bit(20)
    the = bit(21)
    mteperm = bit(22)
    aie = bit(23)


class Idr4(Layout, width=32, spec="IHI 0070 §6.3.5"):
    """IMPLEMENTATION DEFINED."""

    impdef = bits(31, 0)


class Idr5(Layout, width=32, spec="IHI 0070 §6.3.6"):
    """Output address size and granules."""

    oas = choice(2, 0, AddressSize)
    gran4k = bit(4)
    gran16k = bit(5)
    gran64k = bit(6)
    ds = bit(7)
    d128 = bit(8)
    vax = bits(11, 10)
    stall_max = bits(31, 16)


class Iidr(Layout, width=32, spec="IHI 0070 §6.3.7"):
    """Implementation identification."""

    implementer = bits(11, 0)
    revision = bits(15, 12)
    variant = bits(19, 16)
    productid = bits(31, 20)


class Aidr(Layout, width=32, spec="IHI 0070 §6.3.8"):
    """Architecture revision."""

    archminrev = bits(3, 0)
    archmajrev = bits(7, 4)


class Cr0(Layout, width=32, spec="IHI 0070 §6.3.9"):
    """Enables; CR0ACK has the same fields."""

    smmuen = bit(0)
    priqen = bit(1)
    eventqen = bit(2)
    cmdqen = bit(3)
    atschk = bit(4)
    vmw = bits(8, 6)


class Cr1(Layout, width=32, spec="IHI 0070 §6.3.11"):
    """Memory attributes of tables and queues."""

    queue_ic = choice(1, 0, Cacheability)
    queue_oc = choice(3, 2, Cacheability)
    queue_sh = choice(5, 4, Sh)
    table_ic = choice(7, 6, Cacheability)
    table_oc = choice(9, 8, Cacheability)
    table_sh = choice(11, 10, Sh)


class Cr2(Layout, width=32, spec="IHI 0070 §6.3.12"):
    """Behaviour of EL2 contexts, invalid StreamIDs, broadcast maintenance."""

    e2h = bit(0)
    recinvsid = bit(1)
    ptm = bit(2)
    rec_cfg_ats = bit(3)


class Gbpa(Layout, width=32, spec="IHI 0070 §6.3.14"):
    """Attributes of traffic while SMMUEN is 0."""

    memattr = choice(3, 0, MemAttr)
    mtcfg = bit(4)
    alloccfg = bits(11, 8)
    shcfg = choice(13, 12, ShCfg)
    privcfg = choice(17, 16, PrivCfg)
    instcfg = choice(19, 18, InstCfg)
    abort = bit(20)
    update = bit(31)


class IrqCtrl(Layout, width=32, spec="IHI 0070 §6.3.16"):
    """Interrupt enables; IRQ_CTRLACK has the same fields."""

    gerror_irqen = bit(0)
    priq_irqen = bit(1)
    eventq_irqen = bit(2)


class Gerror(Layout, width=32, spec="IHI 0070 §6.3.19"):
    """Global errors; one is active where GERROR and GERRORN differ."""

    cmdq_err = bit(0)
    eventq_abt_err = bit(2)
    priq_abt_err = bit(3)
    msi_cmdq_abt_err = bit(4)
    msi_eventq_abt_err = bit(5)
    msi_priq_abt_err = bit(6)
    msi_gerror_abt_err = bit(7)
    sfm_err = bit(8)


class IrqCfg0(Layout, spec="IHI 0070 §6.3.21"):
    """MSI address; 0 means none."""

    addr = addr(55, 2)


class IrqCfg1(Layout, width=32, spec="IHI 0070 §6.3.22"):
    """MSI payload."""

    data = bits(31, 0)


class IrqCfg2(Layout, width=32, spec="IHI 0070 §6.3.23"):
    """MSI attributes."""

    memattr = choice(3, 0, MemAttr)
    sh = choice(5, 4, Sh)


class StrtabBase(Layout, spec="IHI 0070 §6.3.24"):
    """Stream table base."""

    addr = addr(55, 6)
    ra = bit(62)


class StrtabBaseCfg(Layout, width=32, spec="IHI 0070 §6.3.25"):
    """Stream table format."""

    log2size = bits(5, 0)
    split = bits(10, 6)
    fmt = choice(17, 16, StrtabFmt)


class QueueBase(Layout, spec="IHI 0070 §6.3.26"):
    """CMDQ_BASE, EVENTQ_BASE and PRIQ_BASE."""

    log2size = bits(4, 0)
    addr = addr(55, 5)
    hint = bit(62)


class CmdqProd(Layout, width=32, spec="IHI 0070 §6.3.27"):
    """Command queue producer: index and wrap bit."""

    wr = bits(19, 0)


class CmdqCons(Layout, width=32, spec="IHI 0070 §6.3.28"):
    """Command queue consumer and error."""

    rd = bits(19, 0)
    err = choice(30, 24, Cerror)


class EventqProd(Layout, width=32, spec="IHI 0070 §6.3.95"):
    """Event queue producer and overflow flag."""

    wr = bits(19, 0)
    ovflg = bit(31)


class EventqCons(Layout, width=32, spec="IHI 0070 §6.3.96"):
    """Event queue consumer and overflow acknowledgement."""

    rd = bits(19, 0)
    ovackflg = bit(31)


@dataclass(frozen=True, slots=True)
class Register:
    """A register's place and access rule.

    `guard` names the CR0 or IRQ_CTRL fields that must read 0 (and be acknowledged 0) for a write
    to take effect; SMMUv3.2 ignores such writes otherwise (§6.3). `field_guards` does the same for
    single fields: (fields, guard) pairs. `needs` names identification fields: where one of them is
    0 the register is RES0.
    """

    name: str
    offset: int
    width: int
    writable: bool
    layout: type[Layout]
    guard: tuple[str, ...] = ()
    field_guards: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    needs: tuple[str, ...] = ()


def _ro(name: str, offset: int, layout: type[Layout]) -> Register:
    return Register(name, offset, 32, False, layout)


def _rw(
    name: str, offset: int, layout: type[Layout], *guard: str, needs: tuple[str, ...] = ()
) -> Register:
    return Register(name, offset, layout.width, True, layout, guard, needs=needs)


_CR1_GUARDS = (
    (("table_ic", "table_oc", "table_sh"), ("smmuen",)),
    (("queue_ic", "queue_oc", "queue_sh"), ("cmdqen", "eventqen", "priqen")),
)
PAGE1 = 0x1_0000

REGISTERS: tuple[Register, ...] = (
    _ro("IDR0", 0x000, Idr0),
    _ro("IDR1", 0x004, Idr1),
    _ro("IDR2", 0x008, Idr2),
    _ro("IDR3", 0x00C, Idr3),
    _ro("IDR4", 0x010, Idr4),
    _ro("IDR5", 0x014, Idr5),
    _ro("IIDR", 0x018, Iidr),
    _ro("AIDR", 0x01C, Aidr),
    _rw("CR0", 0x020, Cr0),
    _ro("CR0ACK", 0x024, Cr0),
    Register("CR1", 0x028, 32, True, Cr1, (), _CR1_GUARDS),
    _rw("CR2", 0x02C, Cr2, "smmuen"),
    _rw("GBPA", 0x044, Gbpa),
    _rw("IRQ_CTRL", 0x050, IrqCtrl),
    _ro("IRQ_CTRLACK", 0x054, IrqCtrl),
    _ro("GERROR", 0x060, Gerror),
    _rw("GERRORN", 0x064, Gerror),
    _rw("GERROR_IRQ_CFG0", 0x068, IrqCfg0, "gerror_irqen", needs=("msi",)),
    _rw("GERROR_IRQ_CFG1", 0x070, IrqCfg1, "gerror_irqen", needs=("msi",)),
    _rw("GERROR_IRQ_CFG2", 0x074, IrqCfg2, "gerror_irqen", needs=("msi",)),
    _rw("STRTAB_BASE", 0x080, StrtabBase, "smmuen"),
    _rw("STRTAB_BASE_CFG", 0x088, StrtabBaseCfg, "smmuen"),
    _rw("CMDQ_BASE", 0x090, QueueBase, "cmdqen"),
    _rw("CMDQ_PROD", 0x098, CmdqProd),
    _rw("CMDQ_CONS", 0x09C, CmdqCons, "cmdqen"),
    _rw("EVENTQ_BASE", 0x0A0, QueueBase, "eventqen"),
    _rw("EVENTQ_IRQ_CFG0", 0x0B0, IrqCfg0, "eventq_irqen", needs=("msi",)),
    _rw("EVENTQ_IRQ_CFG1", 0x0B8, IrqCfg1, "eventq_irqen", needs=("msi",)),
    _rw("EVENTQ_IRQ_CFG2", 0x0BC, IrqCfg2, "eventq_irqen", needs=("msi",)),
    _rw("EVENTQ_PROD", PAGE1 + 0x0A8, EventqProd, "eventqen"),
    _rw("EVENTQ_CONS", PAGE1 + 0x0AC, EventqCons),
)

BY_NAME: dict[str, Register] = {r.name: r for r in REGISTERS}

# §6.2: these page-0 offsets may alias the page-1 registers; some drivers rely on it.
PAGE0_ALIASES = {0x0A8: PAGE1 + 0x0A8, 0x0AC: PAGE1 + 0x0AC}

# CoreSight identification at the end of page 0 (CIDRn are fixed).
CORESIGHT = {0xFF0: 0x0D, 0xFF4: 0xF0, 0xFF8: 0x05, 0xFFC: 0xB1}

# IDR5.OAS and STE.S2PS, CD.IPS encodings to bits.
OAS_BITS = (32, 36, 40, 42, 44, 48, 52, 56)
