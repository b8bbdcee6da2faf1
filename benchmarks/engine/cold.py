"""Steps with a plan from weights that are in no page cache at first, measured in this process.

    python -m benchmarks.engine.cold MANIFEST TOKENS BATCH STEPS THREADS PLAN

Measures the medium's speed, has the kernel forget all files, and trains: nothing verifies the artifact, for that would
read it back into the cache. Prints one JSON object: `read_bytes_s` of the medium; `first_ms`, the first step;
`step_ms`, the median of the others; `peak_bytes`.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import statistics
import sys

import edge_sdk.worker  # noqa: F401 - what a worker imports counts in what it needs
from edge_sdk import storage
from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import random_batch
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.train import Recipe, train_steps
from edge_sdk.engine.walk import Walk
from edge_sdk.memory import read_memory
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.lifeline import end_with_parent
from edge_sdk.wire.manifest import decode_manifest


def main(arguments: list[str]) -> None:
    """Measure, print JSON."""
    end_with_parent()
    path = pathlib.Path(arguments[0])
    tokens, batch, steps, threads = map(int, arguments[1:5])
    artifact = Artifact(decode_manifest(path.read_bytes()), BlobStore(path.parent))
    read_bytes_s = storage.read_bytes_s(artifact.largest_path())
    for blob in set(artifact.manifest.files.values()):
        storage.forget(artifact.store.path(blob.sha256))
    walk = Walk(artifact, threads, Plan(**json.loads(arguments[5])), lambda: None)
    rows = itertools.repeat(random_batch(artifact.manifest, batch, tokens))
    recipe = Recipe(steps=steps + 1, batch=batch, tokens=tokens, learning_rate=1e-4)
    times_ms = [report.time_ms for report in train_steps(walk, artifact.initial_adapter(), rows, recipe)]
    found = {"read_bytes_s": read_bytes_s, "first_ms": times_ms[0]}
    found |= {"step_ms": statistics.median(times_ms[1:]), "peak_bytes": read_memory().peak_bytes}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
