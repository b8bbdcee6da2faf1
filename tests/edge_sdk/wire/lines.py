"""A line between two stores that does to chunks what networks do."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import pathlib
import random
import tempfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.chunks import LONGEST_WAIT_S, Download, read_chunk, requested
from edge_sdk.wire.messages import Chunk, ChunkRequest, decode_message, encode_message

SIZE = 1024  # of a chunk
SHM = pathlib.Path("/dev/shm")  # noqa: S108 - hundreds of examples need not wait for a disk that others keep busy


class Fate(enum.Enum):
    """What becomes of a chunk on its way. One that is cut has the checksum of what is left."""

    ARRIVES = enum.auto()
    LOST = enum.auto()
    TWICE = enum.auto()
    DAMAGED = enum.auto()
    CUT = enum.auto()
    OVERTAKEN = enum.auto()


@dataclasses.dataclass
class Line:
    """Two stores and the line between them; each chunk has the next of `fates`, then all arrive."""

    source: BlobStore
    target: BlobStore
    fates: Iterator[Fate]
    now_s: float = 0.0
    asked: list[int] = dataclasses.field(default_factory=list)
    under_way: deque[Chunk] = dataclasses.field(default_factory=deque)

    def begin(self, blob: Blob, seed: int = 0, chunk_bytes: int = SIZE) -> Download:
        """A download."""
        return Download(self.target, blob, self.now_s, seed, chunk_bytes=chunk_bytes)

    def turn(self, download: Download, blob: Blob) -> bool:
        """Ask if there is something to ask, and take one chunk; an idle line lets the longest wait pass."""
        if request := download.poll(self.now_s):
            request = through_the_wire(request)
            for index in requested(request, blob.size_bytes):
                self.asked.append(index)
                self._send(read_chunk(self.source, blob, request.chunk_bytes, index))
        self.now_s += 0.1 if self.under_way else 2 * LONGEST_WAIT_S
        return bool(self.under_way) and download.take(self.under_way.popleft(), self.now_s)

    def _send(self, chunk: Chunk) -> None:
        fate = next(self.fates, Fate.ARRIVES)
        if fate is Fate.DAMAGED:
            chunk = dataclasses.replace(chunk, data=bytes(chunk.data[:-1]) + b"?", crc32=chunk.crc32 ^ 1)
        elif fate is Fate.CUT:
            chunk = dataclasses.replace(chunk, data=chunk.data[:-1], crc32=zlib.crc32(chunk.data[:-1]))
        if fate is Fate.OVERTAKEN:
            self.under_way.appendleft(chunk)
        elif fate is not Fate.LOST:
            self.under_way.extend([chunk] * (2 if fate is Fate.TWICE else 1))


def through_the_wire(request: ChunkRequest) -> ChunkRequest:
    """The request as its reader has it."""
    read = decode_message(encode_message(request))
    assert isinstance(read, ChunkRequest)
    return read


@contextlib.contextmanager
def line(fates: Iterable[Fate] = ()) -> Iterator[Line]:
    """A line between two new stores."""
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as name:
        folder = pathlib.Path(name)
        yield Line(BlobStore(folder / "source"), BlobStore(folder / "target"), iter(fates))


def content(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes of which no two chunks are alike."""
    return random.Random(seed).randbytes(size_bytes)  # noqa: S311 - repeatable on purpose


def below(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files under `folder`."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
