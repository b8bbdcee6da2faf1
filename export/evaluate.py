"""Held-out loss of the full model, with an adapter plugged in or without.

Token folder: `ids.npy` (rows, tokens) int32, `lengths.npy` (rows,) int32, for a classifier `labels.npy` (rows,) int64,
or (rows, tokens), IGNORED where a token has none.
Image folder: `images.npy` (rows, channels, height, width) uint8, at most as large as the model's, `labels.npy`.
"""

from __future__ import annotations

import math
import pathlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from edge_sdk.wire.manifest import IGNORED, ImageSpec, ModelSpec, TaskType
from edge_sdk.wire.tensors import Array
from export.errors import ExportError
from export.foundation import first_line
from export.patches import scaled
from export.progress import Progress, Report, silent

ROWS = 8  # at once


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenised rows; `labels` is empty where neither rows nor tokens have any."""

    ids: Array
    lengths: Array
    labels: Array

    def __len__(self) -> int:
        """How many rows."""
        return len(self.ids)

    def __getitem__(self, rows: slice | Array) -> Tokens:
        """Some of them."""
        return Tokens(self.ids[rows], self.lengths[rows], self.labels[rows] if len(self.labels) else self.labels)


@dataclass(frozen=True, slots=True)
class Images:
    """Images (rows, channels, height, width) uint8 with their labels; the model's are of `spec`."""

    pixels: Array
    labels: Array
    spec: ImageSpec

    def __len__(self) -> int:
        """How many."""
        return len(self.pixels)

    def __getitem__(self, rows: slice | Array) -> Images:
        """Some of them."""
        return Images(self.pixels[rows], self.labels[rows], self.spec)

    def stretched(self) -> torch.Tensor:
        """The images in the model's size and colours, bilinearly, as devices make their batches."""
        size = (self.spec.height, self.spec.width)
        large = interpolate(torch.from_numpy(self.pixels.astype(np.float32)), size, mode="bilinear")
        return large.round().to(torch.uint8).expand(-1, self.spec.channels, -1, -1)


Rows: TypeAlias = Tokens | Images


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss in nats per predicted token, or per row for a classifier of rows, over `predicted` of them.

    `accuracy` is the share of them whose class was found, None for a language model.
    """

    loss: float
    accuracy: float | None
    rows: int
    predicted: int


def read_rows(folder: pathlib.Path, model: ModelSpec, *, labelled: bool = True) -> Rows:
    """Read a folder of rows of the kind that `model` takes; without a classifier's labels where they need not be
    `labelled`. Raises ExportError as the two below.
    """
    if model.image is None:
        return read_tokens(folder, model, labelled=labelled)
    return read_images(folder, model, model.image, labelled=labelled)


def read_images(folder: pathlib.Path, model: ModelSpec, spec: ImageSpec, *, labelled: bool = True) -> Images:
    """Read an image folder for `model`, whose images are of `spec`.

    Raises ExportError when an array is missing, or not of images and labels that the model knows.
    """
    try:
        pixels = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy") if labelled else np.zeros(pixels.shape[:1], dtype=np.int64)
    except (OSError, ValueError) as error:
        msg = f"cannot read the image folder {folder}: {first_line(error)}"
        raise ExportError(msg) from error
    fits = pixels.ndim == 4 and pixels.dtype == np.uint8 and pixels.shape[1] in {1, spec.channels}  # noqa: PLR2004
    if not fits or pixels.shape[2] > spec.height or pixels.shape[3] > spec.width or labels.shape != pixels.shape[:1]:
        found = f"{pixels.dtype} {pixels.shape} with labels {labels.shape}"
        msg = f"image folder {folder}: {found}; the model takes (rows, {', '.join(map(str, spec.shape))}) uint8 at most"
        raise ExportError(msg)
    _check_numbers(folder, "labels", labels, len(model.labels))
    return Images(pixels, labels, spec)


def read_tokens(folder: pathlib.Path, model: ModelSpec, *, labelled: bool = True) -> Tokens:
    """Read a token folder for `model`.

    Raises ExportError when an array is missing, of another shape than the others, or has what the model does not know.
    """
    try:
        ids, lengths = np.load(folder / "ids.npy"), np.load(folder / "lengths.npy")
        classifies = labelled and model.task.classifies
        labels = np.load(folder / "labels.npy") if classifies else np.zeros(0, dtype=np.int64)
    except (OSError, ValueError) as error:
        msg = f"cannot read the token folder {folder}: {first_line(error)}"
        raise ExportError(msg) from error
    one_each = (ids.shape if model.task.labels_tokens else lengths.shape) if classifies else (0,)
    if ids.ndim != 2 or lengths.shape != ids.shape[:1] or labels.shape != one_each:  # noqa: PLR2004
        shapes = f"ids {ids.shape}, lengths {lengths.shape}, labels {labels.shape}"
        msg = f"token folder {folder}: the shapes do not agree: {shapes}"
        raise ExportError(msg)
    given = labels[labels != IGNORED] if model.task.labels_tokens else labels
    for name, array, bound in (("ids", ids, model.vocabulary), ("labels", given, len(model.labels))):
        _check_numbers(folder, name, array, bound)
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= min(ids.shape[1], model.max_tokens):
        limit = min(ids.shape[1], model.max_tokens)
        msg = f"token folder {folder}: lengths from {lengths.min()} to {lengths.max()}; at most {limit} can be read"
        raise ExportError(msg)
    return Tokens(ids, lengths, labels)


def _check_numbers(folder: pathlib.Path, name: str, array: Array, bound: int) -> None:
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < bound):
        msg = f"folder {folder}: {name} must be whole numbers from 0 to {bound - 1}"
        raise ExportError(msg)


def evaluate(model: nn.Module, task: TaskType, rows: Rows, report: Report = silent) -> Score:
    """Score `model`, a model of `task` in evaluation mode. Raises ExportError when nothing is predicted."""
    losses, hits, predicted = 0.0, 0, 0
    begins = range(0, len(rows), ROWS)
    for k, begin in enumerate(begins):
        report(Progress("score rows", "", k, len(begins)))
        loss, right, count = _score(model, task, rows[begin : begin + ROWS])
        losses, hits, predicted = losses + loss, hits + right, predicted + count
    if predicted == 0:
        msg = "the folder has nothing to predict: its rows are too short or have no labels, or there are none"
        raise ExportError(msg)
    if not math.isfinite(losses):
        msg = f"the loss over {len(rows)} rows is {losses}"
        raise ExportError(msg)
    accuracy = hits / predicted if task.classifies else None
    return Score(losses / predicted, accuracy, len(rows), predicted)


def _score(model: nn.Module, task: TaskType, rows: Rows) -> tuple[float, int, int]:
    if isinstance(rows, Images):
        return _score_images(model, rows)
    return _score_classes(model, rows) if task.classifies else _score_text(model, rows)


def inputs(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (rows, longest) int64, and where a token is (rows, longest)."""
    longest = max(1, int(tokens.lengths.max()))
    ids = torch.from_numpy(tokens.ids[:, :longest].astype(np.int64))
    return ids, torch.arange(longest)[None] < torch.from_numpy(tokens.lengths.astype(np.int64))[:, None]


def _logits(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask.long()).logits
    return logits


def _score_text(model: nn.Module, tokens: Tokens) -> tuple[float, int, int]:
    ids, mask = inputs(tokens)
    logits, predicts = _logits(model, ids, mask), mask[:, 1:]
    loss = cross_entropy(logits[:, :-1][predicts], ids[:, 1:][predicts], reduction="sum")
    return loss.item(), 0, int(predicts.sum())


def _score_classes(model: nn.Module, tokens: Tokens) -> tuple[float, int, int]:
    ids, mask = inputs(tokens)
    config: Any = model.config
    if config.pad_token_id is not None:  # by which a decoder's classifier finds a row's last token
        ids = ids.masked_fill(~mask, config.pad_token_id)
    labels = tokens.labels
    if labels.ndim > 1:
        labels = np.where(mask.numpy(), labels[:, : ids.shape[1]], IGNORED)
    return _against(_logits(model, ids, mask), labels)


def _score_images(model: nn.Module, images: Images) -> tuple[float, int, int]:
    with torch.no_grad():
        return _against(model(pixel_values=scaled(model, images.stretched())).logits, images.labels)


def _against(logits: torch.Tensor, wanted: Array) -> tuple[float, int, int]:
    labels = torch.from_numpy(wanted.astype(np.int64))
    loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss.item(), int((logits.argmax(dim=-1) == labels).sum()), int((labels != IGNORED).sum())
