"""Steps with a plan from weights that are in no page cache at first, measured in this process.

    python -m benchmarks.engine.cold MANIFEST TOKENS BATCH STEPS THREADS PLAN

Reads all files once for the medium's speed, has the kernel forget them, and trains: nothing verifies the artifact, for
that would read it back into the cache. Prints one JSON object: `read_ms` and `read_bytes_s` of that reading;
`first_ms`, the first step; `step_ms`, the median of the others; `peak_bytes`.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import statistics
import sys
import time

import edge_sdk.worker  # noqa: F401 - what a worker imports counts in what it needs
from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.probe import random_batch
from edge_sdk.engine.train import Recipe, train_steps
from edge_sdk.engine.walk import Walk
from edge_sdk.memory import read_memory
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.lifeline import end_with_parent
from edge_sdk.wire.manifest import decode_manifest

CHUNK_BYTES = 1 << 20


def forget(path: pathlib.Path) -> None:
    """Have the kernel drop a file's pages. Dirty ones cannot be dropped, so they are written before."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(paths: list[pathlib.Path]) -> tuple[int, float]:
    """Bytes, and milliseconds of reading the files one after the other from the medium; they are forgotten again."""
    for path in paths:
        forget(path)
    begin, count = time.perf_counter(), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while chunk := len(file.read(CHUNK_BYTES)):
                count += chunk
    took_ms = (time.perf_counter() - begin) * 1e3
    for path in paths:
        forget(path)
    return count, took_ms


def main(arguments: list[str]) -> None:
    """Measure, print JSON."""
    end_with_parent()
    path = pathlib.Path(arguments[0])
    tokens, batch, steps, threads = map(int, arguments[1:5])
    artifact = Artifact(decode_manifest(path.read_bytes()), BlobStore(path.parent))
    size_bytes, read_ms = read_all(sorted({artifact.path(name) for name in artifact.manifest.files}))
    walk = Walk(artifact, threads, Plan(**json.loads(arguments[5])), lambda: None)
    rows = itertools.repeat(random_batch(artifact.manifest, batch, tokens))
    recipe = Recipe(steps=steps + 1, batch=batch, tokens=tokens, learning_rate=1e-4)
    times_ms = [report.time_ms for report in train_steps(walk, artifact.initial_adapter(), rows, recipe)]
    found = {"read_ms": read_ms, "read_bytes_s": size_bytes / read_ms * 1e3, "first_ms": times_ms[0]}
    found |= {"step_ms": statistics.median(times_ms[1:]), "peak_bytes": read_memory().peak_bytes}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
