"""How long a task would take, and what it would send, as far as answers tell: what every policy reckons with.

    seconds = down / rate + beside + steps x step_s x slowness / power + up / rate

down is what the device lacks of the level, and the adapter; up its delta. rate is the device's own link, or its part
of the bandwidth, whichever is less; power that of whole threads, one at least. beside is what a worker takes to start
and to measure its rows. What is not known of a device is taken to be the median of those of which it is; where it is
known of none, a fixed guess. What no device can be, a rate that is no number, is not known either.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from coordinator.policy.types import DeviceView, Level, Observation, Terms
from edge_sdk.wire.messages import DeltaCodec

GUESSED_RATE_BYTES_S: Final = 1e6
GUESSED_SLOWNESS: Final = 4.0
GUESSED_BESIDE_S: Final = 2.0
GUESSED_EXAMPLES: Final = 100

# The fall of the loss with this codec as a share of fp32's, where it was less: ADR 0011's table of MiniLM on reviews.
CODEC_WORTH: Final = {DeltaCodec.SIGN: 0.93, DeltaCodec.TOP_K: 0.28}


class Fetching:
    """What a device that holds some levels has to fetch for another: files in common are fetched once."""

    def __init__(self, levels: Iterable[Level]) -> None:
        """`levels` of one ladder."""
        self._files = {level.name: level.files for level in levels}
        self._sizes = {level.name: level.size_bytes for level in levels}
        self._lacking = cache(self._count)

    def lacks_bytes(self, level: str, holds: frozenset[str]) -> int:
        """Bytes of the level that are in none of those that are held."""
        return self._lacking(level, frozenset(holds & self._files.keys()))

    def _count(self, level: str, holds: frozenset[str]) -> int:
        if level in holds:
            return 0
        files = self._files[level]
        if not files:  # of a level that is described by its size alone nothing can be in another
            return self._sizes[level]
        held = set().union(*(self._files[name] for name in holds))
        return sum(size for name, size in files.items() if name not in held)


@dataclass(frozen=True, slots=True)
class Usual:
    """What is taken for what is not known of a device."""

    rate_bytes_s: float
    slowness: float
    examples: float
    beside_s: float

    @staticmethod
    def of(fleet: Iterable[DeviceView]) -> Usual:
        """Medians of what is known."""
        fleet = tuple(fleet)
        return Usual(
            _median((device.rate_bytes_s for device in fleet), GUESSED_RATE_BYTES_S),
            _median((device.slowness for device in fleet), GUESSED_SLOWNESS),
            _median((device.examples for device in fleet), GUESSED_EXAMPLES),
            _median((device.beside_s for device in fleet), GUESSED_BESIDE_S),
        )


def _median(values: Iterable[float], otherwise: float) -> float:
    return statistics.median([value for value in values if known_or(value)] or [otherwise])


def known_or(value: float, otherwise: float = 0.0) -> float:
    """The value if it is a positive number, and finite; 0 is unknown, and so is what nothing real has."""
    return value if 0 < value < math.inf else otherwise


@dataclass(frozen=True, slots=True)
class Estimates:
    """Of one observation."""

    terms: Terms
    usual: Usual
    fetching: Fetching

    @staticmethod
    def of(observation: Observation, fetching: Fetching | None = None) -> Estimates:
        """`fetching` may be kept from observation to observation of the same levels."""
        usual = Usual.of(observation.fleet or observation.devices)
        return Estimates(observation.terms, usual, fetching or Fetching(observation.levels))

    def down_bytes(self, device: DeviceView, level: Level) -> int:
        """What goes to the device."""
        return self.fetching.lacks_bytes(level.name, device.holds) + self.terms.adapter_bytes

    def up_bytes(self, level: Level, codec: DeltaCodec | None = None) -> int:
        """What comes from it."""
        return level.upload_bytes.get(codec or self.terms.codec, 0)

    def rate_bytes_s(self, device: DeviceView) -> float:
        """What its link does, or is taken to do."""
        return known_or(device.rate_bytes_s, self.usual.rate_bytes_s)

    def slowness(self, device: DeviceView) -> float:
        """How many times slower than the exporter's machine it is, or is taken to be."""
        return known_or(device.slowness, self.usual.slowness)

    def beside_s(self, device: DeviceView) -> float:
        """What a task takes beside its steps and the wire, or is taken to take."""
        return known_or(device.beside_s, self.usual.beside_s)

    def examples(self, device: DeviceView) -> float:
        """The weight that its delta has, or is taken to have."""
        return known_or(device.examples, self.usual.examples)

    def compute_s(self, device: DeviceView, level: Level, power: float = 1.0) -> float:
        """How long it trains, from a worker's start to its end."""
        threads = max(device.threads, 1)
        working = max(1, round(power * threads)) / threads
        steps_s = self.terms.steps * level.step_s * self.slowness(device) / working
        return steps_s + self.beside_s(device)

    def wire_s(self, device: DeviceView, wire_bytes: float, part: float = 1.0) -> float:
        """How long so many bytes take, of which both ways have the same rate; `part` of the bandwidth is its own."""
        rate = self.rate_bytes_s(device)
        if self.terms.bandwidth_bytes_s > 0:
            rate = min(rate, self.terms.bandwidth_bytes_s * part)
        return wire_bytes / rate

    def task_s(
        self,
        device: DeviceView,
        level: Level,
        codec: DeltaCodec | None = None,
        power: float = 1.0,
        part: float = 1.0,
    ) -> float:
        """The whole task."""
        wire_bytes = self.down_bytes(device, level) + self.up_bytes(level, codec)
        return self.wire_s(device, wire_bytes, part) + self.compute_s(device, level, power)
