"""What --check of the transfers and of the fleets asks for, on figures made up here."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from benchmarks import scale
from benchmarks.transfers import GIB, MIB, MOST_AGAIN_BYTES, Transfer, complaints, figures

GOOD = Transfer(2 * GIB, 2 * GIB + 4 * MIB, 40 * MIB, 50 * MIB, 8 * MIB, 160e6, 150e6, "result")


def test_what_is_within_its_bounds_passes() -> None:
    """Nothing to complain of; of speeds the medians count, of memory and bytes the worst."""
    turns = [GOOD, dataclasses.replace(GOOD, bytes_s=1e6, peak_bytes=52 * MIB), GOOD]
    assert complaints(turns, [200e6, 210e6, 10e6]) == []
    found = figures(turns, [200e6, 210e6, 10e6])
    assert (found["memory_bytes"], found["again_bytes"], found["share_of_raw"]) == (12 * MIB, 4 * MIB, 0.8)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"peak_bytes": 57 * MIB}, "the agent took 17.0 MiB above idle"),
        ({"sent_bytes": 2 * GIB + MOST_AGAIN_BYTES + MIB}, "25.0 MiB were sent again"),
        ({"sent_bytes": GIB}, "-1024.0 MiB were sent again"),
        ({"held_bytes": 11 * MIB}, "the broker held 11.0 MiB for a frozen device"),
        ({"bytes_s": 100e6}, "a transfer has 0.50 of the speed of raw messages"),
        ({"ended": "declined"}, "the device's task ended as declined"),
    ],
)
def test_what_is_not_is_said(change: dict[str, Any], complaint: str) -> None:
    """One line for each."""
    assert complaints([dataclasses.replace(GOOD, **change)], [200e6]) == [complaint]


def test_every_delta_counts_once() -> None:
    """A delta that is missing, or in a round twice, is a complaint, and so is a broker that nobody killed."""
    every = Counter({(k, name): 1 for k in range(1, scale.ROUNDS + 1) for name in "ab"})
    assert scale.complaint(2, every, every, was_killed=True) == ""
    assert scale.complaint(2, every, every, was_killed=False) == "the broker was never killed"
    lost, twice = every - Counter({(1, "a"): 1}), every + Counter({(1, "a"): 1})
    assert scale.complaint(2, every, lost, was_killed=True) == "5 of 6 deltas are in a round, 6 were committed"
    assert scale.complaint(2, twice, every, was_killed=True) == "6 of 6 deltas are in a round, 7 were committed"
    assert scale.complaint(2, twice, twice, was_killed=True) == "6 of 6 deltas are in a round, 7 were committed"
