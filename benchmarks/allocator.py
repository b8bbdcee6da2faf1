"""What it costs that freed memory goes back at once: peak and step time by glibc's thresholds (docs/adr/0007).

    python -m benchmarks.allocator

The demo's SmolLM2-135M artifact, LoRA r=8, rows of 128 tokens, one thread: steps of one row with 256 rows of the head
at a time, and steps of four rows, each measurement a process of its own with `MALLOC_TRIM_THRESHOLD_` and
`MALLOC_MMAP_THRESHOLD_` as the row says ("growing": neither is set, and glibc moves them). Medians over three turns.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import machine, studies
from edge_sdk.environment import training_environment

THRESHOLDS: Final = {"128 KiB": 128 << 10, "512 KiB": 512 << 10, "2 MiB": 2 << 20, "growing": None}
VARIABLES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
LEVELS: Final = ("fp32", "int8-last6")
BATCHES: Final = (1, 4)
TURNS, STEPS, TOKENS, HEAD_ROWS = 3, 3, 128, 256
RESULT: Final = pathlib.Path(__file__).parent / "results" / "allocator.json"


def measured(manifest: pathlib.Path, batch: int, threshold_bytes: int | None) -> dict[str, Any]:
    """Peak and step time of one process. Raises CalledProcessError."""
    environment = training_environment(1)
    for name in VARIABLES:
        environment.pop(name)
        environment |= {} if threshold_bytes is None else {name: str(threshold_bytes)}
    shape = (TOKENS, batch, STEPS, 1, batch, HEAD_ROWS)
    command = [sys.executable, "-m", "edge_sdk.probing", "steps", str(manifest), *map(str, shape)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """Measure in turn, show, keep."""
    console = Console()
    artifact = studies.artifact_of(studies.speeches_study())
    cells = list(itertools.product(THRESHOLDS, LEVELS, BATCHES))
    runs: dict[tuple[str, str, int], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for turn in range(TURNS):
        for name, level, batch in cells:
            with console.status(f"{name}, {level}, {batch} row(s) ({turn + 1} of {TURNS})"):
                found = measured(artifact / f"{level}.manifest", batch, THRESHOLDS[name])
                runs[name, level, batch].append({key: found[key] for key in ("peak_bytes", "step_ms")})
    rows = [
        {
            "thresholds": name,
            "level": level,
            "batch": batch,
            **{key: statistics.median(run[key] for run in found) for key in ("peak_bytes", "step_ms")},
            "runs": found,
        }
        for (name, level, batch), found in runs.items()
    ]
    console.print(_table(rows))
    machine.write_json(
        RESULT, {"command": "python -m benchmarks.allocator", "machine": machine.machine(), "rows": rows}
    )
    return 0


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"SmolLM2-135M, rows of {TOKENS} tokens, one thread", title_justify="left")
    for heading in ("given back from", "level", "rows", "peak MB", "step ms"):
        table.add_column(heading, justify="left" if heading in {"given back from", "level"} else "right")
    for row in rows:
        sizes = (f"{row['peak_bytes'] / 1e6:.0f}", f"{row['step_ms']:.0f}")
        table.add_row(row["thresholds"], row["level"], str(row["batch"]), *sizes)
    return table


if __name__ == "__main__":
    sys.exit(main())
