"""Everything here that reads bytes from elsewhere, each with true inputs to make bad ones of, and what it may raise."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.demo import write_toml
from coordinator.config import load_config as load_coordinator
from coordinator.errors import CoordinatorError
from coordinator.validate import Accepted, check_delta, expected
from edge_sdk.config import load_config as load_device
from edge_sdk.errors import EdgeError
from edge_sdk.wire import codec
from edge_sdk.wire.codecs import CODECS
from edge_sdk.wire.delta import DeltaFile, decode_delta, encode_delta, pack_array
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.graphs import DOMAINS, check_graph
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.manifest import decode_manifest, encode_manifest
from edge_sdk.wire.messages import (
    Announcement,
    Chunk,
    ChunkRequest,
    DeclineReason,
    DeltaCodec,
    FailureReason,
    Greeting,
    Message,
    NotWelcome,
    Presence,
    Receipt,
    RefusalReason,
    Report,
    ResultOffer,
    TaskCancel,
    TaskDeclined,
    TaskFailed,
    TaskOffer,
    TaskProgress,
    TransferRefused,
    Unwelcome,
    Welcome,
    decode_message,
    encode_message,
)
from edge_sdk.wire.records import read_record
from edge_sdk.wire.signed import read_envelope, seal
from edge_sdk.wire.tensors import read_tensors, write_tensors
from edge_sdk.wire.tokens import Invitation, read_token
from edge_sdk.wire.topics import Topics
from tests.coordinator import samples as coordinator_samples
from tests.edge_sdk import samples

NUMBERS: Final = 96
MAX_BYTES: Final = 1 << 20
SIGNER: Final = Signer(bytes(32))
UP, CHANNEL = Topics("garden").up("pi"), bytes(range(32))
SHA: Final = hashlib.sha256(b"a file").hexdigest()


class Unsound(Exception):  # noqa: N818 - the worst that a decoder can do, short of a crash
    """It gave a value that it should not have given; the message says which."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """`read` raises one of `refusals` for bytes that it does not accept, and Unsound where we find it accepted wrongly.

    `share` is how many of a hundred inputs are its own.
    """

    name: str
    share: int
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (WireError,)


def decoders(scratch: pathlib.Path) -> dict[str, Decoder]:
    """By name; those that read files write them under `scratch`."""
    found = [
        Decoder("message", 27, tuple(map(encode_message, messages())), _message),
        Decoder("signed message", 8, _signed(), _verified),
        Decoder("token", 2, (_invitation().token.encode(),), _token, (ValueError,)),
        Decoder("manifest", 4, (encode_manifest(samples.make_manifest()),), _manifest),
        Decoder("delta", 16, tuple(_deltas()), _delta),
        Decoder("validation", 12, tuple(_deltas()[:1]), _verdict),
        *(Decoder(f"codec {how.value}", 2, (_numbers(how),), _codec(how)) for how in DeltaCodec),
        Decoder("graph", 3, (_a_graph(),), _graph),
        Decoder("record", 6, (_record(),), _in_file(scratch / "record", _read_record), (WireError,)),
        Decoder("tensors", 4, (_tensor_file(scratch),), _in_file(scratch / "tensors", _tensors), (WireError,)),
        Decoder("device.toml", 2, (_device_toml(scratch),), _in_file(scratch / "d.toml", load_device), (EdgeError,)),
        Decoder(
            "coordinator.toml",
            2,
            (coordinator_samples.CONFIG.encode(),),
            _in_file(scratch / "c.toml", load_coordinator),
            (CoordinatorError,),
        ),
    ]
    return {decoder.name: decoder for decoder in found}


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one: a million small files are none of a disk's business."""
    shared = pathlib.Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    return tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)


def messages() -> list[Message]:
    """One of each kind."""
    task, blob = samples.make_task(), samples.FILE
    report = Report(2, 4, 3.5, 3.25, 10**8, 10**8, 2 * 10**8, 1.5, 20.0, 1000, 2000, 1, "onnxruntime")
    return [
        Presence("pi", "s", online=True),
        Announcement("s", 3),
        samples.make_hello(),
        Greeting("pi", b"invitation", b"proof"),
        Welcome("s", 1.5),
        NotWelcome(Unwelcome.OTHER_KEY, "why"),
        TaskOffer(task, 1, 2.5),
        TaskCancel("t", "because"),
        TaskDeclined("t", DeclineReason.OVER_BUDGET, 10, 5, "why"),
        TaskProgress("t", 1, 2, 3.0),
        TaskFailed("t", FailureReason.WORKER_DIED, 10, "why"),
        ResultOffer("t", blob, report),
        Receipt("t", accepted=False, reason=RefusalReason.CLOSED, detail="why"),
        ChunkRequest(SHA, 262_144, 0, b"\xff", 8),
        Chunk(SHA, 262_144, 1, 7, b"data"),
        TransferRefused(SHA, RefusalReason.UNKNOWN_BLOB),
    ]


# ---- what is read, and what must hold of it then


def _message(data: bytes) -> object:
    found = decode_message(data)
    if decode_message(encode_message(found)) != found:
        msg = f"a {type(found).__name__} that does not survive being sent on"
        raise Unsound(msg)
    return found


def _signed() -> tuple[bytes, ...]:
    """As a device says them, in one channel."""
    bodies = map(encode_message, messages())
    return tuple(seal(SIGNER, UP, CHANNEL, number, body) for number, body in enumerate(bodies))


def _verified(data: bytes) -> object:
    found = read_envelope(data)
    body = found.verified(UP, SIGNER.public)
    if data not in _signed():
        msg = "a message that nobody signed"
        raise Unsound(msg)
    return decode_message(body)


def _a_graph() -> bytes:
    """A product with a matrix that the graph holds."""
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [given], [made], [weight])
    return bytes(helper.make_model(graph).SerializeToString())


def _graph(data: bytes) -> object:
    """What is let through has, as onnx itself reads it, no operator that is not on the list, and no other file."""
    check_graph(data)
    try:
        graph = onnx.ModelProto.FromString(data).graph
    except Exception:  # noqa: BLE001 - of a module without types; what onnx cannot read, onnxruntime refuses
        return None
    foreign = [node.op_type for node in graph.node if node.op_type not in DOMAINS.get(node.domain, ())]
    if foreign or any(tensor.external_data for tensor in graph.initializer):
        msg = f"a graph with {foreign or 'tensors in another file'}"
        raise Unsound(msg)
    return graph


def _invitation() -> Invitation:
    return Invitation(SIGNER.public, bytes(range(32)))


def _token(data: bytes) -> object:
    found = read_token(data.decode("utf-8", errors="replace"))
    if found != _invitation():
        msg = "a token that nobody made"
        raise Unsound(msg)
    return found


def _manifest(data: bytes) -> object:
    found = decode_manifest(data)
    if codec.decode(type(found), codec.encode(found), 1 << 24) != found:
        msg = "a manifest that does not survive being written"
        raise Unsound(msg)
    return found


def _delta(data: bytes) -> object:
    _file, delta = decode_delta(data, MAX_BYTES)
    held = sum(array.nbytes for array in delta.tensors.values())
    if held > 32 * max(len(data), 1):
        msg = f"{len(data)} bytes became {held}"
        raise Unsound(msg)
    return delta


_TASK = coordinator_samples.make_task()
_WANTED = expected(_TASK, "d", coordinator_samples.make_manifest("small", (1,), 100))


def _verdict(data: bytes) -> object:
    """Only a delta that the model can take is accepted: named, shaped and finite as the task says."""
    verdict = check_delta(data, _WANTED)
    if not isinstance(verdict, Accepted):
        raise RefusedError
    shapes = {name: array.shape for name, array in verdict.delta.tensors.items()}
    finite = all(np.isfinite(array).all() for array in verdict.delta.tensors.values())
    if shapes != dict(_WANTED.shapes) or not finite or not 0 < verdict.examples <= _TASK.steps * _TASK.batch:
        msg = "validation accepted what the model cannot take"
        raise Unsound(msg)
    return verdict


class RefusedError(WireError):
    """Validation answers with a value; here an answer of no is an exception like all others'."""


def _codec(how: DeltaCodec) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        if CODECS[how].size_bytes(NUMBERS) != len(data):
            raise RefusedError  # what `unpack_array` says of another length
        found = CODECS[how].decode(data, NUMBERS)
        if found.shape != (NUMBERS,) or found.dtype != np.float32:
            msg = f"{how.value} gave {found.dtype} of {found.shape}"
            raise Unsound(msg)
        return found

    return read


def _read_record(path: pathlib.Path) -> object:
    return read_record(ResultOffer, path, MAX_BYTES)


def _tensors(path: pathlib.Path) -> object:
    found = read_tensors(path)
    if sum(array.nbytes for array in found.values()) > path.stat().st_size:
        msg = "more numbers than the file has"
        raise Unsound(msg)
    return found


def _in_file(path: pathlib.Path, read: Callable[[pathlib.Path], object]) -> Callable[[bytes], object]:
    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return written


# ---- true inputs


def _deltas() -> list[bytes]:
    true = coordinator_samples.delta_bytes(_TASK, "d", coordinator_samples.make_delta(dict(_WANTED.shapes)))
    file = codec.decode(DeltaFile, true, MAX_BYTES)
    random = np.random.default_rng(0)
    coarse = {f"t.{how.value}": pack_array(random.normal(size=(6, 8)).astype(np.float32), how) for how in DeltaCodec}
    return [true, encode_delta(dataclasses.replace(file, tensors=coarse))]


def _numbers(how: DeltaCodec) -> bytes:
    return CODECS[how].encode(np.random.default_rng(0).normal(size=NUMBERS).astype(np.float32))


def _record() -> bytes:
    """With a digest that fits, and that fits no more when a byte changes: as a disk would have it."""
    offer = next(message for message in messages() if isinstance(message, ResultOffer))
    data = codec.encode(offer)
    return hashlib.sha256(data).digest() + data


def _tensor_file(scratch: pathlib.Path) -> bytes:
    path = scratch / "true"
    write_tensors(path, {"a": np.zeros((3, 4), np.float32), "b": np.arange(5, dtype=np.int64)})
    return path.read_bytes()


def _device_toml(scratch: pathlib.Path) -> bytes:
    table: dict[str, Any] = {
        "device": "pi",
        "fleet": "garden",
        "broker": "mqtt://127.0.0.1:1883",
        "budget": "256MB",
        "store": "store",
        "quota": "2GB",
        "threads": 1,
        "data": {"kind": "csv", "path": "texts.csv", "text_column": "text"},
    }
    path = scratch / "true.toml"
    write_toml(path, table)
    return path.read_bytes()
