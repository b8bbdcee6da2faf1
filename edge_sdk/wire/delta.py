"""A **delta** (adapter after minus adapter before) and its algebra.

Deltas form a vector space: `a + b`, `k * a`. A tensor that one of them lacks is zero there, so devices that trained
different layers still add. Laws (tested): + is associative and commutative up to rounding, `0 * a + b` equals `b`,
`k * (a + b)` equals `k * a + k * b` up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.wire import codec
from edge_sdk.wire.errors import DecodeError
from edge_sdk.wire.messages import DeltaFile, Tensor
from edge_sdk.wire.tensors import DTYPES, MAX_DIMENSIONS, Array, dtype_name


@dataclass(frozen=True, slots=True)
class Delta:
    """Change of each trained adapter tensor, float32, by global name."""

    tensors: Mapping[str, Array]

    def __add__(self, other: Delta) -> Delta:
        """Sum by name; a missing tensor counts as zero."""
        names = [*self.tensors, *(name for name in other.tensors if name not in self.tensors)]
        return Delta({name: _sum(self.tensors.get(name), other.tensors.get(name)) for name in names})

    def __mul__(self, factor: float) -> Delta:
        """Each tensor times `factor`."""
        return Delta({name: array * np.float32(factor) for name, array in self.tensors.items()})

    __rmul__ = __mul__

    def norm(self) -> float:
        """Euclidean norm over all tensors, accumulated in float64."""
        return math.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in self.tensors.values()))


def _sum(a: Array | None, b: Array | None) -> Array:
    if a is None or b is None:
        return np.asarray(a if b is None else b)
    return np.asarray(a + b)


def pack_array(array: Array) -> Tensor:
    """An array for the wire. Raises ValueError for an element type that the wire lacks."""
    name = dtype_name(array.dtype)
    return Tensor(name, array.shape, np.ascontiguousarray(array, dtype=DTYPES[name]).tobytes())


def unpack_array(tensor: Tensor) -> Array:
    """The array, read-only, over the tensor's bytes. Raises DecodeError when type, shape and bytes disagree."""
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None or len(tensor.shape) > MAX_DIMENSIONS or any(n < 0 for n in tensor.shape):
        msg = f"a tensor of type {tensor.dtype[:20]!r} and shape {tensor.shape[:8]}"
        raise DecodeError(msg)
    if math.prod(tensor.shape) * dtype.itemsize != len(tensor.data):
        msg = f"{len(tensor.data)} bytes cannot be {tensor.dtype} of shape {tensor.shape[:8]}"
        raise DecodeError(msg)
    try:
        return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    except ValueError as error:  # a dimension too large for NumPy, beside one of zero
        msg = f"no array has the shape {tensor.shape}"
        raise DecodeError(msg) from error


def encode_delta(file: DeltaFile) -> bytes:
    """The bytes of a delta blob."""
    return codec.encode(file)


def decode_delta(data: bytes, max_bytes: int) -> tuple[DeltaFile, Delta]:
    """Read a delta blob. Raises TooLargeError, DecodeError. What it claims is checked against a task elsewhere."""
    file = codec.decode(DeltaFile, data, max_bytes)
    return file, Delta({name: unpack_array(tensor) for name, tensor in file.tensors.items()})
