"""What is around every message but a Chunk: who says it, in which conversation, as which message of it, and signed.

    0xc1 | key, 32 bytes | channel, 32 bytes | number, 8 bytes, big-endian | signature, 64 bytes | the message

0xc1 begins no msgpack, so nobody takes one for the other. The signature, Ed25519, covers DOMAIN, the topic, key,
channel, number and message, each behind its length in 4 bytes, big-endian. In the topic are the fleet, the protocol's
version, the device, and which of the two ends speaks: what is signed for one of them means nothing anywhere else.

Rules:

- nothing of a message is parsed before its signature is verified, and nothing above MAX_SIGNED_BYTES is looked at;
- `channel` is the device's and the coordinator's nonce, 16 bytes each, see `channel`; zeros in what is retained;
- a Chunk needs no signature: a signed message names the SHA-256 of the blob that it is a piece of.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.errors import DecodeError, SignatureError, TooLargeError
from edge_sdk.wire.keys import Signer, fingerprint, is_signed

DOMAIN: Final = b"fedpeat signed message"
MARK: Final = 0xC1
HEADER: Final = struct.Struct(">B32s32sQ64s")
NONCE_BYTES: Final = 16
CHANNEL_BYTES: Final = 2 * NONCE_BYTES
NO_CHANNEL: Final = bytes(CHANNEL_BYTES)
MAX_SIGNED_BYTES: Final = 1 << 16  # a whole signed message; chunks alone are longer


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed message as it came: `body` must not be parsed before `verified` gives it."""

    key: bytes
    channel: bytes
    number: int
    signature: bytes
    body: bytes

    def verified(self, topic: str, key: bytes) -> bytes:
        """The message, which the owner of `key` signed for this topic. Raises SignatureError."""
        if self.key != key:
            msg = f"signed with the key {fingerprint(self.key)}, and not with {fingerprint(key)}"
            raise SignatureError(msg)
        signed = _signed(topic, self.key, self.channel, self.number, self.body)
        if not is_signed(self.key, self.signature, signed):
            msg = "the signature is not that of these bytes on this topic"
            raise SignatureError(msg)
        return self.body


def is_envelope(payload: bytes) -> bool:
    """Whether a payload claims to be signed."""
    return payload[:1] == bytes([MARK])


def seal(signer: Signer, topic: str, channel: bytes, number: int, body: bytes) -> bytes:
    """The payload for `topic`. Raises ValueError for a body that nobody would accept."""
    if len(body) > MAX_SIGNED_BYTES - HEADER.size:
        msg = f"a message of {len(body)} bytes, at most {MAX_SIGNED_BYTES - HEADER.size} are accepted"
        raise ValueError(msg)
    signature = signer.sign(_signed(topic, signer.public, channel, number, body))
    return HEADER.pack(MARK, signer.public, channel, number, signature) + body


def read_envelope(payload: bytes) -> Envelope:
    """The parts of a payload, of which nothing is verified. Raises TooLargeError, DecodeError."""
    if len(payload) > MAX_SIGNED_BYTES:
        msg = f"{len(payload)} bytes, a signed message has at most {MAX_SIGNED_BYTES}"
        raise TooLargeError(msg)
    if len(payload) < HEADER.size or not is_envelope(payload):
        msg = "not a signed message"
        raise DecodeError(msg)
    _mark, key, channel, number, signature = HEADER.unpack_from(payload)
    return Envelope(key, channel, number, signature, payload[HEADER.size :])


def _signed(topic: str, key: bytes, channel: bytes, number: int, body: bytes) -> bytes:
    """The bytes that a signature covers: no two different messages have the same."""
    parts = (DOMAIN, topic.encode(), key, channel, number.to_bytes(8, "big"), body)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
