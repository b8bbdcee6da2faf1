"""The command line of `fedpeat ladder`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.manifest import TaskType
from export.options import adapter_of, add_adapter, names

STOPPED = 130
HELP = """\
Build emulator levels of a model, measure each on public data, and say which are worth having.

For each level an adapter is tuned on the emulator, by the device's own engine in a process of its own, and plugged into
the full model. Measured are the bytes that a device fetches, and how many of them are new to one that holds another
level; peak memory and time of a step, by plan; held-out loss on the emulator and of the full model; and the share
of the gap that this closes between the full model as training starts and the full model tuned itself, in as many steps.
Prompts of a text want a --learning-rate of 0.1 or more.

DATA is a folder of .txt, a .csv, a .jsonl of words and labels, a folder of token arrays; for a model of images a folder
of pictures for each class, image arrays, or a file in MNIST's format. Its rows are divided: some are held out to judge
by, some are what levels are chosen and refitted by, all others are tuned on.
"""
EPILOG = """\
writes into --out:
  ladder.json   all that was measured, and the names on the ladder (docs/ladder.md)
  profile.json  costs and qualities of the ladder, for `controller train --profile`
  levels.toml   the ladder as [[levels]] for coordinator.toml, best first; --levels takes such a file
  ladder.png    bytes and least memory against the full model's loss

Stopped at any moment, the same command goes on from there.

examples:
  fedpeat ladder SmolLM2-135M --data speeches --out ladder
  fedpeat ladder MiniLM --task sequence-classification --labels no,yes --data reviews.csv --levels levels.toml --out it

exit status: 0 done, 2 wrong input, or a process of it failed (one line says why), 130 stopped
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    command = commands.add_parser(
        "ladder",
        help="build emulator levels, measure each, and say which are worth having",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = [task.value for task in TaskType]
    command.add_argument("model", metavar="MODEL_DIR", help="as save_pretrained writes it")
    command.add_argument("--data", type=pathlib.Path, required=True, metavar="DATA", help="public; see above")
    command.add_argument("--out", default="ladder", metavar="DIR", help="default: ladder")
    command.add_argument("--task", default=TaskType.CAUSAL_LM.value, choices=tasks, help="default: causal-lm")
    command.add_argument(
        "--labels", type=names, default=(), metavar="A,B,...", help="class names by index (default: the model's)"
    )
    command.add_argument("--levels", type=pathlib.Path, metavar="FILE.toml", help="[[levels]] (default: a set of ours)")
    group = command.add_argument_group("data")
    group.add_argument("--text-column", default="text", metavar="NAME", help="of a .csv (default: text)")
    group.add_argument("--label-column", default="label", metavar="NAME", help="of a .csv (default: label)")
    group.add_argument("--tokens", type=int, default=128, metavar="N", help="the longest row (default: 128)")
    group.add_argument("--held-out", type=_positive, default=64, metavar="ROWS", help="to judge by (default: 64)")
    group.add_argument("--public-rows", type=_positive, default=64, metavar="ROWS", help="to refit by (default: 64)")
    group = command.add_argument_group("adapter, and its tune")
    add_adapter(group)
    group.add_argument("--steps", type=int, default=80, metavar="N", help="of each tune (default: 80)")
    group.add_argument("--batch", type=int, default=1, metavar="ROWS", help="a step (default: 1)")
    group.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="default: 1e-3")
    group.add_argument("--budget", default="2GB", metavar="SIZE", help="of a tune's peak memory (default: 2GB)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: 0)")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from coordinator.ladder.run import Request, run
    from coordinator.screen import Screen

    exit_on_terminate()
    request = Request(
        tables=_tables(arguments),
        data=arguments.data,
        text_column=arguments.text_column,
        label_column=arguments.label_column,
        held_out_rows=arguments.held_out,
        levels=arguments.levels,
        budget=arguments.budget,
    )
    try:
        return run(request, Screen())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


def _tables(arguments: argparse.Namespace) -> dict[str, Any]:
    """A coordinator's configuration, all but its levels, of one that has no rounds to run."""
    adapter = adapter_of(arguments)
    return {
        "name": "ladder",
        "fleet": "ladder",
        "out": arguments.out,
        "model": {"dir": arguments.model, "task": arguments.task, "labels": list(arguments.labels)},
        "adapter": {**adapter, "targets": list(adapter["targets"])},
        "rounds": {"count": 1, "devices": 1},
        "training": {
            "steps": arguments.steps,
            "batch": arguments.batch,
            "tokens": arguments.tokens,
            "learning_rate": arguments.learning_rate,
            "seed": arguments.seed,
        },
        "public": {"path": str(pathlib.Path(arguments.out, "split", "public")), "rows": arguments.public_rows},
    }


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        msg = f"{text!r} is no whole number from 1"
        raise argparse.ArgumentTypeError(msg)
    return int(text)
