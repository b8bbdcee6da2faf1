"""The policy that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from coordinator.policy.caff import Caff
from coordinator.policy.fastest_that_fits import FastestThatFits
from coordinator.policy.fixed import Fixed
from coordinator.policy.kkt import Kkt
from coordinator.policy.lagrangian import Lagrangian
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.learned import PolicyFileError, learned
from coordinator.policy.random import Random
from coordinator.policy.round_robin import RoundRobin
from coordinator.policy.settings import SETTINGS, PolicyConfig, PolicyName
from coordinator.policy.types import Policy
from coordinator.policy.ucb import Ucb

KINDS: Final[Mapping[PolicyName, Callable[..., Policy[Any]]]] = {
    PolicyName.LARGEST_THAT_FITS: LargestThatFits,
    PolicyName.FASTEST_THAT_FITS: FastestThatFits,
    PolicyName.FIXED: Fixed,
    PolicyName.RANDOM: Random,
    PolicyName.ROUND_ROBIN: RoundRobin,
    PolicyName.CAFF: Caff,
    PolicyName.UCB: Ucb,
    PolicyName.LAGRANGIAN: Lagrangian,
    PolicyName.KKT: Kkt,
    PolicyName.PPO: learned,
}


def policy_of(config: PolicyConfig) -> Policy[Any]:
    """The policy, with its settings: its fields are called as they are. Raises PolicyFileError for a learned one."""
    return KINDS[config.name](**{setting: getattr(config, setting) for setting in SETTINGS.get(config.name, ())})


def policy_or_greedy(config: PolicyConfig, say: Callable[[str], None]) -> Policy[Any]:
    """The policy; where its file is missing or of another version, the greedy one, which is said: rounds go on."""
    try:
        return policy_of(config)
    except PolicyFileError as error:
        say(f"{error}; deciding by {PolicyName.FASTEST_THAT_FITS.value} in its place")
        return FastestThatFits()
