"""Where the walk turns round: from the last hidden state to the loss and its gradient.

Cross-entropy over the vocabulary, for a language model, goes in chunks of rows and slices of the vocabulary, so that
neither the logits nor a dequantised matrix is ever whole in memory: per chunk of r rows the logits take r * vocabulary
* 4 bytes and two products are made, `z W'` and `dlogits W`. With p = softmax(logits), dlogits = (p - onehot(label)) *
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edge_sdk.engine.plan import SLICE_ROWS
from edge_sdk.engine.runtime import Graph
from edge_sdk.wire.tensors import Array, TensorFile


@dataclass(frozen=True, slots=True)
class VocabularyHead:
    """The vocabulary matrix and its two products."""

    project: Graph
    unproject: Graph
    tensors: TensorFile
    head_rows: int
    watch: Callable[[], None]

    def loss(self, z: Array, labels: Array, weight: float) -> float:
        """Weighted sum of the cross-entropy of rows `z` (rows, width) with `labels` (rows,)."""
        return sum(self._chunk(z[rows], labels[rows], weight)[0] for rows in _chunks(len(z), self.head_rows))

    def gradient(self, z: Array, labels: Array, weight: float) -> tuple[float, Array]:
        """The loss as above, and its gradient by `z` (rows, width)."""
        loss, dz = 0.0, np.zeros_like(z)
        for rows in _chunks(len(z), self.head_rows):
            part, logits = self._chunk(z[rows], labels[rows], weight)
            loss += part
            for piece, matrix in zip(logits, self._slices(), strict=True):
                dz[rows] += self.unproject.run({"dlogits": piece, **matrix})["dz"]
                self._give_back(matrix)
        return loss, dz

    def _chunk(self, z: Array, labels: Array, weight: float) -> tuple[float, list[Array]]:
        """The loss of a chunk, and `dlogits`, a piece (rows, slice) per slice of the vocabulary."""
        pieces = []
        for matrix in self._slices():
            pieces.append(self.project.run({"z": z, **matrix})["logits"])
            self._give_back(matrix)
        rows = np.arange(len(z))
        top = np.max([piece.max(axis=1) for piece in pieces], axis=0)
        target = np.zeros(len(z), np.float32)
        total = np.zeros(len(z), np.float32)
        for k, piece in enumerate(pieces):
            here = labels // SLICE_ROWS == k
            target[here] = piece[rows[here], labels[here] % SLICE_ROWS]
            np.subtract(piece, top[:, None], out=piece)
            np.exp(piece, out=piece)
            total += piece.sum(axis=1)
        for k, piece in enumerate(pieces):
            here = labels // SLICE_ROWS == k
            np.multiply(piece, (weight / total)[:, None], out=piece)
            piece[rows[here], labels[here] % SLICE_ROWS] -= np.float32(weight)
        loss = float(np.sum(np.log(total) + top - target, dtype=np.float64)) * weight
        return loss, pieces

    def _slices(self) -> Iterator[dict[str, Array]]:
        vocabulary = len(self.tensors["matrix"])
        for rows in _chunks(vocabulary, SLICE_ROWS):
            yield {name: array[rows] for name, array in self.tensors.items() if name.startswith("matrix")}

    def _give_back(self, matrix: dict[str, Array]) -> None:
        self.tensors.evict(matrix["matrix"])
        self.watch()


def predicting_rows(ids: Array, attention_mask: Array) -> tuple[Array, Array]:
    """Which positions (batch, tokens) predict a token, and the tokens they predict: token t predicts t + 1."""
    predicts = np.zeros(ids.shape, dtype=bool)
    predicts[:, :-1] = (attention_mask[:, :-1] > 0) & (attention_mask[:, 1:] > 0)
    return predicts, ids[:, 1:][predicts[:, :-1]]


def _chunks(length: int, size: int) -> Iterator[slice]:
    for begin in range(0, length, size):
        yield slice(begin, min(begin + size, length))
