"""Gradients of the engine on emulated Raspberry Pis 3, 4 and 5, against the same engine's on this machine.

    python -m benchmarks.aarch64 [--check]

The wheels are the real ones for aarch64 (`benchmarks.emulation`): the oldest of each dependency that pyproject.toml
allows, and the newest. The models are a tiny Llama, a tiny BERT with classes, and SmolLM2-135M cut to two layers, each
in fp32 and in int8, LoRA r=8, exported and checked against torch in this run. Everyone gets the same adapter and the
same batch, both drawn; `benchmarks.board_step` runs. The error of a tensor is max |board's - ours| / max |ours|.

The control is onnxruntime 1.21.0, which dies of an illegal instruction on a Pi 3 and a Pi 4 and lives on a Pi 5
(https://github.com/microsoft/onnxruntime/issues/23957): where it does not, the emulation is not of those cores.

`--check` exits 1 when a gradient, or a loss of the steps after it, is off by more than 1e-4, or the control does
anything else. Says nothing of speed and
memory: see docs/aarch64.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import assets, machine
from benchmarks.emulation import CPUS, Board, Wheel, board, qemu_version
from benchmarks.fetch import FetchError, say
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.manifest import Manifest, TaskType
from edge_sdk.wire.tensors import Array, read_tensors, write_tensors
from export.adapters import AdapterRequest
from export.build import BuildRequest, build
from export.levels import LevelRequest, default_name
from export.parity import badness, relative_error
from export.progress import silent
from tests.models import tiny_model

BOUND = 1e-4
ADAPTER = AdapterRequest("lora", 8, 16.0, ())
SPREAD = 0.05  # of the drawn adapter: no gradient may vanish behind a zero factor
BITS = (32, 8)
LENGTHS = (6, 4, 2)  # of the batch's rows: few tokens, for the whole vocabulary is multiplied with each of them
TOKENS = 16  # where the exporter measures costs, which nobody reads here
SMOLLM2_LAYERS = 2  # of 30: all are alike, and an emulated core is slow
OLDEST = (
    Wheel("onnxruntime", "1.19.2", "c1dfe4f660a71b31caa81fc298a25f9612815215a47b286236e61d540350d7b6"),
    Wheel("numpy", "1.26.4", "7ab55401287bfec946ced39700c053796e7cc0e3acbef09993a9ad2adba6ca6e"),
    Wheel("msgpack", "1.2.3", "6707d2fa2aa1bb5424ea0b05f44ffc989b15ab41a73ff5855bff4944fec7c8ac"),
    Wheel("psutil", "6.0.0", "e2e8d0054fc88153ca0544f5c4d554d42e33df2e009c4ff42284ac9ebdef4132"),
)
NEWEST = (
    Wheel("onnxruntime", "1.31.1", "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3"),
    Wheel("numpy", "2.4.6", "0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47"),
    Wheel("msgpack", "1.2.4", "0c75cfda0d3ccb1f6abc20e0608ad6b226e11f317b5ac297721504d2509e2bd9"),
    Wheel("psutil", "7.2.2", "b0726cecd84f9474419d67252add4ac0cd9811b04d61123054b9fb6f57df6e9e"),
)
CONTROL = (
    Wheel("onnxruntime", "1.21.0", "7f9156cf6f8ee133d07a751e6518cf6f84ed37fbf8243156bd4a2c4ee6e073c8"),
    NEWEST[1],
)
CONTROL_ENDS = {"cortex-a53": "SIGILL", "cortex-a72": "SIGILL", "cortex-a76": "ok"}
RESULT = pathlib.Path(__file__).parent / "results" / "aarch64.json"
Row = dict[str, Any]
NAMES = ("cpu", "onnxruntime", "model", "level")
ERRORS = ("gradient", "loss", "adapter")


@dataclass(frozen=True, slots=True)
class Case:
    """One level of one model: its manifest, and the tensor file that `benchmarks.board_step` is given."""

    model: str
    level: str
    manifest: pathlib.Path
    given: pathlib.Path


@dataclass(frozen=True, slots=True)
class Run:
    """A case on one machine: how the process ended ("ok", or a signal's name), what it said and what it found."""

    ended: str
    said: Mapping[str, Any]
    tensors: Mapping[str, Array]


def export_all(folder: pathlib.Path) -> list[Case]:
    """Every level of every model as an artifact in `folder`, with what it will be given."""
    llama, bert = tiny_model("llama", folder / "tiny-llama"), tiny_model("bert", folder / "tiny-bert")
    lm, classes, labels = TaskType.CAUSAL_LM, TaskType.SEQUENCE_CLASSIFICATION, ("bad", "so-so", "good")
    return [
        *_export(llama, lm, folder / "llama"),
        *_export(bert, classes, folder / "bert", labels=labels),
        *_export(assets.smollm2(), lm, folder / "smollm2", layers=SMOLLM2_LAYERS),
    ]


def _export(
    model: pathlib.Path, task: TaskType, out: pathlib.Path, layers: int | None = None, labels: tuple[str, ...] = ()
) -> Iterator[Case]:
    names = [default_name(LevelRequest("", bits, None, None)) for bits in BITS]
    levels = tuple(LevelRequest(name, bits, layers, None) for name, bits in zip(names, BITS, strict=True))
    request = BuildRequest(model, task, out, ADAPTER, levels, labels, tokens=TOKENS, parity=True, seed=0)
    for built in build(request, silent):
        level = built.manifest.level.name
        given = out / f"{level}.given"
        write_tensors(given, drawn(built.manifest))
        yield Case(out.name, level, out / f"{level}.manifest", given)


def drawn(manifest: Manifest) -> dict[str, Array]:
    """An adapter and a padded batch for this level, named as `benchmarks.board_step` reads them."""
    generator = np.random.default_rng(0)
    adapter = {
        f"adapter/{name}": generator.normal(0, SPREAD, shape).astype(np.float32)
        for name, shape in manifest.adapter_shapes().items()
    }
    mask = (np.arange(LENGTHS[0]) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = generator.integers(0, manifest.model.vocabulary, mask.shape) * mask
    labels = generator.integers(0, max(1, len(manifest.model.labels)), len(mask))
    return {**adapter, "batch/ids": ids, "batch/attention_mask": mask, "batch/labels": labels}


def run_here(case: Case) -> Run:
    """The case on this machine. Raises RuntimeError."""
    found = case.given.with_suffix(".here")
    said = machine.measured("benchmarks.board_step", str(case.manifest), str(case.given), str(found))
    return Run("ok", said, read_tensors(found))


def run_emulated(case: Case, on: Board) -> Run:
    """The case on an emulated board. Raises RuntimeError when other wheels ran than the board's."""
    found = case.given.with_suffix(f".{on.cpu.name}")
    arguments = (str(case.manifest), str(case.given), str(found))
    done = on.python("-m", "benchmarks.board_step", *arguments, folder=found.parent)
    if done.returncode != 0:
        return Run(f"{ending(done.returncode)}: {last_line(done.stderr, 'no word')}", {}, {})
    said = json.loads(done.stdout)
    if said["versions"] != {wheel.name: wheel.version for wheel in on.wheels}:
        msg = f"{on.cpu.name} ran {said['versions']}"
        raise RuntimeError(msg)
    return Run("ok", said, read_tensors(found))


def ending(returncode: int) -> str:
    """How a process ended: `ok`, `SIGILL`, `exit 1`."""
    if returncode < 0:
        return signal.Signals(-returncode).name
    return f"exit {returncode}" if returncode else "ok"


def worst(found: Mapping[str, Array], wanted: Mapping[str, Array], prefix: str) -> tuple[str, float]:
    """Of the tensors whose names begin with `prefix`, the one that is furthest off, and its relative error.

    Raises ValueError where the two have not the same tensors, or one is zero throughout, which would prove nothing.
    """
    names = {name for name in wanted if name.startswith(prefix)}
    if not names or names != {name for name in found if name.startswith(prefix)}:
        msg = f"{prefix}: the tensors to compare are not the same"
        raise ValueError(msg)
    if dead := sorted(name for name in names if not wanted[name].any()):
        msg = f"{dead[0]} is zero throughout"
        raise ValueError(msg)
    errors = {name: relative_error(found[name], wanted[name]) for name in sorted(names)}
    name = max(errors, key=lambda one: badness(errors[one]))
    return name.removeprefix(prefix), errors[name]


def compare(case: Case, on: Board, run: Run, here: Run) -> Row:
    """A row of the result. A board whose process died has no errors."""
    row: Row = {"cpu": on.cpu.name, "board": on.cpu.board, "onnxruntime": on.version("onnxruntime")}
    row |= {"model": case.model, "level": case.level, "ended": run.ended}
    if run.ended == "ok":
        row |= {"machine": run.said["machine"], "python": run.said["python"]}
        row["worst"], row["gradient_error"] = worst(run.tensors, here.tensors, "gradient/")
        row["loss_error"] = relative_error(np.array(run.said["losses"]), np.array(here.said["losses"]))
        _, row["adapter_error"] = worst(run.tensors, here.tensors, "adapter/")
    return row


def holds(row: Row) -> bool:
    """Whether a run ended well, gradients and losses within the bound. Not so for NaN.

    The adapter after the steps has no bound: AdamW divides a gradient by its own size, so that where one is nearly
    zero, rounding decides which way the number goes.
    """
    return row["ended"] == "ok" and bool(row["gradient_error"] <= BOUND) and bool(row["loss_error"] <= BOUND)


def control(on: Board, folder: pathlib.Path) -> Row:
    """What becomes of the control on one board."""
    ended = ending(on.python("-c", "import onnxruntime", folder=folder).returncode)
    wanted = CONTROL_ENDS[on.cpu.name]
    row = {"cpu": on.cpu.name, "board": on.cpu.board, "onnxruntime": on.version("onnxruntime")}
    return {**row, "ended": ended, "wanted": wanted}


def show(rows: Sequence[Row], controls: Sequence[Row], console: Console) -> None:
    """The table, and a line for each run of the control."""
    table = Table(title="Emulated boards against this machine: largest relative errors", title_justify="left")
    for heading in ("cpu", "runtime", "model", "level"):
        table.add_column(heading)
    for heading in ERRORS:
        table.add_column(heading, justify="right")
    for row in rows:
        errors = [f"{row[f'{what}_error']:.1e}" for what in ERRORS] if row["ended"] == "ok" else [row["ended"]]
        table.add_row(*(row[name] for name in NAMES), *errors, style=None if holds(row) else "red")
    console.print(table)
    for row in controls:
        verdict = "as on the board" if row["ended"] == row["wanted"] else f"NOT as on the board: {row['wanted']}"
        console.print(f"control, onnxruntime {row['onnxruntime']} on {row['cpu']}: {row['ended']}, {verdict}")


def measure(folder: pathlib.Path) -> tuple[list[Row], list[Row], str]:
    """All rows, the control's rows, and the emulator's name. Raises FetchError, RuntimeError."""
    boards = [board(cpu, wheels) for wheels in (OLDEST, NEWEST) for cpu in CPUS]
    controls = [control(board(cpu, CONTROL), folder) for cpu in CPUS]
    say("exporting the models")
    cases = export_all(folder)
    rows = []
    for case in cases:
        here = run_here(case)
        for on in boards:
            row = compare(case, on, run_emulated(case, on), here)
            rows.append(row)
            say(f"{len(rows)}/{len(cases) * len(boards)} {' '.join(row[name] for name in NAMES)}: {row['ended']}")
    return rows, controls, qemu_version(boards[0])


def main() -> int:
    """Measure, show, keep; 1 when `--check` finds a bound missed or a control that is none, or nothing can be had."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aarch64", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when a bound is missed")
    check = parser.parse_args().check
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows, controls, emulator = measure(pathlib.Path(folder))
    except FetchError as error:
        say(f"error: {error}")
        return 1
    show(rows, controls, console)
    held = all(map(holds, rows)) and all(row["ended"] == row["wanted"] for row in controls)
    console.print(
        f"gradients and losses within {BOUND:.0e}, the control as on the boards: {'held' if held else 'MISSED'}"
    )
    command = " ".join(["python -m benchmarks.aarch64", *sys.argv[1:]])
    wheels = [{wheel.name: wheel.version for wheel in wheels} for wheels in (OLDEST, NEWEST)]
    found = {"emulator": emulator, "bound": BOUND, "wheels": wheels, "rows": rows, "control": controls}
    machine.write_json(RESULT, {"command": command, "machine": machine.machine(), **found})
    return int(check and not held)


if __name__ == "__main__":
    sys.exit(main())
