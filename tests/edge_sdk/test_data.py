"""Token folders are whole or absent, checked before use, and give batches that forget no row."""

from __future__ import annotations

import pathlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.data import (
    MAX_HELD_ASIDE,
    TokenFolder,
    batches,
    map_token_folder,
    open_image_folder,
    open_token_folder,
    split,
    write_image_folder,
    write_token_folder,
)
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.images import fitted
from edge_sdk.wire.manifest import IGNORED, ImageSpec
from edge_sdk.wire.tensors import Array

VOCABULARY = 50


def written(folder: pathlib.Path, rows: int = 6, tokens: int = 8, *, classes: int = 0) -> TokenFolder:
    """A token folder with random rows of every length from 0 on; the first token of row k is k."""
    random = np.random.default_rng(0)
    ids = random.integers(0, VOCABULARY, (rows, tokens))
    ids[:, 0] = np.arange(rows)
    lengths = np.arange(rows) % (tokens + 1)
    write_token_folder(folder / "data", ids, lengths, random.integers(0, classes, rows) if classes else None)
    return open_token_folder(folder / "data", classes, VOCABULARY)


def test_what_is_written_is_read(tmp_path: pathlib.Path) -> None:
    """A token folder gives back what was written, in the types it promises."""
    ids, lengths, labels = np.arange(6).reshape(2, 3), np.array([3, 1]), np.array([1, 0])
    write_token_folder(tmp_path / "data", ids, lengths, labels)
    folder = open_token_folder(tmp_path / "data", 2, 6)
    for found, given_, dtype in ((folder.ids, ids, "int32"), (folder.lengths, lengths, "int32")):
        assert found.dtype == dtype
        assert np.array_equal(found, given_)
    assert folder.labels.dtype == np.int64
    assert folder.labels.tolist() == [1, 0]


def test_a_batch_is_cut_at_the_longest_of_its_rows(tmp_path: pathlib.Path) -> None:
    """Columns in which no row has a token are left out, and the mask says which tokens count."""
    folder = written(tmp_path)
    batch = folder.batch(np.array([3, 5]), 8)
    assert batch.ids.shape == batch.attention_mask.shape == (2, 5)
    assert batch.attention_mask.sum(axis=1).tolist() == [3, 5]
    assert batch.ids[:, 0].tolist() == [3, 5]
    assert folder.batch(np.array([5]), 4).ids.shape == (1, 4)


def test_rows_that_teach_nothing_are_not_usable(tmp_path: pathlib.Path) -> None:
    """A language model needs two tokens, a classifier one."""
    assert written(tmp_path).usable().tolist() == [2, 3, 4, 5]
    assert written(tmp_path / "classes", classes=2).usable().tolist() == [1, 2, 3, 4, 5]


def test_pages_given_back_are_read_again(tmp_path: pathlib.Path) -> None:
    """What is evicted is still there: the file has it, even when its name is gone."""
    folder = written(tmp_path)
    before = np.array(folder.ids)
    for file in folder.path.iterdir():
        file.unlink()
    folder.evict()
    assert np.array_equal(folder.ids, before)


def broken(folder: pathlib.Path, name: str, array: Array) -> pathlib.Path:
    """A good folder in which one array was replaced."""
    path = written(folder).path
    np.save(path / name, array)
    return path


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("ids.npy", np.zeros((6, 8), np.int64), "must hold int32 with 2 dimension"),
        ("ids.npy", np.zeros(6, np.int32), "must hold int32 with 2 dimension"),
        ("ids.npy", np.zeros((5, 8), np.int32), "do not fit together"),
        ("ids.npy", np.zeros((0, 8), np.int32), "no readable .npy array|do not fit together"),
        ("ids.npy", np.full((6, 8), VOCABULARY, np.int32), "token 50 is out of bounds, the model knows 50"),
        ("ids.npy", np.full((6, 8), -1, np.int32), "token -1 is out of bounds"),
        ("lengths.npy", np.full(6, 9, np.int32), "length 9 is out of bounds, rows have 8"),
        ("lengths.npy", np.full(6, -1, np.int32), "length -1 is out of bounds"),
        ("labels.npy", np.zeros(6, np.int64), "a language model has no classes; remove it"),
        ("labels.npy", np.zeros(5, np.int64), "do not fit together"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: pathlib.Path, name: str, array: Array, complaint: str) -> None:
    """An array of another type, shape or range is refused in one line."""
    with pytest.raises(DataError, match=complaint) as caught:
        open_token_folder(broken(tmp_path, name, array), 0, VOCABULARY)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path: pathlib.Path) -> None:
    """A truncated file, a file of something else, an object array and a missing file are refused in one line."""
    path = written(tmp_path).path
    whole = (path / "ids.npy").read_bytes()
    np.save(path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for damaged in (whole[:-1], whole[:20], b"", b"PK\3\4 no archive", (path / "objects.npy").read_bytes()):
        (path / "ids.npy").write_bytes(damaged)
        with pytest.raises(DataError, match=r"ids\.npy is no readable"):
            map_token_folder(path)
    (path / "ids.npy").unlink()
    with pytest.raises(DataError, match=r"ids\.npy is missing"):
        map_token_folder(path)


def test_a_classifier_needs_labels_in_range(tmp_path: pathlib.Path) -> None:
    """Labels must be there, and be indices of the model's classes."""
    with pytest.raises(DataError, match=r"has no labels\.npy, the model has 3 classes"):
        open_token_folder(written(tmp_path).path, 3, VOCABULARY)
    with pytest.raises(DataError, match="label 1 is out of bounds, the model has 1 classes"):
        open_token_folder(written(tmp_path / "two", classes=2).path, 1, VOCABULARY)


def test_tokens_have_labels_where_a_token_is(tmp_path: pathlib.Path) -> None:
    """Batches have them of their rows, cut as these are; a label behind a row's tokens is none, and teaches nothing."""
    labels = np.full((4, 6), IGNORED)
    labels[[0, 1, 2], [2, 5, 0]] = [1, 2, 0]
    write_token_folder(tmp_path / "data", np.ones((4, 6)), np.array([4, 5, 1, 6]), labels)
    folder = open_token_folder(tmp_path / "data", 3, VOCABULARY, labels_tokens=True)
    assert folder.usable().tolist() == [0, 2]
    batch = folder.batch(np.array([0, 1, 2]), 6)
    none = IGNORED
    assert batch.labels.tolist() == [[none, none, 1, none, none], [none] * 5, [0, none, none, none, none]]
    assert batch.rows(2, 3).labels.tolist() == [[0, none]]
    assert folder.batch(np.array([0]), 3).labels.tolist() == [[none, none, 1]]


def test_labels_are_of_rows_or_of_tokens(tmp_path: pathlib.Path) -> None:
    """As the model has it, in range, and of no third shape."""
    of_rows, of_tokens = written(tmp_path / "rows", classes=3).path, tmp_path / "tokens"
    write_token_folder(of_tokens, np.ones((2, 3)), np.full(2, 3), np.full((2, 3), 2))
    for path, labels_tokens, classes, complaint in (
        (of_rows, True, 3, r"labels\.npy is \(6,\), this model needs a label for each token"),
        (of_tokens, False, 3, r"labels\.npy is \(2, 3\), this model needs a label for each row"),
        (of_tokens, True, 2, "label 2 is out of bounds, the model has 2 classes"),
    ):
        with pytest.raises(DataError, match=complaint):
            open_token_folder(path, classes, VOCABULARY, labels_tokens=labels_tokens)
    with pytest.raises(DataError, match="do not fit together"):
        write_token_folder(of_tokens, np.ones((2, 3)), np.full(2, 3), np.zeros((2, 2)))


def test_a_failed_replacement_keeps_what_was_there(tmp_path: pathlib.Path) -> None:
    """When making the new folder fails, the old one stays and nothing else is left."""
    path = written(tmp_path).path
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(DataError, match="length 3 is out of bounds"):
        write_token_folder(path, np.zeros((2, 2)), np.full(2, 3))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_what_a_killed_process_left_is_removed(tmp_path: pathlib.Path) -> None:
    """The next one to make the folder clears away what the last one could not."""
    for name in (".data.making", ".data.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids.npy").write_bytes(b"half")
    written(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_nothing_else_is_ever_replaced(tmp_path: pathlib.Path) -> None:
    """A folder that holds anything but a token folder's files, or a file, is refused and untouched."""
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    for path in (precious.parent, precious):
        with pytest.raises(ConfigError, match="is no folder of rows; choose another name"):
            write_token_folder(path, np.zeros((1, 2)), np.ones(1))
    assert precious.read_text() == "years of work"


@given(rows=st.sets(st.integers(0, 10_000), min_size=2, max_size=500), seed=st.integers(0, 2**32))
def test_split_loses_nothing(rows: set[int], seed: int) -> None:
    """Both parts together are the rows, each once; both have some; the same seed gives the same split."""
    array = np.array(sorted(rows))
    training, aside = split(array, seed=seed)
    assert sorted([*training, *aside]) == sorted(rows)
    assert len(training) >= 1
    assert 1 <= len(aside) <= MAX_HELD_ASIDE
    for first, again in zip((training, aside), split(array, seed=seed), strict=True):
        assert np.array_equal(first, again)


@pytest.mark.parametrize("rows", [[], [4]])
def test_too_few_rows_cannot_be_split(rows: list[int]) -> None:
    """With fewer than two rows there is nothing to learn from and nothing to measure on."""
    with pytest.raises(DataError, match="at least 2 are needed"):
        split(np.array(rows, np.int64))


def test_every_epoch_sees_every_row_once(tmp_path: pathlib.Path) -> None:
    """Batches of 3 over 4 usable rows: 4 of them are 3 epochs; the same seed gives the same order."""
    folder = written(tmp_path)
    endless = batches(folder, np.arange(6), 3, 8, seed=1)
    seen = [int(first) for _ in range(4) for first in next(endless).ids[:, 0]]
    for epoch in range(3):
        assert sorted(seen[4 * epoch : 4 * epoch + 4]) == [2, 3, 4, 5]
    again = batches(folder, np.arange(6), 3, 8, seed=1)
    assert seen == [int(first) for _ in range(4) for first in next(again).ids[:, 0]]


def test_a_batch_may_be_larger_than_the_data(tmp_path: pathlib.Path) -> None:
    """A batch then holds rows more than once, as evenly as can be."""
    folder = written(tmp_path)
    counts = Counter(next(batches(folder, np.array([2, 3]), 7, 8, seed=0)).ids[:, 0].tolist())
    assert sorted(counts.values()) == [3, 4]


def test_batches_of_nothing_are_refused(tmp_path: pathlib.Path) -> None:
    """Rows that are all too short give an error at once, not an endless loop."""
    folder = written(tmp_path)
    with pytest.raises(DataError, match="no usable row"):
        batches(folder, np.array([0, 1]), 1, 8, seed=0)


SPEC, SEEN = ImageSpec(3, 12, 20), 16


def pictured(folder: pathlib.Path, rows: int = 6, side: int = 5) -> pathlib.Path:
    """An image folder of grey squares of three classes."""
    images = np.random.default_rng(0).integers(0, 256, (rows, 1, side, side))
    write_image_folder(folder / "images", images, np.arange(rows) % 3)
    return folder / "images"


@pytest.mark.parametrize("side", [5, 30])
def test_batches_of_images_are_the_models(tmp_path: pathlib.Path, side: int) -> None:
    """Whatever their size in the folder, a batch has them as the model takes them, each with its own label."""
    folder = open_image_folder(pictured(tmp_path, side=side), 3, SPEC, SEEN)
    batch = folder.batch(np.array([4, 1, 4]), SEEN)
    assert batch.pixels is not None
    assert batch.pixels.dtype == np.uint8
    assert batch.pixels.shape == (3, *SPEC.shape)
    assert batch.labels.tolist() == [1, 1, 1]
    assert batch.attention_mask.tolist() == [[1] * SEEN] * 3
    assert np.array_equal(batch.pixels[0], fitted(folder.images[4], SPEC))
    part = batch.rows(1, 2)
    assert part.pixels is not None
    assert np.array_equal(part.pixels[0], batch.pixels[1])
    assert folder.usable().tolist() == [0, 1, 2, 3, 4, 5]


def test_every_epoch_sees_every_image_once(tmp_path: pathlib.Path) -> None:
    """As of rows of tokens."""
    folder = open_image_folder(pictured(tmp_path), 3, SPEC, SEEN)
    endless = batches(folder, folder.usable(), 3, SEEN, seed=1)
    labels = [int(label) for _ in range(2) for label in next(endless).labels]
    assert Counter(labels) == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("images.npy", np.zeros((6, 5, 5), np.uint8), "must hold uint8 with 4 dimension"),
        ("images.npy", np.zeros((6, 1, 5, 5), np.float32), "must hold uint8 with 4 dimension"),
        ("images.npy", np.zeros((5, 1, 5, 5), np.uint8), "do not fit together"),
        ("images.npy", np.zeros((6, 2, 5, 5), np.uint8), "images of 2 channels; this model takes 3"),
        ("images.npy", np.zeros((6, 1, 1, 5000), np.uint8), "images of 1 x 5000 pixels"),
        ("labels.npy", np.full(6, 3), "label 3 is out of bounds, the model has 3 classes"),
        ("labels.npy", np.full(6, -1), "label -1 is out of bounds"),
    ],
)
def test_wrong_image_arrays_are_refused(tmp_path: pathlib.Path, name: str, array: Array, complaint: str) -> None:
    """An array of another type, shape or range is refused in one line."""
    path = pictured(tmp_path)
    np.save(path / name, array)
    with pytest.raises(DataError, match=complaint) as caught:
        open_image_folder(path, 3, SPEC, SEEN)
    assert "\n" not in str(caught.value)


def test_an_image_folder_may_take_a_token_folders_place(tmp_path: pathlib.Path) -> None:
    """And nothing of the old one is left in it."""
    path = written(tmp_path).path
    write_image_folder(path, np.zeros((2, 1, 4, 4)), np.arange(2))
    assert sorted(file.name for file in path.iterdir()) == ["images.npy", "labels.npy"]
    (path / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"labels\.npy is missing; an image folder has images\.npy and labels\.npy"):
        open_image_folder(path, 3, SPEC, SEEN)
