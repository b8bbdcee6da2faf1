"""The best level that fits each device's budget, best first as configured. See `fitting` for what fits."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.policy.fitting import Known, fitting, last_resort
from coordinator.policy.types import Choice, Decision, Observation


@dataclass(frozen=True, slots=True)
class LargestThatFits:
    """See the module."""

    def initial(self) -> Known:
        """Nothing was exceeded yet."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """The best level that fits each device, or the smallest where that was never tried."""
        known, levels = state.after(observation.answers), observation.levels
        chosen = {
            device.name: next(iter(fitting(device, levels, known)), None) or last_resort(device, levels, known)
            for device in observation.devices
        }
        return Decision({name: Choice(level.name) for name, level in chosen.items() if level is not None}), known
