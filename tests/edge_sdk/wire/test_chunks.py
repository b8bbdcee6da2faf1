"""Whatever a network does to chunks: the blob arrives as it is, or not at all, and little is asked for twice."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import tracemalloc
import zlib
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.blobs import Blob, BlobStore, blob_of, blob_of_file
from edge_sdk.wire.chunks import LONGEST_WAIT_S, RESTARTS, WINDOW, Download, chunk_bytes_within, read_chunk, requested
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.hashing import Hasher
from edge_sdk.wire.messages import CHUNK_BYTES, MAX_WINDOW, Chunk, ChunkRequest, encode_message
from edge_sdk.wire.partial import chunk_count
from edge_sdk.wire.transport import MAX_PACKET_BYTES, MIN_PACKET_BYTES, PACKET_OVERHEAD_BYTES
from tests.edge_sdk.wire.lines import SIZE, Fate, Line, below, content, line, through_the_wire
from tests.edge_sdk.wire.strategies import CHUNK_REQUESTS

SIZES = st.sampled_from([0, 1, SIZE - 1, SIZE, SIZE + 1, 9 * SIZE, 20 * SIZE + 7])


@given(SIZES, st.lists(st.sampled_from(Fate), max_size=60))
def test_whatever_the_line_does_the_blob_arrives(size_bytes: int, fates: list[Fate]) -> None:
    """Loss, repetition, damage and overtaking cost time; the bytes are exact, and nothing else is left behind.

    What was damaged or cut is found out chunk by chunk: the blob never has to begin anew.
    """
    with line(fates) as this:
        blob = this.source.put(content(size_bytes))
        download = this.begin(blob)
        while not this.turn(download, blob):
            pass
        download.close()
        assert download._restarts == 0
        assert this.target.read(blob) == content(size_bytes)
        assert below(this.target.folder) == [this.target.path(blob.sha256)]
        assert download.missing_bytes == 0
        assert download.poll(this.now_s + 1000) is None


@given(st.integers(MIN_PACKET_BYTES, MAX_PACKET_BYTES) | st.integers(MIN_PACKET_BYTES, 1 << 19))
def test_chunks_fit_into_the_brokers_packets(max_packet_bytes: int) -> None:
    """With all that a message has beside them; and are no shorter than that asks for."""
    chunk_bytes = chunk_bytes_within(max_packet_bytes)
    assert 1024 <= chunk_bytes <= CHUNK_BYTES
    message = encode_message(Chunk("ab" * 32, chunk_bytes, 1 << 40, (1 << 32) - 1, bytes(chunk_bytes)))
    assert len(message) + PACKET_OVERHEAD_BYTES <= max_packet_bytes
    assert chunk_bytes == CHUNK_BYTES or max_packet_bytes - chunk_bytes < 6 * 1024


@given(SIZES, st.integers(1, 8))
def test_on_a_good_line_nothing_is_asked_for_twice(size_bytes: int, window: int) -> None:
    """Every chunk is asked for once, at most a window ahead of what arrived, whatever order chunks come in."""
    with line([Fate.ARRIVES, Fate.OVERTAKEN] * 20) as this:
        blob = this.source.put(content(size_bytes))
        download = Download(this.target, blob, 0.0, 0, chunk_bytes=SIZE, window=window)
        while not this.turn(download, blob):
            assert len(this.under_way) < window
        assert sorted(this.asked) == list(range(chunk_count(size_bytes, SIZE)))
        assert (download.received_bytes, download.rejected) == (size_bytes, 0)


def test_requests_are_few_and_the_sender_is_never_idle() -> None:
    """A request goes out for each half window, while the other half is still on its way."""
    with line() as this:
        blob, requests = this.source.put(content(80 * SIZE)), 0
        download, done = this.begin(blob), False
        while not done:
            before = len(this.asked)
            done = this.turn(download, blob)
            requests += len(this.asked) > before
            assert len(this.under_way) >= 3 or len(this.asked) == 80
        assert requests == 1 + (80 - 8) // 4


@pytest.mark.parametrize(("chunks_s", "ahead"), [(20, WINDOW), (200, 20), (100_000, MAX_WINDOW)])
def test_more_is_asked_for_ahead_where_more_comes(tmp_path: pathlib.Path, chunks_s: float, ahead: int) -> None:
    """A tenth of a second's worth, within bounds; so a slow line's broker has little of it to hold."""
    source, under_way, now_s = BlobStore(tmp_path / "source"), deque[int](), 0.0
    blob = source.put(content(200 * SIZE))
    download, deepest = Download(BlobStore(tmp_path / "target"), blob, 0.0, 0, chunk_bytes=SIZE), 0
    for _ in range(199):
        if request := download.poll(now_s):
            under_way.extend(requested(request, blob.size_bytes))
        deepest = max(deepest, download.under_way)
        now_s += 1 / chunks_s
        download.take(read_chunk(source, blob, SIZE, under_way.popleft()), now_s)
    assert deepest == pytest.approx(ahead, abs=1 if WINDOW < ahead < MAX_WINDOW else 0)


def test_downloads_side_by_side_share_a_window(tmp_path: pathlib.Path) -> None:
    """What is under way elsewhere is not asked for here: the memory of several is that of one."""
    blob = blob_of(content(100 * SIZE))
    download = Download(BlobStore(tmp_path), blob, 0.0, 0, chunk_bytes=SIZE)
    assert download.poll(0.0, elsewhere=MAX_WINDOW) is None
    request = download.poll(0.0, elsewhere=MAX_WINDOW - WINDOW // 2)
    assert request is not None
    assert request.window == WINDOW // 2 == download.under_way


@given(st.binary(max_size=5000), st.integers(0, 5000))
def test_a_hash_goes_on_from_what_came_in_order(data: bytes, known: int) -> None:
    """What was hashed as it came needs not be read from the disk; the rest does, and the promise is the same."""
    known = min(known, len(data))
    hasher = Hasher()
    for begin in range(0, known, 700):
        hasher.update(memoryview(data)[begin : min(begin + 700, known)])
    with line() as this:
        path = this.target.path(this.target.put(data).sha256)
        assert blob_of_file(path, hasher, known) == blob_of(data) == blob_of_file(path)


def test_devices_do_not_ask_in_step(tmp_path: pathlib.Path) -> None:
    """Many that lost the same broker at the same time ask again at different times."""
    blob = blob_of(content(SIZE))
    downloads = [Download(BlobStore(tmp_path), blob, 0.0, seed) for seed in range(20)]
    for download in downloads:
        download.poll(0.0)
    asking = [sum(download.poll(tenth / 10) is not None for download in downloads) for tenth in range(100)]
    assert sum(asking) >= 20
    assert max(asking) <= 8


def test_what_is_no_missing_chunk_of_ours_is_ignored() -> None:
    """Damaged, cut, foreign, repeated, of another size or of no place: counted, and nothing is written."""
    with line() as this:
        blob, other = this.source.put(content(3 * SIZE + 5)), this.source.put(content(3 * SIZE + 5, seed=2))
        download, good = this.begin(blob), read_chunk(this.source, blob, SIZE, 1)
        short = good.data[:-1]
        bad = [
            dataclasses.replace(good, crc32=good.crc32 ^ 1),
            dataclasses.replace(good, data=short, crc32=zlib.crc32(short)),
            dataclasses.replace(good, data=bytes(good.data) + b"x", crc32=zlib.crc32(bytes(good.data) + b"x")),
            dataclasses.replace(good, index=3),
            dataclasses.replace(good, chunk_bytes=2 * SIZE),
            *(dataclasses.replace(good, index=index) for index in (-1, 4, 1 << 62)),
            read_chunk(this.source, other, SIZE, 1),
        ]
        assert not any(download.take(chunk, 0.0) for chunk in bad)
        assert (download.rejected, download.missing_bytes) == (len(bad), blob.size_bytes)
        assert below(this.target.folder) == []
        assert not download.take(good, 0.0)
        assert not download.take(good, 0.0)
        assert (download.rejected, download.missing_bytes) == (len(bad) + 1, 2 * SIZE + 5)


@pytest.mark.parametrize("lies", [RESTARTS, RESTARTS + 1])
def test_a_sender_that_lies_is_found_out(tmp_path: pathlib.Path, lies: int) -> None:
    """Whole files that are not what was promised never get the name: a few are forgiven, then it is an error."""
    target, data = BlobStore(tmp_path), content(10)
    blob = blob_of(data)
    download = Download(target, blob, 0.0, 0)
    lie = Chunk(blob.sha256, 256 * 1024, 0, zlib.crc32(b"0123456789"), b"0123456789")
    for _ in range(min(lies, RESTARTS)):
        assert not download.take(lie, 0.0)
        assert below(tmp_path) == []
        assert download.poll(1000.0) is not None
    if lies > RESTARTS:
        with pytest.raises(IntegrityError, match=blob.sha256[:12]):
            download.take(lie, 0.0)
        assert below(tmp_path) == []
    else:
        assert download.take(dataclasses.replace(lie, crc32=zlib.crc32(data), data=data), 0.0)
        assert target.read(blob) == data


@given(st.integers(0, 1 << 62))
def test_silence_is_asked_into_less_and_less(seed: int) -> None:
    """Without an answer the same window is asked for again, after waits that double up to a bound."""
    with line() as this:
        blob = blob_of(content(20 * SIZE))
        download, times, requests = this.begin(blob, seed), [], set()
        for tenth in range(6000):
            if request := download.poll(tenth / 10):
                times.append(tenth / 10)
                requests.add(request)
        waits_s = [after - before for before, after in itertools.pairwise(times)]
        assert len(requests) == 1
        assert all(0 < wait <= 1.5 * LONGEST_WAIT_S + 0.1 for wait in waits_s)
        assert waits_s[3] > 3 * waits_s[0]
        assert 8 <= len(times) <= 16


@pytest.mark.parametrize("gap_s", [0.5, 5.0, 15.0])
def test_a_slow_line_is_not_flooded(gap_s: float) -> None:
    """Where a chunk takes long the first window may be asked for again; then the waits fit, and no other is."""
    with line() as this:
        blob = this.source.put(content(100 * SIZE))
        download, arrives_s, done = this.begin(blob), gap_s, False
        while not done:
            this.now_s += 0.1
            if request := download.poll(this.now_s):
                this.under_way += [read_chunk(this.source, blob, SIZE, k) for k in requested(request, blob.size_bytes)]
                arrives_s = arrives_s if len(this.under_way) > request.window else this.now_s + gap_s
            if this.under_way and this.now_s >= arrives_s:
                done = download.take(this.under_way.popleft(), this.now_s)
                arrives_s += gap_s
        assert download.rejected <= 2 * 8


@given(CHUNK_REQUESTS, st.integers(0, 1 << 24))
def test_requested_is_the_first_of_the_missing(request: ChunkRequest, size_bytes: int) -> None:
    """The bits that are set, in order, within the blob and the window; a `first` of any size costs nothing."""
    count = chunk_count(size_bytes, request.chunk_bytes)
    for asked in (request, dataclasses.replace(request, first=request.first % (2 * count))):
        bits = [asked.missing[k // 8] >> k % 8 & 1 for k in range(8 * len(asked.missing))]
        named = [asked.first + k for k, bit in enumerate(bits) if bit]
        assert list(requested(asked, size_bytes)) == [k for k in named if k < count][: asked.window]


def test_a_request_reaches_as_far_as_a_message_may(tmp_path: pathlib.Path) -> None:
    """Missing chunks too far apart for one bitmap are asked for one after the other."""
    download = Download(BlobStore(tmp_path), Blob(blob_of(b"").sha256, 100_000 * SIZE), 0.0, 0, chunk_bytes=SIZE)
    download._missing = 1 | 1 << 65_535 | 1 << 70_000
    request = download.poll(0.0)
    assert request is not None
    assert requested(through_the_wire(request), 100_000 * SIZE) == (0, 65_535)
    assert (request.window, len(request.missing)) == (2, 8192)
    rest = download.poll(0.0)
    assert rest is not None
    assert requested(rest, 100_000 * SIZE) == (70_000,)


@given(SIZES)
def test_chunks_make_up_the_blob(size_bytes: int) -> None:
    """Put together they are the blob; there is no chunk before the first or after the last."""
    with line() as this:
        blob, count = this.source.put(content(size_bytes)), chunk_count(size_bytes, SIZE)
        chunks = [read_chunk(this.source, blob, SIZE, index) for index in range(count)]
        assert b"".join(chunk.data for chunk in chunks) == content(size_bytes)
        for index in (-1, count):
            with pytest.raises(ValueError, match="no chunk"):
                read_chunk(this.source, blob, SIZE, index)


def test_a_file_that_is_gone_or_short_is_no_chunk(tmp_path: pathlib.Path) -> None:
    """The reader of a damaged store is told; a short chunk is never sent."""
    store = BlobStore(tmp_path)
    blob = store.put(content(2 * SIZE))
    os.truncate(store.path(blob.sha256), SIZE + 1)
    assert len(read_chunk(store, blob, SIZE, 0).data) == SIZE
    with pytest.raises(IntegrityError, match="cut off"):
        read_chunk(store, blob, SIZE, 1)
    store.remove(blob.sha256)
    with pytest.raises(FileNotFoundError):
        read_chunk(store, blob, SIZE, 0)


def test_a_blob_is_never_in_memory(tmp_path: pathlib.Path) -> None:
    """Sending, taking and checking 32 MiB takes the memory of a few chunks."""
    source, target = BlobStore(tmp_path / "source"), BlobStore(tmp_path / "target")
    blob = source.put(content(32 << 20))
    this = Line(source, target, iter(()))
    download = Download(target, blob, 0.0, 0)
    tracemalloc.start()
    try:
        while not this.turn(download, blob):
            pass
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()
    target.verify(blob)
