"""From a configuration's names to the next adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coordinator.aggregate import lora, mean, server_optimizers
from coordinator.config import AggregationConfig, Rule
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Contribution:
    """A device's delta and its weight. `start` is what it was given, None where that was the adapter itself."""

    delta: Delta
    examples: int
    start: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The next adapter, and the server optimizer's moments, empty where it keeps none.

    `truncation` is the relative error of going back to rank r, zero where the rule is exact.
    """

    adapter: Mapping[str, Array]
    moments: Mapping[str, Array]
    truncation: float


def aggregate(
    config: AggregationConfig,
    adapter: Mapping[str, Array],
    contributions: Iterable[Contribution],
    moments: Mapping[str, Array],
) -> Aggregate:
    """The adapter after a round; one contribution at a time is held in memory.

    `moments` are those that the round before left; none before the first.
    """
    clipped = (dataclasses.replace(c, delta=clip(c.delta, config.clip_norm)) for c in contributions)
    if config.rule in (Rule.FREEZE_A, Rule.MEAN):
        state = mean.init(adapter)
        for contribution in clipped:
            state = mean.accumulate(state, contribution.delta, contribution.examples)
        moved, kept = server_optimizers.step(config, adapter, mean.finish(state, config.mean_over), moments)
        return Aggregate(moved, kept, 0.0)
    stacks = lora.init(adapter)
    for contribution in clipped:
        start = adapter if contribution.start is None else contribution.start
        stacks = lora.accumulate(stacks, contribution.delta, contribution.examples, start)
    factors, truncation = lora.finish(stacks, config.mean_over, config.rate)
    moved, kept = server_optimizers.step(config, adapter, mean.finish(stacks.plain, config.mean_over), moments)
    return Aggregate(moved | factors, kept, truncation.relative)


def clip(delta: Delta, clip_norm: float) -> Delta:
    """The delta, scaled down to `clip_norm` where it is longer; 0 leaves it as it is."""
    norm = delta.norm()
    return delta * (clip_norm / norm) if 0 < clip_norm < norm else delta
