# SPDX-License-Identifier: BSD-2-Clause
"""Meaning: defaults, getters, refusals and warnings, with their texts."""

from __future__ import annotations

import pytest

from xl_configs import (
    ConfigError,
    Diagnostic,
    Dialect,
    GuestConfig,
    Host,
    Iomem,
    PciSpec,
    examine,
    load,
    parse,
)
from xl_configs.keys import KEYS, KNOWN_KEYS, PSEUDO_KEYS, Getter
from xl_configs.specs.devices import Virtio
from xl_configs.specs.disk import Disk

BASE = b'name="d"\nkernel="/k"\n'


def guest(text: str, *overrides: str) -> GuestConfig:
    return load(BASE + text.encode(), "d.cfg", overrides)


def refusal(text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(BASE + text.encode("utf-8", "surrogateescape"), "d.cfg", overrides)
    return caught.value


def ids(config: GuestConfig) -> list[tuple[str, int | None]]:
    return [(warning.id, warning.line) for warning in config.warnings]


def test_defaults() -> None:
    assert guest("") == GuestConfig(name="d", kernel="/k")


def test_every_key() -> None:
    config = guest(
        """\
type = "pvh"
memory = 0x100
maxmem = 512
vcpus = 2
maxvcpus = 4
ramdisk = "/r"
device_tree = "/p.dtb"
root = "/dev/xvda"
extra = "ro"
dtdev = ["/soc/eth@1", "/soc/eth@2"]
iomem = ["fd010,1@fd000", "0xfe000,2"]
irqs = [112, "0113"]
pci_permissive = 1
pci = ["0000:01:00.0", "02:00.*,permissive=0"]
passthrough = "Enabled"
viommu = "SMMUv3"
gic_version = "V3"
vuart = "sbsa_uart"
tee = "optee"
nr_spis = 200
virtio = ["type=virtio,device26,transport=mmio"]
disk = ["/dev/x,,xvda"]
on_crash = "preserve"
on_reboot = "destroy"
"""
    )
    assert config == GuestConfig(
        name="d",
        type="pvh",
        memory_mib=256,
        maxmem_mib=512,
        vcpus=2,
        maxvcpus=4,
        kernel="/k",
        ramdisk="/r",
        device_tree="/p.dtb",
        cmdline="root=/dev/xvda ro",
        dtdev=("/soc/eth@1", "/soc/eth@2"),
        iomem=(Iomem(0xFD010, 1, 0xFD000), Iomem(0xFE000, 2, 0xFE000)),
        irqs=(112, 113),
        pci=(
            PciSpec(bus=1, vfunc_mask=1, permissive=True),
            PciSpec(bus=2, vfunc_mask=0xFFFFFFFF),
        ),
        passthrough="enabled",
        viommu="smmuv3",
        gic_version="v3",
        vuart="sbsa_uart",
        tee="optee",
        nr_spis=200,
        virtio=(Virtio(type="virtio,device26", transport="mmio", devid=0),),
        disk=(Disk(pdev_path="/dev/x", vdev="xvda", format="raw", readwrite=1),),
        on_crash="preserve",
        on_reboot="destroy",
    )


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("maxmem=64", "memory_mib", 64),
        ("memory=0", "memory_mib", 0),
        ('memory="0X40"', "memory_mib", 64),
        ("memory=0200", "memory_mib", 128),
        ("vcpus=0\nmaxvcpus=3", "maxvcpus", 3),
        ("vcpus=3", "maxvcpus", 3),
        ("vcpus=3\nmaxvcpus=0", "maxvcpus", 3),
        ('cmdline=""', "cmdline", ""),
        ('root=""\nextra=""', "cmdline", "root= "),
        ('root="r"', "cmdline", "root=r"),
        ('extra="e"\nextra+=" f"', "cmdline", "e f"),
        ("nr_spis=4294967295", "nr_spis", None),
        ("nr_spis=4294967297", "nr_spis", 1),
        ('vuart="unknown"', "vuart", None),
        ("dtdev+=['/a']\ndtdev+=['/b']", "dtdev", ("/a", "/b")),
        ("dtdev=['']", "dtdev", ("",)),
        ('device_tree=""', "device_tree", ""),
    ],
)
def test_values(text: str, attribute: str, value: object) -> None:
    config = guest(text)
    assert getattr(config, attribute) == value
    assert config.warnings == ()


def test_a_kernel_may_come_from_elsewhere() -> None:
    assert load(b"name='d'\nbootloader='pygrub'\n", "c").kernel is None
    assert load(b"name='d'\nfirmware='pvgrub64'\n", "c").kernel is None
    assert load(b"name='d'\ntype='hvm'\n", "c").type == "hvm"


def test_overrides_are_settings_after_the_file() -> None:
    text = "memory=64\ndtdev=['/a']\n# no line feed"
    config = guest(text, "memory=128", "dtdev+=['/b']", "vcpus=2;maxvcpus=4")
    assert (config.memory_mib, config.dtdev, config.maxvcpus) == (128, ("/a", "/b"), 4)
    assert guest("memory=64", 'name="ü"').name == "ü"
    # Two lines of the file, one blank one, then the override.
    assert str(refusal("", "memory=x")) == (
        "d.cfg:4: near `x': syntax error, unexpected IDENT, expecting STRING or NUMBER or '['; "
        "give the key a quoted string, a number or a [list] on the same line"
    )


@pytest.mark.parametrize(
    ("text", "message", "report", "code"),
    [
        (
            "memory=\n",
            "d.cfg:3: near <newline>: syntax error, unexpected NEWLINE, expecting STRING or NUMBER "
            "or '['; give the key a quoted string, a number or a [list] on the same line",
            (
                "d.cfg:2: config parsing error near <newline>: syntax error, unexpected NEWLINE, "
                "expecting STRING or NUMBER or '['",
                "Failed to parse config: Invalid argument",
            ),
            1,
        ),
        (
            "vcpus=2 \r\n",
            "d.cfg:3: near `\\r': lexical error; end lines with a line feed alone, without a "
            "carriage return",
            (
                "d.cfg:3: config parsing error near `\r': lexical error",
                "Failed to parse config: Invalid argument",
            ),
            1,
        ),
        (
            "vcpus=len([1])\n",
            "d.cfg:3: near `len': syntax error, unexpected IDENT, expecting STRING or NUMBER or "
            "'['; write plain key = value settings; xl runs no Python",
            (
                "d.cfg:3: config parsing error near `len': syntax error, unexpected IDENT, "
                "expecting STRING or NUMBER or '['",
                "d.cfg:3: config parsing error near `([1])': lexical error",
                "warning: Config file looks like it contains Python code.",
                "warning:  Arbitrary Python is no longer supported.",
                "warning:  See https://wiki.xen.org/wiki/PythonInXlConfig",
                "Failed to parse config: Invalid argument",
            ),
            1,
        ),
        (
            "type='linux'",
            'd.cfg:3: Invalid domain type linux; use type="pvh", the only one for Arm, or leave '
            "the key out",
            ("Invalid domain type linux.",),
            1,
        ),
        (
            "type='pvh'\nbuilder='hvm'",
            'd.cfg:4: Contradicting "builder" and "type" options specified; leave builder out; '
            "it is deprecated",
            ('Contradicting "builder" and "type" options specified.',),
            1,
        ),
        (
            "vcpus=4\nmaxvcpus=2",
            "d.cfg:4: xl: maxvcpus < vcpus; make maxvcpus at least 4 or leave it out",
            ("xl: maxvcpus < vcpus",),
            1,
        ),
        (
            'vcpus="-1"',
            "d.cfg:3: Unable to allocate cpumap; use 1 or more",
            (
                "libxl: error: libxl_utils.c:812:libxl_cpu_bitmap_alloc: invalid number of cpus "
                "provided",
                "Unable to allocate cpumap",
            ),
            1,
        ),
        (
            "vcpus=200000",
            "d.cfg:3: 200000 vCPUs are too many; use 1 to 128",
            ("200000 vCPUs are too many",),
            1,
        ),
        (
            "vuart='pl011'",
            'd.cfg:3: ERROR: invalid value "pl011" for "vuart"; use vuart="sbsa_uart" or leave the '
            "key out",
            ('ERROR: invalid value "pl011" for "vuart"',),
            1,
        ),
        (
            "on_crash='Destroy'",
            'd.cfg:3: Unknown on_crash action "Destroy" specified; use one of destroy, restart, '
            "rename-restart, preserve, coredump-destroy, coredump-restart, soft-reset",
            ('Unknown on_crash action "Destroy" specified',),
            1,
        ),
        (
            "pci=['01:00.0,foo=1']",
            "d.cfg:3: Unknown PCI_SPEC_STRING option: foo: unable to parse PCI_SPEC_STRING "
            "`01:00.0,foo=1' for passthrough; write [DDDD:]BB:DD.F[@SLOT][,KEY=VALUE]* in hex, "
            "without blanks",
            (
                "Unknown PCI_SPEC_STRING option: foounable to parse PCI_SPEC_STRING "
                "`01:00.0,foo=1' for passthrough",
            ),
            6,
        ),
        (
            "passthrough=1",
            "d.cfg:3: ERROR: unknown passthrough option '1'; use default, disabled, enabled or "
            "share_pt",
            ("ERROR: unknown passthrough option '1'",),
            1,
        ),
        (
            "firmware='pvgrub64'",
            "d.cfg:3: ERROR: both kernel and firmware specified; keep one of them",
            ("ERROR: both kernel and firmware specified",),
            1,
        ),
        (
            "irqs=[53,['54']]",
            "d.cfg:3: xl: Unable to get element 1 in irq list; list decimal interrupt numbers, as "
            "in irqs=[112, 113]",
            ("xl: Unable to get element 1 in irq list",),
            1,
        ),
        (
            "irqs=[\n'x',['54']]",
            "d.cfg:3: xl: Invalid argument parsing irq: x; list decimal interrupt numbers, as in "
            "irqs=[112, 113]",
            ("xl: Invalid argument parsing irq: x",),
            1,
        ),
        (
            "iomem=['1,1,arm_mem_WB']",
            "d.cfg:3: xl: Invalid argument parsing iomem: 1,1,arm_mem_WB; list frames in hex, as "
            'in iomem=["fd010,1@fd000"], with nothing behind',
            ("xl: Invalid argument parsing iomem: 1,1,arm_mem_WB",),
            1,
        ),
        (
            "gic_version=3",
            'd.cfg:3: Unknown gic_version "3" specified; use default, v2 or v3',
            ('Unknown gic_version "3" specified',),
            3,
        ),
        (
            "tee='native'",
            'd.cfg:3: Unknown tee "native" specified; use none, optee or ffa',
            ('Unknown tee "native" specified',),
            3,
        ),
        (
            "viommu='smmuv2'",
            'd.cfg:3: Unknown vIOMMU type "smmuv2" specified; use none or smmuv3',
            ('Unknown vIOMMU type "smmuv2" specified',),
            3,
        ),
        (
            "virtio=['type=x', 'transport=pci']",
            "d.cfg:3: virtio entry 'transport=pci' is refused by xl; write "
            'virtio=["type=virtio,device26,transport=mmio", ...]',
            (),
            1,
        ),
        (
            "viommu='\udcff\\t" + "x" * 1000 + "'",
            'd.cfg:3: Unknown vIOMMU type "\\udcff\\t'
            + "x" * 57
            + "[...]"
            + "x" * 29
            + '" specified; use none or smmuv3',
            ('Unknown vIOMMU type "\udcff\t' + "x" * 1000 + '" specified',),
            3,
        ),
    ],
)
def test_refusals(text: str, message: str, report: tuple[str, ...], code: int) -> None:
    error = refusal(text)
    assert str(error) == message
    assert error.report == report
    assert error.exit_code == code


def test_refusals_about_something_absent() -> None:
    with pytest.raises(ConfigError) as caught:
        load(b"kernel='/k'\n", "c")
    assert str(caught.value) == 'c: Domain name must be specified; add name="..."'
    assert caught.value.line is None
    with pytest.raises(ConfigError) as caught:
        load(b"name='d'\n", "c")
    assert str(caught.value) == ('c: Neither kernel nor bootloader specified; add kernel="PATH"')
    with pytest.raises(ConfigError) as caught:
        load(BASE, "c", max_size=4)
    assert str(caught.value) == f"c: {len(BASE)} bytes, the limit is 4; make the file smaller"
    assert str(refusal("", "memory")) == (
        "d.cfg: override 'memory' sets nothing; write it as key=value"
    )
    assert str(refusal("", "name='\ud800'")) == (
        "d.cfg: an override is not text; pass it in UTF-8 or raw bytes"
    )


def test_xls_order_decides_the_first_error() -> None:
    assert "on_crash" in refusal("viommu='x'\niomem=['x']\nirqs=['x']\non_crash='x'").reason
    assert "irq" in refusal("viommu='x'\niomem=['x']\nirqs=['x']").reason
    assert "iomem" in refusal("viommu='x'\niomem=['x']").reason


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "vcpis=2",
            Diagnostic("XL101", 3, "vcpis: unknown key, ignored by xl; did you mean vcpus?"),
        ),
        (
            "arm_vuart='x'",
            Diagnostic("XL101", 3, "arm_vuart: unknown key, ignored by xl; did you mean vuart?"),
        ),
        ("vgsx=1", Diagnostic("XL101", 3, "vgsx: unknown key, ignored by xl")),
        (
            "dtdev='/a'",
            Diagnostic(
                "XL102",
                3,
                "dtdev: one value where a list belongs; xl ignores the key, so write dtdev=[...]",
                "d.cfg:3: warning: parameter `dtdev' is a single value but should be a list",
            ),
        ),
        (
            "dtdev=['/a',['/b'],'/c']",
            Diagnostic(
                "XL103",
                3,
                "dtdev: element 1 is itself a list; xl stops there and ignores the 2 from it on",
            ),
        ),
        (
            "ramdisk=['/r']",
            Diagnostic(
                "XL104",
                3,
                "ramdisk: a list where one value belongs; xl ignores the key, so take the "
                "brackets away",
                "d.cfg:3: warning: parameter `ramdisk' is a list but should be a single value",
            ),
        ),
        (
            "viommu=['smmuv3']",
            Diagnostic(
                "XL104",
                3,
                "viommu: a list where one value belongs; xl ignores the key, so take the "
                "brackets away",
            ),
        ),
        (
            "memory='128M'",
            Diagnostic(
                "XL105",
                3,
                "memory: not a number xl can read; xl ignores the key",
                "d.cfg:3: warning: parameter `memory' is not a valid number",
            ),
        ),
        (
            "memory=9223372036854775808",
            Diagnostic(
                "XL105",
                3,
                "memory: not a number xl can read; xl ignores the key",
                "d.cfg:3: warning: parameter `memory' could not be parsed as a number: "
                "Numerical result out of range",
            ),
        ),
        (
            "memory=64\nmemory+=64",
            Diagnostic(
                "XL105",
                4,
                "memory: not a number xl can read; xl ignores the key",
                "d.cfg:4: warning: can't use += with numbers for parameter `memory'",
            ),
        ),
        (
            "cmdline=''\nroot='/r'",
            Diagnostic(
                "XL106",
                3,
                "cmdline: root and extra are ignored beside it",
                "Warning: ignoring root= and extra= in favour of cmdline=",
            ),
        ),
        (
            'memory="-1"',
            Diagnostic(
                "XL112",
                3,
                "memory: -1 MiB; xl takes it for 18446744073709550592 KiB, use 0 to 4294967296",
            ),
        ),
        (
            "vcpus=129",
            Diagnostic("XL112", 3, "vcpus: 129; Xen on Arm gives a guest at most 128 vCPUs"),
        ),
        (
            'dtdev=["/a\\101", "\\\\101", "\\n"]',
            Diagnostic(
                "XL109",
                3,
                "an octal escape stands for nothing in xl; write the character itself",
            ),
        ),
        (
            'type="p"',
            Diagnostic("XL108", 3, 'type: "p" is the beginning of pv; xl takes it so'),
        ),
        (
            'builder="generic"',
            Diagnostic("XL110", 3, "builder: deprecated, use type"),
        ),
        (
            "memory=32M",
            Diagnostic(
                "XL107",
                None,
                "the last byte, 0x4d, is dropped by xl; take it out or end the line after it",
            ),
        ),
    ],
)
def test_warnings(text: str, warning: Diagnostic) -> None:
    config = guest(text)
    assert config.warnings == (warning,)
    unwarned = GuestConfig(name="d", kernel="/k", warnings=config.warnings)
    kept = {
        "vcpis=2": {"others": (("vcpis", "2"),)},
        "arm_vuart='x'": {"others": (("arm_vuart", "x"),)},
        "vgsx=1": {"others": (("vgsx", "1"),)},
        'memory="-1"': {"memory_mib": -1},
        "vcpus=129": {"vcpus": 129, "maxvcpus": 129},
        'type="p"': {"type": "pv"},
        'builder="generic"': {"type": "pv"},
        'dtdev=["/a\\101", "\\\\101", "\\n"]': {"dtdev": ("/a", "\\101", "\n")},
        "memory=64\nmemory+=64": {},
        "dtdev=['/a',['/b'],'/c']": {"dtdev": ("/a",)},
        "cmdline=''\nroot='/r'": {"cmdline": ""},
    }
    for attribute, value in kept.get(text, {}).items():
        object.__setattr__(unwarned, attribute, value)
    assert config == unwarned


def test_a_character_in_two_parts() -> None:
    data = BASE + b'extra="\xc3"\nextra+="\xa9"\n'
    assert load(data, "d.cfg").cmdline == "\u00e9"


def test_nodes_are_bounded() -> None:
    assert str(refusal("vnuma=[" + "[]," * 300 + "]")) == (
        "d.cfg:3: more than 256 virtual NUMA nodes; write "
        'vnuma=[["pnode=0", "size=512", "vcpus=0-1"], ...]'
    )


def test_one_switch_leaves_what_xl_prints() -> None:
    text = BASE + b"vcpis=2\ndtdev='/a'\n"
    assert ids(load(text, "d.cfg")) == [("XL101", 3), ("XL102", 4)]
    assert ids(load(text, "d.cfg", strict=False)) == [("XL102", 4)]


def test_warnings_are_bounded_and_by_line() -> None:
    config = guest("dtdev='x'\n" + "".join(f"zz{n}=1\n" for n in range(100)) + "pci='x'\n")
    assert len(config.warnings) == 64 + 1 + 2
    assert config.warnings[0].message == "36 more unknown keys, ignored by xl"
    assert ids(config)[1:3] == [("XL102", 3), ("XL101", 4)]
    assert ids(config)[-1] == ("XL102", 104)


def test_the_key_table_is_sound() -> None:
    names = [key.name for key in KEYS]
    assert len(names) == len(set(names))
    assert KNOWN_KEYS.isdisjoint(PSEUDO_KEYS)
    for key in KEYS:
        assert bool(key.choices) == (key.getter in CHOOSING), key.name
        assert not key.refusal or key.fix, key.name


CHOOSING = (Getter.WORD, Getter.EXACT, Getter.PREFIX)


def as_xl(text: str) -> tuple[int, tuple[str, ...], dict[str, object]]:
    outcome = examine(parse(BASE + text.encode()), "cfg", Dialect.STOCK, Host())
    return outcome.exit_code, outcome.report, dict(outcome.domain.get("b_info", {}))


def test_an_empty_set_of_cpus_is_the_last_thing_xl_finds() -> None:
    empty = "vcpu hard affinity map is empty"
    assert as_xl('vcpus=1\ncpus=","\ntee="x"')[:2] == (3, ('Unknown tee "x" specified',))
    assert as_xl('vcpus=1\ncpus="9"\nvif=["foo"]')[1] == ("unrecognized argument `foo'", empty)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('vcpus="-4294967296"', 0),
        ('vcpus="-4294967295"', 0),
        ('vcpus="-2147483648"', 1),
        ("vcpus=0x80000000", 1),
        ("vcpus=0x7fffffff", -6),
        ('llc_colors=["1--3"]', -11),
        ('llc_colors=["4294967295"]', -11),
        ('vcpus=2\nvnuma=[["vdistances=10,20","vcpus=0"]]', 1),
        ('vcpus=2\nvnuma=[["vdistances=' + "1," * 6 + '2","vcpus=0"]]', -11),
    ],
)
def test_numbers_that_c_cuts(text: str, code: int) -> None:
    assert as_xl(text)[0] == code


def test_numbers_that_wrap() -> None:
    assert as_xl('memory="0b101"')[2]["target_memkb"] == 5 * 1024
    assert as_xl('vcpus=1\ncpus="4294967297"')[2]["vcpu_hard_affinity"] == [[1]]
    assert as_xl('maxvcpus=4\nvnuma=[["vcpus=6-9"]]')[2]["vnuma_nodes"] == [
        {"distances": [0], "vcpus": [6, 7]}
    ]
