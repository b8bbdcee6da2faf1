"""From a round's masked deltas in the store to the one delta that is their mean, in the store beside them.

The same facts and blobs give the same bytes, so a coordinator that was killed opens the same sum again.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.builder import Artifact
from coordinator.config import Config
from coordinator.errors import ConfigError
from coordinator.events import AggregateRound, NoAdapter
from coordinator.ledger import Ledger
from coordinator.secure.config import Terms
from coordinator.secure.steps import Standing
from coordinator.secure.unmask import unmasked_mean
from coordinator.task_book import FROZEN
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.delta import DeltaFile, encode_delta, pack_array
from edge_sdk.wire.errors import DecodeError, MaskError

THE_SUM = "the sum"  # in the place of a device's name


def terms_of(config: Config) -> Terms | None:
    """What tasks say of the run's secure sums; None where there are none."""
    if config.secure is None:
        return None
    return Terms(config.secure, config.rounds.seats, config.aggregation.clip_norm)


def summed_shapes(config: Config, artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """What is in every delta. Raises ConfigError where levels differ in it."""
    freeze = FROZEN[config.aggregation.rule]
    found = [dict(built.manifest.trained_shapes(freeze)) for built in artifact.levels.values()]
    if any(shapes != found[0] for shapes in found):
        msg = "[secure] adds deltas of the same tensors, and the levels train different ones: make them alike"
        raise ConfigError(msg)
    return found[0]


def opening(
    asked: AggregateRound, config: Config, artifact: Artifact, ledger: Ledger, received: BlobStore
) -> Callable[[], list[tuple[Blob, float]] | NoAdapter]:
    """What the ledger knows of the sum is read now; the work is done by what is returned."""
    standing = Standing.of(ledger.masking_of(asked.round, asked.attempt))
    tasks = {name: standing.joined[name].keys.task_id for name in standing.alive}
    blobs = [blob for blob, _round in ledger.deltas(tuple(tasks.values()))]
    terms, shapes = terms_of(config), summed_shapes(config, artifact)
    if terms is None:
        msg = "a run without [secure]"
        raise ValueError(msg)
    whole = config.training.steps * config.training.batch
    masking = terms.masking(f"{ledger.run}.{asked.round}.{asked.attempt}", whole)

    def open_() -> list[tuple[Blob, float]] | NoAdapter:
        try:
            mean, weight = unmasked_mean(standing, (received.read(blob) for blob in blobs), shapes, masking)
        except (MaskError, DecodeError) as error:
            return NoAdapter(asked.round, f"the secure sum does not open: {error}")
        tensors = {name: pack_array(array) for name, array in mean.tensors.items()}
        file = DeltaFile(masking.sum_id, asked.round, THE_SUM, asked.adapter.sha256, weight, tensors)
        return [(received.put(encode_delta(file), "sum"), 1.0)]

    return open_
