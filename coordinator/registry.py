"""Who belongs to the fleet: SQLite in the folder of trust, beside the coordinator's own key.

It belongs to the fleet and not to one run: devices know the coordinator by its key, so runs that share the folder share
the fleet. Another process may write while the coordinator runs, which sees it by `changed`.

A device's name belongs to the key that was enrolled for it. How a key is enrolled, `Enrolment` says.
"""

from __future__ import annotations

import enum
import pathlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from coordinator.errors import LedgerError
from edge_sdk.wire.keys import own_key
from edge_sdk.wire.messages import Unwelcome

FORMAT: Final = 1
BUSY_S: Final = 30.0  # for another process's transaction to end
MAX_DEVICES: Final = 10_000

SCHEMA: Final = """
CREATE TABLE devices (device TEXT PRIMARY KEY, key BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('enrolled', 'revoked')), since REAL NOT NULL);
"""


class Enrolment(enum.Enum):
    """How a device is enrolled: `open` takes the first key that comes with a name."""

    OPEN = "open"


class DeviceState(enum.Enum):
    """What a name and its key may do."""

    ENROLLED = "enrolled"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Registered:
    """A device that is known here."""

    device: str
    key: bytes
    state: DeviceState


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a greeting: None where the device may take part. `news` is a line for people, or empty."""

    unwelcome: Unwelcome | None
    news: str = ""


class Registry:
    """The registry in `folder`, for the thread that opened it. `signer` is the coordinator's key."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Open it, or begin it. Raises LedgerError, IntegrityError for a damaged key, OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self.signer = own_key(folder / "key")
        self._path = folder / "devices.sqlite"
        self._db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        self._version = self._data_version()

    def device(self, name: str) -> Registered | None:
        """What is known of a device."""
        row = self._db.execute("SELECT device, key, state FROM devices WHERE device = ?", (name,)).fetchone()
        return None if row is None else _registered(row)

    def devices(self) -> list[Registered]:
        """All that are known, by name."""
        return [_registered(row) for row in self._db.execute("SELECT device, key, state FROM devices ORDER BY device")]

    def admit(self, device: str, key: bytes, enrolment: Enrolment) -> Admission:
        """Whether the owner of `key` is the device of that name; one that is new may be enrolled by this."""
        known = self.device(device)
        if known is not None and known.key != key:
            return Admission(Unwelcome.OTHER_KEY)
        if known is not None:
            return Admission(None if known.state is DeviceState.ENROLLED else Unwelcome.REVOKED)
        if enrolment is Enrolment.OPEN and len(self.devices()) < MAX_DEVICES:
            self._set(device, key, DeviceState.ENROLLED)
            return Admission(None, "enrolled with the first key that came with its name")
        return Admission(Unwelcome.UNKNOWN)

    def revoke(self, device: str) -> bool:
        """Let the device take part in nothing any more; False where none of that name is known."""
        known = self.device(device)
        if known is not None:
            self._set(device, known.key, DeviceState.REVOKED)
        return known is not None

    def changed(self) -> bool:
        """Whether another process has written since the last time."""
        before, self._version = self._version, self._data_version()
        return before != self._version

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Registry:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        """A registry is its own context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _begin(self) -> None:
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        with self._transaction():
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found == 0:
                for statement in SCHEMA.split(";")[:-1]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {FORMAT}")
            elif found != FORMAT:
                msg = f"{self._path} has format {found}, this version reads {FORMAT}; choose another folder of trust"
                raise LedgerError(msg)

    def _set(self, device: str, key: bytes, state: DeviceState) -> None:
        values = (device, key, state.value, time.time())
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)", values)

    def _data_version(self) -> int:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _registered(row: tuple[str, bytes, str]) -> Registered:
    device, key, state = row
    return Registered(device, key, DeviceState(state))
