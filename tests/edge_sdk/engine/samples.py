"""Adapters and batches for the engine's tests: random, and small enough to walk hundreds of times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import Batch, image_batch
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.tensors import Array

WHOLE = Plan(64, 32)  # batches walk in one piece
LENGTHS = (9, 2, 12, 5, 7)


def walk_of(artifact: Artifact, plan: Plan = WHOLE) -> Walk:
    """The artifact, loaded on one thread, watched by nobody."""
    return Walk(artifact, 1, plan, lambda: None)


def random_adapter(manifest: Manifest, seed: int = 0) -> dict[str, Array]:
    """Normal values in every tensor: an initial adapter, half of it zeros, has gradients that are zero."""
    random = np.random.default_rng(seed)
    shapes = manifest.adapter_shapes()
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def batch_of(manifest: Manifest, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> Batch:
    """Random rows of these lengths, padded on the right with random tokens, which no one should look at; or so many
    random images.
    """
    random, image = np.random.default_rng(seed), manifest.model.image
    if image is not None:
        pixels = random.integers(0, 256, (len(lengths), *image.shape), np.uint8)
        labels = random.integers(0, len(manifest.model.labels), len(lengths))
        return image_batch(pixels, labels, manifest.model.max_tokens)
    ids = random.integers(0, manifest.model.vocabulary, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    classes = len(manifest.model.labels)
    return Batch(ids, mask, random.integers(0, classes, len(lengths)) if classes else np.zeros(0, np.int64))


def relative_error(found: dict[str, Array], expected: dict[str, Array]) -> float:
    """The largest difference of any tensor, relative to that tensor's largest value."""
    assert found.keys() == expected.keys()
    scales = {name: max(float(np.abs(array).max()), 1e-6) for name, array in expected.items()}
    return max(float(np.abs(found[name] - array).max()) / scales[name] for name, array in expected.items())
