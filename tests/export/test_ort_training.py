"""onnxruntime-training as a target: one graph is the model, its four files train as our engine does.

Its environment is made in the user's cache folder; what needs it is skipped where there is no wheel of it.
"""

from __future__ import annotations

import pathlib
import platform
import sys
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.conformance import BOUND, batches_of, difference, our_losses, their_losses
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import AdapterRequest
from export.build import BuildRequest
from export.cli import main
from export.emulator import emulator
from export.errors import ExportError
from export.levels import LevelRequest
from export.lowering import serialize
from export.ort_training import artifacts, whole
from export.ort_training.environment import NEWEST_PYTHON, python_of, why_not
from export.ort_training.whole import Whole, require_text, whole_graph
from export.parity import draw_batch, torch_loss
from tests.export.conftest import Exported, Exports

CAUSAL = ("--task", "causal-lm", "--runtime", "ort-training")


@pytest.fixture(scope="module")
def environment() -> None:
    """onnxruntime-training, installed by pip at its first use."""
    if why := why_not(sys.version_info[:2], platform.system(), platform.machine()):
        pytest.skip(why)
    python_of()


def graph_loss(exported: Exported, found: Whole) -> float:
    """What stock onnxruntime makes of the graph, on a batch with padding, of other sizes than it was traced with."""
    batch = draw_batch(exported.program.adapted.foundation, seed=0)
    session = onnxruntime.InferenceSession(serialize(found.model), providers=["CPUExecutionProvider"])
    given = {value.name: getattr(batch, value.name) for value in session.get_inputs()}
    return float(session.run(["loss"], given)[0])


def initializers(found: Whole) -> dict[str, Array]:
    """The graph's tensors."""
    values = {name: found.model.graph.initializers[name].const_value for name in (*found.trained, *found.frozen)}
    return {name: value.numpy() for name, value in values.items() if value is not None}


def test_the_graph_is_the_model(exported: Exported) -> None:
    """Its loss is torch's, for every family that reads text, and what trains is what trains on a device."""
    adapted, manifest = exported.program.adapted, exported.manifests["int8-2layers-last1"]
    if manifest.model.image is not None:
        with pytest.raises(ExportError, match="image-classification is not supported for ort-training"):
            require_text(manifest.model.task)
        return
    found = whole_graph(adapted, manifest.level)
    model, _ = emulator(adapted, manifest.level)
    with torch.no_grad():
        wanted = torch_loss(model, adapted.foundation.spec.task, draw_batch(adapted.foundation, seed=0)).item()
    assert graph_loss(exported, found) == pytest.approx(wanted, rel=1e-5)
    assert set(found.trained) == set(manifest.trained_shapes())
    assert len(found.model.graph.outputs) == 1


@pytest.mark.parametrize(("name", "level"), [("llama", "int8-2layers-last1"), ("gpt2", "fp32"), ("bert", "fp16")])
def test_tensors_are_held_as_on_a_device(exports: Exports, name: str, level: str) -> None:
    """Each has the name, the type and the values that it has in the artifact; the adapter has its starting values."""
    exported = exports[name]
    manifest, store = exported.manifests[level], exported.store
    files = {segment.name: segment.tensors for segment in manifest.walk}
    if manifest.classes_loss is not None:
        files["head"] = manifest.classes_loss.tensors
    initial = exported.initial_adapter(level)
    wanted = {key: initial[key] for key in manifest.adapter_shapes()}
    for segment, file in files.items():
        tensors = read_tensors(store.path(manifest.files[file].sha256))
        wanted |= {f"{segment}/{tensor}": value for tensor, value in tensors.items()}
    found = initializers(whole_graph(exported.program.adapted, manifest.level))
    assert found.keys() == wanted.keys()
    assert all(found[key].dtype == wanted[key].dtype and np.array_equal(found[key], wanted[key]) for key in wanted)


def test_other_levels_are_refused(llama: Exported, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What that target has not is said before its environment is made."""
    assert main(["export", str(llama.model), *CAUSAL, "--out", str(tmp_path / "out"), "--ffn", "0.5"]) == 2
    assert "level fp32-ffn50 is not supported for ort-training" in capsys.readouterr().err


def test_what_one_file_cannot_hold_is_refused(llama: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level over protobuf's limit is refused with its size, before anything is traced."""
    monkeypatch.setattr(whole, "LARGEST_BYTES", 100_000)
    with pytest.raises(ExportError, match=r"tensors take 0 MB, and .* holds 0 MB: give fewer --bits or --layers"):
        whole_graph(llama.program.adapted, llama.manifests["fp32"].level)


@pytest.mark.parametrize(
    ("python", "system", "machine", "why"),
    [
        (NEWEST_PYTHON, "Linux", "x86_64", ""),
        (NEWEST_PYTHON, "Darwin", "arm64", ""),
        ((3, 13), "Linux", "x86_64", "has wheels up to Python 3.12, this is 3.13"),
        ((3, 11), "Linux", "aarch64", "has no wheel for Linux on aarch64"),
    ],
)
def test_where_there_is_no_wheel(python: tuple[int, int], system: str, machine: str, why: str) -> None:
    """Known before pip is asked."""
    found = why_not(python, system, machine)
    assert why in found
    assert bool(why) == bool(found)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--bits", "4"), "4 bits are not supported for ort-training; supported are 32, 16, 8"),
        (("--adapter", "bias"), "adapters of kind bias are not supported for ort-training; supported are lora, rslora"),
        (("--task", "image-classification"), "image-classification is not supported for ort-training"),
        (("--layers", "9"), "cannot keep 9 of 4 layers"),
        (("--tokens", "16"), "--level and --tokens are for a manifest"),
        (("--level", "a"), "--level and --tokens are for a manifest"),
    ],
)
def test_wrong_input_is_one_line(
    llama: Exported,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    why: str,
) -> None:
    """Refused with status 2 before anything is made."""
    assert main(["export", str(llama.model), *CAUSAL, "--out", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(
    llama: Exported, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The four files are not mixed with others, nor written over."""
    assert main(["export", str(llama.model), *CAUSAL, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} exists: give a folder that does not\n"


def test_no_environment_is_one_line(
    llama: Exported, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, with nothing in the cache: status 2, what could not be had, and nothing left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert main(["export", str(llama.model), *CAUSAL, "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "no environment for ort-training: pip says: ERROR: No matching distribution found for onnxruntime" in last
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("name", "level"), [("llama", "fp32"), ("llama", "int8"), ("bert", "int8-2layers-last1"), ("bert-tags", "fp32")]
)
def test_five_steps_are_ours(exports: Exports, tmp_path: pathlib.Path, name: str, level: str) -> None:
    """From the same adapter on the same batches both runtimes come to the same losses; gradients are torch's."""
    exported = exports[name]
    manifest = exported.manifests[level]
    model, spec = manifest.model, manifest.level
    asked = LevelRequest(level, spec.bits, len(spec.layers), len(spec.trained_layers))
    adapter = AdapterRequest.of(manifest.adapter)
    out = tmp_path / "four"
    parity = artifacts.write_artifacts(
        BuildRequest(exported.model, model.task, out, adapter, (asked,), model.labels, tokens=16, parity=True, seed=0)
    )
    assert parity is not None
    assert parity.errors.keys() == {"loss", *(f"gradient of {n.partition('/')[2]}" for n in manifest.trained_shapes())}
    assert sorted(path.name for path in out.iterdir()) == [
        *("checkpoint", "eval_model.onnx", "optimizer_model.onnx", "training_model.onnx")
    ]
    batches = batches_of(exported.model, model.task, model.labels)
    ours, theirs = our_losses(exported.folder / f"{level}.manifest", batches), their_losses(out, batches)
    assert difference(ours, theirs) <= BOUND
    assert len({round(loss, 4) for loss in ours}) == len(ours)


@pytest.mark.usefixtures("environment")
def test_the_command(llama: Exported, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It tells of the proof and of the files; the matrices of the checkpoint are in 8 bits."""
    sizes = {}
    for bits in ("32", "8"):
        out = tmp_path / bits
        assert main(["export", str(llama.model), *CAUSAL, "--out", str(out), "--bits", bits]) == 0
        said = capsys.readouterr().out
        assert "largest relative error of loss and gradients" in said
        assert f"are in {out}" in said
        sizes[bits] = (out / "checkpoint").stat().st_size
    assert sizes["8"] < 0.6 * sizes["32"]


@pytest.mark.usefixtures("environment")
def test_a_wrong_gradient_is_found(
    llama: Exported, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the graph is not the model's, here with another block's matrices, nothing is written."""

    def exchanged(*arguments: Any) -> Whole:
        found = whole_graph(*arguments)
        one, other = (found.model.graph.initializers[f"block.{k}/mlp.up_proj.weight"] for k in (1, 2))
        one.const_value, other.const_value = other.const_value, one.const_value
        return found

    monkeypatch.setattr(artifacts, "whole_graph", exchanged)
    assert main(["export", str(llama.model), *CAUSAL, "--out", str(tmp_path / "out")]) == 1
    assert "is off by" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
