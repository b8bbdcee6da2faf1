"""The supervisor outlives its children: whatever they do, one end is told, and nothing of them is left."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import queue
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator

import psutil
import pytest

from edge_sdk.cgroup import AGENT, NotDelegated, claim
from edge_sdk.memory import read_memory
from edge_sdk.order import WorkerOrder
from edge_sdk.supervisor import Supervisor, WorkerEvent, WorkerFailed, WorkerFinished, WorkerProgress
from edge_sdk.wire.delta import decode_delta
from edge_sdk.wire.messages import MAX_STEPS, FailureReason
from tests.edge_sdk.orders import PLENTY_BYTES, make_order
from tests.edge_sdk.samples import MB

PATIENCE_S = 60.0


class Device:
    """A supervisor, and what it posted."""

    def __init__(self, home: pathlib.Path | None = None) -> None:
        self.events: queue.Queue[WorkerEvent] = queue.Queue()
        self.supervisor = Supervisor(self.events.put, home)
        self._others = {child.pid for child in psutil.Process().children()}

    def children(self) -> list[psutil.Process]:
        """The processes that do its task."""
        found = [child for child in psutil.Process().children() if child.pid not in self._others]
        return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> tuple[list[WorkerProgress], WorkerFinished | WorkerFailed]:
        """The progress that was made, and how the task ended."""
        progress: list[WorkerProgress] = []
        while isinstance(event := self.events.get(timeout=PATIENCE_S), WorkerProgress):
            progress.append(event)
        return progress, event

    def failure(self, order: WorkerOrder) -> WorkerFailed:
        """How a task fails."""
        self.supervisor.start(order)
        _, end = self.end()
        assert isinstance(end, WorkerFailed), end
        assert end.task_id == order.task.task_id
        assert not pathlib.Path(order.delta).exists()
        return end


@pytest.fixture
def device(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A device whose temporary files lie where we look: after the test no file, child or event is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    made = Device()
    yield made
    made.supervisor.close()
    assert made.events.empty()
    assert not list(folder.iterdir())
    assert not made.children()


@pytest.fixture
def order(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> WorkerOrder:
    """A task of four steps."""
    return make_order(tmp_path / "device", tiny_artifact)


@pytest.fixture
def endless(order: WorkerOrder) -> WorkerOrder:
    """A task that nobody waits for."""
    return dataclasses.replace(order, task=dataclasses.replace(order.task, steps=MAX_STEPS))


def preparing(order: WorkerOrder, script: str) -> WorkerOrder:
    """The order with a Python script as its preparation."""
    return dataclasses.replace(order, prepare=(sys.executable, "-c", script))


def test_a_task_is_done(device: Device, order: WorkerOrder) -> None:
    """Each step is told, then the end, with a report and the delta where the order wanted it."""
    device.supervisor.start(order)
    progress, end = device.end()
    assert [(event.task_id, event.step, event.steps) for event in progress] == [
        (order.task.task_id, k, 4) for k in range(1, 5)
    ]
    assert isinstance(end, WorkerFinished)
    assert (end.task_id, end.delta_path) == (order.task.task_id, pathlib.Path(order.delta))
    assert 30 * MB < end.report.peak_bytes < PLENTY_BYTES
    file, _ = decode_delta(end.delta_path.read_bytes(), MB)
    assert file.task_id == order.task.task_id


def test_whoever_hears_the_end_may_start_the_next(device: Device, order: WorkerOrder) -> None:
    """A supervisor is free before it says so: the next task may begin in the very call that told of the last."""
    ends: queue.Queue[WorkerEvent] = queue.Queue()

    def post(event: WorkerEvent) -> None:
        if isinstance(event, WorkerFailed):
            device.supervisor.start(order)
        if not isinstance(event, WorkerProgress):
            ends.put(event)

    device.supervisor = Supervisor(post)
    device.supervisor.start(preparing(order, "raise SystemExit(3)"))
    assert [type(ends.get(timeout=PATIENCE_S)) for _ in range(2)] == [WorkerFailed, WorkerFinished]


def test_one_task_at_a_time(device: Device, endless: WorkerOrder) -> None:
    """A second start is misuse, and does not disturb the first."""
    device.supervisor.start(endless)
    with pytest.raises(RuntimeError, match="a task is running already"):
        device.supervisor.start(endless)
    assert isinstance(device.events.get(timeout=PATIENCE_S), WorkerProgress)
    device.supervisor.cancel()
    assert isinstance(device.end()[1], WorkerFailed)


def test_a_cancelled_task_ends_soon(device: Device, endless: WorkerOrder) -> None:
    """Cancelled while it trains, it fails as cancelled, once, with what it had used; cancelling twice is once."""
    device.supervisor.start(endless)
    device.events.get(timeout=PATIENCE_S)
    begin = time.monotonic()
    for _ in range(2):
        device.supervisor.cancel()
    _, end = device.end()
    assert isinstance(end, WorkerFailed)
    assert (end.reason, end.detail) == (FailureReason.CANCELLED, "cancelled")
    assert end.peak_bytes > 30 * MB
    assert time.monotonic() - begin < PATIENCE_S / 2


def test_a_child_that_will_not_go_is_killed(device: Device, order: WorkerOrder) -> None:
    """Who ignores the polite signal gets the other one."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True); time.sleep(600)"
    )
    device.supervisor.start(preparing(order, deaf))
    while not any("signal" in " ".join(child.cmdline()) for child in device.children()):
        time.sleep(0.01)
    time.sleep(0.2)  # it becomes deaf
    device.supervisor.close()
    _, end = device.end()
    assert isinstance(end, WorkerFailed)
    assert end.reason is FailureReason.CANCELLED


def test_a_killed_worker_is_noticed(device: Device, endless: WorkerOrder) -> None:
    """What the kernel kills because memory runs out is a worker that died, by its signal's name."""
    device.supervisor.start(endless)
    device.events.get(timeout=PATIENCE_S)
    (worker,) = device.children()
    os.kill(worker.pid, signal.SIGKILL)
    _, end = device.end()
    assert isinstance(end, WorkerFailed)
    assert end.reason is FailureReason.WORKER_DIED
    assert "killed by SIGKILL" in end.detail
    assert not pathlib.Path(endless.delta).exists()


def test_the_next_task_is_not_the_last_ones_fault(device: Device, order: WorkerOrder, endless: WorkerOrder) -> None:
    """After a cancel the same supervisor does another task as if nothing had been."""
    device.supervisor.start(endless)
    device.supervisor.cancel()
    assert isinstance(device.end()[1], WorkerFailed)
    device.supervisor.start(order)
    assert isinstance(device.end()[1], WorkerFinished)


def test_a_budget_below_the_need_is_told_with_the_peak(device: Device, order: WorkerOrder) -> None:
    """Too little to begin with: over budget, whether the worker or who watches it was first to see."""
    end = device.failure(dataclasses.replace(order, budget_bytes=40 * MB))
    assert end.reason is FailureReason.OVER_BUDGET
    assert end.peak_bytes > 40 * MB
    assert "the budget is 40 MB" in end.detail


def test_a_child_that_grows_is_ended_from_outside(device: Device, order: WorkerOrder) -> None:
    """A preparation that takes more than the budget is killed while it does, not when it ends."""
    begin = time.monotonic()
    greedy = preparing(order, "import time; big = b'x' * 300_000_000; time.sleep(600)")
    end = device.failure(dataclasses.replace(greedy, budget_bytes=100 * MB))
    assert end.reason is FailureReason.OVER_BUDGET
    assert end.peak_bytes > 100 * MB
    assert f"ended at {end.peak_bytes / 1e6:.0f} MB resident" in end.detail
    assert time.monotonic() - begin < 30


def test_preparing_counts_in_the_peak(device: Device, order: WorkerOrder) -> None:
    """A task's peak is that of its largest process, also of one that has ended before."""
    hungry = "import time; big = b'x' * 150_000_000; time.sleep(0.3)"
    device.supervisor.start(preparing(order, hungry))
    _, end = device.end()
    assert isinstance(end, WorkerFinished)
    assert end.report.peak_bytes > 150 * MB


def test_noise_on_standard_output_is_passed_over(device: Device, order: WorkerOrder) -> None:
    """What a library prints is not mistaken for a word of ours: no text, no JSON, another JSON, and a long line."""
    noise = r"import sys; sys.stdout.buffer.write(b'\xff\xfe\n[1]\n7\nnull\n' + b'x' * 300_000 + b'\n{\n')"
    device.supervisor.start(preparing(order, noise))
    assert isinstance(device.end()[1], WorkerFinished)


@pytest.mark.parametrize(
    ("script", "reason", "detail"),
    [
        (
            'print(\'{"event": "failed", "reason": "bad-data", "detail": "no rows"}\'); raise SystemExit(2)',
            FailureReason.BAD_DATA,
            "no rows",
        ),
        ("raise ValueError('what is wrong')", FailureReason.WORKER_DIED, "exit status 1: ValueError: what is wrong"),
        ("raise SystemExit(3)", FailureReason.WORKER_DIED, "exit status 3: it said nothing"),
        ("import os; os.abort()", FailureReason.WORKER_DIED, "killed by SIGABRT: it said nothing"),
    ],
    ids=["said", "raised", "silent", "aborted"],
)
def test_a_failed_preparation_is_the_tasks_end(
    device: Device, order: WorkerOrder, script: str, reason: FailureReason, detail: str
) -> None:
    """What it said of itself, else its last words; no worker is started after it."""
    end = device.failure(preparing(order, script))
    assert (end.reason, end.detail) == (reason, detail)


def test_a_command_that_is_not_there_is_told(device: Device, order: WorkerOrder) -> None:
    """A child that cannot be started is the end of the task, and not of the agent."""
    end = device.failure(dataclasses.replace(order, prepare=("/nowhere/python",)))
    assert end.reason is FailureReason.WORKER_DIED
    assert "could not be started" in end.detail


@pytest.mark.parametrize("word", ['{"event": "failed"}', '{"event": "failed", "reason": "mood", "detail": "bad"}'])
def test_a_word_that_makes_no_sense_is_an_end_too(device: Device, order: WorkerOrder, word: str) -> None:
    """Whatever a child says, the task ends, and the next one can begin."""
    end = device.failure(preparing(order, f"print({word!r}); raise SystemExit(2)"))
    assert end.reason is FailureReason.WORKER_DIED
    device.supervisor.start(order)
    assert isinstance(device.end()[1], WorkerFinished)


def test_a_damaged_blob_is_the_artifacts_fault(device: Device, order: WorkerOrder) -> None:
    """The worker's own word on why it failed is what is told; the old delta of another task goes."""
    pathlib.Path(order.delta).write_bytes(b"of another task")
    for path in pathlib.Path(order.store, "blobs").iterdir():
        if path.name not in {order.task.artifact.sha256, order.task.adapter.sha256}:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    end = device.failure(order)
    assert end.reason is FailureReason.BAD_ARTIFACT
    assert "does not match its name" in end.detail


HOG = """
import numpy as np
kept = [np.ones(10_000_000) for _ in range(100)]
"""
MAPS = """
import mmap, tempfile, time
file = tempfile.TemporaryFile()
file.truncate(1_000_000_000)
mapped = mmap.mmap(file.fileno(), 0)
for at in range(0, len(mapped), mmap.PAGESIZE):
    mapped[at]
time.sleep(600)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker.say("progress", step=1, steps=1, loss=0.0)
time.sleep(600)
"""


def started_badly(device: Device, order: WorkerOrder, script: str, folder: pathlib.Path) -> None:
    """Start the order with a real worker that, once everything is loaded and bound, runs the script as its steps."""
    program = f"import sys\nfrom edge_sdk import worker\ndef steps(*_):\n{textwrap.indent(script, '    ')}\n    yield\n"
    (folder / "bad.py").write_text(f"{program}worker.train_steps = steps\nsys.exit(worker.main())\n")
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "bad.py"} "$3"\n')
    (folder / "python").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(folder / "python"))
        device.supervisor.start(order)
        while not device.children():
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("script", "reason", "detail"),
    [
        (HOG, FailureReason.OVER_BUDGET, "an allocation beyond the budget of 300 MB was refused"),
        (MAPS, FailureReason.OVER_BUDGET, "MB resident, the budget is 300 MB"),
        ("import ctypes; ctypes.string_at(0)", FailureReason.WORKER_DIED, "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", FailureReason.WORKER_DIED, "killed by SIGKILL"),
        (DEAF, FailureReason.CANCELLED, "cancelled"),
    ],
    ids=["hogs memory", "maps a file", "segmentation fault", "killed", "hangs"],
)
def test_whatever_a_worker_does_the_next_task_is_done(
    device: Device, order: WorkerOrder, tmp_path: pathlib.Path, script: str, reason: FailureReason, detail: str
) -> None:
    """A worker that misbehaves in a step is told with its peak, and harms neither the supervisor nor the next task."""
    started_badly(device, dataclasses.replace(order, budget_bytes=300 * MB), script, tmp_path)
    if script is DEAF:
        device.events.get(timeout=PATIENCE_S)
        device.supervisor.cancel()
    _, end = device.end()
    assert isinstance(end, WorkerFailed)
    assert (end.reason, detail in end.detail) == (reason, True), end
    assert end.peak_bytes > (300 * MB if script is MAPS else 30 * MB)
    device.supervisor.start(order)
    _, end = device.end()
    assert isinstance(end, WorkerFinished)
    assert end.report.peak_bytes > 30 * MB
    assert end.report.peak_bytes <= end.report.predicted_bytes <= order.budget_bytes


def test_a_sudden_end_has_its_peak(device: Device, order: WorkerOrder) -> None:
    """What a child took in its last moment counts: the kernel knows when nobody was looking."""
    most = read_memory().peak_bytes  # of this process, which says nothing of another
    takes = f"import os, time; big = b'x' * {most}; time.sleep(0.2); last = b'x' * {10 * MB}; os.kill(os.getpid(), 9)"
    end = device.failure(dataclasses.replace(preparing(order, takes), budget_bytes=2 * most))
    assert end.reason is FailureReason.WORKER_DIED
    assert most + 10 * MB < end.peak_bytes < most + 40 * MB


@pytest.fixture
def grouped() -> Iterator[Device]:
    """A device that makes real groups; no group of a task is left after the test."""
    try:
        home = claim()
    except NotDelegated as error:
        pytest.skip(f"no group with a memory limit can be made here: {error}")
    made = Device(home)
    yield made
    made.supervisor.close()
    assert [path.name for path in home.iterdir() if path.is_dir()] == [AGENT]


UNSEEN = """
import os
with open(os.memfd_create("big"), "wb") as file:
    for _ in range(100):
        file.write(bytes(10_000_000))
"""


def test_a_group_holds_what_nobody_sees(grouped: Device, order: WorkerOrder) -> None:
    """Memory that is not resident in any process is bounded by the kernel, which is over budget; the next task runs."""
    end = grouped.failure(dataclasses.replace(preparing(order, UNSEEN), budget_bytes=100 * MB))
    assert (end.reason, end.detail) == (
        FailureReason.OVER_BUDGET,
        f"ended at {end.peak_bytes / 1e6:.0f} MB by the kernel, the group's limit is 100 MB",
    )
    assert end.peak_bytes == pytest.approx(100 * MB, rel=0.02)
    grouped.supervisor.start(order)
    assert isinstance(grouped.end()[1], WorkerFinished)


def test_in_a_group_only_what_is_used_counts(grouped: Device, order: WorkerOrder, tmp_path: pathlib.Path) -> None:
    """The kernel's limit replaces the one on promises: memory that is never touched is free, what is touched is not."""
    script = "import mmap; kept = mmap.mmap(-1, 2_000_000_000, mmap.MAP_PRIVATE)\n"
    budget = dataclasses.replace(order, budget_bytes=300 * MB)
    started_badly(grouped, budget, f"{script}import ctypes; ctypes.string_at(0)", tmp_path)
    assert "SIGSEGV" in str(grouped.end()[1])
    started_badly(grouped, budget, HOG, tmp_path)
    _, end = grouped.end()
    assert isinstance(end, WorkerFailed)
    assert end.reason is FailureReason.OVER_BUDGET
    assert end.detail.startswith("ended at ")


def test_the_page_cache_is_not_held_against_a_task(grouped: Device, order: WorkerOrder, tmp_path: pathlib.Path) -> None:
    """Reading a file larger than the budget costs nothing: clean pages are given up."""
    (tmp_path / "file").write_bytes(bytes(200 * MB))
    reads = f"file = open({str(tmp_path / 'file')!r}, 'rb')\nwhile file.read(1_000_000): pass"
    grouped.supervisor.start(dataclasses.replace(preparing(order, reads), budget_bytes=150 * MB))
    assert isinstance(grouped.end()[1], WorkerFinished)


def test_what_a_child_leaves_behind_ends_with_it(grouped: Device, order: WorkerOrder, tmp_path: pathlib.Path) -> None:
    """Even a process that went into a session of its own is gone with the group."""
    sleeps = "subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=subprocess.DEVNULL).pid"
    leaves = f"import pathlib, subprocess\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str({sleeps}))"
    grouped.supervisor.start(preparing(order, leaves))
    assert isinstance(grouped.end()[1], WorkerFinished)
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_closing_what_never_ran_is_no_error(device: Device) -> None:
    """An agent that stops before its first task stops."""
    device.supervisor.close()
    device.supervisor.close()
