"""The seam to MQTT: what both ends need of a broker, and the in-memory broker that stands in for one.

A `Transport` gives what happens as events, one at a time, to the thread that calls `receive`; nothing calls back.
Rules for whoever implements it:

- `publish` never blocks. Nothing published while the connection is away is kept: a PUBACK would prove nothing about the
  coordinator's ledger, so whoever needs an answer asks again after `Connected`;
- subscriptions are remembered, and made again before each `Connected` is reported;
- connections are lost and found without being asked: `Disconnected`, then `Connected`, as often as it takes.
"""

from __future__ import annotations

import collections
import random
import threading
from dataclasses import dataclass
from typing import Final, Protocol

MESSAGE_BYTES: Final = 256  # what a message costs in memory besides its payload
MAX_PACKET_BYTES: Final = 268_435_460  # MQTT's own bound: a header of 5 bytes, and what 28 bits can count
MIN_PACKET_BYTES: Final = 16_384  # a broker that takes less is none for us
FEW: Final = 8  # messages of a backlog: whoever sends is not idle, and may be given more
PACKET_OVERHEAD_BYTES: Final = 512  # at most, beside the payload: headers, our longest topic, properties


@dataclass(frozen=True, slots=True)
class Received:
    """A message on a topic that was subscribed to."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker is there, and every subscription is made. It may have forgotten everything.

    It takes packets of at most `max_packet_bytes`, as far as is known.
    """

    max_packet_bytes: int = MAX_PACKET_BYTES


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The broker is not there; the next attempt follows in `retry_s`."""

    reason: str
    retry_s: float


Event = Received | Connected | Disconnected


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for a client that went away without a word."""

    topic: str
    payload: bytes
    retain: bool = True


class Transport(Protocol):
    """One client's connection to a broker."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Send, without waiting. An empty retained payload clears what was retained."""

    @property
    def backlog(self) -> int:
        """Messages that were given to `publish` and are not on their way yet. For whoever has many to send."""

    def subscribe(self, pattern: str) -> None:
        """Receive what matches: `+` stands for one level, a final `#` for any number."""

    def unsubscribe(self, pattern: str) -> None:
        """Receive it no more; what is under way may still come."""

    def receive(self, timeout_s: float) -> Event | None:
        """The next event, or None after `timeout_s` or a `wake`. For one thread."""

    def wake(self) -> None:
        """Let `receive` return at once, now or the next time. For any thread."""

    def close(self) -> None:
        """Go, with a word: no will is published. Closing twice is no error."""


class Inbox:
    """Events that wait to be received: any thread puts, one gets.

    Above `max_bytes` further messages are dropped and counted: they will be asked for again, and whoever
    floods a device must not fill its memory. Connected and Disconnected are never dropped.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        """Empty."""
        self._events: collections.deque[Event] = collections.deque()
        self._something = threading.Condition()
        self._woken, self._bytes, self._max_bytes = False, 0, max_bytes
        self.dropped = 0

    def put(self, event: Event) -> None:
        """Add an event."""
        with self._something:
            size_bytes = _size_bytes(event)
            if size_bytes and self._bytes + size_bytes > self._max_bytes:
                self.dropped += 1
                return
            self._bytes += size_bytes
            self._events.append(event)
            self._something.notify()

    def get(self, timeout_s: float) -> Event | None:
        """The oldest event; None after `timeout_s`, or when somebody calls `wake`."""
        with self._something:
            self._something.wait_for(lambda: self._events or self._woken, timeout_s)
            self._woken = False
            if not self._events:
                return None
            event = self._events.popleft()
            self._bytes -= _size_bytes(event)
            return event

    def wake(self) -> None:
        """Let `get` return at once, now or the next time."""
        with self._something:
            self._woken = True
            self._something.notify()

    def clear(self) -> None:
        """Forget what waits."""
        with self._something:
            self._events.clear()
            self._bytes = 0


def _size_bytes(event: Event) -> int:
    return len(event.payload) + MESSAGE_BYTES if isinstance(event, Received) else 0


def matches(pattern: str, topic: str) -> bool:
    """Whether a subscription covers a topic. MQTT 3.1.1, section 4.7."""
    levels, names = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and levels[0] in {"+", "#"}:  # a broker's own topics
        return False
    for k, level in enumerate(levels):
        if level == "#":
            return True
        if k >= len(names) or level not in {"+", names[k]}:
            return False
    return len(levels) == len(names)


class MemoryBroker:
    """A broker within a process, for tests and simulation. Thread-safe.

    A share `duplicate` of the messages comes twice. Of those that are not retained, a share `loss` is lost and
    `reorder` is overtaken by the next one: all that MQTT with clean sessions allows across reconnects, and worse than a
    broker does. The same calls in the same order with the same `seed` meet the same misfortunes.
    """

    def __init__(self, seed: int = 0, loss: float = 0.0, duplicate: float = 0.0, reorder: float = 0.0) -> None:
        """Up, and empty."""
        self._random, self._loss, self._duplicate, self._reorder = random.Random(seed), loss, duplicate, reorder  # noqa: S311
        self._lock = threading.RLock()
        self._retained: dict[str, bytes] = {}
        self._clients: dict[str, MemoryTransport] = {}
        self._cut: dict[str, MemoryTransport] = {}
        self._up = True

    def connect(self, client_id: str, will: Will | None = None) -> MemoryTransport:
        """A client. One of the same name that is connected is cut off, as MQTT says."""
        client = MemoryTransport(self, client_id, will)
        self._admit(client)
        return client

    def drop(self, client_id: str) -> None:
        """Cut a client off: its will is published, and it comes back only by `restore`. KeyError if it is not there."""
        with self._lock:
            client = self._cut[client_id] = self._clients.pop(client_id)
            self._leave(client, "the connection was cut")
            if client.will is not None:
                self.deliver(client.will.topic, client.will.payload, retain=client.will.retain)

    def restore(self, client_id: str) -> None:
        """Let the client that was cut off last under this name come back. Raises KeyError if there is none."""
        with self._lock:
            self._admit(self._cut.pop(client_id))

    def crash(self) -> None:
        """Forget everything, as a killed broker does: no wills, nothing retained."""
        with self._lock:
            self._up = False
            self._retained.clear()
            for client in self._clients.values():
                self._leave(client, "the broker is gone")

    def restart(self) -> None:
        """Come back, empty; every client that was not cut off connects again."""
        with self._lock:
            if not self._up:
                self._up = True
                for client in self._clients.values():
                    self._join(client)

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Give a message to everybody who wants it."""
        with self._lock:
            if not self._up:
                return
            if retain:
                self._retained[topic] = payload
                if not payload:
                    del self._retained[topic]
            for client in list(self._clients.values()):
                if client.wants(topic):
                    self._pass_on(client, Received(topic, payload), spared=retain)

    def subscribed(self, client: MemoryTransport, pattern: str) -> None:
        """Give a client what is retained under a pattern."""
        with self._lock:
            if not self._up or self._clients.get(client.client_id) is not client:
                return
            for topic, payload in self._retained.items():
                if matches(pattern, topic):
                    client.put(Received(topic, payload))

    def leave(self, client: MemoryTransport) -> None:
        """A client goes in order."""
        with self._lock:
            for known in (self._clients, self._cut):
                if known.get(client.client_id) is client:
                    del known[client.client_id]

    def is_connected(self, client: MemoryTransport) -> bool:
        """Whether what the client publishes is heard."""
        with self._lock:
            return self._up and self._clients.get(client.client_id) is client

    def overdue(self, client: MemoryTransport) -> Event | None:
        """What nothing overtook for so long that it comes now."""
        with self._lock:
            return client.take_late()

    def _admit(self, client: MemoryTransport) -> None:
        with self._lock:
            if client.client_id in self._clients:
                self.drop(client.client_id)
            self._clients[client.client_id] = client
            self._join(client)

    def _join(self, client: MemoryTransport) -> None:
        if not self._up:
            client.put(Disconnected("the broker is not there", 0.0))
            return
        client.put(Connected())
        for pattern in client.patterns:
            self.subscribed(client, pattern)

    def _leave(self, client: MemoryTransport, reason: str) -> None:
        client.clear()
        client.put(Disconnected(reason, 0.0))

    def _pass_on(self, client: MemoryTransport, message: Received, *, spared: bool) -> None:
        lost, late, twice = (self._random.random() < share for share in (self._loss, self._reorder, self._duplicate))
        if spared or not lost:
            client.put(message, late=late and not spared)
            if twice:
                client.put(message)


class MemoryTransport:
    """A client of a `MemoryBroker`; a Transport."""

    def __init__(self, broker: MemoryBroker, client_id: str, will: Will | None) -> None:
        """For the broker alone: see `MemoryBroker.connect`."""
        self.client_id, self.will = client_id, will
        self.patterns: list[str] = []
        self._broker, self._inbox = broker, Inbox()
        self._late: Event | None = None

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """See Transport; every quality of service is the same here."""
        del qos
        if self._broker.is_connected(self):
            self._broker.deliver(topic, payload, retain=retain)

    @property
    def backlog(self) -> int:
        """See Transport."""
        return 0

    def subscribe(self, pattern: str) -> None:
        """See Transport."""
        if pattern not in self.patterns:
            self.patterns.append(pattern)
        self._broker.subscribed(self, pattern)

    def unsubscribe(self, pattern: str) -> None:
        """See Transport."""
        if pattern in self.patterns:
            self.patterns.remove(pattern)

    def receive(self, timeout_s: float) -> Event | None:
        """See Transport."""
        return self._inbox.get(timeout_s) or self._broker.overdue(self)

    def wake(self) -> None:
        """See Transport."""
        self._inbox.wake()

    def close(self) -> None:
        """See Transport."""
        self._broker.leave(self)

    def wants(self, topic: str) -> bool:
        """Whether a subscription covers the topic."""
        return any(matches(pattern, topic) for pattern in self.patterns)

    def put(self, event: Event, *, late: bool = False) -> None:
        """For the broker, which holds its lock: an event for this client; a late one comes after the next."""
        if late and self._late is None:
            self._late = event
            return
        self._inbox.put(event)
        if (overtaken := self.take_late()) is not None:
            self._inbox.put(overtaken)

    def take_late(self) -> Event | None:
        """For the broker, which holds its lock: what was overtaken by nothing so far."""
        late, self._late = self._late, None
        return late

    def clear(self) -> None:
        """For the broker, which holds its lock: what was under way is lost."""
        self._inbox.clear()
        self._late = None
