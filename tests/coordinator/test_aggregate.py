"""The laws of aggregation."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregate import lora, mean, rules
from coordinator.aggregate.rules import Aggregate, Contribution, NoAggregate, clip
from coordinator.config import AggregationConfig, MeanOver, Rule
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array

OUT, IN, RANK = 7, 9, 3
SVD = AggregationConfig(rule=Rule.LORA_SVD)
FREEZE_A = AggregationConfig(rule=Rule.FREEZE_A)
SVD_ALL = AggregationConfig(rule=Rule.LORA_SVD, mean_over=MeanOver.ALL)
FREEZE_A_ALL = AggregationConfig(rule=Rule.FREEZE_A, mean_over=MeanOver.ALL)

seeds = st.integers(0, 2**31)
weights = st.lists(st.integers(1, 1000), min_size=1, max_size=5)


def adapter(seed: int = 0, modules: int = 2) -> dict[str, Array]:
    """An adapter in the middle of a run: neither factor is zero; and a head that is no LoRA factor."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {"head/weight": random.normal(size=(4, 5)).astype(np.float32)}
    for k in range(modules):
        tensors[f"block.{k}/q.lora_A"] = random.normal(size=(RANK, IN)).astype(np.float32)
        tensors[f"block.{k}/q.lora_B"] = random.normal(size=(OUT, RANK)).astype(np.float32)
    return tensors


def change(of: dict[str, Array], seed: int, *, only: str = "", scale: float = 0.1) -> Delta:
    """A random delta of the tensors whose name contains `only`."""
    random = np.random.default_rng(seed)
    chosen = {name: array.shape for name, array in of.items() if only in name}
    return Delta({n: np.asarray(random.normal(0, scale, shape), np.float32) for n, shape in chosen.items()})


def aggregate(config: AggregationConfig, start: dict[str, Array], contributions: Iterable[Contribution]) -> Aggregate:
    """The first round's aggregate: no server optimizer has moments yet."""
    return made(rules.aggregate(config, start, contributions, {}))


def made(result: Aggregate | NoAggregate) -> Aggregate:
    """An aggregate there is."""
    assert isinstance(result, Aggregate)
    return result


def product(tensors: dict[str, Array], module: str) -> Array:
    """`B @ A` of a module, float64."""
    b, a = tensors[f"{module}.lora_B"], tensors[f"{module}.lora_A"]
    result: Array = b.astype(np.float64) @ a.astype(np.float64)
    return result


def after(start: dict[str, Array], delta: Delta) -> dict[str, Array]:
    """A device's own adapter when it was done."""
    return {name: array + delta.tensors[name] if name in delta.tensors else array for name, array in start.items()}


@given(seeds, st.integers(1, 10**6))
def test_one_device_keeps_its_own_product(seed: int, weight: int) -> None:
    """The aggregate of one device is that device's product up to float32, with nothing lost."""
    start = adapter()
    delta = change(start, seed)
    result = aggregate(SVD, start, [Contribution(delta, weight)])
    for module in ("block.0/q", "block.1/q"):
        wanted = product(after(start, delta), module)
        np.testing.assert_allclose(product(dict(result.adapter), module), wanted, atol=3e-6)
    assert result.truncation < 1e-6


@given(seeds, weights)
@settings(max_examples=40)
def test_svd_is_the_best_of_its_rank(seed: int, shares: list[int]) -> None:
    """The product is the truncated SVD of the dense weighted mean of products; the error reported is its distance."""
    start = adapter(modules=1)
    deltas = [change(start, seed + k) for k in range(len(shares))]
    result = aggregate(SVD, start, [Contribution(d, w) for d, w in zip(deltas, shares, strict=True)])
    dense = sum(w * product(after(start, d), "block.0/q") for d, w in zip(deltas, shares, strict=True)) / sum(shares)
    values = np.linalg.svd(dense)[1]
    lost = np.linalg.norm(product(dict(result.adapter), "block.0/q") - dense) / np.linalg.norm(dense)
    assert lost == pytest.approx(np.linalg.norm(values[RANK:]) / np.linalg.norm(values), abs=1e-5)
    assert result.truncation == pytest.approx(lost, abs=1e-5)


@given(seeds, st.permutations(range(4)))
@settings(max_examples=30)
def test_the_order_of_devices_does_not_matter(seed: int, order: list[int]) -> None:
    """Both rules give the same model whoever delivered first."""
    start = adapter()
    for config, only in ((SVD, ""), (FREEZE_A, "lora_B")):
        deltas = [Contribution(change(start, seed + k, only=only), 1 + k) for k in range(4)]
        one = aggregate(config, start, deltas).adapter
        other = aggregate(config, start, [deltas[k] for k in order]).adapter
        for module in ("block.0/q", "block.1/q"):
            np.testing.assert_allclose(product(dict(one), module), product(dict(other), module), atol=1e-5)
        np.testing.assert_allclose(one["head/weight"], other["head/weight"], atol=1e-6)


@given(seeds, weights)
@settings(max_examples=40)
def test_with_a_frozen_the_mean_is_exact(seed: int, shares: list[int]) -> None:
    """`freeze-a` gives the mean of the products itself, not its approximation, and leaves A alone."""
    start = adapter(modules=1)
    deltas = [change(start, seed + k, only="lora_B") for k in range(len(shares))]
    result = aggregate(FREEZE_A, start, [Contribution(d, w) for d, w in zip(deltas, shares, strict=True)])
    dense = sum(w * product(after(start, d), "block.0/q") for d, w in zip(deltas, shares, strict=True)) / sum(shares)
    np.testing.assert_allclose(product(dict(result.adapter), "block.0/q"), dense, atol=1e-5)
    assert np.array_equal(result.adapter["block.0/q.lora_A"], start["block.0/q.lora_A"])
    assert result.truncation == 0


@pytest.mark.parametrize("config", [SVD, FREEZE_A, SVD_ALL, FREEZE_A_ALL])
def test_zero_deltas_change_nothing(config: AggregationConfig) -> None:
    """If nobody moved, the next adapter is the old one, bit for bit."""
    start = adapter()
    nothing = 0.0 * change(start, 1)
    result = aggregate(config, start, [Contribution(nothing, 3), Contribution(nothing, 5)])
    assert all(np.array_equal(result.adapter[name], array) for name, array in start.items())
    assert result.adapter.keys() == start.keys()


@pytest.mark.parametrize("config", [SVD, FREEZE_A])
def test_a_layer_is_averaged_over_those_who_trained_it(config: AggregationConfig) -> None:
    """What one device alone trained is that device's, whatever the weights of the others; what nobody did stays."""
    start = adapter(modules=3)
    only = "lora_B" if config is FREEZE_A else ""
    both, one = change(start, 1, only=f"block.0/q.{only}"), change(start, 2, only=f"block.1/q.{only}")
    contributions = [Contribution(both + one, 1), Contribution(both, 999)]
    result = dict(aggregate(config, start, contributions).adapter)
    np.testing.assert_allclose(product(result, "block.1/q"), product(after(start, one), "block.1/q"), atol=1e-5)
    np.testing.assert_allclose(product(result, "block.0/q"), product(after(start, both), "block.0/q"), atol=1e-5)
    assert np.array_equal(result["block.2/q.lora_A"], start["block.2/q.lora_A"])


@given(seeds, weights)
@settings(max_examples=40)
def test_over_all_whoever_did_not_train_a_layer_left_it(seed: int, shares: list[int]) -> None:
    """With `all` a device without a layer counts as one that trained it and came back with what it had been given."""
    start = adapter(modules=1)
    for config, only in ((SVD_ALL, ""), (FREEZE_A_ALL, "lora_B")):
        trained = [Contribution(change(start, seed + k, only=only), w) for k, w in enumerate(shares)]
        idle = Contribution(0.0 * trained[0].delta, 7)
        partial = aggregate(config, start, [*trained, Contribution(Delta({}), 7)])
        whole = aggregate(config, start, [*trained, idle])
        np.testing.assert_allclose(
            product(dict(partial.adapter), "block.0/q"), product(dict(whole.adapter), "block.0/q"), atol=1e-5
        )
        np.testing.assert_allclose(partial.adapter["head/weight"], whole.adapter["head/weight"], atol=1e-6)
        assert partial.truncation == pytest.approx(whole.truncation, abs=1e-6)


@given(seeds, weights)
@settings(max_examples=20)
def test_where_all_trained_it_is_the_same_mean(seed: int, shares: list[int]) -> None:
    """When every device trained every layer, `trained` and `all` give the same bytes."""
    start = adapter()
    for one, other in ((SVD, SVD_ALL), (FREEZE_A, FREEZE_A_ALL)):
        delivered = [Contribution(change(start, seed + k), w) for k, w in enumerate(shares)]
        first, second = aggregate(one, start, delivered), aggregate(other, start, delivered)
        assert all(np.array_equal(array, second.adapter[name]) for name, array in first.adapter.items())


@given(seeds, weights, st.floats(0.1, 2.0))
@settings(max_examples=40)
def test_a_servers_rate_goes_along_the_mean_of_products(seed: int, shares: list[int], rate: float) -> None:
    """`lora-svd` with a learning rate gives the best of its rank for `P + rate (mean - P)`."""
    start = adapter(modules=1)
    config = AggregationConfig(learning_rate=rate)
    deltas = [change(start, seed + k) for k in range(len(shares))]
    result = aggregate(config, start, [Contribution(d, w) for d, w in zip(deltas, shares, strict=True)])
    dense = sum(w * product(after(start, d), "block.0/q") for d, w in zip(deltas, shares, strict=True)) / sum(shares)
    before = product(start, "block.0/q")
    wanted = before + rate * (dense - before)
    values = np.linalg.svd(wanted)[1]
    lost = np.linalg.norm(product(dict(result.adapter), "block.0/q") - wanted) / np.linalg.norm(wanted)
    assert lost == pytest.approx(np.linalg.norm(values[RANK:]) / np.linalg.norm(values), abs=1e-5)
    assert result.truncation == pytest.approx(lost, abs=1e-5)


# ---- devices of a lower rank


@given(seeds, st.integers(1, 4))
def test_a_lower_rank_gets_the_best_approximation(seed: int, rank: int) -> None:
    """What a level of a lower rank begins with is nearest to the adapter; one of no lower rank gets the adapter."""
    start = adapter(seed)
    begun = lora.at_rank(start, rank)
    assert begun["head/weight"] is start["head/weight"]
    for module in ("block.0/q", "block.1/q"):
        whole = product(start, module)
        values = np.linalg.svd(whole)[1]
        lost = np.linalg.norm(product(begun, module) - whole)
        assert lost == pytest.approx(np.linalg.norm(values[rank:]) if rank < RANK else 0.0, abs=1e-5)
        assert begun[f"{module}.lora_A"].shape == (min(rank, RANK), IN)
        assert begun[f"{module}.lora_B"].shape == (OUT, min(rank, RANK))
        if rank >= RANK:
            assert begun[f"{module}.lora_A"] is start[f"{module}.lora_A"]


@given(seeds, st.lists(st.tuples(st.integers(1, RANK), st.integers(1, 100)), min_size=1, max_size=5))
@settings(max_examples=40)
def test_every_rank_adds_what_it_changed(seed: int, devices: list[tuple[int, int]]) -> None:
    """The aggregate is the best of its rank for the adapter plus the mean change, whatever the devices' ranks."""
    start = adapter(modules=1)
    whole = product(start, "block.0/q")
    contributions, dense = list[Contribution](), np.zeros((OUT, IN))
    for k, (rank, weight) in enumerate(devices):
        narrow = lora.at_rank(start, rank)
        delta = change(narrow, seed + k)
        contributions.append(Contribution(delta, weight, narrow if rank < RANK else None))
        dense += weight * (whole + product(after(narrow, delta), "block.0/q") - product(narrow, "block.0/q"))
    dense /= sum(weight for _, weight in devices)
    result = aggregate(SVD, start, contributions)
    values = np.linalg.svd(dense)[1]
    lost = np.linalg.norm(product(dict(result.adapter), "block.0/q") - dense) / np.linalg.norm(dense)
    assert lost == pytest.approx(np.linalg.norm(values[RANK:]) / np.linalg.norm(values), abs=1e-5)
    assert result.adapter["block.0/q.lora_A"].shape == (RANK, IN)


def test_a_lower_rank_takes_nothing_away() -> None:
    """Devices that were given less than the adapter and changed nothing leave all of it as it is, bit for bit."""
    start = adapter()
    narrow = lora.at_rank(start, 1)
    nothing = 0.0 * change(narrow, 1)
    result = aggregate(SVD, start, [Contribution(nothing, 3, narrow), Contribution(nothing, 5, narrow)])
    assert all(np.array_equal(result.adapter[name], array) for name, array in start.items())


def test_weights_count() -> None:
    """A device with three times the examples pulls three times as hard."""
    start = adapter(modules=0)
    one, three = (Delta({"head/weight": np.full((4, 5), value, np.float32)}) for value in (1.0, -1.0))
    moved = aggregate(SVD, start, [Contribution(one, 1), Contribution(three, 3)]).adapter["head/weight"]
    np.testing.assert_allclose(moved, start["head/weight"] - 0.5, atol=1e-6)


def test_averaging_factors_apart_would_differ() -> None:
    """The control: mean(B) @ mean(A) is far from the mean of products that `lora-svd` approximates best."""
    start = adapter(modules=1)
    deltas = [change(start, k, scale=1.0) for k in range(2)]
    dense = sum(product(after(start, d), "block.0/q") for d in deltas) / 2
    apart = product(after(start, Delta(mean.finish(_mean_of(start, deltas), MeanOver.TRAINED))), "block.0/q")
    ours = product(dict(aggregate(SVD, start, [Contribution(d, 1) for d in deltas]).adapter), "block.0/q")
    assert np.linalg.norm(ours - dense) < 0.7 * np.linalg.norm(apart - dense)


def _mean_of(start: dict[str, Array], deltas: list[Delta]) -> mean.State:
    state = mean.init(start)
    for delta in deltas:
        state = mean.accumulate(state, delta, 1.0)
    return state


def test_no_direction_dies() -> None:
    """Where the product has a lower rank than the adapter, B is zero and A is not: no gradient is stuck."""
    start = adapter(modules=1)
    start["block.0/q.lora_B"][:] = 0
    one_column = np.zeros((OUT, RANK), np.float32)
    one_column[:, 0] = 0.5
    delta = Delta({"block.0/q.lora_B": one_column})
    result = aggregate(SVD, start, [Contribution(delta, 1)]).adapter
    assert np.linalg.norm(result["block.0/q.lora_A"], axis=1).min() > 0.1
    assert np.array_equal(np.linalg.norm(result["block.0/q.lora_B"], axis=0) > 0, [True, False, False])
    np.testing.assert_allclose(product(dict(result), "block.0/q"), product(after(start, delta), "block.0/q"), atol=1e-6)


def test_product_zero_keeps_a() -> None:
    """A device that moved A alone while B is zero changed nothing: A stays, B stays zero."""
    start = adapter(modules=1)
    start["block.0/q.lora_B"][:] = 0
    result = aggregate(SVD, start, [Contribution(change(start, 1, only="lora_A"), 1)]).adapter
    assert np.array_equal(result["block.0/q.lora_A"], start["block.0/q.lora_A"])
    assert not result["block.0/q.lora_B"].any()


def test_many_devices_cost_no_more_than_the_product() -> None:
    """The stacked factors stop growing at twice the smaller side, without loss."""
    start = adapter(modules=1)
    state, dense = lora.init(start), np.zeros((OUT, IN))
    for k in range(40):
        delta = change(start, k)
        state = lora.accumulate(state, delta, 1.0, start)
        dense += product(after(start, delta), "block.0/q")
    stack = state.stacks["block.0/q."]
    assert stack.left.shape[1] <= 2 * min(OUT, IN) + RANK
    np.testing.assert_allclose(stack.left @ stack.right, dense, atol=1e-4)


def test_factors_come_out_balanced() -> None:
    """Each column of B is as long as its row of A."""
    start = adapter(modules=1)
    result = aggregate(SVD, start, [Contribution(change(start, k), 1) for k in range(3)]).adapter
    columns = np.linalg.norm(result["block.0/q.lora_B"], axis=0)
    np.testing.assert_allclose(columns, np.linalg.norm(result["block.0/q.lora_A"], axis=1), rtol=1e-5)


def test_rank_over_the_matrix_is_allowed() -> None:
    """A rank above the smaller side of the matrix pads with zeros and loses nothing."""
    random = np.random.default_rng(0)
    start = {"m.lora_A": random.normal(size=(8, 3)), "m.lora_B": random.normal(size=(4, 8))}
    start = {name: array.astype(np.float32) for name, array in start.items()}
    delta = change(start, 1)
    result = aggregate(SVD, start, [Contribution(delta, 1)])
    np.testing.assert_allclose(product(dict(result.adapter), "m"), product(after(start, delta), "m"), atol=1e-5)
    assert {name: array.shape for name, array in result.adapter.items()} == {"m.lora_A": (8, 3), "m.lora_B": (4, 8)}


@given(seeds, st.floats(0.01, 10))
def test_clipping_bounds_the_norm(seed: int, bound: float) -> None:
    """A delta over the bound keeps its direction and gets the bound's length; one below it is left alone."""
    delta = change(adapter(), seed)
    clipped = clip(delta, bound)
    assert clipped.norm() <= bound * (1 + 1e-5)
    if delta.norm() <= bound:
        assert clipped is delta
    assert clip(delta, 0.0) is delta


def test_a_weight_of_zero_is_misuse() -> None:
    """A contribution without weight is refused: a mean over nothing has no value."""
    with pytest.raises(ValueError, match="weight"):
        mean.accumulate(mean.init(adapter()), change(adapter(), 1), 0.0)


@given(seeds, st.floats(1.01, 1e5))
@settings(max_examples=30)
def test_one_boosted_delta_moves_no_more_than_its_limit(seed: int, boost: float) -> None:
    """A delta over the size limit counts as the same one at the limit, under every rule; others count as they are."""
    start = adapter()
    for config, only in ((SVD, ""), (FREEZE_A, "lora_B")):
        honest = Contribution(change(start, seed, only=only), 1)
        limit = honest.delta.size()
        boosted = Contribution(boost * change(start, seed + 1, only=only, scale=0.2), 1)
        held = Contribution(boosted.delta * (limit / boosted.delta.size()), 1)
        bounded = made(rules.aggregate(config, start, [honest, boosted], {}, size_limit=limit)).adapter
        wanted = aggregate(config, start, [honest, held]).adapter
        for name, array in wanted.items():
            np.testing.assert_allclose(bounded[name], array, atol=1e-5)


@given(seeds, st.floats(0, 1), st.integers(1, 1000))
@settings(max_examples=40)
def test_what_comes_late_is_added_to_what_there_is_now(seed: int, scale: float, weight: int) -> None:
    """A device that was given an older adapter adds the change that it made of that one's product, less of it, to the
    product as it is; what is in time counts whole. So it is with A frozen, and with tensors that are no factors.
    """
    now, then = adapter(1, modules=1), adapter(2, modules=1)
    late, fresh = change(then, seed), change(now, seed + 1)
    for config, only in ((SVD, ""), (FREEZE_A, "lora_B")):
        if only:  # A is the same in all rounds
            then["block.0/q.lora_A"] = now["block.0/q.lora_A"]
            late, fresh = change(then, seed, only=only), change(now, seed + 1, only=only)
        came = [Contribution(late, weight, then, scale), Contribution(fresh, 7)]
        result = dict(aggregate(config, now, came).adapter)
        before = product(now, "block.0/q")
        changes = [
            product(after(of, d), "block.0/q") - product(of, "block.0/q") for of, d in ((then, late), (now, fresh))
        ]
        dense = before + (weight * scale * changes[0] + 7 * changes[1]) / (weight + 7)
        values = np.linalg.svd(dense)[1]
        lost = np.linalg.norm(values[RANK:]) if config is SVD else 0.0
        assert np.linalg.norm(product(result, "block.0/q") - dense) == pytest.approx(lost, abs=2e-4)
        if not only:
            wanted = now["head/weight"] + (
                weight * scale * late.tensors["head/weight"] + 7 * fresh.tensors["head/weight"]
            ) / (weight + 7)
            np.testing.assert_allclose(result["head/weight"], wanted, atol=1e-6)


def test_factors_of_another_round_mean_nothing_alone() -> None:
    """A late device that changed nothing changes nothing, although the factors it was given are others than now."""
    now, then = adapter(1), adapter(2)
    nothing, fresh = 0.0 * change(then, 3), change(now, 4)
    both = [Contribution(nothing, 1, then, 0.5), Contribution(fresh, 1)]
    alone = [Contribution(0.0 * fresh, 1), Contribution(fresh, 1)]
    one, other = (dict(aggregate(SVD, now, came).adapter) for came in (both, alone))
    for module in ("block.0/q", "block.1/q"):
        np.testing.assert_allclose(product(one, module), product(other, module), atol=1e-5)
