"""Each level of an artifact, measured by the processes that a device and the coordinator would run.

What is known of a level is written down when all of it is: the same ladder, stopped and begun again, measures only what
it lacks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from coordinator.builder import Artifact, BuiltLevel, write_json
from coordinator.config import Config
from coordinator.errors import ConfigError
from coordinator.evaluation import emulator_command, full_command
from coordinator.jobs import Jobs, Line
from coordinator.ladder.rows import Split
from coordinator.ladder.rungs import Measured, PlanPoint, Quality, Tune, gap_closed, new_bytes, size_bytes, spaced
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.manifest import encode_manifest
from export.progress import Progress, Report

ZERO_SHOT: Final = "full model"
STAGES: Final = ("plans", "tune", "emulator", "plug-in")


@dataclass(frozen=True, slots=True)
class Bench:
    """What levels are measured with: all but the level. `budget` is that of a tune, as in `1GB`."""

    config: Config
    artifact: Artifact
    split: Split
    budget: str
    jobs: Jobs
    report: Report

    @property
    def folder(self) -> pathlib.Path:
        """Where results and adapters are kept."""
        return self.config.out / "measured"


def measure_all(bench: Bench) -> tuple[float, tuple[Measured, ...]]:
    """The full model's loss as it is, and all levels, measured. Raises ConfigError, JobError, OSError."""
    levels = bench.artifact.levels
    stages = [(ZERO_SHOT, "held-out loss"), *((name, stage) for name in levels for stage in STAGES)]
    numbers = {stage: number for number, stage in enumerate(stages)}

    def begin(level: str, stage: str, detail: str = "") -> None:
        bench.report(Progress(stage, level, numbers[level, stage], len(numbers), detail))

    def zero_shot() -> Line:
        begin(*stages[0])
        full = bench.artifact.full
        return _process(bench, full_command(bench.config.model.dir, full.path, None, bench.split.held_out))

    before: float = _remembered(bench, ZERO_SHOT, bench.artifact.full, zero_shot)["loss"]
    found: list[Measured] = []
    for name, built in levels.items():
        plain = _remembered(bench, name, built, lambda built=built: _measure(bench, built, begin))  # type: ignore[misc]
        found.append(_measured(bench.artifact, built, plain))
        _require_gap(before, found[0])  # the first is the full model
    return before, tuple(found)


def _require_gap(zero_shot: float, full: Measured) -> None:
    """Raise ConfigError where there is nothing to measure the others by."""
    try:
        gap_closed(zero_shot, full.quality.plug_in, full.quality.plug_in)
    except ValueError as error:
        msg = f"{error}; give more --steps, another --learning-rate, or more data"
        raise ConfigError(msg) from error


def _measure(bench: Bench, built: BuiltLevel, begin: Callable[..., None]) -> Mapping[str, Any]:
    name, held_out = built.manifest.level.name, bench.split.held_out
    adapter = bench.folder / f"{name}.safetensors"
    begin(name, "plans")
    plans = _process(bench, _plan_command(bench, built))["plans"]
    begin(name, "tune")
    steps: list[Line] = []

    def heard(line: Line) -> None:
        steps.append(line)
        begin(name, "tune", f"step {line['step']} of {line['steps']}, loss {line['loss']:.3f}")

    tuned = bench.jobs.process(_tune_command(bench, built, adapter), heard)
    begin(name, "emulator")
    before, after = (_process(bench, emulator_command(built.path, one, held_out)) for one in (None, adapter))
    begin(name, "plug-in")
    plugged = _process(bench, full_command(bench.config.model.dir, built.path, adapter, held_out))
    return {
        "plans": [{"peak_bytes": plan["peak_bytes"], "step_ms": plan["step_ms"]} for plan in plans],
        "tune": {
            "budget_bytes": tuned["budget_bytes"],
            "predicted_bytes": tuned["plan"]["peak_bytes"],
            "peak_bytes": tuned["peak_bytes"],
            "step_ms": statistics.median(line["time_ms"] for line in steps),
            "loss_first": steps[0]["loss"],
            "loss_last": steps[-1]["loss"],
        },
        "quality": {
            "emulator_before": before["loss"],
            "emulator": after["loss"],
            "plug_in": plugged["loss"],
            "emulator_accuracy": after["accuracy"],
            "plug_in_accuracy": plugged["accuracy"],
        },
    }


def _process(bench: Bench, command: list[str]) -> Line:
    return bench.jobs.process(command, lambda _line: None)


def _plan_command(bench: Bench, built: BuiltLevel) -> list[str]:
    words = ["plan", built.path, *_shape(bench), "--budget", "1000GB", "--in-memory", "--json"]
    return [sys.executable, "-m", "edge_sdk.cli", *map(str, words)]


def _tune_command(bench: Bench, built: BuiltLevel, adapter: pathlib.Path) -> list[str]:
    training = bench.config.training
    words = ["train", built.path, *_shape(bench), "--data", bench.split.tune, "--budget", bench.budget]
    words += ["--steps", training.steps, "--learning-rate", training.learning_rate, "--seed", training.seed]
    words += ["--json", "--out", adapter]
    return [sys.executable, "-m", "edge_sdk.cli", *map(str, words)]


def _shape(bench: Bench) -> list[Any]:
    tokens = bench.artifact.full.manifest.model.row_tokens(bench.config.training.tokens)
    return ["--tokens", tokens, "--batch", bench.config.training.batch]


def _remembered(bench: Bench, name: str, built: BuiltLevel, find: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What `find` finds, or found when all that it depends on was the same."""
    path, digest = bench.folder / f"{name}.json", _digest(bench, built)
    if path.is_file():
        record = json.loads(path.read_text("utf-8"))
        if record["of"] == digest:
            return record["found"]  # type: ignore[no-any-return]
    path.parent.mkdir(exist_ok=True)
    found = find()
    write_json(path, {"of": digest, "found": found})
    return found


def _digest(bench: Bench, built: BuiltLevel) -> str:
    """Of what is tuned, and how; what the level cost when it was built is no part of it."""
    manifest = encode_manifest(dataclasses.replace(built.manifest, costs=(), needs_bytes=0))
    how = [bench.split.digest, bench.budget, {**dataclasses.asdict(bench.config.training)}]
    return hashlib.sha256(manifest + json.dumps(how, default=str).encode()).hexdigest()


def _measured(artifact: Artifact, built: BuiltLevel, plain: Mapping[str, Any]) -> Measured:
    own = _blobs(built)
    others = {name: _blobs(one) for name, one in artifact.levels.items() if one is not built}
    return Measured(
        name=built.manifest.level.name,
        is_whole=len(built.manifest.level.layers) == built.manifest.model.layers,
        size_bytes=size_bytes(own),
        new_bytes={name: new_bytes(own, held) for name, held in others.items()},
        plans=spaced([PlanPoint(**plan) for plan in plain["plans"]]),
        tune=Tune(**plain["tune"]),
        quality=Quality(**plain["quality"]),
    )


def _blobs(built: BuiltLevel) -> frozenset[Blob]:
    """All that a device fetches of a level."""
    return frozenset([*built.manifest.files.values(), built.blob])
