"""The ledger remembers what was promised, whatever happens to the process that wrote it."""

from __future__ import annotations

import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

from coordinator.errors import LedgerError
from coordinator.events import AggregateRound, TaskState
from coordinator.history import read_history
from coordinator.ledger import Ledger
from coordinator.policy.types import Answer, Choice, Outcome
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import (
    DeclineReason,
    FailureReason,
    RefusalReason,
    TaskDeclined,
    TaskFailed,
)
from tests.coordinator.samples import MB, make_answer, make_hello, make_report, make_task

ROOT = pathlib.Path(__file__).parents[2]
KILLS = 12
DELTA = blob_of(b"delta")
TOO_LARGE = Answer("b", "large", Outcome.OVER_BUDGET, 100 * MB, 300 * MB, round=1)


def opened(tmp_path: pathlib.Path, digest: str = "digest") -> Ledger:
    """The ledger of this test."""
    return Ledger(tmp_path / "ledger.sqlite", "test", digest)


def begun(tmp_path: pathlib.Path) -> Ledger:
    """A ledger in round 1 with tasks of four devices."""
    ledger = opened(tmp_path)
    ledger.begin(blob_of(b"adapter 0"))
    ledger.open_round(1, 1, 2, 2)
    for device in "abcd":
        ledger.hello(make_hello(device))
        ledger.give_task(device, Choice("large"), 1, make_task(f"t.{device}"))
    return ledger


def asked(round_: int, *task_ids: str) -> AggregateRound:
    """What an adapter is made of."""
    return AggregateRound(round_, 1, DELTA, task_ids)


def test_a_new_ledger_has_no_past(tmp_path: pathlib.Path) -> None:
    """Nothing is remembered before the first adapter, and then version 0, waiting for round 1."""
    with opened(tmp_path) as ledger:
        assert ledger.past() is None
        ledger.begin(DELTA)
        past = ledger.past()
    assert past is not None
    assert (past.version, past.attempt, past.open, past.adapter) == (0, 1, False, DELTA)


def test_reopened_in_the_middle_of_a_round(tmp_path: pathlib.Path) -> None:
    """The round continues with its tasks as they were, each with the end it had."""
    with begun(tmp_path) as ledger:
        ledger.commit_result("t.a", DELTA, 0.1, make_report(), make_answer())
        ledger.decline(TaskDeclined("t.b", DeclineReason.OVER_BUDGET, 300 * MB, 100 * MB, "no"), TOO_LARGE)
        ledger.refuse_result("t.c", RefusalReason.NOT_FINITE, "nan")
        run = ledger.run
    with opened(tmp_path) as ledger:
        past = ledger.past()
        assert ledger.run == run
    assert past is not None
    assert (past.open, past.attempt) == (True, 1)
    assert {e.device: e.state for e in past.entries} == {
        "a": TaskState.COMMITTED,
        "b": TaskState.DECLINED,
        "c": TaskState.REFUSED,
        "d": TaskState.OFFERED,
    }
    assert [e.refusal for e in past.entries if e.device == "c"] == [RefusalReason.NOT_FINITE]
    assert past.entries[0].task == make_task("t.a")
    assert past.answers == (make_answer(), TOO_LARGE), "as they came, oldest first"
    assert sorted(past.fleet.devices) == ["a", "b", "c", "d"]


def test_a_result_counts_once(tmp_path: pathlib.Path) -> None:
    """Committing a result again, even another delta for the same task, leaves the first one."""
    with begun(tmp_path) as ledger:
        ledger.commit_result("t.a", DELTA, 0.1, make_report(), make_answer())
        ledger.commit_result("t.a", blob_of(b"other"), 0.2, make_report(), make_answer())
        assert ledger.deltas(("t.a",)) == ((DELTA, 1),)
        assert [ledger.is_committed(blob.sha256) for blob in (DELTA, blob_of(b"other"))] == [True, False]


def test_an_adapter_is_made_once(tmp_path: pathlib.Path) -> None:
    """A round cannot be aggregated twice."""
    with begun(tmp_path) as ledger:
        ledger.commit_adapter(asked(1), DELTA, 0.1)
        with pytest.raises(sqlite3.IntegrityError):
            ledger.commit_adapter(asked(1), DELTA, 0.1)
        past = ledger.past()
    assert past is not None
    assert (past.version, past.adapter, past.open) == (1, DELTA, False)


def test_a_result_is_in_one_adapter(tmp_path: pathlib.Path) -> None:
    """The version that a result is in is written with the version; in another it cannot be, nor can what is not there.

    What is in none when the coordinator is started again counts in the one that follows.
    """
    with begun(tmp_path) as ledger:
        for device in "ab":
            ledger.commit_result(f"t.{device}", DELTA, 0.1, make_report(), make_answer(device))
        ledger.commit_adapter(asked(1, "t.a"), DELTA, 0.1)
        for tasks in (("t.a",), ("t.b", "t.a"), ("t.c",)):
            with pytest.raises(sqlite3.IntegrityError, match="is in an adapter already, or there is none"):
                ledger.commit_adapter(asked(2, *tasks), DELTA, 0.1)
    with opened(tmp_path) as ledger:
        past = ledger.past()
        assert past is not None
        assert past.version == 1
        assert {e.device: e.counts_in for e in past.entries if e.state is TaskState.COMMITTED} == {"a": 1, "b": 2}
        ledger.commit_adapter(asked(2, "t.b"), DELTA, 0.1)
        history = read_history(ledger.path)
    assert {(row.device, row.version, row.staleness) for row in history.results} == {("a", 1, 0), ("b", 2, 1)}


def test_moments_go_with_their_adapter(tmp_path: pathlib.Path) -> None:
    """What the server optimizer kept is found by version after a restart; a version without any says so."""
    with begun(tmp_path) as ledger:
        ledger.commit_adapter(asked(1), DELTA, 0.0, blob_of(b"moments 1"))
        ledger.open_round(2, 1, 2, 2)
        with pytest.raises(sqlite3.IntegrityError):
            ledger.commit_adapter(asked(1), DELTA, 0.0, blob_of(b"other moments"))
    with opened(tmp_path) as ledger:
        ledger.commit_adapter(asked(2), DELTA, 0.0)
        assert [ledger.moments(version) for version in (0, 1, 2)] == [None, blob_of(b"moments 1"), None]


def test_an_end_is_not_taken_back(tmp_path: pathlib.Path) -> None:
    """Cancelling a task that has an end changes nothing; an unknown one is no error."""
    with begun(tmp_path) as ledger:
        ledger.commit_result("t.a", DELTA, 0.1, make_report(), make_answer())
        ledger.cancel_task("a", "t.a")
        ledger.cancel_task("d", "t.d")
        ledger.cancel_task("a", "stranger")
        ledger.cancel_task("a", "t.c")
        past = ledger.past()
    assert past is not None
    states = {e.device: e.state for e in past.entries}
    assert (states["a"], states["d"]) == (TaskState.COMMITTED, TaskState.CANCELLED)
    assert states["c"] is TaskState.OFFERED, "a device that claims another's task takes nothing from it"


def test_a_repeated_round_goes_on_with_the_next_attempt(tmp_path: pathlib.Path) -> None:
    """An attempt that came to nothing is remembered, opened or not."""
    with begun(tmp_path) as ledger:
        ledger.repeat_round(1, 1, "no quorum")
        ledger.repeat_round(1, 2, "nobody fits")
        past = ledger.past()
    assert past is not None
    assert (past.attempt, past.open) == (3, False)


def test_one_writer(tmp_path: pathlib.Path) -> None:
    """A second coordinator on the same ledger is turned away in one line; reading goes on."""
    with begun(tmp_path):
        with pytest.raises(LedgerError, match="in use"):
            opened(tmp_path)
        assert read_history(tmp_path / "ledger.sqlite").open_tasks == 4
    opened(tmp_path).close()


def test_another_run_is_refused(tmp_path: pathlib.Path) -> None:
    """A ledger continues its own run alone."""
    begun(tmp_path).close()
    with pytest.raises(LedgerError, match="another configuration"):
        opened(tmp_path, "other")


def test_a_run_that_never_began_may_be_corrected(tmp_path: pathlib.Path) -> None:
    """Before anything was built, another configuration takes the ledger over, and then it is its own."""
    opened(tmp_path, "mistaken").close()
    begun(tmp_path).close()
    with pytest.raises(LedgerError, match="another configuration"):
        opened(tmp_path, "mistaken")


def test_history_has_it_all(tmp_path: pathlib.Path) -> None:
    """What the report needs can be read back while the ledger is open."""
    with begun(tmp_path) as ledger:
        ledger.commit_result("t.a", DELTA, 0.1, make_report(), make_answer())
        ledger.decline(TaskDeclined("t.b", DeclineReason.OVER_BUDGET, 300 * MB, 100 * MB, "no"), TOO_LARGE)
        over = Answer("c", "large", Outcome.OVER_BUDGET, 100 * MB, 120 * MB, round=1)
        ledger.failure(TaskFailed("t.c", FailureReason.OVER_BUDGET, 120 * MB, "killed"), 100 * MB, over)
        ledger.commit_adapter(asked(1, "t.a"), DELTA, 0.25)
        ledger.evaluation(0, "full", 3.5, None, 10)
        ledger.traffic("a", 100, 10)
        ledger.traffic("a", 100, 10)
        history = read_history(tmp_path / "ledger.sqlite")
    assert [(r.device, r.level, r.report) for r in history.results] == [("a", "large", make_report())]
    assert history.used(1) == history.results
    assert [(a.device, a.kind, a.bytes) for a in history.answers] == [
        *(("b", "declined", 300 * MB), ("c", "failed", 120 * MB)),
    ]
    assert history.adapters[1].truncation == 0.25
    assert history.loss(0, "full") == 3.5
    assert history.loss(1, "full") is None
    assert (history.traffic[0].sent_bytes, history.traffic[0].received_bytes) == (200, 20)


def test_no_ledger_is_said(tmp_path: pathlib.Path) -> None:
    """The status of a run that never was is one line."""
    with pytest.raises(LedgerError, match="never served"):
        read_history(tmp_path / "none.sqlite")


def test_kill_at_any_moment_loses_no_promise(tmp_path: pathlib.Path) -> None:
    """A writer killed with SIGKILL again and again: every receipt it gave stands, every round used each device once."""
    path, promised = tmp_path / "ledger.sqlite", list[str]()
    for pause_s in np.random.default_rng(7).uniform(0, 0.15, KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.coordinator.crash_writer", str(path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert writer.stdout is not None
        promised.append(writer.stdout.readline())
        time.sleep(pause_s)
        writer.send_signal(signal.SIGKILL)
        promised += [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.stdout.close()
        writer.wait()
    words = [line.split() for line in promised if line.strip()]
    receipts = {what for kind, what in words if kind == "receipt"}
    adapters = [int(what) for kind, what in words if kind == "adapter"]
    _check_promises(path, receipts, adapters)


def _check_promises(path: pathlib.Path, receipts: set[str], adapters: list[int]) -> None:
    with sqlite3.connect(path) as db:
        committed = {task_id for (task_id,) in db.execute("SELECT task_id FROM results")}
        versions = [version for (version,) in db.execute("SELECT version FROM adapters ORDER BY version")]
        per_round = (
            "SELECT t.round, t.attempt, t.device, COUNT(*) FROM results r JOIN tasks t USING (task_id) GROUP BY 1, 2, 3"
        )
        counts = [count for *_, count in db.execute(per_round)]
        attempts = db.execute("SELECT MAX(attempt) FROM rounds").fetchone()[0]
    db.close()
    assert receipts <= committed
    assert len(receipts) > KILLS
    assert versions == list(range(len(versions)))
    assert len(adapters) == len(set(adapters))
    assert set(adapters) <= set(versions)
    assert set(counts) == {1}
    assert attempts == 1
