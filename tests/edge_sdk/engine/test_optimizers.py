"""Optimizers, schedules and clipping against their definitions, in float64."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.moments import Blocks, Floats, Moment
from edge_sdk.engine.optimizers import PART, AdamW, Sgd, clip, learning_rate_at, optimizer_of, state_bytes
from edge_sdk.engine.train import batch_gradient, evaluate
from edge_sdk.wire.messages import OptimizerKind, Schedule
from edge_sdk.wire.tensors import Array
from tests.edge_sdk.engine.samples import batch_of, walk_of

SHAPES = {"a": (3, 2), "b": (4,)}
RATES = st.floats(1e-5, 0.1)
DECAYS = st.sampled_from([0.0, 0.01, 0.5])
ALL = [AdamW(), Sgd(), AdamW(state_bits=8), Sgd(state_bits=8)]


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


@pytest.mark.parametrize("optimizer", ALL)
def test_only_what_has_a_gradient_changes(optimizer: AdamW | Sgd) -> None:
    """A tensor without a gradient is left alone, decay included; a gradient is never written to."""
    parameters, gradients = drawn(0), {"a": drawn(1)["a"]}
    state = optimizer.init(parameters)
    optimizer.update(parameters, gradients, state, 0.1)
    assert np.array_equal(parameters["b"], drawn(0)["b"])
    assert not np.array_equal(parameters["a"], drawn(0)["a"])
    assert np.array_equal(gradients["a"], drawn(1)["a"])


@pytest.mark.parametrize("optimizer", ALL)
def test_parts_make_no_difference(optimizer: AdamW | Sgd) -> None:
    """A tensor that is worked on in parts, the last of them short, ends in the bits that its pieces do as tensors."""
    random = np.random.default_rng(0)
    whole, steps = random.normal(size=2 * PART + 300).astype("f"), random.normal(size=(3, 2 * PART + 300)).astype("f")
    cuts = [slice(0, 512), slice(512, PART + 256), slice(PART + 256, None)]
    pieces = {str(cut): whole[cut].copy() for cut in cuts}
    together, apart = optimizer.init({"whole": whole}), optimizer.init(pieces)
    for gradient in steps:
        optimizer.update({"whole": whole}, {"whole": gradient}, together, 0.1)
        optimizer.update(pieces, {str(cut): gradient[cut] for cut in cuts}, apart, 0.1)
    assert np.array_equal(whole, np.concatenate([pieces[str(cut)] for cut in cuts]))


@pytest.mark.parametrize("optimizer", ALL)
def test_an_update_needs_little_more_than_its_state(optimizer: AdamW | Sgd) -> None:
    """Whatever a tensor's size, a step and a clip need less than half a megabyte, and leave nothing behind."""
    parameters, gradients = {"a": np.ones((1000, 1000), np.float32)}, {"a": np.ones((1000, 1000), np.float32)}
    state = optimizer.init(parameters)
    tracemalloc.start()
    try:
        clip(gradients, 1.0)
        optimizer.update(parameters, gradients, state, 0.1)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000
    assert left < 10_000


def kept_bytes(moment: Moment) -> int:
    """What a moment's arrays take."""
    if isinstance(moment, Blocks):
        return moment.codes.nbytes + moment.scales.nbytes
    assert isinstance(moment, Floats)
    return moment.values.nbytes


@given(
    shapes=st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), max_size=4),
    kind=st.sampled_from(OptimizerKind),
    bits=st.sampled_from([8, 32]),
)
def test_a_states_bytes_are_known_before(shapes: list[tuple[int, ...]], kind: OptimizerKind, bits: int) -> None:
    """What a plan reckons with is what the arrays take."""
    parameters = {str(k): np.zeros(shape, np.float32) for k, shape in enumerate(shapes)}
    state = optimizer_of(kind, 0.0, bits).init(parameters)
    moments = itertools.chain(state.first.values(), state.second.values())
    assert state_bytes(shapes, kind, bits) == sum(kept_bytes(moment) for moment in moments)


def test_what_cannot_be_changed_in_place_is_refused() -> None:
    """A change to a copy of a transposed parameter would be lost without a word."""
    parameters = {"a": np.zeros((3, 2), np.float32).T}
    with pytest.raises(ValueError, match="parameter a is not contiguous"):
        Sgd().update(parameters, {"a": np.ones((2, 3), np.float32)}, Sgd().init(parameters), 0.1)


@pytest.mark.parametrize("kind", OptimizerKind)
@pytest.mark.parametrize("seed", range(5))
def test_8_bits_solve_least_squares_as_well(kind: OptimizerKind, seed: int) -> None:
    """Columns whose sizes differ by 100, and noise: 200 steps take it as far down, within 5 %."""
    random = np.random.default_rng(seed)
    rows = (random.normal(size=(400, 300)) * 10.0 ** random.uniform(-2, 0, 300)).astype(np.float32)
    wanted = rows @ random.normal(size=300).astype(np.float32) + random.normal(size=400).astype(np.float32)
    losses = {bits: least_squares(kind, bits, rows, wanted) for bits in (8, 32)}
    before = float(np.square(wanted).mean())
    assert losses[32] < 0.2 * before
    assert losses[8] == pytest.approx(losses[32], rel=0.05)


def least_squares(kind: OptimizerKind, bits: int, rows: Array, wanted: Array) -> float:
    """The mean squared error after 200 steps from zero."""
    parameters = {"x": np.zeros(rows.shape[1], np.float32)}
    optimizer, rate = optimizer_of(kind, 0.0, bits), 0.05 if kind is OptimizerKind.ADAMW else 0.02
    state = optimizer.init(parameters)
    for _ in range(200):
        slope = 2 / len(rows) * (rows @ parameters["x"] - wanted) @ rows
        optimizer.update(parameters, {"x": slope.astype(np.float32)}, state, rate)
    return float(np.square(rows @ parameters["x"] - wanted).mean())


@pytest.mark.parametrize("kind", OptimizerKind)
def test_8_bits_train_a_model_as_well(artifact: Artifact, kind: OptimizerKind) -> None:
    """Twenty steps on one batch lower a real model's loss by what they do in 32 bits, within 3 %."""
    fall = {bits: fall_of_loss(artifact, kind, bits) for bits in (8, 32)}
    assert fall[32] > 0.02
    assert fall[8] == pytest.approx(fall[32], rel=0.03)


def fall_of_loss(artifact: Artifact, kind: OptimizerKind, bits: int) -> float:
    """How much twenty steps lower the loss."""
    walk, adapter, batch = walk_of(artifact), artifact.initial_adapter(), batch_of(artifact.manifest)
    parameters = {name: adapter[name] for name in artifact.manifest.trained_shapes()}
    optimizer, rate = optimizer_of(kind, 0.0, bits), 1e-2 if kind is OptimizerKind.ADAMW else 0.05
    state, before = optimizer.init(parameters), evaluate(walk, adapter, [batch]).loss
    for _ in range(20):
        _, gradients = batch_gradient(walk, adapter, batch, list(parameters))
        optimizer.update(parameters, gradients, state, rate)
    return before - evaluate(walk, adapter, [batch]).loss


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
