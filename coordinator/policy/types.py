"""What a policy sees and says: `decide(observation, state) -> (decision, state)`, pure.

A policy has no memory of its own: what it learned is in its state, and the state can be made again by showing it the
answers of the past, which is what a restarted coordinator does.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from edge_sdk.wire.messages import DeltaCodec

S = TypeVar("S")

NEVER: Final = -1  # a round, of what has not happened yet


class Outcome(enum.Enum):
    """How a task ended, as far as a policy is concerned."""

    DONE = "done"
    OVER_BUDGET = "over-budget"
    NO_SPACE = "no-space"
    LOST = "lost"  # begun, and without a result when its round was closed


@dataclass(frozen=True, slots=True)
class Level:
    """An emulator level: `needs_bytes` is the least peak that the exporter predicts, `size_bytes` its files' size.

    Levels that differ only in their number of `trained_layers` have the same `model`. Its delta has about
    `upload_bytes[codec]`. `files` are the bytes of what it is made of, by SHA-256: what two levels have in common is
    fetched once. `step_s` is what a step of the run's tasks took on the exporter's machine: a device is so many times
    slower. `quality` is the share of the gap between the model as it is and the model tuned itself that tuning at this
    level closes; 0 to 1, and 1 where nobody measured it.
    """

    name: str
    needs_bytes: int
    size_bytes: int = 0
    model: str = ""
    trained_layers: int = 0
    upload_bytes: Mapping[DeltaCodec, int] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    step_s: float = 0.0
    quality: float = 1.0


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as a policy sees it: what it said of itself, and what its answers showed. 0 is unknown.

    `rate_bytes_s` is what its link did when it last did something; `slowness` how many times longer than the exporter's
    machine it takes for a step, with all its `threads`; `beside_s` what a task takes beside steps and wire: a worker
    starts, rows are measured; `examples` the weight of its last delta; `loss` what it measured on rows of its own
    before it last trained, in nats. `holds` names the levels whose files it has. It was given a task `asked` times, and
    `answered` so many with a delta, the last in round `last_round`. `battery` is the share that is left, 1 on the
    mains. It may not be given the levels in `barred`: they are tried elsewhere first, or halted.
    """

    name: str
    budget_bytes: int
    threads: int = 1
    battery: float = 1.0
    examples: int = 0
    rate_bytes_s: float = 0.0
    slowness: float = 0.0
    loss: float = 0.0
    holds: frozenset[str] = frozenset()
    asked: int = 0
    answered: int = 0
    last_round: int = NEVER
    last_level: str = ""
    beside_s: float = 0.0
    barred: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device said to a level while its budget was `budget_bytes`.

    `bytes` is the measured peak of a task that was done, or what the device said or showed that it would need. For
    `no-space` both are of the device's store. A task that was done took `wall_s`, `step_s` a step with `power` of the
    device's threads, and `beside_s` in which no step was made; it began at `loss` and has `examples`. `wire_bytes` went
    over its link in `wire_s`, both ways together, where `allowed_bytes_s` was the most that it was let (0: no bound).
    """

    device: str
    level: str
    outcome: Outcome
    budget_bytes: int
    bytes: int
    wall_s: float = 0.0
    round: int = NEVER
    step_s: float = 0.0
    power: float = 1.0
    loss: float = 0.0
    examples: int = 0
    wire_bytes: int = 0
    wire_s: float = 0.0
    allowed_bytes_s: float = 0.0
    beside_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all of a round's tasks, and how far the run is.

    `codecs` are those that a delta may come in, the configured one first. `bandwidth_bytes_s` is what all devices share
    (0: no bound). `adapter_bytes` are sent to every device in every round. `loss` is the full model's held-out loss
    before this round, `first_loss` before the first one; 0 where it is not measured. Of the observed devices at `least`
    so many have to take part, or the round comes to nothing; 0 where others take part already.
    """

    round: int = 1
    rounds: int = 1
    steps: int = 1
    deadline_s: float = 600.0
    bandwidth_bytes_s: float = 0.0
    adapter_bytes: int = 0
    codecs: tuple[DeltaCodec, ...] = (DeltaCodec.FP32,)
    loss: float = 0.0
    first_loss: float = 0.0
    least: int = 0

    @property
    def codec(self) -> DeltaCodec:
        """The configured one."""
        return self.codecs[0] if self.codecs else DeltaCodec.FP32


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known now: `levels` best first, and the `answers` since the last decision, oldest first.

    A decision is wanted for `devices`; `fleet` has every device that ever took part, or could now.
    """

    devices: tuple[DeviceView, ...]
    levels: tuple[Level, ...]
    answers: tuple[Answer, ...]
    fleet: tuple[DeviceView, ...] = ()
    terms: Terms = Terms()


@dataclass(frozen=True, slots=True)
class Choice:
    """What a device that takes part gets: a level, the codec of its delta (None: the configured one), its `share` of
    the bandwidth beside the others' shares, and the `power` it trains with, a share of its threads, above 0 to 1.
    """

    level: str
    codec: DeltaCodec | None = None
    share: float = 1.0
    power: float = 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What each observed device gets; a device that is not in it sits the round out.

    `notes` are lines for the person at the coordinator: what did not go as it should.
    """

    choices: Mapping[str, Choice]
    notes: tuple[str, ...] = ()


class Policy(Protocol[S]):
    """Decides. Showing the same answer twice changes nothing."""

    def initial(self) -> S:
        """The state of a policy that has seen nothing."""

    def decide(self, observation: Observation, state: S) -> tuple[Decision, S]:
        """A choice for each device that is to take part."""
