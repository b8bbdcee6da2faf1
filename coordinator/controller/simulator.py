"""A run, simulated: `step(state, decision) -> (state, outcomes)`, pure; a policy sees of it what it sees in the daemon.

Rules:

- what goes over the wire, and when a round is over, is as in `coordinator.rounds`: a device that does not answer keeps
  its round open until the deadline, one that lacks memory says so at once, and what was fetched is kept;
- a device's rate is its link's, see `radio`, or its part of the station's bandwidth, whichever is less;
- what the world does in a round (who moves, fades, leaves, throttles, which data drift) is drawn from the seed and the
  round alone: two policies in the same fleet meet the same weather.

Not modelled: a second, smaller level for a device that declined within the same round, and joining late.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.controller import radio
from coordinator.controller.fleets import GROUPS, Conditions, Population
from coordinator.controller.learning import value
from coordinator.controller.profile import Profile
from coordinator.controller.reward import Outcomes, Scale
from coordinator.policy.acquaintance import Acquaintance
from coordinator.policy.arrays import Bools, Floats
from coordinator.policy.estimates import Fetching
from coordinator.policy.types import Answer, Choice, Decision, Observation, Outcome, Terms

OVERHEAD_S: Final = 2.0  # of a task, beside what it trains and sends: a worker starts, rows are made
DECLINE_S: Final = 3.0
HOT: Final = 2.0  # times slower
COOLS: Final = 0.3  # the chance that a hot board is cool again a round later
IDLE_HEAT: Final = 0.2  # beside that of a board that trained with all its threads
GOES_BACK: Final = 0.3  # of what was learned on a group whose data changed
FLAT_J: Final = 500.0  # a battery below it takes part in nothing
BETWEEN_S: Final = 60.0  # rounds; what the coordinator takes to aggregate and evaluate
RADIO_W: Final = 1.0  # of a board that sends or receives


@dataclass(frozen=True)
class World:
    """What does not change in a run. `stored` is whether devices keep the levels that they fetched; else a device has
    its last level alone. `bandwidth_bytes_s` is the station's, infinite for none.
    """

    profile: Profile
    population: Population
    conditions: Conditions
    seed: int
    rounds: int = 20
    deadline_s: float = 600.0
    bandwidth_bytes_s: float = 10e6
    stored: bool = True

    @property
    def scale(self) -> Scale:
        """What outcomes are measured by."""
        curve, largest = self.profile.curve, max(level.size_bytes for level in self.profile.levels)
        return Scale(curve.first - curve.floor, self.deadline_s, largest, len(self.population))

    @cached_property
    def fetching(self) -> Fetching:
        """What devices lack of levels."""
        return Fetching(self.profile.levels)


@dataclass(frozen=True, slots=True)
class State:
    """Where a run is: `round` is the next one's number. Arrays are of the population's devices."""

    round: int
    losses: Floats  # by group
    present: Bools
    places_m: Floats
    headings: Floats
    fades: Floats
    hot: Bools
    heat: Floats  # from 0 to 1: how hard the device worked in the last round
    taken: Floats  # share of the budget that something else has
    battery_j: Floats
    acquaintance: Acquaintance
    answers: tuple[Answer, ...] = ()

    @property
    def loss(self) -> float:
        """Held-out: the groups' mean."""
        return float(self.losses.mean())


def begin(world: World) -> State:
    """Before the first round."""
    count, rng = len(world.population), _lots(world, 0)
    state = State(
        round=0,
        losses=np.full(GROUPS, world.profile.curve.first),
        present=rng.uniform(0, 1, count) >= world.conditions.leave,
        places_m=world.population.places_m,
        headings=rng.uniform(0, 2 * np.pi, count),
        fades=np.ones(count),
        hot=np.zeros(count, dtype=bool),
        heat=np.zeros(count),
        taken=np.zeros(count),
        battery_j=world.population.battery_j,
        acquaintance=Acquaintance.of(world.profile.levels),
    )
    return _weather(world, state, 0.0)


def name_of(index: int) -> str:
    """A device's name."""
    return f"device-{index:04}"


def index_of(name: str) -> int:
    """The device's place in the population."""
    return int(name.removeprefix("device-"))


def observe(world: World, state: State) -> Observation:
    """What a policy is shown before the next round."""
    here = np.flatnonzero(state.present)
    said = world.population.budgets_bytes * (1 - state.taken)
    views = tuple(
        state.acquaintance.view(
            name_of(int(k)),
            int(said[k]),
            int(world.population.threads[k]),
            _charge(state.battery_j[k], world.population.battery_j[k]),
        )
        for k in here
    )
    return Observation(views, world.profile.levels, state.answers, views, terms(world, state))


def _charge(left_j: float, full_j: float) -> float:
    """The share of a battery that is left."""
    return 1.0 if math.isinf(full_j) else min(max(left_j / full_j, 0.0), 1.0)


def terms(world: World, state: State) -> Terms:
    """What holds for the next round's tasks."""
    return Terms(
        round=state.round,
        rounds=world.rounds,
        steps=world.profile.steps,
        deadline_s=world.deadline_s,
        bandwidth_bytes_s=0.0 if math.isinf(world.bandwidth_bytes_s) else world.bandwidth_bytes_s,
        adapter_bytes=world.profile.adapter_bytes,
        codecs=world.profile.codecs,
        loss=state.loss,
        first_loss=world.profile.curve.first,
    )


def step(world: World, state: State, decision: Decision) -> tuple[State, Outcomes]:
    """A round. Choices for devices that are not present, and for levels that there are not, mean nothing."""
    tasks = _tasks(world, state, decision)
    done = tasks.outcome == _DONE
    curve, population = world.profile.curve, world.population
    chosen = tasks.index[done]
    weights = population.examples[chosen]
    weights = weights / weights.sum() if len(chosen) else weights
    amounts = curve.amounts(weights, tasks.value[done], population.mixtures[chosen], world.profile.steps)
    losses = curve.after(state.losses, amounts)
    delay_s = float(tasks.ends_s.max(initial=0.0))
    outcomes = Outcomes(
        loss_before=state.loss,
        loss_after=float(losses.mean()),
        delay_s=delay_s,
        bytes=int(tasks.wire_bytes.sum()),
        exchanges=int((tasks.lacking > 0).sum()),
        energy_j=float(tasks.energy_j.sum()),
        violations=int((tasks.outcome == _OVER).sum()),
        asked=len(tasks.index),
        delivered=len(chosen),
    )
    answers = tuple(tasks.answers(world, state))
    battery_j = state.battery_j.copy()
    battery_j[tasks.index] -= tasks.energy_j
    heat = np.zeros(len(population))
    heat[tasks.index] = tasks.power**2
    after = dataclasses.replace(
        state,
        losses=losses,
        battery_j=battery_j,
        heat=heat,
        acquaintance=_acquainted(world, state.acquaintance, answers),
        answers=answers,
    )
    return _weather(world, after, delay_s), outcomes


_DONE, _OVER, _LOST = 0, 1, 2
_SAID: Final = {_DONE: Outcome.DONE, _OVER: Outcome.OVER_BUDGET, _LOST: Outcome.LOST}


@dataclass(frozen=True, slots=True)
class _Tasks:
    """A round's tasks, arrays of one an entry; `index` is the device's."""

    index: NDArray[np.intp]
    choices: tuple[Choice, ...]
    outcome: NDArray[np.int64]
    value: Floats
    needs: Floats
    actual: Floats
    lacking: Floats
    wire_bytes: Floats
    wire_s: Floats
    allowed: Floats
    step_s: Floats
    power: Floats
    ends_s: Floats
    energy_j: Floats

    def answers(self, world: World, state: State) -> list[Answer]:
        """What the devices say."""
        losses = world.population.mixtures[self.index] @ state.losses
        return [
            Answer(
                device=name_of(int(k)),
                level=choice.level,
                outcome=_SAID[int(self.outcome[i])],
                budget_bytes=int(self.actual[i]),
                bytes=int(self.needs[i]),
                wall_s=float(self.ends_s[i] - self.wire_s[i]),
                round=state.round,
                step_s=float(self.step_s[i]),
                power=float(self.power[i]),
                loss=float(losses[i]),
                examples=int(world.population.examples[k]),
                wire_bytes=int(self.wire_bytes[i]) if self.outcome[i] == _DONE else 0,
                wire_s=float(self.wire_s[i]) if self.outcome[i] == _DONE else 0.0,
                allowed_bytes_s=float(self.allowed[i]),
                beside_s=OVERHEAD_S,
            )
            for i, (k, choice) in enumerate(zip(self.index, self.choices, strict=True))
        ]


def _tasks(world: World, state: State, decision: Decision) -> _Tasks:
    """How each device fares."""
    profile, population = world.profile, world.population
    levels = {level.name: level for level in profile.levels}
    given = [
        (index_of(name), choice)
        for name, choice in sorted(decision.choices.items())
        if choice.level in levels and state.present[index_of(name)]
    ]
    index = np.array([k for k, _ in given], dtype=np.intp)
    choices = tuple(choice for _, choice in given)
    of = [levels[choice.level] for choice in choices]
    codecs = [choice.codec or profile.codecs[0] for choice in choices]
    lacking = np.array([_lacks(world, state, k, choice) for k, choice in given], dtype=float)
    up = np.array([level.upload_bytes[codec] for level, codec in zip(of, codecs, strict=True)], dtype=float)
    shares = np.array([choice.share for choice in choices], dtype=float)
    allowed = world.bandwidth_bytes_s * shares / shares.sum() if given else shares
    down_rate, up_rate = (np.minimum(rate[index], allowed) for rate in rates(world, state))
    threads = population.threads[index]
    power = np.maximum(1, np.round(threads * [choice.power for choice in choices])) / threads  # of whole threads
    slowness = population.slowness[index] * np.where(state.hot[index], HOT, 1.0)
    step_s = np.array([level.step_s for level in of], dtype=float) * slowness / power

    lots = _lots(world, state.round, 1).uniform(0, 1, (len(population), 2))[index]
    # What else takes memory may come between what a device said and when it trains.
    sudden = np.where(lots[:, 0] < world.conditions.taken / 2, 0.3, 0.0)
    actual = population.budgets_bytes[index] * (1 - np.minimum(state.taken[index] + sudden, 0.9))
    needs = np.array([level.needs_bytes for level in of], dtype=float)
    down_s = (lacking + profile.adapter_bytes) / down_rate
    compute_s = profile.steps * step_s + OVERHEAD_S
    wire_s = down_s + up / up_rate
    takes_s = wire_s + compute_s
    over, lost = needs > actual, (lots[:, 1] < population.losing[index]) | (takes_s > world.deadline_s)
    outcome = np.where(over, _OVER, np.where(lost, _LOST, _DONE))
    ends_s = np.where(over, DECLINE_S, np.where(lost, world.deadline_s, takes_s))
    works_s = np.where(over, 0.0, np.minimum(compute_s, world.deadline_s))
    # Dynamic power goes with the square of the share of threads: between their number and what a slower clock saves.
    watts = population.idle_w[index] + (population.busy_w - population.idle_w)[index] * power**2
    energy_j = np.where(over, 0.0, watts * works_s + RADIO_W * np.minimum(wire_s, world.deadline_s))
    return _Tasks(
        index=index,
        choices=choices,
        outcome=outcome,
        value=np.array(
            [value(profile.curve, level.quality, codec) for level, codec in zip(of, codecs, strict=True)], dtype=float
        ),
        needs=needs,
        actual=actual,
        lacking=np.where(over, 0.0, lacking),
        wire_bytes=np.where(over, 0.0, lacking + profile.adapter_bytes + np.where(lost, 0.0, up)),
        wire_s=wire_s,
        allowed=allowed,
        step_s=step_s,
        power=power,
        ends_s=ends_s,
        energy_j=energy_j,
    )


def rates(world: World, state: State) -> tuple[Floats, Floats]:
    """Bytes per second of every device's link, down and up."""
    population = world.population
    gains = radio.gain(np.hypot(*state.places_m.T), population.shadows_db, state.fades)
    return (
        radio.rate_bytes_s(population.widths_hz, radio.DOWN_W, gains),
        radio.rate_bytes_s(population.widths_hz, radio.UP_W, gains),
    )


def _lacks(world: World, state: State, index: int, choice: Choice) -> int:
    return world.fetching.lacks_bytes(choice.level, state.acquaintance.holds(name_of(index)))


def _acquainted(world: World, acquaintance: Acquaintance, answers: tuple[Answer, ...]) -> Acquaintance:
    known = acquaintance.after(answers)
    if world.stored:
        return known
    devices = {
        name: dataclasses.replace(one, holds=one.holds & {one.last_level}) for name, one in known.devices.items()
    }
    return dataclasses.replace(known, devices=devices)


def _weather(world: World, state: State, delay_s: float) -> State:
    """The world moves on to the next round."""
    conditions, population, number = world.conditions, world.population, state.round + 1
    rng, count = _lots(world, number), len(population)
    lots = rng.uniform(0, 1, (5, count))
    headings = state.headings + rng.normal(0, 0.5, count)
    places = state.places_m + conditions.speed_m * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    far = np.hypot(*places.T) > _EDGE_M
    headings = np.where(far, np.arctan2(-places[:, 1], -places[:, 0]), headings)
    faded = rng.exponential(1.0, count)
    hot = np.where(state.hot, lots[1] >= COOLS, lots[1] < conditions.throttle * np.maximum(state.heat, IDLE_HEAT))
    came = np.where(state.present, lots[0] >= conditions.leave, lots[0] < conditions.return_)
    charged = np.minimum(state.battery_j + population.charge_w * (delay_s + BETWEEN_S), population.battery_j)
    drifts = rng.uniform(0, 1, GROUPS) < conditions.drift
    losses = state.losses + np.where(drifts, GOES_BACK * (world.profile.curve.first - state.losses), 0.0)
    return dataclasses.replace(
        state,
        round=number,
        losses=losses,
        present=came & (charged >= FLAT_J),
        places_m=places,
        headings=headings,
        fades=(1 - conditions.fading) + conditions.fading * faded,
        hot=hot,
        taken=np.where(lots[2] < conditions.taken, 0.5 * lots[3], 0.0),
        battery_j=charged,
    )


_EDGE_M: Final = 500.0


def _lots(world: World, round_: int, of: int = 0) -> np.random.Generator:
    return np.random.default_rng([world.seed, round_, of])
