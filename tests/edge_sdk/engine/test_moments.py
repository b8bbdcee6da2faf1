"""What 8 bits keep of a moment, and what they never lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engine.moments import BLOCK, Blocks, moment_bytes, zero_moment
from edge_sdk.wire.tensors import Array

SIZES = st.integers(1, 4 * BLOCK)
SEEDS = st.integers(0, 10**6)


def room_of(size: int) -> Array:
    """Whole blocks, filled with what must not matter."""
    return np.full(-(-size // BLOCK) * BLOCK, 7, np.float32)


def load(moment: Blocks, size: int) -> Array:
    """All that is kept."""
    return np.array(moment.load(slice(0, size), room_of(size), room_of(size)))


def store(moment: Blocks, values: Array) -> None:
    """Keep these values."""
    part, room, spare = slice(0, values.size), room_of(values.size), room_of(values.size)
    moment.load(part, room, spare)[...] = values
    moment.store(part, room, spare)


def blocks_of(size: int, *, squares: bool) -> Blocks:
    """An 8-bit moment of zeros."""
    moment = zero_moment(size, 8, squares=squares)
    assert isinstance(moment, Blocks)
    return moment


def drawn(size: int, seed: int, *, squares: bool) -> Array:
    """Normal values of sizes from 1e-8 to 1e4, a tenth of them zero, as gradients or as squares of them."""
    random = np.random.default_rng(seed)
    values = random.normal(size=size) * 10.0 ** random.integers(-8, 5, size) * (random.random(size) > 0.1)
    return (np.square(values) if squares else values).astype(np.float32)


@given(SIZES, SEEDS)
def test_errors_are_bounded_by_each_blocks_largest(size: int, seed: int) -> None:
    """A root is off by at most half a code, so a magnitude by at most what that makes at its place; signs stay."""
    values, moment = drawn(size, seed, squares=False), blocks_of(size, squares=False)
    store(moment, values)
    found = load(moment, size)
    scale = np.repeat(np.maximum(moment.scales.reshape(-1), 1e-30), BLOCK)[:size]
    below, above = (np.maximum(np.cbrt(np.abs(values / scale)) + off, 0) ** 3 for off in (-0.5 / 127, 0.5 / 127))
    assert (np.abs(found) >= scale * below * (1 - 1e-5)).all()
    assert (np.abs(found) <= scale * above * (1 + 1e-5)).all()
    assert (found * values >= 0).all()
    assert (np.abs(found - values) <= 0.012 * scale).all()


@given(SIZES, SEEDS)
def test_roots_of_squares_are_as_exact(size: int, seed: int) -> None:
    """A mean of squares is off, as a root, by 0.6 % of the block's largest at most, and by 6.2 % of itself down to a
    thousandth of that.
    """
    values, moment = drawn(size, seed, squares=True), blocks_of(size, squares=True)
    store(moment, values)
    root, found = np.sqrt(values), np.sqrt(load(moment, size))
    scale = np.repeat(moment.scales.reshape(-1), BLOCK)[:size]
    assert (np.abs(found - root) <= 0.006 * scale).all()
    large = root >= 1e-3 * scale
    assert (np.abs(found - root)[large] <= 0.062 * root[large]).all()


@given(SIZES, SEEDS, st.booleans())
def test_zeros_and_no_others_are_zero(size: int, seed: int, squares: bool) -> None:  # noqa: FBT001 - drawn
    """Zero stays zero whatever is in its block; a square that is not zero stays so, for it will be divided by."""
    values, moment = drawn(size, seed, squares=squares), blocks_of(size, squares=squares)
    assert not load(moment, size).any()
    store(moment, values)
    found = load(moment, size)
    assert not found[values == 0].any()
    if squares:
        assert found[values > 0].all()
    store(moment, np.zeros(size, np.float32))
    assert not load(moment, size).any()


@given(SIZES, SEEDS, st.booleans())
def test_keeping_is_no_loss_the_second_time(size: int, seed: int, squares: bool) -> None:  # noqa: FBT001 - drawn
    """What was read and is kept unchanged has the same codes: numbers at rest do not drift."""
    moment = blocks_of(size, squares=squares)
    store(moment, drawn(size, seed, squares=squares))
    codes, scales = moment.codes.copy(), moment.scales.copy()
    store(moment, load(moment, size))
    assert np.array_equal(moment.codes, codes)
    assert moment.scales == pytest.approx(scales, rel=1e-5)


@given(st.integers(1, 10**6))
def test_bits_are_refused_that_nobody_keeps(size: int) -> None:
    """Eight bits are at most 1.7 % more than a byte a number for whole blocks; any but 8 and 32 are a mistake."""
    assert moment_bytes(size, 32) == 4 * size
    assert size <= moment_bytes(size, 8) <= 1.016 * (size + BLOCK)
    for bits in (0, 4, 16):
        with pytest.raises(ValueError, match=f"state of {bits} bits is not supported, only 8 and 32"):
            moment_bytes(size, bits)
        with pytest.raises(ValueError, match=f"state of {bits} bits is not supported, only 8 and 32"):
            zero_moment(size, bits, squares=False)
