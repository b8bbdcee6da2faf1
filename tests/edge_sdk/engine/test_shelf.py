"""What is put on the shelf stays as it was put there, in buffers that are used again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_sdk.engine.shelf import Shelf
from edge_sdk.wire.tensors import Array

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
NUMBERS = st.one_of(*(arrays.arrays(kind, SHAPES) for kind in (np.float32, np.float16, np.int64)))


def address(array: Array) -> int:
    """Where its first number lies."""
    found: int = array.__array_interface__["data"][0]
    return found


@given(NUMBERS)
def test_a_copy_stays_when_its_source_changes(source: Array) -> None:
    """Same numbers, type and shape, whatever becomes of the source later: the runtime uses its memory again."""
    before = source.copy()
    copy = Shelf().put("block.0", {"x": source})["x"]
    source.fill(7)
    np.testing.assert_array_equal(copy, before)
    assert (copy.dtype, copy.shape) == (before.dtype, before.shape)


@given(st.lists(NUMBERS, max_size=6))
def test_a_place_gives_what_was_put_there_last(sources: list[Array]) -> None:
    """Whatever came before, longer or shorter or of another type: each copy is of its own source."""
    shelf = Shelf()
    for source in sources:
        np.testing.assert_array_equal(shelf.put("block.0", {"x": source})["x"], source)


def test_a_buffer_is_used_again() -> None:
    """A step after the first takes no more memory: the same size or less lies in the same place."""
    shelf, first = Shelf(), np.ones((4, 6), np.float32)
    begin = address(shelf.put("block.0", {"x": first})["x"])
    for shape in ((4, 6), (3, 5), (2, 2, 2), (4, 6)):
        assert address(shelf.put("block.0", {"x": np.ones(shape, np.float32)})["x"]) == begin


def test_a_larger_array_replaces_a_smaller() -> None:
    """A longer batch gets a buffer of its size, and from then on everything up to it fits."""
    shelf = Shelf()
    shelf.put("block.0", {"x": np.ones(5, np.float32)})
    large = shelf.put("block.0", {"x": np.full(9, 2, np.float32)})["x"]
    np.testing.assert_array_equal(large, np.full(9, 2, np.float32))
    assert address(shelf.put("block.0", {"x": np.ones(7, np.float32)})["x"]) == address(large)


def test_places_and_names_do_not_share() -> None:
    """What one segment keeps, another one's does not overwrite; nor does another name in the same place."""
    shelf = Shelf()
    first = shelf.put("block.0", {"x": np.zeros(3), "kept.0": np.ones(3)})
    second = shelf.put("block.1", {"x": np.full(3, 2.0)})
    assert [array[0] for array in (first["x"], first["kept.0"], second["x"])] == [0, 1, 2]
