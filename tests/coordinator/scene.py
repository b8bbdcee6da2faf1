"""Rounds without a clock, and what a test says to them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from coordinator.answers import finished
from coordinator.config import Rule, TrainingConfig
from coordinator.course import RoundsConfig
from coordinator.events import (
    AdapterReady,
    AggregateRound,
    DeclineHeard,
    Event,
    FailureHeard,
    FetchDelta,
    GiveTask,
    HelloHeard,
    Instruction,
    ResultCommitted,
    ResultHeard,
)
from coordinator.plan import Past, Plan
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Level, Policy
from coordinator.rollout import RolloutConfig
from coordinator.round_states import State
from coordinator.rounds import Rounds
from coordinator.task_book import TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import (
    DeclineReason,
    FailureReason,
    ResultOffer,
    Task,
    TaskDeclined,
    TaskFailed,
)
from tests.coordinator.samples import MB, make_hello, make_report

I = TypeVar("I")  # noqa: E741 - an instruction
DELTA = blob_of(b"delta")
LEVELS = (Level("large", 200 * MB), Level("small", 100 * MB))
ARTIFACTS = {"large": blob_of(b"large"), "small": blob_of(b"small")}


class Scene:
    """Rounds, a clock that is told the time, and all that was asked for."""

    def __init__(
        self,
        past: Past | None = None,
        needed: frozenset[str] = frozenset(),
        seed: int = 0,
        policy: Policy[Any] | None = None,
        rollout: RolloutConfig | None = None,
        **rounds: Any,
    ) -> None:
        config = RoundsConfig(**{"count": 2, "devices": 2, "wait_s": 10, "deadline_s": 100, **rounds})
        tasks = TaskMaker("run", TrainingConfig(steps=3, seed=seed), Rule.LORA_SVD)
        self.now_s, self.asked = 1000.0, list[Instruction]()
        past = past or Past(0, blob_of(b"adapter 0"))
        self.rounds = Rounds(
            Plan(config, tasks, LEVELS, ARTIFACTS, needed, rollout=rollout),
            policy or LargestThatFits(),
            past,
            self.now_s,
        )

    def tell(self, event: Event, *, after_s: float = 0.0) -> list[Instruction]:
        """What is asked for because of `event`."""
        self.now_s += after_s
        asked = self.rounds.handle(event, self.now_s)
        self.asked += asked
        return asked

    def hello(self, device: str, budget_mb: int = 300, **hello: Any) -> list[Instruction]:
        """A device says Hello."""
        return self.tell(HelloHeard(make_hello(device, budget_bytes=budget_mb * MB, **hello)))

    def task(self, device: str) -> Task:
        """The task that the device was given last."""
        return [i.task for i in self.asked if isinstance(i, GiveTask) and i.device == device][-1]

    def deliver(self, device: str, task: Task | None = None, *, loss: float = 2.5) -> list[Instruction]:
        """The device's delta is offered, fetched, and committed: for its last task, or that one."""
        task_id = (task or self.task(device)).task_id
        (asked,) = only(
            FetchDelta,
            self.tell(
                ResultHeard(device, ResultOffer(task_id, DELTA, dataclasses.replace(make_report(), loss_after=loss)))
            ),
        )
        return self.tell(ResultCommitted(task_id, finished(asked.answer, 5, asked.offered_s, self.now_s)))

    def aggregate(self) -> list[Instruction]:
        """The adapter is there that was asked for last; what is asked for then."""
        (*_, asked) = only(AggregateRound, self.asked)
        return self.tell(AdapterReady(asked.round, blob_of(b"adapter %d" % asked.round)))

    def aggregated(self) -> list[tuple[int, set[str]]]:
        """Each version, and the tasks whose results are in it."""
        return [(asked.round, set(asked.task_ids)) for asked in only(AggregateRound, self.asked)]

    def decline(self, device: str, reason: DeclineReason = DeclineReason.OVER_BUDGET) -> list[Instruction]:
        """The device declines."""
        budget_bytes = self.rounds.fleet.devices[device].hello.budget_bytes
        message = TaskDeclined(self.task(device).task_id, reason, budget_bytes + MB, budget_bytes, "")
        return self.tell(DeclineHeard(device, message))

    def fail(self, device: str, reason: FailureReason) -> list[Instruction]:
        """The device fails."""
        return self.tell(FailureHeard(device, TaskFailed(self.task(device).task_id, reason, 310 * MB, "")))


def only(kind: type[I], asked: list[Instruction]) -> list[I]:
    """The instructions of one kind."""
    return [i for i in asked if isinstance(i, kind)]


def opened(**rounds: Any) -> Scene:
    """Two devices with tasks in round 1."""
    scene = Scene(**rounds)
    scene.hello("a")
    scene.hello("b")
    assert scene.rounds.state is State.OPEN
    return scene
