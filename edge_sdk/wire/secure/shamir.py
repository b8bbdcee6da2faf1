"""A secret dealt out: any `threshold` of its shares give it back, fewer tell nothing.

A. Shamir, How to Share a Secret, CACM 1979. The secret is the value at 0 of a random polynomial of degree threshold - 1
over the integers modulo the smallest prime above 2^256, a share its value at a point from 1. So a secret has 32 bytes,
and a share 33, big-endian.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from edge_sdk.wire.errors import MaskError

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33


def split(secret: bytes, threshold: int, points: Iterable[int]) -> dict[int, bytes]:
    """A share for each point. Raises ValueError for points that cannot be, or fewer than `threshold` of them."""
    wanted = sorted(points)
    if len(secret) != SECRET_BYTES:
        msg = f"a secret of {len(secret)} bytes, it must have {SECRET_BYTES}"
        raise ValueError(msg)
    if len(set(wanted)) != len(wanted) or not 1 <= threshold <= len(wanted) or wanted[0] < 1:
        msg = f"{threshold} shares of {len(wanted)} points cannot give a secret back"
        raise ValueError(msg)
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {point: _value(polynomial, point).to_bytes(SHARE_BYTES, "big") for point in wanted}


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of exactly so many shares as its threshold, by point; of fewer, of others or of changed ones it is
    another secret, or none.

    Raises MaskError where it is none.
    """
    values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    if not values or min(values) < 1 or max(values.values()) >= PRIME:
        msg = "what is no share of a secret"
        raise MaskError(msg)
    found = 0
    for point, value in values.items():
        above, below = 1, 1
        for other in values:
            if other != point:
                above, below = above * other % PRIME, below * (other - point) % PRIME
        found += value * above * pow(below, -1, PRIME)
    found %= PRIME
    if found >= 1 << (8 * SECRET_BYTES):
        msg = "these shares are not of one secret"
        raise MaskError(msg)
    return found.to_bytes(SECRET_BYTES, "big")


def threshold_of(neighbours: int) -> int:
    """How many of a device's neighbours are needed to open what it dealt out: the fewest that a liar cannot have twice.

    It may tell some neighbours that the device is in the sum, and others that it is not: these give up shares of the
    one secret, those of the other. Neighbours in league with it, fewer than a third, give up both. About two thirds are
    needed, then, and as long as about two thirds are left, the sum opens.
    """
    leagued = (neighbours - 1) // 3
    return (neighbours + leagued) // 2 + 1


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value
