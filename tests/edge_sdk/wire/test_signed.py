"""The envelope: what is heard is what was signed, by whom, for this topic; nothing is parsed before that is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.channel import Channel, Window, unsigned_chunk
from edge_sdk.wire.errors import DecodeError, SignatureError, TooLargeError, WireError
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.messages import Chunk, TaskCancel, TaskProgress, encode_message
from edge_sdk.wire.signed import CHANNEL_BYTES, HEADER, MAX_SIGNED_BYTES, read_envelope, seal
from edge_sdk.wire.topics import Topics
from tests.edge_sdk.wire.strategies import damaged

DEVICE, COORDINATOR, STRANGER = (Signer(bytes([k]) * 32) for k in range(3))
TOPICS = Topics("fleet")
UP, DOWN = TOPICS.up("pi"), TOPICS.down("pi")
NONCES = bytes(range(CHANNEL_BYTES))
CANCEL = TaskCancel("task", "why")


def ends(nonces: bytes = NONCES) -> tuple[Channel, Channel]:
    """The device's and the coordinator's end of a channel."""
    return (
        Channel(DEVICE, COORDINATOR.public, nonces, UP, DOWN),
        Channel(COORDINATOR, DEVICE.public, nonces, DOWN, UP),
    )


def test_every_flipped_bit_is_refused() -> None:
    """Whichever bit of a signed message is another one, nothing is heard: header, signature and message alike."""
    payload = ends()[1].seal(CANCEL)
    for bit in range(8 * len(payload)):
        wrong = bytearray(payload)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises((SignatureError, DecodeError)):
            ends()[0].open(read_envelope(bytes(wrong)))
    assert ends()[0].open(read_envelope(payload)) == CANCEL


@given(st.data())
def test_damaged_messages_are_refused(data: st.DataObject) -> None:
    """Bytes lost, added or replaced anywhere: an error of the wire, or the message itself."""
    payload = ends()[1].seal(CANCEL)
    wrong = data.draw(damaged(payload))
    try:
        found = ends()[0].open(read_envelope(wrong))
    except WireError:
        assert wrong != payload
    else:
        assert (found, wrong) == (CANCEL, payload)


@pytest.mark.parametrize(
    "topic",
    [DOWN, TOPICS.up("pi-2"), Topics("fleet2").up("pi"), TOPICS.presence("pi"), TOPICS.announcement],
)
def test_a_signature_is_for_one_topic(topic: str) -> None:
    """What a device says is heard on its own topic of its own fleet, in its own direction, and nowhere else."""
    envelope = read_envelope(seal(DEVICE, UP, NONCES, 0, b"body"))
    assert envelope.verified(UP, DEVICE.public) == b"body"
    with pytest.raises(SignatureError, match="on this topic"):
        envelope.verified(topic, DEVICE.public)


def test_another_key_is_named() -> None:
    """A good signature of somebody else's is refused, and the line says whose it is and whose it should be."""
    envelope = read_envelope(seal(STRANGER, UP, NONCES, 0, b"body"))
    with pytest.raises(SignatureError, match=r"signed with the key [0-9a-f-]{24}, and not with [0-9a-f-]{24}"):
        envelope.verified(UP, DEVICE.public)


@given(st.binary(max_size=2 * HEADER.size))
def test_arbitrary_bytes_are_no_message(payload: bytes) -> None:
    """Random bytes, also behind the mark of an envelope, are refused, and nothing else happens."""
    for data in (payload, b"\xc1" + payload):
        with pytest.raises(WireError):
            ends()[0].open(read_envelope(data))


def test_endless_data_is_refused_by_its_length() -> None:
    """One byte above the bound: refused before anything is hashed, and never sent by us."""
    body = bytes(MAX_SIGNED_BYTES - HEADER.size)
    longest = seal(DEVICE, UP, NONCES, 0, body)
    assert len(longest) == MAX_SIGNED_BYTES
    assert read_envelope(longest).verified(UP, DEVICE.public) == body
    with pytest.raises(TooLargeError):
        read_envelope(longest + b"\0")
    with pytest.raises(ValueError, match="at most"):
        seal(DEVICE, UP, NONCES, 0, body + b"\0")


def test_nothing_is_parsed_before_it_is_verified() -> None:
    """Bytes that no parser takes, badly signed, fail by their signature; well signed, by their parser."""
    junk = seal(COORDINATOR, DOWN, NONCES, 0, b"\xc1 no msgpack")
    with pytest.raises(DecodeError):
        ends()[0].open(read_envelope(junk))
    with pytest.raises(SignatureError):
        ends()[0].open(read_envelope(seal(STRANGER, DOWN, NONCES, 0, b"\xc1 no msgpack")))


def test_a_message_is_heard_once() -> None:
    """The same bytes again, and those of another conversation, are refused."""
    device, coordinator = ends()
    payload = coordinator.seal(CANCEL)
    assert device.open(read_envelope(payload)) == CANCEL
    with pytest.raises(SignatureError, match="came before"):
        device.open(read_envelope(payload))
    with pytest.raises(SignatureError, match="another conversation"):
        ends(bytes(CHANNEL_BYTES - 1) + b"\1")[0].open(read_envelope(payload))


def test_nobody_hears_its_own_words() -> None:
    """A message that comes back to whom it is from is refused: the two ways have topics of their own."""
    device, _ = ends()
    with pytest.raises(SignatureError):
        device.open(read_envelope(device.seal(CANCEL)))


@given(st.lists(st.integers(0, 200), max_size=200))
def test_the_window_is_a_memory_of_all_that_is_not_too_old(numbers: list[int]) -> None:
    """In any order: a number is heard if it was not heard before, and is among the 64 up to the highest so far."""
    window, heard = Window(), set[int]()
    for number in numbers:
        after = window.after(number)
        expected = number not in heard and number > max(heard, default=-1) - 64
        assert (after is not None) == expected
        if after is not None:
            window, heard = after, heard | {number}


def test_only_chunks_may_be_unsigned() -> None:
    """A blob's SHA-256 is in what was signed, so its pieces need nothing; any other message does."""
    chunk = Chunk("ab" * 32, 1024, 0, 0, b"data")
    assert unsigned_chunk(encode_message(chunk)) == chunk
    for message in (CANCEL, TaskProgress("task", 1, 2, 0.5)):
        with pytest.raises(SignatureError, match="nobody signed"):
            unsigned_chunk(encode_message(message))
