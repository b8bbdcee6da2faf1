"""Training steps on every minor version of onnxruntime that pyproject.toml allows, each in an environment of its own.

    python -m benchmarks.runtimes [--check] [--versions VERSION ...]

SmolLM2-135M, LoRA r=8 on q and v, one row of 128 tokens; levels fp32, int8 and int4, each with a plan that computes
activations again, one that keeps them, and one that keeps them in 16 bits. The gradients are compared with those of the
newest version and the first plan. Results are kept in results/runtimes.json. `--check` exits 1 where a version
does not load or a gradient is off. The environments (100 MB each) are made at the first call.

Its own times are those of one step on a machine that did what it did: for the order of magnitude, not for comparison.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.engine import models
from benchmarks.fetch import FetchError, say
from benchmarks.runtime_step import PLANS
from benchmarks.venvs import environment
from edge_sdk.environment import training_environment
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.lifeline import exit_on_terminate
from export.cache import cache_folder

ROOT = pathlib.Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "runtimes.json"
# The last patch of each minor version. 1.19.2 is the oldest that is allowed.
VERSIONS = (
    *("1.19.2", "1.20.1", "1.21.1", "1.22.1", "1.23.2", "1.24.4", "1.25.1"),
    *("1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.1"),
)
NEWEST = VERSIONS[-1]
DEVICE = ("numpy", "msgpack", "paho-mqtt", "psutil")  # what a device installs beside it, in our own versions
LEVELS = ("fp32", "int8", "int4")
# Relative, in norm over all gradients. Versions up to 1.28 agree with each other to 1e-6, and so do 1.30 and 1.31; in
# between a kernel began to round otherwise, which over 30 blocks makes 1.5e-4.
BOUNDS = {"recomputing": 3e-4, "kept-32": 3e-4, "kept-16": 2e-2}

Row = dict[str, Any]


def requirements(version: str) -> tuple[str, ...]:
    """What an environment with that onnxruntime is made from."""
    return (f"onnxruntime=={version}", *(f"{name}=={importlib.metadata.version(name)}" for name in DEVICE))


def measure(version: str, level: str, manifest: pathlib.Path, threads: int, gradients: pathlib.Path) -> Row:
    """A row for that version and level; `failed` says why there is nothing in it. Raises FetchError."""
    python = environment(cache_folder() / "venvs", f"onnxruntime-{version}", requirements(version))
    arguments = (str(manifest), str(models.TOKENS), str(threads), str(gradients))
    done = subprocess.run(
        [str(python), "-m", "benchmarks.runtime_step", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**training_environment(threads), "PYTHONPATH": str(ROOT)},
    )
    row: Row = {"version": version, "level": level}
    if done.returncode != 0:
        return row | {"failed": f"ended with {done.returncode}: {last_line(done.stderr, 'no output')}"}
    found: Row = json.loads(done.stdout)
    return row | {"plans": found["plans"]}


def differences(found: Mapping[str, np.ndarray[Any, Any]], exact: np.ndarray[Any, Any]) -> dict[str, float]:
    """By plan, the norm of the difference from `exact` as a share of its norm."""
    norm = float(np.linalg.norm(exact))
    return {kind: float(np.linalg.norm(found[kind] - exact)) / norm for kind in PLANS}


def held(row: Row) -> bool:
    """Whether the version loaded that level, and every gradient is within its bound."""
    return "failed" not in row and all(
        step["gradient_difference"] <= BOUNDS[kind] for kind, step in row["plans"].items()
    )


def table(rows: Sequence[Row]) -> Table:
    """A line a version, level and plan."""
    found = Table(title="Gradients of a SmolLM2-135M step, against the newest version's", title_justify="left")
    for heading in ("onnxruntime", "level", "plan"):
        found.add_column(heading)
    for heading in ("difference", "step", "peak"):
        found.add_column(heading, justify="right")
    for row in rows:
        if "failed" in row:
            found.add_row(row["version"], row["level"], row["failed"])
            continue
        for kind, step in row["plans"].items():
            numbers = (f"{step['step_ms']:.0f} ms", f"{step['peak_bytes'] / 1e6:.0f} MB")
            found.add_row(row["version"], row["level"], kind, f"{step['gradient_difference']:.1e}", *numbers)
    return found


def main() -> int:
    """Measure, show, keep; 1 when `--check` finds a version that fails, or when something cannot be had."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a version fails or a gradient is off")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS, metavar="VERSION")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON; default, for all versions: results/runtimes.json")
    arguments = parser.parse_args()
    try:
        rows = _rows([NEWEST, *(version for version in VERSIONS[:-1] if version in arguments.versions)])
    except (FetchError, RuntimeError, OSError) as error:
        say(f"error: {error}")
        return 1
    Console().print(table(rows))
    out = arguments.out or (OUT if set(arguments.versions) == set(VERSIONS) else None)
    if out is not None:
        machine.write_json(out, {"machine": machine.machine(), "tokens": models.TOKENS, "bounds": BOUNDS, "rows": rows})
    return int(arguments.check and not all(map(held, rows)))


def _rows(versions: Sequence[str]) -> list[Row]:
    """All versions, the newest first. Raises FetchError, and RuntimeError where the newest itself fails."""
    model, threads, rows = models.smollm2(), len(os.sched_getaffinity(0)), []
    exact: dict[str, np.ndarray[Any, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for version in versions:
            for level in LEVELS:
                say(f"onnxruntime {version}, {level}")
                path = pathlib.Path(folder, "gradients.npz")
                row = measure(version, level, model.level(level), threads, path)
                if "plans" in row:
                    with np.load(path) as found:
                        for kind, difference in differences(
                            found, exact.setdefault(level, found["recomputing"])
                        ).items():
                            row["plans"][kind]["gradient_difference"] = difference
                elif version == NEWEST:
                    msg = f"onnxruntime {version}, which the others are compared with: {row['failed']}"
                    raise RuntimeError(msg)
                rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
