"""The in-memory broker keeps to MQTT's rules and misbehaves no further than it was told; the inbox stays bounded."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.transport import (
    MESSAGE_BYTES,
    Connected,
    Disconnected,
    Event,
    Inbox,
    MemoryBroker,
    MemoryTransport,
    Received,
    Transport,
    Will,
    matches,
)

LEVEL = st.text("abc", min_size=0, max_size=2)
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).filter(any).map("/".join)
PROBABILITY = st.sampled_from([0.0, 0.1, 0.5, 1.0])


def drained(transport: Transport) -> list[Event]:
    """All that waits, without waiting."""
    events = []
    while (event := transport.receive(0.0)) is not None:
        events.append(event)
    return events


def payloads(transport: Transport) -> list[bytes]:
    """The payloads of all messages that wait."""
    return [event.payload for event in drained(transport) if isinstance(event, Received)]


def pair(broker: MemoryBroker) -> tuple[MemoryTransport, MemoryTransport]:
    """Who publishes, and who hears `t/#`; what happened so far is read away."""
    sender, listener = broker.connect("sender"), broker.connect("listener")
    listener.subscribe("t/#")
    drained(sender)
    drained(listener)
    return sender, listener


@pytest.mark.parametrize(
    ("pattern", "topic", "covered"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/b", "a/b", True),
        ("+", "/a", False),
        ("+/+", "/a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
    ],
)
def test_patterns_cover_what_the_standard_says(pattern: str, topic: str, *, covered: bool) -> None:
    """The examples of MQTT 3.1.1, sections 4.7.1 and 4.7.2."""
    assert matches(pattern, topic) is covered


@given(TOPIC, st.data())
def test_wildcards_only_widen(topic: str, data: st.DataObject) -> None:
    """A topic is covered by itself, by itself with any level a +, and by any of its beginnings with #."""
    levels = topic.split("/")
    at = data.draw(st.integers(0, len(levels) - 1))
    assert matches(topic, topic)
    assert matches("/".join([*levels[:at], "+", *levels[at + 1 :]]), topic)
    assert matches("/".join([*levels[:at], "#"]), topic)


def test_who_subscribed_hears_in_order_and_nobody_else_does() -> None:
    """Without misfortunes every message arrives once, in order, also at a publisher that subscribed."""
    broker = MemoryBroker()
    sender, listener = pair(broker)
    deaf = broker.connect("deaf")
    sender.subscribe("t/own")
    for k in range(10):
        sender.publish("t/own", bytes([k]))
    assert payloads(listener) == payloads(sender) == [bytes([k]) for k in range(10)]
    assert drained(deaf) == [Connected()]


def test_the_last_retained_message_waits_for_whoever_comes() -> None:
    """The last payload per topic is kept for later subscribers; an empty one clears it, and is itself delivered."""
    broker = MemoryBroker()
    sender, listener = pair(broker)
    for payload in (b"1", b"2"):
        sender.publish("t/kept", payload, retain=True)
    sender.publish("t/other", b"not kept")
    late = broker.connect("late")
    late.subscribe("t/+")
    assert drained(late) == [Connected(), Received("t/kept", b"2")]
    sender.publish("t/kept", b"", retain=True)
    assert payloads(listener) == [b"1", b"2", b"not kept", b""]
    later = broker.connect("later")
    later.subscribe("t/+")
    assert drained(later) == [Connected()]


def test_a_will_is_published_for_who_is_cut_off_and_not_for_who_closes() -> None:
    """Both leave the broker; only the one that could not say so is spoken for."""
    broker = MemoryBroker()
    _, listener = pair(broker)
    for name in ("cut", "closed"):
        client = broker.connect(name, Will(f"t/{name}", b"gone"))
        if name == "closed":
            client.close()
            client.close()
            client.publish("t/closed", b"from the grave")
    broker.drop("cut")
    assert drained(listener) == [Received("t/cut", b"gone")]
    with pytest.raises(KeyError):
        broker.drop("closed")


def test_who_was_cut_off_comes_back_with_its_subscriptions_and_without_what_was_said_meanwhile() -> None:
    """Disconnected, then Connected; retained messages come again, ordinary ones of the meantime do not."""
    broker = MemoryBroker()
    sender, listener = pair(broker)
    sender.publish("t/lost", b"under way")
    broker.drop("listener")
    sender.publish("t/lost", b"meanwhile")
    sender.publish("t/kept", b"kept", retain=True)
    listener.publish("t/kept", b"not heard", retain=True)
    assert drained(listener) == [Disconnected("the connection was cut", 0.0)]
    broker.restore("listener")
    sender.publish("t/new", b"new")
    assert drained(listener) == [Connected(), Received("t/kept", b"kept"), Received("t/new", b"new")]


def test_a_second_client_of_the_same_name_cuts_the_first_off() -> None:
    """One name, one connection: the newcomer has it, and the first one's will is published."""
    broker = MemoryBroker()
    sender, listener = pair(broker)
    first = broker.connect("twin", Will("t/twin", b"thrown out", retain=False))
    second = broker.connect("twin")
    for twin in (first, second):
        twin.subscribe("t/+")
    sender.publish("t/x", b"x")
    assert payloads(listener) == [b"thrown out", b"x"]
    assert payloads(first) == []
    assert payloads(second) == [b"x"]
    first.close()  # does not take the second one's place from it
    sender.publish("t/x", b"y")
    assert payloads(second) == [b"y"]


def test_a_broker_that_crashed_has_forgotten_everything() -> None:
    """No wills, nothing retained, nothing queued; after the restart old subscriptions work again."""
    broker = MemoryBroker()
    sender, listener = pair(broker)
    broker.connect("third", Will("t/third", b"will"))
    sender.publish("t/kept", b"kept", retain=True)
    broker.crash()
    sender.publish("t/x", b"to nobody")
    assert drained(broker.connect("early")) == [Disconnected("the broker is not there", 0.0)]
    assert drained(listener) == [Disconnected("the broker is gone", 0.0)]
    broker.restart()
    broker.restart()
    sender.publish("t/x", b"x")
    assert drained(listener) == [Connected(), Received("t/x", b"x")]


@given(st.integers(0, 1000), PROBABILITY, PROBABILITY, PROBABILITY)
def test_misfortunes_are_what_was_asked_for_and_the_same_again(
    seed: int, loss: float, duplicate: float, reorder: float
) -> None:
    """The same seed gives the same sequence; each kind of misfortune happens only where its share is above 0."""

    def heard() -> list[int]:
        sender, listener = pair(MemoryBroker(seed, loss, duplicate, reorder))
        for k in range(50):
            sender.publish("t/x", bytes([k]))
        return [payload[0] for payload in payloads(listener)]

    first = heard()
    assert heard() == first
    assert loss > 0 or set(first) == set(range(50))
    assert duplicate > 0 or len(first) == len(set(first))
    assert reorder > 0 or first == sorted(first)
    assert loss < 1 or not first
    assert all(first.count(k) <= 2 for k in set(first))


@given(st.integers(0, 1000))
def test_what_is_retained_is_never_lost_or_late(seed: int) -> None:
    """Retained messages may come twice, as they do after a reconnect, but the last one is the last one."""
    sender, listener = pair(MemoryBroker(seed, loss=1.0, duplicate=0.5, reorder=1.0))
    for k in range(20):
        sender.publish("t/x", bytes([k]), retain=True)
    heard = payloads(listener)
    assert heard == sorted(heard)
    assert set(heard) == {bytes([k]) for k in range(20)}


def test_a_wake_ends_a_wait_at_once() -> None:
    """Whether it comes during the wait or before it; and it ends one wait, not two."""
    client = MemoryBroker().connect("sleeper")
    drained(client)
    timer = threading.Timer(0.05, client.wake)
    timer.start()
    began_s = time.monotonic()
    assert client.receive(30.0) is None
    timer.join()
    client.wake()
    assert client.receive(30.0) is None
    assert time.monotonic() - began_s < 10.0
    began_s = time.monotonic()
    assert client.receive(0.05) is None
    assert time.monotonic() - began_s >= 0.05


def test_a_message_from_another_thread_ends_a_wait() -> None:
    """`receive` returns the message, long before its timeout."""
    sender, listener = pair(MemoryBroker())
    timer = threading.Timer(0.05, sender.publish, ("t/x", b"x"))
    timer.start()
    assert listener.receive(30.0) == Received("t/x", b"x")
    timer.join()


def test_threads_may_use_one_broker_at_once() -> None:
    """Four threads publish at the same time: nothing is lost, and each one's messages stay in order."""
    broker = MemoryBroker()
    _, listener = pair(broker)

    def publish(name: str) -> None:
        client = broker.connect(name)
        for k in range(500):
            client.publish(f"t/{name}", k.to_bytes(2, "big"))
        client.close()

    threads = [threading.Thread(target=publish, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = [event for event in drained(listener) if isinstance(event, Received)]
    for name in "abcd":
        of_one = [event.payload for event in heard if event.topic == f"t/{name}"]
        assert of_one == [k.to_bytes(2, "big") for k in range(500)]


@given(st.lists(st.integers(0, 2000), max_size=60))
def test_a_flood_does_not_fill_the_memory(sizes: list[int]) -> None:
    """Messages above the limit are dropped and counted; events about the connection always come through, in order."""
    inbox = Inbox(max_bytes=10_000)
    messages = [Received("t", bytes(size)) for size in sizes]
    for message in messages:
        inbox.put(message)
    inbox.put(Disconnected("lost", 1.0))
    events = []
    while (event := inbox.get(0.0)) is not None:
        events.append(event)
    assert events.pop() == Disconnected("lost", 1.0)
    assert len(events) + inbox.dropped == len(messages)
    assert sum(len(event.payload) + MESSAGE_BYTES for event in events if isinstance(event, Received)) <= 10_000
    inbox.put(Received("t", bytes(9_000)))  # what was read makes room
    assert inbox.get(0.0) == Received("t", bytes(9_000))
