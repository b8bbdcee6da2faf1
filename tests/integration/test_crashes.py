"""Whoever is killed, the run completes, and no delta counts twice. Processes over a real Mosquitto, a tiny model."""

from __future__ import annotations

import fcntl
import pathlib
from typing import Any

import pytest

from benchmarks.reliability.crashes import run_case
from coordinator.cli import main
from coordinator.config import load_config
from tests.integration.conftest import (
    ROUNDS,
    Processes,
    Tiny,
    assert_counted_once,
    assert_each_adapter_follows,
    device_table,
    rounds_done,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_nobody_is_killed(processes: Processes) -> None:
    """Two devices that fit, one that declines: three rounds, a checkpoint, a report, and every bound kept."""
    processes.serve(rounds={"count": ROUNDS, "devices": 3, "quorum": 2, "deadline_s": 60.0, "wait_s": 60.0})
    for name, budget in (("a", "300MB"), ("b", "300MB"), ("c", "20MB")):
        processes.device(name, budget)
    assert processes.finish() == 0, processes.log("coordinator")
    assert_counted_once(processes.history())
    report = processes.report()
    tasks = [task for one in report["rounds"] for task in one["tasks"]]
    done = [task for task in tasks if task["outcome"] == "done"]
    assert sorted(task["device"] for task in done) == ["a"] * ROUNDS + ["b"] * ROUNDS
    assert all(0 < task["peak_bytes"] <= task["budget_bytes"] for task in done)
    (declined,) = [task for task in tasks if task["outcome"] == "declined"]
    assert declined["device"] == "c"
    assert declined["needed_bytes"] > 20e6
    assert all(check["passed"] for check in report["checks"])
    assert (processes.out / "checkpoint" / "adapter_model.safetensors").is_file()
    assert (processes.out / "curves.png").is_file()
    assert [processes.end(name) for name in ("a", "b", "c")] == [130, 130, 130]


def test_the_coordinator_is_killed_in_round_two(processes: Processes) -> None:
    """Started again it goes on with the open round and the moments of its optimizer, and repeats nothing; what was
    decided before and after can be decided again.
    """
    fedadam: dict[str, Any] = {"rule": "freeze-a", "optimizer": "fedadam", "learning_rate": 0.01}
    processes.serve(aggregation=fedadam)
    processes.device("a")
    processes.device("b")
    wait_until(lambda: rounds_done(processes) >= 1, "round 1 is done")
    wait_until(lambda: processes.history().open_tasks, "round 2 has given tasks")
    processes.kill("coordinator")
    processes.serve(aggregation=fedadam)
    assert processes.finish() == 0, processes.log("coordinator")
    assert_counted_once(processes.history())
    assert_each_adapter_follows(load_config(processes.folder / "coordinator.toml"), moments=True)
    assert "continuing at round 2" in processes.log("coordinator")
    assert main(["controller", "replay", "--config", str(processes.folder / "coordinator.toml")]) == 0


def test_a_device_is_killed_in_the_middle_of_a_transfer(processes: Processes) -> None:
    """Started again it goes on with what it has on disk, and takes part in the same round."""
    processes.serve()
    processes.device("a")
    processes.device("b")
    partial = processes.folder / "a-store" / "partial"
    wait_until(lambda: any(path.stat().st_size for path in partial.glob("*")), "a transfer has begun")
    processes.kill("a")
    processes.device("a")
    assert processes.finish() == 0, processes.log("coordinator")
    history = processes.history()
    assert_counted_once(history)
    assert {(row.round, row.device) for row in history.results} == {
        (round_, device) for round_ in range(1, ROUNDS + 1) for device in ("a", "b")
    }


def test_the_broker_is_killed(processes: Processes) -> None:
    """It comes back having forgotten everything; both sides say everything again, and the run goes on."""
    processes.serve()
    processes.device("a")
    processes.device("b")
    wait_until(lambda: rounds_done(processes) >= 1, "round 1 is done")
    processes.broker.kill()
    wait_until(lambda: "lost the broker" in processes.log("coordinator"), "the coordinator has noticed")
    processes.broker.start()
    assert processes.finish() == 0, processes.log("coordinator")
    assert_counted_once(processes.history())


def test_devices_wait_for_a_broker_and_a_coordinator(processes: Processes) -> None:
    """Started first, they say that there is no broker, try again, and are there when the coordinator comes."""
    processes.broker.kill()
    processes.device("a")
    processes.device("b")
    wait_until(lambda: "no broker" in processes.log("a"), "the device says so")
    processes.broker.start()
    processes.serve(rounds={"count": 1, "devices": 2, "quorum": 2, "deadline_s": 60.0, "wait_s": 60.0})
    assert processes.finish() == 0, processes.log("coordinator")
    assert_counted_once(processes.history(), rounds=1)


def test_ctrl_c_is_no_crash(processes: Processes) -> None:
    """Stopped in the middle, the coordinator says how to go on, and does; the devices lose nothing."""
    processes.serve()
    processes.device("a")
    processes.device("b")
    wait_until(lambda: rounds_done(processes) >= 1, "round 1 is done")
    assert processes.end("coordinator") == 130
    assert "goes on from here" in processes.log("coordinator")
    processes.serve()
    assert processes.finish() == 0, processes.log("coordinator")
    assert_counted_once(processes.history())


def test_the_server_takes_part(processes: Processes) -> None:
    """A device of the coordinator's own is in every round, beside the others; it ends with the coordinator, even with
    one that is killed, and comes back with the next one.
    """
    public = device_table("server", processes.folder, processes.broker.url)["data"]["path"]
    rounds = {"count": 2, "devices": 2, "quorum": 2, "deadline_s": 60.0, "wait_s": 60.0}
    changes: dict[str, Any] = {"participant": {"budget": "300MB", "path": public, "threads": 1}, "rounds": rounds}
    processes.serve(**changes)
    processes.device("a")
    wait_until(lambda: rounds_done(processes) >= 1, "round 1 is done")
    processes.kill("coordinator")
    processes.serve(**changes)
    assert processes.finish() == 0, processes.log("coordinator")
    history = processes.history()
    assert {(row.round, row.device) for row in history.results} == {
        (k, name) for k in (1, 2) for name in ("a", "server")
    }
    assert all(row.version == row.round for row in history.results)
    with (processes.out / "participant" / "store" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.broker
@pytest.mark.parametrize(
    ("process", "label"),
    [
        ("agent", "install.renamed"),
        ("agent", "result-kept.synced"),
        ("worker", "worker-delta.renamed"),
        ("coordinator", "ledger.commit-result.committed"),
        ("coordinator", "ledger.commit-adapter.uncommitted"),
    ],
)
def test_a_kill_at_a_labelled_step_loses_nothing(tmp_path: pathlib.Path, tiny: Tiny, process: str, label: str) -> None:
    """Killed there and started again: offered, receipted and aggregated agree, and every blob is what it promises.

    These are one of each kind; `python -m benchmarks.reliability` sweeps every label that there is.
    """
    case = run_case(process, label, tiny, tmp_path / "fleet")
    assert case.passed, case
    assert case.tally.offered == case.tally.receipted >= case.tally.aggregated > 0
    assert case.tally.wrong_blobs == case.tally.duplicated == case.tally.lost == 0
