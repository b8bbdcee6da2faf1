"""Levels whose blocks lost something: gradients, what they share with others, and the commands that make them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.manifest import LevelSpec, Manifest, Refit, Surgery, decode_manifest
from export.artifact import ArtifactWriter, staged
from export.cli import main
from export.compress.depth import bridged
from export.compress.surgery import operated_model
from export.levels import BRIDGES_RATE
from export.parity import Oracle, check_parity, require_parity
from export.plug_in import plug_in
from export.program import adapt, capture_program
from tests.export.conftest import FAMILIES, OF_IMAGES, Exports
from tests.models import CORPUS

THINNED = {  # the product behind each family's attention, which no adapter here is on
    "llama": "o_proj",
    "gpt2": "attn.c_proj",
    "opt": "out_proj",
    "gpt_neox": "attention.dense",
    "bert": "attention.output.dense",
    "roberta": "attention.output.dense",
    "distilbert": "out_lin",
    **dict.fromkeys(OF_IMAGES, "attention.o_proj"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_model_after_it(exports: Exports, name: str, tmp_path: pathlib.Path) -> None:
    """Parity holds with slimmed FFNs and a thinned matrix, in one precision and in two, and the blocks are smaller.

    What surgery leaves alone is the whole model's to the byte, the adapter among it where it is on the same modules.
    """
    whole = exports[name]
    foundation, asked = whole.program.adapted.foundation, whole.program.adapted.request
    request = dataclasses.replace(asked, targets=foundation.family.targets)
    surgery = Surgery(ffn=0.7, svd=(THINNED[name],), svd_rank=3)
    adapted = adapt(foundation, request, 0, operated_model(foundation, surgery, request.targets))
    program = capture_program(adapted, lambda _: None)
    layers = tuple(range(foundation.spec.layers))
    with staged(tmp_path / "artifact") as store:
        writer, oracle = ArtifactWriter(program, store), Oracle(adapted)
        for like, mixed in (("fp32", ()), ("int8", (8, *(4 for _ in layers[1:])))):
            other = whole.manifests[like]
            level = LevelSpec("thin", layers, layers[1:], other.level.bits, mixed, surgery)
            manifest = writer.write(level, 16)
            parity = check_parity(oracle, store, manifest)
            require_parity(parity)
            assert parity.worst <= 1e-5
            smaller, larger = (m.files["block.0.safetensors"].size_bytes for m in (manifest, other))
            assert smaller < larger
            assert _untouched(manifest).items() >= _untouched(other).items()
            if request == asked:
                assert manifest.files[manifest.adapter.initial] == other.files[other.adapter.initial]
                assert manifest.adapter_shapes() == other.adapter_shapes()


def _untouched(manifest: Manifest) -> dict[str, Blob]:
    """All files but those of blocks, and of the adapter."""
    return {name: blob for name, blob in manifest.files.items() if not name.startswith(("block", "adapter"))}


@pytest.mark.slow
def test_a_ladder_from_one_request(
    tiny_llama_folder: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One build makes levels of many techniques: numbered stages, one adapter, shared files, a proof of each again.

    An adapter of any of them goes into the full model untouched.
    """
    out, texts = tmp_path / "artifact", tmp_path / "texts"
    texts.mkdir()
    (texts / "all.txt").write_text(" ".join(CORPUS * 3))
    slim = {"ffn": 0.5, "refit": "least-squares"}
    levels: list[dict[str, Any]] = [
        {"name": "mixed", "bits": 8, "tensors_mb": 0.038},
        {"name": "slim", "bits": 8, **slim},
        {"name": "shallow", "bits": 8, "layers": 2, "train_last": 1, "drop": "importance"},
        {"name": "all", "bits": 8, "layers": 3, **slim, "tensors_mb": 0.026},
        {"name": "narrow", "bits": 8, **slim, "rank": 1},
        {"name": "rounded", "bits": 4, "refit": "least-squares"},
        {"name": "rounded-mixed", "bits": 8, "refit": "least-squares", "tensors_mb": 0.038},
        {"name": "distilled", "bits": 4, "layers": 3, "train_last": 1, "refit": "distill", "distill_steps": 3},
    ]
    request = {
        "model": str(tiny_llama_folder),
        "task": "causal-lm",
        "out": str(out),
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj"]},
        "levels": [{"layers": None, "train_last": None, **level} for level in levels],
        "tokens": 16,
        "public": {"path": str(texts), "rows": 4},
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert main(["build", str(tmp_path / "request.json")]) == 0
    stages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [stage["done"] for stage in stages] == sorted(stage["done"] for stage in stages)
    assert {stage["done"] for stage in stages} == set(range(stages[0]["of"]))
    found = {level["name"]: decode_manifest((out / f"{level['name']}.manifest").read_bytes()) for level in levels}
    narrow = found.pop("narrow")
    assert (narrow.adapter.rank, narrow.level.surgery) == (1, found["slim"].level.surgery)
    assert all(narrow.files[segment.tensors] == found["slim"].files[segment.tensors] for segment in narrow.walk)
    assert len({manifest.files["adapter.safetensors"] for manifest in found.values()}) == 1
    for name in ("norm.safetensors", "optimizer.adamw.onnx", "context.onnx"):
        assert len({manifest.files[name] for manifest in found.values()}) == 1
    for name in ("embed.safetensors", "embed.forward.onnx", "vocabulary.project.onnx"):
        assert found["slim"].files[name] == found["shallow"].files[name]
    assert found["slim"].level.surgery == Surgery(ffn=0.5)
    assert found["all"].level.surgery == Surgery(ffn=0.5, bridges=bridged(found["all"].level.layers, 4))
    assert found["all"].level.surgery.bridges
    assert found["slim"].level.refit == found["all"].level.refit == Refit(4)
    assert found["rounded"].level.refit == found["rounded-mixed"].level.refit == Refit(4)
    shared = set(found["rounded-mixed"].files.values()) & set(found["rounded"].files.values())
    assert shared > set(found["mixed"].files.values()) & set(found["rounded"].files.values())
    assert found["distilled"].level.refit == Refit(4, 3, BRIDGES_RATE)
    for name in ("mixed", "rounded-mixed", "all"):
        assert {found[name].level.bits, *found[name].level.layer_bits} == {8, 4}
    assert found["shallow"].level.trained_layers == found["shallow"].level.layers[1:]
    assert all(manifest.needs_bytes > 0 for manifest in found.values())
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    assert "3 of 4, ffn 50%, refit" in said
    assert "8, 4" in said
    assert "3 of 4, refit, 3 steps" in said
    assert main(["parity", str(out), str(tiny_llama_folder)]) == 0
    adapter = BlobStore(out).path(found["all"].files["adapter.safetensors"].sha256)
    plug_in(tiny_llama_folder, out / "all.manifest", adapter, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "adapter_model.safetensors").is_file()
