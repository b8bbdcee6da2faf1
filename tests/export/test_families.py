"""Families: what they find in a model, what they refuse, and what a model of no family is told."""

from __future__ import annotations

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
from export.reference import Batch, ReferenceWalk
from tests.export.conftest import CLASSES, FAMILIES, LABELS, LM, VARIANTS, Exported, Exports
from tests.models import MODELS, SPECIAL, TOKENS, VOCABULARY, tiny_model


def test_every_type_is_tested() -> None:
    """Each model type that a family lists has a tiny model, and each family one that all tests of the export run on."""
    exported = {MODELS[kind][0] for kind, _, _ in (FAMILIES | VARIANTS).values()}
    assert {model_type for family in all_families() for model_type in family.model_types} == exported
    assert {family.name for family in all_families()} == set(FAMILIES)
    assert [family.name for family in all_families()] == sorted(FAMILIES)


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
    ],
)
def test_variants_are_refused(kind: str, options: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    """What the graphs do not represent is said in one line, before any weight is read."""
    folder = tiny_model(kind, tmp_path / "model", **options)
    with pytest.raises(UnsupportedError, match=message) as refused:
        open_foundation(folder, family_of(MODELS[kind][0]).tasks[0], LABELS if "bert" in kind else ())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [("phi3", "llama"), ("xglm", "opt"), ("electra", "bert"), ("gptj", "gpt2"), ("stablelm", "gpt_neox")],
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


def test_padding_is_no_token_of_a_drawn_row(any_exported: Exported) -> None:
    """What is drawn has the padding's id behind the rows and nowhere else."""
    foundation = any_exported.program.adapted.foundation
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
