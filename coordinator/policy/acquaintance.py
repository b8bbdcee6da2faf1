"""What is known of devices from their answers: pure, and the same in the daemon as in the simulator.

Rates and slowness are those of the last time that something went over the link, and of the last task that was done: a
link fades and a board throttles, so that what was long ago says little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from coordinator.policy.types import NEVER, Answer, DeviceView, Level, Outcome

HELD_BACK: Final = 0.8  # of what a device was let: who did that much might have done more


@dataclass(frozen=True, slots=True)
class Acquainted:
    """What the answers of one device showed; fields as in `DeviceView`."""

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

    def after(self, answer: Answer, step_s: float) -> Acquainted:
        """What is known with one more answer; `step_s` is that of its level on the exporter's machine.

        A task that was declined for its size does not count as asked: the device answered as it should.
        """
        rate = self._rate(answer)
        if answer.outcome is Outcome.LOST:
            return dataclasses.replace(self, asked=self.asked + 1, rate_bytes_s=rate)
        if answer.outcome is not Outcome.DONE:
            return dataclasses.replace(self, rate_bytes_s=rate)
        slowness = answer.step_s * answer.power / step_s if step_s > 0 and answer.step_s > 0 else self.slowness
        return Acquainted(
            examples=answer.examples,
            rate_bytes_s=rate,
            slowness=slowness,
            loss=answer.loss,
            holds=self.holds | {answer.level},
            asked=self.asked + 1,
            answered=self.answered + 1,
            last_round=answer.round,
            last_level=answer.level,
            beside_s=answer.beside_s,
        )

    def _rate(self, answer: Answer) -> float:
        """What the link does; of one that was let do no more, nothing less than was known."""
        if not (answer.wire_s > 0 and answer.wire_bytes > 0):
            return self.rate_bytes_s
        rate = answer.wire_bytes / answer.wire_s
        held_back = 0 < answer.allowed_bytes_s * HELD_BACK <= rate
        return max(rate, self.rate_bytes_s) if held_back else rate

    def view(self, name: str, budget_bytes: int, threads: int = 1, battery: float = 1.0) -> DeviceView:
        """The device as a policy sees it."""
        return DeviceView(
            name,
            budget_bytes,
            threads,
            battery,
            examples=self.examples,
            rate_bytes_s=self.rate_bytes_s,
            slowness=self.slowness,
            loss=self.loss,
            holds=self.holds,
            asked=self.asked,
            answered=self.answered,
            last_round=self.last_round,
            last_level=self.last_level,
            beside_s=self.beside_s,
        )


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """What is known of every device that ever answered; `step_s` by level as in `Level`."""

    step_s: Mapping[str, float]
    devices: Mapping[str, Acquainted] = field(default_factory=dict)

    @staticmethod
    def of(levels: Iterable[Level], answers: Iterable[Answer] = ()) -> Acquaintance:
        """From the answers of the past, oldest first."""
        return Acquaintance({level.name: level.step_s for level in levels}).after(answers)

    def after(self, answers: Iterable[Answer]) -> Acquaintance:
        """What is known when these were heard as well."""
        devices = dict(self.devices)
        for answer in answers:
            before = devices.get(answer.device, Acquainted())
            devices[answer.device] = before.after(answer, self.step_s.get(answer.level, 0.0))
        return dataclasses.replace(self, devices=devices)

    def view(self, name: str, budget_bytes: int, threads: int = 1, battery: float = 1.0) -> DeviceView:
        """A device as a policy sees it; of one that never answered nothing but what it said itself."""
        return self.devices.get(name, Acquainted()).view(name, budget_bytes, threads, battery)
