"""Small true values for the device's tests: a task, a manifest with costs, a report, an introduction."""

from __future__ import annotations

import dataclasses

from edge_sdk.wire.blobs import Blob, blob_of
from edge_sdk.wire.manifest import (
    AdapterSpec,
    Cost,
    Keeping,
    LevelSpec,
    Manifest,
    ModelSpec,
    OptimizerGraphs,
    Segment,
    Structure,
    TaskType,
    VocabularyLoss,
)
from edge_sdk.wire.messages import Hello, OptimizerKind, Report, ResultOffer, Schedule, Task

MB = 10**6
WIDTH, RANK, TOKENS = 6, 2, 16
FILE = blob_of(b"a file")
KEEPING = Keeping(32, "keep.forward", "keep.backward", ("kept.0",), 10 * WIDTH)


def make_task(task_id: str = "run.1.1.0.pi", **changes: object) -> Task:
    """A task of two steps."""
    task = Task(
        task_id=task_id,
        round=1,
        artifact=blob_of(b"manifest"),
        adapter=blob_of(b"adapter"),
        steps=2,
        batch=2,
        tokens=TOKENS,
        optimizer=OptimizerKind.ADAMW,
        learning_rate=1e-3,
        weight_decay=0.0,
        schedule=Schedule.CONSTANT,
        warmup_steps=0,
        clip_norm=1.0,
        seed=0,
        freeze=(),
        deadline_s=60.0,
    )
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]


def make_manifest(process_bytes: int = 50 * MB, integers_ms: float | None = None) -> Manifest:
    """A language model of two blocks; a step needs a little more than `process_bytes`.

    A block's way back takes 2 ms, and `integers_ms` in integers; None where there are no graphs for that.
    """
    costs = [Cost("process", 1, 2, process_bytes, 0.0), Cost("pages", 1, 1, MB, 0.1)]
    for graph in ("forward", "backward", "keep.forward", "keep.backward"):
        costs += [Cost(graph, rows, TOKENS, rows * MB, rows * (1.0 + graph.endswith("backward"))) for rows in (1, 2)]
    trained = {"q.lora_A": (RANK, WIDTH), "q.lora_B": (WIDTH, RANK)}
    manifest = Manifest(
        format=1,
        model=ModelSpec("llama", TaskType.CAUSAL_LM, 2, WIDTH, 32, (), 64),
        level=LevelSpec("fp32", (0, 1), (0, 1), 32),
        adapter=AdapterSpec("lora", RANK, 4.0, ("q",), "initial"),
        files=dict.fromkeys(("forward", "backward", "keep.forward", "keep.backward", "tensors", "initial"), FILE),
        context="forward",
        structures={
            "embed": Structure("forward", "", (), (), ("matrix",), {}),
            "block": Structure("forward", "backward", (KEEPING,), (), (), trained),
        },
        walk=(
            Segment("embed", "embed", "tensors", trains=False),
            *(Segment(f"block.{k}", "block", "tensors", trains=True) for k in range(2)),
        ),
        vocabulary_loss=VocabularyLoss("forward", "backward", "forward", "tensors"),
        classes_loss=None,
        optimizers=OptimizerGraphs("forward", "forward", "forward", "forward"),
        tokenizer="",
        reference_tokens=TOKENS,
        costs=tuple(costs),
        needs_bytes=process_bytes,
    )
    return manifest if integers_ms is None else with_integers(manifest, integers_ms)


def with_integers(manifest: Manifest, integers_ms: float) -> Manifest:
    """The manifest with a graph in integers for each way back of its blocks, of 1 MB and so many ms a row."""
    block = manifest.structures["block"]
    keepings = tuple(dataclasses.replace(keeping, backward_integers="integers") for keeping in block.keepings)
    block = dataclasses.replace(block, backward_integers="integers", keepings=keepings)
    costs = [Cost("integers", rows, TOKENS, rows * MB, rows * integers_ms) for rows in (1, 2)]
    return dataclasses.replace(
        manifest,
        structures={**manifest.structures, "block": block},
        files={**manifest.files, "integers": FILE},
        costs=(*manifest.costs, *costs),
        integers_error=0.05,
    )


def make_report(peak_bytes: int = 60 * MB) -> Report:
    """What a worker said of two steps."""
    return Report(2, 4, 2.0, 1.5, peak_bytes, 55 * MB, 100 * MB, 3.0, 1.0, 0, 0, 1, "a runtime")


def make_hello(budget_bytes: int = 100 * MB) -> Hello:
    """A device of 100 MB."""
    return Hello("pi", "session", budget_bytes, 4, 10**9, "aarch64", "onnxruntime", "0.1.0", "")


def make_offer(task_id: str, delta: Blob = FILE) -> ResultOffer:
    """A result that waits."""
    return ResultOffer(task_id, delta, make_report())
