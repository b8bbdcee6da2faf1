"""A round's aggregation as a job: what it needs of the ledger is read first, in the daemon's thread.

Everything that decides it is in the ledger and the configuration, so a coordinator that was killed does the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coordinator.aggregate.blobs import NextAdapter, adapter_at_rank, aggregate_blobs
from coordinator.aggregate.rules import NoAggregate, Private
from coordinator.builder import Artifact
from coordinator.config import Config
from coordinator.events import AggregateRound, NoAdapter
from coordinator.jobs import Line
from coordinator.ledger import Ledger
from coordinator.privacy import Bounds, Spent, Standing, expected_devices, standing
from coordinator.secure.opening import opening
from coordinator.task_book import FROZEN
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.crash_points import crash_point


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The next adapter, what levels of a lower rank get in its place, and under [privacy] what it cost and where the
    run stands with it.
    """

    asked: AggregateRound
    made: NextAdapter
    narrowed: Mapping[str, Blob]
    spent: Spent | None = None
    standing: Standing | None = None


def aggregation(
    asked: AggregateRound, config: Config, artifact: Artifact, ledger: Ledger, received: BlobStore
) -> Callable[[Callable[[Line], None]], Aggregated | NoAdapter]:
    """The job. Raises KeyError for a task without a committed result."""
    moments, weight = ledger.moments(asked.round - 1), config.rounds.weight
    deltas = [(blob, weight(asked.round - round_)) for blob, round_ in ledger.deltas(asked.task_ids)]
    # In the first round there is nothing before to hold deltas to: they are held to each other.
    sizes = ledger.sizes(asked.round) or ledger.sizes_of(asked.task_ids)
    before, lot = ledger.spent(), ledger.lot(asked.round, asked.attempt)
    private = _private(config, artifact, before)
    opened = opening(asked, config, artifact, ledger, received) if config.secure is not None else None
    size_limit = None if private else config.checks.size_limit(sizes)

    def work(_say: Callable[[Line], None]) -> Aggregated | NoAdapter:
        crash_point("aggregate.begun")
        found = opened() if opened is not None else deltas
        if isinstance(found, NoAdapter):
            return found
        made = aggregate_blobs(
            config.aggregation, artifact.store, received, asked.adapter, moments, found, size_limit, private
        )
        crash_point("aggregate.made")
        if isinstance(made, NoAggregate):
            return NoAdapter(asked.round, made.why)
        low = narrowed(artifact, made.blob)
        if private is None:
            return Aggregated(asked, made, low)
        norms = (private.bounds.clip_norm, made.next_clip_norm)
        spent = Spent(asked.round, *lot, len(deltas), *norms, private.config.noise_multiplier)
        return Aggregated(asked, made, low, spent, standing(config, (*before, spent)))

    return work


def narrowed(artifact: Artifact, adapter: Blob) -> dict[str, Blob]:
    """What levels of a lower rank get in the adapter's place. Equal adapters give equal bytes."""
    ranks = artifact.lower_ranks()
    return {level: adapter_at_rank(artifact.store, adapter, rank) for level, rank in ranks.items()}


def _private(config: Config, artifact: Artifact, before: tuple[Spent, ...]) -> Private | None:
    """Under [privacy], the bound that the version before left, and all that may train at any level."""
    if config.central_privacy is None:
        return None
    clip_norm = before[-1].next_clip_norm if before else config.central_privacy.clip_norm
    shapes = dict[str, tuple[int, ...]]()
    for built in artifact.levels.values():
        shapes |= built.manifest.trained_shapes(FROZEN[config.aggregation.rule])
    return Private(config.central_privacy, Bounds(clip_norm, expected_devices(config)), shapes)
