"""Pulling a blob in chunks: whoever needs it asks, and what came is kept across restarts.

Nothing here knows a network or a clock: `Download` says what to ask, is given what came, and is told the time. What
came is on the disk (see `partial`); the blob's SHA-256 has the last word before its name appears under `blobs/`.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Sequence
from typing import Final

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.blocks import BLOCK_BYTES, HeldBlocks
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.hashing import Hasher
from edge_sdk.wire.messages import (
    CHUNK_BYTES,
    CHUNK_OVERHEAD_BYTES,
    MAX_BITMAP_BYTES,
    MAX_WINDOW,
    MIN_CHUNK_BYTES,
    Chunk,
    ChunkRequest,
)
from edge_sdk.wire.partial import Partial, chunk_count, chunk_length
from edge_sdk.wire.transport import PACKET_OVERHEAD_BYTES

SAVE_BYTES: Final = 16 << 20  # the most that a kill can cost, beside what is under way
SAVE_S: Final = 2.0  # the same for a slow network
RESTARTS: Final = 3  # whole files with a wrong SHA-256, before the sender is not believed any more
WINDOW: Final = 8  # chunks ahead on a slow line; more only while they come faster
AHEAD_S: Final = 0.1  # of what comes, at most MAX_WINDOW
FIRST_WAIT_S, LONGEST_WAIT_S = 3.0, 60.0


def requested(request: ChunkRequest, size_bytes: int) -> tuple[int, ...]:
    """The chunks to send for `request` of a blob of `size_bytes`: at most a window of the missing."""
    room = chunk_count(size_bytes, request.chunk_bytes) - request.first
    if room <= 0:
        return ()
    within = min(room, 8 * len(request.missing))
    missing = int.from_bytes(request.missing, "little") & ((1 << within) - 1)
    return tuple(request.first + k for k in _lowest(missing, request.window))


def chunk_bytes_within(max_packet_bytes: int) -> int:
    """The length of chunks to ask for where a packet may be so long: whole KiB, a quarter of a MiB at most."""
    room_bytes = max_packet_bytes - PACKET_OVERHEAD_BYTES - CHUNK_OVERHEAD_BYTES
    return max(MIN_CHUNK_BYTES, min(CHUNK_BYTES, room_bytes // 1024 * 1024))


def read_chunk(store: BlobStore, blob: Blob, chunk_bytes: int, index: int) -> Chunk:
    """Chunk `index` of a blob in `store`.

    Raises:
        ValueError: the blob has no such chunk.
        FileNotFoundError: the blob is not here.
        IntegrityError: its file is shorter than promised.
    """
    if not 0 <= index < chunk_count(blob.size_bytes, chunk_bytes):
        msg = f"blob {blob.sha256[:12]} of {blob.size_bytes} bytes has no chunk {index} of {chunk_bytes} bytes"
        raise ValueError(msg)
    length = chunk_length(blob.size_bytes, chunk_bytes, index)
    handle = os.open(store.path(blob.sha256), os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(handle, length, index * chunk_bytes)
    finally:
        os.close(handle)
    if len(data) != length:
        msg = f"blob {blob.sha256[:12]} on disk is cut off; delete it and fetch it again"
        raise IntegrityError(msg)
    return Chunk(blob.sha256, chunk_bytes, index, zlib.crc32(data), data)


class Download:
    """A blob on its way into `store`: say `poll` for what to ask, give `take` what came.

    Goes on from what a former process left. `received_bytes` counts the data of this blob's chunks since this object
    was made, wanted or not; `rejected` the chunks that could not be used. `seed` spreads repeated requests in time.
    """

    def __init__(
        self,
        store: BlobStore,
        blob: Blob,
        now_s: float,
        seed: int,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        window: int = WINDOW,
    ) -> None:
        """Read the journal if there is one. Raises OSError."""
        self._store, self._blob, self._chunk_bytes = store, blob, chunk_bytes
        self._window = _Window(window, now_s)
        self._all = (1 << chunk_count(blob.size_bytes, chunk_bytes)) - 1  # bit k stands for chunk k, here and below
        self._partial = Partial(store.folder / "partial" / blob.sha256, blob.size_bytes, chunk_bytes)
        self._missing = self._all & ~self._partial.load()
        self._hasher, self._hashed = Hasher(), 0  # the first chunks, while they come in their order
        self._asked = 0
        self._patience = _Patience(now_s, seed ^ int(blob.sha256[:8], 16))
        self._unsaved_bytes, self._saved_s, self._restarts = 0, now_s, 0
        self.received_bytes, self.rejected = 0, 0

    @property
    def blob(self) -> Blob:
        """What comes."""
        return self._blob

    @property
    def missing_bytes(self) -> int:
        """What has still to come."""
        missing_bytes = self._missing.bit_count() * self._chunk_bytes
        last = self._all.bit_length() - 1
        if self._missing >> last:
            missing_bytes -= self._chunk_bytes - chunk_length(self._blob.size_bytes, self._chunk_bytes, last)
        return missing_bytes

    @property
    def first_missing(self) -> int:
        """The first chunk that has still to come."""
        return _lowest(self._missing, 1)[0] if self._missing else 0

    @property
    def under_way(self) -> int:
        """Chunks that were asked for and did not come yet."""
        return self._asked.bit_count()

    def poll(self, now_s: float, elsewhere: int = 0) -> ChunkRequest | None:
        """What to ask for now, if anything; `elsewhere` chunks are under way in downloads beside this one.

        A chunk is asked for once, and again only when nothing came for a while; a further request goes out when a part
        of the window has arrived, so that the sender is never idle. Raises OSError when the journal cannot be written.
        """
        self._save_if_due(now_s)
        if self._asked and self._patience.is_over(now_s):
            self._asked = 0
            self._patience.in_vain()
        wanted = self._missing & ~self._asked
        room = self._window.room(self.under_way, elsewhere, now_s)
        if not wanted or not room:
            return None
        if not self._asked:
            self._patience.begin(now_s)
        return self._ask(wanted, room)

    def take(self, chunk: Chunk, now_s: float) -> bool:
        """Keep a chunk if it is one of ours, missing and undamaged. True once the blob is whole and under its name.

        Raises:
            IntegrityError: what came is not what was promised, again and again.
            OSError: the disk is full or broken; what the journal claims stays good.
        """
        if chunk.blob == self._blob.sha256:
            self.received_bytes += len(chunk.data)
            self._patience.arrived(now_s)
            self._window.arrived()
        if not self._is_wanted(chunk):
            self.rejected += 1
            return False
        return self._keep(chunk, now_s)

    def fill(self, digests: Sequence[bytes], held: HeldBlocks, now_s: float) -> bool:
        """Take what is here already: the file's blocks have these `digests`. True once the blob is whole, as `take`.

        Raises IntegrityError, OSError.
        """
        for k, wanted in enumerate(digests):
            lacking = [index for index in self._within(k) if self._missing >> index & 1]
            block = held.read(wanted) if lacking else None
            for index in lacking if block is not None else ():
                begin = index * self._chunk_bytes - k * BLOCK_BYTES
                data = memoryview(block or b"")[begin : begin + self._chunk_bytes]
                chunk = Chunk(self._blob.sha256, self._chunk_bytes, index, zlib.crc32(data), data)
                if self._is_wanted(chunk) and self._keep(chunk, now_s):
                    return True
        return False

    def _within(self, block: int) -> range:
        """The chunks that lie whole within a block."""
        begin, end = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
        count = self._all.bit_length()
        after = count if end >= self._blob.size_bytes else end // self._chunk_bytes
        return range(-(-begin // self._chunk_bytes), min(after, count))

    def _keep(self, chunk: Chunk, now_s: float) -> bool:
        self._partial.write(chunk)
        if chunk.index == self._hashed:
            self._hasher.update(chunk.data)
            self._hashed += 1
        self._asked &= ~(1 << chunk.index)
        if self._missing == 1 << chunk.index:  # before it is marked: no journal ever claims all
            return self._finish()
        self._missing ^= 1 << chunk.index
        self._unsaved_bytes += len(chunk.data)
        self._save_if_due(now_s)
        return False

    def close(self) -> None:
        """Keep what came so far, to go on from. Raises OSError."""
        if self._unsaved_bytes:
            self._partial.save(self._all & ~self._missing)
            self._unsaved_bytes = 0

    def discard(self) -> None:
        """Forget what came so far: nobody wants the blob any more. Raises OSError."""
        self._partial.remove()
        self._hasher, self._hashed = Hasher(), 0
        self._missing, self._asked, self._unsaved_bytes = self._all, 0, 0

    def _ask(self, wanted: int, room: int) -> ChunkRequest:
        first = _lowest(wanted, 1)[0]
        reach = (wanted >> first) & ((1 << 8 * MAX_BITMAP_BYTES) - 1)
        bits = sum(1 << k for k in _lowest(reach, room))
        self._asked |= bits << first
        missing = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        return ChunkRequest(self._blob.sha256, self._chunk_bytes, first, missing, bits.bit_count())

    def _is_wanted(self, chunk: Chunk) -> bool:
        return (
            chunk.blob == self._blob.sha256
            and chunk.chunk_bytes == self._chunk_bytes
            and 0 <= chunk.index < self._all.bit_length()
            and bool(self._missing >> chunk.index & 1)
            and len(chunk.data) == chunk_length(self._blob.size_bytes, self._chunk_bytes, chunk.index)
            and zlib.crc32(chunk.data) == chunk.crc32
        )

    def _save_if_due(self, now_s: float) -> None:
        if self._unsaved_bytes >= SAVE_BYTES or now_s - self._saved_s >= SAVE_S:
            self.close()
            self._saved_s = now_s

    def _finish(self) -> bool:
        if self._partial.is_whole(self._blob, self._hasher, self._hashed):
            self._partial.move_to(self._store.path(self._blob.sha256))
            self._missing, self._asked, self._unsaved_bytes = 0, 0, 0
            return True
        self.discard()
        self._restarts += 1
        if self._restarts > RESTARTS:
            msg = f"blob {self._blob.sha256[:12]} came whole {self._restarts} times and never had the promised SHA-256"
            raise IntegrityError(msg)
        return False


class _Window:
    """How many chunks to ask for ahead of what came: on a slow line few, for they would wait in the broker, and with
    them all that comes after; on a fast one as many as come within AHEAD_S.
    """

    def __init__(self, least: int, now_s: float) -> None:
        self._least, self._size, self._came, self._since_s = least, least, 0, now_s

    def arrived(self) -> None:
        self._came += 1

    def room(self, under_way: int, elsewhere: int, now_s: float) -> int:
        """How many to ask for now: a quarter of the window at least, or half of the least one; else none yet."""
        room = min(self._size, MAX_WINDOW - elsewhere) - under_way
        if 2 * room < self._least or 4 * room < self._size:
            return 0
        took_s = max(now_s - self._since_s, 1e-6)
        self._size = int(min(max(self._came * AHEAD_S / took_s, self._least), MAX_WINDOW))
        self._came, self._since_s = 0, now_s
        return room


class _Patience:
    """How long to wait for a chunk before it is asked for again.

    Twice the longest pause that was seen lately: on a slow or shared line, asking sooner would send everything twice
    and make it slower still. Twice as long after every request in vain, and spread, so that a fleet that lost its
    broker does not ask in step.
    """

    def __init__(self, now_s: float, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - spreads requests, guards nothing
        self._heard_s, self._due_s, self._pause_s, self._vain = now_s, now_s, 0.0, 0

    def is_over(self, now_s: float) -> bool:
        return now_s >= self._due_s

    def in_vain(self) -> None:
        self._vain += 1

    def begin(self, now_s: float) -> None:
        """Nothing is under way, and a request goes out."""
        if not self._vain:
            self._heard_s = now_s
        self._due_s = now_s + self._wait_s()

    def arrived(self, now_s: float) -> None:
        """A chunk came; one that came before, or damaged, shows too that the sender is at work."""
        self._pause_s = max(now_s - self._heard_s, 0.9 * self._pause_s)
        self._heard_s, self._vain = now_s, 0
        self._due_s = now_s + self._wait_s()

    def _wait_s(self) -> float:
        wait_s = max(FIRST_WAIT_S, 2 * self._pause_s) * 2.0 ** min(self._vain, 10)
        return min(wait_s, LONGEST_WAIT_S) * self._random.uniform(1.0, 1.5)


def _lowest(bits: int, count: int) -> list[int]:
    """The places of the lowest set bits, at most `count` of them."""
    places: list[int] = []
    while bits and len(places) < count:
        lowest = bits & -bits
        places.append(lowest.bit_length() - 1)
        bits ^= lowest
    return places
