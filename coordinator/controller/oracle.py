"""What a policy could earn that sees the future: a search over whole rounds in the simulator, for a few devices.

It plays the world itself: hidden links, heat, other processes' memory, the tasks that will be lost. So it knows what no
policy can know, and what policies earn is to be seen beside it, not against it. For one round:

1. every joint decision over who takes part and with which level is simulated, at the configured codec and full power,
   the bandwidth split so that all finish together by the true costs;
2. the best of them are improved, one device's codec or power after the other, as long as that earns more.

For more rounds the `beam` decisions that earned most so far are carried on. What it bounds: for one round, codec and
power as configured and bandwidth split like this, nothing earns more. Over several rounds, and beside step 2, what it
finds is a lower bound of the optimum: a wider beam may find more, and a policy that it does not beat is a sign of that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from coordinator.controller import simulator
from coordinator.controller.reward import Weights, reward
from coordinator.controller.simulator import State, World
from coordinator.policy.sharing import equal_finish
from coordinator.policy.types import Choice, Decision, Level
from edge_sdk.wire.messages import DeltaCodec

Task: TypeAlias = tuple[str, Level, DeltaCodec, float]  # device, level, codec, power

MOST_DEVICES: Final = 4  # (levels + 1) to their power are simulated in each round
POWERS: Final = (1.0, 0.75, 0.5)
BEAM: Final = 3


@dataclass(frozen=True, slots=True)
class Found:
    """A way through the world: what it earned, the decisions, and the state that it led to."""

    reward: float
    decisions: tuple[Decision, ...]
    state: State


def search(world: World, weights: Weights, rounds: int, beam: int = BEAM) -> Found:
    """The best way that was found through the first `rounds`. Raises ValueError for more than `MOST_DEVICES`."""
    if len(world.population) > MOST_DEVICES:
        msg = f"the oracle searches fleets of at most {MOST_DEVICES} devices, this one has {len(world.population)}"
        raise ValueError(msg)
    ways = [Found(0.0, (), simulator.begin(world))]
    for _ in range(rounds):
        further = [way for before in ways for way in _best_rounds(world, weights, before, beam)]
        ways = sorted(further, key=lambda way: -way.reward)[:beam]
    return ways[0]


def _best_rounds(world: World, weights: Weights, before: Found, beam: int) -> list[Found]:
    """The best ways to go on from here, each improved."""
    found = [(tasks, _played(world, weights, before, tasks)) for tasks in _joint(world, before.state)]
    found.sort(key=lambda one: -one[1].reward)
    return [_improved(world, weights, before, *one) for one in found[:beam]]


def _joint(world: World, state: State) -> Iterator[tuple[Task, ...]]:
    """Every device out, or with a level for which it has the memory that it says."""
    options: list[list[Task | None]] = [
        [None]
        + [
            (view.name, level, world.profile.codecs[0], 1.0)
            for level in world.profile.levels
            if level.needs_bytes <= view.budget_bytes
        ]
        for view in simulator.observe(world, state).devices
    ]
    for joint in itertools.product(*options):
        yield tuple(task for task in joint if task is not None)


def _improved(world: World, weights: Weights, before: Found, tasks: tuple[Task, ...], best: Found) -> Found:
    """With other codecs and powers, one device after the other, until none earns more."""
    better = True
    while better:
        better = False
        for k, codec, power in itertools.product(range(len(tasks)), world.profile.codecs, POWERS):
            tried = (*tasks[:k], (*tasks[k][:2], codec, power), *tasks[k + 1 :])
            way = _played(world, weights, before, tried)
            if way.reward > best.reward:
                tasks, best, better = tried, way, True
    return best


def _played(world: World, weights: Weights, before: Found, tasks: tuple[Task, ...]) -> Found:
    decision = _decision(world, before.state, tasks)
    state, outcomes = simulator.step(world, before.state, decision)
    return Found(
        before.reward + reward(outcomes, world.scale, weights),
        (*before.decisions, decision),
        state,
    )


def _decision(world: World, state: State, tasks: tuple[Task, ...]) -> Decision:
    """With the bandwidth split by what each task truly costs."""
    if not tasks:
        return Decision({})
    index = [simulator.index_of(name) for name, *_ in tasks]
    slowness = world.population.slowness * np.where(state.hot, simulator.HOT, 1.0)
    wire_bytes = np.array([_wire_bytes(world, state, task) for task in tasks], float)
    compute_s = world.profile.steps * np.array([level.step_s / power for _, level, _, power in tasks]) * slowness[index]
    parts = equal_finish(wire_bytes, compute_s, world.bandwidth_bytes_s)
    return Decision(
        {
            name: Choice(level.name, codec, float(part), power)
            for (name, level, codec, power), part in zip(tasks, parts, strict=True)
        }
    )


def _wire_bytes(world: World, state: State, task: Task) -> int:
    name, level, codec, _ = task
    known = state.acquaintance.devices.get(name)
    lacks = world.fetching.lacks_bytes(level.name, known.holds if known else frozenset())
    return lacks + world.profile.adapter_bytes + level.upload_bytes[codec]
