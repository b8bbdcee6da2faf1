"""Devices get what they asked for, each its turn, and none can make the coordinator work for it without bound."""

from __future__ import annotations

import math
import os
import pathlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.pace import BURST_S, Pace
from coordinator.publisher import AT_ONCE, MAX_BLOBS, Publisher
from edge_sdk.wire.blobs import Blob, BlobStore, blob_of
from edge_sdk.wire.chunks import Download, read_chunk
from edge_sdk.wire.messages import MAX_WINDOW, Chunk, ChunkRequest, RefusalReason, TransferRefused
from tests.edge_sdk.wire.lines import SIZE, content

COUNT = 70  # chunks of each blob
BLOBS = [content(SIZE * COUNT, seed) for seed in range(12)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    """A store of a few blobs."""
    made = BlobStore(tmp_path_factory.mktemp("store"))
    for blob in BLOBS:
        made.put(blob)
    return made


def ask(k: int, *indices: int, chunk_bytes: int = SIZE) -> ChunkRequest:
    """A request for these chunks of the k-th blob."""
    first = min(indices)
    missing = sum(1 << (index - first) for index in indices).to_bytes(COUNT, "little")
    return ChunkRequest(blob_of(BLOBS[k]).sha256, chunk_bytes, first, missing, min(len(indices), MAX_WINDOW))


def drained(publisher: Publisher) -> list[tuple[str, Chunk | TransferRefused]]:
    """All that waits, turn by turn; no turn gives more than it should."""
    sent: list[tuple[str, Chunk | TransferRefused]] = []
    while publisher.wait_s(0.0) == 0:
        turn = list(publisher.next_chunks(0.0))
        assert 0 < len(turn) <= AT_ONCE
        sent += turn
    assert list(publisher.next_chunks(0.0)) == []
    return sent


def indices_of(sent: list[tuple[str, Chunk | TransferRefused]]) -> list[int]:
    """The chunks' places, in order."""
    return [message.index for _, message in sent if isinstance(message, Chunk)]


def test_what_is_asked_for_is_sent(store: BlobStore) -> None:
    """The chunks are the file's, in order, to the one who asked; nothing is left afterwards."""
    publisher = Publisher(store, Pace())
    assert publisher.wait_s(0.0) == math.inf
    assert publisher.asked("d", ask(0, 3, 5, 29), 0.0) is None
    blob = blob_of(BLOBS[0])
    assert drained(publisher) == [("d", read_chunk(store, blob, SIZE, index)) for index in (3, 5, 29)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, len(BLOBS) - 1), st.sets(st.integers(0, COUNT + 5)))))
def test_no_device_has_more_than_a_window_of_a_blob_waiting(
    store: BlobStore, requests: list[tuple[str, int, set[int]]]
) -> None:
    """However much is asked, and however often, each chunk waits once, and only those that exist and were asked for."""
    publisher = Publisher(store, Pace())
    asked: set[tuple[str, str, int]] = set()
    for device, k, indices in requests:
        if indices:
            request = ask(k, *indices)
            assert publisher.asked(device, request, 0.0) is None
            asked |= {(device, request.blob, index) for index in indices}
    sent = [(device, chunk.blob, chunk.index) for device, chunk in drained(publisher) if isinstance(chunk, Chunk)]
    per_blob = Counter((device, blob) for device, blob, _ in sent)
    assert len(sent) == len(set(sent))
    assert set(sent) <= {(device, blob, index) for device, blob, index in asked if index < COUNT}
    assert all(count <= MAX_WINDOW for count in per_blob.values())
    assert all(count <= MAX_BLOBS for count in Counter(device for device, _ in per_blob).values())


def test_asking_again_adds_nothing(store: BlobStore) -> None:
    """A repeated request, as after a lost answer, is one request."""
    publisher = Publisher(store, Pace())
    for _ in range(5):
        publisher.asked("d", ask(0, 1, 2, 3), 0.0)
    assert indices_of(drained(publisher)) == [1, 2, 3]


def test_what_was_asked_before_is_kept_where_a_window_has_room(store: BlobStore) -> None:
    """Half a window ahead loses nothing; a device that was started anew gets what it asks for now."""
    publisher = Publisher(store, Pace())
    publisher.asked("d", ask(0, *range(4)), 0.0)
    publisher.asked("d", ask(0, *range(4, 8)), 0.0)
    assert indices_of(drained(publisher)) == list(range(8))
    publisher.asked("d", ask(0, *range(MAX_WINDOW)), 0.0)
    publisher.asked("d", ask(0, *range(MAX_WINDOW, 2 * MAX_WINDOW)), 0.0)
    assert indices_of(drained(publisher)) == list(range(MAX_WINDOW, 2 * MAX_WINDOW))
    publisher.asked("d", ask(0, 0, 1), 0.0)
    publisher.asked("d", ask(0, 2, chunk_bytes=2 * SIZE), 0.0)
    assert [len(chunk.data) for _, chunk in drained(publisher) if isinstance(chunk, Chunk)] == [2 * SIZE]


def test_devices_take_turns(store: BlobStore) -> None:
    """A device that wants one chunk waits for one chunk of each other, not for all that they want."""
    publisher = Publisher(store, Pace())
    for k in range(MAX_BLOBS):
        publisher.asked("greedy", ask(k, *range(8)), 0.0)
    for device in ("small", "tiny"):
        publisher.asked(device, ask(0, 0), 0.0)
    assert [device for device, _ in drained(publisher)][:4] == ["greedy", "small", "tiny", "greedy"]


def test_a_device_s_blobs_take_turns(store: BlobStore) -> None:
    """Downloads side by side all advance: none waits so long that it is asked for again."""
    publisher = Publisher(store, Pace())
    for k in range(3):
        publisher.asked("d", ask(k, *range(8)), 0.0)
    order = [chunk.blob for _, chunk in drained(publisher) if isinstance(chunk, Chunk)]
    assert all(len(set(order[begin : begin + 3])) == 3 for begin in range(0, 24, 3))


def test_a_device_waits_for_a_few_blobs_at_a_time(store: BlobStore) -> None:
    """One blob too many is not served now, and is when it is asked for again; those that wait are not disturbed."""
    publisher = Publisher(store, Pace())
    for _ in range(2):
        for k in range(MAX_BLOBS + 1):
            assert publisher.asked("d", ask(k, 0), 0.0) is None
    sent = [chunk.blob for _, chunk in drained(publisher)]
    assert sent == [blob_of(BLOBS[k]).sha256 for k in range(MAX_BLOBS)]
    publisher.asked("d", ask(MAX_BLOBS, 0), 0.0)
    assert indices_of(drained(publisher)) == [0]


def test_what_is_not_here_is_refused(store: BlobStore) -> None:
    """An unknown blob is an answer at once; a request past the blob's end asks for nothing."""
    publisher, unknown = Publisher(store, Pace()), blob_of(b"unknown").sha256
    refusal = publisher.asked("d", ChunkRequest(unknown, SIZE, 0, b"\x01", 1), 0.0)
    assert refusal == TransferRefused(unknown, RefusalReason.UNKNOWN_BLOB)
    assert publisher.asked("d", ask(0, COUNT), 0.0) is None
    assert publisher.wait_s(0.0) == math.inf


def test_a_file_that_goes_or_is_cut_is_refused_once(tmp_path: pathlib.Path) -> None:
    """What cannot be read is refused instead of sent, its other chunks are dropped, and the rest goes on."""
    store = BlobStore(tmp_path)
    blobs = [store.put(BLOBS[k]) for k in range(3)]
    publisher = Publisher(store, Pace())
    for k in range(3):
        publisher.asked("d", ask(k, 20, 21), 0.0)
    store.remove(blobs[0].sha256)
    os.truncate(store.path(blobs[1].sha256), SIZE)
    sent = drained(publisher)
    assert [message for _, message in sent if isinstance(message, TransferRefused)] == [
        TransferRefused(blobs[0].sha256, RefusalReason.UNKNOWN_BLOB),
        TransferRefused(blobs[1].sha256, RefusalReason.CORRUPT),
    ]
    assert indices_of(sent) == [20, 21]


def test_bytes_are_counted_by_device(store: BlobStore) -> None:
    """What was sent to each since the last time; refusals count nothing."""
    publisher = Publisher(store, Pace())
    publisher.asked("a", ask(0, 0, 1), 0.0)
    publisher.asked("b", ask(0, 0), 0.0)
    drained(publisher)
    assert publisher.take_sent_bytes() == {"a": 2 * SIZE, "b": SIZE}
    assert publisher.take_sent_bytes() == {}


@given(st.permutations(range(4)), st.integers(0, 1 << 20))
@settings(max_examples=20)
def test_downloads_side_by_side_receive_each_byte_once(
    tmp_path_factory: pytest.TempPathFactory, store: BlobStore, order: list[int], seed: int
) -> None:
    """Real downloads of several devices, through one publisher: all end, and nothing is sent twice."""
    folder, publisher = tmp_path_factory.mktemp("devices"), Publisher(store, Pace())
    running: dict[tuple[str, str], Download] = {}
    for device in ("a", "b"):
        for k in order[:3]:
            blob = blob_of(BLOBS[k])
            into = BlobStore(folder / device)
            running[device, blob.sha256] = Download(into, blob, 0.0, seed, chunk_bytes=SIZE)
    waiting = dict(running)
    while waiting:
        for (device, _), download in running.items():
            if request := download.poll(0.0):
                assert publisher.asked(device, request, 0.0) is None
        for device, message in publisher.next_chunks(0.0):
            assert isinstance(message, Chunk)
            if running[device, message.blob].take(message, 0.0):
                del waiting[device, message.blob]
    assert publisher.take_sent_bytes() == dict.fromkeys("ab", 3 * SIZE * COUNT)
    for device, sha256 in running:
        BlobStore(folder / device).verify(Blob(sha256, SIZE * COUNT))


def sent_in(publisher: Publisher, demand: dict[str, int], seconds: float) -> dict[str, int]:
    """The bytes that each device got in so long, of those that always ask for more of a blob, one each."""
    step_s, now_s = SIZE / 1e6, 0.0
    for _ in range(int(seconds / step_s)):
        for device, k in demand.items():
            publisher.asked(device, ask(k, *range(MAX_WINDOW)), 0.0)
        list(publisher.next_chunks(now_s))
        now_s += step_s
    return publisher.take_sent_bytes()


def test_devices_share_a_rate_evenly(store: BlobStore) -> None:
    """Of a rate for all, each gets as much as another, and all together what was allowed."""
    sent = sent_in(Publisher(store, Pace(all_bytes_s=2e5)), {"a": 0, "b": 1, "c": 2}, 10.0)
    assert max(sent.values()) - min(sent.values()) <= SIZE
    assert sum(sent.values()) == pytest.approx(2e5 * (10.0 + BURST_S), rel=0.02)


def test_a_slowed_device_costs_the_others_nothing(store: BlobStore) -> None:
    """One has a rate of its own; what it may not have, the others get."""
    pace = Pace(all_bytes_s=3e5)
    pace.limit("slow", 2e4, 0.0)
    sent = sent_in(Publisher(store, pace), {"slow": 0, "fast": 1}, 10.0)
    assert sent["slow"] == pytest.approx(2e4 * (10.0 + BURST_S), rel=0.05)
    assert sum(sent.values()) == pytest.approx(3e5 * (10.0 + BURST_S), rel=0.02)


def test_who_waits_knows_how_long(store: BlobStore) -> None:
    """After what was saved up has gone, the next chunk is due when the last one's time is over."""
    publisher = Publisher(store, Pace(device_bytes_s=SIZE))
    publisher.asked("d", ask(0, *range(4)), 0.0)
    assert indices_of(list(publisher.next_chunks(100.0))) == [0, 1]
    assert publisher.wait_s(100.25) == pytest.approx(0.75)
    assert list(publisher.next_chunks(100.75)) == []
    assert indices_of(list(publisher.next_chunks(101.0))) == [2]
