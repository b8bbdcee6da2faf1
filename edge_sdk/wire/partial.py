"""A blob on its way in, on the disk: what came survives a kill and a power cut.

A blob of `size_bytes` in chunks of `chunk_bytes` is chunks 0, 1, ...; the last one is shorter, and an empty blob is one
empty chunk, so that it too is asked for and arrives. On its way in it is two files:

    partial/<sha256>.data       the chunks at their places; holes where none came yet
    partial/<sha256>.journal    which chunks are in the data file, see `records`

The journal is written after the data reached the disk, so a process killed anywhere finds all that the journal claims;
what came after that is asked for again. A journal that cannot be used is no error: the download begins anew.
"""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

from edge_sdk.wire.blobs import Blob, blob_of_file, moved_durably
from edge_sdk.wire.crash_points import crash_point
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.hashing import Hasher
from edge_sdk.wire.messages import Chunk
from edge_sdk.wire.records import read_record, write_record


def chunk_count(size_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a blob has."""
    return max(1, -(-size_bytes // chunk_bytes))


def chunk_length(size_bytes: int, chunk_bytes: int, index: int) -> int:
    """How long chunk `index` is, in bytes."""
    return min(chunk_bytes, size_bytes - index * chunk_bytes)


@dataclass(frozen=True, slots=True)
class _Journal:
    """What the data file holds: bit k (least significant first) of `held` stands for chunk k."""

    size_bytes: int
    chunk_bytes: int
    held: bytes


@dataclass(frozen=True, slots=True)
class Partial:
    """The two files of a blob on its way in: `base` with a suffix. Each use opens them anew; all raise OSError."""

    base: pathlib.Path
    size_bytes: int
    chunk_bytes: int

    @property
    def _data(self) -> pathlib.Path:
        return self.base.with_suffix(".data")

    @property
    def _journal(self) -> pathlib.Path:
        return self.base.with_suffix(".journal")

    def load(self) -> int:
        """The chunks that are on the disk, as bits; 0, and no files, when the journal cannot be used."""
        try:
            return self._read()
        except (FileNotFoundError, WireError):
            self.remove()
            return 0

    def _read(self) -> int:
        count = chunk_count(self.size_bytes, self.chunk_bytes)
        journal = read_record(_Journal, self._journal, 256 + count // 8)
        held = int.from_bytes(journal.held, "little")
        ours = (journal.size_bytes, journal.chunk_bytes) == (self.size_bytes, self.chunk_bytes)
        reach_bytes = min(held.bit_length() * self.chunk_bytes, self.size_bytes)
        if not ours or held >= (1 << count) - 1 or self._data.stat().st_size < reach_bytes:
            msg = "it is another download's"
            raise WireError(msg)
        return held

    def write(self, chunk: Chunk) -> None:
        """Put a chunk in its place."""
        begin, left = chunk.index * self.chunk_bytes, memoryview(chunk.data)
        handle = self._opened()
        try:
            while left:
                written = os.pwrite(handle, left, begin)
                begin, left = begin + written, left[written:]
        finally:
            os.close(handle)
        crash_point("chunk.written")

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self._data, flags, 0o600)
        except FileNotFoundError:
            self._data.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self._data, flags, 0o600)

    def save(self, held: int) -> None:
        """Bring the data to the disk, then claim it.

        What is on the disk leaves the page cache: a file larger than the memory would else push out all that is there,
        and it is not read again before it is used.
        """
        with self._data.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        bits = held.to_bytes((held.bit_length() + 7) // 8, "little")
        write_record(self._journal, _Journal(self.size_bytes, self.chunk_bytes, bits), "journal")

    def is_whole(self, blob: Blob, hasher: Hasher, hashed: int) -> bool:
        """Read the data through, but for the first `hashed` chunks, which `hasher` has."""
        return blob_of_file(self._data, hasher, min(hashed * self.chunk_bytes, self.size_bytes)) == blob

    def move_to(self, target: pathlib.Path) -> None:
        """Give the data its name; from then on the blob is there, whatever happens."""
        moved_durably(self._data, target, "install")
        self._journal.unlink(missing_ok=True)
        crash_point("install.unclaimed")

    def remove(self) -> None:
        """Forget what came: the claim first, then what it claims."""
        self._journal.unlink(missing_ok=True)
        self._data.unlink(missing_ok=True)
