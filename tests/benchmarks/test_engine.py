"""The engine's benchmark: which plans it measures, what counts as a promise kept, and what becomes of a failed peer."""

from __future__ import annotations

import io
import itertools
import json
import math
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import machine
from benchmarks.engine import __main__ as command
from benchmarks.engine.checks import Check, check, plan_row, row, table
from benchmarks.engine.contenders import Peer, Rows, in_turns
from benchmarks.engine.plans import LEANEST, integer_plans, named_plans, whole_frontier
from benchmarks.engine.scenes import QUICK, SCENES, Effort, Scene
from benchmarks.engine.show import products as products_line
from benchmarks.engine.show import storage_table
from benchmarks.engine.show import table as rows_table
from benchmarks.engine.storage import limited_command
from edge_sdk.cgroup import NotDelegated
from edge_sdk.engine.artifact import open_artifact
from edge_sdk.engine.plan import INTEGERS, leanest, plans
from tests.edge_sdk.samples import MB, TOKENS, make_manifest

PLAN = {"micro_batch": 1, "head_rows": 64, "kept_blocks": 2, "kept_bits": 16, "resident": 3, "state_bits": 8}
ROWS = [
    {"name": "torch", "ours": False, "peak_bytes": 1000 * MB, "step_ms": 500.0},
    {"name": "gone", "ours": False, "failed": "no such module"},
    {
        "name": "fp32 lean, fast",
        "ours": True,
        "level": "fp32",
        "kinds": ["lean", "fast"],
        "plan": {**PLAN, "peak_bytes": 90 * MB, "step_ms": 450.0},
        "peak_bytes": 100 * MB,
        "step_ms": 400.0,
    },
]
SCENE = Scene("a step", "torch", ROWS, [Check("peak", 0.1, 0.13)], {"frontiers": {"fp32": [[90 * MB, 450.0]]}})
EFFORT = Effort(turns=2, steps=1, threads=1, whole=False, console=Console(quiet=True))


@settings(max_examples=25)
@given(st.floats(0.9, 4), st.floats(0.9, 4))
def test_plans_fit_the_budget_they_are_named_after(lean: float, fast: float) -> None:
    """Each name leads to one plan within its budget, of more budget to no slower one; nothing is measured twice."""
    manifest = make_manifest()
    least = leanest(plans(manifest, 2, TOKENS))
    budgets = {"lean": lean * least.peak_bytes, "fast": fast * least.peak_bytes}
    chosen = named_plans(manifest, 2, TOKENS, budgets)
    assert len(set(chosen.values())) == len(chosen)
    by_name = {name: plan for names, plan in chosen.items() for name in names}
    assert by_name[LEANEST] == least
    assert all(by_name[name].peak_bytes <= budgets[name] for name in budgets if name in by_name)
    assert {name for name, budget in budgets.items() if int(budget) >= least.peak_bytes} == by_name.keys() - {LEANEST}
    if {"lean", "fast"} <= by_name.keys() and fast >= lean:
        assert by_name["fast"].step_ms <= by_name["lean"].step_ms


def test_plans_in_integers_have_names_of_their_own() -> None:
    """For each budget the fastest of them, faster than exact or not, and the leanest; their rows say how far off."""
    manifest = make_manifest(integers_ms=5.0)
    budgets = {"lean": 1.5 * leanest(plans(manifest, 2, TOKENS)).peak_bytes, "none": MB}
    found = {name: plan for names, plan in integer_plans(manifest, 2, TOKENS, budgets).items() for name in names}
    assert found.keys() == {"lean in integers", f"{LEANEST} in integers"}
    assert {plan.back_bits for plan in found.values()} == {INTEGERS}
    assert found["lean in integers"].peak_bytes <= budgets["lean"]
    out = io.StringIO()
    Console(width=220, file=out).print(rows_table("a step", [ROWS[0], {**ROWS[2], "gradient_error": 0.085}], "torch"))
    assert "gradient off by 8.5%" in out.getvalue()


def test_the_frontier_falls_and_begins_with_the_least_memory() -> None:
    """More memory is less time at every point, and no plan of any budget lies below."""
    manifest = make_manifest()
    found = whole_frontier(manifest, 2, TOKENS)
    assert found[0].peak_bytes == leanest(plans(manifest, 2, TOKENS)).peak_bytes
    assert all(a.peak_bytes < b.peak_bytes and a.step_ms > b.step_ms for a, b in itertools.pairwise(found))
    for plan in plans(manifest, 2, TOKENS):
        assert any(p.peak_bytes <= plan.peak_bytes and p.step_ms <= plan.step_ms for p in found)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_bound_holds_up_to_itself(measured: float, bound: float) -> None:
    """At the bound it holds, above it does not, and what is no number never does."""
    assert Check("n", measured, bound).held == (measured <= bound)
    assert not Check("n", math.nan, bound).held


def test_what_is_not_measured_is_missed() -> None:
    """A row that is not there, or that failed, breaks its promises and nobody else's."""
    absent = check("peak", 0.5, lambda: float(row(ROWS, "nobody")["peak_bytes"]))
    failed = check("peak", 0.5, lambda: float(row(ROWS, "gone")["peak_bytes"]))
    assert {(one.measured, one.held) for one in (absent, failed)} == {(None, False)}
    held = check("peak", 0.13, lambda: plan_row(ROWS, "fp32", "fast")["peak_bytes"] / row(ROWS, "torch")["peak_bytes"])
    assert (held.measured, held.held) == (0.1, True)
    with pytest.raises(LookupError, match="no row int8 lean"):
        plan_row(ROWS, "int8", "lean")


def test_tables_say_what_failed_and_what_was_missed() -> None:
    """Ratios are to the base; a failed row shows its words; a missed promise shows."""
    out = io.StringIO()
    console = Console(width=200, file=out)
    storage = {"level": "fp32", "limit_bytes": MB, "warm_predicted_ms": 3.0, "failed": "ended with -9"}
    for one in (rows_table("a step", ROWS, "torch"), table([Check("peak", 2.0, 1.0)]), storage_table([storage])):
        console.print(one)
    said = out.getvalue()
    assert all(words in said for words in ("0.10", "0.80", "no such module", "keeps 2 at 16 bits", "MISSED", "with -9"))


def test_a_peer_that_fails_is_asked_once() -> None:
    """Its row says why, in its own words, and the others' turns go on."""
    peers = [Peer("nobody", "no_such_peer", ())]
    seen: list[Rows] = []

    def ours(rows: Rows) -> list[object]:
        seen.append(rows)
        return []

    found = in_turns(peers, ours, 2, EFFORT.console, "a step")  # type: ignore[arg-type]
    (only,) = found.plain()
    assert "No module named benchmarks.peers.no_such_peer" in only["failed"]
    assert only["runs"] == []
    assert seen == [found]
    with pytest.raises(LookupError, match="nobody was not measured"):
        found.median("nobody", "peak_bytes")


def test_medians_are_over_the_turns() -> None:
    """Of three runs the middle one, each number for itself; the runs themselves are kept."""
    rows = Rows({"one": [{"peak_bytes": p, "step_ms": t} for p, t in ((3, 1.0), (1, 2.0), (2, 9.0))]}, {"one": {}})
    (plain,) = rows.plain()
    assert (plain["peak_bytes"], plain["step_ms"], len(plain["runs"])) == (2, 2.0, 3)


def test_a_scene_replaces_its_own_record_alone(tmp_path: pathlib.Path) -> None:
    """Other scenes stay as they were measured, what is no scene goes, and the plot is drawn beside."""
    out = tmp_path / "engine.json"
    other, mine = list(SCENES)[1], QUICK[0]
    out.write_text(json.dumps({"rows": [], other: {"turns": 5}, mine: {"turns": 5}}), encoding="utf-8")
    command._keep(out, mine, SCENE, EFFORT)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found.keys() == {other, mine}
    assert (found[other]["turns"], found[mine]["turns"]) == (5, 2)
    assert found[mine]["checks"] == [{"name": "peak", "measured": 0.1, "bound": 0.13, "held": True}]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_limited_command_cannot_take_more() -> None:
    """200 MB in a group of 60 MB end the process, 1 MB does not; the group is gone afterwards."""
    for size, ends in ((200 * MB, True), (MB, False)):
        program = [sys.executable, "-I", "-c", f"print(len(bytearray(b'x') * {size}))"]
        try:
            with limited_command(program, 60 * MB) as entering:
                done = subprocess.run(entering, check=False, capture_output=True)
        except (NotDelegated, OSError) as error:
            pytest.skip(f"no group to be had: {error}")
        assert (done.returncode != 0) == ends, done.stderr


def test_a_steps_products(tiny_artifact: pathlib.Path) -> None:
    """Each frozen matrix makes two, but for those of the lowest block, which owes nothing to what is below it."""
    path, tokens = tiny_artifact / "fp32.manifest", 6
    artifact = open_artifact(path)
    manifest = artifact.manifest
    block, vocabulary = (
        sum(math.prod(array.shape) for array in artifact.tensors(name).values() if array.ndim > 1)
        for name in (manifest.walked_back()[0].tensors, "embed.safetensors")
    )
    found = machine.measured("benchmarks.engine.products", str(path), str(tokens), "1", "1")
    products = (2 * len(manifest.level.layers) - 1) * block + 2 * vocabulary
    assert found["operations"] == 2 * tokens * products
    assert min(found["onnxruntime_ms"], found["torch_ms"]) > 0
    assert "alone" in products_line(found)
