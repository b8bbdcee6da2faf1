"""From a rule's name to the next adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coordinator.aggregate import lora, mean
from coordinator.config import AggregationConfig, Rule
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Contribution:
    """A device's delta and its weight."""

    delta: Delta
    examples: int


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The next adapter. `truncation` is the relative error of going back to rank r, zero where the rule is exact."""

    adapter: Mapping[str, Array]
    truncation: float


def aggregate(
    config: AggregationConfig, adapter: Mapping[str, Array], contributions: Iterable[Contribution]
) -> Aggregate:
    """The adapter after a round; one contribution at a time is held in memory."""
    clipped = (Contribution(clip(c.delta, config.clip_norm), c.examples) for c in contributions)
    if config.rule in (Rule.FREEZE_A, Rule.MEAN):
        state = mean.init(adapter)
        for contribution in clipped:
            state = mean.accumulate(state, contribution.delta, contribution.examples)
        return Aggregate(mean.finish(state), 0.0)
    stacks = lora.init(adapter)
    for contribution in clipped:
        stacks = lora.accumulate(stacks, contribution.delta, contribution.examples)
    tensors, truncation = lora.finish(stacks)
    return Aggregate(tensors, truncation.relative)


def clip(delta: Delta, clip_norm: float) -> Delta:
    """The delta, scaled down to `clip_norm` where it is longer; 0 leaves it as it is."""
    norm = delta.norm()
    return delta * (clip_norm / norm) if 0 < clip_norm < norm else delta
