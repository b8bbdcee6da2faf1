"""Decisions made again, from what the ledger says was seen: is what is written what this policy decides?

A policy is a function of an observation and a state, and the state is one of the observations before, in order, back to
where a coordinator began: all of that is in the log.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from coordinator.assignment import name_of
from coordinator.decision_log import Logged, read_decisions
from coordinator.policy.hard_limits import HardLimits
from coordinator.policy.types import Decision, Policy
from coordinator.policy.words import in_words, seen_in_words

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Replayed:
    """A decision as it was `logged`, and as `policy` makes it `again`."""

    logged: Logged
    policy: str
    again: Decision

    @property
    def agrees(self) -> bool:
        """Whether both are the same decision of the same policy."""
        return self.again == self.logged.decision and self.policy == self.logged.policy


def replay(path: pathlib.Path, policy: Policy[S], tuned: Mapping[str, Policy[S]] | None = None) -> Iterator[Replayed]:
    """Every decision of the ledger at `path`, made again within hard limits: by that of the policies that were `tuned`,
    by their names, which made it, or by `policy`. Raises LedgerError.
    """
    state = HardLimits(policy).initial()
    for logged in read_decisions(path):
        decides = (tuned or {}).get(logged.policy, policy)
        if logged.fresh:
            state = HardLimits(decides).initial()
        again, state = HardLimits(decides).decide(logged.observation, state)
        yield Replayed(logged, name_of(decides), again)


def lines(replayed: Replayed) -> Iterator[str]:
    """What was seen and decided, in words, and whether the replay agrees."""
    logged = replayed.logged
    fresh = ", by a coordinator that had just started" if logged.fresh else ""
    yield f"{logged.number}. {seen_in_words(logged.observation)}; attempt {logged.attempt}{fresh}"
    yield from _decision(logged.decision, logged)
    if replayed.agrees:
        yield "  the replay agrees"
        return
    yield f"  THE REPLAY DISAGREES: {logged.policy} decided this, {replayed.policy} decides:"
    yield from _decision(replayed.again, logged)


def _decision(decision: Decision, logged: Logged) -> Iterator[str]:
    seen = logged.observation
    for device in seen.devices:
        choice = decision.choices.get(device.name)
        yield f"  {device.name}: {'sits out' if choice is None else in_words(choice, device, seen)}"
    for note in decision.notes:
        yield f"  {note}"
