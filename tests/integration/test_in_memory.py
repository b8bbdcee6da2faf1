"""The same fleet over the in-memory broker: the real daemon, agents and workers, and a network that misbehaves."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from benchmarks.demo import write_toml
from coordinator.builder import build, load_artifact
from coordinator.config import Rule, load_config
from coordinator.daemon import Daemon
from coordinator.history import History, read_history
from coordinator.jobs import Jobs
from coordinator.ledger import Ledger
from coordinator.round_states import State
from coordinator.screen import Screen
from edge_sdk.agent import Agent
from edge_sdk.config import load_config as load_device
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.tensors import read_tensors
from edge_sdk.wire.transport import MemoryBroker
from tests.integration.conftest import (
    PATIENCE_S,
    ROUNDS,
    Tiny,
    assert_counted_once,
    coordinator_table,
    device_table,
    wait_until,
)
from tests.models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass(slots=True)
class Fleet:
    """A coordinator and devices around one in-memory broker, each in a thread of this process."""

    folder: pathlib.Path
    tiny: Tiny
    broker: MemoryBroker
    changes: dict[str, Any] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def device(self, name: str, budget: str = "300MB") -> Iterator[None]:
        """A device, while the block lasts."""
        path = self.folder / f"{name}.toml"
        write_toml(path, device_table(name, self.folder, "mqtt://127.0.0.1", budget))
        config = load_device(path)
        words = self.words[name] = []
        transport = self.broker.connect(f"test-{name}", Agent.will(config))
        agent = Agent(config, transport, words.append)

        def live() -> None:
            while not self._over.is_set():
                agent.turn()
            agent.close()
            transport.close()

        thread = threading.Thread(target=live, name=name)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def serve(self) -> State:
        """The coordinator, to its end."""
        out = self.folder / "out"
        if not out.exists():
            shutil.copytree(self.tiny.artifact, out / "artifact")
        path = self.folder / "coordinator.toml"
        write_toml(path, coordinator_table(self.tiny.model, out, **self.changes))
        config = load_config(path)
        transport, jobs = self.broker.connect("test-coordinator"), Jobs()
        deadline_s = time.monotonic() + PATIENCE_S
        try:
            with Ledger(out / "ledger.sqlite", config.name, config.digest()) as ledger:
                daemon = Daemon(config, load_artifact(config), ledger, transport, jobs, Screen())
                return daemon.run(lambda: time.monotonic() > deadline_s, lambda: None)
        finally:
            jobs.close()
            transport.close()

    def history(self) -> History:
        """The ledger, read."""
        return read_history(self.folder / "out" / "ledger.sqlite")


def test_a_run_over_a_perfect_network(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """Two devices, three rounds; each delta is in the ledger once, and the adapter changes every round."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve() is State.DONE
    history = fleet.history()
    assert_counted_once(history)
    assert len(history.results) == 2 * ROUNDS
    assert len({adapter.sha256 for adapter in history.adapters}) == ROUNDS + 1


def test_a_run_over_a_network_that_loses_repeats_and_swaps(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """With messages lost, doubled and late the run still completes, and nothing counts twice."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker(seed=1, loss=0.03, duplicate=0.1, reorder=0.1))
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve() is State.DONE
    assert_counted_once(fleet.history())


def test_a_run_in_which_everybody_loses_the_broker(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """The broker forgets everything in the middle of the run: both ends say it again."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker())

    def crash() -> None:
        wait_until(lambda: any("training" in line for line in fleet.words["a"]), "a device trains")
        fleet.broker.crash()
        time.sleep(0.5)
        fleet.broker.restart()

    with fleet.device("a"), fleet.device("b"):
        saboteur = threading.Thread(target=crash)
        saboteur.start()
        assert fleet.serve() is State.DONE
        saboteur.join()
    assert_counted_once(fleet.history())


@pytest.mark.parametrize("adapter", [{"kind": "bias"}, {"kind": "layers", "last": 2}], ids=["bias", "layers"])
def test_another_kind_of_adapter_is_a_line_in_the_configuration(
    tmp_path: pathlib.Path, adapter: dict[str, Any]
) -> None:
    """The same fleet trains biases, or whole blocks; every tensor of the adapter is another one after a round."""
    levels = [{"name": "fp32", "bits": 32}, {"name": "int8-last1", "bits": 8, "train_last": 1}]
    model = tiny_model("gpt2", tmp_path / "model")
    changes = {"adapter": adapter, "levels": levels, "rounds": {"count": 1, "devices": 2, "quorum": 2}}
    path = tmp_path / "coordinator.toml"
    write_toml(path, coordinator_table(model, tmp_path / "out", **changes))
    config, jobs = load_config(path), Jobs()
    try:
        build(config, jobs, lambda _line: None)
    finally:
        jobs.close()
    fleet = Fleet(tmp_path, Tiny(model, tmp_path / "out" / "artifact"), MemoryBroker(), changes)
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve() is State.DONE
    history = fleet.history()
    assert config.aggregation.rule is Rule.MEAN
    assert len(history.results) == 2
    store = BlobStore(tmp_path / "out" / "artifact")
    before, after = (read_tensors(store.path(one.sha256)) for one in history.adapters)
    assert before.keys() == after.keys()
    assert not {name for name in before if np.array_equal(before[name], after[name])}
