# SPDX-License-Identifier: BSD-2-Clause
"""``vsnd`` entries: virtual sound cards, each a list of strings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xl_configs.frozen import field, frozen
from xl_configs.specs.options import SIGSEGV, one_of
from xl_configs.specs.scan import SpecError, as_u32, ascii_lower, comma_fields, strtok

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from xl_configs.specs.options import Table


@frozen
class VsndParams:
    """What a card, a PCM device or a stream can play.

    Attributes:
        sample_rates: in Hz.
        sample_formats: ALSA names in lower case, as in ``s16_le``.
        buffer_size: in bytes.
    """

    sample_rates: tuple[int, ...] = ()
    sample_formats: tuple[str, ...] = ()
    channels_min: int = 0
    channels_max: int = 0
    buffer_size: int = 0


@frozen
class VsndStream:
    """A stream; ``type`` is ``p`` for playback, ``c`` for capture, None where it is not said."""

    unique_id: str | None = None
    type: str | None = None
    params: VsndParams = field(default_factory=VsndParams)


@frozen
class VsndPcm:
    """A PCM device."""

    name: str | None = None
    params: VsndParams = field(default_factory=VsndParams)
    streams: tuple[VsndStream, ...] = ()


@frozen
class Vsnd:
    """A virtual sound card."""

    backend_domname: str | None = None
    devid: int | None = None
    short_name: str | None = None
    long_name: str | None = None
    params: VsndParams = field(default_factory=VsndParams)
    pcms: tuple[VsndPcm, ...] = ()


class _Part:
    """A card, PCM device or stream while its items are read."""

    def __init__(self) -> None:
        self.own: dict[str, Any] = {}
        self.params: dict[str, Any] = {}
        self.parts: list[_Part] = []

    def built(self) -> dict[str, Any]:
        """The fields of its record but the parts."""
        return {**self.own, "params": VsndParams(**self.params)}


def parse_vsnd(items: Sequence[str]) -> Vsnd:
    """Reads one card.

    An item is ``card``, ``pcm`` or ``stream``, in any case, and ``key=value`` fields behind
    commas. ``pcm`` opens a PCM device; ``stream`` opens a stream of the latest one, and a PCM
    device first where there is none.

    Args:
        items: the strings of the card's list, which may be empty.

    Raises:
        SpecError: another item or key, a bad format or stream type. At an empty list of rates or
            formats xl crashes.
    """
    card = _Part()
    for item in items:
        _item(card, item)
    pcms = (VsndPcm(**pcm.built(), streams=_streams(pcm.parts)) for pcm in card.parts)
    return Vsnd(**card.built(), pcms=tuple(pcms))


def _streams(parts: Iterable[_Part]) -> tuple[VsndStream, ...]:
    return tuple(VsndStream(**part.built()) for part in parts)


def _item(card: _Part, text: str) -> None:
    """Adds what one item says to the card."""
    options = comma_fields(text)
    if not options:
        return
    kind = ascii_lower(options[0])
    if kind not in _OWN:
        raise SpecError(f"Invalid key: {options[0]}")
    part = _part(card, kind)
    for option in options[1:]:
        key, equals, value = option.partition("=")
        into, table = (part.params, _PARAMS) if key in _PARAMS else (part.own, _OWN[kind])
        if not equals or key not in table:
            raise SpecError(f"Invalid parameter: {option}")
        name, convert = table[key]
        into[name] = convert(value)


def _part(card: _Part, kind: str) -> _Part:
    """The part that an item of this kind is about."""
    if kind == "card":
        return card
    if kind == "pcm" or not card.parts:
        card.parts.append(_Part())
    pcm = card.parts[-1]
    if kind == "pcm":
        return pcm
    pcm.parts.append(_Part())
    return pcm.parts[-1]


def _list_of(key: str, convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A conversion of the values between semicolons."""

    def convert_all(value: str) -> tuple[Any, ...]:
        pieces = strtok(value, ";")
        if not pieces:
            raise SpecError(f"vsnd: {key}= lists none; xl crashes", crash=SIGSEGV)
        return tuple(convert(piece) for piece in pieces)

    return convert_all


_WORDS = tuple(f"{kind}{bits}" for bits in ("16", "24", "32") for kind in "su")
_ENDED = (*_WORDS, "f32", "f64", "iec958_subframe")
_FORMATS = (
    *("s8", "u8", "mu_law", "a_law", "ima_adpcm", "mpeg", "gsm"),
    *(f"{name}_{end}" for name in _ENDED for end in ("le", "be")),
)
_PARAMS: Table = {
    "sample-rates": ("sample_rates", _list_of("sample-rates", as_u32)),
    "sample-formats": (
        "sample_formats",
        _list_of("sample-formats", one_of(_FORMATS, "Invalid pcm format: {}")),
    ),
    "channels-min": ("channels_min", as_u32),
    "channels-max": ("channels_max", as_u32),
    "buffer-size": ("buffer_size", as_u32),
}
_OWN: dict[str, Table] = {
    "card": {
        "backend": ("backend_domname", str),
        "short-name": ("short_name", str),
        "long-name": ("long_name", str),
    },
    "pcm": {"name": ("name", str)},
    "stream": {
        "unique-id": ("unique_id", str),
        "type": ("type", one_of(("p", "c"), "Invalid stream type: {}")),
    },
}
