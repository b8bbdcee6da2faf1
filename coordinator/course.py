"""`[rounds]`: of how many results a version is made, when its round closes, and what may still count in a later one.

Two courses of a run, which differ in nothing else:

- `Synchronous`: the devices of a round begin together; it closes when all have answered, when as many results are here
  as it has participants, or at its deadline. With `late = "discount"` tasks outlive their round.
- `Buffered`: whoever has delivered begins again, from the newest adapter; every `buffer` results make a version
  (FedBuff: J. Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, arXiv 2106.06639, algorithm 1).

A result of round r starts from version r - 1. In version v it is `v - r` versions late, its staleness. Pure.
"""

from __future__ import annotations

import abc
import enum
import math
from dataclasses import dataclass
from typing import Final

from coordinator.round_states import Trigger
from edge_sdk.wire.settings import number

MAX_DEVICES: Final = 10_000
WEEK_S: Final = 7 * 24 * 3600.0


class Mode(enum.Enum):
    """Whether devices begin together, or each when it is free."""

    SYNCHRONOUS = "synchronous"
    BUFFERED = "buffered"


class Late(enum.Enum):
    """What becomes of a result that comes when its round is closed."""

    REFUSE = "refuse"
    DISCOUNT = "discount"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """When a round opens and closes; docs/rounds.md explains it.

    The first round waits up to `wait_s` for `devices` of them, and then for `min_devices` as long as it takes. At most
    `participants` take part in a round, drawn anew for each attempt (0: all that are there), and `extra` ones beside
    them: then it closes when `participants` results are here. It closes, too, when every device that took part has
    answered, or after `deadline_s`; with fewer than `quorum` results it is repeated, at most `attempts` times in all
    (0: until there are enough).

    A `late` result is refused or discounted: it counts by `weight` while it is at most `max_staleness` versions late.
    In `mode` buffered, every `buffer` results are a round, and `deadline_s` is each task's own.
    """

    count: int = number(1, 100_000)
    devices: int = number(1, MAX_DEVICES)
    min_devices: int = number(1, MAX_DEVICES, 1)
    participants: int = number(0, MAX_DEVICES, 0)
    extra: int = number(0, MAX_DEVICES, 0)
    quorum: int = number(1, MAX_DEVICES, 1)
    deadline_s: float = number(1, WEEK_S, 600)
    wait_s: float = number(0, WEEK_S, 60)
    attempts: int = number(0, 1000, 3)
    late: Late = Late.REFUSE
    max_staleness: int = number(1, 1000, 4)
    staleness_exponent: float = number(0, 10, 0.5)
    mode: Mode = Mode.SYNCHRONOUS
    buffer: int = number(0, MAX_DEVICES, 0)

    @property
    def discounts(self) -> bool:
        """Whether a result may count in another round than its own."""
        return self.late is Late.DISCOUNT or self.mode is Mode.BUFFERED

    @property
    def seats(self) -> int:
        """How many may take part in a round; 0: all."""
        return self.participants + self.extra

    def weight(self, staleness: int) -> float:
        """What part of its change a result counts with that is so many versions late: `(1 + staleness)^-a`.

        The polynomial of C. Xie et al., Asynchronous Federated Optimization (arXiv 1903.03934), section 5.2, which
        FedBuff takes with a = 1/2; a is `staleness_exponent`.
        """
        return float((1 + staleness) ** -self.staleness_exponent)

    def complaints(self) -> dict[str, bool]:
        """What no single value shows, and whether it applies here."""
        buffered, enough = self.mode is Mode.BUFFERED, self.participants
        return {
            f"rounds.min_devices is {self.min_devices}, more than rounds.devices": self.min_devices > self.devices,
            f"rounds.quorum is {self.quorum}, more than rounds.devices": self.quorum > self.devices,
            f"rounds.quorum is {self.quorum}, more than rounds.participants": 0 < enough < self.quorum,
            "rounds.extra is beside rounds.participants: set how many results a round is made of": (
                self.extra > 0 and enough == 0
            ),
            "rounds.mode is 'buffered', which needs rounds.buffer: how many results make a version": (
                buffered and self.buffer == 0
            ),
            "rounds.buffer is for rounds.mode = 'buffered'": not buffered and self.buffer > 0,
            "rounds.mode is 'buffered', in which every free device trains: leave out rounds.participants": (
                buffered and enough > 0
            ),
            "rounds.mode is 'buffered', in which rounds.buffer says how many results are enough: leave out "
            "rounds.quorum": buffered and self.quorum > 1,
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """An open round: `unfinished` tasks of its own and `late` ones of rounds before; `results` that would count now.

    `awaited`: a device may come back that we sent away; `overdue`: the round's deadline has passed.
    """

    unfinished: int
    late: int
    results: int
    awaited: bool
    overdue: bool


@dataclass(frozen=True, slots=True)
class Course(abc.ABC):
    """The rules of one run.

    With `enough` results a round closes, with less than `least` it is repeated. A task may be up to `max_staleness`
    versions late. With `keeps`, tasks and results outlive their attempt; with `again`, whoever has delivered may do so
    again from the same adapter.
    """

    enough: float
    least: int
    max_staleness: int
    keeps: bool
    again: bool
    deadline_s: float

    @abc.abstractmethod
    def deadline_at_s(self, now_s: float) -> float:
        """When a round closes that opens now, whoever has not answered."""

    @abc.abstractmethod
    def due_s(self, deadline_at_s: float, now_s: float) -> float:
        """When a task that is given now is taken back, in a round with that deadline."""

    @abc.abstractmethod
    def lacks(self, results: int, unfinished: int) -> int:
        """How many devices a round needs that opens with so many results and tasks."""

    @abc.abstractmethod
    def closes(self, seen: Seen) -> Trigger | None:
        """Why an open round closes now; None: it stays open."""


@dataclass(frozen=True, slots=True)
class Synchronous(Course):
    """Rounds in step; see the module and Course."""

    def deadline_at_s(self, now_s: float) -> float:
        """See Course."""
        return now_s + self.deadline_s

    def due_s(self, deadline_at_s: float, now_s: float) -> float:
        """One more deadline for each round that it may be late."""
        del now_s
        return deadline_at_s + self.max_staleness * self.deadline_s

    def lacks(self, results: int, unfinished: int) -> int:
        """See Course."""
        return max(0, self.least - results - unfinished)

    def closes(self, seen: Seen) -> Trigger | None:
        """Of tasks from rounds before, only those are waited for without which there are too few results."""
        if seen.results >= self.enough:
            return Trigger.ENOUGH_RESULTS
        if seen.overdue:
            return Trigger.DEADLINE
        waits = seen.unfinished > 0 or seen.awaited or (seen.late > 0 and seen.results < self.least)
        return None if waits else Trigger.ALL_ANSWERED


@dataclass(frozen=True, slots=True)
class Buffered(Course):
    """A buffer that fills; see the module and Course."""

    def deadline_at_s(self, now_s: float) -> float:
        """Never: a version waits for its results."""
        del now_s
        return math.inf

    def due_s(self, deadline_at_s: float, now_s: float) -> float:
        """Each task has its own deadline."""
        del deadline_at_s
        return now_s + self.deadline_s

    def lacks(self, results: int, unfinished: int) -> int:
        """One device fills any buffer."""
        del results
        return 0 if unfinished else 1

    def closes(self, seen: Seen) -> Trigger | None:
        """With nobody at work the buffer would never be full."""
        if seen.results >= self.enough:
            return Trigger.ENOUGH_RESULTS
        return None if seen.unfinished + seen.late > 0 or seen.awaited else Trigger.ALL_ANSWERED


def course_of(config: RoundsConfig) -> Course:
    """The rules that a configuration asks for."""
    max_staleness = config.max_staleness if config.discounts else 0
    bounds = (max_staleness, config.discounts, config.mode is Mode.BUFFERED, config.deadline_s)
    if config.mode is Mode.BUFFERED:
        return Buffered(config.buffer, config.buffer, *bounds)
    return Synchronous(config.participants if config.extra else math.inf, config.quorum, *bounds)
