"""How a device gets what a task needs, from a coordinator that is a folder of blobs."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from edge_sdk.events import FetchFailed, FetchFiles, FetchManifest, FilesHere, ManifestHere
from edge_sdk.fetcher import Fetcher, Outcome, blobs_of
from edge_sdk.store import DeviceStore
from edge_sdk.wire import codec
from edge_sdk.wire.blobs import Blob, BlobStore, blob_of
from edge_sdk.wire.blocks import BLOCK_BYTES, BLOCKS, BlockList, block_list, read_list
from edge_sdk.wire.chunks import read_chunk, requested
from edge_sdk.wire.manifest import Manifest, encode_manifest
from edge_sdk.wire.messages import CHUNK_BYTES, DeclineReason, RefusalReason, Task, TransferRefused
from edge_sdk.wire.partial import chunk_count
from tests.edge_sdk.samples import MB, make_manifest, make_task
from tests.edge_sdk.wire.lines import content

FILES = {"forward": b"a" * 300_000, "backward": b"b" * 5, "tensors": b"c" * 700_000, "initial": b""}
FILES |= {"keep.forward": b"d", "keep.backward": b"e"}
ADAPTER = b"the adapter"


@dataclasses.dataclass(slots=True)
class Place:
    """A coordinator's blobs, a device's store, and the task between them."""

    coordinator: BlobStore
    store: DeviceStore
    manifest: Manifest
    task: Task
    sent: int = 0

    def fetcher(self) -> Fetcher:
        """A new process's fetcher."""
        return Fetcher(self.store, seed=0)

    def finish(self, fetcher: Fetcher, chunks: int = 10**6) -> Outcome | None:
        """Send what is asked for, at most so many chunks; the outcome, or None when that was not enough."""
        last = self.sent + chunks
        while requests := fetcher.requests(0.0):
            if not isinstance(requests, list):
                return requests
            for request in requests:
                blob = Blob(request.blob, self.coordinator.path(request.blob).stat().st_size)
                for index in requested(request, blob.size_bytes):
                    if self.sent == last:
                        return None
                    self.sent += 1
                    chunk = read_chunk(self.coordinator, blob, request.chunk_bytes, index)
                    if outcome := fetcher.take(chunk, 0.0):
                        return outcome
        return None


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    """Everything at the coordinator, nothing on the device."""
    coordinator = BlobStore(tmp_path / "coordinator")
    manifest = dataclasses.replace(make_manifest(), files={name: coordinator.put(data) for name, data in FILES.items()})
    artifact, adapter = coordinator.put(encode_manifest(manifest)), coordinator.put(ADAPTER)
    store = DeviceStore(tmp_path / "device", 100 * MB)
    return Place(coordinator, store, manifest, make_task(artifact=artifact, adapter=adapter))


def test_everything_is_fetched_once(place: Place) -> None:
    """Manifest, then files; every byte comes once and is counted, and a second task of the level needs none."""
    fetcher = place.fetcher()
    assert fetcher.begin(FetchManifest(place.task)) is None
    assert place.finish(fetcher) == ManifestHere(place.task.task_id, place.manifest)
    assert fetcher.begin(FetchFiles(place.task, place.manifest)) is None
    size_bytes = place.task.artifact.size_bytes + sum(map(len, FILES.values())) + len(ADAPTER)
    assert place.finish(fetcher) == FilesHere(place.task.task_id, size_bytes)
    assert not place.store.missing([place.task.adapter, *place.manifest.files.values()])
    again = place.fetcher()
    assert again.begin(FetchManifest(place.task)) == ManifestHere(place.task.task_id, place.manifest)
    assert again.begin(FetchFiles(place.task, place.manifest)) == FilesHere(place.task.task_id, 0)


def test_a_retained_manifest_need_not_be_asked_for(place: Place) -> None:
    """One that has the bytes its name promises is used; another is not even held."""
    fetcher, name = place.fetcher(), place.task.artifact.sha256
    fetcher.hold(name, b"something else")
    assert fetcher.begin(FetchManifest(place.task)) is None
    fetcher.hold(name, encode_manifest(place.manifest))
    assert fetcher.begin(FetchManifest(place.task)) == ManifestHere(place.task.task_id, place.manifest)
    assert place.sent == 0


def test_a_stopped_fetch_goes_on(place: Place) -> None:
    """Stopped in the middle of the largest blob: what came before is not sent again, and the rest is."""
    blobs, fetcher = blobs_of(place.task, place.manifest), place.fetcher()
    largest = max(blobs, key=lambda blob: blob.size_bytes)
    counts = [chunk_count(blob.size_bytes, CHUNK_BYTES) for blob in blobs]
    fetcher.begin(FetchFiles(place.task, place.manifest))
    assert place.finish(fetcher, chunks=sum(counts[: blobs.index(largest)]) + 1) is None
    fetcher.stop()
    assert (place.store.blobs.folder / "partial" / f"{largest.sha256}.journal").exists()
    again = place.fetcher()
    again.begin(FetchFiles(place.task, place.manifest))
    assert isinstance(place.finish(again), FilesHere)
    assert place.sent == sum(counts)


def changed(place: Place, **files: bytes) -> Place:
    """The next level: these files are others, and it lists all blocks."""
    named = {**place.manifest.files, **{name: place.coordinator.put(data) for name, data in files.items()}}
    named[BLOCKS] = place.coordinator.put(block_list(place.coordinator, named.values()))
    manifest = dataclasses.replace(place.manifest, files=named)
    artifact = place.coordinator.put(encode_manifest(manifest))
    return dataclasses.replace(
        place, manifest=manifest, task=dataclasses.replace(place.task, artifact=artifact), sent=0
    )


@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 100 * 1024])
def test_blocks_that_are_here_do_not_come_again(place: Place, chunk_bytes: int) -> None:
    """Of a file that shares blocks with one that the device has, wherever they lie, the others alone are sent; what is
    no more as it was on the device's disk is sent, too.
    """
    blocks = [bytes([k]) * 3 + content(BLOCK_BYTES - 3, k) for k in range(9)]
    old = changed(place, tensors=b"".join(blocks[:6]), forward=b"".join(blocks[6:]) + b"end")
    first = old.fetcher()
    first.begin(FetchFiles(old.task, old.manifest))
    assert isinstance(old.finish(first), FilesHere)
    with old.store.blobs.path(old.manifest.files["tensors"].sha256).open("r+b") as damaged:
        damaged.seek(2 * BLOCK_BYTES + 5)
        damaged.write(b"?")
    data = b"".join([blocks[7], b"new" + blocks[0][3:], *blocks[1:4]]) + b"end"
    new = changed(old, tensors=data)
    second = new.fetcher()
    second.use_chunks_of(chunk_bytes)
    second.begin(FetchFiles(new.task, new.manifest))
    assert isinstance(new.finish(second), FilesHere)
    assert new.store.blobs.read(new.manifest.files["tensors"]) == data
    ours = 3 * (BLOCK_BYTES // chunk_bytes) if chunk_bytes == CHUNK_BYTES else 4
    assert new.sent <= 2 + chunk_count(len(data), chunk_bytes) - ours


def test_a_file_of_blocks_that_are_here_needs_nothing(place: Place) -> None:
    """The same blocks in another order: nothing but the manifest and the list is sent."""
    one, two = content(BLOCK_BYTES, 1), content(BLOCK_BYTES, 2)
    old = changed(place, tensors=one + two)
    first = old.fetcher()
    first.begin(FetchFiles(old.task, old.manifest))
    assert isinstance(old.finish(first), FilesHere)
    new = changed(old, tensors=two + one)
    second = new.fetcher()
    second.begin(FetchFiles(new.task, new.manifest))
    assert isinstance(new.finish(second), FilesHere)
    assert new.sent == 2


def test_a_list_of_blocks_that_lies_costs_time_alone(place: Place) -> None:
    """Wrong digests, another file's, or no list at all: the file comes whole, and is the promised one."""
    old = changed(place, tensors=content(3 * BLOCK_BYTES, 1))
    first = old.fetcher()
    first.begin(FetchFiles(old.task, old.manifest))
    assert isinstance(old.finish(first), FilesHere)
    data = content(3 * BLOCK_BYTES, 2)
    new = changed(old, tensors=data)
    known = read_list(old.store.blobs.read(old.manifest.files[BLOCKS]))
    theirs = {blob_of(data).sha256: known.files[old.manifest.files["tensors"].sha256]}
    for lie in [codec.encode(BlockList(BLOCK_BYTES, theirs)), b"no list", b""]:
        files = {**new.manifest.files, BLOCKS: new.coordinator.put(lie)}
        manifest = dataclasses.replace(new.manifest, files=files)
        fetcher = new.fetcher()
        fetcher.begin(FetchFiles(new.task, manifest))
        assert isinstance(new.finish(fetcher), FilesHere)
        assert new.store.blobs.read(files["tensors"]) == data
        new.store.blobs.remove(files["tensors"].sha256)


def test_a_broker_that_takes_less_gets_shorter_chunks(place: Place) -> None:
    """In the middle of everything: what was half here is asked for anew, all of it in chunks of the new length."""
    fetcher = place.fetcher()
    fetcher.begin(FetchFiles(place.task, place.manifest))
    assert place.finish(fetcher, chunks=4) is None
    fetcher.use_chunks_of(11 * 1024)
    requests = fetcher.requests(0.0)
    assert isinstance(requests, list)
    assert {request.chunk_bytes for request in requests} == {11 * 1024}
    fetcher.stop()
    fetcher.begin(FetchFiles(place.task, place.manifest))
    assert isinstance(place.finish(fetcher), FilesHere)
    assert not place.store.missing(blobs_of(place.task, place.manifest))


def test_files_without_room_are_declined_with_their_size(place: Place, tmp_path: pathlib.Path) -> None:
    """What needs more than the quota is declined before a byte comes, with what it needs and what there is."""
    place.store = DeviceStore(tmp_path / "small", 500_000)
    outcome = place.fetcher().begin(FetchFiles(place.task, place.manifest))
    assert isinstance(outcome, FetchFailed)
    assert outcome.reason is DeclineReason.NO_SPACE
    assert outcome.needed_bytes > 1_000_000
    assert outcome.available_bytes <= 500_000


def test_a_full_disk_is_an_answer(place: Place) -> None:
    """A disk that fills up in the middle is declined, not a crash, and nothing more is asked for."""
    fetcher, blob = place.fetcher(), place.manifest.files["forward"]
    fetcher.begin(FetchFiles(place.task, place.manifest))
    fetcher.requests(0.0)
    data = place.store.blobs.folder / "partial" / f"{blob.sha256}.data"
    data.parent.mkdir(exist_ok=True)
    data.symlink_to("/dev/full")
    outcome = fetcher.take(read_chunk(place.coordinator, blob, CHUNK_BYTES, 0), 0.0)
    assert outcome == FetchFailed(place.task.task_id, DeclineReason.NO_SPACE, "no space left on the device")
    assert fetcher.requests(0.0) == []


def test_what_the_coordinator_lacks_is_unavailable(place: Place) -> None:
    """A refusal ends the fetching; one of something else does not."""
    fetcher = place.fetcher()
    fetcher.begin(FetchManifest(place.task))
    fetcher.requests(0.0)
    assert fetcher.refused(TransferRefused("0" * 64, RefusalReason.UNKNOWN_BLOB)) is None
    outcome = fetcher.refused(TransferRefused(place.task.artifact.sha256, RefusalReason.UNKNOWN_BLOB))
    assert outcome is not None
    assert outcome.reason is DeclineReason.UNAVAILABLE


def test_what_is_no_manifest_is_incompatible(place: Place) -> None:
    """Bytes that keep their promise and are no manifest cannot be used on this device."""
    task = dataclasses.replace(place.task, artifact=place.coordinator.put(b"no manifest"))
    fetcher = place.fetcher()
    fetcher.begin(FetchManifest(task))
    outcome = place.finish(fetcher)
    assert isinstance(outcome, FetchFailed)
    assert outcome.reason is DeclineReason.INCOMPATIBLE


def test_a_manifest_that_the_disk_changed_is_fetched_again(place: Place) -> None:
    """A stored manifest is verified before it is read."""
    fetcher = place.fetcher()
    fetcher.begin(FetchManifest(place.task))
    place.finish(fetcher)
    path = place.store.blobs.path(place.task.artifact.sha256)
    path.write_bytes(b"x" * path.stat().st_size)
    assert fetcher.begin(FetchManifest(place.task)) is None
    assert isinstance(place.finish(fetcher), ManifestHere)
