"""What one example can change in a step, what noise hides of that, and who is in a step."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from edge_sdk.data import open_token_folder, sampled, write_token_folder
from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.private import NOT_TOLD, noisy_gradient, private_steps
from edge_sdk.engine.train import Recipe, trained_names
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.noise import true_noise
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.tensors import Array
from tests.edge_sdk.engine.samples import batch_of, random_adapter, walk_of

ONE = Plan(1, 32)
LOOSE, TIGHT = 1e6, 1e-3


def silent(shape: tuple[int, ...]) -> Array:
    """None at all."""
    return np.zeros(shape)


def rows_of(batch: Batch) -> list[Batch]:
    """One at a time."""
    return [batch.rows(k, k + 1) for k in range(len(batch))]


def norm(gradient: dict[str, Array]) -> float:
    """Euclidean, over all tensors."""
    return math.sqrt(sum(float(np.sum(np.square(array, dtype=np.float64))) for array in gradient.values()))


def gradient(walk: Walk, rows: list[Batch], clip_norm: float) -> dict[str, Array]:
    """Of a step that has no noise, times the rows that are expected: one."""
    adapter, names = random_adapter(walk.artifact.manifest, 3), trained_names(walk, ())
    return noisy_gradient(walk, adapter, rows, names, ExampleNoise(clip_norm, 0.0), 1, silent)


def test_a_loose_bound_changes_nothing(artifact: Artifact) -> None:
    """Without noise, what a step is made of is the sum of each row's own gradient, of its own mean loss."""
    walk = walk_of(artifact, ONE)
    adapter = random_adapter(artifact.manifest, 3)
    rows = rows_of(batch_of(artifact.manifest))
    found = gradient(walk, rows, LOOSE)
    own = [walk.gradient(row, adapter, 1 / max(walk.predictions(row), 1)).gradients for row in rows]
    for name, array in found.items():
        np.testing.assert_allclose(array, sum(one[name] for one in own), rtol=1e-4, atol=1e-6)


def test_no_row_adds_more_than_the_bound(artifact: Artifact) -> None:
    """Whichever row is left out, the sum moves by the bound at most, and by all of it where the bound is tight."""
    walk = walk_of(artifact, ONE)
    rows = rows_of(batch_of(artifact.manifest))
    whole = gradient(walk, rows, TIGHT)
    for k in range(len(rows)):
        fewer = gradient(walk, rows[:k] + rows[k + 1 :], TIGHT)
        moved = norm({name: whole[name] - fewer[name] for name in whole})
        assert moved == pytest.approx(TIGHT, rel=1e-3)


def test_the_noise_is_as_large_as_it_says(llama: Artifact) -> None:
    """Of a step in which nobody is: its deviation is multiplier times bound, over the rows that are expected."""
    walk, adapter = walk_of(llama, ONE), llama.initial_adapter()
    found = noisy_gradient(walk, adapter, [], trained_names(walk, ()), ExampleNoise(0.5, 3.0), 10, true_noise)
    numbers = np.concatenate([array.ravel() for array in found.values()])
    assert len(numbers) > 500
    assert abs(numbers.std() / 0.15 - 1) < 6 / math.sqrt(2 * len(numbers))
    assert abs(numbers.mean()) < 6 * 0.15 / math.sqrt(len(numbers))


def test_a_row_that_nothing_bounds_counts_for_nothing(llama: Artifact) -> None:
    """A gradient that is not finite has no norm to be held to."""
    walk = walk_of(llama, ONE)
    adapter = {name: array * np.float32(np.nan) for name, array in random_adapter(llama.manifest, 3).items()}
    rows, names = rows_of(batch_of(llama.manifest)), trained_names(walk, ())
    found = noisy_gradient(walk, adapter, rows, names, ExampleNoise(1.0, 0.0), 1, silent)
    assert not any(array.any() for array in found.values())


def test_private_steps_learn_and_tell_no_loss(llama: Artifact) -> None:
    """With little noise the loss falls, and no report says by how much."""
    walk, adapter, batch = walk_of(llama, ONE), llama.initial_adapter(), batch_of(llama.manifest)
    recipe = Recipe(steps=8, batch=len(batch), learning_rate=1e-2)
    before = walk.loss(batch, adapter, 1.0).loss
    samples: Iterator[list[Batch]] = itertools.repeat(rows_of(batch))
    reports = list(private_steps(walk, adapter, samples, recipe, ExampleNoise(1.0, 1e-3)))
    assert [report.step for report in reports] == list(range(1, 9))
    assert {report.loss for report in reports} == {NOT_TOLD}
    assert walk.loss(batch, adapter, 1.0).loss < before


def test_each_row_is_sampled_by_itself(tmp_path: pathlib.Path) -> None:
    """With the probability that is asked for, however many others are; a step may have no row; and nobody can tell
    which from a seed, for there is none.
    """
    ids = np.arange(40, dtype=np.int32)[:, None].repeat(3, axis=1)
    write_token_folder(tmp_path / "rows", ids, np.full(40, 3, np.int32))
    folder = open_token_folder(tmp_path / "rows", 0, 100)
    samples = sampled(folder, folder.usable(), 0.1, 3)
    drawn = [[int(batch.ids[0, 0]) for batch in next(samples)] for _ in range(2000)]
    assert all(len(set(one)) == len(one) for one in drawn)
    counts = np.bincount(list(itertools.chain(*drawn)), minlength=40)
    assert np.all(np.abs(counts - 200) < 6 * math.sqrt(2000 * 0.1 * 0.9))
    sizes = np.array([len(one) for one in drawn])
    assert sizes.min() == 0
    assert abs(sizes.var() / (40 * 0.1 * 0.9) - 1) < 0.3, "binomial, not of one size"
    again = sampled(folder, folder.usable(), 0.1, 3)
    assert [[int(batch.ids[0, 0]) for batch in next(again)] for _ in range(50)] != drawn[:50]
