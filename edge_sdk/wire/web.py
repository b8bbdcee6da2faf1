"""Blobs from a web server: `<base>/<sha256>`, read with range requests through the standard library.

A server is trusted with nothing: what comes are chunks like a broker's; the blob's SHA-256 has the last word. Rules:

- https, with a certificate that the system's authorities vouch for; http to this machine alone;
- no redirect is followed, no name and password sent, no more read than the blob has;
- a server that is silent for SILENCE_S, or gives less than LEAST_BYTES_S for a chunk, is given up.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import MAX_TEXT, Chunk
from edge_sdk.wire.partial import chunk_count, chunk_length

SILENCE_S: Final = 10.0
LEAST_BYTES_S: Final = 8 * 1024
BASE_RULE: Final = "write https://HOST[:PORT]/PATH, without user, query or fragment; http:// for this machine alone"


class SourceError(WireError):
    """A web server does not give a blob; the message says why."""


@dataclass(frozen=True, slots=True)
class Base:
    """Where a server has blobs."""

    host: str
    port: int
    tls: bool
    path: str


def base(url: str) -> Base:
    """What a URL says, and nothing besides. Raises ValueError with the rule."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(BASE_RULE) from error
    host, tls = parts.hostname or "", parts.scheme == "https"
    extra = parts.username or parts.password or parts.query or parts.fragment or port == 0
    plain = parts.scheme == "http" and _is_loopback(host)
    odd = any(not 0x20 < ord(letter) < 0x7F for letter in url)  # noqa: PLR2004 - what may be in a request's line
    if extra or odd or not host or not (tls or plain) or len(url) > MAX_TEXT:
        raise ValueError(BASE_RULE)
    return Base(host, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def base_url(url: str) -> str:
    """The URL itself, for a configuration's field. Raises ValueError with the rule."""
    base(url)
    return url


def chunks(where: Base, blob: Blob, chunk_bytes: int, first: int) -> Iterator[Chunk]:
    """The blob's chunks from `first` on, in order. Waits for the server; raises SourceError."""
    connection = _connection(where)
    try:
        yield from _read(connection, where, blob, chunk_bytes, first)
    except (OSError, http.client.HTTPException, ValueError) as error:
        msg = f"{where.host}: {error or type(error).__name__}"
        raise SourceError(msg) from error
    finally:
        connection.close()


def _connection(where: Base) -> http.client.HTTPConnection:
    if where.tls:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(where.host, where.port, timeout=SILENCE_S, context=context)
    return http.client.HTTPConnection(where.host, where.port, timeout=SILENCE_S)


def _read(
    connection: http.client.HTTPConnection, where: Base, blob: Blob, chunk_bytes: int, first: int
) -> Iterator[Chunk]:
    begin, size_bytes = first * chunk_bytes, blob.size_bytes
    headers = {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
    connection.request("GET", f"{where.path}/{blob.sha256}", headers=headers)
    answer = connection.getresponse()
    ranges = {
        http.client.PARTIAL_CONTENT: f"bytes {begin}-{size_bytes - 1}/{size_bytes}",
        http.client.OK: None if begin == 0 else "no range",
    }
    if answer.status not in ranges or answer.getheader("Content-Range") != ranges[http.HTTPStatus(answer.status)]:
        msg = f"{where.host} answers {answer.status} {answer.reason}"[:200]
        raise SourceError(msg)
    for index in range(first, chunk_count(size_bytes, chunk_bytes)):
        data = _exactly(answer, chunk_length(size_bytes, chunk_bytes, index))
        yield Chunk(blob.sha256, chunk_bytes, index, zlib.crc32(data), data)


def _exactly(answer: http.client.HTTPResponse, length: int) -> bytes:
    patience_s = time.monotonic() + SILENCE_S + length / LEAST_BYTES_S
    pieces, left = [], length
    while left:
        piece = answer.read1(left)
        if not piece:
            msg = f"the file ends {left} bytes early"
            raise SourceError(msg)
        if time.monotonic() > patience_s:
            msg = "too slow"
            raise SourceError(msg)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
