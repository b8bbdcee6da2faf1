"""What was measured where a probe looks is what is expected there, and more is never expected to cost less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.costs import PAGES, PROCESS, TRAINING, Costs, Curve
from edge_sdk.wire.manifest import Cost

VALUES, ROWS, TOKENS = st.floats(0, 1e9), st.integers(1, 64), st.integers(1, 2048)
COEFFICIENTS = st.tuples(st.floats(0, 1e8), st.floats(0, 1e6), st.floats(0, 1e3))
MB = 10**6


def shapes(tokens: int) -> tuple[tuple[int, int], ...]:
    """The shapes that a probe measures, closer together."""
    return (1, tokens), (2, tokens), (1, 2 * tokens), (1, 3 * tokens)


@given(COEFFICIENTS, TOKENS, ROWS, TOKENS)
def test_a_curve_finds_what_its_points_come_from(
    coefficients: tuple[float, float, float], probed: int, rows: int, tokens: int
) -> None:
    """Of values that are c0 + c1 b S + c2 b S^2 it gives those, at these shapes and everywhere else."""
    c0, c1, c2 = coefficients

    def true(rows: int, tokens: int) -> float:
        return c0 + rows * tokens * (c1 + c2 * tokens)

    points = {shape: true(*shape) for shape in shapes(probed)}
    curve, largest = Curve.through(points), max(points.values())
    for shape, value in points.items():
        assert curve.at(*shape) == pytest.approx(value, rel=1e-9, abs=1e-9 * largest)
    scale = max(rows / 2 * (tokens / probed) ** 2, rows, tokens / probed, 1)  # to where rounding grows
    assert curve.at(rows, tokens) == pytest.approx(true(rows, tokens), rel=1e-6, abs=1e-8 * largest * scale)


@given(st.tuples(VALUES, VALUES, VALUES, VALUES), TOKENS, ROWS, TOKENS, st.integers(0, 64), st.integers(0, 2048))
def test_more_is_never_less(
    values: tuple[float, float, float, float], probed: int, rows: int, tokens: int, more_rows: int, more_tokens: int
) -> None:
    """Whatever a noisy machine measured, nothing is negative, and neither rows nor tokens make anything cheaper."""
    curve = Curve.through(dict(zip(shapes(probed), values, strict=True)))
    assert min(curve.fixed, *curve.each) >= 0
    assert curve.at(rows, tokens) >= 0
    assert curve.at(rows + more_rows, tokens + more_tokens) >= curve.at(rows, tokens) * (1 - 1e-9)


@given(VALUES, VALUES, st.integers(1, 64), st.integers(1, 64), TOKENS)
def test_two_shapes_make_a_straight_line(less: float, more: float, rows: int, more_rows: int, tokens: int) -> None:
    """Where no longer rows were measured, as for the vocabulary's loss, nothing is quadratic; no value is too low."""
    curve = Curve.through({(rows, tokens): less, (rows + more_rows, tokens): more})
    once, twice = (curve.at(rows, times * tokens) - curve.fixed for times in (1, 2))
    assert twice == pytest.approx(2 * once, abs=1e-3)
    assert curve.at(rows, tokens) == pytest.approx(less if more > less else curve.fixed, rel=1e-6, abs=1e-3) or (
        curve.at(rows, tokens) >= less
    )
    assert curve.at(rows + more_rows, tokens) >= min(more, less) * (1 - 1e-9)


@given(VALUES, ROWS, TOKENS, ROWS, TOKENS)
def test_one_shape_is_taken_for_all(value: float, rows: int, tokens: int, at_rows: int, at_tokens: int) -> None:
    """Of a single measurement nothing more is known."""
    assert Curve.through({(rows, tokens): value}).at(at_rows, at_tokens) == value


def test_costs_of_no_graph_are_taken_apart() -> None:
    """What there is at rest and what training adds are one sum; mapping is a time per byte; graphs are told apart."""
    costs = Costs(
        [
            Cost(PROCESS, 1, 2, 50 * MB, 0.0),
            Cost(TRAINING, 1, 16, 3 * MB, 0.0),
            Cost(PAGES, 1, 1, 10 * MB, 4.0),
            Cost("forward", 1, 16, MB, 1.5),
            Cost("forward", 2, 16, 2 * MB, 3.0),
        ]
    )
    assert costs.process_bytes == 53 * MB
    assert costs.pages_ms(5 * MB) == pytest.approx(2.0)
    assert costs.memory_bytes("forward", 4, 16) == pytest.approx(4 * MB)
    assert costs.time_ms("forward", 3, 16) == pytest.approx(4.5)
    assert costs.memory_bytes("backward", 4, 16) == costs.time_ms("backward", 4, 16) == 0


def test_without_costs_nothing_is_known() -> None:
    """A manifest that was not measured is planned with zeros, not refused."""
    costs = Costs([])
    assert costs.process_bytes == costs.pages_ms(MB) == 0
    assert Costs([Cost(PAGES, 1, 1, 0, 1.0)]).pages_ms(MB) == 0
