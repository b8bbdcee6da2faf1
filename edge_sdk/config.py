"""`device.toml` as frozen dataclasses: every limit stated, units in the names.

    device = "pi-1"
    fleet = "demo"
    broker = "mqtt://192.168.1.10:1883"
    budget = "256MB"                # peak resident memory of the worker; there is no default
    store = "store"                 # a folder; all that the device keeps lies in it
    threads = 4                     # default: all cores
    quota = "8GB"                   # of the store
    [data]
    kind = "text-folder"            # or "csv", "token-arrays"
    path = "texts"

Rules of reading: an unknown key, a value of another type and a value out of range are errors, in one line that names
key, value and what is allowed; nothing is converted but sizes; paths are relative to the file that names them.
"""

from __future__ import annotations

import enum
import os
import pathlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import ConfigError
from edge_sdk.memory import parse_size
from edge_sdk.wire.errors import why_unreadable
from edge_sdk.wire.topics import DEVICE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS: Final = ("device", "fleet", "broker", "budget", "store", "data", "threads", "quota")
DATA_KEYS: Final = ("kind", "path", "text_column", "label_column")
_PORT: Final = r"[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]"  # 1 to 65535
BROKER: Final = re.compile(rf"mqtt://[^\s/:@]+(:({_PORT}))?")
MB: Final = 10**6
MIN_BYTES, MAX_BYTES = MB, 10**12  # of a budget and of a quota
DEFAULT_QUOTA: Final = "8GB"
MAX_THREADS: Final = 256


class DataKind(enum.Enum):
    """What the private data is: a folder of text files, a CSV file with a label per row, or .npy token arrays."""

    TEXT_FOLDER = "text-folder"
    CSV = "csv"
    TOKEN_ARRAYS = "token-arrays"  # noqa: S105 - tokens of a text


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the private data lies; the columns matter to `csv` alone."""

    kind: DataKind
    path: pathlib.Path
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """All of `device.toml`. `budget_bytes` bounds the worker's resident memory, `quota_bytes` the store."""

    device: str
    fleet: str
    broker: str
    budget_bytes: int
    store: pathlib.Path
    data: DataConfig
    threads: int
    quota_bytes: int


def load_config(path: pathlib.Path) -> DeviceConfig:
    """Read `path`. Raises ConfigError with one line."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{path}: cannot be read: {why_unreadable(error)}"
        raise ConfigError(msg) from error
    try:
        return _device(_Table(table, "", path.parent, KEYS))
    except ConfigError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error


def all_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _device(table: _Table) -> DeviceConfig:
    return DeviceConfig(
        device=table.matching("device", DEVICE, "letters, digits, dot, dash, underscore, at most 64"),
        fleet=table.matching("fleet", DEVICE, "letters, digits, dot, dash, underscore, at most 64"),
        broker=table.matching("broker", BROKER, "mqtt://host or mqtt://host:port, a port from 1 to 65535"),
        budget_bytes=table.size_bytes("budget"),
        store=table.path("store"),
        data=_data(table.table("data", DATA_KEYS)),
        threads=table.whole("threads", 1, MAX_THREADS, min(all_cores(), MAX_THREADS)),
        quota_bytes=table.size_bytes("quota", DEFAULT_QUOTA),
    )


def _data(table: _Table) -> DataConfig:
    return DataConfig(
        kind=DataKind(table.one_of("kind", [kind.value for kind in DataKind])),
        path=table.path("path"),
        text_column=table.text("text_column", "text"),
        label_column=table.text("label_column", "label"),
    )


class _Table:
    """One table of the file: each method reads one key, or raises ConfigError. Without a `default` it must be there."""

    def __init__(self, table: object, where: str, base: pathlib.Path, keys: tuple[str, ...]) -> None:
        if not isinstance(table, Mapping):
            msg = f"{where} is {table!r}, it must be a table, [{where}]"
            raise ConfigError(msg)
        self._table, self._prefix, self._base = table, f"{where}." if where else "", base
        for key in table:
            if key not in keys:
                msg = f"unknown key '{self._prefix}{key}'; allowed here: {', '.join(keys)}"
                raise ConfigError(msg)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "it must be a text")
        return value

    def matching(self, key: str, pattern: re.Pattern[str], allowed: str) -> str:
        value = self.text(key)
        if not pattern.fullmatch(value):
            raise self._wrong(key, value, f"allowed: {allowed}")
        return value

    def one_of(self, key: str, allowed: list[str]) -> str:
        value = self.text(key)
        if value not in allowed:
            raise self._wrong(key, value, f"allowed: {', '.join(allowed)}")
        return value

    def path(self, key: str) -> pathlib.Path:
        return self._base / pathlib.Path(self.text(key)).expanduser()

    def whole(self, key: str, low: int, high: int, default: int) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, value, f"it must be a whole number from {low} to {high}")
        return value

    def size_bytes(self, key: str, default: str | None = None) -> int:
        value = self.text(key, default)
        try:
            size_bytes = parse_size(value)
        except ConfigError as error:
            raise self._wrong(key, value, "it must be a size like 256MB or 1.5GB") from error
        if not MIN_BYTES <= size_bytes <= MAX_BYTES:
            raise self._wrong(key, value, f"it must be from {MIN_BYTES // MB}MB to {MAX_BYTES // MB}MB")
        return size_bytes

    def table(self, key: str, keys: tuple[str, ...]) -> _Table:
        return _Table(self._get(key, None), f"{self._prefix}{key}", self._base, keys)

    def _get(self, key: str, default: object) -> object:
        value = self._table.get(key, default)
        if value is None:
            msg = f"{self._prefix}{key} is missing"
            raise ConfigError(msg)
        return value

    def _wrong(self, key: str, value: object, allowed: str) -> ConfigError:
        return ConfigError(f"{self._prefix}{key} is {value!r}; {allowed}")
