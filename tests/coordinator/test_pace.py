"""A rate is a rate, whatever is asked and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.pace import BURST_S, Pace

MOMENTS = st.lists(st.tuples(st.floats(0, 5), st.sampled_from("ab"), st.integers(1, 1000)), max_size=60)
RATES = st.floats(10, 1000)


@given(MOMENTS, RATES, RATES)
def test_no_stretch_of_time_has_more_than_its_rate(
    asked: list[tuple[float, str, int]], all_bytes_s: float, device_bytes_s: float
) -> None:
    """Between any two moments goes what the rate allows, what was saved up, and what was on its way at the end."""
    pace, went, now_s = Pace(all_bytes_s, device_bytes_s), list[tuple[float, str, int]](), 0.0
    for pause_s, device, size_bytes in asked:
        now_s += pause_s
        if pace.free_s(device) <= now_s:
            pace.spend(device, size_bytes, now_s)
            went.append((now_s, device, size_bytes))
    for whose, rate in (("ab", all_bytes_s), ("a", device_bytes_s), ("b", device_bytes_s)):
        mine = [(at_s, size_bytes) for at_s, device, size_bytes in went if device in whose]
        for first, (begin_s, _) in enumerate(mine):
            for last, (end_s, on_its_way) in enumerate(mine[first:], first):
                between = sum(size_bytes for _, size_bytes in mine[first : last + 1])
                assert between <= rate * (end_s - begin_s + BURST_S) * (1 + 1e-9) + on_its_way


def test_without_rates_nothing_waits() -> None:
    """However much went."""
    pace = Pace()
    pace.spend("a", 1 << 60, 0.0)
    assert pace.free_s("a") < 0


def test_a_device_may_get_a_rate_of_its_own() -> None:
    """From then on; the others keep theirs."""
    pace = Pace(device_bytes_s=100.0)
    pace.limit("a", 10.0, 0.0)
    for device in "ab":
        pace.spend(device, 100, 50.0)
    assert (pace.free_s("a"), pace.free_s("b")) == (59.0, 50.0)


def test_rates_of_their_own_are_for_those_alone_that_have_them() -> None:
    """Whoever is not in it any more goes as everybody does."""
    pace = Pace(device_bytes_s=100.0)
    pace.limit_only({"a": 10.0}, 0.0)
    pace.limit_only({"b": 10.0}, 0.0)
    for device in "abc":
        pace.spend(device, 1000, 0.0)
    assert [pace.free_s(device) for device in "abc"] == [10 - BURST_S, 100 - BURST_S, 10 - BURST_S]


def test_what_went_slowly_is_not_held_against_a_faster_rate() -> None:
    """Bytes that are not worked off take as long as they take at the new rate; where there is none, nothing waits."""
    pace = Pace()
    pace.limit("a", 10.0, 0.0)
    pace.spend("a", 1000 + 10, 0.0)
    assert pace.free_s("a") == 100.0
    pace.limit("a", 100.0, 50.0)
    assert pace.free_s("a") == 55.0
    pace.limit("a", 10.0, 50.0)
    assert pace.free_s("a") == 100.0
    pace.limit_only({}, 60.0)
    assert pace.free_s("a") == 60.0
