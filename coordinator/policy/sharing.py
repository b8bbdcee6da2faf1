"""How a bandwidth is split so that the last to finish finishes as early as it can.

Of min max_i (bytes_i / (B part_i) + compute_i) with sum part_i = 1 the KKT conditions say that all finish at the same
time T, and that each has no more than it needs for it: part_i(T) = bytes_i / (B (T - compute_i)). Their sum falls as T
grows and is convex, so that Newton's method comes to T from the left.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from coordinator.policy.arrays import Floats

NEWTON: Final = 60  # steps; each doubles the time that is left, or better
EXACT: Final = 1e-12
LEAST_S: Final = 1e-9


def finish_s(wire_bytes: Floats, compute_s: Floats, bandwidth_bytes_s: float) -> float:
    """T, for one device at least and a bandwidth above 0; arrays as in `equal_finish`."""
    least = np.maximum(wire_bytes / bandwidth_bytes_s, LEAST_S)
    seconds = float((compute_s + least).max())
    for _ in range(NEWTON):
        left_s = np.maximum(seconds - compute_s, least)
        over = float((wire_bytes / left_s).sum()) - bandwidth_bytes_s
        if over <= bandwidth_bytes_s * EXACT:
            break
        seconds += over / float((wire_bytes / np.square(left_s)).sum())
    return seconds


def equal_finish(wire_bytes: Floats, compute_s: Floats, bandwidth_bytes_s: float) -> Floats:
    """Parts of the bandwidth, (N,), which sum to 1; even ones where nothing is to be sent or there is no bound.

    `wire_bytes` and `compute_s` (N,) are finite and 0 or more.
    """
    count = len(wire_bytes)
    if bandwidth_bytes_s <= 0 or not wire_bytes.sum() > 0:
        return np.full(count, 1 / max(count, 1))
    left_s = finish_s(wire_bytes, compute_s, bandwidth_bytes_s) - compute_s
    parts: Floats = np.maximum(wire_bytes, 1.0) / np.maximum(left_s, LEAST_S)
    parts /= parts.sum()
    return parts
