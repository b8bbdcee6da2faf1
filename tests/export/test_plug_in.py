"""Back into the full model: checkpoints, and what the full model then scores."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import torch
from peft import PeftModel

from edge_sdk.images import fitted
from edge_sdk.wire.manifest import IGNORED, ImageSpec, Manifest, TaskType
from edge_sdk.wire.tensors import Array, write_tensors
from export.adapters import adapter_parameters
from export.errors import ExportError
from export.evaluate import Tokens, evaluate, read_images, read_rows, read_tokens
from export.foundation import open_foundation, quiet
from export.parity import draw_batch, torch_loss
from export.plug_in import load_plugged, plug_in
from export.reference import Batch, ReferenceWalk
from tests.export.conftest import OF_TEXT, Exported, Exports


def manifest_path(exported: Exported, level: str) -> pathlib.Path:
    """Where a level's manifest lies."""
    return exported.folder / f"{level}.manifest"


def moved_adapter(exported: Exported, level: str) -> dict[str, Array]:
    """Other values for each tensor that the level trains, and no others."""
    generator = np.random.default_rng(5)
    shapes = exported.manifests[level].trained_shapes()
    return {name: generator.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("level", ["fp32", "int8-2layers-last1"])
def test_checkpoint_is_the_model_that_devices_trained(
    any_exported: Exported, level: str, tmp_path: pathlib.Path
) -> None:
    """The PEFT checkpoint, loaded by peft alone, has the loss of the fp32 artifact with the same adapter.

    Tensors that the level does not train have their starting values in it.
    """
    adapter, out = moved_adapter(any_exported, level), tmp_path / "checkpoint"
    write_tensors(tmp_path / "adapter", adapter)
    reported = plug_in(any_exported.model, manifest_path(any_exported, level), tmp_path / "adapter", out)
    manifest = any_exported.manifests["fp32"]
    spec = manifest.model
    foundation = open_foundation(any_exported.model, spec.task, spec.labels)
    batch = draw_batch(foundation, seed=0)
    with quiet(), torch.no_grad():
        model = PeftModel.from_pretrained(foundation.load(seed=9), str(out), is_trainable=True).eval()
        loss = torch_loss(model, spec.task, batch).item()
    assert loss == pytest.approx(reported, rel=1e-6)
    wanted = {**any_exported.initial_adapter(), **adapter}
    assert ReferenceWalk(any_exported.store, manifest).run(wanted, batch).loss == pytest.approx(loss, rel=1e-5)
    for name, value in adapter_parameters(model, foundation).items():
        np.testing.assert_array_equal(value.detach().numpy(), wanted[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "checkpoint"]


def test_checkpoints_tell_how_weights_lie(gpt2: Exported, llama: Exported, tmp_path: pathlib.Path) -> None:
    """GPT-2's weights are (in, out): who merges its adapter must read so in the checkpoint, and not for a Llama."""
    for exported, lies in ((gpt2, True), (llama, False)):
        (tmp_path / "adapter").unlink(missing_ok=True)
        write_tensors(tmp_path / "adapter", moved_adapter(exported, "fp32"))
        out = tmp_path / f"checkpoint-{lies}"
        loss = plug_in(exported.model, manifest_path(exported, "fp32"), tmp_path / "adapter", out)
        assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"] is lies
        spec = exported.manifests["fp32"].model
        with quiet(), torch.no_grad():
            foundation = open_foundation(exported.model, spec.task, ())
            merged = PeftModel.from_pretrained(foundation.load(), str(out)).merge_and_unload().eval()
            assert torch_loss(merged, spec.task, draw_batch(foundation, seed=0)).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("block.9/self_attn.q_proj.lora_A", (2, 32), "block.9/self_attn.q_proj.lora_A"),
        ("block.0/self_attn.q_proj.lora_A", (3, 32), r"has shape \(3, 32\), the model needs \(2, 32\)"),
    ],
)
def test_foreign_adapters_are_refused(
    llama: Exported, tmp_path: pathlib.Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    """A tensor of another name or shape is refused by name, and nothing is written."""
    write_tensors(tmp_path / "adapter", {name: np.zeros(shape, np.float32)})
    with pytest.raises(ExportError, match=message):
        plug_in(llama.model, manifest_path(llama, "fp32"), tmp_path / "adapter", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_that_is_not_finite_is_refused(llama: Exported, tmp_path: pathlib.Path) -> None:
    """By the tensor's name, before a checkpoint is written."""
    name = "block.0/self_attn.q_proj.lora_A"
    write_tensors(tmp_path / "adapter", {name: np.full((2, 32), np.nan, np.float32)})
    with pytest.raises(ExportError, match=f"not finite, in {name}"):
        plug_in(llama.model, manifest_path(llama, "fp32"), tmp_path / "adapter", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_foreign_models_are_refused(llama: Exported, tiny_bert_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The artifact of one model is not plugged into another."""
    with pytest.raises(ExportError, match=r"bert is supported for .*-classification, not for causal-lm"):
        plug_in(tiny_bert_folder, manifest_path(llama, "fp32"), tmp_path / "adapter", tmp_path / "out")


def test_existing_checkpoints_are_not_overwritten(llama: Exported, tmp_path: pathlib.Path) -> None:
    """A folder that exists is refused before anything is loaded."""
    with pytest.raises(ExportError, match="exists"):
        plug_in(llama.model, manifest_path(llama, "fp32"), tmp_path / "adapter", tmp_path)


def tokens_of(manifest: Manifest, rows: int) -> Tokens:
    """Random rows of 3 to 20 tokens, zeros behind them."""
    generator = np.random.default_rng(rows)
    lengths = generator.integers(3, 20, rows).astype(np.int32)
    ids = generator.integers(0, manifest.model.vocabulary, (rows, 20)).astype(np.int32)
    ids[np.arange(20) >= lengths[:, None]] = 0
    classes = max(1, len(manifest.model.labels))
    if manifest.model.task.labels_tokens:
        return Tokens(ids, lengths, generator.choice([IGNORED, *range(classes)], ids.shape))
    return Tokens(ids, lengths, generator.integers(0, classes, rows))


@pytest.mark.parametrize("model_name", [*OF_TEXT, "bert-tags"])
def test_scores_are_means_over_all_rows(exports: Exports, model_name: str, tmp_path: pathlib.Path) -> None:
    """Over 19 rows, in parts: the mean per predicted token, or per row, not the mean of means; with its accuracy.

    A label behind a row's tokens is none.
    """
    exported_text = exports[model_name]
    manifest = exported_text.manifests["fp32"]
    tokens = tokens_of(manifest, 19)
    for name in ("ids", "lengths", "labels"):
        np.save(tmp_path / f"{name}.npy", getattr(tokens, name))
    model = load_plugged(exported_text.model, manifest_path(exported_text, "fp32"), None, None)
    score = evaluate(model, manifest.model.task, read_tokens(tmp_path, manifest.model))
    mask = (np.arange(20) < tokens.lengths[:, None]).astype(np.int64)
    labels, counted = tokens.labels, 19
    if manifest.model.task.labels_tokens:
        labels = np.where(mask, labels, IGNORED)
        counted = int((labels != IGNORED).sum())
    batch = Batch(tokens.ids.astype(np.int64), mask, labels)
    assert score.loss == pytest.approx(torch_loss(model, manifest.model.task, batch).item(), rel=1e-5)
    assert score.rows == 19
    if manifest.model.task is TaskType.CAUSAL_LM:
        assert score.accuracy is None
        assert score.predicted == (tokens.lengths - 1).sum()
    else:
        assert score.accuracy is not None
        assert score.predicted == counted
        assert score.accuracy * counted == pytest.approx(round(score.accuracy * counted))


def test_token_folders_are_checked(tmp_path: pathlib.Path, llama: Exported, bert: Exported) -> None:
    """A missing array, arrays of different lengths, unknown ids or labels, rows that predict nothing: one line each."""
    spec = bert.manifests["fp32"].model
    with pytest.raises(ExportError, match="cannot read the token folder"):
        read_tokens(tmp_path, spec)
    for name, shape in {"ids": (4, 8), "lengths": (4,), "labels": (3,)}.items():
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.int32))
    with pytest.raises(ExportError, match=r"do not agree: .*labels \(3,\)"):
        read_tokens(tmp_path, spec)
    for name, array in (("labels", np.full(4, 3)), ("labels", np.zeros(4)), ("ids", np.full((4, 8), -1))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ExportError, match=f"{name} must be whole numbers from 0 to {299 if name == 'ids' else 2}"):
            read_tokens(tmp_path, spec)
        np.save(tmp_path / f"{name}.npy", np.zeros(array.shape, np.int64))
    np.save(tmp_path / "lengths.npy", np.array([1, 2, 3, 9]))
    with pytest.raises(ExportError, match="lengths from 1 to 9; at most 8 can be read"):
        read_tokens(tmp_path, spec)
    empty = Tokens(np.zeros((2, 4), np.int32), np.ones(2, np.int32), np.zeros(0, np.int64))
    with pytest.raises(ExportError, match="nothing to predict"):
        evaluate(llama.program.adapted.peft_model, TaskType.CAUSAL_LM, empty)


@pytest.mark.parametrize("side", [5, 12])
def test_images_are_scored_as_devices_see_them(exports: Exports, side: int, tmp_path: pathlib.Path) -> None:
    """Small and grey or whole, over 19 images in parts: the loss of what a device would make of them, but for one level
    of 255; and accuracy.
    """
    vit = exports["vit"]
    manifest, generator = vit.manifests["fp32"], np.random.default_rng(0)
    spec = manifest.model.image
    assert spec == ImageSpec(3, 12, 20)
    pixels = generator.integers(0, 256, (19, 1, side, side) if side < 12 else (19, *spec.shape), np.uint8)
    labels = generator.integers(0, 3, 19)
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "labels.npy", labels)
    model = load_plugged(vit.model, manifest_path(vit, "fp32"), None, None)
    score = evaluate(model, manifest.model.task, read_rows(tmp_path, manifest.model))
    seen = read_images(tmp_path, manifest.model, spec).stretched().numpy()
    devices = np.stack([fitted(image, spec) for image in pixels])
    assert np.abs(seen.astype(int) - devices).max() <= (side < 12)  # halves are rounded either way
    ones = np.ones((19, manifest.model.max_tokens), np.int64)
    batch = Batch(ones[:, :0], ones, labels, seen)
    assert score.loss == pytest.approx(torch_loss(model, manifest.model.task, batch).item(), rel=1e-5)
    assert (score.rows, score.predicted) == (19, 19)
    assert score.accuracy is not None
    assert score.accuracy * 19 == pytest.approx(round(score.accuracy * 19))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((4, 3, 12, 21), np.zeros(4), r"the model takes \(rows, 3, 12, 20\) uint8 at most"),
        ((4, 2, 12, 20), np.zeros(4), "at most"),
        ((4, 12, 20), np.zeros(4), "at most"),
        ((4, 3, 12, 20), np.zeros(3, np.int64), r"with labels \(3,\)"),
        ((4, 3, 12, 20), np.full(4, 3), "labels must be whole numbers from 0 to 2"),
    ],
)
def test_image_folders_are_checked(
    exports: Exports, tmp_path: pathlib.Path, images: tuple[int, ...], labels: Array, message: str
) -> None:
    """Larger images than the model's, other colours, labels that it does not know: one line each."""
    spec = exports["vit"].manifests["fp32"].model
    with pytest.raises(ExportError, match="cannot read the image folder"):
        read_rows(tmp_path, spec)
    np.save(tmp_path / "images.npy", np.zeros(images, np.uint8))
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(ExportError, match=message):
        read_rows(tmp_path, spec)
