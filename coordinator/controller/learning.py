"""How the held-out loss falls in a round, by who took part with what: a fitted model, pure.

Data come in G groups (topics, classes, sites); a device's rows are a mixture of them. The loss of each group goes the
way from what it is to its floor:

    loss_g' = floor + (loss_g - floor) exp(-amount_g pace_g)
    amount_g = speed steps^steps_power people^people_power coverage_g value_g
    pace_g = onset + (1 - onset) (first - loss_g) / (first - floor)

people is 1 / sum of w_i^2, the number of equal weights w_i that would be as spread; coverage_g is 1 where the round's
rows are mixed as the groups are, and may be `transfer` at least: what is learned on one group helps the others. value_g
is the mean, over the rows of the group, of the level's quality times what the codec leaves of a delta.

With an `onset` of 1 the loss falls exponentially, as a language model's does. Where it is less, learning begins slowly
and gathers pace: a classifier whose head and adapter both begin from nothing stays where it is for some rounds, and
then falls. `calibrate` fits all of these to real runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coordinator.policy.arrays import Floats
from edge_sdk.wire.messages import DeltaCodec


@dataclass(frozen=True, slots=True)
class Curve:
    """The model's constants; losses in nats. `first` is the loss before the first round.

    `kept` is what a codec leaves of a delta's worth; 1 for one that is not in it. `error` is how far off the fit is, as
    a share of the way from `first` to `floor`: a mean over rounds of runs that it was not fitted to.
    """

    first: float
    floor: float
    speed: float
    steps_power: float
    people_power: float
    transfer: float
    onset: float
    kept: Mapping[DeltaCodec, float] = field(default_factory=dict)
    error: float = 0.0

    def amounts(self, weights: Floats, values: Floats, mixtures: Floats, steps: int) -> Floats:
        """How far each group goes, (G,): of devices with `weights` (N,) that sum to 1, `values` (N,), `mixtures` (N, G)
        whose rows sum to 1. Nothing happens where nobody took part.
        """
        groups = mixtures.shape[1]
        if not len(weights):
            return np.zeros(groups)
        share = weights @ mixtures
        value = (weights * values) @ mixtures / np.maximum(share, 1e-12)
        coverage = (1 - self.transfer) * groups * share + self.transfer
        # A group of which nobody has rows learns from the others' alone.
        value = np.where(share > 1e-12, value, weights @ values)  # noqa: PLR2004 - nothing
        people = 1 / np.square(weights).sum()
        amounts: Floats = self.speed * steps**self.steps_power * people**self.people_power * coverage * value
        return amounts

    def after(self, losses: Floats, amounts: Floats) -> Floats:
        """The losses of all groups, (G,), after a round."""
        # Data that drift may take a loss above where it began: then it learns as at the first round.
        done = np.clip((self.first - losses) / (self.first - self.floor), 0.0, 1.0)
        pace = self.onset + (1 - self.onset) * done
        moved: Floats = self.floor + (losses - self.floor) * np.exp(-amounts * pace)
        return moved


def value(curve: Curve, quality: float, codec: DeltaCodec) -> float:
    """What a delta of a level of this quality is worth in this codec, beside an exact one of the full model."""
    return quality * curve.kept.get(codec, 1.0)


def as_plain(curve: Curve) -> dict[str, Any]:
    """For JSON."""
    plain = {name: getattr(curve, name) for name in Curve.__slots__ if name != "kept"}
    return plain | {"kept": {codec.value: share for codec, share in curve.kept.items()}}


def from_plain(plain: Mapping[str, Any]) -> Curve:
    """From JSON. Raises KeyError, TypeError, ValueError for what is no curve."""
    kept = {DeltaCodec(name): float(share) for name, share in plain["kept"].items()}
    numbers = {name: float(plain[name]) for name in Curve.__slots__ if name != "kept"}
    return Curve(**numbers, kept=kept)
