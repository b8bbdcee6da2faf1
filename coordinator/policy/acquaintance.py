"""What is known of devices from their answers: pure, and the same in the daemon as in the simulator.

Rates and slowness are those of the last time that something went over the link, and of the last task that was done: a
link fades and a board throttles, so that what was long ago says little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from coordinator.policy.types import Answer, DeviceView, Level, Outcome

HELD_BACK: Final = 0.8  # of what a device was let: who did that much might have done more


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """What is known of every device that ever answered; `step_s` by level as in `Level`.

    What a device says of itself, its budget and threads, is not kept here: it says it again.
    """

    step_s: Mapping[str, float]
    devices: Mapping[str, DeviceView] = field(default_factory=dict)

    @staticmethod
    def of(levels: Iterable[Level], answers: Iterable[Answer] = ()) -> Acquaintance:
        """From the answers of the past, oldest first."""
        return Acquaintance({level.name: level.step_s for level in levels}).after(answers)

    def after(self, answers: Iterable[Answer]) -> Acquaintance:
        """What is known when these were heard as well."""
        devices = dict(self.devices)
        for answer in answers:
            before = devices.get(answer.device, DeviceView(answer.device, 0))
            devices[answer.device] = _after(before, answer, self.step_s.get(answer.level, 0.0))
        return dataclasses.replace(self, devices=devices)

    def holds(self, name: str) -> frozenset[str]:
        """The levels whose files the device has."""
        known = self.devices.get(name)
        return frozenset() if known is None else known.holds

    def view(self, name: str, budget_bytes: int, threads: int = 1, battery: float = 1.0) -> DeviceView:
        """A device as a policy sees it; of one that never answered nothing but what it said itself."""
        known = self.devices.get(name, DeviceView(name, 0))
        return dataclasses.replace(known, budget_bytes=budget_bytes, threads=threads, battery=battery)


def _after(known: DeviceView, answer: Answer, step_s: float) -> DeviceView:
    """What is known with one more answer; `step_s` is that of its level on the exporter's machine.

    A task that was declined for its size does not count as asked: the device answered as it should.
    """
    rate = _rate(known, answer)
    if answer.outcome is Outcome.LOST:
        return dataclasses.replace(known, asked=known.asked + 1, rate_bytes_s=rate)
    if answer.outcome is not Outcome.DONE:
        return dataclasses.replace(known, rate_bytes_s=rate)
    return dataclasses.replace(
        known,
        examples=answer.examples,
        rate_bytes_s=rate,
        slowness=answer.step_s * answer.power / step_s if step_s > 0 and answer.step_s > 0 else known.slowness,
        loss=answer.loss,
        holds=known.holds | {answer.level},
        asked=known.asked + 1,
        answered=known.answered + 1,
        last_round=answer.round,
        last_level=answer.level,
        beside_s=answer.beside_s,
    )


def _rate(known: DeviceView, answer: Answer) -> float:
    """What the link does; of one that was let do no more, nothing less than was known."""
    if not (answer.wire_s > 0 and answer.wire_bytes > 0):
        return known.rate_bytes_s
    rate = answer.wire_bytes / answer.wire_s
    held_back = 0 < answer.allowed_bytes_s * HELD_BACK <= rate
    return max(rate, known.rate_bytes_s) if held_back else rate
