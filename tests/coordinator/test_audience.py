"""What several devices want at a time goes to all of them once; and who asks wildly gains nothing by it."""

from __future__ import annotations

import pathlib
import random
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.audience import RECENT_S, REPEAT_S, Audience, Way
from coordinator.pace import Pace
from coordinator.publisher import ALL, Publisher
from edge_sdk.ear import Ear
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.chunks import FIRST_WAIT_S, Download
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import CHUNK_BYTES, Chunk, ChunkRequest, decode_message, encode_message, quality
from edge_sdk.wire.mqtt import MqttTransport
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import Connected, MemoryBroker, Received
from tests.brokers import Mosquitto
from tests.edge_sdk.wire.lines import SIZE, content

PATIENCE_S = 60.0
COUNT = 120
TOPICS = Topics("garden")


def test_one_alone_has_no_audience() -> None:
    """A device that nobody else is like gets its chunks itself; so it does once the others asked for long no more."""
    audience = Audience()
    audience.asked("a", SIZE, 0.0)
    assert audience.way("a", 0, 0.0) is Way.ALONE
    audience.asked("b", SIZE, 1.0)
    assert audience.way("a", 1, 1.0) is Way.ALL
    audience.asked("a", SIZE, 2 + RECENT_S)
    assert audience.way("a", 2, 2 + RECENT_S) is Way.ALONE
    assert not audience.is_over(3 + RECENT_S)
    assert audience.is_over(3 + 2 * RECENT_S)


def test_what_was_lost_or_missed_comes_alone() -> None:
    """A chunk that went to all is under way to those who had asked; later it is repaired, never said to all again."""
    audience = Audience()
    audience.asked("a", SIZE, 0.0)
    audience.asked("b", SIZE, 0.0)
    assert audience.way("a", 5, 0.1) is Way.ALL
    assert audience.way("b", 5, 0.2) is Way.CAME
    audience.asked("late", SIZE, 0.3)
    assert audience.way("late", 5, 0.3) is Way.ALONE
    assert REPEAT_S < FIRST_WAIT_S
    assert audience.way("b", 5, 0.1 + FIRST_WAIT_S) is Way.ALONE
    audience.asked("other", 2 * SIZE, 0.3)
    assert audience.way("other", 5, 0.3) is Way.ALONE


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.floats(0, 5)), max_size=80))
def test_no_chunk_goes_to_all_twice(asked: list[tuple[str, int, float]]) -> None:
    """However wildly some of them ask, nobody hears a chunk more than once that it did not ask for itself."""
    audience, now_s, to_all = Audience(), 0.0, Counter[int]()
    for device, index, pause_s in asked:
        now_s += pause_s
        audience.asked(device, SIZE, now_s)
        to_all[index] += audience.way(device, index, now_s) is Way.ALL
    assert all(count <= 1 for count in to_all.values())


def test_a_fleet_in_memory_loses_some(tmp_path: pathlib.Path) -> None:
    """Devices that lose a fifth of what goes to all have the blob in the end, and far fewer bytes were sent than to
    each of them.
    """
    source, now_s, lots = BlobStore(tmp_path / "source"), 0.0, random.Random(1)  # noqa: S311 - repeatable on purpose
    blob = source.put(content(COUNT * SIZE))
    publisher = Publisher(source, Pace(), broadcast=True)
    targets = {name: BlobStore(tmp_path / name) for name in "abcde"}
    downloads = {name: Download(target, blob, 0.0, 0, chunk_bytes=SIZE) for name, target in targets.items()}
    while downloads:
        now_s += 0.05
        for name, download in downloads.items():
            if request := download.poll(now_s):
                assert publisher.asked(name, request, now_s) is None
        for device, chunk in publisher.next_chunks(now_s):
            assert isinstance(chunk, Chunk)
            for name in [name for name in downloads if device in {ALL, name}]:
                if (device == name or lots.random() > 0.2) and downloads[name].take(chunk, now_s):
                    del downloads[name]
    for target in targets.values():
        target.verify(blob)
    assert sum(publisher.take_sent_bytes().values()) < 2.5 * blob.size_bytes


class _Device(threading.Thread):
    """Pulls one blob, and hears what is said to all."""

    def __init__(self, name: str, url: str, folder: pathlib.Path, blob: Blob, ready: threading.Barrier) -> None:
        super().__init__(daemon=True)
        self.transport = MqttTransport(url, name, user=name)
        self.store, self.blob, self.device, self.ready = BlobStore(folder), blob, name, ready
        self.from_all = 0

    def run(self) -> None:
        ear, now_s = Ear(self.transport, TOPICS), time.monotonic()
        self.transport.subscribe(TOPICS.down(self.device))
        while not isinstance(self.transport.receive(PATIENCE_S), Connected):
            pass
        download = Download(self.store, self.blob, now_s, 0)
        ear.follow(frozenset({self.blob.sha256}))
        self.ready.wait(PATIENCE_S)
        while True:
            if request := download.poll(time.monotonic()):
                self.transport.publish(TOPICS.up(self.device), encode_message(request))
            happened = self.transport.receive(0.1)
            if isinstance(happened, Received):
                chunk = ear.chunk(happened)
                self.from_all += chunk is not None
                found = chunk or decode_message(happened.payload)
                assert isinstance(found, Chunk)
                if download.take(found, time.monotonic()):
                    return


def test_four_devices_and_a_real_broker(tmp_path: pathlib.Path) -> None:
    """Each has the blob, by far the most of it as it went to all; the coordinator sent less than to two of them."""
    broker = Mosquitto(tmp_path)
    broker.start()
    coordinator = MqttTransport(broker.url, "coordinator")
    source = BlobStore(tmp_path / "source")
    blob = source.put(content(COUNT * CHUNK_BYTES))
    publisher, ready = Publisher(source, Pace(), broadcast=True), threading.Barrier(4)
    devices = [_Device(name, broker.url, tmp_path / name, blob, ready) for name in "abcd"]
    try:
        coordinator.subscribe(TOPICS.up("+"))
        while not isinstance(coordinator.receive(PATIENCE_S), Connected):
            pass
        for device in devices:
            device.start()
        until_s = time.monotonic() + PATIENCE_S
        while any(device.is_alive() for device in devices) and time.monotonic() < until_s:
            happened = coordinator.receive(min(publisher.wait_s(time.monotonic()), 0.05))
            if isinstance(happened, Received):
                request = decode_message(happened.payload)
                assert isinstance(request, ChunkRequest)
                publisher.asked(TOPICS.last_level(happened.topic), request, time.monotonic())
            for name, chunk in publisher.next_chunks(time.monotonic()):
                topic = TOPICS.all(blob.sha256) if name == ALL else TOPICS.down(name)
                coordinator.publish(topic, encode_message(chunk), qos=quality(chunk))
        for device in devices:
            device.store.verify(blob)
            assert device.from_all > COUNT // 2
        assert sum(publisher.take_sent_bytes().values()) < 2 * blob.size_bytes
    finally:
        for transport in (coordinator, *(device.transport for device in devices)):
            transport.close()
        broker.kill()


@pytest.mark.parametrize("payload", [b"", b"\xc9", b"\x80", encode_message(Chunk("cd" * 32, SIZE, 0, 0, b"data"))])
def test_what_is_no_chunk_of_the_topic_s_blob_is_refused(payload: bytes) -> None:
    """Nothing but chunks is said to all, of the blob that the topic names; other topics are not the ear's."""
    ear = Ear(MemoryBroker().connect("a"), TOPICS)
    with pytest.raises(WireError):
        ear.chunk(Received(TOPICS.all("ab" * 32), payload))
    assert ear.chunk(Received(TOPICS.down("a"), payload)) is None


def test_it_hears_of_what_is_on_its_way_alone() -> None:
    """A blob that came, or is wanted no more, is not listened for: others may go on with it."""
    broker = MemoryBroker()
    transport, coordinator = broker.connect("a"), broker.connect("coordinator")
    ear, heard = Ear(transport, TOPICS), []
    for followed in ({"ab" * 32}, {"ab" * 32, "cd" * 32}, {"cd" * 32}, set[str]()):
        ear.follow(frozenset(followed))
        for sha256 in ("ab" * 32, "cd" * 32):
            coordinator.publish(TOPICS.all(sha256), encode_message(Chunk(sha256, SIZE, 0, 0, b"")))
        chunks = [
            ear.chunk(event) for event in iter(lambda: transport.receive(0.0), None) if isinstance(event, Received)
        ]
        heard.append({chunk.blob for chunk in chunks if chunk is not None} == followed)
    assert heard == [True] * 4
