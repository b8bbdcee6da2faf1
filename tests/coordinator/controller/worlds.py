"""Small worlds for tests."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from coordinator.controller.fleets import SCENARIOS, Conditions, draw
from coordinator.controller.profile import load_profile
from coordinator.controller.simulator import World

PROFILE = load_profile(pathlib.Path(__file__).with_name("profile.json"))


def small_world(count: int = 4, conditions: Conditions | None = None, seed: int = 0, *, stored: bool = True) -> World:
    """A fleet whose devices lose nothing and have room for every level, on the mains."""
    population = dataclasses.replace(
        draw(count, np.random.default_rng(seed)),
        losing=np.zeros(count),
        budgets_bytes=np.full(count, 1e9),
        battery_j=np.full(count, np.inf),
    )
    conditions = SCENARIOS["stationary"] if conditions is None else conditions
    return World(PROFILE, population, conditions, seed, rounds=5, deadline_s=1e5, bandwidth_bytes_s=4e6, stored=stored)
