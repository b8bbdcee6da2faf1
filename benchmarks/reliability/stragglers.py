"""What one slow device costs the others in time: a fleet of four of which one runs a tenth of the time, by course.

Processes over a real Mosquitto. The slow device's agent and workers are stopped and let go on by turns, so that
everything that it does takes ten times as long. The control is plain FedAvg, which waits for it, up to its deadline;
it makes fewer versions, and seconds are told for each.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psutil

from benchmarks.reliability.fleets import Fleet
from tests.integration.conftest import Tiny

FAST, SLOW = ("a", "b", "c"), "d"
TURN_S, SHARE = 1.0, 0.1  # of which it runs such a share
MOST: Final = {"max_staleness": 16}
CONTROL: Final = "plain: all four, waited for"
COURSES: Final[dict[str, dict[str, Any]]] = {
    CONTROL: {"count": 4},
    "three of four results are enough": {"count": 16, "participants": 3, "extra": 1},
    "the same, and late ones count": {"count": 16, "participants": 3, "extra": 1, "late": "discount", **MOST},
    "buffered, three results a version": {"count": 16, "mode": "buffered", "buffer": 3, **MOST},
}


@dataclass(frozen=True, slots=True)
class Straggle:
    """One course: `version_s` from the first round's opening to the last version, for each of the `versions`; `results`
    used, `slow` ones of them, and the mean `staleness` of those. `load` is how many processes wanted to run.
    """

    course: str
    versions: int
    version_s: float
    results: int
    slow: int
    staleness: float
    load: float


def straggle(tiny: Tiny, folder: pathlib.Path) -> list[Straggle]:
    """Every course, one after the other. Raises Unsurvived."""
    return [_one(course, tiny, folder / str(number)) for number, course in enumerate(COURSES)]


def as_json(found: list[Straggle]) -> dict[str, Any]:
    """For the board; `bites` where the control is the slowest of all."""
    rows = [{name: getattr(one, name) for name in Straggle.__slots__} for one in found]
    control, *others = (one.version_s for one in found)
    return {"courses": rows, "bites": all(control > other for other in others)}


def _one(course: str, tiny: Tiny, folder: pathlib.Path) -> Straggle:
    rounds: dict[str, Any] = {"devices": 4, "quorum": 1, "deadline_s": 120.0, "wait_s": 120.0, **COURSES[course]}
    with contextlib.ExitStack() as stack:
        fleet = Fleet(tiny, folder, stack, rounds)
        fleet.serve()
        for name in (*FAST, SLOW):
            fleet.processes.device(name)
        stack.enter_context(_slowed(fleet.processes.running[SLOW].pid))
        fleet.until(lambda: _done(fleet) >= rounds["count"], "every version is made")
        load, _, _ = os.getloadavg()
    history = fleet.processes.history()
    used = [row for row in history.results if row.version is not None]
    late = [row.staleness for row in used if row.device == SLOW]
    mean = sum(late) / len(late) if late else 0.0
    version_s = _wall_s(fleet.processes.out / "ledger.sqlite") / history.done
    return Straggle(course, history.done, version_s, len(used), len(late), mean, load)


def _done(fleet: Fleet) -> int:
    history = fleet.history()
    return 0 if history is None else history.done


def _wall_s(ledger: pathlib.Path) -> float:
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        (began_at,) = db.execute("SELECT MIN(opened_at) FROM rounds").fetchone()
        (ended_at,) = db.execute("SELECT MAX(created_at) FROM adapters").fetchone()
    return float(ended_at - began_at)


@contextlib.contextmanager
def _slowed(pid: int) -> Iterator[None]:
    """The process and all that it started get SHARE of each turn, while the block lasts."""
    over = threading.Event()

    def turns() -> None:
        while not over.is_set():
            _signal(pid, signal.SIGSTOP)
            over.wait(TURN_S * (1 - SHARE))
            _signal(pid, signal.SIGCONT)
            over.wait(TURN_S * SHARE)

    thread = threading.Thread(target=turns, name="slowed")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _signal(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        one = psutil.Process(pid)
        for process in (one, *one.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(what)
