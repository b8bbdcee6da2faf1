"""Content-addressed files: the coordinator's artifacts, the device's store, and what travels between them.

A **blob** is a file named by the SHA-256 of its bytes. A folder of blobs looks like

    blobs/<sha256>            whole and verified
    partial/<sha256>.*        on its way in; see `chunks`

Rules:

- a name under `blobs/` appears by rename only, after the bytes were verified and fsynced: a power cut leaves a blob
  whole or absent;
- a blob is never changed, so two artifacts that share a tensor share its file.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from edge_sdk.wire.crash_points import crash_moment
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.hashing import Hasher

SHA256 = re.compile(r"[0-9a-f]{64}")
READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Blob:
    """A promise about bytes: `sha256` (64 hexadecimal digits) and `size_bytes`."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        """Refuse what could name a path or a negative size."""
        if not SHA256.fullmatch(self.sha256):
            msg = f"{self.sha256[:80]!r} is not a SHA-256 in hexadecimal"
            raise ValueError(msg)
        if self.size_bytes < 0:
            msg = f"a size of {self.size_bytes} bytes"
            raise ValueError(msg)


def blob_of(data: bytes) -> Blob:
    """The promise that `data` keeps."""
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def blob_of_file(path: pathlib.Path, hasher: Hasher | None = None, begin_bytes: int = 0) -> Blob:
    """The promise that the file at `path` keeps, read in pieces of 256 KiB; `hasher` has its first `begin_bytes`."""
    hasher, size_bytes = hasher or Hasher(), begin_bytes
    with path.open("rb") as file:
        file.seek(begin_bytes)
        while piece := file.read(READ_BYTES):
            hasher.update(piece)
            size_bytes += len(piece)
    return Blob(hasher.hexdigest(), size_bytes)


@contextmanager
def written_atomically(path: pathlib.Path, step: str = "", *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole and on disk, or not at all; who may read it `mode` says, and the umask.

    `step` is its name in `crash_points`, here and below.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            crash_moment(step, "unsynced")
            os.fsync(file.fileno())
        crash_moment(step, "synced")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    crash_moment(step, "renamed")
    sync_folder(path.parent)
    crash_moment(step, "durable")


def moved_durably(source: pathlib.Path, target: pathlib.Path, step: str = "") -> None:
    """Give a file on the same file system another name; its bytes are on the disk before that."""
    make_folder(target.parent)
    crash_moment(step, "unsynced")
    sync_file(source)
    crash_moment(step, "synced")
    source.replace(target)
    crash_moment(step, "renamed")
    sync_folder(target.parent)
    crash_moment(step, "durable")


def make_folder(folder: pathlib.Path) -> None:
    """Make a folder, and those above it that are missing, if it is not there: what is then kept in it survives a power
    cut, which a file does not whose folder has no name on the disk.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_file(path: pathlib.Path) -> None:
    """Bring what was written to a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: pathlib.Path) -> None:
    """Make renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class BlobStore:
    """The blobs under `folder`."""

    folder: pathlib.Path

    def path(self, sha256: str) -> pathlib.Path:
        """Where the blob lies, or will lie. Raises ValueError for what is not a SHA-256."""
        return self.folder / "blobs" / Blob(sha256, 0).sha256

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here with the promised size; its bytes were verified when it came in."""
        path = self.path(blob.sha256)
        return path.is_file() and path.stat().st_size == blob.size_bytes

    def put(self, data: bytes, step: str = "") -> Blob:
        """Keep `data`."""
        blob = blob_of(data)
        if not self.has(blob):
            with written_atomically(self.path(blob.sha256), step) as file:
                file.write(data)
        return blob

    def adopt(self, path: pathlib.Path, step: str = "") -> Blob:
        """Move the file at `path` (on the same file system) in under the name of its bytes."""
        blob = blob_of_file(path)
        if self.has(blob):
            path.unlink()
            return blob
        moved_durably(path, self.path(blob.sha256), step)
        return blob

    def read(self, blob: Blob) -> bytes:
        """The blob's bytes, verified again. Raises IntegrityError, FileNotFoundError."""
        data = self.path(blob.sha256).read_bytes()
        _check(blob, blob_of(data))
        return data

    def verify(self, blob: Blob) -> None:
        """Read the blob through in pieces. Raises IntegrityError if a byte differs, FileNotFoundError."""
        _check(blob, blob_of_file(self.path(blob.sha256)))

    def is_whole(self, blob: Blob) -> bool:
        """Whether the blob is here, and every byte of it can be read and is what was promised."""
        try:
            self.verify(blob)
        except (IntegrityError, OSError):
            return False
        return True

    def remove(self, sha256: str) -> None:
        """Forget a blob; one that is not here is no error."""
        self.path(sha256).unlink(missing_ok=True)


def _check(promised: Blob, found: Blob) -> None:
    if found != promised:
        msg = f"blob {promised.sha256[:12]} on disk does not match its name; delete it and fetch it again"
        raise IntegrityError(msg)
