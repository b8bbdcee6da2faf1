"""The course of the rounds, without sockets, files or clocks: `handle(event, now_s)` gives instructions.

Rules:

- `round_states.TRANSITIONS` lists every change of state there is; what devices say is `desk`'s, tasks are `tasks`'.
- Where a round has `participants`, they are drawn by lot when it opens, and `extra` ones with them; a device that
  speaks up later joins while there are fewer.
- When an open round closes, and which results count in it, is the `course`'s to say.
- Results that are being fetched at the deadline get `GRACE_S` to arrive; what can count in no later round is cancelled.
- In a run with `[secure]`, tasks are done when their devices have trained; what becomes of their deltas is the secure
  sum's, between the end of a round and its aggregation.
- A round with too few results is repeated. Its results are not used, unless the course keeps them. So is one for whose
  results the aggregation's estimator does not hold.

All times are seconds of one clock that only moves forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

from coordinator.course import course_of
from coordinator.desk import Desk
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    CancelTask,
    Event,
    Finish,
    GiveUp,
    Instruction,
    LossMeasured,
    MaskingHeard,
    NoAdapter,
    OpenRound,
    RecordDecision,
    RepeatRound,
    StopAsked,
    TaskState,
    UsePolicy,
)
from coordinator.fleet import Device, Fleet
from coordinator.plan import Past, Plan
from coordinator.policy.types import Policy
from coordinator.round_states import TRANSITIONS, State, Trigger
from coordinator.secure.seam import Securing
from coordinator.stage import Stage
from coordinator.task_book import Entry
from coordinator.tasks import DROPPED, GRACE_S, Tasks
from edge_sdk.wire.blobs import Blob

S = TypeVar("S")

REPEAT_S: Final = 5.0  # before a round is tried again


class Rounds(Generic[S]):
    """See the module."""

    def __init__(self, plan: Plan, policy: Policy[S], past: Past, now_s: float) -> None:
        """Continue where the ledger ends. An open round gets its whole deadline again: no clock outlives a process."""
        self._plan, self._course, count = plan, course_of(plan.rounds), plan.rounds.count
        done, is_open = past.version >= count, State.OPEN if past.open else State.WAITING
        self._stage = Stage(
            state=State.DONE if done else is_open,
            round=past.version + 1,
            attempt=past.attempt,
            count=count,
            adapter=past.adapter,
            narrowed=past.narrowed,
            losses=dict(past.losses),
            deadline_at_s=self._course.deadline_at_s(now_s),
            wait_until_s=now_s + plan.rounds.wait_s,
        )
        self._tasks = Tasks(plan, policy, past, self._stage, self._course, now_s)
        self._handlers: dict[type, Callable[[Any, float], Iterator[Instruction]]] = {
            **Desk(self._tasks).handlers(),
            AdapterReady: self._on_adapter,
            NoAdapter: self._on_no_adapter,
            LossMeasured: self._on_loss,
            UsePolicy: self._on_policy,
            StopAsked: self._on_stop,
            MaskingHeard: self._on_masking,
        }
        terms, here = plan.tasks.secure, (self.round, self.attempt)
        self._securing = Securing(terms, plan.rounds.quorum, past.masking, here, now_s) if terms else None
        if self.state is State.OPEN and self._securing is not None and self._securing.begun:
            self._stage.state = State.SECURING

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """What is to be done because of `event`, in this order."""
        said = self._handlers[type(event)](event, now_s)
        return [*said, *self._advance(now_s), *self._tasks.share_out()]

    # ---- what can be seen

    @property
    def state(self) -> State:
        """Where the run is."""
        return self._stage.state

    @property
    def round(self) -> int:
        """The round at hand."""
        return self._stage.round

    @property
    def attempt(self) -> int:
        """The attempt at it."""
        return self._stage.attempt

    @property
    def adapter(self) -> Blob:
        """What it starts from."""
        return self._stage.adapter

    @property
    def deadline_at_s(self) -> float:
        """When it closes, if it is open; infinity where it waits for its results."""
        return self._stage.deadline_at_s

    @property
    def fleet(self) -> Fleet:
        """Who is there."""
        return self._tasks.fleet

    def entries(self) -> tuple[Entry, ...]:
        """The tasks of the current attempt, and those of earlier ones that are not finished."""
        return self._tasks.known()

    # ---- events

    def _on_stop(self, _event: StopAsked, _now_s: float) -> Iterator[Instruction]:
        if Trigger.STOP in TRANSITIONS[self.state]:
            if self.state is not State.SECURING:  # which goes on when we do
                yield from self._tasks.cancel_all("the coordinator was stopped")
            self._stage.go(Trigger.STOP)

    def _on_adapter(self, event: AdapterReady, now_s: float) -> Iterator[Instruction]:
        stage = self._stage
        if stage.state is not State.AGGREGATING or event.round != stage.round:
            return
        stage.adapter, stage.narrowed = event.blob, event.narrowed
        if stage.round == stage.count:
            stage.go(Trigger.LAST_ADAPTER_READY)
            yield Finish()
            return
        stage.go(Trigger.ADAPTER_READY)
        stage.round, stage.attempt, stage.wait_until_s = stage.round + 1, 1, now_s

    def _on_no_adapter(self, event: NoAdapter, now_s: float) -> Iterator[Instruction]:
        if self.state is State.AGGREGATING and event.round == self.round:
            yield from self._repeat(now_s, Trigger.NO_ADAPTER, event.why)

    def _on_policy(self, event: UsePolicy, _now_s: float) -> Iterator[Instruction]:
        self._tasks.assignment.use(event.policy)
        yield from ()

    def _on_loss(self, event: LossMeasured, _now_s: float) -> Iterator[Instruction]:
        self._stage.losses[event.version] = event.loss
        yield from ()

    def _on_masking(self, event: MaskingHeard, now_s: float) -> Iterator[Instruction]:
        """Keys count while the round is open, or when they come again; what is over gets its last word."""
        entry = self._tasks.book.get(event.message.task_id, event.device)
        if entry is None or self._securing is None or entry.state in DROPPED:
            yield CancelTask(event.device, event.message.task_id, "this task is not open any more")
        elif self.state is State.OPEN or entry.state is not TaskState.OFFERED:
            entry.heard_s = now_s
            yield from self._securing.heard(event, entry, now_s)

    # ---- changes of state

    def _advance(self, now_s: float) -> Iterator[Instruction]:
        """Make every transition that is due; one may make another due: a round is closed, then counted."""
        yield from self._tasks.take_back_due(now_s)
        yield from self._tasks.judge_levels(now_s)
        end = self._tasks.rollout.end()
        if end is not None and Trigger.ALL_HALTED in TRANSITIONS[self.state]:
            yield from self._tasks.cancel_all("every level is halted")
            self._stage.go(Trigger.ALL_HALTED)
            yield GiveUp(end)
        while True:
            before = (self.state, self.round, self.attempt)
            if self.state is State.WAITING:
                yield from self._open_if_ready(now_s)
            elif self.state is State.OPEN and (why := self._course.closes(self._tasks.seen(now_s))):
                self._stage.go(why)
            elif self.state is State.CLOSING:
                yield from self._count_if_closed(now_s)
            elif self.state is State.SECURING and self._securing is not None:
                yield from self._secure(self._securing, now_s)
            if (self.state, self.round, self.attempt) == before:
                return

    def _open_if_ready(self, now_s: float) -> Iterator[Instruction]:
        rounds, stage, here = self._plan.rounds, self._stage, {device.hello.device for device in self.fleet.online()}
        online, patient = len(here), now_s < stage.wait_until_s
        if online < (rounds.devices if patient else rounds.min_devices) or not self._plan.needed <= here:
            return
        if patient and stage.attempt > 1:
            return  # a round that came to nothing is not repeated at once
        results = len(self._tasks.results())
        # Nobody begins what would be late at once. Where all are at work, or have delivered, who is free next decides.
        idle = [] if results >= self._course.enough else self._tasks.idle()
        if idle or results >= self._course.least:
            yield from self._open(idle, online, now_s)

    def _open(self, idle: list[Device], online: int, now_s: float) -> Iterator[Instruction]:
        stage, tasks = self._stage, self._tasks
        seen = tasks.seen(now_s)
        at_work, enough = seen.unfinished + seen.late, seen.results >= self._course.least
        tasks.new_attempt()
        decided = tasks.decide(idle, self._course.lacks(seen.results, at_work))
        if decided is not None:
            yield RecordDecision(stage.round, stage.attempt, decided)
        chosen = {} if decided is None else decided.decision.choices
        if not chosen and not at_work and not enough:
            yield from self._repeat(now_s, Trigger.NOBODY_FITS, self._why_nobody(idle, online))
            return
        stage.go(Trigger.ENOUGH_DEVICES)
        if self._securing is not None:
            self._securing.new_attempt((stage.round, stage.attempt), now_s)
        stage.deadline_at_s = self._course.deadline_at_s(now_s)
        drawn = self._plan.drawn(stage.round, stage.attempt, chosen)
        yield OpenRound(stage.round, stage.attempt, len(chosen), len(drawn))
        if decided is not None:
            yield from tasks.deal(drawn, decided, now_s)

    def _why_nobody(self, idle: list[Device], online: int) -> str:
        smallest = min(level.needs_bytes for level in self._plan.levels)
        why = f"none of the {online} devices here takes part; the smallest level needs {smallest / 1e6:.0f} MB"
        barred = len(idle) - len(self._tasks.free(idle))
        return why + f", and {barred} are in quarantine" * bool(barred)

    def _count_if_closed(self, now_s: float) -> Iterator[Instruction]:
        if self._securing is not None:
            yield from self._begin_sum(self._securing, now_s)
            return
        results, stage = self._tasks.results(), self._stage
        in_time = now_s < stage.deadline_at_s + GRACE_S
        if in_time and len(results) < self._course.enough and self._tasks.fetching():
            return
        if len(results) >= self._course.least:
            yield from self._tasks.take_back_useless()
            stage.go(Trigger.QUORUM)
            task_ids = tuple(entry.task.task_id for entry in results)
            yield AggregateRound(stage.round, stage.attempt, stage.adapter, task_ids)
        else:
            kept = "; they are kept" * (self._course.keeps and bool(results))
            why = f"{len(results)} results, the quorum is {self._course.least}{kept}"
            yield from self._repeat(now_s, Trigger.NO_QUORUM, why)

    def _begin_sum(self, securing: Securing, now_s: float) -> Iterator[Instruction]:
        """Whoever has trained is in it."""
        for entry in securing.untrained(self._tasks.current()):
            yield self._tasks.cancel(entry, "the secure sum of its round has begun")
        yield from securing.begin(self._tasks.current(), now_s)
        self._stage.go(Trigger.TRAINED)

    def _secure(self, securing: Securing, now_s: float) -> Iterator[Instruction]:
        """The steps of the secure sum that are due, and what becomes of the round when it is over."""
        yield from securing.advance(self._tasks.current(), now_s)
        for entry in securing.without(self._tasks.current()):
            yield self._tasks.lose(entry, "the secure sum goes on without it")
        if securing.why_not:
            yield from self._repeat(now_s, Trigger.NO_QUORUM, securing.why_not)
        elif securing.opened:
            stage, task_ids = self._stage, securing.summed(self._tasks.current())
            stage.go(Trigger.QUORUM)
            yield AggregateRound(stage.round, stage.attempt, stage.adapter, task_ids)

    def _repeat(self, now_s: float, trigger: Trigger, why: str) -> Iterator[Instruction]:
        stage = self._stage
        yield RepeatRound(stage.round, stage.attempt, why)
        if 0 < self._plan.rounds.attempts <= stage.attempt:
            yield from self._tasks.cancel_all("the run was given up")
            stage.go(Trigger.ATTEMPTS_SPENT)
            yield GiveUp(f"round {stage.round} was tried {stage.attempt} times; the last time: {why}")
            return
        stage.go(trigger)
        stage.attempt += 1
        stage.wait_until_s = now_s + REPEAT_S
