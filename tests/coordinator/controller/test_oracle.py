"""The search that sees the future."""

from __future__ import annotations

import pytest

from coordinator.controller import simulator, worlds
from coordinator.controller.fleets import SCENARIOS
from coordinator.controller.oracle import search
from coordinator.controller.profile import load_profile
from coordinator.controller.reward import Weights, reward
from coordinator.policy.registry import KINDS, policy_of
from coordinator.policy.settings import PolicyConfig

PROFILE = load_profile()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_policy_earns_more_in_a_round(seed: int) -> None:
    """In the first round of a world no baseline earns more than the search, which sees what they cannot."""
    world = worlds.world(PROFILE, 2, SCENARIOS["everything"], (5, seed))
    best = search(world, Weights(), 1)
    state = simulator.begin(world)
    for name in KINDS:
        policy = policy_of(PolicyConfig(name=name, level=PROFILE.levels[0].name))
        decision, _ = policy.decide(simulator.observe(world, state), policy.initial())
        _, outcomes = simulator.step(world, state, decision)
        assert reward(outcomes, world.scale, Weights()) <= best.reward + 1e-9


def test_what_it_found_is_what_the_simulator_says() -> None:
    """Its decisions, played again, earn what it said."""
    world, weights = worlds.world(PROFILE, 2, SCENARIOS["fading"], (5, 4)), Weights()
    best, state, earned = search(world, weights, 3, beam=2), simulator.begin(world), 0.0
    for decision in best.decisions:
        state, outcomes = simulator.step(world, state, decision)
        earned += reward(outcomes, world.scale, weights)
    assert earned == pytest.approx(best.reward)
    assert len(best.decisions) == 3


def test_large_fleets_are_refused() -> None:
    """The number of joint decisions grows with a power of the devices."""
    with pytest.raises(ValueError, match="at most 4 devices"):
        search(worlds.world(PROFILE, 5, SCENARIOS["stationary"], (5, 5)), Weights(), 1)
