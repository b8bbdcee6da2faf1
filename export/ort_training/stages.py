"""What runs in onnxruntime-training's own environment: it has neither torch nor anything of ours.

    PYTHON -I stages.py artifacts WORK OUT
    PYTHON -I stages.py train FOLDER GIVEN.npz FOUND.npz

`artifacts` makes the four files of WORK/whole.onnx, as WORK/names.json says. `train` trains with the four files.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import types
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as everywhere before this import, although this version has none
import numpy as np
import onnxruntime


def without_torch() -> None:
    """Make `onnxruntime.training`'s modules importable where torch is not installed, and cheap where it is.

    The package's own `__init__` imports ORTModule's optimizers, and those torch; the on-device training API needs
    neither. A module of the same name and folder that runs no `__init__` takes its place.
    """
    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(pathlib.Path(onnxruntime.__file__).parent / "training")]
    sys.modules[package.__name__] = package


def artifacts(work: pathlib.Path, out: pathlib.Path) -> None:
    """Write training_model.onnx, eval_model.onnx, optimizer_model.onnx and checkpoint into the folder `out`.

    names.json has `trained` and `frozen`, names of initializers, and `betas` and `epsilon` of AdamW. What is in neither
    list is a constant. Frozen tensors are listed so that they stay what they are: others are folded, and matrices in
    8 bits with them into float32.
    """
    import onnx
    from onnxruntime.training import artifacts, onnxblock

    names = json.loads((work / "names.json").read_text(encoding="utf-8"))
    artifacts.generate_artifacts(
        onnx.load(work / "whole.onnx"),
        requires_grad=names["trained"],
        frozen_params=names["frozen"],
        optimizer=onnxblock.optim.AdamW(betas=names["betas"], eps=names["epsilon"], weight_decay=0.0),
        artifact_directory=out,
    )
    _decay_as_torch(out / "optimizer_model.onnx")


def _decay_as_torch(path: pathlib.Path) -> None:
    """Let AdamW add epsilon after the correction of its moments, as torch and we do: the block writes another mode."""
    import onnx

    model = onnx.load(path)
    attributes = (attribute for node in model.graph.node for attribute in node.attribute)
    (mode,) = (attribute for attribute in attributes if attribute.name == "adam_mode")
    mode.i = 0
    onnx.save(model, path)


def train(folder: pathlib.Path, given_path: pathlib.Path, found_path: pathlib.Path) -> None:
    """Train with the files in `folder`: a step for each row of `ids`, `attention_mask` [, `labels`] of GIVEN.npz.

    GIVEN has `learning_rate`, and by name the tensors whose values are not to be the checkpoint's. FOUND gets `losses`
    (steps,), each before its step, `eval_loss`, what the eval model says of the first batch, and by name the gradients
    of the first step.
    """
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may want the cores
    state = CheckpointState.load_checkpoint(folder / "checkpoint")
    module = Module(folder / "training_model.onnx", state, folder / "eval_model.onnx", session_options=options)
    optimizer = Optimizer(folder / "optimizer_model.onnx", module)
    with np.load(given_path) as file:
        given = dict(file)
    optimizer.set_learning_rate(float(given["learning_rate"]))
    for name, value in given.items():
        if "/" in name:
            state.parameters[name] = value
    batches = list(zip(*(given[name] for name in module.input_names()), strict=True))
    found: dict[str, Any] = {"eval_loss": np.asarray(module.eval()(*batches[0]))}
    losses = []
    module.train()
    for batch in batches:
        losses.append(float(module(*batch)))
        if len(losses) == 1:
            found |= {name: np.array(p.grad) for name, p in state.parameters if p.requires_grad}
        optimizer.step()
        module.lazy_reset_grad()
    np.savez(found_path, losses=np.array(losses), **found)


if __name__ == "__main__":
    without_torch()
    stage, *paths = sys.argv[1:]
    stages: dict[str, Any] = {"artifacts": artifacts, "train": train}
    stages[stage](*map(pathlib.Path, paths))
