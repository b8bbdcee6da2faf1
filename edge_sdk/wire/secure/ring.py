"""A delta as integers modulo 2^32, masked and summed: what masks are added to, and what is left when they are gone.

The numbers are the delta's weight w, and then each of its numbers x in the order of the tensors' names, as

    q = round(levels / bound * clip(x, bound) * w / whole)        0 < w <= whole

so |q| <= levels, and with levels = (2^31 - 1) // most the sum of up to `most` devices is the true one, never its
remainder. Their mean is `bound * whole / levels * sum(q) / sum(w)`. Each q is off by half at most: the mean of n
devices by `n / 2 * bound * whole / (levels * sum(w))`, which is bound / (2 levels) where each has done all of its task
(`rounding_error`). What is beyond the bound is cut off on the device.

On disk and on the wire: the numbers, 4 bytes each, little-endian, without anything around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import BinaryIO, Final

import numpy as np

from edge_sdk.wire.errors import DecodeError
from edge_sdk.wire.secure.keys import mask_stream
from edge_sdk.wire.secure.said import Masking
from edge_sdk.wire.tensors import Array

U32: Final = np.dtype("<u4")
LARGEST: Final = (1 << 31) - 1  # of a sum, without its sign
SLICE_BYTES: Final = 1 << 18  # masked at a time: what an agent holds does not grow with the delta

Mask = tuple[bytes, int]  # its seed, and 1 or -1


def levels_for(most: int) -> int:
    """The finest levels with which the sum of `most` devices is never a remainder. Raises ValueError."""
    if not 1 <= most <= LARGEST:
        msg = f"a sum of {most} devices"
        raise ValueError(msg)
    return LARGEST // most


def size_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How long the numbers of these tensors are."""
    return U32.itemsize * (1 + sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()))


def write_numbers(out: BinaryIO, delta: Mapping[str, Array], weight: int, masking: Masking) -> None:
    """Write the numbers of a delta, one tensor at a time. Raises OSError, ValueError for a weight that cannot be."""
    if not 1 <= weight <= masking.whole:
        msg = f"a weight of {weight}; it must be from 1 to {masking.whole}"
        raise ValueError(msg)
    out.write(np.array([weight], U32).tobytes())
    factor = masking.levels / masking.bound * weight / masking.whole
    shrunk = _shrunk(delta, masking.clip_norm)
    for name in sorted(delta):
        clipped = np.clip(delta[name].astype(np.float64) * shrunk, -masking.bound, masking.bound)
        out.write(np.rint(clipped * factor).astype(np.int64).astype(U32).tobytes())


def mask_numbers(source: BinaryIO, target: BinaryIO, masks: Iterable[Mask]) -> None:
    """Write the numbers in `source` with all masks added, a slice at a time. Raises OSError."""
    streams = [(mask_stream(seed), sign) for seed, sign in masks]
    while piece := source.read(SLICE_BYTES):
        numbers, zeros = np.frombuffer(piece, U32).copy(), bytes(len(piece))
        for stream, sign in streams:
            mask = np.frombuffer(stream.update(zeros), U32)
            numbers = numbers + mask if sign > 0 else numbers - mask
        target.write(numbers.tobytes())


def add_mask(numbers: Array, mask: Mask) -> None:
    """Add a mask to `numbers` (n,), uint32, in place; with the other sign it goes."""
    seed, sign = mask
    stream, step = mask_stream(seed), SLICE_BYTES // U32.itemsize
    for begin in range(0, len(numbers), step):
        part = numbers[begin : begin + step]
        mask_part = np.frombuffer(stream.update(bytes(part.nbytes)), U32)
        np.add(part, mask_part, out=part) if sign > 0 else np.subtract(part, mask_part, out=part)


def mean_of(
    numbers: Array, shapes: Mapping[str, tuple[int, ...]], masking: Masking, devices: int
) -> tuple[dict[str, Array], int]:
    """The weighted mean delta, float32, and the sum of weights, of the sum's numbers (n,), uint32.

    Raises DecodeError for a sum of weights that honest devices cannot have.
    """
    signed = numbers.view(np.int32)
    weight = int(signed[0])
    if not devices <= weight <= devices * masking.whole:
        msg = f"the weights of {devices} devices sum up to {weight}, from {devices} to {devices * masking.whole} can be"
        raise DecodeError(msg)
    factor = masking.bound * masking.whole / (masking.levels * weight)
    found, begin = dict[str, Array](), 1
    for name in sorted(shapes):
        count = int(np.prod(shapes[name], dtype=np.int64))
        part = signed[begin : begin + count].astype(np.float64) * factor
        found[name] = part.astype(np.float32).reshape(shapes[name])
        begin += count
    return found, weight


def rounding_error(masking: Masking, devices: int, weight: int) -> float:
    """By how much a number of the mean of so many devices, of this sum of weights, is off at most."""
    return devices / 2 * masking.bound * masking.whole / (masking.levels * weight)


def _shrunk(delta: Mapping[str, Array], clip_norm: float) -> float:
    """By what a delta is multiplied to be no longer than `clip_norm`; 0 is no bound."""
    norm = float(np.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in delta.values())))
    return clip_norm / norm if 0 < clip_norm < norm else 1.0
