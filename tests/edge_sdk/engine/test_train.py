"""Training learns, repeats itself, touches only what trains, and stops at the first number that is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.train import Recipe, StepReport, evaluate, micro_batches, train_steps, trained_names
from edge_sdk.errors import NonFinite
from edge_sdk.wire.messages import OptimizerKind, Schedule
from edge_sdk.wire.tensors import Array
from tests.edge_sdk.engine.samples import LENGTHS, batch_of, random_adapter, relative_error, walk_of
from tests.edge_sdk.samples import make_task

TWO = Plan(2, 32)
RECIPE = Recipe(steps=8, batch=len(LENGTHS), tokens=max(LENGTHS), learning_rate=1e-2, seed=1)


def trained(artifact: Artifact, recipe: Recipe, micro_batch: int = 2) -> tuple[dict[str, Array], list[StepReport]]:
    """The initial adapter after training on one batch again and again, and the reports."""
    adapter = artifact.initial_adapter()
    rows = itertools.repeat(batch_of(artifact.manifest))
    return adapter, list(train_steps(walk_of(artifact, Plan(micro_batch, 32)), adapter, rows, recipe))


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        Recipe(steps=8, learning_rate=0.05, optimizer=OptimizerKind.SGD, clip_norm=0.0),
        Recipe(steps=8, learning_rate=3e-2, schedule=Schedule.COSINE, warmup_steps=2, weight_decay=0.1),
    ],
    ids=["adamw", "sgd", "cosine"],
)
def test_the_loss_falls(artifact: Artifact, recipe: Recipe) -> None:
    """On one batch, again and again, every recipe learns; the reports say so, step by step."""
    adapter, reports = trained(artifact, recipe)
    assert [report.step for report in reports] == list(range(1, 9))
    assert all(report.steps == 8 and report.gradient_norm > 0 and report.time_ms > 0 for report in reports)
    found = evaluate(walk_of(artifact), adapter, [batch_of(artifact.manifest)])
    assert found.loss < reports[-1].loss < reports[0].loss
    assert reports[0].loss - found.loss > 0.01


def test_training_repeats_itself(artifact: Artifact) -> None:
    """The same recipe on the same machine ends in the same bits; smaller micro-batches end in the same numbers."""
    first, _ = trained(artifact, RECIPE)
    again, _ = trained(artifact, RECIPE)
    assert relative_error(again, first) == 0
    sgd = Recipe(steps=8, learning_rate=0.05, optimizer=OptimizerKind.SGD)  # AdamW's first steps look at signs alone
    (whole, _), (apart, _) = trained(artifact, sgd, micro_batch=5), trained(artifact, sgd, micro_batch=1)
    assert relative_error(apart, whole) < 1e-3


def test_only_what_trains_changes(artifact: Artifact) -> None:
    """Tensors below the level's lowest trained layer keep every bit; all that train have moved."""
    adapter, _ = trained(artifact, RECIPE)
    initial, trains = artifact.initial_adapter(), artifact.manifest.trained_shapes()
    assert {name for name in initial if not np.array_equal(adapter[name], initial[name])} == set(trains)


def test_frozen_factors_stay(artifact: Artifact) -> None:
    """A recipe that freezes a factor trains the others alone: what is sent then adds up exactly."""
    recipe = Recipe(steps=2, learning_rate=1e-2, freeze=("lora_A",))
    adapter, _ = trained(artifact, recipe)
    initial = artifact.initial_adapter()
    names = trained_names(walk_of(artifact), recipe.freeze)
    assert names
    assert not any(name.endswith("lora_A") for name in names)
    assert {name for name in initial if not np.array_equal(adapter[name], initial[name])} == set(names)


def test_whoever_iterates_may_stop(llama: Artifact) -> None:
    """Between two steps the adapter is whole: stopping after three steps equals a recipe of three."""
    adapter = llama.initial_adapter()
    rows = itertools.repeat(batch_of(llama.manifest))
    for _ in itertools.islice(train_steps(walk_of(llama, TWO), adapter, rows, RECIPE), 3):
        pass
    assert relative_error(adapter, trained(llama, Recipe(steps=3, learning_rate=1e-2))[0]) == 0


def test_a_loss_that_is_no_number_ends_training(classifier: Artifact) -> None:
    """An absurd learning rate is stopped at the step where numbers break, which is named, with what may help."""
    recipe = Recipe(steps=8, learning_rate=1e38)
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFinite, match=r"^step [2-8]: .*; a smaller learning rate may help$"),
    ):
        trained(classifier, recipe)


def test_a_poisoned_adapter_is_noticed(artifact: Artifact) -> None:
    """An adapter with a value that is no number has no loss, neither to train on nor to report."""
    adapter, walk = random_adapter(artifact.manifest), walk_of(artifact)
    list(adapter.values())[-1][...] = np.nan
    batch = batch_of(artifact.manifest)
    with np.errstate(all="ignore"):
        with pytest.raises(NonFinite, match="step 1"):
            next(train_steps(walk, adapter, itertools.repeat(batch), RECIPE))
        with pytest.raises(NonFinite, match="the loss over 5 rows is nan"):
            evaluate(walk, adapter, [batch])


@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_evaluation_is_a_mean_over_predictions(artifact: Artifact, micro_batch: int) -> None:
    """However rows are grouped, the mean is over all predictions alike: long rows weigh more than short ones."""
    adapter, batch = random_adapter(artifact.manifest), batch_of(artifact.manifest)
    whole = evaluate(walk_of(artifact), adapter, [batch])
    parts = evaluate(walk_of(artifact, Plan(micro_batch, 32)), adapter, [batch.rows(0, 1), batch.rows(1, 5)])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (parts.accuracy, parts.rows, parts.predictions) == (whole.accuracy, whole.rows, whole.predictions)
    assert (whole.accuracy is None) == (artifact.manifest.classes_loss is None)


def test_a_classifier_learns_its_rows_by_heart(classifier: Artifact) -> None:
    """Fifty steps on five rows leave none of them wrong."""
    adapter, _ = trained(classifier, Recipe(steps=50, learning_rate=2e-2), micro_batch=5)
    assert evaluate(walk_of(classifier), adapter, [batch_of(classifier.manifest)]).accuracy == 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 12))
def test_micro_batches_part_the_rows(lengths: list[int], micro_batch: int) -> None:
    """Every row is in exactly one part, with all of its tokens; no part is too large, or padded beyond need."""
    width = max(*lengths, 2)
    ids = np.arange(len(lengths) * width).reshape(-1, width)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    parts = list(micro_batches(Batch(ids, mask, np.arange(len(lengths))), micro_batch))
    assert all(1 <= len(part) <= micro_batch for part in parts)
    assert [label for part in parts for label in part.labels] == list(range(len(lengths)))
    rows = [row[keep > 0].tolist() for part in parts for row, keep in zip(part.ids, part.attention_mask, strict=True)]
    assert rows == [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    for part in parts:
        assert part.ids.shape == part.attention_mask.shape
        assert part.ids.shape[1] == max(part.attention_mask.sum(axis=1).max(), 2)


def test_a_recipe_is_the_tasks() -> None:
    """Every field of a recipe comes from the task's field of the same name."""
    task = make_task(learning_rate=0.25, freeze=("lora_A",), warmup_steps=1, seed=7)
    recipe = Recipe.of(task)
    assert all(getattr(recipe, name) == getattr(task, name) for name in Recipe.__slots__)
