"""Deltas of several rounds in one version, from blobs: each against the adapter that it started from."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from coordinator.aggregate.blobs import NextAdapter, aggregate_blobs
from coordinator.config import AggregationConfig, Rule
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array, read_tensors, write_tensors
from tests.coordinator.samples import delta_bytes, make_adapter, make_delta, make_task

A, B = "block.0/q.lora_A", "block.0/q.lora_B"


def kept(store: BlobStore, tensors: dict[str, Array], folder: pathlib.Path) -> Blob:
    """An adapter in the store."""
    path = folder / "tensors"
    write_tensors(path, tensors)
    return store.adopt(path, "adapter")


def product(tensors: dict[str, Array]) -> Array:
    """`B @ A`, float64."""
    result: Array = tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)
    return result


def test_a_delta_of_an_older_round_is_a_change_of_its_own_adapter(tmp_path: pathlib.Path) -> None:
    """With both factors training, half of what it changed of that product is added to today's; the older adapter comes
    from the store, and one that is not there, or not what it was, is an error, never another in its place.
    """
    store = BlobStore(tmp_path / "store")
    adapters = [make_adapter(1, seed) | {B: np.float32(0.1) * make_adapter(1, 9 + seed)[A].T} for seed in (1, 2)]
    then, now = (kept(store, tensors, tmp_path) for tensors in adapters)
    delta = make_delta({name: array.shape for name, array in adapters[0].items()}, 3, scale=0.05)
    late = store.put(delta_bytes(dataclasses.replace(make_task("late"), adapter=then), "a", delta))
    nothing = Delta({name: np.zeros_like(array) for name, array in adapters[1].items()})
    fresh = store.put(delta_bytes(dataclasses.replace(make_task("fresh"), round=2, adapter=now), "b", nothing))
    config = AggregationConfig(rule=Rule.LORA_SVD)
    made = aggregate_blobs(config, store, store, now, None, [(late, 0.5), (fresh, 1.0)])
    assert isinstance(made, NextAdapter)
    trained = {name: array + delta.tensors[name] for name, array in adapters[0].items()}
    dense = product(adapters[1]) + 0.25 * (product(trained) - product(adapters[0]))
    lost = made.truncation * np.linalg.norm(dense)
    found = product(read_tensors(store.path(made.blob.sha256)))
    assert np.linalg.norm(found - dense) == pytest.approx(lost, abs=1e-5)
    store.remove(then.sha256)
    with pytest.raises(OSError, match=then.sha256):
        aggregate_blobs(config, store, store, now, None, [(late, 0.5), (fresh, 1.0)])


def test_with_a_frozen_a_part_of_the_delta_is_added(tmp_path: pathlib.Path) -> None:
    """A is the same in all rounds, so B's changes of several may be added; the older adapter is not even read."""
    store = BlobStore(tmp_path / "store")
    start = make_adapter(1)
    now = kept(store, start, tmp_path)
    deltas = [make_delta({B: start[B].shape}, seed) for seed in (1, 2)]
    older = dataclasses.replace(make_task("late"), adapter=Blob("0" * 64, 1))
    blobs = [
        store.put(delta_bytes(task, "a", delta))
        for task, delta in zip((older, dataclasses.replace(make_task("fresh"), adapter=now)), deltas, strict=True)
    ]
    config = AggregationConfig(rule=Rule.FREEZE_A)
    made = aggregate_blobs(config, store, store, now, None, list(zip(blobs, (0.5, 1.0), strict=True)))
    assert isinstance(made, NextAdapter)
    wanted = start[B] + (0.5 * deltas[0].tensors[B] + deltas[1].tensors[B]) / 2
    np.testing.assert_allclose(read_tensors(store.path(made.blob.sha256))[B], wanted, atol=1e-6)
