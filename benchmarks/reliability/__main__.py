"""The scoreboard: what was done to fleets and decoders, what survived it, and which promises that proves.

    python -m benchmarks.reliability [--quick] [--check] [--seed 1] [--jobs 1] [--inputs 1000000] [--only SECTION]

Kills a process of a real fleet at every labelled step; does every kind of fault to a fleet, on each broker; slows one
device of four down; gives every decoder bad inputs; cuts the power, as far as it can be told what that leaves, after
every step of a device; and does the same to the obvious ways, which are seen to fail. Writes
benchmarks/results/reliability.json and docs/results/reliability.md; with --quick, a part of each, into
reliability-quick.json alone. With --check the status is 1 when anything was lost, doubled, damaged, accepted or broken,
or when the control did not fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import itertools
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks import machine
from benchmarks.reliability import control, show, stragglers
from benchmarks.reliability.bad_inputs import Outcome, fuzz, read_one
from benchmarks.reliability.corpus import corpus
from benchmarks.reliability.crashes import Case
from benchmarks.reliability.decoders import decoders, scratch_folder
from benchmarks.reliability.faults import KINDS, Fault, inject
from benchmarks.reliability.faults import QUICK as QUICK_FAULTS
from benchmarks.reliability.fleets import BROKERS
from benchmarks.reliability.power import cut
from benchmarks.reliability.power_scenes import CONTROL_NAME, SCENES
from benchmarks.reliability.promises import promises
from benchmarks.reliability.scenes import cases
from benchmarks.reliability.sweep import QUICK as QUICK_CASES
from benchmarks.reliability.sweep import sweep, swept_artifact
from tests.brokers import find_mosquitto
from tests.integration.conftest import Tiny

ROOT: Final = pathlib.Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results"
PAGE: Final = ROOT / "docs" / "results" / "reliability.md"
CHUNKS, QUICK_INPUTS = 3000, 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="a part of each section, in minutes")
    parser.add_argument("--check", action="store_true", help="status 1 when anything is amiss")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="fleets, and processes that read bad inputs, at a time")
    parser.add_argument("--inputs", type=int, help="how many bad inputs; default: a million")
    parser.add_argument("--only", choices=show.SECTIONS, action="append", help="this section, the others as they were")
    asked = parser.parse_args(arguments)
    path = RESULTS / ("reliability-quick.json" if asked.quick else "reliability.json")
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(asked, pathlib.Path(folder))
    board = (show.read(path) if asked.only else {}) | found
    board |= {"seed": asked.seed, "quick": asked.quick, "machine": machine.machine()}
    board["promises"] = {promise.number: promise.state for promise in promises()}
    board["amiss"] = show.amiss(board)
    machine.write_json(path, board)
    page = show.page(board)
    if not asked.quick:
        PAGE.write_text(page, encoding="utf-8")
    print(page)
    return int(asked.check and bool(board["amiss"]))


def _measured(asked: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Every section that is asked for."""
    wanted, found = asked.only or show.SECTIONS, dict[str, Any]()
    find_mosquitto()
    if "control" in wanted:
        push = control.naive_push(folder / "push", CHUNKS)
        found["control"] = control.as_json(push, control.poisoned_mean())
    if "inputs" in wanted:
        inputs = asked.inputs or (QUICK_INPUTS if asked.quick else 1_000_000)
        found["inputs"] = {"written": _plain(_written()), "made": _plain(fuzz(asked.seed, inputs, asked.jobs))}
    if "power" in wanted:
        found["power"] = _power_cuts(asked.seed, folder / "power")
    if {"kills", "faults", "stragglers"} & set(wanted):
        tiny = swept_artifact(folder / "tiny")
        if "faults" in wanted:
            found["faults"] = _faults(asked, tiny, folder / "faults")
        if "stragglers" in wanted:
            found["stragglers"] = stragglers.as_json(stragglers.straggle(tiny, folder / "stragglers"))
        if "kills" in wanted:
            found["kills"] = _kills(asked, tiny, folder / "kills")
    return found


def _kills(asked: argparse.Namespace, tiny: Tiny, folder: pathlib.Path) -> dict[str, Any]:
    began_s = time.monotonic()
    wanted = QUICK_CASES if asked.quick else cases()
    done = sweep(wanted, tiny, folder, asked.jobs, _say_case)
    return {"of": len(cases()), "cases": [_plain(case) for case in done], "wall_s": time.monotonic() - began_s}


def _power_cuts(seed: int, folder: pathlib.Path) -> list[dict[str, Any]]:
    """All scenes take seconds, so that --quick is no reason to leave one out. Needs strace."""
    found = []
    for name in (*SCENES, CONTROL_NAME):
        cuts = cut(name, folder / name, seed)
        print(f"power cuts, {name}: {cuts.steps} steps, {cuts.images} images, broken: {cuts.broken}", flush=True)
        found.append(_plain(cuts))
    return found


def _faults(asked: argparse.Namespace, tiny: Tiny, folder: pathlib.Path) -> list[dict[str, Any]]:
    found = []
    kinds, brokers = (QUICK_FAULTS, ["mosquitto"]) if asked.quick else (KINDS, list(BROKERS))
    for number, (broker, kind) in enumerate(itertools.product(brokers, kinds)):
        fault = inject(kind, broker, tiny, folder / str(number))
        _say_fault(fault)
        found.append(_plain(fault))
    return found


def _written() -> Outcome:
    """What becomes of the bad inputs that were written by hand."""
    outcome = Outcome()
    with scratch_folder() as folder:
        known = decoders(pathlib.Path(folder))
        for bad in corpus(known):
            read_one(known[bad.decoder], bad.data, outcome)
    outcome.accepted += outcome.sound  # none of these is true
    outcome.sound = 0
    return outcome


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any of our dataclasses
    """As JSON has it, and whether it passed."""
    fields = dataclasses.asdict(value) | {"passed": value.passed}
    return {name: item.value if isinstance(item, enum.Enum) else item for name, item in fields.items()}


def _say_case(case: Case) -> None:
    what = "ok" if case.passed else f"NOT {case.tally.complaints or 'reached'}"
    print(f"{case.process} at {case.label}: {what}, {case.wall_s:.1f} s", flush=True)


def _say_fault(fault: Fault) -> None:
    what = "ok" if fault.passed else fault.lacks or f"NOT {fault.tally.complaints}"
    print(f"{fault.kind}, {fault.broker}, {fault.injected} times: {what}, {fault.wall_s:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
