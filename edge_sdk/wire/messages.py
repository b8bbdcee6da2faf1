"""Every message, as a frozen dataclass with units in its field names.

The envelope is a msgpack map `{"v": 1, "type": <name>, "body": <map>}`. `Message` lists what exists; `encode_message`
and `decode_message` are the only way in and out. Strings as keys live in `codec` alone.

A Chunk, which is nearly all that goes over the wire, is not copied through msgpack, see `packed`.

A device sends Greeting, Hello, TaskDeclined, TaskProgress, TaskFailed, ResultOffer; the coordinator sends Announcement,
Welcome, NotWelcome, TaskOffer, TaskCancel, Receipt. What both say in a secure sum is in `secure.said`. ChunkRequest,
Chunk and TransferRefused go both ways: whoever needs a blob asks for it. All but Chunk are signed, see `signed`.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any, get_args

from edge_sdk.wire import codec, packed
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.errors import DecodeError
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.secure.said import MaskInbox, Masking, MaskKeys, MaskPeers, MaskShares, UnmaskCall, UnmaskShares

VERSION = 1
CHUNK_BYTES = 256 * 1024  # piece of a blob, where the broker takes it
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1024, 1 << 20
CHUNK_OVERHEAD_BYTES = 4096  # at most, of a message beside a chunk's data
MAX_MESSAGE_BYTES = MAX_CHUNK_BYTES + CHUNK_OVERHEAD_BYTES
MAX_WINDOW = 32  # chunks asked for at once: what a slow device costs the broker at most
MAX_BITMAP_BYTES = 8192  # 65,536 chunks: 16 GiB in chunks of 256 KiB
MAX_TEXT = 500  # characters of a reason or detail
MAX_BATCH, MAX_TOKENS, MAX_STEPS = 4096, 65_536, 1_000_000
MAX_SOURCES = 4
MIN_POWER = 1e-3  # of a device's threads: one of a thousand


def _bounded(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        msg = f"{name} is {value}, it must be from {low} to {high}"
        raise ValueError(msg)


def _short(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        msg = f"{name} has {len(text)} characters, at most {MAX_TEXT} are accepted"
        raise ValueError(msg)


def threads_at(power: float, own: int) -> int:
    """How many of its `own` threads a device trains with at this power: the nearest number, and one at least."""
    return max(1, round(power * own))


class Schedule(enum.Enum):
    """How the learning rate moves within a task, after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class OptimizerKind(enum.Enum):
    """The device's optimizer."""

    ADAMW = "adamw"
    SGD = "sgd"


class DeltaCodec(enum.Enum):
    """What a delta's numbers become on the wire; see `edge_sdk.wire.codecs`."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"
    SIGN = "sign"
    TOP_K = "top-k"


class DeclineReason(enum.Enum):
    """Why a device will not do a task: an answer, not an error."""

    OVER_BUDGET = "over-budget"
    BUSY = "busy"
    INCOMPATIBLE = "incompatible"
    UNAVAILABLE = "unavailable"
    NO_SPACE = "no-space"
    ROLLED_BACK = "rolled-back"
    PRIVACY = "privacy"


class FailureReason(enum.Enum):
    """Why a task that was begun has no result."""

    OVER_BUDGET = "over-budget"
    NON_FINITE = "non-finite"
    WORKER_DIED = "worker-died"
    BAD_ARTIFACT = "bad-artifact"
    BAD_DATA = "bad-data"
    NO_SPACE = "no-space"
    CANCELLED = "cancelled"


class RefusalReason(enum.Enum):
    """Why a delta was not taken, or a transfer not served."""

    UNKNOWN_TASK = "unknown-task"
    UNKNOWN_BLOB = "unknown-blob"
    WRONG_ROUND = "wrong-round"
    CLOSED = "closed"
    TOO_LARGE = "too-large"
    CORRUPT = "corrupt"
    MALFORMED = "malformed"
    WRONG_NAMES = "wrong-names"
    WRONG_SHAPE = "wrong-shape"
    NOT_FINITE = "not-finite"
    OVER_NORM = "over-norm"


class Unwelcome(enum.Enum):
    """Why a device may not take part."""

    UNKNOWN = "unknown"
    BAD_TOKEN = "bad-token"  # noqa: S105 - a reason
    OTHER_KEY = "other-key"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Task:
    """What one device does in one round.

    `artifact` is the manifest; `adapter` the tensor file to start from. Adapter inputs whose name ends in one of
    `freeze` are held fixed. `batch` rows of `tokens` tokens make one optimizer step; the device's plan splits them
    into micro-batches. `deadline_s` is the time left when the offer was sent, so no clocks need agree. With
    `integer_gradients` the device may use what is faster and as far off as the manifest's `integers_error` says.
    The delta comes in `delta_codec`. What that loses the device keeps under the name `residual`, and adds to its next
    delta under the same name; where that is empty it keeps nothing, and rounds by chance. `power` is the share of its
    threads that the device trains with, above 0 and at most 1. With `masking` the delta goes into a secure sum, and
    `delta_codec` means nothing. With `example_noise` it hides single examples, and losses are not told.
    `sources` are web servers that may have the files, too.
    """

    task_id: str
    round: int
    artifact: Blob
    adapter: Blob
    steps: int
    batch: int
    tokens: int
    optimizer: OptimizerKind
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    warmup_steps: int
    clip_norm: float
    seed: int
    freeze: tuple[str, ...]
    deadline_s: float
    integer_gradients: bool = False
    delta_codec: DeltaCodec = DeltaCodec.FP32
    residual: str = ""
    power: float = 1.0
    masking: Masking | None = None
    example_noise: ExampleNoise | None = None
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that no task can mean."""
        _bounded("steps", self.steps, 1, MAX_STEPS)
        _bounded("batch", self.batch, 1, MAX_BATCH)
        _bounded("tokens", self.tokens, 1, MAX_TOKENS)
        _bounded("learning_rate", self.learning_rate, 0.0, 100.0)
        _bounded("weight_decay", self.weight_decay, 0.0, 1.0)
        _bounded("warmup_steps", self.warmup_steps, 0, self.steps)
        _bounded("clip_norm", self.clip_norm, 0.0, 1e9)
        _bounded("deadline_s", self.deadline_s, 0.0, 1e9)
        _bounded("round", self.round, 0, 1 << 31)
        _bounded("seed", self.seed, 0, (1 << 63) - 1)
        _short("task_id", self.task_id)
        _short("residual", self.residual)
        _bounded("power", self.power, MIN_POWER, 1.0)
        _bounded("sources", len(self.sources), 0, MAX_SOURCES)

    def threads(self, own: int) -> int:
        """With how many of its `own` threads a device trains, see `threads_at`."""
        return threads_at(self.power, own)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker measured over one task. Losses are means over the same held-aside rows of the device's own data.

    `peak_bytes` is the largest resident memory of any process that did the task (VmHWM); `predicted_bytes` what the
    plan expected. `step_ms` is the median. `down_bytes`, `up_bytes` are blob bytes on the wire for this task, both
    directions. `clock` is the share of its cores' highest clock that it was let, `battery` the share that is left, 1 on
    the mains. `gradient_error` is the manifest's `integers_error` where the plan multiplied in integers, 0 where
    gradients were exact. Of a task with `example_noise`, losses are 0, and `sampled_rows` tells of how many rows of the
    device's own those of each step were drawn.
    """

    steps: int
    examples: int
    loss_before: float
    loss_after: float
    peak_bytes: int
    predicted_bytes: int
    budget_bytes: int
    wall_s: float
    step_ms: float
    down_bytes: int
    up_bytes: int
    threads: int
    runtime: str
    gradient_error: float = 0.0
    clock: float = 1.0
    battery: float = 1.0
    sampled_rows: int = 0

    def __post_init__(self) -> None:
        """Refuse what would fill a ledger's row, and what is no share."""
        _short("runtime", self.runtime)
        _bounded("clock", self.clock, 0.0, 1.0)
        _bounded("battery", self.battery, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Presence:
    """Retained; the last will says `online=False`. A death of a session that is not the current one is ignored."""

    device: str
    session: str
    online: bool


@dataclass(frozen=True, slots=True)
class Announcement:
    """Retained; the coordinator is up under `session`. A device that sees a new session greets again."""

    session: str
    round: int


@dataclass(frozen=True, slots=True)
class Greeting:
    """A device begins a conversation, under a new nonce; said after every (re)connect and every new Announcement, and
    again until an answer comes.

    A device that was given a token says with which `invitation` it comes, and has the `proof` of it, see `tokens`.
    """

    device: str
    invitation: bytes = b""
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a Greeting, in the channel that it makes: what follows is heard. `session` as announced.

    `sent_s` is the time on the coordinator's own clock, which begins anywhere and only moves forward.
    """

    session: str
    sent_s: float


@dataclass(frozen=True, slots=True)
class NotWelcome:
    """The other answer to a Greeting, or the end of a conversation: the device takes part in nothing."""

    reason: Unwelcome
    detail: str


@dataclass(frozen=True, slots=True)
class Hello:
    """A device introduces itself: the first that it says after each Welcome.

    `task_id` is the task it is busy with, or empty; `heard_version` the highest version of an offer that it ever took;
    `battery` the share that is left, 1 on the mains.
    """

    device: str
    session: str
    budget_bytes: int
    cores: int
    ram_bytes: int
    machine: str
    runtime: str
    version: str
    task_id: str
    heard_version: int = 0
    battery: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        _bounded("battery", self.battery, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class TaskOffer:
    """Do this. Offering a task again changes nothing.

    Manifest and adapter, which the task names, are signed by this, and with them all files that the manifest names.
    `version` grows with every round that the coordinator opens; a device takes none lower than one that it took. By
    `sent_s`, on the clock of the Welcome, and the task's `deadline_s` the device knows when an offer is too old.
    """

    task: Task
    version: int
    sent_s: float


@dataclass(frozen=True, slots=True)
class TaskCancel:
    """Stop, and forget what was not yet accepted."""

    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDeclined:
    """The device will not. For `over-budget`, the cheapest plan needs `needed_bytes` of memory, the budget is
    `budget_bytes`; for `no-space`, the files need `needed_bytes` more of the store, which has room for `budget_bytes`.
    """

    task_id: str
    reason: DeclineReason
    needed_bytes: int
    budget_bytes: int
    detail: str


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """Said now and then while training; losing one loses nothing."""

    task_id: str
    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """The task was begun and has no result. `peak_bytes` is what was measured until then, 0 where nothing was."""

    task_id: str
    reason: FailureReason
    peak_bytes: int
    detail: str


@dataclass(frozen=True, slots=True)
class ResultOffer:
    """A delta waits in the device's outbox; the coordinator pulls it. Repeated until a Receipt comes."""

    task_id: str
    delta: Blob
    report: Report


@dataclass(frozen=True, slots=True)
class Receipt:
    """The coordinator's final word on a result: committed to its ledger, or refused and why. The device forgets it."""

    task_id: str
    accepted: bool
    reason: RefusalReason | None
    detail: str


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Send me these chunks of a blob: up to `window` of the missing ones.

    `missing` is a bitmap, bit k (least significant first) standing for chunk `first + k`.
    """

    blob: str
    chunk_bytes: int
    first: int
    missing: bytes
    window: int

    def __post_init__(self) -> None:
        """Refuse what names no blob, and a request that would cost the sender more than a window."""
        Blob(self.blob, 0)
        _bounded("chunk_bytes", self.chunk_bytes, MIN_CHUNK_BYTES, MAX_CHUNK_BYTES)
        _bounded("first", self.first, 0, 1 << 40)
        _bounded("missing, in bytes,", len(self.missing), 1, MAX_BITMAP_BYTES)
        _bounded("window", self.window, 1, MAX_WINDOW)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Chunk `index` of a blob; `crc32` of `data` finds a damaged one at once, the blob's SHA-256 has the last word.

    `data` of one that came is a view of the bytes that came.
    """

    blob: str
    chunk_bytes: int
    index: int
    crc32: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class TransferRefused:
    """The blob cannot be had here."""

    blob: str
    reason: RefusalReason


Message = (
    Presence
    | Announcement
    | Greeting
    | Welcome
    | NotWelcome
    | Hello
    | TaskOffer
    | TaskCancel
    | TaskDeclined
    | TaskProgress
    | TaskFailed
    | ResultOffer
    | Receipt
    | MaskKeys
    | MaskPeers
    | MaskShares
    | MaskInbox
    | UnmaskCall
    | UnmaskShares
    | ChunkRequest
    | Chunk
    | TransferRefused
)
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Message)}


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The envelope; its body is read once its type is known."""

    v: int
    type: str


def quality(message: Message) -> int:
    """MQTT's quality of service for it: of chunks nobody needs to be told that they came, for who lacks one asks."""
    return 0 if isinstance(message, Chunk) else 1


def encode_message(message: Message) -> bytes:
    """The message's bytes. Raises ValueError for text that the other side would refuse."""
    if isinstance(message, Chunk):
        return packed.pack(message.blob, message.chunk_bytes, message.index, message.crc32, message.data)
    _check_texts(message)
    return codec.encode({"v": VERSION, "type": type(message).__name__, "body": message})


def decode_message(data: bytes) -> Message:
    """Read one message. Raises TooLargeError, DecodeError (wrong version, unknown type, wrong field, long text)."""
    if packed.is_packed(data):
        return Chunk(*packed.unpack(data, MAX_MESSAGE_BYTES))
    plain = codec.unpack(data, MAX_MESSAGE_BYTES)
    envelope = codec.from_plain(_Envelope, plain, "message")
    if envelope.v != VERSION:
        msg = f"protocol version {envelope.v}, this side speaks {VERSION}; update the older one"
        raise DecodeError(msg)
    if envelope.type not in KINDS or KINDS[envelope.type] is Chunk or not isinstance(plain, dict):
        msg = f"unknown message type {envelope.type[:80]!r}"
        raise DecodeError(msg)
    body: Message = codec.from_plain(KINDS[envelope.type], plain.get("body"), envelope.type)
    try:
        _check_texts(body)
    except ValueError as error:
        raise DecodeError(str(error)) from error
    return body


def _check_texts(message: Message) -> None:
    for field in dataclasses.fields(message):
        if isinstance(text := getattr(message, field.name), str):
            _short(f"{type(message).__name__}.{field.name}", text)
