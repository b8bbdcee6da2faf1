"""The walk, written down once more: the shortest program that trains from an artifact, in numpy over onnxruntime.

The device's engine streams, chunks and stays within a budget; this does none of it. Parity runs on it, so that a
defect of the export and a defect of the engine cannot hide each other. It reads nothing but a manifest and its blobs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import IGNORED, ClassesLoss, Keeping, Manifest, Segment, Structure, VocabularyLoss
from edge_sdk.wire.tensors import Array, TensorFile

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels report home from 1.29 on; any later call would be too late
import onnxruntime

Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids (batch, tokens) int64, attention_mask alike, 1 where a token is; labels (batch,) int64 for classes.

    Where each token has a label: (batch, tokens), IGNORED at those that have none.
    Images have `pixels` (batch, channels, height, width) uint8 in the place of ids.
    """

    ids: Array
    attention_mask: Array
    labels: Array
    pixels: Array | None = None

    @property
    def flowing(self) -> Arrays:
        """What flows into the embedding."""
        return {"ids": self.ids} if self.pixels is None else {"pixels": self.pixels}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Mean loss over what the batch predicts, and its gradient by adapter tensor."""

    loss: float
    gradients: Arrays


@dataclass(frozen=True, slots=True)
class ReferenceWalk:
    """One artifact level, ready to run with any adapter of the right shapes."""

    store: BlobStore
    manifest: Manifest
    _sessions: dict[str, Any] = field(default_factory=dict)

    def run(self, adapter: Mapping[str, Array], batch: Batch, kept_bits: int = 0, *, integers: bool = False) -> Outcome:
        """There and back: loss and the gradient of every trained tensor.

        `kept_bits` chooses the graphs that keep activations in so many bits; 0 those that recompute. `integers` chooses
        those that multiply so on the way back.
        """
        walk = self.manifest.walk
        context = self._context(batch)
        inputs: list[Arrays] = []
        flowing = batch.flowing
        for segment in walk:
            given = {**flowing, **self._tensors(segment, context, adapter)}
            found = self._graph(self._pair(segment, kept_bits).forward, given)
            flowing = {"x": found.pop("y")}
            inputs.append({**given, **found})
        loss, dy, gradients = self._loss(flowing["x"], batch, adapter)
        for segment in reversed(self.manifest.walked_back()):
            pair = self._pair(segment, kept_bits)
            backward = (pair.backward_integers if integers else "") or pair.backward
            found = self._graph(backward, {**inputs.pop(), "dy": dy})
            dy = found.pop("dx")
            if segment.trains:
                gradients |= {f"{segment.name}/{name.removeprefix('d.')}": value for name, value in found.items()}
        return Outcome(loss, gradients)

    def _context(self, batch: Batch) -> Arrays:
        name = self.manifest.context
        return self._graph(name, {"attention_mask": batch.attention_mask}) if name else {}

    def _pair(self, segment: Segment, kept_bits: int) -> Structure | Keeping:
        """The graphs of a segment, there and back."""
        structure = self.manifest.structures[segment.structure]
        return next((one for one in structure.keepings if one.bits == kept_bits), structure)

    def _tensors(self, segment: Segment, context: Arrays, adapter: Mapping[str, Array]) -> Arrays:
        structure = self.manifest.structures[segment.structure]
        return {
            **{name: context[name] for name in structure.context},
            **self._file(segment.tensors, structure.frozen),
            **{name: adapter[f"{segment.name}/{name}"] for name in structure.trained},
        }

    def _loss(self, x: Array, batch: Batch, adapter: Mapping[str, Array]) -> tuple[float, Array, Arrays]:
        manifest = self.manifest
        if manifest.vocabulary_loss is not None:
            return *self._vocabulary_loss(manifest.vocabulary_loss, x, batch), {}
        if manifest.classes_loss is None:  # the manifest refuses to be without a loss
            raise AssertionError
        return self._classes_loss(manifest.classes_loss, x, batch, adapter)

    def _vocabulary_loss(self, loss: VocabularyLoss, x: Array, batch: Batch) -> tuple[float, Array]:
        matrix = self._file(loss.tensors, ("matrix", "matrix.scale"))
        predicts = np.zeros(batch.ids.shape, dtype=bool)
        predicts[:, :-1] = batch.attention_mask[:, 1:] > 0
        labels, weight = batch.ids[:, 1:][predicts[:, :-1]], np.float32(1 / predicts.sum())
        found = self._graph(loss.project, {"z": x[predicts], **matrix})
        wanted = self._graph(loss.lookup, {"ids": labels, **matrix})["z"]
        dx = np.zeros_like(x)
        dx[predicts] = (self._graph(loss.unproject, {"softmax": found["softmax"], **matrix})["dz"] - wanted) * weight
        return float((found["logsum"][:, 0] - (x[predicts] * wanted).sum(axis=1)).mean()), dx

    def _classes_loss(
        self, loss: ClassesLoss, x: Array, batch: Batch, adapter: Mapping[str, Array]
    ) -> tuple[float, Array, Arrays]:
        given = {
            "x": x,
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
            "weight": np.array(1 / (batch.labels != IGNORED).sum(), dtype=np.float32),
            **self._file(loss.tensors, loss.frozen),
            **{name: adapter[f"head/{name}"] for name in loss.trained},
        }
        found = self._graph(loss.step, given)
        return float(found["loss"]), found["dx"], {f"head/{name}": found[f"d.{name}"] for name in loss.trained}

    def _file(self, name: str, wanted: Sequence[str]) -> Arrays:
        with TensorFile(self.store.path(self.manifest.files[name].sha256)) as file:
            return {key: file[key] for key in wanted if key in file}

    def _graph(self, name: str, given: Mapping[str, Array]) -> Arrays:
        if name not in self._sessions:
            path = self.store.path(self.manifest.files[name].sha256)
            options = onnxruntime.SessionOptions()
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch's threads want the cores
            self._sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session = self._sessions[name]
        outputs = [value.name for value in session.get_outputs()]
        return dict(zip(outputs, session.run(outputs, dict(given)), strict=True))
