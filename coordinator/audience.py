"""Who wants the same blob at the same time, and which of its chunks went to all of them. Pure: it is told the time.

Rules:

- two devices that asked within RECENT_S are an audience; a chunk that any of them asks for goes to all, once;
- to a device that asks for a chunk that went to all since the device first asked, nothing is sent: it is under way. If
  it asks again, REPEAT_S later, it lost the chunk, and gets it alone, as does a device that came later. So whoever
  asks wildly makes nobody else hear a chunk twice;
- chunks are asked for as ever, in windows: no device is sent what none asks for, and none is needed to be there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from edge_sdk.wire.chunks import FIRST_WAIT_S

RECENT_S: Final = 10.0
REPEAT_S: Final = FIRST_WAIT_S * 0.9  # before a device asks again for what it lost


class Way(enum.Enum):
    """How a chunk goes."""

    ALONE = enum.auto()
    ALL = enum.auto()
    CAME = enum.auto()


@dataclass(slots=True)
class Audience:
    """The devices that want one blob."""

    _chunk_bytes: int = 0
    _first_s: dict[str, float] = field(default_factory=dict)  # by device
    _last_s: dict[str, float] = field(default_factory=dict)
    _sent_s: dict[int, float] = field(default_factory=dict)  # to all, by chunk

    def asked(self, device: str, chunk_bytes: int, now_s: float) -> None:
        """A device wants the blob, in such chunks; one that takes others than the first is served alone."""
        if not self._last_s:
            self._chunk_bytes = chunk_bytes
        if chunk_bytes == self._chunk_bytes:
            self._first_s.setdefault(device, now_s)
            self._last_s[device] = now_s

    def is_over(self, now_s: float) -> bool:
        """Whether nobody asked for long."""
        return all(now_s - last_s > RECENT_S for last_s in self._last_s.values())

    def way(self, device: str, index: int, now_s: float) -> Way:
        """How a chunk goes to a device that asked for it; that it goes to all is remembered."""
        if device not in self._first_s:
            return Way.ALONE
        if (sent_s := self._sent_s.get(index)) is not None:
            came = self._first_s[device] <= sent_s and now_s - sent_s < REPEAT_S
            return Way.CAME if came else Way.ALONE
        if sum(now_s - last_s <= RECENT_S for last_s in self._last_s.values()) < 2:  # noqa: PLR2004 - it and another
            return Way.ALONE
        self._sent_s[index] = now_s
        return Way.ALL
