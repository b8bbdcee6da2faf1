"""The walk's gradient is the derivative of its loss, and does not depend on how the walk is cut up."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import INTEGERS, Plan, Step
from edge_sdk.engine.train import batch_gradient
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.tensors import Array
from tests.edge_sdk.engine.samples import LENGTHS, batch_of, random_adapter, relative_error, walk_of


def full_gradient(walk: Walk, batch: Batch, adapter: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    """Mean loss and gradient of all that trains, the batch in one piece."""
    return batch_gradient(walk, adapter, batch, list(walk.artifact.manifest.trained_shapes()))


def mean_loss(walk: Walk, batch: Batch, adapter: dict[str, Array]) -> float:
    """Mean loss, by the pass that keeps nothing."""
    return walk.loss(batch, adapter, 1 / walk.predictions(batch)).loss


def moved(adapter: dict[str, Array], direction: dict[str, Array], by: float) -> dict[str, Array]:
    """The adapter, a little further along a direction."""
    return {**adapter, **{name: adapter[name] + np.float32(by) * array for name, array in direction.items()}}


def slope(walk: Walk, batch: Batch, adapter: dict[str, Array], direction: dict[str, Array], steep: float) -> float:
    """The loss's derivative along a direction: central differences of two sizes, whose quadratic errors cancel.

    Where it is steep, as is said, steps are small: it is no straight line there.
    """
    size = 1e-2 / max(1.0, abs(steep))

    def central(step: float) -> float:
        ends = [mean_loss(walk, batch, moved(adapter, direction, by)) for by in (step, -step)]
        return (ends[0] - ends[1]) / (2 * step)

    return (4 * central(size) - central(2 * size)) / 3


def test_both_passes_have_the_same_loss(artifact: Artifact) -> None:
    """What training minimises is what evaluation measures."""
    walk, batch, adapter = walk_of(artifact), batch_of(artifact.manifest), random_adapter(artifact.manifest)
    loss, _ = full_gradient(walk, batch, adapter)
    assert loss == pytest.approx(mean_loss(walk, batch, adapter), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_slope_along_itself(artifact: Artifact, seed: int) -> None:
    """Along the gradient the loss rises by the gradient's norm: all entries at once, by finite differences."""
    walk, batch, adapter = walk_of(artifact), batch_of(artifact.manifest), random_adapter(artifact.manifest, seed)
    _, gradient = full_gradient(walk, batch, adapter)
    norm = float(np.sqrt(sum(np.square(array).sum() for array in gradient.values())))
    direction = {name: array / np.float32(norm) for name, array in gradient.items()}
    assert slope(walk, batch, adapter, direction, norm) == pytest.approx(norm, rel=1e-3)


def test_the_gradient_of_single_entries_is_their_slope(artifact: Artifact) -> None:
    """In every trained tensor the entry of the largest gradient, moved alone, moves the loss as the gradient says."""
    walk, batch, adapter = walk_of(artifact), batch_of(artifact.manifest), random_adapter(artifact.manifest)
    _, gradient = full_gradient(walk, batch, adapter)
    largest = max(float(np.abs(array).max()) for array in gradient.values())
    for name, array in gradient.items():
        at = np.unravel_index(np.abs(array).argmax(), array.shape)
        direction = {name: np.zeros_like(array)}
        direction[name][at] = 1
        found = slope(walk, batch, adapter, direction, float(array[at]))
        assert found == pytest.approx(float(array[at]), rel=1e-2, abs=2e-3 * largest)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 64])
def test_micro_batches_add_up(artifact: Artifact, micro_batch: int) -> None:
    """Rows may be walked in any number at a time, each part cut at its own longest row: loss and gradient stay."""
    batch, adapter = batch_of(artifact.manifest), random_adapter(artifact.manifest)
    expected = full_gradient(walk_of(artifact), batch, adapter)
    loss, gradient = full_gradient(walk_of(artifact, Plan(micro_batch, 32)), batch, adapter)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert relative_error(gradient, expected[1]) < 1e-4


@pytest.mark.parametrize("head_rows", [1, 7, 256])
def test_the_head_may_be_cut_anywhere(llama: Artifact, head_rows: int) -> None:
    """The vocabulary's loss in chunks of any number of predictions is the same."""
    batch, adapter = batch_of(llama.manifest), random_adapter(llama.manifest)
    expected = full_gradient(walk_of(llama, Plan(64, 1000)), batch, adapter)
    loss, gradient = full_gradient(walk_of(llama, Plan(64, head_rows)), batch, adapter)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    assert relative_error(gradient, expected[1]) < 1e-5
    assert mean_loss(walk_of(llama, Plan(64, head_rows)), batch, adapter) == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize(("kept_bits", "bound"), [(32, 1e-5), (16, 2e-2)])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_what_is_kept_need_not_be_recomputed(artifact: Artifact, share: float, kept_bits: int, bound: float) -> None:
    """With activations kept in some or in all blocks the gradient is the same; in 16 bits as near as they allow."""
    batch, adapter = batch_of(artifact.manifest), random_adapter(artifact.manifest)
    most = Step(artifact.manifest, 1, 2).most_kept()
    assert most >= 1
    expected = full_gradient(walk_of(artifact), batch, adapter)
    walk = walk_of(artifact, Plan(3, 32, math.ceil(share * most), kept_bits))
    for _ in range(2):  # what was kept for the one batch is overwritten for the next
        loss, gradient = full_gradient(walk, batch, adapter)
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert relative_error(gradient, expected[1]) < bound
        full_gradient(walk, batch_of(artifact.manifest, (12, 12), seed=3), adapter)


@pytest.mark.parametrize("kept_blocks", [0, 1])
def test_integers_are_as_far_off_as_the_manifest_says(classifier: Artifact, kept_blocks: int) -> None:
    """The loss is exact, and the blocks' gradient is off by about the stated share: another draw's is of that order."""
    manifest = classifier.manifest
    batch, adapter = batch_of(manifest), random_adapter(manifest)
    plan = Plan(2, 32, kept_blocks)
    loss, exact = full_gradient(walk_of(classifier, plan), batch, adapter)
    found = full_gradient(walk_of(classifier, dataclasses.replace(plan, back_bits=INTEGERS)), batch, adapter)
    assert found[0] == loss
    names = [name for name in exact if not name.startswith("head/")]
    off, whole = (
        np.linalg.norm(np.concatenate([array.ravel() for array in arrays]))
        for arrays in ([found[1][name] - exact[name] for name in names], [exact[name] for name in names])
    )
    assert 0 < manifest.integers_error < 0.1
    assert 0 < off / whole < 4 * manifest.integers_error


def test_a_walk_may_change_its_plan(artifact: Artifact) -> None:
    """Whatever plan was followed before, the gradient is that of the plan followed now, to the bit."""
    batch, adapter = batch_of(artifact.manifest), random_adapter(artifact.manifest)
    most = Step(artifact.manifest, 1, 2).most_kept()
    plans = [Plan(64, 32), Plan(2, 7, most, 16, resident=2), Plan(64, 32, most, 32)]
    expected = [full_gradient(walk_of(artifact, plan), batch, adapter) for plan in plans]
    walk = walk_of(artifact, plans[0])
    for plan, (loss, gradient) in zip(plans[::-1], expected[::-1], strict=True):
        walk.follow(plan)
        found = full_gradient(walk, batch, adapter)
        assert found[0] == loss
        assert relative_error(found[1], gradient) == 0


def test_padding_counts_for_nothing(of_text: Artifact) -> None:
    """Neither more columns of padding nor other tokens in them change the loss or the gradient."""
    walk, batch, adapter = walk_of(of_text), batch_of(of_text.manifest), random_adapter(of_text.manifest)
    expected = full_gradient(walk, batch, adapter)
    noise = np.random.default_rng(9).integers(0, of_text.manifest.model.vocabulary, (len(batch), 20))
    ids = noise.copy()
    ids[:, : batch.ids.shape[1]] = np.where(batch.attention_mask, batch.ids, noise[:, : batch.ids.shape[1]])
    mask = np.zeros_like(ids)
    mask[:, : batch.ids.shape[1]] = batch.attention_mask
    padded = Batch(ids, mask, batch.labels)
    names = list(expected[1])
    outcome = walk.gradient(padded, adapter, 1 / walk.predictions(padded))
    assert outcome.loss == pytest.approx(expected[0], rel=1e-5)
    assert relative_error({name: outcome.gradients[name] for name in names}, expected[1]) < 1e-4


def test_predictions_are_counted(artifact: Artifact) -> None:
    """A row of n tokens makes n - 1 predictions in a language model, and one in a classifier."""
    counted = walk_of(artifact).predictions(batch_of(artifact.manifest))
    assert counted == (len(LENGTHS) if artifact.manifest.classes_loss else sum(LENGTHS) - len(LENGTHS))


def test_embedding_rows_give_what_the_whole_matrix_gives(of_text: Artifact) -> None:
    """Only the rows that occur are read, and counted anew: the embedding's output is the same to the bit."""
    walk, batch = walk_of(of_text), batch_of(of_text.manifest)
    embed, context = of_text.manifest.walk[0], walk.context(batch)
    found = walk.forward(embed, batch.flowing, context, {})
    graph = walk._graphs[of_text.manifest.structures[embed.structure].forward]
    with of_text.tensors(embed.tensors) as file:
        whole = graph.run({**file, **context, "ids": batch.ids})["y"]
    assert np.array_equal(found, whole)


def test_images_are_of_one_length(vision: Artifact) -> None:
    """Each is as many tokens as the manifest says; costs were measured at no other length, for one image and for 8."""
    model, walk, batch = vision.manifest.model, walk_of(vision), batch_of(vision.manifest)
    found = walk.forward(vision.manifest.walk[0], batch.flowing, walk.context(batch), {})
    assert found.shape == (len(LENGTHS), model.max_tokens, model.width)
    assert batch.attention_mask.shape == found.shape[:2]
    shapes = {(c.batch, c.tokens) for c in vision.manifest.costs if c.graph in vision.manifest.files}
    assert shapes == {(1, model.max_tokens), (8, model.max_tokens)}


@pytest.mark.parametrize(("names", "fixed"), [({"block.2", "block.3"}, 3), ({"block.1", "block.3"}, 2)])
def test_a_level_that_trains_less_has_the_same_gradients(llama: Artifact, names: set[str], fixed: int) -> None:
    """Held fixed, the lower blocks cost no way back, one between two that train passes its gradient down without
    keeping one of its own, and the others' gradients are what they were.
    """
    manifest = llama.manifest
    walk = tuple(dataclasses.replace(segment, trains=segment.name in names) for segment in manifest.walk)
    level = Artifact(dataclasses.replace(manifest, walk=walk), llama.store)
    batch, adapter = batch_of(manifest), random_adapter(manifest)
    expected_loss, expected = full_gradient(walk_of(llama), batch, adapter)
    loss, gradient = full_gradient(walk_of(level), batch, adapter)
    assert loss == expected_loss
    assert {name.split("/")[0] for name in gradient} == names
    assert relative_error(gradient, {name: expected[name] for name in gradient}) == 0
    assert [walk_of(level).walks_back(segment) for segment in walk] == [False] * fixed + [True] * (6 - fixed)


def test_a_walk_is_repeatable(artifact: Artifact) -> None:
    """Twice the same walk, on the same machine, gives the same bits; nothing is left over from the first."""
    walk, batch, adapter = walk_of(artifact), batch_of(artifact.manifest), random_adapter(artifact.manifest)
    first = full_gradient(walk, batch, adapter)
    full_gradient(walk, batch_of(artifact.manifest, (12, 12), seed=3), random_adapter(artifact.manifest, 3))
    again = full_gradient(walk, batch, adapter)
    assert first[0] == again[0]
    assert relative_error(again[1], first[1]) == 0


def test_a_walk_changes_no_adapter(artifact: Artifact) -> None:
    """The adapter that goes in comes out untouched: only an optimizer changes it."""
    walk, batch, adapter = walk_of(artifact), batch_of(artifact.manifest), random_adapter(artifact.manifest)
    full_gradient(walk, batch, adapter)
    assert relative_error(adapter, random_adapter(artifact.manifest)) == 0


def test_the_watch_is_asked_between_segments_and_may_stop_the_walk(artifact: Artifact) -> None:
    """Whoever watches is asked at least once a segment and direction; what it raises comes out as it is."""
    asked = 0

    def watch() -> None:
        nonlocal asked
        asked += 1
        if asked > 4:
            raise InterruptedError

    batch, adapter = batch_of(artifact.manifest), random_adapter(artifact.manifest)
    with pytest.raises(InterruptedError):
        full_gradient(Walk(artifact, 1, Plan(64, 32), watch), batch, adapter)
    assert asked == 5
    asked = -1000
    walk = Walk(artifact, 1, Plan(64, 32), watch)
    full_gradient(walk, batch, adapter)
    segments = artifact.manifest.walk
    assert asked + 1000 >= len(segments) + sum(walk.walks_back(segment) for segment in segments)


def test_accuracy_counts_the_likeliest_class(classifier: Artifact) -> None:
    """With a bias that leaves no doubt, exactly the rows of that class are right."""
    walk, batch, adapter = walk_of(classifier), batch_of(classifier.manifest), random_adapter(classifier.manifest)
    for label in range(3):
        adapter["head/classifier.bias"] = np.where(np.arange(3) == label, 100, 0).astype(np.float32)
        assert walk.loss(batch, adapter, 1.0).correct == int((batch.labels == label).sum())
