"""For each device the level that fits it and of which a task is done soonest: greedy, and what is left to fall back on.

How long a task takes is estimated as in `estimates`, each device having an equal part of the bandwidth. Of levels that
take as long the best is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.policy.costs import Costs
from coordinator.policy.fitting import Known
from coordinator.policy.types import Choice, Decision, Observation


@dataclass(frozen=True, slots=True)
class FastestThatFits:
    """See the module."""

    def initial(self) -> Known:
        """Nothing was exceeded yet."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """The fastest level that each device may get."""
        known = state.after(observation.answers)
        costs = Costs.of(observation, known)
        if not costs.allowed.any():
            return Decision({}), known
        seconds = np.where(costs.allowed, costs.task_s(1 / len(costs.devices))[:, :, 0], np.inf)
        choices = {
            device.name: Choice(costs.levels[row.argmin()].name)
            for device, row in zip(costs.devices, seconds, strict=True)
            if np.isfinite(row).any()
        }
        return Decision(choices), known
