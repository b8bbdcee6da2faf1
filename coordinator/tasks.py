"""The tasks of a run: who gets one, which results count, and when a task is taken back.

- A device has at most one unfinished task. Where the course of the run lets it, whoever has delivered gets another.
- A device whose deltas are refused again and again gets no task for a number of rounds; see `quarantine`.
- A task is taken back when it is due; a result that is being fetched then gets `GRACE_S` to arrive.
- A committed result counts in the version that is being gathered when it comes, and in no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from coordinator import answers
from coordinator.assignment import Assignment, Decided
from coordinator.course import Course, Seen
from coordinator.events import (
    CancelTask,
    GiveTask,
    Instruction,
    OfferAgain,
    RecordDecision,
    RecordVerdict,
    SetRates,
    TaskState,
)
from coordinator.fleet import Device
from coordinator.plan import Past, Plan
from coordinator.policy.types import Choice, Policy
from coordinator.policy.words import in_words
from coordinator.quarantine import Quarantine
from coordinator.rates import parts, rates
from coordinator.rollout import Ended, Rollout, Trial, counts
from coordinator.round_states import State
from coordinator.stage import Stage
from coordinator.task_book import Entry, Place, TaskBook, with_time_left
from edge_sdk.wire.messages import FailureReason

S = TypeVar("S")

GRACE_S: Final = 30.0
TASKS: Final = 32  # without a delta, for one device in one attempt: an honest one needs one a level or restart of ours
DROPPED: Final = {TaskState.DECLINED, TaskState.FAILED, TaskState.REFUSED, TaskState.CANCELLED, TaskState.LOST}


class Tasks(Generic[S]):
    """See the module. `stage` is written by `rounds`; `fleet`, `quarantine` and what is in `book`, by `desk`, too."""

    def __init__(self, plan: Plan, policy: Policy[S], past: Past, stage: Stage, course: Course, now_s: float) -> None:
        """Continue where the ledger ends. Unfinished tasks get all of their time again: no clock outlives a process."""
        self.plan, self.stage, self.course = plan, stage, course
        self.assignment = Assignment(policy, plan.levels, past.answers)
        self.book = TaskBook(past.entries)
        refused = ((e.device, e.task.round) for e in past.entries if e.state is TaskState.REFUSED)
        self.quarantine = Quarantine.of(plan.checks, refused)
        self.fleet = past.fleet.with_all_offline()
        needs_bytes = {level.name: level.needs_bytes for level in plan.levels}
        self.rollout = Rollout.of(plan.rollout, needs_bytes, past.trials, past.verdicts)
        self.rates: dict[str, float] = {}
        self._expected_back = self._sent_away() if past.open else set()
        for entry in self.book.unfinished():
            entry.due_s = course.due_s(stage.deadline_at_s, now_s)

    # ---- what there is

    def current(self) -> tuple[Entry, ...]:
        """The tasks of this attempt."""
        return tuple(self.book.of(self.stage.round, self.stage.attempt))

    def known(self) -> tuple[Entry, ...]:
        """The tasks of this attempt, and behind them those of earlier ones that are not finished."""
        here = (self.stage.round, self.stage.attempt)
        return (*self.current(), *(e for e in self.book.unfinished() if (e.task.round, e.attempt) != here))

    def results(self) -> tuple[Entry, ...]:
        """What would count if the round were closed now."""
        counting, here = self.book.counting_in(self.stage.round), (self.stage.round, self.stage.attempt)
        return tuple(e for e in counting if self.course.keeps or (e.task.round, e.attempt) == here)

    def seen(self, now_s: float) -> Seen:
        """The open round, as its course sees it."""
        stage, unfinished = self.stage, self.book.unfinished()
        own = sum((e.task.round, e.attempt) == (stage.round, stage.attempt) for e in unfinished)
        trained = sum(e.state is TaskState.TRAINED for e in unfinished)  # which is all that a secure sum waits for
        awaited = bool(self._expected_back) and now_s < stage.wait_until_s
        late, results = len(unfinished) - own, len(self.results()) + trained
        return Seen(own - trained, late, results, awaited, now_s >= stage.deadline_at_s)

    def fetching(self) -> bool:
        """Whether a result of this attempt is on its way."""
        return any(entry.state is TaskState.FETCHING for entry in self.current())

    def idle(self) -> list[Device]:
        """Who is here and could begin."""
        done = self._done()
        return [device for device in self.fleet.online() if device.hello.device not in done]

    def free(self, devices: Iterable[Device]) -> list[Device]:
        """Those that are not in quarantine."""
        return [device for device in devices if self.quarantine.spell(device.hello.device, self.stage.round) is None]

    def _sent_away(self) -> set[str]:
        """Whose tasks were cancelled when we were stopped; where a buffer fills, whoever was ever here."""
        if self.course.again:
            return set(self.fleet.devices)
        taken_back = {TaskState.CANCELLED, TaskState.LOST}
        return {entry.device for entry in self.current() if entry.state in taken_back}

    def unfinished_of(self, device: str) -> Entry | None:
        """The task that the device is at."""
        return next((entry for entry in self.book.unfinished() if entry.device == device), None)

    def _given(self, device: str) -> int:
        """How many deltas it has given from the adapter that tasks start from now."""
        return sum(e.device == device and e.task.round == self.stage.round for e in self.results())

    def _done(self) -> set[str]:
        """Who is at a task, or has done all that it may in this round."""
        delivered = () if self.course.again else (e for e in self.results() if e.task.round == self.stage.round)
        return {entry.device for entry in (*self.book.unfinished(), *delivered)}

    def _shares(self) -> dict[str, float]:
        """Of those that take part: the last choice of each, unless nothing will come of it."""
        taking_part = self.known() if self.stage.state in {State.OPEN, State.CLOSING} else self.book.unfinished()
        entries = {entry.device: entry for entry in taking_part}
        return {name: entry.choice.share for name, entry in entries.items() if entry.state not in DROPPED}

    # ---- giving tasks

    def decide(self, devices: Iterable[Device], lacks: int = 0) -> Decided | None:
        """What each of those that are free gets; `lacks` of them are needed."""
        stage = self.stage
        terms = self.plan.terms(stage.round, stage.adapter, stage.losses)
        asked, online = self.free(devices), {device.hello.device for device in self.fleet.online()}
        budgets = {device.hello.device: device.hello.budget_bytes for device in asked}
        at_work = ((entry.device, entry.choice.level) for entry in self.book.unfinished())
        barred = self.rollout.barred(budgets, online, at_work)
        return self.assignment.decide(asked, self.fleet, dataclasses.replace(terms, least=lacks), barred)

    def new_attempt(self) -> None:
        """Those who sat out one attempt take part again."""
        self.assignment.new_attempt()

    def deal(self, chosen: Mapping[str, Choice], decided: Decided, now_s: float) -> Iterator[Instruction]:
        """A task for each of those that were chosen."""
        shares = {**self._shares(), **{device: choice.share for device, choice in chosen.items()}}
        for device, choice in chosen.items():
            yield self._new_task(device, choice, decided, shares, now_s)

    def share_out(self) -> Iterator[Instruction]:
        """Rates, where they are others than before: of those that take part."""
        found = rates(self.plan.transfer, self._shares()) if self.plan.transfer.megabytes_s > 0 else {}
        if found != self.rates:
            self.rates = found
            yield SetRates(found)

    def give(self, device: str, now_s: float) -> Iterator[Instruction]:
        """A task for a device that has none in this open round, unless it has delivered, sits it out or had too many.

        A round whose deadline has passed, or that has enough results, is open until the event at hand is through:
        nobody joins it any more.
        """
        self._expected_back.discard(device)
        stage, had = self.stage, [entry for entry in self.current() if entry.device == device]
        over = now_s >= stage.deadline_at_s or len(self.results()) >= self.course.enough
        if stage.state is not State.OPEN or over or device in self._done() or not self.fleet.devices[device].online:
            return
        if sum(entry.state in DROPPED for entry in had) >= TASKS or not (had or self._has_room()):
            return
        decided = self.decide([self.fleet.devices[device]])
        if decided is not None:
            yield RecordDecision(stage.round, stage.attempt, decided)
            yield from self.deal(decided.decision.choices, decided, now_s)

    def _has_room(self) -> bool:
        """Whether one more device may take part in this attempt."""
        return not 0 < self.plan.rounds.seats <= len({entry.device for entry in self.current()})

    def _new_task(
        self, device: str, choice: Choice, decided: Decided, shares: Mapping[str, float], now_s: float
    ) -> GiveTask:
        """Its words tell the device's part of all `shares`."""
        level, stage = choice.level, self.stage
        due_s = self.course.due_s(stage.deadline_at_s, now_s)
        number = sum(entry.device == device for entry in self.current())
        task = self.plan.tasks.make(
            Place(device, stage.round, stage.attempt, number, self._given(device)),
            choice,
            artifact=self.plan.artifacts[level],
            adapter=stage.narrowed.get(level, stage.adapter),
            left_s=due_s - now_s,
            may_owe=self.book.may_owe(device),
        )
        entry = Entry(device, choice, stage.attempt, task, TaskState.OFFERED)
        entry.offered_s = entry.heard_s = now_s
        entry.due_s = due_s
        self.book.add(entry)
        seen = next(view for view in decided.observation.devices if view.name == device)
        words = in_words(choice, seen, decided.observation, parts(shares)[device])
        return GiveTask(device, choice, stage.attempt, task, words)

    def budget_bytes(self, entry: Entry) -> int:
        """What the device of a task has."""
        return self.fleet.devices[entry.device].hello.budget_bytes

    def offer_again(self, entry: Entry, now_s: float) -> OfferAgain:
        """The same task, with the time that is left."""
        entry.heard_s = now_s
        return OfferAgain(entry.device, with_time_left(entry.task, entry.due_s - now_s))

    # ---- levels that are tried

    def tried(self, entry: Entry, ended: Ended, now_s: float) -> Iterator[Instruction]:
        """A task has ended in a way that says something of its level."""
        if not isinstance(ended, FailureReason) or counts(ended):
            self.rollout = self.rollout.with_trial(Trial(entry.task.task_id, entry.device, entry.choice.level, ended))
            yield from self.judge_levels(now_s)

    def judge_levels(self, now_s: float) -> Iterator[Instruction]:
        """Say what is due to be said of levels; a halted one's devices get another task."""
        for verdict in self.rollout.due():
            self.rollout = self.rollout.with_verdict(verdict)
            yield RecordVerdict(verdict)
            at_it = [e for e in self.book.unfinished() if verdict.halted and e.choice.level == verdict.level]
            for entry in at_it:
                yield self.cancel(entry, f"level {verdict.level} is halted")
            for entry in at_it:
                yield from self.give(entry.device, now_s)

    # ---- taking tasks back

    def take_back_due(self, now_s: float) -> Iterator[Instruction]:
        """The tasks whose time is over: their devices were silent, or are not done."""
        for entry in self.book.unfinished():
            if entry.state is TaskState.OFFERED and now_s >= entry.due_s:
                yield self.lose(entry, "its deadline passed")
            elif entry.task.masking is None and now_s >= entry.due_s + GRACE_S:
                yield self.lose(entry, "its result did not come in time")

    def take_back_useless(self) -> Iterator[Instruction]:
        """When a round is closed, the tasks whose results could count in no later one."""
        following = self.stage.round + 1
        for entry in self.book.unfinished():
            late = following - entry.task.round
            if following > self.stage.count:
                yield self.cancel(entry, "this was the last round")
            elif not self.course.keeps:
                yield self.cancel(entry, "the round has all the results that it needs")
            elif late > self.course.max_staleness:
                yield self.lose(entry, f"its result would be {late} versions late")

    def cancel_all(self, why: str) -> Iterator[Instruction]:
        """Take all tasks back, and learn nothing from it."""
        for entry in self.book.unfinished():
            yield self.cancel(entry, why)

    def cancel(self, entry: Entry, why: str) -> CancelTask:
        """Take it back, and learn nothing from it."""
        entry.state = TaskState.CANCELLED
        return CancelTask(entry.device, entry.task.task_id, why)

    def lose(self, entry: Entry, why: str) -> CancelTask:
        """Take it back: nothing came of it in time."""
        answer = answers.lost(entry, self.stage.gathers, self.budget_bytes(entry))
        entry.state = TaskState.LOST
        self.assignment.observe(answer)
        self.assignment.sit_out(entry.device)
        return CancelTask(entry.device, entry.task.task_id, why, answer)
