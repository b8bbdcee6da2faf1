"""Prediction against reality: what a decision promises, how far off that is, and that the check holds the aim."""

from __future__ import annotations

import pytest

from benchmarks.controller_reality import (
    FASTEST_BYTES_S,
    SLOWEST_BYTES_S,
    Compared,
    Promise,
    complaints,
    errors,
    promise,
    rates,
)
from coordinator.decision_log import Logged
from coordinator.policy.types import Choice, Decision, DeviceView, Level, Observation, Terms
from edge_sdk.wire.messages import DeltaCodec

LEVEL = Level("int8", 1, size_bytes=4_000_000, upload_bytes={DeltaCodec.FP32: 900_000}, step_s=0.5)


def test_the_slowest_device_makes_the_delay_and_all_of_them_the_bytes() -> None:
    """A device that sits the round out adds nothing; each has its part of the bandwidth."""
    fast = DeviceView("fast", 9, rate_bytes_s=1e9, slowness=2.0, beside_s=1.0)
    slow = DeviceView("slow", 9, rate_bytes_s=50_000.0, slowness=2.0, beside_s=1.0, holds=frozenset({"int8"}))
    idle = DeviceView("idle", 9, rate_bytes_s=1.0, slowness=9.0)
    terms = Terms(steps=10, bandwidth_bytes_s=1e6, adapter_bytes=100_000)
    choices = {"fast": Choice("int8", share=1.0), "slow": Choice("int8", share=3.0)}
    seen = Observation((fast, slow, idle), (LEVEL,), (), (), terms)
    promised = promise(Logged(1, 2, 1, 0.0, "it", fresh=True, observation=seen, decision=Decision(choices)))
    # fast: 5 MB at a quarter of 1 MB/s, then 10 s; slow has the level: 1 MB at its own 50 kB/s, then 10 s.
    assert promised.delay_s == pytest.approx(30.0 + 1.0)
    assert promised.bytes == 6_000_000


def test_errors_are_shares_of_what_was_measured() -> None:
    """Means over rounds, too much and too little alike."""
    rounds = [
        Compared(2, 8, 0, Promise(9.0, 110), Promise(10.0, 100)),
        Compared(3, 8, 1, Promise(12.0, 100), Promise(10.0, 100)),
    ]
    assert errors(rounds) == pytest.approx({"delay": 0.15, "bytes": 0.05})


def test_the_check_holds_both() -> None:
    """Up to 15 % each."""
    assert complaints({"delay": 0.15, "bytes": 0.0}) == []
    assert complaints({"delay": 0.151, "bytes": 0.2}) == [
        "delay is 15.1% off, 15% is allowed",
        "bytes is 20.0% off, 15% is allowed",
    ]


def test_links_are_the_same_each_time_and_differ_by_device() -> None:
    """Within the range that is told."""
    assert rates() == rates()
    assert len(set(rates())) == len(rates())
    assert all(SLOWEST_BYTES_S <= rate <= FASTEST_BYTES_S for rate in rates())
