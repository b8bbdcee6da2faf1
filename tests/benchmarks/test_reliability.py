"""The scoreboard says what was found, and `--check` bites when something is amiss."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest

from benchmarks.reliability import control, show
from benchmarks.reliability.faults import KINDS
from benchmarks.reliability.faults import QUICK as QUICK_FAULTS
from benchmarks.reliability.scenes import Scene, cases, scene_of
from benchmarks.reliability.sweep import QUICK as QUICK_CASES
from edge_sdk.wire.crash_points import AGENT, COORDINATOR, WORKER, labels

TALLY = {"complaints": [], "offered": 4, "receipted": 4, "committed": 4, "aggregated": 4}
TALLY |= {"duplicated": 0, "lost": 0, "blobs": 9, "wrong_blobs": 0}
INPUTS = {"tried": 9, "refused": 8, "sound": 1, "accepted": 0, "crashed": 0, "hung": 0, "passed": True}
GOOD: dict[str, Any] = {
    "kills": {
        "of": 1,
        "cases": [{"process": "agent", "label": "chunk.written", "passed": True, "tally": TALLY, "wall_s": 5.0}],
    },
    "faults": [
        {
            "kind": "disk full",
            "broker": "mosquitto",
            "injected": 1,
            "passed": True,
            "lacks": "",
            "tally": TALLY,
            "wall_s": 5.0,
        }
    ],
    "stragglers": {
        "courses": [
            {
                "course": "plain",
                "versions": 4,
                "version_s": 26.0,
                "results": 16,
                "slow": 4,
                "staleness": 0.0,
                "load": 8,
            },
            {
                "course": "buffer",
                "versions": 9,
                "version_s": 3.0,
                "results": 12,
                "slow": 1,
                "staleness": 2.0,
                "load": 9,
            },
        ],
        "bites": True,
    },
    "inputs": {"made": {**INPUTS, "grown_bytes": 1_000_000, "slowest_s": 0.1}},
    "power": [
        {"scene": "file", "steps": 9, "images": 20, "broken": {}, "passed": True},
        {"scene": "control", "steps": 9, "images": 20, "broken": {"version 1 is gone": 3}, "passed": True},
    ],
    "control": {
        "naive_push": {"published": 9, "acknowledged": 9, "received": 3},
        "plain_fedavg": {
            "numbers": 9,
            "plain_not_finite": 1,
            "ours_not_finite": 0,
            "refusal": "not-finite",
            "same_as_without": True,
        },
        "bites": True,
    },
    "seed": 1,
    "quick": True,
    "promises": {"P1": "partly", "P2": "proven", "P3": "open"},
    "machine": {"cpu": "x", "cores": 2, "system": "Linux", "python": "3.11", "versions": {"fedpeat": "0"}},
}


def test_a_good_board_has_nothing_amiss() -> None:
    """And its page has what was counted."""
    board = {**GOOD, "amiss": show.amiss(GOOD)}
    assert board["amiss"] == []
    page = show.page(board)
    for words in (
        "1 of 1 survived",
        "8, 8",
        "disk full",
        "**3 received**",
        "| 20, 0 |",
        "3 of 20",
        "1, 2.0 versions late",
        "promises **open**: 1 of 3: P3",
    ):
        assert words in page


def test_what_was_not_measured_is_said() -> None:
    """A page without a section says which command adds it: nobody takes its silence for a good word."""
    board = {name: value for name, value in GOOD.items() if name != "kills"} | {"amiss": []}
    assert "--only kills" in show.page(board)
    assert "Not measured yet" not in show.page({**GOOD, "amiss": []})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kills", "cases", 0, "passed"), False),
        (("faults", 0, "passed"), False),
        (("faults", 0, "tally", "lost"), 1),
        (("faults", 0, "tally", "duplicated"), 1),
        (("kills", "cases", 0, "tally", "wrong_blobs"), 1),
        (("inputs", "made", "passed"), False),
        (("power", 0, "passed"), False),
        (("power", 1, "passed"), False),
        (("control", "bites"), False),
        (("stragglers", "bites"), False),
    ],
)
def test_whatever_is_amiss_is_said(path: tuple[str | int, ...], value: object) -> None:
    """Each in a line of its own; a fault that this machine cannot make is no failure, and says what is lacking."""
    board = copy.deepcopy(GOOD)
    place: Any = board
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (line,) = show.amiss(board)
    assert line


def test_every_label_has_a_scene_and_quick_ones_are_among_them() -> None:
    """Each process that passes a label is a case, and every scene is some label's."""
    assert len(cases()) == sum(len(who) for who in labels().values())
    assert {who for who, _label in cases()} == {AGENT, WORKER, COORDINATOR}
    assert {scene_of(label) for _who, label in cases()} == set(Scene)
    assert set(QUICK_CASES) <= set(cases())
    assert set(QUICK_FAULTS) <= set(KINDS)


def test_a_plain_mean_takes_what_ours_refuses() -> None:
    """One NaN: the mean of all is none any more, ours is the same as without that device."""
    found = control.poisoned_mean()
    assert found.plain_not_finite == 1
    assert found.ours_not_finite == 0
    assert found.same_as_without
    assert control.bites(control.Push(9, 9, 3), found)
    assert not control.bites(control.Push(9, 9, 9), found)


@pytest.mark.broker
def test_a_naive_push_loses_what_was_acknowledged(tmp_path: pathlib.Path) -> None:
    """Every chunk is acknowledged, and those beyond the broker's queue never come."""
    push = control.naive_push(tmp_path / "push", 1300)
    assert push.acknowledged == push.published == 1300
    assert 0 < push.received < 1300
