"""What a task would take, from what answers showed: pure."""

from __future__ import annotations

import pytest

from coordinator.policy.acquaintance import Acquaintance
from coordinator.policy.estimates import GUESSED_BESIDE_S, Estimates
from coordinator.policy.types import Answer, DeviceView, Level, Observation, Outcome, Terms

LEVEL = Level("int8", 1, files={"a": 1_000_000}, step_s=0.5)
TERMS = Terms(steps=10, adapter_bytes=50_000)


def estimates(*fleet: DeviceView) -> Estimates:
    """Of a fleet."""
    return Estimates.of(Observation(fleet, (LEVEL,), (), fleet, TERMS))


def test_an_answer_is_predicted_again() -> None:
    """A device that does next time what it did takes as long: its steps, what was beside them, and its link."""
    answer = Answer("a", "int8", Outcome.DONE, 9, 9, 22.0, 1, 2.0, wire_bytes=500_000, wire_s=5.0, beside_s=2.0)
    view = Acquaintance.of([LEVEL], [answer]).view("a", 9)
    assert estimates(view).compute_s(view, LEVEL) == pytest.approx(answer.wall_s)
    # It has the level by now: only the adapter goes down.
    assert estimates(view).task_s(view, LEVEL) == pytest.approx(answer.wall_s + 50_000 / 100_000)


def test_power_is_of_whole_threads() -> None:
    """A device with one thread trains with it, whatever share of it is asked for."""
    one, four = (DeviceView("a", 9, threads, slowness=1.0, beside_s=1.0) for threads in (1, 4))
    assert estimates(one).compute_s(one, LEVEL, 0.1) == pytest.approx(6.0)
    assert estimates(four).compute_s(four, LEVEL, 0.5) == pytest.approx(11.0)
    assert estimates(four).compute_s(four, LEVEL, 0.3) == pytest.approx(21.0)


def test_a_device_that_nobody_knows_is_like_the_others() -> None:
    """The median of what is known beside steps, too; a guess where nothing is."""
    known, unknown = DeviceView("a", 9, slowness=1.0, beside_s=7.0), DeviceView("b", 9, slowness=1.0)
    assert estimates(known, unknown).compute_s(unknown, LEVEL) == pytest.approx(12.0)
    assert estimates(unknown).compute_s(unknown, LEVEL) == pytest.approx(5.0 + GUESSED_BESIDE_S)
