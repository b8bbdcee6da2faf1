"""A blob on its way in, under any order of events: chunks lost, doubled, late, damaged and forged, kills, full disks.

No sockets, threads or clocks: hypothesis chooses what happens next. Afterwards the faults stop, and it must complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import zlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.chunks import LONGEST_WAIT_S, Download, read_chunk, requested
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.messages import Chunk
from tests.edge_sdk.wire.lines import SHM

EXAMPLES, STEPS = 40, 60
INDEX = st.integers(0, 1 << 16)


class Transfers(RuleBasedStateMachine):
    """One blob on its way in, in chunks of 1 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        folder = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None)))
        self.source, self.target = BlobStore(folder / "source"), BlobStore(folder / "target")
        self.blob = self.source.put(bytes(k * k % 251 for k in range(9 * 1024 + 77)))
        self.now_s, self.flying, self.done = 0.0, list[Chunk](), False
        self.download = self.begun()

    def begun(self) -> Download:
        """What a process that starts now begins with."""
        return Download(self.target, self.blob, self.now_s, seed=1, chunk_bytes=1024, window=4)

    @rule(after_s=st.floats(0, 2 * LONGEST_WAIT_S))
    def asks(self, after_s: float) -> None:
        """Time passes; whoever receives may ask."""
        self.now_s += after_s
        if not self.done and (request := self.download.poll(self.now_s)):
            self.flying += [
                read_chunk(self.source, self.blob, 1024, k) for k in requested(request, self.blob.size_bytes)
            ]

    @rule(which=INDEX, again=st.booleans())
    def delivers(self, which: int, *, again: bool) -> None:
        """Any chunk that is under way comes, and may come again."""
        if self.flying:
            k = which % len(self.flying)
            self.takes(self.flying[k] if again else self.flying.pop(k))

    @rule(lots=st.lists(INDEX, max_size=8))
    def goes_on(self, lots: list[int]) -> None:
        """For a while nothing is wrong."""
        self.asks(2 * LONGEST_WAIT_S)
        for which in lots:
            self.delivers(which, again=False)

    @rule(which=INDEX)
    def loses(self, which: int) -> None:
        """A chunk does not come."""
        if self.flying:
            self.flying.pop(which % len(self.flying))

    @rule(which=INDEX, place=INDEX, lies=st.booleans())
    def damages(self, which: int, place: int, *, lies: bool) -> None:
        """A chunk has another byte on its way; or its sender lies: its checksum is right, and it comes at once."""
        if self.flying:
            k = which % len(self.flying)
            data = bytearray(self.flying[k].data)
            data[place % len(data)] ^= 1
            if not lies:
                self.flying[k] = dataclasses.replace(self.flying[k], data=bytes(data))
                return
            self.takes(dataclasses.replace(self.flying.pop(k), data=bytes(data), crc32=zlib.crc32(data)))

    @rule()
    def is_killed(self) -> None:
        """Whoever receives is killed and starts again; what is under way arrives all the same."""
        if not self.done:
            self.download = self.begun()

    @rule(which=INDEX)
    def has_a_full_disk(self, which: int) -> None:
        """The disk is full when a chunk comes; afterwards there is room again."""
        data = self.target.folder / "partial" / f"{self.blob.sha256}.data"
        if self.done or not self.flying or data.exists():
            return
        data.parent.mkdir(parents=True, exist_ok=True)
        data.symlink_to("/dev/full")
        with contextlib.suppress(OSError):
            self.download.take(self.flying.pop(which % len(self.flying)), self.now_s)
        data.unlink()
        self.download = self.begun()

    def takes(self, chunk: Chunk) -> None:
        """Give a chunk to whoever receives; one that gives up on a liar begins anew."""
        if self.done:
            return
        try:
            self.done = self.download.take(chunk, self.now_s)
        except IntegrityError:
            self.download = self.begun()

    @invariant()
    def what_has_its_name_has_its_bytes(self) -> None:
        """Never a blob that is not what its name promises; and it is there exactly when that was said."""
        there = self.target.path(self.blob.sha256).exists()
        assert there == self.done
        if there:
            self.target.verify(self.blob)

    def teardown(self) -> None:
        """The faults stop: it completes."""
        self.flying.clear()
        for _ in range(200):
            self.asks(2 * LONGEST_WAIT_S)
            while self.flying:
                self.takes(self.flying.pop(0))
        assert self.done
        self.what_has_its_name_has_its_bytes()
        self.stack.close()


def test_whatever_happens_nothing_wrong_is_installed() -> None:
    """Chunks lost, doubled, reordered, damaged, forged; kills and full disks: only the true blob gets its name."""
    run_state_machine_as_test(
        Transfers,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, suppress_health_check=list(HealthCheck)),
    )
