# SPDX-License-Identifier: BSD-2-Clause
"""Records of devices back to the texts of list entries; see ``written`` for what is promised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xl_configs.specs import devices, display, nic, sound
from xl_configs.specs import disk as disks
from xl_configs.specs.scan import SpecError
from xl_configs.specs.written import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xl_configs.specs.options import Table


def _names(table: Table, *without: str) -> list[tuple[str, str]]:
    """Key and field of a reader's table."""
    return [(key, name) for key, (name, _) in table.items() if key not in without]


def _table(table: Table, *without: str) -> Callable[[Any], str]:
    """A writer of records whose reader has a table of all they hold."""
    names = _names(table, *without)
    return lambda record: ",".join(options(record, names))


_BACKEND = [("backend", "backend_domname")]
# Values with the blanks around them taken away: a blank alone is an empty one.
_BLANK = " "


_DISK_ENUMS = [("backendtype", "backend"), ("specification", "specification")]
_DISK_STRINGS = [
    (key, field) for key, field in disks._STRINGS.items() if key not in ("target", "vdev")
]


def write_disk(disk: disks.Disk) -> str:
    """Named fields, ``target=`` last.

    Where a target or vdev needs it, for a line feed in it or its length, they go without a name.

    Raises:
        SpecError: no way to write it reads as this disk.
    """
    *plain, access = _disk_fields(disk)
    vdev, target = f"vdev={disk.vdev}", disk.pdev_path
    usual = [plain[0], vdev, access, *plain[1:]]
    ways = [[*usual, *([] if target is None else [f"target={target}"])]]
    if target is not None:
        rest = [part for part in (*plain, access) if part]
        feed = "" if disk.vdev.startswith("\n") else "\n"
        ways += [
            [target, *usual],
            [target, *rest, disk.vdev],
            [*rest, f"target={target}{feed}{disk.vdev}"],
        ]
    for way in ways:
        text = ",".join(part for at, part in enumerate(way) if part or not at)
        if _reads_as(text, disk):
            return text
    raise SpecError(f"no text stands for {disk}")


def _disk_fields(disk: disks.Disk) -> Iterator[str]:
    """What is neither target nor vdev: format first, access last, which may be empty."""
    yield f"format={disk.format}"
    if disk.is_cdrom:
        yield "devtype=cdrom"
    yield from options(disk, _DISK_ENUMS)
    yield from options(disk, _DISK_STRINGS)
    yield from options(disk, [("colo-port", "colo_port")])
    for word, (field, value) in disks._FLAGS.items():
        if isinstance(value, bool) and getattr(disk, field) is value:
            yield word
    yield "" if disk.is_cdrom else f"access={'rw' if disk.readwrite else 'ro'}"


def _reads_as(text: str, disk: disks.Disk) -> bool:
    try:
        return disks.parse_disk(text) == disk
    except SpecError:
        return False


_NIC_TYPES = {name: word for word, name in nic._TYPES.items()}
_NIC_STRINGS = [(key, field) for key, field in nic._STRINGS.items() if key != "netdev"]


def write_vif(entry: nic.Nic) -> str:
    """Comma fields; ``devid`` only where the record has one.

    Raises:
        SpecError: no rate makes those two numbers.
    """
    parts = [] if entry.nictype == "unknown" else [f"type={_NIC_TYPES.get(entry.nictype)}"]
    parts += options(entry, [(name, name) for name in ("mac", "devid", "mtu")])
    parts += options(entry, _NIC_STRINGS)
    if entry.rate_bytes_per_interval or entry.rate_interval_usecs:
        rate = nic.Rate(entry.rate_bytes_per_interval, entry.rate_interval_usecs)
        parts.append(f"rate={write_rate(rate)}")
    parts += (f"{key}={value}" for key, value in entry.colo)
    if entry.trusted is not None:
        parts.append("trusted" if entry.trusted else "untrusted")
    return ",".join(parts)


def write_rate(rate: nic.Rate) -> str:
    """The rate with the smallest number that makes the same credit at the same interval.

    Raises:
        SpecError: none does.
    """
    usecs = rate.rate_interval_usecs
    if not usecs:
        raise SpecError("a rate without an interval")
    least = -(-rate.rate_bytes_per_interval * 1_000_000 // usecs)  # bytes a second
    found = []
    for letter, scale in (*nic._RATE_SCALE.items(), ("", 1)):
        for unit, parts in (("b", 8), ("B", 1)):
            number = max(1, -(-least * parts // scale))
            found.append((number, f"{number}{letter}{unit}/s{_interval(usecs)}"))
    for _, text in sorted(found):
        if _makes(text, rate):
            return text
    raise SpecError(f"no rate makes {rate}")


def _interval(usecs: int) -> str:
    if usecs == nic._DEFAULT_INTERVAL:
        return ""
    scale, unit = next(
        pair for pair in ((1_000_000, "s"), (1_000, "ms"), (1, "us")) if not usecs % pair[0]
    )
    return f"@{usecs // scale}{unit}"


def _makes(text: str, rate: nic.Rate) -> bool:
    try:
        return nic.parse_rate(text) == rate
    except SpecError:
        return False


def write_p9(entry: devices.P9) -> str:
    """``key=value`` fields, at least one."""
    return ",".join(options(entry, _names(devices.P9_TABLE), _BLANK)) or "type=unknown"


def write_vdispl(entry: display.Vdispl) -> str:
    """``backend``, ``be-alloc`` and the connectors."""
    # A connector without id comes from behind one that xl could not read.
    unread = next((at for at, c in enumerate(entry.connectors) if c.unique_id is None), None)
    texts = [f"{c.unique_id}:{c.width}x{c.height}" for c in entry.connectors[:unread]]
    if unread:
        texts[-1] = f"{entry.connectors[unread - 1].unique_id}:?"
        texts += ["?"] * (len(entry.connectors) - unread)
    parts = options(entry, [*_BACKEND, ("be-alloc", "be_alloc")])
    return ",".join([*parts, f"connectors={';'.join(texts)}"])


def write_channel(entry: devices.Channel) -> str:
    """``name``, ``backend`` and ``connection``."""
    parts = options(entry, [("name", "name"), *_BACKEND], _BLANK)
    if entry.socket is None:
        return ",".join([*parts, "connection=pty"])
    return ",".join([*parts, "connection=socket", f"path={entry.socket.path or _BLANK}"])


def write_vfb(entry: display.Vfb) -> str:
    """The options of VNC, of SDL, and ``keymap``."""
    parts = [*options(entry.vnc, _names(display.VNC_TABLE))]
    parts += options(entry.sdl, _names(display.SDL_TABLE))
    return ",".join([*parts, *options(entry, [("keymap", "keymap")])])


def write_usbdev(entry: devices.Usbdev) -> str:
    """The device of the host, and where it is plugged in."""
    parts = [*options(entry, [("controller", "ctrl"), ("port", "port")])]
    if entry.hostdev is not None:
        place = options(entry.hostdev, [("hostbus", "hostbus"), ("hostaddr", "hostaddr")])
        parts = ["type=hostdev", *place, *parts]
    return ",".join(parts)


def write_vsnd(card: sound.Vsnd) -> tuple[str, ...]:
    """The items of one card: itself, and each PCM device with its streams."""
    items = [_item("card", card)]
    for pcm in card.pcms:
        items += [_item("pcm", pcm), *(_item("stream", stream) for stream in pcm.streams)]
    return tuple(items if items[0] != "card" else items[1:])


def _item(kind: str, part: Any) -> str:
    own = options(part, _names(sound._OWN[kind]))
    return ", ".join([kind, *own, *options(part.params, _names(sound._PARAMS))])


WRITERS: dict[str, Callable[[Any], str | tuple[str, ...]]] = {
    "disk": write_disk,
    "vif": write_vif,
    "virtio": _table(devices.VIRTIO_TABLE),
    "p9": write_p9,
    "vtpm": lambda entry: ",".join(options(entry, [*_BACKEND, ("uuid", "uuid")])),
    "vdispl": write_vdispl,
    "vsnd": write_vsnd,
    "pvcalls": lambda entry: ",".join(options(entry, _BACKEND)),
    "channel": write_channel,
    "vfb": write_vfb,
    # The multi-touch feature follows from its sizes.
    "vkb": _table(display.VKB_TABLE, "feature-multi-touch"),
    "usbctrl": _table(devices.USBCTRL_TABLE),
    "usbdev": write_usbdev,
}
"""By the key of a device, what makes the text of an entry; for ``vsnd`` the texts of a card."""
