"""What liars do to quality, by how the coordinator aggregates; on a real model.

    python -m benchmarks.attacks [--quick] [--check] [--attacks none,sign-flip,...] [--defences mean,median,...]

MiniLM on Rotten Tomatoes: reviews dealt out by Dirichlet to nine devices, of which two lie; LoRA with A frozen; the
real coordinator and agents in this process (`benchmarks.fleet`, `benchmarks.liars`). What is told is the loss on test
reviews after the last round. A seed deals out the reviews and orders them, for each attack and defence alike.

- `mean` is plain FedAvg, with no check but those of form: the control. `norm-bound` scales each delta down to the
  median size, and takes the mean. The others are the estimators of `[aggregation]`, with `byzantine` = 2.
- Attacks: all numbers NaN; what was learned, ten times as long and backwards; noise ten times as long; learning from
  flipped labels; and "a little is enough", liars who agree on what is just inside of what honest devices send.

`--check` exits 1 unless, as means of the seeds: NaN is refused; a flipped sign at least doubles the control's loss;
nothing else ends more than 5 % above the loss that it began with; and the mean and the norm bound end below it without
liars. So few rounds lower the loss by one or two per cent, which is less than seeds differ by: that the other defences
learn as well is more than they show. Writes benchmarks/results/attacks.json and .png, with --quick attacks-quick.*, and
docs/results/attacks.md.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import enum
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from benchmarks import fleet, machine, reviews, studies
from benchmarks.liars import BOOST, SHADOWS, Attack, Besieged
from edge_sdk.wire.lifeline import exit_on_terminate
from export.cache import cache_folder

E = TypeVar("E", bound=enum.Enum)

ROOT: Final = pathlib.Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results" / "attacks.md"
DEVICES, LIARS, ALPHA, RATE = 9, 2, 5.0, 3e-2
HARM, BROKEN = 0.05, 1.0  # shares of the loss: what a defence may lose, and what the control has to
LEVEL: Final = {"name": "fp32", "bits": 32, "train_last": 3}


class Defence(enum.Enum):
    """How the coordinator aggregates."""

    MEAN = "mean"
    NORM_BOUND = "norm-bound"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed-mean"
    MULTI_KRUM = "multi-krum"


LEARNERS: Final = {Defence.MEAN.value, Defence.NORM_BOUND.value}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done; a row has `tokens` at most, and `held_out` test reviews are never trained on."""

    seeds: tuple[int, ...]
    rounds: int
    steps: int
    batch: int
    tokens: int
    held_out: int


FULL: Final = Effort((0, 1, 2), 6, 4, 8, 24, 256)
QUICK: Final = Effort((0,), 4, 4, 8, 24, 256)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `refused` of `delivered` deltas were refused, and `quarantined` devices sat out."""

    attack: str
    defence: str
    seed: int
    delivered: int
    refused: int
    quarantined: int
    wall_s: float
    points: tuple[fleet.Point, ...]

    @property
    def learned(self) -> float:
        """By how much the loss on test reviews fell."""
        return self.points[0].loss - self.points[-1].loss


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all of it; the exit status."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, short rounds of short rows")
    parser.add_argument("--check", action="store_true", help="exit 1 unless defences hold and the control does not")
    for name, kind in (("--attacks", Attack), ("--defences", Defence)):
        known = ", ".join(one.value for one in kind)
        parser.add_argument(name, type=_some(kind), default=tuple(kind), help=f"of {known}; all by default")
    asked = parser.parse_args(arguments)
    effort = QUICK if asked.quick else FULL
    outcomes = []
    for seed in effort.seeds:
        for attack in asked.attacks:
            # A NaN is refused before any defence is asked.
            for defence in asked.defences if attack is not Attack.NAN else (Defence.MEAN,):
                outcomes.append(one := play(attack, defence, seed, effort))
                print(line_of(one), flush=True)
    keep(outcomes, effort, "attacks-quick" if asked.quick else "attacks")
    broken = complaints(outcomes)
    for complaint in broken:
        print(f"FAIL {complaint}")
    return int(asked.check and bool(broken))


def _some(kind: type[E]) -> Any:  # noqa: ANN401 - what argparse calls a type
    def read(text: str) -> tuple[E, ...]:
        try:
            return tuple(kind(name) for name in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def play(attack: Attack, defence: Defence, seed: int, effort: Effort) -> Outcome:
    """One run, from the dealing out to the last test."""
    request = studies.request_of(reviews.model(), reviews.LORA, [LEVEL], effort.tokens, parity=False)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        members = reviews.deal(DEVICES, ALPHA, seed, folder / "data")
        liars = members[:LIARS] if attack is not Attack.NONE else []
        if attack is Attack.LABEL_FLIP:
            for member in liars:
                flip_labels(member.data.path)
        engine = Besieged(studies.newest("attacks", request), attack, frozenset(liar.name for liar in liars), DEVICES)
        begin = time.monotonic()
        run = fleet.play(table(attack, defence, seed, effort), members, engine, folder)
        wall_s = time.monotonic() - begin
        test = reviews.held_out(effort.held_out, effort.tokens, folder)
        points = fleet.curve(run, engine, test, effort.rounds)
        engine.close()
    refused = [answer.device for answer in run.history.answers if answer.kind == "refused"]
    quarantined = sum(refused.count(liar.name) >= run.config.checks.strikes for liar in liars)
    delivered = len(run.history.results) + len(refused)
    return Outcome(attack.value, defence.value, seed, delivered, len(refused), quarantined, wall_s, points)


def flip_labels(path: pathlib.Path) -> None:
    """A device's reviews with the other label each."""
    no, yes = studies.LABELS
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    studies.write_reviews(path, [(text, no if label == yes else yes) for text, label in rows])


def table(attack: Attack, defence: Defence, seed: int, effort: Effort) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    aggregation: dict[str, Any] = {"rule": "freeze-a"}
    if defence not in {Defence.MEAN, Defence.NORM_BOUND}:
        aggregation |= {"estimator": defence.value, "byzantine": LIARS}
    honest = DEVICES - LIARS
    return {
        "name": f"attacks-{attack.value}-{defence.value}-{seed}",
        "model": reviews.model(),
        "adapter": reviews.LORA,
        "levels": [LEVEL],
        "rounds": {
            "count": effort.rounds,
            "devices": DEVICES,
            "min_devices": DEVICES,
            "quorum": honest,
            "deadline_s": 36_000,
        },
        "training": {
            "steps": effort.steps,
            "batch": effort.batch,
            "tokens": effort.tokens,
            "learning_rate": RATE,
            "warmup_steps": 2,
            "seed": seed,
        },
        "aggregation": aggregation,
        "checks": {"norm_factor": 1.0 if defence is Defence.NORM_BOUND else 0.0},
    }


def line_of(outcome: Outcome) -> str:
    """A run that is over, in a line."""
    losses = " -> ".join(f"{point.loss:.4f}" for point in outcome.points)
    refused = f", {outcome.refused} of {outcome.delivered} deltas refused" if outcome.refused else ""
    return f"seed {outcome.seed} {outcome.attack}, {outcome.defence}: loss {losses}{refused}, {outcome.wall_s:.0f} s"


def complaints(outcomes: Sequence[Outcome]) -> list[str]:
    """What `--check` does not let pass."""
    found = []
    for (attack, defence), same in groups(outcomes).items():
        learned = statistics.mean(one.learned for one in same)
        begun = statistics.mean(one.points[0].loss for one in same)
        control = defence == Defence.MEAN.value
        if attack == Attack.NAN.value and not all(one.refused for one in same):
            found.append(f"{defence}: a NaN was not refused")
        if attack == Attack.SIGN_FLIP.value and control:
            if learned > -BROKEN * begun:
                found.append("the control withstands a flipped sign: the attack shows nothing")
        elif learned < -HARM * begun:
            found.append(f"{defence} ends worse than it began against {attack}")
        elif learned <= 0 and attack == Attack.NONE.value and defence in LEARNERS:
            found.append(f"{defence} does not learn against {attack}")
    return found


def groups(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """Runs that differ in nothing but the seed, by attack and defence."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.attack, outcome.defence), []).append(outcome)
    return found


# ---- what is kept


def keep(outcomes: Sequence[Outcome], effort: Effort, name: str) -> None:
    """JSON, plot and page."""
    what = {"devices": DEVICES, "liars": LIARS, "alpha": ALPHA, "boost": BOOST, **dataclasses.asdict(effort)}
    runs = [dataclasses.asdict(outcome) for outcome in outcomes]
    machine.write_json(RESULTS / f"{name}.json", {"machine": machine.machine(), "effort": what, "runs": runs})
    draw(outcomes, RESULTS / f"{name}.png")
    PAGE.write_text(page(outcomes, effort, name), encoding="utf-8")
    print(text_table(outcomes))


def text_table(outcomes: Sequence[Outcome]) -> str:
    """The loss after the last round, a row for each attack and a column for each defence, in Markdown."""
    found = groups(outcomes)
    attacks, defences = (list(dict.fromkeys(key[k] for key in found)) for k in (0, 1))
    lines = [["attack", *defences], ["---", *["---:"] * len(defences)]]
    lines += [[attack, *(cell(found.get((attack, defence), ())) for defence in defences)] for attack in attacks]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(same: Sequence[Outcome]) -> str:
    """Loss and accuracy after the last round, means of the seeds."""
    if not same:
        return ""
    loss, accuracy = (statistics.mean(getattr(one.points[-1], what) for one in same) for what in ("loss", "accuracy"))
    return f"{loss:.4f} ({accuracy:.3f})"


def page(outcomes: Sequence[Outcome], effort: Effort, name: str) -> str:
    """docs/results/attacks.md."""
    begun = statistics.mean(one.points[0].loss for one in outcomes)
    command = "python -m benchmarks.attacks --check" + " --quick" * (effort is QUICK)
    what = f"{effort.rounds} rounds of {effort.steps} AdamW steps of {effort.batch} reviews"
    return f"""# Liars among the devices

`{command}` makes this page, [{name}.json](../../benchmarks/results/{name}.json) and
[a plot](../../benchmarks/results/{name}.png). MiniLM on Rotten Tomatoes, LoRA of rank 8 on queries and values of the
last {LEVEL["train_last"]} blocks and the classifier, A frozen; {DEVICES} devices with reviews dealt out by
Dirichlet({ALPHA:g}), of which {LIARS} lie; {what}, rows of at most {effort.tokens} tokens; seeds: {len(effort.seeds)}.
The loss on {effort.held_out} test reviews, which begins at {begun:.4f}, after the last round (in parentheses, the
accuracy):

{text_table(outcomes)}

- `mean` is plain FedAvg without checks of size: the control. `norm-bound`: each delta scaled down to the median size,
  then the mean (`checks.norm_factor = 1`). The others are `aggregation.estimator` with `byzantine = {LIARS}`.
- `sign-flip` and `noise` are {BOOST:g} times as long as what was learned.
- `nan` is refused by every configuration, so it was played with the control alone: {nan_line(outcomes)}.
- `a-little-is-enough` sends the mean of {SHADOWS} runs on the liars' own data, less z standard deviations of each
  number, z from the paper.

So short a run lowers the loss by little, less than seeds differ by. What it shows: a flipped sign breaks the control,
and no defence. What it does not show is a defence that learns as if there were no liars: against a flipped sign and
noise the coordinate-wise ones end a little above where they began, the norm bound and multi-Krum about there or below;
flipped labels, {LIARS} of {DEVICES} devices', cost every one of them what it would have learned. Multi-Krum keeps
{DEVICES - LIARS - 2} of {DEVICES} deltas, and learns least without liars.

What it means for a configuration: [robustness.md](../robustness.md).
"""


def nan_line(outcomes: Sequence[Outcome]) -> str:
    """What became of NaN."""
    runs = [one for one in outcomes if one.attack == Attack.NAN.value]
    refused, quarantined = sum(one.refused for one in runs), sum(one.quarantined for one in runs)
    return f"{refused} deltas refused in {len(runs)} runs, and {quarantined} liars sent into quarantine"


def draw(outcomes: Sequence[Outcome], path: pathlib.Path) -> None:
    """The loss after the last round: a group of bars for each attack, a bar for each defence."""
    from matplotlib.figure import Figure

    found = groups(outcomes)
    attacks, defences = (list(dict.fromkeys(key[k] for key in found)) for k in (0, 1))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    begun = statistics.mean(one.points[0].loss for one in outcomes)
    width = 0.8 / len(defences)
    for k, defence in enumerate(defences):
        rows = [row for row, attack in enumerate(attacks) if (attack, defence) in found]
        losses = [statistics.mean(one.points[-1].loss for one in found[attacks[row], defence]) for row in rows]
        axes.bar([row + k * width for row in rows], losses, width, label=defence)
    axes.axhline(begun, color="black", linewidth=0.8, linestyle="--", label="before the first round")
    axes.set(ylabel="loss on test reviews", yscale="log")
    axes.set_xticks([row + 0.4 - width / 2 for row in range(len(attacks))], attacks)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
