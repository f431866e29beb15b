# SPDX-License-Identifier: BSD-2-Clause
"""Records against the dataclasses that they stand for, which are their slow twins."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xl_configs
from tests.counts import sliced
from xl_configs.frozen import field, fields, frozen, is_record, replace, twin
from xl_configs.guest_config import GuestConfig
from xl_configs.specs.resources import Iomem


@frozen
class Point:
    """Two numbers."""

    x: int
    y: int = 2

    @property
    def far(self) -> bool:
        return self.x > 9


@frozen
class Mixed:
    a: int
    b: Any = field(default=None, repr=False)
    c: dict[str, int] = field(default_factory=dict, compare=False)
    d: list[int] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        self.d.append(self.a)


@frozen
class Empty:
    pass


NAMES = ("alpha", "beta", "gamma", "delta", "self_", "omega")
VALUES = st.one_of(st.integers(0, 3), st.text("ab", max_size=2), st.none(), st.just(()))


@st.composite
def bodies(draw) -> dict[str, tuple[Any, ...]]:
    """Fields as (kind, default, flags), in an order that is legal."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    bare = draw(st.integers(0, len(names)))
    found = {}
    for at, name in enumerate(names):
        kind = "bare" if at < bare else draw(st.sampled_from(["plain", "default", "factory"]))
        flags = {flag: draw(st.booleans()) for flag in ("repr", "compare")}
        found[name] = (kind, draw(VALUES), flags)
    hidden = draw(st.integers(0, len(names) - bare))
    for name in names[len(names) - hidden :] if hidden else ():
        if found[name][0] != "plain":
            found[name][2]["init"] = False
    late = [n for n in names if found[n][2].get("init") is False]
    return {n: found[n] for n in (*(n for n in names if n not in late), *late)}


def made(body: dict[str, tuple[Any, ...]], how: Any, make_field: Any) -> Any:
    held: dict[str, Any] = {"__annotations__": dict.fromkeys(body, "Any"), "__qualname__": "Made"}
    for name, (kind, value, flags) in body.items():
        if kind == "bare":
            held[name] = make_field(**flags)
        elif kind == "plain":
            held[name] = value
        elif kind == "default":
            held[name] = make_field(default=value, **flags)
        else:
            held[name] = make_field(default_factory=lambda value=value: value, **flags)
    return how(type("Made", (), held))


def outcome(action: Any) -> Any:
    try:
        return action()
    except (TypeError, ValueError, AttributeError) as error:
        # In one thing they differ: dataclasses.replace calls an argument that is none a ValueError.
        return TypeError if isinstance(error, ValueError) else type(error)


@sliced(300)
@given(bodies(), st.data())
def test_a_record_is_its_dataclass(body, data):
    record = made(body, frozen, field)
    slow = made(body, dataclasses.dataclass(frozen=True, slots=True), dataclasses.field)
    calls = st.tuples(
        st.lists(VALUES, max_size=len(body) + 1),
        st.dictionaries(st.sampled_from((*body, "other")), VALUES, max_size=3),
    )
    pairs = []
    for args, named in data.draw(st.lists(calls, min_size=2, max_size=4)):
        one = outcome(lambda args=args, named=named: record(*args, **named))
        other = outcome(lambda args=args, named=named: slow(*args, **named))
        if isinstance(other, type):
            assert one is other
            continue
        assert repr(one) == repr(other)
        assert dataclasses.astuple(one) == dataclasses.astuple(other)
        pairs.append((one, other))
        changes = data.draw(st.dictionaries(st.sampled_from((*body, "other")), VALUES, max_size=2))
        ours = outcome(lambda one=one, changes=changes: replace(one, **changes))
        theirs = outcome(lambda other=other, changes=changes: dataclasses.replace(other, **changes))
        assert ours is theirs if isinstance(theirs, type) else repr(ours) == repr(theirs)
    for one, other in pairs:
        for two, another in pairs:
            assert (one == two) == (other == another)
            if one == two:
                assert hash(one) == hash(two)


def test_twin():
    slow = twin(Mixed)
    assert repr(slow(1, 2)) == repr(Mixed(1, 2))
    told = [(f.name, f.init, f.repr, f.compare, f.default) for f in dataclasses.fields(slow)]
    assert told == [
        (f.name, f.init, f.repr, f.compare, f.default) for f in dataclasses.fields(Mixed)
    ]
    assert [f.name for f in fields(Mixed)] == ["a", "b", "c", "d"]


def test_frozen():
    point = Point(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        point.x = 3
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'y'"):
        del point.y
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.other = 3
    assert not hasattr(point, "__dict__")
    assert (point, point.far, Point.__doc__) == (Point(1, 2), False, "Two numbers.")


def test_what_is_made_behind_the_arguments():
    mixed = Mixed(4)
    assert (mixed.d, mixed.c, mixed.c is Mixed(4).c) == ([4], {}, False)
    assert replace(mixed, a=5).d == [5]


@pytest.mark.parametrize("value", [Point(1), Mixed(1, b=(2, 3)), Empty(), Iomem(1, 2, 3)])
def test_copies(value):
    for again in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(again) is type(value)
        assert again == value
    assert is_record(value)
    assert not is_record(type(value))


def test_a_copy_keeps_what_the_arguments_do_not_say():
    mixed = Mixed(1)
    mixed.d.append(7)
    assert copy.copy(mixed).d == [1, 7]


def test_equal_to_none_but_its_own():
    @frozen
    class Place:
        x: int
        y: int

    assert Point(1, 2) == Point(1)
    for other in (Place(1, 2), (1, 2), None, twin(Point)(1, 2)):
        assert Point(1, 2) != other


def test_match():
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)


def test_the_functions_of_dataclasses():
    assert dataclasses.is_dataclass(Point)
    assert dataclasses.replace(Point(1), y=5) == Point(1, 5)
    assert dataclasses.asdict(Point(1)) == {"x": 1, "y": 2}
    assert [f.name for f in dataclasses.fields(GuestConfig)] == [
        f.name for f in fields(GuestConfig)
    ]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Point(), "Point() misses the argument 'x'"),
        (lambda: Point(1, 2, 3), "Point() takes 2 arguments, not 3"),
        (lambda: Mixed(1, 2, {}, []), "Mixed() takes 3 arguments, not 4"),
        (lambda: Point(1, x=2), "Point() takes no (second) argument 'x'"),
        (lambda: Point(1, z=2), "Point() takes no (second) argument 'z'"),
        (lambda: replace(Mixed(1), d=[]), "Mixed() takes no (second) argument 'd'"),
        (lambda: fields(3), "3 is no record"),
        (lambda: frozen(type("A", (dict,), {})), "A: a record has no base class"),
    ],
)
def test_refusals(call, text):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == text


def test_arguments_come_first():
    class Late:
        a: int = field(init=False, default=1)
        b: int = 2

    with pytest.raises(TypeError, match="Late: an argument comes behind a field that is none"):
        frozen(Late)


def test_names_of_the_package():
    for name in xl_configs.__all__:
        assert getattr(xl_configs, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'xl_configs' has no attribute 'other'"):
        xl_configs.other  # noqa: B018
