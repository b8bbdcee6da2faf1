"""Images become what a model takes: stretched as Pillow does it, refused in one line where they cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DataError
from edge_sdk.images import check_images, fitted
from edge_sdk.rows import images
from edge_sdk.sources import Document, Image, Item
from edge_sdk.wire.manifest import ImageSpec
from edge_sdk.wire.tensors import Array

COLOUR = ImageSpec(3, 12, 20)
SIDES = st.integers(1, 40)


@dataclass(frozen=True)
class Items:
    """A source of a user's own: what it is given."""

    items: Sequence[Item]

    def read(self) -> Iterator[Item]:
        """The items."""
        yield from self.items

    def fingerprint(self) -> str:
        """Always the same."""
        return "items"


def drawn(*shape: int) -> Array:
    """Random pixels."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@given(SIDES, SIDES, SIDES, SIDES)
def test_images_are_stretched_as_pillow_does_it(height: int, width: int, down: int, across: int) -> None:
    """Larger or smaller, each way by itself: within one of 255 levels, by which Pillow's whole numbers are off."""
    pillow: Any = pytest.importorskip("PIL.Image")
    pixels = drawn(1, height, width)
    found = fitted(pixels, ImageSpec(1, down, across))
    wanted = pillow.fromarray(pixels[0]).resize((across, down), pillow.Resampling.BILINEAR)
    assert np.abs(found[0].astype(int) - np.asarray(wanted).astype(int)).max() <= 1


@given(st.integers(0, 255), SIDES, SIDES, SIDES, SIDES)
def test_what_is_of_one_colour_stays_so(level: int, height: int, width: int, down: int, across: int) -> None:
    """Every pixel is a mean: none is brighter or darker than all that were given. Grey is the same in every colour."""
    found = fitted(np.full((1, height, width), level, np.uint8), ImageSpec(3, down, across))
    assert found.shape == (3, down, across)
    assert (found == level).all()


def test_what_is_right_is_not_touched() -> None:
    """Images of the model's size and colours are themselves."""
    pixels = drawn(*COLOUR.shape)
    assert fitted(pixels, COLOUR) is pixels


def test_colours_become_grey_as_bright_as_they_are() -> None:
    """Green is brighter than red, red than blue."""
    colours = 255 * np.eye(3, dtype=np.uint8)[:, :, None, None]
    assert [fitted(colour, ImageSpec(1, 1, 1)).item() for colour in colours] == [76, 150, 29]


@pytest.mark.parametrize(
    ("shape", "spec", "complaint"),
    [
        ((2, 4, 4), COLOUR, "images of 2 channels; this model takes 3"),
        ((4, 4, 4), ImageSpec(1, 4, 4), "images of 4 channels; this model takes 1"),
        ((3, 4, 4), ImageSpec(4, 4, 4), "images of 3 channels; this model takes 4"),
        ((1, 5000, 4), COLOUR, "images of 5000 x 4 pixels; each side must be from 1 to 4096"),
        ((1, 4, 0), COLOUR, "images of 4 x 0 pixels"),
    ],
)
def test_what_cannot_become_the_models_is_refused(shape: Sequence[int], spec: ImageSpec, complaint: str) -> None:
    """Colours that are missing, sides that nobody would hold: said with where they are."""
    with pytest.raises(DataError, match=f"somewhere: {complaint}"):
        check_images(shape, spec, "somewhere")


def test_only_what_is_larger_is_made_smaller() -> None:
    """Small images stay as they are until a batch is made of them, large ones are shrunk, each side by itself."""
    for shape, wanted in (((1, 8, 8), (1, 8, 8)), ((3, 50, 8), (3, 12, 8)), ((3, 99, 99), (3, 12, 20))):
        (found,) = images(Items([Image(drawn(*shape), 1)]), COLOUR, ("a", "b"))
        assert (found.pixels.shape, found.label) == (wanted, 1)
    (grey,) = images(Items([Image(drawn(3, 9, 9), 0)]), ImageSpec(1, 12, 12), ("a", "b"))
    assert grey.pixels.shape == (1, 9, 9)


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([Document("to be", 0)], "this model takes images, the data is text or tokens"),
        ([Image(drawn(1, 4, 4))], "image 1 of the data has no label, the model has the 2 labels a, b"),
        ([Image(drawn(1, 4, 4), 0), Image(drawn(1, 4, 4), 2)], "image 2 of the data has label 2"),
        ([Image(drawn(1, 4, 4), -1)], "image 1 of the data has label -1"),
        ([Image(drawn(1, 4, 4), 0), Image(drawn(1, 4, 5), 0)], r"image 2 .* \(1, 4, 5\), the first is \(1, 4, 4\)"),
        ([Image(drawn(4, 4), 0)], r"uint8 \(4, 4\); \(channels, height, width\) uint8 is needed"),
        ([Image(np.zeros((1, 4, 4)), 0)], r"image 1 of the data is float64"),
        ([Image(drawn(2, 4, 4), 0)], "the data: images of 2 channels"),
    ],
)
def test_wrong_images_are_refused(items: Sequence[Item], complaint: str) -> None:
    """One line says which, and what is wrong with it."""
    with pytest.raises(DataError, match=complaint) as caught:
        list(images(Items(items), COLOUR, ("a", "b")))
    assert "\n" not in str(caught.value)
