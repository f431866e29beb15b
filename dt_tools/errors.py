# SPDX-License-Identifier: BSD-2-Clause
"""The errors of `dt_tools`: a bad blob, a user's mistake, a refusal by policy.

Each carries its facts as attributes and prints as one line. `exit_code` is what the command
line leaves with: 2 = input invalid, 4 = refused by policy.
"""

from __future__ import annotations


class DtError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 2


def _join(*parts: str | None, tail: str | None) -> str:
    line = ": ".join(part for part in parts if part)
    return f"{line}; {tail}" if tail else line


class DtbError(DtError):
    """A device-tree blob, or a tree that cannot become one, breaks the format or a limit.

    `source` is the file name; `offset` the byte offset in it; `path` the full path of the node
    concerned; `hint` what to do. Prints as `SOURCE: offset 0x..: /path: reason; hint`.
    """

    def __init__(
        self,
        source: str,
        reason: str,
        *,
        offset: int | None = None,
        path: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = None if offset is None else f"offset {offset:#x}"
        super().__init__(_join(source, where, path, reason, tail=hint))
        self.source = source
        self.offset = offset
        self.path = path
        self.reason = reason
        self.hint = hint


class UserError(DtError):
    """Something the user named does not exist or is not of the expected form.

    Prints as `SOURCE: PATH: reason; hint`.
    """

    def __init__(self, source: str, path: str, reason: str, hint: str | None = None) -> None:
        super().__init__(_join(source, path, reason, tail=hint))
        self.source = source
        self.path = path
        self.reason = reason
        self.hint = hint


class Refusal(DtError):  # noqa: N818 - the field's word for it
    """The input is well formed, but doing what it asks would be unsafe or impossible.

    `rule` is a rule id such as `DT101`; `path` the full path of the node; `fix` what to change.
    Prints as `RULE: /path: reason; fix`.
    """

    exit_code = 4

    def __init__(self, rule: str, path: str, reason: str, fix: str | None = None) -> None:
        super().__init__(_join(rule, path, reason, tail=fix))
        self.rule = rule
        self.path = path
        self.reason = reason
        self.fix = fix
