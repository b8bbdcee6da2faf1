"""How long a worker takes from nothing to the end of its first step, measured in this process.

    python -m benchmarks.engine.first_step MANIFEST TOKENS BATCH THREADS BUDGET BEGIN

does what a worker does before it has trained one step: imports, verifies every byte of the artifact, settles a plan,
steps. BEGIN is the system's monotonic clock, in seconds, when the process was started. Prints one JSON object:
`total_s`, `reading_s` of that the artifact's verification, which reads all weights.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import edge_sdk.worker  # noqa: F401 - what a worker imports takes time, too
from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.batch import random_batch
from edge_sdk.engine.plan import Limits
from edge_sdk.engine.settle import settle
from edge_sdk.engine.train import Recipe, train_steps
from edge_sdk.wire.lifeline import end_with_parent


def main(arguments: list[str]) -> None:
    """Measure, print JSON."""
    end_with_parent()
    path, begin_s = pathlib.Path(arguments[0]), float(arguments[5])
    tokens, batch, threads, budget_bytes = map(int, arguments[1:5])
    reading_s = time.monotonic()
    artifact = open_artifact(path)
    reading_s = time.monotonic() - reading_s
    walk = settle(artifact, Limits(batch, tokens, budget_bytes, threads), lambda: None)
    rows = iter([random_batch(artifact.manifest, batch, tokens)])
    next(train_steps(walk, artifact.initial_adapter(), rows, Recipe(steps=1, batch=batch, tokens=tokens)))
    print(json.dumps({"total_s": time.monotonic() - begin_s, "reading_s": reading_s}))


if __name__ == "__main__":
    main(sys.argv[1:])
