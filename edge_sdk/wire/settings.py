"""A TOML file as frozen dataclasses, one per table: how `device.toml` and `coordinator.toml` are read.

Rules of reading:

- an unknown key is an error that lists the known ones: a misspelt option must not be a silent default;
- a value has the type its field says (whole numbers pass for fractions, nothing else converts);
- a number out of range, or a text not of its form, is an error that states what is allowed;
- paths are relative to the file that names them.
"""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from edge_sdk.wire.errors import why_unreadable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_REQUIRED: Final = object()


class SettingsError(Exception):
    """What the file says cannot be meant; one line with the key, its value and what is allowed."""


def number(low: float, high: float, default: object = _REQUIRED) -> Any:  # noqa: ANN401 - what `field` returns
    """A field that must lie from `low` to `high`; without a `default`, or what computes one, it must be given."""
    return _field({"range": (low, high)}, default)


def text(read: Callable[[str], object], default: object = _REQUIRED, *, key: str = "") -> Any:  # noqa: ANN401 - as above
    """A field that `read` makes of a text, or raises ValueError with what it must be.

    In the file it is called `key`, when that is not the field's name. `default` is what the file would say.
    """
    return _field({"read": read, "key": key}, default if default is _REQUIRED else read(str(default)))


def matching(pattern: re.Pattern[str], allowed: str, default: object = _REQUIRED) -> Any:  # noqa: ANN401 - as above
    """A text field that is all `pattern`; `allowed` says that in words."""

    def read(value: str) -> str:
        if not pattern.fullmatch(value):
            msg = f"allowed: {allowed}"
            raise ValueError(msg)
        return value

    return text(read, default)


def read_settings(kind: type[T], path: pathlib.Path) -> T:
    """Read `path`, a file of tables as the dataclass `kind` has them. Raises SettingsError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{path}: cannot be read: {why_unreadable(error)}"
        raise SettingsError(msg) from error
    except RecursionError as error:
        msg = f"{path}: cannot be read: its lists or tables are nested too deeply"
        raise SettingsError(msg) from error
    try:
        return settings_of(kind, table, path.parent)
    except SettingsError as error:
        msg = f"{path}: {error}"
        raise SettingsError(msg) from error


def settings_of(kind: type[T], table: Mapping[str, object], base: pathlib.Path) -> T:
    """Tables as the dataclass `kind` has them; paths are relative to `base`. Raises SettingsError."""
    return _table(kind, table, "", base)


def _field(metadata: dict[str, object], default: object) -> Any:  # noqa: ANN401 - what `field` returns
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _table(kind: type[T], table: object, where: str, base: pathlib.Path) -> T:
    if not isinstance(table, Mapping):
        msg = f"{where} is {table!r}; it must be a table, [{where}]"
        raise SettingsError(msg)
    hints = typing.get_type_hints(kind)
    fields = {_key(field): field for field in dataclasses.fields(typing.cast("Any", kind))}
    for key in table:
        if key not in fields:
            msg = f"unknown key {_join(where, key)!r}; allowed here: {', '.join(fields)}"
            raise SettingsError(msg)
    values: dict[str, object] = {}
    for key, field in fields.items():
        if key in table:
            values[field.name] = _value(field, hints[field.name], table[key], _join(where, key), base)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            msg = f"{_join(where, key)} is missing"
            raise SettingsError(msg)
    return kind(**values)


def _value(field: dataclasses.Field[Any], hint: object, value: object, where: str, base: pathlib.Path) -> object:
    if "read" in field.metadata:
        written = _expect(str, value, where)
        try:
            return field.metadata["read"](written)
        except ValueError as error:
            raise _wrong(where, value, str(error)) from error
    found = _typed(hint, value, where, base)
    if "range" in field.metadata:
        low, high = field.metadata["range"]
        if not low <= typing.cast("float", found) <= high:  # also refuses nan
            raise _wrong(where, value, f"it must be from {low:g} to {high:g}")
    return found


def _typed(kind: Any, value: object, where: str, base: pathlib.Path) -> object:  # noqa: ANN401, PLR0911 - one per kind
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # an optional one
        return _typed(arguments[0], value, where, base)
    if dataclasses.is_dataclass(kind):
        return _table(typing.cast("type", kind), value, where, base)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_typed(arguments[0], item, f"{where}[{k}]", base) for k, item in enumerate(items))
    if issubclass(kind, enum.Enum):
        allowed = [member.value for member in kind]
        if value not in allowed:
            raise _wrong(where, value, f"allowed: {', '.join(allowed)}")
        return kind(value)
    if kind is pathlib.Path:
        return base / pathlib.Path(_expect(str, value, where)).expanduser()
    if kind is float:
        return float(_expect((int, float), value, where))
    return _expect(kind, value, where)


def _expect(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - checks a value of any type against any type
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or value == "":
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
        raise _wrong(where, value, f"it must be {names[kinds[-1]]}")
    return value


def _wrong(where: str, value: object, allowed: str) -> SettingsError:
    return SettingsError(f"{where} is {value!r}; {allowed}")


def _key(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("key") or field.name


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
