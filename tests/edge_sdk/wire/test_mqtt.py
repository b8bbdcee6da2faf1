"""paho behind the seam, against real brokers that are killed, frozen and started again under it.

Promise P6: what the seam promises holds alike on Mosquitto and on amqtt, in MQTT 5 and 3.1.1 (amqtt has 3.1.1 alone).
What is our client's own affair is tested on one of them.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import MQTTProtocolVersion

from edge_sdk.wire.mqtt import IN_FLIGHT, LONGEST_RETRY_S, MAX_QUEUED, V5, V311, MqttTransport, retry_after_s
from edge_sdk.wire.transport import FEW, MAX_PACKET_BYTES, Connected, Disconnected, Event, Received, Will
from tests.brokers import Amqtt, BrokerProcess, Mosquitto

PATIENCE_S = 60.0
MANY_FILES = 1100
Connect = Callable[..., MqttTransport]


@dataclass(frozen=True, slots=True)
class Combination:
    """A running broker, and the newest protocol that clients may try."""

    broker: BrokerProcess
    newest: MQTTProtocolVersion

    @property
    def url(self) -> str:
        """Where it is."""
        return self.broker.url


@pytest.fixture(scope="module", params=["mosquitto, 5", "mosquitto, 3.1.1", "amqtt, 5 refused"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Combination]:
    """One broker for all tests of a combination."""
    folder = tmp_path_factory.mktemp("broker")
    broker: BrokerProcess = Mosquitto(folder) if "mosquitto" in request.param else Amqtt(folder)
    broker.start()
    yield Combination(broker, V311 if "3.1.1" in request.param else V5)
    broker.kill()


@pytest.fixture
def any_broker(shared: Combination) -> Combination:
    """A combination whose broker runs."""
    if shared.broker.process is None:
        shared.broker.start()
    return shared


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes transports, and closes them afterwards; none may leave a thread behind."""
    conforming = "any_broker" in request.fixturenames
    newest = request.getfixturevalue("any_broker").newest if conforming else V5
    with contextlib.ExitStack() as stack:

        def make(url: str, name: str, will: Will | None = None, **options: Any) -> MqttTransport:
            transport = MqttTransport(url, name, will, newest=newest, **options)
            stack.callback(transport.close)
            return transport

        yield make
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("mqtt-", "paho"))]


def heard(transport: MqttTransport, kind: type[Event]) -> list[Event]:
    """All events up to the first of a kind. Fails the test when it does not come."""
    events: list[Event] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        event = transport.receive(0.2)
        if event is not None:
            events.append(event)
        if isinstance(event, kind):
            return events
    pytest.fail(f"no {kind.__name__} in {PATIENCE_S:.0f} s, but {events}")


def message(transport: MqttTransport) -> Received:
    """The next event, which must be a message."""
    (event,) = heard(transport, Received)
    assert isinstance(event, Received)
    return event


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts, and makes no paths


def test_what_is_published_arrives(any_broker: Combination, connect: Connect) -> None:
    """Both qualities of service, in order, at a subscriber by wildcard; bytes are bytes."""
    listener = connect(any_broker.url, "listener")
    listener.subscribe("fleet/+/up")
    sender = connect(any_broker.url, "sender")
    for transport in (listener, sender):
        assert heard(transport, Connected) == [Connected()]
    payload = bytes(range(256))
    sender.publish("fleet/other", b"not for us")
    sender.publish("fleet/a/up", payload)
    sender.publish("fleet/b/up", b"", qos=0)
    assert message(listener) == Received("fleet/a/up", payload)
    assert message(listener) == Received("fleet/b/up", b"")
    assert listener.receive(0.2) is None


def test_a_subscription_after_the_connection_works_too(any_broker: Combination, connect: Connect) -> None:
    """And it makes no second Connected."""
    transport = connect(any_broker.url, "late")
    assert heard(transport, Connected) == [Connected()]
    transport.subscribe("t")
    transport.subscribe("t")
    transport.publish("t", b"x")
    assert message(transport) == Received("t", b"x")
    assert transport.receive(0.2) is None


def test_retained_messages_wait_and_are_cleared(any_broker: Combination, connect: Connect) -> None:
    """Who comes later gets the last one; after an empty one, nothing."""
    sender = connect(any_broker.url, "sender")
    heard(sender, Connected)
    for payload in (b"1", b"2"):
        sender.publish("kept", payload, retain=True)
    sender.close()
    second = connect(any_broker.url, "second")
    second.subscribe("kept")
    assert Received("kept", b"2") in heard(second, Received)
    second.publish("kept", b"", retain=True)
    assert Received("kept", b"") in heard(second, Received)
    third = connect(any_broker.url, "third")
    third.subscribe("kept")
    heard(third, Connected)
    assert third.receive(0.3) is None


def test_megabytes_go_both_ways_at_once(any_broker: Combination, connect: Connect) -> None:
    """Payloads of 1 MiB between small ones, while the same client receives its own: whole, in order, none lost.

    A packet this large leaves in parts; nothing else may be written to the socket between them.
    """
    listener, sender = connect(any_broker.url, "listener"), connect(any_broker.url, "sender")
    for transport in (listener, sender):
        transport.subscribe("big/+")
        heard(transport, Connected)
        transport.publish("big/ready", b"")
        assert message(transport).topic == "big/ready"  # a subscription after Connected is made by then
    assert message(listener).topic == "big/ready"
    sent = []
    for k in range(24):
        sent += [Received("big/chunk", bytes([k]) * (1 << 20)), Received("big/note", bytes([k]))]
        for each in sent[-2:]:
            sender.publish(each.topic, each.payload)
    for transport in (listener, sender):
        came = [message(transport) for _ in sent]
        assert [(one.topic, len(one.payload), one.payload[0]) for one in came] == [
            (one.topic, len(one.payload), one.payload[0]) for one in sent
        ]


def test_a_will_is_for_sockets_that_die(any_broker: Combination, connect: Connect) -> None:
    """A connection that breaks: the will, retained. One that is closed: no will, and the last words arrive."""
    listener = connect(any_broker.url, "listener")
    listener.subscribe("presence/+")
    heard(listener, Connected)
    orderly = connect(any_broker.url, "orderly", Will("presence/orderly", b"died"))
    heard(orderly, Connected)
    orderly.publish("presence/orderly", b"bye", retain=True)
    orderly.close()
    assert message(listener) == Received("presence/orderly", b"bye")
    unlucky = connect(any_broker.url, "unlucky", Will("presence/unlucky", b"died"))
    heard(unlucky, Connected)
    assert unlucky._client is not None
    wire = unlucky._client.socket()
    assert isinstance(wire, socket.socket)
    wire.shutdown(socket.SHUT_RDWR)
    assert message(listener) == Received("presence/unlucky", b"died")
    assert isinstance(heard(unlucky, Disconnected)[-1], Disconnected)
    assert heard(unlucky, Connected) == [Connected()]
    witness = connect(any_broker.url, "witness")
    witness.subscribe("presence/unlucky")
    assert Received("presence/unlucky", b"died") in heard(witness, Received)


def test_a_broker_that_was_killed_is_found_again(any_broker: Combination, connect: Connect) -> None:
    """Disconnected with a reason and a time, then Connected; subscriptions are back, what was said meanwhile is not."""
    transport = connect(any_broker.url, "steady")
    transport.subscribe("t/#")
    heard(transport, Connected)
    before = descriptors()
    for life in range(2):
        any_broker.broker.kill()
        lost = heard(transport, Disconnected)[-1]
        assert isinstance(lost, Disconnected)
        assert str(any_broker.broker.port) in lost.reason
        assert 0.5 <= lost.retry_s <= LONGEST_RETRY_S
        transport.publish("t/x", b"meanwhile")
        any_broker.broker.start()
        *_, last = heard(transport, Connected)
        assert last == Connected()
        transport.publish("t/x", bytes([life]))
        assert message(transport) == Received("t/x", bytes([life]))
    assert descriptors() == before


def test_the_newest_protocol_that_a_broker_has(any_broker: Combination, connect: Connect) -> None:
    """MQTT 5 where both may; a broker that refuses it is spoken to in 3.1.1 at once, without a Disconnected."""
    transport = connect(any_broker.url, "polyglot")
    assert heard(transport, Connected) == [Connected()]
    assert transport._client is not None
    is_five = isinstance(any_broker.broker, Mosquitto) and any_broker.newest == V5
    assert transport._client.protocol == (V5 if is_five else V311)


@pytest.mark.parametrize("newest", [V5, V311])
def test_what_a_broker_does_not_take_is_not_sent(tmp_path: pathlib.Path, newest: MQTTProtocolVersion) -> None:
    """A packet over its limit would end the connection. MQTT 5's says the limit, for 3.1.1's it is configured."""
    broker = Mosquitto(tmp_path, lines="allow_anonymous true\nmax_packet_size 20000\n")
    broker.start()
    configured = 20_000 if newest == V311 else MAX_PACKET_BYTES
    transport = MqttTransport(broker.url, "careful", newest=newest, max_packet_bytes=configured)
    try:
        transport.subscribe("t")
        assert heard(transport, Connected) == [Connected(20_000)]
        transport.publish("t", bytes(20_000))
        transport.publish("t", bytes(19_000))
        assert message(transport) == Received("t", bytes(19_000))
    finally:
        transport.close()
        broker.kill()


@pytest.mark.parametrize(("line", "words"), [("max_packet_size 10000", "10000 bytes at once, and must take 16384")])
def test_a_broker_that_takes_too_little_is_said(tmp_path: pathlib.Path, line: str, words: str) -> None:
    """Where not even our shortest chunks pass, no Connected comes."""
    broker = Mosquitto(tmp_path, lines=f"allow_anonymous true\n{line}\n")
    broker.start()
    transport = MqttTransport(broker.url, "large")
    try:
        event = transport.receive(PATIENCE_S)
        assert isinstance(event, Disconnected)
        assert words in event.reason
    finally:
        transport.close()
        broker.kill()


def test_a_broker_that_takes_few_at_once_gets_few_at_once(tmp_path: pathlib.Path) -> None:
    """Its Receive Maximum is kept, though 3 is less than what every broker takes; all that is sent arrives."""
    broker = Mosquitto(tmp_path, lines="allow_anonymous true\nmax_inflight_messages 3\n")
    broker.start()
    transport = MqttTransport(broker.url, "modest")
    try:
        transport.subscribe("t")
        assert heard(transport, Connected) == [Connected()]
        assert transport._client is not None
        assert transport._client.max_inflight_messages == 3 < IN_FLIGHT
        for k in range(100):
            transport.publish("t", bytes([k]))
        assert [message(transport).payload for _ in range(100)] == [bytes([k]) for k in range(100)]
    finally:
        transport.close()
        broker.kill()


def test_a_message_that_is_not_allowed_is_said(tmp_path: pathlib.Path) -> None:
    """By MQTT 5's broker, which does not just drop it: the connection ends with the reason, and is made again."""
    (tmp_path / "acl").write_text("topic readwrite allowed\n")
    broker = Mosquitto(tmp_path, lines=f"allow_anonymous true\nacl_file {tmp_path / 'acl'}\n")
    broker.start()
    transport = MqttTransport(broker.url, "bold")
    try:
        transport.subscribe("allowed")
        heard(transport, Connected)
        transport.publish("allowed", b"x")
        assert message(transport) == Received("allowed", b"x")
        transport.publish("forbidden", b"x")
        lost = heard(transport, Disconnected)[-1]
        assert isinstance(lost, Disconnected)
        assert "refused a message of ours: not authorized" in lost.reason
        heard(transport, Connected)
    finally:
        transport.close()
        broker.kill()


def test_a_broker_that_comes_late_is_found(mosquitto: Mosquitto, connect: Connect) -> None:
    """Without one the constructor returns at once, every attempt is an event, and messages to nobody do no harm."""
    mosquitto.kill()
    began_s = time.monotonic()
    transport = connect(mosquitto.url, "early")
    transport.subscribe("t")
    transport.publish("t", b"to nobody")
    assert time.monotonic() - began_s < 5  # an attempt that is waited for takes longer than this
    for _ in range(2):
        (event,) = heard(transport, Disconnected)
        assert isinstance(event, Disconnected)
        assert "refused" in event.reason.lower()
    mosquitto.start()
    assert heard(transport, Connected)[-1] == Connected()
    assert transport.receive(0.2) is None


def test_a_broker_that_falls_silent_is_noticed(mosquitto: Mosquitto, connect: Connect) -> None:
    """The connection stays open and nothing comes: after the keepalive, twice over, it counts as lost."""
    assert mosquitto.process is not None
    transport = connect(mosquitto.url, "patient", keepalive_s=1)
    transport.subscribe("t")
    heard(transport, Connected)
    began_s = time.monotonic()
    mosquitto.process.send_signal(signal.SIGSTOP)
    try:
        lost = heard(transport, Disconnected)[-1]
        assert time.monotonic() - began_s < 30
        assert isinstance(lost, Disconnected)
        assert "silent" in lost.reason
    finally:
        mosquitto.process.send_signal(signal.SIGCONT)
    heard(transport, Connected)
    transport.publish("t", b"again")
    assert message(transport) == Received("t", b"again")


def test_publishing_never_blocks_and_its_queue_is_bounded(mosquitto: Mosquitto, connect: Connect) -> None:
    """To a broker that takes nothing: more than the queue holds is dropped, and the caller does not wait."""
    assert mosquitto.process is not None
    transport = connect(mosquitto.url, "eager")
    heard(transport, Connected)
    mosquitto.process.send_signal(signal.SIGSTOP)
    try:
        payload = bytes(100_000)
        began_s = time.monotonic()
        for _ in range(2 * MAX_QUEUED):
            transport.publish("t", payload)
        assert time.monotonic() - began_s < 5.0
        assert transport._client is not None
        assert len(transport._client._out_messages) == MAX_QUEUED
        began_s = time.monotonic()
        transport.close()
        assert time.monotonic() - began_s < 30
    finally:
        mosquitto.process.send_signal(signal.SIGCONT)


def test_what_is_not_acknowledged_is_bounded_too(mosquitto: Mosquitto, connect: Connect) -> None:
    """Chunks go without an acknowledgement: who sends them sees how many wait, and is woken when few do."""
    assert mosquitto.process is not None
    transport = connect(mosquitto.url, "sender")
    heard(transport, Connected)
    mosquitto.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(2 * MAX_QUEUED):
            transport.publish("t", bytes(100_000), qos=0)
        assert MAX_QUEUED >= transport.backlog > FEW
    finally:
        mosquitto.process.send_signal(signal.SIGCONT)
    deadline_s = time.monotonic() + PATIENCE_S
    while transport.backlog and time.monotonic() < deadline_s:
        transport.receive(0.1)
    assert transport.backlog == 0


@contextlib.contextmanager
def _refusing(connack: int, suback: int, asked: threading.Event) -> Iterator[str]:
    """A broker of MQTT 3.1.1 alone that gives every connection these return codes (sections 3.2 and 3.9), once `asked`
    is set: who is let in before there is anything to subscribe to is connected.
    """
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = door.accept()
                    with client, client.makefile("rb") as packets:
                        level = packets.read(packets.read(2)[1])[6]
                        asked.wait(PATIENCE_S)
                        client.sendall(bytes([0x20, 2, 0, connack if level == 4 else 1]))
                        if subscribe := packets.read(2):  # nothing comes from one that was not let in
                            client.sendall(bytes([0x90, 3, *packets.read(subscribe[1])[:2], suback]))
                        packets.read()

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        try:
            yield f"mqtt://127.0.0.1:{door.getsockname()[1]}"
        finally:
            door.shutdown(socket.SHUT_RDWR)
    server.join()


@pytest.mark.parametrize(
    ("connack", "suback", "words"), [(5, 0, "connection: not authorized"), (0, 0x80, "subscription: unspecified")]
)
def test_who_is_refused_is_told(connect: Connect, connack: int, suback: int, words: str) -> None:
    """A broker that does not let us in, or not hear, is there, and yet no Connected comes: the reason says why."""
    asked = threading.Event()
    with _refusing(connack, suback, asked) as url:
        transport = connect(url, "stranger")
        transport.subscribe("secret")
        asked.set()
        for _ in range(2):
            event = transport.receive(PATIENCE_S)
            assert isinstance(event, Disconnected)
            assert words in event.reason.lower()
        transport.close()


def test_a_descriptor_beyond_what_select_knows(mosquitto: Mosquitto, connect: Connect) -> None:
    """A process with more than a thousand open files, as one with as many devices, hears and says all the same."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], MANY_FILES + 100), limits[1]))
    with contextlib.ExitStack() as files:
        try:
            for _ in range(MANY_FILES):
                files.enter_context(pathlib.Path(os.devnull).open())
            transport = connect(mosquitto.url, "late")
            transport.subscribe("a")
            heard(transport, Connected)
            transport.publish("a", b"said")
            assert heard(transport, Received)[-1] == Received("a", b"said")
            transport.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_two_of_one_name_throw_each_other_out_ever_more_slowly(any_broker: Combination, connect: Connect) -> None:
    """The one that is thrown out waits longer each time: a short connection does not count as success."""
    first = connect(any_broker.url, "twin")
    heard(first, Connected)  # amqtt lets both in that come in the same moment
    connect(any_broker.url, "twin")
    waits = []
    for _ in range(2):
        event = heard(first, Disconnected)[-1]
        assert isinstance(event, Disconnected)
        waits.append(event.retry_s)
    assert waits[0] <= 1.0 <= waits[1]


@pytest.mark.parametrize("there", [True, False])
def test_closing_is_quick_and_leaves_nothing(mosquitto: Mosquitto, connect: Connect, *, there: bool) -> None:
    """Connected, or waiting for the next attempt: no thread, no socket is left, and closing again is no error."""
    before = descriptors()
    if not there:
        mosquitto.kill()
    transport = connect(mosquitto.url, "brief")
    heard(transport, Connected if there else Disconnected)
    began_s = time.monotonic()
    transport.close()
    assert time.monotonic() - began_s < PATIENCE_S
    assert not transport._thread.is_alive()
    transport.close()
    transport.publish("t", b"nobody")
    assert descriptors() == before


def test_a_wake_ends_a_wait(mosquitto: Mosquitto, connect: Connect) -> None:
    """From another thread, at once."""
    transport = connect(mosquitto.url, "sleeper")
    heard(transport, Connected)
    timer = threading.Timer(0.05, transport.wake)
    timer.start()
    began_s = time.monotonic()
    assert transport.receive(2 * PATIENCE_S) is None
    assert time.monotonic() - began_s < PATIENCE_S
    timer.join()


@pytest.mark.parametrize(
    "url", ["", "localhost:1883", "http://host", "mqtt://", "mqtt://host/x", "mqtt://me:secret@host", "mqtt://host:x"]
)
def test_a_url_that_is_none_of_ours_is_refused(url: str) -> None:
    """What would be ignored (a path, a password) is refused, not dropped; and no thread is started."""
    with pytest.raises(ValueError, match=r"mqtt://host:port|[Pp]ort"):
        MqttTransport(url, "nobody")


@given(st.integers(1, 10**6), st.integers())
def test_waits_grow_and_stay_in_bounds(failures: int, seed: int) -> None:
    """Between half a second and the longest; half of each wait is certain and half is chance."""
    wait_s = retry_after_s(failures, random.Random(seed))  # noqa: S311 - no secret
    assert 0.5 <= wait_s <= LONGEST_RETRY_S
    assert wait_s <= 2.0 ** (failures - 1) if failures < 10 else wait_s >= LONGEST_RETRY_S / 2
