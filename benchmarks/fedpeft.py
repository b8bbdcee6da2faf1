"""FedPEFT's table: accuracy against the bytes that crossed the wire, by what the devices train.

    python -m benchmarks.fedpeft [--quick] [--check] [--kinds head,bias,...] [--seeds 0,1]

The setting of G. Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation Models in Federated
Learning (arXiv 2210.01708): 64 devices of which 8 are drawn for each round, labels dealt out by Dirichlet(0.1), a ViT;
with Fashion-MNIST and pictures of fabric, on ViT-S/14 and images small enough for two cores. Each run is the real
coordinator and 64 real agents in this process (`benchmarks.fleet`), in fp32. Bytes are of blobs as serialised, down to
and up from all devices together: adapters and deltas. What a device holds before its first round, the model and the
adapter's starting values, is not in them.

Runs that are over are kept in the cache folder, and not played again while settings, exporter and engine are the same.

A seed deals out the data, draws the devices and orders the rows; the classifier begins the same way for all. Accuracy
is that of the last round's adapter on test images; its best round's is beside it. `--check` exits 1 unless every kind
learns, and every delta takes the bytes of its numbers and no more than 5 % beside them.

Writes benchmarks/results/fedpeft.json and .png; with --quick, benchmarks/results/fedpeft-quick.json and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import fleet, machine, studies, vision, vit_base
from benchmarks.compression import listed, numbers
from benchmarks.vision import DataSet
from edge_sdk.data import write_image_folder
from edge_sdk.wire.lifeline import exit_on_terminate
from export.cache import cache_folder

RESULTS: Final = pathlib.Path(__file__).parent / "results"
LEVEL: Final = {"name": "fp32", "bits": 32}
ALPHA: Final = 0.1
WIDTH: Final = 120  # of tables where there is no terminal
TOKENS: Final = 1  # images are as many as their model makes of them
BESIDE_NUMBERS: Final = 1.05  # names, shapes and keys of a delta; the biases' tensors are small (2.3 %, measured)


@dataclass(frozen=True, slots=True)
class Kind:
    """What trains, as the coordinator's configuration says it, and AdamW's rate for it."""

    adapter: Mapping[str, Any]
    learning_rate: float


# A line here is a line of the table. As in FedPEFT the bottleneck has an eighth of the model's width, and each block
# ten prompts; the rates are not tuned.
KINDS: Final[Mapping[str, Kind]] = {
    "full": Kind({"kind": "full"}, 1e-4),
    "head": Kind({"kind": "head"}, 3e-3),
    "bias": Kind({"kind": "bias"}, 3e-3),
    "adapter": Kind({"kind": "bottleneck", "rank": 48}, 1e-3),
    "prompt": Kind({"kind": "prompt", "length": 10}, 1e-2),
    "lora": Kind({"kind": "lora", "rank": 8, "alpha": 16}, 2e-3),
}
DATA: Final[Mapping[str, Callable[[int], DataSet]]] = {"fashion-mnist": vision.fashion, "textile": vision.textile}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: `side` of the images in pixels, `evaluate` every so many rounds, `test` images."""

    data: tuple[str, ...]
    seeds: tuple[int, ...]
    side: int
    rounds: int
    evaluate: int
    steps: int
    batch: int
    train: int
    test: int
    devices: int = 64
    participants: int = 8


FULL: Final = Effort(("fashion-mnist", "textile"), (0, 1, 2), 28, 12, 3, 8, 16, 12_800, 1_000)
QUICK: Final = Effort(("fashion-mnist",), (0,), 28, 6, 3, 4, 16, 6_400, 500)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `parameters` train; a delta has `delta_bytes`; `wall_s` is that of the rounds, not of the tests."""

    data: str
    kind: str
    seed: int
    parameters: int
    delta_bytes: int
    wall_s: float
    points: tuple[fleet.Point, ...]

    @property
    def last(self) -> float:
        """The accuracy after the last round."""
        return self.points[-1].accuracy

    @property
    def best(self) -> float:
        """The accuracy after the best round: as the paper says it, which picks the round by the test images."""
        return max(point.accuracy for point in self.points)

    @property
    def learned(self) -> float:
        """By how much accuracy grew."""
        return self.last - self.points[0].accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all of it; the exit status."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fedpeft", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one data set, one seed, few rounds")
    parser.add_argument("--check", action="store_true", help="exit 1 unless every kind learns and sends what it should")
    parser.add_argument("--kinds", type=_kinds, default=tuple(KINDS), help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seeds", type=numbers, default=(), metavar="N,...", help="of those that there are; all")
    asked = parser.parse_args(arguments)
    effort = QUICK if asked.quick else FULL
    if unknown := sorted({*asked.seeds} - {*effort.seeds}):
        parser.error(f"there is no seed {listed(unknown)}; there are {listed(effort.seeds)}")
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    data = {name: DATA[name](effort.side) for name in effort.data}
    outcomes = []
    for seed in asked.seeds or effort.seeds:
        for name, kind in itertools.product(effort.data, asked.kinds):
            outcomes.append(kept(data[name], kind, seed, effort))
            console.print(line_of(outcomes[-1]))
    name = "fedpeft-quick" if asked.quick else "fedpeft"
    found = {
        "machine": machine.machine(),
        "effort": dataclasses.asdict(effort),
        "runs": [dataclasses.asdict(outcome) for outcome in outcomes],
        "vit_base": vit_base.counted(),
    }
    machine.write_json(RESULTS / f"{name}.json", found)
    draw(outcomes, RESULTS / f"{name}.png")
    console.print(table_of(outcomes))
    broken = complaints(outcomes)
    for complaint in broken:
        console.print(f"FAIL {complaint}", style="red")
    return int(asked.check and bool(broken))


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(KINDS)):
        msg = f"no kind is called {', '.join(unknown)}; there are {', '.join(KINDS)}"
        raise argparse.ArgumentTypeError(msg)
    return names


def kept(data: DataSet, kind: str, seed: int, effort: Effort) -> Outcome:
    """A run, from the cache folder where it is there."""
    digest = studies.digest_of(data.name, kind, seed, dataclasses.asdict(KINDS[kind]), dataclasses.asdict(effort))
    path = cache_folder() / "runs" / f"fedpeft-{data.name}-{kind}-{seed}-{digest[:16]}.json"
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        return Outcome(**{**found, "points": tuple(fleet.Point(**point) for point in found["points"])})
    outcome = play(data, kind, seed, effort)
    machine.write_json(path, dataclasses.asdict(outcome))
    return outcome


def play(data: DataSet, kind: str, seed: int, effort: Effort) -> Outcome:
    """One run, from the dealing out to the last test."""
    model = {"dir": str(vision.vit(effort.side)), "task": "image-classification", "labels": list(data.labels)}
    adapter = KINDS[kind].adapter
    request = studies.request_of(model, adapter, [LEVEL], TOKENS, parity=False)
    artifact = studies.newest(f"fedpeft/{data.name}-{effort.side}-{kind}", request)
    engine = fleet.Engine(artifact)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        members = deal(data, seed, effort, folder / "data")
        begin = time.monotonic()
        run = fleet.play(table(model, kind, seed, effort), members, engine, folder)
        wall_s = time.monotonic() - begin
        test = data.test.some(effort.test, 0)
        write_image_folder(folder / "test", test.pixels, test.labels)
        points = fleet.curve(run, engine, folder / "test", effort.evaluate)
        engine.close()
    shapes = run.built.full.manifest.trained_shapes().values()
    delta_bytes = statistics.mean(row.report.up_bytes for row in run.history.results)
    return Outcome(data.name, kind, seed, sum(map(math.prod, shapes)), round(delta_bytes), wall_s, points)


def deal(data: DataSet, seed: int, effort: Effort, folder: pathlib.Path) -> list[fleet.Member]:
    """The devices, each with images of its own in a folder."""
    return vision.deal(data.train.some(effort.train, seed), effort.devices, ALPHA, seed, folder)


def table(model: Mapping[str, Any], kind: str, seed: int, effort: Effort) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    devices, participants = effort.devices, effort.participants
    return {
        "name": f"fedpeft-{kind}-{seed}",
        "model": model,
        "adapter": KINDS[kind].adapter,
        "levels": [LEVEL],
        "rounds": {
            "count": effort.rounds,
            "devices": devices,
            "min_devices": devices,
            "participants": participants,
            "quorum": participants,
            "deadline_s": 36_000,
        },
        "training": {
            "steps": effort.steps,
            "batch": effort.batch,
            "learning_rate": KINDS[kind].learning_rate,
            "seed": seed,
        },
    }


def line_of(outcome: Outcome) -> str:
    """A run that is over, in a line."""
    accuracies = " ".join(f"{point.accuracy:.3f}" for point in outcome.points)
    return f"{outcome.data} {outcome.kind} seed {outcome.seed}: accuracy {accuracies}, {outcome.wall_s:.0f} s"


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """A line for each data set and kind; with several seeds, their mean and standard deviation."""
    table = Table(title="accuracy on test images, and bytes of all devices together", title_justify="left")
    for heading in (
        "data",
        "trains",
        "parameters",
        "delta MB",
        "down MB",
        "up MB",
        "accuracy",
        "best round",
        "s a run",
    ):
        table.add_column(heading, justify="left" if heading in {"data", "trains"} else "right")
    for same in groups(outcomes).values():
        first, end = same[0], same[0].points[-1]
        table.add_row(
            first.data,
            first.kind,
            f"{first.parameters:,}",
            f"{first.delta_bytes / 1e6:.3f}",
            f"{end.down_bytes / 1e6:.1f}",
            f"{end.up_bytes / 1e6:.1f}",
            _spread([one.last for one in same]),
            _spread([one.best for one in same]),
            f"{statistics.mean(one.wall_s for one in same):.0f}",
        )
    return table


def groups(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """Runs that differ in nothing but the seed, by data set and kind."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.data, outcome.kind), []).append(outcome)
    return found


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def complaints(outcomes: Sequence[Outcome]) -> list[str]:
    """What `--check` does not let pass."""
    found = []
    for (data, kind), same in groups(outcomes).items():
        if (learned := statistics.mean(one.learned for one in same)) <= 0:
            found.append(f"{data}, {kind}: accuracy changed by {learned:+.3f}")
        numbers_bytes = vit_base.FLOAT_BYTES * same[0].parameters
        if not numbers_bytes < same[0].delta_bytes <= BESIDE_NUMBERS * numbers_bytes:
            found.append(f"{data}, {kind}: a delta has {same[0].delta_bytes} bytes, its numbers {numbers_bytes}")
    return found


def draw(outcomes: Sequence[Outcome], path: pathlib.Path) -> None:
    """Accuracy against bytes, a line for each kind, the mean of its seeds; bytes on a logarithmic scale."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(outcome.data for outcome in outcomes))
    figure = Figure(figsize=(6 * len(names), 4.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for (data, kind), same in groups(outcomes).items():
            if data == name:
                rounds = list(zip(*(one.points for one in same), strict=True))[1:]  # before the first nothing was sent
                megabytes = [statistics.mean(p.down_bytes + p.up_bytes for p in points) / 1e6 for points in rounds]
                axes.plot(megabytes, [statistics.mean(p.accuracy for p in ps) for ps in rounds], marker="o", label=kind)
        axes.set(title=name, xscale="log", xlabel="MB down and up, all devices", ylabel="accuracy on test images")
        axes.grid(visible=True, which="both", alpha=0.2)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")  # over no point
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
