"""What each round of a real run earned, by the same reward as a simulated one: from the ledger alone.

A round's delay is that of its slowest answer, by the clocks of the devices; of a task that was lost, the deadline. The
energy is not known, and counts as none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.controller.reward import Outcomes, Scale, Weights, reward
from coordinator.history import History
from coordinator.policy.types import Answer, Outcome
from coordinator.report import FULL

REPEATED: Final = -math.inf  # what an attempt that came to nothing is worth


@dataclass(frozen=True, slots=True)
class Measured:
    """What a round is measured by: `gap` in nats, from the first loss to the curve's floor."""

    gap: float
    deadline_s: float
    level_bytes: int
    weights: Weights


def earned(history: History, answers: Iterable[Answer], round_: int, by: Measured) -> float | None:
    """What `round_` earned; None while it is open, or its losses are not measured. REPEATED where it had to be begun
    again. `answers` are all of the run.
    """
    attempts = [row for row in history.rounds if row.round == round_]
    if any(row.state == "repeated" for row in attempts):
        return REPEATED
    before, after = history.loss(round_ - 1, FULL), history.loss(round_, FULL)
    if before is None or after is None or round_ > history.done:
        return None
    scale = Scale(by.gap, by.deadline_s, by.level_bytes, max(len(history.devices), 1))
    outcomes = _outcomes([answer for answer in answers if answer.round == round_], before, after, by.deadline_s)
    return reward(outcomes, scale, by.weights)


def _outcomes(answers: Sequence[Answer], before: float, after: float, deadline_s: float) -> Outcomes:
    lost = [answer for answer in answers if answer.outcome is Outcome.LOST]
    done = [answer for answer in answers if answer.outcome is Outcome.DONE]
    return Outcomes(
        loss_before=before,
        loss_after=after,
        delay_s=deadline_s if lost else max((answer.wall_s + answer.wire_s for answer in done), default=0.0),
        bytes=sum(answer.wire_bytes for answer in answers),
        exchanges=0,
        energy_j=0.0,
        violations=sum(answer.outcome is Outcome.OVER_BUDGET for answer in answers),
        asked=len(answers),
        delivered=len(done),
    )
