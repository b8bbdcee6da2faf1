"""Which levels are worth having: laws over whatever could be measured."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.ladder.rungs import (
    Measured,
    PlanPoint,
    Quality,
    Tune,
    gap_closed,
    new_bytes,
    size_bytes,
    spaced,
    worth_having,
)
from edge_sdk.wire.blobs import Blob

MB = 10**6


def level(name: str, size_mb: float, needs_mb: float, *, is_whole: bool = True) -> Measured:
    """A level of so many MB, whose leanest plan needs so many."""
    needs_bytes = round(needs_mb * MB)
    return Measured(
        name=name,
        is_whole=is_whole,
        size_bytes=round(size_mb * MB),
        new_bytes={},
        plans=(PlanPoint(needs_bytes, 10.0), PlanPoint(2 * needs_bytes, 5.0)),
        tune=Tune(10**9, needs_bytes, needs_bytes, 5.0, 4.0, 3.0),
        quality=Quality(4.0, 3.5, 3.0),
    )


def as_good(one: Measured, other: Measured, closed: dict[str, float]) -> bool:
    """Whether the first may take the other's place: nearly as small, as lean, and closing as much."""
    near = one.size_bytes <= 1.011 * other.size_bytes and one.needs_bytes <= 1.051 * other.needs_bytes
    return near and closed[one.name] >= closed[other.name] - 0.0101


def better(one: Measured, other: Measured, closed: dict[str, float]) -> bool:
    """Whether the first is worth less than the other in nothing, and clearly better in something."""
    sizes = (one.size_bytes, one.needs_bytes, -closed[one.name])
    others = (other.size_bytes, other.needs_bytes, -closed[other.name])
    clearly = sizes[0] < others[0] / 1.02 or sizes[1] < others[1] / 1.1 or sizes[2] < others[2] - 0.02
    return clearly and all(a <= b for a, b in zip(sizes, others, strict=True))


PARTS = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(-20, 120), st.booleans())
FULL_MODEL = (40, 40, 100, True)  # always among them
LEVELS = st.lists(PARTS, max_size=8).map(lambda found: [FULL_MODEL, *found])


@given(LEVELS, st.integers(0, 9))
def test_the_ladder_has_what_is_worth_having(found: list[tuple[int, int, int, bool]], seed: int) -> None:
    """What is left out has its like on the ladder, what is on it is beaten by none, and the order says nothing."""
    levels = [level(str(k), size, needs, is_whole=whole) for k, (size, needs, _, whole) in enumerate(found)]
    closed = {str(k): share / 100 for k, (_, _, share, _) in enumerate(found)}
    ladder = worth_having(levels, closed)
    assert all(any(as_good(other, one, closed) for other in ladder) for one in levels)
    beaten = [one for one in ladder if any(better(other, one, closed) for other in levels)]
    whole = [one for one in ladder if one.is_whole]
    assert not beaten or beaten == whole
    assert whole
    assert [one.size_bytes for one in ladder] == sorted(one.size_bytes for one in ladder)
    shuffled = np.random.default_rng(seed).permutation(len(levels))
    assert worth_having([levels[k] for k in shuffled], closed) == ladder


def test_what_is_nearly_equal_is_there_once() -> None:
    """Levels that differ by less than measurements do are one; the smaller stays."""
    levels = [level("a", 100, 50), level("b", 100.1, 50.1), level("c", 50, 50)]
    assert [one.name for one in worth_having(levels, {"a": 1.0, "b": 1.001, "c": 0.7})] == ["c", "a"]


@given(st.floats(1, 9), st.floats(0.01, 0.99), st.floats(0, 1))
def test_the_gap_is_between_the_model_and_itself_tuned(zero_shot: float, gain: float, way: float) -> None:
    """A plug-in as good as the tuned model closes all of it, the model as it is nothing, in between as far as it is."""
    tuned = zero_shot - gain
    assert gap_closed(zero_shot, tuned, tuned) == 1
    assert gap_closed(zero_shot, tuned, zero_shot) == 0
    assert gap_closed(zero_shot, tuned, zero_shot - way * gain) == pytest.approx(way, abs=1e-9)
    with pytest.raises(ValueError, match="there is no gap to close"):
        gap_closed(tuned, zero_shot, tuned)


BLOBS = st.frozensets(st.integers(0, 9).map(lambda k: Blob(f"{k:064x}", 1 << k)))


@given(BLOBS, BLOBS)
def test_what_is_held_is_not_fetched(own: frozenset[Blob], held: frozenset[Blob]) -> None:
    """New are the bytes of all blobs but those held: of its own none, of another level's all but what they share."""
    assert new_bytes(own, own) == 0
    assert new_bytes(own, frozenset()) == size_bytes(own)
    assert size_bytes(own) - new_bytes(own, held) == size_bytes(held) - new_bytes(held, own) == size_bytes(own & held)


@given(st.lists(st.integers(50, 400), min_size=1, unique=True).map(sorted))
def test_plans_are_few_and_none_is_far(peaks: list[int]) -> None:
    """The leanest and the last are kept; of the others enough that each has a kept one at most 5 % below it."""
    plans = [PlanPoint(peak * MB, 1000.0 - peak) for peak in peaks]
    found = spaced(plans)
    assert (found[0], found[-1]) == (plans[0], plans[-1])
    assert all(any(kept.peak_bytes <= plan.peak_bytes < 1.0501 * kept.peak_bytes for kept in found) for plan in plans)
    assert all(b.peak_bytes >= 1.0499 * a.peak_bytes for a, b in pairwise(found[:-1]))
