"""Who may speak to the coordinator, and what it says to them: greetings, channels, signatures. No sockets, no clocks.

Rules:

- the coordinator's half of a channel is its session and a count, so of a device's channels the latest that it has used
  is known without remembering any other: what was said in an earlier one is refused, and a Greeting of old, sent again
  by somebody else, leads to a Welcome that only the device could use, and changes nothing;
- whoever may not take part gets that as a signed answer, and nothing else;
- what is retained belongs to no channel: a Presence counts by its session, see `fleet`;
- a Chunk is signed by nobody, either way.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from coordinator.registry import DeviceState, Enrolment, Registry
from edge_sdk.wire.channel import Channel, greeting_channel, nonce_of, unsigned_chunk
from edge_sdk.wire.errors import DecodeError, SignatureError
from edge_sdk.wire.keys import fingerprint
from edge_sdk.wire.messages import (
    Announcement,
    Chunk,
    Greeting,
    Message,
    NotWelcome,
    Presence,
    Unwelcome,
    Welcome,
    decode_message,
    encode_message,
)
from edge_sdk.wire.signed import NO_CHANNEL, NONCE_BYTES, Envelope, is_envelope, read_envelope, seal
from edge_sdk.wire.tokens import is_invited
from edge_sdk.wire.topics import Topics

WHY: Final = {
    Unwelcome.UNKNOWN: "the device is not enrolled; `fedpeat devices approve` or a token would do that",
    Unwelcome.BAD_TOKEN: "the token is not for this name, or was used, or another one was made since",
    Unwelcome.OTHER_KEY: "another key is enrolled under this name",
    Unwelcome.REVOKED: "the device was revoked",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A payload for the device that spoke; `news` is a line for people, or empty."""

    payload: bytes
    news: str


class Gate:
    """The gate of one coordinator process. `session` is what it announces itself as."""

    def __init__(self, registry: Registry, topics: Topics, enrolment: Enrolment) -> None:
        """Nobody has greeted yet."""
        self._own = secrets.token_bytes(NONCE_BYTES // 2)
        self.session = self._own.hex()
        self._welcomes = 0
        self._registry, self._topics, self._enrolment = registry, topics, enrolment
        self._channels: dict[str, Channel] = {}

    def announcement(self, round_: int) -> bytes:
        """The signed payload for the announcement's topic."""
        body = encode_message(Announcement(self.session, round_))
        return seal(self._registry.signer, self._topics.announcement, NO_CHANNEL, 0, body)

    def seal(self, device: str, message: Message) -> bytes | None:
        """The payload for a device; None while it has no channel, and would not believe us."""
        if isinstance(message, Chunk):
            return encode_message(message)
        channel = self._channels.get(device)
        return None if channel is None else channel.seal(message)

    def revoked(self) -> dict[str, bytes]:
        """Devices that may not go on, and the payload that tells each so; their channels are over."""
        if not self._registry.changed():
            return {}
        known = self._registry.devices()
        enrolled = {(one.device, one.key) for one in known if one.state is DeviceState.ENROLLED}
        over = [device for device, channel in self._channels.items() if (device, channel.peer) not in enrolled]
        message = NotWelcome(Unwelcome.REVOKED, WHY[Unwelcome.REVOKED])
        return {device: self._channels.pop(device).seal(message) for device in over}

    def hear(self, device: str, topic: str, payload: bytes, now_s: float) -> Message | Reply:
        """What a device says on one of its two topics. Raises SignatureError, DecodeError, TooLargeError."""
        if not is_envelope(payload):
            return unsigned_chunk(payload)
        envelope = read_envelope(payload)
        if topic == self._topics.presence(device):
            return self._presence(device, topic, envelope)
        if envelope.channel == greeting_channel(nonce_of(envelope.channel)):
            return self._greeted(device, topic, envelope, now_s)
        channel = self._channels.get(device)
        if channel is None or channel.nonces != envelope.channel:
            channel = self._later(device, envelope.channel)
        message = channel.open(envelope)
        self._channels[device] = channel
        return message

    def _later(self, device: str, nonces: bytes) -> Channel:
        """A channel that the device uses for the first time. Raises SignatureError where it has used a later one."""
        used, known = self._channels.get(device), self._registry.device(device)
        ours, before = nonces[NONCE_BYTES:], used.nonces[NONCE_BYTES:] if used is not None else b""
        if known is None or known.state is not DeviceState.ENROLLED:
            msg = "from a device that is not enrolled"
            raise SignatureError(msg)
        if not ours.startswith(self._own) or ours <= before:
            msg = "of another conversation"
            raise SignatureError(msg)
        up, down = self._topics.up(device), self._topics.down(device)
        return Channel(self._registry.signer, known.key, nonces, down, up, said=1)  # the Welcome was number 0

    def _presence(self, device: str, topic: str, envelope: Envelope) -> Message:
        known = self._registry.device(device)
        if known is None or known.state is not DeviceState.ENROLLED or envelope.channel != NO_CHANNEL:
            msg = "from a device that is not enrolled"
            raise SignatureError(msg)
        message = decode_message(envelope.verified(topic, known.key))
        if not isinstance(message, Presence):
            msg = f"a {type(message).__name__} is no presence"
            raise DecodeError(msg)
        return message

    def _greeted(self, device: str, topic: str, envelope: Envelope, now_s: float) -> Reply:
        message = decode_message(envelope.verified(topic, envelope.key))  # whose key it is, the registry knows
        if not isinstance(message, Greeting) or message.device != device:
            msg = f"a {type(message).__name__} is no greeting of this device"
            raise DecodeError(msg)
        if message.invitation and not is_invited(message.invitation, message.proof, topic, envelope.key):
            msg = "the token's proof is not of this key"
            raise SignatureError(msg)
        admission = self._registry.admit(device, envelope.key, self._enrolment, message.invitation)
        self._welcomes += 1
        nonces = nonce_of(envelope.channel) + self._own + self._welcomes.to_bytes(NONCE_BYTES // 2, "big")
        channel = Channel(self._registry.signer, envelope.key, nonces, self._topics.down(device), topic)
        if (reason := admission.unwelcome) is not None:
            news = f"{device}: not welcome, {WHY[reason]}; it came with the key {fingerprint(envelope.key)}"
            return Reply(channel.seal(NotWelcome(reason, WHY[reason])), news)
        if (used := self._channels.get(device)) is not None and used.peer != envelope.key:
            del self._channels[device]  # a token has just given the name to this key
        news = f"{device}: {admission.news}, {fingerprint(envelope.key)}" if admission.news else ""
        return Reply(channel.seal(Welcome(self.session, now_s)), news)
