"""Held-out loss of the full model, with an adapter plugged in or without.

Token folder: `ids.npy` (rows, tokens) int32, `lengths.npy` (rows,) int32, for a classifier `labels.npy` (rows,) int64.
"""

from __future__ import annotations

import math
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from edge_sdk.wire.manifest import ModelSpec, TaskType
from edge_sdk.wire.tensors import Array
from export.errors import ExportError
from export.foundation import first_line
from export.progress import Progress, Report, silent

ROWS = 8  # at once


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenised rows; `labels` is empty where rows have none."""

    ids: Array
    lengths: Array
    labels: Array


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss in nats per predicted token, or per row for a classifier, over `predicted` of them.

    `accuracy` is the share of rows whose class was found, None for a language model.
    """

    loss: float
    accuracy: float | None
    rows: int
    predicted: int


def read_tokens(folder: pathlib.Path, model: ModelSpec, *, labelled: bool = True) -> Tokens:
    """Read a token folder for `model`; without the labels of a classifier's rows where they need not be `labelled`.

    Raises ExportError when an array is missing, of another shape than the others, or has what the model does not know.
    """
    try:
        ids, lengths = np.load(folder / "ids.npy"), np.load(folder / "lengths.npy")
        has_labels = labelled and model.task is TaskType.SEQUENCE_CLASSIFICATION
        labels = np.load(folder / "labels.npy") if has_labels else np.zeros(0, dtype=np.int64)
    except (OSError, ValueError) as error:
        msg = f"cannot read the token folder {folder}: {first_line(error)}"
        raise ExportError(msg) from error
    if ids.ndim != 2 or lengths.shape != ids.shape[:1] or (has_labels and labels.shape != lengths.shape):  # noqa: PLR2004
        shapes = f"ids {ids.shape}, lengths {lengths.shape}, labels {labels.shape}"
        msg = f"token folder {folder}: the shapes do not agree: {shapes}"
        raise ExportError(msg)
    for name, array, bound in (("ids", ids, model.vocabulary), ("labels", labels, len(model.labels))):
        if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < bound):
            msg = f"token folder {folder}: {name} must be whole numbers from 0 to {bound - 1}"
            raise ExportError(msg)
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= min(ids.shape[1], model.max_tokens):
        limit = min(ids.shape[1], model.max_tokens)
        msg = f"token folder {folder}: lengths from {lengths.min()} to {lengths.max()}; at most {limit} can be read"
        raise ExportError(msg)
    return Tokens(ids, lengths, labels)


def evaluate(model: nn.Module, task: TaskType, tokens: Tokens, report: Report = silent) -> Score:
    """Score `model`, a model of `task` in evaluation mode. Raises ExportError when nothing is predicted."""
    losses, hits, predicted = 0.0, 0, 0
    score = _score_text if task is TaskType.CAUSAL_LM else _score_classes
    begins = range(0, len(tokens.ids), ROWS)
    for k, begin in enumerate(begins):
        report(Progress("score rows", "", k, len(begins)))
        rows = slice(begin, begin + ROWS)
        loss, right, count = score(model, Tokens(tokens.ids[rows], tokens.lengths[rows], tokens.labels[rows]))
        losses, hits, predicted = losses + loss, hits + right, predicted + count
    if predicted == 0:
        msg = "the token folder has nothing to predict: its rows are shorter than two tokens, or there are none"
        raise ExportError(msg)
    if not math.isfinite(losses):
        msg = f"the loss over {len(tokens.ids)} rows is {losses}"
        raise ExportError(msg)
    accuracy = None if task is TaskType.CAUSAL_LM else hits / predicted
    return Score(losses / predicted, accuracy, len(tokens.ids), predicted)


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
    logits, labels = _logits(model, ids, mask), torch.from_numpy(tokens.labels.astype(np.int64))
    loss = cross_entropy(logits, labels, reduction="sum")
    return loss.item(), int((logits.argmax(dim=1) == labels).sum()), len(labels)
