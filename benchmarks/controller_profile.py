"""The profile that the controller is trained on by default: a ladder of SmolLM2-135M, measured, and its learning curve.

    python -m benchmarks.controller_profile

Levels are SmolLM2's on speeches, measured by `fedpeat ladder` (see `benchmarks.ladders`): what they are made of, what
they need and the bytes of a delta are in the manifests that it exported, the time of a step is its fastest plan's, and
quality the share of the gap that it closed. The curve is the one of `benchmarks.controller_runs` for speeches.

Writes benchmarks/results/controller-ladder.json, as docs/ladder.md describes it, and the profile that is shipped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks import ladders
from benchmarks.ladders import Subject
from benchmarks.machine import machine, write_json
from coordinator.builder import BuiltLevel
from coordinator.controller import learning
from coordinator.controller.profile import CODECS, DEFAULT, Profile, as_plain
from coordinator.policy.types import Level
from edge_sdk.wire.blobs import blob_of_file
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.manifest import decode_manifest

RESULTS: Final = pathlib.Path(__file__).parent / "results"
NAME: Final = "controller"
SEED: Final = 0
TURNS, TURN_STEPS = 4, 8
STEPS: Final = 10  # of a task
LEVELS: Final[tuple[Mapping[str, Any], ...]] = (  # best first
    {"name": "fp32"},
    {"name": "int8", "bits": 8},
    {"name": "int4", "bits": 4, "refit": "least-squares"},
    {"name": "half", "layers": 15, "drop": "importance", "refit": "least-squares"},
    {"name": "int8-last6", "bits": 8, "train_last": 6},
)
SOURCE: Final = (
    "levels: SmolLM2-135M on speeches, benchmarks/results/controller-ladder.json (step_s; quality: gap_closed, "
    "at most 1) and the manifests of that export (bytes, needs_bytes); "
    "curve: benchmarks/results/controller-runs.json, speeches"
)


def main() -> int:
    """Measure what is not measured yet, and write; the exit status."""
    exit_on_terminate()
    subject = ladders.speeches()
    ladder = ladders.ladder(subject, LEVELS, SEED, NAME, keep=True)
    artifact = ladders.place(subject, SEED, NAME) / "artifact"
    names = [one["name"] for one in ladder["levels"]]
    steps = fastest_steps_s(subject, artifact, names)
    measured = {"machine": machine(), "step_s": steps, "turns": TURNS, **without_places(ladder)}
    write_json(RESULTS / "controller-ladder.json", measured)
    runs = json.loads((RESULTS / "controller-runs.json").read_text("utf-8"))
    curve = learning.from_plain(runs["curves"]["speeches"]["curve"])
    built = {name: built_level(artifact / f"{name}.manifest") for name in names}
    shape = (subject.training["batch"], subject.training["tokens"])
    levels = tuple(level_of(built[one["name"]], shape, one, steps[one["name"]]) for one in ladder["levels"])
    whole = built[names[0]].manifest
    adapter_bytes = whole.files[whole.adapter.initial].size_bytes
    profile = Profile(levels, curve, STEPS, adapter_bytes, CODECS, SOURCE)
    write_json(DEFAULT, as_plain(profile))
    for level in levels:
        print(f"{level.name:12}{level.size_bytes:12,} B, needs {level.needs_bytes / 1e6:.0f} MB, {level.step_s:.3f} s")
    return 0


def fastest_steps_s(subject: Subject, artifact: pathlib.Path, names: Sequence[str]) -> dict[str, float]:
    """By level the fastest step of several tunes, each level in turn: what else this machine does slows the others."""
    found = dict.fromkeys(names, math.inf)
    rows = ladders.place(subject, SEED, NAME) / "split" / "tune"
    with tempfile.TemporaryDirectory() as folder:
        for name in [*names] * TURNS:
            words = ["train", artifact / f"{name}.manifest", "--data", rows, "--budget", ladders.BUDGET, "--json"]
            words += ["--steps", TURN_STEPS, "--tokens", subject.training["tokens"]]
            words += ["--out", pathlib.Path(folder, f"{name}.safetensors")]
            command = [sys.executable, "-m", "edge_sdk.cli", *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            found[name] = min(found[name], *(line["time_ms"] / 1e3 for line in lines if "time_ms" in line))
    return found


def built_level(path: pathlib.Path) -> BuiltLevel:
    """A level, from its manifest alone."""
    return BuiltLevel(decode_manifest(path.read_bytes()), blob_of_file(path), path)


def level_of(built: BuiltLevel, shape: tuple[int, int], measured: Mapping[str, Any], step_s: float) -> Level:
    """As the daemon describes it to a policy, for steps of this shape, with what was measured."""
    quality = min(max(measured["gap_closed"], 0.0), 1.0)
    return dataclasses.replace(built.level(*shape, quality), step_s=step_s)


def without_places(ladder: Mapping[str, Any]) -> dict[str, Any]:
    """Without the model's folder, which is this machine's."""
    return {key: value for key, value in ladder.items() if key != "model"}


if __name__ == "__main__":
    sys.exit(main())
