"""Policies beside each other: the same fleets, the same weather, the same reward, none of it seen in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from coordinator.controller.evaluation import Mean, Played, average, mean_of, play
from coordinator.controller.fleets import SCENARIOS
from coordinator.controller.profile import Profile
from coordinator.controller.reward import Weights
from coordinator.controller.simulator import World
from coordinator.controller.worlds import JUDGING, world
from coordinator.errors import ConfigError
from coordinator.policy.types import Policy

Make: TypeAlias = Callable[[World], Policy[Any]]


@dataclass(frozen=True, slots=True)
class Cell:
    """A policy in a scenario: the reward's mean over seeds with its interval, and the means of all figures."""

    policy: str
    scenario: str
    reward: Mean
    figures: Played
    rewards: tuple[float, ...]  # by seed


def scenarios(named: str = "") -> tuple[str, ...]:
    """All of them, or the one that is named. Raises ConfigError for one that there is not."""
    if named and named not in SCENARIOS:
        msg = f"there is no scenario {named!r}; there are: {', '.join(SCENARIOS)}"
        raise ConfigError(msg)
    return (named,) if named else tuple(SCENARIOS)


def compare(
    profile: Profile,
    policies: Mapping[str, Make],
    weights: Weights,
    devices: int,
    seeds: Iterable[int],
    named: Sequence[str],
    *,
    fleets: int = 4,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Cell]:
    """Every policy in every scenario of `named`: `fleets` fleets of `devices` devices for each seed.

    Every second fleet has another ladder and learns in another way than the profile, as in training.
    """
    seeds, found = tuple(seeds), []
    for scenario in named:
        worlds = [
            [
                world(profile, devices, SCENARIOS[scenario], (JUDGING, seed, fleet, devices), varied=fleet % 2 > 0)
                for fleet in range(fleets)
            ]
            for seed in seeds
        ]
        for name, make in policies.items():
            runs = [[play(one, make(one), weights) for one in row] for row in worlds]
            rewards = tuple(average(row).reward for row in runs)
            figures = average(run for row in runs for run in row)
            found.append(Cell(name, scenario, mean_of(rewards), figures, rewards))
            say(line(found[-1]))
    return found


def line(cell: Cell) -> str:
    """For people."""
    figures = cell.figures
    return (
        f"{cell.scenario:12} {cell.policy:18} reward {cell.reward.mean:7.3f} ± {cell.reward.half:.3f}  "
        f"{figures.loss:4.0%} of the gap left  perplexity {figures.perplexity:8.2f}  {figures.delay_s / 60:6.1f} min  "
        f"{figures.bytes / 1e9:6.2f} GB  {figures.exchanges:5.1f} exchanges  {figures.violations:4.1f} over memory"
    )
