"""Whose key a name is, on disk."""

from __future__ import annotations

import pathlib
import sqlite3

import pytest

from coordinator import registry as registry_module
from coordinator.errors import LedgerError
from coordinator.registry import Admission, DeviceState, Enrolment, Registered, Registry
from edge_sdk.wire.messages import Unwelcome
from edge_sdk.wire.tokens import read_token

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
        assert registry.revoke("pi") is None
        registry.admit("pi", KEY, Enrolment.OPEN)
        assert registry.revoke("pi") == Registered("pi", KEY, DeviceState.REVOKED)
        assert registry.admit("pi", KEY, Enrolment.OPEN).unwelcome is Unwelcome.REVOKED
        assert registry.admit("pi", OTHER, Enrolment.OPEN).unwelcome is Unwelcome.OTHER_KEY


def test_a_token_is_good_once(tmp_path: pathlib.Path) -> None:
    """For its name, for the first key that comes with it, and until another one is made for the name."""
    with Registry(tmp_path) as registry:
        first, second = (read_token(registry.invite("pi")).key for _ in range(2))
        assert registry.invited() == ["pi"]
        for name, token in (("pi", first), ("pi-2", second)):
            assert registry.admit(name, KEY, Enrolment.TOKEN, token).unwelcome is Unwelcome.BAD_TOKEN
        assert registry.admit("pi", KEY, Enrolment.TOKEN, second).unwelcome is None
        assert registry.admit("pi", KEY, Enrolment.TOKEN, second) == Admission(None), "the answer may have been lost"
        assert registry.admit("pi", OTHER, Enrolment.TOKEN, second).unwelcome is Unwelcome.BAD_TOKEN
        assert registry.invited() == []
        assert registry.devices() == [Registered("pi", KEY, DeviceState.ENROLLED)]


def test_a_new_token_replaces_a_lost_key(tmp_path: pathlib.Path) -> None:
    """The card of a board died: whoever invites the name again means the next key."""
    with Registry(tmp_path) as registry:
        registry.admit("pi", KEY, Enrolment.OPEN)
        token = read_token(registry.invite("pi")).key
        assert registry.admit("pi", OTHER, Enrolment.OPEN, token).unwelcome is None
        assert registry.admit("pi", KEY, Enrolment.OPEN).unwelcome is Unwelcome.OTHER_KEY


def test_who_comes_without_a_token_waits_for_approval(tmp_path: pathlib.Path) -> None:
    """Nothing is given to it until then, and the name is kept for the key that came first."""
    with Registry(tmp_path) as registry:
        assert registry.approve("pi") is None
        for _ in range(2):
            assert registry.admit("pi", KEY, Enrolment.TOKEN).unwelcome is Unwelcome.UNKNOWN
        assert registry.admit("pi", OTHER, Enrolment.TOKEN).unwelcome is Unwelcome.OTHER_KEY
        assert registry.approve("pi") == Registered("pi", KEY, DeviceState.ENROLLED)
        assert registry.admit("pi", KEY, Enrolment.TOKEN).unwelcome is None


def test_revoking_ends_a_token_too(tmp_path: pathlib.Path) -> None:
    """One that was out for the name; one that is made afterwards brings the device back."""
    with Registry(tmp_path) as registry:
        registry.admit("pi", KEY, Enrolment.OPEN)
        token = read_token(registry.invite("pi")).key
        registry.revoke("pi")
        assert registry.admit("pi", KEY, Enrolment.TOKEN, token).unwelcome is Unwelcome.REVOKED
        assert registry.admit("pi", OTHER, Enrolment.TOKEN, token).unwelcome is Unwelcome.BAD_TOKEN
        token = read_token(registry.invite("pi")).key
        assert registry.admit("pi", KEY, Enrolment.TOKEN, token).unwelcome is None


def test_a_registry_is_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever greets under ever new names fills it up to its bound and no further."""
    monkeypatch.setattr(registry_module, "MAX_DEVICES", 2)
    with Registry(tmp_path) as registry:
        for name in "abcd":
            registry.admit(name, KEY, Enrolment.OPEN)
        assert [device.device for device in registry.devices()] == ["a", "b"]


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
