"""A bandit over levels: UCB1, with arms of its own for each class of devices, as in DropPEFT's choice of dropout rates.

A class is the best level that a device may get, and whether it is slow, usual or fast beside the others. Of its levels
each device gets the one with the highest

    mean reward + sqrt(2 ln(tasks of the class) / tasks of the class with this level)

levels without a task first; tasks that are not answered yet count among the tasks, so that the devices of one round
spread over the arms. https://doi.org/10.1023/A:1013689704352 (UCB1), https://arxiv.org/abs/2503.10217 (DropPEFT, which
rewards accuracy per time).

What an observation shows of a reward: the held-out loss at the beginning of each round, so how far it fell in the last
one; where nobody measures it, the mean of what devices measured before they trained, a round later. That is the work of
all of a round's devices together; how long a task took is its own. So the reward of a task is

    (1 + fall / largest fall + delay_weight (1 - seconds / longest task)) / (2 + delay_weight)

with the largest and the longest so far: within 0 and 1, which is UCB1's precondition, though the mean of an arm drifts
as the loss falls ever less, and all arms of a round share its fall: an arm is told from the others over rounds, by
those that it was not part of. A lost task has no fall and lasts as long as the longest. After a restart the held-out
losses of past rounds are not shown again; the devices' own are, with the answers.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from coordinator.policy.by_round import ByRound, Heard, lasted_s
from coordinator.policy.estimates import Usual, known_or
from coordinator.policy.fitting import Known, may_get
from coordinator.policy.types import Answer, Choice, Decision, DeviceView, Observation, Outcome

Class: TypeAlias = tuple[str, int]  # the best level; -1 fast, 0 usual, 1 slow
Arm: TypeAlias = tuple[Class, str]

SLOW: Final = 1.5  # times the usual, and a fast one as many times less


@dataclass(frozen=True, slots=True)
class Rewards:
    """Of one arm, from closed rounds."""

    tasks: int = 0
    total: float = 0.0

    def after(self, reward: float) -> Rewards:
        """With one more."""
        return Rewards(self.tasks + 1, self.total + reward)


@dataclass(frozen=True, slots=True)
class Learned:
    """`given` are the arms of tasks in rounds that are not closed, by round and device. `loss` is the held-out loss of
    the last decision's round, `loss_round`; the largest fall and the longest task are what rewards are measured by.
    """

    known: Known = field(default_factory=Known)
    heard: ByRound = field(default_factory=ByRound)
    given: Mapping[int, Mapping[str, Arm]] = field(default_factory=dict)
    rewards: Mapping[Arm, Rewards] = field(default_factory=dict)
    loss: float = 0.0
    loss_round: int = -1
    largest_fall: float = 0.0
    longest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ucb:
    """`delay_weight` is what a round's longest task costs beside its largest fall of the loss."""

    delay_weight: float = 0.5

    def initial(self) -> Learned:
        """No arm was tried yet."""
        return Learned()

    def decide(self, observation: Observation, state: Learned) -> tuple[Decision, Learned]:
        """The arm with the highest bound for each device; see the module."""
        known = state.known.after(observation.answers)
        everybody = {device.name: device for device in (*observation.fleet, *observation.devices)}
        allowed = may_get(tuple(everybody.values()), observation.levels, known)
        levels = {
            name: tuple(level.name for level, may in zip(observation.levels, row, strict=True) if may)
            for name, row in zip(everybody, allowed.tolist(), strict=True)
        }
        classes = _classes(everybody.values(), levels)
        learned = self._learned(observation, dataclasses.replace(state, known=known), classes)
        given = {number: dict(arms) for number, arms in learned.given.items()}
        now = given.setdefault(observation.terms.round, {})
        for device in observation.devices:  # who is asked again has not done what it was given first
            now.pop(device.name, None)
        race = _Race(learned.rewards, (arm for arms in given.values() for arm in arms.values()))
        chosen = {d.name: race.next(classes[d.name], levels[d.name]) for d in observation.devices if levels[d.name]}
        now |= chosen
        decision = Decision({name: Choice(level) for name, (_, level) in chosen.items()})
        return decision, dataclasses.replace(learned, given=given)

    def _learned(self, observation: Observation, state: Learned, classes: Mapping[str, Class]) -> Learned:
        """With the rewards of the rounds that are over."""
        terms, loss = observation.terms, known_or(observation.terms.loss)
        heard = state.heard.with_answers(observation.answers)
        # Devices say in the next round what this one brought: without a held-out loss it is closed when that is over.
        ended, left = heard.closing_before(terms.round if loss else terms.round - 1)
        falls = _falls(heard.open)
        if loss and state.loss and state.loss_round + 1 == terms.round:
            falls[state.loss_round] = state.loss - loss
        rewards, largest, longest = dict(state.rewards), state.largest_fall, state.longest_s
        for number, answers in ended:
            fall = falls.get(number, 0.0)
            largest = max(largest, abs(fall))
            longest = max(longest, *(lasted_s(answer) for answer in answers.values()))
            given = state.given.get(number, {})
            for answer in answers.values():
                arm = _arm(answer, given, classes)
                if arm is not None:
                    reward = self._reward(answer, fall / largest if largest else 0.0, longest)
                    rewards[arm] = rewards.get(arm, Rewards()).after(reward)
        return dataclasses.replace(
            state,
            heard=left,
            given={number: arms for number, arms in state.given.items() if number > left.closed},
            rewards=rewards,
            loss=loss,
            loss_round=terms.round,
            largest_fall=largest,
            longest_s=longest,
        )

    def _reward(self, answer: Answer, fall: float, longest_s: float) -> float:
        """0 to 1; `fall` is a share of the largest."""
        if answer.outcome is Outcome.LOST:
            return 1 / (2 + self.delay_weight)
        delay = lasted_s(answer) / longest_s if longest_s else 1.0
        return (1 + fall + self.delay_weight * (1 - delay)) / (2 + self.delay_weight)


class _Race:
    """Gives out arms, counting those that it gave."""

    def __init__(self, rewards: Mapping[Arm, Rewards], unanswered: Iterable[Arm]) -> None:
        self._rewards = rewards
        self._tasks = collections.Counter({arm: had.tasks for arm, had in rewards.items()})
        self._tasks.update(unanswered)
        self._of_class = collections.Counter[Class]()
        for (kind, _), count in self._tasks.items():
            self._of_class[kind] += count

    def next(self, kind: Class, levels: tuple[str, ...]) -> Arm:
        """The arm of these levels with the highest bound, the best level of several."""
        arm = max(((kind, level) for level in levels), key=self._bound)
        self._tasks[arm] += 1
        self._of_class[kind] += 1
        return arm

    def _bound(self, arm: Arm) -> float:
        tasks = self._tasks[arm]
        if not tasks:
            return math.inf
        had = self._rewards.get(arm)
        mean = had.total / had.tasks if had else 1.0  # of what is not answered yet the best is hoped
        return mean + math.sqrt(2 * math.log(self._of_class[arm[0]]) / tasks)


def _classes(devices: Collection[DeviceView], levels: Mapping[str, tuple[str, ...]]) -> dict[str, Class]:
    usual = Usual.of(devices).slowness
    return {device.name: (next(iter(levels[device.name]), ""), _speed(device.slowness / usual)) for device in devices}


def _speed(slowness: float) -> int:
    """Beside the usual; of a device of which it is not known, 0."""
    if not known_or(slowness) or 1 / SLOW <= slowness <= SLOW:
        return 0
    return 1 if slowness > SLOW else -1


def _arm(answer: Answer, given: Mapping[str, Arm], classes: Mapping[str, Class]) -> Arm | None:
    """What the answer is to: after a restart it is not known what was given, but what the device is now."""
    arm = given.get(answer.device)
    if arm is not None and arm[1] == answer.level:
        return arm
    return (classes[answer.device], answer.level) if answer.device in classes else None


def _falls(rounds: Mapping[int, Heard]) -> dict[int, float]:
    """How far the loss fell in each round, by what devices measured before they trained in it and in the next one."""
    losses = {number: _loss(heard.values()) for number, heard in rounds.items()}
    return {n: loss - losses[n + 1] for n, loss in losses.items() if loss and losses.get(n + 1)}


def _loss(answers: Iterable[Answer]) -> float:
    """The mean of what devices measured, by examples; 0 where none did."""
    losses = [(known_or(answer.loss), max(answer.examples, 1)) for answer in answers if known_or(answer.loss)]
    return sum(loss * examples for loss, examples in losses) / sum(e for _, e in losses) if losses else 0.0
