"""Public data: what can be read, and what is said where it cannot."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from export.errors import ExportError
from export.evaluate import Tokens
from export.foundation import Foundation, open_foundation
from export.public import PublicRequest, read_public, run
from tests.export.conftest import CLASSES, IMAGES, LABELS, LM, Exports
from tests.models import CORPUS


@pytest.fixture
def foundation(exports: Exports) -> Foundation:
    """The tiny Llama."""
    return open_foundation(exports.model("llama"), LM, ())


def read_text(request: PublicRequest, foundation: Foundation) -> Tokens:
    """Rows of at most 16 tokens."""
    found = read_public(request, foundation, 16)
    assert isinstance(found, Tokens)
    return found


def test_text_tables_and_tokens_are_read(foundation: Foundation, tmp_path: pathlib.Path) -> None:
    """The same texts from a folder and a table are the same rows, as are those of a token folder, cut as asked for."""
    (tmp_path / "texts").mkdir()
    for k, text in enumerate(CORPUS):
        (tmp_path / "texts" / f"{k}.txt").write_text(text)
    (tmp_path / "table.csv").write_text("said\n" + "".join(f'"{text}"\n' for text in CORPUS))
    texts = read_text(PublicRequest(tmp_path / "texts", rows=3), foundation)
    table = read_text(PublicRequest(tmp_path / "table.csv", "said", rows=3), foundation)
    assert texts.ids.shape == (3, 16)
    np.testing.assert_array_equal(texts.ids, table.ids)
    (tmp_path / "tokens").mkdir()
    np.save(tmp_path / "tokens" / "ids.npy", np.pad(texts.ids, ((0, 2), (0, 4)), constant_values=7))
    np.save(tmp_path / "tokens" / "lengths.npy", np.full(5, 20, np.int32))
    tokens = read_text(PublicRequest(tmp_path / "tokens", rows=3), foundation)
    np.testing.assert_array_equal(tokens.ids, texts.ids)
    np.testing.assert_array_equal(tokens.lengths, [16, 16, 16])


def test_no_labels_are_needed(exports: Exports, tmp_path: pathlib.Path) -> None:
    """A classifier's emulators are chosen by text alone."""
    (tmp_path / "a.txt").write_text(" ".join(CORPUS))
    bert = open_foundation(exports.model("bert"), CLASSES, LABELS)
    assert read_text(PublicRequest(tmp_path), bert).lengths.sum() > 16


def test_a_model_of_images_has_pictures(exports: Exports, tmp_path: pathlib.Path) -> None:
    """From a folder for each class, or as an image folder with or without labels; the model runs on them."""
    pillow = pytest.importorskip("PIL.Image")
    vit = open_foundation(exports.model("vit"), IMAGES, LABELS)
    image = vit.spec.image
    assert image is not None
    grey = np.arange(3 * image.height * image.width, dtype=np.uint8).reshape(3, image.height, image.width)
    for label, pixels in zip(LABELS, grey, strict=True):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        pillow.fromarray(pixels).save(tmp_path / "pictures" / label / "a.png")
    pictures = read_public(PublicRequest(tmp_path / "pictures", rows=2), vit, 16)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "images.npy", grey[:, None])
    arrays = read_public(PublicRequest(tmp_path / "arrays", rows=2), vit, 16)
    model = vit.load()
    (mask, state), (_, other) = next(run(model, pictures)), next(run(model, arrays))
    assert (len(pictures), mask.shape, bool(mask.all())) == (2, (2, vit.spec.max_tokens), True)
    np.testing.assert_array_equal(state, other)


def test_what_cannot_be_read_is_said(foundation: Foundation, tmp_path: pathlib.Path) -> None:
    """In one line: nothing there, no text in it, no such column, tokens of another vocabulary or none, no rows."""
    (tmp_path / "table.csv").write_text("said\nhello\n")
    (tmp_path / "empty").mkdir()
    for name, ids, lengths in (("foreign", [[900]], [1]), ("without", [[5]], [0])):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "ids.npy", np.array(ids))
        np.save(tmp_path / name / "lengths.npy", np.array(lengths))
    for name, said in (
        ("none", "there is no public data .*none"),
        ("empty", "cannot read the public data: .*empty has no .txt file"),
        ("table.csv", "cannot read the public data: .*table.csv has no column text; its first line has said"),
        ("foreign", "ids must be whole numbers from 0 to 299"),
        ("without", "without is empty"),
    ):
        with pytest.raises(ExportError, match=said) as caught:
            read_public(PublicRequest(tmp_path / name), foundation, 16)
        assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="0 rows of public data: give 1 or more"):
        PublicRequest(tmp_path, rows=0)
