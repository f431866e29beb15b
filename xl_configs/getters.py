# SPDX-License-Identifier: BSD-2-Clause
"""Reading of one key out of a parsed configuration, the way xl reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xl_configs.errors import ConfigError, Diagnostic, printed
from xl_configs.keys import Dialect, Getter, Key
from xl_configs.specs.scan import C2X, U32_MAX, U64_MAX, SpecError, ascii_lower, scan_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Concatenate, ParamSpec, TypeVar

    from xl_configs.parser import ParseResult, Setting, Value
    from xl_configs.specs.cpus import Host

    _Entry = TypeVar("_Entry")
    _Text = TypeVar("_Text")
    _More = ParamSpec("_More")

LONG_MAX = (1 << 63) - 1
INT_MAX = (1 << 31) - 1
_DOUBTED = 1 << 32  # MiB: 4 PiB fill a 52-bit address space

# Fields of libxl's domain configuration whose default is not 0 or nothing.
_DEFAULTS = {
    **{
        f"b_info/sched_params/{name}": -1
        for name in ("weight", "cap", "period", "slice", "latency", "extratime")
    },
    **{
        f"b_info/{name}_memkb": U64_MAX
        for name in ("target", "max", "video", "shadow", "stubdomain", "type.hvm/rdm_mem_boundary")
    },
    **{
        f"on_{event}": "destroy"
        for event in ("poweroff", "reboot", "watchdog", "crash", "soft_reset")
    },
    **{f"b_info/max_{name}": -1 for name in ("grant_frames", "maptrack_frames", "grant_version")},
    "c_info/passthrough": "default",
    "b_info/tee": "none",
    "b_info/tsc_mode": "default",
    "b_info/timer_mode": "unknown",
    "b_info/altp2m": "disabled",
    "b_info/arch_arm/vuart": "unknown",
    "b_info/arch_arm/gic_version": "default",
    "b_info/arch_arm/sve_vl": "disabled",
    "b_info/arch_arm/viommu_type": "none",
    "b_info/type.hvm/hdtype": "ide",
    "b_info/type.hvm/bios": "unknown",
    "b_info/type.hvm/vendor_device": "none",
    "b_info/type.hvm/gfx_passthru_kind": "default",
}


def as_i32(value: int) -> int:
    """A number as a C int keeps it."""
    low = value & U32_MAX
    return low - (1 << 32) if low >> 31 else low


class Reader:
    """Getters over one parse result, and what reading it gives.

    Attributes:
        source: name of the configuration, for messages.
        dialect: whose reading it is.
        host: the machine it is read on, or None when nothing is known of it.
        said: so far, in the order in which the keys were read.
        domain: libxl's domain configuration, nested; what has its default is absent.
        values: by key, what the key means, for the keys that have been read.
        guest_type: ``pvh``, ``pv`` or ``hvm``; empty before it is known.
    """

    def __init__(
        self, parsed: ParseResult, source: str, dialect: Dialect, host: Host | None
    ) -> None:
        self.source = source
        self.dialect = dialect
        self.host = host
        self.said: list[Diagnostic] = []
        self.domain: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.guest_type = ""
        self._values = parsed.effective
        self._last: dict[str, Setting] = {setting.name: setting for setting in parsed.settings}

    def line(self, name: str) -> int | None:
        """Line of the setting that decides a key."""
        setting = self._last.get(name)
        return setting.line if setting else None

    def raw(self, name: str) -> Value | None:
        """What the key holds, unread; None when it is absent."""
        return self._values.get(name)

    def domain_level(self, into: str) -> None:
        """Makes a level of the domain configuration that libxl writes even when it is empty."""
        place = self.domain
        for level in into.split("/"):
            place = place.setdefault(level, {})

    def put(self, into: str, value: Any) -> None:
        """Sets a field of the domain configuration; ``into`` is the path of its levels.

        libxl leaves a field out that has its default, and so does this.
        """
        if value == _DEFAULTS.get(into, 0):
            return
        *levels, name = into.split("/")
        place = self.domain
        for level in levels:
            place = place.setdefault(level, {})
        place[name] = value

    def put_flag(self, into: str, value: bool) -> None:
        """Sets a field that libxl keeps as a defbool."""
        self.put(into, str(value))

    # What is said

    def refuse(
        self,
        name: str,
        reason: str,
        fix: str,
        *,
        code: int = 1,
        report: tuple[str, ...] | None = None,
    ) -> ConfigError:
        """The error for what a key says, to raise.

        Args:
            name: the key.
            reason: what is wrong.
            fix: what to write instead.
            code: xl's exit code; minus the signal where xl crashes.
            report: the lines xl prints, possibly none; ``reason`` unless given.
        """
        last = Diagnostic("", None, "", "\n".join((reason,) if report is None else report))
        return ConfigError(
            self.source,
            self.line(name),
            reason,
            fix,
            report=printed([*self.said, last]),
            exit_code=code,
            said=tuple(self.said),
        )

    def warn(self, id_: str, name: str, message: str, xl: str = "") -> None:
        """Adds a warning about a key; ``xl`` is xl's wording without its place."""
        report = f"{self.source}:{self.line(name)}: warning: {xl}" if xl else ""
        self.note(id_, name, message, report)

    def note(
        self, id_: str, name: str, message: str, report: str = "", *, unended: bool = False
    ) -> None:
        """Adds a warning about a key, with the whole of what xl prints, if anything."""
        text = f"{name}: {message}"
        self.said.append(Diagnostic(id_, self.line(name), text, report, unended))

    # Getters

    def string(self, name: str, *, quiet: bool = False) -> str | None:
        """A single value, or None when the key is absent or a list."""
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value
        said = f"parameter `{name}' is a list but should be a single value"
        self.warn(
            "XL104",
            name,
            "a list where one value belongs; xl ignores the key, so take the brackets away",
            "" if quiet else said,
        )
        return None

    def number(self, name: str, low: int = -LONG_MAX - 1, high: int = LONG_MAX) -> int | None:
        """A number in C notation within bounds; None when it is absent or xl ignores it."""
        text = self.string(name)
        if text is None:
            return None
        value, trouble = self.scan(name, text, low, high)
        if trouble:
            self.warn("XL105", name, "not a number xl can read; xl ignores the key", trouble)
            return None
        return value

    def quiet_number(self, name: str) -> int | None:
        """A number, or None, without a word when it is none."""
        text = self._values.get(name)
        if not isinstance(text, str):
            return None
        value, trouble = self.scan(name, text)
        return None if trouble else value

    def scan(
        self, name: str, text: str, low: int = -LONG_MAX - 1, high: int = LONG_MAX
    ) -> tuple[int, str]:
        """A number, and why xl cannot use it, in its words; no words if it can."""
        if self._last[name].op == "+=":
            return 0, f"can't use += with numbers for parameter `{name}'"
        scanned = scan_number(text, 0, C2X)
        if scanned is not None and not -LONG_MAX - 1 <= scanned[0] <= LONG_MAX:
            said = "could not be parsed as a number: Numerical result out of range"
            return 0, f"parameter `{name}' {said}"
        if scanned is None or scanned[1] != len(text):
            return 0, f"parameter `{name}' is not a valid number"
        value = scanned[0]
        if value < low:
            return 0, f"value `{value}' is smaller than minimum bound '{low}'"
        if value > high:
            return 0, f"value `{value}' is greater than maximum bound '{high}'"
        return value, ""

    def list(self, name: str, *, quiet: bool = False) -> tuple[Value, ...] | None:
        """The elements of a list key; None when it is absent or a single value."""
        value = self._values.get(name)
        if value is None or not isinstance(value, str):
            return value
        if not quiet:
            self.warn(
                "XL102",
                name,
                f"one value where a list belongs; xl ignores the key, so write {name}=[...]",
                f"parameter `{name}' is a single value but should be a list",
            )
        return None

    def strings(self, name: str, *, quiet: bool = False) -> tuple[str, ...] | None:
        """The elements of a list key up to the first that is no string; None as for ``list``."""
        value = self.list(name, quiet=quiet)
        return None if value is None else tuple(self._until_list(name, value))

    def _until_list(self, name: str, value: tuple[Value, ...]) -> Iterator[str]:
        for index, item in enumerate(value):
            if not isinstance(item, str):
                self.warn(
                    "XL103",
                    name,
                    f"element {index} is itself a list; xl stops there and ignores the "
                    f"{len(value) - index} from it on",
                )
                return
            yield item

    def all_strings(self, key: Key, refusal: str) -> Iterator[str]:
        """The elements of a list key, all of which must be strings; none when there is no list.

        Raises:
            ConfigError: when it comes to one that is not; ``refusal`` is xl's message, with ``{}``
                for its index.
        """
        for index, item in enumerate(self.list(key.name) or ()):
            if not isinstance(item, str):
                raise self.refuse(key.name, refusal.format(index), key.fix)
            yield item

    def word(self, key: Key) -> str | None:
        """One of the words of a key; None when it is absent or a list.

        Raises:
            ConfigError: any other word.
        """
        text = self.string(key.name, quiet=key.quiet)
        if text is None:
            return None
        words = [choice.partition(":")[0] for choice in key.choices]
        if key.getter is Getter.PREFIX:
            found = [word for word in words if word.startswith(text)]
        else:
            folded = ascii_lower(text) if key.getter is Getter.WORD else text
            found = [word for word in words if word == folded]
        if not found:
            raise self.refuse(key.name, key.refusal.format(text), key.fix, code=key.exit_code)
        if key.getter is Getter.PREFIX and found[0] != text:
            self.warn("XL108", key.name, f'"{text}" is the beginning of {found[0]}; xl takes it so')
        return found[0]

    def entry(
        self,
        key: Key,
        parser: Callable[Concatenate[_Text, _More], _Entry],
        text: _Text,
        *more: _More.args,
        **named: _More.kwargs,
    ) -> _Entry:
        """What a little language makes of one entry.

        Raises:
            ConfigError: it refuses the entry.
        """
        try:
            return parser(text, *more, **named)
        except SpecError as error:
            reason = str(error) if error.report else f"{key.name} entry '{text}' is refused by xl"
            raise self.refuse(
                key.name, reason, key.fix, code=error.exit_code, report=error.report
            ) from None

    def sayer(self, key: Key, *, unended: bool = False) -> Callable[[str], None]:
        """What takes the lines xl prints about an entry that it does not refuse."""

        def say(line: str) -> None:
            message = f"xl ignores a part of the entry: {line}"
            self.note("XL111", key.name, message, line, unended=unended)

        return say

    def size(self, key: Key, value: int) -> int:
        """MiB as libxl's KiB, which wrap around; doubtful sizes are warned of."""
        kilobytes = (value * 1024) & U64_MAX
        if not 0 <= value <= _DOUBTED:
            self.warn(
                "XL112",
                key.name,
                f"{value} MiB; xl takes it for {kilobytes} KiB, use 0 to {_DOUBTED}",
            )
        return kilobytes
