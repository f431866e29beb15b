# SPDX-License-Identifier: BSD-2-Clause
"""Keys that say what a guest is: name, type, vCPUs and where they run, NUMA, colours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xl_configs.frozen import frozen
from xl_configs.getters import INT_MAX, as_i32
from xl_configs.keys import Dialect
from xl_configs.specs.cpus import (
    MOST_COLORS,
    MOST_CPUS,
    Host,
    members,
    parse_cpus,
    parse_llc_colors,
    parse_range,
)
from xl_configs.specs.record import as_json
from xl_configs.specs.scan import U32_MAX, U64_MAX, is_uuid, split_pair, strtok, strtoul

if TYPE_CHECKING:
    from xl_configs.errors import ConfigError
    from xl_configs.getters import Reader
    from xl_configs.keys import Key
    from xl_configs.parser import Value

MOST_VCPUS = 1 << 17
"""vCPUs of one guest; xl has no bound but its patience, Xen on Arm starts 128."""

ARM_VCPUS = 128

# The line of libxl 4.20.3, with the place in its source.
_NO_CPUS = "libxl: error: libxl_utils.c:812:libxl_cpu_bitmap_alloc: invalid number of cpus provided"

MOST_NODES = 256
"""Virtual NUMA nodes of one guest; xl has no bound but its memory."""


@frozen
class VnumaNode:
    """One node of ``vnuma``, with libxl's names; ``vcpus`` are those of the guest in it."""

    memkb: int = U64_MAX
    distances: tuple[int, ...] = ()
    pnode: int = 0
    vcpus: tuple[int, ...] = ()


class _Node:
    """A node, of so many, while its options are read."""

    def __init__(self, count: int) -> None:
        self.memkb = U64_MAX
        self.pnode = 0
        self.bits = 0
        self.distances = [0] * count


def read_type(reader: Reader, key: Key) -> None:
    """``type``; pvh when neither it nor ``builder`` is there."""
    word = reader.word(key)
    reader.values["type"] = word
    reader.guest_type = word or "pvh"


def read_builder(reader: Reader, key: Key) -> None:
    """``builder``, deprecated; it must not contradict ``type``."""
    word = reader.word(key)
    if word is not None:
        built = {"hvm": "hvm", "generic": "pv"}[word]
        if reader.values["type"] not in (None, built):
            reason = 'Contradicting "builder" and "type" options specified.'
            raise reader.refuse(key.name, reason, "leave builder out; it is deprecated")
        reader.guest_type = built
    reader.put("c_info/type", reader.guest_type)
    if reader.guest_type == "hvm":
        name = "type" if reader.raw("builder") is None else "builder"
        reader.note("XL114", name, 'libxl on Arm refuses hvm guests, use type="pvh"')
    level = f"b_info/type.{reader.guest_type}"
    reader.domain_level(level)
    if reader.guest_type == "hvm":
        for name in ("rdm", "sdl", "spice", "vga", "vnc"):
            reader.domain_level(f"{level}/{name}")


def read_name(reader: Reader, key: Key) -> None:
    """``name``, the one key that must be there."""
    name = reader.string(key.name)
    if name is None:
        raise reader.refuse(key.name, "Domain name must be specified.", 'add name="..."')
    reader.values["name"] = name
    reader.put("c_info/name", name)
    labels = reader.values.pop("init_seclabel"), reader.values.pop("seclabel")
    first, second = labels if labels[0] is not None else (labels[1], None)
    for into, label in (("c_info/ssid_label", first), ("b_info/exec_ssid_label", second)):
        if label is not None:
            reader.put(into, label)
    reader.values["init_seclabel"], reader.values["seclabel"] = labels


def read_uuid(reader: Reader, key: Key) -> None:
    """``uuid``; libxl makes one up when it is absent."""
    text = reader.string(key.name)
    if text is not None and not is_uuid(text):
        raise reader.refuse(
            key.name, f"Failed to parse UUID: {text}", "write 8-4-4-4-12 hexadecimal digits"
        )
    reader.values["uuid"] = None if text is None else text.lower()
    reader.put("c_info/uuid", "<generated>" if text is None else text.lower())


def read_xenstore_quota(reader: Reader, key: Key) -> None:
    """``xenstore_quota``, a list of ``NAME=VALUE``."""
    items = []
    for text in reader.all_strings(key, "xl: Can't get element {} in Xenstore quota list"):
        name, equals, value = text.partition("=")
        if not equals:
            reason = f'Quota specification "{text}" lacks "=".'
            raise reader.refuse(key.name, reason, "write NAME=VALUE")
        number, end = strtoul(value, 0)
        if not value or end != len(value) or number > U32_MAX:
            reason = f'Quota specification "{text}" uses illegal value "{value}".'
            raise reader.refuse(key.name, reason, f"write {name}=NUMBER, of 32 bits")
        items.append(text)
    reader.values["xenstore_quota"] = tuple(items)


def read_llc_colors(reader: Reader, key: Key) -> None:
    """``llc_colors``: colours and ranges of them, in order, duplicates kept."""
    colors: list[int] = []
    for text in reader.all_strings(key, "xl: Can't get element {} in LLC color list"):
        first, last = reader.entry(key, parse_llc_colors, text)
        if len(colors) + last - first >= MOST_COLORS:
            # No memory holds the greatest of these: xl dies of them.
            code = -11 if last - first >= 1 << 28 else 1
            reason = f"more than {MOST_COLORS} LLC colors"
            raise reader.refuse(key.name, reason, key.fix, code=code)
        colors += range(first, last + 1)
        written = re.fullmatch(r"[ \t\n\v\f\r]*\+?[0-9]+(-[ \t\n\v\f\r]*\+?[0-9]+)?", text)
        if written is None:
            said = f'"{text}" is read as {first}-{last}; xl ignores the rest of it'
            reader.note("XL113", key.name, said)
    reader.values["llc_colors"] = tuple(colors)
    if colors:
        reader.put("b_info/llc_colors", colors)


def read_vcpus(reader: Reader, key: Key) -> None:
    """``vcpus``; what is below 1 is refused or 1, by the version."""
    number = reader.number(key.name)
    vcpus = number or 0
    if reader.dialect is Dialect.SERIES:
        vcpus = max(vcpus, 1)
    elif as_i32(vcpus) < 0:
        reason = "Unable to allocate cpumap"
        raise reader.refuse(key.name, reason, "use 1 or more", report=(_NO_CPUS, reason))
    if as_i32(vcpus) > MOST_VCPUS or vcpus > MOST_VCPUS:
        # xl hangs in most of these, and dies of the greatest.
        code = -6 if as_i32(vcpus) == INT_MAX else 1
        reason, fix = f"{vcpus} vCPUs are too many", f"use 1 to {ARM_VCPUS}"
        raise reader.refuse(key.name, reason, fix, code=code)
    vcpus = max(vcpus, 0)
    reader.values["vcpus"] = vcpus
    if vcpus:
        reader.put("b_info/avail_vcpus", list(range(vcpus)))


def read_vnuma(reader: Reader, key: Key) -> None:
    """``vnuma``, and with it what ``maxvcpus`` and ``maxmem`` come to."""
    most = as_i32(reader.values["maxvcpus"] or 0)
    nodes: tuple[VnumaNode, ...] = ()
    value = reader.list(key.name, quiet=True)
    if value:
        found, vcpus, memory = _vnuma(reader, key, value)
        most = _check_vnuma(reader, key, most, vcpus, memory)
        nodes = tuple(
            VnumaNode(node.memkb, tuple(node.distances), node.pnode, tuple(members(node.bits)))
            for node in found
        )
        reader.put("b_info/vnuma_nodes", as_json(nodes))
    reader.values["vnuma"] = nodes
    _settle_memory(reader)
    vcpus = reader.values["vcpus"]
    most = most or as_i32(vcpus)
    if most < vcpus:
        fix = f"make maxvcpus at least {max(vcpus, 1)} or leave it out"
        raise reader.refuse("maxvcpus", "xl: maxvcpus < vcpus", fix)
    if most > MOST_VCPUS:
        raise reader.refuse("maxvcpus", f"{most} vCPUs are too many", f"use 1 to {ARM_VCPUS}")
    if most > ARM_VCPUS:
        name = "maxvcpus" if reader.raw("maxvcpus") is not None else "vcpus"
        reader.note("XL112", name, f"{most}; Xen on Arm gives a guest at most {ARM_VCPUS} vCPUs")
    reader.values["maxvcpus"] = most
    reader.put("b_info/max_vcpus", most)


def _settle_memory(reader: Reader) -> None:
    """The greatest memory is that at start when nothing else says so."""
    sizes = reader.domain["b_info"]
    if "max_memkb" not in sizes and "target_memkb" in sizes:
        sizes["max_memkb"] = sizes["target_memkb"]


def _vnuma(reader: Reader, key: Key, value: tuple[Value, ...]) -> tuple[list[_Node], int, int]:
    """The nodes, the number of vCPUs they name, and the sum of their memory in KiB."""
    if len(value) > MOST_NODES:
        raise reader.refuse(key.name, f"more than {MOST_NODES} virtual NUMA nodes", key.fix)
    most = as_i32(reader.values["maxvcpus"] or 0)
    if most < 0:
        reason = "libxl_node_bitmap_alloc failed."
        raise reader.refuse("maxvcpus", reason, "use 1 or more", report=(_NO_CPUS, reason))
    # xl drops the vCPUs that its set, of whole bytes, has no room for.
    room = ((most or _host(reader).cpus) + 7) & ~7
    nodes: list[_Node] = []
    vcpus = memory = 0
    for item in value:
        if isinstance(item, str):
            line = reader.line(key.name)
            reason = "xl: cannot get vnode config option list"
            report = (f"{reader.source}:{line}:0: warning: value is not a list", reason)
            raise reader.refuse(key.name, reason, key.fix, report=report)
        node = _Node(len(value))
        for option in item:
            if isinstance(option, str):
                vcpus += _vnuma_option(reader, key, node, option)
        if node.memkb != U64_MAX:
            memory = (memory + node.memkb) & U64_MAX
        node.bits &= (1 << room) - 1
        nodes.append(node)
    return nodes, vcpus, memory


def _vnuma_option(reader: Reader, key: Key, node: _Node, text: str) -> int:
    """Reads one ``option=value``; how many vCPUs it names."""
    pair = split_pair(text)
    if pair is None:
        raise reader.refuse(key.name, f'xl: failed to split "{text}" into pair', key.fix)
    option, value = pair
    if option == "pnode":
        node.pnode = _number(reader, key, value)
        if node.pnode >= _host(reader).nodes:
            reason = f"xl: invalid pnode number: {node.pnode}"
            raise reader.refuse(key.name, reason, "name a NUMA node of the host")
        reader.put_flag("b_info/numa_placement", False)
    elif option == "size":
        node.memkb = (_number(reader, key, value) << 10) & U64_MAX
    elif option in ("vcpus", "vdistances"):
        parts = strtok(value)
        if not parts:
            raise _crash(reader, key, f"an empty list in {text}")
        if option == "vdistances":
            numbers = [_number(reader, key, part) & U32_MAX for part in parts]
            count = len(node.distances)
            # xl writes past its array; what malloc gives beyond it does no harm.
            if len(numbers) > max(24, ((4 * count + 23) & ~15) - 8) // 4:
                raise _crash(reader, key, f"more distances than nodes in {text}")
            node.distances[: len(numbers)] = numbers[:count]
        else:
            return sum(_vnuma_vcpus(node, part) for part in parts)
    return 0


def _vnuma_vcpus(node: _Node, text: str) -> int:
    first, last, _ = parse_range(text)
    if last < first:
        return 0
    if first < MOST_CPUS:
        node.bits |= ((1 << (min(last, MOST_CPUS - 1) - first + 1)) - 1) << first
    return last - first + 1


def _number(reader: Reader, key: Key, text: str) -> int:
    number, end = strtoul(text, 10)
    if end == 0 or number == U64_MAX:
        raise reader.refuse(
            key.name, f'xl: failed to convert "{text}" to number', "write a decimal number"
        )
    return number


def _crash(reader: Reader, key: Key, what: str) -> ConfigError:
    return reader.refuse(key.name, f"{what}, at which xl crashes", key.fix, code=-11)


def _check_vnuma(reader: Reader, key: Key, most: int, vcpus: int, memory: int) -> int:
    """Compares the nodes with ``maxvcpus`` and ``maxmem``; the greatest number of vCPUs."""
    if most and most != vcpus:
        reason = "xl: vnuma vcpus and maxvcpus= mismatch"
        raise reader.refuse(key.name, reason, "make the vCPUs of the nodes maxvcpus in number")
    if not most and vcpus > _host(reader).cpus:
        reason = "xl: vnuma specifies more vcpus than pcpus, use maxvcpus= to override this check."
        raise reader.refuse(key.name, reason, f"add maxvcpus={vcpus}")
    sizes = reader.domain["b_info"]
    if sizes.get("max_memkb", memory) != memory:
        reason = "xl: maxmem and vnuma memory size mismatch"
        raise reader.refuse(key.name, reason, "make the sizes of the nodes maxmem in sum")
    sizes["max_memkb"] = memory
    return most or vcpus


def _host(reader: Reader) -> Host:
    return reader.host or Host()


def read_cpus(reader: Reader, key: Key) -> None:
    """``cpus`` or ``cpus_soft``: a text for every vCPU, or a list with one for each."""
    most = reader.values["maxvcpus"]
    listed = reader.list(key.name, quiet=True)
    texts: tuple[str, ...] = ()
    if listed is None:
        text = reader.string(key.name)
        if text is not None:
            texts = (text,) * max(most, 1)
            reader.entry(key, parse_cpus, text)
    else:
        texts = _listed_cpus(reader, key, listed, most)
    hard = key.name == "cpus"
    reader.values[key.name] = texts[: most or len(texts)]
    sets = _placed(reader, key, texts[:most])
    if listed is not None or (texts and not hard):
        reader.put_flag("b_info/numa_placement", False)
    if sets:
        reader.put(f"b_info/vcpu_{'hard' if hard else 'soft'}_affinity", sets)


def _listed_cpus(reader: Reader, key: Key, listed: tuple[Value, ...], most: int) -> tuple[str, ...]:
    """The texts of a list, one for each vCPU there is; xl reads no further."""
    texts: list[str] = []
    for text in reader.strings(key.name) or ():
        if len(texts) == most:
            break
        reader.entry(key, parse_cpus, text)
        texts.append(text)
    if len(texts) < min(len(listed), most):
        # xl goes on with memory it never wrote: cpus looks empty to it, mostly.
        if key.name == "cpus":
            reader.values["unplaced"] = True
            return tuple(texts)
        raise _crash(reader, key, f"element {len(texts)} is itself a list")
    return tuple(texts)


def _placed(reader: Reader, key: Key, texts: tuple[str, ...]) -> list[list[int]]:
    """Each text as the CPUs of the host it names, which for ``cpus`` must be some."""
    sets: dict[str, list[int]] = {}
    for text in dict.fromkeys(texts):
        if reader.host is None and "node" in text:
            continue  # who knows which CPUs that are
        bits = parse_cpus(text, reader.host)
        if not bits and key.name == "cpus":
            reader.values["unplaced"] = True
        if reader.host is not None:
            sets[text] = members(bits)
    return [sets[text] for text in texts if text in sets]


def check_placed(reader: Reader) -> None:
    """``cpus`` must leave each vCPU a CPU, which xl looks at when it has read everything.

    Raises:
        ConfigError: it does not.
    """
    if "unplaced" in reader.values:
        reason = "vcpu hard affinity map is empty"
        raise reader.refuse("cpus", reason, "name a CPU of the host")


READERS = {
    "type": read_type,
    "builder": read_builder,
    "name": read_name,
    "uuid": read_uuid,
    "xenstore_quota": read_xenstore_quota,
    "llc_colors": read_llc_colors,
    "vcpus": read_vcpus,
    "vnuma": read_vnuma,
    "cpus": read_cpus,
    "cpus_soft": read_cpus,
}
