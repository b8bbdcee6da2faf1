"""How a bandwidth is split so that the last to finish finishes as early as it can.

Of min max_i (bytes_i / (B part_i) + compute_i) with sum part_i = 1 the KKT conditions say that all finish at the same
time T, and that each has no more than it needs for it: part_i(T) = bytes_i / (B (T - compute_i)). Their sum falls as T
grows, so T is found by bisection.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

HALVINGS: Final = 40


def equal_finish(wire_bytes: Floats, compute_s: Floats, bandwidth_bytes_s: float) -> Floats:
    """Parts of the bandwidth, (N,), which sum to 1; even ones where nothing is to be sent or there is no bound.

    `wire_bytes` and `compute_s` (N,) are finite and 0 or more.
    """
    count = len(wire_bytes)
    if bandwidth_bytes_s <= 0 or not wire_bytes.sum() > 0:
        return np.full(count, 1 / max(count, 1))
    low = float(compute_s.max())
    high = low + wire_bytes.sum() / bandwidth_bytes_s
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if (wire_bytes / (bandwidth_bytes_s * np.maximum(middle - compute_s, 1e-9))).sum() > 1:
            low = middle
        else:
            high = middle
    parts: Floats = np.maximum(wire_bytes, 1.0) / np.maximum(high - compute_s, 1e-9)
    parts /= parts.sum()
    return parts
