"""SHA-256 of what comes in, while it comes: in a thread beside the one that takes it, for hashlib lets others run.

One thread for the process, however many files come side by side. At most AHEAD pieces of each wait, so that it costs no
memory to speak of.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

AHEAD: Final = 4
_THREAD: Final = ThreadPoolExecutor(1, "hashing")  # begins with the first piece


class Hasher:
    """A hash of pieces in their order, which must not change until they are hashed."""

    def __init__(self) -> None:
        """Of nothing yet."""
        self._digest = hashlib.sha256()
        self._waiting: deque[Future[None]] = deque()

    def update(self, piece: bytes | memoryview) -> None:
        """Go on with a piece; waits while AHEAD are waiting."""
        if len(self._waiting) >= AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(_THREAD.submit(self._digest.update, piece))

    def hexdigest(self) -> str:
        """The hash of all pieces, in hexadecimal."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()
