"""How fast chunks may go: a rate for each device, and one that all of them share.

A rate is held on the average: what goes moves the moment from which more may go by the time that it takes at that rate,
and of time in which nothing went, at most BURST_S is made up for. Pure: it is told the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

UNBOUNDED: Final = 0.0  # bytes per second: no rate
BURST_S: Final = 1.0


@dataclass(slots=True)
class _Lane:
    """What one rate still allows: nothing before `free_s`."""

    rate_bytes_s: float
    free_s: float = float("-inf")

    def spend(self, size_bytes: int, now_s: float) -> None:
        if self.rate_bytes_s > UNBOUNDED:
            self.free_s = max(self.free_s, now_s - BURST_S) + size_bytes / self.rate_bytes_s

    def change(self, rate_bytes_s: float, now_s: float) -> None:
        """Another rate from now on: what went and is not worked off yet takes the time that it takes at that one."""
        owed_bytes = max(self.free_s - now_s, 0.0) * self.rate_bytes_s
        self.rate_bytes_s = rate_bytes_s
        if owed_bytes:
            self.free_s = now_s + owed_bytes / rate_bytes_s if rate_bytes_s > UNBOUNDED else now_s


@dataclass(slots=True)
class Pace:
    """Rates in bytes per second, both ways together: `all_bytes_s` of all devices, `device_bytes_s` of each; 0: none.

    Whose turn it is among those that may go is not decided here: whoever takes turns by chunks shares `all_bytes_s`
    evenly.
    """

    all_bytes_s: float = UNBOUNDED
    device_bytes_s: float = UNBOUNDED
    _all: _Lane = field(init=False)
    _devices: dict[str, _Lane] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing has gone yet."""
        self._all = _Lane(self.all_bytes_s)

    def limit(self, device: str, bytes_s: float, now_s: float) -> None:
        """Give one device a rate of its own, from now on."""
        self._lane(device).change(bytes_s, now_s)

    def limit_only(self, bytes_s: Mapping[str, float], now_s: float) -> None:
        """Give these devices rates of their own, from now on, and all others the one that every device has."""
        for device in self._devices.keys() | bytes_s.keys():
            self.limit(device, bytes_s.get(device, self.device_bytes_s), now_s)

    def free_s(self, device: str) -> float:
        """The moment from which on a chunk may go to the device, or come from it."""
        return max(self._all.free_s, self._lane(device).free_s)

    def spend(self, device: str, size_bytes: int, now_s: float) -> None:
        """So much goes now, to the device or from it."""
        for lane in (self._all, self._lane(device)):
            lane.spend(size_bytes, now_s)

    def _lane(self, device: str) -> _Lane:
        return self._devices.setdefault(device, _Lane(self.device_bytes_s))
