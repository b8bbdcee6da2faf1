"""Who listens on the broker and counts: what was offered and what was receipted, as neither end tells it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import Receipt, ResultOffer, decode_message
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.signed import is_envelope, read_envelope
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import Connected, Disconnected, Received


@dataclass(slots=True)
class Heard:
    """The ids of tasks whose results were offered, and of those whose receipts said accepted, or refused."""

    offered: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


class Observer:
    """Listens to a fleet over `url` from the end of its making to `close`."""

    def __init__(self, url: str, fleet: str) -> None:
        """Returns once it listens. Raises TimeoutError."""
        self.heard = Heard()
        self._transport = MqttTransport(url, f"{fleet}/observer")
        self._over, self._listening = threading.Event(), threading.Event()
        topics = Topics(fleet)
        for topic in (topics.up("+"), topics.up("+").replace("/up/", "/down/")):
            self._transport.subscribe(topic)
        self._thread = threading.Thread(target=self._listen, name="observer", daemon=True)
        self._thread.start()
        if not self._listening.wait(30):
            self.close()
            msg = f"no broker at {url}"
            raise TimeoutError(msg)

    @property
    def listens(self) -> bool:
        """Whether it hears what is said now: not after its broker died, until it has found the next one."""
        return self._listening.is_set()

    def close(self) -> Heard:
        """Listen no more; what was heard."""
        self._over.set()
        self._transport.wake()
        self._thread.join()
        self._transport.close()
        return self.heard

    def _listen(self) -> None:
        while not self._over.is_set():
            happened = self._transport.receive(0.2)
            if isinstance(happened, Connected):
                self._listening.set()
            elif isinstance(happened, Disconnected):
                self._listening.clear()
            elif isinstance(happened, Received):
                self._note(happened.payload)

    def _note(self, payload: bytes) -> None:
        try:
            message = decode_message(read_envelope(payload).body if is_envelope(payload) else payload)
        except WireError:
            return
        if isinstance(message, ResultOffer):
            self.heard.offered.add(message.task_id)
        elif isinstance(message, Receipt):
            (self.heard.accepted if message.accepted else self.heard.refused).add(message.task_id)
