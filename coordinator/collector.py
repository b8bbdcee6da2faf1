"""Pulls the deltas that devices offer, chunk by chunk, no faster than allowed, into the folder of what was received."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.events import FetchDelta
from coordinator.pace import Pace
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.chunks import Download
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.messages import CHUNK_BYTES, Chunk, ChunkRequest, RefusalReason, TransferRefused


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


@dataclass(frozen=True, slots=True)
class _Fetching:
    wanted: FetchDelta
    download: Download

    def is_from(self, device: str) -> bool:
        return self.wanted.device == device


class Collector:
    """Fetches into `store`, whatever devices offer, side by side, as fast as `pace` allows."""

    def __init__(self, store: BlobStore, pace: Pace) -> None:
        """Nothing is fetched yet."""
        self._store, self._pace = store, pace
        self._fetching: dict[str, _Fetching] = {}  # by the delta's SHA-256: each is written by one download
        self._received_bytes: Counter[str] = Counter()
        self._chunk_bytes = CHUNK_BYTES

    def use_chunks_of(self, chunk_bytes: int, now_s: float) -> None:
        """Ask for chunks so long from now on: what is half here in others begins anew. Raises OSError."""
        if chunk_bytes != self._chunk_bytes:
            self._chunk_bytes = chunk_bytes
            for sha256, one in self._fetching.items():
                one.download.close()
                self._fetching[sha256] = _Fetching(one.wanted, self._download(one.wanted, now_s))

    def begin(self, wanted: FetchDelta, limit_bytes: int, now_s: float) -> Fetched | Unfetched | None:
        """Begin to fetch; None while it is on its way. Beginning again goes on. Raises OSError."""
        delta = wanted.delta
        if delta.size_bytes > limit_bytes:
            detail = f"{delta.size_bytes} bytes, a delta of this level has at most {limit_bytes}"
            return Unfetched(wanted, RefusalReason.TOO_LARGE, detail)
        known = self._fetching.get(delta.sha256)
        if known is not None and _whose(known.wanted) != _whose(wanted):
            detail = "a delta of these bytes is on its way for another task; each task has its own"
            return Unfetched(wanted, RefusalReason.MALFORMED, detail)
        if known is not None and known.wanted.delta == delta:
            return None
        self.forget(*_whose(wanted))  # the device offers another delta for it now
        if self._is_here(delta):
            return Fetched(wanted)
        self._fetching[delta.sha256] = _Fetching(wanted, self._download(wanted, now_s))
        return None

    def requests(self, now_s: float) -> Iterator[tuple[str, ChunkRequest]]:
        """What to ask of whom now. Raises OSError."""
        for one in self._fetching.values():
            device = one.wanted.device
            if self._pace.free_s(device) <= now_s and (request := one.download.poll(now_s)):
                self._pace.spend(device, min(request.window * request.chunk_bytes, one.wanted.delta.size_bytes), now_s)
                yield device, request

    def take(self, device: str, chunk: Chunk, now_s: float) -> Fetched | Unfetched | None:
        """Use a chunk that is wanted of this device; ignore any other. Raises OSError."""
        one = self._fetching.get(chunk.blob)
        if one is None or not one.is_from(device):
            return None
        self._received_bytes[device] += len(chunk.data)
        try:
            if not one.download.take(chunk, now_s):
                return None
        except IntegrityError as error:
            del self._fetching[chunk.blob]
            return Unfetched(one.wanted, RefusalReason.CORRUPT, str(error))
        del self._fetching[chunk.blob]
        return Fetched(one.wanted)

    def refused(self, device: str, refusal: TransferRefused) -> Unfetched | None:
        """The device does not have what it offered. Raises OSError."""
        one = self._fetching.get(refusal.blob)
        if one is None or not one.is_from(device):
            return None
        self._drop(refusal.blob)
        return Unfetched(one.wanted, refusal.reason, "the device does not have what it offered")

    def forget(self, device: str, task_id: str) -> None:
        """The delta of the device's task is not wanted any more, nor what came of it. Raises OSError."""
        for sha256, one in list(self._fetching.items()):
            if _whose(one.wanted) == (device, task_id):
                self._drop(sha256)

    def take_received_bytes(self) -> dict[str, int]:
        """Bytes of chunks that came from each device since the last time."""
        received, self._received_bytes = self._received_bytes, Counter()
        return dict(received)

    def _download(self, wanted: FetchDelta, now_s: float) -> Download:
        seed = zlib.crc32(wanted.device.encode())
        return Download(self._store, wanted.delta, now_s, seed, chunk_bytes=self._chunk_bytes)

    def _is_here(self, delta: Blob) -> bool:
        """Whether the delta came before, and its file is still what came; one that is not is removed."""
        if not self._store.has(delta):
            return False
        try:
            self._store.verify(delta)
        except IntegrityError:
            self._store.remove(delta.sha256)
            return False
        return True

    def _drop(self, sha256: str) -> None:
        self._fetching.pop(sha256).download.discard()


def _whose(wanted: FetchDelta) -> tuple[str, str]:
    return wanted.device, wanted.task.task_id
