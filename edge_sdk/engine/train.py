"""Training as an iterator: whoever iterates may stop, measure or look at the clock between steps, without threads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.engine.batch import Batch
from edge_sdk.engine.optimizers import clip, learning_rate_at, optimizer_of
from edge_sdk.engine.walk import Walk
from edge_sdk.errors import NonFinite
from edge_sdk.wire.messages import OptimizerKind, Schedule, Task
from edge_sdk.wire.tensors import Array

Gradients = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained and how; fields as in `edge_sdk.wire.messages.Task`."""

    steps: int
    batch: int = 1
    tokens: int = 128
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.CONSTANT
    warmup_steps: int = 0
    clip_norm: float = 1.0
    seed: int = 0
    freeze: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task) -> Recipe:
        """The recipe in a task."""
        return cls(**{name: getattr(task, name) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class StepReport:
    """After step `step` (from 1): the batch's mean loss before the change, the gradient's norm before clipping."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    time_ms: float


def train_steps(
    walk: Walk, adapter: dict[str, Array], batches: Iterator[Batch], recipe: Recipe
) -> Iterator[StepReport]:
    """Train `adapter` in place, a report after each step. Raises NonFinite, and whatever the walk's watch raises."""
    return take_steps(walk, adapter, recipe, lambda names: batch_gradient(walk, adapter, next(batches), names))


def take_steps(
    walk: Walk, adapter: dict[str, Array], recipe: Recipe, gradient: Callable[[Sequence[str]], tuple[float, Gradients]]
) -> Iterator[StepReport]:
    """The same with any way to find a step's loss, and its gradient by the tensors that are named."""
    parameters = {name: adapter[name] for name in trained_names(walk, recipe.freeze)}
    optimizer = optimizer_of(recipe.optimizer, recipe.weight_decay, walk.plan.state_bits)
    state = optimizer.init(parameters)
    for step in range(recipe.steps):
        begin = time.perf_counter()
        loss, gradients = gradient(list(parameters))
        norm = clip(gradients, recipe.clip_norm)
        if not math.isfinite(loss + norm):
            msg = f"step {step + 1}: loss {loss}, gradient norm {norm}; a smaller learning rate may help"
            raise NonFinite(msg)
        rate = learning_rate_at(step, recipe.steps, recipe.learning_rate, recipe.schedule, recipe.warmup_steps)
        optimizer.update(parameters, gradients, state, rate)
        yield StepReport(step + 1, recipe.steps, loss, norm, rate, (time.perf_counter() - begin) * 1e3)


def batch_gradient(
    walk: Walk, adapter: dict[str, Array], batch: Batch, names: Sequence[str]
) -> tuple[float, dict[str, Array]]:
    """Mean loss of the batch and its gradient by the named tensors, the same for every size of micro-batch."""
    weight = 1 / max(walk.predictions(batch), 1)
    loss, total = 0.0, dict[str, Array]()
    for part in micro_batches(batch, walk.plan.micro_batch):
        outcome = walk.gradient(part, adapter, weight)
        loss += outcome.loss
        for name in names:
            gradient = outcome.gradients.pop(name)
            total[name] = np.add(total[name], gradient, out=total[name]) if name in total else gradient
    return loss, total


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`loss` is the mean over `predictions`; `accuracy` the share of them whose label was likeliest (classes only)."""

    loss: float
    accuracy: float | None
    rows: int
    predictions: int


def evaluate(walk: Walk, adapter: dict[str, Array], batches: Iterable[Batch]) -> Evaluation:
    """Mean loss over all predictions of `batches`. Raises NonFinite."""
    loss, correct, rows, predictions = 0.0, 0, 0, 0
    for batch in batches:
        for part in micro_batches(batch, walk.plan.micro_batch):
            outcome = walk.loss(part, adapter, 1.0)
            loss, correct = loss + outcome.loss, correct + outcome.correct
            rows, predictions = rows + len(part), predictions + walk.predictions(part)
    mean = loss / max(predictions, 1)
    if not math.isfinite(mean):
        msg = f"the loss over {rows} rows is {mean}"
        raise NonFinite(msg)
    classes = walk.artifact.manifest.classes_loss is not None
    return Evaluation(mean, correct / max(predictions, 1) if classes else None, rows, predictions)


def micro_batches(batch: Batch, micro_batch: int) -> Iterator[Batch]:
    """The batch in parts of at most `micro_batch` rows."""
    for begin in range(0, len(batch), micro_batch):
        yield batch.rows(begin, begin + micro_batch)


def trained_names(walk: Walk, freeze: tuple[str, ...]) -> list[str]:
    """Adapter tensors that train: the level's, without those whose name ends in one of `freeze`."""
    return list(walk.artifact.manifest.trained_shapes(freeze))
