"""A TCP proxy on loopback that makes a network as bad as asked for, the same way for the same seed.

    with FaultProxy(broker_port, seed=1, down=Misfortune(bytes_s=1e6, flips=1e-6)) as proxy:
        ...connect to proxy.url...

Connections are numbered from 0 as they come; the misfortunes of each direction of each follow from the seed and its
number. A proxy lives in a thread of its own, with its own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from benchmarks.reliability.misfortune import Course, Ending, Misfortune, Piece

READ_BYTES: Final = 65_536
WAITING: Final = 64  # pieces on their way: more are not read, so that whoever sends feels the line
START_S: Final = 10.0
LOCAL: Final = "127.0.0.1"


@dataclass(slots=True, eq=False)
class _Link:
    """One connection through the proxy, from `near` (who connected) to `far` (the target)."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    frozen: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """Passes connections to `127.0.0.1:target`. `up` befalls what clients say, `down` what they are told.

    `up` and `down` may be set at any time, for the connections that follow. Read freely: `connections`, `passed` (bytes
    by direction), `injected` (misfortunes by kind).
    """

    def __init__(self, target: int, seed: int, up: Misfortune | None = None, down: Misfortune | None = None) -> None:
        """Not yet listening: that is `start`, or `with`."""
        self._target, self._seed = target, seed
        self.up, self.down = up or Misfortune(), down or Misfortune()
        self.connections = 0
        self.passed: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.port = 0
        self._links: set[_Link] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, for an MQTT client."""
        return f"mqtt://{LOCAL}:{self.port}"

    def start(self) -> None:
        """Listen. Raises RuntimeError when it cannot."""
        self._thread.start()
        if not self._ready.wait(START_S) or not self.port:
            msg = "the proxy could not listen"
            raise RuntimeError(msg)

    def close(self) -> None:
        """End every connection and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def break_all(self, ending: Ending = Ending.RESET) -> int:
        """End what is connected now, in that way; how many there were."""
        return asyncio.run_coroutine_threadsafe(self._break_all(ending), self._loop).result(START_S)

    def __enter__(self) -> FaultProxy:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    # ---- the proxy's own thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._listen())
        finally:
            self._ready.set()
            self._loop.close()

    async def _listen(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            task = self._loop.create_task(self._connection(reader, writer, self.connections))
            self.connections += 1
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, LOCAL, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # for the loop to close their sockets
        await server.wait_closed()

    async def _connection(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter, number: int) -> None:
        try:
            far_reader, far = await asyncio.open_connection(LOCAL, self._target)
        except OSError:  # as if nobody listened here either
            _reset(near)
            return
        link = _Link(near, far)
        self._links.add(link)
        self._writers.add(far)
        courses = [
            Course(misfortune, f"{self._seed}.{number}.{way}")
            for way, misfortune in (("up", self.up), ("down", self.down))
        ]
        pumps = (
            self._pump(reader, far, courses[0], link, "up"),
            self._pump(far_reader, near, courses[1], link, "down"),
        )
        try:
            await _until_first(*pumps)
        finally:
            self._links.discard(link)
            for course in courses:
                self.injected.update(course.injected)
            for writer in (near, far):
                writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, course: Course, link: _Link, way: str
    ) -> None:
        """One direction, until it ends by itself or by misfortune."""
        waiting: asyncio.Queue[tuple[float, Piece] | None] = asyncio.Queue(WAITING)
        sender = self._loop.create_task(self._send(waiting, writer, link, way))
        try:
            while not course.ended and (data := await reader.read(READ_BYTES)):
                for piece in course.suffer(data):
                    await waiting.put((self._loop.time() + piece.late_s, piece))
            await waiting.put(None)
            await sender
        except OSError:
            return
        finally:
            sender.cancel()
        if course.ended:
            await self._end(link, self.up.ending if way == "up" else self.down.ending)

    async def _send(
        self,
        waiting: asyncio.Queue[tuple[float, Piece] | None],
        writer: asyncio.StreamWriter,
        link: _Link,
        way: str,
    ) -> None:
        while (item := await waiting.get()) is not None:
            due_s, piece = item
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            if piece.busy_s:
                await asyncio.sleep(piece.busy_s)
            if link.frozen.is_set():
                await asyncio.Event().wait()
            writer.write(piece.data)
            self.passed[way] += len(piece.data)
            await writer.drain()

    async def _end(self, link: _Link, ending: Ending) -> None:
        self.injected[ending.value] += 1
        if ending is Ending.BLACK_HOLE:
            link.frozen.set()
            await asyncio.Event().wait()  # until the proxy closes
        if ending is Ending.RESET:
            for writer in (link.near, link.far):
                _reset(writer)

    async def _break_all(self, ending: Ending) -> int:
        broken = list(self._links)
        for link in broken:
            if ending is Ending.BLACK_HOLE:
                self.injected[ending.value] += 1
                link.frozen.set()
                continue
            await self._end(link, ending)
            for writer in (link.near, link.far):
                writer.close()
        return len(broken)


async def _until_first(*pumps: Coroutine[Any, Any, None]) -> None:
    """Until one direction is over: then both are."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
