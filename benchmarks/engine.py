"""Peak memory and step time of one training step, ours against torch + peft, measured alternately in one run.

    python -m benchmarks.engine [--quick] [--check]

SmolLM2-135M, LoRA r=8 on the query and value projections of every layer, one row of 128 random tokens, AdamW. Every
measurement is a process of its own; peak is its VmHWM, time its median step. Each contender runs once per repetition,
in turn; the table shows medians over the repetitions. `--quick` makes two repetitions instead of five, and keeps no
result. `--check` exits 1 when the largest of our peaks is not under 0.3 of torch + peft's.

Ours are the emulator levels of the demo, as `fedpeat-edge probe --budget 300MB` runs them: the process that a device
with that budget would start.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import assets, machine, studies

TOKENS = 128
BUDGET = "300MB"
PEAK_BOUND = 0.3
RESULT = pathlib.Path(__file__).parent / "results" / "engine.json"


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to do the step: a module that prints `peak_bytes` and `step_ms`, and its arguments."""

    name: str
    ours: bool
    module: str
    arguments: tuple[str, ...]


def contenders(model: pathlib.Path, artifact: pathlib.Path, steps: int) -> list[Contender]:
    """The peers, then every level of `artifact`."""
    shape = ("--tokens", str(TOKENS), "--batch", "1", "--steps", str(steps))
    peer = "benchmarks.peers.torch_peft"
    return [
        Contender("torch + peft", ours=False, module=peer, arguments=(str(model), *shape)),
        Contender(
            "torch + peft, checkpointing", ours=False, module=peer, arguments=(str(model), *shape, "--checkpointing")
        ),
        *(
            Contender(
                f"fedpeat {path.stem}",
                ours=True,
                module="edge_sdk.cli",
                arguments=("probe", str(path), *shape, "--budget", BUDGET),
            )
            for path in sorted(artifact.glob("*.manifest"))
        ),
    ]


def measure(everyone: list[Contender], repetitions: int, console: Console) -> list[dict[str, Any]]:
    """Median peak and step of each contender, as a row each, after `repetitions` turns of all."""
    runs: dict[str, list[dict[str, Any]]] = {one.name: [] for one in everyone}
    for turn in range(repetitions):
        for one in everyone:
            with console.status(f"{one.name} ({turn + 1} of {repetitions})"):
                runs[one.name].append(machine.measured(one.module, *one.arguments))
    base = runs[everyone[0].name]
    base_bytes = statistics.median(run["peak_bytes"] for run in base)
    base_ms = statistics.median(run["step_ms"] for run in base)
    rows = []
    for one in everyone:
        peak = statistics.median(run["peak_bytes"] for run in runs[one.name])
        step = statistics.median(run["step_ms"] for run in runs[one.name])
        row = {"name": one.name, "ours": one.ours, "peak_bytes": int(peak), "step_ms": round(step, 1)}
        row |= {"peak_ratio": round(peak / base_bytes, 4), "step_ratio": round(step / base_ms, 4)}
        row["runs"] = [{key: run[key] for key in ("peak_bytes", "step_ms")} for run in runs[one.name]]
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table."""
    table = Table(title=f"One training step, SmolLM2-135M, LoRA r=8 on q and v, 1 x {TOKENS} tokens")
    table.add_column("contender")
    for heading in ("peak RSS", "x torch + peft", "step", "x torch + peft"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['peak_bytes'] / 1e6:.0f} MB",
            f"{row['peak_ratio']:.2f}",
            f"{row['step_ms']:.0f} ms",
            f"{row['step_ratio']:.2f}",
        )
    console.print(table)


def main() -> int:
    """Measure, show, keep; 1 when `--check` finds a number missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two repetitions instead of five")
    parser.add_argument("--check", action="store_true", help="exit 1 when a published bound is missed")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON; default, unless quick: results/engine.json")
    arguments = parser.parse_args()
    console = Console()

    model = assets.smollm2()
    artifact = studies.artifact_of(studies.speeches_study())
    repetitions, steps = (2, 4) if arguments.quick else (5, 8)
    rows = measure(contenders(model, artifact, steps), repetitions, console)
    show(rows, console)
    largest = max(row["peak_ratio"] for row in rows if row["ours"])
    held = largest < PEAK_BOUND
    console.print(
        f"largest peak of ours: {largest:.2f} x torch + peft (bound {PEAK_BOUND}): {'held' if held else 'MISSED'}"
    )
    out = arguments.out or (None if arguments.quick else RESULT)
    if out is not None:
        command = " ".join(["python -m benchmarks.engine", *sys.argv[1:]])
        machine.write_json(out, {"command": command, "machine": machine.machine(), "tokens": TOKENS, "rows": rows})
    return int(arguments.check and not held)


if __name__ == "__main__":
    sys.exit(main())
