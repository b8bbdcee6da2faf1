"""What a probe measures is what plans are made from, and what a worker then needs."""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any

import pytest

from edge_sdk.engine.artifact import choose_manifest, open_artifact
from edge_sdk.engine.plan import Plan, choose_plan
from edge_sdk.errors import ArtifactError, OverBudget
from edge_sdk.probing import probe, probe_costs, with_costs

MB = 10**6
TOKENS, BATCH, STEPS = 32, 4, 2


@pytest.fixture(scope="module")
def manifest_path(tiny_artifact: pathlib.Path) -> pathlib.Path:
    """The tiny artifact's manifest."""
    return choose_manifest(tiny_artifact, None)


@pytest.fixture(scope="module")
def found(manifest_path: pathlib.Path) -> dict[str, Any]:
    """One probe, without a budget."""
    return probe(manifest_path, (BATCH, TOKENS), STEPS, 1, None)


def test_every_graph_is_measured_that_a_step_may_run(manifest_path: pathlib.Path, found: dict[str, Any]) -> None:
    """The process at rest, mapping, and each graph at three shapes; the vocabulary's at two."""
    manifest = open_artifact(manifest_path).manifest
    wanted = {"process": 1, "training": 1, "pages": 1, manifest.context: 3}
    for segment in manifest.walk:
        structure = manifest.structures[segment.structure]
        wanted[structure.forward] = 3
        if segment in manifest.walked_back():
            wanted[structure.backward] = 3
            wanted |= {name: 3 for keeping in structure.keepings for name in (keeping.forward, keeping.backward)}
    assert manifest.vocabulary_loss is not None
    wanted |= {manifest.vocabulary_loss.project: 2, manifest.vocabulary_loss.unproject: 2}
    assert collections.Counter(cost["graph"] for cost in found["costs"]) == wanted
    assert all(cost["memory_bytes"] >= 0 for cost in found["costs"])
    assert all((cost["time_ms"] > 0) == (cost["graph"] not in {"process", "training"}) for cost in found["costs"])


def test_a_probe_is_plain_values(found: dict[str, Any]) -> None:
    """It goes into a file or down a pipe as JSON, and comes back the same."""
    assert json.loads(json.dumps(found)) == found


def test_the_leanest_plan_is_tried_where_no_budget_is_given(found: dict[str, Any]) -> None:
    """One row at a time, the head in its smallest pieces, and its measured peak is what was predicted, or less."""
    plan = found["plan"]
    assert plan["micro_batch"] == 1
    assert 30 * MB < found["peak_bytes"] <= plan["peak_bytes"]
    assert found["step_ms"] > 0
    assert 0 < found["loss"] < 20
    assert found["runtime"].startswith("onnxruntime ")


def test_the_need_is_that_of_one_row(manifest_path: pathlib.Path, found: dict[str, Any]) -> None:
    """What a manifest says a device needs is a budget for which a plan of one row exists, and no byte less."""
    measured = with_costs(open_artifact(manifest_path).manifest, found["costs"])
    assert isinstance(choose_plan(measured, 1, TOKENS, found["needs_bytes"]), Plan)
    assert not isinstance(choose_plan(measured, 1, TOKENS, found["needs_bytes"] - 1), Plan)


def test_a_budget_chooses_the_plan_and_is_kept(manifest_path: pathlib.Path, found: dict[str, Any]) -> None:
    """The plan for a budget is tried, and stays within it, as predicted and as measured."""
    budget_bytes = found["needs_bytes"] + 50 * MB
    chosen = probe(manifest_path, (BATCH, TOKENS), STEPS, 1, budget_bytes)
    assert chosen["plan"]["peak_bytes"] <= budget_bytes
    assert chosen["peak_bytes"] <= budget_bytes


def test_a_budget_too_small_is_told_what_is_needed(manifest_path: pathlib.Path) -> None:
    """Nobody probes steps that cannot fit; the need that is named is not that of this process."""
    with pytest.raises(OverBudget, match=r"^\d+ MB needed by the leanest plan, the budget is 1 MB$") as caught:
        probe(manifest_path, (BATCH, TOKENS), STEPS, 1, MB)
    assert caught.value.measured_bytes > 30 * MB


def test_a_measurement_that_fails_says_why_in_one_line(manifest_path: pathlib.Path) -> None:
    """What the process said last comes back as an error, without its traceback."""
    with pytest.raises(ArtifactError, match=r"^the measurement failed: [^\n]+$"):
        probe_costs(manifest_path, -1, 1)
