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
from edge_sdk.wire.codecs import CODECS, F32, Generator
from edge_sdk.wire.errors import DecodeError
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import MAX_DIMENSIONS, Array

SPARE = 16  # arrays, maps and entries beyond those that a delta needs


@dataclass(frozen=True, slots=True)
class Tensor:
    """A float32 array as it crosses the wire: `data` is what `codec` makes of its numbers in row-major order."""

    codec: DeltaCodec
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """The msgpack bytes of a delta blob: adapter after minus adapter before, for the tensors that were trained.

    `examples` is the weight of this device in the mean.
    """

    task_id: str
    round: int
    device: str
    adapter: str
    examples: int
    tensors: Mapping[str, Tensor]


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

    def size(self) -> float:
        """Root mean square of all numbers: the norm of one that has few compares with that of one that has many."""
        return self.norm() / math.sqrt(max(sum(array.size for array in self.tensors.values()), 1))


def _sum(a: Array | None, b: Array | None) -> Array:
    if a is None or b is None:
        return np.asarray(a if b is None else b)
    return np.asarray(a + b)


def pack_array(array: Array, how: DeltaCodec = DeltaCodec.FP32, generator: Generator | None = None) -> Tensor:
    """A float32 array for the wire, rounded by chance given a `generator`. Raises ValueError for another type."""
    if array.dtype != F32:
        msg = f"element type {array.dtype} cannot be sent, only float32"
        raise ValueError(msg)
    return Tensor(how, array.shape, CODECS[how].encode(np.ascontiguousarray(array, F32).ravel(), generator))


def unpack_array(tensor: Tensor) -> Array:
    """The array, float32; as `fp32` read-only, over the tensor's bytes.

    Raises DecodeError for bytes that its codec does not write, before it allocates more than 32 times their length.
    """
    if len(tensor.shape) > MAX_DIMENSIONS or any(n < 0 for n in tensor.shape):
        msg = f"a tensor of shape {tensor.shape[:8]}"
        raise DecodeError(msg)
    how, count = CODECS[tensor.codec], math.prod(tensor.shape)
    if how.size_bytes(count) != len(tensor.data):
        msg = f"{len(tensor.data)} bytes cannot be {tensor.codec.value} of shape {tensor.shape[:8]}"
        raise DecodeError(msg)
    try:
        return how.decode(tensor.data, count).reshape(tensor.shape)
    except ValueError as error:  # a dimension too large for NumPy, beside one of zero
        msg = f"no array has the shape {tensor.shape}"
        raise DecodeError(msg) from error


def encode_delta(file: DeltaFile) -> bytes:
    """The bytes of a delta blob."""
    return codec.encode(file)


def read_delta(data: bytes, max_bytes: int, tensors: int | None = None) -> DeltaFile:
    """What a delta blob claims, its numbers not yet decoded. Raises TooLargeError, DecodeError.

    From elsewhere it has about so many `tensors`, or is refused before more is allocated than so many take.
    """
    if tensors is None:
        return codec.decode(DeltaFile, data, max_bytes)
    # A map and a shape for each tensor, the file's own two maps, and room for fields that a newer device sends.
    form = codec.Form(containers=2 * tensors + SPARE, entries=max(tensors, SPARE) + SPARE)
    return codec.decode(DeltaFile, data, max_bytes, form)


def unpack_delta(file: DeltaFile) -> Delta:
    """The numbers. Raises DecodeError."""
    return Delta({name: unpack_array(tensor) for name, tensor in file.tensors.items()})


def decode_delta(data: bytes, max_bytes: int) -> tuple[DeltaFile, Delta]:
    """Both, where the claims are known already. Raises TooLargeError, DecodeError."""
    file = read_delta(data, max_bytes)
    return file, unpack_delta(file)
