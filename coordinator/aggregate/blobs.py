"""Aggregation from blobs to a blob: what a job does, outside the daemon's thread.

The same blobs give the same bytes, so a coordinator killed in the middle does it again and finds the same adapter.
Noise for privacy is new each time: of several adapters made so, the ledger has one, and devices see no other.
"""

from __future__ import annotations

import math
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from coordinator.aggregate.lora import at_rank
from coordinator.aggregate.rules import Contribution, NoAggregate, Private, aggregate
from coordinator.config import AggregationConfig
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.delta import decode_delta
from edge_sdk.wire.tensors import Array, read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class NextAdapter:
    """The adapter after a round and the server optimizer's moments, where it keeps any: both in the store.

    `truncation` is the relative error of going back to rank r, `next_clip_norm` the next round's bound under [privacy].
    """

    blob: Blob
    moments: Blob | None
    truncation: float
    next_clip_norm: float = 0.0


def aggregate_blobs(
    config: AggregationConfig,
    store: BlobStore,
    received: BlobStore,
    adapter: Blob,
    moments: Blob | None,
    deltas: Iterable[tuple[Blob, float]],
    size_limit: float | None = None,
    private: Private | None = None,
) -> NextAdapter | NoAggregate:
    """Aggregate the `deltas` in `received`, which were validated when they came, into a new adapter in `store`.

    `moments` came with `adapter`. Of each delta's change counts the part that is with it; one larger than `size_limit`
    is scaled down to that before. Raises IntegrityError for a blob that is not what it was, OSError, and ValueError
    should the result not be finite. Gives NoAggregate where the configured estimator does not hold.
    """
    past = {} if moments is None else _read(store, moments)
    starts = _Starts(store, adapter, wanted=not config.rule.keeps_coordinates)
    came = _contributions(starts, received, deltas)
    result = aggregate(config, _read(store, adapter), came, past, size_limit, private)
    if isinstance(result, NoAggregate):
        return result
    if not all(math.isfinite(float(array.sum())) for array in result.adapter.values()):
        msg = "the aggregate is not finite although each delta is: lower a learning rate, or set aggregation.clip_norm"
        raise ValueError(msg)
    kept = _keep(store, result.moments, "moments") if result.moments else None
    return NextAdapter(_keep(store, result.adapter, "adapter"), kept, result.truncation, result.next_clip_norm)


def adapter_at_rank(store: BlobStore, adapter: Blob, rank: int) -> Blob:
    """The adapter at `rank`, in the store; itself, where its rank is no higher. Raises IntegrityError, OSError."""
    before = _read(store, adapter)
    after = at_rank(before, rank)
    return adapter if all(after[name] is array for name, array in before.items()) else _keep(store, after, "adapter")


def _read(store: BlobStore, blob: Blob) -> dict[str, Array]:
    store.verify(blob)
    return read_tensors(store.path(blob.sha256))


def _keep(store: BlobStore, tensors: Mapping[str, Array], step: str) -> Blob:
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        path = pathlib.Path(folder) / "tensors"
        write_tensors(path, tensors)
        return store.adopt(path, step)


class _Starts:
    """What devices were given that deltas are changes of: read once, and only where it is `wanted`."""

    def __init__(self, store: BlobStore, adapter: Blob, *, wanted: bool) -> None:
        self._store, self._wanted = store, wanted
        self._known: dict[str, dict[str, Array] | None] = {adapter.sha256: None}

    def of(self, sha256: str) -> dict[str, Array] | None:
        """The adapter of another round, or at a lower rank; None for the one that is aggregated into."""
        if self._wanted and sha256 not in self._known:
            path = self._store.path(sha256)
            self._known[sha256] = _read(self._store, Blob(sha256, path.stat().st_size))
        return self._known.get(sha256)


def _contributions(
    starts: _Starts, received: BlobStore, deltas: Iterable[tuple[Blob, float]]
) -> Iterator[Contribution]:
    for blob, scale in deltas:
        file, delta = decode_delta(received.read(blob), blob.size_bytes)
        yield Contribution(delta, file.examples, starts.of(file.adapter), scale)
