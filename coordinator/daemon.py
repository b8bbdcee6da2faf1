"""The daemon: one loop, one thread that owns everything. `rounds` decides, this executes.

Rules:

- what a message or a finished job means is an event for `rounds`; its instructions are executed in order, each written
  to the ledger before it is sent;
- nothing here waits: transfers are a few chunks a turn, and what takes longer is a job;
- a message that is malformed, or not signed by whom its topic names, is said and dropped;
- a broker that forgot everything is told everything again at each connect.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from coordinator import answers
from coordinator.aggregation import Aggregated, aggregation, narrowed
from coordinator.builder import Artifact
from coordinator.collector import Collector, Fetched, Unfetched
from coordinator.config import Config
from coordinator.errors import CoordinatorError, JobError
from coordinator.evaluation import Evaluator
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    CancelTask,
    DeclineHeard,
    DeviceRevoked,
    Event,
    FailureHeard,
    FetchDelta,
    GiveTask,
    HelloHeard,
    Instruction,
    LossMeasured,
    MaskingHeard,
    NoAdapter,
    OfferAgain,
    OpenRound,
    PresenceHeard,
    ProgressHeard,
    Reconnected,
    RecordDecision,
    ResultCommitted,
    ResultHeard,
    ResultRefused,
    SendReceipt,
    SetRates,
    StopAsked,
    TellMasking,
    Tick,
    UsePolicy,
)
from coordinator.gate import Gate, Reply
from coordinator.guards import OverNorm
from coordinator.history import EvaluationRow, read_history
from coordinator.jobs import Done, Failed, Jobs, Outcome
from coordinator.ledger import Ledger
from coordinator.narrate import narrate, rolled_back
from coordinator.places import received_folder
from coordinator.planning import plan_of
from coordinator.policy.learned import Learned
from coordinator.policy.registry import policy_or_greedy
from coordinator.publisher import ALL, Publisher
from coordinator.registry import Registry
from coordinator.report import FULL
from coordinator.round_states import State
from coordinator.rounds import Rounds
from coordinator.screen import Screen, board
from coordinator.scribe import write_down
from coordinator.secure.config import BLIND
from coordinator.secure.opening import summed_shapes
from coordinator.tuner import Tuner
from coordinator.validate import Accepted, Expected, Refused, check_delta, check_masked, expected
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.chunks import chunk_bytes_within
from edge_sdk.wire.crash_points import crash_point
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.messages import (
    Chunk,
    ChunkRequest,
    Hello,
    Message,
    Presence,
    RefusalReason,
    ResultOffer,
    TaskCancel,
    TaskDeclined,
    TaskFailed,
    TaskOffer,
    TaskProgress,
    TransferRefused,
    encode_message,
    quality,
)
from edge_sdk.wire.secure.said import MaskKeys, MaskShares, UnmaskShares
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import FEW, Connected, Disconnected, Received, Transport

POLL_S: Final = 0.05
TICK_S: Final = 0.5
AGGREGATE: Final = "aggregate"
MAX_VERSION: Final = 1 << 62  # no device's word goes further: there are versions above it


class Daemon:
    """Serves one run over `transport` until its rounds are done."""

    def __init__(
        self,
        config: Config,
        artifact: Artifact,
        ledger: Ledger,
        registry: Registry,
        transport: Transport,
        jobs: Jobs,
        screen: Screen,
        *,
        restored: bool = False,
    ) -> None:
        """Continue where the ledger ends, or begin with the artifact's starting values.

        With `restored` from a backup, versions go on above whatever devices have heard.
        """
        self._config, self._artifact, self._ledger = config, artifact, ledger
        self._transport, self._jobs, self._screen, self._restored = transport, jobs, screen, restored
        self._topics = Topics(config.fleet)
        self._registry, self._gate = registry, Gate(registry, self._topics, config.trust.enrolment)
        self._received = BlobStore(received_folder(config))
        self._pace = config.transfer.pace()
        self._publisher = Publisher(artifact.store, self._pace, broadcast=config.transfer.broadcast)
        self._collector = Collector(self._received, self._pace)
        self._evaluator = (
            Evaluator(config, config.evaluation, artifact, jobs) if config.evaluation is not None else None
        )
        ledger.begin(artifact.initial_adapter())
        past = ledger.past()
        if past is None:  # begin has just written version 0
            msg = "the ledger lost its first adapter"
            raise CoordinatorError(msg)
        past = dataclasses.replace(past, narrowed=narrowed(artifact, past.adapter))
        policy = policy_or_greedy(config.policy, lambda line: screen.line(line, "red"))
        self._tuner: Tuner | None = None
        if config.policy.tune is not None and isinstance(policy, Learned):
            self._tuner = Tuner(config, config.policy.tune, policy, ledger, jobs, screen.line)
            policy = self._tuner.decides(past.version + 1)
        self._rounds = Rounds(plan_of(config, artifact, ledger), policy, past, time.monotonic())
        if past.version or past.open:
            done = past.version >= config.rounds.count
            self._screen.line("all rounds are done already" if done else f"continuing at round {past.version + 1}")
        if config.secure is not None:
            summed_shapes(config, artifact)  # before anybody trains in vain
            screen.line(BLIND, "yellow")
        self._events: deque[Event] = deque()
        self._connected, self._next_tick_s = False, 0.0

    def run(self, stop_asked: Callable[[], bool], keep: Callable[[], None]) -> State:
        """Serve until all is done and measured, or `stop_asked`; call `keep` now and then.

        Raises CoordinatorError, OSError, sqlite3.Error.
        """
        self._transport.subscribe(self._topics.presence("+"))
        self._transport.subscribe(self._topics.up("+"))
        if self._evaluator is not None:
            self._evaluator.start_missing(read_history(self._ledger.path))
        while not self._over():
            if stop_asked():
                self._tell(StopAsked())
                break
            self._turn(keep)
        self._flush_traffic()
        return self._rounds.state

    # ---- one turn of the loop

    def _turn(self, keep: Callable[[], None]) -> None:
        wait_s = self._publisher.wait_s(time.monotonic()) if self._may_send() else POLL_S
        happened = self._transport.receive(min(wait_s, POLL_S))
        if isinstance(happened, Received):
            self._on_received(happened)
        elif isinstance(happened, Connected):
            self._collector.use_chunks_of(chunk_bytes_within(happened.max_packet_bytes), time.monotonic())
            self._on_connected()
        elif isinstance(happened, Disconnected):
            self._on_disconnected(happened)
        for outcome in self._jobs.poll():
            self._on_outcome(outcome)
        now_s = time.monotonic()
        for device, request in self._collector.requests(now_s):  # first, where both have to wait: they end rounds
            self._send(device, request)
        if self._may_send():
            for device, message in self._publisher.next_chunks(now_s):
                self._send_chunk(device, message)
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_S
            self._on_tick(now_s)
            keep()

    def _may_send(self) -> bool:
        """Whether chunks would go out now: read before that they would only take up memory."""
        return self._transport.backlog <= FEW

    def _on_tick(self, now_s: float) -> None:
        for device, payload in self._gate.revoked().items():
            self._screen.line(f"{device}: revoked", "yellow")
            self._transport.publish(self._topics.down(device), payload)
            self._tell(DeviceRevoked(device))
        self._tell(Tick())
        self._screen.board(lambda: board(self._rounds, now_s))

    def _over(self) -> bool:
        state = self._rounds.state
        if state in {State.GAVE_UP, State.STOPPED}:
            return True
        return state is State.DONE and not self._measuring()

    # ---- the broker

    def _on_connected(self) -> None:
        """Say everything again: the broker may be a new one."""
        self._connected = True
        self._screen.line("connected to the broker")
        for built in self._artifact.levels.values():
            data = self._artifact.store.read(built.blob)
            self._transport.publish(self._topics.manifest(built.blob.sha256), data, retain=True)
        crash_point("manifests.published")
        self._announce()
        self._tell(Reconnected())

    def _on_disconnected(self, event: Disconnected) -> None:
        what = "lost the broker" if self._connected else "no broker"
        self._screen.line(f"{what}: {event.reason}; trying again in {event.retry_s:.1f} s", "yellow")
        self._connected = False

    def _announce(self) -> None:
        payload = self._gate.announcement(self._rounds.round)
        self._transport.publish(self._topics.announcement, payload, retain=True)
        crash_point("announcement.sent")

    def _send(self, device: str, message: Message) -> None:
        payload = self._gate.seal(device, message)
        if payload is not None:
            self._transport.publish(self._topics.down(device), payload, qos=quality(message))

    def _send_chunk(self, device: str, message: Chunk | TransferRefused) -> None:
        if device == ALL and isinstance(message, Chunk):
            self._transport.publish(self._topics.all(message.blob), encode_message(message), qos=quality(message))
        else:
            self._send(device, message)

    # ---- messages

    def _on_received(self, received: Received) -> None:
        try:
            device = self._topics.last_level(received.topic)
            heard = self._gate.hear(device, received.topic, received.payload, time.monotonic())
        except WireError as error:
            self._drop(f"{received.topic}: {error}")
            return
        if isinstance(heard, Reply):
            self._transport.publish(self._topics.down(device), heard.payload)
            if heard.news:
                self._screen.line(heard.news)
        elif getattr(heard, "device", device) != device:
            self._drop(f"{received.topic}: speaks for another device")
        else:
            self._on_message(device, heard)

    def _drop(self, why: str) -> None:
        self._screen.line(f"dropped a message on {why}"[:200], "yellow")

    def _on_message(self, device: str, message: Message) -> None:
        if isinstance(message, Hello):
            self._on_hello(message)
        elif isinstance(message, Presence):
            self._tell(PresenceHeard(message))
        elif isinstance(message, TaskProgress):
            self._tell(ProgressHeard(device, message))
        elif isinstance(message, TaskDeclined):
            self._tell(DeclineHeard(device, message))
        elif isinstance(message, TaskFailed):
            self._tell(FailureHeard(device, message))
        elif isinstance(message, ResultOffer):
            self._tell(ResultHeard(device, message))
        elif isinstance(message, (MaskKeys, MaskShares, UnmaskShares)):
            self._on_masking(device, message)
        elif isinstance(message, ChunkRequest):
            refusal = self._publisher.asked(device, message, time.monotonic())
            if refusal is not None:
                self._send(device, refusal)
        elif isinstance(message, Chunk):
            self._collected(self._collector.take(device, message, time.monotonic()))
        elif isinstance(message, TransferRefused):
            self._collected(self._collector.refused(device, message))
        else:
            self._drop(f"{device}: a {type(message).__name__} is not for the coordinator")

    def _on_masking(self, device: str, message: MaskKeys | MaskShares | UnmaskShares) -> None:
        known = self._registry.device(device)
        if known is not None:
            self._tell(MaskingHeard(device, known.key, message))

    def _on_hello(self, hello: Hello) -> None:
        if hello.device not in self._rounds.fleet:
            budget = f"{hello.budget_bytes / 1e6:.0f} MB"
            self._screen.line(f"{hello.device}: {hello.machine}, {hello.cores} threads, budget {budget}")
        if hello.heard_version > (here := self._registry.version()):
            self._screen.line(rolled_back(hello, here, restored=self._restored), "red")
            if self._restored:
                self._registry.raise_version(min(hello.heard_version, MAX_VERSION))
        self._ledger.hello(hello)
        self._tell(HelloHeard(hello))

    # ---- instructions

    def _tell(self, event: Event) -> None:
        """Carry out what `event` asks for; events that arise meanwhile wait for their turn."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for instruction in self._rounds.handle(self._events[0], time.monotonic()):
                write_down(self._ledger, instruction)
                if line := narrate(instruction):
                    self._screen.line(*line)
                self._execute(instruction)
            self._events.popleft()

    def _execute(self, instruction: Instruction) -> None:
        if isinstance(instruction, RecordDecision):
            for note in instruction.decided.decision.notes:
                self._screen.line(note, "bold red")
        elif isinstance(instruction, OpenRound):
            self._registry.raise_version()
            self._announce()
        elif isinstance(instruction, (GiveTask, OfferAgain)):
            offer = TaskOffer(instruction.task, self._registry.version(), time.monotonic())
            self._send(instruction.device, offer)
            crash_point("task.offered")
        elif isinstance(instruction, CancelTask):
            self._collector.forget(instruction.device, instruction.task_id)
            self._send(instruction.device, TaskCancel(instruction.task_id, instruction.reason))
        elif isinstance(instruction, TellMasking):
            self._send(instruction.device, instruction.message)
        elif isinstance(instruction, SendReceipt):
            self._send(instruction.device, instruction.receipt)
            crash_point("receipt.sent")
        elif isinstance(instruction, FetchDelta):
            self._fetch(instruction)
        elif isinstance(instruction, SetRates):
            self._pace.limit_only(instruction.bytes_s, time.monotonic())
        elif isinstance(instruction, AggregateRound):
            self._aggregate(instruction)

    def _fetch(self, wanted: FetchDelta) -> None:
        limit = self._expected(wanted).max_bytes
        self._collected(self._collector.begin(wanted, limit, time.monotonic()))

    def _collected(self, outcome: Fetched | Unfetched | None) -> None:
        """A delta is whole, or cannot be had: commit or refuse, and only then tell."""
        if isinstance(outcome, Fetched):
            self._judge(outcome)
        elif isinstance(outcome, Unfetched):
            self._refuse(outcome.wanted, outcome.reason, outcome.detail)

    def _judge(self, fetched: Fetched) -> None:
        wanted = fetched.wanted
        data = self._received.read(wanted.delta)
        expects, masked = self._expected(wanted), wanted.task.masking is not None
        verdict = check_masked(data, expects, wanted.report.examples) if masked else check_delta(data, expects)
        if isinstance(verdict, Accepted) and not self._artifact.store.has(wanted.task.adapter):
            verdict = Refused(RefusalReason.WRONG_ROUND, "the adapter that it started from is not here any more")
        if not isinstance(verdict, Accepted):
            if not self._ledger.is_committed(wanted.delta.sha256):  # another's good delta has another's right to stay
                self._received.remove(wanted.delta.sha256)
            self._refuse(wanted, verdict.reason, verdict.detail)
            return
        crash_point("delta.judged")
        task_id, report = wanted.task.task_id, wanted.report
        answer = answers.finished(wanted.answer, verdict.examples, wanted.offered_s, time.monotonic())
        self._ledger.commit_result(task_id, wanted.delta, verdict.size, report, answer)
        loss = f"loss {report.loss_before:.3f} -> {report.loss_after:.3f}"
        peak = f"peak {report.peak_bytes / 1e6:.0f} of {report.budget_bytes / 1e6:.0f} MB"
        how = "masked" if masked else f"in {wanted.task.delta_codec.value}"
        size = f"{len(data) / 1e6:.2f} MB {how}"
        what = f"delta of {size}, {wanted.level}, {report.steps} steps, {loss}, {peak}"
        self._screen.line(f"{wanted.device}: {what}", "green")
        self._tell(ResultCommitted(task_id, answer))

    def _refuse(self, wanted: FetchDelta, reason: RefusalReason, detail: str) -> None:
        self._ledger.refuse_result(wanted.task.task_id, reason, detail)
        self._screen.line(f"{wanted.device}: delta refused, {reason.value}: {detail}", "red")
        self._tell(ResultRefused(wanted.task.task_id, reason, detail))

    def _expected(self, wanted: FetchDelta) -> Expected:
        checks, limit = self._config.checks, None
        # Under [privacy] nobody else's data decides whether a delta counts: its own bound alone holds it.
        if checks.over_norm is OverNorm.REFUSE and self._config.central_privacy is None:
            limit = checks.size_limit(self._ledger.sizes(wanted.task.round))
        return expected(wanted.task, wanted.device, self._manifest(wanted.level), limit)

    # ---- jobs

    def _aggregate(self, asked: AggregateRound) -> None:
        work = aggregation(asked, self._config, self._artifact, self._ledger, self._received)
        self._jobs.start(f"aggregation of round {asked.round}", AGGREGATE, work)

    def _on_outcome(self, outcome: Outcome) -> None:
        if not isinstance(outcome, (Done, Failed)):
            return
        measured = self._evaluator is not None and self._evaluator.ended(outcome.job)
        if self._tuner is not None and self._tuner.ended(outcome, self._rounds.round + 1):
            return
        if isinstance(outcome, Failed) and measured:
            self._screen.line(f"{outcome.job} could not be measured: {outcome.error}", "red")
        elif isinstance(outcome, Failed):
            msg = f"{outcome.job} failed: {outcome.error}"
            raise JobError(msg) from outcome.error
        elif isinstance(outcome.value, EvaluationRow):
            self._on_evaluation(outcome.value)
        elif isinstance(outcome.value, NoAdapter):
            self._tell(outcome.value)
        elif isinstance(outcome.value, Aggregated):
            self._on_aggregate(outcome.value)

    def _on_aggregate(self, found: Aggregated) -> None:
        asked, made = found.asked, found.made
        self._ledger.commit_adapter(asked, made.blob, made.truncation, made.moments, found.spent)
        self._flush_traffic()
        lost = f", {made.truncation:.1%} of the product lost to the rank" if made.truncation else ""
        self._screen.line(f"round {asked.round} is aggregated: adapter {made.blob.sha256[:12]}{lost}", "bold")
        if found.standing is not None:
            self._screen.line(f"privacy: {found.standing}", "bold")
        if self._evaluator is not None:
            self._evaluator.start(asked.round, made.blob)
        if self._tuner is not None:  # before the next round opens
            self._tuner.after(asked.round)
            self._tell(UsePolicy(self._tuner.decides(asked.round + 1)))
        self._tell(AdapterReady(asked.round, made.blob, found.narrowed))

    def _on_evaluation(self, found: EvaluationRow) -> None:
        self._ledger.evaluation(found.version, found.kind, found.loss, found.accuracy, found.rows)
        where = "full model" if found.kind == FULL else f"emulator {self._config.levels[-1].name}"
        what = f"after round {found.version}" if found.version else "before round 1"
        accuracy = "" if found.accuracy is None else f", accuracy {found.accuracy:.3f}"
        self._screen.line(f"held-out loss, {what}, {where}: {found.loss:.4f}{accuracy}", "cyan")
        if found.kind == FULL:
            self._tell(LossMeasured(found.version, found.loss))
            if self._tuner is not None:
                self._tuner.measured()

    def _measuring(self) -> bool:
        return self._evaluator is not None and self._evaluator.pending

    def _flush_traffic(self) -> None:
        sent, received = self._publisher.take_sent_bytes(), self._collector.take_received_bytes()
        for device in sorted(sent.keys() | received.keys()):
            self._ledger.traffic(device, sent.get(device, 0), received.get(device, 0))

    # ---- plumbing

    def _manifest(self, level: str) -> Manifest:
        return self._artifact.levels[level].manifest
