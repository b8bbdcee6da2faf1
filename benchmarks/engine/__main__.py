"""Peak memory and step time of one training step, ours against the peers', measured alternately in one run.

    python -m benchmarks.engine [--quick] [--check] [--scenes NAME ...]

LoRA r=8, AdamW, full rows of random tokens. Every measurement is a process of its own; peak is its VmHWM, time its
median step without the first. Each contender runs once per turn, one after the other; tables show medians over the
turns. The peers' environments are made at the first call, as are our levels: minutes. Ours are plans chosen by
prediction, from costs measured at the start: `lean` and `fast` are the fastest within a share of the peer's peak.

`--quick` measures SmolLM2 and GPT-2's shape alone, in two turns instead of five, and keeps no result. Otherwise the
scenes replace those of the same name in results/engine.json, and SmolLM2's are drawn to results/engine.png. `--check`
exits 1 when a promised number is missed or could not be measured. ExecuTorch's and TinyLlama's take minutes a step.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.engine import checks, show
from benchmarks.engine.scenes import QUICK, SCENES, Effort, Scene
from benchmarks.fetch import FetchError, say
from edge_sdk.errors import EdgeError

RESULTS = pathlib.Path(__file__).parents[1] / "results"
LOG_WIDTH = 180  # of tables in a file


def main() -> int:
    """Measure, show, keep; 1 when `--check` finds a number missed, or when something cannot be had."""
    arguments = _parser().parse_args()
    try:
        held = _run(arguments)
    except (FetchError, EdgeError, RuntimeError, OSError) as error:
        say(f"error: {error}")
        return 1
    return int(arguments.check and not held)


def _run(arguments: argparse.Namespace) -> bool:
    """Whether every promise of the scenes that were asked for was held."""
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    turns, steps = (2, 3) if arguments.quick else (5, 8)
    effort = Effort(turns, steps, len(os.sched_getaffinity(0)), whole=not arguments.quick, console=console)
    out = arguments.out or (None if arguments.quick else RESULTS / "engine.json")
    found: list[checks.Check] = []
    for name in arguments.scenes or (QUICK if arguments.quick else SCENES):
        scene = SCENES[name](effort)
        console.print(show.table(scene.title, scene.rows, scene.base))
        if slow := scene.more.get("storage"):
            console.print(show.storage_table(slow))
        if alone := scene.more.get("products"):
            console.print(show.products(alone))
        found += scene.checks
        if out is not None:
            _keep(out, name, scene, effort)
    console.print(checks.table(found))
    return all(check.held for check in found)


def _keep(out: pathlib.Path, name: str, scene: Scene, effort: Effort) -> None:
    """Put the scene beside the others in `out`: each says what it was measured on. The plot follows."""
    kept: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    others = {name: value for name, value in kept.items() if name in SCENES}
    plain = {
        "command": " ".join(["python -m benchmarks.engine", *sys.argv[1:]]),
        "machine": machine.machine(),
        "turns": effort.turns,
        "title": scene.title,
        "rows": scene.rows,
        "checks": [check.plain() for check in scene.checks],
        **scene.more,
    }
    machine.write_json(out, {**others, name: plain})
    if "frontiers" in scene.more:
        from benchmarks.engine.plot import draw

        draw(plain, out.with_suffix(".png"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"two turns of {' and '.join(QUICK)}")
    parser.add_argument("--check", action="store_true", help="exit 1 when a promised number is missed")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, help="these alone", metavar="NAME")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON; default, unless quick: results/engine.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
