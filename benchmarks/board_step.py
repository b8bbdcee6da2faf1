"""What an emulated board is asked for: one gradient, then three steps of AdamW, by the engine as it is.

    python -m benchmarks.board_step MANIFEST GIVEN FOUND

Runs on a bare install. GIVEN is a tensor file with the batch (`batch/ids`, `batch/attention_mask`, `batch/labels`) and
the adapter (`adapter/<name>`): drawn elsewhere, so that two machines that are compared begin with the same bytes. FOUND
becomes one with `gradient/<name>` and, after the steps, `adapter/<name>`. What ran, and the losses, is printed as JSON.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import sys
from dataclasses import dataclass

from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import Plan
from edge_sdk.engine.train import Recipe, batch_gradient, train_steps, trained_names
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.tensors import Array, read_tensors, write_tensors

STEPS = 3
# Of a batch of three rows two at a time, of different lengths, and a sum over two parts; fewer predictions at a time
# than the first part has, so that chunks are summed, too; one block of two keeps activations, the other recomputes.
PLAN = Plan(micro_batch=2, head_rows=6, kept_blocks=1)
COMPILED = ("numpy", "onnxruntime", "msgpack", "psutil")  # a device's dependencies with machine code in them


@dataclass(frozen=True, slots=True)
class Found:
    """`losses` are the batch's mean before each change; `adapter` is what the steps made of the one given."""

    gradients: dict[str, Array]
    adapter: dict[str, Array]
    losses: list[float]


def gradient_and_steps(manifest: pathlib.Path, adapter: dict[str, Array], batch: Batch) -> Found:
    """The batch's gradient at `adapter`, then the steps: all that this benchmark asks of the engine."""
    walk = Walk(open_artifact(manifest), threads=1, plan=PLAN, watch=lambda: None)
    _, gradients = batch_gradient(walk, adapter, batch, trained_names(walk, ()))
    reports = train_steps(walk, adapter, itertools.repeat(batch), Recipe(steps=STEPS))
    return Found(gradients, adapter, [report.loss for report in reports])


def below(prefix: str, tensors: dict[str, Array]) -> dict[str, Array]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def main(manifest: str, given: str, found: str) -> None:
    """Read, run, write, print."""
    tensors = read_tensors(pathlib.Path(given))
    outcome = gradient_and_steps(pathlib.Path(manifest), below("adapter/", tensors), Batch(**below("batch/", tensors)))
    gradients = {f"gradient/{name}": array for name, array in outcome.gradients.items()}
    write_tensors(
        pathlib.Path(found), gradients | {f"adapter/{name}": array for name, array in outcome.adapter.items()}
    )
    for name in COMPILED:
        importlib.import_module(name)
    said = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in COMPILED},
        "losses": outcome.losses,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
