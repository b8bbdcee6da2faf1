"""Memory for chunks is used again, and not given back to the kernel after each of them.

A chunk on its way is a handful of blocks of 256 KiB, one after the other: what was received, the message in it, what
goes out. glibc gives blocks of that size back as soon as they are free, and the kernel clears every page that it hands
out again, which was half the time of a transfer (docs/adr/0031). So a process that moves chunks keeps KEPT_BYTES of
what it frees. A process that trains does the opposite, see `edge_sdk.environment`.
"""

from __future__ import annotations

import ctypes
from typing import Final

KEPT_BYTES: Final = 4 << 20  # at the end of the heap, above which memory goes back
BLOCK_BYTES: Final = 2 << 20  # from which on a block is never part of the heap: no chunk is as long
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Set it for this process, before its threads begin. False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    )
