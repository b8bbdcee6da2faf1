"""A chunk's bytes: a header of fixed length, and the data, which no codec copies. Integers are big-endian.

0xc9 | SHA-256 of the blob, 32 bytes | chunk_bytes, 4 | index, 8 | crc32, 4 | length of data, 4 | data
"""

from __future__ import annotations

import struct
from typing import Final

from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.errors import DecodeError, TooLargeError

MARK: Final = 0xC9  # begins no map, as all other messages are
HEADER: Final = struct.Struct(">B32sIQII")


def is_packed(payload: bytes) -> bool:
    """Whether a payload claims to be a chunk."""
    return payload[:1] == bytes([MARK])


def pack(blob: str, chunk_bytes: int, index: int, crc32: int, data: bytes | memoryview) -> bytes:
    """A chunk's bytes. Raises ValueError for what the header has no room for."""
    numbers = (chunk_bytes, index, crc32, len(data))
    try:
        header = HEADER.pack(MARK, bytes.fromhex(Blob(blob, 0).sha256), *numbers)
    except struct.error as error:
        msg = f"a chunk of {numbers}: {error}"
        raise ValueError(msg) from error
    return b"".join((header, data))


def unpack(payload: bytes, max_bytes: int) -> tuple[str, int, int, int, memoryview]:
    """What `pack` was given; the data is a view of the payload. Raises TooLargeError, DecodeError."""
    if len(payload) > max_bytes:
        msg = f"{len(payload)} bytes, at most {max_bytes} are accepted"
        raise TooLargeError(msg)
    if len(payload) < HEADER.size:
        msg = "the beginning of a chunk"
        raise DecodeError(msg)
    _mark, blob, chunk_bytes, index, crc32, length = HEADER.unpack_from(payload)
    if len(payload) != HEADER.size + length:
        msg = f"a chunk of {length} bytes in a message of {len(payload)}"
        raise DecodeError(msg)
    return blob.hex(), chunk_bytes, index, crc32, memoryview(payload)[HEADER.size :]
