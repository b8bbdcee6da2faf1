"""Plans fit the budget they were chosen for, more budget is never slower, and no device is refused in vain."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engine.plan import HEAD_ROWS, LOSS, PROCESS, Declined, Plan, choose_plan, plans, predicted_peak_bytes
from edge_sdk.wire.manifest import ClassesLoss, Cost, Direction, Manifest
from tests.edge_sdk.samples import MB, TOKENS, make_manifest

RUNS = (
    ("embed", Direction.FORWARD),
    ("block", Direction.FORWARD),
    ("block", Direction.BACKWARD),
    (LOSS, Direction.BACKWARD),
)
BATCHES, LENGTHS = st.integers(1, 40), st.integers(1, 512)
SHARES = st.floats(0.9, 4)  # of what the leanest plan needs
CLASSES = ClassesLoss("forward", "tensors", (), {"bias": (3,)})


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """A manifest whose costs are whatever a noisy machine may have measured: two rows may even look cheaper."""
    manifest = make_manifest()
    if draw(st.booleans()):
        manifest = dataclasses.replace(manifest, vocabulary_loss=None, classes_loss=CLASSES)
    costs = [Cost(PROCESS, Direction.LOAD, 0, 0, draw(st.integers(30 * MB, 100 * MB)), 0.0)]
    for structure, direction in RUNS:
        for rows in (1, 2):
            growth, time_ms = draw(st.integers(0, 20 * MB)), draw(st.floats(0, 100))
            costs.append(Cost(structure, direction, rows, TOKENS, growth, time_ms))
    return dataclasses.replace(manifest, costs=tuple(costs))


MANIFESTS = manifests()


def budget_of(share: float, manifest: Manifest, batch: int, tokens: int) -> int:
    """A budget as a share of what the leanest plan needs."""
    return round(share * min(plan.peak_bytes for plan in plans(manifest, batch, tokens)))


@given(MANIFESTS, BATCHES, LENGTHS, SHARES)
def test_the_chosen_plan_is_the_fastest_that_fits(manifest: Manifest, batch: int, tokens: int, share: float) -> None:
    """No plan within the budget is faster; where none fits the answer is what the leanest would need."""
    budget = budget_of(share, manifest, batch, tokens)
    everything = list(plans(manifest, batch, tokens))
    fitting = [plan for plan in everything if plan.peak_bytes <= budget]
    chosen = choose_plan(manifest, batch, tokens, budget)
    if fitting:
        assert chosen in fitting
        assert isinstance(chosen, Plan)
        assert chosen.step_ms == min(plan.step_ms for plan in fitting)
    else:
        assert chosen == Declined(min(plan.peak_bytes for plan in everything), budget)


@given(MANIFESTS, BATCHES, LENGTHS, SHARES, st.integers(0, 100 * MB))
def test_more_budget_is_never_slower(manifest: Manifest, batch: int, tokens: int, share: float, more: int) -> None:
    """What a device can do, a larger one can do as fast."""
    budget = budget_of(share, manifest, batch, tokens)
    less, chosen = (choose_plan(manifest, batch, tokens, budget + extra) for extra in (0, more))
    if isinstance(less, Plan):
        assert isinstance(chosen, Plan)
        assert chosen.step_ms <= less.step_ms


@given(MANIFESTS, BATCHES, LENGTHS)
def test_a_declined_device_is_told_what_would_do(manifest: Manifest, batch: int, tokens: int) -> None:
    """With the bytes that the answer names, the same task is accepted; with one less it is not."""
    declined = choose_plan(manifest, batch, tokens, 0)
    assert isinstance(declined, Declined)
    assert isinstance(choose_plan(manifest, batch, tokens, declined.needed_bytes), Plan)
    assert isinstance(choose_plan(manifest, batch, tokens, declined.needed_bytes - 1), Declined)


@given(MANIFESTS, BATCHES, LENGTHS)
def test_plans_reach_from_one_row_to_all(manifest: Manifest, batch: int, tokens: int) -> None:
    """Micro-batches of one row up to the whole batch are considered, none larger, none twice."""
    found = [(plan.micro_batch, plan.head_rows) for plan in plans(manifest, batch, tokens)]
    assert len(set(found)) == len(found)
    assert {1, batch} <= {micro_batch for micro_batch, _ in found} <= set(range(1, batch + 1))
    assert {head_rows for _, head_rows in found} == set(HEAD_ROWS if manifest.vocabulary_loss else HEAD_ROWS[:1])


@given(MANIFESTS, st.integers(1, 20), LENGTHS, st.sampled_from(HEAD_ROWS), st.integers(0, 20), st.integers(0, 100))
def test_more_at_once_never_needs_less(
    manifest: Manifest, micro_batch: int, tokens: int, head_rows: int, more_rows: int, more_tokens: int
) -> None:
    """The predicted peak grows with rows, with tokens, and with predictions at once."""
    peak = predicted_peak_bytes(manifest, micro_batch, tokens, head_rows)
    assert peak <= predicted_peak_bytes(manifest, micro_batch + more_rows, tokens, head_rows)
    assert peak <= predicted_peak_bytes(manifest, micro_batch, tokens + more_tokens, head_rows)
    assert peak <= predicted_peak_bytes(manifest, micro_batch, tokens, 2 * head_rows)


@given(MANIFESTS, st.sampled_from([1, 2]))
def test_a_prediction_is_not_short_of_what_was_measured(manifest: Manifest, rows: int) -> None:
    """At a measured shape the peak covers the process and the largest growth that was seen there."""
    measured = [cost.peak_bytes for cost in manifest.costs if cost.batch == rows and cost.structure != LOSS]
    process = max(cost.peak_bytes for cost in manifest.costs if cost.structure == PROCESS)
    assert predicted_peak_bytes(manifest, rows, TOKENS, HEAD_ROWS[0]) >= process + max(measured)


@given(MANIFESTS, BATCHES, LENGTHS, SHARES, st.floats(1.0, 3.0))
def test_a_correction_makes_a_device_careful(
    manifest: Manifest, batch: int, tokens: int, share: float, correction: float
) -> None:
    """Where more was measured than predicted, every plan counts for that much more, and the next choice obeys."""
    budget = budget_of(share, manifest, batch, tokens)
    chosen = choose_plan(manifest, batch, tokens, budget, correction)
    if isinstance(chosen, Plan):
        plain = predicted_peak_bytes(manifest, chosen.micro_batch, tokens, chosen.head_rows)
        assert chosen.peak_bytes == round(plain * correction) <= budget
        assert isinstance(choose_plan(manifest, batch, tokens, budget), Plan)
    else:
        assert chosen.needed_bytes > budget


@given(MANIFESTS, BATCHES, LENGTHS)
def test_training_fewer_layers_never_costs_more(manifest: Manifest, batch: int, tokens: int) -> None:
    """A level that holds its lower block fixed keeps less, and walks back less."""
    embed, low, high = manifest.walk
    fewer = dataclasses.replace(manifest, walk=(embed, dataclasses.replace(low, trains=False), high))
    for plan, leaner in zip(plans(manifest, batch, tokens), plans(fewer, batch, tokens), strict=True):
        assert leaner.peak_bytes < plan.peak_bytes
        assert leaner.step_ms <= plan.step_ms


@pytest.mark.parametrize("batch", [1, 6])
def test_an_artifact_that_was_never_measured_still_has_plans(batch: int) -> None:
    """Without costs a plan knows the adapter's state and what is kept: the device's own measurement corrects it."""
    bare = dataclasses.replace(make_manifest(), costs=())
    assert all(plan.peak_bytes > 0 for plan in plans(bare, batch, TOKENS))
