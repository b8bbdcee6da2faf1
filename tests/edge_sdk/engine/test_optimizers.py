"""Optimizers, schedules and clipping against their definitions, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engine.optimizers import AdamW, Sgd, clip, learning_rate_at, optimizer_of
from edge_sdk.wire.messages import OptimizerKind, Schedule
from edge_sdk.wire.tensors import Array

SHAPES = {"a": (3, 2), "b": (4,)}
RATES = st.floats(1e-5, 0.1)
DECAYS = st.sampled_from([0.0, 0.01, 0.5])


def drawn(seed: int) -> dict[str, Array]:
    """Normal values of very different sizes, float32."""
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(size=shape) * 10.0 ** random.integers(-4, 3, shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def adamw(start: Array, gradients: list[Array], rates: list[float], decay: float) -> Array:
    """Algorithm 2 of https://arxiv.org/abs/1711.05101 with PyTorch's decay by the learning rate, float64."""
    theta, m, v = start.astype(np.float64), np.zeros(start.shape), np.zeros(start.shape)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g.astype(np.float64) ** 2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        theta = theta - rate * decay * theta - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
    return theta


def sgd(start: Array, gradients: list[Array], rates: list[float], decay: float) -> Array:
    """Heavy-ball momentum of 0.9, decoupled decay, float64."""
    theta, velocity = start.astype(np.float64), np.zeros(start.shape)
    for g, rate in zip(gradients, rates, strict=True):
        velocity = 0.9 * velocity + g
        theta = theta - rate * decay * theta - rate * velocity
    return theta


REFERENCES = {OptimizerKind.ADAMW: adamw, OptimizerKind.SGD: sgd}


@settings(max_examples=60)
@given(
    kind=st.sampled_from(OptimizerKind),
    rates=st.lists(RATES, min_size=1, max_size=12),
    decay=DECAYS,
    seed=st.integers(0, 10**6),
)
def test_steps_are_the_references(kind: OptimizerKind, rates: list[float], decay: float, seed: int) -> None:
    """Any number of steps with changing rates ends where the definition says, to float32's precision."""
    parameters, start = drawn(seed), drawn(seed)
    steps = [drawn(seed + 1 + k) for k in range(len(rates))]
    optimizer = optimizer_of(kind, decay)
    state = optimizer.init(parameters)
    for gradients, rate in zip(steps, rates, strict=True):
        optimizer.update(parameters, gradients, state, rate)
    assert state.step == len(rates)
    for name in SHAPES:
        history = [gradients[name] for gradients in steps]
        expected = REFERENCES[kind](start[name], history, rates, decay)
        # One step moves a parameter by its rate, or by its rate times what the velocity sums up to.
        reach = 1 if kind is OptimizerKind.ADAMW else 10 * max(np.abs(gradient).max() for gradient in history)
        scale = np.abs(expected) + np.abs(start[name]) + reach * max(rates)
        assert (np.abs(parameters[name] - expected) <= 1e-5 * scale).all()
        assert parameters[name].dtype == np.float32


@pytest.mark.parametrize("optimizer", [AdamW(), Sgd()])
def test_only_what_has_a_gradient_changes(optimizer: AdamW | Sgd) -> None:
    """A tensor without a gradient is left alone, decay included; a gradient is never written to."""
    parameters, gradients = drawn(0), {"a": drawn(1)["a"]}
    state = optimizer.init(parameters)
    optimizer.update(parameters, gradients, state, 0.1)
    assert np.array_equal(parameters["b"], drawn(0)["b"])
    assert not np.array_equal(parameters["a"], drawn(0)["a"])
    assert np.array_equal(gradients["a"], drawn(1)["a"])


def test_adamw_ignores_the_gradients_size() -> None:
    """Its first step is the learning rate in every direction, whatever the loss is multiplied by."""
    parameters = {"a": np.zeros(3, np.float32)}
    state = AdamW().init(parameters)
    AdamW().update(parameters, {"a": np.array([1e-3, -5, 1e6], np.float32)}, state, 0.01)
    assert parameters["a"] == pytest.approx([-0.01, 0.01, -0.01], rel=1e-4)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (10, 0), (10, 3), (10, 10)])
def test_rates_rise_to_the_peak_and_never_again(schedule: Schedule, steps: int, warmup: int) -> None:
    """Every step has a positive rate of at most the peak; it rises while warming up, and falls or stays after."""
    rates = [learning_rate_at(k, steps, 0.5, schedule, warmup) for k in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    assert rates[:warmup] == sorted(set(rates[:warmup]))
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if warmup < steps:
        assert rates[warmup] == 0.5


def test_schedules_are_what_they_are_called() -> None:
    """Half way through, linear and cosine are at half the peak, a quarter through they differ; constant stays."""
    at = {schedule: [learning_rate_at(k, 8, 1.0, schedule, 0) for k in (2, 4)] for schedule in Schedule}
    assert at[Schedule.CONSTANT] == [1, 1]
    assert at[Schedule.LINEAR] == [0.75, 0.5]
    assert at[Schedule.COSINE] == pytest.approx([0.5 + math.sqrt(0.125), 0.5])
    assert [learning_rate_at(k, 8, 1.0, Schedule.LINEAR, 3) for k in range(4)] == [0.25, 0.5, 0.75, 1.0]


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_clipping_shortens_and_never_turns(seed: int, bound: float) -> None:
    """The norm over all tensors ends at no more than the bound, in the same direction; within it nothing changes."""
    before, gradients = drawn(seed), drawn(seed)
    norm = math.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in before.values()))
    assert clip(gradients, bound) == pytest.approx(norm, rel=1e-12)
    factor = min(bound / norm, 1)
    for name, array in before.items():
        assert np.allclose(gradients[name], factor * array.astype(np.float64), rtol=1e-6, atol=0)
        assert factor < 1 or np.array_equal(gradients[name], array)


def test_no_bound_and_no_number_leave_gradients_alone() -> None:
    """A bound of zero is none; a norm that is not finite is said, not hidden by scaling."""
    for value, bound in ((3.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)):
        gradients = {"a": np.array([value, 4.0], np.float32)}
        found = clip(gradients, bound)
        assert found == 5.0 if value == 3.0 else not math.isfinite(found)
        assert np.array_equal(gradients["a"], np.array([value, 4.0], np.float32), equal_nan=True)


def test_large_gradients_have_a_norm() -> None:
    """Squares beyond float32 are added in float64."""
    gradients = {"a": np.full(4, 1e30, np.float32)}
    assert clip(gradients, 1.0) == pytest.approx(2e30, rel=1e-6)
    assert gradients["a"] == pytest.approx([0.5] * 4, rel=1e-6)
