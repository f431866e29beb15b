# SPDX-License-Identifier: BSD-2-Clause
"""Reading of one key out of a parsed configuration, the way xl reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xl_configs.errors import ConfigError, Diagnostic
from xl_configs.keys import Getter, Key
from xl_configs.specs import ascii_lower, scan_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xl_configs.parser import ParseResult, Setting, Value

_LONG_MAX = (1 << 63) - 1


class Reader:
    """Getters over one parse result; collects the warnings.

    Attributes:
        source: name of the configuration, for messages.
        warnings: so far, in the order in which the keys were read.
    """

    def __init__(self, parsed: ParseResult, source: str) -> None:
        self.source = source
        self.warnings: list[Diagnostic] = []
        self._values = parsed.effective
        self._last: dict[str, Setting] = {setting.name: setting for setting in parsed.settings}

    def line(self, name: str) -> int | None:
        """Line of the setting that decides a key."""
        setting = self._last.get(name)
        return setting.line if setting else None

    def error(self, key: Key, reason: str) -> ConfigError:
        """The error for a value that a key does not take, to raise."""
        line = self.line(key.name)
        return ConfigError(self.source, line, reason, key.fix, exit_code=key.exit_code)

    def warn(self, id_: str, name: str, message: str, xl: str = "") -> None:
        """Adds a warning about a key; ``xl`` is xl's wording without its place."""
        line = self.line(name)
        report = f"{self.source}:{line}: warning: {xl}" if xl else ""
        self.warnings.append(Diagnostic(id_, line, f"{name}: {message}", report))

    def string(self, key: Key) -> str | None:
        """A single value, or None when the key is absent or a list."""
        value = self._values.get(key.name)
        if value is None or isinstance(value, str):
            return value
        said = f"parameter `{key.name}' is a list but should be a single value"
        self.warn(
            "XL104",
            key.name,
            "a list where one value belongs; xl ignores the key, so take the brackets away",
            "" if key.quiet else said,
        )
        return None

    def number(self, key: Key) -> int | None:
        """A number in C notation; the key's default when it is absent or unreadable.

        Raises:
            ConfigError: beyond the bounds this package sets.
        """
        default = key.default if isinstance(key.default, int) else None
        text = self.string(key)
        if text is None:
            return default
        trouble = self._number_trouble(key, text)
        if trouble:
            self.warn("XL105", key.name, "not a number xl can read; xl ignores the key", trouble)
            return default
        scanned = scan_number(text, 0, 0)
        assert scanned is not None
        value = scanned[0]
        if (key.low is not None and value < key.low) or (key.high is not None and value > key.high):
            bounds = f"at most {key.high}" if key.low is None else f"{key.low} to {key.high}"
            fix = f"use {bounds} ({key.why})"
            reason = f"{key.name}={value} is out of range"
            raise ConfigError(self.source, self.line(key.name), reason, fix)
        return value

    def _number_trouble(self, key: Key, text: str) -> str:
        """Why xl cannot use a number, in its words; empty if it can."""
        name = key.name
        if self._last[name].op == "+=":
            return f"can't use += with numbers for parameter `{name}'"
        scanned = scan_number(text, 0, 0)
        if scanned is not None and not -_LONG_MAX - 1 <= scanned[0] <= _LONG_MAX:
            return (
                f"parameter `{name}' could not be parsed as a number: Numerical result out of range"
            )
        if scanned is None or scanned[1] != len(text):
            return f"parameter `{name}' is not a valid number"
        return ""

    def choice(self, key: Key) -> str | None:
        """One of the words of a key; its default when it is absent or a list.

        Raises:
            ConfigError: any other word.
        """
        default = key.default if isinstance(key.default, str) else None
        text = self.string(key)
        if text is None:
            return default
        if key.getter is Getter.PREFIX:
            found = [word for word in key.choices if word.startswith(text)]
        else:
            folded = ascii_lower(text) if key.getter is Getter.CHOICE else text
            found = [word for word in key.choices if word == folded]
        if not found:
            raise self.error(key, key.refusal.format(text))
        return found[0]

    def items(self, key: Key) -> Iterator[str]:
        """The elements of a list key; nothing when it is absent or a single value.

        Raises:
            ConfigError: an element that is a list, for a key that wants all of them.
        """
        value = self._values.get(key.name)
        if value is None:
            return
        if isinstance(value, str):
            self.warn(
                "XL102",
                key.name,
                f"one value where a list belongs; xl ignores the key, so write {key.name}=[...]",
                f"parameter `{key.name}' is a single value but should be a list",
            )
            return
        yield from self._elements(key, value)

    def _elements(self, key: Key, value: tuple[Value, ...]) -> Iterator[str]:
        for index, item in enumerate(value):
            if isinstance(item, str):
                yield item
            elif key.getter is Getter.ALL_STRINGS:
                raise self.error(key, key.refusal.format(index))
            else:
                self.warn(
                    "XL103",
                    key.name,
                    f"element {index} is itself a list; xl stops there and ignores the "
                    f"{len(value) - index} from it on",
                )
                return
