"""SLoRA's second stage: LoRA begins from what a sparse finetune changed."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import decode_manifest
from edge_sdk.wire.tensors import read_tensors
from export.adapters import AdapterRequest, adapter_arrays, set_adapter
from export.build import build, parse_request
from export.cli import main
from export.errors import ExportError
from export.foundation import Foundation, open_foundation, quiet
from export.parity import draw_batch, torch_loss
from export.plug_in import reload
from export.program import Adapted, adapt
from export.progress import silent
from export.sparse import change_of
from export.start import begin_from
from tests.export.conftest import CLASSES, LABELS, LM, Exports
from tests.models import WIDTH

Checkpoint = tuple[Foundation, pathlib.Path]


def adapted(foundation: Foundation, kind: str, rank: int, targets: tuple[str, ...] = ()) -> Adapted:
    """A new adapter."""
    return adapt(foundation, AdapterRequest(kind, rank, 3.0, targets).resolved(foundation), seed=0)


def saved(one: Adapted, folder: pathlib.Path) -> pathlib.Path:
    """A checkpoint of it, the third of its layers and its classifier changed, and no other layer."""
    generator, where = np.random.default_rng(5), ("block.2/", "head/")
    shapes = {name: tuple(value.shape) for name, value in one.parameters.items() if name.startswith(where)}
    set_adapter(one.parameters, {name: generator.normal(0, 0.2, shape) for name, shape in shapes.items()})
    with quiet():
        one.peft_model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def llama(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model of text, and what a sparse finetune made of it."""
    foundation = open_foundation(exports.model("llama"), LM, ())
    return foundation, saved(adapted(foundation, "sparse", 2), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A classifier, and what a sparse finetune made of it."""
    foundation = open_foundation(exports.model("bert"), CLASSES, LABELS)
    return foundation, saved(adapted(foundation, "sparse", 2), tmp_path_factory.mktemp("bert"))


def loss(model: PeftModel, foundation: Foundation) -> float:
    """Of a drawn batch."""
    with torch.no_grad():
        return torch_loss(model, foundation.spec.task, draw_batch(foundation, seed=1)).item()


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_with_rank_enough_it_is_the_same_model(bert: Checkpoint, kind: str) -> None:
    """All of the change, and the classifier as it was trained; where nothing changed, LoRA as it always starts."""
    foundation, checkpoint = bert
    with quiet():  # torch tells of peft's sparse tensors
        trained = PeftModel.from_pretrained(foundation.load(seed=9), str(checkpoint)).eval()
        wanted = loss(trained, foundation)
    new, begun = (adapted(foundation, kind, WIDTH) for _ in range(2))
    begin_from(begun, checkpoint)
    assert loss(begun.peft_model, foundation) == pytest.approx(wanted, rel=1e-5)
    assert loss(new.peft_model, foundation) != pytest.approx(wanted, rel=1e-3)
    unchanged = {name: values for name, values in adapter_arrays(new.parameters).items() if name.startswith("block.0/")}
    assert unchanged
    for name, values in unchanged.items():
        np.testing.assert_array_equal(begun.parameters[name].detach(), values)


def test_with_less_it_is_the_nearest(llama: Checkpoint) -> None:
    """What a rank of 2 leaves out of a change are its smaller singular values; A and B are of one norm."""
    foundation, checkpoint = llama
    trained: Any = reload(foundation, checkpoint)
    layer = trained.get_base_model().model.layers[2].self_attn.v_proj  # of 16 x 32
    change = change_of(layer).detach()
    torch.testing.assert_close(change, layer.get_delta_weight("default").detach().to_dense())
    begun = adapted(foundation, "lora", 2)
    begin_from(begun, checkpoint)
    lora = begun.backbone.layers[2].self_attn.v_proj
    values = torch.linalg.svdvals(change)
    assert values[2] > 0.1 * values[0]
    torch.testing.assert_close((change - lora.get_delta_weight("default")).norm(), values[2:].norm())
    torch.testing.assert_close(lora.lora_A["default"].weight.norm(), lora.lora_B["default"].weight.norm())


def test_an_artifact_begins_there(bert: Checkpoint, tmp_path: pathlib.Path) -> None:
    """Its starting values are those factors, at each level's rank the best of that rank."""
    foundation, checkpoint = bert
    begun = adapted(foundation, "lora", 2)
    begin_from(begun, checkpoint)
    wanted = adapter_arrays(begun.parameters)
    request = {
        "model": str(foundation.folder),
        "task": CLASSES.value,
        "labels": list(LABELS),
        "out": str(tmp_path / "out"),
        "adapter": {"kind": "lora", "rank": 2, "alpha": 3.0},
        "levels": [{"name": f"rank{r}", "bits": 32, "layers": None, "train_last": 1, "rank": r} for r in (2, 1)],
        "tokens": 8,
        "start": str(checkpoint),
    }
    for built in build(parse_request(request), silent):
        manifest = built.manifest
        initial = read_tensors(BlobStore(tmp_path / "out").path(manifest.files[manifest.adapter.initial].sha256))
        rank = manifest.adapter.rank
        for name, values in wanted.items():
            cut = values[:rank] if name.endswith("lora_A") else values[:, :rank] if name.endswith("lora_B") else values
            np.testing.assert_array_equal(initial[name], cut)


def test_the_command_begins_there(llama: Checkpoint, tmp_path: pathlib.Path) -> None:
    """`fedpeat export --start`: an artifact with those starting values."""
    foundation, checkpoint = llama
    begun = adapted(foundation, "lora", 2)
    begin_from(begun, checkpoint)
    out = tmp_path / "out"
    command = ["export", str(foundation.folder), "--task", "causal-lm", "--out", str(out), "--start", str(checkpoint)]
    command += ["--rank", "2", "--alpha", "3", "--targets", ",".join(begun.request.targets), "--tokens", "8"]
    assert main([*command, "--level", "fp32", "--no-parity"]) == 0
    manifest = decode_manifest((out / "fp32.manifest").read_bytes())
    initial = read_tensors(BlobStore(out).path(manifest.files[manifest.adapter.initial].sha256))
    for name, values in adapter_arrays(begun.parameters).items():
        np.testing.assert_array_equal(initial[name], values)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adapter", "bias"], "--start is for adapters of kind lora or rslora, this one is of kind 'bias'"),
        ([], "which is no folder"),
        (["--runtime", "ort-training"], "--start is for an artifact"),
    ],
)
def test_the_command_refuses_at_once(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """One line, before a model is looked for; nothing is written."""
    command = ["export", "nowhere", "--task", "causal-lm", "--out", str(tmp_path / "out"), "--start", "none", *options]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_what_it_cannot_begin_from(llama: Checkpoint, tmp_path: pathlib.Path) -> None:
    """No checkpoint, one of another kind, one with other targets: a line each."""
    foundation, checkpoint = llama
    lora = adapted(foundation, "lora", 2)
    with pytest.raises(ExportError, match="cannot load the PEFT checkpoint"):
        begin_from(lora, tmp_path)
    with pytest.raises(ExportError, match="its adapter is not of kind sparse"):
        begin_from(lora, saved(lora, tmp_path / "lora"))
    other = adapted(foundation, "lora", 2, ("q_proj", "o_proj"))
    with pytest.raises(ExportError, match=r"and the new adapter differ in .*o_proj: give the same targets"):
        begin_from(other, checkpoint)


def test_what_no_share_can_be_trained_of(exports: Exports) -> None:
    """Of GPT-2's weights, which lie the other way round to peft, and of more numbers than a matrix has: a line each."""
    with pytest.raises(ExportError, match=r"a share of transformer.*c_attn, which is no torch.nn.Linear: choose anoth"):
        adapted(open_foundation(exports.model("gpt2"), LM, ()), "sparse", 2)
    with pytest.raises(ExportError, match=r"cannot adapt q_proj, v_proj: The set rank 16 results in more"):
        adapted(open_foundation(exports.model("llama"), LM, ()), "sparse", 16)
