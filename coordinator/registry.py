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
from edge_sdk.wire.blobs import make_folder
from edge_sdk.wire.keys import own_key
from edge_sdk.wire.messages import Unwelcome
from edge_sdk.wire.tokens import invite

FORMAT: Final = 1
BUSY_S: Final = 30.0  # for another process's transaction to end
MAX_DEVICES: Final = 10_000

SCHEMA: Final = """
CREATE TABLE devices (device TEXT PRIMARY KEY, key BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'enrolled', 'revoked')), since REAL NOT NULL);
CREATE TABLE invitations (device TEXT PRIMARY KEY, key BLOB NOT NULL, made_at REAL NOT NULL);
CREATE TABLE offers (version INTEGER NOT NULL);
INSERT INTO offers VALUES (0);
"""


class Enrolment(enum.Enum):
    """How a device is enrolled: `open` takes the first key that comes with a name, `token` the key that comes with an
    invitation, or that a person approves.
    """

    OPEN = "open"
    TOKEN = "token"  # noqa: S105 - a way, not a secret


class DeviceState(enum.Enum):
    """What a name and its key may do."""

    WAITING = "waiting"
    ENROLLED = "enrolled"
    REVOKED = "revoked"


_WELCOME: Final = {
    DeviceState.WAITING: Unwelcome.UNKNOWN,
    DeviceState.ENROLLED: None,
    DeviceState.REVOKED: Unwelcome.REVOKED,
}


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
        make_folder(folder)
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

    def admit(self, device: str, key: bytes, enrolment: Enrolment, invitation: bytes = b"") -> Admission:
        """Whether the owner of `key` is the device of that name; one that is new may be enrolled by this.

        `invitation` is the key of one that `key` was proved to come with; empty for none.
        """
        known = self.device(device)
        if invitation and self._invited(device) == invitation:
            self._set(device, key, DeviceState.ENROLLED)
            return Admission(None, "enrolled by its token")
        if known is not None and known.key == key:
            return Admission(_WELCOME[known.state])
        if invitation:
            return Admission(Unwelcome.BAD_TOKEN)
        if known is not None:
            return Admission(Unwelcome.OTHER_KEY)
        if self._count() < MAX_DEVICES:
            is_open = enrolment is Enrolment.OPEN
            self._set(device, key, DeviceState.ENROLLED if is_open else DeviceState.WAITING)
            if is_open:
                return Admission(None, "enrolled with the first key that came with its name")
        return Admission(Unwelcome.UNKNOWN)

    def invite(self, device: str) -> str:
        """A token for the device of that name; one made before is good no more."""
        invitation = invite(self.signer.public)
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO invitations VALUES (?, ?, ?)", (device, invitation.key, time.time())
            )
        return invitation.token

    def invited(self) -> list[str]:
        """The names that tokens are out for."""
        return [device for (device,) in self._db.execute("SELECT device FROM invitations ORDER BY device")]

    def approve(self, device: str) -> Registered | None:
        """Let a device that waits, or was revoked, take part with the key that it has; None where it is not known."""
        return self._judge(device, DeviceState.ENROLLED)

    def revoke(self, device: str) -> Registered | None:
        """Let a device take part in nothing any more, its token neither; None where it is not known."""
        return self._judge(device, DeviceState.REVOKED)

    def version(self) -> int:
        """The version of what is offered now."""
        (version,) = self._db.execute("SELECT version FROM offers").fetchone()
        return int(version)

    def raise_version(self, least: int = 0) -> int:
        """The next version, at least so high; on disk before anything is offered under it."""
        with self._transaction():
            self._db.execute("UPDATE offers SET version = max(version + 1, ?)", (least,))
        return self.version()

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

    def _judge(self, device: str, state: DeviceState) -> Registered | None:
        known = self.device(device)
        if known is None:
            return None
        self._set(device, known.key, state)
        return self.device(device)

    def _invited(self, device: str) -> bytes | None:
        row = self._db.execute("SELECT key FROM invitations WHERE device = ?", (device,)).fetchone()
        return None if row is None else bytes(row[0])

    def _count(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM devices").fetchone()
        return int(count)

    def _set(self, device: str, key: bytes, state: DeviceState) -> None:
        """Whatever is said of a name, its token was used by that."""
        values = (device, key, state.value, time.time())
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)", values)
            if state is not DeviceState.WAITING:
                self._db.execute("DELETE FROM invitations WHERE device = ?", (device,))

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
