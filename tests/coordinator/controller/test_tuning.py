"""A policy that is tuned in the midst of a run: for that run's own fleet, and on trial before it stays."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.cli import main
from coordinator.controller import radio, simulator
from coordinator.controller.calibrate import CalibrationError
from coordinator.controller.duel import ROUNDS, TURNS, Duel, verdict
from coordinator.controller.earned import REPEATED, Measured, earned
from coordinator.controller.reward import Weights
from coordinator.controller.trainer import POLICY
from coordinator.controller.twin import PLACED_M, population, twin_of, width_hz
from coordinator.history import read_history
from coordinator.ledger import Ledger
from coordinator.policy.estimates import Usual
from coordinator.policy.learned import DEFAULT, load_policy
from coordinator.policy.types import DeviceView
from tests.coordinator.test_replay import Run

DUEL = Duel(first_round=5, base="base", tuned="tuned", gap=1.0, level_bytes=10)
MEASURED = Measured(gap=2.0, deadline_s=1000.0, level_bytes=10_000_000, weights=Weights())


def of_turns(tuned: float, base: float, fall: float = 0.0) -> dict[int, float | None]:
    """What the trial's rounds earned, each less than the one before it by `fall`."""
    return {
        round_: (tuned if turn else base) - k * fall
        for k, (round_, turn) in enumerate(zip(DUEL.rounds, TURNS, strict=True))
    }


@given(tuned=st.floats(-2, 2), base=st.floats(-2, 2), fall=st.floats(-1, 1))
def test_the_better_one_stays_whatever_the_trend(tuned: float, base: float, fall: float) -> None:
    """What rounds earn falls as a model learns: an even fall favours neither of the two."""
    if abs(tuned - base) < 1e-6:
        return
    said = verdict(DUEL, of_turns(tuned, base, fall))
    assert said is not None
    assert said[0] == ("tuned" if tuned > base else "base")


def test_nothing_is_said_before_all_is_measured() -> None:
    """While a round is open or not evaluated yet, the trial goes on; after its turns the other one decides."""
    for missing in DUEL.rounds:
        assert verdict(DUEL, of_turns(1.0, 0.0) | {missing: None}) is None
    assert [DUEL.decides(round_) for round_ in range(4, 11)] == [
        "base",
        *("tuned" if turn else "base" for turn in TURNS),
        "base",
        "base",
    ]
    assert dataclasses.replace(DUEL, winner="tuned").decides(20) == "tuned"


def test_a_round_that_comes_to_nothing_ends_it() -> None:
    """One of the tuned policy's ends the trial at once; those of the policy before it speak for the tuned one."""
    said = verdict(DUEL, {5: REPEATED, 6: None, 7: None, 8: None})
    assert said is not None
    assert said[0] == "base"
    assert "round 5" in said[1]
    said = verdict(DUEL, {5: 0.1, 6: REPEATED, 7: REPEATED, 8: 0.1})
    assert said is not None
    assert said[0] == "tuned"
    assert len(DUEL.rounds) == ROUNDS


@given(st.lists(st.floats(1e3, 1e9), min_size=1, max_size=5))
def test_a_channel_gives_the_rate_that_was_measured(rates: list[float]) -> None:
    """A device of the twin has the link that the ledger knows, before anything moves or fades."""
    gains = radio.gain(np.full(len(rates), PLACED_M), np.zeros(len(rates)), np.ones(len(rates)))
    found = radio.rate_bytes_s(width_hz(np.array(rates)), radio.DOWN_W, gains)
    assert np.allclose(found, rates, rtol=1e-3)


def test_a_fleet_is_made_once_more() -> None:
    """What was said of devices is what they are, what was measured is near it, and what nobody knows is usual."""
    known = DeviceView("a", 300, threads=4, examples=50, rate_bytes_s=1e6, slowness=3.0, asked=20, answered=20)
    unknown = DeviceView("b", 200, threads=2)
    many = [population([known, unknown], Usual.of([known]), np.random.default_rng(k)) for k in range(200)]
    assert all(one.budgets_bytes.tolist() == [300, 200] for one in many)
    assert all(one.threads.tolist() == [4, 2] for one in many)
    slowness = np.array([one.slowness for one in many])
    assert np.median(slowness, axis=0) == pytest.approx([3, 3], rel=0.15)
    assert slowness[:, 0].std() < slowness[:, 1].std()
    assert np.mean([one.losing for one in many], axis=0)[0] < 0.05


@pytest.fixture
def ledger(tmp_path: pathlib.Path) -> pathlib.Path:
    """Four rounds, of devices that deliver; the loss before the first is measured too."""
    run = Run(tmp_path / "ledger.sqlite")
    run.start()
    run.ledger.evaluation(0, "full", 4.0, None, 8)
    run.go(4)
    while run.rounds.state.value != "done":
        run.answer(run.asks.pop(0) if run.asks else None)
    run.kill()
    return run.path


def test_what_a_round_earned(ledger: pathlib.Path) -> None:
    """More for a larger fall of the loss; nothing is known of a round that was not measured, or not served."""
    history, book = read_history(ledger), Ledger(ledger, "replay", "digest")
    answers = tuple(book.answers())
    book.close()
    first, second = (earned(history, answers, round_, MEASURED) for round_ in (1, 2))
    assert first is not None
    assert second is not None
    assert second > first - 1  # the losses are 4, 3, 1.5, 1, 0.75: of a gap of 2 the second round has 0.75
    assert first == pytest.approx(0.5, abs=0.3)
    assert second == pytest.approx(0.75, abs=0.3)
    assert earned(history, answers, 5, MEASURED) is None
    unmeasured = dataclasses.replace(history, evaluations=history.evaluations[:1])
    assert earned(unmeasured, answers, 1, MEASURED) is None


def test_a_policy_is_tuned_from_a_ledger(
    ledger: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command goes on from the shipped policy in the run's own fleet; it leaves a better one or none."""
    twin = twin_of(ledger)
    assert {device.name for device in twin.devices} == {"a", "b"}
    assert {level.name for level in twin.profile.levels} == {"large", "small"}
    state = simulator.begin(twin.world((1, 2), "stationary"))
    assert len(simulator.observe(twin.world((1, 2), "stationary"), state).devices) == 2
    out = tmp_path / "tuned"
    assert main(["controller", "tune", str(ledger), "--out", str(out), "--steps", "512"]) == 0
    said = capsys.readouterr().out
    if (out / POLICY).is_file():
        card = load_policy(out / POLICY).card
        assert card["steps"] > 0
        assert card["gap"] > 0
    else:
        assert "nothing better was found" in said
    assert "critic, epoch 1" in said
    assert load_policy(DEFAULT).arrays  # the one in the package is as it was


def test_too_little_is_known(tmp_path: pathlib.Path) -> None:
    """Before anything was decided there is no fleet to simulate."""
    Ledger(tmp_path / "ledger.sqlite", "replay", "digest").close()
    with pytest.raises(CalibrationError, match="no decision so far"):
        twin_of(tmp_path / "ledger.sqlite")
