"""A plan is chosen again with what this process holds, whatever the manifest promised."""

from __future__ import annotations

import dataclasses

import pytest

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.plan import Limits, Step, leanest, planned, plans, with_process
from edge_sdk.engine.settle import settle
from edge_sdk.engine.train import batch_gradient
from edge_sdk.errors import OverBudget
from edge_sdk.memory import read_memory
from edge_sdk.wire.costs import PROCESS, Costs
from tests.edge_sdk.engine.samples import batch_of, random_adapter, relative_error, walk_of
from tests.edge_sdk.samples import MB

BATCH, TOKENS = 8, 64


def promising(artifact: Artifact, process_bytes: int) -> tuple[Artifact, int]:
    """The artifact with another promise of what a process holds, and what its leanest plan then needs."""
    manifest = with_process(artifact.manifest, process_bytes)
    needed_bytes = leanest(plans(manifest, BATCH, TOKENS)).peak_bytes
    return dataclasses.replace(artifact, manifest=manifest), needed_bytes


def test_the_process_is_counted_once(llama: Artifact) -> None:
    """What was measured here takes the place of what was promised; every other cost stays as it is."""
    before, after = llama.manifest.costs, with_process(llama.manifest, 123 * MB).costs
    assert [cost.memory_bytes for cost in after if cost.graph == PROCESS] == [123 * MB]
    assert [c for c in after if c.graph != PROCESS] == [c for c in before if c.graph != PROCESS]
    promised = next(cost.memory_bytes for cost in before if cost.graph == PROCESS)
    assert Costs(after).process_bytes - Costs(before).process_bytes == 123 * MB - promised


def test_a_process_that_holds_more_than_promised_is_noticed(llama: Artifact) -> None:
    """A budget that the promise fits and this process does not is refused before training, with what would do."""
    artifact, promised_bytes = promising(llama, MB)
    assert promised_bytes < read_memory().resident_bytes
    with pytest.raises(OverBudget, match="needed by the leanest plan") as caught:
        settle(artifact, Limits(BATCH, TOKENS, promised_bytes, 1), lambda: None)
    assert caught.value.measured_bytes > read_memory().anonymous_bytes


def test_a_process_that_holds_less_than_promised_uses_the_room(llama: Artifact) -> None:
    """Where a gigabyte more was promised than is held, the leanest plan is loaded first, and a faster one is walked."""
    artifact, budget_bytes = promising(llama, read_memory().resident_bytes + 1000 * MB)
    limits = Limits(BATCH, TOKENS, budget_bytes, 1)
    first, walk = planned(artifact.manifest, limits), settle(artifact, limits, lambda: None)
    assert walk.plan.step_ms < first.step_ms
    assert walk.plan.peak_bytes < first.peak_bytes <= budget_bytes
    assert walk.plan.resident == len(artifact.manifest.walk) - 1
    assert walk.plan.kept_blocks <= Step(artifact.manifest, BATCH, TOKENS).most_kept()


def test_a_settled_walk_computes_what_any_walk_does(artifact: Artifact) -> None:
    """Loaded with one plan and walking with another, it gives the gradients of a walk that never changed its plan."""
    tokens = artifact.manifest.model.row_tokens(TOKENS)
    walk = settle(artifact, Limits(BATCH, tokens, 2000 * MB, 1), lambda: None)
    batch, adapter = batch_of(artifact.manifest), random_adapter(artifact.manifest)
    names = list(artifact.manifest.trained_shapes())
    loss, found = batch_gradient(walk, adapter, batch, names)
    expected_loss, expected = batch_gradient(walk_of(artifact), adapter, batch, names)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative_error(found, expected) < (1e-4 if walk.plan.kept_bits == 32 else 3e-2)


def test_experience_makes_a_plan_careful(llama: Artifact) -> None:
    """With a correction, the peak that is expected grows by it, or a leaner plan is chosen."""
    limits = Limits(BATCH, TOKENS, 2000 * MB, 1)
    plain = planned(llama.manifest, limits)
    careful = planned(llama.manifest, dataclasses.replace(limits, correction=1.5))
    assert careful.peak_bytes == pytest.approx(1.5 * plain.peak_bytes, abs=1)
    with pytest.raises(OverBudget):
        planned(llama.manifest, dataclasses.replace(limits, budget_bytes=MB))


def test_the_watch_is_asked_while_settling(llama: Artifact) -> None:
    """A budget that is exceeded while loading ends it: what the watch raises comes out."""

    def watch() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        settle(llama, Limits(BATCH, TOKENS, 2000 * MB, 1), watch)
