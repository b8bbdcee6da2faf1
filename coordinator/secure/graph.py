"""Who is whose neighbour in a sum: everybody's, or, of many devices, enough that are drawn by lot.

J. H. Bell et al., CCS 2020 (IACR eprint 2020/704), section 3: devices in a circle in a random order, each with the k/2
to both sides (a Harary graph). With t = `threshold_of(k)` shares to open a secret, of `COLLUDING` devices that are the
coordinator's and `DROPPING` that drop out, as shares of all, three things must not be, each for any device or at all:

- t or more of a device's neighbours collude: they know both of its secrets;
- fewer than t of them are left: the sum cannot be opened;
- devices that are honest and stay are not connected: k/2 in a row, on two sides, collude or drop out. The sum of a part
  would be known.

The first and the second are tails of the hypergeometric distribution, for all devices together (a union bound).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Final

from edge_sdk.wire.secure.said import MAX_PEERS
from edge_sdk.wire.secure.shamir import threshold_of

COLLUDING, DROPPING = 0.2, 0.1  # of all devices
SECRET: Final = 2.0**-40  # the probability that something is known, at most
OPEN: Final = 2.0**-20  # that the sum cannot be opened


def degree(devices: int) -> int:
    """How many neighbours each of so many devices gets: the fewest for which the three hold; all, where none do.

    Raises ValueError where MAX_PEERS are too few for that.
    """
    for k in range(2, min(devices - 1, MAX_PEERS + 1), 2):
        if holds(devices, k):
            return k
    if devices - 1 <= MAX_PEERS:
        return devices - 1
    msg = f"{MAX_PEERS} neighbours are too few among {devices} devices"
    raise ValueError(msg)


def holds(devices: int, k: int) -> bool:
    """Whether k neighbours are enough, with the probabilities above."""
    threshold, others = threshold_of(k), devices - 1
    colluding, dropping = (min(math.ceil(share * devices), others) for share in (COLLUDING, DROPPING))
    known = devices * _at_least(others, colluding, k, threshold)
    shut = devices * _at_least(others, dropping, k, k - threshold + 1)
    apart = devices**2 * (COLLUDING + DROPPING) ** k  # k/2 on each of two sides
    return known <= SECRET and apart <= SECRET and shut <= OPEN


def neighbours(devices: Iterable[str], k: int, lot: random.Random) -> dict[str, tuple[str, ...]]:
    """The neighbours of each, by name: the k nearest in a circle in a random order, or all others."""
    circle = sorted(devices)
    lot.shuffle(circle)
    count = len(circle)
    if k >= count - 1:
        return {name: tuple(sorted(other for other in circle if other != name)) for name in circle}
    if k % 2:
        msg = f"{k} neighbours are not the same on both sides"
        raise ValueError(msg)
    steps = [step for half in range(1, k // 2 + 1) for step in (half, -half)]
    return {name: tuple(sorted(circle[(place + step) % count] for step in steps)) for place, name in enumerate(circle)}


def _at_least(others: int, bad: int, drawn: int, least: int) -> float:
    """That of `drawn` out of `others`, of which so many are bad, `least` or more are bad."""
    ways = sum(math.comb(bad, k) * math.comb(others - bad, drawn - k) for k in range(least, min(bad, drawn) + 1))
    return ways / math.comb(others, drawn)
