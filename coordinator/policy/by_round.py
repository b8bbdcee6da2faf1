"""Answers by the round of their tasks, for policies that learn from a whole round: each round is closed once.

So it changes nothing that an answer is shown twice: it replaces itself while its round is open, and afterwards it is
not heard. An answer without a round is not heard either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from coordinator.policy.estimates import known_or
from coordinator.policy.types import NEVER, Answer, Outcome

Heard = Mapping[str, Answer]  # by device


def lasted_s(answer: Answer) -> float:
    """How long the task took, the link with it."""
    return known_or(answer.wall_s) + known_or(answer.wire_s)


@dataclass(frozen=True, slots=True)
class ByRound:
    """The tasks that were done or lost, of rounds after `closed`."""

    open: Mapping[int, Heard] = field(default_factory=dict)
    closed: int = NEVER

    def with_answers(self, answers: Iterable[Answer]) -> ByRound:
        """Those of closed rounds come too late."""
        rounds = {number: dict(heard) for number, heard in self.open.items()}
        for answer in answers:
            if answer.round > self.closed and answer.outcome in {Outcome.DONE, Outcome.LOST}:
                rounds.setdefault(answer.round, {})[answer.device] = answer
        return ByRound(rounds, self.closed)

    def closing_before(self, number: int) -> tuple[tuple[tuple[int, Heard], ...], ByRound]:
        """The rounds before this one, oldest first, and what is left when they are closed."""
        ended = tuple(sorted((n, heard) for n, heard in self.open.items() if n < number))
        left = {n: heard for n, heard in self.open.items() if n >= number}
        return ended, ByRound(left, max(self.closed, number - 1))
