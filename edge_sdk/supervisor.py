"""Starts the processes of a task, listens to them, and outlives whatever they do.

Per task two children: one tokenises (`edge_sdk.prepare`), one trains (`edge_sdk.worker`). Each runs in a group with the
budget as its limit where groups can be made (`edge_sdk.cgroup`), and is watched from outside, 20 times a second: a
resident peak above the budget ends the child at once. What happens is posted as events
from a thread of this module; exactly one WorkerFinished or WorkerFailed follows each `start`, and whoever hears it may
start the next task. A task that failed leaves no delta. No onnxruntime is loaded here.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edge_sdk.cgroup import task_group
from edge_sdk.environment import training_environment
from edge_sdk.memory import read_memory
from edge_sdk.order import WorkerOrder
from edge_sdk.wire import codec
from edge_sdk.wire.errors import DecodeError, last_line
from edge_sdk.wire.messages import FailureReason, Report

WATCH_S = 0.05
STOP_S = 3.0
MAX_LINE_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    """A step was made."""

    task_id: str
    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class WorkerFinished:
    """There is a delta at `delta_path`, and its residual at `residual_path` where one is kept."""

    task_id: str
    report: Report
    delta_path: pathlib.Path
    residual_path: pathlib.Path | None = None


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """There is none; `peak_bytes` is the largest resident memory seen."""

    task_id: str
    reason: FailureReason
    peak_bytes: int
    detail: str


WorkerEvent = WorkerProgress | WorkerFinished | WorkerFailed
Post = Callable[[WorkerEvent], None]


class Supervision(Protocol):
    """What an agent asks for its tasks to be done: of a `Supervisor`, or of what takes its place in a simulation."""

    def start(self, order: WorkerOrder) -> None:
        """Begin; exactly one WorkerFinished or WorkerFailed is posted, and the next task may be started."""

    def cancel(self) -> None:
        """End the running task, if any."""

    def close(self) -> None:
        """Cancel, and return when nothing runs any more."""


class Supervisor:
    """One task at a time."""

    def __init__(self, post: Post, home: pathlib.Path | None = None) -> None:
        """`post` is called from another thread. `home` is the cgroup to make groups in, if there is one."""
        self._post, self._home = post, home
        self._cancelled = threading.Event()
        self._running = False
        self._thread: threading.Thread | None = None

    def start(self, order: WorkerOrder) -> None:
        """Begin. Raises RuntimeError while another task runs."""
        if self._running:
            msg = "a task is running already"
            raise RuntimeError(msg)
        self._running = True
        self._cancelled.clear()
        self._thread = threading.Thread(target=self._do, args=(order,), name=f"task-{order.task.task_id}", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """End the running task, if any; its WorkerFailed says `cancelled`."""
        self._cancelled.set()

    def close(self) -> None:
        """Cancel, and wait until no child is left."""
        self.cancel()
        if self._thread is not None:
            self._thread.join()

    def _do(self, order: WorkerOrder) -> None:
        task_id = order.task.task_id
        try:
            with tempfile.TemporaryDirectory(dir=pathlib.Path(order.delta).parent) as folder:
                path = pathlib.Path(folder, "order")
                path.write_bytes(codec.encode(order))
                outcome = self._processes(order, path)
        except OSError as error:
            outcome = WorkerFailed(task_id, FailureReason.WORKER_DIED, 0, f"the worker could not be started: {error}")
        except Exception as error:  # noqa: BLE001 - no memory for a thread, an odd word: without an end, no other task
            detail = f"the worker could not be watched: {type(error).__name__}: {error}"
            outcome = WorkerFailed(task_id, FailureReason.WORKER_DIED, 0, detail)
        if isinstance(outcome, WorkerFailed):
            pathlib.Path(order.delta).unlink(missing_ok=True)
            if order.feedback is not None:
                pathlib.Path(order.feedback.after).unlink(missing_ok=True)
        self._running = False
        self._post(outcome)

    def _processes(self, order: WorkerOrder, path: pathlib.Path) -> WorkerFinished | WorkerFailed:
        prepared_bytes = 0
        if order.prepare:
            prepared = _Child(order, order.prepare, self._home, self._cancelled, lambda _said: None)
            prepared_bytes = prepared.peak_bytes
            if prepared.status != 0:
                return prepared.failure()
        command = [sys.executable, "-m", "edge_sdk.worker", str(path)]
        worker = _Child(order, command, self._home, self._cancelled, self._progress(order))
        said = worker.last
        if worker.status != 0 or said.get("event") != "finished":
            return worker.failure()
        try:
            report = codec.from_plain(Report, said.get("report"), "report")
        except DecodeError as error:
            return WorkerFailed(order.task.task_id, FailureReason.WORKER_DIED, worker.peak_bytes, str(error))
        peak_bytes = max(report.peak_bytes, prepared_bytes, worker.peak_bytes)
        residual_path = None if order.feedback is None else pathlib.Path(order.feedback.after)
        report = replace(report, peak_bytes=peak_bytes)
        return WorkerFinished(order.task.task_id, report, pathlib.Path(order.delta), residual_path)

    def _progress(self, order: WorkerOrder) -> Callable[[dict[str, Any]], None]:
        def post(said: dict[str, Any]) -> None:
            if said.get("event") == "progress":
                self._post(WorkerProgress(order.task.task_id, said["step"], said["steps"], said["loss"]))

        return post


class _Child:
    """A child from its start to its end: made when it is over."""

    def __init__(
        self,
        order: WorkerOrder,
        command: Sequence[str],
        home: pathlib.Path | None,
        cancelled: threading.Event,
        heard: Callable[[dict[str, Any]], None],
    ) -> None:
        self.order, self.peak_bytes, self.last = order, 0, dict[str, Any]()
        self.over, self.cancelled = False, cancelled
        with tempfile.TemporaryFile() as errors, task_group(home, order.budget_bytes) as group:
            self._process = subprocess.Popen(
                group.command(command),
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                env=training_environment(order.threads),
                start_new_session=True,  # a Ctrl-C at the terminal is the agent's to handle
                encoding="utf-8",
                errors="replace",
            )
            ended = threading.Event()
            watch = threading.Thread(target=self._watch, args=(ended,), daemon=True)
            try:
                watch.start()
                self._listen(heard)
                self.status, peak_bytes = self._wait()
            except BaseException:  # nobody listens any more
                self._process.kill()
                self._process.wait()
                raise
            finally:
                ended.set()
                if watch.ident is not None:
                    watch.join()
            self.killed_at_bytes = group.killed_at_bytes()
            self.peak_bytes = max(self.peak_bytes, peak_bytes, self.killed_at_bytes)
            self.over = self.over or self.peak_bytes > order.budget_bytes
            errors.seek(max(errors.seek(0, os.SEEK_END) - 2000, 0))
            self.words = errors.read().decode(errors="replace")

    def failure(self) -> WorkerFailed:
        """Why it ended badly."""
        task_id, peak_bytes = self.order.task.task_id, max(self.peak_bytes, self.last.get("peak_bytes", 0))
        if self.last.get("event") == "failed":  # it knows best
            return WorkerFailed(task_id, FailureReason(self.last["reason"]), peak_bytes, self.last["detail"])
        if self.killed_at_bytes or self.over:
            budget = f"{self.order.budget_bytes / 1e6:.0f} MB"
            what = "by the kernel, the group's limit" if self.killed_at_bytes else "resident, the budget"
            detail = f"ended at {peak_bytes / 1e6:.0f} MB {what} is {budget}"
            return WorkerFailed(task_id, FailureReason.OVER_BUDGET, peak_bytes, detail)
        if self.cancelled.is_set():
            return WorkerFailed(task_id, FailureReason.CANCELLED, peak_bytes, "cancelled")
        last_words = last_line(self.words, "it said nothing")[:300]
        died = f"killed by {signal.Signals(-self.status).name}" if self.status < 0 else f"exit status {self.status}"
        return WorkerFailed(task_id, FailureReason.WORKER_DIED, peak_bytes, f"{died}: {last_words}")

    def _listen(self, heard: Callable[[dict[str, Any]], None]) -> None:
        if self._process.stdout is None:
            raise AssertionError
        with self._process.stdout as lines:
            while line := lines.readline(MAX_LINE_CHARACTERS):
                with contextlib.suppress(ValueError):  # a library's own words are not ours
                    said = json.loads(line)
                    if isinstance(said, dict):
                        self.last = said
                        heard(said)

    def _wait(self) -> tuple[int, int]:
        """Its exit status and its peak, the kernel's last word: the watch knows only what was a moment ago.

        That word is about the process from its fork on, when it was a copy of us: up to our own peak it says nothing.
        """
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        peak_bytes = usage.ru_maxrss * 1024
        return self._process.returncode, peak_bytes if peak_bytes > read_memory().peak_bytes else 0

    def _watch(self, ended: threading.Event) -> None:
        status = pathlib.Path(f"/proc/{self._process.pid}/status")
        while not ended.wait(WATCH_S):
            with contextlib.suppress(OSError):  # it ended while we looked
                self.peak_bytes = max(self.peak_bytes, read_memory(status).peak_bytes)
            self.over = self.over or self.peak_bytes > self.order.budget_bytes
            if self.over or self.cancelled.is_set():
                self._end(ended)

    def _end(self, ended: threading.Event) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL if self.over else signal.SIGTERM)
        if not ended.wait(STOP_S):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
