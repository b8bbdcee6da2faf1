"""What an artifact is made of: the manifest.

An **artifact** is everything a device needs to train one emulator: graphs, tensors, tokenizer, and this manifest, which
names each file by size and SHA-256. The artifact's id is the SHA-256 of the manifest's bytes.

A model is a walk:  embed -> block.a -> block.b -> ... -> norm -> loss,  and back.

- A **structure** is a pair of graphs (forward; backward, which recomputes its own forward) shared by all segments
  built alike.
- A **segment** is one place in the walk: a structure and a tensor file. `block.7` is layer 7 *of the full model*,
  whichever layers the emulator kept: the adapter goes back into the full model by that name.
- Graph inputs: `x` (batch, tokens, width), `dy` like `y`, then context, frozen and trained tensors by name. Outputs:
  `y` forward; `dx` and `d.<trained>` backward. Batch and tokens are dynamic.
- An adapter tensor's name is `<segment>/<trained input>`; all are float32.
- A matrix `w` (out, in) held in fewer than 32 bits is one or two inputs, each with `out` rows: at 16 bits `w` float16;
  at 8 `w` int8 and `w.scale` float32 (out,); at 4, with n = in rounded up to a multiple of 32, `w` uint8 (out, n / 2)
  and `w.scale` float16 (out, n / 32).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge_sdk.wire import codec
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.errors import DecodeError

MAX_MANIFEST_BYTES = 65_536
FORMAT = 1
BITS = (32, 16, 8, 4)  # in which a frozen matrix can be held
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class TaskType(enum.Enum):
    """What the model is tuned for."""

    CAUSAL_LM = "causal-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"


class Direction(enum.Enum):
    """Which way a cost was measured."""

    LOAD = "load"
    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The foundation model: `layers` and `width` of the full model, `labels` by index (empty for a language model)."""

    family: str
    task: TaskType
    layers: int
    width: int
    vocabulary: int
    labels: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """The emulator's place on the ladder: which layers it keeps, which of them train, and bits per frozen weight."""

    name: str
    layers: tuple[int, ...]
    trained_layers: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        """Refuse a name that could be a path, trained layers that are not kept, and bits that are not in BITS."""
        if not NAME.fullmatch(self.name):
            msg = f"{self.name[:80]!r} is no level name: letters, digits, dot, dash, underscore"
            raise ValueError(msg)
        if not set(self.trained_layers) <= set(self.layers):
            msg = f"level {self.name} trains layers it does not keep"
            raise ValueError(msg)
        if self.bits not in BITS:
            msg = f"{self.bits} bits are not supported; supported are {', '.join(map(str, BITS))}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """The adapter as peft would configure it. `initial` names the file with its starting values."""

    kind: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    initial: str


@dataclass(frozen=True, slots=True)
class Structure:
    """A pair of graphs, as names in `Manifest.files`; `backward` is empty where nothing flows back.

    `trained` maps each trained input to its shape.
    """

    forward: str
    backward: str
    context: tuple[str, ...]
    frozen: tuple[str, ...]
    trained: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Segment:
    """One place in the walk. `tensors` names its tensor file in `Manifest.files`."""

    name: str
    structure: str
    tensors: str
    trains: bool


@dataclass(frozen=True, slots=True)
class VocabularyLoss:
    """Cross-entropy over the vocabulary (rows of `matrix`), in chunks of rows and of vocabulary.

    `project`: `z` (rows, width), `chunk` rows of `matrix` (vocabulary, width) -> `logits` (rows, chunk).
    `unproject`: `dlogits` (rows, chunk), the same rows of `matrix` -> `dz` (rows, width).
    `tensors` names the file that holds `matrix` [and `matrix.scale`]. Token t predicts label t + 1.
    """

    project: str
    unproject: str
    tensors: str


@dataclass(frozen=True, slots=True)
class ClassesLoss:
    """Cross-entropy over classes, one graph.

    `step`: `x`, `attention_mask`, `labels` (batch,) int64, `weight` () float32, frozen, trained -> `loss` (), the
    weighted sum; `logits` (batch, classes); `dx`; `d.<trained>`. Adapter tensors are named `head/<trained input>`.
    """

    step: str
    tensors: str
    frozen: tuple[str, ...]
    trained: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Cost:
    """A measured cost of one structure (or `process`, `loss`) at one shape.

    `peak_bytes` is the growth of resident memory while it ran; for `process` the resident memory of the worker at rest
    (interpreter, runtime, sessions).
    """

    structure: str
    direction: Direction
    batch: int
    tokens: int
    peak_bytes: int
    time_ms: float

    def __post_init__(self) -> None:
        """Refuse what cannot have been measured; only what was measured at rest, a load, has no shape."""
        least = 0 if self.direction is Direction.LOAD else 1
        if min(self.batch, self.tokens) < least or self.peak_bytes < 0 or self.time_ms < 0:
            msg = f"a cost of {self.structure[:80]!r} that cannot be"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is made of. `costs` and `needs_bytes` are measured at export, on the exporting machine.

    `needs_bytes` is the predicted peak of the leanest plan for one row of `reference_tokens` tokens. `context` and
    `tokenizer` are file names, empty where there is none. Exactly one of `vocabulary_loss` and `classes_loss` is set.
    """

    format: int
    model: ModelSpec
    level: LevelSpec
    adapter: AdapterSpec
    files: Mapping[str, Blob]
    context: str
    structures: Mapping[str, Structure]
    walk: tuple[Segment, ...]
    vocabulary_loss: VocabularyLoss | None
    classes_loss: ClassesLoss | None
    tokenizer: str
    reference_tokens: int
    costs: tuple[Cost, ...]
    needs_bytes: int

    def __post_init__(self) -> None:
        """Refuse a manifest that contradicts itself, so that nobody downstream has to ask."""
        if self.format != FORMAT:
            msg = f"format {self.format} is not supported, only {FORMAT}"
            raise ValueError(msg)
        if (self.vocabulary_loss is None) == (self.classes_loss is None):
            msg = "exactly one loss is needed"
            raise ValueError(msg)
        for name in self.files:
            if not FILE_NAME.fullmatch(name):
                msg = f"{name[:80]!r} is no file name"
                raise ValueError(msg)
        if missing := sorted(set(_named(self)) - set(self.files) - {""}):
            msg = f"names files that it does not list: {', '.join(missing)}"
            raise ValueError(msg)
        _check_walk(self)

    def adapter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every adapter tensor that takes part in the forward pass, by global name, in walking order."""
        return {name: shape for _segment, name, shape in self._adapter()}

    def trained_shapes(self, freeze: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
        """Shape of every adapter tensor that gets a gradient at this level, by global name, in walking order.

        Without those whose name ends in one of `freeze`.
        """
        return {name: shape for trains, name, shape in self._adapter() if trains and not name.endswith(freeze)}

    def walked_back(self) -> tuple[Segment, ...]:
        """The segments that gradients flow through at this level: the lowest that trains, and all above it."""
        lowest = next((k for k, segment in enumerate(self.walk) if segment.trains), len(self.walk))
        return self.walk[lowest:]

    def _adapter(self) -> Iterator[tuple[bool, str, tuple[int, ...]]]:
        for segment in self.walk:
            for name, shape in self.structures[segment.structure].trained.items():
                yield segment.trains, f"{segment.name}/{name}", shape
        if self.classes_loss is not None:
            for name, shape in self.classes_loss.trained.items():
                yield True, f"head/{name}", shape


def _check_walk(manifest: Manifest) -> None:
    names = [segment.name for segment in manifest.walk]
    if len(set(names)) != len(names) or any("/" in name for name in names):
        msg = "segment names must be unique and without a slash"
        raise ValueError(msg)
    walked_back = set(manifest.walked_back())
    for segment in manifest.walk:
        structure = manifest.structures.get(segment.structure)
        if structure is None:
            msg = f"segment {segment.name} has the unknown structure {segment.structure!r}"
            raise ValueError(msg)
        if not (structure.forward and segment.tensors and (structure.backward or segment not in walked_back)):
            msg = f"segment {segment.name} lacks a graph or a tensor file that the walk needs"
            raise ValueError(msg)


def _named(manifest: Manifest) -> Iterator[str]:
    """Every file name that the manifest uses."""
    yield from (manifest.context, manifest.tokenizer, manifest.adapter.initial)
    for structure in manifest.structures.values():
        yield from (structure.forward, structure.backward)
    for segment in manifest.walk:
        yield segment.tensors
    if manifest.vocabulary_loss is not None:
        loss = manifest.vocabulary_loss
        yield from (loss.project, loss.unproject, loss.tensors)
    if manifest.classes_loss is not None:
        yield from (manifest.classes_loss.step, manifest.classes_loss.tensors)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's bytes. Raises ValueError when they exceed what a device accepts."""
    data = codec.encode(manifest)
    if len(data) > MAX_MANIFEST_BYTES:
        msg = f"the manifest of level {manifest.level.name} is {len(data)} bytes, devices accept {MAX_MANIFEST_BYTES}"
        raise ValueError(msg)
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises DecodeError, TooLargeError."""
    manifest = codec.decode(Manifest, data, MAX_MANIFEST_BYTES)
    if not manifest.walk:
        msg = "Manifest: the walk is empty"
        raise DecodeError(msg)
    return manifest
