"""The policy's network in NumPy: a set encoder, the same for every device, so that it serves any number of them.

    h_i = relu(relu([device_i, fleet] D1) D2)                           each device by itself
    c_i = relu([h_i, mean h, max h, fleet] C1)                          each beside all others
    level score_ik = relu(c_i P1 + pair_ik P2) p,   sitting out = c_i o     each level by itself: any number of them
    codec, share, power scores = c_i K, c_i S, c_i W

Its arrays are what `coordinator.controller.network` trains, float32 in a safetensors file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.policy.actions import BESIDE
from coordinator.policy.arrays import Floats32
from coordinator.policy.features import OF_DEVICE, OF_FLEET, OF_PAIR, Features

WIDTH: Final = 64
_DEVICE, _PAIR, _FLEET = len(OF_DEVICE), len(OF_PAIR), len(OF_FLEET)
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {  # inputs x outputs
    "device.0": (_DEVICE + _FLEET, WIDTH),
    "device.0.bias": (WIDTH,),
    "device.1": (WIDTH, WIDTH),
    "device.1.bias": (WIDTH,),
    "context": (3 * WIDTH + _FLEET, WIDTH),
    "context.bias": (WIDTH,),
    "pair.device": (WIDTH, WIDTH),
    "pair.level": (_PAIR, WIDTH),
    "pair.bias": (WIDTH,),
    "pair.score": (WIDTH, 1),
    "out": (WIDTH, 1),
    "out.bias": (1,),
    "codec": (WIDTH, BESIDE[0]),
    "codec.bias": (BESIDE[0],),
    "share": (WIDTH, BESIDE[1]),
    "share.bias": (BESIDE[1],),
    "power": (WIDTH, BESIDE[2]),
    "power.bias": (BESIDE[2],),
}


@dataclass(frozen=True, slots=True)
class Scores:
    """Unnormalised logarithms: `levels` (N, 1 + L), of which the first is to sit out; the others (N, choices)."""

    levels: Floats32
    codecs: Floats32
    shares: Floats32
    powers: Floats32


def scores(arrays: Mapping[str, Floats32], features: Features) -> Scores:
    """The network's outputs for N devices, one at least."""
    count = len(features.devices)
    fleet = np.broadcast_to(features.fleet, (count, len(features.fleet)))
    alone = _relu(_linear(arrays, "device.0", np.concatenate([features.devices, fleet], axis=1)))
    alone = _relu(_linear(arrays, "device.1", alone))
    pooled = np.concatenate([alone.mean(axis=0), alone.max(axis=0)])
    beside = np.concatenate([alone, np.broadcast_to(pooled, (count, len(pooled))), fleet], axis=1)
    context = _relu(_linear(arrays, "context", beside))
    pairs = (context @ arrays["pair.device"])[:, None, :] + features.pairs @ arrays["pair.level"] + arrays["pair.bias"]
    of_levels = (_relu(pairs) @ arrays["pair.score"])[..., 0]
    return Scores(
        levels=np.concatenate([_linear(arrays, "out", context), of_levels], axis=1),
        codecs=_linear(arrays, "codec", context),
        shares=_linear(arrays, "share", context),
        powers=_linear(arrays, "power", context),
    )


def _linear(arrays: Mapping[str, Floats32], name: str, inputs: Floats32) -> Floats32:
    outputs: Floats32 = inputs @ arrays[name] + arrays[f"{name}.bias"]
    return outputs


def _relu(values: Floats32) -> Floats32:
    return np.maximum(values, 0)
