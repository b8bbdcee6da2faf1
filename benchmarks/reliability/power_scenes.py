"""What power cuts are tried on: real parts of a device, and what must hold of their folder whenever the power goes.

Each scene runs in a process of its own, which is traced; marks say what it had done when. The control is the obvious
way to replace a file, without a sync: its promise must be seen to break, or the trial proves nothing.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from edge_sdk.events import FetchFiles, FetchManifest
from edge_sdk.fetcher import Fetcher, blobs_of
from edge_sdk.identity import Identity
from edge_sdk.outbox import Outbox
from edge_sdk.store import DeviceStore
from edge_sdk.wire.blobs import Blob, BlobStore, written_atomically
from edge_sdk.wire.chunks import read_chunk, requested
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.manifest import Manifest, encode_manifest
from edge_sdk.wire.messages import Task
from edge_sdk.wire.records import write_record
from tests.edge_sdk.samples import MB, make_manifest, make_report, make_task

Mark: TypeAlias = Callable[[str], None]  # something was promised, by its name

CHUNK_BYTES: Final = 8192
FILES: Final = {
    "forward": b"a" * 30_000,
    "backward": b"b" * 5,
    "tensors": bytes(range(256)) * 200,
    "initial": b"",
    "keep.forward": b"d",
    "keep.backward": b"e",
}
ADAPTER: Final = b"the adapter"
KEY: Final = bytes(range(32))
HALF: Final = 6  # chunks, after which the fetching is interrupted


@dataclass(frozen=True, slots=True)
class Scene:
    """`act` in a folder; `lacks` says what does not hold there after a power cut, by the marks that were set: nothing,
    in an empty text. Its last argument is a folder for what the check itself writes.
    """

    act: Callable[[pathlib.Path, Mark], None]
    lacks: Callable[[pathlib.Path, frozenset[str]], str]


# ---- an artifact on its way in


@dataclass(frozen=True, slots=True)
class _Source:
    """A coordinator's blobs, and a task that needs them."""

    blobs: BlobStore
    manifest: Manifest
    task: Task

    @classmethod
    def beside(cls, folder: pathlib.Path) -> _Source:
        """The same at every call."""
        blobs = BlobStore(folder.parent / f"{folder.name}-source")
        manifest = dataclasses.replace(make_manifest(), files={name: blobs.put(data) for name, data in FILES.items()})
        artifact, adapter = blobs.put(encode_manifest(manifest)), blobs.put(ADAPTER)
        return cls(blobs, manifest, make_task(artifact=artifact, adapter=adapter))

    def serve(self, fetcher: Fetcher, chunks: int = 1 << 30) -> bool:
        """Send what is asked for, at most so many chunks; whether all that was wanted is there."""
        while requests := fetcher.requests(0.0):
            if not isinstance(requests, list):
                return True
            for request in requests:
                blob = Blob(request.blob, self.blobs.path(request.blob).stat().st_size)
                for index in requested(request, blob.size_bytes):
                    if chunks == 0:
                        return False
                    chunks -= 1
                    if fetcher.take(read_chunk(self.blobs, blob, request.chunk_bytes, index), 0.0):
                        return True
        return True


def _fetch(folder: pathlib.Path, mark: Mark) -> None:
    """Manifest and files; half-way, the agent is stopped and started again."""
    source = _Source.beside(folder)
    for chunks in (HALF, 1 << 30):
        fetcher = Fetcher(DeviceStore(folder / "store", 100 * MB), seed=0)
        fetcher.use_chunks_of(CHUNK_BYTES)
        for wanted in (FetchManifest(source.task), FetchFiles(source.task, source.manifest)):
            if fetcher.begin(wanted) is None and not source.serve(fetcher, chunks):
                fetcher.stop()
    mark("fetched")


def _lacks_blobs(folder: pathlib.Path, marks: frozenset[str]) -> str:
    """What is there is right, what was whole is there, and what is missing can be fetched."""
    source, store = _Source.beside(folder), DeviceStore(folder / "store", 100 * MB)
    blobs = blobs_of(source.task, source.manifest)
    for blob in blobs:
        if store.blobs.has(blob) and not store.blobs.is_whole(blob):
            return f"blob {blob.sha256[:12]} is there, and wrong"
    if "fetched" in marks and (gone := store.missing(blobs)):
        return f"{len(gone)} blobs were fetched, and are gone"
    fetcher = Fetcher(store, seed=0)
    fetcher.use_chunks_of(CHUNK_BYTES)
    for wanted in (FetchManifest(source.task), FetchFiles(source.task, source.manifest)):
        if fetcher.begin(wanted) is None:
            source.serve(fetcher)
    return "" if all(store.blobs.is_whole(blob) for blob in blobs) else "it cannot be fetched any more"


# ---- a result that waits for its receipt


def _results(folder: pathlib.Path, mark: Mark) -> None:
    """Two results with residuals: one is kept and accepted, one kept."""
    outbox, work = Outbox(folder / "outbox"), folder / "work"
    work.mkdir()
    for number in (1, 2):
        delta, residual = work / "delta", work / "residual"
        delta.write_bytes(b"delta %d" % number * 1000)
        write_record(residual, f"residual {number}")
        offer = outbox.keep(f"task {number}", delta, make_report(), residual)
        mark(f"kept {number}")
        if number == 1:
            outbox.forget(offer.task_id, offer.delta, accepted=True)
            mark("forgotten")


def _lacks_results(folder: pathlib.Path, marks: frozenset[str]) -> str:
    """A result that was kept is there until it is forgotten, with its delta; a residual that is in use is whole."""
    outbox = Outbox(folder / "outbox")
    contents = outbox.load()
    here = {result.task_id for result in contents.results}
    if contents.complaints:
        return contents.complaints[0]
    if "kept 1" in marks and "forgotten" not in marks and "task 1" not in here and not outbox.residual.exists():
        return "the first result was kept, and is gone"
    if "kept 2" in marks and "task 2" not in here:
        return "the second result was kept, and is gone"
    if "forgotten" in marks and not outbox.residual.exists():
        return "the receipt was used, and its residual is gone"
    return outbox.check_residual() or ""


# ---- who it is, and whom it obeys


def _identity(folder: pathlib.Path, mark: Mark) -> None:
    """A key is made, a coordinator is pinned, and versions are taken."""
    identity = Identity(folder / "identity")
    mark("made")
    (folder.parent / f"{folder.name}-key").write_bytes(identity.signer.public)
    identity.pin(KEY)
    mark("pinned")
    for version in (1, 2):
        identity.keep_version(version)
        mark(f"version {version}")


def _lacks_identity(folder: pathlib.Path, marks: frozenset[str]) -> str:
    """The same key, the same coordinator, and no version below one that was taken."""
    try:
        identity = Identity(folder / "identity")
    except IntegrityError as error:
        return str(error)
    if "made" in marks and identity.signer.public != (folder.parent / f"{folder.name}-key").read_bytes():
        return "it has another key"
    if "pinned" in marks and identity.coordinator != KEY:
        return "it forgot whom it obeys"
    least = max((version for version in (1, 2) if f"version {version}" in marks), default=0)
    return "" if identity.version >= least else f"it took version {least}, and now takes {identity.version}"


# ---- a file that is replaced


def _replaced(folder: pathlib.Path, mark: Mark) -> None:
    for number in (1, 2):
        with written_atomically(folder / "new" / "folder" / "file") as file:
            file.write(b"%d" % number * 9000)
        mark(f"written {number}")


def _naive(folder: pathlib.Path, mark: Mark) -> None:
    """As it is usually done."""
    target = folder / "new" / "folder" / "file"
    target.parent.mkdir(parents=True)
    for number in (1, 2):
        making = target.with_suffix(".tmp")
        making.write_bytes(b"%d" % number * 9000)
        making.replace(target)
        mark(f"written {number}")


def _lacks_file(folder: pathlib.Path, marks: frozenset[str]) -> str:
    """The old one or the new one."""
    least = max((number for number in (1, 2) if f"written {number}" in marks), default=0)
    path = folder / "new" / "folder" / "file"
    if not path.exists():
        return f"version {least} is gone" if least else ""
    content = path.read_bytes()
    whole = [number for number in (1, 2) if content == b"%d" % number * 9000]
    if not whole:
        return f"{len(content)} bytes that are no version"
    return "" if whole[0] >= least else f"version {least} was there, and now {whole[0]} is"


SCENES: Final[Mapping[str, Scene]] = {
    "artifact": Scene(_fetch, _lacks_blobs),
    "results": Scene(_results, _lacks_results),
    "identity": Scene(_identity, _lacks_identity),
    "file": Scene(_replaced, _lacks_file),
}
CONTROL: Final = Scene(_naive, _lacks_file)
CONTROL_NAME: Final = "control"


def main(name: str, folder: pathlib.Path, marks: pathlib.Path) -> int:
    """The process that is traced."""
    scene = CONTROL if name == CONTROL_NAME else SCENES[name]
    scene.act(folder, lambda mark: (marks / mark).mkdir())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])))
