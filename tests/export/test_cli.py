"""The commands: what they print, what they refuse, what they leave behind."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from edge_sdk.wire.manifest import decode_manifest
from export.cli import main
from tests.export.conftest import Exported
from tests.models import tiny_llama

CAUSAL = ("--task", "causal-lm")
CLASSES = ("--task", "sequence-classification")


@pytest.fixture
def model(tiny_llama_folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the tiny Llama, to be damaged."""
    return pathlib.Path(shutil.copytree(tiny_llama_folder, tmp_path / "model"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with status 2 and one line on standard error; that line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_build_and_look_at_it(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a request to two levels: JSON progress, costs and needs measured, a model without a tokenizer, untied."""
    model, out = tiny_llama(tmp_path / "model", layers=2, tie_word_embeddings=False), tmp_path / "artifact"
    (model / "tokenizer.json").unlink()
    level = {"name": "small", "bits": 8, "layers": 2, "train_last": 1}
    request = {
        "model": str(model),
        "task": "causal-lm",
        "out": str(out),
        "adapter": {"kind": "lora", "rank": 3, "alpha": 6, "targets": ["q_proj", "up_proj"]},
        "levels": [{"name": "full", "bits": 32, "layers": None, "train_last": None}, level],
        "labels": [],
        "tokens": 16,
        "parity": True,
        "seed": 4,
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert main(["build", str(tmp_path / "request.json")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(line) == {"stage", "level", "done", "of"} for line in lines)
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert lines[-1] == {"stage": "costs", "level": "small", "done": 7, "of": 8}
    manifest = decode_manifest((out / "small.manifest").read_bytes())
    assert manifest.tokenizer == ""
    assert manifest.vocabulary_loss is not None
    assert manifest.vocabulary_loss.tensors == "vocabulary.safetensors"
    assert manifest.files["vocabulary.safetensors"] != manifest.files["embed.safetensors"]
    assert manifest.adapter.targets == ("q_proj", "up_proj")
    assert manifest.needs_bytes > 0
    assert {cost.structure for cost in manifest.costs} >= {"process", "embed", "block", "norm", "loss"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "model", "request.json"]
    assert main(["inspect", str(out)]) == 0
    assert "full" in capsys.readouterr().out
    assert main(["parity", str(out), str(model)]) == 0
    assert "up_proj.lora_B" in capsys.readouterr().out


def test_parity_fails_for_other_weights(llama: Exported, tmp_path: pathlib.Path) -> None:
    """Against a model of the same sizes and other weights, `parity` ends with status 1."""
    other = tiny_llama(tmp_path / "model", seed=8)
    assert main(["parity", str(llama.folder), str(other)]) == 1


def test_model_folders_are_checked(
    model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing folder, one without config.json, with a broken one, of an unknown family: one line, nothing written."""
    out = tmp_path / "artifact"
    export = ("export", model, *CAUSAL, "--out", out)
    assert "there is no model folder" in refused(capsys, "export", tmp_path / "none", *CAUSAL, "--out", out)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "models of type 'gpt2' are not supported; supported are llama, bert" in refused(capsys, *export)
    (model / "config.json").write_text("{")
    assert "cannot read" in refused(capsys, *export)
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    assert "rotary positions of type 'yarn' are not supported" in refused(capsys, *export)
    (model / "config.json").unlink()
    assert "has no config.json" in refused(capsys, *export)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_are_checked(model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are missing, cut short, or of a smaller model: one line, nothing written."""
    export = ("export", model, *CAUSAL, "--out", tmp_path / "artifact")
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert "cannot load the weights" in refused(capsys, *export)
    config = json.loads((model / "config.json").read_text())
    weights.write_bytes(data)
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert "lack 9 tensors of the model, the first is model.layers.4" in refused(capsys, *export)
    weights.unlink()
    assert "cannot load the weights" in refused(capsys, *export)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "4"), "4 bits are not supported; supported are 32, 8"),
        (("--layers", "9"), "cannot keep 9 of 4 layers"),
        (("--train-last", "0"), "cannot train the last 0 of 4 layers"),
        (("--level", "../up"), "is no level name"),
        (("--adapter", "ia3"), "adapters of kind 'ia3' are not supported; supported are lora"),
        (("--rank", "0"), "a rank of 0"),
        (("--targets", "nothing"), "cannot adapt nothing"),
        (("--targets", "embed_tokens"), "outside the blocks"),
        (("--tokens", "1000"), "the model takes 2 to 256"),
        (("--labels", "a,b"), "a causal-lm has none"),
    ],
)
def test_options_are_checked(
    model: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    """What cannot be exported is said in one line, before anything is written."""
    assert message in refused(capsys, "export", model, *CAUSAL, "--out", tmp_path / "artifact", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tasks_and_labels_are_checked(
    model: pathlib.Path, tiny_bert_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A family says what it is supported for; a classifier needs two labels or more."""
    out = ("--out", tmp_path / "artifact")
    assert "llama is supported for causal-lm" in refused(capsys, "export", model, *CLASSES, *out)
    assert "give two or more" in refused(capsys, "export", tiny_bert_folder, *CLASSES, *out, "--labels", "one")


def test_what_is_no_artifact_and_no_request(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder, a missing request, a request that is none."""
    assert "is no artifact" in refused(capsys, "inspect", tmp_path)
    assert "cannot read" in refused(capsys, "build", tmp_path / "request.json")
    (tmp_path / "request.json").write_text('{"model": "m", "task": "causal-lm", "out": "o"}')
    assert "is no build request: KeyError: 'adapter'" in refused(capsys, "build", tmp_path / "request.json")
    (tmp_path / "fp32.manifest").write_bytes(b"not msgpack")
    assert "error: " in refused(capsys, "inspect", tmp_path)
