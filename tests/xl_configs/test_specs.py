# SPDX-License-Identifier: BSD-2-Clause
"""The little languages: what they read, and the text of each refusal."""

from __future__ import annotations

import pytest

from xl_configs import Iomem, PciSpec, SpecError, parse_spec
from xl_configs.specs import KINDS
from xl_configs.specs.scan import U64_MAX, scan_number


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("0xff000,0x10@0", Iomem(0xFF000, 16, 0)),
        ("ff000,10", Iomem(0xFF000, 16, 0xFF000)),
        (" FF000, 1", Iomem(0xFF000, 1, 0xFF000)),
        ("1,0", Iomem(1, 0, 1)),
        ("1,1@ 2", Iomem(1, 1, 2)),
        ("-1,1", Iomem(U64_MAX, 1, U64_MAX)),
        ("1" + "0" * 5000 + ",1", Iomem(U64_MAX, 1, U64_MAX)),
        ("0" * 5000 + "7,1", Iomem(7, 1, 7)),
    ],
)
def test_iomem(text: str, entry: Iomem) -> None:
    assert parse_spec("iomem", text) == entry


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ff000",
        "ff000,",
        "ff000,g",
        "ff000,1@",
        "1,1@zz",
        "1,1@1 ",
        "1 ,1",
        "1,1,nGnRE",
        "1@2,1",
    ],
)
def test_iomem_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("iomem", text)
    assert caught.value.report == (f"xl: Invalid argument parsing iomem: {text}",)


def test_irq() -> None:
    assert [parse_spec("irqs", text) for text in ("53", "035", "+5", " 7", "4294967294")] == [
        53,
        35,
        5,
        7,
        0xFFFFFFFE,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "xl: Invalid argument parsing irq: "),
        ("0x35", "xl: Invalid argument parsing irq: 0x35"),
        ("5 ", "xl: Invalid argument parsing irq: 5 "),
        ("4294967295", "xl: irq ffffffff too big"),
        ("-1", "xl: irq ffffffffffffffff too big"),
        ("9" * 5000, "xl: irq ffffffffffffffff too big"),
    ],
)
def test_irq_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("irqs", text)
    assert caught.value.report == (message,)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("01:00.0", PciSpec(bus=1, vfunc_mask=1)),
        ("ffff:ff:1f.7@1f", PciSpec(0xFFFF, 0xFF, 0x1F, 7, 1, vdevfn=0xF8)),
        ("01:00.*,permissive=1,seize=yes,", PciSpec(bus=1, vfunc_mask=0xFFFFFFFF, permissive=True)),
        ("vslot=7,bdf=01:00.0@3junk", PciSpec(bus=1, vfunc_mask=1, vdevfn=56)),
        ("1:0.0,rdm_policy=Relaxed", PciSpec(bus=1, vfunc_mask=1, rdm_policy="relaxed")),
        ("1:0.0,power_mgmt=1,msitranslate=2", PciSpec(0, 1, 0, 0, 1, 0, False, True, True)),
        ("name=", PciSpec(name="")),
    ],
)
def test_pci(text: str, spec: PciSpec) -> None:
    assert parse_spec("pci", text) == spec


@pytest.mark.parametrize(
    ("text", "code", "report"),
    [
        ("", -6, ()),
        ("10000:00:00.0", -6, ()),
        ("100:00.0", -6, ()),
        ("00:20.0", -6, ()),
        ("00:00.8", -6, ()),
        ("00:00.", -6, ()),
        ("00:00", -6, ()),
        (" 00:00.0", -6, ()),
        ("0x1:00.0", -6, ()),
        ("00:00.0@20", -6, ()),
        ("00:00.0@", -6, ()),
        ("00:00.0 ", -6, ()),
        ("00:00.0,permissive", -6, ()),
        ("00:00.0,,", -6, ()),
        ("00:00.0,vslot=20", -6, ()),
        ("bdf=x", -6, ()),
        ("permissive=1", -6, ()),
        ("01:00.0,name=x", -6, ()),
        ("01:00.0, seize=1", -6, ("Unknown PCI_SPEC_STRING option:  seize",)),
        ("01:00.0,rdm_policy=bogus", -3, ("Unknown RDM policy: bogus",)),
    ],
)
def test_pci_refused(text: str, code: int, report: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("pci", text)
    assert (caught.value.code, caught.value.report) == (code, report)


def test_dtdev_is_taken_as_it_is() -> None:
    assert parse_spec("dtdev", "soc//x ") == "soc//x "


def test_unknown_kind() -> None:
    kinds = ", ".join(KINDS)
    with pytest.raises(ValueError, match=rf"^unknown kind 'floppy'; one of {kinds}$"):
        parse_spec("floppy", "x")


@pytest.mark.parametrize(
    ("text", "base", "read"),
    [
        ("0200", 0, (128, 4)),
        ("0x1G", 0, (1, 3)),
        ("08", 0, (0, 1)),
        ("0x", 0, (0, 1)),
        ("0x", 16, (0, 2)),
        (" -5 ", 10, (-5, 3)),
        ("x", 10, None),
        ("٣", 10, None),
    ],
)
def test_scan_number(text: str, base: int, read: tuple[int, int] | None) -> None:
    assert scan_number(text, 0, base) == read
