"""A dataclass alone in a small file that survives a power cut, or is known to be damaged.

SHA-256 of the rest, then msgpack (see `codec`)
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import Final, TypeVar

from edge_sdk.wire import codec
from edge_sdk.wire.blobs import READ_BYTES, written_atomically
from edge_sdk.wire.errors import WireError

T = TypeVar("T")
DIGEST_BYTES: Final = 32


def write_record(path: pathlib.Path, value: object, step: str = "") -> None:
    """Write `value`, whole or not at all; `step` is as in `blobs`. Raises OSError."""
    data = codec.encode(value)
    with written_atomically(path, step) as file:
        file.write(hashlib.sha256(data).digest())
        file.write(data)


def read_record(kind: type[T], path: pathlib.Path, max_bytes: int) -> T:
    """Read one `kind` of at most `max_bytes`. Raises WireError for a file that is damaged, OSError."""
    with path.open("rb") as file:
        record = file.read(DIGEST_BYTES + max_bytes + 1)
    digest, data = record[:DIGEST_BYTES], record[DIGEST_BYTES:]
    _check(digest, hashlib.sha256(data).digest())
    return codec.decode(kind, data, max_bytes)


def check_record(path: pathlib.Path) -> None:
    """Raise WireError for a file that is damaged, read in pieces; OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        digest = file.read(DIGEST_BYTES)
        while piece := file.read(READ_BYTES):
            found.update(piece)
    _check(digest, found.digest())


def _check(promised: bytes, found: bytes) -> None:
    if found != promised:
        msg = "its bytes do not have the promised SHA-256"
        raise WireError(msg)
