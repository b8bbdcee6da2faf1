"""What a device's word on a task is to a policy. Pure.

`round_` is the round in which it says so, which need not be its task's.
"""

from __future__ import annotations

import dataclasses

from coordinator.policy.types import Answer, Outcome
from coordinator.task_book import Entry
from edge_sdk.wire.messages import DeclineReason, FailureReason, Report, TaskDeclined, TaskFailed

TOO_LARGE = {  # answers after which the device may be given a smaller level
    DeclineReason.OVER_BUDGET: Outcome.OVER_BUDGET,
    DeclineReason.NO_SPACE: Outcome.NO_SPACE,
}
STARTS_S = 2.0  # of which no step is made: a worker starts, and the first chunks are asked for
MOST_S, MOST_BYTES = 1e6, 1e15  # that are believed of one task: what is reckoned with them stays finite


def done(entry: Entry, round_: int, report: Report, cores: int, allowed_bytes_s: float) -> Answer:
    """A delta that is offered: `finished` adds what is known when it is here. The device has `cores` threads."""
    return Answer(
        entry.device,
        entry.choice.level,
        Outcome.DONE,
        report.budget_bytes,
        report.peak_bytes,
        wall_s=_within(report.wall_s, MOST_S),
        round=round_,
        step_s=_within(report.step_ms / 1e3, MOST_S),
        power=_power(report, cores) or entry.choice.power,
        loss=report.loss_before,
        wire_bytes=int(_within(report.down_bytes, MOST_BYTES) + _within(report.up_bytes, MOST_BYTES)),
        allowed_bytes_s=allowed_bytes_s,
        beside_s=_within(report.wall_s - report.steps * report.step_ms / 1e3, MOST_S),
    )


def _power(report: Report, cores: int) -> float:
    """What the device says that it trained with: a share of its threads, at a share of their clock; 0 is unknown."""
    return min(report.threads / cores, 1.0) * report.clock if report.threads > 0 and cores > 0 else 0.0


def finished(answer: Answer, examples: int, offered_s: float | None, now_s: float) -> Answer:
    """With the weight that the delta has, and the time that was not training, on the clock on which it was offered.

    Preparing the data counts as wire. What a worker takes to start nobody tells apart: it is taken to be STARTS_S, or
    half of that time, where it is short. After a restart nobody knows when the offer was made, or how long we were
    gone: 0, which is unknown.
    """
    rest_s = 0.0 if offered_s is None else max(0.0, now_s - offered_s - answer.wall_s)
    starts_s = min(STARTS_S, rest_s / 2)
    return dataclasses.replace(answer, examples=examples, wire_s=rest_s - starts_s, beside_s=answer.beside_s + starts_s)


def declined(entry: Entry, round_: int, message: TaskDeclined) -> Answer | None:
    """Nothing where the level is not what was wrong."""
    outcome = TOO_LARGE.get(message.reason)
    if outcome is None:
        return None
    sizes = (message.budget_bytes, message.needed_bytes)
    return Answer(entry.device, entry.choice.level, outcome, *sizes, round=round_)


def failed(entry: Entry, round_: int, message: TaskFailed, budget_bytes: int) -> Answer:
    """A task that went over the budget says so of its level; any other is lost."""
    if message.reason is not FailureReason.OVER_BUDGET:
        return lost(entry, round_, budget_bytes)
    sizes = (budget_bytes, message.peak_bytes)
    return Answer(entry.device, entry.choice.level, Outcome.OVER_BUDGET, *sizes, round=round_)


def lost(entry: Entry, round_: int, budget_bytes: int) -> Answer:
    """Nothing came of a task that was given."""
    return Answer(entry.device, entry.choice.level, Outcome.LOST, budget_bytes, 0, round=round_)


def _within(value: float, most: float) -> float:
    return min(max(value, 0.0), most)
