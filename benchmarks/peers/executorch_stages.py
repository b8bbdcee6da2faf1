"""ExecuTorch in its own environment: `artifacts` makes, `step` measures. `benchmarks.peers.executorch` starts both.

python -m benchmarks.peers.executorch_stages artifacts FORWARD FOLDER
python -m benchmarks.peers.executorch_stages step FOLDER --vocabulary 50257 --tokens 128 --batch 1 --steps 5
"""

from __future__ import annotations

import importlib.metadata
import pathlib

import torch

from benchmarks.peers.measure import IGNORED, RATE, random_rows, report, staged_arguments

METHOD = "forward"


def artifacts(forward: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the joint program of the forward and backward pass to `folder`.

    XNNPACK takes the products with frozen weights and nothing else: it refuses a partition that gives a softmax's
    result on to the backward pass. What it leaves runs on ExecuTorch's own kernels.
    """
    from executorch.backends.xnnpack.partition.config.gemm_configs import AddmmConfig, LinearConfig, MMConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torch.export.experimental import _export_forward_backward

    with forward.open("rb") as file:
        joint = _export_forward_backward(torch.export.load(file))
    products = XnnpackPartitioner([AddmmConfig, LinearConfig, MMConfig], ConfigPrecisionType.FP32)
    program = to_edge_transform_and_lower(joint, partitioner=[products]).to_executorch()
    with (folder / "model.pte").open("wb") as file:
        program.write_to_file(file)


def measure(folder: pathlib.Path, rows: list[list[int]], steps: int) -> None:
    """Train on `rows` of token ids with the program in `folder`, and print what measure.report says."""
    from executorch.extension.training import _load_for_executorch_for_training, get_sgd_optimizer

    module = _load_for_executorch_for_training(str(folder / "model.pte"))
    ids = torch.tensor(rows)
    labels = torch.cat([ids[:, 1:], torch.full((len(rows), 1), IGNORED)], dim=1).flatten()
    optimizer = None

    def step() -> float:
        nonlocal optimizer
        (loss,) = module.forward_backward(METHOD, (ids, labels))
        # It tells its parameters after the first pass.
        optimizer = optimizer or get_sgd_optimizer(module.named_parameters(), RATE)
        optimizer.step(module.named_gradients())
        return float(loss)

    version = f"executorch {importlib.metadata.version('executorch')}"
    report(step, steps, version, threads=torch.get_num_threads())


def main() -> None:
    """Do one stage."""
    arguments = staged_arguments()
    if arguments.stage == "artifacts":
        artifacts(arguments.forward, arguments.folder)
    else:
        rows = random_rows(arguments.vocabulary, arguments.batch, arguments.tokens)
        measure(arguments.folder, rows, arguments.steps)


if __name__ == "__main__":
    main()
