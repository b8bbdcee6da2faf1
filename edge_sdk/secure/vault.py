"""What a device keeps of its secure sums, on disk.

    <folder>/<name>.sum        what `member` remembers, and the worker's report; the name is the task's, hashed
    <folder>/<name>.numbers    the delta as integers, until it is masked; nobody gets it

A sum exists from the rename of its record on: the numbers come before it. Once they are masked and the outbox has the
result, they go, and the record stays: neighbours' shares are in it. It goes when the coordinator has its last word on
the task, or when the device takes part in another sum: of one coordinator's only the last is open.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge_sdk.secure.member import Member
from edge_sdk.wire.blobs import moved_durably, sync_folder
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.messages import Report
from edge_sdk.wire.records import read_record, write_record

SUM, NUMBERS, DAMAGED = ".sum", ".numbers", ".damaged"
MAX_RECORD_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """One sum: what is remembered, and what the worker said of the task."""

    member: Member
    report: Report


@dataclass(frozen=True, slots=True)
class Vault:
    """The sums in `folder`, which is its alone and on the file system of the worker's results."""

    folder: pathlib.Path

    def load(self) -> tuple[list[Kept], list[str]]:
        """Every sum, and a line for each record that is damaged and was set aside. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = [self._read(path) for path in sorted(self.folder.glob(f"*{SUM}"))]
        kept = [one for one in found if isinstance(one, Kept)]
        names = {self._name(one.member.task_id) for one in kept}
        for path in self._loose(names):
            path.unlink()
        return kept, [one for one in found if isinstance(one, str)]

    def begin(self, kept: Kept, numbers: pathlib.Path) -> None:
        """Move the numbers in and write the record; once this returns the device is in the sum. Raises OSError."""
        moved_durably(numbers, self.numbers(kept.member.task_id), "sum-numbers")
        self.write(kept)

    def write(self, kept: Kept) -> None:
        """What is remembered from now on. Raises OSError."""
        write_record(self._path(kept.member.task_id, SUM), kept, "sum-record")

    def numbers(self, task_id: str) -> pathlib.Path:
        """Where the numbers lie, until they are masked."""
        return self._path(task_id, NUMBERS)

    def forget_numbers(self, task_id: str) -> None:
        """They are masked. Forgetting twice is no error. Raises OSError."""
        self.numbers(task_id).unlink(missing_ok=True)

    def forget(self, task_id: str) -> None:
        """The sum is over: nothing of it is needed. Forgetting twice is no error. Raises OSError."""
        path = self._path(task_id, SUM)
        if path.exists():
            path.unlink()
            sync_folder(self.folder)
        self.forget_numbers(task_id)

    def _read(self, path: pathlib.Path) -> Kept | str:
        try:
            return read_record(Kept, path, MAX_RECORD_BYTES)
        except (WireError, OSError) as error:
            path.replace(path.with_suffix(DAMAGED))
            return f"a secure sum was damaged on disk and is set aside as {path.stem}{DAMAGED}: {error}"

    def _loose(self, names: set[str]) -> Iterator[pathlib.Path]:
        """Numbers without a record, and files that were being written when the power went."""
        yield from (path for path in self.folder.glob(f"*{NUMBERS}") if path.stem not in names)
        yield from self.folder.glob(".*.tmp")

    def _path(self, task_id: str, suffix: str) -> pathlib.Path:
        return self.folder / f"{self._name(task_id)}{suffix}"

    @staticmethod
    def _name(task_id: str) -> str:
        return hashlib.sha256(task_id.encode()).hexdigest()
