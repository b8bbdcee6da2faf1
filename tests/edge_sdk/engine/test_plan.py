"""Plans fit the budget they were chosen for, more budget is never slower, and no device is refused in vain."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engine.plan import (
    EXACT,
    HEAD_ROWS,
    INTEGERS,
    WORTH,
    Declined,
    Plan,
    Storage,
    choose_plan,
    frontier,
    gradient_error,
    kept_segments,
    leanest,
    plans,
    predicted,
    resident_segments,
)
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.costs import PAGES, PROCESS, step_s
from edge_sdk.wire.manifest import ClassesLoss, Cost, ImageSpec, Keeping, Manifest, ModelSpec, Segment, TaskType
from tests.edge_sdk.samples import MB, TOKENS, WIDTH, make_manifest, with_integers

GRAPHS = ("forward", "backward", "keep.forward", "keep.backward", "half.forward", "half.backward")
BATCHES, LENGTHS = st.integers(1, 40), st.integers(1, 512)
SHARES = st.floats(0.9, 4)  # of what the leanest plan needs
BLOCKS = 4
CLASSES = ClassesLoss("forward", "tensors", (), {"bias": (3,)})
HALF = Keeping(16, "half.forward", "half.backward", ("kept.0",), 10 * WIDTH)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """A manifest whose costs are whatever a noisy machine may have measured: two rows may even look cheaper."""
    manifest = make_manifest()
    block = manifest.structures["block"]
    files = {
        **manifest.files,
        **{name: Blob(f"{k:064x}", draw(st.integers(0, 9 * MB))) for k, name in enumerate(GRAPHS)},
    }
    walk = (
        manifest.walk[0],
        *(Segment(f"block.{k}", "block", "tensors", trains=draw(st.booleans())) for k in range(BLOCKS)),
    )
    structures = {**manifest.structures, "block": dataclasses.replace(block, keepings=(*block.keepings, HALF))}
    manifest = dataclasses.replace(manifest, structures=structures, walk=walk, files=files)
    if draw(st.booleans()):
        manifest = dataclasses.replace(manifest, vocabulary_loss=None, classes_loss=CLASSES)
    costs = [
        Cost(PROCESS, 1, 2, draw(st.integers(30 * MB, 100 * MB)), 0.0),
        Cost(PAGES, 1, 1, MB, draw(st.floats(0, 1))),
    ]
    for graph, shape in itertools.product(GRAPHS, ((1, TOKENS), (2, TOKENS), (1, 2 * TOKENS))):
        costs.append(Cost(graph, *shape, draw(st.integers(0, 20 * MB)), draw(st.floats(0, 100))))
    return dataclasses.replace(manifest, costs=tuple(costs))


MANIFESTS = manifests()


def budget_of(share: float, manifest: Manifest, batch: int, tokens: int) -> int:
    """A budget as a share of what the leanest plan needs."""
    return round(share * leanest(plans(manifest, batch, tokens)).peak_bytes)


@settings(max_examples=50)
@given(MANIFESTS, BATCHES, LENGTHS, SHARES)
def test_the_chosen_plan_is_the_fastest_that_fits(manifest: Manifest, batch: int, tokens: int, share: float) -> None:
    """No plan within the budget is faster; where none fits the answer is what the leanest would need."""
    budget = budget_of(share, manifest, batch, tokens)
    everything = [*plans(manifest, batch, tokens, budget), *plans(manifest, batch, tokens)]
    fitting = [plan for plan in everything if plan.peak_bytes <= budget]
    chosen = choose_plan(manifest, batch, tokens, budget)
    if fitting:
        assert isinstance(chosen, Plan)
        assert chosen.peak_bytes <= budget
        assert chosen.step_ms == min(plan.step_ms for plan in fitting)
    else:
        assert chosen == Declined(leanest(everything).peak_bytes, budget)


def with_keepings(manifest: Manifest, **changes: Any) -> Manifest:
    """The same, of whose block all that is kept is changed."""
    block = manifest.structures["block"]
    keepings = tuple(dataclasses.replace(keeping, **changes) for keeping in block.keepings)
    structures = {**manifest.structures, "block": dataclasses.replace(block, keepings=keepings)}
    return dataclasses.replace(manifest, structures=structures)


@settings(max_examples=50)
@given(MANIFESTS, BATCHES, LENGTHS, st.integers(0, 1000))
def test_what_is_kept_of_a_row_counts_once_a_row(manifest: Manifest, batch: int, tokens: int, more: int) -> None:
    """So many numbers a row are as many as their share of each token's, whatever the plan."""
    by_row = with_keepings(manifest, row_floats=tokens * more)
    by_token = with_keepings(manifest, floats=10 * WIDTH + more)
    for blocks, bits in itertools.product(range(len(manifest.walked_back()) + 1), (32, 16)):
        plan = Plan(1, 32, blocks, bits)
        assert predicted(by_row, batch, tokens, plan) == predicted(by_token, batch, tokens, plan)


@settings(max_examples=50)
@given(MANIFESTS, BATCHES, LENGTHS)
def test_exactness_is_given_up_for_room_alone(manifest: Manifest, batch: int, tokens: int) -> None:
    """Where everything fits, nothing is kept in fewer bits, however the measured times fell out."""
    chosen = choose_plan(manifest, batch, tokens, 1 << 50)
    assert isinstance(chosen, Plan)
    assert (chosen.kept_bits, chosen.state_bits) == (32, 32)
    for blocks in range(len(manifest.walked_back()) + 1):
        exact, half = (predicted(manifest, batch, tokens, Plan(1, 32, blocks, bits)) for bits in (32, 16))
        assert half.step_ms >= exact.step_ms


@settings(max_examples=50)
@given(MANIFESTS, st.floats(0, 200), BATCHES, LENGTHS, SHARES)
def test_integers_are_chosen_where_allowed_and_worth_it(
    manifest: Manifest, integers_ms: float, batch: int, tokens: int, share: float
) -> None:
    """Who does not allow them gets the plan of a manifest without such graphs; who does, that or one a tenth faster.

    They make no room: what is declined, and what it would need, is the same.
    """
    budget, both = budget_of(share, manifest, batch, tokens), with_integers(manifest, integers_ms)
    exact = choose_plan(manifest, batch, tokens, budget)
    assert choose_plan(both, batch, tokens, budget) == exact
    assert {plan.back_bits for plan in plans(both, batch, tokens)} == {EXACT}
    chosen = choose_plan(both, batch, tokens, budget, integers=True)
    if isinstance(exact, Plan) and chosen != exact:
        assert isinstance(chosen, Plan)
        assert chosen.back_bits == INTEGERS
        assert chosen.step_ms <= WORTH * exact.step_ms
        assert chosen.peak_bytes <= budget
        assert gradient_error(both, chosen) == both.integers_error > gradient_error(both, exact) == 0
    else:
        assert chosen == exact


def test_fast_integers_are_chosen() -> None:
    """Where the way back is most of a step and integers make it four times as fast, they are taken; 0.1 % are not."""
    for integers_ms, bits in ((0.5, INTEGERS), (1.998, EXACT)):
        chosen = choose_plan(make_manifest(integers_ms=integers_ms), 1, TOKENS, 1 << 40, integers=True)
        assert isinstance(chosen, Plan)
        assert chosen.back_bits == bits


@given(MANIFESTS)
def test_a_structure_without_a_precision_keeps_nothing_in_it(manifest: Manifest) -> None:
    """A manifest may offer fewer precisions for one structure than for another: its segments are walked as without."""
    block = manifest.structures["block"]
    without = {**manifest.structures, "block": dataclasses.replace(block, keepings=(HALF,))}
    some = dataclasses.replace(manifest, structures=without)
    assert kept_segments(some, Plan(1, 32, BLOCKS, 32)) == {}
    assert all(isinstance(plan, Plan) for plan in plans(some, 2, TOKENS))


@settings(max_examples=50)
@given(MANIFESTS, BATCHES, LENGTHS, SHARES, st.integers(0, 100 * MB))
def test_more_budget_is_never_slower(manifest: Manifest, batch: int, tokens: int, share: float, more: int) -> None:
    """What a device can do, a larger one can do as fast."""
    budget = budget_of(share, manifest, batch, tokens)
    less, chosen = (choose_plan(manifest, batch, tokens, budget + extra) for extra in (0, more))
    if isinstance(less, Plan):
        assert isinstance(chosen, Plan)
        assert chosen.step_ms <= less.step_ms * (1 + 1e-9)


@settings(max_examples=50)
@given(MANIFESTS, BATCHES, LENGTHS, st.floats(1.0, 3.0))
def test_a_declined_device_is_told_what_would_do(
    manifest: Manifest, batch: int, tokens: int, correction: float
) -> None:
    """With the bytes that the answer names, the same task is accepted; with one less it is not."""
    declined = choose_plan(manifest, batch, tokens, 0, correction)
    assert isinstance(declined, Declined)
    assert isinstance(choose_plan(manifest, batch, tokens, declined.needed_bytes, correction), Plan)
    assert isinstance(choose_plan(manifest, batch, tokens, declined.needed_bytes - 1, correction), Declined)


@settings(max_examples=50)
@given(MANIFESTS, BATCHES, LENGTHS)
def test_plans_reach_from_one_row_to_all(manifest: Manifest, batch: int, tokens: int) -> None:
    """Micro-batches of one row up to the whole batch, nothing kept up to all that is walked back: none twice."""
    found = list(plans(manifest, batch, tokens))
    assert len(set(found)) == len(found)
    sizes = {plan.micro_batch for plan in found}
    assert {1, batch} <= sizes <= set(range(1, batch + 1))
    assert {plan.head_rows for plan in found} == set(HEAD_ROWS if manifest.vocabulary_loss else HEAD_ROWS[:1])
    assert {plan.kept_blocks for plan in found} == set(range(len(manifest.walked_back()) + 1))
    assert {plan.resident for plan in found} == {0, BLOCKS}


@given(MANIFESTS, st.integers(1, 20), LENGTHS, st.integers(0, 20), st.integers(0, 100))
def test_more_at_once_never_needs_less(
    manifest: Manifest, micro_batch: int, tokens: int, more_rows: int, more_tokens: int
) -> None:
    """The predicted peak grows with rows, tokens, predictions at once, activations kept and weights resident."""

    def peak(batch: int, tokens: int, plan: Plan) -> int:
        return predicted(manifest, batch, tokens, plan).peak_bytes

    plan = Plan(micro_batch, HEAD_ROWS[-1])
    lean = peak(micro_batch, tokens, plan)
    assert lean <= peak(micro_batch + more_rows, tokens, dataclasses.replace(plan, micro_batch=micro_batch + more_rows))
    assert lean <= peak(micro_batch, tokens + more_tokens, plan)
    assert lean <= peak(micro_batch, tokens, dataclasses.replace(plan, head_rows=HEAD_ROWS[0]))
    assert lean <= peak(micro_batch, tokens, dataclasses.replace(plan, resident=2))
    assert lean <= peak(micro_batch + 1, tokens, plan)  # gradients of a former walk


@given(MANIFESTS, st.integers(0, BLOCKS), st.integers(0, BLOCKS + 1))
def test_the_last_segments_keep_and_stay(manifest: Manifest, kept_blocks: int, resident: int) -> None:
    """What a plan counts is what the walk does: the last so many, and only what is walked back keeps anything."""
    plan = Plan(1, 32, kept_blocks, 16, resident)
    names = [segment.name for segment in manifest.walk[1:]]
    back = [segment.name for segment in manifest.walked_back()]
    assert list(kept_segments(manifest, plan)) == back[max(len(back) - kept_blocks, 0) :]
    assert all(keeping == HALF for keeping in kept_segments(manifest, plan).values())
    assert resident_segments(manifest, plan) == set(names[max(len(names) - resident, 0) :])


@given(MANIFESTS, st.sampled_from([(1, TOKENS), (2, TOKENS)]), st.integers(0, BLOCKS), st.sampled_from([16, 32]))
def test_a_prediction_is_not_short_of_what_was_measured(
    manifest: Manifest, shape: tuple[int, int], kept_blocks: int, bits: int
) -> None:
    """At a measured shape the peak covers the process, what is kept, and what was measured of any graph that runs."""
    rows, tokens = shape
    back = len(manifest.walked_back())
    kept = min(kept_blocks, back)
    running = {"forward"} | ({"backward"} if kept < back else set())
    if kept:
        running |= {"keep.forward", "keep.backward"} if bits == 32 else {"half.forward", "half.backward"}
    measured = [c.memory_bytes for c in manifest.costs if (c.batch, c.tokens) == shape and c.graph in running]
    process = max(cost.memory_bytes for cost in manifest.costs if cost.graph == PROCESS)
    shelf = rows * tokens * (4 * WIDTH * back + kept * 10 * WIDTH * bits // 8)
    peak = predicted(manifest, rows, tokens, Plan(rows, HEAD_ROWS[0], kept_blocks, bits)).peak_bytes
    assert peak >= process + shelf + (max(measured) if shape == (1, TOKENS) else 0)


@settings(max_examples=50)
@given(MANIFESTS, BATCHES, LENGTHS, SHARES, st.floats(1.0, 3.0))
def test_a_correction_makes_a_device_careful(
    manifest: Manifest, batch: int, tokens: int, share: float, correction: float
) -> None:
    """Where more was measured than predicted, every plan counts for that much more, and the next choice obeys."""
    budget = budget_of(share, manifest, batch, tokens)
    chosen = choose_plan(manifest, batch, tokens, budget, correction)
    if isinstance(chosen, Plan):
        plain = predicted(manifest, batch, tokens, chosen).peak_bytes
        assert chosen.peak_bytes == math.ceil(plain * correction) <= budget
        assert isinstance(choose_plan(manifest, batch, tokens, budget), Plan)


@given(MANIFESTS, BATCHES, LENGTHS)
def test_weights_that_do_not_fit_the_cache_are_read_again(manifest: Manifest, batch: int, tokens: int) -> None:
    """A slow card costs nothing while the page cache holds everything, and its reading time where it does not."""
    plan = Plan(1, HEAD_ROWS[0])
    everything = sum(blob.size_bytes for blob in manifest.files.values())
    fast = predicted(manifest, batch, tokens, plan).step_ms
    assert predicted(manifest, batch, tokens, plan, Storage(1e6, everything)).step_ms == fast
    slow = predicted(manifest, batch, tokens, plan, Storage(1e6, everything - 1)).step_ms
    visits = BLOCKS + len(manifest.walked_back())
    assert slow >= fast + batch * visits * manifest.files["tensors"].size_bytes / 1e3 * (1 - 1e-9)


@given(
    st.lists(
        st.builds(
            Plan,
            st.just(1),
            st.just(32),
            kept_bits=st.sampled_from((32, 16)),
            peak_bytes=st.integers(0, 9),
            step_ms=st.integers(0, 9),
        )
    )
)
def test_a_frontier_has_what_would_be_chosen_for_any_budget(everything: list[Plan]) -> None:
    """Its plans are no slower as they grow, and for every budget the last that fits is the fastest that fits."""
    found = frontier(everything)
    for lean, fast in itertools.pairwise(found):
        assert lean.peak_bytes < fast.peak_bytes
        assert (lean.step_ms, -lean.kept_bits) > (fast.step_ms, -fast.kept_bits)
    for budget_bytes in {plan.peak_bytes for plan in everything}:
        fitting = [plan for plan in everything if plan.peak_bytes <= budget_bytes]
        chosen = [plan for plan in found if plan.peak_bytes <= budget_bytes][-1]
        assert chosen == min(fitting, key=lambda plan: (plan.step_ms, -plan.kept_bits, plan.peak_bytes))


def test_batches_of_images_are_counted() -> None:
    """A step of images holds their bytes beside all that a step of tokens does: this batch's, and the next one's."""
    manifest, image = dataclasses.replace(make_manifest(), vocabulary_loss=None, classes_loss=CLASSES), (3, 512, 512)
    model = ModelSpec("vit", TaskType.IMAGE_CLASSIFICATION, 2, WIDTH, 0, ("a", "b", "c"), TOKENS, ImageSpec(*image))
    images = dataclasses.replace(manifest, model=model)
    more = {
        batch: leanest(plans(images, batch, TOKENS)).peak_bytes - leanest(plans(manifest, batch, TOKENS)).peak_bytes
        for batch in (1, 11)
    }
    assert more[11] - more[1] >= 2 * 10 * math.prod(image)
    assert more[1] < 20 * math.prod(image)


@given(MANIFESTS, BATCHES, LENGTHS)
@settings(deadline=None)
def test_no_plan_is_faster_than_the_step_that_levels_are_compared_by(
    manifest: Manifest, batch: int, tokens: int
) -> None:
    """`step_s` is what the graphs take in the fastest way: a plan adds pages and the optimizer, and never saves."""
    fastest = min(plan.step_ms for plan in plans(dataclasses.replace(manifest, context=""), batch, tokens))
    assert step_s(dataclasses.replace(manifest, context=""), batch, tokens) * 1e3 <= fastest * (1 + 1e-9)


def test_a_step_is_the_sum_of_what_was_measured() -> None:
    """Two rows of the sample's model: an embedding, two blocks there and back, the loss over one slice, 2 ms each."""
    manifest = dataclasses.replace(make_manifest(), context="")
    costs = {(c.graph, c.batch): c.time_ms for c in manifest.costs}
    block_ms = costs["forward", 2] + costs["backward", 2]
    of_the_loss = predicted(manifest, 2, TOKENS, Plan(2, HEAD_ROWS[0], 2, 32, resident=2))
    without_ms = step_s(manifest, 2, TOKENS) * 1e3 - costs["forward", 2] - 2 * block_ms
    assert 0 < without_ms <= of_the_loss.step_ms - costs["forward", 2] - 2 * block_ms + 1e-9
    assert step_s(dataclasses.replace(manifest, costs=()), 2, TOKENS) == 0
