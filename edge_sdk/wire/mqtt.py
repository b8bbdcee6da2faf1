"""paho-mqtt behind the seam: clean sessions, and a connection that is made again for as long as it takes.

MQTT 5 where the broker has it, else 3.1.1. What 5 adds is told, never needed: how large a packet may be, why
something was refused; and the broker is told not to send us what no message of ours can be.

One thread of ours owns the socket: it waits for it, has paho read and write as paho offers it to foreign event loops,
and makes one paho client per connection. What paho's own thread would do instead: end for good when a callback raises,
with `is_connected()` still true, and come back without jitter and without a word; and what paho's `loop()` would:
lose every connection whose descriptor is above 1023, which `select` does not know, in a process with as many devices.
Callbacks here only put events into the inbox, and whatever else goes wrong is an event that says when the next attempt
follows.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_sdk.wire.endpoint import Socket, TlsFiles, address, context, why_no_tls
from edge_sdk.wire.messages import MAX_MESSAGE_BYTES
from edge_sdk.wire.transport import (
    FEW,
    MAX_PACKET_BYTES,
    MIN_PACKET_BYTES,
    PACKET_OVERHEAD_BYTES,
    Connected,
    Disconnected,
    Event,
    Inbox,
    Received,
    Will,
)

KEEPALIVE_S: Final = 15  # a connection that died without a word is noticed after one to two of it
CONNECT_S: Final = 5.0  # for the broker's host to answer
ANSWER_S: Final = 10.0  # for the broker itself
RETRY_S, LONGEST_RETRY_S = 1.0, 30.0  # the waits before jitter: they double from the first to the second
LOOP_S: Final = 1.0
GOODBYE_S: Final = 2.0  # for the last words to go out
MAX_QUEUED: Final = 1000  # messages on their way out
IN_FLIGHT: Final = 20  # of them, sent and not yet acknowledged; fewer where MQTT 5's broker says so
V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311


def retry_after_s(failures: int, spread: random.Random) -> float:
    """How long to wait after so many failures in a row, from 1; half of it is chance: a fleet must not come at once."""
    longest_s = min(RETRY_S * 2.0 ** min(failures - 1, 10), LONGEST_RETRY_S)
    return spread.uniform(longest_s / 2, longest_s)


class MqttTransport:
    """A Transport over `url`, see `endpoint`. Connects in the background, now and after every loss.

    Nothing outlives a connection but the subscriptions: what is published without one is dropped, and so is what was
    not yet sent or acknowledged when one was lost. The layers above ask and offer again after `Connected`.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        will: Will | None = None,
        *,
        tls: TlsFiles | None = None,
        user: str = "",
        max_packet_bytes: int = MAX_PACKET_BYTES,
        keepalive_s: int = KEEPALIVE_S,
        newest: MQTTProtocolVersion = V5,
    ) -> None:
        """Begin to connect; that no broker is there is an event.

        `user` is the name that a broker without certificates goes by. `max_packet_bytes` is what the broker takes,
        where it does not say so itself; `newest` the protocol to try first.

        Raises:
            ValueError: the URL is none of ours.
            SettingsError: a file of `tls` cannot be used.
        """
        self._address, self._files = address(url), tls
        self._tls = context(tls) if tls is not None else None
        self._client_id, self._user, self._will, self._keepalive_s = client_id, user, will, keepalive_s
        self._inbox = Inbox()
        self._lock = threading.Lock()  # over the next two: no pattern is missed between them
        self._patterns: list[str] = []
        self._client: Client | None = None  # while connected
        self._last: MQTTMessageInfo | None = None
        self._given, self._gone = 0, 0  # messages of this connection: written by who publishes, by the network thread
        self._configured_bytes = self._max_packet_bytes = max_packet_bytes
        self._newest = self._protocol = newest  # the network thread's own, as are the next
        self._in_flight, self._again = IN_FLIGHT, False
        self._reason, self._reported, self._answered = "", False, False
        self._closing, self._over = threading.Event(), threading.Event()
        self._roused, self._rouser = socket.socketpair()  # ends the network thread's wait: there is something to write
        for end in (self._roused, self._rouser):
            end.settimeout(0)
        self._is_roused = False
        self._thread = threading.Thread(target=self._live, name=f"mqtt-{client_id}", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """See Transport. Dropped without a connection, while 1,000 messages wait already, and over the broker's limit.

        A broker answers a packet that is too large by ending the connection: whoever asks for such chunks would
        silence us.
        """
        client = self._client
        if client is None or len(payload) + PACKET_OVERHEAD_BYTES > self._max_packet_bytes:
            return
        if qos == 0 and self.backlog >= MAX_QUEUED:  # paho bounds those alone that are acknowledged
            return
        self._last = client.publish(topic, payload, qos, retain)
        if self._last.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._given += 1
        self._rouse()

    @property
    def backlog(self) -> int:
        """See Transport. Who waits for it to become shorter is woken when FEW are left."""
        return self._given - self._gone

    def subscribe(self, pattern: str) -> None:
        """See Transport."""
        with self._lock:
            if pattern in self._patterns:
                return
            self._patterns.append(pattern)
            client = self._client
        if client is not None:
            client.subscribe(pattern, 1)
            self._rouse()

    def unsubscribe(self, pattern: str) -> None:
        """See Transport."""
        with self._lock:
            if pattern not in self._patterns:
                return
            self._patterns.remove(pattern)
            client = self._client
        if client is not None:
            client.unsubscribe(pattern)
            self._rouse()

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
            self._rouse()
            self._thread.join(GOODBYE_S)
        self._over.set()
        self._rouse()
        self._thread.join(CONNECT_S + LOOP_S)
        self._rouser.close()
        self._roused.close()

    def _rouse(self) -> None:
        """Called after there is something to write: the network thread looks for it after it takes the word back."""
        if not self._is_roused:
            self._is_roused = True
            with contextlib.suppress(OSError):  # it is closed
                self._rouser.send(b"\0")

    # ---- the network thread

    def _live(self) -> None:
        failures, spread = 0, random.Random()  # noqa: S311 - no secret
        while not self._closing.is_set():
            began_s = time.monotonic()
            self._reason, self._reported, self._again, self._answered = "", False, False, False
            self._connection()
            if self._closing.is_set():
                return
            if self._again:  # the broker is there and said how it wants to be spoken to
                continue
            # Only a connection that lasted ends the series: two clients of one name would else throw each other out
            # as fast as they can.
            lasted = self._reported and time.monotonic() - began_s > LONGEST_RETRY_S
            failures = 1 if lasted else failures + 1
            retry_s = retry_after_s(failures, spread)
            reason = self._reason or "the connection was closed"
            self._inbox.put(Disconnected(f"{self._address.host}:{self._address.port}: {reason}", retry_s))
            self._closing.wait(retry_s)

    def _connection(self) -> None:
        """One connection from beginning to end; `_reason` says why it ended."""
        client, wire = self._new_client(), None
        try:
            client.connect(self._address.host, self._address.port, self._keepalive_s, **self._connect_options())
            wire = client.socket()
            patience_s = time.monotonic() + ANSWER_S
            while self._turn(client) and not self._over.is_set():
                if not self._answered and time.monotonic() > patience_s:
                    self._reason = "it took our connection, and never answered"
                    break
            if isinstance(wire, Socket) and wire.error is not None:
                self._reason = self._why(wire.error)
            elif not self._answered:  # as some who do not know MQTT 5 do, in place of saying so
                self._protocol = V311 if self._protocol == V5 else self._newest
        except Exception as error:  # noqa: BLE001 - whatever it was, it is reported and the connection is made again
            self._reason = self._reason or self._why(error)
        finally:
            with self._lock:
                self._client = None
            if (left := client.socket()) is not None:
                left.close()

    def _turn(self, client: Client) -> bool:
        """Read and write what can be, once anything can. False when the connection is over."""
        wire = client.socket()
        if wire is None:
            return False
        waiting = select.poll()
        waiting.register(self._roused, select.POLLIN)
        waiting.register(wire, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        decrypted = isinstance(wire, ssl.SSLSocket) and wire.pending() > 0  # what no poll tells of
        ready = dict(waiting.poll(0 if decrypted else LOOP_S * 1000))
        if self._roused.fileno() in ready:
            self._roused.recv(16)
            self._is_roused = False
        readable = decrypted or ready.get(wire.fileno(), 0) & ~select.POLLOUT  # or it failed, which reading tells
        steps: list[Callable[[], MQTTErrorCode]] = [client.loop_read] if readable else []
        steps += [client.loop_write] if client.want_write() else []
        steps += [client.loop_misc]
        return all(step() == MQTTErrorCode.MQTT_ERR_SUCCESS and client.socket() is not None for step in steps)

    def _connect_options(self) -> dict[str, Any]:
        if self._protocol != V5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_MESSAGE_BYTES + PACKET_OVERHEAD_BYTES
        return {"clean_start": True, "properties": properties}

    def _new_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=self._protocol,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S
        client.max_queued_messages_set(MAX_QUEUED)
        client.max_inflight_messages_set(self._in_flight)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._user:
            client.username_pw_set(self._user)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, 1, self._will.retain)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        client.on_publish = self._on_publish
        # With this set, paho leaves all writing to `loop()`. Without, the publishing thread would write to the socket
        # beside ours, and a packet that went out in parts would have another one in the middle.
        client.on_socket_register_write = _ignore
        client.on_socket_open = _without_delay
        return client

    def _why(self, error: Exception) -> str:
        """A failure in a few words."""
        if isinstance(error, ssl.SSLError) and self._files is not None:
            return why_no_tls(error, self._address.host, self._files)
        if isinstance(error, ConnectionResetError) and self._files is not None:
            return f"{error.strerror}: does it speak TLS there? Its port is 8883, if nothing else was chosen"
        if isinstance(error, OSError):
            return error.strerror or str(error)
        return f"{type(error).__name__}: {error}"

    # ---- paho's callbacks, on the network thread: they put, and nothing else

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, said: Any) -> None:  # noqa: ANN401
        self._answered = True
        if reason.is_failure and self._protocol == V5 and str(reason) == "Unsupported protocol version":
            self._protocol, self._again = V311, True
        elif reason.is_failure:
            self._reason = f"the broker refused the connection: {reason}"
        elif (limit_bytes := getattr(said, "MaximumPacketSize", MAX_PACKET_BYTES)) < MIN_PACKET_BYTES:
            self._reason = f"the broker takes {limit_bytes} bytes at once, and must take {MIN_PACKET_BYTES}"
        elif not self._agree(said):
            self._again = True
        else:
            with self._lock:
                self._given, self._gone = 0, 0
                self._client, patterns = client, self._patterns[:]
            if patterns:
                client.subscribe([(pattern, 1) for pattern in patterns])
            else:
                self._report()
            return
        client.disconnect()

    def _agree(self, said: Properties | None) -> bool:
        """Take what MQTT 5's broker says of itself; False where that needs another connection."""
        announced_bytes = getattr(said, "MaximumPacketSize", MAX_PACKET_BYTES)
        self._max_packet_bytes = min(announced_bytes, self._configured_bytes)
        in_flight = min(getattr(said, "ReceiveMaximum", IN_FLIGHT), self._in_flight)
        agreed, self._in_flight = in_flight == self._in_flight, in_flight  # paho takes it before the connection alone
        return agreed

    def _on_subscribe(self, client: Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:  # noqa: ANN401
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._end(client, f"the broker refused a subscription: {refused[0]}; see its access list")
        elif not self._reported:
            self._report()

    def _report(self) -> None:
        self._reported = True
        self._inbox.put(Connected(self._max_packet_bytes))

    def _end(self, client: Client, reason: str) -> None:
        self._reason = reason
        client.disconnect()

    def _on_publish(self, client: Client, _data: Any, _mid: int, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self._gone += 1
        if self.backlog == FEW:
            self._inbox.wake()
        # Of 3.1.1's brokers none says so: what is not allowed is acknowledged, and gone.
        if str(reason) == "Not authorized":
            self._end(client, "the broker refused a message of ours: not authorized; see its access list")

    def _on_disconnect(self, _client: Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if self._reason:
            return
        if flags.is_disconnect_packet_from_server:
            self._reason = f"the broker ended the connection: {str(reason).lower()}"
        elif str(reason) == "Keep alive timeout":
            self._reason = "the broker fell silent"
        elif not self._answered:
            certificate = (
                "is it one of mqtts://?" if self._files is None else f"is {self._files.certificate} one of its?"
            )
            self._reason = f"the broker closed the connection without an answer: {certificate}"
        else:
            self._reason = "the broker closed the connection"

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:  # noqa: ANN401
        with contextlib.suppress(UnicodeDecodeError):  # a topic that is no text is none of ours
            self._inbox.put(Received(message.topic, bytes(message.payload)))


def _without_delay(_client: Client, _data: Any, opened: Any) -> None:  # noqa: ANN401
    """Small packets go out at once: a request for chunks would else wait for an answer to the one before it."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _ignore(*_arguments: object) -> None:
    """The loop asks by itself whether there is something to write."""
