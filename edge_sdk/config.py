"""`device.toml` as frozen dataclasses: every limit stated, units in the names.

    device = "pi-1"
    fleet = "demo"
    broker = "mqtt://192.168.1.10:1883"
    budget = "256MB"                # peak resident memory of the worker; there is no default
    store = "store"                 # a folder; all that the device keeps lies in it
    threads = 4                     # default: all cores
    clock = true                    # train with all threads at a lower clock, where a task asks for less power
    quota = "8GB"                   # of the store
    provider = "cpu"                # or "cuda", where the installed onnxruntime has it
    max_packet_bytes = 131072       # what the broker takes, for one that cannot say so itself; it matters to few
    token = "fedpeat-..."           # what `fedpeat devices invite pi-1` printed; needed once, and may stay
    [data]
    kind = "text-folder"            # or "csv", "json-lines", "token-arrays"; "image-files", "image-arrays", "idx"
    path = "texts"
    [privacy]                       # what the owner asks of every task; see `edge_sdk.floor`
    secure_sum = true               # none without a secure sum
    roster = "roster.txt"           # whom this device's masks may be with
    [tls]                           # for a broker = "mqtts://...": PEM files, made by `fedpeat broker init`
    ca = "tls/ca.crt"
    certificate = "tls/client.crt"
    key = "tls/client.key"

How it is read: `edge_sdk.wire.settings`.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import pathlib
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import ConfigError
from edge_sdk.floor import Floor
from edge_sdk.memory import parse_size
from edge_sdk.providers import Provider
from edge_sdk.wire.endpoint import TlsFiles, broker_url
from edge_sdk.wire.settings import SettingsError, matching, number, read_settings, text
from edge_sdk.wire.topics import DEVICE, FLEET, NAME_RULE
from edge_sdk.wire.transport import MAX_PACKET_BYTES, MIN_PACKET_BYTES

MB: Final = 10**6
MIN_BYTES, MAX_BYTES = MB, 10**12  # of a budget and of a quota
MAX_THREADS: Final = 256


class DataKind(enum.Enum):
    """What the private data is: a folder of text files, a CSV file with a label per row, lines of JSON with a label for
    each word, or .npy token arrays; a folder of pictures for each class, .npy image arrays, a file in MNIST's format.
    """

    TEXT_FOLDER = "text-folder"
    CSV = "csv"
    JSON_LINES = "json-lines"
    TOKEN_ARRAYS = "token-arrays"  # noqa: S105 - tokens of a text
    IMAGE_FILES = "image-files"
    IMAGE_ARRAYS = "image-arrays"
    IDX = "idx"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the private data lies; the columns matter to `csv` alone."""

    kind: DataKind
    path: pathlib.Path
    text_column: str = "text"
    label_column: str = "label"


def all_cores() -> int:
    """How many cores this process may use, at most as many as `threads` may say."""
    return min(len(os.sched_getaffinity(0)), MAX_THREADS)


def _size(value: str) -> int:
    try:
        size_bytes = parse_size(value)
    except ConfigError as error:
        msg = "it must be a size like 256MB or 1.5GB"
        raise ValueError(msg) from error
    if not MIN_BYTES <= size_bytes <= MAX_BYTES:
        msg = f"it must be from {MIN_BYTES // MB}MB to {MAX_BYTES // MB}MB"
        raise ValueError(msg)
    return size_bytes


def _token(value: str) -> str:
    if not value:
        return value
    from edge_sdk.wire.tokens import read_token  # cryptography comes with it: nobody but an agent needs that

    return read_token(value).token


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """All of `device.toml`. `budget_bytes` bounds the worker's resident memory, `quota_bytes` the store.

    With `clock` a task's power is a share of the cores' clock, not of the threads, see `edge_sdk.power`.
    With a `token` the device obeys the coordinator that is named in it, and no other.
    """

    device: str = matching(DEVICE, NAME_RULE)
    fleet: str = matching(FLEET, NAME_RULE)
    broker: str = text(broker_url)
    budget_bytes: int = text(_size, key="budget")
    store: pathlib.Path
    data: DataConfig
    threads: int = number(1, MAX_THREADS, all_cores)
    clock: bool = False
    quota_bytes: int = text(_size, "8GB", key="quota")
    provider: Provider = Provider.CPU
    tls: TlsFiles | None = None
    max_packet_bytes: int = number(MIN_PACKET_BYTES, MAX_PACKET_BYTES, MAX_PACKET_BYTES)
    token: str = text(_token, "")
    privacy: Floor = dataclasses.field(default_factory=Floor)


def load_config(path: pathlib.Path) -> DeviceConfig:
    """Read `path`. Raises ConfigError with one line."""
    try:
        return read_settings(DeviceConfig, path)
    except SettingsError as error:
        raise ConfigError(str(error)) from error
