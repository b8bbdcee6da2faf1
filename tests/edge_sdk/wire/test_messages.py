"""Every message survives the journey, and no bytes at all raise anything but a WireError."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.wire.errors import DecodeError, TooLargeError, WireError
from edge_sdk.wire.messages import (
    KINDS,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_TEXT,
    MAX_WINDOW,
    MIN_POWER,
    VERSION,
    Chunk,
    ChunkRequest,
    FailureReason,
    Message,
    TaskCancel,
    TaskFailed,
    TaskOffer,
    decode_message,
    encode_message,
)
from tests.edge_sdk.samples import make_hello, make_offer, make_report, make_task
from tests.edge_sdk.wire.strategies import values

MESSAGES: st.SearchStrategy[Message] = st.one_of([values(kind) for kind in KINDS.values()])
SHA256 = "0" * 64
FAILED = TaskFailed("a task", FailureReason.WORKER_DIED, 0, "it died")
OFFER = encode_message(TaskOffer(make_task(), 1, 0.0))


@settings(max_examples=300)
@given(MESSAGES)
def test_every_message_survives(message: Message) -> None:
    """What one side sends is what the other side reads, type included."""
    found = decode_message(encode_message(message))
    assert found == message
    assert type(found) is type(message)


@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_a_damaged_message_is_refused_or_sound(message: Message, data: st.DataObject) -> None:
    """Bits flipped, bytes cut out or put in: a WireError, or a message that obeys every rule of its own."""
    sent = bytearray(encode_message(message))
    at = data.draw(st.integers(0, len(sent) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    if kind == "flip":
        sent[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del sent[at : at + data.draw(st.integers(1, 8))]
    else:
        sent[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    with contextlib.suppress(WireError):
        found = decode_message(bytes(sent))
        assert decode_message(encode_message(found)) == found


@given(MESSAGES, st.data())
def test_a_truncated_message_is_refused(message: Message, data: st.DataObject) -> None:
    """No beginning of a message is a message."""
    sent = encode_message(message)
    with pytest.raises(DecodeError):
        decode_message(sent[: data.draw(st.integers(0, len(sent) - 1))])


@settings(max_examples=300)
@given(st.recursive(values(int) | values(str) | values(bytes) | values(float), lambda x: st.lists(x, max_size=3)))
def test_no_body_of_another_shape_is_read(body: Any) -> None:
    """A well-formed envelope around anything else is a DecodeError for every type of message."""
    for name in KINDS:
        with pytest.raises(DecodeError):
            decode_message(msgpack.packb({"v": VERSION, "type": name, "body": body}))


def test_another_version_is_named() -> None:
    """A peer from another time is told apart from garbage: the message says which side to update."""
    envelope = msgpack.unpackb(OFFER)
    with pytest.raises(DecodeError, match=f"version {VERSION + 1}, this side speaks {VERSION}"):
        decode_message(msgpack.packb({**envelope, "v": VERSION + 1}))
    with pytest.raises(DecodeError, match="unknown message type 'Invented'"):
        decode_message(msgpack.packb({**envelope, "type": "Invented"}))


def test_the_bound_on_a_message_leaves_room_for_the_largest_chunk() -> None:
    """A full chunk passes; a larger message is refused before it is read."""
    data = bytes(MAX_CHUNK_BYTES)
    assert len(encode_message(Chunk(SHA256, MAX_CHUNK_BYTES, 1 << 40, (1 << 32) - 1, data))) <= MAX_MESSAGE_BYTES
    with pytest.raises(TooLargeError):
        decode_message(bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("field", ["task_id", "detail"])
def test_long_texts_are_refused_on_both_sides(field: str) -> None:
    """A peer cannot fill the other's log or ledger: who would send it is told, who receives it does not take it."""
    failed = msgpack.unpackb(encode_message(FAILED))
    text: dict[str, Any] = {field: "é" * MAX_TEXT}
    fitting = dataclasses.replace(FAILED, **text)
    assert decode_message(encode_message(fitting)) == fitting
    with pytest.raises(ValueError, match=f"{field} has {MAX_TEXT + 1} characters"):
        encode_message(dataclasses.replace(fitting, **{name: value + "é" for name, value in text.items()}))
    failed["body"][field] = text[field] + "é"
    with pytest.raises(DecodeError, match=field):
        decode_message(msgpack.packb(failed))


def test_a_report_fits_a_ledger() -> None:
    """A coordinator reads back every report it took: a device cannot hide a megabyte within one."""
    with pytest.raises(ValueError, match="runtime has"):
        dataclasses.replace(make_report(), runtime="x" * (MAX_TEXT + 1))
    offer = msgpack.unpackb(encode_message(make_offer("a task")))
    offer["body"]["report"]["runtime"] = "x" * (1 << 20)
    with pytest.raises(DecodeError, match="runtime has"):
        decode_message(msgpack.packb(offer))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": 10**7},
        {"batch": 0},
        {"batch": 5000},
        {"tokens": 0},
        {"tokens": 1 << 20},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"weight_decay": 1.1},
        {"warmup_steps": 3},
        {"clip_norm": -0.1},
        {"deadline_s": float("inf")},
        {"seed": -1},
        {"round": -1},
        {"power": 0.0},
        {"power": 1.01},
        {"power": float("nan")},
        {"task_id": "x" * (MAX_TEXT + 1)},
    ],
    ids=str,
)
def test_a_task_that_cannot_be_meant_cannot_be_made(changes: dict[str, Any]) -> None:
    """Numbers that no device could obey are refused where they are written, and where they are read."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_task(**changes)
    envelope = msgpack.unpackb(OFFER)
    envelope["body"]["task"] |= changes
    with pytest.raises(DecodeError):
        decode_message(msgpack.packb(envelope))


@given(st.floats(MIN_POWER, 1), st.integers(1, 256))
def test_a_device_trains_with_a_share_of_its_threads(power: float, own: int) -> None:
    """One at least, never more than it has, all of them at full power, and otherwise the nearest number."""
    threads = make_task(power=power).threads(own)
    assert 1 <= threads <= own
    assert abs(threads - power * own) <= 0.5 or threads == 1
    assert make_task().threads(own) == own


@pytest.mark.parametrize(
    "fields",
    [
        ("../../etc/passwd", 1024, 0, b"\1", 1),
        (SHA256, 1023, 0, b"\1", 1),
        (SHA256, MAX_CHUNK_BYTES + 1, 0, b"\1", 1),
        (SHA256, 1024, -1, b"\1", 1),
        (SHA256, 1024, 0, b"", 1),
        (SHA256, 1024, 0, bytes(10_000), 1),
        (SHA256, 1024, 0, b"\1", 0),
        (SHA256, 1024, 0, b"\1", MAX_WINDOW + 1),
    ],
)
def test_a_request_that_costs_too_much_cannot_be_made(fields: tuple[str, int, int, bytes, int]) -> None:
    """Whoever serves a request may rely on its bounds, and on its naming a blob and no path."""
    with pytest.raises(ValueError, match=r"SHA-256|must be from"):
        ChunkRequest(*fields)


def test_messages_are_told_apart_by_type_alone() -> None:
    """A body is read as what its envelope says: one of another type lacks fields, or is not of that type."""
    hello = msgpack.unpackb(encode_message(make_hello()))
    with pytest.raises(DecodeError, match="lacks"):
        decode_message(msgpack.packb({**hello, "type": TaskCancel.__name__}))
