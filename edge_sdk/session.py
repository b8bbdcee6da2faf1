"""What a device does and when: events in, instructions out. No sockets, files, threads or clocks.

Rules:

- one task at a time; whoever offers another meanwhile hears `busy`;
- every offer gets an answer, and an offer repeated gets the same answer again: declines and failures are remembered
  for a while, results until their receipt;
- a result is offered after every welcome, and every `RESEND_S`, until the receipt comes;
- who is not welcome gives up its task, and keeps its results: the coordinator may think better of it;
- an offer of a lower version than one that was taken is declined: a coordinator may be one from an old backup;
- an offer that was under way for longer than it is good for is not taken: somebody may have held it back. The device
  greets, and hears of the task again if it is still open;
- a task whose deadline has passed is given up: the coordinator has closed it;
- a delta for a secure sum waits for the sum: the device says its keys where it would say a result, and may do other
  tasks meanwhile. What follows is `edge_sdk.secure`'s; once the delta is masked it is a result like any other;
- a delta's residual counts from its receipt on. So a task that begins while a result waits for its receipt uses none
  and leaves none: its delta is rounded by chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edge_sdk.engine.plan import EXACT, Declined, Plan, choose_plan
from edge_sdk.events import (
    CancelWorker,
    CheckFiles,
    Event,
    FetchFailed,
    FetchFiles,
    FetchManifest,
    FilesHere,
    ForgetResult,
    Greet,
    Instruction,
    JoinSum,
    KeepResult,
    KeepVersion,
    LeaveSum,
    ManifestHere,
    ResultKept,
    Say,
    Send,
    StartWorker,
    StopFetching,
    SumJoined,
    Tick,
)
from edge_sdk.floor import Floor
from edge_sdk.phases import TRANSITIONS, Phase, Trigger
from edge_sdk.supervisor import WorkerFailed, WorkerFinished, WorkerProgress
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.messages import (
    DeclineReason,
    FailureReason,
    Hello,
    NotWelcome,
    Receipt,
    ResultOffer,
    Task,
    TaskCancel,
    TaskDeclined,
    TaskFailed,
    TaskOffer,
    TaskProgress,
    Welcome,
)
from edge_sdk.wire.privacy import rows_at_once
from edge_sdk.wire.secure.said import MaskKeys

RESEND_S: Final = 15.0
PROGRESS_S: Final = 1.0  # between two progress messages
REMEMBERED: Final = 64  # answers
DETAIL: Final = 400  # characters of a detail


@dataclass(frozen=True, slots=True)
class Current:
    """The task at hand, and what is known about it so far."""

    task: Task
    deadline_s: float
    manifest: Manifest | None = None
    plan: Plan | None = None
    down_bytes: int = 0
    told_s: float = float("-inf")


class Session:
    """One device between two starts of its agent. `phase` may be read."""

    def __init__(
        self,
        hello: Hello,
        results: tuple[ResultOffer, ...],
        now_s: float,
        joined: Mapping[str, MaskKeys] | None = None,
        floor: Floor | None = None,
    ) -> None:
        """`hello` is what it says of itself, with the highest version of an offer; `results` wait in its outbox, and
        what has `joined` a secure sum, by task, for that. A task below the `floor` is declined.
        """
        self.phase = Phase.IDLE
        self._hello = hello
        self._ahead_s = math.inf  # of the coordinator's clock, and the shortest time that a message was under way
        self._current: Current | None = None
        self._results = {offer.task_id: offer for offer in results}
        self._joined, self._floor = dict(joined or {}), floor or Floor()
        self._answers: dict[str, TaskDeclined | TaskFailed] = {}
        self._corrections: dict[str, float] = {}  # by manifest: how much larger a peak was than its prediction
        self._resend_at_s = now_s + RESEND_S
        self._handlers: dict[type, Callable[[Any, float], Iterator[Instruction]]] = {
            Welcome: self._on_welcome,
            NotWelcome: self._on_not_welcome,
            TaskOffer: self._on_offer,
            TaskCancel: self._on_cancel,
            Receipt: self._on_receipt,
            ManifestHere: self._on_manifest,
            FilesHere: self._on_files,
            FetchFailed: self._on_fetch_failed,
            WorkerProgress: self._on_progress,
            WorkerFinished: self._on_finished,
            WorkerFailed: self._on_failed,
            ResultKept: self._on_kept,
            SumJoined: self._on_joined,
            Tick: self._on_tick,
        }

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """What is to be done because of `event`, in this order."""
        return list(self._handlers[type(event)](event, now_s))

    def offered(self, sha256: str) -> Blob | None:
        """The delta of that name, if it waits for its receipt."""
        return next((o.delta for o in self._results.values() if o.delta.sha256 == sha256), None)

    # ---- the coordinator

    def _on_welcome(self, event: Welcome, now_s: float) -> Iterator[Instruction]:
        self._ahead_s = now_s - event.sent_s
        busy_with = self._current.task.task_id if self._current else ""
        yield Send(dataclasses.replace(self._hello, task_id=busy_with))
        yield from self._offer_results(now_s)

    def _on_not_welcome(self, event: NotWelcome, _now_s: float) -> Iterator[Instruction]:
        yield Say(f"not welcome, {event.reason.value}: {event.detail}")
        if self._current is not None:
            yield from self._stop(self._current.task.task_id, "the coordinator wants nothing of this device")

    def _offer_results(self, now_s: float) -> Iterator[Instruction]:
        self._resend_at_s = now_s + RESEND_S
        for offer in self._results.values():
            yield Send(offer)
        for keys in self._joined.values():
            yield Send(keys)

    def _on_offer(self, event: TaskOffer, now_s: float) -> Iterator[Instruction]:
        task = event.task
        self._ahead_s = min(self._ahead_s, now_s - event.sent_s)
        left_s = task.deadline_s - (now_s - event.sent_s - self._ahead_s)
        if event.version < self._hello.heard_version:
            detail = f"version {event.version}, this device has taken {self._hello.heard_version}"
            yield Say(f"an offer of round {task.round} is declined, rolled-back: {detail}")
            yield Send(TaskDeclined(task.task_id, DeclineReason.ROLLED_BACK, 0, 0, detail))
            return
        if left_s <= 0:
            yield Say(f"an offer of round {task.round} came {-left_s:.0f} s after its deadline, and is not taken")
            yield Greet()
            return
        held = (self._results, self._joined, self._answers)
        known = next((answers[task.task_id] for answers in held if task.task_id in answers), None)
        if known is not None:
            yield Send(known)
        elif self._current is not None and self._current.task.task_id == task.task_id:
            self._current = dataclasses.replace(self._current, deadline_s=now_s + left_s)
        elif self.phase is not Phase.IDLE:
            yield Send(TaskDeclined(task.task_id, DeclineReason.BUSY, 0, 0, "at another task"))
        else:
            self._go(Trigger.OFFERED)
            self._current = Current(task, now_s + left_s)
            if event.version > self._hello.heard_version:
                self._hello = dataclasses.replace(self._hello, heard_version=event.version)
                yield KeepVersion(event.version)
            yield Say(f"round {task.round}: offered {task.steps} steps of {task.batch} x {task.tokens} tokens")
            if why_not := self._floor.why_not(task):
                yield from self._decline(task, DeclineReason.PRIVACY, why_not)
                return
            yield FetchManifest(task)

    def _on_cancel(self, event: TaskCancel, _now_s: float) -> Iterator[Instruction]:
        if offer := self._results.pop(event.task_id, None):
            yield ForgetResult(offer, accepted=False)
        yield from self._leave_sum(event.task_id)
        yield from self._stop(event.task_id, f"cancelled: {event.reason}")

    def _on_receipt(self, event: Receipt, _now_s: float) -> Iterator[Instruction]:
        if offer := self._results.pop(event.task_id, None):
            outcome = (
                "accepted" if event.accepted else f"refused, {event.reason and event.reason.value}: {event.detail}"
            )
            yield Say(f"the delta of {event.task_id} was {outcome}")
            yield ForgetResult(offer, event.accepted)
        if not event.accepted:
            yield from self._leave_sum(event.task_id)
        yield from self._stop(event.task_id, "the coordinator has a result of it already")

    def _leave_sum(self, task_id: str) -> Iterator[Instruction]:
        self._joined.pop(task_id, None)
        yield LeaveSum(task_id)

    def _stop(self, task_id: str, why: str) -> Iterator[Instruction]:
        """Give the current task up if it is this one."""
        if self._current is None or self._current.task.task_id != task_id:
            return
        yield Say(f"task {task_id} is given up: {why}")
        yield CancelWorker() if self.phase is Phase.TRAINING else StopFetching()
        self._go(Trigger.CANCELLED)
        self._current = None

    # ---- fetching

    def _on_manifest(self, event: ManifestHere, _now_s: float) -> Iterator[Instruction]:
        current = self._at(event.task_id, Phase.MANIFEST)
        if current is None:
            return
        task, correction = current.task, self._corrections.get(current.task.artifact.sha256, 1.0)
        shape, integers = (rows_at_once(task.batch, task.example_noise), task.tokens), task.integer_gradients
        plan = choose_plan(event.manifest, *shape, self._hello.budget_bytes, correction, integers=integers)
        if isinstance(plan, Declined):
            sizes = (plan.needed_bytes, plan.budget_bytes)
            yield from self._decline(task, DeclineReason.OVER_BUDGET, _over_budget(event, plan), *sizes)
            return
        if not event.manifest.model.reads(task.tokens):
            detail = f"{task.tokens} tokens a row, the model has positions for {event.manifest.model.max_tokens}"
            yield from self._decline(task, DeclineReason.INCOMPATIBLE, detail)
            return
        self._go(Trigger.PLANNED)
        self._current = dataclasses.replace(current, manifest=event.manifest, plan=plan)
        yield Say(f"level {event.manifest.level.name}: {_plan_line(plan)}")
        yield FetchFiles(task, event.manifest)

    def _on_files(self, event: FilesHere, _now_s: float) -> Iterator[Instruction]:
        current = self._at(event.task_id, Phase.FILES)
        if current is None or current.manifest is None or current.plan is None:
            return
        self._go(Trigger.COMPLETE)
        self._current = dataclasses.replace(current, down_bytes=event.down_bytes)
        yield Say(f"everything is here, {event.down_bytes / 1e6:.1f} MB came over the wire; training")
        correction = self._corrections.get(current.task.artifact.sha256, 1.0)
        feedback = bool(current.task.residual) and not self._results
        yield StartWorker(current.task, current.manifest, correction, feedback)

    def _on_fetch_failed(self, event: FetchFailed, _now_s: float) -> Iterator[Instruction]:
        current = self._at(event.task_id, Phase.MANIFEST, Phase.FILES)
        if current is not None:
            yield StopFetching()
            sizes = (event.needed_bytes, event.available_bytes)
            yield from self._decline(current.task, event.reason, event.detail, *sizes)

    def _decline(
        self, task: Task, reason: DeclineReason, detail: str, needed_bytes: int = 0, budget_bytes: int = 0
    ) -> Iterator[Instruction]:
        answer = TaskDeclined(task.task_id, reason, needed_bytes, budget_bytes, detail[:DETAIL])
        self._go(Trigger.ANSWERED)
        yield Say(f"declined, {reason.value}: {detail}")
        yield from self._answer(answer)

    def _answer(self, answer: TaskDeclined | TaskFailed) -> Iterator[Instruction]:
        """Say it, and remember it for an offer that is repeated."""
        self._current = None
        self._answers[answer.task_id] = answer
        while len(self._answers) > REMEMBERED:
            del self._answers[next(iter(self._answers))]
        yield Send(answer)

    # ---- the worker

    def _on_progress(self, event: WorkerProgress, now_s: float) -> Iterator[Instruction]:
        current = self._at(event.task_id, Phase.TRAINING)
        if current is not None and (event.step == event.steps or now_s - current.told_s >= PROGRESS_S):
            self._current = dataclasses.replace(current, told_s=now_s)
            yield Send(TaskProgress(event.task_id, event.step, event.steps, event.loss))

    def _on_finished(self, event: WorkerFinished, _now_s: float) -> Iterator[Instruction]:
        current = self._at(event.task_id, Phase.TRAINING)
        if current is None:
            yield from self._on_worker_gone()
            return
        self._correct(current, event.report.peak_bytes, event.report.predicted_bytes)
        report = dataclasses.replace(event.report, down_bytes=current.down_bytes)
        if current.task.masking is not None:
            yield JoinSum(current.task, event.delta_path, report)
            return
        yield KeepResult(event.task_id, event.delta_path, report, event.residual_path)

    def _on_kept(self, event: ResultKept, _now_s: float) -> Iterator[Instruction]:
        """Also when the task was cancelled in between: the coordinator has the last word on it."""
        report = event.offer.report
        self._results[event.offer.task_id] = event.offer
        if self._joined.pop(event.offer.task_id, None) is not None:
            yield Say(f"the delta of {event.offer.task_id} is masked")
            yield Send(event.offer)
            return
        self._ended()
        losses = f"loss {report.loss_before:.3f} -> {report.loss_after:.3f}"
        yield Say(f"done, {losses}, {_peak_line(report.peak_bytes, report.predicted_bytes, report.budget_bytes)}")
        yield Send(event.offer)

    def _on_joined(self, event: SumJoined, _now_s: float) -> Iterator[Instruction]:
        self._joined[event.keys.task_id] = event.keys
        self._ended()
        yield Say(f"done; the delta of {event.keys.task_id} waits for its secure sum")
        yield Send(event.keys)

    def _ended(self) -> None:
        """The worker is done, and its task is at hand no more."""
        if self.phase in {Phase.TRAINING, Phase.STOPPING}:
            self._go(Trigger.ENDED)
            self._current = None

    def _on_failed(self, event: WorkerFailed, _now_s: float) -> Iterator[Instruction]:
        current = self._at(event.task_id, Phase.TRAINING)
        if current is None or current.manifest is None or current.plan is None:
            yield from self._on_worker_gone()
            return
        self._go(Trigger.ENDED)
        peak = _peak_line(event.peak_bytes, current.plan.peak_bytes, self._hello.budget_bytes)
        yield Say(f"failed, {event.reason.value}: {event.detail}; {peak}")
        if event.reason is FailureReason.BAD_ARTIFACT:
            yield CheckFiles(current.task, current.manifest)
        if event.reason is FailureReason.OVER_BUDGET:
            # What was refused is not in the peak: all that is known is that it would have been more than the budget.
            peak_bytes = max(event.peak_bytes, self._hello.budget_bytes + 1)
            self._correct(current, peak_bytes, current.plan.peak_bytes)
        yield from self._answer(TaskFailed(event.task_id, event.reason, event.peak_bytes, event.detail[:DETAIL]))

    def _on_worker_gone(self) -> Iterator[Instruction]:
        """The worker of a task that was given up has ended."""
        if self.phase is Phase.STOPPING:
            self._go(Trigger.ENDED)
        yield from ()

    def _correct(self, current: Current, peak_bytes: int, predicted_bytes: int) -> None:
        """Plan with what was measured from now on, where it was more than expected."""
        if peak_bytes > predicted_bytes > 0:
            before = self._corrections.get(current.task.artifact.sha256, 1.0)
            self._corrections[current.task.artifact.sha256] = before * peak_bytes / predicted_bytes

    # ---- time

    def _on_tick(self, _event: Tick, now_s: float) -> Iterator[Instruction]:
        if self._current is not None and now_s >= self._current.deadline_s:
            yield from self._stop(self._current.task.task_id, "its deadline passed")
        if now_s >= self._resend_at_s:
            yield from self._offer_results(now_s)

    # ---- plumbing

    def _at(self, task_id: str, *phases: Phase) -> Current | None:
        """The current task if it is this one in one of `phases`: everything else is late."""
        current = self._current
        return current if current and current.task.task_id == task_id and self.phase in phases else None

    def _go(self, trigger: Trigger) -> None:
        self.phase = TRANSITIONS[self.phase][trigger]


def _plan_line(plan: Plan) -> str:
    back = ", products on the way back in integers if they pay here" if plan.back_bits != EXACT else ""
    sizes = f"{plan.peak_bytes / 1e6:.0f} MB and {plan.step_ms:.0f} ms a step expected"
    return f"micro-batches of {plan.micro_batch}, {sizes}{back}"


def _peak_line(peak_bytes: int, predicted_bytes: int, budget_bytes: int) -> str:
    measured = f"peak {peak_bytes / 1e6:.0f} MB, {predicted_bytes / 1e6:.0f} expected"
    return f"{measured}, the budget is {budget_bytes / 1e6:.0f}"


def _over_budget(event: ManifestHere, plan: Declined) -> str:
    budget = f"the budget is {plan.budget_bytes / 1e6:.0f} MB"
    return f"level {event.manifest.level.name} needs {plan.needed_bytes / 1e6:.0f} MB, {budget}"
