"""A result in the outbox survives anything until its receipt, and is never half there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from edge_sdk.outbox import DAMAGED, RESIDUAL, SUFFIX, Outbox
from edge_sdk.wire.blobs import BlobStore, blob_of
from edge_sdk.wire.messages import ResultOffer
from edge_sdk.wire.records import write_record
from tests.edge_sdk.samples import make_report
from tests.edge_sdk.wire.lines import below

REPORT = make_report()
ROOT = pathlib.Path(__file__).parents[2]
# Keeps and forgets results as fast as it can, and says what it did.
WRITER = """
import pathlib, sys
from edge_sdk.outbox import Outbox
from tests.edge_sdk.test_outbox import REPORT, made
folder = pathlib.Path(sys.argv[1])
outbox = Outbox(folder / "outbox")
for k in range(100_000):
    result = outbox.keep(f"task {k}", made(folder, b"delta %d" % k), REPORT)
    print("kept", k, flush=True)
    if k % 2:
        print("forgetting", k, flush=True)
        outbox.forget(result.task_id, result.delta, accepted=True)
"""


def made(folder: pathlib.Path, data: bytes) -> pathlib.Path:
    """A delta as the worker leaves it."""
    path = folder / "worker.delta"
    path.write_bytes(data)
    return path


def left_out(folder: pathlib.Path, what: str) -> pathlib.Path:
    """A residual as the worker leaves it."""
    path = folder / "worker.residual"
    write_record(path, what)
    return path


def residual(outbox: Outbox) -> bytes | None:
    """The residual from now on, without its checksum."""
    return outbox.residual.read_bytes()[33:] if outbox.residual.exists() else None


def record(outbox: Outbox) -> pathlib.Path:
    """The only record there is."""
    (path,) = outbox.folder.glob(f"*{SUFFIX}")
    return path


@pytest.fixture
def outbox(tmp_path: pathlib.Path) -> Outbox:
    """An empty outbox."""
    return Outbox(tmp_path / "outbox")


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file can be written, though one can be moved: what a full disk leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_result_that_cannot_be_kept_takes_no_room(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """Where there is no room for the record its delta goes, too; that of a result that was kept before stays."""
    delta = made(tmp_path, b"delta")
    with no_room(), pytest.raises(OSError, match="too large"):
        outbox.keep("a task", delta, REPORT)
    assert below(outbox.folder) == []
    result = outbox.keep("a task", made(tmp_path, b"delta"), REPORT)
    again = made(tmp_path, b"delta")
    with no_room(), pytest.raises(OSError, match="too large"):
        outbox.keep("a task", again, REPORT)
    assert outbox.load().results == (result,)


def test_a_result_comes_back_as_it_was_kept(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """Another process that opens the outbox finds task, delta and report."""
    result = outbox.keep("a task", made(tmp_path, b"delta"), REPORT)
    assert result == ResultOffer("a task", blob_of(b"delta"), REPORT)
    contents = Outbox(outbox.folder).load()
    assert contents.results == (result,)
    assert contents.complaints == ()
    assert outbox.deltas.read(result.delta) == b"delta"


def test_a_task_id_is_no_path(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """A task's name comes from elsewhere: one with slashes stays within the folder."""
    outbox.keep("../../etc/passwd", made(tmp_path, b"delta"), REPORT)
    assert record(outbox).parent == outbox.folder
    assert [result.task_id for result in outbox.load().results] == ["../../etc/passwd"]


def test_forgetting_leaves_nothing(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """After the receipt neither record nor delta remains, and a second receipt changes nothing."""
    result = outbox.keep("a task", made(tmp_path, b"delta"), REPORT)
    for _ in range(2):
        outbox.forget(result.task_id, result.delta, accepted=True)
    assert below(outbox.folder) == []


def test_an_outbox_that_never_was_is_empty(outbox: Outbox) -> None:
    """The first start of a device is no error."""
    assert outbox.load().results == ()


@pytest.mark.parametrize("position", [0, 5, 31, 32, 40, -1])
def test_a_flipped_byte_is_said_and_set_aside(tmp_path: pathlib.Path, outbox: Outbox, position: int) -> None:
    """Whichever byte of a record is wrong, the others are still delivered and a person can look at it."""
    outbox.keep("bad", made(tmp_path, b"bad delta"), REPORT)
    path = record(outbox)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    good = outbox.keep("good", made(tmp_path, b"good delta"), REPORT)
    contents = outbox.load()
    assert contents.results == (good,)
    assert len(contents.complaints) == 1
    assert path.with_suffix(DAMAGED).exists()
    assert outbox.load().complaints == ()


@pytest.mark.parametrize("delta", [None, b"cut"])
def test_a_damaged_delta_is_not_offered(tmp_path: pathlib.Path, outbox: Outbox, delta: bytes | None) -> None:
    """A record whose delta is gone or differs is set aside: the coordinator would ask for it in vain."""
    result = outbox.keep("a task", made(tmp_path, b"delta"), REPORT)
    path = outbox.deltas.path(result.delta.sha256)
    path.unlink()
    if delta is not None:
        path.write_bytes(delta)
    contents = outbox.load()
    assert contents.results == ()
    assert len(contents.complaints) == 1


def test_leftovers_of_a_power_cut_are_swept_up(outbox: Outbox) -> None:
    """A delta without a record, and a record that was being written, belong to no result."""
    BlobStore(outbox.folder).put(b"orphan")
    (outbox.folder / ".half.tmp").write_bytes(b"half")
    assert outbox.load().results == ()
    assert below(outbox.folder) == []


def test_kill_9_loses_no_result(tmp_path: pathlib.Path) -> None:
    """Killed at any moment, every result that was kept and not forgotten is whole, and nothing is damaged."""
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(0.01 + 0.013 * attempt)
            os.kill(process.pid, signal.SIGKILL)
            lines = [line.split() for line in [first, *process.stdout.read().splitlines()] if line.strip()]
        kept = {int(number) for word, number in lines if word == b"kept"}
        begun = {int(number) for word, number in lines if word == b"forgetting"}
        contents = Outbox(folder / "outbox").load()
        found = {int(result.task_id.split()[1]) for result in contents.results}
        assert contents.complaints == ()
        assert kept - begun <= found
        assert len(found - (kept - begun)) <= 1  # at most the one whose keeping or forgetting was cut short


def test_a_residual_counts_from_its_receipt_on(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """Not when it is made, not when it is kept: when its result is accepted, and then in the former one's place."""
    for what in ("first", "second"):
        before = residual(outbox)
        result = outbox.keep(what, made(tmp_path, b"delta"), REPORT, left_out(tmp_path, what))
        assert residual(outbox) == before
        assert Outbox(outbox.folder).load().results == (result,)
        for _ in range(2):
            outbox.forget(what, result.delta, accepted=True)
            assert residual(outbox) == what.encode()
    assert below(outbox.folder) == [outbox.residual]


def test_what_is_refused_leaves_the_residual_as_it_was(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """A delta that does not count has left nothing out; what earlier ones left out is still owed."""
    for what, accepted in (("kept", True), ("refused", False)):
        result = outbox.keep(what, made(tmp_path, b"delta"), REPORT, left_out(tmp_path, what))
        outbox.forget(what, result.delta, accepted=accepted)
    assert residual(outbox) == b"kept"
    assert below(outbox.folder) == [outbox.residual]


def test_a_result_without_a_residual_leaves_it_alone(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """A delta that was rounded by chance neither uses nor replaces what was left out before."""
    for what, path in (("with", left_out(tmp_path, "with")), ("without", None)):
        result = outbox.keep(what, made(tmp_path, b"delta"), REPORT, path)
        outbox.forget(what, result.delta, accepted=True)
    assert residual(outbox) == b"with"


def test_a_power_cut_within_a_receipt_applies_it_once(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """Cut after the rename and before the record goes, the result is offered again, and its receipt changes nothing."""
    result = outbox.keep("a task", made(tmp_path, b"delta"), REPORT, left_out(tmp_path, "first"))
    (pending,) = outbox.folder.glob(f"*{RESIDUAL}")
    pending.replace(outbox.residual)  # and no further
    assert Outbox(outbox.folder).load().results == (result,)
    outbox.forget("a task", result.delta, accepted=True)
    assert residual(outbox) == b"first"
    assert below(outbox.folder) == [outbox.residual]


def test_a_residual_of_no_result_is_swept_up(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """Cut before the record was written, or after it went, what was left out never was."""
    outbox.keep("a task", made(tmp_path, b"delta"), REPORT, left_out(tmp_path, "first"))
    record(outbox).unlink()
    assert outbox.load().results == ()
    assert below(outbox.folder) == []


def test_a_damaged_residual_is_set_aside(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """It is said, kept for a person to look at, and used no more; a sound one is left alone, and none is no error."""
    assert outbox.check_residual() is None
    result = outbox.keep("a task", made(tmp_path, b"delta"), REPORT, left_out(tmp_path, "first"))
    outbox.forget("a task", result.delta, accepted=True)
    assert outbox.check_residual() is None
    data = bytearray(outbox.residual.read_bytes())
    data[-1] ^= 1
    outbox.residual.write_bytes(data)
    assert "damaged" in (outbox.check_residual() or "")
    assert residual(outbox) is None
    assert outbox.check_residual() is None


def test_a_residual_that_cannot_be_kept_takes_no_room(tmp_path: pathlib.Path, outbox: Outbox) -> None:
    """Where there is no room for the record, residual and delta go, too."""
    delta, path = made(tmp_path, b"delta"), left_out(tmp_path, "first")
    with no_room(), pytest.raises(OSError, match="too large"):
        outbox.keep("a task", delta, REPORT, path)
    assert below(outbox.folder) == []
