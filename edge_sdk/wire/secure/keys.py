"""Keys of one device for one sum, and what two of them agree on: masks, and boxes that only the other can open.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20 for masks and ChaCha20-Poly1305 for boxes (RFC 8439). Processors of
small boards have no instructions for AES; ChaCha20 needs none.

A device has two private keys for each sum, for masks and for boxes, and signs both public halves with its own identity.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edge_sdk.wire.errors import MaskError
from edge_sdk.wire.keys import Signer, is_signed
from edge_sdk.wire.secure.said import KEY_BYTES

DOMAIN: Final = b"fedpeat secure sum"
NO_NONCE: Final = bytes(12)  # of a box: each of its keys closes one
COUNTER: Final = bytes(16)  # of a mask: block 0, and a nonce of zeros; each of its seeds makes one


def new_private() -> bytes:
    """A private key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """Its public half."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def mask_seed(private: bytes, public: bytes, sum_id: str) -> bytes:
    """What makes the mask of two devices, the same for both. Raises MaskError for what is no key."""
    return _agreed(private, public, "mask", sum_id)


def close_box(private: bytes, public: bytes, sum_id: str, way: tuple[str, str], data: bytes) -> bytes:
    """`data`, for the owner of `public` alone; `way` says from whom to whom. Raises MaskError for what is no key."""
    return ChaCha20Poly1305(_agreed(private, public, "box", sum_id, *way)).encrypt(NO_NONCE, data, None)


def open_box(private: bytes, public: bytes, sum_id: str, way: tuple[str, str], box: bytes) -> bytes:
    """What was closed by the owner of `public`. Raises MaskError for anything else."""
    try:
        return ChaCha20Poly1305(_agreed(private, public, "box", sum_id, *way)).decrypt(NO_NONCE, box, None)
    except InvalidTag as error:
        msg = f"a box of {way[0]} does not open"
        raise MaskError(msg) from error


def mask_stream(seed: bytes) -> CipherContext:
    """`update` of zeros gives a mask's next bytes."""
    return Cipher(ChaCha20(seed, COUNTER), mode=None).encryptor()


def digest_of(secret: bytes) -> bytes:
    """What a secret of 32 random bytes, or a share of one, can be told by, and not be found from."""
    return hashlib.sha256(_joined(DOMAIN, b"digest", secret)).digest()


def sign_keys(signer: Signer, sum_id: str, device: str, keys: tuple[bytes, ...]) -> bytes:
    """That the owner of an identity means these keys, for this sum."""
    return signer.sign(_meant(sum_id, device, keys))


def are_signed(identity: bytes, signature: bytes, sum_id: str, device: str, keys: tuple[bytes, ...]) -> bool:
    """Whether that is so."""
    return is_signed(identity, signature, _meant(sum_id, device, keys))


def _agreed(private: bytes, public: bytes, *what: str) -> bytes:
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # of no 32 bytes, or one that agrees with everybody on zero
        msg = "what is no key to agree with"
        raise MaskError(msg) from error
    info = _joined(DOMAIN, *(part.encode() for part in what))
    return HKDF(hashes.SHA256(), KEY_BYTES, None, info).derive(shared)


def _meant(sum_id: str, device: str, keys: tuple[bytes, ...]) -> bytes:
    return _joined(DOMAIN, b"keys", sum_id.encode(), device.encode(), *keys)


def _joined(*parts: bytes) -> bytes:
    """No two different lists of parts have the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
