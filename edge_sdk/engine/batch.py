"""Rows of tokens, apart from the walk: who only makes batches loads no runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens: `ids` and `attention_mask` (batch, tokens) int64, padded on the right; `labels` (batch,) int64.

    `labels` is empty for a language model, whose tokens are their own labels.
    """

    ids: Array
    attention_mask: Array
    labels: Array

    def __len__(self) -> int:
        """How many rows."""
        return len(self.ids)

    def rows(self, begin: int, end: int) -> Batch:
        """Some of the rows, without the columns in which none of them has a token."""
        mask = self.attention_mask[begin:end]
        width = max(int(mask.sum(axis=1).max(initial=0)), 2)
        return Batch(self.ids[begin:end, :width], mask[:, :width], self.labels[begin:end])


def random_batch(manifest: Manifest, rows: int, tokens: int, seed: int = 0) -> Batch:
    """Full rows of random tokens, and random labels where there are classes."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, manifest.model.vocabulary, (rows, tokens))
    labels = generator.integers(0, max(len(manifest.model.labels), 1), rows)
    return Batch(ids, np.ones_like(ids), labels)
