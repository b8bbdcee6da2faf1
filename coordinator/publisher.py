"""Serves the artifact's blobs to devices: whoever asked, a few chunks a turn, one device after the other.

What a device may have waiting is two windows for each of a few blobs: it asks again when half a window has come. So a
device that asks wildly costs a little memory for its requests, none for data: chunks are read when their turn comes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.chunks import read_chunk, requested
from edge_sdk.wire.messages import MAX_WINDOW, Chunk, ChunkRequest, RefusalReason, TransferRefused

AT_ONCE: Final = 8  # chunks a turn
MAX_BLOBS: Final = 8  # that one device may wait for at once


@dataclass(slots=True)
class _Waiting:
    """Chunks that a device asked for and has not got yet."""

    blob: Blob
    chunk_bytes: int
    indices: deque[int]


class Publisher:
    """Serves the blobs in `store`."""

    def __init__(self, store: BlobStore) -> None:
        """Nothing is asked for yet."""
        self._store = store
        self._waiting: dict[str, dict[str, _Waiting]] = {}
        self._turn: deque[str] = deque()
        self._sent_bytes: Counter[str] = Counter()

    def asked(self, device: str, request: ChunkRequest) -> TransferRefused | None:
        """Put what a device asks for in the queue; a refusal for what is not here."""
        blob = self._blob(request.blob)
        if blob is None:
            return TransferRefused(request.blob, RefusalReason.UNKNOWN_BLOB)
        waiting = self._waiting.setdefault(device, {})
        if request.blob not in waiting and len(waiting) >= MAX_BLOBS:
            return None  # it asks again when nothing comes
        known = waiting.get(request.blob)
        before = known.indices if known is not None and known.chunk_bytes == request.chunk_bytes else ()
        indices = deque(dict.fromkeys([*before, *requested(request, blob.size_bytes)]))
        while len(indices) > 2 * MAX_WINDOW:
            indices.pop()
        if indices:
            waiting[request.blob] = _Waiting(blob, request.chunk_bytes, indices)
            if device not in self._turn:
                self._turn.append(device)
        return None

    def has_work(self) -> bool:
        """Whether chunks wait to be sent."""
        return bool(self._turn)

    def next_chunks(self) -> Iterator[tuple[str, Chunk | TransferRefused]]:
        """The next few chunks, and whom to send them to. Raises OSError when the disk fails."""
        for _ in range(AT_ONCE):
            if not self._turn:
                return
            device = self._turn.popleft()
            yield device, self._next(device)
            if self._waiting[device]:
                self._turn.append(device)

    def take_sent_bytes(self) -> dict[str, int]:
        """Bytes of chunks sent to each device since the last time."""
        sent, self._sent_bytes = self._sent_bytes, Counter()
        return dict(sent)

    def _next(self, device: str) -> Chunk | TransferRefused:
        name, waiting = next(iter(self._waiting[device].items()))
        try:
            chunk = read_chunk(self._store, waiting.blob, waiting.chunk_bytes, waiting.indices.popleft())
        except FileNotFoundError:
            del self._waiting[device][name]
            return TransferRefused(name, RefusalReason.UNKNOWN_BLOB)
        if not waiting.indices:
            del self._waiting[device][name]
        self._sent_bytes[device] += len(chunk.data)
        return chunk

    def _blob(self, sha256: str) -> Blob | None:
        """The blob of that name, with the size that it has."""
        try:
            return Blob(sha256, self._store.path(sha256).stat().st_size)
        except FileNotFoundError:
            return None
