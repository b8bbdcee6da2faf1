"""A device with a key of its own that speaks the protocol and sends what no honest device would: whatever it is told to
make of a task.
"""

from __future__ import annotations

import contextlib
import pathlib
import threading
import time
import zlib
from collections.abc import Callable

from edge_sdk.identity import Identity
from edge_sdk.line import Line, presence_payload
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.chunks import requested
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import (
    Chunk,
    ChunkRequest,
    Hello,
    Message,
    Presence,
    Receipt,
    Report,
    ResultOffer,
    Task,
    TaskOffer,
    Welcome,
)
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import Connected, Received

SESSION = "imposter"


class Imposter:
    """Takes part in every round as `device` with `make(task)` for a delta; `receipts` are what it was told."""

    def __init__(self, url: str, fleet: str, device: str, folder: pathlib.Path, make: Callable[[Task], bytes]) -> None:
        """Begin; its key is in `folder`."""
        self.receipts: list[Receipt] = []
        self._device, self._make, self._topics = device, make, Topics(fleet)
        self._identity = Identity(folder)
        self._line = Line(self._identity, self._topics, device, 0)
        self._deltas: dict[str, bytes] = {}
        self._offers: dict[str, ResultOffer] = {}  # that wait for their receipt
        self._transport = MqttTransport(url, f"{fleet}/device/{device}")
        for topic in (self._topics.down(device), self._topics.announcement):
            self._transport.subscribe(topic)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"imposter-{device}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._over.set()
        self._transport.wake()
        self._thread.join()
        self._transport.close()

    def _live(self) -> None:
        while not self._over.is_set():
            happened = self._transport.receive(0.2)
            now_s = time.monotonic()
            if isinstance(happened, Connected):
                self._line.begin(now_s)
            elif isinstance(happened, Received):
                with contextlib.suppress(WireError):
                    self._on_message(self._line.open(happened.topic, happened.payload, now_s))
            if greeting := self._line.greeting(now_s):
                self._transport.publish(self._topics.up(self._device), greeting)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Welcome):
            here = Presence(self._device, SESSION, online=True)
            payload = presence_payload(self._identity, self._topics, here)
            self._transport.publish(self._topics.presence(self._device), payload, retain=True)
            self._send(_hello(self._device))
            for offer in self._offers.values():
                self._send(offer)
        elif isinstance(message, TaskOffer):
            task = message.task
            data = self._make(task)
            blob = blob_of(data)
            self._deltas[blob.sha256] = data
            self._offers[task.task_id] = ResultOffer(task.task_id, blob, _report(task))
            self._send(self._offers[task.task_id])
        elif isinstance(message, ChunkRequest) and message.blob in self._deltas:
            self._serve(message, self._deltas[message.blob])
        elif isinstance(message, Receipt):
            self._offers.pop(message.task_id, None)
            self.receipts.append(message)

    def _serve(self, request: ChunkRequest, data: bytes) -> None:
        size = request.chunk_bytes
        for index in requested(request, len(data)):
            part = data[index * size : (index + 1) * size]
            self._send(Chunk(request.blob, size, index, zlib.crc32(part), part))

    def _send(self, message: Message) -> None:
        if payload := self._line.seal(message):
            self._transport.publish(self._topics.up(self._device), payload)


def _hello(device: str) -> Hello:
    return Hello(
        device=device,
        session=SESSION,
        budget_bytes=300_000_000,
        cores=1,
        ram_bytes=1 << 30,
        machine="imposter",
        runtime="none",
        version="0",
        task_id="",
    )


def _report(task: Task) -> Report:
    return Report(
        steps=task.steps,
        examples=task.steps * task.batch,
        loss_before=1.0,
        loss_after=1.0,
        peak_bytes=1,
        predicted_bytes=1,
        budget_bytes=300_000_000,
        wall_s=1.0,
        step_ms=1.0,
        down_bytes=0,
        up_bytes=0,
        threads=1,
        runtime="none",
    )
