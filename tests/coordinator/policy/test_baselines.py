"""The law of each simple policy: fixed, random, round-robin, fastest-that-fits."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.estimates import Estimates
from coordinator.policy.fastest_that_fits import FastestThatFits
from coordinator.policy.fitting import Known, fitting, last_resort, may_get
from coordinator.policy.fixed import Fixed
from coordinator.policy.random import Random
from coordinator.policy.round_robin import RoundRobin
from coordinator.policy.types import Answer, Decision, DeviceView, Level, Observation, Outcome, Terms
from edge_sdk.wire.messages import DeltaCodec
from tests.coordinator.policy.observations import observations

LEVELS = (
    Level("large", 300, 50, step_s=0.4),
    Level("middle", 200, 20, step_s=0.3),
    Level("small", 100, 10, step_s=0.1),
)
FLEET = tuple(DeviceView(name, 300) for name in "abcdefg")


def seen(*devices: DeviceView, round_: int = 1, terms: Terms | None = None) -> Observation:
    """These devices, in this round."""
    return Observation(devices, LEVELS, (), devices, dataclasses.replace(terms or Terms(), round=round_))


@given(observations())
def test_many_devices_at_once_get_what_each_would_get(observation: Observation) -> None:
    """`may_get` is `fitting`, or the last resort where nothing fits, device by device."""
    known = Known().after(observation.answers)
    table = may_get(observation.devices, observation.levels, known)
    for device, row in zip(observation.devices, table, strict=True):
        fit = fitting(device, observation.levels, known) or (last_resort(device, observation.levels, known),)
        assert [level for level, may in zip(observation.levels, row, strict=True) if may] == [x for x in fit if x]


def test_fixed_is_one_level_or_nothing() -> None:
    """Who has less memory than the level needs sits out, as does everybody where there is no such level."""
    observation = seen(DeviceView("a", 300), DeviceView("b", 199), DeviceView("c", 200))
    decision, _ = Fixed("middle").decide(observation, Known())
    assert {name: choice.level for name, choice in decision.choices.items()} == {"a": "middle", "c": "middle"}
    assert Fixed("other").decide(observation, Known())[0] == Decision({})


@given(observations())
def test_fixed_gives_no_other_level(observation: Observation) -> None:
    """Whatever was said before, a device gets the level if it is among those that fit, and else nothing."""
    known = Known().after(observation.answers)
    decision, _ = Fixed("int8").decide(observation, Known())
    fit = [d.name for d in observation.devices if "int8" in {x.name for x in fitting(d, observation.levels, known)}]
    assert {name: choice.level for name, choice in decision.choices.items()} == dict.fromkeys(fit, "int8")


def drawn(seed: int, rounds: int) -> list[Decision]:
    """The decisions of a run."""
    policy, found = Random(seed), []
    state, terms = policy.initial(), Terms(codecs=tuple(DeltaCodec))
    for round_ in range(1, rounds + 1):
        decision, state = policy.decide(seen(*FLEET, round_=round_, terms=terms), state)
        found.append(decision)
    return found


def test_a_seed_is_a_run() -> None:
    """The same seed draws the same run; another one, and every round, something else."""
    assert drawn(7, 5) == drawn(7, 5)
    assert drawn(7, 5) != drawn(8, 5)
    assert len({str(decision) for decision in drawn(7, 5)}) == 5


def test_the_lot_is_fair() -> None:
    """Over 400 rounds of 7 devices: half take part (within four standard errors), and all levels and codecs occur."""
    choices = [choice for decision in drawn(3, 400) for choice in decision.choices.values()]
    assert abs(len(choices) - 1400) < 4 * math.sqrt(2800 / 4)
    assert {choice.level for choice in choices} == {level.name for level in LEVELS}
    assert {choice.codec for choice in choices} == set(DeltaCodec)


def test_somebody_always_takes_part() -> None:
    """An empty round would be repeated without end: of a single device the lot is always in."""
    policy = Random()
    state = policy.initial()
    for _ in range(50):
        decision, state = policy.decide(seen(DeviceView("a", 300)), state)
        assert list(decision.choices) == ["a"]


@given(st.integers(1, 7), st.integers(1, 8))
def test_nobody_waits_longer_than_a_turn(count: int, places: int) -> None:
    """Of n devices of which k take part each waits at most ceil(n / k) rounds, from one turn to the next."""
    policy, waits = RoundRobin(places), dict.fromkeys((device.name for device in FLEET[:count]), 0)
    state = policy.initial()
    for round_ in range(1, 20):
        decision, state = policy.decide(seen(*FLEET[:count], round_=round_), state)
        assert len(decision.choices) == min(count, places)
        waits = {name: 0 if name in decision.choices else wait + 1 for name, wait in waits.items()}
        assert max(waits.values()) < math.ceil(count / places)


def test_turns_have_the_best_level_and_pass_over_those_that_nothing_fits() -> None:
    """A device that went over its budget at the smallest level takes nobody's turn."""
    policy = RoundRobin(1)
    over = dataclasses.replace(seen(DeviceView("a", 10), DeviceView("b", 250)), answers=(too_large("a", "small", 10),))
    decision, _ = policy.decide(over, policy.initial())
    assert {name: choice.level for name, choice in decision.choices.items()} == {"b": "middle"}


def too_large(device: str, level: str, budget: int) -> Answer:
    """The device went over its budget."""
    return Answer(device, level, Outcome.OVER_BUDGET, budget, 0)


@given(observations())
def test_no_level_that_fits_is_faster(observation: Observation) -> None:
    """By the estimates, each device with an equal part of the bandwidth; nobody who may get a level is left out."""
    known = Known().after(observation.answers)
    decision, _ = FastestThatFits().decide(observation, Known())
    estimates, levels = Estimates.of(observation), {level.name: level for level in observation.levels}
    part = 1 / max(len(observation.devices), 1)
    for device, row in zip(
        observation.devices, may_get(observation.devices, observation.levels, known).tolist(), strict=True
    ):
        assert (device.name in decision.choices) == any(row)
        if any(row) and 1 <= estimates.rate_bytes_s(device) <= 1e12 and estimates.slowness(device) <= 1e6:
            level = levels[decision.choices[device.name].level]
            took = estimates.task_s(device, level, part=part)
            best = min(
                estimates.task_s(device, x, part=part) for x, may in zip(observation.levels, row, strict=True) if may
            )
            bandwidth = observation.terms.bandwidth_bytes_s
            assert took <= best * (1 + 1e-9) or not 100 <= bandwidth <= 1e12
