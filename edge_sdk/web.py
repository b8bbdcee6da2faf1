"""One blob at a time from a web server, in a thread: the agent asks what came, and starts the next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.messages import Chunk
from edge_sdk.wire.web import SourceError, base, chunks

AHEAD: Final = 8  # chunks that wait to be taken
LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class WebEnded:
    """Nothing more comes of this blob; `why` is empty where the server gave all that it promised."""

    blob: str
    why: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob, from `url`, in chunks of `chunk_bytes` from `first` on."""

    url: str
    blob: Blob
    chunk_bytes: int
    first: int


class Web:
    """Reads what is `wanted`; calls `wake`, on its own thread, whenever something came."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Reads nothing yet."""
        self._wake = wake
        self._came: queue.Queue[Chunk | WebEnded] = queue.Queue(AHEAD)
        self._stopped, self._blob = threading.Event(), ""

    @property
    def blob(self) -> str:
        """The SHA-256 of what is read now; empty for nothing."""
        return self._blob

    def begin(self, wanted: Wanted) -> None:
        """Read this in place of anything before."""
        self.stop()
        self._blob, self._came, self._stopped = wanted.blob.sha256, queue.Queue(AHEAD), threading.Event()
        arguments = (wanted, self._came, self._stopped)
        threading.Thread(target=self._read, args=arguments, name="web", daemon=True).start()

    def take(self) -> Chunk | WebEnded | None:
        """What came next, if anything."""
        try:
            found = self._came.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, WebEnded):
            self._blob = ""
        return found

    def stop(self) -> None:
        """Read no more; what came and was not taken is dropped."""
        self._stopped.set()
        self._blob, self._came = "", queue.Queue(AHEAD)

    def _read(self, wanted: Wanted, came: queue.Queue[Chunk | WebEnded], stopped: threading.Event) -> None:
        why = ""
        try:
            for chunk in chunks(base(wanted.url), wanted.blob, wanted.chunk_bytes, wanted.first):
                if not self._put(chunk, came, stopped):
                    return
        except (SourceError, ValueError) as error:
            why = str(error)
        self._put(WebEnded(wanted.blob.sha256, why), came, stopped)

    def _put(self, what: Chunk | WebEnded, came: queue.Queue[Chunk | WebEnded], stopped: threading.Event) -> bool:
        while not stopped.is_set():
            try:
                came.put(what, timeout=LOOK_S)
            except queue.Full:
                continue
            self._wake()
            return True
        return False
