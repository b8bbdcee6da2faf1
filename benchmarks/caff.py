"""CAFF's claim on measured memory: does training whole layers beat LoRA where memory, time or bytes are short?

    python -m benchmarks.caff [--quick] [--check] [--seeds 3]

K. Pfeiffer et al., Efficient Federated Finetuning of Tiny Transformers with Resource-Constrained Devices (arXiv
2411.07826) say that it does where memory or computation is limited, and that LoRA is on par where communication is.
Their memory is a sum of weights, optimizer state and activations. Ours is the resident peak of a device's process,
measured, with weights streamed and activations computed again where there is no room for them.

ViT-S/14 on Fashion-MNIST, images of 28 x 28; 16 devices, 4 drawn for each round, labels dealt out by Dirichlet(1).

    layers        the last blocks, whole; CAFF's policy chooses how many
    lora          LoRA of rank 8 on q and v of the last blocks; the same policy chooses how many
    lora-ranks    LoRA on every matrix of all blocks, of rank 64, 32, 16, 8 or 4: the highest that fits

In `homogeneous` each device has just the memory to train two whole blocks, in `heterogeneous` devices have that of one,
two, three or four, in `scarce` just that of LoRA in all blocks. Methods have the same budgets: that is equal memory. A
round takes its slowest device's time, from a step's as processes with that level and budget were measured to take it:
the fastest of three, for a machine is never quite idle. Accuracy at equal time, and at equal bytes, is that of the last
adapter that was there when the method that takes least of it was through. Bytes are as serialised, down and up.

Beside it: what a level takes by the sum, as CAFF counts, and measured, for small images and for large ones. `--check`
exits 1 when a measured peak is above its budget, or when no method learns in a scene.

Writes benchmarks/results/caff.json and .png; with --quick, benchmarks/results/caff-quick.json and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import fleet, machine, studies, vision
from benchmarks.vision import DataSet
from edge_sdk.data import write_image_folder
from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.plan import FLOAT_BYTES, Limits, Plan, leanest, planned, plans
from edge_sdk.probing import probe_steps
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.manifest import Manifest
from export.cache import cache_folder

RESULTS: Final = pathlib.Path(__file__).parent / "results"
WIDTH: Final = 120  # of tables where there is no terminal
SIDE, LARGE, BATCH = 28, 224, 16
DEVICES, PARTICIPANTS, ALPHA = 16, 4, 1.0
ROOM: Final = 1.03  # beside what the exporter expects: a level that just fits one day must not be declined the next
STEPS_TIMED, TIMES = 8, 3
FLOAT_BITS: Final = 32
ADAM: Final = 3  # numbers beside each that trains: its gradient and two moments

Tables = tuple[Mapping[str, Any], tuple[Mapping[str, Any], ...]]  # `[adapter]`, and `[[levels]]` from the best


def _last(count: int) -> dict[str, Any]:
    return {"name": f"last{count}", "bits": 32, "train_last": count}


def _whole(blocks: Sequence[int]) -> Tables:
    most = max(*blocks, 1)
    return {"kind": "layers", "last": most}, tuple(_last(k) for k in range(most, 0, -1))


LORA: Final = {"kind": "lora", "rank": 8, "alpha": 16}
MATRICES: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
LAST: Final = tuple(map(_last, (12, 8, 4, 2, 1)))
RANKS: Final = tuple({"name": f"rank{rank}", "bits": 32, "rank": rank} for rank in (64, 32, 16, 8, 4))
NARROW: Final = {"name": "ffn25", "bits": 32, "ffn": 0.25}


@dataclass(frozen=True, slots=True)
class Method:
    """What trains, where so many whole blocks fit the devices in turn; the policy that chooses; AdamW's rate."""

    tables: Callable[[Sequence[int]], Tables]
    policy: str
    learning_rate: float


# The rate of whole layers is the better of two, LoRA's are not tuned: see docs/results/caff.md.
METHODS: Final[Mapping[str, Method]] = {
    "layers": Method(_whole, "caff", 3e-4),
    "lora": Method(lambda _: (LORA, LAST), "caff", 2e-3),
    "lora-ranks": Method(
        lambda _: ({"kind": "lora", "rank": 64, "alpha": 128, "targets": MATRICES}, RANKS), "largest-that-fits", 1e-3
    ),
}
# How many whole blocks the budgets of devices in turn are for; 0: LoRA in all blocks fits, and no whole block.
SCENES: Final[Mapping[str, tuple[int, ...]]] = {"homogeneous": (2,), "heterogeneous": (1, 2, 3, 4), "scarce": (0,)}
# What is summed up and measured for images of several sizes.
COMPARED: Final[Mapping[str, Tables]] = {
    "layers": ({"kind": "layers", "last": 2}, (_last(2),)),
    "lora": (LORA, (_last(12), _last(2), NARROW)),
}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done; adapters are tested `every` so many rounds on `test` images; `sides` of images compared."""

    scenes: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    steps: int
    every: int
    train: int
    test: int
    sides: tuple[int, ...]


FULL: Final = Effort(tuple(SCENES), (0, 1, 2), 6, 12, 1, 6_400, 400, (SIDE, LARGE))
QUICK: Final = Effort(("homogeneous",), (0,), 4, 8, 1, 3_200, 200, ())


@dataclass(frozen=True, slots=True)
class Given:
    """A task's level, and the budget of the device that had it. The manifest is at `path`."""

    path: pathlib.Path
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Played:
    """A run, before it is known what its tasks take. Without a point nobody could take part."""

    scene: str
    method: str
    seed: int
    rounds: tuple[tuple[Given, ...], ...]
    points: tuple[fleet.Point, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a process with a level and a budget was measured to take."""

    peak_bytes: int
    step_ms: float


@dataclass(frozen=True, slots=True)
class Level:
    """How often devices with this budget were given a level, and what that takes."""

    name: str
    budget_bytes: int
    tasks: int
    peak_bytes: int
    step_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run and what it took; `seconds` has the time on devices up to each of the points."""

    scene: str
    method: str
    seed: int
    levels: tuple[Level, ...]
    points: tuple[fleet.Point, ...]
    seconds: tuple[float, ...]

    def within(self, spent: Callable[[Outcome, int], float], limit: float) -> float | None:
        """Accuracy of the last adapter that cost no more; None where there is none."""
        found = [point.accuracy for k, point in enumerate(self.points) if spent(self, k) <= limit]
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Need:
    """What a step of 16 images of `side` takes at a level: CAFF's sum, the leanest plan's peak, the fastest plan's."""

    side: int
    method: str
    level: str
    parameters: int
    sum_bytes: int
    leanest: Taken
    fastest: Taken


def seconds(outcome: Outcome, k: int) -> float:
    """Time on devices."""
    return outcome.seconds[k]


def wire_bytes(outcome: Outcome, k: int) -> float:
    """Bytes, down and up."""
    return outcome.points[k].down_bytes + outcome.points[k].up_bytes


AXES: Final = {"time": seconds, "bytes": wire_bytes}
SHOWN: Final = (("time on devices, s", seconds, 1.0), ("MB down and up, all devices", wire_bytes, 1e6))


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all of it; the exit status."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caff", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one scene, one seed, few rounds")
    parser.add_argument("--check", action="store_true", help="exit 1 unless budgets hold and something is learned")
    parser.add_argument("--seeds", type=int, help="how many; 3 by default, 1 with --quick")
    asked = parser.parse_args(arguments)
    effort, name = (QUICK, "caff-quick") if asked.quick else (FULL, "caff")
    if asked.seeds is not None:
        effort = dataclasses.replace(effort, seeds=tuple(range(max(asked.seeds, 1))))
    console, data = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False), vision.fashion(SIDE)
    played = []
    for scene in effort.scenes:
        for method in METHODS:
            for seed in effort.seeds:
                played.append(play(data, scene, method, seed, effort))
                console.print(line_of(played[-1]))
    taken = {
        given: measured(given) for given in sorted({g for one in played for row in one.rounds for g in row}, key=str)
    }
    outcomes = [priced(one, taken, effort.steps) for one in played]
    needs = [need for side in effort.sides for need in needs_of(side)]
    found = {
        "machine": machine.machine(),
        "effort": dataclasses.asdict(effort),
        "needs": [dataclasses.asdict(need) for need in needs],
        "runs": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    machine.write_json(RESULTS / f"{name}.json", found)
    draw(outcomes, RESULTS / f"{name}.png")
    console.print(table_of(outcomes))
    if needs:
        console.print(table_of_needs(needs))
    broken = complaints(outcomes)
    for complaint in broken:
        console.print(f"FAIL {complaint}", style="red")
    return int(asked.check and bool(broken))


def model_of(side: int) -> dict[str, Any]:
    """The coordinator's `[model]` table. Raises FetchError."""
    return {"dir": str(vision.vit(side)), "task": "image-classification", "labels": list(vision.FASHION_LABELS)}


def artifact_of(name: str, side: int, tables: Tables) -> pathlib.Path:
    """The levels, built once."""
    return studies.newest(f"caff/{name}", studies.request_of(model_of(side), *tables, 1, parity=False))


def artifact_for(method: str, scene: str) -> pathlib.Path:
    """The method's levels in a scene."""
    tables = METHODS[method].tables(SCENES[scene])
    return artifact_of(f"{method}-{tables[0].get('last', 'all')}", SIDE, tables)


def budgets_of(scene: str) -> list[int]:
    """What devices in turn have, in bytes."""
    found = []
    for blocks in SCENES[scene]:
        method, level = ("layers", f"last{blocks}") if blocks else ("lora", LAST[0]["name"])
        manifest = open_artifact(artifact_for(method, scene) / f"{level}.manifest").manifest
        found.append(round(ROOM * leanest(plans(manifest, BATCH, manifest.model.max_tokens)).peak_bytes))
    return found


def play(data: DataSet, scene: str, method: str, seed: int, effort: Effort) -> Played:
    """One run, from the dealing out to the last test."""
    budgets, engine = budgets_of(scene), fleet.Engine(artifact_for(method, scene))
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        dealt = vision.deal(data.train.some(effort.train, seed), DEVICES, ALPHA, seed, folder / "data")
        members = [dataclasses.replace(one, budget_bytes=budgets[k % len(budgets)]) for k, one in enumerate(dealt)]
        budget_of = {member.name: member.budget_bytes for member in members}
        test = data.test.some(effort.test, 0)
        write_image_folder(folder / "test", test.pixels, test.labels)
        try:
            run = fleet.play(table(scene, method, seed, effort), members, engine, folder)
            points = fleet.curve(run, engine, folder / "test", effort.every)
        except fleet.Unfinished:  # no level of this method fits anybody here
            return Played(scene, method, seed, (), ())
        finally:
            engine.close()
        rounds = [
            tuple(Given(engine.folder / f"{row.level}.manifest", budget_of[row.device]) for row in run.used(version))
            for version in range(1, effort.rounds + 1)
        ]
    return Played(scene, method, seed, tuple(rounds), points)


def table(scene: str, method: str, seed: int, effort: Effort) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    one = METHODS[method]
    adapter, levels = one.tables(SCENES[scene])
    return {
        "name": f"caff-{scene}-{method}-{seed}",
        "model": model_of(SIDE),
        "adapter": adapter,
        "levels": levels,
        "rounds": {
            "count": effort.rounds,
            "devices": DEVICES,
            "min_devices": DEVICES,
            "participants": PARTICIPANTS,
            "deadline_s": 36_000,
        },
        "training": {"steps": effort.steps, "batch": BATCH, "learning_rate": one.learning_rate, "seed": seed},
        "policy": {"name": one.policy},
    }


def measured(given: Given) -> Taken:
    """Steps of the plan that a device with this budget follows, in processes of their own."""
    manifest = open_artifact(given.path).manifest
    plan = planned(manifest, Limits(BATCH, manifest.model.max_tokens, given.budget_bytes, 1))
    return taken_by(given.path, manifest, plan, STEPS_TIMED, TIMES)


def taken_by(path: pathlib.Path, manifest: Manifest, plan: Plan, steps: int, times: int) -> Taken:
    """The highest peak and the fastest median step of some processes."""
    found = [probe_steps(path, plan, manifest.model.max_tokens, BATCH, steps, 1) for _ in range(times)]
    return Taken(max(one["peak_bytes"] for one in found), min(one["step_ms"] for one in found))


def priced(one: Played, taken: Mapping[Given, Taken], steps: int) -> Outcome:
    """A run with what its tasks take; a round of `steps` is as long as its slowest device's."""
    everything = [given for row in one.rounds for given in row]
    levels = [
        Level(given.path.stem, given.budget_bytes, everything.count(given), *dataclasses.astuple(taken[given]))
        for given in dict.fromkeys(everything)
    ]
    rounds_s = [max(steps * taken[given].step_ms / 1e3 for given in row) for row in one.rounds]
    at_points = tuple(math.fsum(rounds_s[: point.round]) for point in one.points)
    return Outcome(one.scene, one.method, one.seed, tuple(levels), one.points, at_points)


def needs_of(side: int) -> list[Need]:
    """What levels take for images of that size."""
    found = []
    for method, tables in COMPARED.items():
        folder = artifact_of(f"compared-{side}-{method}", side, tables)
        for level in tables[1]:
            path = folder / f"{level['name']}.manifest"
            manifest = open_artifact(path).manifest
            every = list(plans(manifest, BATCH, manifest.model.max_tokens))
            fastest = min(every, key=lambda plan: (plan.step_ms, plan.peak_bytes))
            both = (taken_by(path, manifest, plan, 2, 1) for plan in (leanest(every), fastest))
            parameters = sum(map(math.prod, manifest.trained_shapes().values()))
            found.append(Need(side, method, level["name"], parameters, by_sum(manifest), *both))
    return found


def by_sum(manifest: Manifest) -> int:
    """A step's memory as CAFF counts it: weights, the optimizer's state, gradients, activations; nothing else."""
    tensors = {segment.tensors for segment in manifest.walk} | {manifest.adapter.initial}
    weights_bytes = sum(manifest.files[name].size_bytes for name in tensors)
    trained = sum(map(math.prod, manifest.trained_shapes().values()))
    keepings = [keeping for s in manifest.walked_back() for keeping in manifest.structures[s.structure].keepings]
    activations = BATCH * manifest.model.max_tokens * sum(k.floats for k in keepings if k.bits == FLOAT_BITS)
    return weights_bytes + FLOAT_BYTES * (ADAM * trained + activations)


def line_of(played: Played) -> str:
    """A run that is over, in a line."""
    accuracies = " ".join(f"{point.accuracy:.3f}" for point in played.points) or "nobody could take part"
    names = dict.fromkeys(given.path.stem for row in played.rounds for given in row)
    return f"{played.scene} {played.method} seed {played.seed}: accuracy {accuracies}; {', '.join(names)}"


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """A line for each scene and method, means over seeds."""
    table = Table(title="accuracy on test images", title_justify="left")
    for heading in ("scene", "method", "levels", "budget MB", "peak MB", "s a round", "MB a round"):
        table.add_column(heading, justify="left" if heading in {"scene", "method", "levels"} else "right")
    for heading in ("same rounds", "same time", "same bytes"):
        table.add_column(heading, justify="right")
    for scene in dict.fromkeys(outcome.scene for outcome in outcomes):
        here = [outcome for outcome in outcomes if outcome.scene == scene and outcome.points]
        limits = {axis: min(spent(one, -1) for one in here) for axis, spent in AXES.items()}
        for method in METHODS:
            same = [outcome for outcome in here if outcome.method == method]
            if not same:
                table.add_row(scene, method, "fits nobody", *["-"] * 7)
                continue
            levels = [level for one in same for level in one.levels]
            table.add_row(
                scene,
                method,
                " ".join(sorted({level.name for level in levels}, key=lambda name: (len(name), name))),
                _range([level.budget_bytes for level in levels]),
                _range([level.peak_bytes for level in levels]),
                f"{statistics.mean(one.seconds[-1] / one.points[-1].round for one in same):.1f}",
                f"{statistics.mean(wire_bytes(one, -1) / one.points[-1].round for one in same) / 1e6:.1f}",
                _spread([one.points[-1].accuracy for one in same]),
                *(_spread([one.within(spent, limits[axis]) for one in same]) for axis, spent in AXES.items()),
            )
    return table


def table_of_needs(needs: Sequence[Need]) -> Table:
    """A line for each level and size of image."""
    table = Table(title=f"memory of a step of {BATCH} images, MB", title_justify="left")
    for heading in ("image", "method", "level", "parameters", "by the sum", "leanest plan", "fastest plan"):
        table.add_column(heading, justify="left" if heading in {"image", "method", "level"} else "right")
    for one in needs:
        numbers = (one.sum_bytes, one.leanest.peak_bytes, one.fastest.peak_bytes)
        megabytes = (f"{number / 1e6:.0f}" for number in numbers)
        table.add_row(f"{one.side} x {one.side}", one.method, one.level, f"{one.parameters:,}", *megabytes)
    return table


def _range(sizes_bytes: Sequence[int]) -> str:
    least, most = (f"{size / 1e6:.0f}" for size in (min(sizes_bytes), max(sizes_bytes)))
    return least if least == most else f"{least}-{most}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{deviation}" if known else "-"


def complaints(outcomes: Sequence[Outcome]) -> list[str]:
    """What `--check` does not let pass."""
    found = [
        f"{one.scene}, {one.method}: {level.name} took {level.peak_bytes} of {level.budget_bytes} bytes"
        for one in outcomes
        for level in one.levels
        if level.peak_bytes > level.budget_bytes
    ]
    for scene in dict.fromkeys(outcome.scene for outcome in outcomes):
        here = [one for one in outcomes if one.scene == scene and one.points]
        if not any(one.points[-1].loss < one.points[0].loss for one in here):
            found.append(f"{scene}: no method learns")
    return found


def draw(outcomes: Sequence[Outcome], path: pathlib.Path) -> None:
    """Accuracy against time on devices above, against bytes below, means of the seeds; a column a scene."""
    from matplotlib.figure import Figure

    scenes = list(dict.fromkeys(outcome.scene for outcome in outcomes))
    figure = Figure(figsize=(5 * len(scenes), 7), layout="constrained")
    panels = figure.subplots(2, len(scenes), squeeze=False)
    for column, scene in enumerate(scenes):
        for (axis, spent, scale), axes in zip(SHOWN, panels[:, column], strict=True):
            for method in METHODS:
                same = [one for one in outcomes if (one.scene, one.method) == (scene, method) and one.points]
                if same:
                    points = range(len(same[0].points))
                    xs = [statistics.mean(spent(one, k) for one in same) / scale for k in points]
                    ys = [statistics.mean(one.points[k].accuracy for one in same) for k in points]
                    axes.plot(xs, ys, marker="o", label=method)
            axes.set(title=scene, xlabel=axis, ylabel="accuracy on test images")
            axes.grid(visible=True, alpha=0.2)
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
