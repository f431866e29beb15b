# SPDX-License-Identifier: BSD-2-Clause
"""Non-secure registers that exist with a feature only (IHI 0070 §6.2, §6.3).

`FEATURE_REGISTERS` are those of features that an SMMU of this project may have: PRI, ATOS,
DORMHINT. `REFUSED_REGISTERS` belong to features that are refused everywhere; they are RES0 and are
here for diagnostics. `registers.REGISTERS` are those that every SMMU has.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from vsmmu.arch.layout import Layout, addr, bit, bits, choice
from vsmmu.arch.names import Sh
from vsmmu.arch.registers import (
    BY_NAME,
    PAGE1,
    REGISTERS,
    EventqCons,
    EventqProd,
    Gerror,
    IrqCfg0,
    IrqCfg1,
    IrqCfg2,
    QueueBase,
    Register,
)


class Statusr(Layout, width=32, spec="IHI 0070 §6.3.13"):
    """Dormant state (IDR0.DORMHINT)."""

    dormant = bit(0)


class PriqIrqCfg2(IrqCfg2, spec="IHI 0070 §6.3.36"):
    """MSI attributes of the PRI queue; `lo` means something for wired interrupts too."""

    lo = bit(31)


class AtosType(IntEnum):
    """GATOS_ADDR.TYPE."""

    STAGE1 = 1
    STAGE2 = 2
    BOTH = 3


class GatosCtrl(Layout, width=32, spec="IHI 0070 §6.3.37"):
    """Starts an address translation operation."""

    run = bit(0)


class GatosSid(Layout, spec="IHI 0070 §6.3.38"):
    """Whose address is translated."""

    streamid = bits(31, 0)
    substreamid = bits(51, 32)
    ssid_valid = bit(52)


class GatosAddr(Layout, spec="IHI 0070 §6.3.39"):
    """Which address is translated, and for what kind of access."""

    httui = bit(6)
    ind = bit(7)
    rnw = bit(8)
    pnu = bit(9)
    type = choice(11, 10, AtosType)
    addr = addr(63, 12)


class GatosPar(Layout, spec="IHI 0070 §6.3.40"):
    """The result when FAULT is 0."""

    fault = bit(0)
    sh = choice(9, 8, Sh)
    size_flag = bit(11)
    addr = addr(55, 12)
    attr = bits(63, 56)


class GatosParFault(Layout, spec="IHI 0070 §6.3.40"):
    """The result when FAULT is 1."""

    fault = bit(0)
    reason = bits(2, 1)
    faultcode = bits(11, 4)
    faddr = addr(55, 12)
    impdef = bits(63, 60)


class GerrorAll(Gerror, spec="IHI 0070 §6.3.19"):
    """GERROR and GERRORN with the bits of refused features, RES0 here."""

    cmdqp_err = bit(9)
    dpt_err = bit(10)


class Unmodelled(Layout, width=32, spec="IHI 0070 §6.2"):
    """A register of a refused feature: RES0."""


class Unmodelled64(Layout, spec="IHI 0070 §6.2"):
    """A 64-bit register of a refused feature: RES0."""


def _register(
    name: str, offset: int, layout: type[Layout], *needs: str, guard: str = "", ro: bool = False
) -> Register:
    guards = (guard,) if guard else ()
    return Register(name, offset, layout.width, not ro, layout, guards, needs=needs)


_GATOS = (
    _register("GATOS_CTRL", 0x100, GatosCtrl, "atos"),
    _register("GATOS_SID", 0x108, GatosSid, "atos"),
    _register("GATOS_ADDR", 0x110, GatosAddr, "atos"),
    _register("GATOS_PAR", 0x118, GatosPar, "atos", ro=True),
)

# CFG2 exists without IDR0.MSI for the sake of LO, which wired interrupts obey too (§6.3.36).
FEATURE_REGISTERS: tuple[Register, ...] = (
    _register("STATUSR", 0x040, Statusr, "dormhint", ro=True),
    _register("PRIQ_BASE", 0x0C0, QueueBase, "pri", guard="priqen"),
    _register("PRIQ_IRQ_CFG0", 0x0D0, IrqCfg0, "msi", "pri", guard="priq_irqen"),
    _register("PRIQ_IRQ_CFG1", 0x0D8, IrqCfg1, "msi", "pri", guard="priq_irqen"),
    _register("PRIQ_IRQ_CFG2", 0x0DC, PriqIrqCfg2, "pri", guard="priq_irqen"),
    *_GATOS,
    _register("PRIQ_PROD", PAGE1 + 0x0C8, EventqProd, "pri", guard="priqen"),
    _register("PRIQ_CONS", PAGE1 + 0x0CC, EventqCons, "pri"),
)

REFUSED_REGISTERS: tuple[Register, ...] = (
    _register("S2PII", 0x030, Unmodelled64, "s2pi"),
    _register("AGBPA", 0x048, Unmodelled),
    _register("MPAMIDR", 0x130, Unmodelled, "mpam", ro=True),
    _register("GMPAM", 0x138, Unmodelled, "mpam"),
    _register("GBPMPAM", 0x13C, Unmodelled, "mpam"),
    _register("VATOS_SEL", 0x180, Unmodelled, "vatos"),
    _register("IDR6", 0x190, Unmodelled, "ecmdq", ro=True),
    _register("DPT_BASE", 0x200, Unmodelled64, "dpt"),
    _register("DPT_BASE_CFG", 0x208, Unmodelled, "dpt"),
    _register("DPT_CFG_FAR", 0x210, Unmodelled64, "dpt"),
)

EVERY_REGISTER: tuple[Register, ...] = (*REGISTERS, *FEATURE_REGISTERS, *REFUSED_REGISTERS)


def present(values: Mapping[str, int]) -> tuple[Register, ...]:
    """The registers of an SMMU with these values of IDR0, IDR1 and IDR3, by name."""
    idrs = [BY_NAME[name].layout((values.get(name, 0),)) for name in ("IDR0", "IDR1", "IDR3")]
    return (
        *REGISTERS,
        *(
            register
            for register in FEATURE_REGISTERS
            if all(any(getattr(idr, need, 0) for idr in idrs) for need in register.needs)
        ),
    )


# Page 0 offsets that may alias page 1 with PRI (§6.2), beside `registers.PAGE0_ALIASES`.
PRI_PAGE0_ALIASES = {0x0C8: PAGE1 + 0x0C8, 0x0CC: PAGE1 + 0x0CC}
