"""Does what a device predicts hold? Random models, adapters, plans and budgets, each measured in a process of its own.

    python -m benchmarks.budgets [--cases 200] [--seed 0] [--check]

Two kinds of cases, in turn:

- `budget`: a task as a device does it, from its order to its delta (`edge_sdk.supervisor`), within a budget between
  what the leanest plan needs and four times that. Half of its rows are full, the others have any length.
- `plan`: two steps of full rows with a plan drawn from all there are, as `fedpeat-edge probe` runs one.

Predicted is what the process itself expects once it is loaded and knows what it holds at rest; measured is its VmHWM.
A task that was accepted and then failed counts as an overrun. `--check` exits 1 on any overrun, or when fewer than
95 % of the predictions are within 10 % of what was measured.

What is too much is drawn again: a step that would take more than 8 s, or 4 GB, by prediction.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import queue
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import assets, machine, shapes, studies
from edge_sdk.data import write_token_folder
from edge_sdk.engine.plan import Limits, Plan, leanest, planned, plans, predicted, way_of, with_process
from edge_sdk.order import WorkerOrder
from edge_sdk.probing import probe_steps
from edge_sdk.supervisor import Supervisor, WorkerEvent, WorkerFailed, WorkerFinished
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.manifest import Manifest, decode_manifest
from edge_sdk.wire.messages import OptimizerKind, Schedule, Task
from edge_sdk.wire.tensors import Array

RESULT = pathlib.Path(__file__).parent / "results" / "budgets.json"
STEPS = 2
TOKENS = (16, 512)
BATCH = (1, 8)
THREADS = (1, 2)
MOST_TIMES = 4.0  # what the leanest plan needs
MOST_MS, MOST_BYTES = 8_000.0, 4_000_000_000
NEAR, SHARE_NEAR = 0.1, 0.95
KINDS = ("budget", "plan")


@dataclass(frozen=True, slots=True)
class Member:
    """An artifact folder of the pool; `model` gives the model's folder, made when it is not there."""

    name: str
    model: Callable[[], pathlib.Path]
    labels: tuple[str, ...]
    rank: int
    targets: tuple[str, ...]
    levels: Sequence[Mapping[str, Any]]


EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POOL = (
    Member(
        "smollm2-r8",
        assets.smollm2,
        (),
        8,
        ("q_proj", "v_proj"),
        (
            {"name": "fp32", "bits": 32},
            {"name": "fp16", "bits": 16},
            {"name": "int8", "bits": 8},
            {"name": "int4", "bits": 4},
            {"name": "int8-last6", "bits": 8, "train_last": 6},
        ),
    ),
    Member(
        "smollm2-r32",
        assets.smollm2,
        (),
        32,
        EVERYWHERE,
        (
            {"name": "int8", "bits": 8},
            {"name": "int4-12layers-last4", "bits": 4, "layers": 12, "train_last": 4},
        ),
    ),
    Member(
        "smollm2-r4",
        assets.smollm2,
        (),
        4,
        ("q_proj", "v_proj"),
        (
            {"name": "fp32-6layers", "bits": 32, "layers": 6},
            {"name": "fp16-10layers-last1", "bits": 16, "layers": 10, "train_last": 1},
        ),
    ),
    Member(
        "minilm-r8",
        assets.minilm,
        studies.LABELS,
        8,
        ("query", "value"),
        ({"name": "fp32", "bits": 32}, {"name": "int8", "bits": 8}, {"name": "int8-last2", "bits": 8, "train_last": 2}),
    ),
    Member("gpt2-r8", lambda: shapes.model_of(shapes.GPT2), (), 8, (), ({"name": "fp16", "bits": 16}, shapes.INT8)),
)


def artifact_of(member: Member) -> pathlib.Path:
    """The member's levels as artifacts, in the cache folder; those of an earlier exporter or engine are deleted.

    Gradients are not compared with torch's: memory is what is looked at. Raises FetchError, and RuntimeError with the
    exporter's own words when the build fails.
    """
    request = studies.request_of(
        {
            "dir": str(member.model()),
            "task": "sequence-classification" if member.labels else "causal-lm",
            "labels": list(member.labels),
        },
        {"kind": "lora", "rank": member.rank, "alpha": 2 * member.rank, "targets": list(member.targets)},
        member.levels,
        studies.TOKENS,
        parity=False,
    )
    return studies.newest(f"budgets/{member.name}", request)


@dataclass(frozen=True, slots=True)
class Level:
    """An emulator level of the pool."""

    member: str
    path: pathlib.Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Case:
    """What is tried: a task within `budget_bytes`, or, where that is 0, steps with `plan`."""

    level: Level
    batch: int
    tokens: int
    threads: int
    budget_bytes: int
    plan: Plan

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return "budget" if self.budget_bytes else "plan"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: `failed` says why a task has no result, and is empty where it has."""

    predicted_bytes: int
    measured_bytes: int
    step_ms: float
    failed: str = ""

    @property
    def ratio(self) -> float:
        """Predicted to measured."""
        return self.predicted_bytes / self.measured_bytes if self.measured_bytes else 0.0

    @property
    def near(self) -> bool:
        """Whether the prediction is within 10 % of what was measured."""
        return abs(self.predicted_bytes - self.measured_bytes) <= NEAR * self.measured_bytes


def overrun(case: Case, outcome: Outcome) -> bool:
    """Whether a device would not have had its task done within its budget; a plan alone has none to exceed."""
    return bool(case.budget_bytes) and (bool(outcome.failed) or outcome.measured_bytes > case.budget_bytes)


def levels_in(folder: pathlib.Path, member: str) -> list[Level]:
    """The levels of an artifact folder, by name."""
    return [Level(member, path, decode_manifest(path.read_bytes())) for path in sorted(folder.glob("*.manifest"))]


def cases(levels: Sequence[Level], count: int, seed: int) -> Iterator[Case]:
    """So many cases, the kinds in turn; the same ones for the same levels and seed."""
    dice = random.Random(seed)  # noqa: S311 - a fixed order, not a secret
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        case = _drawn(levels, kind, dice)
        while case.plan.step_ms > MOST_MS or case.plan.peak_bytes > MOST_BYTES:
            case = _drawn(levels, kind, dice)
        yield case


def _drawn(levels: Sequence[Level], kind: str, dice: random.Random) -> Case:
    level = dice.choice(levels)
    batch = dice.randint(*BATCH)
    tokens = dice.randint(TOKENS[0], min(TOKENS[1], level.manifest.model.max_tokens))
    return (budget_case if kind == "budget" else plan_case)(level, batch, tokens, dice)


def budget_case(level: Level, batch: int, tokens: int, dice: random.Random) -> Case:
    """A task of that shape with any budget that its leanest plan fits, small ones as likely as large ones."""
    needed_bytes = leanest(plans(level.manifest, batch, tokens, 0.0)).peak_bytes
    budget_bytes, threads = math.ceil(needed_bytes * MOST_TIMES ** dice.random()), dice.choice(THREADS)
    plan = planned(level.manifest, Limits(batch, tokens, budget_bytes, threads))
    return Case(level, batch, tokens, threads, budget_bytes, plan)


def plan_case(level: Level, batch: int, tokens: int, dice: random.Random) -> Case:
    """Steps of that shape with any plan, any number of segments resident."""
    plan = dice.choice(list(plans(level.manifest, batch, tokens, 0.0)))
    plan = dataclasses.replace(plan, resident=dice.randrange(len(level.manifest.walk)))
    return Case(level, batch, tokens, dice.choice(THREADS), 0, predicted(level.manifest, batch, tokens, plan))


def outcome_of(case: Case) -> Outcome:
    """Try it, in processes of their own."""
    return _task(case) if case.budget_bytes else _steps(case)


def _steps(case: Case) -> Outcome:
    found = probe_steps(case.level.path, case.plan, case.tokens, case.batch, STEPS - 1, case.threads)
    manifest = with_process(case.level.manifest, found["rest_bytes"])
    arenas = {way_of(manifest, case.plan): found["arena_bytes"]}
    expected = predicted(manifest, case.batch, case.tokens, case.plan, arenas=arenas)
    return Outcome(expected.peak_bytes, found["peak_bytes"], found["step_ms"])


def _task(case: Case) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        events: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        Supervisor(events.put).start(_order(case, pathlib.Path(name)))
        while True:
            match events.get():
                case WorkerFinished(report=report):
                    return Outcome(report.predicted_bytes, report.peak_bytes, report.step_ms)
                case WorkerFailed(peak_bytes=peak_bytes, detail=detail):
                    return Outcome(0, peak_bytes, 0.0, detail)


def _order(case: Case, folder: pathlib.Path) -> WorkerOrder:
    """The task as an agent orders it, with private rows in `folder` and the level's own folder as its store."""
    manifest, store = case.level.manifest, BlobStore(case.level.path.parent)
    rows, random_ids = row_lengths(case.batch, case.tokens), np.random.default_rng(0)
    ids = random_ids.integers(0, manifest.model.vocabulary, (len(rows), case.tokens))
    labels = random_ids.integers(0, len(manifest.model.labels), len(rows)) if manifest.model.labels else None
    write_token_folder(folder / "tokens", ids, rows, labels)
    task = Task(
        task_id="case",
        round=0,
        artifact=store.put(case.level.path.read_bytes()),
        adapter=manifest.files[manifest.adapter.initial],
        steps=STEPS,
        batch=case.batch,
        tokens=case.tokens,
        optimizer=OptimizerKind.ADAMW,
        learning_rate=1e-4,
        weight_decay=0.0,
        schedule=Schedule.CONSTANT,
        warmup_steps=0,
        clip_norm=1.0,
        seed=0,
        freeze=(),
        deadline_s=0.0,
    )
    return WorkerOrder(
        device="case",
        task=task,
        store=str(store.folder),
        data=str(folder / "tokens"),
        delta=str(folder / "delta"),
        prepare=(),
        budget_bytes=case.budget_bytes,
        correction=1.0,
        threads=case.threads,
        held_aside_rows=1,
    )


def row_lengths(batch: int, tokens: int) -> Array:
    """Lengths of the rows for so many steps, and of one row held aside: every second one full, the others of any."""
    lengths = np.random.default_rng(0).integers(2, tokens + 1, STEPS * batch + 1)
    lengths[::2] = tokens
    return lengths


def record(case: Case, outcome: Outcome) -> dict[str, Any]:
    """The case as it is kept."""
    drawn = {"kind": case.kind, "member": case.level.member, "level": case.level.manifest.level.name}
    drawn |= {name: getattr(case, name) for name in ("batch", "tokens", "threads", "budget_bytes")}
    found = {"ratio": round(outcome.ratio, 4), "near": outcome.near, "overrun": overrun(case, outcome)}
    return {**drawn, "plan": dataclasses.asdict(case.plan), **dataclasses.asdict(outcome), **found}


def said(row: Mapping[str, Any]) -> str:
    """What came of a case, for who waits."""
    verdict = "overrun" if row["overrun"] else "near" if row["near"] else "off"
    return f"{row['predicted_bytes'] / 1e6:.0f} / {row['measured_bytes'] / 1e6:.0f} MB  {row['ratio']:.2f}  {verdict}"


def summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind, by member and level, and of all: how many cases, overruns, the share near, the extreme ratios."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for name in (row["kind"], f"{row['member']} {row['level']}", "all"):
            groups.setdefault(name, []).append(row)
    order = [*KINDS, *sorted(groups.keys() - {*KINDS, "all"}), "all"]
    return {name: _summary(groups[name]) for name in order if name in groups}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratios = [row["ratio"] for row in rows if not row["failed"]]
    return {
        "cases": len(rows),
        "overruns": sum(row["overrun"] for row in rows),
        "share_near": sum(row["near"] for row in rows) / len(rows),
        "lowest_ratio": min(ratios, default=0.0),
        "highest_ratio": max(ratios, default=0.0),
    }


def show(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """The table."""
    table = Table(title="Predicted to measured peak memory of a step")
    table.add_column("cases")
    for heading in ("number", "overruns", f"within {NEAR:.0%}", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for name, row in found.items():
        numbers = (f"{row['share_near']:.0%}", f"{row['lowest_ratio']:.2f}", f"{row['highest_ratio']:.2f}")
        table.add_row(name, str(row["cases"]), str(row["overruns"]), *numbers, end_section=name == KINDS[-1])
    console.print(table)


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Predicted against measured, with the diagonal and 10 % to both sides."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    for member in sorted({row["member"] for row in rows}):
        for kind, marker in zip(KINDS, "ox", strict=True):
            points = [row for row in rows if (row["member"], row["kind"]) == (member, kind) and not row["failed"]]
            measured, expected = ([row[f"{key}_bytes"] / 1e6 for row in points] for key in ("measured", "predicted"))
            axes.scatter(measured, expected, s=18, marker=marker, label=f"{member}, {kind}")
    ends = np.array(axes.get_xlim())
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(ends, ends * (1 - NEAR), ends * (1 + NEAR), color="black", alpha=0.1, linewidth=0)
    axes.set(title="Peak memory of a training step", xlabel="measured, MB", ylabel="predicted, MB")
    axes.set(xscale="log", yscale="log")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def measure(count: int, seed: int, console: Console) -> list[dict[str, Any]]:
    """The pool, and every case of it."""
    levels = [level for member in POOL for level in levels_in(artifact_of(member), member.name)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows = []
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=count)
        for case in cases(levels, count, seed):
            name = f"{case.level.member} {case.level.manifest.level.name}, {case.batch} x {case.tokens}, {case.kind}"
            progress.update(bar, description=name)
            rows.append(record(case, outcome_of(case)))
            progress.console.print(f"{len(rows):4}  {said(rows[-1]):28}  {name}")
            progress.advance(bar)
    return rows


def main() -> int:
    """Draw, measure, show, keep; 1 when `--check` finds a promise broken."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 on an overrun, or when too few are near")
    parser.add_argument("--out", type=pathlib.Path, default=RESULT, help="the JSON; a plot goes beside it")
    arguments = parser.parse_args()
    console = Console()

    rows = measure(arguments.cases, arguments.seed, console)
    found = summaries(rows)
    show(found, console)
    held = not found["all"]["overruns"] and found["all"]["share_near"] >= SHARE_NEAR
    console.print(f"no overrun, {SHARE_NEAR:.0%} within {NEAR:.0%}: {'held' if held else 'MISSED'}")
    command = " ".join(["python -m benchmarks.budgets", *sys.argv[1:]])
    kept = {"command": command, "machine": machine.machine(), "seed": arguments.seed, "summaries": found}
    machine.write_json(arguments.out, {**kept, "cases": rows})
    draw(rows, arguments.out.with_suffix(".png"))
    return int(arguments.check and not held)


if __name__ == "__main__":
    sys.exit(main())
