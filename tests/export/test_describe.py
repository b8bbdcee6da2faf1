"""What a model folder holds is said before it is exported, and it is what a level then has."""

from __future__ import annotations

import json
import pathlib

import pytest

from edge_sdk.wire.manifest import TaskType
from edge_sdk.wire.tensors import TensorFile
from export.cli import main
from export.describe import describe
from export.foundation import open_foundation
from tests.export.conftest import LABELS, Exported, Exports


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_weights_are_those_of_a_level(llama: Exported, bits: int) -> None:
    """In each precision as many bytes as the tensors of the level that has all layers in it; tied ones count once."""
    manifest = llama.manifests[f"fp{bits}" if bits >= 16 else f"int{bits}"]
    names = {segment.tensors for segment in manifest.walk} | {manifest.vocabulary_loss.tensors}  # type: ignore[union-attr]
    held_bytes = 0
    for name in names:
        with TensorFile(llama.store.path(manifest.files[name].sha256)) as file:
            held_bytes += sum(array.nbytes for array in file.values())
    foundation = open_foundation(llama.model, manifest.model.task, ())
    assert describe(foundation)["weights_bytes"][str(bits)] == held_bytes


def test_the_command_says_it_as_json(tiny_bert_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with layers, labels and what rows can be; what cannot be exported is refused in one line."""
    words = ["describe", str(tiny_bert_folder), "--task", "sequence-classification"]
    assert main([*words, "--labels", "no,yes"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["labels"], found["image"], found["tokenizer"]) == (3, ["no", "yes"], None, True)
    assert main(["describe", str(tiny_bert_folder), "--task", "causal-lm"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_images_have_their_shape(exports: Exports) -> None:
    """Of a model of images the shape of one is said, and how many tokens it is."""
    foundation = open_foundation(exports.model("vit"), TaskType.IMAGE_CLASSIFICATION, LABELS)
    found = describe(foundation)
    assert found["image"] == str(foundation.spec.image)
    assert found["max_tokens"] == foundation.spec.max_tokens
