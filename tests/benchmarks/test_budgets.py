"""The benchmark of predictions: cases that can be, and a count of broken promises that misses none."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from benchmarks.budgets import (
    KINDS,
    MOST_BYTES,
    STEPS,
    THREADS,
    TOKENS,
    Case,
    Level,
    Outcome,
    cases,
    draw,
    record,
    row_lengths,
    summaries,
)
from edge_sdk.engine.plan import leanest, plans
from tests.edge_sdk.samples import MB, make_manifest

LEVELS = [
    Level(name, pathlib.Path(f"{name}.manifest"), make_manifest(size * MB)) for name, size in (("a", 50), ("b", 90))
]


def drawn(seed: int = 0) -> list[Case]:
    """A dozen cases of two levels that differ in what a process holds at rest."""
    return list(cases(LEVELS, 12, seed))


def test_cases_are_the_seed_s() -> None:
    """The same seed draws the same cases, another seed others; the kinds take turns, every level gets some."""
    assert drawn() == drawn()
    assert drawn() != drawn(1)
    assert [case.kind for case in drawn()] == [*KINDS] * 6
    assert {case.level.member for case in drawn()} == {"a", "b"}


def test_a_budget_has_room_for_the_leanest_plan() -> None:
    """And the plan that is expected of it fits; a case without a budget has any plan of its shape."""
    for case in drawn():
        assert TOKENS[0] <= case.tokens <= min(TOKENS[1], case.level.manifest.model.max_tokens)
        assert case.threads in THREADS
        assert case.plan.micro_batch <= case.batch
        assert case.plan.resident < len(case.level.manifest.walk)
        assert case.plan.peak_bytes <= (case.budget_bytes or MOST_BYTES)
        lean = leanest(plans(case.level.manifest, case.batch, case.tokens))
        assert not case.budget_bytes or case.budget_bytes >= lean.peak_bytes


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_training_meets_a_full_row(batch: int) -> None:
    """Whichever row is held aside: what is predicted is a step of full rows."""
    lengths = row_lengths(batch, 64)
    assert len(lengths) == STEPS * batch + 1
    assert (lengths == 64).sum() >= 2
    assert lengths.min() >= 2


@pytest.mark.parametrize(
    ("budget_bytes", "outcome", "near", "overrun"),
    [
        (200, Outcome(100, 100, 1.0), True, False),
        (200, Outcome(110, 100, 1.0), True, False),
        (200, Outcome(89, 100, 1.0), False, False),
        (99, Outcome(98, 100, 1.0), True, True),
        (200, Outcome(0, 150, 0.0, "refused"), False, True),
        (0, Outcome(50, 100, 1.0), False, False),
    ],
)
def test_a_promise_is_broken_by_more_than_was_allowed_and_by_no_result(
    budget_bytes: int,
    outcome: Outcome,
    *,
    near: bool,
    overrun: bool,
) -> None:
    """An overrun needs a budget; a prediction may be 10 % off to both sides."""
    case = Case(LEVELS[0], 1, 16, 1, budget_bytes, drawn()[0].plan)
    kept = record(case, outcome)
    assert (kept["near"], kept["overrun"], kept["kind"]) == (near, overrun, KINDS[0 if budget_bytes else 1])


def some_rows() -> list[dict[str, Any]]:
    """A task that was done, one that was refused, and a plan that was predicted badly, as they are kept."""
    case, other = drawn()[:2]
    found = [Outcome(100 * MB, 100 * MB, 1.0), Outcome(0, 90 * MB, 0.0, "refused")]
    return [*(record(case, outcome) for outcome in found), record(other, Outcome(60 * MB, 50 * MB, 1.0))]


def test_every_case_counts_once_by_kind_and_by_level() -> None:
    """What failed has no ratio, and counts as not near."""
    found = summaries(some_rows())
    assert (found["all"]["cases"], found["all"]["overruns"], found["all"]["share_near"]) == (3, 1, 1 / 3)
    assert (found["all"]["lowest_ratio"], found["all"]["highest_ratio"]) == (1.0, 1.2)
    assert sum(found[kind]["cases"] for kind in KINDS) == 3
    assert sum(row["cases"] for name, row in found.items() if name not in {*KINDS, "all"}) == 3


def test_the_plot_is_a_picture(tmp_path: pathlib.Path) -> None:
    """With a case that failed among them."""
    draw(some_rows(), tmp_path / "budgets.png")
    assert (tmp_path / "budgets.png").read_bytes().startswith(b"\x89PNG")
