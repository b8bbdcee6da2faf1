"""paho-mqtt behind the seam: MQTT 3.1.1, clean sessions, and a connection that is made again for as long as it takes.

paho's network thread ends for good when a callback raises, while `is_connected()` stays true: callbacks here only put
events into a queue. Its own reconnect has no jitter and says nothing, so there is a loop of our own: one paho client
per connection, and every failure is an event with the time of the next attempt.
"""

from __future__ import annotations

import contextlib
import random
import threading
import urllib.parse
from typing import Any, Final

from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_sdk.wire.transport import Connected, Disconnected, Event, Inbox, Received, Will

PORT: Final = 1883
KEEPALIVE_S: Final = 15  # a connection that is dead without a word is noticed after one and a half of it
CONNECT_S: Final = 5.0
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
MAX_QUEUED: Final = 1000  # messages on their way out
IN_FLIGHT: Final = 64
GOODBYE_S: Final = 2.0


class MqttTransport:
    """A Transport over `url`, mqtt://host[:port]. Connects in the background, now and after every loss."""

    def __init__(self, url: str, client_id: str, will: Will | None = None) -> None:
        """Begin to connect. Raises ValueError for a URL that is none of ours."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "mqtt" or not parts.hostname:
            msg = f"{url!r} is no broker; write mqtt://host:port"
            raise ValueError(msg)
        self._host, self._port = parts.hostname, parts.port or PORT
        self._client_id, self._will = client_id, will
        self._patterns: list[str] = []
        self._inbox, self._closing = Inbox(), threading.Event()
        self._lock = threading.Lock()  # over patterns, client and last, which two threads use
        self._client: Client | None = None  # while connected
        self._reason, self._reported = "", False
        self._last: MQTTMessageInfo | None = None
        self._tries = 0
        self._thread = threading.Thread(target=self._live, name=f"mqtt-{client_id}", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """See Transport. Lost without a connection, and when 1,000 messages wait already."""
        with self._lock:
            if self._client is not None:
                self._last = self._client.publish(topic, payload, qos, retain)

    def subscribe(self, pattern: str) -> None:
        """See Transport."""
        with self._lock:
            if pattern not in self._patterns:
                self._patterns.append(pattern)
                if self._client is not None:
                    self._client.subscribe(pattern, 1)

    def receive(self, timeout_s: float) -> Event | None:
        """See Transport."""
        return self._inbox.get(timeout_s)

    def wake(self) -> None:
        """See Transport."""
        self._inbox.wake()

    def close(self) -> None:
        """See Transport. What was published last has a moment to go out."""
        self._closing.set()
        with self._lock:
            client, last = self._client, self._last
        if client is not None:
            if last is not None:
                with contextlib.suppress(ValueError, RuntimeError):  # it was never queued: nothing to wait for
                    last.wait_for_publish(GOODBYE_S)
            client.disconnect()
        self._thread.join(CONNECT_S + GOODBYE_S)

    # ---- the connection's own thread

    def _live(self) -> None:
        spread = random.Random()  # noqa: S311 - keeps a fleet from coming back all at once
        while not self._closing.is_set():
            reason = self._connection()
            if self._closing.is_set():
                return
            retry_s = min(FIRST_RETRY_S * 2**self._tries, LONGEST_RETRY_S) * spread.uniform(0.5, 1.5)
            self._tries = min(self._tries + 1, 10)
            self._inbox.put(Disconnected(reason, retry_s))
            self._closing.wait(retry_s)

    def _connection(self) -> str:
        """One connection from beginning to end; why it ended."""
        client = self._new_client()
        self._reason, self._reported = "", False
        try:
            client.connect(self._host, self._port, KEEPALIVE_S)
            client.loop_forever()
        except (OSError, ValueError) as error:  # ValueError: paho's word for a host or packet that cannot be
            self._reason = self._reason or getattr(error, "strerror", None) or str(error)
        finally:
            with self._lock:
                self._client = None
        return f"{self._host}:{self._port}: {self._reason or 'the connection was closed'}"

    def _new_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S
        client.max_queued_messages_set(MAX_QUEUED)
        client.max_inflight_messages_set(IN_FLIGHT)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, 1, self._will.retain)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        return client

    # ---- callbacks: they put, and nothing else; their arguments are paho's

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            self._reason = f"the broker refused us: {reason}"
            client.disconnect()
            return
        with self._lock:
            self._client, patterns = client, self._patterns[:]
            if patterns:
                client.subscribe([(pattern, 1) for pattern in patterns])
        if not patterns:
            self._report()

    def _on_subscribe(self, *_arguments: Any) -> None:  # noqa: ANN401
        if not self._reported:
            self._report()

    def _report(self) -> None:
        self._reported, self._tries = True, 0
        self._inbox.put(Connected())

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self._reason = self._reason or f"the connection was lost ({str(reason).lower()})"

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:  # noqa: ANN401
        with contextlib.suppress(UnicodeDecodeError):  # a topic that is no text is none of ours
            self._inbox.put(Received(message.topic, bytes(message.payload)))
