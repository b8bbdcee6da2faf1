"""Bad inputs made of true ones: what a disk, a line, or somebody who read the source would make of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

# Lengths and kinds of msgpack that promise far more than follows, numbers at the ends of their types, and TOML's own.
TOKENS: Final = (
    b"\xc6\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\xca\x7f\x80\x00\x01",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xc0",
    b"\xc1",
    b"\xc2",
    b"\xc3",
    b"\x80",
    b"\x90",
    b"\xa0",
    b"\xc4\x00",
    b"\xff",
    b"\x00",
    b"../",
    b"\n[",
    b"=",
    b'"',
    b"nan",
    b"inf",
    b"-1",
    b"99999999999999999999",
)


def _flip(data: bytearray, lots: random.Random) -> None:
    for _ in range(lots.choice((1, 1, 1, 2, 4, 16))):
        if data:
            data[lots.randrange(len(data))] ^= 1 << lots.randrange(8)


def _replace_byte(data: bytearray, lots: random.Random) -> None:
    if data:
        data[lots.randrange(len(data))] = lots.randrange(256)


def _cut(data: bytearray, lots: random.Random) -> None:
    del data[lots.randrange(len(data) + 1) :]


def _drop(data: bytearray, lots: random.Random) -> None:
    start = lots.randrange(len(data) + 1)
    del data[start : start + lots.randint(1, 16)]


def _repeat(data: bytearray, lots: random.Random) -> None:
    start = lots.randrange(len(data) + 1)
    part = data[start : start + lots.randint(1, 64)]
    data[start:start] = part * lots.choice((1, 1, 2, 50))


def _insert(data: bytearray, lots: random.Random) -> None:
    place = lots.randrange(len(data) + 1)
    data[place:place] = lots.choice(TOKENS)


def _overwrite(data: bytearray, lots: random.Random) -> None:
    place, token = lots.randrange(len(data) + 1), lots.choice(TOKENS)
    data[place : place + len(token)] = token


def _noise(data: bytearray, lots: random.Random) -> None:
    data[:] = lots.randbytes(lots.choice((0, 1, 2, 8, 64, 512)))


def _nest(data: bytearray, lots: random.Random) -> None:
    data[:] = lots.choice((b"\x91", b"\x81\xa1a", b"[")) * lots.choice((3, 400, 3000)) + bytes(data[:8])


WAYS: Final[Sequence[Callable[[bytearray, random.Random], None]]] = (
    _flip,
    _flip,
    _replace_byte,
    _cut,
    _drop,
    _repeat,
    _insert,
    _insert,
    _overwrite,
    _overwrite,
    _noise,
    _nest,
)


def mutated(seeds: Sequence[bytes], lots: random.Random) -> bytes:
    """One bad input: a true one, or two of them joined, changed in one to four ways."""
    data = bytearray(lots.choice(seeds))
    if lots.random() < 0.05:
        other = lots.choice(seeds)
        data[lots.randrange(len(data) + 1) :] = other[lots.randrange(len(other) + 1) :]
    for _ in range(lots.choice((1, 1, 1, 2, 4))):
        lots.choice(WAYS)(data, lots)
    return bytes(data)
