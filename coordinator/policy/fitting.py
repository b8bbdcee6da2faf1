"""What is known of how levels fit devices: from the exporter's predictions, and from what devices answered.

1. A level fits when its needs, as far as they are known, are within the budget. Known at first: the exporter's
   prediction; then, per device, what it declined or failed with, if that is more.
2. A level over which the device went before makes every level that needs as much or more too large as well, until the
   budget has grown past what was seen.
3. A level whose files had no room in the device's store is not offered again, nor one whose files are as large; what
   the store lacks does not change between rounds.
4. A level that the device is barred from does not fit it.
5. Where none fits, the smallest is offered once all the same: the prediction was made on another machine, and only the
   device knows. Its answer is an observation like any other, so it is not asked again while nothing changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.policy.arrays import Bools
from coordinator.policy.types import Answer, DeviceView, Level, Outcome


@dataclass(frozen=True, slots=True)
class Known:
    """By device and level: the bytes over which the device went, always more than its budget was; and `no_room`.

    `took_s` is how long the device's last finished task of that level took.
    """

    exceeded: Mapping[tuple[str, str], int] = field(default_factory=dict)
    no_room: frozenset[tuple[str, str]] = frozenset()
    took_s: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def after(self, answers: Iterable[Answer]) -> Known:
        """What is known when these were heard as well."""
        answers = tuple(answers)
        if not answers:
            return self
        exceeded, took_s, no_room = dict(self.exceeded), dict(self.took_s), set(self.no_room)
        for answer in answers:
            key = (answer.device, answer.level)
            if answer.outcome is Outcome.OVER_BUDGET:
                exceeded[key] = max(exceeded.get(key, 0), answer.bytes, answer.budget_bytes + 1)
            elif answer.outcome is Outcome.NO_SPACE:
                no_room.add(key)
            elif answer.outcome is Outcome.DONE:
                took_s[key] = answer.wall_s
        return Known(exceeded, frozenset(no_room), took_s)


def fitting(device: DeviceView, levels: Iterable[Level], known: Known) -> tuple[Level, ...]:
    """Those of `levels` that fit the device, in their order."""
    levels = _with_room(device, levels, known)
    smallest_over = min((level.needs_bytes for level in _over(device, levels, known)), default=None)
    return tuple(
        level
        for level in levels
        if level.needs_bytes <= device.budget_bytes and (smallest_over is None or level.needs_bytes < smallest_over)
    )


def last_resort(device: DeviceView, levels: Iterable[Level], known: Known) -> Level | None:
    """The smallest of `levels`, for a device that none fits; None where it was tried."""
    levels = _with_room(device, levels, known)
    smallest = min(levels, key=lambda level: level.needs_bytes, default=None)
    return None if smallest in _over(device, levels, known) else smallest


def fits(devices: Sequence[DeviceView], levels: Sequence[Level], known: Known) -> Bools:
    """(devices, levels): `fitting` for many devices at once."""
    budgets = np.array([device.budget_bytes for device in devices], float)
    needs = np.array([level.needs_bytes for level in levels], float)
    found: Bools = needs[None, :] <= budgets[:, None]
    said = {name for name, _ in (*known.exceeded, *known.no_room)}  # of others the predictions are all there is
    for row, device in enumerate(devices):
        if device.name in said or device.barred:
            names = {level.name for level in fitting(device, levels, known)}
            found[row] = [level.name in names for level in levels]
    return found


def may_get(devices: Sequence[DeviceView], levels: Sequence[Level], known: Known) -> Bools:
    """(devices, levels): those that fit, and where none does the last resort."""
    found = fits(devices, levels, known)
    for row in (~found.any(axis=1)).nonzero()[0].tolist():
        resort = last_resort(devices[row], levels, known)
        found[row] = [resort is not None and level.name == resort.name for level in levels]
    return found


def _with_room(device: DeviceView, levels: Iterable[Level], known: Known) -> tuple[Level, ...]:
    levels = tuple(level for level in levels if level.name not in device.barred)
    too_big = min((level.size_bytes for level in levels if (device.name, level.name) in known.no_room), default=None)
    return tuple(level for level in levels if too_big is None or level.size_bytes < too_big)


def _over(device: DeviceView, levels: Iterable[Level], known: Known) -> list[Level]:
    return [level for level in levels if known.exceeded.get((device.name, level.name), 0) > device.budget_bytes]
