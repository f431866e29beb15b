# SPDX-License-Identifier: BSD-2-Clause
"""Records of a domain: frozen dataclasses with libxl's field names, and their JSON.

A field is left out of the JSON when it has its default. A flag that libxl keeps as a defbool has
the default None and is written as the text ``True`` or ``False``; a plain bool has the default
False and stays a bool. Enumerations are libxl's names in lower case. Where libxl writes another
name than the field's, as for the arms of a union, it is in the field's metadata as ``libxl``.
"""

from __future__ import annotations

from typing import Any

from xl_configs.frozen import MISSING, fields, is_record


def as_json(value: Any) -> Any:
    """A record, or a tuple of them, as libxl writes it."""
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    if not is_record(value):
        return value
    shown: dict[str, Any] = {}
    for field in fields(value):
        held = getattr(value, field.name)
        if field.default is MISSING or held != field.default:
            defbool = field.default is None and isinstance(held, bool)
            shown[field.metadata.get("libxl", field.name)] = str(held) if defbool else as_json(held)
    return shown
