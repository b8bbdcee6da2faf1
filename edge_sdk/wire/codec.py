"""Frozen dataclasses to msgpack and back, bounded and strict.

The bytes: a dataclass is a msgpack map from field name to value; a tuple is an array, and so is a set, in order; an
enum is its value, also as a map's key; `None` is nil. Rules of reading:

- nothing larger than `max_bytes` is looked at, and nothing nested deeper or longer than the limits below;
- every field has the type its dataclass says: no number becomes a string, no truth value a number; an integer fits in
  64 bits with a sign, as a ledger's column does;
- a map with a key twice, an extension type, or a value that the dataclass's own check refuses is an error;
- an unknown field is ignored (a newer peer may send it); a missing one takes its default or is an error.

msgpack alone inflates 64 fold (an empty list is one byte), so the bound on the bytes also bounds the memory. Where a
message may be long and its form is known, `Form` bounds that part, too: what is decoded takes little more than it has.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack

from edge_sdk.wire.errors import DecodeError, TooLargeError

T = TypeVar("T")

MAX_ITEMS = 65_536  # entries of one array or map: over 100x the largest manifest we write
MAX_INTEGER = (1 << 63) - 1
MAX_COMPLAINT = 300  # characters of an error: hostile bytes must not fill a log


def encode(value: object) -> bytes:
    """The msgpack bytes of a dataclass instance; the same fields, maps in the same order, give the same bytes."""
    packed: bytes = msgpack.packb(_plain(value), use_bin_type=True)
    return packed


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """The most arrays and maps in a message, together, and the most entries of one of them."""

    containers: int | None = None
    entries: int = MAX_ITEMS


def decode(kind: type[T], data: bytes, max_bytes: int, form: Form | None = None) -> T:
    """Read `data` as one `kind`.

    Raises:
        TooLargeError: `data` is longer than `max_bytes`.
        DecodeError: `data` is not exactly one valid `kind`, or goes beyond its `form`.
    """
    return from_plain(kind, unpack(data, max_bytes, form), kind.__name__)


def from_plain(kind: type[T], plain: object, where: str) -> T:
    """One `kind` out of what `unpack` gave. Raises DecodeError naming the field, under `where`, that is wrong."""
    try:
        return typing.cast("T", _read(kind, plain, where))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        msg = f"{error or type(error).__name__}"
        raise DecodeError(msg[:MAX_COMPLAINT]) from error


def unpack(data: bytes, max_bytes: int, form: Form | None = None) -> object:
    """The plain lists, maps and scalars in `data`. Raises TooLargeError, DecodeError."""
    form = form or Form()
    if len(data) > max_bytes:
        msg = f"{len(data)} bytes, at most {max_bytes} are accepted"
        raise TooLargeError(msg)
    try:
        plain: object = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_no_extensions,
            max_array_len=form.entries,
            max_map_len=form.entries,
            **_hooks(form.containers),
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        msg = f"not msgpack as this protocol uses it: {error or type(error).__name__}"
        raise DecodeError(msg) from error
    return plain


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(map(str, map(_plain, value)))  # of texts, or of enums that are texts
    return value


def _without_duplicates(pairs: list[tuple[object, object]]) -> dict[object, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a map has the same key twice"
        raise ValueError(msg)
    return found


def _hooks(most: int | None) -> dict[str, Any]:
    """What msgpack calls at the end of each map, and of each array where there may be at most so many of both."""
    if most is None:
        return {"object_pairs_hook": _without_duplicates}
    left = iter(range(most))

    def count() -> None:
        if next(left, None) is None:
            msg = f"more than {most} arrays and maps"
            raise ValueError(msg)

    def map_(pairs: list[tuple[object, object]]) -> dict[object, object]:
        count()
        return _without_duplicates(pairs)

    def array(items: list[object]) -> list[object]:
        count()
        return items

    return {"object_pairs_hook": map_, "list_hook": array}


def _no_extensions(code: int, _data: bytes) -> object:
    msg = f"extension type {code} is not part of this protocol"
    raise ValueError(msg)


def _read(kind: Any, value: object, where: str) -> object:  # noqa: ANN401, PLR0911 - an annotation is any object; one per kind
    """`value` as the annotation `kind` says, or ValueError naming `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _read(arguments[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast("type", kind), value, where)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_read(arguments[0], item, f"{where}[{k}]") for k, item in enumerate(items))
    if origin is frozenset:
        items = _expect(list, value, where)
        return frozenset(_read(arguments[0], item, f"{where}[{k}]") for k, item in enumerate(items))
    if origin is Mapping:
        entries = _expect(dict, value, where)
        return {
            _read(arguments[0], key, where): _read(arguments[1], item, f"{where}[{key!r}]")
            for key, item in entries.items()
        }
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _made(kind, where, _expect(str, value, where))
    return _read_scalar(kind, value, where)


def _read_scalar(kind: type, value: object, where: str) -> object:
    if kind is float:
        number = float(_expect((int, float), value, where))
        if not math.isfinite(number):
            msg = f"{where} is {number}, a finite number is needed"
            raise ValueError(msg)
        return number
    if kind is int and _expect(int, value, where) > MAX_INTEGER:
        msg = f"{where} is {value}, at most {MAX_INTEGER} is accepted"
        raise ValueError(msg)
    return _expect(kind, value, where)


def _expect(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - checks a value of any type against any type
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        msg = f"{where} is a {type(value).__name__}, a {wanted} is needed"
        raise ValueError(msg)
    return value


def _read_dataclass(kind: type, value: object, where: str) -> object:
    entries = _expect(dict, value, where)
    hints = _hints(kind)
    found = {name: _read(hint, entries[name], f"{where}.{name}") for name, hint in hints.items() if name in entries}
    required = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - found.keys()):
        msg = f"{where} lacks {', '.join(missing)}"
        raise ValueError(msg)
    return _made(kind, where, **found)


def _made(kind: type, where: str, /, *values: object, **fields: object) -> object:
    """`kind` of these, and `where` they stood in front of its own complaint."""
    try:
        return kind(*values, **fields)
    except ValueError as error:
        msg = f"{where}: {error}"
        raise ValueError(msg) from error


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
