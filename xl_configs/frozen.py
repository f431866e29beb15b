# SPDX-License-Identifier: BSD-2-Clause
"""Frozen records: a dataclass that is frozen and has slots, without the code that one compiles.

``dataclass`` writes and compiles six methods for each class, and its module imports ``inspect``:
together a third of the time of a command that reads one configuration and one tree. A record has
the same methods, written once. It is declared and used in the same way: ``@frozen`` above the
class, ``field`` for what is more than a default, ``replace`` and ``fields``. The functions of
``dataclasses`` and ``copy`` take records too. ``twin`` is the dataclass that a record stands for.

Limits: a record has no base class and no order (``<``), fields that are no arguments come last, and
no field has the name of an attribute of ``Record``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")

MISSING: Any = object()
"""Stands for a default that is not there."""


class Field:
    """One field of a record: its name, and the arguments of ``field``."""

    __slots__ = ("compare", "default", "default_factory", "init", "metadata", "name", "repr")

    def __init__(self, **told: Any) -> None:
        self.name = ""
        self.default = told.get("default", MISSING)
        self.default_factory = told.get("default_factory", MISSING)
        self.init: bool = told.get("init", True)
        self.repr: bool = told.get("repr", True)
        self.compare: bool = told.get("compare", True)
        self.metadata: Mapping[str, Any] = told.get("metadata", {})

    def made(self, of: str) -> Any:
        """What ``default_factory`` makes. Raises TypeError where there is none."""
        if self.default_factory is MISSING:
            raise TypeError(f"{of}() misses the argument {self.name!r}")
        return self.default_factory()


def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] = MISSING,
    init: bool = True,
    repr: bool = True,  # noqa: A002
    compare: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """A field that is more than a default; the arguments are those of ``dataclasses.field``."""
    return Field(
        default=default,
        default_factory=default_factory,
        init=init,
        repr=repr,
        compare=compare,
        metadata=metadata or {},
    )


class _DataclassFields:
    """What the functions of ``dataclasses`` look for, made when the first of them does."""

    def __get__(self, record: object, owner: type[Record]) -> Any:
        owner.__dataclass_fields__ = twin(owner).__dataclass_fields__
        return owner.__dataclass_fields__


class Record:
    """The methods of all records. Nothing but ``frozen`` makes a subclass."""

    __slots__ = ()
    _fields: ClassVar[tuple[Field, ...]] = ()
    _setters: ClassVar[tuple[Callable[[Any, Any], None], ...]] = ()
    _arguments: ClassVar[int] = 0
    _compared: ClassVar[Callable[[Any], Any]]
    __dataclass_fields__: ClassVar[Any] = _DataclassFields()

    def __init__(self, /, *given: Any, **named: Any) -> None:
        values = given
        if named or not len(given) == self._arguments == len(self._setters):
            values = self._bound(given, named)
        for put, value in zip(self._setters, values, strict=True):
            put(self, value)
        self.__post_init__()

    @classmethod
    def _bound(cls, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """A value for each field: those given in order, those named, the rest by default."""
        values = list(given)
        if len(given) > cls._arguments:
            raise TypeError(f"{cls.__name__}() takes {cls._arguments} arguments, not {len(given)}")
        for one in cls._fields[len(values) :]:
            if one.init and one.name in named:
                values.append(named.pop(one.name))
            elif one.default is not MISSING:
                values.append(one.default)
            else:
                values.append(one.made(cls.__name__))
        if named:
            raise TypeError(f"{cls.__name__}() takes no (second) argument {next(iter(named))!r}")
        return tuple(values)

    def __post_init__(self) -> None:
        """Run when all fields have their values."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        values = type(self)._compared
        return bool(values(self) == values(other))

    def __hash__(self) -> int:
        return hash(type(self)._compared(self))

    def __repr__(self) -> str:
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in self._fields if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), tuple(getattr(self, one.name) for one in self._fields))


def _remade(cls: type[Record], values: tuple[Any, ...]) -> Record:
    """A record of its values: how one is copied, and read from a pickle."""
    record = cls.__new__(cls)
    for put, value in zip(cls._setters, values, strict=True):
        put(record, value)
    return record


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[_T]) -> type[_T]:
    """Makes a record of a class with annotated fields, as ``dataclass(frozen=True, slots=True)``.

    Raises:
        TypeError: the class has a base, or an argument comes behind a field that is none.
    """
    if cls.__bases__ != (object,):
        raise TypeError(f"{cls.__name__}: a record has no base class")
    body = {name: held for name, held in vars(cls).items() if name not in _OF_NO_SLOTS}
    found = tuple(_field(name, body.pop(name, MISSING)) for name in cls.__annotations__)
    if [one.init for one in found] != sorted((one.init for one in found), reverse=True):
        raise TypeError(f"{cls.__name__}: an argument comes behind a field that is none")
    names = tuple(one.name for one in found)
    made: Any = type(cls.__name__, (Record,), {**body, "__slots__": names, "__match_args__": names})
    made.__qualname__ = cls.__qualname__
    made._fields = found
    made._arguments = sum(one.init for one in found)
    made._setters = tuple(made.__dict__[name].__set__ for name in names)
    compared = [one.name for one in found if one.compare]
    made._compared = attrgetter(*compared) if compared else _nothing
    return made  # type: ignore[no-any-return]


def _nothing(record: Record) -> tuple[()]:
    return ()


_OF_NO_SLOTS = ("__dict__", "__weakref__")


def _field(name: str, told: Any) -> Field:
    found = told if isinstance(told, Field) else Field(default=told)
    found.name = name
    return found


def replace(record: _T, /, **changes: Any) -> _T:
    """The record with other values in some fields. Raises TypeError, also for a field not init."""
    for one in fields(record):
        if one.init:
            changes.setdefault(one.name, getattr(record, one.name))
    return type(record)(**changes)


def fields(record: object) -> tuple[Field, ...]:
    """The fields of a record, or of a class of them. Raises TypeError for anything else."""
    if not is_record(record) and not (isinstance(record, type) and issubclass(record, Record)):
        raise TypeError(f"{record!r} is no record")
    found: tuple[Field, ...] = record._fields  # type: ignore[attr-defined]
    return found


def is_record(value: object) -> bool:
    """Whether it is a record, not a class of them."""
    return isinstance(value, Record)


def twin(cls: type[Any]) -> Any:
    """The dataclass of the same fields: the slow twin of a record, for those who know it alone."""
    import dataclasses

    body: dict[str, Any] = {"__annotations__": dict(cls.__annotations__)}
    for one in fields(cls):
        told = {name: getattr(one, name) for name in Field.__slots__ if name != "name"}
        body[one.name] = dataclasses.field(
            **{name: value for name, value in told.items() if value is not MISSING}
        )
    return dataclasses.dataclass(frozen=True, slots=True)(type(cls.__name__, (), body))
