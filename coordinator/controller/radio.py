"""How fast a device's link is: Shannon's rate on a channel with path loss, shadowing and fading.

    rate = W log2(1 + p g / (N0 W)) bits per second

of a channel of W hertz, a sender of p watts, a gain g, and thermal noise of N0 watts per hertz. The gain's path loss is
that of 3GPP's urban macro cell, 128.1 + 37.6 log10(d / km) dB (TR 36.814, table A.2.1.1-3); shadowing and fading come
on top of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from coordinator.policy.arrays import Floats

NOISE_W_PER_HZ: Final = 10 ** ((-174 - 30) / 10)  # thermal, at room temperature
DOWN_W: Final = 0.2  # of the station, for one channel
UP_W: Final = 0.05  # of a board
NEAREST_M: Final = 10.0


def gain(distances_m: Floats, shadows_db: Floats, fades: Floats) -> Floats:
    """Share of the sent power that arrives; `fades` are powers with mean 1 (Rayleigh: exponential)."""
    loss_db = 128.1 + 37.6 * np.log10(np.maximum(distances_m, NEAREST_M) / 1000) + shadows_db
    arriving: Floats = 10 ** (-loss_db / 10) * fades
    return arriving


def rate_bytes_s(width_hz: Floats | float, power_w: float, gains: Floats) -> Floats:
    """Bytes per second of channels of that width, see the module."""
    bits: Floats = width_hz * np.log2(1 + power_w * gains / (NOISE_W_PER_HZ * width_hz))
    return bits / 8
