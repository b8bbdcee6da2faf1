"""The small process that stays: it talks MQTT, fetches, verifies and keeps; workers do the rest.

`session` decides, this executes. No onnxruntime is loaded here, and what the agent holds in memory does not grow with
the model. Everything it must not lose lies in the store's folder:

    store/blobs, store/partial     what was fetched
    store/outbox                   results that wait for their receipt, and the residual
    store/sums                     its part in secure sums: secrets, and a delta that is not masked yet
    store/tokens                   the private data, as tokens
    store/work                     what a worker is writing; emptied at every start
    store/identity                 the device's key, and its coordinator's
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import queue
import secrets
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

from edge_sdk import storage
from edge_sdk.config import DeviceConfig
from edge_sdk.ear import Ear
from edge_sdk.events import (
    CancelWorker,
    CheckFiles,
    Event,
    FetchFiles,
    FetchManifest,
    ForgetResult,
    Greet,
    Instruction,
    JoinSum,
    KeepResult,
    KeepVersion,
    LeaveSum,
    ResultKept,
    Say,
    Send,
    StartWorker,
    StopFetching,
    SumJoined,
    Tick,
)
from edge_sdk.fetcher import Fetcher, blobs_of
from edge_sdk.identity import Identity
from edge_sdk.line import Line, presence_payload
from edge_sdk.order import Feedback, WorkerOrder
from edge_sdk.outbox import Outbox
from edge_sdk.power import FULL, Clock, battery
from edge_sdk.secure.sums import Sums
from edge_sdk.session import Session
from edge_sdk.store import DeviceStore
from edge_sdk.supervisor import Post, Supervision, Supervisor, WorkerEvent, WorkerFailed, WorkerFinished
from edge_sdk.web import Web
from edge_sdk.wire.chunks import chunk_bytes_within, read_chunk, requested
from edge_sdk.wire.crash_points import crash_point
from edge_sdk.wire.errors import IntegrityError, WireError
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.messages import (
    Chunk,
    ChunkRequest,
    FailureReason,
    Hello,
    Message,
    NotWelcome,
    Presence,
    Receipt,
    RefusalReason,
    ResultOffer,
    TaskCancel,
    TaskOffer,
    TransferRefused,
    Welcome,
    quality,
)
from edge_sdk.wire.secure.said import MaskInbox, MaskPeers, UnmaskCall
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import Connected, Disconnected, Received, Transport, Will

POLL_S: Final = 0.2
TICK_S: Final = 0.5
WEB_AT_ONCE: Final = 8  # chunks a turn
EVALUATED_SHARE: Final = 8  # rows trained on for each row that the loss is measured on, before and after
MIN_HELD_ASIDE: Final = 4


class Agent:
    """One device over `transport`: call `turn` for ever, then `close`."""

    session = secrets.token_hex(8)  # of this process: what a former one's will says is not about us

    def __init__(
        self,
        config: DeviceConfig,
        identity: Identity,
        transport: Transport,
        say: Callable[[str], None],
        home: pathlib.Path | None = None,
        supervise: Callable[[Post, pathlib.Path | None], Supervision] = Supervisor,
    ) -> None:
        """Go on where the last agent of this store ended.

        Raises OSError; ConfigError where its clock cannot be set, or its roster is none.

        `say` gets lines for people. `home` is the cgroup to make groups for tasks in, see `edge_sdk.cgroup.claim`;
        `supervise` makes what has the tasks done.
        """
        self._config, self._identity, self._transport, self._say = config, identity, transport, say
        self._topics, seed = Topics(config.fleet), zlib.crc32(config.device.encode())
        self._line = Line(identity, self._topics, config.device, seed)
        self._store = DeviceStore(config.store, config.quota_bytes, say=say)
        self._outbox = Outbox(config.store / "outbox")
        self._work = config.store / "work"
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()
        self._fetcher = Fetcher(self._store, seed)
        self._ear, self._web = Ear(transport, self._topics), Web(transport.wake)
        self._from_worker: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self._supervisor = supervise(self._on_worker, home)
        self._in_groups = home is not None
        self._clock = Clock(config.store / "clock") if config.clock else None
        self._worked_at = FULL  # of the clock, by the task that ended last
        self._speeds: list[float | None] = []  # of the store's medium: one, once it was measured
        self._events: deque[Event] = deque()
        self._next_tick_s = 0.0
        contents = self._outbox.load()
        self._sums = Sums(config.store / "sums", identity, config.device, config.privacy.peers())
        for complaint in (*contents.complaints, *self._sums.complaints):
            say(complaint)
        joined = self._sums.waiting(self._outbox)
        hello = _hello(config, self.session, identity.version)
        self._session = Session(hello, contents.results, time.monotonic(), joined, config.privacy)
        for topic in (self._topics.announcement, self._topics.manifest("+"), self._topics.down(config.device)):
            transport.subscribe(topic)

    @classmethod
    def will(cls, config: DeviceConfig, identity: Identity) -> Will:
        """What the broker says for us when we are gone."""
        topics, gone = Topics(config.fleet), Presence(config.device, cls.session, online=False)
        return Will(topics.presence(config.device), presence_payload(identity, topics, gone))

    def turn(self) -> None:
        """Wait a little for something to happen, and act on it. Raises OSError."""
        happened = self._transport.receive(POLL_S)
        if isinstance(happened, Received):
            self._on_received(happened)
        elif isinstance(happened, Connected):
            self._say("connected to the broker")
            self._fetcher.use_chunks_of(chunk_bytes_within(happened.max_packet_bytes))
            self._line.begin(time.monotonic())
        elif isinstance(happened, Disconnected):
            self._say(f"no broker: {happened.reason}; trying again in {happened.retry_s:.1f} s")
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._from_worker.get_nowait()
                if isinstance(event, (WorkerFinished, WorkerFailed)):
                    self._set_clock_back()
                self._tell(event)
        self._greet()
        self._read_web()
        self._ask_for_more()
        if time.monotonic() >= self._next_tick_s:
            self._next_tick_s = time.monotonic() + TICK_S
            self._tell(Tick())

    def close(self) -> None:
        """End the worker, keep what was fetched so far, and say goodbye. Raises OSError."""
        self._supervisor.close()
        self._set_clock_back()
        self._web.stop()
        self._fetcher.stop()
        self._publish_presence(online=False)

    # ---- messages

    def _on_received(self, received: Received) -> None:
        try:
            if received.topic.startswith(self._topics.manifest("")):
                self._fetcher.hold(self._topics.last_level(received.topic), received.payload)
            elif (chunk := self._ear.chunk(received)) is not None:
                self._on_message(chunk)
            else:
                self._on_message(self._line.open(received.topic, received.payload, time.monotonic()))
        except WireError as error:
            self._say(f"dropped a message on {received.topic}: {error}"[:300])

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self._publish_presence(online=True)
            self._tell(message)
        elif isinstance(message, (NotWelcome, TaskOffer, TaskCancel, Receipt)):
            self._tell(message)
        elif isinstance(message, Chunk):
            self._heard(self._fetcher.take(message, time.monotonic()))
        elif isinstance(message, ChunkRequest):
            self._serve(message)
        elif isinstance(message, TransferRefused):
            self._heard(self._fetcher.refused(message))
        elif isinstance(message, (MaskPeers, MaskInbox, UnmaskCall)):
            self._on_masking(message)

    def _on_masking(self, message: MaskPeers | MaskInbox | UnmaskCall) -> None:
        """A step of a secure sum. Raises MaskError for one that this device does not take."""
        if isinstance(message, MaskPeers):
            self._send(self._sums.deal(message))
        elif isinstance(message, UnmaskCall):
            self._send(self._sums.reveal(message))
        elif (offer := self._sums.mask(message, self._outbox, self._work / "masked")) is not None:
            self._tell(ResultKept(offer))

    def _greet(self) -> None:
        greeting = self._line.greeting(time.monotonic())
        if greeting is not None:
            self._transport.publish(self._topics.up(self._config.device), greeting)

    def _ask_for_more(self) -> None:
        requests = self._fetcher.requests(time.monotonic())
        if isinstance(requests, list):
            self._ear.follow(self._fetcher.followed)
            for request in requests:
                self._send(request)
        else:
            self._heard(requests)

    def _read_web(self) -> None:
        """Take what web servers gave, a little a turn, and ask them for more."""
        for _ in range(WEB_AT_ONCE):
            came = self._web.take()
            if came is None:
                break
            if isinstance(came, Chunk):
                self._heard(self._fetcher.take(came, time.monotonic()))
            else:
                self._fetcher.web_ended(came.blob)
                if came.why:
                    self._say(f"file {came.blob[:12]} comes from elsewhere: {came.why}"[:300])
        if self._web.blob and self._web.blob not in self._fetcher.followed:
            self._web.stop()
        if not self._web.blob and (wanted := self._fetcher.wanted_of_web()) is not None:
            self._web.begin(wanted)

    def _serve(self, request: ChunkRequest) -> None:
        """Send chunks of a delta that waits for its receipt; nothing else leaves this device."""
        blob = self._session.offered(request.blob)
        if blob is None:
            self._send(TransferRefused(request.blob, RefusalReason.UNKNOWN_BLOB))
            return
        try:
            for index in requested(request, blob.size_bytes):
                self._send(read_chunk(self._outbox.deltas, blob, request.chunk_bytes, index))
        except (FileNotFoundError, IntegrityError) as error:
            self._say(f"a delta in the outbox is lost: {error}")
            self._send(TransferRefused(request.blob, RefusalReason.UNKNOWN_BLOB))

    def _send(self, message: Message) -> None:
        payload = self._line.seal(message)
        if payload is not None:
            self._transport.publish(self._topics.up(self._config.device), payload, qos=quality(message))
        if isinstance(message, ResultOffer):
            crash_point("result.offered")

    def _publish_presence(self, *, online: bool) -> None:
        presence = Presence(self._config.device, self.session, online=online)
        payload = presence_payload(self._identity, self._topics, presence)
        self._transport.publish(self._topics.presence(self._config.device), payload, retain=True)

    # ---- instructions

    def _heard(self, event: Event | None) -> None:
        if event is not None:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        """Carry out what `event` asks for; events that arise meanwhile wait for their turn."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for instruction in self._session.handle(self._events[0], time.monotonic()):
                self._execute(instruction)
            self._events.popleft()

    def _execute(self, instruction: Instruction) -> None:
        if isinstance(instruction, Send):
            self._send(instruction.message)
        elif isinstance(instruction, Say):
            self._say(instruction.line)
        elif isinstance(instruction, (FetchManifest, FetchFiles)):
            self._heard(self._fetcher.begin(instruction))
        elif isinstance(instruction, Greet):
            self._line.begin(time.monotonic())
        elif isinstance(instruction, KeepVersion):
            self._identity.keep_version(instruction.version)
        elif isinstance(instruction, StopFetching):
            self._fetcher.stop()
        elif isinstance(instruction, StartWorker):
            self._start(instruction)
        elif isinstance(instruction, CancelWorker):
            self._supervisor.cancel()
        elif isinstance(instruction, (KeepResult, JoinSum)):
            self._keep(instruction)
        elif isinstance(instruction, (ForgetResult, LeaveSum)):
            self._forget(instruction)
        elif isinstance(instruction, CheckFiles):
            damaged = self._store.remove_damaged(blobs_of(instruction.task, instruction.manifest))
            self._say(f"{len(damaged)} damaged files are removed, and will be fetched again")

    def _start(self, asked: StartWorker) -> None:
        if self._clock is not None:
            self._clock.slow_to(asked.task.power)
        self._supervisor.start(self._order(asked))

    def _keep(self, result: KeepResult | JoinSum) -> None:
        task_id = result.task_id if isinstance(result, KeepResult) else result.task.task_id
        report = dataclasses.replace(result.report, clock=self._worked_at, battery=battery())
        try:
            if isinstance(result, JoinSum):
                self._tell(SumJoined(self._sums.join(result.task, result.numbers_path, report)))
                return
            report = dataclasses.replace(report, up_bytes=result.delta_path.stat().st_size)
            offer = self._outbox.keep(task_id, result.delta_path, report, result.residual_path)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            detail = "no space left on the device for the delta"
            self._tell(WorkerFailed(task_id, FailureReason.NO_SPACE, result.report.peak_bytes, detail))
        else:
            self._tell(ResultKept(offer))

    def _set_clock_back(self) -> None:
        if self._clock is not None:
            self._worked_at = self._clock.share
            self._clock.set_back()

    def _forget(self, what: ForgetResult | LeaveSum) -> None:
        if isinstance(what, LeaveSum):
            self._sums.forget(what.task_id)
        else:
            self._outbox.forget(what.offer.task_id, what.offer.delta, accepted=what.accepted)

    def _on_worker(self, event: WorkerEvent) -> None:
        """From the supervisor's thread."""
        self._from_worker.put(event)
        self._transport.wake()

    def _order(self, start: StartWorker) -> WorkerOrder:
        from edge_sdk import prepare  # NumPy comes with these two: a third of an idle agent's memory
        from edge_sdk.data import MAX_HELD_ASIDE

        config, task, manifest = self._config, start.task, start.manifest
        tokenizer = self._store.blobs.path(manifest.files[manifest.tokenizer].sha256) if manifest.tokenizer else None
        tokens = config.store / "tokens" / _tokens_name(manifest, task.tokens)
        return WorkerOrder(
            device=config.device,
            task=task,
            store=str(config.store),
            data=str(tokens),
            delta=str(self._work / "delta"),
            prepare=tuple(
                prepare.command(
                    config.data,
                    tokenizer,
                    task.tokens,
                    manifest.model.labels,
                    tokens,
                    image=manifest.model.image,
                    labels_tokens=manifest.model.task.labels_tokens,
                )
            ),
            budget_bytes=config.budget_bytes,
            correction=start.correction,
            threads=task.threads(config.threads) if self._clock is None else config.threads,
            held_aside_rows=min(max(task.steps * task.batch // EVALUATED_SHARE, MIN_HELD_ASIDE), MAX_HELD_ASIDE),
            read_bytes_s=self._read_bytes_s(manifest),
            cache_bytes=self._cache_bytes(manifest),
            provider=config.provider,
            feedback=self._feedback() if start.feedback else None,
        )

    def _feedback(self) -> Feedback:
        if complaint := self._outbox.check_residual():
            self._say(complaint)
        return Feedback(str(self._outbox.residual), str(self._work / "residual"))

    def _read_bytes_s(self, manifest: Manifest) -> float | None:
        """The speed of the store's medium, measured on the first artifact; None where it cannot be."""
        if not self._speeds:
            try:
                speed = storage.read_bytes_s(self._store.blobs.path(manifest.largest_blob().sha256))
                self._speeds.append(speed)
                self._say(f"the store is read at {speed / 1e6:.0f} MB/s")
            except (storage.NotMeasured, OSError) as error:  # a worker that cannot read says so better
                self._speeds.append(None)
                self._say(storage.unknown(error))
        return self._speeds[0]

    def _cache_bytes(self, manifest: Manifest) -> int:
        """What the page cache may hold beside a worker; in a group of its own, what the leanest plan leaves there."""
        free_bytes = storage.cache_bytes(self._config.budget_bytes)
        beside_bytes = max(self._config.budget_bytes - manifest.needs_bytes, 0)
        return min(free_bytes, beside_bytes) if self._in_groups else free_bytes


def _tokens_name(manifest: Manifest, tokens: int) -> str:
    """The folder for the private data as this model takes it: levels of one model share it."""
    tokenizer = manifest.files[manifest.tokenizer].sha256 if manifest.tokenizer else ""
    model = manifest.model
    parts = (tokenizer, tokens, model.labels, model.image, model.task.labels_tokens)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _hello(config: DeviceConfig, session: str, heard_version: int) -> Hello:
    return Hello(
        device=config.device,
        session=session,
        budget_bytes=config.budget_bytes,
        cores=config.threads,
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        machine=_machine(),
        runtime=f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        version=importlib.metadata.version("fedpeat"),
        task_id="",
        heard_version=heard_version,
        battery=battery(),
    )


def _machine() -> str:
    """The board's name where it has one, else the processor's kind."""
    try:
        board = pathlib.Path("/proc/device-tree/model").read_text("utf-8", errors="replace").strip("\0 \n")[:80]
    except OSError:
        return platform.machine()
    return f"{board}, {platform.machine()}"
