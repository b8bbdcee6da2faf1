"""The course of the rounds, without sockets, files or clocks: `handle(event, now_s)` gives instructions.

Rules:

- `round_states.TRANSITIONS` lists every change of state there is.
- A device has at most one unfinished task. A device that speaks up in an open round and has none gets one, unless the
  policy left it out.
- Where a round has `participants`, they are drawn by lot when it opens; a device that speaks up later joins while there
  are fewer.
- Every message may come twice, late, or never: an offer is repeated when its device says Hello, when the broker comes
  back, and when nothing was heard of it for a while; a result gets the same receipt however often it is offered.
- A device over its budget gets the policy's next choice within the same round; one that fails otherwise sits it out.
- A device whose deltas are refused again and again gets no task for a number of rounds; see `quarantine`.
- Results that are being fetched at the deadline get `GRACE_S` to arrive; everything else is cancelled.
- A round with fewer results than the quorum is repeated from the start, and its results are not used. So is one for
  whose results the aggregation's estimator does not hold.

All times are seconds of one clock that only moves forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from coordinator import answers
from coordinator.assignment import Assignment, Decided
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    CancelTask,
    DeclineHeard,
    DeviceRevoked,
    Event,
    FailureHeard,
    FetchDelta,
    Finish,
    GiveTask,
    GiveUp,
    HelloHeard,
    Instruction,
    LossMeasured,
    NoAdapter,
    OfferAgain,
    OpenRound,
    PresenceHeard,
    ProgressHeard,
    Reconnected,
    RecordDecision,
    RecordDecline,
    RecordFailure,
    RepeatRound,
    ResultCommitted,
    ResultHeard,
    ResultRefused,
    SendReceipt,
    SetRates,
    SitOut,
    StopAsked,
    TaskState,
    Tick,
    UsePolicy,
)
from coordinator.fleet import Device
from coordinator.plan import Past, Plan
from coordinator.policy.types import Choice, Policy, Terms
from coordinator.policy.words import in_words
from coordinator.quarantine import Quarantine
from coordinator.rates import least, parts, rates
from coordinator.round_states import TRANSITIONS, State, Trigger
from coordinator.task_book import Entry, Place, TaskBook, with_time_left
from edge_sdk.wire.messages import DeclineReason, FailureReason, Receipt, RefusalReason, ResultOffer

S = TypeVar("S")

GRACE_S: Final = 30.0
SILENCE_S: Final = 30.0  # an offer of which nothing was heard for so long is repeated
BUSY_S: Final = 5.0  # the same for a device that said it was busy
REPEAT_S: Final = 5.0  # before a round is tried again
TASKS: Final = 32  # for one device in one attempt: an honest one needs one a level, and one a restart of ours
DROPPED: Final = {TaskState.DECLINED, TaskState.FAILED, TaskState.REFUSED, TaskState.CANCELLED, TaskState.LOST}


class Rounds(Generic[S]):
    """See the module. `state`, `round`, `attempt`, `adapter`, `fleet`, `deadline_at_s` may be read, never written."""

    def __init__(self, plan: Plan, policy: Policy[S], past: Past, now_s: float) -> None:
        """Continue where the ledger ends. An open round gets its whole deadline again: no clock outlives a process."""
        self._plan, self._assignment = plan, Assignment(policy, plan.levels, past.answers)
        self._book = TaskBook(past.entries)
        refused = ((e.device, e.task.round) for e in past.entries if e.state is TaskState.REFUSED)
        self._quarantine = Quarantine.of(plan.checks, refused)
        self.fleet = past.fleet.with_all_offline()
        self.round, self.attempt, self.adapter = past.version + 1, past.attempt, past.adapter
        self.state = State.OPEN if past.open else State.WAITING
        if past.version >= plan.rounds.count:
            self.state = State.DONE
        self._wait_until_s = now_s + plan.rounds.wait_s
        self.deadline_at_s = now_s + plan.rounds.deadline_s
        self._handlers = self._handler_by_event()
        self._narrowed, self._losses = past.narrowed, dict(past.losses)
        self._rates: dict[str, float] = {}
        taken_back = {TaskState.CANCELLED, TaskState.LOST}
        self._expected_back = {e.device for e in self._current() if e.state in taken_back} if past.open else set()

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """What is to be done because of `event`, in this order."""
        return [*self._handlers[type(event)](event, now_s), *self._advance(now_s), *self._share_out()]

    def entries(self) -> tuple[Entry, ...]:
        """The tasks of the current attempt."""
        return tuple(self._current())

    def _handler_by_event(self) -> dict[type, Callable[[Any, float], Iterator[Instruction]]]:
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
            AdapterReady: self._on_adapter,
            NoAdapter: self._on_no_adapter,
            LossMeasured: self._on_loss,
            Tick: self._on_tick,
            UsePolicy: self._on_policy,
            StopAsked: self._on_stop,
        }

    # ---- devices

    def _on_hello(self, event: HelloHeard, now_s: float) -> Iterator[Instruction]:
        hello = event.hello
        self.fleet = self.fleet.with_hello(hello)
        unfinished = self._unfinished(hello.device)
        if hello.task_id and (unfinished is None or unfinished.task.task_id != hello.task_id):
            yield self._last_word(hello.device, hello.task_id)
        if self.state is not State.OPEN:
            return
        if unfinished is None:
            yield from self._give(hello.device, now_s)
        elif unfinished.state is TaskState.OFFERED:
            yield self._offer_again(unfinished, now_s)

    def _on_presence(self, event: PresenceHeard, _now_s: float) -> Iterator[Instruction]:
        self.fleet = self.fleet.with_presence(event.presence)
        yield from ()

    def _on_revoked(self, event: DeviceRevoked, _now_s: float) -> Iterator[Instruction]:
        """What it has committed counts: whoever revokes it means what comes from now on."""
        self.fleet = self.fleet.with_offline(event.device)
        for entry in list(self._current()):
            if entry.device == event.device and not entry.state.final:
                entry.state = TaskState.CANCELLED
                yield CancelTask(entry.device, entry.task.task_id, "the device was revoked")

    def _on_reconnected(self, _event: Reconnected, now_s: float) -> Iterator[Instruction]:
        if self.state is State.OPEN:
            for entry in self._current():
                if entry.state is TaskState.OFFERED:
                    yield self._offer_again(entry, now_s)

    # ---- answers

    def _on_decline(self, event: DeclineHeard, now_s: float) -> Iterator[Instruction]:
        message = event.message
        entry = self._open_entry(message.task_id, event.device)
        if entry is None:
            return
        if message.reason is DeclineReason.BUSY:
            entry.heard_s = now_s - SILENCE_S + BUSY_S
            return
        entry.state, answer = TaskState.DECLINED, answers.declined(entry, message)
        yield RecordDecline(entry.device, entry.choice.level, message, answer)
        if answer is not None:
            self._assignment.observe(answer)
            yield from self._give(entry.device, now_s)
        elif message.reason is DeclineReason.INCOMPATIBLE:
            self._assignment.sit_out(entry.device, self.fleet.devices[entry.device].hello.session)
        else:
            self._assignment.sit_out(entry.device)

    def _on_failure(self, event: FailureHeard, now_s: float) -> Iterator[Instruction]:
        message = event.message
        entry = self._open_entry(message.task_id, event.device)
        if entry is None:
            return
        entry.state = TaskState.FAILED
        budget_bytes = self._budget_bytes(entry)
        answer = answers.failed(entry, message, budget_bytes)
        yield RecordFailure(entry.device, entry.choice.level, budget_bytes, message, answer)
        self._assignment.observe(answer)
        if message.reason is FailureReason.OVER_BUDGET:
            yield from self._give(entry.device, now_s)
        else:
            self._assignment.sit_out(entry.device)

    def _on_progress(self, event: ProgressHeard, now_s: float) -> Iterator[Instruction]:
        entry = self._book.get(event.message.task_id, event.device)
        if entry is None or entry.state.final:
            yield self._last_word(event.device, event.message.task_id)
        else:
            entry.heard_s, entry.progress = now_s, event.message

    def _on_result(self, event: ResultHeard, now_s: float) -> Iterator[Instruction]:
        message = event.message
        entry = self._book.get(message.task_id, event.device)
        if entry is None:
            detail = "this coordinator never gave that task to this device"
            receipt = Receipt(message.task_id, accepted=False, reason=RefusalReason.UNKNOWN_TASK, detail=detail)
            yield SendReceipt(event.device, receipt)
        elif (known := entry.receipt()) is not None:
            yield SendReceipt(event.device, known)
        elif self.state in {State.OPEN, State.CLOSING}:
            entry.state, entry.heard_s = TaskState.FETCHING, now_s
            self.fleet = self.fleet.with_battery(event.device, message.report.battery)
            yield self._fetch(entry, message)

    def _on_committed(self, event: ResultCommitted, _now_s: float) -> Iterator[Instruction]:
        entry = self._book[event.task_id]
        entry.state = TaskState.COMMITTED
        self._assignment.observe(event.answer)
        yield from self._receipt(entry)

    def _on_refused(self, event: ResultRefused, _now_s: float) -> Iterator[Instruction]:
        entry = self._book[event.task_id]
        entry.state, entry.refusal, entry.detail = TaskState.REFUSED, event.reason, event.detail
        self._assignment.sit_out(entry.device)
        yield from self._receipt(entry)
        self._quarantine = self._quarantine.with_refusal(entry.device, entry.task.round)
        if spell := self._quarantine.spell(entry.device, self.round):
            yield SitOut(spell)

    def _fetch(self, entry: Entry, message: ResultOffer) -> FetchDelta:
        cores = self.fleet.devices[entry.device].hello.cores
        allowed_bytes_s = self._rates.get(entry.device, least(self._plan.transfer))
        answer = answers.done(entry, message.report, cores, allowed_bytes_s)
        delivery = (entry.task, message.delta, message.report)
        return FetchDelta(entry.device, entry.choice.level, *delivery, answer, entry.offered_s)

    def _last_word(self, device: str, task_id: str) -> Instruction:
        """What to tell a device that is busy with a task that is not open: its receipt if it has one, or to stop."""
        entry = self._book.get(task_id, device)
        if entry is not None and entry.state in {TaskState.COMMITTED, TaskState.REFUSED} and (word := entry.receipt()):
            return SendReceipt(device, word)
        return CancelTask(device, task_id, "this task is not open any more")

    def _receipt(self, entry: Entry) -> Iterator[Instruction]:
        receipt = entry.receipt()
        if receipt is not None:
            yield SendReceipt(entry.device, receipt)

    # ---- time

    def _on_tick(self, _event: Tick, now_s: float) -> Iterator[Instruction]:
        if self.state is not State.OPEN:
            return
        for entry in self._current():
            silent = now_s - entry.heard_s >= SILENCE_S and self.fleet.devices[entry.device].online
            if entry.state is TaskState.OFFERED and silent:
                yield self._offer_again(entry, now_s)

    def _on_stop(self, _event: StopAsked, _now_s: float) -> Iterator[Instruction]:
        if Trigger.STOP in TRANSITIONS[self.state]:
            for entry in self._in_state(TaskState.OFFERED, TaskState.FETCHING):
                entry.state = TaskState.CANCELLED
                yield CancelTask(entry.device, entry.task.task_id, "the coordinator was stopped")
            self._go(Trigger.STOP)

    def _on_adapter(self, event: AdapterReady, now_s: float) -> Iterator[Instruction]:
        if self.state is not State.AGGREGATING or event.round != self.round:
            return
        self.adapter, self._narrowed = event.blob, event.narrowed
        if self.round == self._plan.rounds.count:
            self._go(Trigger.LAST_ADAPTER_READY)
            yield Finish()
            return
        self._go(Trigger.ADAPTER_READY)
        self.round, self.attempt, self._wait_until_s = self.round + 1, 1, now_s

    def _on_no_adapter(self, event: NoAdapter, now_s: float) -> Iterator[Instruction]:
        if self.state is State.AGGREGATING and event.round == self.round:
            yield from self._repeat(now_s, Trigger.NO_ADAPTER, event.why)

    def _on_policy(self, event: UsePolicy, _now_s: float) -> Iterator[Instruction]:
        self._assignment.use(event.policy)
        yield from ()

    def _on_loss(self, event: LossMeasured, _now_s: float) -> Iterator[Instruction]:
        self._losses[event.version] = event.loss
        yield from ()

    # ---- changes of state

    def _advance(self, now_s: float) -> Iterator[Instruction]:
        """Make every transition that is due; one may make another due: a round is closed, then counted."""
        while True:
            before = (self.state, self.round, self.attempt)
            if self.state is State.WAITING:
                yield from self._open_if_ready(now_s)
            elif self.state is State.OPEN:
                yield from self._close_if_due(now_s)
            elif self.state is State.CLOSING:
                yield from self._count_if_closed(now_s)
            if (self.state, self.round, self.attempt) == before:
                return

    def _open_if_ready(self, now_s: float) -> Iterator[Instruction]:
        rounds, here = self._plan.rounds, {device.hello.device for device in self.fleet.online()}
        online, patient = len(here), now_s < self._wait_until_s
        if online < (rounds.devices if patient else rounds.min_devices) or not self._plan.needed <= here:
            return
        if patient and self.attempt > 1:
            return  # a round that came to nothing is not repeated at once
        self._assignment.new_attempt()
        free = self._free(self.fleet.online())
        decided = self._assignment.decide(free, self.fleet, dataclasses.replace(self._terms(), least=rounds.quorum))
        if decided is not None:
            yield RecordDecision(self.round, self.attempt, decided)
        if decided is None or not decided.decision.choices:
            smallest = min(level.needs_bytes for level in self._plan.levels)
            why = f"none of the {online} devices here takes part; the smallest level needs {smallest / 1e6:.0f} MB"
            why += f", and {online - len(free)} are in quarantine" * (len(free) < online)
            yield from self._repeat(now_s, Trigger.NOBODY_FITS, why)
            return
        self._go(Trigger.ENOUGH_DEVICES)
        self.deadline_at_s = now_s + rounds.deadline_s
        chosen = decided.decision.choices
        drawn = self._plan.drawn(self.round, self.attempt, chosen)
        yield OpenRound(self.round, self.attempt, len(chosen), len(drawn))
        for device, choice in drawn.items():
            yield self._new_task(device, choice, decided, {d: c.share for d, c in drawn.items()}, now_s)

    def _terms(self) -> Terms:
        return self._plan.terms(self.round, self.adapter, self._losses)

    def _close_if_due(self, now_s: float) -> Iterator[Instruction]:
        if now_s >= self.deadline_at_s:
            self._go(Trigger.DEADLINE)
            yield from self._lose_unfinished("the round's deadline passed", TaskState.OFFERED)
        elif all(entry.state.final for entry in self._current()) and not self._awaited(now_s):
            self._go(Trigger.ALL_ANSWERED)

    def _count_if_closed(self, now_s: float) -> Iterator[Instruction]:
        if now_s >= self.deadline_at_s + GRACE_S:
            yield from self._lose_unfinished("the round is closed", TaskState.FETCHING)
        if not all(entry.state.final for entry in self._current()):
            return
        committed = tuple(e.task.task_id for e in self._current() if e.state is TaskState.COMMITTED)
        if len(committed) >= self._plan.rounds.quorum:
            self._go(Trigger.QUORUM)
            yield AggregateRound(self.round, self.attempt, self.adapter, committed)
        else:
            why = f"{len(committed)} results, the quorum is {self._plan.rounds.quorum}"
            yield from self._repeat(now_s, Trigger.NO_QUORUM, why)

    def _repeat(self, now_s: float, trigger: Trigger, why: str) -> Iterator[Instruction]:
        yield RepeatRound(self.round, self.attempt, why)
        if 0 < self._plan.rounds.attempts <= self.attempt:
            self._go(Trigger.ATTEMPTS_SPENT)
            yield GiveUp(f"round {self.round} was tried {self.attempt} times; the last time: {why}")
            return
        self._go(trigger)
        self.attempt += 1
        self._wait_until_s = now_s + REPEAT_S

    def _go(self, trigger: Trigger) -> None:
        self.state = TRANSITIONS[self.state][trigger]

    # ---- tasks

    def _current(self) -> Iterator[Entry]:
        return self._book.of(self.round, self.attempt)

    def _unfinished(self, device: str) -> Entry | None:
        return next((e for e in self._current() if e.device == device and not e.state.final), None)

    def _open_entry(self, task_id: str, device: str) -> Entry | None:
        """The task that a device may still decline or fail; None for what is late, repeated or not its own."""
        entry = self._book.get(task_id, device)
        return entry if entry is not None and device in self.fleet and entry.state is TaskState.OFFERED else None

    def _awaited(self, now_s: float) -> bool:
        """Whether a device whose task was cancelled when we were stopped may still come back for another."""
        return bool(self._expected_back) and now_s < self._wait_until_s

    def _give(self, device: str, now_s: float) -> Iterator[Instruction]:
        """A task for a device that has none in this open round, unless it has delivered, sits it out or had too many.

        A round whose deadline has passed is open until the event at hand is through: nobody joins it any more.
        """
        self._expected_back.discard(device)
        had = [e.state for e in self._current() if e.device == device]
        if self.state is not State.OPEN or now_s >= self.deadline_at_s:
            return
        if TaskState.COMMITTED in had or len(had) >= TASKS or not (had or self._has_room()):
            return
        decided = self._assignment.decide(self._free([self.fleet.devices[device]]), self.fleet, self._terms())
        if decided is None:
            return
        yield RecordDecision(self.round, self.attempt, decided)
        for name, choice in decided.decision.choices.items():
            yield self._new_task(name, choice, decided, {**self._shares(), name: choice.share}, now_s)

    def _free(self, devices: Iterable[Device]) -> list[Device]:
        """Those that are not in quarantine."""
        return [device for device in devices if self._quarantine.spell(device.hello.device, self.round) is None]

    def _has_room(self) -> bool:
        """Whether one more device may take part in this attempt."""
        participants = self._plan.rounds.participants
        return not 0 < participants <= len({entry.device for entry in self._current()})

    def _shares(self) -> dict[str, float]:
        """Of those that take part: the last choice of each, unless nothing will come of it."""
        latest = {entry.device: entry for entry in self._current()}
        return {name: entry.choice.share for name, entry in latest.items() if entry.state not in DROPPED}

    def _share_out(self) -> Iterator[Instruction]:
        """Rates, where they are others than before: of a round's participants until it is closed."""
        shared = self._plan.transfer.megabytes_s > 0 and self.state in {State.OPEN, State.CLOSING}
        found = rates(self._plan.transfer, self._shares()) if shared else {}
        if found != self._rates:
            self._rates = found
            yield SetRates(found)

    def _new_task(
        self, device: str, choice: Choice, decided: Decided, shares: Mapping[str, float], now_s: float
    ) -> GiveTask:
        """Its words tell the device's part of all `shares`."""
        level = choice.level
        task = self._plan.tasks.make(
            Place(device, self.round, self.attempt, sum(e.device == device for e in self._current())),
            choice,
            artifact=self._plan.artifacts[level],
            adapter=self._narrowed.get(level, self.adapter),
            left_s=self.deadline_at_s - now_s,
            may_owe=self._book.may_owe(device),
        )
        entry = Entry(device, choice, self.attempt, task, TaskState.OFFERED, offered_s=now_s, heard_s=now_s)
        self._book.add(entry)
        seen = next(view for view in decided.observation.devices if view.name == device)
        words = in_words(choice, seen, decided.observation, parts(shares)[device])
        return GiveTask(device, choice, self.attempt, task, words)

    def _budget_bytes(self, entry: Entry) -> int:
        return self.fleet.devices[entry.device].hello.budget_bytes

    def _offer_again(self, entry: Entry, now_s: float) -> OfferAgain:
        entry.heard_s = now_s
        return OfferAgain(entry.device, with_time_left(entry.task, self.deadline_at_s - now_s))

    def _lose_unfinished(self, reason: str, state: TaskState) -> Iterator[Instruction]:
        """Take back the tasks in this state: their devices were silent, or are not done."""
        for entry in self._in_state(state):
            entry.state, answer = TaskState.LOST, answers.lost(entry, self._budget_bytes(entry))
            self._assignment.observe(answer)
            yield CancelTask(entry.device, entry.task.task_id, reason, answer)

    def _in_state(self, *states: TaskState) -> list[Entry]:
        return [entry for entry in self._current() if entry.state in states]
