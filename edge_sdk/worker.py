"""The process that trains: one task, then it ends, and all its memory goes back.

    python -m edge_sdk.worker ORDER

reads a `WorkerOrder`, does it, and says so in JSON lines on standard output: `progress`, then one of `finished` (with
the report; the delta lies where the order said) or `failed` (with a reason). Order of work: open and verify the
artifact, load it, bound this process's allocations, measure the loss on rows held aside, train, measure again, write
the delta.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edge_sdk.cgroup import in_task_group
from edge_sdk.data import batches, in_order, open_rows, sampled, split
from edge_sdk.engine.artifact import Artifact, adapter_in, artifact_in
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import Limits, Plan, gradient_error
from edge_sdk.engine.private import NOT_TOLD, private_steps
from edge_sdk.engine.runtime import VERSION, use
from edge_sdk.engine.settle import settle
from edge_sdk.engine.train import Recipe, StepReport, evaluate, train_steps
from edge_sdk.engine.walk import Walk
from edge_sdk.errors import ArtifactError, ConfigError, DataError, NonFinite, OverBudget
from edge_sdk.feedback import compress, owner, read_residual, write_residual
from edge_sdk.memory import bound_allocations, check_budget, read_memory
from edge_sdk.order import MAX_ORDER_BYTES, WorkerOrder
from edge_sdk.wire import codec
from edge_sdk.wire.blobs import BlobStore, written_atomically
from edge_sdk.wire.crash_points import crash_point
from edge_sdk.wire.delta import DeltaFile, Tensor, encode_delta, pack_array
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.lifeline import end_with_parent
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.messages import FailureReason, Report
from edge_sdk.wire.privacy import ExampleNoise, rows_at_once
from edge_sdk.wire.secure.said import Masking
from edge_sdk.wire.tensors import Array, TensorFile

ROUNDING = 1  # beside the task's seed, so that codecs draw other numbers than the order of the rows
REASONS: dict[type[Exception], FailureReason] = {
    OverBudget: FailureReason.OVER_BUDGET,
    NonFinite: FailureReason.NON_FINITE,
    DataError: FailureReason.BAD_DATA,
    ArtifactError: FailureReason.BAD_ARTIFACT,
    ConfigError: FailureReason.WORKER_DIED,  # there was a provider when the agent started, and is none now
    WireError: FailureReason.BAD_ARTIFACT,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no result."""

    reason: FailureReason
    detail: str


@dataclass(frozen=True, slots=True)
class Learned:
    """What a task's steps came to: the trained `adapter`, by global name, and what a report says of them."""

    adapter: dict[str, Array]
    examples: int
    loss_before: float
    loss_after: float
    step_ms: float
    sampled_rows: int = 0


def main() -> int:
    """Do the order named on the command line; 0 when there is a result."""
    end_with_parent()
    order = codec.decode(WorkerOrder, pathlib.Path(sys.argv[1]).read_bytes(), MAX_ORDER_BYTES)
    with contextlib.suppress(OSError):  # without the right, the kernel's own choice stands
        pathlib.Path("/proc/self/oom_score_adj").write_text("800")  # if memory runs out, it is this process that goes
    outcome = do(order)
    if isinstance(outcome, Failure):
        peak_bytes = read_memory().peak_bytes
        say("failed", reason=outcome.reason.value, detail=outcome.detail[:400], peak_bytes=peak_bytes)
        return 1
    say("finished", report=dataclasses.asdict(outcome))
    crash_point("worker.said")
    return 0


def do(order: WorkerOrder, train: Callable[[WorkerOrder], Report] | None = None) -> Report | Failure:
    """Do the order, by `train` where that is given. Expected failures are values."""
    try:
        return (train or _train)(order)
    except MemoryError as error:
        budget = f"{order.budget_bytes / 1e6:.0f} MB"
        return Failure(FailureReason.OVER_BUDGET, f"an allocation beyond the budget of {budget} was refused: {error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return Failure(FailureReason.NO_SPACE, f"no space left on the device: {error.filename or order.store}")
    except tuple(REASONS) as error:
        return Failure(next(reason for kind, reason in REASONS.items() if isinstance(error, kind)), str(error))


def say(event: str, **values: object) -> None:
    """One JSON line to whoever started us."""
    print(json.dumps({"event": event, **values}), flush=True)


def _train(order: WorkerOrder) -> Report:
    begin, task = time.monotonic(), order.task
    use(order.provider)
    store = BlobStore(pathlib.Path(order.store))
    artifact = artifact_in(store, task.artifact)
    limits = Limits(
        rows_at_once(task.batch, task.example_noise),
        task.tokens,
        order.budget_bytes,
        order.threads,
        order.correction,
        order.storage(),
        integers=task.integer_gradients,
    )
    watch = _Watch(order.budget_bytes, bounds_allocations=not in_task_group(order.budget_bytes))
    walk = settle(artifact, limits, watch.check)
    learned, plan = learn(order, walk, lambda r: say("progress", step=r.step, steps=r.steps, loss=r.loss)), walk.plan
    del walk  # what it held serves the delta
    deliver(order, artifact.manifest, learned)
    check_budget(order.budget_bytes)
    wall_s = time.monotonic() - begin
    return report_of(order, artifact.manifest, plan, learned, peak_bytes=read_memory().peak_bytes, wall_s=wall_s)


def learn(order: WorkerOrder, walk: Walk, progress: Callable[[StepReport], None]) -> Learned:
    """Take the order's steps, with the losses before and after on rows held aside. Raises what `train_steps` raises,
    DataError, ArtifactError, WireError.
    """
    task, artifact = order.task, walk.artifact
    # Not before the walk is ready: a plan counts the adapter beside what is at rest.
    adapter = adapter_in(BlobStore(pathlib.Path(order.store)), task.adapter, artifact.manifest)
    if task.example_noise is not None:
        return _learn_privately(order, walk, adapter, task.example_noise, progress)
    training, aside = _rows(order, artifact)
    loss_before = evaluate(walk, adapter, aside()).loss
    times_ms, examples = [], 0
    for report in train_steps(walk, adapter, training, Recipe.of(task)):
        times_ms.append(report.time_ms)
        examples += task.batch
        progress(report)
    loss_after = evaluate(walk, adapter, aside()).loss
    return Learned(adapter, examples, loss_before, loss_after, statistics.median(times_ms))


def _learn_privately(
    order: WorkerOrder,
    walk: Walk,
    adapter: dict[str, Array],
    noise: ExampleNoise,
    progress: Callable[[StepReport], None],
) -> Learned:
    """From all rows, of which none is measured on."""
    task, times_ms = order.task, list[float]()
    folder = open_rows(pathlib.Path(order.data), walk.artifact.manifest.model)
    rows = folder.usable()
    if not len(rows):
        msg = f"{order.data} has no usable row"
        raise DataError(msg)
    samples = sampled(folder, rows, min(1.0, task.batch / len(rows)), task.tokens)
    for report in private_steps(walk, adapter, samples, Recipe.of(task), noise):
        times_ms.append(report.time_ms)
        progress(report)
    return Learned(adapter, task.steps * task.batch, NOT_TOLD, NOT_TOLD, statistics.median(times_ms), len(rows))


def deliver(order: WorkerOrder, manifest: Manifest, learned: Learned) -> None:
    """Write the delta, into whose arrays the adapter's are turned, and its residual where one is kept.

    Raises NonFinite, OSError.
    """
    crash_point("worker.trained")
    task, adapter = order.task, learned.adapter
    path = BlobStore(pathlib.Path(order.store)).path(task.adapter.sha256)
    with TensorFile(path) as before:  # a copy would have cost memory all along
        names = manifest.trained_shapes(task.freeze)
        delta = {name: np.subtract(adapter[name], before[name], out=adapter[name]) for name in names}
    if task.masking is not None:
        _check_finite(delta)
        _write_numbers(order, delta, learned.examples, task.masking)
        return
    _write_delta(order, _encoded(order, manifest, delta), learned.examples)


def report_of(
    order: WorkerOrder, manifest: Manifest, plan: Plan, learned: Learned, *, peak_bytes: int, wall_s: float
) -> Report:
    """What is said of a task that was done; the agent adds the bytes on the wire."""
    return Report(
        steps=order.task.steps,
        examples=learned.examples,
        loss_before=learned.loss_before,
        loss_after=learned.loss_after,
        peak_bytes=peak_bytes,
        predicted_bytes=plan.peak_bytes,
        budget_bytes=order.budget_bytes,
        wall_s=wall_s,
        step_ms=learned.step_ms,
        down_bytes=0,
        up_bytes=0,
        threads=order.threads,
        runtime=f"{VERSION}, numpy {np.__version__}, {platform.machine()}",
        gradient_error=gradient_error(manifest, plan),
        sampled_rows=learned.sampled_rows,
    )


@dataclass(slots=True)
class _Watch:
    """What a walk asks between segments: is all well within the budget?

    Where no control group holds it, the bound on what is asked for is set anew each time.
    """

    budget_bytes: int
    bounds_allocations: bool

    def check(self) -> None:
        """Raises OverBudget."""
        check_budget(self.budget_bytes)
        if self.bounds_allocations:
            bound_allocations(self.budget_bytes)


def _rows(order: WorkerOrder, artifact: Artifact) -> tuple[Iterator[Batch], Callable[[], Iterator[Batch]]]:
    """Batches to train on, and the rows held aside, always the same ones, each time anew. Raises DataError."""
    task, folder = order.task, open_rows(pathlib.Path(order.data), artifact.manifest.model)
    rows, aside = split(folder.usable(), max_rows=order.held_aside_rows)
    training = batches(folder, rows, task.batch, task.tokens, task.seed)
    return training, lambda: in_order(folder, aside, task.batch, task.tokens)


def _encoded(order: WorkerOrder, manifest: Manifest, delta: dict[str, Array]) -> dict[str, Tensor]:
    """The delta as the task wants it; what it leaves out is written down, where that is kept. Raises NonFinite."""
    task, feedback = order.task, order.feedback
    _check_finite(delta)
    if feedback is None:
        generator = np.random.default_rng((task.seed, ROUNDING))
        return {name: pack_array(array, task.delta_codec, generator) for name, array in delta.items()}
    belongs_to = owner(task, manifest)
    residual = read_residual(pathlib.Path(feedback.before), belongs_to)
    tensors, residual = compress(delta, residual, task.delta_codec)
    write_residual(pathlib.Path(feedback.after), belongs_to, residual)
    return tensors


def _check_finite(delta: dict[str, Array]) -> None:
    if not all(np.isfinite(array).all() for array in delta.values()):
        msg = "the delta is not finite; a smaller learning rate may help"
        raise NonFinite(msg)


def _write_numbers(order: WorkerOrder, delta: dict[str, Array], examples: int, masking: Masking) -> None:
    """The delta as the integers that go into a secure sum, not masked yet."""
    from edge_sdk.wire.secure.ring import write_numbers  # ciphers come with it

    with written_atomically(pathlib.Path(order.delta), "worker-delta") as out:
        write_numbers(out, delta, examples, masking)


def _write_delta(order: WorkerOrder, tensors: dict[str, Tensor], examples: int) -> None:
    task = order.task
    file = DeltaFile(
        task_id=task.task_id,
        round=task.round,
        device=order.device,
        adapter=task.adapter.sha256,
        examples=examples,
        tensors=tensors,
    )
    with written_atomically(pathlib.Path(order.delta), "worker-delta") as out:
        out.write(encode_delta(file))


if __name__ == "__main__":
    sys.exit(main())
