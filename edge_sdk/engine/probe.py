"""What each graph costs, measured: what manifests carry and plans are made from.

Every graph runs over three shapes of random numbers: one row of T tokens, eight rows, and one row of 4T. They lie wide
apart, for what is between them is interpolated, and what is beyond is off by more the closer they are. Images are all
of one length: of them there are the first two. Each runs in a fork of this process, whose arena begins empty: memory is
the growth of anonymous memory in the first run, time the median of further ones, with the weights in memory. `process`
is the memory at rest with everything loaded, the arena still empty. `pages` is what it costs to map weights and to give
them back.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import random_batch
from edge_sdk.engine.losses import occurring_rows
from edge_sdk.engine.plan import ARENA_NOTES, HEAD_ROWS, Plan, Step
from edge_sdk.engine.runtime import Graph, reserve_arena
from edge_sdk.engine.walk import Arrays, Walk
from edge_sdk.errors import ArtifactError
from edge_sdk.memory import read_memory
from edge_sdk.wire.costs import PAGES, PROCESS, SLICE_ROWS
from edge_sdk.wire.manifest import Cost, Keeping, Manifest, ModelSpec, Segment, Structure
from edge_sdk.wire.tensors import Array

REPETITIONS = 5
POSITIONS = (16, 64)  # of the vocabulary's loss
REGION_BYTES = 1 << 29  # of the arena in which a graph is measured: whatever it needs lies in one region


def measure_costs(artifact: Artifact, tokens: int, threads: int) -> tuple[Cost, ...]:
    """The costs of all graphs of the artifact, in a process that has loaded none yet. Raises like `Walk`."""
    graphs = tuple(_Probe(artifact, tokens, threads).costs())
    return (loaded(artifact, threads), *graphs)


def loaded(artifact: Artifact, threads: int) -> Cost:
    """What a worker holds at rest, with every graph that a plan could need."""
    return Cost(PROCESS, 1, 2, ready(artifact, threads, fullest(artifact.manifest), 2, lambda: None)[1].bytes, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Rest:
    """What a process holds that is ready to walk: `bytes` beside the arena, and `arena_bytes`.

    `bytes` is its anonymous memory before the first run, and the pages of files after it: code is mapped where it runs,
    and what only loading needed was forgotten.
    """

    bytes: int
    arena_bytes: int


def ready(artifact: Artifact, threads: int, plan: Plan, tokens: int, watch: Callable[[], None]) -> tuple[Walk, Rest]:
    """A loaded walk that has rehearsed the plan with rows of `tokens` tokens, and what the process holds then."""
    streamed = dataclasses.replace(plan, resident=0)  # what stays mapped is the plan's, not the process's at rest
    walk = Walk(artifact, threads, streamed, watch)
    gc.collect()
    anonymous_bytes = read_memory().anonymous_bytes
    arena_bytes = walk.rehearse(tokens)
    memory = read_memory()
    walk.follow(plan)
    return walk, Rest(anonymous_bytes + memory.resident_bytes - memory.anonymous_bytes, arena_bytes)


def fullest(manifest: Manifest) -> Plan:
    """A plan that needs all graphs which any plan needs, but for a second precision."""
    step = Step(manifest, 1, 2)
    kept_bits = next(iter(step.kept_bits()), 32)  # none where no block is walked back
    return Plan(1, HEAD_ROWS[-1], min(step.most_kept(), 1), kept_bits)


class _Probe:
    """The graphs of one artifact at each of the shapes."""

    def __init__(self, artifact: Artifact, tokens: int, threads: int) -> None:
        self._artifact, self._manifest, self._threads = artifact, artifact.manifest, threads
        self._shapes = _shapes(self._manifest.model, tokens)
        self._adapter = artifact.initial_adapter()
        self._generator = np.random.default_rng(0)

    def costs(self) -> Iterator[Cost]:
        """All of them but the process's."""
        if self._manifest.context:
            for rows, tokens in self._shapes:
                yield self._context(rows, tokens)[0]
        for segment in {segment.structure: segment for segment in self._manifest.walk}.values():
            yield from self._segment(segment)
        if self._manifest.vocabulary_loss is not None:
            yield from self._vocabulary()
        if self._manifest.classes_loss is not None:
            yield from self._classes()
        yield self._pages()

    def _segment(self, segment: Segment) -> Iterator[Cost]:
        """One segment of each structure, the last: if any of them is walked back, it is."""
        structure, walked_back = self._manifest.structures[segment.structure], self._manifest.walked_back()
        pairs: list[Structure | Keeping] = [structure, *structure.keepings]
        for rows, tokens in self._shapes:
            given = self._given(segment, rows, tokens)
            for pair in pairs if segment in walked_back else pairs[:1]:
                cost, found = self._measured(pair.forward, rows, tokens, given)
                yield cost
                kept = {name: array for name, array in found.items() if name != "y"}
                for backward in filter(None, (pair.backward, pair.backward_integers) if segment in walked_back else ()):
                    yield self._measured(backward, rows, tokens, {**given, **kept, "dy": found["y"]})[0]

    def _given(self, segment: Segment, rows: int, tokens: int) -> Arrays:
        structure, batch = self._manifest.structures[segment.structure], random_batch(self._manifest, rows, tokens)
        file = self._artifact.tensors(segment.tensors)
        given = {name: file[name] for name in structure.frozen if not _is_embedding(segment, name)}
        given |= {name: self._adapter[f"{segment.name}/{name}"] for name in structure.trained}
        if structure.context:
            found = self._context(rows, tokens)[1]
            given |= {name: found[name] for name in structure.context}
        if segment is not self._manifest.walk[0]:
            return given | {"x": self._hidden(rows, tokens)}
        return given | (occurring_rows(file, batch.ids) if batch.pixels is None else batch.flowing)

    def _context(self, rows: int, tokens: int) -> tuple[Cost, Arrays]:
        mask = random_batch(self._manifest, rows, tokens).attention_mask
        return self._measured(self._manifest.context, rows, tokens, {"attention_mask": mask})

    def _vocabulary(self) -> Iterator[Cost]:
        loss = self._manifest.vocabulary_loss
        if loss is None:
            raise AssertionError
        file = self._artifact.tensors(loss.tensors)
        matrix = {name: array[:SLICE_ROWS] for name, array in file.items() if name.startswith("matrix")}
        for rows in POSITIONS:
            cost, found = self._measured(loss.project, rows, 1, {"z": self._hidden(rows, 1)[:, 0], **matrix})
            yield cost
            yield self._measured(loss.unproject, rows, 1, {**found, **matrix})[0]

    def _classes(self) -> Iterator[Cost]:
        loss = self._manifest.classes_loss
        if loss is None:
            raise AssertionError
        file = self._artifact.tensors(loss.tensors)
        tensors = {name: file[name] for name in loss.frozen}
        tensors |= {name: self._adapter[f"head/{name}"] for name in loss.trained}
        for rows, tokens in self._shapes:
            batch = random_batch(self._manifest, rows, tokens)
            flowing = {"x": self._hidden(rows, tokens), "attention_mask": batch.attention_mask, "labels": batch.labels}
            given = {**flowing, "weight": np.array(1.0, np.float32), **tensors}
            yield self._measured(loss.step, rows, tokens, given)[0]

    def _measured(self, name: str, rows: int, tokens: int, given: Mapping[str, Array]) -> tuple[Cost, Arrays]:
        """Its cost, and numbers in the shapes of what it gave."""
        found = in_fork(lambda: self._alone(name, given))
        arrays = {output: np.ones(shape, dtype) for output, (shape, dtype) in found["outputs"].items()}
        return Cost(name, rows, tokens, found["memory_bytes"], found["time_ms"]), arrays

    def _alone(self, name: str, given: Mapping[str, Array]) -> dict[str, Any]:
        reserve_arena(REGION_BYTES)
        graph = Graph(self._artifact.path(name), self._threads)
        before = read_memory().anonymous_bytes
        outputs = {key: (array.shape, array.dtype.name) for key, array in graph.run(given).items()}
        growth = read_memory().anonymous_bytes - before - round(REGION_BYTES * ARENA_NOTES)
        return {"memory_bytes": max(growth, 0), "time_ms": _median_ms(lambda: graph.run(given)), "outputs": outputs}

    def _pages(self) -> Cost:
        names = {segment.tensors for segment in self._manifest.walk[1:] if self._artifact.tensors(segment.tensors)}
        names = names or {self._manifest.walk[0].tensors}  # where all else trains, the embedding alone is mapped
        largest = max(sorted(names), key=lambda name: self._manifest.files[name].size_bytes)
        file, size_bytes = self._artifact.tensors(largest), self._manifest.files[largest].size_bytes

        def visit() -> None:
            for array in file.values():
                array.reshape(-1).view(np.uint8)[::4096].sum()
            file.evict()

        visit()
        return Cost(PAGES, 1, 1, size_bytes, _median_ms(visit))

    def _hidden(self, rows: int, tokens: int) -> Array:
        return self._generator.normal(size=(rows, tokens, self._manifest.model.width)).astype(np.float32)


def in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, done in a fork of this process: plain values, for JSON. Raises ArtifactError when it fails.

    What work allocates and starts is gone after it. This process must have no threads yet: a fork has only one.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, json.dumps(work()).encode())
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, it must not go on as a second self of the parent
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor
        answer = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        msg = "a graph could not be measured"
        raise ArtifactError(msg)
    found: dict[str, Any] = json.loads(answer)
    return found


def _shapes(model: ModelSpec, tokens: int) -> tuple[tuple[int, int], ...]:
    """Rows and tokens of what is measured; images are all of one length, and no plan asks for another."""
    if model.image is not None:
        return (1, model.max_tokens), (8, model.max_tokens)
    tokens = max(min(tokens, model.max_tokens // 4), 2)
    return (1, tokens), (8, tokens), (1, 4 * tokens)


def _is_embedding(segment: Segment, name: str) -> bool:
    return segment.name == "embed" and name.startswith("matrix")


def _median_ms(run: Callable[[], object]) -> float:
    times_ms = []
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        run()
        times_ms.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times_ms)
