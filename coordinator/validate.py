"""A delta is checked here before it touches the model; nothing else looks at a device's numbers first.

In this order, the cheap before the dear: length, form, task and device, round and adapter, number of examples, names,
codec, shapes, numbers, size beside other deltas. The first check that fails gives the refusal. A delta that passes has
the form that the task asked for, weighs no more than the task, and can be aggregated, however hostile its sender;
whether its numbers are good is another question, which `aggregate` asks of a round's deltas together.

Nothing is allocated on a sender's word: the blob is no longer than the task's shapes allow, its msgpack has no more
containers than so many tensors need, and numbers are decoded once each tensor's declared codec, shape and length are
those of the task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.wire.codecs import CODECS
from edge_sdk.wire.delta import Delta, DeltaFile, read_delta, unpack_delta
from edge_sdk.wire.errors import DecodeError, TooLargeError
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.messages import RefusalReason, Task
from edge_sdk.wire.secure.ring import size_bytes

MAX_CHANGE = 1e6  # of one number: beyond any training, and far from where float32 ends, also summed or multiplied
ENTRY_BYTES = 256  # msgpack around one tensor: name, keys, shape
FILE_BYTES = 4096  # msgpack around all of them


@dataclass(frozen=True, slots=True)
class Expected:
    """What the delta of one task must be: `shapes` of its tensors by global name, all in the task's codec.

    `size_limit` is the largest root mean square of its numbers, or None.
    """

    task: Task
    device: str
    shapes: Mapping[str, tuple[int, ...]]
    size_limit: float | None = None

    @property
    def max_bytes(self) -> int:
        """No honest delta is longer."""
        if self.task.masking is not None:
            return size_bytes(self.shapes)
        length = CODECS[self.task.delta_codec].size_bytes
        tensors = sum(length(math.prod(shape)) + len(name) + ENTRY_BYTES for name, shape in self.shapes.items())
        return tensors + FILE_BYTES


@dataclass(frozen=True, slots=True)
class Accepted:
    """The delta, its weight in the mean, and its `size`, the root mean square of its numbers."""

    delta: Delta
    examples: int
    size: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not."""

    reason: RefusalReason
    detail: str


def expected(task: Task, device: str, manifest: Manifest, size_limit: float | None = None) -> Expected:
    """What `device` must deliver for `task` at the level of `manifest`: all that trains there, less what is frozen."""
    return Expected(task, device, manifest.trained_shapes(task.freeze), size_limit)


def check_delta(data: bytes, wanted: Expected) -> Accepted | Refused:
    """Read the bytes of a delta blob and check all that they claim; only then are its numbers decoded."""
    try:
        file = read_delta(data, wanted.max_bytes, len(wanted.shapes))
        refused = _check_claims(file, wanted) or _check_form(file, wanted)
        if refused is not None:
            return refused
        delta = unpack_delta(file)
    except TooLargeError as error:
        return Refused(RefusalReason.TOO_LARGE, _line(error))
    except DecodeError as error:
        return Refused(RefusalReason.MALFORMED, _line(error))
    refused = _check_numbers(delta) or _check_size(delta, wanted)
    return refused or Accepted(delta, file.examples, delta.size())


def check_masked(data: bytes, wanted: Expected, examples: int) -> Accepted | Refused:
    """All that can be seen of a delta in a secure sum is how long it is; so many `examples` its device reports."""
    if len(data) != wanted.max_bytes:
        return Refused(RefusalReason.MALFORMED, f"{len(data)} bytes, the task's numbers have {wanted.max_bytes}")
    return Accepted(Delta({}), min(max(examples, 1), wanted.task.steps * wanted.task.batch), 0.0)


def _check_claims(file: DeltaFile, wanted: Expected) -> Refused | None:
    task = wanted.task
    if file.task_id != task.task_id or file.device != wanted.device:
        return Refused(RefusalReason.UNKNOWN_TASK, "the delta is of another task or another device")
    if file.round != task.round:
        return Refused(RefusalReason.WRONG_ROUND, f"the delta is of round {file.round}, the task of round {task.round}")
    if file.adapter != task.adapter.sha256:
        return Refused(RefusalReason.WRONG_ROUND, "the delta started from another adapter than the task's")
    most = task.steps * task.batch
    if not 1 <= file.examples <= most:
        return Refused(RefusalReason.MALFORMED, f"{file.examples} examples; from 1 to {most} are possible")
    return None


def _check_form(file: DeltaFile, wanted: Expected) -> Refused | None:
    if odd := sorted(set(file.tensors) ^ set(wanted.shapes)):
        lacks = "lacks" if odd[0] in wanted.shapes else "has the unknown"
        return Refused(RefusalReason.WRONG_NAMES, f"the delta {lacks} {odd[0][:120]!r}; {len(odd)} names differ")
    asked = wanted.task.delta_codec
    for name, tensor in file.tensors.items():
        if tensor.codec is not asked:
            return Refused(RefusalReason.MALFORMED, f"{name} is in {tensor.codec.value}, not {asked.value}")
        if tensor.shape != wanted.shapes[name]:
            shape = tensor.shape[:8]
            return Refused(RefusalReason.WRONG_SHAPE, f"{name} has shape {shape}, not {wanted.shapes[name]}")
    return None


def _check_numbers(delta: Delta) -> Refused | None:
    for name, array in delta.tensors.items():
        if not np.isfinite(array).all():
            return Refused(RefusalReason.NOT_FINITE, f"{name} has numbers that are not finite")
        if np.any(np.abs(array) > MAX_CHANGE):
            return Refused(RefusalReason.NOT_FINITE, f"{name} has changes of more than {MAX_CHANGE:.0e}")
    return None


def _check_size(delta: Delta, wanted: Expected) -> Refused | None:
    size, limit = delta.size(), wanted.size_limit
    if limit is None or size <= limit:
        return None
    detail = f"its numbers are {size:.3g} in the mean (root of squares), beside others' at most {limit:.3g} is allowed"
    return Refused(RefusalReason.OVER_NORM, detail)


def _line(error: Exception) -> str:
    return str(error).replace("\n", " ")[:300]
