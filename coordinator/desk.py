"""What devices say of themselves and of their tasks, and what they are answered.

- Every message may come twice, late, or never: an offer is repeated when its device says Hello, when the broker comes
  back, and when nothing was heard of it for a while; a result gets the same receipt however often it is offered.
- A device that speaks up in an open round and has no task gets one, unless the policy left it out.
- A device over its budget gets the policy's next choice within the same round; one that fails otherwise sits it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

from coordinator import answers
from coordinator.events import (
    CancelTask,
    DeclineHeard,
    DeviceRevoked,
    FailureHeard,
    FetchDelta,
    HelloHeard,
    Instruction,
    PresenceHeard,
    ProgressHeard,
    Reconnected,
    RecordDecline,
    RecordFailure,
    ResultCommitted,
    ResultHeard,
    ResultRefused,
    SendReceipt,
    SitOut,
    TaskState,
    Tick,
)
from coordinator.rates import least
from coordinator.task_book import Entry
from coordinator.tasks import Tasks
from edge_sdk.wire.messages import DeclineReason, FailureReason, Receipt, RefusalReason, ResultOffer

S = TypeVar("S")

SILENCE_S: Final = 30.0  # an offer of which nothing was heard for so long is repeated
BUSY_S: Final = 5.0  # the same for a device that said it was busy


class Desk(Generic[S]):
    """See the module: what is said changes `tasks`."""

    def __init__(self, tasks: Tasks[S]) -> None:
        """Nothing was said yet."""
        self._tasks = tasks

    def handlers(self) -> dict[type, Callable[[Any, float], Iterator[Instruction]]]:
        """What it does about which event."""
        return {
            HelloHeard: self._on_hello,
            PresenceHeard: self._on_presence,
            DeviceRevoked: self._on_revoked,
            Reconnected: self._on_reconnected,
            DeclineHeard: self._on_decline,
            FailureHeard: self._on_failure,
            ProgressHeard: self._on_progress,
            ResultHeard: self._on_result,
            ResultCommitted: self._on_committed,
            ResultRefused: self._on_refused,
            Tick: self._on_tick,
        }

    # ---- devices

    def _on_hello(self, event: HelloHeard, now_s: float) -> Iterator[Instruction]:
        hello = event.hello
        self._tasks.fleet = self._tasks.fleet.with_hello(hello)
        unfinished = self._tasks.unfinished_of(hello.device)
        if hello.task_id and (unfinished is None or unfinished.task.task_id != hello.task_id):
            yield self._last_word(hello.device, hello.task_id)
        if unfinished is None:
            yield from self._tasks.give(hello.device, now_s)
        elif unfinished.state is TaskState.OFFERED:
            yield self._tasks.offer_again(unfinished, now_s)

    def _on_presence(self, event: PresenceHeard, _now_s: float) -> Iterator[Instruction]:
        self._tasks.fleet = self._tasks.fleet.with_presence(event.presence)
        yield from ()

    def _on_revoked(self, event: DeviceRevoked, _now_s: float) -> Iterator[Instruction]:
        """What it has committed counts: whoever revokes it means what comes from now on."""
        self._tasks.fleet = self._tasks.fleet.with_offline(event.device)
        entry = self._tasks.unfinished_of(event.device)
        if entry is not None:
            yield self._tasks.cancel(entry, "the device was revoked")

    def _on_reconnected(self, _event: Reconnected, now_s: float) -> Iterator[Instruction]:
        for entry in self._tasks.book.unfinished():
            if entry.state is TaskState.OFFERED:
                yield self._tasks.offer_again(entry, now_s)

    # ---- answers

    def _on_decline(self, event: DeclineHeard, now_s: float) -> Iterator[Instruction]:
        message = event.message
        entry = self._open_entry(message.task_id, event.device)
        if entry is None:
            return
        if message.reason is DeclineReason.BUSY:
            entry.heard_s = now_s - SILENCE_S + BUSY_S
            return
        entry.state, answer = TaskState.DECLINED, answers.declined(entry, self._tasks.stage.gathers, message)
        yield RecordDecline(entry.device, entry.choice.level, message, answer)
        if answer is not None:
            self._tasks.assignment.observe(answer)
            yield from self._tasks.give(entry.device, now_s)
        elif message.reason in {DeclineReason.INCOMPATIBLE, DeclineReason.PRIVACY}:
            self._tasks.assignment.sit_out(entry.device, self._tasks.fleet.devices[entry.device].hello.session)
        else:
            self._tasks.assignment.sit_out(entry.device)

    def _on_failure(self, event: FailureHeard, now_s: float) -> Iterator[Instruction]:
        message = event.message
        entry = self._open_entry(message.task_id, event.device)
        if entry is None:
            return
        entry.state = TaskState.FAILED
        budget_bytes = self._tasks.budget_bytes(entry)
        answer = answers.failed(entry, self._tasks.stage.gathers, message, budget_bytes)
        yield RecordFailure(entry.device, entry.choice.level, budget_bytes, message, answer)
        self._tasks.assignment.observe(answer)
        yield from self._tasks.tried(entry, message.reason, now_s)
        if message.reason is FailureReason.OVER_BUDGET:
            yield from self._tasks.give(entry.device, now_s)
        else:
            self._tasks.assignment.sit_out(entry.device)

    def _on_progress(self, event: ProgressHeard, now_s: float) -> Iterator[Instruction]:
        entry = self._tasks.book.get(event.message.task_id, event.device)
        if entry is None or entry.state.final:
            yield self._last_word(event.device, event.message.task_id)
        else:
            entry.heard_s, entry.progress = now_s, event.message

    def _on_result(self, event: ResultHeard, now_s: float) -> Iterator[Instruction]:
        message = event.message
        entry = self._tasks.book.get(message.task_id, event.device)
        if entry is None:
            detail = "this coordinator never gave that task to this device"
            receipt = Receipt(message.task_id, accepted=False, reason=RefusalReason.UNKNOWN_TASK, detail=detail)
            yield SendReceipt(event.device, receipt)
        elif (known := self._receipt(entry)) is not None:
            yield SendReceipt(event.device, known)
        elif entry.task.masking is None or entry.state is not TaskState.OFFERED:  # a masked one has joined a sum before
            entry.state, entry.heard_s, entry.report = TaskState.FETCHING, now_s, message.report
            self._tasks.fleet = self._tasks.fleet.with_battery(event.device, message.report.battery)
            yield self._fetch(entry, message)

    def _on_committed(self, event: ResultCommitted, now_s: float) -> Iterator[Instruction]:
        entry = self._tasks.book[event.task_id]
        self._tasks.book.commit(entry, self._tasks.stage.gathers)
        self._tasks.assignment.observe(event.answer)
        if (receipt := self._receipt(entry)) is not None:
            yield SendReceipt(entry.device, receipt)
        if entry.report is not None:
            yield from self._tasks.tried(entry, entry.report, now_s)
        yield from self._tasks.give(entry.device, now_s)

    def _on_refused(self, event: ResultRefused, now_s: float) -> Iterator[Instruction]:
        entry = self._tasks.book[event.task_id]
        entry.state, entry.refusal, entry.detail = TaskState.REFUSED, event.reason, event.detail
        self._tasks.assignment.sit_out(entry.device)
        if (receipt := self._receipt(entry)) is not None:
            yield SendReceipt(entry.device, receipt)
        yield from self._tasks.tried(entry, event.reason, now_s)
        self._tasks.quarantine = self._tasks.quarantine.with_refusal(entry.device, entry.task.round)
        if spell := self._tasks.quarantine.spell(entry.device, self._tasks.stage.round):
            yield SitOut(spell)

    def _open_entry(self, task_id: str, device: str) -> Entry | None:
        """The task that a device may still decline or fail; None for what is late, repeated or not its own."""
        entry = self._tasks.book.get(task_id, device)
        return entry if entry is not None and device in self._tasks.fleet and entry.state is TaskState.OFFERED else None

    def _fetch(self, entry: Entry, message: ResultOffer) -> FetchDelta:
        cores = self._tasks.fleet.devices[entry.device].hello.cores
        allowed_bytes_s = self._tasks.rates.get(entry.device, least(self._tasks.plan.transfer))
        answer = answers.done(entry, self._tasks.stage.gathers, message.report, cores, allowed_bytes_s)
        delivery = (entry.task, message.delta, message.report)
        return FetchDelta(entry.device, entry.choice.level, *delivery, answer, entry.offered_s)

    def _last_word(self, device: str, task_id: str) -> Instruction:
        """What to tell a device that is busy with a task that is not open: its receipt if it has one, or to stop."""
        entry = self._tasks.book.get(task_id, device)
        if entry is not None and entry.state in {TaskState.COMMITTED, TaskState.REFUSED}:
            receipt = self._receipt(entry)
            if receipt is not None:
                return SendReceipt(device, receipt)
        return CancelTask(device, task_id, "this task is not open any more")

    def _receipt(self, entry: Entry) -> Receipt | None:
        """The final word on its result, or None while there is none; of a late one, where it counts, and how much."""
        receipt, late = entry.receipt(), entry.counts_in - entry.task.round
        if receipt is None or not receipt.accepted or not self._tasks.course.keeps or not late:
            return receipt
        weight = self._tasks.plan.rounds.weight(late)
        detail = f"{late} versions late: it counts in version {entry.counts_in}, {weight:.0%} of its change"
        return dataclasses.replace(receipt, detail=detail)

    # ---- time

    def _on_tick(self, _event: Tick, now_s: float) -> Iterator[Instruction]:
        for entry in self._tasks.book.unfinished():
            silent = now_s - entry.heard_s >= SILENCE_S and self._tasks.fleet.devices[entry.device].online
            if entry.state is TaskState.OFFERED and silent and now_s < entry.due_s:
                yield self._tasks.offer_again(entry, now_s)
