"""Compression against quality: how many bytes emulator techniques save, and how much of the gap is closed by them.

    python -m benchmarks.compression [--quick] [--check] [--seeds 0,1] [--only speeches,reviews]

SmolLM2 on speeches, MiniLM on Rotten Tomatoes, ViT on Fashion-MNIST; each technique alone, at three strengths or more.
Levels are built and measured by `fedpeat ladder` (docs/ladder.md): an adapter is tuned for a few steps on the emulator
and plugged into the full model, and the gap is that between the full model as it is and the full model tuned itself.

`--check` exits 1 unless, on SmolLM2, some level of few bits takes at most 16 % of the bytes of fp32 and closes 95 % of
the gap, and some level that keeps half the blocks and is refitted closes 80 %.

What was measured is kept in the cache folder. Written are benchmarks/results/compression.json and .png and
docs/results/compression.md, with --quick benchmarks/results/compression-quick.json and .png; of a model and a seed that
are not asked for, what is published there stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import ladders, machine
from benchmarks.fetch import FetchError
from benchmarks.ladders import Ladder, Subject
from coordinator.errors import CoordinatorError
from coordinator.report import Check
from coordinator.screen import check_line
from edge_sdk.wire.lifeline import exit_on_terminate

RESULTS: Final = pathlib.Path(__file__).parent / "results"
PAGE: Final = pathlib.Path(__file__).parents[1] / "docs" / "results" / "compression.md"
FULL_MODEL: Final = "full model"
BLOCKS: Final = (5 / 6, 2 / 3, 1 / 2)  # kept
FFN_SHARES: Final = (3 / 4, 1 / 2, 1 / 4)  # of its neurons, or of its matrices' bytes
BETWEEN: Final = (0.6, 0.3, 0.06)  # int4's bytes and int8's, for mixes of both
DISTILL: Final = {"refit": "distill", "distill_steps": 160}
SMALL, CLOSES_SMALL, CLOSES_HALF = 0.16, 0.95, 0.80  # what --check asks for
LOWEST: Final = -1.0  # share of the gap that is drawn
STROKES: Final = {", refit": "--", ", distilled": ":"}
MARKERS: Final = {"-": "o", "--": "s", ":": "D"}

Level = Mapping[str, Any]  # a table of `[[levels]]`
Run = Mapping[str, Any]  # of compression.json

INTRODUCTION: Final = """
# Compression against quality

`python -m benchmarks.compression --check` makes this page; every number is in
[compression.json](../../benchmarks/results/compression.json). Each technique is alone, in 32 bits unless it is one of
precision. An adapter (LoRA r=8 on queries and values, with a head where the model classifies) is tuned on the emulator
for a few steps, the same for all levels of a model, and plugged into the full model: [docs/ladder.md](../ladder.md)
says how, and what the gap is. Bytes are all that a device fetches. Losses of the emulator are those before and after
the tune, in nats per predicted token or per row; all losses and accuracies are of rows that neither tuned nor chose.
With several seeds, numbers are their means, and the share of the gap has its standard deviation. Where a level closes
less than nothing, the adapter has learnt on the emulator what harms the full model.

`N-even` keeps N blocks at even distances, `N-important` those with the most influence on public rows; `ffnP` keeps P %
of each FFN's neurons, `rankR` has FFN matrices as products of rank R, of as many bytes. `-refit` is fitted to the full
model in closed form: bridges in the place of blocks ([ADR 0035](../adr/0035-bridges.md)), what an FFN or a factor has
left, how 4 bits round; `-distilled` has its bridges trained on public rows ({distill} steps), along the way that an
adapter goes ([ADR 0036](../adr/0036-the-adapters-way.md)). Mixed levels have their frozen tensors within so many MB.

![Bytes against the share of the gap closed](../../benchmarks/results/compression.png)
"""


def techniques(subject: Subject) -> dict[str, list[Level]]:
    """The levels by technique, each from the mildest on."""
    depths = [round(share * subject.layers) for share in BLOCKS]
    even: list[Level] = [{"name": f"{n}-even", "layers": n} for n in depths]
    important: list[Level] = [{"name": f"{n}-important", "layers": n, "drop": "importance"} for n in depths]
    slim: list[Level] = [{"name": f"ffn{share:.0%}"[:-1], "ffn": share} for share in FFN_SHARES]
    least, most = subject.megabytes[4], subject.megabytes[8]
    bounds = [round(least + part * (most - least), 1) for part in BETWEEN]
    ranks = [int(share * subject.width * subject.neurons / (subject.width + subject.neurons)) for share in FFN_SHARES]
    factored: list[Level] = [{"name": f"rank{n}", "svd": list(subject.factored), "svd_rank": n} for n in ranks]
    solved = {"refit": "least-squares"}
    return {
        "precision": [{"name": "fp16", "bits": 16}, {"name": "int8", "bits": 8}, {"name": "int4", "bits": 4}],
        "precision, refit": _with(solved, [{"name": "int4", "bits": 4}]),
        "mixed precision, refit": _with(
            solved, [{"name": f"mixed-{mb:g}mb", "bits": 8, "tensors_mb": mb} for mb in bounds]
        ),
        "depth, uniform": even,
        "depth, uniform, refit": _with(solved, even),
        "depth, importance": important,
        "depth, importance, refit": _with(solved, important),
        "depth, importance, distilled": _with(DISTILL, important[-1:]),
        "width": slim,
        "width, refit": _with(solved, slim),
        "rank, refit": _with(solved, factored),
    }


def _with(refit: Level, levels: Sequence[Level]) -> list[Level]:
    ending = "distilled" if refit["refit"] == "distill" else "refit"
    return [{**level, **refit, "name": f"{level['name']}-{ending}"} for level in levels]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: all `strengths` of a technique, or the last ones; `steps` and `held_out` rows of None are the
    subject's own.
    """

    seeds: tuple[int, ...]
    techniques: tuple[str, ...] | None = None
    strengths: int | None = None
    steps: int | None = None
    held_out: int | None = None

    def subject(self, name: str) -> Subject:
        """Raises FetchError."""
        found = ladders.SUBJECTS[name]()
        if self.steps is None or self.held_out is None:
            return found
        return ladders.shortened(found, self.steps, self.held_out)

    def levels(self, subject: Subject) -> dict[str, list[Level]]:
        """By technique."""
        found = techniques(subject)
        return {name: found[name][-(self.strengths or 0) :] for name in self.techniques or found}


FULL: Final = Effort((0, 1, 2))
QUICK: Final = Effort(
    seeds=(0,),
    techniques=("precision, refit", "depth, uniform", "depth, importance, refit", "depth, importance, distilled"),
    strengths=1,
    steps=40,
    held_out=32,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, write, and return the exit status."""
    exit_on_terminate()
    parser = _parser()
    asked = parser.parse_args(arguments)
    effort, name = (QUICK, "compression-quick") if asked.quick else (FULL, "compression")
    if unknown := sorted({*asked.seeds} - {*effort.seeds}):
        parser.error(f"no seed {listed(unknown)}; there are {listed(effort.seeds)}")
    try:
        asked_for = [measure(one, seed, effort, name) for one in asked.only for seed in asked.seeds or effort.seeds]
    except (CoordinatorError, FetchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    runs = joined(published(RESULTS / f"{name}.json"), asked_for)
    found = {"effort": dataclasses.asdict(effort), "runs": runs}
    machine.write_json(RESULTS / f"{name}.json", found)
    draw(runs, RESULTS / f"{name}.png")
    if not asked.quick:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(found), encoding="utf-8")
    checks = verdicts(runs)
    for check in checks:
        print(check_line(check)[0])
    return int(asked.check and not all(check.passed for check in checks))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compression", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few levels, short tunes")
    parser.add_argument("--check", action="store_true", help="exit 1 unless small levels close what they should")
    parser.add_argument("--seeds", type=numbers, default=(), metavar="N,...", help="of those that there are; all")
    every = tuple(ladders.SUBJECTS)
    parser.add_argument("--only", type=_subjects, default=every, metavar="NAME,...", help=f"default: {listed(every)}")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """Of `N,...`. Raises ValueError, as argparse wants it."""
    return tuple(map(int, text.split(",")))


def _subjects(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(ladders.SUBJECTS)):
        msg = f"no study is called {listed(unknown)}; there are {listed(ladders.SUBJECTS)}"
        raise argparse.ArgumentTypeError(msg)
    return names


def listed(values: Iterable[object]) -> str:
    """In one line."""
    return ", ".join(map(str, values))


def measure(name: str, seed: int, effort: Effort, experiment: str) -> Run:
    """One seed, from the cache folder where it is there. Raises CoordinatorError, FetchError."""
    subject = effort.subject(name)
    levels = effort.levels(subject)
    run = run_of(subject, seed, levels, ladders.ladder(subject, flat(levels), seed, experiment))
    return {**run, "machine": machine.machine()}


def published(path: pathlib.Path) -> list[Run]:
    """Runs that were written before, perhaps on another machine."""
    if not path.is_file():
        return []
    runs: list[Run] = json.loads(path.read_text("utf-8"))["runs"]
    return runs


def joined(old: Sequence[Run], new: Sequence[Run]) -> list[Run]:
    """By model and seed, in the order of the models.

    A new run is in the place of the old one of its seed, and of all that were tuned otherwise or had other levels: they
    are no seeds of the same experiment.
    """
    experiments = {run["study"]: _experiment(run) for run in new}
    old = [run for run in old if experiments.get(run["study"], _experiment(run)) == _experiment(run)]
    found = {(run["study"], run["seed"]): run for run in [*old, *new]}
    order = list(ladders.SUBJECTS)
    return sorted(found.values(), key=lambda run: (order.index(run["study"]), run["seed"]))


def _experiment(run: Run) -> object:
    """What all seeds have in common."""
    return shape_of(run), [level["level"]["name"] for level in run["levels"]]


def flat(levels: Mapping[str, Sequence[Level]]) -> list[Level]:
    """The levels of all techniques."""
    return [level for some in levels.values() for level in some]


def run_of(subject: Subject, seed: int, levels: Mapping[str, Sequence[Level]], ladder: Ladder) -> Run:
    """What is published of a ladder: the full model first, then the levels of each technique."""
    of = {level["name"]: technique for technique, some in levels.items() for level in some}
    return {
        "study": subject.name,
        "title": subject.title,
        "seed": seed,
        "layers": subject.layers,
        "training": ladder["training"],
        "held_out_rows": subject.held_out,
        "public_rows": subject.public,
        "zero_shot_loss": ladder["zero_shot_loss"],
        "tuned_loss": ladder["tuned_loss"],
        "levels": [
            {
                "technique": of.get(level["name"], FULL_MODEL),
                "level": level["level"],
                "size_bytes": level["size_bytes"],
                "share": level["size_bytes"] / ladder["levels"][0]["size_bytes"],
                "gap_closed": level["gap_closed"],
                **level["quality"],
            }
            for level in ladder["levels"]
        ],
    }


@dataclass(frozen=True, slots=True)
class Line:
    """A level in all seeds: `level` is its table, `share` its part of the bytes in fp32, means but for `closed`."""

    study: str
    technique: str
    level: Level
    size_bytes: float
    share: float
    closed: tuple[float, ...]
    losses: tuple[float, float, float]
    accuracies: tuple[float, float] | None

    @property
    def mean(self) -> float:
        """The share of the gap that it closes."""
        return statistics.fmean(self.closed)

    @property
    def deviation(self) -> float:
        """Of the same, between seeds; 0 of one alone."""
        return statistics.stdev(self.closed) if len(self.closed) > 1 else 0.0

    @property
    def spread(self) -> str:
        """The same in words, with the deviation of several seeds."""
        return f"{self.mean:.1%}" + (f" ± {self.deviation:.1%}" if len(self.closed) > 1 else "")


def lines(runs: Sequence[Run]) -> list[Line]:
    """In the order of the first seed."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        for level in run["levels"]:
            found.setdefault((run["study"], level["level"]["name"]), []).append(level)
    return [_line(study, same) for (study, _), same in found.items()]


def _line(study: str, same: Sequence[Mapping[str, Any]]) -> Line:
    def mean(key: str) -> float:
        return statistics.fmean(level[key] for level in same)

    classifies = same[0]["plug_in_accuracy"] is not None
    return Line(
        study=study,
        technique=same[0]["technique"],
        level=same[0]["level"],
        size_bytes=mean("size_bytes"),
        share=mean("share"),
        closed=tuple(level["gap_closed"] for level in same),
        losses=(mean("emulator_before"), mean("emulator"), mean("plug_in")),
        accuracies=(mean("emulator_accuracy"), mean("plug_in_accuracy")) if classifies else None,
    )


def verdicts(runs: Sequence[Run]) -> list[Check]:
    """What `--check` lets pass. Without SmolLM2 there is nothing to say."""
    of_text = [run for run in runs if run["study"] == "speeches"]
    if not of_text:
        return []
    found, blocks = lines(of_text), of_text[0]["layers"] // 2
    small = [line for line in found if "precision" in line.technique and line.share <= SMALL]
    half = [line for line in found if line.level.get("layers") == blocks]
    mended = [line for line in half if "refit" in line.level]
    plain = [line for line in half if line.technique == "depth, uniform"]
    beside = f"; the plain uniform drop {_said(plain)}"
    return [
        _verdict(f"at most {SMALL:.0%} of the bytes of fp32", small, CLOSES_SMALL, ""),
        _verdict("half the blocks, refitted", mended, CLOSES_HALF, beside),
    ]


def _verdict(name: str, found: Sequence[Line], least: float, beside: str) -> Check:
    passed = any(line.mean >= least for line in found)
    return Check(f"{name}: {least:.0%} of the gap", passed, _said(found) + beside)


def _said(found: Sequence[Line]) -> str:
    if not found:
        return "no such level"
    best = max(found, key=lambda line: line.mean)
    return f"{best.level['name']} closes {best.mean:.1%} in {best.share:.1%} of the bytes"


def page(found: Mapping[str, Any]) -> str:
    """docs/results/compression.md, of the numbers in compression.json alone."""
    runs = found["runs"]
    introduction = INTRODUCTION.strip().format(distill=DISTILL["distill_steps"])
    parts = [introduction, "## What was to be reached", _verdict_lines(runs)]
    for same in _by_study(runs).values():
        parts += [f"## {same[0]['title']}", _setting(same, found["effort"]["seeds"]), _table(lines(same))]
    return "\n\n".join(parts) + "\n"


def _by_study(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run["study"], []).append(run)
    return found


def _verdict_lines(runs: Sequence[Run]) -> str:
    said = [f"- {check.name}: {'yes' if check.passed else '**no**'}; {check.detail}" for check in verdicts(runs)]
    return (
        "\n".join(["On SmolLM2, the best level of each kind:", "", *said]) if said else "SmolLM2 is not measured yet."
    )


def _setting(same: Sequence[Run], planned: Sequence[int]) -> str:
    first, seeds = same[0], [run["seed"] for run in same]
    missing = sorted(set(planned) - set(seeds))
    said = f"Seeds {listed(seeds)}" + (f"; {listed(missing)} not measured yet" if missing else "")
    losses = [statistics.fmean(run[key] for run in same) for key in ("zero_shot_loss", "tuned_loss")]
    return f"{shape_of(first)}. {said}. The full model: {losses[0]:.4f} as it is, {losses[1]:.4f} tuned itself."


def shape_of(run: Run) -> str:
    """How it was tuned, and on how many rows."""
    training = run["training"]
    shape = f"{training['steps']} steps of {training['batch']} rows at a rate of {training['learning_rate']:g}"
    return f"{shape}; {run['held_out_rows']} rows held out, {run['public_rows']} public ones"


def _table(found: Sequence[Line]) -> str:
    classifies = found[0].accuracies is not None
    headings = ["technique", "level", "MB", "of fp32", "emulator", "plugged in", "gap closed"]
    headings += ["accuracy of the emulator", "plugged in"] if classifies else []
    return markdown([headings, *map(_cells, found)])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells, headings first; all but the first two columns are numbers."""
    headings, *others = rows
    lined = [headings, ["---", "---", *["---:"] * (len(headings) - 2)], *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lined)


def _cells(line: Line) -> list[str]:
    before, after, plug_in = line.losses
    cells = [
        line.technique,
        line.level["name"],
        f"{line.size_bytes / 1e6:.1f}",
        f"{line.share:.1%}",
        f"{before:.3f} → {after:.3f}",
        f"{plug_in:.4f}",
        line.spread,
    ]
    return cells + [f"{accuracy:.3f}" for accuracy in line.accuracies or ()]


def draw(runs: Sequence[Run], path: pathlib.Path) -> None:
    """The share of the gap closed over bytes: a panel a model; a colour what is cut, a stroke how it is fitted.

    Means of the seeds, with their deviations.
    """
    from matplotlib.figure import Figure

    studies, found = _by_study(runs), lines(runs)
    names = [name for name in dict.fromkeys(line.technique for line in found) if name != FULL_MODEL]
    cuts = list(dict.fromkeys(_cut(name)[0] for name in names))
    figure = Figure(figsize=(4.6 * len(studies) + 2.4, 4.6), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, (study, same) in zip(panels, studies.items(), strict=True):
        for name in names:
            points = sorted(
                (line.share, line.mean, line.deviation)
                for line in found
                if (line.study, line.technique) == (study, name)
            )
            if points:
                bytes_, means, deviations = zip(*points, strict=True)
                cut, stroke = _cut(name)
                style = {"color": f"C{cuts.index(cut)}", "linestyle": stroke, "marker": MARKERS[stroke]}
                handles[name] = axes.errorbar(bytes_, means, deviations, label=name, capsize=2, elinewidth=0.7, **style)
        lowest = min(line.mean for line in found if line.study == study)
        axes.set(title=same[0]["title"], xlabel="bytes, of those in fp32", ylabel="share of the gap closed")
        axes.set(xlim=(0, 1), ylim=(max(LOWEST, lowest - 0.05), 1.1))
        axes.grid(visible=True, alpha=0.2)
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=110)


def _cut(technique: str) -> tuple[str, str]:
    """What a technique cuts, and the stroke that says how it is fitted."""
    for ending, stroke in STROKES.items():
        if technique.endswith(ending):
            return technique.removesuffix(ending), stroke
    return technique, "-"


if __name__ == "__main__":
    sys.exit(main())
