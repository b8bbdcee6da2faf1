"""Has what a task needs in the device's store: what is missing is pulled, a few blobs at a time.

Sends nothing itself: `requests` says what to ask for, `take` uses what came. Whatever ends the fetching is an event for
the session: ManifestHere, FilesHere, or FetchFailed.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from edge_sdk.events import FetchFailed, FetchFiles, FetchManifest, FilesHere, ManifestHere
from edge_sdk.store import DeviceStore
from edge_sdk.web import Wanted
from edge_sdk.wire.blobs import Blob, blob_of
from edge_sdk.wire.blocks import BLOCK_BYTES, BLOCKS, BlockList, HeldBlocks, held_blocks, read_list
from edge_sdk.wire.chunks import Download
from edge_sdk.wire.errors import DecodeError, IntegrityError, WireError
from edge_sdk.wire.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest
from edge_sdk.wire.messages import CHUNK_BYTES, Chunk, ChunkRequest, DeclineReason, Task, TransferRefused

AT_ONCE: Final = 3  # downloads side by side: small blobs would else spend their time waiting for an answer
NO_BLOCKS, NO_HELD = BlockList(BLOCK_BYTES, {}), HeldBlocks({})
MANIFESTS: Final = 16  # retained manifests held in memory, at most 64 KiB each

Outcome = ManifestHere | FilesHere | FetchFailed


class Fetcher:
    """Fetches into `store` for one task at a time."""

    def __init__(self, store: DeviceStore, seed: int) -> None:
        """`seed` spreads the devices' repeated requests in time."""
        self._store, self._seed = store, seed
        self._wanted: FetchManifest | FetchFiles | None = None
        self._waiting: deque[Blob] = deque()
        self._running: dict[str, Download] = {}
        self._blocks, self._held = NO_BLOCKS, NO_HELD  # of what is wanted; of those, what is here
        self._ended_bytes, self._chunk_bytes = 0, CHUNK_BYTES
        self._in_vain = Counter[str]()  # how many web servers were asked for a blob
        self._retained: dict[str, bytes] = {}

    def hold(self, sha256: str, data: bytes) -> None:
        """Hold a retained manifest until a task names it: it need not be asked for then."""
        if len(data) <= MAX_MANIFEST_BYTES and blob_of(data).sha256 == sha256:
            self._retained.pop(sha256, None)
            self._retained[sha256] = data
        while len(self._retained) > MANIFESTS:
            del self._retained[next(iter(self._retained))]

    def use_chunks_of(self, chunk_bytes: int) -> None:
        """Ask for chunks so long from now on: what is half here in others begins anew. Raises OSError."""
        if chunk_bytes != self._chunk_bytes:
            self._chunk_bytes = chunk_bytes
            for sha256, download in list(self._running.items()):
                self._waiting.appendleft(download.blob)
                self._end(sha256)

    def begin(self, wanted: FetchManifest | FetchFiles) -> Outcome | None:
        """Fetch what `wanted` needs, instead of anything before. Raises OSError."""
        if isinstance(wanted, FetchManifest):
            self._ended_bytes = 0
            self._in_vain.clear()
        self.stop()
        self._wanted, blobs = wanted, needed(wanted)
        missing = self._store.missing(blobs)
        lack = self._store.make_room(sum(blob.size_bytes for blob in missing), {blob.sha256 for blob in blobs})
        if lack is not None:
            needed_bytes, available_bytes = lack.needed_bytes, lack.available_bytes
            return self._failed(DeclineReason.NO_SPACE, str(lack), needed_bytes, available_bytes)
        if isinstance(wanted, FetchManifest) and wanted.task.artifact.sha256 in self._retained:
            try:
                self._store.blobs.put(self._retained[wanted.task.artifact.sha256], "manifest")
            except OSError as error:
                return self._no_space(error)
        self._waiting.extend(self._store.missing(blobs))
        self._compare()
        return self._outcome()

    def requests(self, now_s: float) -> list[ChunkRequest] | Outcome:
        """What to ask for now; an outcome where nothing has to come any more. Raises OSError."""
        try:
            requests = list(self._requests(now_s))
            return requests or self._outcome() or []
        except IntegrityError as error:
            return self._failed(DeclineReason.UNAVAILABLE, str(error))
        except OSError as error:
            return self._no_space(error)

    @property
    def followed(self) -> frozenset[str]:
        """Blobs on their way of which others may want the same chunks: of small ones none would come in time."""
        return frozenset(name for name, one in self._running.items() if one.blob.size_bytes > BLOCK_BYTES)

    def wanted_of_web(self) -> Wanted | None:
        """What to ask a web server for next, in place of the coordinator: a large blob on its way, if any."""
        for download in self._running.values():
            if url := self._source(download.blob):
                return Wanted(url, download.blob, self._chunk_bytes, download.first_missing)
        return None

    def web_ended(self, sha256: str) -> None:
        """The server gave up, or gave all that it has and the blob is not whole: another one, or the coordinator, is
        next.
        """
        self._in_vain[sha256] += 1

    def _source(self, blob: Blob) -> str:
        """The web server to have a blob from; empty for the coordinator."""
        sources = self._wanted.task.sources[self._in_vain[blob.sha256] :] if self._wanted is not None else ()
        return sources[0] if sources and blob.sha256 in self.followed else ""

    def take(self, chunk: Chunk, now_s: float) -> Outcome | None:
        """Use a chunk if it is wanted. Raises OSError."""
        download = self._running.get(chunk.blob)
        if download is None:
            return None
        try:
            if not download.take(chunk, now_s):
                return None
        except IntegrityError as error:
            return self._failed(DeclineReason.UNAVAILABLE, str(error))
        except OSError as error:
            return self._no_space(error)
        self._end(chunk.blob)
        if chunk.blob == self._list_wanted():
            self._compare()
        return self._outcome()

    def refused(self, refusal: TransferRefused) -> FetchFailed | None:
        """The coordinator does not have it."""
        if refusal.blob not in self._running:
            return None
        detail = f"the coordinator refused blob {refusal.blob[:12]}: {refusal.reason.value}"
        return self._failed(DeclineReason.UNAVAILABLE, detail)

    def stop(self) -> None:
        """Ask for nothing more; what came stays, to go on from. Raises OSError."""
        self._wanted = None
        self._waiting.clear()
        for sha256 in list(self._running):
            self._end(sha256)

    def _requests(self, now_s: float) -> Iterator[ChunkRequest]:
        while self._waiting and len(self._running) < AT_ONCE and self._list_wanted() not in self._running:
            blob = self._waiting.popleft()
            download = Download(self._store.blobs, blob, now_s, self._seed, chunk_bytes=self._chunk_bytes)
            if not download.fill(self._blocks.digests(blob.sha256), self._held, now_s):
                self._running[blob.sha256] = download
        for download in sorted(self._running.values(), key=lambda one: one.under_way):
            elsewhere = sum(one.under_way for one in self._running.values() if one is not download)
            if not self._source(download.blob) and (request := download.poll(now_s, elsewhere)):
                yield request

    def _list_wanted(self) -> str:
        """The list of blocks of what is wanted; empty where there is none."""
        files = self._wanted.manifest.files if isinstance(self._wanted, FetchFiles) else {}
        return files[BLOCKS].sha256 if BLOCKS in files else ""

    def _compare(self) -> None:
        """Find what the files that are wanted have in common with those that are here, once their list is. OSError."""
        self._blocks, self._held = NO_BLOCKS, NO_HELD
        files = self._wanted.manifest.files if isinstance(self._wanted, FetchFiles) else {}
        if not self._waiting or BLOCKS not in files or not self._store.blobs.has(files[BLOCKS]):
            return
        try:
            self._blocks = read_list(self._store.blobs.read(files[BLOCKS]))
        except WireError:  # all is fetched then
            return
        self._held = held_blocks(self._store.blobs, self._blocks)

    def _end(self, sha256: str) -> None:
        download = self._running.pop(sha256)
        self._ended_bytes += download.received_bytes
        try:
            download.close()
        except OSError as error:
            if error.errno != errno.ENOSPC:  # on a full disk what came last is fetched again, and nothing else is lost
                raise

    def _outcome(self) -> Outcome | None:
        if self._wanted is None or self._waiting or self._running:
            return None
        wanted, self._wanted = self._wanted, None
        self._store.used(needed(wanted))
        if isinstance(wanted, FetchFiles):
            return FilesHere(wanted.task.task_id, self._ended_bytes)
        return self._read_manifest(wanted.task)

    def _read_manifest(self, task: Task) -> Outcome | None:
        try:
            return ManifestHere(task.task_id, decode_manifest(self._store.blobs.read(task.artifact)))
        except DecodeError as error:
            return FetchFailed(task.task_id, DeclineReason.INCOMPATIBLE, f"the manifest cannot be used: {error}")
        except IntegrityError:  # the disk changed it: have it again
            self._store.blobs.remove(task.artifact.sha256)
            return self.begin(FetchManifest(task))

    def _no_space(self, error: OSError) -> FetchFailed:
        """Only a full disk is an answer. Raises any other error."""
        if error.errno != errno.ENOSPC or self._wanted is None:
            raise error
        return self._failed(DeclineReason.NO_SPACE, "no space left on the device")

    def _failed(
        self, reason: DeclineReason, detail: str, needed_bytes: int = 0, available_bytes: int = 0
    ) -> FetchFailed:
        if self._wanted is None:
            msg = "nothing is being fetched"
            raise AssertionError(msg)
        task_id = self._wanted.task.task_id
        self.stop()
        return FetchFailed(task_id, reason, detail, needed_bytes, available_bytes)


def needed(wanted: FetchManifest | FetchFiles) -> list[Blob]:
    """Everything that must be in the store."""
    if isinstance(wanted, FetchManifest):
        return [wanted.task.artifact]
    return blobs_of(wanted.task, wanted.manifest)


def blobs_of(task: Task, manifest: Manifest) -> list[Blob]:
    """All that a task reads from the store."""
    files = sorted(manifest.files.items(), key=lambda file: file[0] != BLOCKS)  # first what may spare others
    return [*(blob for _name, blob in files), task.artifact, task.adapter]
