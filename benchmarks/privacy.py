"""What noise for privacy costs in quality, by who adds it; on a real model.

    python -m benchmarks.privacy [--quick] [--check]

MiniLM on Rotten Tomatoes: reviews dealt out by Dirichlet to nine devices that all take part in every round; LoRA of
rank 2 in the last block and the classifier, with A frozen; the real coordinator and agents in this process
(`benchmarks.fleet`). What is told is the loss on test reviews after the last round, and epsilon at DELTA, where there
is a guarantee.

- `coordinator`: each delta is held to a norm, and the coordinator adds noise to their sum. It hides a device.
- `device`: each device clips the gradient of every review and adds noise in every step. It hides a review, from the
  coordinator, too.
- `none`: neither.

`--check` exits 1 unless, as means of the seeds: without noise each way ends below the loss that it began with; epsilon
falls as noise grows, and there is none without noise; and the most noise ends above the least by no less than -HARM of
the loss. Writes benchmarks/results/privacy.json and .png and docs/results/privacy.md; with --quick, one seed and two
multipliers each, nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import fleet, machine, reviews, studies
from coordinator import example_privacy
from coordinator.privacy import standing
from edge_sdk.wire.lifeline import exit_on_terminate
from export.cache import cache_folder

ROOT: Final = pathlib.Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results" / "privacy.md"
DEVICES, ALPHA, RATE, DELTA = 9, 5.0, 3e-2, 1e-4
LORA: Final = {**reviews.LORA, "rank": 2, "alpha": 4}
LEVEL: Final = {"name": "fp32", "bits": 32, "train_last": 1}
NONE, COORDINATOR, DEVICE = "none", "coordinator", "device"
CLIP: Final = {COORDINATOR: 1.0, DEVICE: 1.0}
HARM: Final = 0.01  # a share of the loss


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done; a row has `tokens` at most, and `held_out` test reviews are never trained on."""

    seeds: tuple[int, ...]
    rounds: int
    steps: int
    batch: int
    tokens: int
    held_out: int
    noise: dict[str, tuple[float, ...]]


FULL: Final = Effort((0,), 3, 4, 16, 24, 256, {NONE: (0,), COORDINATOR: (0, 0.1, 0.3, 1), DEVICE: (0, 0.5, 1, 2)})
QUICK: Final = Effort((0,), 2, 2, 8, 24, 64, {NONE: (0,), COORDINATOR: (0, 1), DEVICE: (0, 1)})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `epsilon` is None where there is no guarantee; `step_ms` the median step of a device."""

    where: str
    noise: float
    seed: int
    epsilon: float | None
    says: str
    step_ms: float
    wall_s: float
    points: tuple[fleet.Point, ...]

    @property
    def learned(self) -> float:
        """By how much the loss on test reviews fell."""
        return self.points[0].loss - self.points[-1].loss


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all of it; the exit status."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, little noise and much; writes nothing")
    parser.add_argument("--check", action="store_true", help="exit 1 unless noise costs and promises what it should")
    asked = parser.parse_args(arguments)
    effort, outcomes = QUICK if asked.quick else FULL, []
    for seed in effort.seeds:
        for where, multipliers in effort.noise.items():
            for noise in multipliers:
                outcomes.append(one := play(where, noise, seed, effort))
                print(line_of(one), flush=True)
    if not asked.quick:
        keep(outcomes, effort)
    print(text_table(outcomes))
    broken = complaints(outcomes)
    for complaint in broken:
        print(f"FAIL {complaint}")
    return int(asked.check and bool(broken))


def play(where: str, noise: float, seed: int, effort: Effort) -> Outcome:
    """One run, from the dealing out to the last test."""
    request = studies.request_of(reviews.model(), LORA, [LEVEL], effort.tokens, parity=False)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        members = reviews.deal(DEVICES, ALPHA, seed, folder / "data")
        engine = fleet.Engine(studies.newest("privacy", request))
        begin = time.monotonic()
        run = fleet.play(table(where, noise, seed, effort), members, engine, folder)
        wall_s = time.monotonic() - begin
        points = fleet.curve(run, engine, reviews.held_out(effort.held_out, effort.tokens, folder), effort.rounds)
        engine.close()
    config, history = run.config, run.history
    found = None
    if config.privacy is not None:
        central = config.central_privacy is not None
        found = standing(config, history.spent) if central else example_privacy.standing(config, history)
    step_ms = statistics.median(row.report.step_ms for row in history.results)
    says = "no privacy was asked for" if found is None else str(found)
    epsilon = None if found is None else found.epsilon
    return Outcome(where, noise, seed, epsilon, says, step_ms, wall_s, points)


def table(where: str, noise: float, seed: int, effort: Effort) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    found: dict[str, Any] = {
        "name": f"privacy-{where}-{noise:g}-{seed}",
        "model": reviews.model(),
        "adapter": LORA,
        "levels": [LEVEL],
        "rounds": {"count": effort.rounds, "devices": DEVICES, "min_devices": DEVICES, "deadline_s": 36_000},
        "training": {
            "steps": effort.steps,
            "batch": effort.batch,
            "tokens": effort.tokens,
            "learning_rate": RATE,
            "seed": seed,
        },
        "aggregation": {"rule": "freeze-a"},
        "checks": {"norm_factor": 0.0},
    }
    if where != NONE:
        found["privacy"] = {"where": where, "noise_multiplier": noise, "clip_norm": CLIP[where], "delta": DELTA}
    return found


def line_of(outcome: Outcome) -> str:
    """A run that is over, in a line."""
    losses = " -> ".join(f"{point.loss:.4f}" for point in outcome.points)
    what = f"seed {outcome.seed} {outcome.where}, noise {outcome.noise:g}"
    return f"{what}: loss {losses}, {outcome.says}, {outcome.wall_s:.0f} s"


def complaints(outcomes: Sequence[Outcome]) -> list[str]:
    """What `--check` does not let pass."""
    found, rows = [], groups(outcomes)
    for where in dict.fromkeys(where for where, _ in rows):
        own = {noise: same for (place, noise), same in rows.items() if place == where}
        least, most = own[min(own)], own[max(own)]
        if statistics.mean(one.learned for one in least) <= 0:
            found.append(f"{where}: without noise nothing is learned")
        begun = statistics.mean(one.points[0].loss for one in least)
        gap = _loss(most) - _loss(least)
        if gap < -HARM * begun:
            found.append(f"{where}: the most noise ends {-gap:.4f} below none")
        told = [same[0].epsilon for _, same in sorted(own.items())]
        if told[0] is not None:
            found.append(f"{where}: something is promised without noise")
        promised = [epsilon for epsilon in told[1:] if epsilon is not None]
        if len(promised) != len(told) - 1 or promised != sorted(promised, reverse=True):
            found.append(f"{where}: epsilon does not fall as noise grows: {told}")
    return found


def groups(outcomes: Iterable[Outcome]) -> dict[tuple[str, float], list[Outcome]]:
    """Runs that differ in nothing but the seed."""
    found: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.where, outcome.noise), []).append(outcome)
    return found


def _loss(same: Sequence[Outcome]) -> float:
    return statistics.mean(one.points[-1].loss for one in same)


# ---- what is kept


def keep(outcomes: Sequence[Outcome], effort: Effort) -> None:
    """JSON, plot and page."""
    what = {"devices": DEVICES, "alpha": ALPHA, "rate": RATE, "delta": DELTA, **dataclasses.asdict(effort)}
    runs = [dataclasses.asdict(outcome) for outcome in outcomes]
    machine.write_json(RESULTS / "privacy.json", {"machine": machine.machine(), "effort": what, "runs": runs})
    draw(outcomes, RESULTS / "privacy.png")
    PAGE.write_text(page(outcomes, effort), encoding="utf-8")


def text_table(outcomes: Sequence[Outcome]) -> str:
    """In Markdown."""
    lines = ["who adds it | multiplier | epsilon | loss | accuracy", "--- | ---: | ---: | ---: | ---:"]
    for (where, noise), same in groups(outcomes).items():
        told = [one.epsilon for one in same if one.epsilon is not None]
        epsilon = f"{max(told):.3g}" if told else "no guarantee"
        accuracy = statistics.mean(one.points[-1].accuracy for one in same)
        lines.append(f"{where} | {noise:g} | {epsilon} | {_loss(same):.4f} | {accuracy:.3f}")
    return "\n".join(f"| {line} |" for line in lines)


def page(outcomes: Sequence[Outcome], effort: Effort) -> str:
    """docs/results/privacy.md."""
    begun = statistics.mean(one.points[0].loss for one in outcomes)
    what = f"{effort.rounds} rounds of {effort.steps} AdamW steps of {effort.batch} reviews"
    return f"""# What noise costs

`python -m benchmarks.privacy --check` makes this page, [privacy.json](../../benchmarks/results/privacy.json) and
[a plot](../../benchmarks/results/privacy.png). MiniLM on Rotten Tomatoes, LoRA of rank {LORA["rank"]} on queries and
values of the last block and the classifier, A frozen; {DEVICES} devices with reviews dealt out by
Dirichlet({ALPHA:g}), all of them in every round; {what}, rows of at most
{effort.tokens} tokens; seeds: {len(effort.seeds)}. The loss on {effort.held_out} test reviews begins at {begun:.4f};
after the last round it is:

{text_table(outcomes)}

- `coordinator`: each delta is held to a norm of {CLIP[COORDINATOR]:g}, and the sum has noise. Epsilon is for a device
  whose data is replaced. Nobody is drawn by lot among {DEVICES}: so small a fleet pays most, and gets least.
- `device`: the gradient of each review is held to a norm of {CLIP[DEVICE]:g}, and each step has noise, on the device.
  Epsilon is for one review, of the device with the fewest; the coordinator need not be trusted.
- Epsilon is at delta {DELTA:g}. With a multiplier of 0 deltas, or gradients, are clipped, and nothing is promised.

So short a run lowers the loss by little. How to ask for either: [robustness.md](../robustness.md).
"""


def draw(outcomes: Sequence[Outcome], path: pathlib.Path) -> None:
    """The loss after the last round by the multiplier, a line for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    found = groups(outcomes)
    for where in (COORDINATOR, DEVICE):
        own = sorted((noise, _loss(same)) for (place, noise), same in found.items() if place == where)
        axes.plot([noise for noise, _ in own], [loss for _, loss in own], marker="o", label=f"noise by the {where}")
    axes.axhline(statistics.mean(one.points[0].loss for one in outcomes), color="black", linestyle="--", label="before")
    axes.axhline(_loss(found[NONE, 0]), color="grey", linestyle=":", label="no privacy")
    axes.set(xlabel="noise multiplier", ylabel="loss on test reviews", xscale="symlog")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
