"""Where the walk turns round: from the last hidden state to the loss and its gradient.

Cross-entropy over the vocabulary, for a language model, goes in chunks of rows and slices of the vocabulary, so that
neither the logits nor a dequantised matrix is ever whole in memory: per chunk of r rows the logits take r * vocabulary
* 4 bytes. With W the vocabulary's matrix, l the label and p the softmax of z W':

    loss = logsum(z W') - z W[l]'        dz = p W - W[l]

so two products are made over the vocabulary, and the labels' rows are looked up as an embedding is. Over slices k of
the vocabulary, each with a softmax of its own, p W = sum over k of exp(logsum_k - logsum) softmax_k W_k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edge_sdk.engine.runtime import Graph
from edge_sdk.wire.costs import SLICE_ROWS
from edge_sdk.wire.tensors import Array, TensorFile


@dataclass(frozen=True, slots=True)
class VocabularyHead:
    """The vocabulary's matrix, its two products, and its rows."""

    project: Graph
    unproject: Graph
    lookup: Graph
    tensors: TensorFile
    head_rows: int
    watch: Callable[[], None]

    def loss(self, z: Array, labels: Array, weight: float) -> float:
        """Weighted sum of the cross-entropy of rows `z` (rows, width) with `labels` (rows,)."""
        loss = 0.0
        for rows in _chunks(len(z), self.head_rows):
            logsum = functools.reduce(np.logaddexp, (found["logsum"] for _, found in self._projected(z[rows])))
            loss += _cross_entropy(z[rows], self._rows(labels[rows]), logsum) * weight
        return loss

    def gradient(self, z: Array, labels: Array, weight: float) -> tuple[float, Array]:
        """The loss as above, and its gradient by `z` (rows, width)."""
        loss, dz = 0.0, np.empty_like(z)
        for rows in _chunks(len(z), self.head_rows):
            projected = dict(self._projected(z[rows]))
            logsum = functools.reduce(np.logaddexp, (found["logsum"] for found in projected.values()))
            wanted = self._rows(labels[rows])
            loss += _cross_entropy(z[rows], wanted, logsum) * weight
            np.negative(wanted, out=dz[rows])
            self._add_unprojected(dz[rows], projected, logsum)
            dz[rows] *= np.float32(weight)
        return loss, dz

    def _add_unprojected(self, dz: Array, projected: dict[int, dict[str, Array]], logsum: Array) -> None:
        """Add the matrix's mean row under each softmax, of which `projected` has the slices.

        They are gone when this returns. A last one that outlived its chunk would split the arena, and the next chunk
        would take what was never touched, for it fits best.
        """
        for begin, matrix in self._slices():
            found = projected.pop(begin)
            share = np.exp(found["logsum"] - logsum)
            dz += self.unproject.run({"softmax": found["softmax"], **matrix})["dz"] * share
            self._give_back(matrix)

    def _projected(self, z: Array) -> Iterator[tuple[int, dict[str, Array]]]:
        """`softmax` (rows, slice) and `logsum` (rows, 1), slice by slice of the vocabulary."""
        for begin, matrix in self._slices():
            yield begin, self.project.run({"z": z, **matrix})
            self._give_back(matrix)

    def _rows(self, labels: Array) -> Array:
        return self.lookup.run(occurring_rows(self.tensors, labels))["z"]

    def _slices(self) -> Iterator[tuple[int, dict[str, Array]]]:
        vocabulary = len(self.tensors["matrix"])
        for rows in _chunks(vocabulary, SLICE_ROWS):
            yield rows.start, {n: array[rows] for n, array in self.tensors.items() if n.startswith("matrix")}

    def _give_back(self, matrix: dict[str, Array]) -> None:
        for array in matrix.values():
            self.tensors.evict(array)
        self.watch()


def _cross_entropy(z: Array, wanted: Array, logsum: Array) -> float:
    """Sum over the rows of `z`, where `wanted` is the vocabulary's row of each label."""
    return float(np.sum(logsum[:, 0] - np.einsum("rw,rw->r", z, wanted), dtype=np.float64))


def occurring_rows(file: TensorFile, ids: Array) -> dict[str, Array]:
    """Of a file's `matrix` only the rows that occur in `ids`, in all its parts, and `ids` that count within them.

    A graph that looks rows up gives the same for less memory.
    """
    rows, inverse = np.unique(ids, return_inverse=True)
    parts = {name: file.read_rows(name, rows) for name in file if name.startswith("matrix")}
    return {"ids": inverse.reshape(ids.shape), **parts}


def predicting_rows(ids: Array, attention_mask: Array) -> tuple[Array, Array]:
    """Which positions (batch, tokens) predict a token, and the tokens they predict: token t predicts t + 1."""
    predicts = np.zeros(ids.shape, dtype=bool)
    predicts[:, :-1] = (attention_mask[:, :-1] > 0) & (attention_mask[:, 1:] > 0)
    return predicts, ids[:, 1:][predicts[:, :-1]]


def _chunks(length: int, size: int) -> Iterator[slice]:
    for begin in range(0, length, size):
        yield slice(begin, min(begin + size, length))
