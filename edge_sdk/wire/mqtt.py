"""paho-mqtt behind the seam: MQTT 3.1.1, clean sessions, and a connection that is made again for as long as it takes.

One thread of ours owns the socket: it turns paho's `loop()`, which paho offers for foreign event loops, and makes one
paho client per connection. What paho's own thread would do instead: end for good when a callback raises, with
`is_connected()` still true, and come back without jitter and without a word. Callbacks here only put events into the
inbox, and whatever else goes wrong is an event that says when the next attempt follows.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import urllib.parse
from typing import Any, Final

from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edge_sdk.wire.transport import Connected, Disconnected, Event, Inbox, Received, Will

PORT: Final = 1883
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})  # hosts that are this machine
KEEPALIVE_S: Final = 15  # a connection that died without a word is noticed after one to two of it
CONNECT_S: Final = 5.0  # for the broker's host to answer
RETRY_S, LONGEST_RETRY_S = 1.0, 30.0  # the waits before jitter: they double from the first to the second
LOOP_S: Final = 1.0
GOODBYE_S: Final = 2.0  # for the last words to go out
MAX_QUEUED: Final = 1000  # messages on their way out
IN_FLIGHT: Final = 64  # of them, sent and not yet acknowledged


def retry_after_s(failures: int, spread: random.Random) -> float:
    """How long to wait after so many failures in a row, from 1; half of it is chance: a fleet must not come at once."""
    longest_s = min(RETRY_S * 2.0 ** min(failures - 1, 10), LONGEST_RETRY_S)
    return spread.uniform(longest_s / 2, longest_s)


class MqttTransport:
    """A Transport over `url`, mqtt://host[:port]. Connects in the background, now and after every loss.

    Nothing outlives a connection but the subscriptions: what is published without one is dropped, and so is what was
    not yet sent or acknowledged when one was lost. The layers above ask and offer again after `Connected`.
    """

    def __init__(self, url: str, client_id: str, will: Will | None = None, *, keepalive_s: int = KEEPALIVE_S) -> None:
        """Begin to connect; that no broker is there is an event. Raises ValueError for a URL that is none of ours."""
        self._host, self._port = address(url)
        self._client_id, self._will, self._keepalive_s = client_id, will, keepalive_s
        self._inbox = Inbox()
        self._lock = threading.Lock()  # over the next two: no pattern is missed between them
        self._patterns: list[str] = []
        self._client: Client | None = None  # while connected
        self._last: MQTTMessageInfo | None = None
        self._reason, self._reported = "", False  # the network thread's own
        self._closing, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"mqtt-{client_id}", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """See Transport. Dropped without a connection, and while 1,000 messages wait already."""
        client = self._client
        if client is not None:
            self._last = client.publish(topic, payload, qos, retain)

    def subscribe(self, pattern: str) -> None:
        """See Transport."""
        with self._lock:
            if pattern in self._patterns:
                return
            self._patterns.append(pattern)
            client = self._client
        if client is not None:
            client.subscribe(pattern, 1)

    def receive(self, timeout_s: float) -> Event | None:
        """See Transport."""
        return self._inbox.get(timeout_s)

    def wake(self) -> None:
        """See Transport."""
        self._inbox.wake()

    def close(self) -> None:
        """See Transport. What was published last has a moment to go out."""
        self._closing.set()
        client, last = self._client, self._last
        if client is not None:
            if last is not None:
                with contextlib.suppress(ValueError, RuntimeError):  # it was never queued: nothing to wait for
                    last.wait_for_publish(GOODBYE_S)
            client.disconnect()
            self._thread.join(GOODBYE_S)
        self._over.set()
        self._thread.join(CONNECT_S + LOOP_S)

    # ---- the network thread

    def _live(self) -> None:
        failures, spread = 0, random.Random()  # noqa: S311 - no secret
        while not self._closing.is_set():
            began_s = time.monotonic()
            self._reason, self._reported = "", False
            self._connection()
            if self._closing.is_set():
                return
            # Only a connection that lasted ends the series: two clients of one name would else throw each other out
            # as fast as they can.
            lasted = self._reported and time.monotonic() - began_s > LONGEST_RETRY_S
            failures = 1 if lasted else failures + 1
            retry_s = retry_after_s(failures, spread)
            reason = self._reason or "the connection was closed"
            self._inbox.put(Disconnected(f"{self._host}:{self._port}: {reason}", retry_s))
            self._closing.wait(retry_s)

    def _connection(self) -> None:
        """One connection from beginning to end; `_reason` says why it ended."""
        client = self._new_client()
        try:
            client.connect(self._host, self._port, self._keepalive_s)
            while client.loop(LOOP_S) == MQTTErrorCode.MQTT_ERR_SUCCESS and not self._over.is_set():
                pass
        except Exception as error:  # noqa: BLE001 - whatever it was, it is reported and the connection is made again
            self._reason = self._reason or _why(error)
        finally:
            with self._lock:
                self._client = None
            if (left := client.socket()) is not None:
                left.close()

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
        # With this set, paho leaves all writing to `loop()`. Without, the publishing thread would write to the socket
        # beside ours, and a packet that went out in parts would have another one in the middle.
        client.on_socket_register_write = _ignore
        return client

    # ---- paho's callbacks, on the network thread: they put, and nothing else

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            self._end(client, f"the broker refused the connection: {reason}")
            return
        with self._lock:
            self._client, patterns = client, self._patterns[:]
        if patterns:
            client.subscribe([(pattern, 1) for pattern in patterns])
        else:
            self._report()

    def _on_subscribe(self, client: Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:  # noqa: ANN401
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._end(client, f"the broker refused a subscription: {refused[0]}; see its access list")
        elif not self._reported:
            self._report()

    def _report(self) -> None:
        self._reported = True
        self._inbox.put(Connected())

    def _end(self, client: Client, reason: str) -> None:
        self._reason = reason
        client.disconnect()

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if not self._reason:
            silent = str(reason) == "Keep alive timeout"
            self._reason = "the broker fell silent" if silent else "the broker closed the connection"

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:  # noqa: ANN401
        with contextlib.suppress(UnicodeDecodeError):  # a topic that is no text is none of ours
            self._inbox.put(Received(message.topic, bytes(message.payload)))


def address(url: str) -> tuple[str, int]:
    """Host and port of mqtt://host[:port], and nothing besides: what we would ignore is refused. Raises ValueError."""
    parts = urllib.parse.urlsplit(url)
    extra = (
        parts.username or parts.password or parts.path.strip("/") or parts.query or parts.fragment or parts.port == 0
    )
    if parts.scheme != "mqtt" or not parts.hostname or extra:
        msg = f"{url!r} is no broker; write mqtt://host:port"
        raise ValueError(msg)
    return parts.hostname, parts.port or PORT


def _why(error: Exception) -> str:
    """A failure in a few words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"


def _ignore(*_arguments: object) -> None:
    """The loop asks by itself whether there is something to write."""
