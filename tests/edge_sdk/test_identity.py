"""Who a device is outlives its process."""

from __future__ import annotations

import pathlib

import pytest

from edge_sdk.identity import Identity
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.keys import Signer

COORDINATOR = Signer(bytes(32)).public


def test_an_identity_outlives_its_process(tmp_path: pathlib.Path) -> None:
    """The key, and the coordinator's once it was pinned."""
    first = Identity(tmp_path)
    assert first.coordinator is None
    first.pin(COORDINATOR)
    second = Identity(tmp_path)
    assert (second.signer.public, second.coordinator) == (first.signer.public, COORDINATOR)


def test_a_damaged_record_is_no_new_beginning(tmp_path: pathlib.Path) -> None:
    """Whoever can damage the file must not become the coordinator: the device stops, and says what to do."""
    Identity(tmp_path).pin(COORDINATOR)
    path = tmp_path / "coordinator"
    for data in (b"", path.read_bytes()[:-1], bytes(200)):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"is damaged.*enrol anew"):
            Identity(tmp_path)
