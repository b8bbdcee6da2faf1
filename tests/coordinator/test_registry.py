"""Whose key a name is, on disk."""

from __future__ import annotations

import pathlib
import sqlite3

import pytest

from coordinator.errors import LedgerError
from coordinator.registry import Admission, DeviceState, Enrolment, Registered, Registry
from edge_sdk.wire.messages import Unwelcome

KEY, OTHER = b"a" * 32, b"b" * 32


def test_the_first_key_that_comes_with_a_name_stays(tmp_path: pathlib.Path) -> None:
    """Also for the next coordinator process; the coordinator's own key stays, too."""
    with Registry(tmp_path) as registry:
        assert registry.admit("pi", KEY, Enrolment.OPEN).unwelcome is None
        own = registry.signer.public
    with Registry(tmp_path) as registry:
        assert registry.signer.public == own
        assert registry.admit("pi", KEY, Enrolment.OPEN) == Admission(None)
        assert registry.admit("pi", OTHER, Enrolment.OPEN).unwelcome is Unwelcome.OTHER_KEY
        assert registry.devices() == [Registered("pi", KEY, DeviceState.ENROLLED)]


def test_a_revoked_device_stays_revoked(tmp_path: pathlib.Path) -> None:
    """With its key and with another one; who was never known cannot be revoked."""
    with Registry(tmp_path) as registry:
        assert not registry.revoke("pi")
        registry.admit("pi", KEY, Enrolment.OPEN)
        assert registry.revoke("pi")
        assert registry.admit("pi", KEY, Enrolment.OPEN).unwelcome is Unwelcome.REVOKED
        assert registry.admit("pi", OTHER, Enrolment.OPEN).unwelcome is Unwelcome.OTHER_KEY


def test_another_process_may_write(tmp_path: pathlib.Path) -> None:
    """A coordinator that runs sees it, once."""
    with Registry(tmp_path) as running, Registry(tmp_path) as command:
        running.admit("pi", KEY, Enrolment.OPEN)
        assert not running.changed()
        command.revoke("pi")
        assert running.changed()
        assert not running.changed()
        assert running.admit("pi", KEY, Enrolment.OPEN).unwelcome is Unwelcome.REVOKED


def test_another_format_is_refused(tmp_path: pathlib.Path) -> None:
    """One line, and nothing is changed."""
    Registry(tmp_path).close()
    with sqlite3.connect(tmp_path / "devices.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(LedgerError, match="has format 99"):
        Registry(tmp_path)
