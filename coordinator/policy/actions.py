"""What a network's outputs mean: four branches a device, each a number from 0.

- level: 0 sits the round out, k gets the level k - 1;
- codec: one of CODECS;
- share: which multiple of its part of the bandwidth it gets; the parts are those with which all finish together as far
  as is known, see `sharing`, so that the network learns when they are not right, not the division itself;
- power: which share of its threads it trains with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from coordinator.policy.arrays import Bools, Ints
from coordinator.policy.estimates import known_or
from coordinator.policy.features import Features
from coordinator.policy.sharing import equal_finish
from coordinator.policy.types import Choice, Decision, Observation
from edge_sdk.wire.messages import DeltaCodec

CODECS: Final = (DeltaCodec.FP32, DeltaCodec.FP16, DeltaCodec.INT8, DeltaCodec.INT4)
SHARES: Final = (1.0, 0.5, 2.0)
POWERS: Final = (1.0, 0.75, 0.5)
LEAST_PART, LEAST_BYTES_S = 1e-6, 1.0
BRANCHES: Final = ("level", "codec", "share", "power")
LEVEL, CODEC, SHARE, POWER = range(len(BRANCHES))
BESIDE: Final = (len(CODECS), len(SHARES), len(POWERS))  # choices of the branches after the level's


def masks(observation: Observation, features: Features) -> tuple[Bools, Bools, Bools]:
    """What may be chosen: levels (N, 1 + L) by device; codecs, and shares, which all devices have alike."""
    count = len(observation.devices)
    levels = np.concatenate([np.ones((count, 1), dtype=np.bool_), features.fits], axis=1)
    allowed = observation.terms.codecs
    codecs = np.array([codec in allowed for codec in CODECS])
    if not codecs.any():  # the configured one is none of them: every branch means it
        codecs[0] = True
    shares = np.array([k == 0 or observation.terms.bandwidth_bytes_s > 0 for k in range(len(SHARES))])
    return levels, codecs, shares


def decision_of(actions: Ints | Sequence[Sequence[int]], observation: Observation, features: Features) -> Decision:
    """The decision that (N, 4) numbers stand for."""
    actions = np.asarray(actions)
    takes_part = np.flatnonzero(actions[:, LEVEL] > 0)
    levels = actions[takes_part, LEVEL] - 1
    bandwidth = known_or(observation.terms.bandwidth_bytes_s)
    power = np.array(POWERS)[actions[takes_part, POWER]]
    parts = equal_finish(
        features.wire_bytes[takes_part, levels],
        features.compute_s[takes_part, levels] / power,
        max(bandwidth, LEAST_BYTES_S) if bandwidth else 0.0,
    )
    shares = np.maximum(parts, LEAST_PART) * np.array(SHARES)[actions[takes_part, SHARE]]
    allowed = observation.terms.codecs
    choices = {}
    for i, k in enumerate(takes_part):
        codec = CODECS[actions[k, CODEC]]
        choices[observation.devices[k].name] = Choice(
            observation.levels[int(levels[i])].name,
            codec if codec in allowed else None,
            float(shares[i]),
            float(power[i]),
        )
    return Decision(choices)


def actions_of(decision: Decision, observation: Observation) -> Ints:
    """The nearest numbers, (N, 4), to another policy's decision, but for shares, which are as all finish together."""
    place = {level.name: 1 + k for k, level in enumerate(observation.levels)}
    actions = np.zeros((len(observation.devices), len(BRANCHES)), dtype=np.int64)
    for k, device in enumerate(observation.devices):
        choice = decision.choices.get(device.name)
        if choice is not None:
            codec = choice.codec or observation.terms.codec
            power = min(range(len(POWERS)), key=lambda i: abs(POWERS[i] - choice.power))
            actions[k] = (place[choice.level], CODECS.index(codec) if codec in CODECS else 0, 0, power)
    return actions
