"""A delta comes in whole or is refused, from the device that offered it and from no other."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zlib

import pytest

from coordinator.collector import Collector, Fetched, Unfetched
from coordinator.events import FetchDelta
from coordinator.pace import Pace
from edge_sdk.wire.blobs import Blob, BlobStore, blob_of
from edge_sdk.wire.chunks import RESTARTS, read_chunk, requested
from edge_sdk.wire.messages import CHUNK_BYTES, Chunk, ChunkRequest, RefusalReason, TransferRefused
from tests.coordinator.samples import make_answer, make_report, make_task
from tests.edge_sdk.wire.lines import below

LIMIT = 100 * CHUNK_BYTES
BIG = 19 * CHUNK_BYTES + 5  # bytes: more than two windows


def wanted(delta: Blob, device: str = "a", task_id: str = "t") -> FetchDelta:
    """What `rounds` says about an offer."""
    return FetchDelta(device, "large", make_task(task_id), delta, make_report(), make_answer(device), None)


def answers(outbox: BlobStore, delta: Blob, request: ChunkRequest) -> list[Chunk]:
    """What an honest device says."""
    return [read_chunk(outbox, delta, request.chunk_bytes, k) for k in requested(request, delta.size_bytes)]


@pytest.fixture
def outbox(tmp_path: pathlib.Path) -> BlobStore:
    """The devices' deltas."""
    return BlobStore(tmp_path / "outbox")


@pytest.fixture
def received(tmp_path: pathlib.Path) -> BlobStore:
    """Where deltas come in."""
    return BlobStore(tmp_path / "received")


@pytest.fixture
def collector(received: BlobStore) -> Collector:
    """A collector of nothing yet."""
    return Collector(received, Pace())


def collect(collector: Collector, outbox: BlobStore, deltas: dict[str, Blob]) -> list[Fetched | Unfetched]:
    """Answer every request, until nothing is asked for."""
    outcomes: list[Fetched | Unfetched | None] = []
    while requests := list(collector.requests(0.0)):
        for device, request in requests:
            came = answers(outbox, deltas[device], request)
            outcomes += [collector.take(device, chunk, 0.0) for chunk in came]
    return [outcome for outcome in outcomes if outcome is not None]


def test_deltas_come_side_by_side(collector: Collector, outbox: BlobStore, received: BlobStore) -> None:
    """Each is asked of its device, and is whole when it is said to be; each byte came once and is counted once."""
    deltas = {device: outbox.put(os.urandom(size)) for device, size in (("a", BIG), ("b", 10), ("c", CHUNK_BYTES))}
    for device, delta in deltas.items():
        assert collector.begin(wanted(delta, device, f"t.{device}"), LIMIT, 0.0) is None
    outcomes = collect(collector, outbox, deltas)
    assert sorted(outcome.wanted.device for outcome in outcomes if isinstance(outcome, Fetched)) == ["a", "b", "c"]
    assert all(received.read(delta) == outbox.read(delta) for delta in deltas.values())
    assert collector.take_received_bytes() == {device: delta.size_bytes for device, delta in deltas.items()}
    assert collector.take_received_bytes() == {}


def test_a_broker_that_takes_less_gets_shorter_chunks(
    collector: Collector, outbox: BlobStore, received: BlobStore
) -> None:
    """In the middle of a delta: it is asked for anew in chunks of the new length, and comes whole."""
    delta = outbox.put(os.urandom(BIG))
    collector.begin(wanted(delta), LIMIT, 0.0)
    ((_device, request),) = collector.requests(0.0)
    collector.take("a", answers(outbox, delta, request)[0], 0.0)
    collector.use_chunks_of(11 * 1024, 0.0)
    ((_device, request),) = collector.requests(0.0)
    assert request.chunk_bytes == 11 * 1024
    for chunk in answers(outbox, delta, request):
        collector.take("a", chunk, 0.0)
    (outcome,) = collect(collector, outbox, {"a": delta})
    assert isinstance(outcome, Fetched)
    assert received.read(delta) == outbox.read(delta)


def test_a_delta_over_the_limit_is_not_asked_for(collector: Collector, outbox: BlobStore) -> None:
    """The size that is offered is judged before a byte is asked for; the limit itself is allowed."""
    delta = outbox.put(b"x" * 10)
    outcome = collector.begin(wanted(delta), 9, 0.0)
    assert isinstance(outcome, Unfetched)
    assert (outcome.reason, "\n" in outcome.detail) == (RefusalReason.TOO_LARGE, False)
    assert list(collector.requests(0.0)) == []
    assert collector.begin(wanted(delta), 10, 0.0) is None


def test_a_delta_that_is_here_is_fetched_at_once(collector: Collector, received: BlobStore) -> None:
    """After a crash between the last chunk and the ledger nothing is asked for again."""
    offer = wanted(received.put(b"delta"))
    assert collector.begin(offer, LIMIT, 0.0) == Fetched(offer)
    assert list(collector.requests(0.0)) == []


def test_a_delta_that_was_damaged_on_disk_is_fetched_again(
    collector: Collector, outbox: BlobStore, received: BlobStore
) -> None:
    """A file that is not what came is not handed on; the device still has the delta."""
    delta = outbox.put(b"delta")
    received.put(b"delta")
    received.path(delta.sha256).write_bytes(b"delte")
    assert collector.begin(wanted(delta), LIMIT, 0.0) is None
    assert collect(collector, outbox, {"a": delta}) == [Fetched(wanted(delta))]
    assert received.read(delta) == b"delta"


def test_an_offer_that_is_repeated_changes_nothing(collector: Collector, outbox: BlobStore) -> None:
    """Devices offer until they have a receipt: what is under way is not asked for twice."""
    delta = outbox.put(os.urandom(BIG))
    collector.begin(wanted(delta), LIMIT, 0.0)
    ((_, request),) = collector.requests(0.0)
    assert collector.begin(wanted(delta), LIMIT, 0.0) is None
    assert list(collector.requests(0.0)) == []
    for chunk in answers(outbox, delta, request):
        collector.take("a", chunk, 0.0)
    assert collect(collector, outbox, {"a": delta}) == [Fetched(wanted(delta))]
    assert collector.take_received_bytes() == {"a": BIG}


def test_another_delta_takes_the_first_one_s_place(
    collector: Collector, outbox: BlobStore, received: BlobStore
) -> None:
    """A device that did its task again offers what it has now; what came of the first is gone."""
    first, second = outbox.put(os.urandom(BIG)), outbox.put(b"second")
    collector.begin(wanted(first), LIMIT, 0.0)
    ((_, request),) = collector.requests(0.0)
    collector.take("a", answers(outbox, first, request)[0], 0.0)
    assert collector.begin(wanted(second), LIMIT, 0.0) is None
    assert collect(collector, outbox, {"a": second}) == [Fetched(wanted(second))]
    assert below(received.folder) == [received.path(second.sha256)]


def test_nobody_answers_for_another(collector: Collector, outbox: BlobStore, received: BlobStore) -> None:
    """Chunks and refusals from a device that was not asked, or of a blob that is not wanted, do and count nothing."""
    delta, other = outbox.put(b"delta"), outbox.put(b"other")
    collector.begin(wanted(delta), LIMIT, 0.0)
    chunk, stray = (read_chunk(outbox, blob, CHUNK_BYTES, 0) for blob in (delta, other))
    assert collector.take("b", chunk, 0.0) is None
    assert collector.take("a", stray, 0.0) is None
    assert collector.refused("b", TransferRefused(delta.sha256, RefusalReason.UNKNOWN_BLOB)) is None
    assert collector.refused("a", TransferRefused(other.sha256, RefusalReason.UNKNOWN_BLOB)) is None
    assert collector.take_received_bytes() == {}
    assert below(received.folder) == []
    assert collector.take("a", chunk, 0.0) == Fetched(wanted(delta))


def test_another_device_cannot_offer_the_same_bytes(collector: Collector, outbox: BlobStore) -> None:
    """A delta names its device and task, so equal bytes are a copy: it is refused, and the first goes on."""
    delta = outbox.put(os.urandom(BIG))
    collector.begin(wanted(delta), LIMIT, 0.0)
    copy = wanted(delta, "b", "t.b")
    outcome = collector.begin(copy, LIMIT, 0.0)
    assert isinstance(outcome, Unfetched)
    assert (outcome.wanted, outcome.reason) == (copy, RefusalReason.MALFORMED)
    assert collect(collector, outbox, {"a": delta}) == [Fetched(wanted(delta))]


def test_a_size_that_changes_is_believed_anew(collector: Collector, outbox: BlobStore) -> None:
    """An offer of the same name and another size replaces the first: one of them was a lie."""
    delta = outbox.put(b"delta")
    collector.begin(wanted(dataclasses.replace(delta, size_bytes=CHUNK_BYTES)), LIMIT, 0.0)
    assert collector.begin(wanted(delta), LIMIT, 0.0) is None
    assert collect(collector, outbox, {"a": delta}) == [Fetched(wanted(delta))]


def test_a_refusal_ends_it(collector: Collector, outbox: BlobStore, received: BlobStore) -> None:
    """A device that has not what it offered: the reason is passed on, and what came is gone."""
    delta = outbox.put(os.urandom(BIG))
    collector.begin(wanted(delta), LIMIT, 0.0)
    collector.take("a", read_chunk(outbox, delta, CHUNK_BYTES, 0), 0.0)
    outcome = collector.refused("a", TransferRefused(delta.sha256, RefusalReason.UNKNOWN_BLOB))
    assert isinstance(outcome, Unfetched)
    assert (outcome.wanted, outcome.reason) == (wanted(delta), RefusalReason.UNKNOWN_BLOB)
    assert list(collector.requests(1000.0)) == []
    assert below(received.folder) == []


def test_bytes_that_are_not_what_was_promised_are_refused(collector: Collector, received: BlobStore) -> None:
    """A device whose bytes never have the promised SHA-256 is refused in the end, and nothing of it stays."""
    delta = blob_of(b"promised")
    lie = Chunk(delta.sha256, CHUNK_BYTES, 0, zlib.crc32(b"something"[:8]), b"something"[:8])
    collector.begin(wanted(delta), LIMIT, 0.0)
    outcomes = [collector.take("a", lie, 0.0) for _ in range(RESTARTS + 2)]
    assert outcomes[:RESTARTS] == [None] * RESTARTS
    refused = outcomes[RESTARTS]
    assert isinstance(refused, Unfetched)
    assert refused.reason is RefusalReason.CORRUPT
    assert outcomes[-1] is None
    assert below(received.folder) == []


def test_what_is_forgotten_is_not_asked_for(collector: Collector, outbox: BlobStore, received: BlobStore) -> None:
    """A cancelled task's delta takes neither bytes nor room; the other tasks' go on; forgetting twice is no error."""
    deltas = {device: outbox.put(os.urandom(BIG)) for device in "ab"}
    for device, delta in deltas.items():
        collector.begin(wanted(delta, device, f"t.{device}"), LIMIT, 0.0)
        collector.take(device, read_chunk(outbox, delta, CHUNK_BYTES, 0), 0.0)
    for _ in range(2):
        collector.forget("a", "t.a")
    assert collect(collector, outbox, deltas) == [Fetched(wanted(deltas["b"], "b", "t.b"))]
    assert below(received.folder) == [received.path(deltas["b"].sha256)]


def test_a_device_that_claims_another_s_task_stops_nothing(collector: Collector, outbox: BlobStore) -> None:
    """Whoever speaks of a task that is not its own is told to stop; the task's own delta goes on coming."""
    delta = outbox.put(os.urandom(BIG))
    collector.begin(wanted(delta, "a", "t.a"), LIMIT, 0.0)
    collector.forget("thief", "t.a")
    assert collect(collector, outbox, {"a": delta}) == [Fetched(wanted(delta, "a", "t.a"))]


def test_a_coordinator_that_was_killed_goes_on(collector: Collector, outbox: BlobStore, received: BlobStore) -> None:
    """What its journal had is not asked for again, although nothing was closed."""
    delta = outbox.put(os.urandom(BIG))
    collector.begin(wanted(delta), LIMIT, 0.0)
    ((_, request),) = collector.requests(0.0)
    for chunk in answers(outbox, delta, request):
        collector.take("a", chunk, 0.0)
    list(collector.requests(10.0))  # the journal is written
    after = Collector(received, Pace())
    after.begin(wanted(delta), LIMIT, 10.0)
    assert collect(after, outbox, {"a": delta}) == [Fetched(wanted(delta))]
    assert after.take_received_bytes() == {"a": BIG - 8 * CHUNK_BYTES}


def test_deltas_come_no_faster_than_allowed(outbox: BlobStore, received: BlobStore) -> None:
    """Two devices that answer at once, and a rate of a chunk a second: requests wait, and all comes in the end."""
    collector = Collector(received, Pace(all_bytes_s=CHUNK_BYTES))
    deltas = {device: outbox.put(os.urandom(BIG)) for device in "ab"}
    for device, delta in deltas.items():
        assert collector.begin(wanted(delta, device, f"t.{device}"), LIMIT, 0.0) is None
    whole_s = []
    for now_s in range(60):
        for device, request in list(collector.requests(now_s)):
            came = [collector.take(device, chunk, now_s) for chunk in answers(outbox, deltas[device], request)]
            whole_s += [now_s for outcome in came if isinstance(outcome, Fetched)]
        assert sum(collector.take_received_bytes().values()) <= 9 * CHUNK_BYTES  # a window, and a second saved up
    assert len(whole_s) == 2
    assert whole_s[-1] >= 2 * BIG / CHUNK_BYTES - 9
