"""Hears what is said to all devices, but of those blobs alone that are on their way here."""

from __future__ import annotations

from edge_sdk.wire.channel import unsigned_chunk
from edge_sdk.wire.errors import SignatureError
from edge_sdk.wire.messages import Chunk
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.transport import Received, Transport


class Ear:
    """Of one device, over `transport`."""

    def __init__(self, transport: Transport, topics: Topics) -> None:
        """Hears nothing yet."""
        self._transport, self._topics = transport, topics
        self._followed: frozenset[str] = frozenset()

    def follow(self, blobs: frozenset[str]) -> None:
        """Hear of these blobs, by SHA-256, and of no others. Call it before any chunk of them is asked for."""
        for sha256 in self._followed - blobs:
            self._transport.unsubscribe(self._topics.all(sha256))
        for sha256 in blobs - self._followed:
            self._transport.subscribe(self._topics.all(sha256))
        self._followed = blobs

    def chunk(self, received: Received) -> Chunk | None:
        """What was said to all; None for a message of another topic. Raises SignatureError, DecodeError."""
        if not received.topic.startswith(self._topics.all("")):
            return None
        found = unsigned_chunk(received.payload)
        if found.blob != self._topics.last_level(received.topic):
            msg = "a chunk of another blob than its topic says"
            raise SignatureError(msg)
        return found
