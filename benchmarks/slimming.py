"""FedOT's emulators against FedPFT's: fewer blocks, or as many with slimmer FFNs, at equal parameters.

    python -m benchmarks.slimming [--quick] [--check]

The comparison of Z. Peng et al., FedPFT: Federated Proxy Fine-Tuning of Foundation Models (arXiv 2404.11536), which is
on BERT-base: here on MiniLM, a BERT of 6 blocks, and Rotten Tomatoes, by `fedpeat ladder` (benchmarks.ladders). A BERT
block's FFN has two thirds of its matrices: 4 or 3 of 6 blocks have as many parameters as 6 with 1/2 or 1/4 of the
neurons. Both are taken as they are, and distilled on public rows: then bridges stand for blocks that were dropped
(ADR 0035), of some more bytes. LoRA is on queries and values of all blocks kept.

`--check` exits 1 unless levels that are compared as they are differ by at most 1 % in bytes, and tuning the full model
helps.
Writes benchmarks/results/slimming.json and docs/results/slimming.md; with --quick slimming-quick.json alone.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks import ladders, machine
from benchmarks.compression import Level, Line, Run, flat, lines, listed, markdown, run_of, shape_of
from benchmarks.fetch import FetchError
from benchmarks.ladders import Subject
from coordinator.errors import CoordinatorError
from coordinator.report import Check
from coordinator.screen import check_line
from edge_sdk.wire.lifeline import exit_on_terminate

RESULTS: Final = pathlib.Path(__file__).parent / "results"
PAGE: Final = pathlib.Path(__file__).parents[1] / "docs" / "results" / "slimming.md"
FFN_PART: Final = 2 / 3  # of a BERT block's matrices: 8 of 12 times width x width
DROPPED, SLIMMED = "FedOT: fewer blocks", "FedPFT: slimmer FFNs"
DISTILLED: Final = ", distilled"
DISTILL: Final = {"refit": "distill", "distill_steps": 48}
EQUAL: Final = 0.01
STEPS, HELD_OUT = 100, 256
SEEDS: Final = (0, 1, 2)
QUICK_STEPS, QUICK_HELD_OUT = 40, 128

INTRODUCTION: Final = """
# FedOT's emulators against FedPFT's

`python -m benchmarks.slimming --check` makes this page from
[slimming.json](../../benchmarks/results/slimming.json). An emulator with fewer blocks, at even distances, as FedOT's;
and one with all blocks, but slimmer FFNs, by L2 saliency, as FedPFT's, at equal parameters; each as it is, and
distilled on public rows, where bridges stand for dropped blocks ([ADR 0035](../adr/0035-bridges.md)), of some more
bytes. LoRA r=8 on queries and values of all blocks that are kept, and the classifier, are tuned on the emulator, and
plugged into the full model. Accuracies are of rows that nothing saw before.

FedPFT reports, of BERT-base with 47 of 81 million parameters in its blocks, IID, accuracies of the full model of 90.4
(FedOT) and 91.6 (FedPFT) on SST-2, and 83.9 and 87.5 on QNLI; tuned itself it has 91.6 and 88.4. That is after rounds
with a fleet, which align the emulator again and again; here is one short tune on rows of one pool.
"""


def levels_of(subject: Subject, blocks: Sequence[int]) -> dict[str, list[Level]]:
    """By technique, one for each number of blocks and, slimmed, for as many parameters as so many blocks have."""
    dropped: list[Level] = [{"name": f"{n}-blocks", "layers": n} for n in blocks]
    shares = [1 - (1 - n / subject.layers) / FFN_PART for n in blocks]
    slimmed: list[Level] = [{"name": f"ffn{share:.0%}"[:-1], "ffn": round(share, 6)} for share in shares]
    found = {DROPPED: dropped, SLIMMED: slimmed}
    return found | {
        name + DISTILLED: [{**level, **DISTILL, "name": f"{level['name']}-distilled"} for level in some]
        for name, some in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, write, and return the exit status."""
    exit_on_terminate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slimming", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, half the blocks alone, a short tune")
    parser.add_argument("--check", action="store_true", help="exit 1 unless what is compared is equal in bytes")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1), help="how many")
    asked = parser.parse_args(arguments)
    name = "slimming-quick" if asked.quick else "slimming"
    steps, held_out = (QUICK_STEPS, QUICK_HELD_OUT) if asked.quick else (STEPS, HELD_OUT)
    try:
        subject = ladders.shortened(ladders.reviews(), steps, held_out)
        levels = levels_of(subject, (3,) if asked.quick else (4, 3))
        runs = [measure(subject, levels, seed, name) for seed in SEEDS[: 1 if asked.quick else asked.seeds]]
    except (CoordinatorError, FetchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = {"machine": machine.machine(), "planned_seeds": SEEDS, "runs": runs}
    machine.write_json(RESULTS / f"{name}.json", found)
    if not asked.quick:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(found), encoding="utf-8")
    checks = verdicts(runs)
    for check in checks:
        print(check_line(check)[0])
    return int(asked.check and not all(check.passed for check in checks))


def measure(subject: Subject, levels: Mapping[str, Sequence[Level]], seed: int, experiment: str) -> Run:
    """One seed, from the cache folder where it is there. Raises CoordinatorError."""
    return run_of(subject, seed, levels, ladders.ladder(subject, flat(levels), seed, experiment))


def pairs(found: Sequence[Line]) -> list[tuple[Line, Line]]:
    """The levels of equal parameters, but for bridges, those with fewer blocks first; distilled ones last."""
    of: dict[str, list[Line]] = {}
    for line in found:
        of.setdefault(line.technique, []).append(line)
    return [pair for ending in ("", DISTILLED) for pair in zip(of[DROPPED + ending], of[SLIMMED + ending], strict=True)]


def verdicts(runs: Sequence[Run]) -> list[Check]:
    """What `--check` lets pass. Which of the two is better is a result, not a condition."""
    found = lines(runs)
    plain = [pair for pair in pairs(found) if "refit" not in pair[0].level]
    off = max(abs(slimmed.size_bytes / dropped.size_bytes - 1) for dropped, slimmed in plain)
    gained = statistics.fmean(run["zero_shot_loss"] - run["tuned_loss"] for run in runs)
    return [
        Check("what is compared has equal bytes", off <= EQUAL, f"at most {off:.2%} apart"),
        Check("tuning the full model helps", gained > 0, f"its loss falls by {gained:.3f}"),
    ]


def page(found: Mapping[str, Any]) -> str:
    """docs/results/slimming.md, of the numbers in slimming.json alone."""
    runs = found["runs"]
    first, seeds = runs[0], [run["seed"] for run in runs]
    missing = sorted({*found["planned_seeds"]} - {*seeds})
    said = f"seeds {listed(seeds)}" + (f" ({listed(missing)} not measured yet)" if missing else "")
    setting = f"{first['title']}: {shape_of(first)}, {DISTILL['distill_steps']} steps of distillation; {said}."
    return "\n\n".join([INTRODUCTION.strip(), setting, _table(lines(runs)), _conclusion(lines(runs))]) + "\n"


def _table(found: Sequence[Line]) -> str:
    headings = ["emulator", "level", "MB", "accuracy of the emulator", "of the full model", "its loss", "gap closed"]
    return markdown([headings, *map(_cells, found)])


def _cells(line: Line) -> list[str]:
    on_emulator, plugged = line.accuracies or (0.0, 0.0)
    size = f"{line.size_bytes / 1e6:.1f}"
    accuracies = [f"{on_emulator:.3f}", f"{plugged:.3f}"]
    return [line.technique, line.level["name"], size, *accuracies, f"{line.losses[2]:.4f}", line.spread]


def _conclusion(found: Sequence[Line]) -> str:
    """Who is ahead, pair by pair."""
    better = [dropped.level["name"] for dropped, slimmed in pairs(found) if dropped.mean > slimmed.mean]
    count = len(pairs(found))
    ahead = f"The slimmed emulator closes more of the gap than its equal with fewer blocks in {count - len(better)} of "
    return f"{ahead}{count} pairs." + (f" Ahead of theirs are {', '.join(better)}." if better else "")


if __name__ == "__main__":
    sys.exit(main())
