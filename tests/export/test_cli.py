"""The commands: what they print, what they refuse, what they leave behind."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import TaskType, decode_manifest
from export.adapters import AdapterRequest
from export.cli import add_commands, main, request_of
from export.levels import Drop, LevelRequest, Refitting
from export.public import PublicRequest
from tests.export.conftest import Exported, contents
from tests.models import tiny_model

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


def test_build_and_look_at_it(
    llama: Exported, model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Levels built into an artifact: JSON progress, costs and needs measured, one level replaced and one added.

    Equal input gives equal bytes, so not one blob is new, and all levels of before are still whole.
    """
    out = pathlib.Path(shutil.copytree(llama.folder, tmp_path / "artifact"))
    shutil.copy(out / "int8.manifest", tmp_path / "old")
    level = {"name": "small", "bits": 8, "layers": 3, "train_last": 2}
    request = {
        "model": str(model),
        "task": "causal-lm",
        "out": str(out),
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj", "up_proj"]},
        "levels": [{"name": "fp32", "bits": 32, "layers": None, "train_last": None}, level],
        "labels": [],
        "tokens": 16,
        "parity": True,
        "seed": 0,
    }
    (out / "request.json").write_text(json.dumps(request))
    assert main(["build", str(out / "request.json")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(line) == {"stage", "level", "done", "of", "detail"} for line in lines)
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert lines[-1] == {"stage": "costs", "level": "small", "done": 7, "of": 8, "detail": ""}
    assert sorted(path.name for path in (out / "blobs").iterdir()) == sorted(
        path.name for path in (llama.folder / "blobs").iterdir()
    )
    assert (out / "int8.manifest").read_bytes() == (tmp_path / "old").read_bytes()
    manifest = decode_manifest((out / "small.manifest").read_bytes())
    assert [segment.name for segment in manifest.walk if segment.trains] == ["block.2", "block.3"]
    assert manifest.needs_bytes > 0
    assert {cost.graph for cost in manifest.costs} >= {"process", "pages", "embed.forward.onnx", "block.backward.onnx"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "model", "old"]
    assert main(["inspect", str(out)]) == 0
    assert "small" in capsys.readouterr().out
    assert main(["parity", str(out), str(model)]) == 0
    said = capsys.readouterr()
    assert "up_proj.lora_B" in said.out
    assert "within 1e-04" in said.out.splitlines()[-1]
    manifests = [decode_manifest(path.read_bytes()) for path in out.glob("*.manifest")]
    sizes = {one.level.name: sum(blob.size_bytes for blob in one.files.values()) for one in manifests}
    proved = [line.split()[1:3] for line in said.err.splitlines()][1:]
    assert proved == [["parity", level] for level in sorted(sizes, key=lambda level: -sizes[level])]


def test_options_reach_the_request() -> None:
    """Each option of export is a field of the request; the defaults are LoRA of rank 8, all layers, and parity."""
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    plain = request_of(parser.parse_args(["export", "in", "--out", "out", *CAUSAL]))
    assert (plain.model, plain.out, plain.task) == (pathlib.Path("in"), pathlib.Path("out"), TaskType.CAUSAL_LM)
    assert plain.adapter == AdapterRequest("lora", 8, 16.0, ())
    assert plain.levels == (LevelRequest("fp32", 32, None, None),)
    assert (plain.tokens, plain.parity, plain.seed, plain.public) == (128, True, 0, None)
    options = "--adapter lora --rank 4 --alpha 2 --targets a,b --bits 8 --layers 24 --train-last 6 --labels x,y"
    more = "--tokens 64 --no-parity --seed 3"
    asked = request_of(parser.parse_args(["export", "in", "--out", "out", *CLASSES, *options.split(), *more.split()]))
    assert asked.adapter == AdapterRequest("lora", 4, 2.0, ("a", "b"))
    assert asked.levels == (LevelRequest("int8-24layers-last6", 8, 24, 6),)
    assert (asked.tokens, asked.parity, asked.seed, asked.labels) == (64, False, 3, ("x", "y"))
    options = "--layers 24 --drop importance --ffn 0.5 --refit distill --svd a,b --svd-rank 7 --tensors-mb 9.5"
    more = "--level mine --public texts.csv --text-column said --public-rows 5 --distill-steps 9 --distill-rate 0.5"
    asked = request_of(parser.parse_args(["export", "in", "--out", "out", *CLASSES, *options.split(), *more.split()]))
    refit = (Refitting.DISTILL, 9, 0.5)
    wanted = LevelRequest("mine", 32, 24, None, None, Drop.IMPORTANCE, 0.5, ("a", "b"), 7, *refit, tensors_mb=9.5)
    assert asked.levels == (wanted,)
    assert asked.public == PublicRequest(pathlib.Path("texts.csv"), "said", 5)
    blocks = ["export", "in", "--out", "out", *CAUSAL, "--adapter", "layers", "--last", "3"]
    assert request_of(parser.parse_args(blocks)).adapter.last == 3


def test_what_out_is_not_for(
    llama: Exported,
    model: pathlib.Path,
    tiny_bert_folder: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file, a folder with other things, an artifact of another model or adapter: refused, and left as it is."""
    (tmp_path / "file").touch()
    out = pathlib.Path(shutil.copytree(llama.folder, tmp_path / "artifact"))
    export, rank = ("export", model, *CAUSAL, "--out"), ("--rank", "2", "--alpha", "4")
    assert "is a file: give a folder" in refused(capsys, *export, tmp_path / "file")
    assert "it is no folder" in refused(capsys, *export, tmp_path / "file" / "artifact")
    assert "is no artifact and not empty, it has config.json" in refused(capsys, *export, model)
    assert "has level fp16 of another adapter" in refused(
        capsys, *export, out, "--level", "int8-2layers-last1", "--rank", "3"
    )
    bert = ("export", tiny_bert_folder, *CLASSES, "--tokens", "16", "--out", out, *rank)
    assert "of another model: give another folder" in refused(capsys, *bert)
    assert contents(out) == contents(llama.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "file", "model"]


def test_another_kind_and_no_dropout(
    tiny_bert_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classifier alone is exported; that devices train without the model's dropout is said."""
    out = ("--out", str(tmp_path / "artifact"), "--tokens", "16")
    assert main(["export", str(tiny_bert_folder), *CLASSES, "--adapter", "head", *out]) == 0
    said = capsys.readouterr()
    assert "\nhead\n" in said.out
    assert "dropout is zero on devices; config.json has " in said.out
    assert "hidden_dropout_prob 0.1" in said.out
    assert "load, without dropout" in said.err


def test_damage_is_found(llama: Exported, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One wrong byte, a missing file, half a manifest: inspect and parity name it."""
    folder = pathlib.Path(shutil.copytree(llama.folder, tmp_path / "artifact"))
    name = llama.manifests["fp32"].files["block.1.safetensors"]
    path = BlobStore(folder).path(name.sha256)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for command in (("inspect", folder), ("parity", folder, llama.model)):
        assert "block.1.safetensors of level fp32 is damaged; export it again" in refused(capsys, *command)
    path.unlink()
    assert "block.1.safetensors of level fp32 is missing; export it again" in refused(capsys, "inspect", folder)
    manifest = folder / "int8.manifest"
    manifest.write_bytes(manifest.read_bytes()[:1000])
    assert f"cannot read the manifest {manifest}" in refused(capsys, "parity", folder, llama.model)


def test_interrupted_exports_leave_nothing(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Ctrl-C while graphs are captured: a line, status 130, and the folder as it was."""
    out = str(tmp_path / "artifact")
    export = [sys.executable, "-m", "export.cli", "export", str(model), *CAUSAL, "--out", out]
    with subprocess.Popen(export, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "load" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines()[-1] == "stopped; nothing was written"
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("command", ["families", "export", "build", "parity", "inspect", "plug-in", "evaluate"])
def test_help_answers_at_once(command: str) -> None:
    """Help says what a command is for, and loads neither torch nor onnxruntime for it."""
    code = f"import sys; from export.cli import main; main([{command!r}, '--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) > 10
    assert not {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()} & {"torch", "onnxruntime", "rich"}


def test_parity_fails_for_other_weights(llama: Exported, tmp_path: pathlib.Path) -> None:
    """Against a model of the same sizes and other weights, `parity` ends with status 1."""
    other = tiny_model("llama", tmp_path / "model", seed=8)
    assert main(["parity", str(llama.folder), str(other)]) == 1


def test_model_folders_are_checked(
    model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing folder, one without config.json, with a broken one, of an unknown family: one line, nothing written."""
    out = tmp_path / "artifact"
    export = ("export", model, *CAUSAL, "--out", out)
    assert "there is no model folder" in refused(capsys, "export", tmp_path / "none", *CAUSAL, "--out", out)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "xglm"}))
    said = refused(capsys, *export)
    assert "models of type 'xglm' are not supported" in said
    assert "try the type in export/families/llama.py, else add export/families/xglm.py" in said
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
        (("--bits", "5"), "5 bits are not supported; supported are 32, 16, 8, 4"),
        (("--layers", "9"), "cannot keep 9 of 4 layers"),
        (("--train-last", "0"), "cannot train the last 0 of 4 layers"),
        (("--level", "../up"), "is no level name"),
        (("--adapter", "dora"), "adapters of kind 'dora' are not supported; supported are lora, rslora, "),
        (("--adapter", "prefix"), "an adapter of kind prefix needs length, how many of them each block gets: give 1"),
        (("--adapter", "bias"), "this llama has no biases: choose another kind, as lora or layernorm"),
        (
            ("--adapter", "bias", "--targets", "q_proj"),
            "an adapter of kind bias takes no targets; those of kind lora, ",
        ),
        (
            ("--adapter", "head"),
            "kind head is for sequence-classification, token-classification, image-classification, not for causal-lm",
        ),
        (("--adapter", "prompt"), "an adapter of kind prompt needs length, how many tokens each block gets"),
        (
            ("--adapter", "lora", "--length", "4"),
            "an adapter of kind lora takes no length; those of kind prompt, prefix do",
        ),
        (("--adapter", "layers"), "an adapter of kind layers needs first or last, how many of the first and"),
        (("--adapter", "layers", "--last", "5"), "cannot train the last 5 of 4 blocks: give 1 to 4"),
        (("--adapter", "layers", "--last", "-1"), "last is -1: give 0 or more"),
        (("--adapter", "layers", "--first", "2", "--last", "3"), "the first 2 and the last 3 of 4 blocks: give 1 to 4"),
        (("--last", "2"), "an adapter of kind lora takes no last; those of kind layers do"),
        (("--adapter", "layers", "--last", "2", "--layers", "1"), "cannot keep 1 of 4 layers: 2 of them train"),
        (("--adapter", "bottleneck", "--targets", "nothing"), "cannot adapt nothing: the model has no such module"),
        (("--adapter", "bottleneck", "--targets", "mlp"), "no projection"),
        (("--adapter", "ia3", "--targets", "embed_tokens"), "cannot adapt embed_tokens"),
        (("--rank", "0"), "a rank of 0"),
        (("--rank", "17"), "a rank of 17 at model.layers.0.self_attn.v_proj, a matrix of 16 x 32: give 1 to 16"),
        (("--adapter", "bottleneck", "--rank", "33"), "mlp.down_proj, a matrix of 32 x 48: give 1 to 32"),
        (("--targets", "nothing"), "cannot adapt nothing"),
        (("--targets", "q_proj,nothing,none"), "cannot adapt nothing, none: the model has no such module"),
        (("--targets", "lm_head"), "outside the blocks"),
        (("--targets", "embed_tokens"), "outside the blocks"),
        (("--tokens", "1000"), "the model takes 2 to 256"),
        (("--labels", "a,b"), "a causal-lm has none"),
        (("--ffn", "0"), "a share of 0 of an FFN's neurons: give more than 0 and at most 1"),
        (("--ffn", "0.5", "--targets", "up_proj"), "cannot slim mlp.up_proj, which is adapted"),
        (("--svd", "o_proj", "--svd-rank", "16"), "saves nothing of self_attn.o_proj (32 x 32): give at most 15"),
        (("--svd", "q_proj", "--svd-rank", "4"), "cannot factor self_attn.q_proj, which is adapted"),
        (("--svd", "nothing", "--svd-rank", "4"), "svd of nothing: a LlamaDecoderLayer has no module of that name"),
        (("--svd", "mlp", "--svd-rank", "4"), "mlp is a LlamaMLP, not a product with a matrix"),
        (("--svd", "o_proj"), "svd of 1 modules at rank 0"),
        (("--layers", "2", "--drop", "importance"), "level fp32-2layers-importance needs public data: give --public"),
        (("--bits", "8", "--tensors-mb", "1"), "level int8-1mb needs public data"),
        (("--ffn", "0.5", "--refit", "least-squares"), "level fp32-ffn50-refit needs public data"),
        (("--refit", "distill", "--public", "."), "a distillation is of what was cut: give fewer layers"),
        (("--ffn", "0.5", "--refit", "distill", "--public", "none"), "there is no public data none"),
        (("--ffn", "0.5", "--public", ".", "--public-rows", "0"), "0 rows of public data: give 1 or more"),
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
    tiny_bert_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A family says what it is supported for; a classifier needs two labels or more."""
    out = ("--out", tmp_path / "artifact")
    only = "bert is supported for sequence-classification, token-classification, not for causal-lm"
    assert only in refused(capsys, "export", tiny_bert_folder, *CAUSAL, *out)
    assert "give two or more" in refused(capsys, "export", tiny_bert_folder, *CLASSES, *out, "--labels", "one")


def test_what_is_no_artifact_and_no_request(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder, a missing request, a request that is none."""
    assert "is no artifact" in refused(capsys, "inspect", tmp_path)
    assert "cannot read" in refused(capsys, "build", tmp_path / "request.json")
    (tmp_path / "request.json").write_text('{"model": "m", "task": "causal-lm", "out": "o"}')
    assert "is no build request: KeyError: 'adapter'" in refused(capsys, "build", tmp_path / "request.json")
    (tmp_path / "fp32.manifest").write_bytes(b"not msgpack")
    assert "error: " in refused(capsys, "inspect", tmp_path)
