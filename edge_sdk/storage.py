"""What a plan has to know of where weights are read from: the medium's speed, and the room that the page cache has.

The speed is that of reading a file as a walk does, with the kernel's readahead, after the kernel has dropped its pages.
Whether it has is looked up: it keeps those that somebody has mapped or locked, and all of them in a file system that
lives in memory. Such a file is read past the cache (O_DIRECT), where each read waits for the one before: about half as
fast on a virtual disk.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Final

from edge_sdk.cgroup import NotDelegated, memory_group, own_group
from edge_sdk.engine.plan import Storage
from edge_sdk.errors import EdgeError

PROC: Final = pathlib.Path("/proc")
SAMPLE_BYTES: Final = 64 * 10**6
SAMPLE_S: Final = 1.0
CHUNK_BYTES: Final = 1 << 20
# Names of limit, usage, and of the page cache and the shared memory in it: https://docs.kernel.org/admin-guide,
# cgroup-v2.html and cgroup-v1/memory.html.
SECOND: Final = ("memory.max", "memory.current", "file", "shmem")
FIRST: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")


class NotMeasured(EdgeError):  # noqa: N818 - a finding, and no fault of anybody's
    """The medium's speed cannot be told; the message says why."""


def measure(sample: pathlib.Path, budget_bytes: int) -> Storage:
    """The storage under the file `sample`, for a worker with that budget: takes a second at most.

    Raises NotMeasured, OSError.
    """
    return Storage(read_bytes_s(sample), cache_bytes(budget_bytes))


def said(storage: Storage) -> str:
    """A storage in a line for people."""
    return f"storage {storage.read_bytes_s / 1e6:.0f} MB/s, {storage.cache_bytes / 1e9:.1f} GB of page cache"


def unknown(reason: object) -> str:
    """The same where the medium's speed is not known."""
    return f"storage not measured, plans count with weights in memory: {reason}"


def read_bytes_s(path: pathlib.Path) -> float:
    """Bytes a second from the medium: at most SAMPLE_BYTES, for SAMPLE_S. Raises NotMeasured, OSError."""
    size_bytes = min(path.stat().st_size, SAMPLE_BYTES)
    if not size_bytes:
        msg = f"{path.name[:12]} is empty: nothing can be read from it"
        raise NotMeasured(msg)
    forget(path)
    if not _cached(path, size_bytes):
        return _rate(path, size_bytes, os.O_RDONLY)
    try:
        return _rate(path, size_bytes, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        msg = f"{path.name[:12]} stays in memory, and cannot be read past the page cache: {error.strerror}"
        raise NotMeasured(msg) from error


def forget(path: pathlib.Path) -> None:
    """Have the kernel drop a file's pages. Dirty ones cannot be dropped, so they are written before. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cache_bytes(budget_bytes: int, proc: pathlib.Path = PROC) -> int:
    """What the page cache may hold of files beside a process that takes up the whole budget. Raises OSError.

    That is what the machine has available, or less where our control group or one above it has a limit: the page cache
    counts there, and what it holds of files can be given up for others.
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    if available is None:
        msg = f"{proc / 'meminfo'} does not say what is available"
        raise OSError(msg)
    room = min([int(available[1]) * 1024, *_rooms(proc / "self")])
    return max(room - budget_bytes, 0)


def _rooms(proc: pathlib.Path) -> Iterator[int]:
    """What each limit of our groups, and of those above them, leaves: bytes."""
    for find, names in ((own_group, SECOND), (memory_group, FIRST)):
        try:
            group = find(proc)
        except (NotDelegated, OSError):
            continue
        for folder in (group, *group.parents):
            # There is none in the root of version 2, nor above; and "max" is no limit.
            if (path := folder / names[0]).exists() and (limit := path.read_text().strip()).isdecimal():
                yield int(limit) - _used(folder, *names[1:])


def _used(folder: pathlib.Path, usage_name: str, cache_name: str, shared_name: str) -> int:
    """What a group holds beside the page cache of files, bytes."""
    lines = (folder / "memory.stat").read_text().splitlines()
    counted = {name: int(value) for name, value in (line.split() for line in lines)}
    return int((folder / usage_name).read_text()) - counted[cache_name] + counted[shared_name]


def _cached(path: pathlib.Path, size_bytes: int) -> bool:
    """Whether more than a hundredth of the file's first pages are in memory. mincore(2) reads nothing.

    Of a file that is neither ours nor writable to us the kernel says that all of it is.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_COPY) as mapping:
        pages = (ctypes.c_ubyte * -(-size_bytes // mmap.PAGESIZE))()
        begin = ctypes.c_char.from_buffer(mapping)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(begin), ctypes.c_size_t(size_bytes), pages)
        del begin  # the mapping closes only when nothing points to it
    return bool(failed) or sum(page & 1 for page in pages) * 100 > len(pages)


def _rate(path: pathlib.Path, size_bytes: int, flags: int) -> float:
    handle = os.open(path, flags)
    try:
        with mmap.mmap(-1, CHUNK_BYTES) as buffer:  # begins with a page, as O_DIRECT asks
            begin, took_s, count = time.perf_counter(), 0.0, 0
            while count < size_bytes and took_s < SAMPLE_S and (read := os.readv(handle, [buffer])):
                count += read
                took_s = time.perf_counter() - begin
            return count / took_s
    finally:
        os.close(handle)
