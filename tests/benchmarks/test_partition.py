"""However a data set is dealt out, nothing is lost, and nobody has what another has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.partition import Rows, by_group, by_label, iid

LABELS = np.arange(600) % 3


def assert_dealt(parts: list[Rows], rows: int) -> None:
    """Every row is in exactly one part, and parts are in order."""
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 3))
def test_iid_parts_differ_by_a_row(devices: int, more: int, seed: int) -> None:
    """Nothing is lost, and no device has two rows more than another."""
    parts = iid(devices + more, devices, seed)
    assert_dealt(parts, devices + more)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 40), st.sampled_from([0.01, 0.1, 1.0, 100.0]), st.integers(0, 3))
def test_label_skew_loses_nothing(devices: int, alpha: float, seed: int) -> None:
    """Whatever alpha: every row is somewhere, and every device has the least there is to have."""
    parts = by_label(LABELS, devices, alpha, seed, least=5)
    assert_dealt(parts, len(LABELS))
    assert min(map(len, parts)) >= 5


def test_a_small_alpha_is_a_large_skew() -> None:
    """At 0.1 the commonest label is most of what a device has, at 100 about a third; a seed deals the same again."""
    parts = {alpha: by_label(LABELS, 10, alpha, seed=1) for alpha in (0.1, 100.0)}
    most = {
        alpha: np.mean([np.bincount(LABELS[part], minlength=3).max() / len(part) for part in found])
        for alpha, found in parts.items()
    }
    assert most[0.1] > 0.7
    assert most[100.0] < 0.5
    assert all(map(np.array_equal, parts[0.1], by_label(LABELS, 10, 0.1, seed=1)))
    assert not all(map(np.array_equal, parts[0.1], by_label(LABELS, 10, 0.1, seed=2)))


def test_a_group_is_a_device() -> None:
    """Rows go to whoever they are of."""
    found = by_group(["lincoln", "adams", "lincoln"])
    assert {group: rows.tolist() for group, rows in found.items()} == {"lincoln": [0, 2], "adams": [1]}


def test_too_few_rows_are_refused() -> None:
    """With how many are needed."""
    with pytest.raises(ValueError, match="3 rows for 4 devices: 4 are needed"):
        iid(3, 4, 0)
    with pytest.raises(ValueError, match="600 rows for 100 devices: 1000 are needed, 10 for each"):
        by_label(LABELS, 100, 0.1, 0)
