"""Invitations: a token, good once, by which a new device and its coordinator know each other before they ever met.

    fedpeat- | base64url of: the coordinator's public key, 32 bytes | seed, 32 bytes | CRC-32 of both, 4 bytes

The seed is that of an Ed25519 key of the invitation's own. The device signs its own key with it, the coordinator knows
its public half alone: so nothing that is kept or sent would let anybody else use the token, or know it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.keys import KEY_BYTES, Signer, is_signed

PREFIX: Final = "fedpeat-"
CRC_BYTES: Final = 4
DOMAIN: Final = b"fedpeat invitation"


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a token says: the coordinator's public key, and the seed of the invitation's own."""

    coordinator: bytes
    seed: bytes

    @property
    def key(self) -> bytes:
        """The public half of the invitation's key: all that the coordinator keeps."""
        return Signer(self.seed).public

    @property
    def token(self) -> str:
        """The text for people to carry."""
        data = self.coordinator + self.seed
        code = base64.urlsafe_b64encode(data + zlib.crc32(data).to_bytes(CRC_BYTES, "big"))
        return PREFIX + code.decode().rstrip("=")

    def proof(self, topic: str, device_key: bytes) -> bytes:
        """That whoever holds the token means this device's key, for this topic of its own."""
        return Signer(self.seed).sign(_proved(topic, device_key))


def invite(coordinator: bytes) -> Invitation:
    """A new one."""
    return Invitation(coordinator, secrets.token_bytes(KEY_BYTES))


def read_token(token: str) -> Invitation:
    """What a token says. Raises ValueError for a text that is none, or was not copied whole."""
    code = token.removeprefix(PREFIX)
    try:
        data = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    whole, crc = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "big")
    if not token.startswith(PREFIX) or len(whole) != 2 * KEY_BYTES or zlib.crc32(whole) != crc:
        msg = "it must be a token as `fedpeat devices invite` prints it, copied whole"
        raise ValueError(msg)
    return Invitation(whole[:KEY_BYTES], whole[KEY_BYTES:])


def is_invited(invitation_key: bytes, proof: bytes, topic: str, device_key: bytes) -> bool:
    """Whether who holds the token of that invitation meant this key."""
    return is_signed(invitation_key, proof, _proved(topic, device_key))


def _proved(topic: str, device_key: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in (DOMAIN, topic.encode(), device_key))
