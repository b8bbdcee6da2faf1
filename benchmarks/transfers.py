"""What a transfer costs: an artifact of 2 GiB on its way to a device that is killed half-way, and its speed.

    python -m benchmarks.transfers [--check] [--gib 2]

The coordinator and the agent are the programs that users start, around a Mosquitto on loopback; the model is a BERT of
random weights that is nearly all vocabulary, which a device trains like any other. The agent waits for a task, gets
one, is killed with SIGKILL when half of the artifact is there, and is started again. What is told:

- memory: the most that either agent had resident, above what it had while it waited;
- resumption: what the coordinator sent above the artifact's size. A kill may cost chunks that were asked for and not
  yet kept, a window that downloads side by side share, and what came since the journal was written;
- a broker's memory: what it has resident, above what it had while nobody sent anything, when the agent has been frozen
  for seconds in the middle of a file: not more than was asked for;
- speed: bytes per second between a tenth and nine tenths of the artifact's largest file, before the kill and after it;
- the peer: as many bytes as `RAW_BYTES` in chunks of the same size, published with QoS 1 by one bare paho client and
  counted by another, each in a process of its own, over the same broker. They keep nothing and verify nothing.

The two are measured in turns. `--check` exits 1 unless the memory is at most 16 MiB, what was sent twice is within its
bound, the broker holds a window of chunks and 2 MiB at most for a frozen device, the speed is at least 0.7 of the
peer's, and the device's task ends well. Writes
benchmarks/results/transfers.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np

from benchmarks import studies
from benchmarks.demo import write_toml
from benchmarks.fetch import say
from benchmarks.machine import machine, write_json
from coordinator.broker import Broker
from coordinator.history import read_history
from edge_sdk.memory import Memory, read_memory
from edge_sdk.wire.chunks import SAVE_BYTES
from edge_sdk.wire.endpoint import address
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.messages import CHUNK_BYTES, MAX_WINDOW
from export.cache import cache_folder

RESULTS: Final = pathlib.Path(__file__).parent / "results"
MIB, GIB = 1 << 20, 1 << 30
WIDTH: Final = 64
RAW_BYTES: Final = 192 * MIB  # fewer chunks than a broker keeps for a subscriber that is slow
TURNS: Final = 3
MOST_MEMORY_BYTES, LEAST_SPEED = 16 * MIB, 0.7
MOST_AGAIN_BYTES: Final = MAX_WINDOW * CHUNK_BYTES + SAVE_BYTES
MOST_HELD_BYTES: Final = MAX_WINDOW * CHUNK_BYTES + 2 * MIB
PATIENCE_S, SETTLED_S, LOOK_S = 600.0, 3.0, 0.02
FROZEN_S: Final = 5.0
ROWS, TOKENS, LABELS = 32, 8, ("no", "yes")
FLEET: Final = "transfers"
ADAPTER: Final = {"kind": "lora", "rank": 2, "alpha": 4, "targets": ["query", "value"]}
LEVEL: Final = {"name": "fp32", "bits": 32}


@dataclass(frozen=True, slots=True)
class Transfer:
    """One artifact on its way to one device that was killed on the way."""

    size_bytes: int
    sent_bytes: int
    idle_bytes: int
    peak_bytes: int
    held_bytes: int  # by the broker
    bytes_s: float
    resumed_bytes_s: float
    ended: str

    @property
    def again_bytes(self) -> int:
        """Sent, and not needed."""
        return self.sent_bytes - self.size_bytes

    @property
    def memory_bytes(self) -> int:
        """Above idle."""
        return self.peak_bytes - self.idle_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status."""
    exit_on_terminate()
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=description)
    parser.add_argument(
        "--gib", type=float, default=2, help="the artifact's size (default: 2; of others no results file)"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 unless all is within its bounds")
    asked = parser.parse_args(arguments)
    model = _model_of(asked.gib)
    artifact = studies.newest(model.name, studies.request_of(_model(model), ADAPTER, [LEVEL], TOKENS, parity=False))
    transfers, raw = [], []
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        for turn in range(TURNS):
            # A new one each time, and bare messages last: what they made it take it would not have to take again.
            broker = Broker(folder / f"broker-{turn}", FLEET, only="mosquitto")
            try:
                transfers.append(transfer(model, artifact, broker, folder / f"turn-{turn}"))
                raw.append(raw_bytes_s(broker.url))
            finally:
                broker.close()
            say(f"turn {turn}: raw {raw[-1] / 1e6:.0f} MB/s, {transfers[-1]}")
    found = figures(transfers, raw)
    print(json.dumps(found, indent=1))
    if asked.gib == parser.get_default("gib"):
        write_json(RESULTS / "transfers.json", {"machine": machine(), **found})
    broken = complaints(transfers, raw)
    for complaint in broken:
        print(f"FAIL {complaint}")
    return int(asked.check and bool(broken))


def figures(transfers: Sequence[Transfer], raw: Sequence[float]) -> dict[str, Any]:
    """All that is told; speeds are medians, memory and what was sent again the worst."""
    return {
        "size_bytes": transfers[0].size_bytes,
        "memory_bytes": max(one.memory_bytes for one in transfers),
        "idle_bytes": max(one.idle_bytes for one in transfers),
        "again_bytes": max(one.again_bytes for one in transfers),
        "held_bytes": max(one.held_bytes for one in transfers),
        "bytes_s": [one.bytes_s for one in transfers],
        "resumed_bytes_s": [one.resumed_bytes_s for one in transfers],
        "raw_bytes_s": list(raw),
        "share_of_raw": statistics.median(one.bytes_s for one in transfers) / statistics.median(raw),
    }


def complaints(transfers: Sequence[Transfer], raw: Sequence[float]) -> list[str]:
    """What `--check` does not let pass."""
    told, ends = figures(transfers, raw), {one.ended for one in transfers}
    memory, again, held = (told[name] for name in ("memory_bytes", "again_bytes", "held_bytes"))
    share = told["share_of_raw"]
    found = {
        f"the agent took {memory / MIB:.1f} MiB above idle": memory > MOST_MEMORY_BYTES,
        f"{again / MIB:.1f} MiB were sent again": not 0 <= again <= MOST_AGAIN_BYTES,
        f"the broker held {held / MIB:.1f} MiB for a frozen device": held > MOST_HELD_BYTES,
        f"a transfer has {share:.2f} of the speed of raw messages": share < LEAST_SPEED,
        f"the device's task ended as {', '.join(sorted(ends))}": ends != {"result"},
    }
    return [complaint for complaint, applies in found.items() if applies]


def raw_bytes_s(url: str) -> float:
    """How fast bare paho moves chunks over the broker."""
    broker = address(url)
    numbers = [broker.host, str(broker.port), FLEET, str(CHUNK_BYTES), str(RAW_BYTES // CHUNK_BYTES)]
    command = [sys.executable, "-m", "benchmarks.peers.raw_mqtt"]
    with subprocess.Popen([*command, "count", *numbers], stdout=subprocess.PIPE, text=True) as counter:
        if counter.stdout is None:
            raise AssertionError
        counter.stdout.readline()
        subprocess.run([*command, "publish", *numbers], check=True)
        return (RAW_BYTES - CHUNK_BYTES) / float(counter.stdout.readline())


def transfer(model: pathlib.Path, artifact: pathlib.Path, broker: Broker, folder: pathlib.Path) -> Transfer:
    """From a device that waits, through its death, to a delta that was aggregated. Raises TimeoutError."""
    folder.mkdir()
    out, data = folder / "coordinator", folder / "data"
    _write_rows(data)
    shutil.copytree(artifact, out / "artifact", copy_function=os.link)
    store = folder / "store"
    device = {
        "device": "board",
        "fleet": FLEET,
        "broker": broker.url,
        "budget": "6GB",
        "store": str(store),
        "threads": 1,
    }
    write_toml(folder / "device.toml", {**device, "data": {"kind": "token-arrays", "path": str(data)}})
    write_toml(folder / "coordinator.toml", _table(model, out, broker.url))
    largest = max((artifact / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    arriving = store / "partial" / f"{largest.name}.data"
    whole_bytes = largest.stat().st_size
    agent = [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(folder / "device.toml")]
    serve = [sys.executable, "-m", "coordinator.cli", "serve", "--config", str(folder / "coordinator.toml")]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "agent.log").open("wb"))
        first = stack.enter_context(_running(agent, log))
        _wait(lambda: b"connected" in (folder / "agent.log").read_bytes(), "the agent does not connect")
        time.sleep(SETTLED_S)
        idle_bytes, broker_bytes = _memory(first.pid).resident_bytes, _memory(broker.pid).resident_bytes
        coordinator = stack.enter_context(_running(serve, stack.enter_context((folder / "serve.log").open("wb"))))
        speed = _speed(arriving, 0.1 * whole_bytes, 0.5 * whole_bytes)
        peak_bytes = _memory(first.pid).peak_bytes
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = stack.enter_context(_running(agent, log))
        resumed = _speed(arriving, 0.6 * whole_bytes, 0.9 * whole_bytes)
        held_bytes = _beside_frozen(second, broker) - broker_bytes
        _wait(lambda: not arriving.exists(), "the artifact does not become whole")
        peak_bytes = max(peak_bytes, _memory(second.pid).peak_bytes)
        coordinator.wait(PATIENCE_S)
    history = read_history(out / "ledger.sqlite")
    ended = "result" if history.results else ", ".join(row.kind for row in history.answers) or "nothing"
    sizes = sum(blob.stat().st_size for blob in (store / "blobs").iterdir())
    return Transfer(sizes, history.traffic[0].sent_bytes, idle_bytes, peak_bytes, held_bytes, speed, resumed, ended)


def _beside_frozen(agent: subprocess.Popen[bytes], broker: Broker) -> int:
    """What a broker has resident while an agent, which had asked for chunks, does not read."""
    agent.send_signal(signal.SIGSTOP)
    try:
        time.sleep(FROZEN_S)
        return _memory(broker.pid).resident_bytes
    finally:
        agent.send_signal(signal.SIGCONT)


def _model_of(gib: float) -> pathlib.Path:
    """A model of so many GiB, made once in the cache folder by a process of its own."""
    folder = cache_folder() / "models" / f"transfers-{gib:g}"
    if not folder.is_dir():
        say(f"making a model of {gib:g} GiB")
        vocabulary = round(gib * GIB / (4 * WIDTH))
        subprocess.run([sys.executable, "-m", "benchmarks.large_vocabulary", str(folder), str(vocabulary)], check=True)
    return folder


def _model(folder: pathlib.Path) -> dict[str, Any]:
    return {"dir": str(folder), "task": "sequence-classification", "labels": LABELS}


def _table(model: pathlib.Path, out: pathlib.Path, url: str) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    return {
        "name": "transfers",
        "fleet": FLEET,
        "out": str(out),
        "broker": {"url": url},
        "model": _model(model),
        "adapter": ADAPTER,
        "levels": [LEVEL],
        "rounds": {"count": 1, "devices": 1, "deadline_s": PATIENCE_S},
        "training": {"steps": 1, "batch": 2, "tokens": TOKENS},
    }


def _write_rows(folder: pathlib.Path) -> None:
    """A token folder of chance."""
    random = np.random.default_rng(0)
    folder.mkdir()
    np.save(folder / "ids.npy", random.integers(5, 1000, (ROWS, TOKENS)).astype(np.int32))
    np.save(folder / "lengths.npy", np.full(ROWS, TOKENS, np.int32))
    np.save(folder / "labels.npy", random.integers(0, len(LABELS), ROWS))


@contextlib.contextmanager
def _running(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended when the block is left."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def _speed(path: pathlib.Path, begin_bytes: float, end_bytes: float) -> float:
    """How fast a file grows between two sizes, in bytes per second; it returns when the second is reached."""
    moments = []
    for size_bytes in (begin_bytes, end_bytes):
        _wait(lambda: path.exists() and path.stat().st_size >= size_bytes, "nothing arrives")  # noqa: B023 - now
        moments.append((time.monotonic(), path.stat().st_size))
    (begin_s, begun), (end_s, ended) = moments
    return (ended - begun) / (end_s - begin_s)


def _wait(what: Callable[[], object], why: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > deadline_s:
            raise TimeoutError(why)
        time.sleep(LOOK_S)


def _memory(pid: int) -> Memory:
    return read_memory(pathlib.Path(f"/proc/{pid}/status"))


if __name__ == "__main__":
    sys.exit(main())
