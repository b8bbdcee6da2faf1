"""Token and image folders: a device's private data as training reads it, and the batches from it.

    source  --edge_sdk.prepare, a process of its own-->  folder of rows  --memory-mapped-->  batches

A **token folder** is what any tool can write with `numpy.save`:

    ids.npy       (rows, tokens) int32    padded on the right
    lengths.npy   (rows,) int32           tokens of each row that count, from 0 to `tokens`
    labels.npy    (rows,) int64           the class of each row; only for a classifier of rows
                  (rows, tokens) int64    the class of each token, -100 where it has none; only for one of tokens

and so is an **image folder**:

    images.npy    (rows, channels, height, width) uint8    of any size: batches have the model's
    labels.npy    (rows,) int64                            the class of each

Nothing here loads a tokenizer or a runtime: the agent imports it.
"""

from __future__ import annotations

import contextlib
import mmap
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.engine.batch import Batch, image_batch
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.images import check_images, fitted
from edge_sdk.wire.blobs import sync_file, sync_folder
from edge_sdk.wire.crash_points import crash_point
from edge_sdk.wire.manifest import IGNORED, ImageSpec, ModelSpec
from edge_sdk.wire.tensors import Array

NOTE = "prepared.json"  # what `edge_sdk.prepare` remembers about the folder
FILES = {"ids.npy", "lengths.npy", "images.npy", "labels.npy", NOTE}
TOKEN_FOLDER = "a token folder has ids.npy and lengths.npy"  # noqa: S105 - tokens of a text
IMAGE_FOLDER = "an image folder has images.npy and labels.npy"
CHECK_BYTES = 1 << 20  # of the ids at a time
HELD_ASIDE_SHARE = 0.1
MAX_HELD_ASIDE = 64  # rows: evaluating twice a task must stay cheap beside training


@dataclass(frozen=True, slots=True)
class TokenFolder:
    """A token folder, memory-mapped: `ids` (rows, tokens) int32, `lengths` (rows,) int32, `labels` (rows,) int64.

    `labels` is empty for a language model, and (rows, tokens) where each token has one.
    """

    path: pathlib.Path
    ids: Array
    lengths: Array
    labels: Array

    def __len__(self) -> int:
        """How many rows."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Of the longest row that there could be."""
        found: int = self.ids.shape[1]
        return found

    def usable(self) -> Array:
        """Indices of the rows that can be learned from: a language model predicts from the second token on."""
        if self.labels.ndim == 1:
            return np.flatnonzero(self.lengths >= (1 if len(self.labels) else 2))
        predicts = [(_at_tokens(self.labels[rows], self.lengths[rows]) != IGNORED).any(axis=1) for rows in self.parts()]
        return np.flatnonzero(np.concatenate(predicts))

    def parts(self) -> Iterator[slice]:
        """All rows, some at a time, whose pages are given back when the next are asked for."""
        at_once = max(1, CHECK_BYTES // (4 * self.tokens))
        for begin in range(0, len(self), at_once):
            yield slice(begin, begin + at_once)
            self.evict()

    def batch(self, rows: Array, tokens: int) -> Batch:
        """These rows, as int64, cut at `tokens` and at the longest of them. Raises IndexError."""
        ids = self.ids[rows, :tokens].astype(np.int64)
        mask = (np.arange(ids.shape[1]) < self.lengths[rows][:, None]).astype(np.int64)
        labels = self.labels[rows] if len(self.labels) else np.zeros(0, np.int64)
        if labels.ndim > 1:
            labels = _at_tokens(labels[:, :tokens], self.lengths[rows])
        self.evict()
        return Batch(ids, mask, labels).rows(0, len(ids))

    def evict(self) -> None:
        """Give the pages of the mapping back: a pass over a large folder must not count against the budget."""
        evict_pages(self.ids)
        evict_pages(self.labels)


def _at_tokens(labels: Array, lengths: Array) -> Array:
    """`labels` (rows, tokens) of the tokens that count; none behind them, whatever the file has there."""
    return np.where(np.arange(labels.shape[1]) < lengths[:, None], labels, IGNORED)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """An image folder, memory-mapped, for a model that makes `tokens` tokens of each image of `spec`.

    `images` (rows, channels, height, width) uint8 of any size, `labels` (rows,) int64.
    """

    path: pathlib.Path
    images: Array
    labels: Array
    spec: ImageSpec
    tokens: int

    def __len__(self) -> int:
        """How many rows."""
        return len(self.images)

    def usable(self) -> Array:
        """Indices of the rows that can be learned from: all."""
        return np.arange(len(self))

    def batch(self, rows: Array, tokens: int) -> Batch:
        """These images, as large as the model's, of `tokens` tokens each. Raises IndexError."""
        pixels = np.empty((len(rows), *self.spec.shape), np.uint8)
        for k, row in enumerate(rows):
            pixels[k] = fitted(self.images[row], self.spec)
            self.evict()  # a batch of them twice in memory is more than was planned
        return image_batch(pixels, self.labels[rows], tokens)

    def evict(self) -> None:
        """As of a token folder."""
        evict_pages(self.images)


Rows = TokenFolder | ImageFolder


def evict_pages(array: Array) -> None:
    """Give the pages of a mapped array back."""
    mapping: Any = array.base  # NumPy's types do not know that it is the mapping
    if isinstance(mapping, mmap.mmap):
        mapping.madvise(mmap.MADV_DONTNEED)


def open_rows(path: pathlib.Path, model: ModelSpec) -> Rows:
    """Open and check the folder of a model's rows, of the kind that it takes. Raises DataError."""
    if model.image is not None:
        return open_image_folder(path, len(model.labels), model.image, model.max_tokens)
    return open_token_folder(path, len(model.labels), model.vocabulary, labels_tokens=model.task.labels_tokens)


def open_image_folder(path: pathlib.Path, classes: int, spec: ImageSpec, tokens: int) -> ImageFolder:
    """Open and check an image folder for a model with so many classes, which makes `tokens` tokens of each of `spec`.

    Raises:
        DataError: a file is missing or damaged, has another shape or type, or a label is out of bounds.
    """
    images, labels = map_image_folder(path)
    check_images(images.shape[1:], spec, path / "images.npy")
    _check_bounds(labels, classes - 1, f"{path / 'labels.npy'}: label", f"the model has {classes} classes")
    return ImageFolder(path, images, labels, spec, tokens)


def map_image_folder(path: pathlib.Path) -> tuple[Array, Array]:
    """Map images and labels, and check all that does not depend on the model."""
    images = _array(path / "images.npy", np.uint8, (4,), IMAGE_FOLDER)
    labels = _array(path / "labels.npy", np.int64, (1,), IMAGE_FOLDER)
    if not images.size or len(labels) != len(images):
        msg = f"{path}: images {images.shape} and labels {labels.shape} do not fit together"
        raise DataError(msg)
    return images, labels


def write_image_folder(path: pathlib.Path, images: Array, labels: Array) -> None:
    """Write an image folder, whole or not at all. Shapes as in `ImageFolder`. Raises DataError, OSError."""
    with folder_replaced(path) as making:
        np.save(making / "images.npy", np.ascontiguousarray(images, np.uint8))
        np.save(making / "labels.npy", np.ascontiguousarray(labels, np.int64))
        map_image_folder(making)


def open_token_folder(path: pathlib.Path, classes: int, vocabulary: int, *, labels_tokens: bool = False) -> TokenFolder:
    """Open and check a token folder for a model with so many classes (0: a language model) and token ids.

    With `labels_tokens` the classes are tokens', and not rows'.

    Raises:
        DataError: a file is missing or damaged, has another shape or type, labels are there although the model has none
            or the other way round, or a length, label or token id is out of bounds.
    """
    folder = map_token_folder(path)
    if bool(classes) != bool(len(folder.labels)):
        msg = f"{path} has no labels.npy, the model has {classes} classes"
        msg = msg if classes else f"{path} has labels.npy, but a language model has no classes; remove it"
        raise DataError(msg)
    if classes and labels_tokens != (folder.labels.ndim > 1):
        msg = f"{path / 'labels.npy'} is {folder.labels.shape}, this model needs a label for each "
        raise DataError(msg + ("token" if labels_tokens else "row"))
    for rows in folder.parts():
        if classes:
            labels = folder.labels[rows]
            labels = np.where(labels == IGNORED, 0, labels) if labels_tokens else labels
            _check_bounds(labels, classes - 1, f"{path / 'labels.npy'}: label", f"the model has {classes} classes")
        ids = folder.ids[rows]
        _check_bounds(ids, vocabulary - 1, f"{path / 'ids.npy'}: token", f"the model knows {vocabulary} tokens")
    return folder


def write_token_folder(path: pathlib.Path, ids: Array, lengths: Array, labels: Array | None = None) -> None:
    """Write a token folder, whole or not at all. Shapes as in `TokenFolder`. Raises DataError, OSError."""
    with folder_replaced(path) as making:
        np.save(making / "ids.npy", np.ascontiguousarray(ids, np.int32))
        np.save(making / "lengths.npy", np.ascontiguousarray(lengths, np.int32))
        if labels is not None:
            np.save(making / "labels.npy", np.ascontiguousarray(labels, np.int64))
        map_token_folder(making)


@contextlib.contextmanager
def folder_replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder that takes the place of the folder of rows at `path` when the block ends well, else is removed.

    One process at a time for one `path`: what a killed one has left behind is removed by the next. Raises ConfigError
    for a `path` that holds anything else, which would be lost.
    """
    if path.exists() and (not path.is_dir() or not {entry.name for entry in path.iterdir()} <= FILES):
        msg = f"{path} exists and is no folder of rows; choose another name, or remove it"
        raise ConfigError(msg)
    making, old = path.with_name(f".{path.name}.making"), path.with_name(f".{path.name}.old")
    for left in (making, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        making.mkdir(parents=True)
        yield making
        for file in making.iterdir():
            sync_file(file)
        crash_point("rows.made")
        if path.exists():
            path.rename(old)  # a folder cannot be replaced in one step; in between there is none, never half of one
        making.rename(path)
        crash_point("rows.replaced")
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)


def map_token_folder(path: pathlib.Path) -> TokenFolder:
    """Map the arrays and check all that does not depend on the model."""
    ids = _array(path / "ids.npy", np.int32, (2,), TOKEN_FOLDER)
    lengths = _array(path / "lengths.npy", np.int32, (1,), TOKEN_FOLDER)
    has_labels = (path / "labels.npy").exists()
    labels = _array(path / "labels.npy", np.int64, (1, 2), TOKEN_FOLDER) if has_labels else np.zeros(0, np.int64)
    if not ids.size or len(lengths) != len(ids) or (has_labels and labels.shape not in {lengths.shape, ids.shape}):
        msg = f"{path}: ids {ids.shape}, lengths {lengths.shape} and labels {labels.shape} do not fit together"
        raise DataError(msg)
    _check_bounds(lengths, ids.shape[1], f"{path / 'lengths.npy'}: length", f"rows have {ids.shape[1]} tokens")
    return TokenFolder(path, ids, lengths, labels)


def _array(path: pathlib.Path, dtype: Any, dimensions: tuple[int, ...], folder: str) -> Array:  # noqa: ANN401 - scalar types
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would open an archive, too
    except FileNotFoundError as error:
        msg = f"{path} is missing; {folder}"
        raise DataError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{path} is no readable .npy array: {str(error).splitlines()[0]}"
        raise DataError(msg) from error
    if array.dtype != dtype or array.ndim not in dimensions:
        found, wanted = f"{array.dtype} {array.shape}", " or ".join(map(str, dimensions))
        msg = f"{path} must hold {np.dtype(dtype)} with {wanted} dimension(s), it holds {found}"
        raise DataError(msg)
    return array


def _check_bounds(array: Array, most: int, what: str, why: str) -> None:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > most:
        msg = f"{what} {low if low < 0 else high} is out of bounds, {why}"
        raise DataError(msg)


def split(
    rows: Array, share: float = HELD_ASIDE_SHARE, seed: int = 0, max_rows: int = MAX_HELD_ASIDE
) -> tuple[Array, Array]:
    """Rows (their indices) to train on, and rows held aside to measure the loss on: `share` of them, 1 to `max_rows`.

    The same rows and seed give the same split. Raises DataError for fewer than two rows.
    """
    if len(rows) < 2:  # noqa: PLR2004 - one to learn from and one to measure on
        msg = f"{len(rows)} usable row(s): at least 2 are needed, add more data or choose fewer tokens per row"
        raise DataError(msg)
    aside = min(max(round(share * len(rows)), 1), max_rows, len(rows) - 1)
    shuffled = np.random.default_rng(seed).permutation(rows)
    return np.sort(shuffled[aside:]), np.sort(shuffled[:aside])


def in_order(folder: Rows, rows: Array, batch: int, tokens: int) -> Iterator[Batch]:
    """The rows once, in batches of at most `batch`, cut at `tokens`."""
    for begin in range(0, len(rows), batch):
        yield folder.batch(rows[begin : begin + batch], tokens)


def batches(folder: Rows, rows: Array, batch: int, tokens: int, seed: int) -> Iterator[Batch]:
    """Endless batches of exactly `batch` rows, cut at `tokens`; each epoch goes through all rows in a new order.

    A batch may reach into the next epoch. Rows that are not usable are left out. Raises DataError when none is usable.
    """
    rows = np.intersect1d(rows, folder.usable())
    if not len(rows):
        msg = f"{folder.path} has no usable row"
        raise DataError(msg)
    return _endless(folder, rows, batch, tokens, np.random.default_rng(seed))


def sampled(folder: Rows, rows: Array, rate: float, tokens: int) -> Iterator[Iterator[Batch]]:
    """Endless samples, each a row at a time: every row is in one by itself, with the probability `rate`.

    The lot is new each time, from the kernel's random bytes: who knows it knows who was hidden among fewer.
    """
    random = np.random.default_rng(secrets.randbits(128))
    while True:
        drawn = rows[random.random(len(rows)) < rate]
        yield (folder.batch(drawn[k : k + 1], tokens) for k in range(len(drawn)))


def _endless(folder: Rows, rows: Array, batch: int, tokens: int, random: np.random.Generator) -> Iterator[Batch]:
    waiting = random.permutation(rows)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, random.permutation(rows)])
        yield folder.batch(waiting[:batch], tokens)
        waiting = waiting[batch:]
