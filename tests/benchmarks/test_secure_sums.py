"""The benchmark of secure sums measures sums that are right, and its check bites."""

from __future__ import annotations

from benchmarks.secure_sums import complaints, page, row


def test_a_sum_is_measured_and_right() -> None:
    """With one of five that drops out: bytes and seconds of each step, and a mean within the promised rounding."""
    one = row(5, 1, 500)
    assert complaints([one]) == []
    assert set(one["up_bytes"]) == {"MaskKeys", "MaskShares", "UnmaskShares"}
    assert set(one["down_bytes"]) == {"MaskPeers", "MaskInbox", "UnmaskCall"}
    assert all(seconds >= 0 for seconds in (*one["device_s"].values(), *one["coordinator_s"].values()))
    assert "| 5 | 1 | 4, 3 needed | 2 |" in page([one])


def test_what_is_wrong_is_said() -> None:
    """A mean that is off, and messages that grew."""
    one = row(3, 0, 10)
    (off,) = complaints([{**one, "off": 1.5}])
    assert "off by 1.50 times" in off
    (long,) = complaints([{**one, "up_bytes": {"MaskKeys": 1_000_000}}])
    assert "1000000 bytes beside" in long
