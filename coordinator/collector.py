"""Pulls the deltas that devices offer, chunk by chunk, into the folder of what was received."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass

from coordinator.events import FetchDelta
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.chunks import Download
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.messages import Chunk, ChunkRequest, RefusalReason, TransferRefused


@dataclass(frozen=True, slots=True)
class Fetched:
    """The delta is whole, under its name."""

    wanted: FetchDelta


@dataclass(frozen=True, slots=True)
class Unfetched:
    """The delta cannot be had, or is not wanted after all."""

    wanted: FetchDelta
    reason: RefusalReason
    detail: str


@dataclass(slots=True)
class _Fetching:
    wanted: FetchDelta
    download: Download


class Collector:
    """Fetches into `store`, at most one delta from each device at a time."""

    def __init__(self, store: BlobStore) -> None:
        """Nothing is fetched yet."""
        self._store = store
        self._fetching: dict[str, _Fetching] = {}  # by device
        self._received_bytes: Counter[str] = Counter()

    def begin(self, wanted: FetchDelta, limit_bytes: int, now_s: float) -> Fetched | Unfetched | None:
        """Begin to fetch; None while it is on its way. Beginning again goes on. Raises OSError."""
        delta = wanted.delta
        if delta.size_bytes > limit_bytes:
            detail = f"{delta.size_bytes} bytes, a delta of this level has at most {limit_bytes}"
            return Unfetched(wanted, RefusalReason.TOO_LARGE, detail)
        known = self._fetching.get(wanted.device)
        if known is not None and (known.wanted.task.task_id, known.wanted.delta) == (wanted.task.task_id, delta):
            return None
        self._end(wanted.device)
        if self._store.has(delta):
            return Fetched(wanted)
        seed = zlib.crc32(wanted.device.encode())
        self._fetching[wanted.device] = _Fetching(wanted, Download(self._store, delta, now_s, seed))
        return None

    def requests(self, now_s: float) -> list[tuple[str, ChunkRequest]]:
        """What to ask of whom now. Raises OSError."""
        asked = ((device, one.download.poll(now_s)) for device, one in self._fetching.items())
        return [(device, request) for device, request in asked if request is not None]

    def take(self, device: str, chunk: Chunk, now_s: float) -> Fetched | Unfetched | None:
        """Use a chunk that is wanted of this device. Raises OSError."""
        one = self._fetching.get(device)
        if one is None or chunk.blob != one.wanted.delta.sha256:
            return None
        self._received_bytes[device] += len(chunk.data)
        try:
            if not one.download.take(chunk, now_s):
                return None
        except IntegrityError as error:
            self._end(device)
            return Unfetched(one.wanted, RefusalReason.CORRUPT, str(error))
        self._end(device)
        return Fetched(one.wanted)

    def refused(self, device: str, refusal: TransferRefused) -> Unfetched | None:
        """The device does not have what it offered."""
        one = self._fetching.get(device)
        if one is None or refusal.blob != one.wanted.delta.sha256:
            return None
        self._end(device)
        return Unfetched(one.wanted, RefusalReason.UNKNOWN_BLOB, "the device does not have what it offered")

    def forget(self, task_id: str) -> None:
        """The task's delta is not wanted any more. Raises OSError."""
        for device, one in list(self._fetching.items()):
            if one.wanted.task.task_id == task_id:
                self._end(device)
                one.download.discard()

    def take_received_bytes(self) -> dict[str, int]:
        """Bytes of chunks that came from each device since the last time."""
        received, self._received_bytes = self._received_bytes, Counter()
        return dict(received)

    def _end(self, device: str) -> None:
        one = self._fetching.pop(device, None)
        if one is not None:
            one.download.close()
