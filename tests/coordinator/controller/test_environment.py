"""The environment keeps gymnasium's rules, and its actions mean what the daemon's decisions mean."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from coordinator.controller.environment import ID, SLOTS, WIDTHS, FleetEnv, register
from coordinator.controller.worlds import training_world
from tests.coordinator.controller.worlds import PROFILE, small_world


def drawn(env: FleetEnv, rng: np.random.Generator) -> NDArray[np.int64]:
    """An action by lot, of those that are allowed."""
    rows = env.action_masks().reshape(SLOTS, -1)
    edges = np.cumsum([0, *WIDTHS])
    return np.array([rng.choice(np.flatnonzero(row[a:b])) for row in rows for a, b in itertools.pairwise(edges)])


def test_gymnasium_finds_nothing_wrong() -> None:
    """Its checker passes, and the environment can be made by its registered name."""
    register()
    check_env(gymnasium.make(ID).unwrapped, skip_render_check=True)


def test_an_episode_has_as_many_rounds_as_its_run() -> None:
    """And every observation is in its space, whatever is chosen."""
    env, rng = FleetEnv(), np.random.default_rng(0)
    for seed in range(4):
        env.reset(seed=seed)
        rounds, over = 0, False
        while not over:
            observed, reward, over, _, _ = env.step(drawn(env, rng))
            assert env.observation_space.contains(observed)
            assert np.isfinite(reward)
            rounds += 1
        assert rounds == env._world.rounds


def test_what_does_not_fit_is_masked() -> None:
    """No level that is over the budget, no place without a device; every branch always has a choice."""
    env = FleetEnv(lambda rng: training_world(PROFILE, rng))
    for seed in range(10):
        observed, _ = env.reset(seed=seed)
        rows = env.action_masks().reshape(SLOTS, -1)
        assert rows[:, 0].all()
        assert not rows[observed["here"] == 0, 1 : WIDTHS[0]].any()
        for k, device in enumerate(env._seen.devices):
            fits = [level.needs_bytes <= device.budget_bytes for level in env._seen.levels]
            assert rows[k, 1 : 1 + len(fits)].tolist() == fits
        edges = np.cumsum([0, *WIDTHS])
        assert all(rows[:, a:b].any(axis=1).all() for a, b in itertools.pairwise(edges))


def test_a_masked_action_does_nothing_all_the_same() -> None:
    """Whoever ignores the masks gets no more devices over their memory than the weather takes there."""
    env = FleetEnv(lambda _rng: small_world())
    env.reset(seed=0)
    beyond = np.tile([WIDTHS[0] - 1, 0, 0, 0], SLOTS)
    _, _, _, _, info = env.step(beyond)
    assert info["outcomes"].asked == 0  # there are fewer levels than that
