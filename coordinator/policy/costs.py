"""What each level would cost each device, in arrays: `estimates` and `fitting` for a thousand devices at once.

N devices, L levels, C codecs. Numbers that nothing real can have (a rate of 1e-300, a negative step) are brought to the
nearest that something can, so that what is reckoned from them is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.policy.arrays import Bools, Floats
from coordinator.policy.estimates import CODEC_WORTH, Estimates
from coordinator.policy.fitting import Known, may_get
from coordinator.policy.types import DeviceView, Level, Observation
from edge_sdk.wire.messages import DeltaCodec

RATES: Final = (1.0, 1e12)  # bytes per second
SLOWNESS: Final = (1e-6, 1e6)
SECONDS: Final = (0.0, 1e6)  # of a step
BYTES: Final = (0.0, 1e15)


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one observation. `wire_bytes` (N, L, C) go both ways together, `compute_s` (N, L) is with all of a device's
    threads, `rate_bytes_s` (N,) is what its own link does. `worth` (L, C) is the level's quality times what the codec
    leaves of it, `examples` (N,) the weight of a device's delta. `allowed` (N, L) says what a device may get.

    `bandwidth_bytes_s` and `deadline_s` are infinite where there is no bound.
    """

    devices: tuple[DeviceView, ...]
    levels: tuple[Level, ...]
    codecs: tuple[DeltaCodec, ...]
    allowed: Bools
    wire_bytes: Floats
    compute_s: Floats
    rate_bytes_s: Floats
    worth: Floats
    examples: Floats
    bandwidth_bytes_s: float
    deadline_s: float

    @staticmethod
    def of(observation: Observation, known: Known) -> Costs:
        """Of the devices for which a decision is wanted."""
        devices, levels, terms = observation.devices, observation.levels, observation.terms
        estimates, codecs = Estimates.of(observation), terms.codecs or (terms.codec,)
        down = _array([[estimates.down_bytes(device, level) for level in levels] for device in devices], *BYTES)
        up = _array([[estimates.up_bytes(level, codec) for codec in codecs] for level in levels], *BYTES)
        down, up = down.reshape(len(devices), len(levels)), up.reshape(len(levels), len(codecs))
        step_s = _array([level.step_s for level in levels], *SECONDS)
        slowness = _array([estimates.slowness(device) for device in devices], *SLOWNESS)
        beside_s = _array([estimates.beside_s(device) for device in devices], *SECONDS)
        quality = _array([level.quality for level in levels], 0.0, 1.0)
        left = np.array([CODEC_WORTH.get(codec, 1.0) for codec in codecs])
        return Costs(
            devices,
            levels,
            codecs,
            allowed=may_get(devices, levels, known),
            wire_bytes=down[:, :, None] + up[None, :, :],
            compute_s=max(terms.steps, 0) * slowness[:, None] * step_s[None, :] + beside_s[:, None],
            rate_bytes_s=_array([estimates.rate_bytes_s(device) for device in devices], *RATES),
            worth=quality[:, None] * left[None, :],
            examples=_array([estimates.examples(device) for device in devices], 1e-6, 1e9),
            bandwidth_bytes_s=max(terms.bandwidth_bytes_s, RATES[0]) if terms.bandwidth_bytes_s > 0 else math.inf,
            deadline_s=terms.deadline_s if terms.deadline_s > 0 else math.inf,
        )

    def task_s(self, part: float) -> Floats:
        """(N, L, C): whole tasks, of devices that each have this part of the bandwidth to themselves."""
        rate = np.minimum(self.rate_bytes_s, self.bandwidth_bytes_s * part)
        seconds: Floats = self.compute_s[:, :, None] + self.wire_bytes / rate[:, None, None]
        return seconds


def _array(values: object, lowest: float, highest: float) -> Floats:
    """What is no number is the least that it can be."""
    found: Floats = np.clip(np.nan_to_num(np.array(values, float), nan=lowest), lowest, highest)
    return found
