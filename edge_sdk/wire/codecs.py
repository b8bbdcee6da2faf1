"""What a delta's numbers become on the wire: a **codec** for each width, from 32 bits a number to about one.

A codec is a pair of pure functions: `encode` makes bytes of n finite float32 numbers, `decode` makes n float32 numbers
of bytes, and `size_bytes` says how many bytes that are, whatever the numbers. All is little-endian.

| codec | bytes | numbers come back as |
|---|---|---|
| `fp32` | the numbers | they were |
| `fp16` | scale, halves | scale * half; the scale is a power of 2 that puts the largest into [1, 2) |
| `int8`, `int4`, `int2`, `sign` | scales, codes | scale * (2 code - top) / top, top = 2^bits - 1; see `Levels` |
| `top-k` | scale, halves, indices | the 32nd part that is largest, as in `fp16`; 0 elsewhere |

Bias. `Levels` rounds in one of two ways, which look the same on the wire. Given a generator, by chance: the mean over
the draws is the number itself (up to rounding of float32), so over many devices and rounds nothing is lost. Without
one, to the nearest level: closer, but biased. The other lossy codecs are always biased. What a biased codec loses has
to be kept and added to the next delta (error feedback; see `edge_sdk.feedback`), and that converges if no codec's error
is as long as what it was given: `|x - decode(encode(x))| < |x|` unless x = 0, which holds here for every codec without
a generator, down to numbers that float32 itself rounds (S. P. Karimireddy et al., Error Feedback Fixes SignSGD and
other Gradient Compression Schemes, ICML 2019).

Bytes from elsewhere have the length that their shape says before they come here (`edge_sdk.wire.delta`), and every
codec takes at least an eighth of a byte a number: so nobody can make a few bytes into a large array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from edge_sdk.wire.errors import DecodeError
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import Array

F32, F16 = np.dtype("<f4"), np.dtype("<f2")
SCALE_BYTES: Final = F32.itemsize
LARGEST: Final = float(np.finfo(F32).max)
SHARE: Final = 32  # `top-k` keeps one number in so many

Generator = np.random.Generator


class Codec(Protocol):
    """How n numbers cross the wire."""

    def size_bytes(self, count: int) -> int:
        """The length of `count` numbers' bytes."""

    def encode(self, values: Array, generator: Generator | None = None) -> bytes:
        """The bytes of finite float32 `values` (n,). A codec that can round by chance does so given a `generator`."""

    def decode(self, data: bytes, count: int) -> Array:
        """The numbers (count,), float32, of bytes that are `size_bytes(count)` long. Raises DecodeError."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The numbers themselves."""

    def size_bytes(self, count: int) -> int:
        """See Codec."""
        return F32.itemsize * count

    def encode(self, values: Array, generator: Generator | None = None) -> bytes:
        """See Codec."""
        del generator
        return _bytes(values)

    def decode(self, data: bytes, count: int) -> Array:
        """See Codec."""
        return np.frombuffer(data, F32, count)


@dataclass(frozen=True, slots=True)
class Halves:
    """Float16 times a scale, so that neither the largest overflows nor what matters beside it underflows.

    Off by at most 2^-11 of the number, or 2^-25 of the largest where that is more. Biased, by less than that.
    """

    def size_bytes(self, count: int) -> int:
        """See Codec."""
        return SCALE_BYTES + F16.itemsize * count

    def encode(self, values: Array, generator: Generator | None = None) -> bytes:
        """See Codec; rounds to nearest, with or without a generator."""
        del generator
        _, exponent = np.frexp(np.max(np.abs(values), initial=0))
        scale = np.ldexp(F32.type(1), exponent - 1).astype(F32)
        return _bytes(scale, (values / scale).astype(F16))

    def decode(self, data: bytes, count: int) -> Array:
        """See Codec."""
        scale, halves = _scales(data, 1), np.frombuffer(data, F16, count, SCALE_BYTES)
        if not np.isfinite(halves).all():
            msg = "a half that is not finite"
            raise DecodeError(msg)
        return _scaled(halves.astype(F32)[None], scale).reshape(count)


@dataclass(frozen=True, slots=True)
class Levels:
    """A code of `bits` bits a number, and a float32 scale for each block of `block` numbers in a row.

    Code c stands for `scale * (2 c - top) / top`, top = 2^bits - 1: levels equally apart and symmetric about zero,
    which is none of them. Codes are packed from the low bits of a byte upwards.

    - By chance (with a generator): the scale is the block's largest number; each number goes to one of the two levels
      around it, with the probability that makes it the mean. Unbiased; off by less than `2 scale / top`.
    - To nearest: the same levels, then the scale that is best for the codes so found, by least squares. With one bit
      that is the mean of the numbers' sizes, as in EF-SignSGD. Off by at most `sqrt(n) largest / top` over a block.
    """

    bits: int
    block: int

    @property
    def top(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1

    def size_bytes(self, count: int) -> int:
        """See Codec."""
        return SCALE_BYTES * self._blocks(count) + self._code_bytes(count)

    def encode(self, values: Array, generator: Generator | None = None) -> bytes:
        """See Codec."""
        count = len(values)
        blocks = np.zeros((self._blocks(count), self.block), F32)
        blocks.reshape(-1)[:count] = values
        scales = np.abs(blocks).max(axis=1, keepdims=True)
        places = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)  # -1 to 1
        places += 1
        places *= self.top / 2
        places += F32.type(0.5) if generator is None else generator.random(places.shape, F32)
        codes = np.minimum(places, self.top).astype(np.uint8)
        if generator is None:
            scales = self._best(blocks, codes, count)
        return _bytes(scales.astype(F32), self._packed(codes.reshape(-1)[:count]))

    def decode(self, data: bytes, count: int) -> Array:
        """See Codec."""
        blocks = self._blocks(count)
        scales = _scales(data, blocks)
        codes = self._unpacked(np.frombuffer(data, np.uint8, offset=scales.nbytes), count)
        whole = np.zeros((blocks, self.block), F32)
        whole.reshape(-1)[:count] = codes
        numbers: Array = _scaled(self._levels(whole), scales).reshape(-1)[:count]
        return numbers

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)

    def _code_bytes(self, count: int) -> int:
        return -(-count * self.bits // 8)

    def _levels(self, codes: Array) -> Array:
        """The levels from -1 to 1 of codes as float32, in their place."""
        codes *= 2
        codes -= self.top
        codes /= self.top
        return codes

    def _best(self, blocks: Array, codes: Array, count: int) -> Array:
        """The scale of each block (blocks, 1) with the least sum of squared errors, given its codes."""
        levels = self._levels(codes.astype(F32))
        levels.reshape(-1)[count:] = 0  # what only fills the last block
        products = (blocks * levels).sum(axis=1, keepdims=True, dtype=np.float64)
        squares = np.square(levels).sum(axis=1, keepdims=True, dtype=np.float64)
        best: Array = np.minimum(products / squares, LARGEST)
        return best

    def _packed(self, codes: Array) -> Array:
        per_byte = 8 // self.bits
        filled = np.zeros((self._code_bytes(len(codes)), per_byte), np.uint8)
        filled.reshape(-1)[: len(codes)] = codes
        filled <<= self._shifts()
        packed: Array = np.bitwise_or.reduce(filled, axis=1)
        return packed

    def _unpacked(self, packed: Array, count: int) -> Array:
        filled = packed[:, None] >> self._shifts()
        filled &= self.top
        codes: Array = filled.reshape(-1)[:count]
        return codes

    def _shifts(self) -> Array:
        return np.arange(0, 8, self.bits, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest of every `SHARE` numbers of a tensor, as `Halves`, and where they are; zero elsewhere.

    Indices ascend; 16 bits each where that is enough, else 32. Biased: what is small never comes through by itself.
    """

    def size_bytes(self, count: int) -> int:
        """See Codec."""
        kept = self._kept(count)
        return Halves().size_bytes(kept) + self._index(count).itemsize * kept

    def encode(self, values: Array, generator: Generator | None = None) -> bytes:
        """See Codec; the choice is the same with or without a generator."""
        del generator
        kept = self._kept(len(values))
        by_size = np.argpartition(np.abs(values), -kept) if kept else np.zeros(0, np.intp)
        indices = np.sort(by_size[len(values) - kept :]).astype(self._index(len(values)))
        return Halves().encode(values[indices]) + _bytes(indices)

    def decode(self, data: bytes, count: int) -> Array:
        """See Codec."""
        kept = self._kept(count)
        indices = np.frombuffer(data, self._index(count), kept, Halves().size_bytes(kept))
        if kept and (indices[-1] >= count or np.any(indices[1:] <= indices[:-1])):
            msg = f"indices that do not ascend, or beyond {count} numbers"
            raise DecodeError(msg)
        values = np.zeros(count, F32)
        values[indices] = Halves().decode(data, kept)
        return values

    def _kept(self, count: int) -> int:
        return -(-count // SHARE)

    def _index(self, count: int) -> np.dtype[Any]:
        return np.dtype("<u2" if count <= 1 << 16 else "<u4")


CODECS: Final[Mapping[DeltaCodec, Codec]] = {
    DeltaCodec.FP32: Whole(),
    DeltaCodec.FP16: Halves(),
    DeltaCodec.INT8: Levels(8, 256),
    DeltaCodec.INT4: Levels(4, 64),
    DeltaCodec.INT2: Levels(2, 64),
    DeltaCodec.SIGN: Levels(1, 256),
    DeltaCodec.TOP_K: Largest(),
}
NEEDS_RESIDUAL: Final = frozenset({DeltaCodec.SIGN, DeltaCodec.TOP_K})  # too far off to be of use by themselves


def _bytes(*parts: Array) -> bytes:
    """Those of one after the other."""
    return b"".join(part.tobytes() for part in parts)


def _scales(data: bytes, count: int) -> Array:
    """The scales (count, 1) that begin `data`. Raises DecodeError for one that no encoder writes."""
    scales = np.frombuffer(data, F32, count)[:, None]
    if not (np.isfinite(scales) & (scales >= 0)).all():
        msg = "a scale that is negative or not finite"
        raise DecodeError(msg)
    return scales


def _scaled(values: Array, scales: Array) -> Array:
    """`values`, each row times its scale, in their place; a hostile product may be infinite."""
    with np.errstate(over="ignore"):
        values *= scales
    return values
