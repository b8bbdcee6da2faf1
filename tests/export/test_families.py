"""Families: what they find in a model, what they refuse, and what a model of no family is told."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edge_sdk.wire.manifest import TaskType
from export.cli import main
from export.errors import ExportError, UnsupportedError
from export.families import all_families, family_of
from export.foundation import open_foundation
from export.parity import draw_batch, torch_loss
from export.parts import backbone_of, blocks_of, causal_mask
from export.patches import PREPROCESSOR, Preprocessor, Scaling, read_preprocessor
from export.reference import Batch, ReferenceWalk
from tests.export.conftest import CLASSES, FAMILIES, IMAGES, LABELS, LM, VARIANTS, Exported, Exports
from tests.models import MODELS, SPECIAL, TOKENS, VOCABULARY, WIDTH, tiny_model


def test_every_type_is_tested() -> None:
    """Each model type that a family lists has a tiny model, and each family one that all tests of the export run on."""
    exported = {MODELS[kind][0] for kind, _, _ in (FAMILIES | VARIANTS).values()}
    assert {model_type for family in all_families() for model_type in family.model_types} == exported
    assert {family.name for family in all_families()} == set(FAMILIES)
    assert [family.name for family in all_families()] == sorted(FAMILIES)
    assert {name for name, (_, task, _) in FAMILIES.items() if task is IMAGES} == {
        family.name for family in all_families() if family.tasks == (IMAGES,)
    }


@pytest.mark.parametrize(("name", "tokens"), [("mistral", 6), ("mistral", 7), ("qwen2", 5), ("qwen2", 64)])
def test_windows_are_torchs(exports: Exports, name: str, tokens: int) -> None:
    """Rows as long as the window, and longer: transformers' own masks give the same loss."""
    exported = exports[name]
    ids = np.random.default_rng(tokens).integers(SPECIAL, VOCABULARY, (2, tokens))
    batch = Batch(ids, np.ones_like(ids), np.zeros(2, np.int64))
    found = ReferenceWalk(exported.store, exported.manifests["fp32"]).run(exported.initial_adapter(), batch)
    wanted = torch_loss(exported.program.adapted.peft_model, TaskType.CAUSAL_LM, batch).item()
    assert found.loss == pytest.approx(wanted, rel=1e-5)


def test_blocks_with_and_without_a_window_have_graphs_of_their_own(exports: Exports) -> None:
    """A mask of its own, that is; those that share one share their graphs."""
    manifest = exports["qwen2"].manifests["fp32"]
    assert [segment.structure for segment in manifest.walk] == ["embed", "block", "block", "block2", "norm"]
    assert manifest.structures["block"].context == ("mask", "cos", "sin")
    assert manifest.structures["block2"].context == ("window_mask", "cos", "sin")


def test_a_window_is_as_wide_as_it_says() -> None:
    """A token sees itself and, up to the window's width, those before it; never padding."""
    mask = causal_mask(torch.tensor([[1, 1, 1, 1, 0]]), window=2)[0, 0] == 0
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]


def test_longest_rows_are_counted_from_the_first_position(exports: Exports) -> None:
    """RoBERTa's matrix of positions has rows that no token takes, OPT's has them beyond what it says."""
    for name in ("roberta", "opt"):
        assert exports[name].manifests["fp32"].model.max_tokens == TOKENS


def test_new_classifiers_travel_with_the_adapter(exports: Exports) -> None:
    """Whatever a checkpoint without a head lacks is drawn, trained, and named after the head."""
    heads = {name: exports[name].manifests["fp32"].classes_loss for name in ("distilbert", "roberta", "opt-classes")}
    trained = {name: set(loss.trained) for name, loss in heads.items() if loss is not None}
    layers = ("weight", "bias")
    assert trained["distilbert"] == {f"{module}.{n}" for module in ("pre_classifier", "classifier") for n in layers}
    assert trained["roberta"] == {f"classifier.{module}.{n}" for module in ("dense", "out_proj") for n in layers}
    assert trained["opt-classes"] == {"score.weight"}


def test_blocks_are_found_in_the_tree(any_exported: Exported) -> None:
    """The list that the configuration counts, outermost: as many as layers, all of one class."""
    adapted = any_exported.program.adapted
    blocks = blocks_of(backbone_of(adapted.base))
    assert len(blocks) == adapted.foundation.spec.layers
    assert len({type(block) for block in blocks}) == 1


def test_a_model_without_blocks_is_refused() -> None:
    """One line, where the configuration counts what is not there."""
    model: Any = torch.nn.Linear(2, 2)
    model.config = transformers.BertConfig(num_hidden_layers=3)
    with pytest.raises(UnsupportedError, match="cannot find the 3 blocks of a model of type 'bert'"):
        blocks_of(model)


ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 1.0}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("opt", {"word_embed_proj_dim": 16}, "embeddings narrower than its blocks"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled by the layer's number"),
        ("gpt2", {"add_cross_attention": True}, "GPT-2 with cross-attention"),
        (
            "gpt_neox",
            {"rope_parameters": ROPE},
            "rotary positions of type 'dynamic'",
        ),
        ("roberta", {"is_decoder": True}, "'roberta' is not supported as a decoder"),
        ("bert", {"is_decoder": True}, "'bert' is not supported as a decoder"),
        ("dinov2", {"image_size": [15, 20]}, "DINOv2 with images of 15 x 20 is not supported, only with square ones"),
    ],
)
def test_variants_are_refused(kind: str, options: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    """What the graphs do not represent is said in one line, before any weight is read."""
    folder, task = tiny_model(kind, tmp_path / "model", **options), family_of(MODELS[kind][0]).tasks[0]
    with pytest.raises(UnsupportedError, match=message) as refused:
        open_foundation(folder, task, () if task is LM else LABELS)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("phi3", "llama"),
        ("xglm", "opt"),
        ("electra", "bert"),
        ("gptj", "gpt2"),
        ("stablelm", "gpt_neox"),
        ("dinov2_with_registers", "dinov2"),
    ],
)
def test_models_of_no_family_are_told_the_nearest(model_type: str, nearest: str) -> None:
    """By what their configuration has in common with those of a family; and which file to add."""
    with pytest.raises(UnsupportedError) as refused:
        family_of(model_type, transformers.AutoConfig.for_model(model_type).to_dict())
    assert f"models of type {model_type!r} are not supported" in str(refused.value)
    assert f"nearest family is {nearest}: try the type in export/families/{nearest}.py" in str(refused.value)
    assert f"add export/families/{model_type}.py" in str(refused.value)


def test_decoders_need_a_padding_token_to_classify(tmp_path: pathlib.Path) -> None:
    """It is how transformers finds a row's last token: without one nothing could check what was trained."""
    folder = tiny_model("gpt2", tmp_path / "model", pad_token_id=None)
    with pytest.raises(ExportError, match="has no pad_token_id"):
        open_foundation(folder, CLASSES, LABELS)
    assert open_foundation(folder, LM, ()).padding == 0
    with_one = tiny_model("gpt2", tmp_path / "other", pad_token_id=7)
    assert open_foundation(with_one, CLASSES, LABELS).padding == 7


def test_padding_is_no_token_of_a_drawn_row(any_exported_text: Exported) -> None:
    """What is drawn has the padding's id behind the rows and nowhere else."""
    foundation = any_exported_text.program.adapted.foundation
    batch = draw_batch(foundation, seed=1)
    np.testing.assert_array_equal(batch.ids == foundation.padding, batch.attention_mask == 0)
    assert 0 <= batch.ids.min() <= batch.ids.max() < foundation.spec.vocabulary


def test_the_list_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`families` names every family, type, task and target."""
    assert main(["families"]) == 0
    shown = capsys.readouterr().out
    for family in all_families():
        for word in (family.name, *family.model_types, *family.targets):
            assert word in shown


def test_images_are_what_the_folder_says(exports: Exports, tmp_path: pathlib.Path) -> None:
    """Sizes, tokens and colours are the configuration's, how bytes are scaled is the preprocessor's."""
    found = {name: exports[name].manifests["fp32"].model for name in ("vit", "deit", "dinov2")}
    assert {name: (str(model.image), model.max_tokens) for name, model in found.items()} == {
        "vit": ("3x12x20", 16),
        "deit": ("1x18x18", 20),
        "dinov2": ("3x15x15", 10),
    }
    scaling = open_foundation(exports.model("vit"), IMAGES, LABELS).config.scaling
    white = scaling(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    torch.testing.assert_close(white, (1 - mean) / std)
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"do_normalize": False, "do_rescale": False}))
    assert read_preprocessor(tmp_path, 1) == Preprocessor(Scaling((1.0,), (0.0,)), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "which says how pixels are scaled: No such file"),
        ("[]", "does not say how pixels are scaled"),
        ("{", "does not say how pixels are scaled"),
        ('{"image_mean": [0.5, 0.5, 0.5]}', "KeyError: 'image_std'"),
        ('{"image_mean": [0.5], "image_std": [0.5]}', "the model has 3 channels"),
        ('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0]}', "the model has 3 channels"),
    ],
)
def test_how_pixels_are_scaled_is_not_guessed(tmp_path: pathlib.Path, text: str | None, message: str) -> None:
    """A model that was trained on other numbers would see noise: without the folder's word there is no export."""
    folder = tiny_model("vit", tmp_path / "model")
    (folder / PREPROCESSOR).unlink()
    if text is not None:
        (folder / PREPROCESSOR).write_text(text)
    with pytest.raises(ExportError, match=message) as refused:
        open_foundation(folder, IMAGES, LABELS)
    assert "\n" not in str(refused.value)


def test_impossible_images_are_refused(tmp_path: pathlib.Path) -> None:
    """Larger ones than any device would hold."""
    folder = tiny_model("vit", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_size": 5000}))
    with pytest.raises(ExportError, match="images of 3x5000x5000 bytes are not supported"):
        open_foundation(folder, IMAGES, LABELS)


def test_two_heads_make_room_for_one(tmp_path: pathlib.Path) -> None:
    """A DeiT with a classifier on either token, which transformers cannot train, gets a new one on the first."""
    config = transformers.AutoConfig.from_pretrained(tiny_model("deit", tmp_path / "model"))
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "model")
    model: Any = open_foundation(tmp_path / "model", IMAGES, LABELS).load()
    assert type(model) is transformers.DeiTForImageClassification
    assert model.classifier.weight.shape == (3, WIDTH)


SIZES = [
    ({"size": 30}, (30, 30)),
    ({"size": {"height": 30, "width": 20}}, (30, 20)),
    ({"size": {"shortest_edge": 40}, "crop_size": {"height": 30, "width": 30}}, (30, 30)),
    ({"size": {"height": 40, "width": 40}, "crop_size": 30, "do_center_crop": False}, (40, 40)),
    ({"size": {"shortest_edge": 40}}, None),
    ({}, None),
]


@pytest.mark.parametrize(("plain", "size"), SIZES, ids=range(len(SIZES)))
def test_images_are_as_large_as_the_preprocessor_makes_them(
    tmp_path: pathlib.Path, plain: dict[str, Any], size: tuple[int, int] | None
) -> None:
    """Height and width of what it cuts out, else of what it stretches to; one edge alone leaves it open."""
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"do_normalize": False, **plain}))
    assert read_preprocessor(tmp_path, 3).size == size


@pytest.mark.parametrize(("kind", "side"), [("dinov2", 10), ("dinov2", 25), ("deit", 12), ("vit", 16)])
def test_positions_are_stretched_as_transformers_does_it(tmp_path: pathlib.Path, kind: str, side: int) -> None:
    """Of images of another size than it was trained for, a model makes what it makes without us, in other patches."""
    square = {"vit": {"image_size": 12}, "deit": {"patch_size": 6}}  # transformers can stretch no others
    folder = tiny_model(kind, tmp_path / "model", **square.get(kind, {}))
    said = json.loads((folder / PREPROCESSOR).read_text())
    (folder / PREPROCESSOR).write_text(json.dumps({**said, "size": side}))
    foundation = open_foundation(folder, IMAGES, LABELS)
    assert foundation.spec.image is not None
    assert foundation.spec.image.shape[1:] == (side, side)
    model: Any = foundation.load()
    plain: Any = type(model).from_pretrained(folder, num_labels=len(LABELS), attn_implementation="eager").eval()
    pixels = torch.randn(2, *foundation.spec.image.shape)
    told = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        found = backbone_of(model)(pixel_values=pixels).last_hidden_state
        wanted = backbone_of(plain)(pixel_values=pixels, **told).last_hidden_state
    assert found.shape[1] == foundation.spec.max_tokens
    torch.testing.assert_close(found, wanted)
