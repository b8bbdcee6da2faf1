"""What befalls a stream of bytes, decided by a seed and by the bytes' places alone.

However a network happens to cut a stream into reads, the same bytes are flipped, the same pieces are late, and the
stream ends at the same place. No sockets, no clock: `proxy` carries it out.
"""

from __future__ import annotations

import enum
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

GRID_BYTES: Final = 16_384  # a piece, where nothing asks for shorter ones


class Ending(enum.Enum):
    """How a connection ends after `Misfortune.cut_after_bytes`."""

    CLOSE = "close"  # in order, in the middle of a packet
    RESET = "reset"
    BLACK_HOLE = "black hole"  # half-open: nothing passes any more, and nobody is told


@dataclass(frozen=True, slots=True)
class Misfortune:
    """What one direction of a connection suffers; the default is nothing.

    A piece is late by `latency_s` and up to `jitter_s` more, and never overtakes another. `bytes_s` is the bandwidth, 0
    for any. Pieces have 1 to `slice_bytes` bytes, 0 for as they come. A share `flips` of the bytes has one bit changed.
    After `cut_after_bytes`, 0 for never, comes the `ending`.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_s: float = 0.0
    slice_bytes: int = 0
    flips: float = 0.0
    cut_after_bytes: int = 0
    ending: Ending = Ending.RESET


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes to pass on, after waiting: `late_s` from when they came, and `busy_s` for which the line is taken."""

    data: bytes
    late_s: float
    busy_s: float


class Course:
    """The misfortunes of one direction of one connection: `suffer` bytes as they come, until `ended`."""

    def __init__(self, misfortune: Misfortune, seed: str) -> None:
        """`seed` names the run, the connection and the direction."""
        self._is, self.place, self.ended = misfortune, 0, False
        self._slices, self._lateness, self._flips = (
            random.Random(f"{seed}.{what}")  # noqa: S311 - repeatable on purpose
            for what in ("slices", "lateness", "flips")
        )
        self.injected: Counter[str] = Counter()
        self._next_flip = self._gap() - 1
        self._piece_end, self._piece_late_s = 0, 0.0

    def suffer(self, data: bytes) -> Iterator[Piece]:
        """What becomes of `data`, the next bytes of the stream."""
        cut = self._is.cut_after_bytes
        if cut:
            data, asked = data[: max(0, cut - self.place)], len(data)
            self.ended = self.place + asked >= cut
        data = self._flipped(data)
        while data:
            if self.place == self._piece_end:
                self._begin_piece()
            length = min(len(data), self._piece_end - self.place)
            busy_s = length / self._is.bytes_s if self._is.bytes_s else 0.0
            yield Piece(data[:length], self._piece_late_s, busy_s)
            self.place, data = self.place + length, data[length:]

    def _begin_piece(self) -> None:
        misfortune = self._is
        if misfortune.slice_bytes:
            self._piece_end += self._slices.randint(1, misfortune.slice_bytes)
            self.injected["slices"] += 1
        else:
            self._piece_end += GRID_BYTES
        self._piece_late_s = misfortune.latency_s + misfortune.jitter_s * self._lateness.random()
        if self._piece_late_s:
            self.injected["delays"] += 1

    def _flipped(self, data: bytes) -> bytes:
        if self._next_flip >= self.place + len(data):
            return data
        changed = bytearray(data)
        while self._next_flip < self.place + len(data):
            changed[self._next_flip - self.place] ^= 1 << self._flips.randrange(8)
            self.injected["flips"] += 1
            self._next_flip += self._gap()
        return bytes(changed)

    def _gap(self) -> int:
        """From one flipped byte to the next: geometric, so that each byte has the same chance."""
        share = self._is.flips
        if share <= 0:
            return 1 << 62
        if share >= 1:
            return 1
        return 1 + int(math.log(1 - self._flips.random()) / math.log(1 - share))
