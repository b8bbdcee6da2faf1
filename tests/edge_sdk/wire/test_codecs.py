"""Every codec keeps its promises: so many bytes, so far off, biased or not; and hostile bytes are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_sdk.wire.codecs import CODECS, NEEDS_RESIDUAL, SHARE, Halves, Largest, Levels
from edge_sdk.wire.delta import DeltaFile, Tensor, encode_delta, pack_array, unpack_array
from edge_sdk.wire.errors import DecodeError
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import Array

LEVELS = {how: codec for how, codec in CODECS.items() if isinstance(codec, Levels)}
NORMAL = float(np.finfo(np.float32).tiny)  # below it float32 itself rounds coarsely
NUMBERS = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
VALUES = st.integers(0, 700).flatmap(lambda n: arrays(np.float32, n, elements=NUMBERS, fill=st.just(0.0)))
HOW = st.sampled_from(DeltaCodec)
# The factors of SmolLM2-135M's q and v at rank 8: 576 wide, 192 for v's output.
LORA = {
    f"block.{k}/self_attn.{module}.lora_{factor}": shape
    for k in range(30)
    for module, factor, shape in (
        ("q_proj", "A", (8, 576)),
        ("q_proj", "B", (576, 8)),
        ("v_proj", "A", (8, 576)),
        ("v_proj", "B", (192, 8)),
    )
}


def normal(count: int, seed: int = 0) -> Array:
    """Numbers like those of a delta."""
    return (1e-3 * np.random.default_rng(seed).normal(size=count)).astype(np.float32)


def back(values: Array, how: DeltaCodec, generator: np.random.Generator | None = None) -> Array:
    """What comes out at the other end."""
    data = CODECS[how].encode(values, generator)
    assert len(data) == CODECS[how].size_bytes(len(values))
    return CODECS[how].decode(data, len(values))


def length(values: Array) -> float:
    """Euclidean, in float64."""
    return float(np.linalg.norm(values.astype(np.float64)))


@given(VALUES, HOW, st.none() | st.integers(0, 9))
def test_as_many_numbers_come_back(values: Array, how: DeltaCodec, seed: int | None) -> None:
    """As many, float32, finite, in as many bytes as promised, whichever way it rounds; zeros stay zeros."""
    found = back(values, how, None if seed is None else np.random.default_rng(seed))
    assert found.dtype == np.float32
    assert found.shape == values.shape
    assert np.isfinite(found).all()
    assert values.any() or not found.any()


@given(VALUES, HOW)
def test_no_error_is_as_long_as_what_was_given(values: Array, how: DeltaCodec) -> None:
    """Without a generator every codec contracts: with error feedback what is left out cannot grow for ever."""
    error = length(values - back(values, how))
    assert error < length(values) or not values.any()


@given(VALUES)
def test_fp32_is_exact(values: Array) -> None:
    """Bit for bit."""
    assert back(values, DeltaCodec.FP32).tobytes() == values.tobytes()


@given(VALUES)
def test_fp16_is_as_near_as_it_says(values: Array) -> None:
    """Within 2^-11 of each number, or 2^-25 of the largest."""
    largest = np.abs(values).max(initial=0)
    assert (np.abs(values - back(values, DeltaCodec.FP16)) <= np.maximum(np.abs(values) / 2**11, largest / 2**25)).all()


@pytest.mark.parametrize("how", LEVELS)
@given(VALUES)
def test_levels_are_as_near_as_they_say(how: DeltaCodec, values: Array) -> None:
    """To nearest: over each block, the root of its length times half a step. By chance: each number within a step."""
    codec = LEVELS[how]
    nearest, drawn = back(values, how), back(values, how, np.random.default_rng(0))
    for begin in range(0, len(values), codec.block):
        part = slice(begin, begin + codec.block)
        largest = float(np.abs(values[part]).max())
        rounding = 1e-6 * largest
        bound = math.sqrt(len(values[part])) * (largest / codec.top + rounding)
        assert length(values[part] - nearest[part]) <= bound
        assert np.abs(values[part] - drawn[part]).max() <= 2 * largest / codec.top + rounding


@given(VALUES)
def test_the_largest_come_through(values: Array) -> None:
    """One in `SHARE`, as exact as fp16 makes them, and nothing that was left out is larger than what was kept."""
    found = back(values, DeltaCodec.TOP_K)
    kept, largest = -(-len(values) // SHARE), np.abs(values).max(initial=0)
    assert np.count_nonzero(found) <= kept
    left_out = np.abs(values[found == 0]).max(initial=0)
    assert np.sort(np.abs(values))[: len(values) - kept].max(initial=0) >= left_out * (1 - 2**-11) - largest / 2**25
    assert (np.abs((values - found)[found != 0]) <= largest / 2**11).all()


@pytest.mark.parametrize("how", LEVELS)
def test_rounding_by_chance_is_unbiased(how: DeltaCodec) -> None:
    """The mean over many draws is the number, within five standard errors for every one of 300."""
    values, draws, generator = normal(300), 4000, np.random.default_rng(1)
    found = np.array([back(values, how, generator) for _ in range(draws)], np.float64)
    error = found.std(axis=0) / math.sqrt(draws)
    assert (np.abs(found.mean(axis=0) - values) <= 5 * error + 1e-6 * np.abs(values).max()).all()


@pytest.mark.parametrize("how", [DeltaCodec.INT4, DeltaCodec.INT2])
def test_rounding_to_nearest_is_biased_and_closer(how: DeltaCodec) -> None:
    """What residuals are for: the same every time, and nearer than by chance."""
    values = normal(4608)
    nearest, drawn = back(values, how), back(values, how, np.random.default_rng(2))
    assert np.array_equal(nearest, back(values, how))
    assert length(values - nearest) < length(values - drawn)


def test_fewer_bits_are_fewer_bytes_and_further_off() -> None:
    """Of numbers like a delta's, each codec of a block's levels is shorter than the one above it, and less exact."""
    values = normal(4608)
    order = [DeltaCodec.FP32, DeltaCodec.FP16, DeltaCodec.INT8, DeltaCodec.INT4, DeltaCodec.INT2, DeltaCodec.SIGN]
    sizes = [CODECS[how].size_bytes(len(values)) for how in order]
    errors = [length(values - back(values, how)) for how in order]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize(
    ("how", "share"),
    [
        (DeltaCodec.FP16, 0.51),
        (DeltaCodec.INT8, 0.27),
        (DeltaCodec.INT4, 0.15),
        (DeltaCodec.INT2, 0.09),
        (DeltaCodec.SIGN, 0.05),
        (DeltaCodec.TOP_K, 0.05),
    ],
)
def test_bytes_as_serialised(how: DeltaCodec, share: float) -> None:
    """A whole delta of LoRA factors, names and all, is at most this share of the same in fp32."""
    sizes = []
    for codec in (how, DeltaCodec.FP32):
        tensors = {name: pack_array(np.ones(shape, np.float32), codec) for name, shape in LORA.items()}
        sizes.append(len(encode_delta(DeltaFile("run.1.1.0.pi", 1, "pi", "0" * 64, 160, tensors))))
    assert sizes[0] <= share * sizes[1]


def test_what_is_of_no_use_alone_says_so() -> None:
    """Without residuals, all but those that need them are off by less than three quarters of what they were given."""
    values = normal(4608)
    drawn = {how: length(values - back(values, how, np.random.default_rng(0))) for how in DeltaCodec}
    assert {how for how, error in drawn.items() if error > 0.75 * length(values)} == NEEDS_RESIDUAL


@settings(max_examples=300)
@given(HOW, st.integers(0, 300), st.data())
def test_any_bytes_of_the_right_length_decode_or_are_refused(how: DeltaCodec, count: int, data: st.DataObject) -> None:
    """Hostile bytes give an array of the shape, or a DecodeError, and no warning."""
    size_bytes = CODECS[how].size_bytes(count)
    sent = data.draw(st.binary(min_size=size_bytes, max_size=size_bytes))
    try:
        found = unpack_array(Tensor(how, (count,), sent))
    except DecodeError:
        return
    assert found.shape == (count,)
    assert found.nbytes <= 32 * max(len(sent), 1)


@given(HOW, st.integers(1, 300), st.integers(1, 9), st.booleans())
def test_another_length_is_refused(how: DeltaCodec, count: int, by: int, longer: bool) -> None:  # noqa: FBT001
    """A byte more or less than the shape says is no tensor."""
    data = CODECS[how].encode(normal(count))
    wrong = data + bytes(by) if longer else data[:-by]
    with pytest.raises(DecodeError):
        unpack_array(Tensor(how, (count,), wrong))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("how", [how for how in DeltaCodec if how is not DeltaCodec.FP32])
def test_scales_that_no_encoder_writes_are_refused(how: DeltaCodec, scale: float) -> None:
    """A scale that is not finite would spoil a whole block, a negative one turn it round."""
    data = np.float32(scale).tobytes() + CODECS[how].encode(normal(100))[4:]
    with pytest.raises(DecodeError, match="scale"):
        unpack_array(Tensor(how, (100,), data))


def test_halves_that_are_not_finite_are_refused() -> None:
    """Whatever the scale makes of them."""
    for how, at in ((DeltaCodec.FP16, 4), (DeltaCodec.TOP_K, 4)):
        data = bytearray(CODECS[how].encode(normal(100)))
        data[at : at + 2] = np.float16(np.inf).tobytes()
        with pytest.raises(DecodeError, match="half"):
            unpack_array(Tensor(how, (100,), bytes(data)))


@pytest.mark.parametrize("count", [100, 70_000], ids=["16 bits", "32 bits"])
@pytest.mark.parametrize("wrong", ["doubled", "unsorted", "beyond"])
def test_indices_that_no_encoder_writes_are_refused(count: int, wrong: str) -> None:
    """Each number is told once, in order, and is one of the tensor's."""
    data = Largest().encode(normal(count))
    kept = -(-count // SHARE)
    begin = Halves().size_bytes(kept)
    indices = np.frombuffer(data, "<u2" if count == 100 else "<u4", offset=begin).copy()
    if wrong == "doubled":
        indices[1] = indices[0]
    elif wrong == "unsorted":
        indices[:2] = indices[1::-1]
    else:
        indices[-1] = count
    with pytest.raises(DecodeError, match="indices"):
        unpack_array(Tensor(DeltaCodec.TOP_K, (count,), data[:begin] + indices.tobytes()))


def test_a_product_beyond_float32_is_no_warning() -> None:
    """A scale and a half may each be finite and their product not: the number is infinite, and refused elsewhere."""
    data = np.float32(3e38).tobytes() + np.float16(60_000).tobytes()
    assert np.isinf(Halves().decode(data, 1)).all()


def test_the_extremes_of_float32_are_no_error() -> None:
    """Numbers at both ends of float32 can be encoded: a delta that is refused for its size is refused elsewhere."""
    largest, tiny = np.finfo(np.float32).max / 2, np.finfo(np.float32).smallest_subnormal
    for values in (np.full(300, largest), np.full(300, tiny), np.array([largest, -largest, tiny, 0])):
        for how in DeltaCodec:
            assert np.isfinite(back(values.astype(np.float32), how)).all()
            assert np.isfinite(back(values.astype(np.float32), how, np.random.default_rng(0))).all()
