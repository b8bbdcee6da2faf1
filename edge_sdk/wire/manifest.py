"""What an artifact is made of: the manifest.

An **artifact** is everything a device needs to train one emulator: graphs, tensors, tokenizer, and this manifest, which
names each file by size and SHA-256. The artifact's id is the SHA-256 of the manifest's bytes.

A model is a walk:  embed -> block.a -> block.b -> ... -> norm -> loss,  and back.

- A **structure** is a pair of graphs (forward; backward, which recomputes its own forward) shared by all segments
  built alike; and pairs that keep activations in between, for who has the memory.
- A **segment** is one place in the walk: a structure and a tensor file. `block.7` is layer 7 *of the full model*,
  whichever layers the emulator kept: the adapter goes back into the full model by that name. `bridge.7` stands behind
  it, in the place of dropped layers, and never trains.
- Graph inputs: `x` (batch, tokens, width), `dy` like `y`, then context, frozen and trained tensors by name. Outputs:
  `y` forward; `dx` and `d.<trained>` backward. Batch and tokens are dynamic. The walk begins with `ids` (batch, tokens)
  int64, or with `pixels` (batch, channels, height, width) uint8, which the embedding scales and cuts into patches.
- An adapter tensor's name is `<segment>/<trained input>`; all are float32.
- A matrix `w` (out, in) held in fewer than 32 bits is one or two inputs, each with `out` rows: at 16 bits `w` float16;
  at 8 `w` int8 and `w.scale` float32 (out,); at 4, with n = in rounded up to a multiple of 32, `w` uint8 (out, n / 2)
  and `w.scale` float16 (out, n / 32).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge_sdk.wire import codec
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.errors import DecodeError

MAX_MANIFEST_BYTES = 65_536
FORMAT = 1
MAX_CHANNELS, MAX_SIDE = 16, 4096  # of an image: colours, and pixels each way
MAX_IMAGE_BYTES = 1 << 24  # a number in a manifest must not fill a device's memory
BITS = (32, 16, 8, 4)  # in which a frozen matrix can be held
KEPT_BITS = (32, 16)  # in which an activation can be kept
IGNORED = -100  # the label of a token that has none: there is no loss at it, in our graphs as in torch's cross-entropy
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class TaskType(enum.Enum):
    """What the model is tuned for."""

    CAUSAL_LM = "causal-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - tokens of a text
    IMAGE_CLASSIFICATION = "image-classification"

    @property
    def classifies(self) -> bool:
        """Whether it chooses among labels, by a head of its own; else the loss is over the vocabulary."""
        return self is not TaskType.CAUSAL_LM

    @property
    def labels_tokens(self) -> bool:
        """Whether a label is a token's, and not a row's."""
        return self is TaskType.TOKEN_CLASSIFICATION


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The images that a model takes: a byte for each pixel and channel, of which grey has one and colour three."""

    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuse sizes that no image has, and more bytes than a device should have to hold."""
        sides = (self.height, self.width)
        possible = 1 <= self.channels <= MAX_CHANNELS and min(sides) >= 1 and max(sides) <= MAX_SIDE
        if not possible or self.size_bytes > MAX_IMAGE_BYTES:
            msg = f"images of {self} bytes are not supported"
            raise ValueError(msg)

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    @property
    def size_bytes(self) -> int:
        """Of one image."""
        return self.channels * self.height * self.width


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The foundation model: `layers` and `width` of the full model, `labels` by index (empty for a language model).

    A model of images has no vocabulary, and makes `max_tokens` tokens of every image: its patches, and what stands
    before them.
    """

    family: str
    task: TaskType
    layers: int
    width: int
    vocabulary: int
    labels: tuple[str, ...]
    max_tokens: int
    image: ImageSpec | None = None

    def __post_init__(self) -> None:
        """Refuse a task without what it is about."""
        if (self.task is TaskType.IMAGE_CLASSIFICATION) != (self.image is not None):
            msg = f"a model for {self.task.value} {'without' if self.image is None else 'with'} images"
            raise ValueError(msg)

    def row_tokens(self, asked: int) -> int:
        """Tokens of the longest row where `asked` are asked for. That is for text to say: images are of one length."""
        return asked if self.image is None else self.max_tokens

    def reads(self, tokens: int) -> bool:
        """Whether its longest row can be of so many tokens."""
        return tokens <= self.max_tokens if self.image is None else tokens == self.max_tokens


@dataclass(frozen=True, slots=True)
class Surgery:
    """What was done to blocks before they were captured. No device needs to know it, whoever proves the level does.

    `ffn` is the share of its FFN's neurons that a block keeps. `svd` names modules by the last parts of their names;
    each of their matrices is the product of two of rank `svd_rank`. `bridges` are the layers that a bridge follows, in
    the place of layers that were dropped.
    """

    ffn: float = 1.0
    svd: tuple[str, ...] = ()
    svd_rank: int = 0
    bridges: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be done to any model."""
        if not 0 < self.ffn <= 1:
            msg = f"a share of {self.ffn:g} of an FFN's neurons: give more than 0 and at most 1"
            raise ValueError(msg)
        if bool(self.svd) != (self.svd_rank > 0):
            msg = f"svd of {len(self.svd)} modules at rank {self.svd_rank}: give modules and a rank of 1 or more"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Refit:
    """How what a level keeps was fitted to the whole model, on `rows` rows of public data.

    In closed form where `steps` is 0, else then trained for so many, up to this `learning_rate`.
    """

    rows: int
    steps: int = 0
    learning_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what fits nothing."""
        if self.rows < 1 or self.steps < 0 or (self.steps > 0) != (self.learning_rate > 0):
            msg = f"a refit on {self.rows} rows, {self.steps} steps at a learning rate of {self.learning_rate:g}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """The emulator's place on the ladder: which layers it keeps, which of them train, and bits per frozen weight.

    None of them trains where the adapter is the classifier alone. `layer_bits` are those of the kept layers where they
    are not all held in `bits`, else it is empty. `refit` is None where the kept weights are the model's own.
    """

    name: str
    layers: tuple[int, ...]
    trained_layers: tuple[int, ...]
    bits: int
    layer_bits: tuple[int, ...] = ()
    surgery: Surgery = Surgery()
    refit: Refit | None = None

    def __post_init__(self) -> None:
        """Refuse a name that could be a path, trained layers that are not kept, and bits that are not in BITS."""
        if not NAME.fullmatch(self.name):
            msg = f"{self.name[:80]!r} is no level name: letters, digits, dot, dash, underscore"
            raise ValueError(msg)
        if not set(self.trained_layers) <= set(self.layers):
            msg = f"level {self.name} trains layers it does not keep"
            raise ValueError(msg)
        if not set(self.surgery.bridges) <= set(self.layers):
            msg = f"level {self.name} has bridges behind layers it does not keep"
            raise ValueError(msg)
        for bits in (self.bits, *self.layer_bits):
            if bits not in BITS:
                msg = f"{bits} bits are not supported; supported are {', '.join(map(str, BITS))}"
                raise ValueError(msg)
        if self.layer_bits and len(self.layer_bits) != len(self.layers):
            msg = f"level {self.name} has bits for {len(self.layer_bits)} layers and keeps {len(self.layers)}"
            raise ValueError(msg)

    def bits_of(self, layer: int | None) -> int:
        """In how many bits the matrices of a kept layer are held; None: of what is no layer."""
        if layer is None or not self.layer_bits:
            return self.bits
        return self.layer_bits[self.layers.index(layer)]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """The adapter as peft would configure it. `initial` names the file with its starting values.

    A kind without factors has `rank` 0, `alpha` 0 and no `targets`; of one of kind `layers`, the `first` and the `last`
    so many blocks train; of `prompt` or `prefix`, each block has `length` tokens, or keys and values, of its own.
    """

    kind: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    initial: str
    last: int = 0
    first: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Keeping:
    """A pair of graphs that keeps activations: what the way back needs so as to make no product with a weight twice.

    `forward` outputs the `kept` beside `y`, `backward` takes them after `dy`. They are `floats` numbers a token and
    `row_floats` a row in all, of `bits` bits each. `backward_integers` is as in Structure.
    """

    bits: int
    forward: str
    backward: str
    kept: tuple[str, ...]
    floats: int
    row_floats: int = 0
    backward_integers: str = ""

    def __post_init__(self) -> None:
        """Refuse what no graph could keep, and no plan could count."""
        if self.bits not in KEPT_BITS or self.floats < 1 or self.row_floats < 0:
            msg = f"a keeping of {self.floats} and {self.row_floats} numbers in {self.bits} bits that cannot be"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Structure:
    """A pair of graphs, as names in `Manifest.files`; `backward` is empty where nothing flows back.

    `keepings` do the same with more memory and less work. `trained` maps each trained input to its shape.
    `backward_integers` takes and gives what `backward` does, and multiplies what flows back in integers: faster on some
    processors, and not exact. Empty where there is no such graph.
    """

    forward: str
    backward: str
    keepings: tuple[Keeping, ...]
    context: tuple[str, ...]
    frozen: tuple[str, ...]
    trained: Mapping[str, tuple[int, ...]]
    backward_integers: str = ""


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

    `project`: `z` (rows, width), `chunk` rows of `matrix` -> `softmax` (rows, chunk) of
    their logits, and `logsum` (rows, 1), the logarithm of the sum of the logits' exponentials.
    `unproject`: `softmax`, the same rows of `matrix` -> `dz` (rows, width), their mean row under the softmax.
    `lookup`: `ids` (rows,), `matrix` -> `z` (rows, width), those rows of it.
    `tensors` names the file that holds `matrix` and what else of a quantised matrix begins with that name. Token t
    predicts label t + 1.
    """

    project: str
    unproject: str
    lookup: str
    tensors: str


@dataclass(frozen=True, slots=True)
class ClassesLoss:
    """Cross-entropy over classes, one graph.

    `step`: `x`, `attention_mask`, `labels` (batch,) int64, `weight` () float32, frozen, trained -> `loss` (), the
    weighted sum; `logits` (batch, classes); `dx`; `d.<trained>`. Adapter tensors are named `head/<trained input>`.
    Where labels are tokens', they are (batch, tokens), IGNORED where there is none, `logits` (batch, tokens, classes).
    """

    step: str
    tensors: str
    frozen: tuple[str, ...]
    trained: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class OptimizerGraphs:
    """The optimizers, for a runtime that brings none; each takes a flat tensor (n,), or any part of one.

    `adamw`: `parameter`, `gradient`, `first`, `second`, `learning_rate` (), `weight_decay` (), `step` () int64 from 1
    -> `new_parameter`, `new_first`, `new_second`. `sgd`: the same with `velocity` for both moments, without `step`.
    `square_sum`: `gradient` -> `square_sum` () float64. `clip`: `gradient`, the sum over all tensors as `square_sum`,
    `clip_norm` () (0: no bound) -> `new_gradient`. Moments start as zeros.
    """

    adamw: str
    sgd: str
    square_sum: str
    clip: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What one graph costs at one shape, measured; `graph` is its name in `Manifest.files`.

    `memory_bytes` is what it needs beside its inputs while it runs, its outputs included; `time_ms` the median time of
    a run with its weights in memory. The graphs of a vocabulary's loss take `batch` positions and a slice of the
    vocabulary. Three costs are of no graph: `process` is the memory of a worker at rest with everything loaded,
    `training` what a step of the leanest plan took beyond the sum of its parts, `pages` the time to map and to give
    back so many bytes of weights.
    """

    graph: str
    batch: int
    tokens: int
    memory_bytes: int
    time_ms: float

    def __post_init__(self) -> None:
        """Refuse what cannot have been measured."""
        if min(self.batch, self.tokens) < 1 or self.memory_bytes < 0 or not self.time_ms >= 0:
            msg = f"a cost of {self.graph[:80]!r} that cannot be"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is made of. `costs` and `needs_bytes` are measured at export, on the exporting machine.

    `needs_bytes` is the predicted peak of the leanest plan for one row of `reference_tokens` tokens. `integers_error`
    is how far products in integers put the gradient off, as a share of its norm (measured with a drawn adapter and
    drawn rows); 0 where no graph has such products. `context` and `tokenizer` are file names, empty where there is
    none. Exactly one of `vocabulary_loss` and `classes_loss` is set.
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
    optimizers: OptimizerGraphs
    tokenizer: str
    reference_tokens: int
    costs: tuple[Cost, ...]
    needs_bytes: int
    integers_error: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a manifest that contradicts itself, so that nobody downstream has to ask."""
        if self.format != FORMAT:
            msg = f"format {self.format} is not supported, only {FORMAT}"
            raise ValueError(msg)
        if (self.vocabulary_loss is None) == (self.classes_loss is None):
            msg = "exactly one loss is needed"
            raise ValueError(msg)
        if self.model.image is not None and self.classes_loss is None:
            msg = "images have no vocabulary to be a loss over"
            raise ValueError(msg)
        for name in self.files:
            if not FILE_NAME.fullmatch(name):
                msg = f"{name[:80]!r} is no file name"
                raise ValueError(msg)
        if missing := sorted(set(_named(self)) - set(self.files) - {""}):
            msg = f"names files that it does not list: {', '.join(missing)}"
            raise ValueError(msg)
        if not 0 <= self.integers_error < math.inf:
            msg = f"gradients in integers that are off by {self.integers_error}"
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
        return walked_back(self.walk)

    def largest_blob(self) -> Blob:
        """The largest file."""
        return max(self.files.values(), key=lambda blob: blob.size_bytes)

    def _adapter(self) -> Iterator[tuple[bool, str, tuple[int, ...]]]:
        for segment in self.walk:
            for name, shape in self.structures[segment.structure].trained.items():
                yield segment.trains, f"{segment.name}/{name}", shape
        if self.classes_loss is not None:
            for name, shape in self.classes_loss.trained.items():
                yield True, f"head/{name}", shape


def walked_back(walk: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The lowest segment of a walk that trains, and all above it."""
    lowest = next((k for k, segment in enumerate(walk) if segment.trains), len(walk))
    return walk[lowest:]


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
    optimizers = manifest.optimizers
    yield from (optimizers.adamw, optimizers.sgd, optimizers.square_sum, optimizers.clip)
    for structure in manifest.structures.values():
        pairs: tuple[Structure | Keeping, ...] = (structure, *structure.keepings)
        for pair in pairs:
            yield from (pair.forward, pair.backward, pair.backward_integers)
    for segment in manifest.walk:
        yield segment.tensors
    if manifest.vocabulary_loss is not None:
        loss = manifest.vocabulary_loss
        yield from (loss.project, loss.unproject, loss.lookup, loss.tensors)
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
