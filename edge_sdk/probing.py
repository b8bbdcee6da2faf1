"""Measuring an artifact on this machine, each measurement in a fresh process.

    python -m edge_sdk.probing PROVIDER costs MANIFEST TOKENS THREADS
    python -m edge_sdk.probing PROVIDER steps MANIFEST TOKENS BATCH STEPS THREADS PLAN

is that process; `probe` starts it. `costs` measures each graph, `steps` whole training steps with a plan (JSON).
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
from edge_sdk.engine.plan import (
    FAST_STORAGE,
    REHEARSED,
    Limits,
    Plan,
    Storage,
    gradient_error,
    leanest,
    planned,
    plans,
    predicted,
    way_of,
    with_margin,
    with_process,
)
from edge_sdk.environment import training_environment
from edge_sdk.errors import ArtifactError, EdgeError
from edge_sdk.memory import read_memory
from edge_sdk.providers import Provider
from edge_sdk.wire.costs import TRAINING
from edge_sdk.wire.errors import WireError, last_line
from edge_sdk.wire.lifeline import end_with_parent
from edge_sdk.wire.manifest import Cost, Manifest


def probe(
    manifest_path: pathlib.Path,
    shape: tuple[int, int],
    steps: int,
    threads: int,
    budget_bytes: int | None,
    storage: Storage = FAST_STORAGE,
    provider: Provider = Provider.CPU,
    *,
    integers: bool = False,
) -> dict[str, Any]:
    """What `probe_costs` finds, and peak and step time of whole steps of `shape`, rows and tokens, with a plan.

    Plain values, for JSON. The plan is the fastest within `budget_bytes` from that storage, or the leanest where no
    budget is given; `integers` allows integer products on the way back, and `gradient_error` says how far off its
    gradients then are. Raises ArtifactError, and OverBudget when no plan fits.
    """
    batch, tokens = shape
    found = probe_costs(manifest_path, tokens, threads, provider)
    measured = with_costs(open_artifact(manifest_path).manifest, found["costs"])
    if budget_bytes is None:
        plan = leanest(plans(measured, batch, tokens, storage=storage, integers=integers))
    else:
        plan = planned(measured, Limits(batch, tokens, budget_bytes, threads, storage=storage, integers=integers))
    steps_found = probe_steps(manifest_path, plan, tokens, batch, steps, threads, provider)
    error = gradient_error(measured, plan)
    return {**found, "plan": dataclasses.asdict(plan), "gradient_error": error, **steps_found}


def probe_costs(
    manifest_path: pathlib.Path, tokens: int, threads: int, provider: Provider = Provider.CPU
) -> dict[str, Any]:
    """What a manifest carries: costs per graph, and what the leanest plan needs for one row. Raises ArtifactError.

    Plain values, for JSON.
    """
    costs = _fresh("costs", manifest_path, (tokens, threads), threads, provider)["costs"]
    manifest = with_costs(open_artifact(manifest_path).manifest, costs)
    lean = leanest(plans(manifest, 1, tokens))
    # What the parts do not show: code that runs only in training, what Python and the allocator add.
    found = probe_steps(manifest_path, lean, tokens, 1, 1, threads, provider)
    arenas = {way_of(manifest, lean): found["arena_bytes"]}
    expected = predicted(with_process(manifest, found["rest_bytes"]), 1, tokens, lean, arenas=arenas)
    more_bytes = (with_margin(found["peak_bytes"], REHEARSED) - expected.peak_bytes) / REHEARSED
    costs.append(dataclasses.asdict(Cost(TRAINING, 1, tokens, max(round(more_bytes), 0), 0.0)))
    return {"costs": costs, "needs_bytes": leanest(plans(with_costs(manifest, costs), 1, tokens)).peak_bytes}


def probe_steps(
    manifest_path: pathlib.Path,
    plan: Plan,
    tokens: int,
    batch: int,
    steps: int,
    threads: int,
    provider: Provider = Provider.CPU,
) -> dict[str, Any]:
    """Peak and median time of whole steps with `plan`, after a first one that is not timed. Raises ArtifactError."""
    shape = (tokens, batch, steps, threads, json.dumps(dataclasses.asdict(plan)))
    return _fresh("steps", manifest_path, shape, threads, provider)


def with_costs(manifest: Manifest, plain: list[dict[str, Any]]) -> Manifest:
    """The manifest with costs as `probe_costs` gives them."""
    return dataclasses.replace(manifest, costs=tuple(Cost(**cost) for cost in plain))


def _fresh(
    what: str, manifest_path: pathlib.Path, shape: tuple[int | str, ...], threads: int, provider: Provider
) -> dict[str, Any]:
    arguments = [provider.value, what, str(manifest_path), *map(str, shape)]
    command = [sys.executable, "-m", "edge_sdk.probing", *arguments]
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
    from edge_sdk.engine.runtime import use

    provider, what, path, *shape = arguments
    use(Provider(provider))
    if what == "costs":
        tokens, threads = map(int, shape)
        found = _costs(pathlib.Path(path), tokens, threads)
    else:
        tokens, batch, steps, threads = map(int, shape[:-1])
        found = _steps(pathlib.Path(path), (tokens, batch, steps), threads, Plan(**json.loads(shape[-1])))
    print(json.dumps(found))


def _costs(path: pathlib.Path, tokens: int, threads: int) -> dict[str, Any]:
    import edge_sdk.worker  # noqa: F401 - what a worker imports counts in what it needs
    from edge_sdk.engine.probe import measure_costs

    return {"costs": [dataclasses.asdict(cost) for cost in measure_costs(open_artifact(path), tokens, threads)]}


def _steps(path: pathlib.Path, shape: tuple[int, int, int], threads: int, plan: Plan) -> dict[str, Any]:
    import edge_sdk.worker  # noqa: F401 - as above
    from edge_sdk.engine.batch import random_batch
    from edge_sdk.engine.probe import ready
    from edge_sdk.engine.runtime import VERSION
    from edge_sdk.engine.train import Recipe, train_steps

    tokens, batch, steps = shape
    artifact = open_artifact(path)
    walk, rest = ready(artifact, threads, plan, tokens, lambda: None)
    rows = itertools.repeat(random_batch(artifact.manifest, batch, tokens))
    recipe = Recipe(steps=steps + 1, batch=batch, tokens=tokens, learning_rate=1e-4)
    reports = list(train_steps(walk, artifact.initial_adapter(), rows, recipe))
    # The first step allocates and reads: it counts for memory, not for time.
    step_ms = statistics.median(report.time_ms for report in reports[1:])
    return {
        "peak_bytes": read_memory().peak_bytes,
        "rest_bytes": rest.bytes,
        "arena_bytes": rest.arena_bytes,
        "step_ms": step_ms,
        "loss": reports[0].loss,
        "threads": threads,
        "runtime": VERSION,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
