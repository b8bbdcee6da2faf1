"""Deltas obey the laws of a vector space, and bytes that are no delta are refused as such."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.wire.delta import Delta, DeltaFile, Tensor, decode_delta, encode_delta, pack_array, unpack_array
from edge_sdk.wire.errors import DecodeError, TooLargeError, WireError
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import Array

SHAPES = {"block.0/q.lora_A": (2, 3), "block.0/q.lora_B": (3, 2), "head/bias": (4,)}
NUMBERS = st.floats(-1e6, 1e6, width=32)


def array_of(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """A float32 array of the shape."""
    count = math.prod(shape)
    return st.lists(NUMBERS, min_size=count, max_size=count).map(lambda x: np.array(x, np.float32).reshape(shape))


DELTAS = st.fixed_dictionaries({}, optional={name: array_of(shape) for name, shape in SHAPES.items()}).map(Delta)


def dense(delta: Delta) -> Array:
    """All numbers of a delta in a row, zero where it lacks a tensor, float64."""
    parts = [np.asarray(delta.tensors.get(name, np.zeros(shape)), np.float64) for name, shape in SHAPES.items()]
    return np.concatenate([part.ravel() for part in parts])


def file_of(tensors: Mapping[str, Array]) -> DeltaFile:
    """A delta blob's content with these tensors."""
    return DeltaFile("a task", 3, "pi", "0" * 64, 5, {name: pack_array(array) for name, array in tensors.items()})


@given(DELTAS, DELTAS)
def test_addition_commutes(a: Delta, b: Delta) -> None:
    """Order of arrival does not matter, whichever tensors each of the two has."""
    assert np.array_equal(dense(a + b), dense(b + a))
    assert np.allclose(dense(a + b), dense(a) + dense(b), rtol=1e-6, atol=1e-6)
    assert (a + b).tensors.keys() == a.tensors.keys() | b.tensors.keys()


@given(DELTAS, DELTAS, DELTAS)
def test_addition_is_associative_up_to_rounding(a: Delta, b: Delta, c: Delta) -> None:
    """Deltas may be added in any grouping: float32 rounds, relative to the largest of the three."""
    scale = max(np.abs(dense(x)).max() for x in (a, b, c))
    assert np.allclose(dense((a + b) + c), dense(a + (b + c)), rtol=0, atol=4e-7 * max(scale, 1))


@given(DELTAS, DELTAS, st.floats(-8, 8, width=32))
def test_scaling_distributes_up_to_rounding(a: Delta, b: Delta, k: float) -> None:
    """A weight may be applied before or after the sum."""
    scale = max(np.abs(dense(x)).max() for x in (a, b)) * max(abs(k), 1)
    assert np.allclose(dense(k * (a + b)), dense(k * a + k * b), rtol=0, atol=4e-7 * max(scale, 1))
    assert np.array_equal(dense(k * a), dense(a * k))


@given(DELTAS, DELTAS)
def test_zero_times_a_delta_is_neutral(a: Delta, b: Delta) -> None:
    """A device of weight zero changes nothing; one times a delta is the delta."""
    assert np.array_equal(dense(0 * a + b), dense(b))
    assert np.array_equal(dense(1 * a), dense(a))


@given(DELTAS, DELTAS)
def test_arithmetic_leaves_its_operands_alone(a: Delta, b: Delta) -> None:
    """A delta is a value: what is computed from it does not change it, and scaling gives arrays of its own."""
    before = dense(a), dense(b)
    for name, array in (2.0 * (a + b)).tensors.items():
        np.multiply(array, 0, out=array)
        assert not any(np.shares_memory(array, part.tensors[name]) for part in (a, b) if name in part.tensors)
    assert np.array_equal(dense(a), before[0])
    assert np.array_equal(dense(b), before[1])


@given(DELTAS)
def test_the_norm_is_euclidean(a: Delta) -> None:
    """Over all tensors together, without overflow of float32."""
    assert math.isclose(a.norm(), float(np.linalg.norm(dense(a))), rel_tol=1e-12)
    assert math.isclose(Delta({"x": np.full(4, 1e30, np.float32)}).norm(), 2e30, rel_tol=1e-6)


@given(DELTAS)
def test_a_delta_survives_the_wire(a: Delta) -> None:
    """Bit for bit, with who made it, for which task."""
    file = file_of(a.tensors)
    data = encode_delta(file)
    found, delta = decode_delta(data, len(data))
    assert found == file
    assert delta.tensors.keys() == a.tensors.keys()
    for name, array in a.tensors.items():
        assert delta.tensors[name].dtype == np.float32
        assert delta.tensors[name].tobytes() == array.tobytes()
        assert delta.tensors[name].shape == array.shape


def test_the_bound_is_exact() -> None:
    """One byte more than the coordinator accepts is too large, and is not looked at."""
    data = encode_delta(file_of({"x": np.zeros(3, np.float32)}))
    with pytest.raises(TooLargeError):
        decode_delta(data, len(data) - 1)


@pytest.mark.parametrize("how", DeltaCodec)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3), (70, 9)])
def test_every_shape_survives(how: DeltaCodec, shape: tuple[int, ...]) -> None:
    """Scalars and empty arrays too; what lies in memory in another order is written row by row."""
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for given_array in (array, array.T):
        found, again = (unpack_array(pack_array(one, how)) for one in (given_array, given_array.copy(order="C")))
        assert found.dtype == np.float32
        assert np.array_equal(found, again)
        assert how is not DeltaCodec.FP32 or np.array_equal(found, given_array)


@pytest.mark.parametrize("dtype", ["f8", "f2", "i1", "c8", "O", "U3", ">f4"])
def test_other_element_types_are_refused_by_the_writer(dtype: str) -> None:
    """Nothing is converted silently."""
    with pytest.raises(ValueError, match="only float32"):
        pack_array(np.zeros(2, dtype))


@pytest.mark.parametrize(
    ("how", "shape", "data"),
    [
        (how, shape, data)
        for how in DeltaCodec
        for shape, data in (
            ((2,), bytes(4)),
            ((1,), bytes(99)),
            ((-1,), bytes(4)),
            ((-1, -1), bytes(4)),
            ((), b""),
            ((0, 1 << 62, 1 << 62), b"" if how is DeltaCodec.FP32 else bytes(4)),
            ((0, (1 << 64) - 1), b""),
            ((1 << 62,), bytes(4)),
            ((1,) * 70, bytes(4)),
            (((1 << 64) - 1,) * 60_000, bytes(4)),
        )
    ],
)
def test_tensors_that_contradict_themselves_are_refused(how: DeltaCodec, shape: tuple[int, ...], data: bytes) -> None:
    """Codec, shape and bytes must agree, within what an array can be: anything else is a DecodeError, and soon."""
    tensor = Tensor(how, shape, data)
    with pytest.raises(DecodeError):
        unpack_array(tensor)
    with pytest.raises(DecodeError):
        decode_delta(encode_delta(DeltaFile("t", 0, "d", "0" * 64, 1, {"x": tensor})), 1 << 22)


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=6), st.sampled_from(DeltaCodec), st.data())
def test_a_damaged_delta_raises_only_a_wire_error(noise: bytes, how: DeltaCodec, data: st.DataObject) -> None:
    """Whatever a device sends in place of its delta, the coordinator has one kind of error to expect."""
    arrays = {"x": np.ones((2, 2), np.float32), "y": np.ones(100, np.float32)}
    packed = {name: pack_array(array, how) for name, array in arrays.items()}
    sent = bytearray(encode_delta(DeltaFile("a task", 3, "pi", "0" * 64, 5, packed)))
    at = data.draw(st.integers(0, len(sent) - len(noise)))
    sent[at : at + len(noise)] = noise
    with contextlib.suppress(WireError):
        _, delta = decode_delta(bytes(sent), len(sent))
        assert all(array.nbytes <= 32 * len(sent) for array in delta.tensors.values())
