"""What a policy is worth: whole runs in worlds that it was never trained on, the same worlds for every policy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coordinator.controller import simulator
from coordinator.controller.reward import Outcomes, Weights, reward
from coordinator.controller.simulator import World
from coordinator.policy.types import Policy

# Student's t for a two-sided 95 % interval, by degrees of freedom: of few seeds the normal's 1.96 would say too much.
STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Played:
    """A run's sums over its rounds, and `loss` at its end as a share of what there was to gain, 0 for all of it."""

    reward: float
    loss: float
    perplexity: float
    delay_s: float
    bytes: float
    exchanges: float
    energy_j: float
    violations: float
    asked: float
    delivered: float


def play(world: World, policy: Policy[Any], weights: Weights) -> Played:
    """A whole run of `world` with `policy`."""
    state, memory = simulator.begin(world), policy.initial()
    earned, rounds = 0.0, list[Outcomes]()
    for _ in range(world.rounds):
        decision, memory = policy.decide(simulator.observe(world, state), memory)
        state, outcomes = simulator.step(world, state, decision)
        earned += reward(outcomes, world.scale, weights)
        rounds.append(outcomes)
    curve = world.profile.curve
    return Played(
        reward=earned,
        loss=(state.loss - curve.floor) / (curve.first - curve.floor),
        perplexity=math.exp(state.loss),
        delay_s=sum(one.delay_s for one in rounds),
        bytes=sum(one.bytes for one in rounds),
        exchanges=sum(one.exchanges for one in rounds),
        energy_j=sum(one.energy_j for one in rounds),
        violations=sum(one.violations for one in rounds),
        asked=sum(one.asked for one in rounds),
        delivered=sum(one.delivered for one in rounds),
    )


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds, and half of its 95 % interval."""

    mean: float
    half: float


def mean_of(values: Sequence[float]) -> Mean:
    """Of one value a seed."""
    if len(values) < 2:  # noqa: PLR2004 - of one there is no spread
        return Mean(values[0], math.inf)
    quantile = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 1.96
    return Mean(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values)))


def average(runs: Iterable[Played]) -> Played:
    """Means of all figures."""
    runs = tuple(runs)
    return Played(*(statistics.fmean(getattr(run, name) for run in runs) for name in Played.__slots__))
