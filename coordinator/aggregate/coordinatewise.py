"""The middle of each number: coordinate-wise median and trimmed mean.

D. Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018 (arXiv 1803.01498),
definitions 1 and 2. Of n values of a number, with f liars among them,

- the median lies between the smallest and the largest honest one while n > 2 f;
- so does the mean without the f smallest and the f largest: whatever a liar sent far out is among those.

Each device has one vote: `examples` are what a device says of itself. All arrays are (n, ...), devices first; the order
of the devices does not matter, bit for bit.
"""

from __future__ import annotations

import numpy as np

from edge_sdk.wire.tensors import Array


def median(values: Array) -> Array:
    """The median over the devices, float64; of an even number, the mean of the two in the middle."""
    middle: Array = np.median(values.astype(np.float64), axis=0)
    return middle


def trimmed_mean(values: Array, trim: int) -> Array:
    """The mean over the devices without the `trim` smallest and the `trim` largest of each number, float64.

    Raises ValueError where nothing would be left.
    """
    if not 0 <= 2 * trim < len(values):
        msg = f"nothing is left of {len(values)} values without twice {trim}"
        raise ValueError(msg)
    kept: Array = np.sort(values.astype(np.float64), axis=0)[trim : len(values) - trim]
    return np.asarray(kept.mean(axis=0))
