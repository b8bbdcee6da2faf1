"""The best level that fits each device's budget.

1. A level fits when its needs, as far as they are known, are within the budget. Known at first: the exporter's
   prediction; then, per device, what it declined or failed with, if that is more.
2. The best level that fits is taken, best first as configured. A level over which the device went before makes every
   level that needs as much or more too large as well, until the budget has grown past what was seen.
3. A level whose files had no room in the device's store is not offered again, nor one whose files are as large; what
   the store lacks does not change between rounds.
4. Where none fits, the smallest is offered once all the same: the prediction was made on another machine, and only the
   device knows. Its answer is an observation like any other, so it is not asked again while nothing changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.policy.types import Answer, Decision, DeviceView, Level, Observation, Outcome


@dataclass(frozen=True, slots=True)
class State:
    """By device and level: the bytes over which the device went, always more than its budget was; and `no_room`."""

    exceeded: Mapping[tuple[str, str], int] = field(default_factory=dict)
    no_room: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class LargestThatFits:
    """See the module."""

    def initial(self) -> State:
        """Nothing was exceeded yet."""
        return State()

    def decide(self, observation: Observation, state: State) -> tuple[Decision, State]:
        """The best level that fits each device, or the smallest where that was never tried."""
        state = _learn(state, observation.answers)
        chosen = {device.name: _choose(device, observation.levels, state) for device in observation.devices}
        return Decision({name: level for name, level in chosen.items() if level is not None}), state


def _learn(state: State, answers: tuple[Answer, ...]) -> State:
    exceeded = dict(state.exceeded)
    for answer in answers:
        key = (answer.device, answer.level)
        if answer.outcome is Outcome.OVER_BUDGET:
            exceeded[key] = max(exceeded.get(key, 0), answer.bytes, answer.budget_bytes + 1)
    full = {(answer.device, answer.level) for answer in answers if answer.outcome is Outcome.NO_SPACE}
    return State(exceeded, state.no_room | full)


def _choose(device: DeviceView, levels: tuple[Level, ...], state: State) -> str | None:
    too_big = min((level.size_bytes for level in levels if (device.name, level.name) in state.no_room), default=None)
    levels = tuple(level for level in levels if too_big is None or level.size_bytes < too_big)
    if not levels:
        return None
    over = [level for level in levels if state.exceeded.get((device.name, level.name), 0) > device.budget_bytes]
    smallest_over = min((level.needs_bytes for level in over), default=None)
    for level in levels:
        below = smallest_over is None or level.needs_bytes < smallest_over
        if below and level.needs_bytes <= device.budget_bytes:
            return level.name
    smallest = min(levels, key=lambda level: level.needs_bytes)
    return None if smallest in over else smallest.name
