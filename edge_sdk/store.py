"""The device's store: blobs within a quota, the least recently used evicted first.

    <folder>/blobs/<sha256>       whole, verified when they came in; the modification time is that of the last use
    <folder>/partial/<sha256>.*   on their way in

Nothing is evicted before it has to be: a device that comes back to an emulator fetches only what it lacks. The access
time would be the natural measure, but boards mount their cards with noatime.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.blobs import SHA256, Blob, BlobStore, make_folder

RESERVE_BYTES: Final = 64 * 10**6  # of the disk, never ours: a board whose card is full does not start again


@dataclass(frozen=True, slots=True)
class NoSpace:
    """`needed_bytes` more cannot be kept here; `available_bytes` could, with everything else evicted."""

    needed_bytes: int
    available_bytes: int

    def __str__(self) -> str:
        needed, available = f"{self.needed_bytes / 1e6:.0f} MB", f"{self.available_bytes / 1e6:.0f} MB"
        return f"{needed} more are needed, the store has room for {available}"


@dataclass(frozen=True, slots=True)
class _Stored:
    path: pathlib.Path
    sha256: str
    size_bytes: int
    used_s: float


def free_bytes(folder: pathlib.Path) -> int:
    """What the disk under `folder` still has for us. Raises OSError."""
    return shutil.disk_usage(folder).free


def _nobody_hears(_line: str) -> None:
    """Where there is nobody to tell."""


class DeviceStore:
    """Blobs under `folder`, at most `quota_bytes` of them; `free` asks how much of the disk is left.

    `say` gets a line for people about what was removed.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        quota_bytes: int,
        free: Callable[[pathlib.Path], int] = free_bytes,
        say: Callable[[str], None] = _nobody_hears,
    ) -> None:
        """Make the folder if it is not there. Raises OSError."""
        make_folder(folder)
        self.blobs = BlobStore(folder)
        self._quota_bytes, self._free, self._say = quota_bytes, free, say

    def missing(self, blobs: Iterable[Blob]) -> list[Blob]:
        """Those of `blobs` that are not here, each once, in their order."""
        return [blob for blob in dict.fromkeys(blobs) if not self.blobs.has(blob)]

    def used(self, blobs: Iterable[Blob]) -> None:
        """Remember that those of `blobs` that are here were used now."""
        for blob in blobs:
            if self.blobs.has(blob):
                os.utime(self.blobs.path(blob.sha256))

    def make_room(self, needed_bytes: int, keep: set[str]) -> NoSpace | None:
        """See to it that `needed_bytes` more fit, beside the blobs named in `keep`; None when they do.

        What has arrived of a blob in `keep` counts as part of `needed_bytes`. When not even evicting everything else
        would help, nothing is evicted. Raises OSError.
        """
        stored = list(self._stored())
        evictable = sorted((s for s in stored if s.sha256 not in keep), key=lambda s: s.used_s)
        arrived = [s for s in stored if s.sha256 in keep and s.path.parent.name == "partial"]
        room_bytes = self._room_bytes(stored, arrived)
        could_bytes = room_bytes + sum(s.size_bytes for s in evictable)
        if could_bytes < needed_bytes:
            return NoSpace(needed_bytes, max(could_bytes, 0))
        removed_bytes: list[int] = []
        for victim in evictable:
            if room_bytes + sum(removed_bytes) >= needed_bytes:
                break
            victim.path.unlink(missing_ok=True)
            removed_bytes.append(victim.size_bytes)
        if removed_bytes:
            size, needed = f"{sum(removed_bytes) / 1e6:.0f} MB", f"{needed_bytes / 1e6:.0f} MB"
            self._say(f"removed the {len(removed_bytes)} files that were not used for longest, {size}: {needed} come")
        return None

    def remove_damaged(self, blobs: Iterable[Blob]) -> list[Blob]:
        """Read `blobs` through and remove those that are not what they promise, so that they are fetched again."""
        damaged = [blob for blob in dict.fromkeys(blobs) if self.blobs.has(blob) and not self.blobs.is_whole(blob)]
        for blob in damaged:
            self.blobs.remove(blob.sha256)
        return damaged

    def _room_bytes(self, stored: list[_Stored], arrived: list[_Stored]) -> int:
        """What fits now: within the quota and on the disk, where what has arrived already has its place."""
        arrived_bytes = sum(s.size_bytes for s in arrived)
        quota_bytes = self._quota_bytes - sum(s.size_bytes for s in stored) + arrived_bytes
        disk_bytes = self._free(self.blobs.folder) - RESERVE_BYTES + arrived_bytes
        return min(quota_bytes, disk_bytes)

    def _stored(self) -> Iterator[_Stored]:
        """Every blob and every part of one, by what it takes on the disk."""
        for path in [*self.blobs.folder.glob("blobs/*"), *self.blobs.folder.glob("partial/*")]:
            status = path.stat()
            size_bytes = min(status.st_size, status.st_blocks * 512)  # a partial file may be sparse
            found = SHA256.match(path.name)
            yield _Stored(path, found[0] if found else "", size_bytes, status.st_mtime)
