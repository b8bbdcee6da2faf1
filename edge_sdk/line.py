"""The device's end of the line to its coordinator: greets until it is answered, then signs what goes and checks what
comes. No sockets and no clocks; what it must not lose is in `Identity`.

Rules:

- each Greeting has a nonce of its own; its answer has that nonce, and the signature of the coordinator;
- a conversation is begun anew after RENEW_S: the clocks of both ends, which it compares, drift;
- whoever answers first becomes the coordinator of a device that knows none yet;
- what an older conversation still brings is heard until a newer one is answered, and not afterwards;
- an announcement proves nothing but that somebody was the coordinator once: it leads to a Greeting, and that is all;
- a Chunk is signed by nobody, either way.
"""

from __future__ import annotations

import math
import random
from typing import Final

from edge_sdk.identity import Identity
from edge_sdk.wire.channel import Channel, greeting_channel, new_nonce, nonce_of, unsigned_chunk
from edge_sdk.wire.errors import DecodeError, SignatureError
from edge_sdk.wire.messages import (
    Announcement,
    Chunk,
    Greeting,
    Message,
    NotWelcome,
    Presence,
    Welcome,
    decode_message,
    encode_message,
)
from edge_sdk.wire.signed import NO_CHANNEL, Envelope, is_envelope, read_envelope, seal
from edge_sdk.wire.topics import Topics

GREET_S, LONGEST_GREET_S = 2.0, 60.0  # without an answer, before it is spread by up to a half: they double
UNWELCOME_S: Final = 60.0  # until a device that is not welcome asks again
RENEW_S: Final = 6 * 3600.0


class Line:
    """The line of `device`."""

    def __init__(self, identity: Identity, topics: Topics, device: str, seed: int) -> None:
        """No conversation yet. `seed` spreads the fleet's greetings in time."""
        self._identity, self._topics, self._device = identity, topics, device
        self._random = random.Random(seed)  # noqa: S311 - spreads greetings, guards nothing
        self._nonce, self._due_s, self._vain = b"", math.inf, 0  # of the Greeting that is not answered yet
        self._channel: Channel | None = None
        self._coordinator = ""  # the session of whom we talk to

    def begin(self, now_s: float) -> None:
        """Greet, now."""
        self._due_s, self._vain = now_s, 0

    def greeting(self, now_s: float) -> bytes | None:
        """The payload of a Greeting, where one is due."""
        if now_s < self._due_s:
            return None
        self._nonce = new_nonce()
        wait_s = min(GREET_S * 2.0 ** min(self._vain, 10), LONGEST_GREET_S)
        self._due_s = now_s + wait_s * self._random.uniform(1.0, 1.5)
        self._vain += 1
        signer, invitation, up = self._identity.signer, self._identity.invitation, self._topics.up(self._device)
        greeting = Greeting(self._device)
        if invitation is not None:
            greeting = Greeting(self._device, invitation.key, invitation.proof(up, signer.public))
        return seal(signer, up, greeting_channel(self._nonce), 0, encode_message(greeting))

    def seal(self, message: Message) -> bytes | None:
        """The payload of a message; None while nobody would hear it."""
        if isinstance(message, Chunk):
            return encode_message(message)
        return None if self._channel is None else self._channel.seal(message)

    def open(self, topic: str, payload: bytes, now_s: float) -> Message:
        """A message of the coordinator. Raises SignatureError, DecodeError, TooLargeError; OSError."""
        if not is_envelope(payload):
            return unsigned_chunk(payload)
        envelope = read_envelope(payload)
        if topic == self._topics.announcement:
            return self._announced(envelope, now_s)
        if self._channel is not None and envelope.channel == self._channel.nonces:
            return self._said(self._channel.open(envelope), now_s)
        if self._nonce and nonce_of(envelope.channel) == self._nonce:
            return self._answered(envelope, now_s)
        msg = "of another conversation"
        raise SignatureError(msg)

    def _announced(self, envelope: Envelope, now_s: float) -> Message:
        message = decode_message(envelope.verified(self._topics.announcement, self._peer(envelope)))
        if not isinstance(message, Announcement) or envelope.channel != NO_CHANNEL:
            msg = f"a {type(message).__name__} is no announcement"
            raise DecodeError(msg)
        if message.session != self._coordinator:
            self.begin(now_s)
        return message

    def _answered(self, envelope: Envelope, now_s: float) -> Message:
        """The first message of a new channel."""
        up, down = self._topics.up(self._device), self._topics.down(self._device)
        channel = Channel(self._identity.signer, self._peer(envelope), envelope.channel, up, down)
        message = channel.open(envelope)
        if isinstance(message, Welcome):
            if self._identity.coordinator is None:
                self._identity.pin(envelope.key)
            self._channel, self._coordinator = channel, message.session
            self._nonce, self._due_s, self._vain = b"", now_s + RENEW_S, 0
        elif not isinstance(message, NotWelcome):
            msg = f"a {type(message).__name__} is no answer to a greeting"
            raise DecodeError(msg)
        return self._said(message, now_s)

    def _said(self, message: Message, now_s: float) -> Message:
        if isinstance(message, NotWelcome):
            self._channel = None
            self._nonce, self._due_s = b"", now_s + UNWELCOME_S
        return message

    def _peer(self, envelope: Envelope) -> bytes:
        """The coordinator's key: the one that we know, else the one that signed this."""
        return self._identity.coordinator or envelope.key


def presence_payload(identity: Identity, topics: Topics, presence: Presence) -> bytes:
    """The signed payload for a presence topic. It is retained, and belongs to no conversation."""
    return seal(identity.signer, topics.presence(presence.device), NO_CHANNEL, 0, encode_message(presence))
