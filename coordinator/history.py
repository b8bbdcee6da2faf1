"""The ledger, read: for the report, the tables and `fedpeat status`. Never writes, and needs no lock."""

from __future__ import annotations

import pathlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from coordinator.errors import LedgerError
from coordinator.privacy import Spent
from coordinator.rollout import Verdict
from edge_sdk.wire import codec
from edge_sdk.wire.messages import DeltaCodec, Hello, Report, Task

FORMAT: Final = 7
ROW_BYTES: Final = 1 << 20  # a stored message is far smaller


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One accepted delta, and the blob that it is, in the codec that its task asked for.

    `size` is the root mean square of its numbers as it came. It is in that `version` of the adapter, or in none.
    """

    round: int
    attempt: int
    device: str
    level: str
    sha256: str
    size_bytes: int
    examples: int
    size: float
    report: Report
    codec: DeltaCodec
    version: int | None

    @property
    def staleness(self) -> int:
        """How many versions late it was for the one that it is in."""
        return 0 if self.version is None else self.version - self.round


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One decline, failure or refusal: `bytes` is what was needed or the peak, zero where neither is known."""

    round: int
    attempt: int
    device: str
    level: str
    kind: str
    reason: str
    bytes: int
    budget_bytes: int
    detail: str


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task that was given: how far it is, and in words what was decided for it."""

    round: int
    attempt: int
    device: str
    level: str
    state: str
    words: str


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One attempt at a round."""

    round: int
    attempt: int
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One version of the global adapter."""

    version: int
    sha256: str
    size_bytes: int
    truncation: float


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """A held-out loss, in nats per token or per example."""

    version: int
    kind: str
    loss: float
    accuracy: float | None
    rows: int


@dataclass(frozen=True, slots=True)
class TrafficRow:
    """Bytes of blobs that the coordinator sent to and received from a device."""

    device: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class History:
    """All of it, at one moment. `open_tasks` counts the tasks without an end."""

    run: str
    name: str
    devices: tuple[Hello, ...]
    rounds: tuple[RoundRow, ...]
    adapters: tuple[AdapterRow, ...]
    tasks: tuple[TaskRow, ...]
    results: tuple[ResultRow, ...]
    answers: tuple[AnswerRow, ...]
    evaluations: tuple[EvaluationRow, ...]
    traffic: tuple[TrafficRow, ...]
    spent: tuple[Spent, ...]
    verdicts: tuple[Verdict, ...]
    open_tasks: int

    @property
    def done(self) -> int:
        """How many rounds were aggregated."""
        return max((adapter.version for adapter in self.adapters), default=0)

    def used(self, version: int) -> tuple[ResultRow, ...]:
        """The results that this version was made of."""
        return tuple(row for row in self.results if row.version == version)

    def evaluated(self, version: int) -> dict[str, EvaluationRow]:
        """What was measured of an adapter version, by kind."""
        return {e.kind: e for e in self.evaluations if e.version == version}

    def loss(self, version: int, kind: str) -> float | None:
        """A held-out loss, if it was measured."""
        found = self.evaluated(version).get(kind)
        return None if found is None else found.loss


def read_history(path: pathlib.Path) -> History:
    """Read the ledger at `path`, which may be in use. Raises LedgerError when there is none."""
    with opened(path) as db:
        return _read_all(db)


@contextmanager
def opened(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """The ledger at `path`, which may be in use, as it is at one moment. Raises LedgerError when there is none."""
    if not path.is_file():
        msg = f"{path} does not exist: this run was never served"
        raise LedgerError(msg)
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            db.execute("BEGIN")  # one moment for all the queries
            _check_format(path, db)
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        msg = f"{path} cannot be read: {error}"
        raise LedgerError(msg) from error


def _check_format(path: pathlib.Path, db: sqlite3.Connection) -> None:
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found == 0:
        msg = f"{path} is empty so far: the coordinator has only just begun"
        raise LedgerError(msg)
    if found != FORMAT:
        msg = f"{path} has format {found}, this version reads {FORMAT}"
        raise LedgerError(msg)


def _read_all(db: sqlite3.Connection) -> History:
    run, name = db.execute("SELECT id, name FROM run").fetchone()
    results = db.execute(
        "SELECT t.round, t.attempt, r.device, t.level, r.sha256, r.size_bytes, r.examples, r.size, r.report, "
        "r.version, t.body FROM results r JOIN tasks t USING (task_id) ORDER BY t.round, t.attempt, r.device"
    )
    (open_tasks,) = db.execute("SELECT COUNT(*) FROM tasks WHERE state IN ('offered', 'trained')").fetchone()
    return History(
        run=run,
        name=name,
        devices=tuple(
            codec.decode(Hello, body, ROW_BYTES) for (body,) in db.execute("SELECT hello FROM devices ORDER BY device")
        ),
        rounds=tuple(
            RoundRow(*row)
            for row in db.execute("SELECT round, attempt, state, why FROM rounds ORDER BY round, attempt")
        ),
        adapters=tuple(
            AdapterRow(*row)
            for row in db.execute("SELECT version, sha256, size_bytes, truncation FROM adapters ORDER BY version")
        ),
        tasks=tuple(
            TaskRow(*row)
            for row in db.execute("SELECT round, attempt, device, level, state, words FROM tasks ORDER BY rowid")
        ),
        results=tuple(_result(row) for row in results),
        answers=tuple(_answers(db)),
        evaluations=tuple(
            EvaluationRow(*row)
            for row in db.execute("SELECT version, kind, loss, accuracy, rows FROM evaluations ORDER BY version, kind")
        ),
        traffic=tuple(
            TrafficRow(*row)
            for row in db.execute("SELECT device, sent_bytes, received_bytes FROM traffic ORDER BY device")
        ),
        spent=tuple(Spent(*row) for row in db.execute("SELECT * FROM privacy ORDER BY version")),
        verdicts=verdicts(db),
        open_tasks=open_tasks,
    )


def verdicts(db: sqlite3.Connection) -> tuple[Verdict, ...]:
    """What was said of levels, in that order."""
    rows = db.execute("SELECT level, halted, why FROM verdicts ORDER BY said_at, level")
    return tuple(Verdict(level, bool(halted), why) for level, halted, why in rows)


def _result(row: Sequence[Any]) -> ResultRow:
    *told, report, version, body = row
    said, task = codec.decode(Report, report, ROW_BYTES), codec.decode(Task, body, ROW_BYTES)
    values = (*told, said, task.delta_codec, version)
    return ResultRow(*values)


def _answers(db: sqlite3.Connection) -> Iterator[AnswerRow]:
    query = """
        SELECT round, attempt, device, level, 'declined', reason, needed_bytes, budget_bytes, detail
            FROM declines JOIN tasks USING (task_id)
        UNION ALL SELECT round, attempt, device, level, 'failed', reason, peak_bytes, budget_bytes, detail
            FROM failures JOIN tasks USING (task_id)
        UNION ALL SELECT round, attempt, device, level, 'refused', reason, 0, 0, detail
            FROM refusals JOIN tasks USING (task_id)
        ORDER BY 1, 2, 3"""
    for row in db.execute(query):
        yield AnswerRow(*row)
