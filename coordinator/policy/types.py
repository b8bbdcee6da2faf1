"""What a policy sees and says: `decide(observation, state) -> (decision, state)`, pure.

A policy has no memory of its own: what it learned is in its state, and the state can be made again by showing it the
answers of the past, which is what a restarted coordinator does.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S")


class Outcome(enum.Enum):
    """How a task ended, as far as its level's size is concerned."""

    DONE = "done"
    OVER_BUDGET = "over-budget"
    NO_SPACE = "no-space"


@dataclass(frozen=True, slots=True)
class Level:
    """An emulator level: `needs_bytes` is the least peak that the exporter predicts, `size_bytes` its files' size.

    Levels that differ only in their number of `trained_layers` have the same `model`. Its delta has about
    `upload_bytes`.
    """

    name: str
    needs_bytes: int
    size_bytes: int = 0
    model: str = ""
    trained_layers: int = 0
    upload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as a policy sees it."""

    name: str
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device said to a level while its budget was `budget_bytes`.

    `bytes` is the measured peak of a task that was done, or what the device said or showed that it would need. For
    `no-space` both are of the device's store. A task that was done took `wall_s`.
    """

    device: str
    level: str
    outcome: Outcome
    budget_bytes: int
    bytes: int
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known now: `levels` best first, and the `answers` since the last decision, oldest first.

    A decision is wanted for `devices`; `fleet` has every device that ever took part, or could now.
    """

    devices: tuple[DeviceView, ...]
    levels: tuple[Level, ...]
    answers: tuple[Answer, ...]
    fleet: tuple[DeviceView, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The level each observed device gets; a device that is not in it sits the round out."""

    levels: Mapping[str, str]


class Policy(Protocol[S]):
    """Decides. Showing the same answer twice changes nothing."""

    def initial(self) -> S:
        """The state of a policy that has seen nothing."""

    def decide(self, observation: Observation, state: S) -> tuple[Decision, S]:
        """A level for each device that is to take part."""
