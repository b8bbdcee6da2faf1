"""A blob is whole or absent, under the name of its bytes, and a file that lies is found out."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.blobs import READ_BYTES, Blob, BlobStore, blob_of, blob_of_file, written_atomically
from edge_sdk.wire.errors import IntegrityError
from tests.edge_sdk.wire.lines import below

ROOT = pathlib.Path(__file__).parents[3]
# Keeps blobs of 3 MB as fast as it can, and says how far it came.
WRITER = """
import pathlib, sys
from edge_sdk.wire.blobs import BlobStore
store = BlobStore(pathlib.Path(sys.argv[1]))
for k in range(100_000):
    store.put(k.to_bytes(4, "little") * 750_000)
    print(k, flush=True)
"""


@pytest.fixture
def store(tmp_path: pathlib.Path) -> BlobStore:
    """A store whose folder is not there yet."""
    return BlobStore(tmp_path / "store")


@given(st.binary(max_size=100))
def test_a_blob_is_named_by_its_bytes(data: bytes) -> None:
    """The promise is the SHA-256 that any tool computes, and the size."""
    assert blob_of(data) == Blob(hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("size", [0, 1, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 2 * READ_BYTES + 3])
def test_a_file_is_named_as_its_bytes_are(tmp_path: pathlib.Path, size: int) -> None:
    """Reading in pieces changes nothing, wherever the pieces end."""
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert blob_of_file(tmp_path / "file") == blob_of(data)


@pytest.mark.parametrize(
    ("sha256", "size_bytes"), [("", 0), ("../" + "0" * 61, 0), ("A" * 64, 0), ("0" * 64 + "\n", 0), ("0" * 64, -1)]
)
def test_a_promise_that_names_a_path_cannot_be_made(sha256: str, size_bytes: int) -> None:
    """What is not a SHA-256 and a size is refused before it reaches a file system."""
    with pytest.raises(ValueError, match=r"SHA-256|size"):
        Blob(sha256, size_bytes)
    if size_bytes == 0:
        with pytest.raises(ValueError, match="SHA-256"):
            BlobStore(pathlib.Path("/tmp")).path(sha256)  # noqa: S108 - nothing is written


def test_what_is_put_is_there(store: BlobStore) -> None:
    """Putting twice keeps once; removing twice is no error."""
    blob = store.put(b"data")
    assert store.put(b"data") == blob
    assert below(store.folder) == [store.path(blob.sha256)]
    assert store.has(blob)
    assert store.read(blob) == b"data"
    store.verify(blob)
    assert not store.has(Blob(blob.sha256, 5))
    for _ in range(2):
        store.remove(blob.sha256)
    assert not store.has(blob)
    with pytest.raises(FileNotFoundError):
        store.verify(blob)


@pytest.mark.parametrize("damaged", [b"dat", b"datA", b"data+", b""])
def test_damage_is_found(store: BlobStore, damaged: bytes) -> None:
    """A byte changed, lost or added after the blob came in: reading it says so, in terms of what to do."""
    blob = store.put(b"data")
    store.path(blob.sha256).write_bytes(damaged)
    for look in (store.read, store.verify):
        with pytest.raises(IntegrityError, match="fetch it again"):
            look(blob)


def test_a_truncated_blob_is_replaced(store: BlobStore) -> None:
    """A file of the right name and the wrong size does not pass for the blob: it is written anew."""
    blob = store.put(b"data")
    store.path(blob.sha256).write_bytes(b"da")
    store.put(b"data")
    store.verify(blob)


def test_adopting_moves(tmp_path: pathlib.Path, store: BlobStore) -> None:
    """An adopted file is gone from where it was, also when the blob was there before."""
    for _ in range(2):
        (tmp_path / "made").write_bytes(b"data")
        blob = store.adopt(tmp_path / "made")
        assert blob == blob_of(b"data")
        assert below(tmp_path) == [store.path(blob.sha256)]
        store.verify(blob)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    """Whoever raises while writing changes nothing; whoever does not replaces the whole file."""
    path = tmp_path / "a" / "file"
    with written_atomically(path) as file:
        file.write(b"old")

    def fail() -> None:
        with written_atomically(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert below(tmp_path) == [path]


def test_a_file_is_not_there_before_it_is_whole(tmp_path: pathlib.Path) -> None:
    """No reader ever sees a part: the name appears when the last byte is on the disk."""
    with written_atomically(tmp_path / "file") as file:
        file.write(b"half")
        file.flush()
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"half"


def test_kill_9_leaves_no_false_blob(store: BlobStore) -> None:
    """Killed at any moment, what lies under a blob's name keeps its promise."""
    for attempt in range(5):
        command = [sys.executable, "-c", WRITER, str(store.folder / str(attempt))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.007 * attempt)
            os.kill(process.pid, signal.SIGKILL)
    names = [path for path in below(store.folder) if not path.name.startswith(".")]
    assert names
    for path in names:
        assert blob_of_file(path).sha256 == path.name


def test_who_may_read_is_the_umasks_to_say(tmp_path: pathlib.Path) -> None:
    """A file written atomically is as readable as one that was simply opened."""
    with written_atomically(tmp_path / "atomic") as file:
        file.write(b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode
