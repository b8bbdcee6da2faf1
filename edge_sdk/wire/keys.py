"""Ed25519 keys: whoever has the private half of one is the device, or the coordinator, that it stands for.

A private key is a file of 32 bytes, RFC 8032's seed, that its owner alone may read. A public key is 32 bytes, too;
people compare its fingerprint.
"""

from __future__ import annotations

import hashlib
import pathlib
import secrets
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_sdk.wire.blobs import written_atomically
from edge_sdk.wire.errors import IntegrityError

KEY_BYTES: Final = 32  # of either half
SIGNATURE_BYTES: Final = 64
FINGERPRINT_BYTES: Final = 10


class Signer:
    """A private key. `public` is its other half."""

    def __init__(self, seed: bytes) -> None:
        """The key of a seed. Raises ValueError for one that has not 32 bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The signature: 64 bytes, always the same for the same data."""
        return self._key.sign(data)


def is_signed(key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the owner of this public key signed `data`. What is no key signs nothing."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(key: bytes) -> str:
    """A public key for people: 20 hexadecimal digits of its SHA-256, in fours."""
    digits = hashlib.sha256(key).digest()[:FINGERPRINT_BYTES].hex()
    return "-".join(digits[k : k + 4] for k in range(0, len(digits), 4))


def own_key(path: pathlib.Path) -> Signer:
    """The private key in the file `path`, which is made, with its folder, the first time.

    Raises IntegrityError where the file is no key, OSError.
    """
    if not path.exists():
        with written_atomically(path, mode=0o600) as file:
            file.write(secrets.token_bytes(KEY_BYTES))
    seed = path.read_bytes()
    if len(seed) != KEY_BYTES:
        msg = f"{path} has {len(seed)} bytes and is no key; bring it back from a backup, or delete it and enrol anew"
        raise IntegrityError(msg)
    return Signer(seed)
