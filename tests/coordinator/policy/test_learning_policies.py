"""The laws of the policies that learn or reckon: ucb, lagrangian, kkt."""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.policy.estimates import Estimates
from coordinator.policy.kkt import Kkt
from coordinator.policy.lagrangian import Lagrangian, Prices
from coordinator.policy.types import Answer, Choice, DeviceView, Level, Observation, Outcome, Terms
from coordinator.policy.ucb import Ucb
from edge_sdk.wire.messages import DeltaCodec
from tests.coordinator.policy.observations import sequences

FP32 = DeltaCodec.FP32
LEVELS = (
    Level("large", 300, 50_000_000, upload_bytes={FP32: 4_000_000}, step_s=0.4, quality=1.0),
    Level("middle", 200, 20_000_000, upload_bytes={FP32: 2_000_000}, step_s=0.2, quality=0.8),
    Level("small", 100, 10_000_000, upload_bytes={FP32: 1_000_000}, step_s=0.1, quality=0.5),
)
ALL = frozenset(level.name for level in LEVELS)


def device(name: str, budget: int = 300, **known: float) -> DeviceView:
    """A device that has all levels, and is as fast as the exporter's machine, but for what is said here."""
    numbers = {"examples": 100, "rate_bytes_s": 1e6, "slowness": 1.0} | known
    return dataclasses.replace(DeviceView(name, budget, holds=ALL), **numbers)  # type: ignore[arg-type]


def shown(
    round_: int, devices: tuple[DeviceView, ...], answers: tuple[Answer, ...] = (), **terms: float
) -> Observation:
    """What is seen before this round."""
    base = Terms(round=round_, rounds=20, steps=10)
    return Observation(devices, LEVELS, answers, devices, dataclasses.replace(base, **terms))  # type: ignore[arg-type]


def done(name: str, level: str, round_: int, wall_s: float = 1.0, **more: float) -> Answer:
    """The device did its task."""
    return dataclasses.replace(Answer(name, level, Outcome.DONE, 300, 100, wall_s, round_, examples=100), **more)  # type: ignore[arg-type]


@given(st.integers(1, 4), st.lists(st.floats(0.1, 100), min_size=6, max_size=6))
def test_each_arm_is_tried_before_any_is_tried_twice(count: int, walls: list[float]) -> None:
    """In the order of tasks, of one class: the first three have three levels, however slow they were."""
    devices, policy = tuple(device(name) for name in "abcd"[:count]), Ucb()
    state, given_, answers = policy.initial(), list[str](), tuple[Answer, ...]()
    for round_ in range(1, 5):
        decision, state = policy.decide(shown(round_, devices, answers, loss=3.0 - 0.1 * round_), state)
        given_ += [choice.level for choice in decision.choices.values()]
        answers = tuple(done(d, c.level, round_, walls[round_]) for d, c in decision.choices.items())
    assert set(given_[:3]) == ALL


def test_the_bandit_finds_the_level_that_pays() -> None:
    """Where the loss falls as far with every level, most tasks go in the end to the one that takes least time."""
    policy, walls = Ucb(delay_weight=2.0), {"large": 100.0, "middle": 50.0, "small": 1.0}
    state, answers, given_ = policy.initial(), tuple[Answer, ...](), list[str]()
    for round_ in range(1, 200):
        decision, state = policy.decide(shown(round_, (device("a"),), answers, loss=1000.0 - round_), state)
        given_.append(decision.choices["a"].level)
        answers = (done("a", given_[-1], round_, walls[given_[-1]]),)
    assert collections.Counter(given_[100:]).most_common(1)[0][0] == "small"


@given(sequences())
def test_rewards_are_what_ucb1_asks_for(observations: list[Observation]) -> None:
    """From 0 to 1 each, whatever was answered."""
    policy = Ucb()
    state = policy.initial()
    for observation in observations:
        _, state = policy.decide(observation, state)
        assert all(-1e-9 <= had.total / had.tasks <= 1 + 1e-9 for had in state.rewards.values())


def test_without_a_held_out_loss_the_devices_own_tells() -> None:
    """The fall of a round is known from the next one's answers: the level whose rounds brought more has more reward."""
    policy, loss = Ucb(), 100.0
    state, answers = policy.initial(), tuple[Answer, ...]()
    for round_ in range(1, 40):
        decision, state = policy.decide(shown(round_, (device("a"),), answers), state)
        level = decision.choices["a"].level
        answers = (done("a", level, round_, loss=loss),)
        loss -= 1.0 if level == "large" else 0.1
    means = {level: had.total / had.tasks for (_, level), had in state.rewards.items()}
    assert means["large"] > max(means["middle"], means["small"])


@given(sequences())
def test_prices_are_never_negative(observations: list[Observation]) -> None:
    """Nor are they anything but numbers."""
    policy = Lagrangian(budget_s=10, budget_bytes=1000, budget_memory=0.5)
    state = policy.initial()
    for observation in observations:
        _, state = policy.decide(observation, state)
        prices = (state.prices.delay, state.prices.bytes, state.prices.memory)
        assert all(0 <= price < math.inf for price in prices)


def test_the_price_of_what_was_exceeded_rises_and_falls_again() -> None:
    """Each budget by its own usage; what was kept costs nothing."""
    policy = Lagrangian(budget_s=10, budget_bytes=1000, budget_memory=0.5)
    state = policy.initial()
    late = done("a", "large", 1, wall_s=20.0, wire_bytes=500, bytes=30)
    _, state = policy.decide(shown(2, (device("a"),), (late,)), state)
    assert state.prices == Prices(0.5, 0.0, 0.0)
    heavy = done("a", "large", 2, wall_s=5.0, wire_bytes=1500, bytes=300)
    _, state = policy.decide(shown(3, (device("a"),), (heavy,)), state)
    assert state.prices == Prices(0.25, 0.25, 0.5)


def test_dear_seconds_bring_smaller_levels_and_leave_out_the_slowest() -> None:
    """At a price of delay the slow device has the small level; at a higher one it sits out, and one always is in."""
    policy, devices = Lagrangian(budget_s=10, price_step=0.05), (device("a"), device("z", slowness=20.0))
    state, found = policy.initial(), list[dict[str, str]]()
    for round_ in range(1, 60):
        answers = (done("a", "large", round_ - 1, wall_s=100.0),) if round_ > 1 else ()
        decision, state = policy.decide(shown(round_, devices, answers), state)
        found.append({name: choice.level for name, choice in decision.choices.items()})
    assert found[0] == {"a": "large", "z": "large"}
    assert found.index({"a": "large", "z": "small"}) < found.index({"a": "large"})
    assert all(found)
    assert found[-1] == {"a": "small"}


def ends_s(observation: Observation, choices: dict[str, Choice]) -> dict[str, float]:
    """When each is done, by the estimates, and the shares that it has."""
    estimates, levels = Estimates.of(observation), {level.name: level for level in observation.levels}
    total = sum(choice.share for choice in choices.values())
    return {
        d.name: estimates.task_s(
            d, levels[choices[d.name].level], choices[d.name].codec, part=choices[d.name].share / total
        )
        for d in observation.devices
        if d.name in choices
    }


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_equal_devices_have_equal_shares(count: int) -> None:
    """One level, devices alike: nobody has more of the bandwidth than another."""
    devices = tuple(device(f"d{k}") for k in range(count))
    observation = dataclasses.replace(shown(1, devices, bandwidth_bytes_s=2e6), levels=LEVELS[:1])
    decision, _ = Kkt().decide(observation, Kkt().initial())
    shares = [choice.share for choice in decision.choices.values()]
    assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-9)


fleets = st.lists(
    st.tuples(st.sampled_from([100, 200, 300]), st.floats(1e5, 1e8), st.floats(0.2, 50), st.integers(1, 1000)),
    min_size=1,
    max_size=12,
)


@given(fleets, st.floats(1e5, 1e7))
def test_all_are_done_together(fleet: list[tuple[int, float, float, int]], bandwidth: float) -> None:
    """The condition of the optimum: nobody is done after the others but who sends as fast as its own link can."""
    devices = tuple(
        device(f"d{k}", budget, rate_bytes_s=rate, slowness=slowness, examples=examples)
        for k, (budget, rate, slowness, examples) in enumerate(fleet)
    )
    observation = shown(1, devices, bandwidth_bytes_s=bandwidth, deadline_s=1e6)
    decision, _ = Kkt().decide(observation, Kkt().initial())
    ends = ends_s(observation, dict(decision.choices))
    total, last = sum(choice.share for choice in decision.choices.values()), max(ends.values())
    rates = {one.name: one.rate_bytes_s for one in devices}
    by_link = {name for name, choice in decision.choices.items() if rates[name] <= bandwidth * choice.share / total}
    if not by_link:
        assert min(ends.values()) == pytest.approx(last, rel=1e-6)
    else:
        assert max(ends[name] for name in by_link) == pytest.approx(last, rel=1e-6)


def test_who_costs_more_time_than_it_brings_is_pruned() -> None:
    """Nine quick devices do not wait for one that is a thousand times slower; ten that are all as slow take part."""
    slow, quick = device("z", slowness=1000.0), tuple(device(f"d{k}") for k in range(9))
    decision, _ = Kkt().decide(shown(1, (*quick, slow), deadline_s=1e6), Kkt().initial())
    assert set(decision.choices) == {one.name for one in quick}
    alike = tuple(dataclasses.replace(slow, name=f"z{k}") for k in range(10))
    assert len(Kkt().decide(shown(1, alike, deadline_s=1e6), Kkt().initial())[0].choices) == 10


@given(fleets)
@example([(100, 100_000.0, 19.0, 1), (100, 100_000.0, 19.0, 1)])  # each alone would be a second late
def test_nobody_has_to_miss_the_deadline(fleet: list[tuple[int, float, float, int]]) -> None:
    """Whoever takes part is done in time, by the estimates, where anybody can be."""
    devices = tuple(
        device(f"d{k}", budget, rate_bytes_s=rate, slowness=slowness, examples=examples)
        for k, (budget, rate, slowness, examples) in enumerate(fleet)
    )
    observation = shown(1, devices, bandwidth_bytes_s=1e6, deadline_s=30.0)
    decision, _ = Kkt().decide(observation, Kkt().initial())
    ends = np.array(list(ends_s(observation, dict(decision.choices)).values()))
    assert len(ends) == 1 or ends.max() <= 30.0 * (1 + 1e-6)
