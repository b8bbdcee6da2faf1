"""Aggregation from blobs to a blob: what a job does, outside the daemon's thread.

The same blobs give the same bytes, so a coordinator killed in the middle does it again and finds the same adapter.
"""

from __future__ import annotations

import math
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from coordinator.aggregate.rules import Contribution, aggregate
from coordinator.config import AggregationConfig
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.delta import decode_delta
from edge_sdk.wire.tensors import read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class NextAdapter:
    """The adapter after a round, kept in the store; `truncation` is the relative error of going back to rank r."""

    blob: Blob
    truncation: float


def aggregate_blobs(
    config: AggregationConfig, store: BlobStore, received: BlobStore, adapter: Blob, deltas: Iterable[Blob]
) -> NextAdapter:
    """Aggregate the `deltas` in `received`, which were validated when they came, into a new adapter in `store`.

    Raises IntegrityError for a blob that is not what it was, OSError, and ValueError should the result not be finite.
    """
    store.verify(adapter)
    before = read_tensors(store.path(adapter.sha256))
    result = aggregate(config, before, _contributions(received, deltas))
    if not all(math.isfinite(float(array.sum())) for array in result.adapter.values()):
        msg = (
            "the aggregate is not finite although each delta is: lower the learning rate, or set aggregation.clip_norm"
        )
        raise ValueError(msg)
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        path = pathlib.Path(folder) / "adapter"
        write_tensors(path, result.adapter)
        return NextAdapter(store.adopt(path), result.truncation)


def _contributions(received: BlobStore, deltas: Iterable[Blob]) -> Iterator[Contribution]:
    for blob in deltas:
        file, delta = decode_delta(received.read(blob), blob.size_bytes)
        yield Contribution(delta, file.examples)
