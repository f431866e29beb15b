# SPDX-License-Identifier: BSD-2-Clause
"""The real libxlutil as a program of its own, since it aborts on some inputs.

``python libxlutil.py LIBRARY`` reads frames of a 4-byte little-endian length and that many bytes,
each a configuration, and answers each with a line of JSON:

- ``ok``: whether the library accepts it;
- ``report``: its messages;
- ``settings``: name, operator, line and flat value of every assignment, in order;
- ``effective``: the flat value of each name, by the public getters;
- ``ns``: what ``xlu_cfg_readdata`` took.

Strings are latin-1, one character a byte. A flat value is a list: ``"[`` and ``"]"`` open and close
a list, and a string stands as ``"'"`` and its text, so that no nesting is too deep for JSON.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from typing import Any

Pointer = ctypes.c_void_p


class _Setting(ctypes.Structure):
    """One assignment as the library keeps it; its public interface does not list them."""


_Setting._fields_ = [
    ("next", ctypes.POINTER(_Setting)),
    ("name", ctypes.c_char_p),
    ("value", Pointer),
    ("op", ctypes.c_int),
    ("line", ctypes.c_int),
]


class Libxlutil:
    """The functions of libxlutil.h that read a configuration."""

    def __init__(self, place: str) -> None:
        self.c = ctypes.CDLL(None)
        self.c.open_memstream.restype = Pointer
        for name in ("fflush", "fclose", "free"):
            getattr(self.c, name).argtypes = [Pointer]
        self.xlu = ctypes.CDLL(place)
        self.xlu.xlu_cfg_init.restype = Pointer
        self.xlu.xlu_cfg_init.argtypes = [Pointer, ctypes.c_char_p]
        self.xlu.xlu_cfg_readdata.argtypes = [Pointer, ctypes.c_char_p, ctypes.c_int]
        self.xlu.xlu_cfg_destroy.argtypes = [Pointer]
        self.xlu.xlu_cfg_get_string.argtypes = [Pointer, ctypes.c_char_p, Pointer, ctypes.c_int]
        self.xlu.xlu_cfg_get_list.argtypes = [
            Pointer,
            ctypes.c_char_p,
            *[Pointer] * 2,
            ctypes.c_int,
        ]
        self.xlu.xlu_cfg_get_listitem2.restype = Pointer
        self.xlu.xlu_cfg_get_listitem2.argtypes = [Pointer, ctypes.c_int]
        for name in ("string", "list"):
            function = getattr(self.xlu, f"xlu_cfg_value_get_{name}")
            function.argtypes = [Pointer, Pointer, Pointer, ctypes.c_int]

    def read(self, data: bytes) -> dict[str, Any]:
        """Parses one configuration."""
        text, size = Pointer(), ctypes.c_size_t()
        stream = self.c.open_memstream(ctypes.byref(text), ctypes.byref(size))
        config = self.xlu.xlu_cfg_init(stream, b"cfg")
        begin = time.perf_counter_ns()
        ok = self.xlu.xlu_cfg_readdata(config, data, len(data)) == 0
        answer: dict[str, Any] = {"ok": ok, "ns": time.perf_counter_ns() - begin}
        answer["settings"] = self.settings(config) if ok else []
        names = dict.fromkeys(setting[0] for setting in answer["settings"])
        answer["effective"] = {name: self.effective(config, name) for name in names}
        self.c.fflush(stream)
        report = ctypes.string_at(text.value, size.value).decode("latin-1")
        answer["report"] = report.split("\n")[:-1]
        self.xlu.xlu_cfg_destroy(config)
        self.c.fclose(stream)
        self.c.free(text)
        return answer

    def settings(self, config: int) -> list[Any]:
        """Every assignment; the newest is first in the library's chain."""
        found = []
        at = ctypes.cast(config, ctypes.POINTER(ctypes.POINTER(_Setting))).contents
        while at:
            setting = at.contents
            op = "+=" if setting.op else "="
            found.append((_text(setting.name), op, setting.line, self.flat(config, setting.value)))
            at = setting.next
        return found[::-1]

    def effective(self, config: int, name: str) -> list[str]:
        """What a key holds, as its reader gets it."""
        key, string = name.encode("latin-1"), ctypes.c_char_p()
        if not self.xlu.xlu_cfg_get_string(config, key, ctypes.byref(string), 1):
            return ["'" + _text(string.value)]
        items, count = Pointer(), ctypes.c_int()
        failed = self.xlu.xlu_cfg_get_list(config, key, ctypes.byref(items), ctypes.byref(count), 1)
        if failed:
            return ["neither a string nor a list"]
        flat = ["["]
        for i in range(count.value):
            flat += self.flat(config, self.xlu.xlu_cfg_get_listitem2(items, i))
        return [*flat, "]"]

    def flat(self, config: int, value: int) -> list[str]:
        """A value of any depth."""
        string, items = ctypes.c_char_p(), Pointer()
        out: list[str] = []
        rest: list[int | None] = [value]
        while rest:
            value = rest.pop()
            if value is None:
                out.append("]")
            elif not self.xlu.xlu_cfg_value_get_string(config, value, ctypes.byref(string), 1):
                out.append("'" + _text(string.value))
            else:
                self.xlu.xlu_cfg_value_get_list(config, value, ctypes.byref(items), 1)
                out.append("[")
                rest.append(None)
                inner = []
                while (item := self.xlu.xlu_cfg_get_listitem2(items, len(inner))) is not None:
                    inner.append(item)
                rest += reversed(inner)
        return out


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("latin-1")


def serve(place: str) -> None:
    """Answers until the input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = Libxlutil(place)
    source = sys.stdin.buffer
    while head := source.read(4):
        answer = library.read(source.read(int.from_bytes(head, "little")))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
