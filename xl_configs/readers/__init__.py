# SPDX-License-Identifier: BSD-2-Clause
"""The walk over all keys in xl's order, and the functions for those that need one of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xl_configs.getters import as_i32
from xl_configs.keys import KEYS, Dialect, Getter, Key
from xl_configs.readers import boot, devices, domain, hvm
from xl_configs.specs.scan import U32_MAX

if TYPE_CHECKING:
    from xl_configs.getters import Reader

_SPECIAL = {**domain.READERS, **boot.READERS, **devices.READERS, **hvm.READERS}


def read_all(reader: Reader) -> None:
    """Reads every key into ``reader.values`` and ``reader.domain``.

    Raises:
        ConfigError: the first thing that is refused.
    """
    for level in ("c_info", "b_info/sched_params", "b_info/arch_arm", "b_info/arch_x86"):
        reader.domain_level(level)
    reader.put_flag("c_info/run_hotplug_scripts", True)
    reader.put_flag("b_info/claim_mode", True)
    for key in KEYS:
        if key.read_by(reader.dialect) and key.only in ("", reader.guest_type):
            read(reader, key)
    domain.check_placed(reader)


def read(reader: Reader, key: Key) -> None:
    """Reads one key."""
    if key.instead and key.name in ("type", "builder") and reader.raw(key.name) is not None:
        reader.note("XL110", key.name, f"deprecated, use {key.instead}")
    special = _SPECIAL.get(key.name)
    entries = devices.ENTRIES.get(key.name)
    if entries is not None:
        reader.values[key.name] = ()
        if reader.raw(key.name) is not None:
            entries(reader, key)
    elif special is not None:
        special(reader, key)
    elif key.getter is Getter.STRING:
        _keep(reader, key, reader.string(key.name))
    elif key.getter is Getter.NUMBER:
        _number(reader, key)
    elif key.getter is Getter.BOOL:
        _flag(reader, key)
    elif key.getter is Getter.BOUNDED:
        _bounded(reader, key)
    else:
        _word(reader, key)


def _keep(reader: Reader, key: Key, value: str | int | None) -> None:
    """Notes a value, and puts it where libxl keeps it."""
    reader.values[key.name] = value
    if value is not None and key.into:
        reader.put(key.into, value)


def _number(reader: Reader, key: Key) -> None:
    value = reader.number(key.name)
    reader.values[key.name] = value
    if value is None or not key.into:
        return
    if key.unit == "kb":
        reader.put(key.into, reader.size(key, value))
    else:
        reader.put(key.into, as_i32(value) if key.unit == "i32" else value & U32_MAX)


def _flag(reader: Reader, key: Key) -> None:
    value = reader.number(key.name)
    reader.values[key.name] = None if value is None else bool(value)
    if value is not None and key.into:
        reader.put_flag(key.into, bool(value))


def _bounded(reader: Reader, key: Key) -> None:
    text = reader.raw(key.name)
    value = None
    if text is not None:
        trouble = "is a list"
        if isinstance(text, str):
            value, trouble = reader.scan(key.name, text, 0, (1 << 31) - 1)
        if trouble:
            reason = f"{key.name} is no number from 0 to 2147483647"
            raise reader.refuse(key.name, reason, "correct it or leave it out", report=())
    _keep(reader, key, value)


def _word(reader: Reader, key: Key) -> None:
    word = reader.word(key)
    if word is None and key.getter is Getter.EXACT:
        word = str(key.default)
    reader.values[key.name] = word
    if word is None or not key.into:
        return
    names = dict(choice.partition(":")[::2] for choice in key.choices)
    reader.put(key.into, names[word] or word)


__all__ = ["Dialect", "read", "read_all"]
