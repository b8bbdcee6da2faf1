"""Exported graphs against torch: gradients, shapes, levels."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edge_sdk.engine import batch as engine
from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.train import batch_gradient, evaluate
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.manifest import IGNORED
from export.compress.quantize import rounded
from export.emulator import emulator
from export.errors import ParityError
from export.parity import (
    BOUND,
    Oracle,
    Parity,
    check_parity,
    draw_batch,
    relative_error,
    require_parity,
    torch_loss,
)
from export.reference import Batch, ReferenceWalk
from export.report import parity_table, verdict
from tests.export.conftest import Exported, Exports
from tests.models import SPECIAL


@pytest.mark.parametrize("level", ["fp32", "fp16", "int8", "int4", "int8-2layers-last1"])
def test_gradients_are_torchs(any_exported: Exported, level: str) -> None:
    """Loss and every gradient agree with autograd through the peft model, with padding and any adapter."""
    manifest = any_exported.manifests[level]
    for seed in (0, 1):
        parity = check_parity(Oracle(any_exported.program.adapted, seed), any_exported.store, manifest)
        assert parity.worst <= 1e-5
        assert parity.loss <= 1e-6
        require_parity(parity)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 2), (1, 64), (7, 5), (5, 7)])
def test_any_batch_and_any_length(any_exported: Exported, rows: int, tokens: int) -> None:
    """The same graphs serve shapes that they were not captured with, one row and the longest input among them."""
    manifest, adapted = any_exported.manifests["fp32"], any_exported.program.adapted
    generator = np.random.default_rng(tokens)
    per_token = manifest.model.task.labels_tokens
    labels = generator.integers(0, max(1, len(manifest.model.labels)), (rows, tokens) if per_token else rows)
    if (image := manifest.model.image) is not None:  # which are of one length
        ones = np.ones((rows, manifest.model.max_tokens), np.int64)
        batch = Batch(ones[:, :0], ones, labels, generator.integers(0, 256, (rows, *image.shape), np.uint8))
    else:
        ids = generator.integers(SPECIAL, manifest.model.vocabulary, (rows, tokens))
        batch = Batch(ids, np.ones_like(ids), labels)
    found = ReferenceWalk(any_exported.store, manifest).run(any_exported.initial_adapter(), batch)
    model, _ = emulator(adapted, manifest.level)
    wanted = torch_loss(model, manifest.model.task, batch).item()
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in found.gradients.values())


def test_every_trained_tensor_learns(any_exported: Exported) -> None:
    """After one step down the gradient the starting point is left: no trained tensor then has a gradient of zero."""
    manifest = any_exported.manifests["int8"]
    walk, batch = ReferenceWalk(any_exported.store, manifest), draw_batch(any_exported.program.adapted.foundation, 0)
    adapter = any_exported.initial_adapter()
    first = walk.run(adapter, batch)
    moved = {name: adapter[name] - 0.1 * first.gradients[name] for name in manifest.trained_shapes()}
    second = walk.run(moved, batch)
    assert not {name for name, gradient in second.gradients.items() if not gradient.any()}
    assert second.gradients.keys() == adapter.keys()
    assert second.loss < first.loss


def test_padding_changes_nothing(any_exported_text: Exported) -> None:
    """A row with padding behind it has the loss and the gradients that it has without."""
    manifest = any_exported_text.manifests["fp32"]
    batch = draw_batch(any_exported_text.program.adapted.foundation, seed=3)
    row, behind = Batch(batch.ids[:1, :9], np.ones((1, 9), dtype=np.int64), batch.labels[:1]), ((0, 0), (0, 8))
    padded = Batch(np.pad(row.ids, behind), np.pad(row.attention_mask, behind), row.labels)
    if manifest.model.task.labels_tokens:
        labels = row.labels[:, :9]
        row = dataclasses.replace(row, labels=labels)
        padded = dataclasses.replace(padded, labels=np.pad(labels, behind, constant_values=IGNORED))
    generator = np.random.default_rng(0)
    adapter = {
        name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in manifest.adapter_shapes().items()
    }
    short, long = (ReferenceWalk(any_exported_text.store, manifest).run(adapter, b) for b in (row, padded))
    assert short.loss == pytest.approx(long.loss, rel=1e-6)
    for name, gradient in short.gradients.items():
        assert relative_error(long.gradients[name], gradient) < 1e-4


def test_dropping_layers_is_dropping_layers(llama: Exported) -> None:
    """A level with fewer layers is the model without the others, and those that stay keep their names."""
    manifest = llama.manifests["int8-2layers-last1"]
    assert manifest.level.layers == (0, 3)
    assert [s.name for s in manifest.walk] == ["embed", "block.0", "block.3", "norm"]
    assert [s.name for s in manifest.walk if s.trains] == ["block.3"]
    assert {name.partition("/")[0] for name in manifest.trained_shapes()} == {"block.3"}
    assert {name.partition("/")[0] for name in manifest.adapter_shapes()} == {"block.0", "block.3"}
    model, _ = emulator(llama.program.adapted, manifest.level)
    base: Any = model.get_base_model()
    kept: Any = llama.program.adapted.backbone.layers[3].mlp.up_proj.weight
    wanted = rounded(kept.detach().numpy(), 8)
    assert np.array_equal(base.model.layers[1].mlp.up_proj.weight.detach().numpy(), wanted)
    assert len(llama.program.adapted.backbone.layers) == 4  # the original is as it was


def test_a_wrong_gradient_is_found(llama: Exported) -> None:
    """Parity fails when one tensor of the artifact is not the model's: here, a block's matrices of another block."""
    manifest = llama.manifests["fp32"]
    files = dict(manifest.files)
    files["block.1.safetensors"] = files["block.2.safetensors"]
    parity = check_parity(Oracle(llama.program.adapted), llama.store, dataclasses.replace(manifest, files=files))
    assert parity.worst > 100 * BOUND
    with pytest.raises(ParityError, match=r"level fp32: .* off by"):
        require_parity(parity)


def test_float64_settles_a_disagreement(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what float32 says, only better; where that is off and the graphs are right, parity holds."""
    oracle, manifest = Oracle(exported.program.adapted), exported.manifests["int8"]
    exact, found = oracle.exact_outcome(manifest.level), oracle.outcome(manifest.level)
    assert exact.loss == pytest.approx(found.loss, rel=1e-5)
    assert exact.gradients.keys() == found.gradients.keys()
    assert all(gradient.dtype == np.float64 for gradient in exact.gradients.values())
    assert all(relative_error(found.gradients[name], exact.gradients[name]) < BOUND for name in found.gradients)
    wrong = {name: gradient * np.float32(1 + 2 * BOUND) for name, gradient in found.gradients.items()}
    monkeypatch.setattr(Oracle, "outcome", lambda *_: dataclasses.replace(found, gradients=wrong))
    require_parity(check_parity(oracle, exported.store, manifest))


def test_no_float32_has_to_be_better_than_torchs() -> None:
    """Where torch's own float32 is off, so may the graphs be, three times as far; a wrong formula is never allowed."""
    assert not Parity("half", 0.0, {"x": 4e-4}).holds
    assert Parity("half", 0.0, {"x": 4e-4}, torch_off=2e-4).holds
    assert not Parity("half", 0.0, {"x": 7e-4}, torch_off=2e-4).holds
    assert not Parity("half", 0.0, {"x": 2e-2}, torch_off=1.0).holds
    assert not Parity("half", 0.0, {"x": 4e-4}, torch_off=float("nan")).holds


def test_not_a_number_is_no_parity() -> None:
    """A NaN among the errors is a failure, not the smallest of them."""
    assert not Parity("fp32", 0.0, {"a": float("nan"), "b": 0.0}).holds
    assert not Parity("fp32", float("nan"), {"a": 0.0}).holds
    assert Parity("fp32", 0.0, {"a": BOUND}).holds


def test_the_culprit_is_named() -> None:
    """What is off is said, the loss as well as a gradient, and NaN before all; of several levels the worst is named."""
    close, off, worse = Parity("a", 0.0, {"x": 0.0}), Parity("b", 1.0, {"x": 2e-5}), Parity("c", 1.0, {"x": 3.0})
    none = Parity("d", float("nan"), {"x": 3.0})
    for parity, what in ((off, "b: loss is off by 1.0e"), (worse, "c: gradient of x is off"), (none, "d: loss is off")):
        with pytest.raises(ParityError, match=what):
            require_parity(parity)
    assert "3.0e+00, of level c: ABOVE" in verdict([close, off, worse])
    assert "nan, of level d: ABOVE" in verdict([none, worse])
    assert "of level a: within" in verdict([close])


def test_the_error_in_integers_is_shown() -> None:
    """A level that has such graphs has a row of its own, and is within its own bound; others have none."""
    out = io.StringIO()
    for off in (0.0, 0.085):
        assert Parity("int8", 0.0, {"x": 0.0}, in_integers=off).holds
        Console(width=120, file=out).print(parity_table([Parity("int8", 0.0, {"x": 0.0}, in_integers=off)]))
    assert out.getvalue().count("whole gradient, in integers") == 1
    assert "8.5e-02" in out.getvalue()


def test_classifier_trains_with_the_adapter(bert: Exported) -> None:
    """The head's gradients are the classifier's, and nothing of the pooler is trained."""
    shapes = bert.manifests["fp32"].trained_shapes()
    assert {n: s for n, s in shapes.items() if n.startswith("head/")} == {
        "head/classifier.weight": (3, 32),
        "head/classifier.bias": (3,),
    }


def test_tokens_without_a_label_teach_nothing(exports: Exports) -> None:
    """Loss and gradients are means over the tokens that have one, whatever the label's place in the row."""
    exported = exports["bert-tags"]
    walk, adapter = ReferenceWalk(exported.store, exported.manifests["fp32"]), exported.initial_adapter()
    batch = draw_batch(exported.program.adapted.foundation, seed=4)
    tokens = [tuple(place) for place in np.argwhere(batch.labels != IGNORED)]
    assert 0 < len(tokens) < batch.attention_mask.sum()

    def alone(place: tuple[int, ...]) -> Batch:
        labels = np.full_like(batch.labels, IGNORED)
        labels[place] = batch.labels[place]
        return dataclasses.replace(batch, labels=labels)

    whole, parts = walk.run(adapter, batch), [walk.run(adapter, alone(place)) for place in tokens]
    assert whole.loss == pytest.approx(np.mean([part.loss for part in parts]), rel=1e-5)
    for name, gradient in whole.gradients.items():
        mean = np.mean([part.gradients[name] for part in parts], axis=0)
        assert relative_error(gradient, mean) < 1e-4


def test_the_engine_takes_the_same_mean(exports: Exports) -> None:
    """Row by row, each with another number of labels: the loss and gradients of the whole batch; and the accuracy."""
    exported = exports["distilbert-tags"]
    manifest, oracle = exported.manifests["fp32"], Oracle(exported.program.adapted)
    wanted, drawn = ReferenceWalk(exported.store, manifest).run(oracle.adapter, oracle.batch), oracle.batch
    walk = Walk(Artifact(manifest, exported.store), 1, Plan(1, 64), lambda: None)
    batch = engine.Batch(drawn.ids, drawn.attention_mask, drawn.labels)
    loss, found = batch_gradient(walk, oracle.adapter, batch, list(manifest.trained_shapes()))
    assert loss == pytest.approx(wanted.loss, rel=1e-5)
    for name, gradient in found.items():
        assert relative_error(gradient, wanted.gradients[name]) <= BOUND, name
    measured = evaluate(walk, oracle.adapter, [batch])
    assert measured.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert (measured.rows, measured.predictions) == (len(batch), (drawn.labels != IGNORED).sum())
    assert measured.accuracy is not None
    assert measured.accuracy * measured.predictions == pytest.approx(round(measured.accuracy * measured.predictions))
