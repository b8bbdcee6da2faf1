"""Between the rounds and their secure sums: which events and entries a sum is made of, and what it asks for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from coordinator.events import Instruction, MaskingHeard, RecordMasking, SayLiar, TaskState, TellMasking
from coordinator.secure.config import Terms
from coordinator.secure.steps import Fact, Liar, Outcome, Record, SecureSum, Step
from coordinator.task_book import Entry
from edge_sdk.wire.secure.keys import are_signed
from edge_sdk.wire.secure.said import MaskKeys, MaskShares


class Securing:
    """The secure sum of the attempt at hand. `why_not` and `opened` say how it ended."""

    def __init__(self, terms: Terms, quorum: int, facts: Iterable[Fact], place: tuple[int, int], now_s: float) -> None:
        """Go on where `facts` end, of the attempt at `place`: its round, and its number."""
        self._terms, self._quorum = terms, quorum
        self._begin(facts, place, now_s)

    @property
    def begun(self) -> bool:
        """Whether nobody can join any more."""
        return self._sum.standing.step is not Step.GATHERING

    @property
    def why_not(self) -> str:
        """Why the sum cannot be; empty while it can."""
        return self._sum.failed

    @property
    def opened(self) -> bool:
        """Whether all is here that opens it."""
        return self._sum.opened

    def new_attempt(self, place: tuple[int, int], now_s: float) -> None:
        """Nobody has joined yet."""
        self._begin((), place, now_s)

    def heard(self, event: MaskingHeard, entry: Entry, now_s: float) -> Iterator[Instruction]:
        """A device says something about the sum that its task is in."""
        message, masking = event.message, entry.task.masking
        if masking is None:
            return
        if isinstance(message, MaskKeys):
            signed = (event.identity, message.signature, masking.sum_id, event.device, message.signed)
            if not are_signed(*signed):
                yield SayLiar(event.device, "its keys are not signed by itself")
                return
            if not self.begun:
                entry.state = TaskState.TRAINED
            yield from self._said(self._sum.join(event.device, event.identity, message))
            yield from self._said(self._sum.ask_again(now_s, event.device))
        elif isinstance(message, MaskShares):
            yield from self._said(self._sum.shared(event.device, message))
        else:
            yield from self._said(self._sum.revealed(event.device, message))

    def untrained(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those that are not finished, and too late for it."""
        return [e for e in entries if not e.state.final and e.state is not TaskState.TRAINED]

    def begin(self, entries: Iterable[Entry], now_s: float) -> Iterator[Instruction]:
        """Those who have trained are in it."""
        trained = [entry.device for entry in entries if entry.state is TaskState.TRAINED]
        yield from self._said(self._sum.begin(trained, now_s, random.SystemRandom()))

    def advance(self, entries: Iterable[Entry], now_s: float) -> Iterator[Instruction]:
        """Take every step that is due."""
        states = {entry.device: entry.state for entry in entries}
        waiting = {name for name, state in states.items() if state in {TaskState.TRAINED, TaskState.FETCHING}}
        delivered = {name for name, state in states.items() if state is TaskState.COMMITTED}
        yield from self._said(self._sum.advance(waiting, delivered, now_s))
        yield from self._said(self._sum.ask_again(now_s))

    def without(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those that are not finished, and cannot be in the sum any more."""
        over, members = bool(self.why_not) or self.opened, self._sum.members()
        open_ = {TaskState.TRAINED, TaskState.FETCHING}
        late = self._sum.standing.step is Step.UNMASKING
        return [e for e in entries if e.state in open_ and (over or late or e.device not in members)]

    def summed(self, entries: Iterable[Entry]) -> tuple[str, ...]:
        """The tasks whose deltas are in it."""
        alive = set(self._sum.standing.alive)
        return tuple(e.task.task_id for e in entries if e.device in alive and e.state is TaskState.COMMITTED)

    def _begin(self, facts: Iterable[Fact], place: tuple[int, int], now_s: float) -> None:
        config = self._terms.config
        self._place = place
        self._sum = SecureSum(config.step_s, self._quorum, config.neighbours, facts, now_s)

    def _said(self, outcomes: Iterable[Outcome]) -> Iterator[Instruction]:
        for outcome in outcomes:
            if isinstance(outcome, Record):
                yield RecordMasking(*self._place, outcome.fact)
            elif isinstance(outcome, Liar):
                yield SayLiar(outcome.device, outcome.why)
            else:
                yield TellMasking(outcome.device, outcome.message)
