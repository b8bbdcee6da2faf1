"""What a round is worth: one pure function, whose weights are the user's.

    reward = gain x (loss before - loss after) / gap  -  delay x delay / deadline
             - traffic x bytes / (devices x level)  -  energy x energy / (devices x kJ)
             - violation x violations / devices

gap is what there is to gain, from the first loss to the floor of the fitted curve; level the size of the largest level,
so that a fleet that fetches it once has a traffic of 1. With the default weights, who always gives everybody the
largest level that fits gains about what that costs. FedPEAT's objective (arXiv 2310.17491), with bytes in the place of
counted exchanges, is the same with other weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts how much; each 0 or more."""

    gain: float = 1.0
    delay: float = 0.03
    traffic: float = 0.02
    energy: float = 0.01
    violation: float = 0.05

    @staticmethod
    def of(plain: object) -> Weights:
        """As a policy's card has them; the default ones where it has none, or others than there are."""
        known = {field.name for field in dataclasses.fields(Weights)}
        numbers = isinstance(plain, dict) and all(isinstance(value, (int, float)) for value in plain.values())
        return Weights(**plain) if isinstance(plain, dict) and numbers and plain.keys() <= known else Weights()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of a round. `exchanges` are tasks for which anything of a level was fetched, as FedPEAT counts them."""

    loss_before: float
    loss_after: float
    delay_s: float
    bytes: int
    exchanges: int
    energy_j: float
    violations: int
    asked: int
    delivered: int


@dataclass(frozen=True, slots=True)
class Scale:
    """What a round's outcomes are measured by."""

    gap: float
    deadline_s: float
    level_bytes: int
    devices: int


def reward(outcomes: Outcomes, scale: Scale, weights: Weights) -> float:
    """See the module."""
    return (
        weights.gain * (outcomes.loss_before - outcomes.loss_after) / scale.gap
        - weights.delay * outcomes.delay_s / scale.deadline_s
        - weights.traffic * outcomes.bytes / (scale.devices * scale.level_bytes)
        - weights.energy * outcomes.energy_j / (scale.devices * 1000)
        - weights.violation * outcomes.violations / scale.devices
    )
