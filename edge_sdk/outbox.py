"""Results that wait for their receipt, and the residual of those that were accepted, on disk.

    <folder>/blobs/<sha256>       the delta
    <folder>/<name>.result        the ResultOffer, see `edge_sdk.wire.records`; the name is the task's, hashed
    <folder>/residual             what accepted deltas have left out, see `edge_sdk.feedback`
    <folder>/<name>.residual      the same, once this result is accepted
    <folder>/<name>.damaged       a record that could not be used, set aside for a person to look at

A result exists from the rename of its record to the record's removal: the delta comes before it and goes after it. So
whatever moment the power is cut at, a result is there whole or was never there, and `load` sweeps up what belongs to
none. The bytes of a delta are verified when the agent starts, so what is offered can be had.

A result's residual comes before its record, too. When the result is accepted it takes the former one's place, by one
rename, before the record goes: a receipt that comes again finds nothing left to rename. When the result is refused or
cancelled, it goes after the record, and the former one stays.
"""

from __future__ import annotations

import hashlib
import pathlib
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.blobs import Blob, BlobStore, moved_durably, sync_folder
from edge_sdk.wire.crash_points import crash_point
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import Report, ResultOffer
from edge_sdk.wire.records import check_record, read_record, write_record

SUFFIX, RESIDUAL, DAMAGED = ".result", ".residual", ".damaged"
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

    @property
    def residual(self) -> pathlib.Path:
        """Where the residual lies, if there is one."""
        return self.folder / "residual"

    def load(self) -> Contents:
        """Read every record and verify its delta; set the damaged aside, sweep up the rest. Raises OSError."""
        found = [self._read_or_set_aside(path) for path in sorted(self.folder.glob(f"*{SUFFIX}"))]
        results = tuple(result for result in found if isinstance(result, ResultOffer))
        self._sweep(results)
        return Contents(results, tuple(complaint for complaint in found if isinstance(complaint, str)))

    def keep(
        self, task_id: str, delta_path: pathlib.Path, report: Report, residual_path: pathlib.Path | None = None
    ) -> ResultOffer:
        """Move residual and delta in and write the record; once this returns the result survives anything.

        A second result of the same task takes the first one's place. Raises OSError, for one when the disk is full; the
        delta is not kept then, so as not to fill it any further.
        """
        path = self._path(task_id)
        if residual_path is not None:
            moved_durably(residual_path, path.with_suffix(RESIDUAL), "residual-kept")
        result = ResultOffer(task_id, self.deltas.adopt(delta_path, "delta-kept"), report)
        try:
            write_record(path, result, "result-kept")
        except OSError:
            if not path.exists():  # a first result of the same bytes still needs them
                self.deltas.remove(result.delta.sha256)
                path.with_suffix(RESIDUAL).unlink(missing_ok=True)
            raise
        return result

    def holds(self, task_id: str) -> bool:
        """Whether a result of this task waits for its receipt."""
        return self._path(task_id).exists()

    def forget(self, task_id: str, delta: Blob, *, accepted: bool) -> None:
        """The last word is here: remove record and delta, and use its residual from now on if it was `accepted`.

        Forgetting twice is no error. Raises OSError.
        """
        crash_point("receipt.heard")
        path = self._path(task_id)
        residual = path.with_suffix(RESIDUAL)
        if accepted and residual.exists():
            moved_durably(residual, self.residual, "residual-used")
        if path.exists():
            path.unlink()
            crash_point("receipt.record-gone")
            sync_folder(self.folder)
        residual.unlink(missing_ok=True)
        crash_point("receipt.residual-gone")
        self.deltas.remove(delta.sha256)
        crash_point("receipt.done")

    def check_residual(self) -> str | None:
        """Set the residual aside if it is damaged, and say so."""
        try:
            check_record(self.residual)
        except FileNotFoundError:
            return None
        except (WireError, OSError) as error:
            self.residual.replace(self.residual.with_suffix(DAMAGED))
            return f"the residual was damaged on disk and is set aside as {self.residual.name}{DAMAGED}: {error}"
        return None

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

    def _sweep(self, results: tuple[ResultOffer, ...]) -> None:
        """Remove deltas and residuals without a record, and files that were being written when the power went."""
        deltas = {result.delta.sha256 for result in results}
        for path in (self.folder / "blobs").glob("*"):
            if path.name not in deltas:
                path.unlink()
        names = {self._path(result.task_id).stem for result in results}
        for path in self.folder.glob(f"*{RESIDUAL}"):
            if path.stem not in names:
                path.unlink()
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
