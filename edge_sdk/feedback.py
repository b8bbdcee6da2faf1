"""Error feedback: what a codec leaves out of a delta is kept, and added to the next one before that is encoded.

    delta + residual before = what crosses the wire + residual after

So the sum of what crossed the wire and the residual is the sum of the true deltas, however coarse the codec; F. Seide
et al., 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of Speech DNNs,
Interspeech 2014. Where the files lie, and when a residual counts: `edge_sdk.outbox`.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from edge_sdk.wire import codec
from edge_sdk.wire.delta import Tensor, pack_array, unpack_array
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.messages import DeltaCodec, Task
from edge_sdk.wire.records import read_record, write_record
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Residual:
    """The file: what was left out of each tensor, float32, by global name; `belongs_to` as `owner` says."""

    belongs_to: str
    tensors: Mapping[str, Tensor]


def owner(task: Task, manifest: Manifest) -> str:
    """Whose residual a task's is: one of another name, model or adapter says nothing about these tensors.

    The emulator's level is no part of it: a layer is the same layer at each, and keeps its residual where a level
    does not train it.
    """
    return hashlib.sha256(codec.encode((task.residual, manifest.model, manifest.adapter))).hexdigest()


def compress(
    delta: Mapping[str, Array], residual: Mapping[str, Array], how: DeltaCodec
) -> tuple[dict[str, Tensor], dict[str, Array]]:
    """The delta with what earlier ones left out, encoded to nearest; and what all of them leave out now."""
    encoded, after = dict[str, Tensor](), dict(residual)
    for name, array in delta.items():
        whole = array + residual[name] if name in residual else array
        encoded[name] = pack_array(whole, how)
        after[name] = whole - unpack_array(encoded[name])
    return encoded, after


def read_residual(path: pathlib.Path, belongs_to: str) -> dict[str, Array]:
    """What was left out so far; nothing where there is no file, or another's. Raises WireError, OSError."""
    if not path.exists():
        return {}
    found = read_record(Residual, path, path.stat().st_size)
    if found.belongs_to != belongs_to:
        return {}
    return {name: unpack_array(tensor) for name, tensor in found.tensors.items()}


def write_residual(path: pathlib.Path, belongs_to: str, residual: Mapping[str, Array]) -> None:
    """Write it, whole or not at all. Raises OSError."""
    write_record(
        path, Residual(belongs_to, {name: pack_array(array) for name, array in residual.items()}), "worker-residual"
    )
