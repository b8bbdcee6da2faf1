"""What a simulated round promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.controller import simulator
from coordinator.controller.fleets import SCENARIOS
from coordinator.controller.simulator import DECLINE_S, begin, name_of, observe, step
from coordinator.policy.estimates import Estimates
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import NEVER, Choice, Decision, Outcome
from edge_sdk.wire.messages import DeltaCodec
from tests.coordinator.controller.worlds import PROFILE, small_world

LEVELS = [level.name for level in PROFILE.levels]


def everybody(count: int, level: str = LEVELS[0], **kwargs: float) -> Decision:
    """All devices get the same."""
    return Decision({name_of(k): Choice(level, DeltaCodec.FP32, **kwargs) for k in range(count)})


def test_a_round_lowers_the_loss_and_takes_time() -> None:
    """Who trains gets the loss down, in a time and with bytes that are more than none."""
    world = small_world()
    state, outcomes = step(world, begin(world), everybody(4))
    assert outcomes.loss_after < outcomes.loss_before == PROFILE.curve.first
    assert state.loss == pytest.approx(outcomes.loss_after)
    assert outcomes.delivered == outcomes.asked == outcomes.exchanges == 4
    assert outcomes.delay_s > 0
    assert outcomes.bytes > 4 * PROFILE.levels[0].size_bytes


def test_a_round_of_nobody_is_nothing() -> None:
    """No delay, no bytes, no gain, no energy."""
    world = small_world()
    _, outcomes = step(world, begin(world), Decision({}))
    assert (outcomes.delay_s, outcomes.bytes, outcomes.energy_j, outcomes.asked) == (0, 0, 0, 0)
    assert outcomes.loss_after == outcomes.loss_before


def test_what_is_held_is_not_fetched_again() -> None:
    """The second round at a level sends the adapter alone; a neighbour level what it does not share."""
    world = small_world()
    state, first = step(world, begin(world), everybody(4, "int8"))
    again, second = step(world, state, everybody(4, "int8"))
    assert second.exchanges == 0
    assert first.bytes - second.bytes == 4 * next(x for x in PROFILE.levels if x.name == "int8").size_bytes
    # A level that trains fewer layers of the same model has all its files; its delta is shorter.
    _, third = step(world, again, everybody(4, "int8-last6"))
    assert third.exchanges == 0
    assert third.bytes < second.bytes


def test_without_a_store_an_emulator_is_exchanged_whole() -> None:
    """There and back again costs both levels once more, but for what the last one has in common with the next."""
    world, levels = small_world(stored=False), {level.name: level for level in PROFILE.levels}
    state = begin(world)
    for level in ("int8", "fp32", "int8"):
        state, outcomes = step(world, state, everybody(4, level))
    assert outcomes.exchanges == 4
    shared = sum(size for name, size in levels["int8"].files.items() if name in levels["fp32"].files)
    assert outcomes.bytes > 4 * (levels["int8"].size_bytes - shared)


def test_the_slowest_decides_when_a_round_is_over() -> None:
    """The delay is that of the last device; a round without it is shorter."""
    world = small_world()
    ends = []
    for k in range(4):
        _, outcomes = step(world, begin(world), Decision({name_of(k): Choice(LEVELS[0], share=1.0)}))
        ends.append(outcomes.delay_s)
    _, together = step(world, begin(world), everybody(4))
    assert together.delay_s >= max(ends) > min(ends)


def test_over_its_memory_a_device_says_so_at_once() -> None:
    """It is counted as a violation, costs no more than its answer, and the policy hears of it."""
    world = small_world()
    world = dataclasses.replace(
        world, population=dataclasses.replace(world.population, budgets_bytes=np.array([1e6, 1e9, 1e9, 1e9]))
    )
    state, outcomes = step(world, begin(world), Decision({name_of(0): Choice(LEVELS[0])}))
    assert (outcomes.violations, outcomes.delivered, outcomes.bytes, outcomes.delay_s) == (1, 0, 0, DECLINE_S)
    assert [answer.outcome for answer in state.answers] == [Outcome.OVER_BUDGET]


def test_a_device_that_is_silent_keeps_the_round_open() -> None:
    """Until the deadline; nothing of it counts."""
    world = small_world()
    world = dataclasses.replace(world, population=dataclasses.replace(world.population, losing=np.ones(4)))
    state, outcomes = step(world, begin(world), everybody(4))
    assert (outcomes.delay_s, outcomes.delivered) == (world.deadline_s, 0)
    assert {answer.outcome for answer in state.answers} == {Outcome.LOST}
    assert all(view.asked == 1 and view.last_round == NEVER for view in observe(world, state).devices)


def test_the_weather_is_the_same_for_every_policy() -> None:
    """Who fades, leaves or drifts does not depend on what was decided."""
    world = dataclasses.replace(small_world(8), conditions=dataclasses.replace(SCENARIOS["everything"], throttle=0.0))
    lazy, busy = begin(world), begin(world)
    for _ in range(5):
        lazy, _ = step(world, lazy, Decision({}))
        busy, _ = step(world, busy, everybody(8))
        assert np.array_equal(lazy.fades, busy.fades)
        assert np.array_equal(lazy.places_m, busy.places_m)
        assert np.array_equal(lazy.present, busy.present)
        assert np.array_equal(lazy.taken, busy.taken)


def test_the_same_seed_is_the_same_run() -> None:
    """Nothing is drawn from anywhere else."""
    runs = []
    for _ in range(2):
        world = dataclasses.replace(small_world(6), conditions=SCENARIOS["everything"])
        state, policy = begin(world), LargestThatFits()
        memory = policy.initial()
        for _ in range(5):
            decision, memory = policy.decide(observe(world, state), memory)
            state, outcomes = step(world, state, decision)
        runs.append(outcomes)
    assert runs[0] == runs[1]


def test_estimates_meet_what_comes() -> None:
    """Of a device whose link and pace are known a policy reckons what the simulation does."""
    world = small_world(1)
    state, _ = step(world, begin(world), everybody(1))
    seen = observe(world, state)
    _, outcomes = step(world, state, everybody(1))
    reckoned = Estimates.of(seen).task_s(seen.devices[0], world.profile.levels[0], DeltaCodec.FP32)
    # The rate that was seen is that of a long way down; the second round's is a short one, with as long a way up.
    assert outcomes.delay_s == pytest.approx(reckoned, rel=0.2)


@given(st.sampled_from([1.0, 0.75, 0.5]), st.integers(1, 6), st.sampled_from(sorted(SCENARIOS)))
def test_outcomes_are_sound(power: float, count: int, scenario: str) -> None:
    """Finite, never negative, never more delivered than asked, and never past the deadline."""
    world = dataclasses.replace(small_world(count, seed=count), conditions=SCENARIOS[scenario], deadline_s=500.0)
    state = begin(world)
    for _ in range(3):
        state, outcomes = step(world, state, everybody(count, LEVELS[1], power=power))
        figures = np.array(dataclasses.astuple(outcomes))
        assert np.isfinite(figures).all()
        assert (figures >= 0).all()
        assert outcomes.delivered + outcomes.violations <= outcomes.asked <= count
        assert outcomes.delay_s <= world.deadline_s
        assert PROFILE.curve.floor <= state.loss <= PROFILE.curve.first + 1e-9


def test_nearer_is_faster() -> None:
    """The radio's rate falls with the distance, and grows with the width of the channel."""
    world = small_world(2)
    down, up = simulator.rates(world, begin(world))
    near = dataclasses.replace(begin(world), places_m=begin(world).places_m / 4)
    assert (simulator.rates(world, near)[0] > down).all()
    assert (down > up).all()
