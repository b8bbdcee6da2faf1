"""The optimizers' graphs, run by a stock onnxruntime, against the engine's; the engine's against torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engine import optimizers as engine
from edge_sdk.engine.moments import Floats, Moment
from edge_sdk.wire.messages import OptimizerKind
from edge_sdk.wire.tensors import Array
from export import optimizers
from export.capture import IR_VERSION, OPSET
from export.lowering import serialize
from export.optimizers import optimizer_graphs

DATA = {name: serialize(graph) for name, graph in optimizer_graphs().items()}
SESSIONS = {name: onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]) for name, data in DATA.items()}
RATES = st.lists(st.floats(2**-16, 0.125, width=32), min_size=1, max_size=8)
DECAYS = st.sampled_from([0.0, 0.25])
SEEDS = st.integers(0, 10**6)


def run(name: str, given_: dict[str, Any]) -> dict[str, Array]:
    """Run one of the graphs; what replaces each input, by that input's name."""
    session = SESSIONS[name]
    names = [value.name for value in session.get_outputs()]
    return {n.removeprefix("new_"): array for n, array in zip(names, session.run(names, given_), strict=True)}


def drawn(seed: int, size: int) -> Array:
    """Normal values of very different sizes, float32."""
    random = np.random.default_rng(seed)
    return (random.normal(size=size) * 10.0 ** random.integers(-4, 3, size)).astype(np.float32)


def floats(moment: Moment) -> Array:
    """What a float32 moment keeps."""
    assert isinstance(moment, Floats)
    return moment.values


@settings(max_examples=30)
@given(st.sampled_from(OptimizerKind), st.integers(1, 700), RATES, DECAYS, SEEDS)
def test_graphs_step_as_the_engine_does(
    kind: OptimizerKind, size: int, rates: list[float], decay: float, seed: int
) -> None:
    """Over any number of steps, of any size, with changing rates: the same moments, and the same parameters but for
    the last bits of what depends on a power.
    """
    parameter = drawn(seed, size)
    reach = np.abs(parameter)
    moments = ("first", "second") if kind is OptimizerKind.ADAMW else ("velocity",)
    state = {"parameter": parameter.copy()} | {name: np.zeros(size, np.float32) for name in moments}
    optimizer = engine.optimizer_of(kind, decay)
    expected = optimizer.init({"a": parameter})
    for step, rate in enumerate(rates, start=1):
        gradient = drawn(seed + step, size)
        optimizer.update({"a": parameter}, {"a": gradient}, expected, rate)
        numbers = {"learning_rate": np.float32(rate), "weight_decay": np.float32(decay)}
        if kind is OptimizerKind.ADAMW:
            numbers["step"] = np.int64(step)
        reach = np.maximum(reach, np.abs(parameter))
        state = run(kind.value, {**state, "gradient": gradient, **{n: np.array(x) for n, x in numbers.items()}})
    assert (np.abs(state["parameter"] - parameter) <= 1e-6 * reach).all()
    for name, kept in zip(moments, (expected.first, expected.second), strict=False):
        np.testing.assert_array_equal(state[name], floats(kept["a"]))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.sampled_from([0.0, 1e-3, 1.0, 1e6]), SEEDS)
def test_graphs_clip_as_the_engine_does(sizes: list[int], bound: float, seed: int) -> None:
    """The sum over all tensors bounds each of them, by the same factor; no bound and a short gradient change no bit."""
    gradients = {str(k): drawn(seed + k, size) for k, size in enumerate(sizes)}
    total = sum(run("square_sum", {"gradient": array})["square_sum"] for array in gradients.values())
    found = {name: clip(array, total, bound) for name, array in gradients.items()}
    norm = engine.clip(gradients, bound)
    assert np.sqrt(total) == pytest.approx(norm, rel=1e-12)
    for name, array in gradients.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=0)
        assert 0 < bound < norm or np.array_equal(found[name], array)


def clip(gradient: Array, square_sum: Any, bound: float) -> Array:
    """The gradient, scaled to the bound."""
    numbers = {"square_sum": np.array(square_sum, np.float64), "clip_norm": np.array(bound, np.float32)}
    return run("clip", {"gradient": gradient, **numbers})["gradient"]


@pytest.mark.parametrize("square_sum", [np.inf, np.nan, 0.0])
def test_a_norm_that_is_no_number_changes_nothing(square_sum: float) -> None:
    """The engine ends training at such a step; a runtime that does not must not get zeros for it."""
    gradient = drawn(0, 9)
    assert np.array_equal(clip(gradient, square_sum, 1.0), gradient)


def test_graphs_say_what_they_take() -> None:
    """Inputs and outputs by name, of any length; no name that an older runtime's opset lacks; equal bytes each time."""
    for name, data in DATA.items():
        graph = onnx.load_from_string(data)
        assert graph.ir_version == IR_VERSION
        assert {o.domain: o.version for o in graph.opset_import} == {"": OPSET}
        assert data == serialize(optimizer_graphs()[name])
    names = {name: [value.name for value in session.get_inputs()] for name, session in SESSIONS.items()}
    settings_of_a_task = ["learning_rate", "weight_decay"]
    assert names == {
        "adamw": ["parameter", "gradient", "first", "second", *settings_of_a_task, "step"],
        "sgd": ["parameter", "gradient", "velocity", *settings_of_a_task],
        "square_sum": ["gradient"],
        "clip": ["gradient", "square_sum", "clip_norm"],
    }


def test_constants_are_the_engines() -> None:
    """What a task does not name is the same on both sides."""
    adamw, sgd = engine.AdamW(), engine.Sgd()
    assert (adamw.beta1, adamw.beta2, adamw.epsilon) == (optimizers.BETA1, optimizers.BETA2, optimizers.EPSILON)
    assert sgd.momentum == optimizers.MOMENTUM


@settings(max_examples=30)
@given(RATES, st.sampled_from([0.0, 0.01, 0.5]), SEEDS)
def test_the_engines_adamw_is_torchs(rates: list[float], decay: float, seed: int) -> None:
    """The same parameters after any number of steps, decay included."""
    start = drawn(seed, 40)
    leaf = torch.tensor(start.copy(), requires_grad=True)
    check_against_torch(engine.AdamW(decay), torch.optim.AdamW([leaf], weight_decay=decay), leaf, start, rates)


@settings(max_examples=30)
@given(RATES, SEEDS)
def test_the_engines_sgd_is_torchs(rates: list[float], seed: int) -> None:
    """The same parameters after any number of steps (torch's decay is coupled, ours is not: without it)."""
    start = drawn(seed, 40)
    leaf = torch.tensor(start.copy(), requires_grad=True)
    check_against_torch(engine.Sgd(), torch.optim.SGD([leaf], momentum=0.9), leaf, start, rates)


def check_against_torch(
    optimizer: engine.Optimizer, peer: torch.optim.Optimizer, leaf: torch.Tensor, start: Array, rates: list[float]
) -> None:
    """Make the same steps with both."""
    state, reach = optimizer.init({"a": start}), np.abs(start)
    for step, rate in enumerate(rates):
        gradient = drawn(step, start.size)
        optimizer.update({"a": start}, {"a": gradient}, state, rate)
        leaf.grad = torch.tensor(gradient)
        for group in peer.param_groups:
            group["lr"] = rate
        peer.step()
        reach = np.maximum(reach, np.abs(start))  # what was large on the way has left its rounding behind
    assert (np.abs(start - leaf.detach().numpy()) <= 1e-5 * reach + 1e-6).all()
