"""Real fleets whose rounds do not wait: extra devices, results that come late, and a buffer that fills."""

from __future__ import annotations

import pathlib
import signal
from typing import Any

import pytest

from coordinator.config import load_config
from coordinator.history import History
from coordinator.round_states import State
from edge_sdk.wire.transport import MemoryBroker
from tests.integration.conftest import TOKENS, Processes, Tiny, assert_each_adapter_follows, rounds_done, wait_until
from tests.integration.test_in_memory import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

COURSES: dict[str, dict[str, Any]] = {
    "extra": {"participants": 1, "extra": 1},
    "late": {"participants": 1, "extra": 1, "late": "discount", "max_staleness": 3},
    "buffered": {"mode": "buffered", "buffer": 2, "max_staleness": 3},
}
VERSIONS = 4
HOUR_S = 3600.0  # of deadline: whoever waits for a silent device is found out


def assert_nothing_is_left(history: History) -> None:
    """All that was accepted is in a version, no later than it may be, and no task is open."""
    assert [adapter.version for adapter in history.adapters] == list(range(VERSIONS + 1))
    assert all(row.version is not None and 0 <= row.staleness <= 3 for row in history.results)
    assert history.open_tasks == 0


@pytest.mark.parametrize("course", COURSES)
def test_a_run_of_each_course(tmp_path: pathlib.Path, tiny: Tiny, course: str) -> None:
    """Over a network that loses, repeats and swaps, each version is made of what the ledger says, and as late."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker(seed=3, loss=0.02, duplicate=0.1, reorder=0.1))
    rounds = {"count": VERSIONS, "devices": 2, "deadline_s": 60.0, "wait_s": 30.0, **COURSES[course]}
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve(rounds=rounds) is State.DONE
    history = fleet.history()
    assert_nothing_is_left(history)
    made = [len(history.used(version)) for version in range(1, VERSIONS + 1)]
    assert all(count >= (2 if course == "buffered" else 1) for count in made)
    if course == "extra":
        assert made == [1] * VERSIONS, "the first result closes a round, and the other device's is not used"
    assert_each_adapter_follows(load_config(fleet.folder / "coordinator.toml"))


@pytest.mark.broker
def test_a_buffer_fills_without_a_frozen_device(processes: Processes) -> None:
    """One of three devices is frozen in its first task, which has an hour, and the coordinator is killed: the versions
    are made of the others' results, and nobody waits.
    """
    rounds = {"count": VERSIONS, "devices": 3, "deadline_s": HOUR_S, "wait_s": 60.0, **COURSES["buffered"]}
    processes.serve(rounds=rounds)
    for name in "abc":
        processes.device(name)
    wait_until(lambda: "offered" in processes.log("c"), "the device has a task")
    processes.running["c"].send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: rounds_done(processes) >= 1, "a version is made")
        processes.kill("coordinator")
        processes.serve(rounds=rounds)
        assert processes.finish() == 0, processes.log("coordinator")
    finally:
        processes.running["c"].send_signal(signal.SIGCONT)
    history = processes.history()
    assert_nothing_is_left(history)
    assert all(len(history.used(version)) >= 2 for version in range(1, VERSIONS + 1))
    assert {row.device for row in history.results} <= {"a", "b", "c"}
    assert all(check["passed"] for check in processes.report()["checks"])
    assert_each_adapter_follows(load_config(processes.folder / "coordinator.toml"))


def test_a_level_that_harms_is_halted(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """With a learning rate at which loss rises, the level that is tried is halted after its first task; the run goes on
    with the other one, and the ledger says so.
    """
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    training = {"steps": 3, "batch": 2, "tokens": TOKENS, "learning_rate": 3.0}
    rollout = {"canary": 1, "tasks": 2, "max_failures": 0.0, "max_loss_rise": 0.0, "levels": ["fp32"]}
    rounds = {"count": 2, "devices": 2, "deadline_s": 60.0, "wait_s": 30.0}
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve(rounds=rounds, training=training, rollout=rollout) is State.DONE
    history = fleet.history()
    (verdict,) = history.verdicts
    assert (verdict.level, verdict.halted) == ("fp32", True)
    assert "1 of 1 canary tasks failed" in verdict.why
    given = [(task.round, task.level) for task in history.tasks]
    assert given.count((1, "fp32")) == 1
    assert {level for round_, level in given if round_ == 2} == {"int8"}
