"""Faults by kind, each in a real fleet: what was done to it, how often, and what it came to."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from benchmarks.reliability.fleets import FLEET, PATIENCE_S, Fleet, Tally, Unsurvived
from benchmarks.reliability.misfortune import Ending, Misfortune
from benchmarks.reliability.proxy import FaultProxy
from benchmarks.reliability.replayer import Replayer
from coordinator.history import ResultRow
from edge_sdk.wire.lifeline import end_process
from tests.integration.conftest import Tiny

SEED: Final = 1
TEN_YEARS_S: Final = 10 * 365 * 86_400
# libfaketime shifts the clock that waits are made with, too, and Python's waits never end then. So the wall clock alone
# is shifted, in every Python process of the fleet, by what a file says at that moment.
CLOCK: Final = """
import pathlib, time
_jump, _time, _localtime = pathlib.Path({path!r}), time.time, time.localtime
def _now():
    return _time() + (float(_jump.read_text() or 0) if _jump.exists() else 0.0)
time.time = _now
time.time_ns = lambda: int(_now() * 1e9)
time.localtime = lambda seconds=None: _localtime(_now() if seconds is None else seconds)
"""
FROZEN_S: Final = 5.0


class Impossible(Exception):  # noqa: N818 - an answer: this machine cannot do it
    """What this machine lacks to do this to a fleet."""


@dataclass(slots=True)
class Fault:
    """One kind of fault in a fleet around `broker`: `injected` times in one run.

    `lacks` says why it could not be tried, and is empty else.
    """

    kind: str
    broker: str
    injected: int = 0
    survived: bool = False
    lacks: str = ""
    tally: Tally = field(default_factory=Tally)
    wall_s: float = 0.0

    @property
    def passed(self) -> bool:
        """It was done, the run completed, and nothing is amiss."""
        return self.injected > 0 and self.survived and not self.tally.complaints


@dataclass(slots=True)
class _Run:
    """A fleet to do something to, and where what is started meanwhile is ended."""

    fleet: Fleet
    stack: contextlib.ExitStack

    def start(self, line: str = "") -> None:
        """Everybody; device `a` over `line`."""
        self.fleet.serve()
        self.fleet.processes.device("a", broker=line)
        self.fleet.processes.device("b")

    def finish(self) -> None:
        self.fleet.until(self.fleet.is_complete, "every round is done and every result has its receipt")

    def result_of(self, device: str, round_: int = 1) -> ResultRow | None:
        history = self.fleet.history()
        rows = () if history is None else history.results
        return next((row for row in rows if (row.device, row.round) == (device, round_)), None)

    def through(self, down: Misfortune, up: Misfortune | None = None) -> FaultProxy:
        proxy = FaultProxy(self.fleet.broker.port, SEED, up=up or down, down=down)
        return self.stack.enter_context(proxy)


def inject(kind: str, broker: str, tiny: Tiny, folder: pathlib.Path) -> Fault:
    """Do what `kind` names to a fleet around `tiny` and a `broker` of `fleets.BROKERS`, whose files lie in `folder`."""
    fault, began_s = Fault(kind, broker), time.monotonic()
    with contextlib.ExitStack() as stack:
        run = _Run(Fleet(tiny, folder, stack, broker=broker), stack)
        try:
            fault.injected = KINDS[kind](run)
            fault.survived = True
            fault.tally = run.fleet.judged()
        except Impossible as error:
            fault.lacks = str(error)
        except Unsurvived as error:
            fault.tally.complaints.append(str(error))
    fault.wall_s = time.monotonic() - began_s
    return fault


# ---- the network


def _slow(run: _Run) -> int:
    proxy = run.through(Misfortune(latency_s=0.05, jitter_s=0.1))
    run.start(proxy.url)
    run.finish()
    proxy.close()
    return proxy.injected["delays"]


def _sliced(run: _Run) -> int:
    proxy = run.through(Misfortune(slice_bytes=1500))
    run.start(proxy.url)
    run.finish()
    proxy.close()
    return proxy.injected["slices"]


def _cut(ending: Ending, bytes_: int) -> Callable[[_Run], int]:
    def cut(run: _Run) -> int:
        proxy = run.through(Misfortune(cut_after_bytes=bytes_, ending=ending))
        run.start(proxy.url)
        run.finish()
        proxy.close()
        return proxy.injected[ending.value]

    return cut


def _black_hole(run: _Run) -> int:
    """The first connection alone: a keepalive notices it, and the next one is whole."""
    proxy = run.through(Misfortune(cut_after_bytes=3_000_000, ending=Ending.BLACK_HOLE), Misfortune())
    run.start(proxy.url)
    run.fleet.until(lambda: proxy.injected[Ending.BLACK_HOLE.value], "the first connection is half-open")
    proxy.down = Misfortune()
    run.finish()
    return proxy.injected[Ending.BLACK_HOLE.value]


def _corrupted(run: _Run) -> int:
    proxy = run.through(Misfortune(flips=1e-6))
    run.start(proxy.url)
    run.finish()
    proxy.close()
    return proxy.injected["flips"]


def _replayed(run: _Run) -> int:
    replayer = Replayer(run.fleet.broker.url, FLEET, SEED)
    run.stack.callback(replayer.close)
    run.start()
    run.finish()
    return replayer.replayed


# ---- processes and machines


def _broker_killed(run: _Run) -> int:
    """While tasks are open, and again when a round is done: it comes back having forgotten everything.

    The coordinator, which alone gives receipts, stands still until who counts them listens again.
    """
    fleet = run.fleet
    run.start()
    for what in (fleet.has_open_task, lambda: run.result_of("b")):
        fleet.until(what, "the run has got so far")
        coordinator = fleet.processes.running["coordinator"]
        coordinator.send_signal(signal.SIGSTOP)
        try:
            fleet.broker.kill()
            fleet.until(lambda: not fleet.observer.listens, "the observer has noticed")
            fleet.broker.start()
            fleet.until(lambda: fleet.observer.listens, "the observer is back")
        finally:
            coordinator.send_signal(signal.SIGCONT)
    run.finish()
    return 2


def _frozen(name: str) -> Callable[[_Run], int]:
    def freeze(run: _Run) -> int:
        run.start()
        run.fleet.until(run.fleet.has_open_task, "a task is open")
        process = run.fleet.processes.running[name]
        process.send_signal(signal.SIGSTOP)
        try:
            if name == "a":  # what others get meanwhile is theirs
                run.fleet.until(lambda: run.result_of("b"), "the other device has delivered")
            else:
                time.sleep(FROZEN_S)
        finally:
            process.send_signal(signal.SIGCONT)
        run.finish()
        return 1

    return freeze


def _clock(run: _Run) -> int:
    """The wall clocks of the coordinator and of a device jump by ten years, one each way, while tasks are open."""
    jumps = {"coordinator": TEN_YEARS_S, "a": -TEN_YEARS_S}
    for name in jumps:
        folder = run.fleet.folder / f"{name}-clock"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(CLOCK.format(path=str(folder / "jump")), encoding="utf-8")
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        run.fleet.processes.environments[name] = {"PYTHONPATH": path}
    run.start()
    run.fleet.until(run.fleet.has_open_task, "a task is open")
    for name, jump_s in jumps.items():
        (run.fleet.folder / f"{name}-clock" / "jump").write_text(str(jump_s), encoding="utf-8")
    run.fleet.until(lambda: run.result_of("a"), "the device has delivered, ten years ago")
    run.finish()
    committed_at = {row[0] for row in _times(run)}
    if not any(at > time.time() + TEN_YEARS_S / 2 for at in committed_at):
        msg = "the coordinator's clock never jumped"
        raise Unsurvived(msg)
    return len(jumps)


def _times(run: _Run) -> list[tuple[float]]:
    """When results were committed, by the coordinator's own clock."""
    with contextlib.closing(sqlite3.connect(run.fleet.processes.out / "ledger.sqlite")) as ledger:
        return ledger.execute("SELECT committed_at FROM results").fetchall()


# ---- disks


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path, size_mb: int) -> Iterator[None]:
    """A file system of its own at `folder`. Raises Impossible without the right to mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        msg = "the right to mount a tmpfs"
        raise Impossible(msg)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _disk_full(run: _Run) -> int:
    """Something else fills the device's disk while an artifact is on its way in, and goes again.

    The device declines and stays; the policy does not offer it what had no room again, so the other one completes.
    """
    fleet = run.fleet
    store = fleet.folder / "a-store"
    run.stack.enter_context(_small_disk(store, 150))
    run.stack.callback(fleet.processes.close)  # before the disk goes
    proxy = run.through(Misfortune(bytes_s=2e6), Misfortune())
    run.start(proxy.url)
    partial = store / "partial"
    fleet.until(lambda: any(path.suffix == ".data" for path in partial.glob("*")), "a transfer has begun")
    filler = store / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    fleet.until(lambda: "no-space" in fleet.processes.log("a"), "the device says that its disk is full")
    fleet.until(lambda: run.result_of("b"), "the other device has delivered")
    filler.unlink()
    proxy.down = Misfortune()
    proxy.break_all()
    run.finish()
    return 1


def _io_error(run: _Run) -> int:
    """An fsync of the device fails: it says so and ends; started again, it goes on."""
    if shutil.which("strace") is None:
        msg = "strace; on Debian: apt-get install strace"
        raise Impossible(msg)
    processes = run.fleet.processes
    processes.wrappers["a"] = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fsync"]
    processes.wrappers["a"] += ["-e", "inject=fsync:error=EIO:when=3"]
    run.fleet.serve()
    processes.device("a")
    armed = processes.running.pop("a")
    run.stack.callback(end_process, armed)
    processes.device("b")
    try:
        status = armed.wait(PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        msg = "no fsync failed"
        raise Unsurvived(msg) from error
    words = processes.log("a")
    if status == 0 or "Input/output error" not in words or "Traceback" in words:
        msg = f"the device ended with {status} and did not say why: {words[-200:]}"
        raise Unsurvived(msg)
    processes.wrappers.clear()
    processes.device("a")
    run.finish()
    return 1


KINDS: Final[dict[str, Callable[[_Run], int]]] = {
    "late and jittery pieces": _slow,
    "slices of 1 to 1500 bytes": _sliced,
    "resets after 5 MB of a connection": _cut(Ending.RESET, 5_000_000),
    "closes in the middle of a packet": _cut(Ending.CLOSE, 5_000_000),
    "half-open connection": _black_hole,
    "bits flipped on the wire": _corrupted,
    "messages said again, late and reordered": _replayed,
    "broker killed, its state lost": _broker_killed,
    "frozen device": _frozen("a"),
    "frozen coordinator": _frozen("coordinator"),
    "clocks that jump ten years": _clock,
    "disk full": _disk_full,
    "I/O error of an fsync": _io_error,
}
QUICK: Final = (
    "resets after 5 MB of a connection",
    "bits flipped on the wire",
    "messages said again, late and reordered",
    "broker killed, its state lost",
    "frozen device",
    "disk full",
)
