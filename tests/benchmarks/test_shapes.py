"""Random models in published shapes: the published number of weights, and folders that the exporter takes."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from benchmarks.shapes import INT8, SHAPES, Shape, artifact_of, main, model_of, write_model
from edge_sdk.wire.manifest import decode_manifest

TINY = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 256},
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"vocab_size": 96, "max_position_embeddings": 256},
}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("gpt2-124m", 124_439_808),
        ("tinyllama-22", 1_100_048_384),
        ("tinyllama-44", 2 * 1_100_048_384 - 2 * 32_000 * 2048 - 2048),
    ],
)
def test_shapes_are_the_published_ones(name: str, weights: int) -> None:
    """As many weights as the model cards say; at twice the depth twice as many, but for embedding, head and norm."""
    shape = SHAPES[name]
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(shape.family, **shape.sizes)
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(value.numel() for value in model.parameters()) == weights


@pytest.mark.parametrize("family", sorted(TINY))
def test_folders_are_whole_and_layers_differ(family: str, tmp_path: pathlib.Path) -> None:
    """Each tensor is found by transformers; a layer has a file of its own, and no two have the same values."""
    write_model(Shape("tiny", family, TINY[family], ()), tmp_path)
    causal_lm: Any = transformers.AutoModelForCausalLM
    model, report = causal_lm.from_pretrained(
        tmp_path, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = {name: value for path in tmp_path.glob("*.safetensors") for name, value in load_file(path).items()}
    loaded = {name: value.detach().numpy() for name, value in model.named_parameters()}
    assert found.keys() == loaded.keys()
    assert all(np.array_equal(found[name], loaded[name]) for name in found)
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len({file for name, file in files.items() if ".0." in name}) == 1
    assert len(set(files.values())) == 4  # below, two layers, above
    assert len({value.tobytes() for value in found.values()}) == len(found)


@pytest.mark.slow
def test_artifacts_are_made_once_and_the_older_ones_go(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without tokenizer exports; asked again, nothing is built; what another exporter left is deleted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape = Shape("tiny", "gpt2", TINY["gpt2"], (INT8,))
    old = tmp_path / "fedpeat" / "artifacts" / "tiny" / "0123456789abcdef"
    old.mkdir(parents=True)
    out = artifact_of(shape)
    manifest = decode_manifest((out / "int8.manifest").read_bytes())
    assert (manifest.tokenizer, manifest.adapter.targets, manifest.level.layers) == ("", ("c_attn",), (0, 1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert (artifact_of(shape), model_of(shape).name) == (out, "random-tiny-1")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert list(out.parent.iterdir()) == [out]


def test_unknown_shapes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By name, with those that there are."""
    with pytest.raises(SystemExit):
        main(["gpt5"])
    assert "no shape is called gpt5; there are gpt2-124m, tinyllama-22, tinyllama-44" in capsys.readouterr().err
