"""From a rule's name to the next adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

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
    if config.rule is Rule.FREEZE_A:
        state = mean.init(adapter)
        for contribution in clipped:
            state = mean.accumulate(state, contribution.delta, contribution.examples)
        return Aggregate(_moved(adapter, mean.finish(state, config.mean_over)), 0.0)
    stacks = lora.init(adapter)
    for contribution in clipped:
        stacks = lora.accumulate(stacks, contribution.delta, contribution.examples)
    factors, truncation = lora.finish(stacks, config.mean_over)
    changes = mean.finish(stacks.plain, config.mean_over)
    return Aggregate(_moved(adapter, changes) | factors, truncation.relative)


def _moved(adapter: Mapping[str, Array], changes: Mapping[str, Array]) -> dict[str, Array]:
    """The adapter after `changes`, float32; what nobody trained is as it was."""
    moved = {name: (adapter[name].astype(np.float64) + change) for name, change in changes.items()}
    return dict(adapter) | {name: array.astype(np.float32) for name, array in moved.items()}


def clip(delta: Delta, clip_norm: float) -> Delta:
    """The delta, scaled down to `clip_norm` where it is longer; 0 leaves it as it is."""
    norm = delta.norm()
    return delta * (clip_norm / norm) if 0 < clip_norm < norm else delta
