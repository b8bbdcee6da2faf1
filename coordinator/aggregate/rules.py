"""From a configuration's names to the next adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.aggregate import coordinatewise, krum, lora, mean, server_optimizers
from coordinator.config import AggregationConfig, MeanOver
from coordinator.guards import Estimator, PrivacyConfig
from coordinator.privacy import Bounds, Noise, private_mean
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.noise import true_noise
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Contribution:
    """A device's delta and its weight. `start` is what it was given, None where that was the adapter itself, or where
    the rule has no use for it. Of its change that part counts which `scale` is; less than all where it comes late.
    """

    delta: Delta
    examples: int
    start: Mapping[str, Array] | None = None
    scale: float = 1.0

    def within(self, clip_norm: float, size_limit: float | None) -> Contribution:
        """With its delta scaled down to both bounds, of its norm and of its size; 0 and None are none."""
        delta = clip(self.delta, clip_norm)
        if size_limit is not None and delta.size() > size_limit:
            delta = delta * (size_limit / delta.size())
        return dataclasses.replace(self, delta=delta)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The next adapter, and the server optimizer's moments, empty where it keeps none.

    `truncation` is the relative error of going back to rank r, zero where the rule is exact. `next_clip_norm` is the
    next round's bound under [privacy].
    """

    adapter: Mapping[str, Array]
    moments: Mapping[str, Array]
    truncation: float
    next_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class Private:
    """Privacy for one round: of the tensors in `shapes`, all of which may train."""

    config: PrivacyConfig
    bounds: Bounds
    shapes: Mapping[str, tuple[int, ...]]
    noise: Noise = true_noise


@dataclass(frozen=True, slots=True)
class NoAggregate:
    """These deltas have no such middle as was asked for, and get no other one."""

    why: str


def aggregate(
    config: AggregationConfig,
    adapter: Mapping[str, Array],
    contributions: Iterable[Contribution],
    moments: Mapping[str, Array],
    size_limit: float | None = None,
    private: Private | None = None,
) -> Aggregate | NoAggregate:
    """The adapter after a round. One contribution at a time is held in memory for the mean, all for other estimators.

    `moments` are those that the round before left; none before the first. Deltas larger than `size_limit`, a root mean
    square, are scaled down to it. With `private`, each has one vote and is held to its bound alone; the mean has noise.
    """
    if private is not None:
        deltas = (contribution.delta for contribution in contributions)
        noisy, next_norm = private_mean(private.shapes, deltas, private.config, private.bounds, private.noise)
        return Aggregate(*server_optimizers.step(config, adapter, noisy, moments), 0.0, next_norm)
    clipped: Iterable[Contribution] = (c.within(config.clip_norm, size_limit) for c in contributions)
    if config.estimator is Estimator.MULTI_KRUM:
        found = _closest(config, adapter, list(clipped))
        if isinstance(found, NoAggregate):
            return found
        clipped = found
    if config.rule.keeps_coordinates:
        by_number = config.estimator.by_number
        changes = _middle(config, adapter, list(clipped)) if by_number else _mean(config, adapter, clipped)
        if isinstance(changes, NoAggregate):
            return changes
        moved, kept = server_optimizers.step(config, adapter, changes, moments)
        return Aggregate(moved, kept, 0.0)
    stacks = lora.init(adapter)
    for contribution in clipped:
        start = adapter if contribution.start is None else contribution.start
        stacks = lora.accumulate(stacks, contribution.delta, contribution.examples, start, contribution.scale)
    factors, truncation = lora.finish(stacks, config.mean_over, config.rate)
    moved, kept = server_optimizers.step(config, adapter, mean.finish(stacks.plain, config.mean_over), moments)
    return Aggregate(moved | factors, kept, truncation.relative)


def _mean(
    config: AggregationConfig, adapter: Mapping[str, Array], contributions: Iterable[Contribution]
) -> dict[str, Array]:
    state = mean.init(adapter)
    for contribution in contributions:
        state = mean.accumulate(state, contribution.delta * contribution.scale, contribution.examples)
    return mean.finish(state, config.mean_over)


def _middle(
    config: AggregationConfig, adapter: Mapping[str, Array], contributions: Sequence[Contribution]
) -> dict[str, Array] | NoAggregate:
    """Number by number, of each tensor that somebody trained; of those that did, or of all, as `mean_over` says."""
    changes, least = dict[str, Array](), config.estimator.least(config.byzantine)
    for name in dict.fromkeys(name for one in contributions for name in one.delta.tensors):
        came = [one.delta.tensors[name] for one in contributions if name in one.delta.tensors]
        if config.mean_over is MeanOver.ALL:
            came += [np.zeros_like(adapter[name])] * (len(contributions) - len(came))
        if len(came) < least:
            what = f"{config.estimator.value} with {config.byzantine} liars needs {least}"
            return NoAggregate(f"{len(came)} deltas of {name}, {what}")
        if config.estimator is Estimator.MEDIAN:
            changes[name] = coordinatewise.median(np.stack(came))
        else:
            changes[name] = coordinatewise.trimmed_mean(np.stack(came), config.byzantine)
    return changes


def _closest(
    config: AggregationConfig, adapter: Mapping[str, Array], contributions: Sequence[Contribution]
) -> list[Contribution] | NoAggregate:
    """Those that multi-Krum chooses, each with one vote."""
    least = config.estimator.least(config.byzantine)
    if len(contributions) < least:
        why = f"{len(contributions)} deltas, multi-krum with {config.byzantine} liars needs {least}"
        return NoAggregate(why)
    deltas = [one.delta for one in contributions]
    if any(delta.tensors.keys() != deltas[0].tensors.keys() for delta in deltas):
        return NoAggregate("deltas of different tensors have no distance, which multi-krum needs")
    if config.rule.keeps_coordinates:
        squared = krum.squared_distances(deltas)
    else:
        starts = [adapter if one.start is None else one.start for one in contributions]
        squared = krum.squared_distances_of_products(deltas, starts)
    best = krum.chosen(squared, config.byzantine, [krum.name_of(delta) for delta in deltas])
    return [dataclasses.replace(contributions[k], examples=1) for k in best]


def clip(delta: Delta, clip_norm: float) -> Delta:
    """The delta, scaled down to `clip_norm` where it is longer; 0 leaves it as it is."""
    norm = delta.norm()
    return delta * (clip_norm / norm) if 0 < clip_norm < norm else delta
