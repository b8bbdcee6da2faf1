"""One level's training steps on whatever onnxruntime this Python has: the process that benchmarks.runtimes starts.

    python -m benchmarks.runtime_step MANIFEST TOKENS THREADS GRADIENTS.npz

Two steps' gradients of the same drawn adapter and row with each plan of PLANS, the second timed. Writes the gradients
as one vector a plan, and prints one JSON object: the version, and by plan `step_ms` and `peak_bytes`.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Mapping

import numpy as np

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import random_batch
from edge_sdk.engine.plan import HEAD_ROWS, Plan
from edge_sdk.engine.runtime import VERSION
from edge_sdk.engine.train import batch_gradient, trained_names
from edge_sdk.engine.walk import Walk
from edge_sdk.memory import read_memory, reset_peak
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.lifeline import end_with_parent
from edge_sdk.wire.manifest import decode_manifest
from edge_sdk.wire.tensors import Array

EVERY_BLOCK = 10**6
PLANS: Mapping[str, Plan] = {
    "recomputing": Plan(1, HEAD_ROWS[-1]),
    "kept-32": Plan(1, HEAD_ROWS[-1], EVERY_BLOCK, 32),
    "kept-16": Plan(1, HEAD_ROWS[-1], EVERY_BLOCK, 16),
}
SPREAD = 0.02  # of the adapter's values: at its start half of all gradients would be zero


def main(arguments: list[str]) -> None:
    """Measure, write the gradients, print JSON."""
    end_with_parent()
    path, out = pathlib.Path(arguments[0]), pathlib.Path(arguments[3])
    tokens, threads = map(int, arguments[1:3])
    artifact = Artifact(decode_manifest(path.read_bytes()), BlobStore(path.parent))
    batch, random = random_batch(artifact.manifest, 1, tokens), np.random.default_rng(0)
    adapter = {
        name: np.asarray(SPREAD * random.standard_normal(array.shape), np.float32)
        for name, array in artifact.initial_adapter().items()
    }
    walk = Walk(artifact, threads, PLANS["recomputing"], lambda: None)
    names = trained_names(walk, ())
    steps: dict[str, dict[str, float]] = {}
    gradients: dict[str, Array] = {}
    for kind, plan in PLANS.items():
        walk.follow(plan)
        reset_peak()
        batch_gradient(walk, adapter, batch, names)
        begin = time.perf_counter()
        _, found = batch_gradient(walk, adapter, batch, names)
        steps[kind] = {"step_ms": (time.perf_counter() - begin) * 1e3, "peak_bytes": read_memory().peak_bytes}
        gradients[kind] = np.concatenate([found[name].reshape(-1) for name in names])
    np.savez(out, allow_pickle=False, **gradients)
    print(json.dumps({"version": VERSION, "plans": steps}))


if __name__ == "__main__":
    main(sys.argv[1:])
