"""How many devices one broker and one coordinator serve: rounds of 1,000 devices on Mosquitto, of 200 on amqtt.

    python -m benchmarks.scale [--quick] [--check]

The real coordinator and agents, a connection each, the agents in processes of some dozens around an engine (see
`benchmarks.fleet`), and the broker in a process of its own, as the coordinator starts it. Each device takes part in
every round: one step of MiniLM on its own reviews, the adapter down and the delta up. What is told is how long a
device's task takes from its offer to the commit of its delta, the broker's peak, and how long a fleet takes that lost
its broker, killed with all it knew, until all have done another round. Devices, coordinator and broker share this
machine's cores: a fleet of boards brings its own.

`--check` exits 1 unless every device's delta is in every round, once. Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import pathlib
import resource
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from benchmarks import assets, fleet, reviews, studies
from benchmarks.machine import machine, write_json
from coordinator.broker import Broker
from coordinator.config import Rule
from coordinator.places import ledger_path
from edge_sdk.config import DataConfig, DataKind
from edge_sdk.memory import read_memory
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.topics import COORDINATOR
from edge_sdk.wire.transport import Will
from export.cache import cache_folder

RESULTS: Final = pathlib.Path(__file__).parent / "results"
FLEETS: Final = {"mosquitto": 1000, "amqtt": 200}
QUICK: Final = {"mosquitto": 100, "amqtt": 20}
CROWD: Final = 50  # devices a process
ROUNDS: Final = 3  # the broker is killed in the last
ROWS: Final = 8  # reviews of a device
LORA: Final = {**reviews.LORA, "rank": 2, "alpha": 4}
LEVEL: Final = {"name": "int8", "bits": 8}
TOKENS: Final = 16
TRAINING: Final = {"steps": 1, "batch": 2, "tokens": TOKENS, "learning_rate": 1e-3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fleets; the exit status."""
    exit_on_terminate()
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=description)
    parser.add_argument("--quick", action="store_true", help="a tenth of the devices, and no results file")
    parser.add_argument("--check", action="store_true", help="exit 1 unless every delta is in every round, once")
    asked = parser.parse_args(arguments)
    request = studies.request_of(reviews.model(), LORA, [LEVEL], TOKENS, parity=False)
    engine = fleet.Engine(studies.newest("scale", request))
    _allow_files(10 * max(FLEETS.values()))
    found = []
    for kind, count in (QUICK if asked.quick else FLEETS).items():
        found.append(one := played(kind, count, engine))
        print(told(one), flush=True)
    engine.close()
    if not asked.quick:
        write_json(RESULTS / "scale.json", {"machine": machine(), "training": TRAINING, "fleets": found})
    broken = [f"{one['broker']}: {one['complaint']}" for one in found if one["complaint"]]
    for line in broken:
        print(f"FAIL {line}")
    return int(asked.check and bool(broken))


def played(kind: str, count: int, engine: fleet.Engine) -> dict[str, Any]:
    """A fleet of `count` on a broker of one kind, through all rounds."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        members = _members(count, folder / "data")
        broker = Broker(folder / "broker", fleet.FLEET, only=kind)
        killed = _Killed(broker, count * ROUNDS - count // 2)
        try:
            with killed.watching(folder / "coordinator" / "ledger.sqlite"):
                run = fleet.play(
                    _table(count),
                    members,
                    engine,
                    folder,
                    functools.partial(_connect, broker.url),
                    crowd=CROWD,
                )
        finally:
            broker.close()
        return _figures(kind, count, run, killed)


def _connect(url: str, client: str, will: Will | None) -> MqttTransport:
    return MqttTransport(url, client, will, user=_user(client))


def _user(client: str) -> str:
    """The name that a client goes by on the broker."""
    name = client.removeprefix(f"{fleet.FLEET}/")
    return COORDINATOR if name == "coordinator" else name


def told(one: dict[str, Any]) -> str:
    """Lines for people."""
    head = f"{one['broker']}, {one['devices']} devices: seconds from offer to commit"
    rounds = [
        f"  round {k}: half in {r['p50_s']:.1f}, 99 % in {r['p99_s']:.1f}, the whole round {r['all_s']:.1f}"
        for k, r in one["rounds"].items()
    ]
    peak = f"its peak was {one['broker_peak_bytes'] / 1e6:.0f} MB"
    return "\n".join([head, *rounds, f"  broker killed: all had done {one['recovery_s']:.1f} s later; {peak}"])


class _Killed:
    """Kills a broker once so many deltas are in a ledger, and starts it again at once."""

    def __init__(self, broker: Broker, after: int) -> None:
        self._broker, self._after, self._over = broker, after, threading.Event()
        self.at_s, self.peak_bytes = 0.0, 0  # when it was; and the most that the broker held until then

    @contextmanager
    def watching(self, ledger: pathlib.Path) -> Iterator[None]:
        """While the block lasts."""
        thread = threading.Thread(target=self._watch, args=(ledger,))
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self, ledger: pathlib.Path) -> None:
        while not self._over.wait(0.1) and _results(ledger) < self._after:
            pass
        if self._over.is_set():
            return
        self.peak_bytes = read_memory(pathlib.Path(f"/proc/{self._broker.pid}/status")).peak_bytes
        os.kill(self._broker.pid, signal.SIGKILL)
        self.at_s = time.time()
        while not self._broker.revive() and not self._over.wait(0.1):
            pass


def _results(ledger: pathlib.Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as opened:
            return int(opened.execute("SELECT count(*) FROM results").fetchone()[0])
    except sqlite3.OperationalError:  # it is not there yet
        return 0


def _members(count: int, folder: pathlib.Path) -> list[fleet.Member]:
    """Devices with a few reviews each."""
    rows = studies.read_reviews(assets.reviews().train)
    folder.mkdir()
    members = []
    for k in range(count):
        path = folder / f"device-{k:04}.csv"
        studies.write_reviews(path, [rows[(k * ROWS + i) % len(rows)] for i in range(ROWS)])
        members.append(fleet.Member(path.stem, DataConfig(kind=DataKind.CSV, path=path)))
    return members


def _table(count: int) -> dict[str, Any]:
    """`coordinator.toml` as tables: no round is over before all have answered."""
    return {
        "name": "scale",
        "model": reviews.model(),
        "adapter": LORA,
        "levels": [LEVEL],
        "rounds": {"count": ROUNDS, "devices": count, "min_devices": count, "quorum": count, "deadline_s": 3600},
        "training": dict(TRAINING),
        "aggregation": {"rule": Rule.FREEZE_A.value},
    }


def _figures(kind: str, count: int, run: fleet.Run, killed: _Killed) -> dict[str, Any]:
    """What is told of a fleet, from its ledger."""
    with contextlib.closing(sqlite3.connect(ledger_path(run.config))) as ledger:
        asked = "SELECT round, device, created_at, committed_at FROM results JOIN tasks USING (task_id, device)"
        rows = ledger.execute(asked).fetchall()
    rounds = {}
    for round_ in range(1, ROUNDS + 1):
        of_round = [(begin_s, end_s) for number, _, begin_s, end_s in rows if number == round_]
        took_s = sorted(end_s - begin_s for begin_s, end_s in of_round)
        p99_s = took_s[math.ceil(0.99 * len(took_s)) - 1]
        all_s = max(end_s for _, end_s in of_round) - min(begin_s for begin_s, _ in of_round)
        rounds[round_] = {"p50_s": statistics.median(took_s), "p99_s": p99_s, "all_s": all_s}
    offered, used = Counter((number, device) for number, device, _, _ in rows), _used(run)
    return {
        "broker": kind,
        "devices": count,
        "rounds": rounds,
        "recovery_s": max(end_s for _, _, _, end_s in rows) - killed.at_s,
        "broker_peak_bytes": killed.peak_bytes,
        "complaint": complaint(count, offered, used, was_killed=killed.at_s > 0),
    }


def _used(run: fleet.Run) -> Counter[tuple[int, str]]:
    return Counter((row.round, row.device) for row in run.history.results if row.version is not None)


def complaint(count: int, committed: Counter[Any], used: Counter[Any], *, was_killed: bool) -> str:
    """What is not as promised, of deltas counted by round and device; empty if nothing."""
    if not was_killed:
        return "the broker was never killed"
    if len(used) != ROUNDS * count or set(used.values()) != {1} or used != committed:
        return f"{len(used)} of {ROUNDS * count} deltas are in a round, {committed.total()} were committed"
    return ""


def _allow_files(count: int) -> None:
    """Raise the limit of open files, as far as it can be: each connection is one, and each device's store has some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


if __name__ == "__main__":
    sys.exit(main())
