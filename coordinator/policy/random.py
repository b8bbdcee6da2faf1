"""By lot: each device takes part with probability 1/2, with a level that it may get, a codec, a share and a power.

Levels and codecs are equally likely, share and power uniform above 0 to 1. Somebody always takes part where anybody
could: if the lot leaves out all, the one that was nearest to being in. What every other policy has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from coordinator.policy.fitting import Known, may_get
from coordinator.policy.types import Choice, Decision, Observation

TAKES_PART = 0.5


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is known of fitting, and how many decisions were drawn: each has a generator of its own."""

    known: Known = field(default_factory=Known)
    decisions: int = 0


@dataclass(frozen=True, slots=True)
class Random:
    """See the module; from one `seed` come the same decisions."""

    seed: int = 0

    def initial(self) -> Drawn:
        """Nothing was drawn yet."""
        return Drawn()

    def decide(self, observation: Observation, state: Drawn) -> tuple[Decision, Drawn]:
        """By lot, see the module."""
        known, terms = state.known.after(observation.answers), observation.terms
        chance = np.random.default_rng((self.seed, state.decisions))
        after = Drawn(known, state.decisions + 1)
        allowed = may_get(observation.devices, observation.levels, known)
        lots = np.where(allowed.any(axis=1), chance.random(len(allowed)), np.inf)
        if not np.isfinite(lots).any():
            return Decision({}), after
        choices = {}
        for row in np.flatnonzero(lots <= max(TAKES_PART, lots.min())):
            level = observation.levels[chance.choice(np.flatnonzero(allowed[row]))]
            codec = terms.codecs[chance.integers(len(terms.codecs))] if terms.codecs else None
            share, power = 1 - chance.random(2)  # of [0, 1)
            choices[observation.devices[row].name] = Choice(level.name, codec, float(share), float(power))
        return Decision(choices), after
