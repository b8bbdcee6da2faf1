"""Says everything again that is said between a fleet and its coordinator: twice, late, and in another order."""

from __future__ import annotations

import random
import threading
import zlib
from collections import Counter
from typing import Final

from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import Received

BATCH: Final = 5  # messages that are held back, then said again in another order
AGAIN: Final = 2  # times at most for each


class Replayer:
    """Replays over `url` until `close`; `replayed` counts."""

    def __init__(self, url: str, fleet: str, seed: int) -> None:
        """Begin."""
        self.replayed = 0
        self._random, self._held = random.Random(seed), list[Received]()  # noqa: S311 - repeatable on purpose
        self._said: Counter[tuple[str, int]] = Counter()
        self._transport, self._over = MqttTransport(url, f"{fleet}/replayer"), threading.Event()
        topics = Topics(fleet)
        for topic in (topics.up("+"), topics.up("+").replace("/up/", "/down/")):
            self._transport.subscribe(topic)
        self._thread = threading.Thread(target=self._live, name="replayer", daemon=True)
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
            if isinstance(happened, Received):
                self._hold(happened)

    def _hold(self, message: Received) -> None:
        """Our own words come back to us, too: each message is said again so many times and no more."""
        key = (message.topic, zlib.crc32(message.payload))
        if self._said[key] >= AGAIN:
            return
        self._said[key] += 1
        self._held.append(message)
        if len(self._held) >= BATCH:
            self._random.shuffle(self._held)
            for held in self._held:
                self._transport.publish(held.topic, held.payload)
            self.replayed += len(self._held)
            self._held.clear()
