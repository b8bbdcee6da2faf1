"""Images as a model takes them: of its size and in its colours, a byte for each.

An image is an array (channels, height, width) uint8; one channel is grey, three are red, green and blue. It is
stretched to the model's size, bilinearly: each pixel is a mean under a triangle as wide as the larger of the two grids'
pixels, so that nothing is skipped when an image shrinks. How bytes become numbers is the embedding graph's affair.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from edge_sdk.errors import DataError
from edge_sdk.wire.manifest import MAX_SIDE, ImageSpec
from edge_sdk.wire.tensors import Array

GREY, COLOUR = 1, 3
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601: how bright red, green and blue are


def fitted(image: Array, spec: ImageSpec) -> Array:
    """`image` with the colours and the size of the model's; itself where it has them already."""
    if image.shape == spec.shape:
        return image
    colours = image.astype(np.float32)
    if (len(image), spec.channels) == (COLOUR, GREY):
        colours = np.tensordot(LUMA, colours, 1)[None]
    down, across = _weights(image.shape[1], spec.height), _weights(image.shape[2], spec.width)
    stretched = np.rint(down @ colours @ across.T).astype(np.uint8)
    return np.broadcast_to(stretched, spec.shape)  # grey is the same in every colour


@functools.lru_cache(maxsize=2)
def _weights(given: int, wanted: int) -> Array:
    """(wanted, given): the share that each pixel given has in each pixel wanted."""
    scale = given / wanted
    centres = (np.arange(wanted) + 0.5) * scale
    away = np.abs(np.arange(given) + 0.5 - centres[:, None]) / max(scale, 1.0)
    shares = np.maximum(1 - away, 0)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


def check_images(shape: Sequence[int], spec: ImageSpec, where: object) -> None:
    """Raise DataError for images of `shape` (channels, height, width) that `fitted` cannot make the model's."""
    channels, height, width = shape
    if channels not in {GREY, spec.channels} and (channels, spec.channels) != (COLOUR, GREY):
        msg = f"{where}: images of {channels} channels; this model takes {spec.channels}"
        raise DataError(msg)
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        msg = f"{where}: images of {height} x {width} pixels; each side must be from 1 to {MAX_SIDE}"
        raise DataError(msg)
