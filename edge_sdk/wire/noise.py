"""Normal numbers that nobody can foresee, for privacy on either side."""

from __future__ import annotations

import math
import os

import numpy as np

from edge_sdk.wire.tensors import Array


def true_noise(shape: tuple[int, ...]) -> Array:
    """Standard normal numbers from the kernel's random bytes, by Box and Muller's transform, float64.

    Rounding of floating-point numbers is not hidden (I. Mironov, On Significance of the Least Significant Bits for
    Differential Privacy, CCS 2012); what is released is rounded to float32 after the sum.
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    whole = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs) >> np.uint64(11)
    one, other = (whole.astype(np.float64) + 1) * 2.0**-53  # in (0, 1]
    radius, angle = np.sqrt(-2 * np.log(one)), 2 * np.pi * other
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)
