"""Bad inputs written by hand, one for each lie that somebody thought of; every one must be refused."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from benchmarks.reliability.decoders import CHANNEL, SHA, SIGNER, UP, Decoder, messages
from edge_sdk.wire import codec
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.messages import encode_message
from edge_sdk.wire.signed import HEADER, seal

MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Bad:
    """`data` for the decoder of that name, and the lie in it."""

    decoder: str
    lie: str
    data: bytes


def corpus(known: dict[str, Decoder]) -> list[Bad]:
    """All of them; `known` gives the true inputs that some begin from."""
    return [
        *_bytes(),
        *_messages(),
        *_envelopes(known),
        *_manifests(known),
        *_deltas(known),
        *_codecs(),
        *_files(known),
        *_settings(known),
    ]


def _bytes() -> Iterator[Bad]:
    """What is no msgpack as we use it, whichever message it claims to be."""
    true = encode_message(messages()[0])
    lies = {
        "nothing": b"",
        "the byte that msgpack never uses": b"\xc1",
        "another message behind it": true + true,
        "one byte behind it": true + b"\x00",
        "its last byte is missing": true[:-1],
        "a list of 4 G items": b"\xdd\xff\xff\xff\xff",
        "a map of 4 G entries": b"\xdf\xff\xff\xff\xff",
        "4 GB of bytes": b"\xc6\xff\xff\xff\xff",
        "4 GB of text": b"\xdb\xff\xff\xff\xff",
        "an extension": b"\xc7\x01\x05\x00",
        "a time of msgpack's": msgpack.packb(msgpack.Timestamp(0)),
        "lists in lists, 3000 deep": b"\x91" * 3000,
        "maps in maps, 3000 deep": b"\x81\xa1a" * 3000,
        "65,537 empty lists": b"\xdd\x00\x01\x00\x01" + b"\x90" * 65_537,
        "a key twice": b"\x82\xa1v\x01\xa1v\x01",
        "a number for a key": b"\x81\x01\x01",
        "text that is no UTF-8": b"\x81\xa1v\xa2\xff\xfe",
        "a list where a map belongs": msgpack.packb([1, 2, 3]),
        "nil": b"\xc0",
        "a number": b"\x01",
        "a megabyte of zeros": bytes(1 << 20),
        "three megabytes": bytes(3 << 20),
    }
    return (Bad("message", lie, data) for lie, data in lies.items())


def _envelopes(known: dict[str, Decoder]) -> Iterator[Bad]:
    """What is around a true message is not."""
    true, token = known["signed message"].seeds[0], known["token"].seeds[0]
    stranger, body = Signer(bytes(31) + b"\x01"), true[HEADER.size :]
    lies = {
        "no signature at all": body,
        "its header alone is cut off": true[: HEADER.size - 1],
        "another message under the signature": true[: HEADER.size] + encode_message(messages()[1]),
        "signed by a stranger": seal(stranger, UP, CHANNEL, 0, body),
        "signed by a stranger, who gives our key": true[:1] + SIGNER.public + seal(stranger, UP, CHANNEL, 0, body)[33:],
        "signed for another device's topic": seal(SIGNER, f"{UP}2", CHANNEL, 0, body),
        "a signature of zeros": true[: HEADER.size - 64] + bytes(64) + body,
        "a signature of ones": true[: HEADER.size - 64] + b"\xff" * 64 + body,
        "a key of zeros, which is a point": true[:1] + bytes(32) + true[33:],
        "longer than any": true + bytes(1 << 16),
    }
    yield from (Bad("signed message", lie, data) for lie, data in lies.items())
    tokens = {
        "nothing": b"",
        "its last letter is missing": token[:-1],
        "a letter too many": token + b"A",
        "no token": b"x",
    }
    yield from (Bad("token", lie, data) for lie, data in tokens.items())


def _messages() -> Iterator[Bad]:
    """A true message but for one field."""
    plain = {type(message).__name__: _plain(message) for message in messages()}

    def said(kind: str, lie: str, **changes: Any) -> Bad:  # noqa: ANN401 - any value is a lie for some field
        body = {**plain[kind], **changes}
        body = {key: value for key, value in body.items() if value is not MISSING}
        return Bad("message", f"{kind}: {lie}", msgpack.packb({"v": 1, "type": kind, "body": body}))

    def offered(lie: str, **changes: Any) -> Bad:  # noqa: ANN401
        return said("TaskOffer", lie, task={**plain["TaskOffer"]["task"], **changes})

    yield Bad("message", "another version", msgpack.packb({"v": 99, "type": "Presence", "body": plain["Presence"]}))
    yield Bad("message", "a type that is none", msgpack.packb({"v": 1, "type": "Shutdown", "body": {}}))
    yield Bad("message", "no body", msgpack.packb({"v": 1, "type": "Presence"}))
    yield Bad("message", "a body that is text", msgpack.packb({"v": 1, "type": "Presence", "body": "x"}))
    yield said("Presence", "a number where a truth value belongs", online=1)
    yield said("Presence", "a field is missing", session=MISSING)
    yield said("Announcement", "a truth value where a number belongs", round=True)
    yield said("Announcement", "a number over 64 bits with a sign", round=(1 << 64) - 1)
    yield said("Hello", "200,000 characters", machine="x" * 200_000)
    yield said("TaskProgress", "a loss that is no number", loss=float("nan"))
    yield said("TaskProgress", "an infinite loss", loss=float("inf"))
    yield said("TaskProgress", "a fraction of a step", step=1.5)
    yield said("TaskDeclined", "a reason that is none", reason="tired")
    yield said("TaskFailed", "a reason that is a number", reason=1)
    yield offered("no steps", steps=0)
    yield offered("steps for years", steps=1 << 40)
    yield offered("rows beyond any memory", batch=1 << 30)
    yield offered("a negative seed", seed=-1)
    yield offered("a learning rate of a million", learning_rate=1e6)
    yield offered("a deadline in the past", deadline_s=-1.0)
    yield offered("an optimizer that is none", optimizer="pickle")
    yield offered("an artifact that is a path", artifact={"sha256": "../../etc/passwd", "size_bytes": 1})
    yield offered("an artifact of less than nothing", artifact={"sha256": SHA, "size_bytes": -1})
    yield offered("a name in capitals", artifact={"sha256": SHA.upper(), "size_bytes": 1})
    yield said("ChunkRequest", "a window of a thousand", window=1000)
    yield said("ChunkRequest", "no window", window=0)
    yield said("ChunkRequest", "a bitmap of a megabyte", missing=bytes(1 << 20))
    yield said("ChunkRequest", "no bitmap", missing=b"")
    yield said("ChunkRequest", "chunks of a byte", chunk_bytes=1)
    yield said("ChunkRequest", "chunks of a gigabyte", chunk_bytes=1 << 30)
    yield said("ChunkRequest", "from before the beginning", first=-1)
    yield said("ChunkRequest", "text for a bitmap", missing="x")
    yield said("Chunk", "text for data", data="x")


def _manifests(known: dict[str, Decoder]) -> Iterator[Bad]:
    true = msgpack.unpackb(known["manifest"].seeds[0])
    files = true["files"]
    name = next(iter(files))
    lies: dict[str, dict[str, Any]] = {
        "it walks nowhere": {"walk": []},
        "a file that is a path": {"files": {**files, name: {"sha256": "../x", "size_bytes": 1}}},
        "a graph that it does not list": {"files": {key: value for key, value in files.items() if key != name}},
        "a cost that is no number": {"costs": [{**true["costs"][0], "time_ms": float("nan")}]},
        "70,000 segments": {"walk": true["walk"] * 35_000},
        "a level that is a path": {"level": {**true["level"], "name": "../level"}},
    }
    for lie, changes in lies.items():
        yield Bad("manifest", lie, msgpack.packb({**true, **changes}))


def _deltas(known: dict[str, Decoder]) -> Iterator[Bad]:
    true = msgpack.unpackb(known["delta"].seeds[0])
    tensors = true["tensors"]
    name = next(iter(tensors))
    lies: dict[str, dict[str, Any]] = {
        "more bytes than its shape": {"data": tensors[name]["data"] + bytes(4)},
        "a shape of terabytes": {"shape": [1 << 20, 1 << 22], "data": b""},
        "a negative shape": {"shape": [-1, -12]},
        "of 2000 dimensions": {"shape": [1] * 2000},
        "a codec that is none": {"codec": "pickle"},
    }
    for lie, changes in lies.items():
        file = {**true, "tensors": {**tensors, name: {**tensors[name], **changes}}}
        yield Bad("delta", lie, msgpack.packb(file))
        yield Bad("validation", lie, msgpack.packb(file))
    numbers = bytearray(tensors[name]["data"])
    for lie, value in (("a NaN", float("nan")), ("an infinity", float("inf")), ("a number of 1e30", 1e30)):
        numbers[:4] = struct.pack("<f", value)
        file = {**true, "tensors": {**tensors, name: {**tensors[name], "data": bytes(numbers)}}}
        yield Bad("validation", lie, msgpack.packb(file))
    for lie, changes in (
        ("another device's", {"device": "e"}),
        ("another task's", {"task_id": "other"}),
        ("another round's", {"round": 7}),
        ("a weight of a billion", {"examples": 10**9}),
        ("a weight of less than nothing", {"examples": -1}),
        ("no tensors", {"tensors": {}}),
        ("a tensor besides", {"tensors": {**tensors, "extra": tensors[name]}}),
    ):
        yield Bad("validation", lie, msgpack.packb({**true, **changes}))


def _codecs() -> Iterator[Bad]:
    nan = struct.pack("<f", float("nan"))
    for how in ("int8", "int4", "int2", "sign", "top-k", "fp16"):
        yield Bad(f"codec {how}", "too short", b"\x00")
    yield Bad("codec fp16", "a NaN", struct.pack("<e", float("nan")) + bytes(2 * 95))
    yield Bad("codec fp32", "a byte too many", nan * 96 + b"\x00")


def _files(known: dict[str, Decoder]) -> Iterator[Bad]:
    record = known["record"].seeds[0]
    yield Bad("record", "nothing", b"")
    yield Bad("record", "a digest alone", record[:32])
    yield Bad("record", "another digest", bytes(32) + record[32:])
    other = codec.encode({"task_id": 1})
    yield Bad("record", "the right digest of something else", hashlib.sha256(other).digest() + other)

    def tensors(header: Any, data: bytes = b"") -> bytes:  # noqa: ANN401 - what is wrong with it varies
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    lies = {
        "three bytes": b"abc",
        "a header of 16 EB": struct.pack("<Q", 1 << 63) + b"{}",
        "a header that is no JSON": tensors(b"{"),
        "a header that is a list": tensors([]),
        "lists in lists": tensors(b"[" * 5000),
        "a shape of terabytes": tensors({"a": {**one, "shape": [1 << 40]}}, bytes(4)),
        "a negative shape": tensors({"a": {**one, "shape": [-1]}}, bytes(4)),
        "data that ends before it begins": tensors({"a": {**one, "data_offsets": [4, 0]}}, bytes(4)),
        "data behind the file": tensors({"a": {**one, "data_offsets": [100, 104]}}, bytes(4)),
        "two tensors in one place": tensors({"a": one, "b": one}, bytes(4)),
        "Python objects": tensors({"a": {**one, "dtype": "O"}}, bytes(4)),
    }
    for lie, data in lies.items():
        yield Bad("tensors", lie, data)


def _settings(known: dict[str, Decoder]) -> Iterator[Bad]:
    device, coordinator = known["device.toml"].seeds[0], known["coordinator.toml"].seeds[0]
    yield Bad("device.toml", "nothing", b"")
    yield Bad("device.toml", "no TOML", b"device = ")
    yield Bad("device.toml", "no text", b"\xff\xfe\x00")
    yield Bad("device.toml", "a device that is a path", device.replace(b'"pi"', b'"../pi"'))
    yield Bad("device.toml", "a budget that is no size", device.replace(b'"256MB"', b'"much"'))
    yield Bad("device.toml", "a key that is none", b"colour = 1\n" + device)
    yield Bad("device.toml", "lists in lists", b"x = " + b"[" * 5000)
    yield Bad("device.toml", "a broker that is a web page", device.replace(b"mqtt://", b"https://"))
    yield Bad("coordinator.toml", "no rounds", coordinator.replace(b"count = 3", b"count = 0"))
    yield Bad("coordinator.toml", "a fleet that is a wildcard", coordinator.replace(b'fleet = "demo"', b'fleet = "+"'))
    yield Bad(
        "coordinator.toml",
        "a learning rate that is none",
        coordinator.replace(b"learning_rate = 1", b"learning_rate = nan"),
    )
    yield Bad("coordinator.toml", "lists in lists", b"x = " + b"[" * 5000)


def _plain(message: object) -> dict[str, Any]:
    plain: dict[str, Any] = msgpack.unpackb(codec.encode(message))
    return plain
