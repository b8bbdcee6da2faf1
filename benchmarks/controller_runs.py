"""Real runs that differ in who took part, in level, codec, steps and skew, and the learning curves fitted to them.

    python -m benchmarks.controller_runs [--quick] [--most N]

The controller is trained in a simulator whose held-out loss follows a `coordinator.controller.learning.Curve`. Here is
what that curve stands on: the real coordinator and eight real agents in one process (`benchmarks.fleet`), LoRA. MiniLM
learns Rotten Tomatoes, whose reviews are dealt out evenly or by label skew; SmolLM2-135M learns speeches of four
presidents of the 19th century and four of the 20th. The full model's loss on rows that no device has, of each class or
century apart, is measured after every round. A seed deals out, draws the devices and orders the rows; each run has one
of its own, so that there is chance in what the fit cannot explain.

The error that is told is that of runs which the curve was not fitted to: each is predicted, from its first loss alone,
by a curve fitted to all others of its study. Runs of skewed labels are in none of the fits, and predicted by the curve
of the even ones: there the loss may rise, which the curve cannot say.

Writes benchmarks/results/controller-runs.json, run by run, and .png: what is in the file is not run again. With
--quick, controller-runs-quick.json and .png, two short runs that are no calibration; with --most, no more than N new
runs.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import pathlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import assets, fleet, reviews, studies
from benchmarks.machine import machine, write_json
from coordinator.controller import learning
from coordinator.controller.calibrate import Calibrated, Part, Run, calibrated, predict
from edge_sdk.config import DataConfig, DataKind
from edge_sdk.prepare import prepare
from edge_sdk.sources import open_source
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.messages import DeltaCodec
from export.cache import cache_folder

RESULTS: Final = pathlib.Path(__file__).parent / "results"
DEVICES: Final = 8
EVEN, SKEWED = 1e4, 0.7  # Dirichlet's alpha
HELD_OUT_REVIEWS, HELD_OUT_SPEECHES = 128, 12  # rows, of each class or century
CENTURIES: Final[Mapping[str, Sequence[str]]] = {
    "19th": ("andrew_jackson", "james_polk", "ulysses_s_grant", "grover_cleveland"),
    "20th": ("harry_s_truman", "dwight_d_eisenhower", "jimmy_carter", "william_j_clinton"),
}
HELD_OUT_SPEAKERS: Final = {"19th": "rutherford_b_hayes", "20th": "ronald_reagan"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is: `people` of the devices take part in each of its `rounds`. `alpha` matters to reviews alone."""

    study: str = "reviews"
    people: int = 4
    steps: int = 10
    codec: DeltaCodec = DeltaCodec.FP32
    level: str = "fp32"
    alpha: float = EVEN
    rounds: int = 8
    seed: int = 0

    @property
    def name(self) -> str:
        """What is told of it."""
        skew = ", skewed" if self.alpha != EVEN else ""
        return f"{self.study}, {self.people} devices, {self.steps} steps, {self.codec.value} of {self.level}{skew}"


FULL: Final = (
    Asked("speeches", rounds=5),
    Asked("speeches", people=2, seed=1, rounds=5),
    Asked("speeches", people=8, steps=5, seed=2, rounds=4),
    Asked("speeches", people=2, steps=20, seed=3, rounds=3),
    Asked("speeches", people=2, codec=DeltaCodec.INT4, seed=4, rounds=5),
    Asked("speeches", people=2, steps=5, codec=DeltaCodec.INT8, level="int8", seed=5, rounds=5),
    Asked(),
    Asked(people=2, seed=1),
    Asked(people=8, steps=5, seed=2, rounds=6),
    Asked(steps=5, seed=3),
    Asked(people=2, steps=20, seed=4, rounds=6),
    Asked(codec=DeltaCodec.INT4, seed=5, rounds=6),
    Asked(people=2, codec=DeltaCodec.INT8, level="int8", seed=6),
    Asked(people=2, level="half", seed=7),
    Asked(steps=5, alpha=SKEWED, seed=8),
    Asked(people=2, alpha=SKEWED, seed=9),
    Asked(people=8, steps=5, codec=DeltaCodec.INT4, level="half", alpha=SKEWED, seed=10, rounds=6),
)
QUICK: Final = (Asked(rounds=2), Asked(people=2, rounds=2, seed=1))


@dataclass(frozen=True, slots=True)
class Study:
    """A model and its tables of a coordinator's configuration. `deal` makes the devices and says their mixtures,
    `tests` the held-out rows of each group, in a folder.
    """

    name: str
    model: Callable[[], Mapping[str, Any]]
    adapter: Mapping[str, Any]
    levels: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    deal: Callable[[Asked, pathlib.Path], tuple[list[fleet.Member], dict[str, tuple[float, ...]]]]
    tests: Callable[[pathlib.Path], list[pathlib.Path]]

    def artifact(self) -> pathlib.Path:
        """All its levels, exported once."""
        levels, tokens = list(self.levels.values()), self.training["tokens"]
        request = studies.request_of(self.model(), self.adapter, levels, tokens, parity=False)
        return studies.newest(f"controller-{self.name}", request)


def deal_reviews(asked: Asked, folder: pathlib.Path) -> tuple[list[fleet.Member], dict[str, tuple[float, ...]]]:
    """By label skew; a device's mixture is the share of each label."""
    members = reviews.deal(DEVICES, asked.alpha, asked.seed, folder)
    return members, {member.name: mixture(member.data.path) for member in members}


def mixture(path: pathlib.Path) -> tuple[float, ...]:
    """The share of each label in a table of reviews."""
    with path.open(encoding="utf-8", newline="") as file:
        counts = Counter(row["label"] for row in csv.DictReader(file))
    return tuple(counts[label] / sum(counts.values()) for label in studies.LABELS)


def test_reviews(folder: pathlib.Path) -> list[pathlib.Path]:
    """The first test reviews of each label, as token folders."""
    found = []
    for label in studies.LABELS:
        rows = [row for row in studies.read_reviews(assets.reviews().test) if row[1] == label]
        studies.write_reviews(path := folder / f"{label}.csv", rows[:HELD_OUT_REVIEWS])
        source = open_source(DataConfig(kind=DataKind.CSV, path=path), studies.LABELS)
        tokens, out = REVIEWS.training["tokens"], folder / label
        prepare(source, assets.minilm() / "tokenizer.json", tokens=tokens, out=out, labels=studies.LABELS)
        found.append(out)
    return found


def deal_speeches(_asked: Asked, _folder: pathlib.Path) -> tuple[list[fleet.Member], dict[str, tuple[float, ...]]]:
    """A device for each president, who is of one century."""
    folders = assets.speeches()
    members, mixtures = [], {}
    for k, names in enumerate(CENTURIES.values()):
        for name in names:
            data = DataConfig(kind=DataKind.TEXT_FOLDER, path=folders[name])
            members.append(fleet.Member(name.replace("_", "-"), data))
            mixtures[members[-1].name] = tuple(float(k == other) for other in range(len(CENTURIES)))
    return members, mixtures


def test_speeches(folder: pathlib.Path) -> list[pathlib.Path]:
    """Rows of a president of each century whom no device has, as token folders."""
    found = []
    for century, name in HELD_OUT_SPEAKERS.items():
        source = open_source(DataConfig(kind=DataKind.TEXT_FOLDER, path=assets.speeches()[name]), ())
        tokens, out = SPEECHES.training["tokens"], folder / century
        prepare(source, assets.smollm2() / "tokenizer.json", tokens=tokens, out=out, max_rows=HELD_OUT_SPEECHES)
        found.append(out)
    return found


FP32, INT8 = {"name": "fp32", "bits": 32}, {"name": "int8", "bits": 8}
REVIEWS: Final = Study(
    "reviews",
    reviews.model,
    reviews.LORA,
    {"fp32": FP32, "int8": INT8, "half": {"name": "half", "bits": 32, "layers": 3}},
    {"batch": 12, "tokens": 32, "learning_rate": 3e-3, "warmup_steps": 2},
    deal_reviews,
    test_reviews,
)
SPEECHES: Final = Study(
    "speeches",
    lambda: {"dir": str(assets.smollm2()), "task": "causal-lm"},
    {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]},
    {"fp32": FP32, "int8": INT8},
    {"batch": 1, "tokens": 64, "learning_rate": 1e-3, "warmup_steps": 2},
    deal_speeches,
    test_speeches,
)
STUDIES: Final = {study.name: study for study in (REVIEWS, SPEECHES)}


@dataclass(frozen=True, slots=True)
class Played:
    """A run that is over: `losses` by version, those of each group in the order of the study's."""

    asked: Asked
    mixtures: Mapping[str, Sequence[float]]
    rounds: Sequence[Sequence[Part]]
    losses: Sequence[Sequence[float]]
    wall_s: float

    def run(self) -> Run:
        """As the calibration wants it."""
        losses = tuple(sum(by_group) / len(by_group) for by_group in self.losses)
        mixtures = {device: tuple(shares) for device, shares in self.mixtures.items()}
        return Run(self.asked.name, tuple(map(tuple, self.rounds)), losses, mixtures)


def play(asked: Asked, study: Study, engine: fleet.Engine) -> Played:
    """One run, from the dealing out to the last test."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        members, mixtures = study.deal(asked, folder / "data")
        tests = study.tests(folder)
        run = fleet.play(table(asked, study), members, engine, folder)
        full, versions = run.built.levels["fp32"].blob, [run.adapter(version) for version in range(asked.rounds + 1)]
        with ThreadPoolExecutor() as pool:  # the engine does one thing at a time for each who asks
            pairs = list(itertools.product(versions, tests))
            losses = list(pool.map(lambda pair: engine.evaluate(full, *pair).loss, pairs))
        return Played(
            asked,
            mixtures,
            [
                [Part(row.device, row.examples, row.level, row.codec, row.report.steps) for row in run.used(version)]
                for version in range(1, asked.rounds + 1)
            ],
            [losses[k : k + len(tests)] for k in range(0, len(losses), len(tests))],
            time.monotonic() - begin,
        )


def table(asked: Asked, study: Study) -> dict[str, Any]:
    """`coordinator.toml` as tables: the level that all get is the first one; the full model stands behind it."""
    return {
        "name": f"{asked.study}-{asked.seed}",
        "model": study.model(),
        "adapter": study.adapter,
        "levels": [study.levels[name] for name in dict.fromkeys((asked.level, "fp32"))],
        "rounds": {
            "count": asked.rounds,
            "devices": DEVICES,
            "min_devices": DEVICES,
            "participants": asked.people,
            "quorum": asked.people,
            "deadline_s": 36_000,
        },
        "training": {**study.training, "steps": asked.steps, "seed": asked.seed, "delta_codec": asked.codec.value},
    }


# ---- the file


def plain_of(played: Played) -> dict[str, Any]:
    """For JSON."""
    plain = dataclasses.asdict(played)
    plain["asked"]["codec"] = played.asked.codec.value
    for part in itertools.chain(*plain["rounds"]):
        part["codec"] = part["codec"].value
    return plain


def played_of(plain: Mapping[str, Any]) -> Played:
    """From JSON."""
    rounds = [[Part(**{**part, "codec": DeltaCodec(part["codec"])}) for part in parts] for parts in plain["rounds"]]
    asked = Asked(**{**plain["asked"], "codec": DeltaCodec(plain["asked"]["codec"])})
    return Played(**{**plain, "asked": asked, "rounds": rounds})


def read(path: pathlib.Path) -> list[Played]:
    """What was played before."""
    return [played_of(one) for one in json.loads(path.read_text("utf-8"))["runs"]] if path.exists() else []


@dataclass(frozen=True, slots=True)
class Fitted:
    """A study's curve, and what it says of the study's skewed runs, by name; `skewed_error` is a share like its own."""

    calibrated: Calibrated
    skewed: Mapping[str, Sequence[float]]
    skewed_error: float


def write(path: pathlib.Path, played: Sequence[Played], found: Mapping[str, Fitted]) -> None:
    """Runs, and the curves that were fitted to them."""
    curves = {
        study: {
            "curve": learning.as_plain(fit.calibrated.curve),
            "qualities": dict(fit.calibrated.qualities),
            "predicted_when_left_out": {name: list(losses) for name, losses in fit.calibrated.predicted.items()},
            "predicted_of_skewed": {name: list(losses) for name, losses in fit.skewed.items()},
            "error_of_skewed": fit.skewed_error,
        }
        for study, fit in found.items()
    }
    write_json(path, {"machine": machine(), "curves": curves, "runs": [plain_of(one) for one in played]})


def fitted(played: Sequence[Played]) -> dict[str, Fitted]:
    """A curve for each study of which there are two runs with even data."""
    found = {}
    for study in dict.fromkeys(one.asked.study for one in played):
        of = [one for one in played if one.asked.study == study]
        even, skewed = ([one.run() for one in of if (one.asked.alpha == EVEN) is wanted] for wanted in (True, False))
        if len(even) > 1:
            fit = calibrated(even)
            said = {run.name: predict(run, fit.curve, fit.qualities) for run in skewed}
            off = [
                abs(loss - was)
                for run in skewed
                for loss, was in zip(said[run.name][1:], run.losses[1:], strict=True)
                if was is not None
            ]
            error = sum(off) / len(off) / (fit.curve.first - fit.curve.floor) if off else 0.0
            found[study] = Fitted(fit, said, error)
    return found


def draw(played: Sequence[Played], found: Mapping[str, Fitted], path: pathlib.Path) -> None:
    """Each study's losses as predicted when the run was left out, against those measured; skewed runs dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(found), 5), layout="constrained")
    for axes, (study, fit) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        curve, predicted = fit.calibrated.curve, {**fit.calibrated.predicted, **fit.skewed}
        for run in [one.run() for one in played if one.asked.study == study]:
            style, label = ":" if run.name in fit.skewed else "-", run.name.partition(", ")[2]
            axes.plot(run.losses[1:], predicted[run.name][1:], f"o{style}", ms=3, lw=0.7, label=label)
        ends = [curve.floor, curve.first]
        axes.plot(ends, ends, color="black", lw=0.8)
        title = f"{study}: error {curve.error:.1%} of the way to the floor"
        axes.set(title=title, xlabel="held-out loss, measured (nats)", ylabel="predicted, the run left out")
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what is not played yet, fit, write; the exit status."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.controller_runs", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="two short runs, which are no calibration")
    parser.add_argument("--most", type=int, metavar="N", help="play at most N runs that are not in the file yet")
    asked = parser.parse_args(arguments)
    wanted, name = (QUICK, "controller-runs-quick.json") if asked.quick else (FULL, "controller-runs.json")
    path = RESULTS / name
    played = {one.asked: one for one in read(path)}
    missing = [one for one in wanted if one not in played][: asked.most]
    for study, group in itertools.groupby(missing, key=lambda one: STUDIES[one.study]):
        engine = fleet.Engine(study.artifact())
        for one in group:
            played[one] = play(one, study, engine)
            losses = " ".join(f"{loss:.4f}" for loss in played[one].run().losses)
            print(f"{one.name}: loss {losses}, {played[one].wall_s:.0f} s", flush=True)
            write(path, [played[each] for each in wanted if each in played], {})
        engine.close()
    done = [played[each] for each in wanted if each in played]
    found = fitted(done)
    write(path, done, found)
    draw(done, found, path.with_suffix(".png"))
    for of, fit in found.items():
        curve = fit.calibrated.curve
        print(f"{of}: {learning.as_plain(curve)}, qualities {dict(fit.calibrated.qualities)}")
        print(f"{of}: {curve.error:.1%} off on runs left out, {fit.skewed_error:.1%} on those of skewed labels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
