"""What was promised and what was received: SQLite, one writer, on disk before anything is said.

Rules:

- WAL with `synchronous = FULL`: what a method wrote survives a power cut once it has returned;
- a method is one transaction; a process killed anywhere leaves the state before or after it;
- `results` is unique by device and task, and an adapter's version is its key: nothing counts twice, however often said;
- the version that a result is in is written with that version, once;
- everything the daemon needs to go on is here or is a blob named here; `past` gives it to `rounds`.

Times of day are for people to read; nothing is decided by them.
"""

from __future__ import annotations

import dataclasses
import fcntl
import pathlib
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, TypeVar

from coordinator.assignment import Decided
from coordinator.controller.duel import Duel
from coordinator.decision_log import packed
from coordinator.errors import LedgerError
from coordinator.events import AggregateRound, TaskState
from coordinator.fleet import Device, Fleet
from coordinator.history import FORMAT, ROW_BYTES, verdicts
from coordinator.plan import Past
from coordinator.policy.types import Answer, Choice
from coordinator.privacy import Spent
from coordinator.report import FULL
from coordinator.rollout import Trial, Verdict, counts
from coordinator.secure.steps import FACTS, Fact, Joined
from coordinator.task_book import Entry
from edge_sdk.wire import codec
from edge_sdk.wire.blobs import Blob, make_folder
from edge_sdk.wire.crash_points import crash_moment
from edge_sdk.wire.messages import (
    FailureReason,
    Hello,
    RefusalReason,
    Report,
    Task,
    TaskDeclined,
    TaskFailed,
)

T = TypeVar("T")

SIZE_ROUNDS: Final = 10  # whose deltas' sizes are what the next ones are held to

SCHEMA: Final = """
CREATE TABLE run (id TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, created_at REAL NOT NULL,
    secret TEXT NOT NULL);
CREATE TABLE adapters (version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    truncation REAL NOT NULL, created_at REAL NOT NULL);
CREATE TABLE moments (version INTEGER PRIMARY KEY REFERENCES adapters, sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL);
CREATE TABLE privacy (version INTEGER PRIMARY KEY REFERENCES adapters, present INTEGER NOT NULL,
    drawn INTEGER NOT NULL, delivered INTEGER NOT NULL, clip_norm REAL NOT NULL, next_clip_norm REAL NOT NULL,
    noise_multiplier REAL NOT NULL);
CREATE TABLE rounds (round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'repeated', 'aggregated')), why TEXT NOT NULL DEFAULT '',
    opened_at REAL NOT NULL, present INTEGER NOT NULL, drawn INTEGER NOT NULL, PRIMARY KEY (round, attempt));
CREATE TABLE devices (device TEXT PRIMARY KEY, hello BLOB NOT NULL, seen_at REAL NOT NULL);
CREATE TABLE decisions (number INTEGER PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    decided_at REAL NOT NULL, policy TEXT NOT NULL, fresh INTEGER NOT NULL, observation BLOB NOT NULL,
    decision BLOB NOT NULL);
CREATE TABLE tasks (task_id TEXT PRIMARY KEY, device TEXT NOT NULL, level TEXT NOT NULL, round INTEGER NOT NULL,
    attempt INTEGER NOT NULL, body BLOB NOT NULL, state TEXT NOT NULL, created_at REAL NOT NULL, share REAL NOT NULL,
    words TEXT NOT NULL, FOREIGN KEY (round, attempt) REFERENCES rounds);
CREATE TABLE duels (first_round INTEGER PRIMARY KEY, base TEXT NOT NULL, tuned TEXT NOT NULL, gap REAL NOT NULL,
    level_bytes INTEGER NOT NULL, winner TEXT NOT NULL DEFAULT '', why TEXT NOT NULL DEFAULT '');
CREATE TABLE answers (number INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE REFERENCES tasks, answer BLOB NOT NULL);
CREATE TABLE results (device TEXT NOT NULL, task_id TEXT NOT NULL REFERENCES tasks, sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, examples INTEGER NOT NULL, size REAL NOT NULL, report BLOB NOT NULL,
    committed_at REAL NOT NULL, version INTEGER REFERENCES adapters,
    UNIQUE (device, task_id));
CREATE TABLE refusals (task_id TEXT PRIMARY KEY REFERENCES tasks, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE declines (task_id TEXT PRIMARY KEY REFERENCES tasks, reason TEXT NOT NULL, needed_bytes INTEGER NOT NULL,
    budget_bytes INTEGER NOT NULL, detail TEXT NOT NULL);
CREATE TABLE failures (task_id TEXT PRIMARY KEY REFERENCES tasks, reason TEXT NOT NULL, peak_bytes INTEGER NOT NULL,
    budget_bytes INTEGER NOT NULL, detail TEXT NOT NULL);
CREATE TABLE verdicts (level TEXT PRIMARY KEY, halted INTEGER NOT NULL, why TEXT NOT NULL, said_at REAL NOT NULL);
CREATE TABLE masking (number INTEGER PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL, kind TEXT NOT NULL,
    body BLOB NOT NULL);
CREATE TABLE evaluations (version INTEGER NOT NULL, kind TEXT NOT NULL, loss REAL NOT NULL, accuracy REAL,
    rows INTEGER NOT NULL, PRIMARY KEY (version, kind));
CREATE TABLE traffic (device TEXT PRIMARY KEY, sent_bytes INTEGER NOT NULL, received_bytes INTEGER NOT NULL);
"""


class Ledger:
    """The open ledger of one run, for the thread that opened it."""

    def __init__(self, path: pathlib.Path, name: str, digest: str) -> None:
        """Open or begin the ledger at `path`.

        Raises LedgerError when another process has it open, or when it is another run's, told by its `digest`.
        """
        self.path = path
        make_folder(path.parent)
        self._lock = path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            msg = f"{path} is in use: another coordinator is running; stop it, or choose another out folder"
            raise LedgerError(msg) from error
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self.run = self._begin(path, name, digest)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: pathlib.Path, name: str, digest: str) -> str:
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            new = (secrets.token_hex(4), name, digest, time.time(), secrets.token_hex(16))
            with self._transaction("ledger.create"):
                for statement in SCHEMA.split(";")[:-1]:
                    self._db.execute(statement)
                self._db.execute("INSERT INTO run VALUES (?, ?, ?, ?, ?)", new)
                self._db.execute(f"PRAGMA user_version = {FORMAT}")
        elif found != FORMAT:
            msg = f"{path} has format {found}, this version reads {FORMAT}; choose another out folder"
            raise LedgerError(msg)
        run, known = self._db.execute("SELECT id, digest FROM run").fetchone()
        if known != digest and self._db.execute("SELECT 1 FROM adapters").fetchone() is None:
            # Nothing was ever built: whoever corrects a wrong configuration need not choose another folder.
            self._write("ledger.create", "UPDATE run SET name = ?, digest = ?", name, digest)
        elif known != digest:
            msg = f"{path} is of a run with another configuration; choose another out folder, or go back to it"
            raise LedgerError(msg)
        return str(run)

    # ---- what rounds asks to be written

    def begin(self, adapter: Blob) -> None:
        """The adapter that the run starts from."""
        values = (adapter.sha256, adapter.size_bytes, time.time())
        self._write("ledger.begin", "INSERT OR IGNORE INTO adapters VALUES (0, ?, ?, 0, ?)", *values)

    def hello(self, hello: Hello) -> None:
        """What a device last said of itself."""
        values = (hello.device, codec.encode(hello), time.time())
        self._write("ledger.hello", "INSERT OR REPLACE INTO devices VALUES (?, ?, ?)", *values)

    def open_round(self, round_: int, attempt: int, present: int, drawn: int) -> None:
        """An attempt at a round has begun, with `drawn` of the `present` devices."""
        opened = (round_, attempt, time.time(), present, drawn)
        self._write("ledger.open-round", "INSERT INTO rounds VALUES (?, ?, 'open', '', ?, ?, ?)", *opened)

    def repeat_round(self, round_: int, attempt: int, why: str) -> None:
        """An attempt came to nothing, perhaps before it was opened."""
        self._write(
            "ledger.repeat-round",
            "INSERT INTO rounds VALUES (?, ?, 'repeated', ?, ?, 0, 0) "
            "ON CONFLICT DO UPDATE SET state = 'repeated', why = excluded.why",
            *(round_, attempt, why, time.time()),
        )

    def decision(self, round_: int, attempt: int, decided: Decided) -> None:
        """The policy has decided; everything that it saw is written with it."""
        both = (packed(decided.observation), packed(decided.decision))
        values = (round_, attempt, time.time(), decided.policy, decided.fresh, *both)
        self._write("ledger.decision", "INSERT INTO decisions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", *values)

    def give_task(self, device: str, choice: Choice, attempt: int, task: Task, words: str = "") -> None:
        """A task was made; `words` are those of the decision."""
        said = (task.task_id, device, choice.level, task.round, attempt, codec.encode(task), time.time())
        insert = "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, 'offered', ?, ?, ?)"
        self._write("ledger.give-task", insert, *said, choice.share, words)

    def cancel_task(self, device: str, task_id: str, answer: Answer | None = None) -> None:
        """A device's task was taken back, and is lost where that is its `answer`.

        One that has an end keeps it, and one that is not its own is none of ours.
        """
        state = TaskState.CANCELLED if answer is None else TaskState.LOST
        cancel = "UPDATE tasks SET state = ? WHERE task_id = ? AND device = ? AND state IN ('offered', 'trained')"
        with self._transaction("ledger.cancel-task"):
            done = self._db.execute(cancel, (state.value, task_id, device)).rowcount
            if done:
                self._answered(task_id, answer)

    def decline(self, message: TaskDeclined, answer: Answer | None = None) -> None:
        """A device will not do it; `answer` is what that is to a policy, if anything."""
        values = (message.task_id, message.reason.value, message.needed_bytes, message.budget_bytes, message.detail)
        with self._transaction("ledger.decline"):
            self._end(message.task_id, TaskState.DECLINED)
            self._db.execute("INSERT INTO declines VALUES (?, ?, ?, ?, ?)", values)
            self._answered(message.task_id, answer)

    def failure(self, message: TaskFailed, budget_bytes: int, answer: Answer) -> None:
        """A device could not do it."""
        values = (message.task_id, message.reason.value, message.peak_bytes, budget_bytes, message.detail)
        with self._transaction("ledger.failure"):
            self._end(message.task_id, TaskState.FAILED)
            self._db.execute("INSERT INTO failures VALUES (?, ?, ?, ?, ?)", values)
            self._answered(message.task_id, answer)

    def commit_result(self, task_id: str, delta: Blob, size: float, report: Report, answer: Answer) -> None:
        """A delta was checked and its blob is on disk; `size` is the root mean square of its numbers.

        Doing it again changes nothing.
        """
        blob, counted = (delta.sha256, delta.size_bytes), (answer.examples, size)
        values = (answer.device, task_id, *blob, *counted, codec.encode(report), time.time())
        with self._transaction("ledger.commit-result"):
            self._db.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", values)
            self._end(task_id, TaskState.COMMITTED)
            self._answered(task_id, answer)

    def masking(self, round_: int, attempt: int, fact: Fact) -> None:
        """What became of the secure sum of an attempt; a device that has joined it has trained."""
        values = (round_, attempt, type(fact).__name__, codec.encode(fact))
        with self._transaction("ledger.masking"):
            self._db.execute("INSERT INTO masking VALUES (NULL, ?, ?, ?, ?)", values)
            if isinstance(fact, Joined):
                trained = "UPDATE tasks SET state = ? WHERE task_id = ? AND device = ? AND state = 'offered'"
                self._db.execute(trained, (TaskState.TRAINED.value, fact.keys.task_id, fact.device))

    def refuse_result(self, task_id: str, reason: RefusalReason, detail: str) -> None:
        """A delta was checked and must not be used."""
        with self._transaction("ledger.refuse-result"):
            self._db.execute("INSERT OR IGNORE INTO refusals VALUES (?, ?, ?)", (task_id, reason.value, detail))
            self._end(task_id, TaskState.REFUSED)

    def commit_adapter(
        self,
        asked: AggregateRound,
        adapter: Blob,
        truncation: float,
        moments: Blob | None = None,
        spent: Spent | None = None,
    ) -> None:
        """The results of these tasks are now in the adapter of that round's version, with the optimizer's `moments`.

        What it `spent` of the devices' privacy is written with it, or neither is.

        Raises sqlite3.IntegrityError if there is such a version, or a result is in another one or is none.
        """
        round_ = asked.round
        values = (round_, adapter.sha256, adapter.size_bytes, truncation, time.time())
        with self._transaction("ledger.commit-adapter"):
            self._db.execute("INSERT INTO adapters VALUES (?, ?, ?, ?, ?)", values)
            if moments is not None:
                self._db.execute("INSERT INTO moments VALUES (?, ?, ?)", (round_, moments.sha256, moments.size_bytes))
            if spent is not None:
                self._db.execute("INSERT INTO privacy VALUES (?, ?, ?, ?, ?, ?, ?)", dataclasses.astuple(spent))
            for task_id in asked.task_ids:
                counts = "UPDATE results SET version = ? WHERE task_id = ? AND version IS NULL"
                if self._db.execute(counts, (round_, task_id)).rowcount != 1:
                    msg = f"the result of {task_id} is in an adapter already, or there is none"
                    raise sqlite3.IntegrityError(msg)
            done = "UPDATE rounds SET state = 'aggregated' WHERE round = ? AND attempt = ?"
            self._db.execute(done, (round_, asked.attempt))

    def verdict(self, verdict: Verdict) -> None:
        """What was said of a level; the first one stays."""
        values = (verdict.level, verdict.halted, verdict.why, time.time())
        self._write("ledger.verdict", "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", *values)

    def evaluation(self, version: int, kind: str, loss: float, accuracy: float | None, rows: int) -> None:
        """A held-out loss of an adapter version was measured."""
        values = (version, kind, loss, accuracy, rows)
        self._write("ledger.evaluation", "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?)", *values)

    def traffic(self, device: str, sent_bytes: int, received_bytes: int) -> None:
        """So many more bytes of blobs went to and came from a device."""
        self._write(
            "ledger.traffic",
            "INSERT INTO traffic VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
            "sent_bytes = sent_bytes + excluded.sent_bytes, received_bytes = received_bytes + excluded.received_bytes",
            *(device, sent_bytes, received_bytes),
        )

    # ---- what the daemon needs to go on

    def past(self) -> Past | None:
        """Where the run stands, or None before `begin`."""
        latest = self._db.execute(
            "SELECT version, sha256, size_bytes FROM adapters ORDER BY version DESC LIMIT 1"
        ).fetchone()
        if latest is None:
            return None
        version, sha256, size_bytes = latest
        tried = "SELECT attempt, state FROM rounds WHERE round = ? ORDER BY attempt DESC LIMIT 1"
        attempt, state = self._db.execute(tried, (version + 1,)).fetchone() or (0, "repeated")
        is_open = state == "open"
        return Past(
            version=version,
            adapter=Blob(sha256, size_bytes),
            attempt=attempt if is_open else attempt + 1,
            open=is_open,
            entries=tuple(self._entries(version + 1)),
            answers=tuple(self.answers()),
            fleet=Fleet({hello.device: Device(hello, online=False) for hello in self._hellos()}),
            trials=tuple(self._trials()),
            verdicts=verdicts(self._db),
            masking=self.masking_of(version + 1, attempt) if is_open else (),
            losses=dict(self._db.execute("SELECT version, loss FROM evaluations WHERE kind = ?", (FULL,))),
        )

    def moments(self, version: int) -> Blob | None:
        """What the server optimizer kept when it made this version of the adapter; None where it keeps nothing."""
        row = self._db.execute("SELECT sha256, size_bytes FROM moments WHERE version = ?", (version,)).fetchone()
        return None if row is None else Blob(*row)

    def masking_of(self, round_: int, attempt: int) -> tuple[Fact, ...]:
        """What became of the secure sum of an attempt, in order."""
        query = "SELECT kind, body FROM masking WHERE round = ? AND attempt = ? ORDER BY number"
        return tuple(_read(FACTS[kind], body) for kind, body in self._db.execute(query, (round_, attempt)))

    def is_committed(self, sha256: str) -> bool:
        """Whether a committed result has this delta."""
        return self._db.execute("SELECT 1 FROM results WHERE sha256 = ?", (sha256,)).fetchone() is not None

    def deltas(self, task_ids: tuple[str, ...]) -> tuple[tuple[Blob, int], ...]:
        """The delta of each of these committed results and the round of its task, ordered by task.

        Raises KeyError for one that is not committed.
        """
        rows = self._db.execute("SELECT task_id, sha256, size_bytes, round FROM results JOIN tasks USING (task_id)")
        found = {task_id: (Blob(sha256, size_bytes), round_) for task_id, sha256, size_bytes, round_ in rows}
        return tuple(found[task_id] for task_id in sorted(task_ids))

    @property
    def secret(self) -> str:
        """What nobody outside can know, and a restart does not change."""
        return str(self._db.execute("SELECT secret FROM run").fetchone()[0])

    def duels(self) -> tuple[Duel, ...]:
        """Of tuned policies, oldest first."""
        query = "SELECT * FROM duels ORDER BY first_round"
        return tuple(Duel(*row) for row in self._db.execute(query))

    def begin_duel(self, duel: Duel) -> None:
        """Two policies will decide in turns. No labelled step, as `end_duel`: nothing is said before or after it."""
        self._write("", "INSERT INTO duels VALUES (?, ?, ?, ?, ?, ?, ?)", *dataclasses.astuple(duel))

    def end_duel(self, first_round: int, winner: str, why: str) -> None:
        """One of them stays."""
        self._write("", "UPDATE duels SET winner = ?, why = ? WHERE first_round = ?", winner, why, first_round)

    def lot(self, round_: int, attempt: int) -> tuple[int, int]:
        """How many devices were present when an attempt began, and how many were drawn."""
        query = "SELECT present, drawn FROM rounds WHERE round = ? AND attempt = ?"
        present, drawn = self._db.execute(query, (round_, attempt)).fetchone()
        return present, drawn

    def spent(self) -> tuple[Spent, ...]:
        """What each version took of the devices' privacy, oldest first."""
        return tuple(Spent(*row) for row in self._db.execute("SELECT * FROM privacy ORDER BY version"))

    def sizes(self, round_: int) -> tuple[float, ...]:
        """Of the deltas in the adapters of the last `SIZE_ROUNDS` versions before this round's."""
        query = "SELECT size FROM results WHERE version BETWEEN ? AND ?"
        return tuple(size for (size,) in self._db.execute(query, (round_ - SIZE_ROUNDS, round_ - 1)))

    def sizes_of(self, task_ids: tuple[str, ...]) -> tuple[float, ...]:
        """Of the deltas of these committed results."""
        rows = dict(self._db.execute("SELECT task_id, size FROM results"))
        return tuple(rows[task_id] for task_id in task_ids)

    def _entries(self, following: int) -> Iterator[Entry]:
        """Results that are in no version yet count in the `following` one, if they count at all."""
        query = (
            "SELECT t.device, t.level, t.share, t.attempt, t.body, t.state, r.reason, r.detail, d.version FROM tasks t "
            "LEFT JOIN refusals r USING (task_id) LEFT JOIN results d USING (task_id) ORDER BY t.rowid"
        )
        for device, level, share, attempt, body, ended, reason, detail, version in self._db.execute(query):
            refusal, task = None if reason is None else RefusalReason(reason), _read(Task, body)
            choice, counts_in = Choice(level, task.delta_codec, share, task.power), version or following
            word = (TaskState(ended), refusal, detail or "")
            yield Entry(device, choice, attempt, task, *word, counts_in=counts_in)

    def _trials(self) -> Iterator[Trial]:
        """How tasks have ended that were not declined, taken back or lost."""
        query = "SELECT task_id, device, level, reason FROM failures JOIN tasks USING (task_id)"
        for task_id, device, level, reason in self._db.execute(query):
            if counts(failure := FailureReason(reason)):
                yield Trial(task_id, device, level, failure)
        query = "SELECT task_id, device, level, reason FROM refusals JOIN tasks USING (task_id)"
        for task_id, device, level, reason in self._db.execute(query):
            yield Trial(task_id, device, level, RefusalReason(reason))
        query = "SELECT task_id, r.device, level, report FROM results r JOIN tasks USING (task_id)"
        for task_id, device, level, report in self._db.execute(query):
            yield Trial(task_id, device, level, _read(Report, report))

    def answers(self) -> Iterator[Answer]:
        """What became of tasks, as policies are told it, oldest first."""
        for (body,) in self._db.execute("SELECT answer FROM answers ORDER BY number"):
            yield _read(Answer, body)

    def _hellos(self) -> Iterator[Hello]:
        for (body,) in self._db.execute("SELECT hello FROM devices"):
            yield _read(Hello, body)

    # ---- plumbing

    def _answered(self, task_id: str, answer: Answer | None) -> None:
        """What a task's end is to a policy; the first one stays."""
        if answer is not None:
            insert = "INSERT OR IGNORE INTO answers (task_id, answer) VALUES (?, ?)"
            self._db.execute(insert, (task_id, codec.encode(answer)))

    def _end(self, task_id: str, state: TaskState) -> None:
        self._db.execute("UPDATE tasks SET state = ? WHERE task_id = ?", (state.value, task_id))

    def _write(self, step: str, statement: str, *values: object) -> None:
        with self._transaction(step):
            self._db.execute(statement, values)

    @contextmanager
    def _transaction(self, step: str) -> Iterator[None]:
        """All or nothing; `step` is its name in `crash_points`."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        crash_moment(step, "uncommitted")
        self._db.execute("COMMIT")
        crash_moment(step, "committed")

    def close(self) -> None:
        """Let go of the file; another process may open it then."""
        self._db.close()
        self._lock.close()

    def __enter__(self) -> Ledger:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        """A ledger is its own context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _read(kind: type[T], body: bytes) -> T:
    return codec.decode(kind, body, ROW_BYTES)
