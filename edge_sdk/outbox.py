"""Results that wait for their receipt, on disk.

    <folder>/blobs/<sha256>       the delta
    <folder>/<name>.result        the ResultOffer, see `edge_sdk.wire.records`; the name is the task's, hashed
    <folder>/<name>.damaged       a record that could not be used, set aside for a person to look at

A result exists from the rename of its record to the record's removal: the delta comes before it and goes after it. So
whatever moment the power is cut at, a result is there whole or was never there, and `load` sweeps up what belongs to
none. The bytes of a delta are verified when the agent starts, so what is offered can be had.
"""

from __future__ import annotations

import hashlib
import pathlib
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.blobs import Blob, BlobStore, sync_folder
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import Report, ResultOffer
from edge_sdk.wire.records import read_record, write_record

SUFFIX, DAMAGED = ".result", ".damaged"
MAX_RECORD_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Contents:
    """What an outbox held when it was opened; `complaints` has one line for each record that was set aside."""

    results: tuple[ResultOffer, ...]
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outbox:
    """The outbox in `folder`, which is its alone and on the file system of the worker's results."""

    folder: pathlib.Path

    @property
    def deltas(self) -> BlobStore:
        """The deltas that wait: all that this device lets be fetched from it."""
        return BlobStore(self.folder)

    def load(self) -> Contents:
        """Read every record and verify its delta; set the damaged aside, sweep up the rest. Raises OSError."""
        found = [self._read_or_set_aside(path) for path in sorted(self.folder.glob(f"*{SUFFIX}"))]
        results = tuple(result for result in found if isinstance(result, ResultOffer))
        self._sweep({result.delta.sha256 for result in results})
        return Contents(results, tuple(complaint for complaint in found if isinstance(complaint, str)))

    def keep(self, task_id: str, delta_path: pathlib.Path, report: Report) -> ResultOffer:
        """Move the delta in and write the record; once this returns the result survives anything.

        A second result of the same task takes the first one's place. Raises OSError, for one when the disk is full; the
        delta is not kept then, so as not to fill it any further.
        """
        result, path = ResultOffer(task_id, self.deltas.adopt(delta_path), report), self._path(task_id)
        try:
            write_record(path, result)
        except OSError:
            if not path.exists():  # a first result of the same bytes still needs them
                self.deltas.remove(result.delta.sha256)
            raise
        return result

    def forget(self, task_id: str, delta: Blob) -> None:
        """The receipt is here: remove record and delta. Forgetting twice is no error. Raises OSError."""
        path = self._path(task_id)
        if path.exists():
            path.unlink()
            sync_folder(self.folder)
        self.deltas.remove(delta.sha256)

    def _path(self, task_id: str) -> pathlib.Path:
        return self.folder / f"{hashlib.sha256(task_id.encode()).hexdigest()}{SUFFIX}"

    def _read_or_set_aside(self, path: pathlib.Path) -> ResultOffer | str:
        try:
            return self._read(path)
        except (WireError, OSError) as error:
            path.replace(path.with_suffix(DAMAGED))
            return f"a result was damaged on disk and is set aside as {path.stem}{DAMAGED}: {error}"

    def _read(self, path: pathlib.Path) -> ResultOffer:
        result = read_record(ResultOffer, path, MAX_RECORD_BYTES)
        self.deltas.verify(result.delta)
        return result

    def _sweep(self, wanted: set[str]) -> None:
        """Remove deltas without a record, and files that were being written when the power went."""
        for path in (self.folder / "blobs").glob("*"):
            if path.name not in wanted:
                path.unlink()
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
