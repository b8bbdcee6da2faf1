"""A whole fleet in one process, or a few: the real coordinator and agents around one broker, and engines for all.

Rounds, policy, validation, aggregation, codecs and the ledger are the coordinator's own; sessions, fetching, outbox,
residuals and the steps themselves are the device's. What differs from boards:

- tasks are done in threads of this process, on levels that are opened once, instead of in a process each. So a budget
  decides by prediction which level and plan a device gets, and is not enforced; a report's `peak_bytes` is 0, for a
  process of many devices has no peak of any one's own;
- devices have the artifact's files from the start, the adapter's starting values among them; what crosses the wire, and
  is counted there, are the adapters of later rounds and all deltas.

Many devices and rounds run in minutes, and the same configuration and seed give the same adapters. Above a hundred or
two, devices go to processes of their own, some dozens to each: a thousand threads that all have something to do, as
when a broker comes back, would each wait seconds for the interpreter, and take the broker for dead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any, Final, TypeAlias

from rich.console import Console

from benchmarks.demo import write_toml
from coordinator.builder import Artifact as Built
from coordinator.builder import load_artifact
from coordinator.config import Config, load_config
from coordinator.daemon import Daemon
from coordinator.history import History, ResultRow, read_history
from coordinator.jobs import Jobs
from coordinator.ledger import Ledger
from coordinator.places import artifact_folder, ledger_path, trust_folder
from coordinator.registry import Registry
from coordinator.round_states import State
from coordinator.screen import Screen
from edge_sdk.agent import Agent
from edge_sdk.config import DataConfig, DeviceConfig, all_cores
from edge_sdk.data import in_order, open_rows
from edge_sdk.engine.artifact import Artifact, open_artifact, read_adapter
from edge_sdk.engine.plan import HEAD_ROWS, Limits, Plan, planned
from edge_sdk.engine.train import Evaluation, StepReport, evaluate
from edge_sdk.engine.walk import Walk
from edge_sdk.identity import Identity
from edge_sdk.order import WorkerOrder
from edge_sdk.prepare import obey
from edge_sdk.supervisor import Post, WorkerEvent, WorkerFailed, WorkerFinished, WorkerProgress
from edge_sdk.wire.blobs import Blob, BlobStore, blob_of_file
from edge_sdk.wire.manifest import MAX_MANIFEST_BYTES
from edge_sdk.wire.messages import FailureReason, Report
from edge_sdk.wire.privacy import rows_at_once
from edge_sdk.wire.transport import MemoryBroker, Transport, Will
from edge_sdk.worker import Failure, deliver, do, learn, report_of

FLEET: Final = "memory"
PLENTY_BYTES: Final = 10**12
EVALUATED_ROWS: Final = 16  # at a time
Connect: TypeAlias = Callable[[str, Will | None], Transport]  # by client id


@dataclass(frozen=True, slots=True)
class Member:
    """A device: its own data, and the budget that it says it has."""

    name: str
    data: DataConfig
    budget_bytes: int = PLENTY_BYTES


class Cancelled(Exception):  # noqa: N818 - no error: the coordinator wants it no more
    """The task at hand was given up."""


class Engine:
    """Opens the levels in `folder` once, and walks them for whoever asks; each of its threads has walks of its own."""

    def __init__(self, folder: pathlib.Path, threads: int | None = None) -> None:
        """Verify every file. Raises ArtifactError, WireError. `threads` tasks are done at a time, by default a core."""
        self.folder = folder
        self._levels = {blob_of_file(path).sha256: open_artifact(path) for path in sorted(folder.glob("*.manifest"))}
        self._pool = ThreadPoolExecutor(threads or all_cores(), thread_name_prefix="engine")
        self._own = threading.local()

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Have it done, in turn."""
        return self._pool.submit(work)

    def close(self) -> None:
        """When nothing is asked for any more."""
        self._pool.shutdown()

    def train(self, order: WorkerOrder, progress: Callable[[StepReport], None]) -> Report:
        """What a worker does, here. Raises what it turns into failures."""
        begin, task = time.monotonic(), order.task
        if order.prepare:
            obey(order.prepare)
        artifact = self._levels[task.artifact.sha256]
        at_once = rows_at_once(task.batch, task.example_noise)
        limits = Limits(at_once, task.tokens, order.budget_bytes, 1, order.correction, integers=task.integer_gradients)
        plan = planned(artifact.manifest, limits)
        walk = self._walk(artifact, plan)
        learned = learn(order, walk, progress)
        deliver(order, artifact.manifest, learned)
        wall_s = time.monotonic() - begin
        return report_of(order, artifact.manifest, plan, learned, peak_bytes=0, wall_s=wall_s)

    def evaluate(self, manifest: Blob, adapter: pathlib.Path, data: pathlib.Path) -> Evaluation:
        """Loss and accuracy of an adapter at a level, over all rows of a folder. Raises NonFinite, DataError."""
        artifact = self._levels[manifest.sha256]
        rows, values = open_rows(data, artifact.manifest.model), read_adapter(adapter, artifact.manifest)
        parts = in_order(rows, rows.usable(), EVALUATED_ROWS, rows.tokens)
        plan = Plan(EVALUATED_ROWS, HEAD_ROWS[0])
        return self._pool.submit(lambda: evaluate(self._walk(artifact, plan), values, parts)).result()

    def _walk(self, artifact: Artifact, plan: Plan) -> Walk:
        """The thread's own walk that follows the plan; weights stay mapped, for all of them are in memory anyway."""
        walks: dict[tuple[str, Plan], Walk] = self._own.__dict__.setdefault("walks", {})
        key = (artifact.manifest.level.name, plan)
        if key not in walks:
            resident = dataclasses.replace(plan, resident=len(artifact.manifest.walk))
            walks[key] = Walk(artifact, 1, resident, lambda: None)
        return walks[key]


class Threads:
    """Does the tasks of one device in an `Engine`'s threads: a Supervision."""

    def __init__(self, engine: Engine, alarm: Callable[[BaseException], None], post: Post) -> None:
        """`post` is called from the engine's threads; what no worker could fail with goes to `alarm`."""
        self._engine, self._alarm, self._post = engine, alarm, post
        self._cancelled = threading.Event()
        self._running: Future[None] | None = None

    def start(self, order: WorkerOrder) -> None:
        """See Supervision."""
        self._cancelled.clear()
        self._running = self._engine.submit(lambda: self._do(order))

    def cancel(self) -> None:
        """See Supervision."""
        self._cancelled.set()

    def close(self) -> None:
        """See Supervision."""
        self.cancel()
        if self._running is not None:
            self._running.result()

    def _do(self, order: WorkerOrder) -> None:
        try:
            event = self._outcome(order)
        except BaseException as error:  # noqa: BLE001 - a defect must end the run, not one thread of it
            self._alarm(error)
        else:
            self._post(event)

    def _outcome(self, order: WorkerOrder) -> WorkerEvent:
        task_id = order.task.task_id

        def progress(step: StepReport) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            self._post(WorkerProgress(task_id, step.step, step.steps, step.loss))

        try:
            report = do(order, lambda order: self._engine.train(order, progress))
        except Cancelled:
            return WorkerFailed(task_id, FailureReason.CANCELLED, 0, "cancelled")
        if isinstance(report, Failure):
            return WorkerFailed(task_id, report.reason, 0, report.detail)
        residual = None if order.feedback is None else pathlib.Path(order.feedback.after)
        return WorkerFinished(task_id, report, pathlib.Path(order.delta), residual)


class Unfinished(RuntimeError):  # noqa: N818 - what became of a run
    """The rounds did not come to their end."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is over, while its folder is there."""

    config: Config
    built: Built
    history: History

    def used(self, version: int) -> list[ResultRow]:
        """The results that made this version of the adapter."""
        return list(self.history.used(version))

    def wire_bytes(self, version: int) -> tuple[int, int]:
        """Down to and up from all devices together, as serialised, in all rounds up to this version."""
        rows = [row for round_ in range(1, version + 1) for row in self.used(round_)]
        return sum(row.report.down_bytes for row in rows), sum(row.report.up_bytes for row in rows)

    def adapter(self, version: int) -> pathlib.Path:
        """Where this version of the adapter lies."""
        return self.built.store.path(self.history.adapters[version].sha256)


@dataclass(frozen=True, slots=True)
class Point:
    """After a round: bytes down and up so far, and what the adapter is worth on rows that no device has."""

    round: int
    down_bytes: int
    up_bytes: int
    loss: float
    accuracy: float


def curve(run: Run, engine: Engine, held_out: pathlib.Path, every: int) -> tuple[Point, ...]:
    """What a classifier's adapters cost and are worth on a folder of rows: the first, every so many, and the last."""
    count = run.config.rounds.count
    found = []
    for version in sorted({*range(0, count, every), count}):
        measured = engine.evaluate(run.built.full.blob, run.adapter(version), held_out)
        found.append(Point(version, *run.wire_bytes(version), measured.loss, measured.accuracy or 0.0))
    return tuple(found)


def play(
    table: Mapping[str, Any],
    members: Sequence[Member],
    engine: Engine,
    folder: pathlib.Path,
    connect: Connect | None = None,
    *,
    crowd: int = 0,
) -> Run:
    """Run a configuration with these devices in `folder`, to its end.

    `table` is `coordinator.toml` as tables, without fleet and out; its levels are those of the engine's folder.
    `connect` gives each of them a transport of its own, by default over a broker in memory. With `crowd`, so many
    devices share a process, with an engine of its own, and `connect` must be a function that pickle finds by its name.
    Raises ConfigError, Unfinished, and whatever went wrong in a thread.
    """
    path = folder / "coordinator.toml"
    write_toml(path, {**table, "fleet": FLEET, "out": str(folder / "coordinator")})
    config = load_config(path)
    shutil.copytree(engine.folder, artifact_folder(config), copy_function=os.link)
    built, connect = load_artifact(config), connect or MemoryBroker().connect
    errors: list[BaseException] = []
    with contextlib.ExitStack() as stack:
        stack.callback((transport := connect(f"{FLEET}/coordinator", None)).close)
        stack.callback((jobs := Jobs()).close)
        ledger = stack.enter_context(Ledger(ledger_path(config), config.name, config.digest()))
        registry = stack.enter_context(Registry(trust_folder(config)))
        configs = _stocked(members, built, folder / "devices")
        if crowd:
            groups = [configs[k : k + crowd] for k in range(0, len(configs), crowd)]
            failed = stack.enter_context(_crowds(groups, connect, engine.folder))
        else:
            failed = stack.enter_context(_living(configs, connect, engine, errors))
        daemon = Daemon(config, built, ledger, registry, transport, jobs, Screen(Console(quiet=True)))
        state = daemon.run(failed, lambda: None)
    if errors:
        raise errors[0]
    history = read_history(ledger_path(config))
    if state is not State.DONE:
        answers = [f"; {row.device} {row.kind}: {row.detail}" for row in history.answers]
        msg = f"the run {config.name} ended as {state.value}{answers[-1] if answers else ''}"
        raise Unfinished(msg)
    return Run(config, built, history)


def _stocked(members: Sequence[Member], built: Built, folder: pathlib.Path) -> list[DeviceConfig]:
    """A configuration for each, and a store that has the artifact."""
    files = {blob for level in built.levels.values() for blob in level.manifest.files.values()}
    # Of adapters there is room for two: what came for earlier rounds goes.
    beside_bytes = 2 * built.initial_adapter().size_bytes + len(built.levels) * MAX_MANIFEST_BYTES
    quota_bytes = sum(blob.size_bytes for blob in files) + beside_bytes
    configs = [_config(member, folder / member.name, quota_bytes) for member in members]
    for config in configs:
        _stock(config.store, built)
    return configs


@contextlib.contextmanager
def _living(
    configs: Sequence[DeviceConfig], connect: Connect, engine: Engine, errors: list[BaseException]
) -> Iterator[Callable[[], bool]]:
    """All devices, each in a thread, while the block lasts; what goes wrong in one is put into `errors`."""
    over = threading.Event()

    def supervise(post: Post, _home: pathlib.Path | None) -> Threads:
        return Threads(engine, errors.append, post)

    def live(config: DeviceConfig) -> None:
        try:
            identity = Identity.of(config)
            transport = connect(f"{FLEET}/{config.device}", Agent.will(config, identity))
            agent = Agent(config, identity, transport, lambda _line: None, supervise=supervise)
            while not over.is_set():
                agent.turn()
            agent.close()
            transport.close()
        except BaseException as error:  # noqa: BLE001 - raised by `play`
            errors.append(error)

    threads = [threading.Thread(target=live, args=(config,), name=config.device) for config in configs]
    for thread in threads:
        thread.start()
    try:
        yield lambda: bool(errors)
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def _crowds(
    groups: Sequence[Sequence[DeviceConfig]], connect: Connect, folder: pathlib.Path
) -> Iterator[Callable[[], bool]]:
    """All devices, each group in a process of its own, while the block lasts; it says whether one failed."""
    spawning = multiprocessing.get_context("spawn")
    over = spawning.Event()
    processes = [spawning.Process(target=_crowd, args=(group, connect, folder, over)) for group in groups]
    for process in processes:
        process.start()
    try:
        yield lambda: bool(multiprocessing.connection.wait([process.sentinel for process in processes], 0))
    finally:
        over.set()
        for process in processes:
            process.join()


def _crowd(configs: Sequence[DeviceConfig], connect: Connect, folder: pathlib.Path, over: Event) -> None:
    """A process's devices, until it is over. Raises what goes wrong in one of them."""
    engine, errors = Engine(folder, 1), list[BaseException]()
    with _living(configs, connect, engine, errors) as failed:
        while not failed() and not over.wait(1.0):
            pass
    engine.close()
    if errors:
        raise errors[0]


def _config(member: Member, store: pathlib.Path, quota_bytes: int) -> DeviceConfig:
    return DeviceConfig(
        device=member.name,
        fleet=FLEET,
        broker="mqtt://localhost",
        budget_bytes=member.budget_bytes,
        store=store,
        data=member.data,
        threads=1,
        quota_bytes=quota_bytes,
    )


def _stock(store: pathlib.Path, built: Built) -> None:
    """The artifact's files, as if they had been fetched."""
    blobs = BlobStore(store)
    names = {blob.sha256 for level in built.levels.values() for blob in level.manifest.files.values()}
    blobs.path(built.full.blob.sha256).parent.mkdir(parents=True)
    for name in names:
        os.link(built.store.path(name), blobs.path(name))
