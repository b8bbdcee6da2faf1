"""A level -> the four files of onnxruntime-training's on-device training API, proved against torch.

training_model.onnx, eval_model.onnx, optimizer_model.onnx and checkpoint, as `generate_artifacts` calls them. What
trains (adapter tensors of trained layers, a classifier) are its parameters; all else is frozen, and held as the level
holds it.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.wire.errors import last_line
from edge_sdk.wire.manifest import LevelSpec
from edge_sdk.wire.tensors import Array
from export.artifact import new_folder
from export.build import BuildRequest
from export.errors import ExportError
from export.foundation import open_foundation
from export.levels import LevelRequest, resolve_level
from export.lowering import serialize
from export.optimizers import BETA1, BETA2, EPSILON
from export.ort_training.environment import VERSION, python_of
from export.ort_training.whole import Whole, require_bits, require_factors, require_text, whole_graph
from export.parity import Oracle, Parity, badness, relative_error, require_parity
from export.program import adapt
from export.progress import Progress, Report, silent

STAGES = pathlib.Path(__file__).with_name("stages.py")


def write_artifacts(request: BuildRequest, report: Report = silent) -> Parity | None:
    """Write the one level of `request` to its new folder `out`; what was proved of it, None where that was turned off.

    Raises:
        ExportError: what was asked for cannot be done, or the environment for it cannot be made.
        ParityError: the gradients are not the model's.
    """
    (asked,) = request.levels
    if request.out.exists():
        msg = f"{request.out} exists: give a folder that does not"
        raise ExportError(msg)
    _require_plain(asked)
    require_bits(asked.bits)
    require_text(request.task)
    require_factors(request.adapter.kind)
    foundation = open_foundation(request.model, request.task, request.labels)
    adapter, layers = request.adapter.resolved(foundation), foundation.spec.layers
    level = resolve_level(asked, layers, adapter.layers_of(layers))
    stages = ["environment", "load", "trace", "artifacts", *(["parity"] if request.parity else [])]

    def begin(stage: str) -> None:
        report(Progress(stage, level.name, stages.index(stage), len(stages)))

    with new_folder(request.out) as folder:
        begin("environment")
        python = python_of()
        begin("load")
        adapted = adapt(foundation, adapter, request.seed)
        begin("trace")
        whole = whole_graph(adapted, level)
        begin("artifacts")
        _make(python, whole, folder)
        if not request.parity:
            return None
        begin("parity")
        parity = check_parity(Oracle(adapted, request.seed), level, whole, folder)
        require_parity(parity)
        return parity


def _require_plain(level: LevelRequest) -> None:
    """Raise ExportError for a level that is more than fewer layers and bits."""
    if level != LevelRequest(level.name, level.bits, level.layers, level.train_last):
        msg = f"level {level.name} is not supported for ort-training: there, a level is bits, layers and trained layers"
        raise ExportError(msg)


def check_parity(oracle: Oracle, level: LevelSpec, whole: Whole, folder: pathlib.Path) -> Parity:
    """Compare one step of the artifacts in `folder` with torch's: losses of training and evaluation, gradients."""
    wanted = oracle.outcome(level)
    adapter = {name: value for name, value in oracle.adapter.items() if name in {*whole.trained, *whole.frozen}}
    batch = {"ids": oracle.batch.ids, "attention_mask": oracle.batch.attention_mask, "labels": oracle.batch.labels}
    found = train(folder, {name: array[None] for name, array in batch.items()}, 0.0, adapter)
    loss = max((relative_error(found[name], np.array(wanted.loss)) for name in ("losses", "eval_loss")), key=badness)
    gradients: dict[str, float] = {}
    for name in whole.trained:
        group, error = name.partition("/")[2], relative_error(found[name], wanted.gradients[name])
        gradients[group] = max(gradients.get(group, 0.0), error, key=badness)
    return Parity(level.name, loss, gradients)


def train(
    folder: pathlib.Path, batches: Mapping[str, Array], learning_rate: float, adapter: Mapping[str, Array]
) -> dict[str, Array]:
    """Train with the artifacts in `folder`, in a process of their environment; the files stay as they are.

    `batches` has `ids` and `attention_mask` (steps, batch, tokens) and `labels` (steps, batch), of which a language
    model takes none; `adapter` has the tensors that begin elsewhere than in the checkpoint. Returns `losses` (steps,),
    `eval_loss` of the first batch before any step, and the gradients of the first step by name. Raises ExportError.
    """
    with tempfile.TemporaryDirectory(prefix="fedpeat-") as work:
        given, found = pathlib.Path(work, "given.npz"), pathlib.Path(work, "found.npz")
        arrays: dict[str, Any] = {"learning_rate": np.float32(learning_rate), **batches, **adapter}
        np.savez(given, **arrays)
        _stage(python_of(), pathlib.Path(work), "train", folder.resolve(), given, found)
        with np.load(found) as file:
            return dict(file)


def _make(python: pathlib.Path, whole: Whole, folder: pathlib.Path) -> None:
    """The four files in `folder`."""
    names = {"trained": whole.trained, "frozen": whole.frozen, "betas": (BETA1, BETA2), "epsilon": EPSILON}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        pathlib.Path(work, "whole.onnx").write_bytes(serialize(whole.model))
        pathlib.Path(work, "names.json").write_text(json.dumps(names), encoding="utf-8")
        _stage(python, pathlib.Path(work), "artifacts", pathlib.Path(work).resolve(), folder.resolve())


def _stage(python: pathlib.Path, work: pathlib.Path, stage: str, *paths: pathlib.Path) -> None:
    """Run a stage where it can leave nothing behind: its blocks delete a `temp.onnx` in their working directory.

    They also tell of each graph pass, in thousands of lines that cannot be turned off.
    """
    command = [str(python), "-I", str(STAGES), stage, *map(str, paths)]
    done = subprocess.run(command, check=False, cwd=work, capture_output=True, text=True)
    if done.returncode != 0:
        why = last_line(done.stderr, f"exit status {done.returncode}")
        msg = f"onnxruntime-training {VERSION} failed at its {stage}: {why}"
        raise ExportError(msg)
