"""Work that takes longer than a message may wait: processes and functions in threads, their outcomes in one queue.

Rules:

- a lane is one thread: jobs in a lane run one after the other, lanes run side by side;
- the owner polls; no job calls back into the owner's thread;
- `close` ends the processes that are still running, and those of ours end with a daemon that is killed.

A process of ours speaks JSON on standard output, one object a line; the last line is its result, those before are
progress, as is every line with a `stage`. On failure it says one line on standard error.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.errors import JobError
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.lifeline import end_process, parent_environment

Line = Mapping[str, Any]
Work = Callable[[Callable[[Line], None]], object]


@dataclass(frozen=True, slots=True)
class Progress:
    """A job got further."""

    job: str
    line: Line


@dataclass(frozen=True, slots=True)
class Done:
    """A job ended well, with this value."""

    job: str
    value: object


@dataclass(frozen=True, slots=True)
class Failed:
    """A job ended badly; `error` says why in one line."""

    job: str
    error: Exception


Outcome = Progress | Done | Failed


class Jobs:
    """Runs jobs; `poll` gives what became of them."""

    def __init__(self) -> None:
        """No lane, no job."""
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._lanes: dict[str, queue.SimpleQueue[tuple[str, Work]]] = {}
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock, self._closed = threading.Lock(), False

    def start(self, job: str, lane: str, work: Work) -> None:
        """Do `work(say)` in `lane`; what it says becomes Progress, what it returns Done, what it raises Failed."""
        if lane not in self._lanes:
            self._lanes[lane] = queue.SimpleQueue()
            threading.Thread(target=self._run, args=(self._lanes[lane],), name=f"jobs-{lane}", daemon=True).start()
        self._lanes[lane].put((job, work))

    def poll(self) -> list[Outcome]:
        """What happened since the last poll."""
        return [self._outcomes.get() for _ in range(self._outcomes.qsize())]  # we alone take from it

    def process(self, command: Sequence[str], say: Callable[[Line], None]) -> Line:
        """Run `command` to its end, for use within a job. Raises JobError with what it said last."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            process = self._begin(command, errors)
            try:
                last = _read_lines(process, say)
                status = process.wait()
            finally:
                with self._lock:
                    self._processes.discard(process)
                end_process(process)
                if process.stdout:
                    process.stdout.close()
            if status:
                raise JobError(_complaint(command, status, errors))
        return last

    def close(self) -> None:
        """End what runs; what was queued is not begun."""
        with self._lock:
            self._closed = True
            running = tuple(self._processes)
        for process in running:
            process.terminate()
        for process in running:
            end_process(process)

    def _begin(self, command: Sequence[str], errors: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - an open file
        with self._lock:
            if self._closed:
                msg = "the coordinator is stopping"
                raise JobError(msg)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env={**os.environ, **parent_environment(), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C in the terminal is ours to pass on
            )
            self._processes.add(process)
        return process

    def _run(self, lane: queue.SimpleQueue[tuple[str, Work]]) -> None:
        while True:
            item = lane.get()
            if self._closed:
                return
            self._outcomes.put(self._outcome(*item))

    def _outcome(self, job: str, work: Work) -> Outcome:
        try:
            return Done(job, work(lambda line: self._outcomes.put(Progress(job, line))))
        except Exception as error:  # noqa: BLE001 - handed to the owner, who decides
            return Failed(job, error)


def _read_lines(process: subprocess.Popen[str], say: Callable[[Line], None]) -> Line:
    """All JSON lines; each but the last is said, one with a stage at once. A library's chatter is passed over."""
    last: Line | None = None
    for text in process.stdout or ():
        line = _parsed(text)
        if line is not None and "stage" in line:
            say(line)
        elif line is not None:
            if last is not None:
                say(last)
            last = line
    return {} if last is None else last


def _parsed(text: str) -> Line | None:
    if not text.startswith("{"):
        return None
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


def _complaint(command: Sequence[str], status: int, errors: Any) -> str:  # noqa: ANN401 - an open file
    errors.seek(0)
    return f"{' '.join(command[1:4])} ended with status {status}: {last_line(errors.read(), 'it said nothing')}"
