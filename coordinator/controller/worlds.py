"""Worlds to train and to judge in: profiles, fleets and scenarios by lot. Seeds of judging are never those of training.

Training sees a few devices, MOST at most, and ladders that are spread around the measured one: a policy must serve
other ladders than the one that it was trained on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.controller.fleets import SCENARIOS, Conditions, draw
from coordinator.controller.profile import Profile
from coordinator.controller.simulator import World
from coordinator.policy.types import Level

LEAST, MOST = 4, 16  # devices in training
MOST_LEVELS: Final = 6
TRAINING, JUDGING = 1, 2  # the first number of a seed: what is judged was never trained on
ROUNDS: Final = 20
VARIED: Final = 0.7  # of the worlds in training have another ladder than the profile's
CHOOSING: Final = 3  # the first number of the seeds of the worlds by which the best of a training is chosen
CHOSEN_BY: Final = 4  # of them of each scenario


@dataclass(frozen=True)
class Grounds:
    """Where a policy is trained: the worlds that are drawn, and those that the best is chosen by."""

    profile: Profile
    draw: Callable[[np.random.Generator], World]
    chosen_by: tuple[World, ...]


def around(profile: Profile) -> Grounds:
    """Any fleet that a ladder like this one may serve."""
    return Grounds(
        profile,
        lambda rng: training_world(profile, rng),
        tuple(
            world(profile, 8, scenario, (CHOOSING, k, i), varied=k > 0)
            for i, scenario in enumerate(SCENARIOS.values())
            for k in range(CHOSEN_BY)
        ),
    )


def world(
    profile: Profile,
    count: int,
    scenario: Conditions,
    seed: Sequence[int],
    *,
    varied: bool = False,
    stored: bool = True,
) -> World:
    """The fleet of that seed, of `count` devices; with a `varied` profile."""
    rng = np.random.default_rng(seed)
    population = draw(count, rng)
    profile = vary(profile, rng) if varied else profile
    largest_s = max(level.step_s for level in profile.levels) * profile.steps
    deadline_s = float(largest_s * 12 + 200) * rng.uniform(0.7, 1.5)
    bandwidth = count * 1e6 * math.exp(rng.uniform(-1.0, 1.5))  # from a third to four times a megabyte per second each
    return World(
        profile=profile if stored else apart(profile),
        population=population,
        conditions=scenario,
        seed=int(rng.integers(1 << 31)),
        rounds=ROUNDS,
        deadline_s=deadline_s,
        bandwidth_bytes_s=bandwidth,
        stored=stored,
    )


def training_world(profile: Profile, rng: np.random.Generator) -> World:
    """Any fleet, any ladder, any scenario."""
    scenarios = tuple(SCENARIOS.values())
    scenario = scenarios[rng.integers(len(scenarios))]
    seed = (TRAINING, int(rng.integers(1 << 31)))
    return world(profile, int(rng.integers(LEAST, MOST + 1)), scenario, seed, varied=bool(rng.uniform() < VARIED))


def vary(profile: Profile, rng: np.random.Generator) -> Profile:
    """A ladder like the measured one, of another model: larger or smaller, slower, with other qualities."""
    size, needs = math.exp(rng.uniform(-1.2, 0.8)), math.exp(rng.uniform(-0.5, 1.5))
    slower, kept = math.exp(rng.uniform(-1.0, 0.7)), _some(profile.levels, rng)
    curve = profile.curve
    return dataclasses.replace(
        profile,
        levels=tuple(_varied(level, size, needs, slower, rng) for level in kept),
        steps=int(rng.choice([5, 10, 20, 40])),
        curve=dataclasses.replace(
            curve,
            speed=curve.speed * math.exp(rng.uniform(-1.5, 0.3)),
            transfer=float(rng.uniform(0.2, 0.9)),
            onset=float(rng.uniform(0.3, 1.4)),
            people_power=float(rng.uniform(0.0, 0.4)),
        ),
    )


def apart(profile: Profile) -> Profile:
    """The same ladder where no two levels have a file in common: whole emulators are exchanged."""
    levels = tuple(dataclasses.replace(level, files={level.name: level.size_bytes}) for level in profile.levels)
    return dataclasses.replace(profile, levels=levels)


def _some(levels: tuple[Level, ...], rng: np.random.Generator) -> tuple[Level, ...]:
    count = int(rng.integers(min(2, len(levels)), min(len(levels), MOST_LEVELS) + 1))
    return tuple(levels[k] for k in sorted(rng.choice(len(levels), size=count, replace=False)))


def _varied(level: Level, size: float, needs: float, slower: float, rng: np.random.Generator) -> Level:
    files = {name: int(bytes_ * size) for name, bytes_ in level.files.items()}
    needs_bytes = level.needs_bytes * needs * (level.size_bytes / 150e6) ** rng.uniform(0, 0.4)
    return dataclasses.replace(
        level,
        files=files,
        size_bytes=sum(files.values()),
        needs_bytes=int(needs_bytes),
        step_s=level.step_s * slower * math.exp(0.2 * rng.standard_normal()),
        quality=float(np.clip(level.quality * math.exp(0.15 * rng.standard_normal()), 0.05, 1.0)),
    )
