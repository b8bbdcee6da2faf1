"""A whole fleet around a tiny model: the coordinator and devices in this process, or each as a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from benchmarks.demo import write_toml
from coordinator.aggregate.blobs import NextAdapter, aggregate_blobs
from coordinator.builder import build
from coordinator.config import Config, load_config
from coordinator.errors import LedgerError
from coordinator.history import History, read_history
from coordinator.jobs import Jobs
from coordinator.ledger import Ledger
from coordinator.places import artifact_folder, ledger_path, received_folder
from edge_sdk.data import write_image_folder
from edge_sdk.wire import crash_points
from edge_sdk.wire.blobs import Blob, BlobStore
from tests.brokers import BrokerProcess, FleetMosquitto, Mosquitto
from tests.models import CORPUS, tiny_model

PATIENCE_S = 120.0
ROUNDS, TOKENS = 3, 16


@dataclass(frozen=True, slots=True)
class Tiny:
    """A tiny model and its built artifact, to be copied into runs, and what its configuration has of its own."""

    model: pathlib.Path
    artifact: pathlib.Path
    changes: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A language model, built once; its vocabulary makes the artifact a few megabytes."""
    folder = tmp_path_factory.mktemp("integration")
    return built(folder, tiny_model("llama", folder / "model", vocab_size=30_000, hidden_size=64))


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A model of images, built once, and images to evaluate it on. It makes other than TOKENS tokens of each."""
    folder = tmp_path_factory.mktemp("images")
    model = tiny_model("deit", folder / "model")
    changes = {
        "model": {"dir": str(model), "task": "image-classification", "labels": ["dark", "grey", "bright"]},
        "evaluation": {**image_data(folder / "held-out"), "rows": 8},
    }
    return built(folder, model, **changes)


def built(folder: pathlib.Path, model: pathlib.Path, /, **changes: Any) -> Tiny:
    """The artifact of a model, by the coordinator's own builder."""
    path = folder / "coordinator.toml"
    write_toml(path, coordinator_table(model, folder / "out", **changes))
    jobs = Jobs()
    try:
        build(load_config(path), jobs, lambda _line: None)
    finally:
        jobs.close()
    return Tiny(model, folder / "out" / "artifact", changes)


def image_data(path: pathlib.Path, rows: int = 24) -> dict[str, Any]:
    """Squares that are as bright as their label says, in a folder that a configuration's table names."""
    labels = np.arange(rows) % 3
    pixels = np.random.default_rng(0).integers(0, 80, (rows, 1, 9, 9)) + 80 * labels[:, None, None, None]
    write_image_folder(path, pixels, labels)
    return {"kind": "image-arrays", "path": str(path)}


def word_data(path: pathlib.Path, lines: int = 24) -> dict[str, Any]:
    """Sentences whose words are labelled by their length, in a file that a configuration's table names."""
    words = np.random.default_rng(0).permutation(" ".join(CORPUS * lines).split())
    sentences = np.array_split(words, lines)
    labels = [["short" if len(word) < 4 else "long" for word in sentence] for sentence in sentences]
    pairs = zip(sentences, labels, strict=True)
    text = "".join(json.dumps({"words": list(words), "labels": labels}) + "\n" for words, labels in pairs)
    path.write_text(text, encoding="utf-8")
    return {"kind": "json-lines", "path": str(path)}


def coordinator_table(model: pathlib.Path, out: pathlib.Path, /, **changes: Any) -> dict[str, Any]:
    """`coordinator.toml` for a short run of two levels."""
    table: dict[str, Any] = {
        "name": "tiny",
        "fleet": "test",
        "out": str(out),
        "model": {"dir": str(model), "task": "causal-lm"},
        "adapter": {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]},
        "levels": [{"name": "fp32", "bits": 32}, {"name": "int8", "bits": 8}],
        "rounds": {"count": ROUNDS, "devices": 2, "quorum": 1, "deadline_s": 60.0, "wait_s": 30.0},
        "training": {"steps": 3, "batch": 2, "tokens": TOKENS, "learning_rate": 1e-2},
    }
    return {**table, **changes}


def device_table(name: str, folder: pathlib.Path, broker: str, budget: str = "300MB", **changes: Any) -> dict[str, Any]:
    """`device.toml`, with texts of its own."""
    texts = folder / f"{name}-texts"
    texts.mkdir(exist_ok=True)
    for k, line in enumerate(CORPUS):
        (texts / f"{k}.txt").write_text(f"{name} says: {line} " * 12, encoding="utf-8")
    data = {"kind": "text-folder", "path": str(texts)}
    store = str(folder / f"{name}-store")
    return {
        "device": name,
        "fleet": "test",
        "broker": broker,
        "budget": budget,
        "store": store,
        "threads": 1,
        "data": data,
        **changes,
    }


def wait_until(what: Callable[[], object], why: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `what` is true; fail with `why` when it takes too long."""
    deadline_s = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > deadline_s:
            pytest.fail(f"waited {patience_s:.0f} s in vain: {why}")
        time.sleep(0.02)


@dataclass(slots=True)
class Processes:
    """`fedpeat serve` and `fedpeat-edge run` as a user starts them, and their words in files.

    `environments` and `wrappers` are, by name, what a process has besides, and what it is started under.
    """

    folder: pathlib.Path
    tiny: Tiny
    broker: BrokerProcess
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    wrappers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def out(self) -> pathlib.Path:
        """The run's folder."""
        return self.folder / "out"

    def serve(self, crash: str = "", **changes: Any) -> None:
        """Start the coordinator, or start it again; to be killed at the label `crash`, if there is one."""
        if not self.out.exists():
            shutil.copytree(self.tiny.artifact, self.out / "artifact")
        path = self.folder / "coordinator.toml"
        broker = {"url": self.broker.url, **self.tls("coordinator")}
        write_toml(path, coordinator_table(self.tiny.model, self.out, broker=broker, **changes))
        self._start("coordinator", ["-m", "coordinator.cli", "serve", "--config", str(path)], crash)

    def device(
        self, name: str, budget: str = "300MB", crash: str = "", broker: str = "", *, certificate: str = ""
    ) -> None:
        """Start a device, or start it again; over another way to the broker, if one is given.

        `certificate` is another's that it shows in place of its own.
        """
        path = self.folder / f"{name}.toml"
        tls = self.tls(f"devices/{certificate or name}")
        write_toml(path, device_table(name, self.folder, broker or self.broker.url, budget, **tls))
        self._start(name, ["-m", "edge_sdk.cli", "run", "--config", str(path)], crash)

    def mark(self, name: str) -> pathlib.Path:
        """What is there once the process, or a worker of it, was killed at its label."""
        return self.folder / f"{name}.killed"

    def tls(self, who: str) -> dict[str, Any]:
        """The table of that name for a broker that wants certificates; nothing for another."""
        if not isinstance(self.broker, FleetMosquitto):
            return {}
        files = dataclasses.asdict(self.broker.files(who))
        return {"tls": {name: str(path) for name, path in files.items()}}

    def kill(self, name: str) -> None:
        """SIGKILL: nothing is said, nothing is closed."""
        self.running[name].kill()
        self.running.pop(name).wait()

    def end(self, name: str) -> int:
        """Ask it to stop, as Ctrl-C does; its exit status."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGINT)
        return process.wait(30)

    def finish(self) -> int:
        """Wait for the coordinator's own end; its exit status."""
        return self.running.pop("coordinator").wait(PATIENCE_S)

    def close(self) -> None:
        """End what still runs."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(30)

    def log(self, name: str) -> str:
        """What it said so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def history(self) -> History:
        """The ledger, read."""
        return read_history(self.out / "ledger.sqlite")

    def report(self) -> dict[str, Any]:
        """The run's report."""
        report: dict[str, Any] = json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        return report

    def _start(self, name: str, arguments: list[str], crash: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            crash_at = f"{crash}:1:{self.mark(name)}" if crash else ""
            own = self.environments.get(name, {})
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", crash_points.VARIABLE: crash_at, **own}
            command = [*self.wrappers.get(name, []), sys.executable, *arguments]
            self.running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=pathlib.Path.cwd()
            )


@pytest.fixture
def processes(tmp_path: pathlib.Path, tiny: Tiny, mosquitto: Mosquitto) -> Iterator[Processes]:
    """Nothing started yet; everything ended afterwards."""
    found = Processes(tmp_path, tiny, mosquitto)
    yield found
    found.close()


def assert_counted_once(history: History, rounds: int = ROUNDS) -> None:
    """Every round was aggregated once, and each device's delta counts at most once in it."""
    assert [adapter.version for adapter in history.adapters] == list(range(rounds + 1))
    counted = [(row.round, row.device) for row in history.results]
    assert len(set(counted)) == len(counted)
    assert {round_ for round_, _device in counted} == set(range(1, rounds + 1))


def rounds_done(processes: Processes) -> int:
    """How many rounds the ledger has."""
    try:
        return max((adapter.version for adapter in processes.history().adapters), default=0)
    except LedgerError:  # the coordinator is only just starting
        return 0


def assert_each_adapter_follows(config: Config, *, moments: bool = False) -> None:
    """Aggregated again from the blobs in the ledger, every version comes out as it is there, and so do its moments.

    Each result counts with the weight that its staleness has, and is in one version.
    """
    store, received = BlobStore(artifact_folder(config)), BlobStore(received_folder(config))
    history = read_history(ledger_path(config))
    adapters = [Blob(adapter.sha256, adapter.size_bytes) for adapter in history.adapters]
    with Ledger(ledger_path(config), config.name, config.digest()) as ledger:
        for version in range(1, len(adapters)):
            rows = ledger._db.execute("SELECT task_id FROM results WHERE version = ?", (version,))
            tasks = tuple(task_id for (task_id,) in rows)
            assert len(tasks) == len(history.used(version))
            deltas = [(blob, config.rounds.weight(version - round_)) for blob, round_ in ledger.deltas(tasks)]
            before = adapters[version - 1], ledger.moments(version - 1)
            made = aggregate_blobs(config.aggregation, store, received, *before, deltas)
            assert isinstance(made, NextAdapter)
            assert (made.blob, made.moments) == (adapters[version], ledger.moments(version))
            assert (made.moments is not None) == moments
