"""Keys on disk, and what is a signature."""

from __future__ import annotations

import pathlib

import pytest

from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.keys import KEY_BYTES, Signer, fingerprint, is_signed, own_key


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    """The second start finds the first one's key; nobody else may read it."""
    path = tmp_path / "identity" / "key"
    first, second = own_key(path), own_key(path)
    assert first.public == second.public
    assert path.stat().st_mode & 0o777 == 0o600
    assert own_key(tmp_path / "another").public != first.public


@pytest.mark.parametrize("size_bytes", [0, KEY_BYTES - 1, KEY_BYTES + 1])
def test_a_damaged_key_is_not_replaced(tmp_path: pathlib.Path, size_bytes: int) -> None:
    """One line that says what to do, and the file stays: a new key would be another device."""
    path = tmp_path / "key"
    path.write_bytes(bytes(size_bytes))
    with pytest.raises(IntegrityError, match=f"has {size_bytes} bytes and is no key"):
        own_key(path)
    assert path.stat().st_size == size_bytes


def test_signatures_are_rfc_8032s() -> None:
    """The first test vector of section 7.1: another implementation makes and accepts the same bytes."""
    signer = Signer(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert signer.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    expected = (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b"
    )
    assert signer.sign(b"").hex() == expected
    assert is_signed(signer.public, bytes.fromhex(expected), b"")


@pytest.mark.parametrize("key", [b"", bytes(31), b"\xff" * 32])
def test_what_is_no_key_signs_nothing(key: bytes) -> None:
    """A key of another length, or no point of the curve, is no crash."""
    assert not is_signed(key, bytes(64), b"data")


def test_fingerprints_tell_keys_apart() -> None:
    """Equal for equal keys, short enough to be compared by eye."""
    one, other = Signer(bytes(32)).public, Signer(b"\1" * 32).public
    assert fingerprint(one) == fingerprint(bytes(one)) != fingerprint(other)
    assert len(fingerprint(one)) == 24
