"""What a probe measures is what plans are made from, and what a worker then needs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from edge_sdk.engine.artifact import choose_manifest, open_artifact
from edge_sdk.engine.plan import Plan, choose_plan
from edge_sdk.errors import ArtifactError, OverBudget
from edge_sdk.probing import probe, probe_costs
from edge_sdk.wire.manifest import Cost, Direction, Manifest

MB = 10**6
TOKENS, BATCH, STEPS = 32, 4, 2


@pytest.fixture(scope="module")
def manifest_path(tiny_artifact: pathlib.Path) -> pathlib.Path:
    """The tiny artifact's manifest."""
    return choose_manifest(tiny_artifact, None)


@pytest.fixture(scope="module")
def found(manifest_path: pathlib.Path) -> dict[str, Any]:
    """One probe, without a budget."""
    return probe(manifest_path, TOKENS, BATCH, STEPS, 1, None)


def with_costs(manifest_path: pathlib.Path, found: dict[str, Any]) -> Manifest:
    """The manifest with what was measured."""
    costs = tuple(Cost(**{**cost, "direction": Direction(cost["direction"])}) for cost in found["costs"])
    return dataclasses.replace(open_artifact(manifest_path).manifest, costs=costs, reference_tokens=TOKENS)


def test_every_structure_is_measured_where_it_runs(found: dict[str, Any]) -> None:
    """The process at rest; embedding, blocks and norm forward, what is walked back backward; over one and two rows."""
    keys = [(cost["structure"], cost["direction"], cost["batch"]) for cost in found["costs"]]
    runs = [("embed", "forward"), ("block", "forward"), ("block", "backward"), ("norm", "forward")]
    runs += [("norm", "backward"), ("loss", "backward")]
    assert sorted(keys) == sorted([("process", "load", 0), *((*run, rows) for run in runs for rows in (1, 2))])
    for cost in found["costs"]:
        assert cost["peak_bytes"] >= 0
        assert (cost["time_ms"] > 0) == (cost["direction"] != "load")
        assert cost["tokens"] == (0 if cost["direction"] == "load" else TOKENS)


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
    measured = with_costs(manifest_path, found)
    assert isinstance(choose_plan(measured, 1, TOKENS, found["needs_bytes"]), Plan)
    assert not isinstance(choose_plan(measured, 1, TOKENS, found["needs_bytes"] - 1), Plan)


def test_a_budget_chooses_the_plan_and_is_kept(manifest_path: pathlib.Path, found: dict[str, Any]) -> None:
    """The plan for a budget is tried, and stays within it, as predicted and as measured."""
    budget_bytes = found["needs_bytes"] + 50 * MB
    chosen = probe(manifest_path, TOKENS, BATCH, STEPS, 1, budget_bytes)
    assert chosen["plan"]["peak_bytes"] <= budget_bytes
    assert chosen["peak_bytes"] <= budget_bytes


def test_a_budget_too_small_is_told_what_is_needed(manifest_path: pathlib.Path) -> None:
    """Nobody probes steps that cannot fit; the need that is named is not that of this process."""
    with pytest.raises(OverBudget, match=r"^\d+ MB needed by the leanest plan, the budget is 1 MB$") as caught:
        probe(manifest_path, TOKENS, BATCH, STEPS, 1, MB)
    assert caught.value.measured_bytes > 30 * MB


def test_a_measurement_that_fails_says_why_in_one_line(manifest_path: pathlib.Path) -> None:
    """What the process said last comes back as an error, without its traceback."""
    with pytest.raises(ArtifactError, match=r"^the measurement failed: [^\n]+$"):
        probe_costs(manifest_path, -1, 1)
