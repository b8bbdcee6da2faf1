"""The command line of `fedpeat controller calibrate`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

from coordinator.builder import write_json
from coordinator.controller import profile
from coordinator.controller.calibrate import Calibrated, CalibrationError, Mixtures, Run, calibrated, run_of
from coordinator.controller.profile import Profile

HELP = """\
Fit the learning curve of the controller's simulator to runs that were really served.

Each LEDGER is a run's ledger.sqlite, of a run with [evaluation]. Runs of the same model on the same kind of data, that
differ in what is to be told apart (how many devices took part, levels, codecs, steps), make one curve. Each of them is
predicted by a curve fitted to all others: how far off that is, is the curve's error.
"""
EPILOG = """\
--out gets the profile --profile, with the new curve, and with the qualities that its levels had in these runs: give it
to `controller train`.

examples:
  calibrate run-1/ledger.sqlite run-2/ledger.sqlite --out profile.json
  calibrate run/ledger.sqlite --mixtures mixtures.json --out profile.json

exit status: 0 done, 2 wrong input (one line says what)
"""


def add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    command = commands.add_parser(
        "calibrate",
        help="fit the simulator's learning curve to runs that were served",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("ledgers", nargs="+", type=pathlib.Path, metavar="LEDGER", help="a run's ledger.sqlite")
    command.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="the profile to write")
    command.add_argument(
        "--profile", type=pathlib.Path, default=profile.DEFAULT, metavar="FILE", help="default: the shipped one"
    )
    text = 'the shares of groups of data in devices\' rows: {"pi-1": [0.8, 0.2], ...} (default: one group)'
    command.add_argument("--mixtures", type=pathlib.Path, metavar="FILE", help=text)
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    base = profile.load_profile(arguments.profile)
    mixtures = _mixtures(arguments.mixtures) if arguments.mixtures else {}
    runs = [dataclasses.replace(run_of(path), mixtures=mixtures) for path in arguments.ledgers]
    found = calibrated(runs)
    write_json(arguments.out, profile.as_plain(_calibrated(base, found, runs)))
    for line in _told(found, runs):
        print(line)  # noqa: T201 - a command line
    return 0


def _mixtures(path: pathlib.Path) -> Mixtures:
    try:
        plain = json.loads(path.read_text("utf-8"))
        return {str(device): tuple(map(float, shares)) for device, shares in plain.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        msg = f'{path} has no mixtures such as {{"pi-1": [0.8, 0.2]}}: {error}'
        raise CalibrationError(msg) from error


def _calibrated(base: Profile, found: Calibrated, runs: list[Run]) -> Profile:
    """The profile with this curve, and with the qualities that were found of its levels."""
    levels = tuple(
        dataclasses.replace(level, quality=found.qualities.get(level.name, level.quality)) for level in base.levels
    )
    source = f"{base.source}; curve: {len(runs)} runs, error {found.curve.error:.3f}"
    return dataclasses.replace(base, levels=levels, curve=found.curve, source=source)


def _told(found: Calibrated, runs: list[Run]) -> list[str]:
    curve = found.curve
    left_out = "runs left out of the fit" if len(runs) > 1 else "the run itself, for there is no other"
    return [
        f"held-out loss {curve.first:.4f} before the first round, {curve.floor:.4f} where no round helps any more",
        f"a round: speed {curve.speed:.3g}, steps^{curve.steps_power:.2f}, devices^{curve.people_power:.2f}",
        *(f"{codec.value} keeps {share:.0%} of a delta's worth" for codec, share in curve.kept.items()),
        *(f"level {name} has quality {quality:.2f}" for name, quality in sorted(found.qualities.items())),
        f"error {curve.error:.1%} of the way from the first loss to the floor, on {left_out}",
    ]
