"""What each part of a step costs, measured in this process: what manifests carry and plans are made from.

Every structure runs forward and backward over one and over two rows of T random tokens. Its cost is the growth of
resident memory while it ran (VmHWM, reset before; mapped weights count, as they do in training) and the median time.
`process` is the resident memory with everything loaded and walked through once by one row of two tokens: the runtime's
code is mapped only where it runs, 5 MB of it in the first step (measured). `loss` is the turn at the end.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import HEAD_ROWS, LOSS, PROCESS
from edge_sdk.engine.walk import Arrays, Walk
from edge_sdk.memory import read_memory, reset_peak
from edge_sdk.wire.manifest import Cost, Direction, Manifest, Segment

ROWS = (1, 2)
REPETITIONS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """Growth of resident memory, bytes, and median time of one run."""

    peak_bytes: int
    time_ms: float


def random_batch(manifest: Manifest, rows: int, tokens: int, seed: int = 0) -> Batch:
    """Full rows of random tokens, and random labels where there are classes."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, manifest.model.vocabulary, (rows, tokens))
    labels = generator.integers(0, max(len(manifest.model.labels), 1), rows)
    return Batch(ids, np.ones_like(ids), labels)


def measure_costs(artifact: Artifact, tokens: int, threads: int) -> tuple[Cost, ...]:
    """The costs of all structures of the artifact. Raises like `Walk`."""
    walk = Walk(artifact, threads, HEAD_ROWS[-1], lambda: None)
    adapter = artifact.initial_adapter()
    walk.gradient(random_batch(artifact.manifest, 1, 2), adapter, 1.0)
    loaded = Cost(PROCESS, Direction.LOAD, 0, 0, read_memory().resident_bytes, 0.0)
    return (loaded, *(cost for rows in ROWS for cost in _costs(walk, adapter, rows, tokens)))


def _costs(walk: Walk, adapter: Arrays, rows: int, tokens: int) -> Iterator[Cost]:
    manifest = walk.artifact.manifest
    batch = random_batch(manifest, rows, tokens)
    context = walk.context(batch)
    hidden = np.random.default_rng(1).normal(size=(rows, tokens, manifest.model.width)).astype(np.float32)
    for segment in _one_of_each(manifest):
        flowing = {"ids": batch.ids} if segment is manifest.walk[0] else {"x": hidden}
        found = _measure(functools.partial(walk.forward, segment, flowing, context, adapter))
        yield Cost(segment.structure, Direction.FORWARD, rows, tokens, found.peak_bytes, found.time_ms)
        if walk.walks_back(segment):
            found = _measure(functools.partial(walk.backward, segment, flowing, hidden, context, adapter))
            yield Cost(segment.structure, Direction.BACKWARD, rows, tokens, found.peak_bytes, found.time_ms)
    found = _measure(lambda: walk.turn(hidden, batch, adapter, 1.0))
    yield Cost(LOSS, Direction.BACKWARD, rows, tokens, found.peak_bytes, found.time_ms)


def _one_of_each(manifest: Manifest) -> Iterator[Segment]:
    """One segment of each structure, the last: if any of them is walked back, it is."""
    yield from {segment.structure: segment for segment in manifest.walk}.values()


def _measure(run: Callable[[], object]) -> Measured:
    run()  # what is allocated once, and the page cache, are not part of a step
    growths, times_ms = [], []
    for _ in range(REPETITIONS):
        before = read_memory().resident_bytes
        reset_peak()
        begin = time.perf_counter()
        run()
        times_ms.append((time.perf_counter() - begin) * 1e3)
        growths.append(read_memory().peak_bytes - before)
    return Measured(max(*growths, 0), statistics.median(times_ms))
