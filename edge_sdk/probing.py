"""Measuring an artifact on this machine, each measurement in a fresh process.

    python -m edge_sdk.probing costs|steps MANIFEST TOKENS BATCH STEPS THREADS MICRO_BATCH HEAD_ROWS

is that process; `probe` starts it. `costs` measures each structure, `steps` whole training steps with a plan.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.plan import Declined, choose_plan, plans
from edge_sdk.environment import training_environment
from edge_sdk.errors import ArtifactError, EdgeError, OverBudget
from edge_sdk.memory import read_memory
from edge_sdk.wire.errors import WireError, last_line
from edge_sdk.wire.lifeline import end_with_parent
from edge_sdk.wire.manifest import Cost, Direction, Manifest


def probe(
    manifest_path: pathlib.Path, tokens: int, batch: int, steps: int, threads: int, budget_bytes: int | None
) -> dict[str, Any]:
    """What `probe_costs` finds, and peak and step time of whole steps with a plan. Plain values, for JSON.

    The plan is the fastest within `budget_bytes`, or the leanest where no budget is given. Raises ArtifactError, and
    OverBudget when no plan fits.
    """
    found = probe_costs(manifest_path, tokens, threads)
    measured = _with_costs(open_artifact(manifest_path).manifest, found["costs"], tokens)
    plan = _plan(measured, tokens, batch, budget_bytes)
    shape = [str(n) for n in (tokens, batch, steps, threads, plan["micro_batch"], plan["head_rows"])]
    return {**found, "plan": plan, **_fresh("steps", manifest_path, shape, threads)}


def probe_costs(manifest_path: pathlib.Path, tokens: int, threads: int) -> dict[str, Any]:
    """What a manifest carries: costs per structure, and what the leanest plan needs for one row. Raises ArtifactError.

    Plain values, for JSON.
    """
    found = _fresh("costs", manifest_path, [str(tokens), "0", "0", str(threads), "0", "0"], threads)
    measured = _with_costs(open_artifact(manifest_path).manifest, found["costs"], tokens)
    return {**found, "needs_bytes": min(plan.peak_bytes for plan in plans(measured, 1, tokens))}


def _with_costs(manifest: Manifest, plain: list[dict[str, Any]], tokens: int) -> Manifest:
    costs = tuple(Cost(**{**cost, "direction": Direction(cost["direction"])}) for cost in plain)
    return dataclasses.replace(manifest, costs=costs, reference_tokens=tokens)


def _plan(manifest: Manifest, tokens: int, batch: int, budget_bytes: int | None) -> dict[str, Any]:
    if budget_bytes is None:
        leanest = min(plans(manifest, batch, tokens), key=lambda plan: (plan.peak_bytes, plan.step_ms))
        return dataclasses.asdict(leanest)
    chosen = choose_plan(manifest, batch, tokens, budget_bytes)
    if isinstance(chosen, Declined):
        raise OverBudget(chosen.needed_bytes, budget_bytes, "needed by the leanest plan")
    return dataclasses.asdict(chosen)


def _fresh(what: str, manifest_path: pathlib.Path, shape: list[str], threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "edge_sdk.probing", what, str(manifest_path), *shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=training_environment(threads))
    if done.returncode != 0:
        last = last_line(done.stderr, f"exit status {done.returncode}")
        msg = f"the measurement failed: {last}"
        raise ArtifactError(msg)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: list[str]) -> None:
    """Be the fresh process."""
    end_with_parent()
    try:
        _measure(arguments)
    except (EdgeError, WireError) as error:
        sys.exit(str(error))


def _measure(arguments: list[str]) -> None:
    what, path = arguments[0], pathlib.Path(arguments[1])
    tokens, batch, steps, threads, micro_batch, head_rows = map(int, arguments[2:])
    if what == "costs":
        found = _costs(path, tokens, threads)
    else:
        found = _steps(path, (tokens, batch, steps), threads, micro_batch, head_rows)
    print(json.dumps(found))


def _costs(path: pathlib.Path, tokens: int, threads: int) -> dict[str, Any]:
    import edge_sdk.worker  # noqa: F401 - what a worker imports counts in what it needs
    from edge_sdk.engine.probe import measure_costs

    costs = measure_costs(open_artifact(path), tokens, threads)
    return {"costs": [{**dataclasses.asdict(cost), "direction": cost.direction.value} for cost in costs]}


def _steps(
    path: pathlib.Path, shape: tuple[int, int, int], threads: int, micro_batch: int, head_rows: int
) -> dict[str, Any]:
    from edge_sdk.engine.probe import random_batch
    from edge_sdk.engine.runtime import VERSION
    from edge_sdk.engine.train import Recipe, train_steps
    from edge_sdk.engine.walk import Walk

    tokens, batch, steps = shape
    artifact = open_artifact(path)
    walk = Walk(artifact, threads, head_rows, lambda: None)
    rows = itertools.repeat(random_batch(artifact.manifest, batch, tokens))
    recipe = Recipe(steps=steps + 1, batch=batch, tokens=tokens, learning_rate=1e-4)
    reports = list(train_steps(walk, artifact.initial_adapter(), rows, recipe, micro_batch))
    # The first step allocates and reads: it counts for memory, not for time.
    step_ms = statistics.median(report.time_ms for report in reports[1:])
    return {
        "peak_bytes": read_memory().peak_bytes,
        "step_ms": step_ms,
        "loss": reports[0].loss,
        "threads": threads,
        "runtime": VERSION,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
