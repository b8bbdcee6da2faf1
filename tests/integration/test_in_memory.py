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

import pytest

from benchmarks.demo import write_toml
from coordinator.builder import load_artifact
from coordinator.config import load_config
from coordinator.daemon import Daemon
from coordinator.history import History, read_history
from coordinator.jobs import Jobs
from coordinator.ledger import Ledger
from coordinator.report import EMULATOR, FULL
from coordinator.round_states import State
from coordinator.screen import Screen
from edge_sdk.agent import Agent
from edge_sdk.config import load_config as load_device
from edge_sdk.wire.transport import MemoryBroker
from tests.integration.conftest import (
    PATIENCE_S,
    ROUNDS,
    Tiny,
    assert_counted_once,
    coordinator_table,
    device_table,
    image_data,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass(slots=True)
class Fleet:
    """A coordinator and devices around one in-memory broker, each in a thread of this process."""

    folder: pathlib.Path
    tiny: Tiny
    broker: MemoryBroker
    words: dict[str, list[str]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def device(self, name: str, budget: str = "300MB", **changes: Any) -> Iterator[None]:
        """A device, while the block lasts."""
        path = self.folder / f"{name}.toml"
        write_toml(path, device_table(name, self.folder, "mqtt://127.0.0.1", budget, **changes))
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
        write_toml(path, coordinator_table(self.tiny.model, out, **self.tiny.changes))
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


def test_a_fleet_learns_from_images(tmp_path: pathlib.Path, tiny_images: Tiny) -> None:
    """By configuration alone: two devices with images of their own, on which each learns; accuracy is measured."""
    fleet = Fleet(tmp_path, tiny_images, MemoryBroker())
    one, other = (image_data(tmp_path / name) for name in "ab")
    with fleet.device("a", data=one), fleet.device("b", data=other):
        assert fleet.serve() is State.DONE
    history = fleet.history()
    assert_counted_once(history)
    assert len(history.results) == 2 * ROUNDS
    assert history.results[-1].report.loss_after < history.results[0].report.loss_before
    kinds = {kind: history.evaluated(ROUNDS)[kind] for kind in (FULL, EMULATOR)}
    assert all(row.accuracy is not None and row.rows == 8 for row in kinds.values())


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
