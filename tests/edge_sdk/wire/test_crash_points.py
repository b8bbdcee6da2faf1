"""A process that is told to kill itself does so at its label, once, and nowhere else."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from edge_sdk.wire.crash_points import FILE_MOMENTS, VARIABLE, armed, labels

WRITES = """
import pathlib, sys
from edge_sdk.wire.blobs import written_atomically
for k in range(3):
    with written_atomically(pathlib.Path(sys.argv[1]) / str(k), "journal") as file:
        file.write(b"whole")
"""


def writes(folder: pathlib.Path, crash_at: str) -> int:
    """Write three files in a process of its own; its exit status."""
    environment = {**os.environ, VARIABLE: crash_at}
    return subprocess.run([sys.executable, "-c", WRITES, str(folder)], env=environment, check=False).returncode


@pytest.mark.parametrize("moment", FILE_MOMENTS)
@pytest.mark.parametrize("times", [1, 3])
def test_it_dies_at_its_label_and_what_is_there_is_whole(tmp_path: pathlib.Path, moment: str, times: int) -> None:
    """Killed at the k-th passing, and only once for one mark; a file is there after its rename, and not before."""
    mark, folder = tmp_path / "mark", tmp_path / "files"
    crash_at = f"journal.{moment}:{times}:{mark}"
    assert writes(folder, crash_at) == -signal.SIGKILL
    assert mark.exists()
    there = [path for path in folder.iterdir() if path.suffix != ".tmp"]
    assert len(there) == times - (moment in {"unsynced", "synced"})
    assert all(path.read_bytes() == b"whole" for path in there)
    assert writes(folder, crash_at) == 0


def test_another_label_and_no_label_do_nothing(tmp_path: pathlib.Path) -> None:
    """A label that is not passed, or an empty variable, changes nothing."""
    mark = tmp_path / "mark"
    assert writes(tmp_path / "a", f"install.renamed:1:{mark}") == 0
    assert writes(tmp_path / "b", "") == 0
    assert not mark.exists()


@pytest.mark.parametrize(
    "value", ["journal", "journal.synced:0:m", "journal.synced:1:", "journal.synced:x:m", "no:1:m"]
)
def test_a_label_that_is_none_is_refused(value: str) -> None:
    """Nobody believes in a sweep that armed nothing: the process says so, and does not start."""
    with pytest.raises(ValueError, match="LABEL:K:FILE"):
        armed(value)
    environment = {**os.environ, VARIABLE: value}
    command = [sys.executable, "-c", "import edge_sdk.wire.crash_points"]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1


def test_every_label_says_who_passes_it() -> None:
    """Each has at least one process."""
    assert len(labels()) > 100
    assert all(labels().values())
