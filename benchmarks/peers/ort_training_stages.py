"""onnxruntime-training in its own environment, which has no torch: `artifacts` makes, `step` measures.

    python -m benchmarks.peers.ort_training_stages artifacts FORWARD FOLDER
    python -m benchmarks.peers.ort_training_stages step FOLDER --vocabulary 50257 --tokens 128 --batch 1 --steps 5

`benchmarks.peers.ort_training` starts both. `step ... --lean` turns the memory arena and the memory pattern off.
"""

from __future__ import annotations

import os
import pathlib
import sys

import onnxruntime

from benchmarks.peers.measure import BETAS, DECAY, EPSILON, IGNORED, RATE, random_rows, report, staged_arguments
from export.ort_training.stages import without_torch


def artifacts(forward: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the training graph, the optimizer's graph and the checkpoint of a forward graph into `folder`.

    `forward` maps `ids` to `logits` [rows, vocabulary]; what has `lora_` in its name trains, all else is frozen.
    """
    import onnx
    from onnxruntime.training import artifacts, onnxblock

    model = onnx.load(forward)
    names = [tensor.name for tensor in model.graph.initializer]
    artifacts.generate_artifacts(
        model,
        requires_grad=[name for name in names if "lora_" in name],
        frozen_params=[name for name in names if "lora_" not in name],
        loss=onnxblock.loss.CrossEntropyLoss(ignore_index=IGNORED),
        optimizer=onnxblock.optim.AdamW(betas=BETAS, eps=EPSILON, weight_decay=DECAY),
        artifact_directory=folder,
    )


def measure(folder: pathlib.Path, rows: list[list[int]], steps: int, *, lean: bool) -> None:
    """Train on `rows` of token ids with the artifacts in `folder`, and print what measure.report says."""
    import numpy as np
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    options = onnxruntime.SessionOptions()
    # Said, not left to the default: that is one thread a physical core, which cannot be asked for its number.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.enable_cpu_mem_arena = options.enable_mem_pattern = not lean
    state = CheckpointState.load_checkpoint(folder / "checkpoint")
    module = Module(folder / "training_model.onnx", state, session_options=options)
    optimizer = Optimizer(folder / "optimizer_model.onnx", module)
    optimizer.set_learning_rate(RATE)
    ids = np.array(rows, np.int64)
    labels = np.append(ids[:, 1:], np.full((len(rows), 1), IGNORED), axis=1).reshape(-1)
    module.train()

    def step() -> float:
        loss = module(ids, labels)
        optimizer.step()
        module.lazy_reset_grad()
        return float(loss)

    report(step, steps, f"onnxruntime-training {onnxruntime.__version__}", options.intra_op_num_threads)
    assert "torch" not in sys.modules, "the peak would count torch"


def main() -> None:
    """Do one stage."""
    arguments = staged_arguments("lean")
    without_torch()
    if arguments.stage == "artifacts":
        artifacts(arguments.forward, arguments.folder)
    else:
        rows = random_rows(arguments.vocabulary, arguments.batch, arguments.tokens)
        measure(arguments.folder, rows, arguments.steps, lean=arguments.lean)


if __name__ == "__main__":
    main()
