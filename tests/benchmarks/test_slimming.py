"""FedOT against FedPFT: what is compared is equal, and the page says who is ahead."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from benchmarks.compression import lines, run_of
from benchmarks.demo import write_toml
from benchmarks.slimming import PAGE, RESULTS, SLIMMED, levels_of, page, pairs, verdicts
from coordinator.ladder.request import read_levels
from tests.benchmarks.ladder_samples import SUBJECT, ladder, level

BERT = dataclasses.replace(SUBJECT, name="reviews", title="a BERT on reviews", layers=6)
BLOCKS = (5, 4, 3)


def run(seed: int, slimmed_bytes: int = 701) -> dict[str, Any]:
    """The slimmed close 0.8 of the gap, those with fewer blocks 0.7, but that with 5 blocks 0.9."""
    levels = levels_of(BERT, BLOCKS)
    measured = [level({"name": "fp32"}, 1000, 1.0, 0.8)]
    for technique, some in levels.items():
        slim = technique.startswith(SLIMMED)
        for table in some:
            closed = 0.8 if slim else 0.9 if table["name"] == "5-blocks" else 0.7
            measured.append(level(table, slimmed_bytes if slim else 700, closed, 0.75))
    return dict(run_of(BERT, seed, levels, ladder(measured)))


def test_levels_have_equal_parameters(tmp_path: pathlib.Path) -> None:
    """A block is 4 squares of attention and 8 of FFN; all levels are a coordinator's."""
    tables = [one for some in levels_of(BERT, BLOCKS).values() for one in some]
    write_toml(tmp_path / "levels.toml", {"levels": tables})
    found = read_levels(tmp_path / "levels.toml").levels
    squares = [(one.layers or 6) * (4 + 8 * one.ffn) for one in found]
    assert squares == [60, 48, 36] * 4
    assert len({one.name for one in found}) == 12


def test_pairs_are_of_one_kind() -> None:
    """Fewer blocks and a slimmer FFN, both as they are or both distilled."""
    names = [(dropped.level["name"], slimmed.level["name"]) for dropped, slimmed in pairs(lines([run(0)]))]
    assert names[:3] == [("5-blocks", "ffn75"), ("4-blocks", "ffn50"), ("3-blocks", "ffn25")]
    assert names[3:] == [(f"{dropped}-distilled", f"{slimmed}-distilled") for dropped, slimmed in names[:3]]


def test_what_is_not_equal_does_not_pass() -> None:
    """One per cent is the most."""
    assert [check.passed for check in verdicts([run(0)])] == [True, True]
    assert [check.passed for check in verdicts([run(0, slimmed_bytes=708)])] == [False, True]


def test_the_page_says_who_is_ahead() -> None:
    """And of which seeds it is."""
    text = page({"runs": [run(0)], "planned_seeds": [0, 1, 2]})
    assert (
        "closes more of the gap than its equal with fewer blocks in 5 of 6 pairs. Ahead of theirs are 5-blocks." in text
    )
    assert "seeds 0 (1, 2 not measured yet)." in text
    assert "| FedOT: fewer blocks | 4-blocks | 0.0 | 0.750 | 0.750 | 3.5000 | 70.0% |" in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("slimming.json")), ids=str)
def test_the_page_has_the_numbers_that_were_measured(path: pathlib.Path) -> None:
    """It is what the command makes of its JSON, to the letter."""
    assert PAGE.read_text("utf-8") == page(json.loads(path.read_text("utf-8")))
