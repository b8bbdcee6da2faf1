"""The laws of the estimators: what they take of a round's deltas, and what liars among those can do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregate import krum, lora
from coordinator.aggregate.coordinatewise import median, trimmed_mean
from coordinator.aggregate.rules import Aggregate, Contribution, NoAggregate, aggregate
from coordinator.config import AggregationConfig, MeanOver, Rule
from coordinator.guards import Estimator
from coordinator.validate import MAX_CHANGE
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.tensors import Array
from tests.coordinator.samples import make_adapter, make_delta

ADAPTER = make_adapter()
ONLY_B = {name: array.shape for name, array in ADAPTER.items() if name.endswith("lora_B")}
WHOLE = {name: array.shape for name, array in ADAPTER.items()}
LIARS = 2
MEDIAN, TRIMMED, KRUM = (
    AggregationConfig(rule=Rule.FREEZE_A, estimator=estimator, byzantine=LIARS)
    for estimator in (Estimator.MEDIAN, Estimator.TRIMMED_MEAN, Estimator.MULTI_KRUM)
)
KRUM_OF_PRODUCTS = AggregationConfig(rule=Rule.LORA_SVD, estimator=Estimator.MULTI_KRUM, byzantine=LIARS)
ROBUST = pytest.mark.parametrize("config", [MEDIAN, TRIMMED, KRUM], ids=lambda config: config.estimator.value)

seeds = st.integers(0, 2**31)
values = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9)
lies = st.floats(-MAX_CHANGE, MAX_CHANGE, width=32)


def deltas(count: int, seed: int, shapes: dict[str, tuple[int, ...]] = ONLY_B) -> list[Delta]:
    """Of honest devices: random, and alike in size."""
    return [make_delta(shapes, seed + k) for k in range(count)]


def changes(config: AggregationConfig, came: list[Delta], weights: list[int] | None = None) -> dict[str, Array]:
    """What the adapter moves by."""
    contributions = [Contribution(d, w) for d, w in zip(came, weights or [1] * len(came), strict=True)]
    result = aggregate(config, ADAPTER, contributions, {})
    assert isinstance(result, Aggregate)
    return {name: array.astype(np.float64) - ADAPTER[name] for name, array in result.adapter.items()}


# ---- of single numbers


@given(values, st.data())
def test_liars_do_not_move_a_number_out_of_the_honest_range(honest: list[float], data: st.DataObject) -> None:
    """Whatever fewer liars than honest devices send, both middles stay within what honest devices sent."""
    liars = data.draw(st.lists(lies, max_size=len(honest) - 1))
    came = np.array(data.draw(st.permutations([*honest, *liars])))
    assert min(honest) <= median(came) <= max(honest)
    rounding = 1e-12  # a mean of equal numbers may differ from them in the last bit
    assert min(honest) - rounding <= trimmed_mean(came, len(liars)) <= max(honest) + rounding


@given(values, lies)
def test_a_majority_moves_both(honest: list[float], lie: float) -> None:
    """The bound is tight: more liars than honest devices decide, and one that is not trimmed moves a mean."""
    came = np.array([*honest, *[lie] * (len(honest) + 1)])
    assert median(came) == pytest.approx(lie)
    lonely = np.array([*honest, 1e6])
    assert trimmed_mean(lonely, 0) > 1e4


@given(values, st.randoms())
def test_who_came_first_does_not_matter(came: list[float], lot: object) -> None:
    """Bit for bit."""
    mixed = list(came)
    lot.shuffle(mixed)  # type: ignore[attr-defined]
    trim = (len(came) - 1) // 2
    assert median(np.array(mixed)) == median(np.array(came))
    assert trimmed_mean(np.array(mixed), trim) == trimmed_mean(np.array(came), trim)


@given(values)
def test_of_single_numbers_as_the_paper_says(came: list[float]) -> None:
    """The slow reference: the middle of the sorted values, and the mean of what is left of them."""
    row, count = sorted(came), len(came)
    middle = row[count // 2] if count % 2 else (row[count // 2 - 1] + row[count // 2]) / 2
    assert median(np.array(came)) == pytest.approx(middle, abs=1e-12)
    for trim in range((count + 1) // 2):
        kept = row[trim : count - trim]
        assert trimmed_mean(np.array(came), trim) == pytest.approx(sum(kept) / len(kept), abs=1e-12)


def test_nothing_left_is_misuse() -> None:
    """A mean of no values is refused."""
    with pytest.raises(ValueError, match="nothing is left"):
        trimmed_mean(np.zeros(4), 2)


def test_without_liars_all_are_near_the_mean() -> None:
    """Of 400 normal values of 2,000 numbers: off the mean by what theory says, at most a quarter more or less.

    The median's variance is pi / (2 n), the mean's 1 / n; a trimmed mean's lies between. Their distance to the mean
    has the difference.
    """
    random = np.random.default_rng(3)
    came = random.normal(size=(400, 2000))
    far = float(np.std(median(came) - came.mean(axis=0)))
    assert far == pytest.approx(np.sqrt((np.pi / 2 - 1) / 400), rel=0.1)
    assert 0 < float(np.std(trimmed_mean(came, 80) - came.mean(axis=0))) < far
    assert np.allclose(trimmed_mean(came, 0), came.mean(axis=0))


# ---- multi-Krum


def by_the_book(vectors: Array, byzantine: int) -> set[int]:
    """Equation 3, one distance at a time."""
    count = len(vectors)
    scores = []
    for i in range(count):
        far = sorted(float(np.sum((vectors[i] - vectors[j]) ** 2)) for j in range(count) if j != i)
        scores.append(sum(far[: count - byzantine - 2]))
    return set(np.argsort(scores)[: count - byzantine - 2].tolist())


@given(seeds, st.integers(1, 3), st.integers(0, 4))
@settings(max_examples=40)
def test_krum_is_the_papers(seed: int, byzantine: int, more: int) -> None:
    """The same choice as a loop over the formula, from numbers and from products."""
    came = deltas(2 * byzantine + 3 + more, seed, WHOLE)
    names = [krum.name_of(delta) for delta in came]
    vectors = np.stack([np.concatenate([a.ravel() for a in delta.tensors.values()]) for delta in came]).astype(float)
    assert set(krum.chosen(krum.squared_distances(came), byzantine, names)) == by_the_book(vectors, byzantine)
    squared = krum.squared_distances_of_products(came, [ADAPTER] * len(came))
    dense = np.stack([np.concatenate([dense_change(delta, k) for k in range(2)]) for delta in came])
    assert set(krum.chosen(squared, byzantine, names)) == by_the_book(dense, byzantine)
    for i, j in itertools.combinations(range(len(came)), 2):
        assert squared[i, j] == pytest.approx(np.sum((dense[i] - dense[j]) ** 2), rel=1e-6)


def dense_change(delta: Delta, block: int) -> Array:
    """Of a product, number by number."""
    a, b = f"block.{block}/q.lora_A", f"block.{block}/q.lora_B"
    after = (ADAPTER[b] + delta.tensors[b]).astype(float) @ (ADAPTER[a] + delta.tensors[a]).astype(float)
    return np.asarray(after - ADAPTER[b].astype(float) @ ADAPTER[a].astype(float)).ravel()


@given(seeds, st.floats(10, 1e4))
@settings(max_examples=30)
def test_krum_leaves_out_what_is_far_away(seed: int, far: float) -> None:
    """Liars that are far from all honest devices are never chosen, together or apart, in numbers or in products."""
    honest = deltas(7, seed, WHOLE)
    for liars in ([far * honest[0]] * LIARS, [far * honest[0], -far * honest[1]]):
        came = [*honest, *liars]
        names = [krum.name_of(delta) for delta in came]
        assert max(krum.chosen(krum.squared_distances(came), LIARS, names)) < len(honest)
        squared = krum.squared_distances_of_products(came, [ADAPTER] * len(came))
        assert max(krum.chosen(squared, LIARS, names)) < len(honest)


def test_products_of_devices_of_lower_ranks_have_distances() -> None:
    """Devices that were given the adapter at another rank are compared by what they changed of the product."""
    narrow = {name: np.array(array) for name, array in lora.at_rank(started(), 1).items()}
    wide, thin = make_delta(WHOLE, 1), make_delta({name: array.shape for name, array in narrow.items()}, 2)
    squared = krum.squared_distances_of_products([wide, thin, wide], [started(), narrow, started()])
    change = [np.subtract(*pair) for pair in zip(products(narrow, thin), products(narrow), strict=True)]
    other = [np.subtract(*pair) for pair in zip(products(started(), wide), products(started()), strict=True)]
    wanted = sum(float(np.sum((a - b) ** 2)) for a, b in zip(change, other, strict=True))
    assert squared[0, 1] == pytest.approx(wanted, rel=1e-6)
    assert squared[0, 2] == pytest.approx(0, abs=1e-9)


def started() -> dict[str, Array]:
    """The adapter in the middle of a run: no factor is zero."""
    return {name: array + make_delta(WHOLE, 9).tensors[name] for name, array in ADAPTER.items()}


def products(adapter: dict[str, Array], delta: Delta | None = None) -> list[Array]:
    """Of each block, float64, with a delta added."""
    after = {n: array.astype(float) + (delta.tensors[n] if delta else 0) for n, array in adapter.items()}
    return [after[f"block.{k}/q.lora_B"] @ after[f"block.{k}/q.lora_A"] for k in range(2)]


# ---- of whole deltas


@ROBUST
@given(seed=seeds, order=st.permutations(range(8)))
@settings(max_examples=20)
def test_the_order_of_devices_does_not_matter(config: AggregationConfig, seed: int, order: list[int]) -> None:
    """The adapter is the same, up to rounding of sums."""
    came = deltas(8, seed)
    one, other = changes(config, came), changes(config, [came[k] for k in order])
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=1e-7)


@ROBUST
def test_of_equal_deltas_it_is_that_delta(config: AggregationConfig) -> None:
    """Where all agree there is nothing to choose, and the number of examples is no vote."""
    (one,) = deltas(1, 5)
    found = changes(config, [one] * 7, [1, 2, 3, 4, 5, 6, 999])
    for name, array in one.tensors.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6)
    assert all(np.array_equal(found[name], np.zeros(shape)) for name, shape in WHOLE.items() if name not in ONLY_B)


@ROBUST
@given(seed=seeds, boost=st.floats(-1e5, 1e5))
@settings(max_examples=30)
def test_two_liars_move_it_a_bounded_way(config: AggregationConfig, seed: int, boost: float) -> None:
    """However far two of nine go, together: the adapter stays within reach of honest devices. The mean does not."""
    honest = deltas(7, seed)
    lie = boost * deltas(1, seed + 50)[0]
    found = changes(config, [*honest, lie, lie])
    for name in ONLY_B:
        stack = np.stack([delta.tensors[name] for delta in honest])
        largest = np.abs(stack).max()
        assert np.abs(found[name]).max() <= largest * (1 + 1e-5) or config.estimator is Estimator.MULTI_KRUM
        assert np.abs(found[name]).max() <= 10 * largest
    mean = changes(AggregationConfig(rule=Rule.FREEZE_A), [*honest, 1e5 * lie, 1e5 * lie])
    assert abs(boost) < 0.1 or max(np.abs(mean[name]).max() for name in ONLY_B) > 100


@pytest.mark.parametrize("config", [MEDIAN, TRIMMED, KRUM, KRUM_OF_PRODUCTS])
def test_too_few_deltas_are_said_and_get_no_mean(config: AggregationConfig) -> None:
    """One fewer than the estimator needs gives no adapter, and a line; as many as it needs give one."""
    least = config.estimator.least(LIARS)
    few = [Contribution(delta, 1) for delta in deltas(least - 1, 1, WHOLE)]
    found = aggregate(config, ADAPTER, few, {})
    assert isinstance(found, NoAggregate)
    assert f"needs {least}" in found.why
    more = [*few, Contribution(make_delta(WHOLE, 99), 1)]
    assert isinstance(aggregate(config, ADAPTER, more, {}), Aggregate)


def test_a_layer_that_few_trained_is_said() -> None:
    """Among those that trained it there may be too few; over all, the others count as having left it as it was."""
    one_layer = {name: shape for name, shape in ONLY_B.items() if "block.0" in name}
    came = [Contribution(d, 1) for d in [*deltas(5, 1, one_layer), *deltas(4, 9)]]
    found = aggregate(MEDIAN, ADAPTER, came, {})
    assert isinstance(found, NoAggregate)
    assert "4 deltas of block.1/q.lora_B" in found.why
    over_all = AggregationConfig(
        rule=Rule.FREEZE_A, estimator=Estimator.MEDIAN, byzantine=LIARS, mean_over=MeanOver.ALL
    )
    result = aggregate(over_all, ADAPTER, came, {})
    assert isinstance(result, Aggregate)
    assert np.array_equal(result.adapter["block.1/q.lora_B"], ADAPTER["block.1/q.lora_B"])
    assert not np.array_equal(result.adapter["block.0/q.lora_B"], ADAPTER["block.0/q.lora_B"])
    krum_ = aggregate(KRUM, ADAPTER, came, {})
    assert isinstance(krum_, NoAggregate)
    assert "different tensors" in krum_.why


def test_krum_of_products_is_the_mean_of_the_chosen() -> None:
    """Under lora-svd the next adapter is that of the chosen devices alone, by the same rule."""
    honest = deltas(7, 4, WHOLE)
    liar = Contribution(1e3 * honest[0], 1)
    robust = aggregate(KRUM_OF_PRODUCTS, ADAPTER, [*(Contribution(d, 9) for d in honest), liar, liar], {})
    squared = krum.squared_distances_of_products([*honest, liar.delta, liar.delta], [ADAPTER] * 9)
    names = [krum.name_of(delta) for delta in [*honest, liar.delta, liar.delta]]
    best = [Contribution(honest[k], 1) for k in krum.chosen(squared, LIARS, names)]
    mean = aggregate(AggregationConfig(rule=Rule.LORA_SVD), ADAPTER, best, {})
    assert isinstance(robust, Aggregate)
    assert isinstance(mean, Aggregate)
    assert all(np.array_equal(array, mean.adapter[name]) for name, array in robust.adapter.items())
