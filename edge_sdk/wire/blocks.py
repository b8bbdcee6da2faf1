"""Blocks of files: what a new file has in common with files that a device holds need not come again.

A level's manifest may list, under the name BLOCKS, one file more: for each of its other files of several blocks the
first DIGEST_BYTES of the SHA-256 of every block, which is BLOCK_BYTES long but for the last. Such a list stays in the
store beside the files that it is about, so nothing has to be hashed to know which blocks are here; a block is hashed
when it is used. A list proves nothing: the SHA-256 of the whole file has the last word, as ever.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire import codec
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.errors import WireError

BLOCKS: Final = "blocks"
BLOCK_BYTES: Final = 256 * 1024
DIGEST_BYTES: Final = 16
MAX_LIST_BYTES: Final = 4 << 20  # 64 GiB of files
BEGIN: Final = b"\x82\xabblock_bytes"  # of a list's msgpack: other files in a store are not read


@dataclass(frozen=True, slots=True)
class BlockList:
    """Digests of the blocks of files, one behind the other, by the file's SHA-256."""

    block_bytes: int
    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        """Refuse another length of blocks, names that could mean a path, and digests in pieces."""
        if self.block_bytes != BLOCK_BYTES:
            msg = f"blocks of {self.block_bytes} bytes, only {BLOCK_BYTES} are supported"
            raise ValueError(msg)
        for sha256, digests in self.files.items():
            Blob(sha256, 0)
            if len(digests) % DIGEST_BYTES:
                msg = f"{len(digests)} bytes are no digests"
                raise ValueError(msg)

    def digests(self, sha256: str) -> list[bytes]:
        """Those of a file, in order; none of one that is not listed."""
        held = self.files.get(sha256, b"")
        return [held[begin : begin + DIGEST_BYTES] for begin in range(0, len(held), DIGEST_BYTES)]


def digest(block: bytes) -> bytes:
    """What a list says of a block."""
    return hashlib.sha256(block).digest()[:DIGEST_BYTES]


def block_list(store: BlobStore, blobs: Iterable[Blob]) -> bytes:
    """The list of `blobs`, all in `store`, as bytes; empty where none has several blocks. Raises OSError."""
    large = sorted({blob.sha256 for blob in blobs if blob.size_bytes > BLOCK_BYTES})
    files = {sha256: b"".join(map(digest, _blocks(store.path(sha256)))) for sha256 in large}
    return codec.encode(BlockList(BLOCK_BYTES, files)) if files else b""


def read_list(data: bytes) -> BlockList:
    """A list. Raises DecodeError."""
    return codec.decode(BlockList, data, MAX_LIST_BYTES)


@dataclass(frozen=True, slots=True)
class HeldBlocks:
    """Where blocks with these digests lie: in which file, and from which byte on."""

    places: Mapping[bytes, tuple[pathlib.Path, int]]

    def read(self, wanted: bytes) -> bytes | None:
        """The block with this digest; None where it is not here, or no more what it was."""
        if wanted not in self.places:
            return None
        path, begin = self.places[wanted]
        try:
            with path.open("rb") as file:
                file.seek(begin)
                block = file.read(BLOCK_BYTES)
        except OSError:
            return None
        return block if digest(block) == wanted else None


def held_blocks(store: BlobStore, wanted: BlockList) -> HeldBlocks:
    """Blocks of `wanted` that are part of whole files in `store`, by the lists that lie there, too. Raises OSError."""
    lacking = {one for sha256 in wanted.files if not store.path(sha256).is_file() for one in wanted.digests(sha256)}
    places: dict[bytes, tuple[pathlib.Path, int]] = {}
    for known in _lists(store):
        for sha256 in known.files:
            if (path := store.path(sha256)).is_file():
                digests = enumerate(known.digests(sha256))
                places |= {one: (path, k * BLOCK_BYTES) for k, one in digests if one in lacking}
    return HeldBlocks(places)


def _lists(store: BlobStore) -> Iterator[BlockList]:
    for path in (store.folder / "blobs").glob("*"):
        with path.open("rb") as file:
            begin = file.read(len(BEGIN))
            data = begin + file.read(MAX_LIST_BYTES) if begin == BEGIN else b""
        if data:
            try:
                yield read_list(data)
            except WireError:  # a file of something else may begin like one
                continue


def _blocks(path: pathlib.Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
