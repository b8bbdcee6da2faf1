"""Rows of tokens, or images, apart from the walk: who only makes batches loads no runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens: `ids` and `attention_mask` (batch, tokens) int64, padded on the right; `labels` (batch,) int64.

    `labels` is empty for a language model, whose tokens are their own labels; where each token has one it is (batch,
    tokens), IGNORED at those that have none. Images are `pixels` (batch, channels, height, width) uint8, with no `ids`
    and a mask of ones, as many as the model makes tokens of an image.
    """

    ids: Array
    attention_mask: Array
    labels: Array
    pixels: Array | None = None

    def __len__(self) -> int:
        """How many rows."""
        return len(self.attention_mask)

    @property
    def flowing(self) -> dict[str, Array]:
        """What the walk begins with, as the embedding calls it."""
        return {"ids": self.ids} if self.pixels is None else {"pixels": self.pixels}

    def rows(self, begin: int, end: int) -> Batch:
        """Some of the rows, without the columns in which none of them has a token."""
        mask, labels = self.attention_mask[begin:end], self.labels[begin:end]
        width = max(int(mask.sum(axis=1).max(initial=0)), 2)
        pixels = None if self.pixels is None else self.pixels[begin:end]
        labels = labels if labels.ndim == 1 else labels[:, :width]
        return Batch(self.ids[begin:end, :width], mask[:, :width], labels, pixels)


def image_batch(pixels: Array, labels: Array, tokens: int) -> Batch:
    """Images, of each of which the model makes so many tokens."""
    return Batch(np.zeros((len(pixels), 0), np.int64), np.ones((len(pixels), tokens), np.int64), labels, pixels)


def random_batch(manifest: Manifest, rows: int, tokens: int, seed: int = 0) -> Batch:
    """Full rows of random tokens, or random images, and random labels where there are classes."""
    generator, model = np.random.default_rng(seed), manifest.model
    classes, labelled = max(len(model.labels), 1), (rows, tokens) if model.task.labels_tokens else rows
    if model.image is not None:
        pixels = generator.integers(0, 256, (rows, *model.image.shape), np.uint8)
        return image_batch(pixels, generator.integers(0, classes, labelled), model.max_tokens)
    ids = generator.integers(0, model.vocabulary, (rows, tokens))
    return Batch(ids, np.ones_like(ids), generator.integers(0, classes, labelled))
