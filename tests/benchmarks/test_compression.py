"""The benchmark of compression: levels that can be, verdicts that name what they judge, and a page of its numbers."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from typing import Any

import pytest

from benchmarks.compression import (
    FULL,
    PAGE,
    QUICK,
    RESULTS,
    draw,
    joined,
    lines,
    main,
    page,
    published,
    run_of,
    techniques,
    verdicts,
)
from benchmarks.demo import write_toml
from coordinator.ladder.request import read_levels
from tests.benchmarks.ladder_samples import SUBJECT, ladder, level


def run(seed: int, int4: float, half: float) -> dict[str, Any]:
    """Of which these two levels close so much; the plain drop of half the blocks closes 0.2."""
    levels = techniques(SUBJECT)
    tables = [levels[name][-1] for name in ("precision, refit", "depth, uniform", "depth, importance, distilled")]
    closed = zip(tables, (150, 600, 600), (int4, 0.2, half), strict=True)
    measured = [level({"name": "fp32"}, 1000, 1.0), *(level(table, size, c) for table, size, c in closed)]
    return dict(run_of(SUBJECT, seed, levels, ladder(measured)))


def test_levels_are_a_coordinators(tmp_path: pathlib.Path) -> None:
    """Every technique has three strengths, and its levels are read; what the check speaks of is in the quick set."""
    found = techniques(SUBJECT)
    counts = Counter({name: len(some) for name, some in found.items()})
    assert {name for name, count in counts.items() if count < 3} == {"depth, importance, distilled", "precision, refit"}
    tables = [one for some in found.values() for one in some]
    write_toml(tmp_path / "levels.toml", {"levels": tables})
    assert [one.name for one in read_levels(tmp_path / "levels.toml").levels] == [one["name"] for one in tables]
    assert len({one["name"] for one in tables}) == len(tables)
    quick = QUICK.levels(SUBJECT)
    assert [one["name"] for some in quick.values() for one in some] == [
        "int4-refit",
        "15-even",
        "15-important-refit",
        "15-important-distilled",
    ]
    assert FULL.levels(SUBJECT) == found


@pytest.mark.parametrize(
    ("int4", "half", "passed"), [(0.96, 0.81, [True, True]), (0.94, 0.81, [False, True]), (0.96, 0.79, [True, False])]
)
def test_verdicts_are_of_means(int4: float, half: float, passed: list[bool]) -> None:
    """Of all seeds; the half that was refitted is named, and beside it what a plain drop closes."""
    found = verdicts([run(0, int4 + 0.02, half - 0.02), run(1, int4 - 0.02, half + 0.02)])
    assert [check.passed for check in found] == passed
    assert found[0].detail == f"int4-refit closes {int4:.1%} in 15.0% of the bytes"
    assert found[1].detail.endswith("; the plain uniform drop 15-even closes 20.0% in 60.0% of the bytes")
    assert found[1].detail.startswith("15-important-distilled closes")


def test_a_level_that_is_too_large_is_not_small() -> None:
    """Then there is none; and nothing is said of other models."""
    one = run(0, 1.0, 1.0)
    one["levels"] = [{**row, "share": 0.17} for row in one["levels"]]
    assert [check.passed for check in verdicts([one])] == [False, True]
    other = [{**one, "study": "reviews"}]
    assert verdicts(other) == []
    assert "SmolLM2 is not measured yet." in page({"runs": other, "effort": {"seeds": [0]}})


def test_seeds_are_one_line(tmp_path: pathlib.Path) -> None:
    """Their mean and deviation; the page says which seeds were measured, and which were not."""
    runs = [run(0, 0.9, 0.8), run(1, 1.0, 0.8)]
    found = lines(runs)
    assert [(line.level["name"], round(line.mean, 3)) for line in found][:2] == [("fp32", 1.0), ("int4-refit", 0.95)]
    text = page({"runs": runs, "effort": {"seeds": [0, 1, 2]}})
    assert "| precision, refit | int4-refit | 0.0 | 15.0% | 3.500 → 3.500 | 3.5000 | 95.0% ± 7.1% |" in text
    assert "Seeds 0, 1; 2 not measured yet." in text
    draw(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_what_is_not_asked_for_stays(tmp_path: pathlib.Path) -> None:
    """A seed that is measured is beside those that are published, in order; one that was published is replaced."""
    (tmp_path / "compression.json").write_text(json.dumps({"runs": [run(0, 0.9, 0.8), run(2, 0.9, 0.8)]}))
    found = joined(published(tmp_path / "compression.json"), [run(1, 0.9, 0.8), run(0, 0.7, 0.8)])
    assert [(one["seed"], one["levels"][1]["gap_closed"]) for one in found] == [(0, 0.7), (1, 0.9), (2, 0.9)]
    other = {**run(0, 0.9, 0.8), "study": "reviews"}
    assert [one["study"] for one in joined([other], [run(0, 0.9, 0.8)])] == ["speeches", "reviews"]
    assert published(tmp_path / "nothing.json") == []


def test_another_experiment_is_no_seed_of_this_one() -> None:
    """Runs with other steps, rows or levels go, when their model is measured again; those of other models stay."""
    new = run(1, 0.9, 0.8)
    fewer_steps = {**run(0, 0.9, 0.8), "training": {**new["training"], "steps": 5}}
    fewer_rows = {**run(0, 0.9, 0.8), "held_out_rows": 4}
    fewer_levels = {**run(0, 0.9, 0.8), "levels": run(0, 0.9, 0.8)["levels"][:2]}
    for old in (fewer_steps, fewer_rows, fewer_levels):
        assert joined([old], [new]) == [new]
        assert joined([{**old, "study": "reviews"}], [new]) == [new, {**old, "study": "reviews"}]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("compression.json")), ids=str)
def test_the_page_has_the_numbers_that_were_measured(path: pathlib.Path) -> None:
    """It is what the command makes of its JSON, to the letter."""
    assert PAGE.read_text("utf-8") == page(json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "magic"], "no study is called magic; there are speeches, reviews, fashion"),
        (["--quick", "--seeds", "1"], "no seed 1; there are 0"),
    ],
)
def test_what_is_not_there_is_a_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    """And what there is instead."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert said in capsys.readouterr().err
