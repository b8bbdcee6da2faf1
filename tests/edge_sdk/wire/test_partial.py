"""Whatever a kill or a disk does to a blob on its way in: what is claimed is there, and the rest comes again."""

from __future__ import annotations

import errno
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.chunks import SAVE_S, Download, read_chunk, requested
from edge_sdk.wire.messages import CHUNK_BYTES
from tests.edge_sdk.wire.lines import SIZE, below, content, line

ROOT = pathlib.Path(__file__).parents[3]
# Takes a blob's chunks in a given order, a second apart, until it is killed; says how far it came.
TAKER = """
import pathlib, sys
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.chunks import Download, read_chunk
source, target = (BlobStore(pathlib.Path(folder)) for folder in sys.argv[1:3])
blob = Blob(sys.argv[3], int(sys.argv[4]))
download = Download(target, blob, 0.0, 0, chunk_bytes=1024)
for k in range(blob.size_bytes // 1024):
    download.take(read_chunk(source, blob, 1024, k * 7 % (blob.size_bytes // 1024)), float(k))
    print(k, flush=True)
"""


@given(st.integers(0, 19), st.integers(0, 1 << 30))
def test_after_close_only_the_rest_is_asked_for(taken: int, seed: int) -> None:
    """A download that was closed goes on: both processes together receive each byte once."""
    with line() as this:
        blob = this.source.put(content(20 * SIZE + 7))
        order = random.Random(seed).sample(range(21), taken)  # noqa: S311 - repeatable on purpose
        first = this.begin(blob)
        for index in order:
            first.take(read_chunk(this.source, blob, SIZE, index), 0.0)
        first.close()
        second = this.begin(blob)
        assert second.missing_bytes == first.missing_bytes == blob.size_bytes - first.received_bytes
        while not this.turn(second, blob):
            pass
        assert sorted(this.asked + order) == list(range(21))
        assert this.target.read(blob) == content(blob.size_bytes)


@given(st.lists(st.floats(0, 1.5), min_size=1, max_size=19))
def test_a_kill_costs_what_came_since_the_journal_was_written(pauses_s: list[float]) -> None:
    """Nothing is closed: what is asked for again came less than 2 s ago, and all of it after what is not."""
    with line() as this:
        blob = this.source.put(content(20 * SIZE))
        killed = this.begin(blob)
        for index, pause_s in enumerate(pauses_s):
            this.now_s += pause_s
            killed.poll(this.now_s)
            killed.take(read_chunk(this.source, blob, SIZE, index), this.now_s)
        kept = len(pauses_s) - killed._unsaved_bytes // SIZE
        assert sum(pauses_s[kept + 1 :]) < SAVE_S + 1e-9
        after = this.begin(blob)
        assert after.missing_bytes == (20 - kept) * SIZE
        while not this.turn(after, blob):
            pass
        assert this.asked == list(range(kept, 20))


def test_a_kill_on_a_fast_line_costs_at_most_16_mib() -> None:
    """However fast chunks come, the journal follows: here 65 chunks of 256 KiB come at once."""
    with line() as this:
        blob = this.source.put(content(72 * CHUNK_BYTES))
        killed = this.begin(blob, chunk_bytes=CHUNK_BYTES)
        for index in range(65):
            killed.take(read_chunk(this.source, blob, CHUNK_BYTES, index), 0.0)
        after = this.begin(blob, chunk_bytes=CHUNK_BYTES)
        assert after.missing_bytes == 8 * CHUNK_BYTES == killed.missing_bytes + CHUNK_BYTES


def test_a_real_kill_loses_nothing_that_is_claimed(tmp_path: pathlib.Path) -> None:
    """A process killed while it takes chunks: the next one finds on the disk all that it does not ask for."""
    source, target = BlobStore(tmp_path / "source"), BlobStore(tmp_path / "target")
    data = content(2000 * SIZE)
    blob = source.put(data)
    arguments = [str(source.folder), str(target.folder), blob.sha256, str(blob.size_bytes)]
    for kill_after in (5, 60, 200):
        with subprocess.Popen([sys.executable, "-c", TAKER, *arguments], stdout=subprocess.PIPE, cwd=ROOT) as taker:
            assert taker.stdout is not None
            for _ in range(kill_after):
                assert taker.stdout.readline()
            time.sleep(0.003)
            taker.send_signal(signal.SIGKILL)
        after = Download(target, blob, 0.0, 0, chunk_bytes=SIZE)
        held = [k for k in range(2000) if not after._missing >> k & 1]
        assert len(held) >= kill_after - 3
        on_disk = (target.folder / "partial" / f"{blob.sha256}.data").read_bytes()
        assert all(on_disk[k * SIZE : (k + 1) * SIZE] == data[k * SIZE : (k + 1) * SIZE] for k in held)
        assert below(target.folder / "blobs") == []


@given(st.data())
@settings(max_examples=60)
def test_a_journal_that_cannot_be_used_costs_time_alone(data: st.DataObject) -> None:
    """Damaged anywhere, cut anywhere, or beside a data file that is gone or short: all is asked for again."""
    with line() as this:
        blob = this.source.put(content(20 * SIZE))
        first = this.begin(blob)
        for index in (0, 7, 19):
            first.take(read_chunk(this.source, blob, SIZE, index), 0.0)
        first.close()
        partial = this.target.folder / "partial" / blob.sha256
        journal, chunks = partial.with_suffix(".journal"), partial.with_suffix(".data")
        record = journal.read_bytes()
        place = data.draw(st.integers(0, len(record) - 1))
        changed = record[:place] + bytes([record[place] ^ data.draw(st.integers(1, 255))]) + record[place + 1 :]
        match data.draw(st.sampled_from(["damaged", "cut", "longer", "no data", "short data"])):
            case "damaged":
                journal.write_bytes(changed)
            case "cut":
                journal.write_bytes(record[:place])
            case "longer":
                journal.write_bytes(record + b"x" * data.draw(st.sampled_from([1, 10_000])))
            case "no data":
                chunks.unlink()
            case "short data":
                os.truncate(chunks, 20 * SIZE - 1)
        second = this.begin(blob)
        assert second.missing_bytes == blob.size_bytes
        while not this.turn(second, blob):
            pass
        assert this.target.read(blob) == content(blob.size_bytes)


def test_chunks_of_another_size_begin_anew() -> None:
    """A journal that counts in other chunks says nothing about these."""
    with line() as this:
        blob = this.source.put(content(8 * SIZE))
        first = this.begin(blob, chunk_bytes=2 * SIZE)
        for index in (0, 3):
            first.take(read_chunk(this.source, blob, 2 * SIZE, index), 0.0)
        first.close()
        assert this.begin(blob).missing_bytes == blob.size_bytes
        assert below(this.target.folder) == []


def test_a_full_disk_is_said_and_nothing_is_half_there() -> None:
    """The OSError passes; with room again the same download goes on, and asks for what was not written."""
    with line() as this:
        blob = this.source.put(content(2 * SIZE))
        download = this.begin(blob)
        download.poll(0.0)
        data = this.target.folder / "partial" / f"{blob.sha256}.data"
        data.parent.mkdir(parents=True)
        data.symlink_to("/dev/full")
        chunks = [read_chunk(this.source, blob, SIZE, index) for index in (0, 1)]
        for chunk in chunks:
            with pytest.raises(OSError, match="space") as caught:
                download.take(chunk, 0.0)
            assert caught.value.errno == errno.ENOSPC
        assert not this.target.has(blob)
        data.unlink()
        request = download.poll(1000.0)
        assert request is not None
        assert requested(request, 2 * SIZE) == (0, 1)
        assert [download.take(chunk, 1000.0) for chunk in chunks] == [False, True]


def test_discard_leaves_nothing() -> None:
    """A blob that nobody wants any more takes no room; closing afterwards brings nothing back."""
    with line() as this:
        blob = this.source.put(content(3 * SIZE))
        download = this.begin(blob)
        for index, now_s in ((0, 0.0), (1, 2 * SAVE_S)):
            download.take(read_chunk(this.source, blob, SIZE, index), now_s)
        assert len(below(this.target.folder)) == 2
        download.discard()
        download.close()
        assert below(this.target.folder) == []
