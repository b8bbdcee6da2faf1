"""The devices in turn, so many a round, each with the best level that fits it.

The turn is with those that had theirs longest ago, by name where several are equal; a device that no level fits has no
turn. Of n devices of which k take part each waits at most ceil(n / k) rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.policy.fitting import Known, may_get
from coordinator.policy.types import NEVER, Choice, Decision, Observation


@dataclass(frozen=True, slots=True)
class Turns:
    """What is known of fitting, and the round of each device's last turn."""

    known: Known = field(default_factory=Known)
    last: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """`participants` is how many take part in a round; 0: half of those that are there."""

    participants: int = 0

    def initial(self) -> Turns:
        """Nobody had a turn yet."""
        return Turns()

    def decide(self, observation: Observation, state: Turns) -> tuple[Decision, Turns]:
        """Those whose turn it is."""
        known, last = state.known.after(observation.answers), dict(state.last)
        for answer in observation.answers:
            last[answer.device] = max(last.get(answer.device, NEVER), answer.round)
        allowed = may_get(observation.devices, observation.levels, known)
        best = {
            device.name: observation.levels[row.argmax()].name
            for device, row in zip(observation.devices, allowed, strict=True)
            if row.any()
        }
        places = self.participants or math.ceil(len(best) / 2)
        turn = sorted(best, key=lambda name: (last.get(name, NEVER), name))[:places]
        last |= dict.fromkeys(turn, observation.terms.round)
        return Decision({name: Choice(best[name]) for name in turn}), Turns(known, last)
