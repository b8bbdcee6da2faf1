"""The simulated run as a gymnasium environment, for whoever trains policies; `fedpeat/Fleet-v0` once registered.

An observation is what `coordinator.policy.features` makes of what the daemon would see, in SLOTS places of which
`here` says which are taken; an action four numbers for each place, see `coordinator.policy.actions`; an episode a run
of some rounds. `action_masks` says what may be chosen: a place that is not taken sits out, and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from coordinator.controller import simulator
from coordinator.controller.profile import Profile, load_profile
from coordinator.controller.reward import Weights, reward
from coordinator.controller.simulator import State, World
from coordinator.controller.worlds import MOST, MOST_LEVELS, training_world
from coordinator.policy.actions import BESIDE, CODEC, LEVEL, POWER, SHARE, actions_of, decision_of, masks
from coordinator.policy.features import LIMIT, OF_DEVICE, OF_FLEET, OF_PAIR, Features, features
from coordinator.policy.fitting import Known
from coordinator.policy.types import Decision, Observation

ID: Final = "fedpeat/Fleet-v0"
SLOTS: Final = MOST
WIDTHS: Final = (1 + MOST_LEVELS, *BESIDE)  # choices of each branch
Observed: TypeAlias = dict[str, NDArray[np.float32]]
Draw: TypeAlias = Callable[[np.random.Generator], World]


class FleetEnv(gymnasium.Env[dict[str, Any], NDArray[np.int64]]):
    """See the module. `draw` gives the world of an episode, by default any that the shipped profile may be like."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own type

    def __init__(
        self,
        draw: Draw | None = None,
        weights: Weights | None = None,
        profile: Profile | None = None,
        *,
        masked: bool = True,
    ) -> None:
        """Without `masked`, a level that does not fit may be chosen, and is punished as it then fails."""
        profile = profile or load_profile()
        self._draw: Draw = draw or (lambda rng: training_world(profile, rng))
        self._weights, self._masked = weights or Weights(), masked
        self.observation_space = spaces.Dict(
            {
                "devices": spaces.Box(-LIMIT, LIMIT, (SLOTS, len(OF_DEVICE)), np.float32),
                "pairs": spaces.Box(-LIMIT, LIMIT, (SLOTS, MOST_LEVELS, len(OF_PAIR)), np.float32),
                "fleet": spaces.Box(-LIMIT, LIMIT, (len(OF_FLEET),), np.float32),
                "here": spaces.Box(0, 1, (SLOTS,), np.float32),
            }
        )
        self.action_space = spaces.MultiDiscrete(np.tile(WIDTHS, (SLOTS, 1)).ravel())
        self._world: World
        self._state: State
        self._known: Known
        self._seen: Observation
        self._features: Features | None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Begin a run in another world."""
        super().reset(seed=seed, options=options)
        self._world = self._draw(self.np_random)
        self._state, self._known = simulator.begin(self._world), Known()
        return self._observe(), {}

    def step(self, action: NDArray[np.int64]) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        """A round."""
        self._state, outcomes = simulator.step(self._world, self._state, self._decision(np.asarray(action)))
        earned = reward(outcomes, self._world.scale, self._weights)
        over = self._state.round > self._world.rounds
        return self._observe(), earned, over, False, {"outcomes": outcomes}

    def action_masks(self) -> NDArray[np.bool_]:
        """What may be chosen, flat: by place, by branch."""
        allowed = [np.zeros((SLOTS, width), dtype=np.bool_) for width in WIDTHS]
        allowed[LEVEL][:, 0] = True
        for branch in (CODEC, SHARE, POWER):
            allowed[branch][:, 0] = True
        if self._features is not None:
            levels, codecs, shares = masks(self._seen, self._features)
            count = len(levels)
            if not self._masked:
                levels = np.ones_like(levels)
            allowed[LEVEL][:count, : levels.shape[1]] = levels
            allowed[CODEC][:count] = codecs
            allowed[SHARE][:count] = shares
            allowed[POWER][:count] = True
        return np.concatenate(allowed, axis=1).ravel()

    @property
    def world(self) -> World:
        """That of this episode."""
        return self._world

    @property
    def observation(self) -> Observation:
        """What a policy sees that is no network."""
        return self._seen

    def quickness(self, place: int, level: int) -> float:
        """How long the device in that place trains at that level, as far as is known."""
        return float(self._features.compute_s[place, level]) if self._features is not None else 0.0

    def action_of(self, decision: Decision) -> NDArray[np.int64]:
        """The nearest action to another policy's decision; its shares become those with which all finish together."""
        action = np.zeros((SLOTS, len(WIDTHS)), dtype=np.int64)
        if self._features is not None:
            actions = actions_of(decision, self._seen)
            actions[~_may(actions, self._features), LEVEL] = 0
            action[: len(actions)] = actions
        return action.ravel()

    def _decision(self, action: NDArray[np.int64]) -> Decision:
        if self._features is None:
            return Decision({})
        actions = action.reshape(SLOTS, len(WIDTHS))[: len(self._seen.devices)].copy()
        unknown = actions[:, LEVEL] > len(self._seen.levels)
        actions[unknown, LEVEL] = 0
        if self._masked:
            actions[~_may(actions, self._features), LEVEL] = 0
        return decision_of(actions, self._seen, self._features)

    def _observe(self) -> Observed:
        self._seen = simulator.observe(self._world, self._state)
        self._known = self._known.after(self._seen.answers)
        devices = np.zeros((SLOTS, len(OF_DEVICE)), np.float32)
        pairs = np.zeros((SLOTS, MOST_LEVELS, len(OF_PAIR)), np.float32)
        here = np.zeros(SLOTS, np.float32)
        if not self._seen.devices:
            self._features = None
            return {"devices": devices, "pairs": pairs, "fleet": np.zeros(len(OF_FLEET), np.float32), "here": here}
        people_power = self._world.profile.curve.people_power
        found = features(self._seen, self._known, self._world.fetching, people_power)
        count, levels = found.fits.shape
        devices[:count], pairs[:count, :levels], here[:count] = found.devices, found.pairs, 1.0
        self._features = found
        return {"devices": devices, "pairs": pairs, "fleet": found.fleet, "here": here}


def _may(actions: NDArray[np.int64], found: Features) -> NDArray[np.bool_]:
    """Whose level fits."""
    return found.fits[np.arange(len(actions)), np.maximum(actions[:, LEVEL] - 1, 0)]


def register() -> None:
    """Let `gymnasium.make(ID)` find it."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=f"{FleetEnv.__module__}:{FleetEnv.__name__}")
