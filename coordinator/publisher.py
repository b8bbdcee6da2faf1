"""Serves the artifact's blobs to devices: whoever asked, a few chunks a turn, one device after the other, no faster
than allowed.

What a device may have waiting is one window for each of a few blobs, and a chunk waits once, however often it is asked
for. So a device that asks wildly costs a little memory for its requests, none for data: chunks are read when their turn
comes.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from coordinator.audience import Audience, Way
from coordinator.pace import Pace
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.chunks import read_chunk, requested
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.messages import MAX_WINDOW, Chunk, ChunkRequest, RefusalReason, TransferRefused

ALL: Final = "+"  # in place of a device: no device has that name
AT_ONCE: Final = 8  # chunks a turn
MAX_BLOBS: Final = 8  # that one device may wait for at once


@dataclass(slots=True)
class _Waiting:
    """Chunks that a device asked for and has not got yet."""

    blob: Blob
    chunk_bytes: int
    indices: deque[int]


class Publisher:
    """Serves the blobs in `store`, as fast as `pace` allows."""

    def __init__(self, store: BlobStore, pace: Pace, *, broadcast: bool = False) -> None:
        """Nothing is asked for yet. With `broadcast` what several want at a time goes to ALL of them once."""
        self._store, self._pace = store, pace
        self._audiences: dict[str, Audience] | None = {} if broadcast else None  # by blob
        self._waiting: dict[str, dict[str, _Waiting]] = {}  # by device, by blob; whose turn it is comes first
        self._sent_bytes: Counter[str] = Counter()

    def asked(self, device: str, request: ChunkRequest, now_s: float) -> TransferRefused | None:
        """Put what a device asks for in the queue; a refusal for what is not here. Raises OSError."""
        blob = self._blob(request.blob)
        if blob is None:
            return TransferRefused(request.blob, RefusalReason.UNKNOWN_BLOB)
        indices = requested(request, blob.size_bytes)
        blobs = self._waiting.get(device, {})
        if not indices or (request.blob not in blobs and len(blobs) >= MAX_BLOBS):
            return None  # for one blob too many: the device asks again when nothing comes
        known = blobs.get(request.blob)
        before = known.indices if known is not None and known.chunk_bytes == request.chunk_bytes else ()
        blobs[request.blob] = _Waiting(blob, request.chunk_bytes, _merged(before, indices))
        self._waiting.setdefault(device, blobs)
        if self._audiences is not None:
            for name in [name for name, audience in self._audiences.items() if audience.is_over(now_s)]:
                del self._audiences[name]
            self._audiences.setdefault(request.blob, Audience()).asked(device, request.chunk_bytes, now_s)
        return None

    def wait_s(self, now_s: float) -> float:
        """How long until a chunk may be sent: 0 for at once, infinity where none waits."""
        return max(0.0, min((self._pace.free_s(device) for device in self._waiting), default=math.inf) - now_s)

    def next_chunks(self, now_s: float) -> Iterator[tuple[str, Chunk | TransferRefused]]:
        """The next few chunks, and whom to send them to. Raises OSError when the disk fails."""
        for _ in range(AT_ONCE):
            device = next((device for device in self._waiting if self._pace.free_s(device) <= now_s), None)
            if device is None:
                return
            way, message = self._next(device, now_s)
            if isinstance(message, Chunk):
                self._sent_bytes[device] += len(message.data)
                self._pace.spend(device, len(message.data), now_s)
                yield ALL if way is Way.ALL else device, message
            elif message is not None:
                yield device, message

    def take_sent_bytes(self) -> dict[str, int]:
        """Bytes of chunks sent to each device since the last time."""
        sent, self._sent_bytes = self._sent_bytes, Counter()
        return dict(sent)

    def _next(self, device: str, now_s: float) -> tuple[Way, Chunk | TransferRefused | None]:
        """The device's next chunk. Afterwards both the device and the blob are the last in their turns."""
        blobs = self._waiting.pop(device)
        name = next(iter(blobs))
        waiting = blobs.pop(name)
        index, audience = waiting.indices.popleft(), (self._audiences or {}).get(name)
        way = Way.ALONE if audience is None else audience.way(device, index, now_s)
        message = None if way is Way.CAME else self._read(waiting, index)
        if not isinstance(message, TransferRefused) and waiting.indices:
            blobs[name] = waiting
        if blobs:
            self._waiting[device] = blobs
        return way, message

    def _read(self, waiting: _Waiting, index: int) -> Chunk | TransferRefused:
        try:
            return read_chunk(self._store, waiting.blob, waiting.chunk_bytes, index)
        except FileNotFoundError:
            return TransferRefused(waiting.blob.sha256, RefusalReason.UNKNOWN_BLOB)
        except IntegrityError:
            return TransferRefused(waiting.blob.sha256, RefusalReason.CORRUPT)

    def _blob(self, sha256: str) -> Blob | None:
        """The blob of that name, with the size that it has."""
        try:
            return Blob(sha256, self._store.path(sha256).stat().st_size)
        except FileNotFoundError:
            return None


def _merged(before: Iterable[int], indices: tuple[int, ...]) -> deque[int]:
    """What waits now: all that is newly asked for, and as much as a window holds of what was asked for before.

    A device asks for more when half its window has come, so what it asked for before is still wanted; if both are more
    than a window, it has lost count or was started anew, and what it says now is what it wants.
    """
    old = [index for index in before if index not in indices]
    room = MAX_WINDOW - len(indices)
    return deque([*old[max(0, len(old) - room) :], *indices])
