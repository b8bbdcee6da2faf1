"""The laws of the server's optimizers, and that their state is as durable as the adapter."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregate.blobs import NextAdapter, aggregate_blobs
from coordinator.aggregate.rules import Aggregate, Contribution, aggregate
from coordinator.aggregate.server_optimizers import step
from coordinator.config import AggregationConfig, Rule, ServerOptimizer
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.tensors import Array, read_tensors, write_tensors
from tests.coordinator.samples import delta_bytes, make_adapter, make_delta, make_task

FEDAVG = AggregationConfig(rule=Rule.FREEZE_A)
FEDAVGM = AggregationConfig(rule=Rule.FREEZE_A, optimizer=ServerOptimizer.FEDAVGM, learning_rate=0.5)
FEDADAM = AggregationConfig(rule=Rule.FREEZE_A, optimizer=ServerOptimizer.FEDADAM, learning_rate=0.01)
ALL = pytest.mark.parametrize("config", [FEDAVG, FEDAVGM, FEDADAM], ids=["fedavg", "fedavgm", "fedadam"])
WITH_MOMENTS = pytest.mark.parametrize("config", [FEDAVGM, FEDADAM], ids=["fedavgm", "fedadam"])
SHAPE = (3, 4)

changes = st.lists(
    st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12).map(lambda d: np.array(d).reshape(SHAPE)),
    min_size=1,
    max_size=6,
)


def walked(config: AggregationConfig, steps: Sequence[Array]) -> Array:
    """Where a tensor of zeros is after steps of these mean changes."""
    adapter, moments = {"w": np.zeros(SHAPE, np.float32)}, dict[str, Array]()
    for change in steps:
        adapter, moments = step(config, adapter, {"w": change}, moments)
    return adapter["w"]


@given(changes)
def test_fedavg_adds_the_mean_change(steps: list[Array]) -> None:
    """Without an optimizer the adapter is the mean of the devices' adapters, and no state is kept."""
    np.testing.assert_allclose(walked(FEDAVG, steps), sum(steps), atol=1e-5)
    assert step(FEDAVG, {"w": np.zeros(SHAPE, np.float32)}, {"w": steps[0]}, {})[1] == {}


@given(changes)
def test_fedavgm_weighs_the_past_geometrically(steps: list[Array]) -> None:
    """After T rounds a change of round t has been added with the weight `rate (1 + beta1 + ... + beta1^(T - t))`."""
    powers = [sum(FEDAVGM.beta1**k for k in range(len(steps) - t)) for t in range(len(steps))]
    wanted = FEDAVGM.rate * sum(power * change for power, change in zip(powers, steps, strict=True))
    np.testing.assert_allclose(walked(FEDAVGM, steps), wanted, atol=1e-5)


@given(changes)
def test_fedadam_is_the_papers_algorithm(steps: list[Array]) -> None:
    """Each number follows algorithm 2 of Reddi et al., written out here number by number."""
    found = walked(FEDADAM, steps)
    for place in np.ndindex(SHAPE):
        x, m, v = 0.0, 0.0, FEDADAM.tau**2
        for change in steps:
            d = float(change[place])
            m = FEDADAM.beta1 * m + (1 - FEDADAM.beta1) * d
            v = FEDADAM.beta2 * v + (1 - FEDADAM.beta2) * d * d
            x += FEDADAM.rate * m / (v**0.5 + FEDADAM.tau)
        assert found[place] == pytest.approx(x, abs=1e-6)


@given(changes)
def test_without_momentum_it_is_fedavg(steps: list[Array]) -> None:
    """FedAvgM with beta1 = 0 and a rate of 1 gives FedAvg's bytes."""
    plain = AggregationConfig(rule=Rule.FREEZE_A, optimizer=ServerOptimizer.FEDAVGM, beta1=0.0)
    assert np.array_equal(walked(plain, steps), walked(FEDAVG, steps))


@given(changes, st.floats(0.01, 100))
def test_fedadams_step_is_bounded(steps: list[Array], scale: float) -> None:
    """However large the devices' changes, a number goes no further in a round than the rate over sqrt(1 - beta2)."""
    longest = len(steps) * FEDADAM.rate / (1 - FEDADAM.beta2) ** 0.5
    assert np.abs(walked(FEDADAM, [scale * change for change in steps])).max() <= longest


@ALL
def test_from_rest_no_change_moves_nothing(config: AggregationConfig) -> None:
    """While nobody moves, the adapter stays bit for bit."""
    start = {"w": np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)}
    moved, _ = step(config, start, {"w": np.zeros(SHAPE)}, {})
    assert np.array_equal(moved["w"], start["w"])


@WITH_MOMENTS
def test_what_nobody_trained_waits(config: AggregationConfig) -> None:
    """A tensor without a change in a round stays with its moments, and goes on later as if that round had not been."""
    start = {name: np.zeros(SHAPE, np.float32) for name in ("often", "seldom")}
    change = np.random.default_rng(0).normal(size=SHAPE)
    once = step(config, start, {"often": change, "seldom": change}, {})
    between = step(config, once[0], {"often": change}, once[1])
    assert np.array_equal(between[0]["seldom"], once[0]["seldom"])
    (later, _), (twice, _) = (step(config, a, {"seldom": change}, m) for a, m in (between, once))
    assert np.array_equal(later["seldom"], twice["seldom"])
    assert not np.array_equal(between[0]["often"], once[0]["often"])


@given(st.integers(0, 2**31))
@settings(max_examples=30)
def test_momentum_of_b_is_momentum_of_the_product(seed: int) -> None:
    """With A frozen, FedAvgM on B is FedAvgM on the products that the devices' changes mean."""
    adapter, moments = dict[str, Array](make_adapter(layers=1)), dict[str, Array]()
    a = adapter["block.0/q.lora_A"].astype(np.float64)
    shape = adapter["block.0/q.lora_B"].shape
    dense, momentum = np.zeros((shape[0], a.shape[1])), np.zeros((shape[0], a.shape[1]))
    for round_ in range(3):
        deltas = [make_delta({"block.0/q.lora_B": shape}, seed + 10 * round_ + k) for k in range(2)]
        momentum = FEDAVGM.beta1 * momentum + sum(d.tensors["block.0/q.lora_B"] for d in deltas) / 2 @ a
        dense = dense + FEDAVGM.rate * momentum
        result = aggregate(FEDAVGM, adapter, [Contribution(d, 3) for d in deltas], moments)
        assert isinstance(result, Aggregate)
        adapter, moments = dict(result.adapter), dict(result.moments)
    np.testing.assert_allclose(adapter["block.0/q.lora_B"] @ a, dense, atol=1e-5)
    assert np.array_equal(adapter["block.0/q.lora_A"], make_adapter(layers=1)["block.0/q.lora_A"])


# ---- as blobs: what a coordinator that is killed and started again has


def begin(folder: pathlib.Path) -> tuple[BlobStore, Blob]:
    """A store with the adapter that a run starts from."""
    folder.mkdir()
    write_tensors(folder / "adapter", make_adapter())
    store = BlobStore(folder)
    return store, store.adopt(folder / "adapter")


def delivered(store: BlobStore, adapter: Blob, seed: int) -> Blob:
    """A device's change of B, from `adapter`."""
    shapes = {name: array.shape for name, array in make_adapter().items() if name.endswith("lora_B")}
    task = dataclasses.replace(make_task(), adapter=adapter)
    return store.put(delta_bytes(task, "pi", make_delta(shapes, seed)))


def play(config: AggregationConfig, store: BlobStore, adapter: Blob, rounds: int) -> list[NextAdapter]:
    """Rounds of two devices that train B: each reads from the store what the one before left there."""
    made = [NextAdapter(adapter, None, 0.0)]
    for round_ in range(rounds):
        before = made[-1]
        deltas = [(delivered(store, before.blob, 10 * round_ + k), 1.0) for k in range(2)]
        after = aggregate_blobs(config, store, store, before.blob, before.moments, deltas)
        assert isinstance(after, NextAdapter)
        made.append(after)
    return made


@ALL
def test_the_same_blobs_give_the_same_bytes(tmp_path: pathlib.Path, config: AggregationConfig) -> None:
    """Done again, in another folder or over what is there already, aggregation gives the same adapter and moments."""
    store, adapter = begin(tmp_path / "one")
    made = play(config, store, adapter, rounds=3)
    assert play(config, store, adapter, rounds=3) == made
    assert play(config, *begin(tmp_path / "other"), rounds=3) == made
    assert len({one.blob for one in made}) == 4
    assert [one.moments is None for one in made] == [True] + 3 * [config is FEDAVG]


@WITH_MOMENTS
def test_moments_are_what_the_next_round_goes_on_from(tmp_path: pathlib.Path, config: AggregationConfig) -> None:
    """Moments that are lost would change the next adapter, and damaged ones are refused."""
    store, adapter = begin(tmp_path / "run")
    made = play(config, store, adapter, rounds=2)
    moments = made[1].moments
    assert moments is not None
    delta = (delivered(store, made[1].blob, 99), 1.0)
    with_them = aggregate_blobs(config, store, store, made[1].blob, moments, [delta])
    without = aggregate_blobs(config, store, store, made[1].blob, None, [delta])
    assert isinstance(with_them, NextAdapter)
    assert isinstance(without, NextAdapter)
    assert with_them.blob != without.blob
    kinds = {name.split("/")[0] for name in read_tensors(store.path(moments.sha256))}
    assert kinds == ({"m", "v"} if config is FEDADAM else {"m"})
    store.path(moments.sha256).write_bytes(bytes(moments.size_bytes))
    with pytest.raises(IntegrityError):
        aggregate_blobs(config, store, store, made[1].blob, moments, [delta])
