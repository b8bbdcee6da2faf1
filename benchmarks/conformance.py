"""Five equal steps on our engine and on onnxruntime-training, from what `fedpeat export` writes for each.

    python -m benchmarks.conformance [--check] [--models NAME ...]

For tiny random models, a Llama and a BERT unless others are named, with float32 and with int8 matrices: the starting
adapter of both exports, the same batches with padding, AdamW. The results of those two are kept in
results/conformance.json. `--check` exits 1 where a loss is off by more than 1e-4 of itself. The environment of
onnxruntime-training (290 MB) is made at the first call.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.fetch import say
from edge_sdk.config import all_cores
from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import HEAD_ROWS, Plan
from edge_sdk.engine.train import Recipe, train_steps
from edge_sdk.engine.walk import Walk
from edge_sdk.errors import EdgeError
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.manifest import TaskType
from export.adapters import AdapterRequest
from export.build import BuildRequest, build
from export.errors import ExportError
from export.foundation import open_foundation
from export.levels import LevelRequest
from export.ort_training.artifacts import train, write_artifacts
from export.ort_training.environment import VERSION
from export.parity import draw_batch
from export.progress import silent
from tests.models import ENCODERS, tiny_model

OUT = pathlib.Path(__file__).parent / "results" / "conformance.json"
MODELS = ("llama", "gpt2", "opt", "gpt_neox", "bert", "roberta", "distilbert")
USUAL = ("llama", "bert")
LEVELS = (LevelRequest("fp32", 32, None, None), LevelRequest("int8", 8, None, None))
STEPS, RATE = 5, 1e-2  # a rate at which the second loss is far from the first
BOUND = 1e-4
GIVEN = ("ids", "attention_mask", "labels")  # of a batch of text
LABELS = ("bad", "so-so", "good")

Row = dict[str, Any]


def batches_of(model: pathlib.Path, task: TaskType, labels: tuple[str, ...]) -> list[Batch]:
    """A batch for each step, drawn, with padding; all of one shape."""
    foundation = open_foundation(model, task, labels)
    drawn = [draw_batch(foundation, seed) for seed in range(STEPS)]
    return [Batch(one.ids, one.attention_mask, one.labels) for one in drawn]


def our_losses(manifest: pathlib.Path, batches: Sequence[Batch]) -> list[float]:
    """The loss before each step of the device's engine, on the level of that manifest, from its initial adapter."""
    artifact = open_artifact(manifest)
    walk = Walk(artifact, all_cores(), Plan(len(batches[0]), HEAD_ROWS[-1]), lambda: None)
    recipe = Recipe(steps=len(batches), learning_rate=RATE, clip_norm=0.0)
    return [report.loss for report in train_steps(walk, artifact.initial_adapter(), iter(batches), recipe)]


def their_losses(folder: pathlib.Path, batches: Sequence[Batch]) -> list[float]:
    """The same of onnxruntime-training, with the four files in `folder`. Raises ExportError."""
    given = {name: np.stack([getattr(one, name) for one in batches]) for name in GIVEN}
    return [float(loss) for loss in train(folder, given, RATE, {})["losses"]]


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest, as a share of our loss; NaN where one is."""
    return float(np.max(np.abs(np.subtract(ours, theirs)) / np.abs(ours)))


def rows_of(kind: str, folder: pathlib.Path) -> list[Row]:
    """A row for each level of a tiny model of that kind; exports into `folder`. Raises ExportError, EdgeError."""
    is_encoder = kind in ENCODERS
    task = TaskType.SEQUENCE_CLASSIFICATION if is_encoder else TaskType.CAUSAL_LM
    labels = LABELS if is_encoder else ()
    model = tiny_model(kind, folder / "model")
    adapter, out = AdapterRequest("lora", 8, 16.0, ()), folder / "artifact"
    build(BuildRequest(model, task, out, adapter, LEVELS, labels, tokens=16, parity=False, seed=0), silent)
    batches, rows = batches_of(model, task, labels), []
    for level in LEVELS:
        say(f"{kind}, {level.name}")
        four, begin = folder / level.name, time.monotonic()
        parity = write_artifacts(BuildRequest(model, task, four, adapter, (level,), labels, 16, parity=True, seed=0))
        export_s = time.monotonic() - begin
        if parity is None:  # it was asked for
            raise AssertionError
        ours, theirs = our_losses(out / f"{level.name}.manifest", batches), their_losses(four, batches)
        row: Row = {"model": kind, "level": level.name, "ours": ours, "theirs": theirs}
        row |= {"difference": difference(ours, theirs), "parity": parity.worst, "export_s": round(export_s, 1)}
        row["bytes"] = {path.name: path.stat().st_size for path in sorted(four.iterdir())}
        rows.append(row)
    return rows


def held(row: Row) -> bool:
    """Whether the losses agree. Not so for NaN."""
    return bool(row["difference"] <= BOUND)


def table(rows: Sequence[Row]) -> Table:
    """A line a model and level."""
    title = f"{STEPS} steps of AdamW, ours and onnxruntime-training {VERSION}'s: losses off by at most {BOUND:.0e}"
    found = Table(title=title, title_justify="left")
    for heading in ("model", "level", "first loss", "last loss", "difference", "gradients", "export"):
        found.add_column(heading, justify="left" if heading in {"model", "level"} else "right")
    for row in rows:
        losses = (f"{row['ours'][0]:.4f}", f"{row['ours'][-1]:.4f}")
        errors = (f"{row['difference']:.1e}", f"{row['parity']:.1e}")
        style = None if held(row) else "red"
        found.add_row(row["model"], row["level"], *losses, *errors, f"{row['export_s']:.0f} s", style=style)
    return found


def main() -> int:
    """Train on both, show, keep; 1 when `--check` finds a loss that is off, or when something cannot be had."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conformance", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="exit 1 where a loss is off")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=USUAL, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--out", type=pathlib.Path, help="the JSON; default, for the usual: results/conformance.json")
    arguments = parser.parse_args()
    rows: list[Row] = []
    try:
        for kind in arguments.models:
            with tempfile.TemporaryDirectory(prefix="fedpeat-") as folder:
                rows += rows_of(kind, pathlib.Path(folder))
    except (ExportError, EdgeError, OSError) as error:
        say(f"error: {error}")
        return 1
    Console().print(table(rows))
    out = arguments.out or (OUT if set(arguments.models) == set(USUAL) else None)
    if out is not None:
        machine.write_json(
            out, {"machine": machine.machine(), "steps": STEPS, "rate": RATE, "bound": BOUND, "rows": rows}
        )
    return int(arguments.check and not all(map(held, rows)))


if __name__ == "__main__":
    sys.exit(main())
