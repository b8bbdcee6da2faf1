"""One configured level for every device that it fits; the others sit out. What a fleet without control does."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.policy.fitting import Known, fitting
from coordinator.policy.types import Choice, Decision, Observation


@dataclass(frozen=True, slots=True)
class Fixed:
    """`level` is the level's name."""

    level: str

    def initial(self) -> Known:
        """Nothing was exceeded yet."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """The level, or nothing."""
        known = state.after(observation.answers)
        # What a device went over before excludes larger levels as well, so that all of them are looked at.
        fit = {device.name: fitting(device, observation.levels, known) for device in observation.devices}
        takes_part = (name for name, levels in fit.items() if self.level in {level.name for level in levels})
        return Decision({name: Choice(self.level) for name in takes_part}), known
