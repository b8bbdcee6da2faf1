"""Laws of the learning curve and of the reward."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.controller import learning
from coordinator.controller.learning import Curve, value
from coordinator.controller.reward import Outcomes, Scale, Weights, reward
from edge_sdk.wire.messages import DeltaCodec

CURVE = Curve(4.0, 3.0, 0.05, 0.5, 0.3, 0.5, onset=1.0, kept={DeltaCodec.INT4: 0.9})
SCALE = Scale(gap=1.0, deadline_s=100.0, level_bytes=10**9, devices=8)
NOTHING = Outcomes(3.5, 3.5, 0.0, 0, 0, 0.0, 0, 0, 0)


def test_a_loss_never_passes_the_floor() -> None:
    """However much is learned."""
    amounts = CURVE.amounts(np.array([1.0]), np.array([1.0]), np.full((1, 4), 0.25), 10**9)
    assert CURVE.after(np.full(4, 4.0), amounts) == pytest.approx(3.0)


@given(st.integers(1, 8), st.floats(0.01, 1.0))
def test_more_people_learn_more(people: int, quality: float) -> None:
    """Of devices that are alike one more never does harm, and a worse level never more good than a better one."""

    def amount(count: int, of: float) -> float:
        weights = np.full(count, 1 / count)
        return float(CURVE.amounts(weights, np.full(count, of), np.full((count, 4), 0.25), 10).sum())

    assert amount(people + 1, quality) >= amount(people, quality) > 0
    assert amount(people, quality) >= amount(people, quality / 2)


def test_whose_data_are_not_there_learn_less() -> None:
    """A group without rows in the round moves by what is transferred, the others by more."""
    amounts = CURVE.amounts(np.array([1.0]), np.array([1.0]), np.array([[1.0, 0.0]]), 10)
    assert amounts[0] > amounts[1] > 0


@pytest.mark.parametrize("onset", [0.1, 1.0, 2.0])
def test_learning_gathers_pace_where_it_begins_slowly(onset: float) -> None:
    """Below 1 the first round takes a smaller share of what is left than the second, above 1 a larger one."""
    curve, amounts = dataclasses.replace(CURVE, onset=onset), np.array([0.5])
    begun = np.array([curve.first])
    after = curve.after(begun, amounts)
    shares = [float(((old - curve.after(old, amounts)) / (old - curve.floor))[0]) for old in (begun, after)]
    assert all(0 < share < 1 for share in shares)
    assert np.sign(round(shares[1] - shares[0], 9)) == np.sign(1 - onset)


def test_a_loss_above_the_first_one_learns_as_at_the_start() -> None:
    """Data that drift may take it there."""
    curve, amounts = dataclasses.replace(CURVE, onset=0.2), np.array([0.5])
    for loss in (curve.first, curve.first + 0.5):
        left = float(curve.after(np.array([loss]), amounts)[0] - curve.floor) / (loss - curve.floor)
        assert left == pytest.approx(np.exp(-0.5 * 0.2))


def test_a_curve_survives_json() -> None:
    """What is written is what is read; a codec that it does not name leaves a delta as it is."""
    assert learning.from_plain(json.loads(json.dumps(learning.as_plain(CURVE)))) == CURVE
    assert value(CURVE, 0.5, DeltaCodec.INT4) == 0.45
    assert value(CURVE, 0.5, DeltaCodec.FP32) == 0.5


@pytest.mark.parametrize(
    ("worse", "by"),
    [
        ({"delay_s": 10.0}, 0.03 * 0.1),
        ({"bytes": 8 * 10**9}, 0.02),
        ({"energy_j": 8000.0}, 0.01),
        ({"violations": 8}, 0.05),
    ],
)
def test_each_cost_is_a_share_of_its_scale(worse: dict[str, Any], by: float) -> None:
    """The formula of the module, one term at a time."""
    assert reward(dataclasses.replace(NOTHING, **worse), SCALE, Weights()) == pytest.approx(-by)


def test_a_gain_counts_as_a_share_of_the_gap() -> None:
    """Half of what there is to gain is worth half of the weight."""
    assert reward(dataclasses.replace(NOTHING, loss_after=3.0), SCALE, Weights(gain=2.0)) == pytest.approx(1.0)
