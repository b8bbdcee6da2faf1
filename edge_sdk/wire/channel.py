"""One conversation of a device and its coordinator: what is said in it is signed, fresh, and heard at most once.

A device begins one with a Greeting under a nonce of its own, and the coordinator's Welcome adds one, too: both together
are the channel. So either end knows that whatever comes in it was signed after the channel began, without a
clock, and without a counter that would have to outlive a power cut. Within, each end numbers its messages; of those
that come, the last WINDOW numbers are remembered, and older ones are refused: RFC 4303, section 3.4.3.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final

from edge_sdk.wire.errors import SignatureError
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.messages import Chunk, Message, decode_message, encode_message
from edge_sdk.wire.signed import CHANNEL_BYTES, NONCE_BYTES, Envelope, seal

WINDOW: Final = 64


@dataclass(frozen=True, slots=True)
class Window:
    """Which numbers came: `highest`, and bit k of `seen` for the number that is k lower."""

    highest: int = -1
    seen: int = 0

    def after(self, number: int) -> Window | None:
        """The window once this number came, too; None if it came before, or is too old to tell."""
        if number > self.highest:
            seen = (self.seen << min(number - self.highest, WINDOW)) | 1
            return Window(number, seen & ((1 << WINDOW) - 1))
        bit = 1 << (self.highest - number)
        if bit >> WINDOW or self.seen & bit:
            return None
        return Window(self.highest, self.seen | bit)


@dataclass(slots=True)
class Channel:
    """One end of it: signs with `signer` for the topic `says`, hears the owner of `peer` on the topic `hears`.

    `said` messages went out already.
    """

    signer: Signer
    peer: bytes
    nonces: bytes
    says: str
    hears: str
    said: int = 0
    _heard: Window = field(default_factory=Window)

    def seal(self, message: Message) -> bytes:
        """The payload of the next message. Raises ValueError as `encode_message` does."""
        payload = seal(self.signer, self.says, self.nonces, self.said, encode_message(message))
        self.said += 1
        return payload

    def open(self, envelope: Envelope) -> Message:
        """A message of the other end. Raises SignatureError for one that is not, or came before; DecodeError."""
        if envelope.channel != self.nonces:
            msg = "of another conversation"
            raise SignatureError(msg)
        body = envelope.verified(self.hears, self.peer)
        window = self._heard.after(envelope.number)
        if window is None:
            msg = f"message {envelope.number} of this conversation came before, or comes too late"
            raise SignatureError(msg)
        self._heard = window
        return decode_message(body)


def new_nonce() -> bytes:
    """What nobody can have signed before."""
    return secrets.token_bytes(NONCE_BYTES)


def greeting_channel(nonce: bytes) -> bytes:
    """The channel of a Greeting: the device's nonce alone."""
    return nonce.ljust(CHANNEL_BYTES, b"\0")


def nonce_of(channel: bytes) -> bytes:
    """The device's nonce in a channel."""
    return channel[:NONCE_BYTES]


def unsigned_chunk(payload: bytes) -> Chunk:
    """The one message that nobody signs. Raises SignatureError for any other, DecodeError, TooLargeError."""
    message = decode_message(payload)
    if not isinstance(message, Chunk):
        msg = f"a {type(message).__name__} that nobody signed"
        raise SignatureError(msg)
    return message
