# SPDX-License-Identifier: BSD-2-Clause
"""`lspci -Dxxxx` read: functions, buses, requester ids behind bridges, isolation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dt_tools.errors import UserError
from dt_tools.pci.requesters import Groups, requester_ids, unread
from dt_tools.pci.topology import MAX_FUNCTIONS, Topology, read_lspci

ENDPOINT, LEGACY, ROOT, UP, DOWN, TO_PCI, FROM_PCI, RC_ENDPOINT = 0, 1, 4, 5, 6, 7, 8, 9
ACS = (0x1D, 0x1D)


def dump(
    name: str,
    port: int | None = None,
    buses: tuple[int, int, int] | None = None,
    *,
    header: int | None = None,
    multi: bool = False,
    pcix: int | None = None,
    acs: tuple[int, int] | None = None,
    phantom: int = 0,
    phantom_on: bool = True,
    size: int = 4096,
) -> str:
    """One function as lspci shows it. `pcix`: mode of the secondary bus, `acs`: (can, does)."""
    config = bytearray(size)
    kind = header if header is not None else 0 if buses is None else 1
    config[0x0E] = kind | (0x80 if multi else 0)
    if buses is not None:
        config[0x18:0x1B] = bytes(buses)
    at, last = 0x40, 0x34
    caps = []
    if pcix is not None:
        caps.append((7, (pcix << 6).to_bytes(2, "little")))
    if port is not None:
        flags = (2 | port << 4).to_bytes(2, "little")
        control = (1 << 9 if phantom and phantom_on else 0).to_bytes(2, "little")
        caps.append((0x10, flags + (phantom << 3).to_bytes(4, "little") + control))
    for number, data in caps:
        config[6] |= 0x10
        config[last] = at
        if size > at:
            config[at] = number
            config[at + 2 : at + 2 + len(data)] = data
            last, at = at + 1, at + 0x40
    if acs is not None and size == 4096:
        can, does = (value.to_bytes(2, "little") for value in acs)
        config[0x100:0x104] = (0x0003 | 1 << 16 | 0x180 << 20).to_bytes(4, "little")
        config[0x180:0x188] = (0x000D | 1 << 16).to_bytes(4, "little") + can + does
    lines = [f"{name} Sample: function of {size} bytes"]
    for offset in range(0, size, 16):
        row = " ".join(f"{byte:02x}" for byte in config[offset : offset + 16])
        lines.append(f"{offset:02x}: {row}")
    return "\n".join(lines) + "\n\n"


def topology(*dumps: str) -> Topology:
    return read_lspci("".join(dumps))


def ids(host: Topology, name: str) -> list[int]:
    one = next(f for f in host.functions if f.name == name)
    return list(requester_ids(host, one))


def sample(size: int = 256) -> str:
    """The text of samples/pci-board.lspci."""
    return "".join(
        (
            dump("0000:00:00.0", ROOT, (0, 1, 1), size=size),
            dump("0000:00:01.0", ROOT, (0, 2, 3), size=size),
            dump("0000:00:02.0", ROOT, (0, 4, 4), size=size),
            dump("0000:01:00.0", ENDPOINT, size=size),
            dump("0000:02:00.0", TO_PCI, (2, 3, 3), size=size),
            dump("0000:03:01.0", size=size),
            dump("0000:04:00.0", ENDPOINT, multi=True, size=size),
            dump("0000:04:00.1", ENDPOINT, multi=True, size=size),
            dump("0001:00:00.0", ROOT, (0, 1, 1), size=size),
            dump("0001:01:00.0", ENDPOINT, size=size),
        )
    )


def test_sample(samples: Path) -> None:
    assert (samples / "pci-board.lspci").read_text() == sample()


def test_reads() -> None:
    host = read_lspci("\tKernel driver in use: x\r\n" + sample(4096).replace("\n", "\r\n"))
    one = host.get(0, 0x0200)
    assert one is not None
    assert (one.header, one.port, one.secondary, one.subordinate) == (1, TO_PCI, 3, 3)
    assert [f.name for f in host.slot(0, 0x0400)] == ["0000:04:00.0", "0000:04:00.1"]
    assert host.above(0, 3) is one
    assert host.above(0, 0) is None
    assert [f.name for f in host.upwards(0, 3)] == ["0000:02:00.0", "0000:00:01.0"]


def test_domain_left_out() -> None:
    assert topology(dump("01:00.0", ENDPOINT)).functions[0].name == "0000:01:00.0"


@pytest.mark.parametrize("size", [256, 4096])
def test_own_id(size: int) -> None:
    """Root ports and switches change nothing."""
    host = topology(
        dump("0000:00:00.0", ROOT, (0, 1, 5), size=size),
        dump("0000:01:00.0", UP, (1, 2, 5), size=size),
        dump("0000:02:00.0", DOWN, (2, 3, 5), size=size),
        dump("0000:03:1f.7", ENDPOINT, size=size),
        dump("0000:00:05.0", RC_ENDPOINT, size=size),
    )
    assert ids(host, "0000:03:1f.7") == [0x03FF]
    assert ids(host, "0000:00:05.0") == [0x0028]


def test_pcie_to_pci() -> None:
    host = read_lspci(sample())
    assert ids(host, "0000:03:01.0") == [0x0300]


def test_pci_x_keeps_ids() -> None:
    text = sample().replace(
        dump("0000:02:00.0", TO_PCI, (2, 3, 3), size=256),
        dump("0000:02:00.0", TO_PCI, (2, 3, 3), pcix=3, size=256),
    )
    assert ids(read_lspci(text), "0000:03:01.0") == [0x0300, 0x0308]


def test_conventional_bridge_behind_pcie_to_pci() -> None:
    host = topology(
        dump("0000:00:00.0", ROOT, (0, 1, 5)),
        dump("0000:01:00.0", TO_PCI, (1, 2, 5)),
        dump("0000:02:04.0", None, (2, 3, 5)),
        dump("0000:03:01.0"),
        dump("0000:02:05.0"),
    )
    assert ids(host, "0000:03:01.0") == [0x0200]
    assert ids(host, "0000:02:05.0") == [0x0200]


def test_conventional_bridge_on_the_root_bus() -> None:
    host = topology(dump("0000:00:1e.0", None, (0, 3, 3)), dump("0000:03:01.0"))
    assert ids(host, "0000:03:01.0") == [0x00F0]


def test_reverse_bridge() -> None:
    host = topology(dump("0000:00:1e.0", FROM_PCI, (0, 3, 3)), dump("0000:03:00.0", ENDPOINT))
    assert ids(host, "0000:03:00.0") == [0x00F0]


def test_bridge_that_hides_its_capability() -> None:
    """On a PCI Express link it must be a PCIe-to-PCI bridge, whatever it says: either id."""
    host = topology(
        dump("0000:00:00.0", ROOT, (0, 1, 2)),
        dump("0000:01:00.0", None, (1, 2, 2)),
        dump("0000:02:03.0"),
    )
    assert ids(host, "0000:02:03.0") == [0x0200, 0x0100]


@pytest.mark.parametrize(
    ("bits", "on", "expected"),
    [(1, True, [0x100, 0x104]), (2, True, [0x100, 0x102, 0x104, 0x106]), (2, False, [0x100])],
)
def test_phantom_functions(bits: int, on: bool, expected: list[int]) -> None:
    host = topology(
        dump("0000:00:00.0", ROOT, (0, 1, 1)),
        dump("0000:01:00.0", ENDPOINT, phantom=bits, phantom_on=on),
    )
    assert ids(host, "0000:01:00.0") == expected


def test_virtual_functions_on_a_bus_of_no_bridge() -> None:
    host = topology(dump("0000:00:00.0", ROOT, (0, 1, 3)), dump("0000:02:10.0", ENDPOINT))
    assert [f.name for f in host.upwards(0, 2)] == ["0000:00:00.0"]


def test_capabilities_not_dumped() -> None:
    host = topology(
        dump("0000:00:00.0", ROOT, (0, 1, 1), size=64), dump("0000:01:00.0", ENDPOINT, size=64)
    )
    dark = unread(host, host.functions[1])
    assert dark is not None
    assert dark.name == "0000:00:00.0"


def peers(host: Topology, name: str) -> list[str]:
    one = next(f for f in host.functions if f.name == name)
    return [f.name for f in Groups(host).peers(one)]


@pytest.mark.parametrize(
    ("acs", "together"),
    [
        (ACS, False),
        (None, True),
        ((0x1D, 0x1C), True),
        ((0x0D, 0x0D), False),
        ((0x7F, 0x1D), False),
    ],
)
def test_functions_of_one_device(acs: tuple[int, int] | None, together: bool) -> None:
    host = topology(
        dump("0000:00:00.0", ROOT, (0, 1, 1), acs=ACS),
        dump("0000:01:00.0", ENDPOINT, multi=True, acs=acs),
        dump("0000:01:00.1", ENDPOINT, multi=True, acs=acs),
    )
    assert peers(host, "0000:01:00.0") == (["0000:01:00.1"] if together else [])


@pytest.mark.parametrize(("root", "down"), [(ACS, ACS), (None, ACS), (ACS, None), (None, None)])
def test_devices_behind_a_switch(
    root: tuple[int, int] | None, down: tuple[int, int] | None
) -> None:
    host = topology(
        dump("0000:00:00.0", ROOT, (0, 1, 4), acs=root),
        dump("0000:01:00.0", UP, (1, 2, 4)),
        dump("0000:02:00.0", DOWN, (2, 3, 3), acs=down),
        dump("0000:02:01.0", DOWN, (2, 4, 4), acs=down),
        dump("0000:03:00.0", ENDPOINT),
        dump("0000:04:00.0", ENDPOINT),
    )
    apart = root is not None and down is not None
    assert peers(host, "0000:03:00.0") == ([] if apart else ["0000:04:00.0"])


def test_root_ports_of_one_device_without_acs() -> None:
    def ports(multi: bool) -> Topology:
        return topology(
            dump("0000:00:01.0", ROOT, (0, 1, 1), multi=multi),
            dump("0000:00:01.1", ROOT, (0, 2, 2), multi=multi),
            dump("0000:01:00.0", ENDPOINT),
            dump("0000:02:00.0", ENDPOINT),
        )

    assert peers(ports(True), "0000:01:00.0") == ["0000:02:00.0"]
    assert peers(ports(False), "0000:01:00.0") == []


NAMES = (
    "lspci: line 1: not of the form DDDD:BB:DD.F NAME; give the output of lspci -Dxxxx, run as root"
)
ROW = "00: " + " ".join(["00"] * 16) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lspci: lspci: no PCI functions; give the output of lspci -Dxxxx"),
        ("hello\n", NAMES),
        ("0000:00:20.0 x\n", NAMES),
        ("0000:00:00.8 x\n", NAMES),
        (ROW, "lspci: line 1: a dump before the first function"),
        (
            "0000:01:00.0 x\n",
            "lspci: line 1: 0000:01:00.0 has 0 bytes of configuration space; "
            "dump it with lspci -xxxx as root",
        ),
        ("0000:01:00.0 x\n" + ROW + ROW, "lspci: line 3: offset 00, 10 is next"),
        (
            dump("0000:01:00.0", ENDPOINT, size=64) * 2,
            "lspci: line 7: 0000:01:00.0 is there twice",
        ),
        (
            dump("0000:01:00.0", header=0x7F, size=64),
            "lspci: line 1: 0000:01:00.0 has header type 0x7f; "
            "the device does not answer; wake or remove it, and dump again",
        ),
        (
            dump("0000:01:00.0", ROOT, (0, 1, 2)),
            "lspci: 0000:01:00.0: bridge on bus 0x01 has buses 0x01 to 0x02; "
            "dump a host that is set up",
        ),
        (
            dump("0000:00:00.0", ROOT, (0, 1, 4)) + dump("0000:00:01.0", ROOT, (0, 3, 5)),
            "lspci: 0000:00:01.0: overlaps the buses of 0000:00:00.0: 0x03 to 0x05; "
            "dump a host that is set up",
        ),
        ("x" * 5000, "lspci: line 1: longer than 4096 characters"),
    ],
)  # fmt: skip
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_lspci(text)
    assert str(error.value) == message


def test_too_many() -> None:
    text = "".join(f"0000:{n >> 8:02x}:{n >> 3 & 31:02x}.{n & 7} x\n" for n in range(9000))
    with pytest.raises(UserError, match=f"more than {MAX_FUNCTIONS} functions"):
        read_lspci(text)


def test_bridge_not_set_up() -> None:
    """Secondary bus 0: nothing is behind it."""
    host = topology(dump("0000:00:00.0", ROOT, (0, 0, 0)), dump("0000:00:02.0", RC_ENDPOINT))
    assert host.above(0, 0) is None


def test_capability_loop() -> None:
    text = dump("0000:01:00.0", ENDPOINT, acs=ACS, size=4096)
    text = text.replace("40: 10 00", "40: 05 40").replace("100: 03 00 01 18", "100: 03 00 01 10")
    one = read_lspci(text).functions[0]
    assert (one.port, one.acs) == (None, False)


def test_deep_chain_is_bounded() -> None:
    """255 bridges in a row and full buses: every function is resolved in one pass."""
    text = "".join(
        dump(f"0000:{bus:02x}:00.0", TO_PCI, (bus, bus + 1, 255), size=256) for bus in range(255)
    )
    leaves = (dump(f"0000:ff:{d:02x}.{f}", size=64) for d in range(32) for f in range(8))
    host = read_lspci(text + "".join(leaves))
    assert {requester_ids(host, one) for one in host.functions[255:]} == {(0x100,)}
    assert len(Groups(host).peers(host.functions[-1])) == 255


def test_mutations() -> None:
    """Any damage is a UserError or a topology whose walks end."""
    chance = random.Random(5)
    text = sample()
    for _ in range(400):
        lines = text.split("\n")
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(lines))
            what = chance.randrange(4)
            if what == 0:
                del lines[at]
            elif what == 1:
                lines.insert(at, lines[chance.randrange(len(lines))])
            elif lines[at]:
                spot = chance.randrange(len(lines[at]))
                new = chance.choice("0123456789abcdef :.\t\0")
                lines[at] = lines[at][:spot] + new + lines[at][spot + 1 :]
        try:
            host = read_lspci("\n".join(lines))
        except UserError:
            continue
        groups = Groups(host)
        for one in host.functions:
            assert requester_ids(host, one)
            groups.peers(one)
