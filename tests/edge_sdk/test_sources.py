"""Sources give private data whole and in order, in pieces, and say in one line what is wrong with it."""

from __future__ import annotations

import gzip
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import write_image_folder, write_token_folder
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.sources import (
    PIECE_CHARACTERS,
    CsvTable,
    Document,
    IdxImages,
    ImageArrays,
    ImageFiles,
    JsonLines,
    TextFolder,
    TokenArrays,
    Words,
    open_source,
)
from edge_sdk.wire.manifest import ImageSpec
from edge_sdk.wire.tensors import Array

LABELS = ("bad", "good")
SPEC = ImageSpec(3, 6, 8)


def table(folder: pathlib.Path, text: str) -> CsvTable:
    """A CSV file as a source of documents with labels."""
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return CsvTable(path, "text", "label", LABELS)


@pytest.mark.parametrize("line", ["a line of a speech\n", "words without any end ", "ö"])
def test_pieces_are_the_file(tmp_path: pathlib.Path, line: str) -> None:
    """A file larger than several pieces comes in bounded pieces which together are its text; the last alone ends."""
    text = line * (3 * PIECE_CHARACTERS // len(line) + 7)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = list(TextFolder(tmp_path).read())
    assert "".join(piece.text for piece in pieces) == text
    assert len(pieces) > 1
    assert all(len(piece.text) <= 2 * PIECE_CHARACTERS for piece in pieces)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: pathlib.Path) -> None:
    """All .txt files below the folder, each a document; other files and empty ones are none."""
    for name, text in (("b.txt", "second"), ("a/z.txt", "first"), ("c.md", "no"), ("d.txt", ""), ("e.txt", "third")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(TextFolder(tmp_path).read()) == [Document("first"), Document("second"), Document("third")]


def test_byte_order_marks_and_line_ends_are_no_text(tmp_path: pathlib.Path) -> None:
    """A file written on another system gives the same text."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(TextFolder(tmp_path).read()) == [Document("one\ntwo\n")]


def test_text_that_is_not_utf8_is_refused(tmp_path: pathlib.Path) -> None:
    """The file and the first wrong byte are named."""
    (tmp_path / "a.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text \(byte 0xfc\)"):
        list(TextFolder(tmp_path).read())


def test_folders_without_text_are_refused(tmp_path: pathlib.Path) -> None:
    """No folder, or none with a .txt file, is said when reading and when asking for the fingerprint."""
    for path, complaint in ((tmp_path, "has no .txt file"), (tmp_path / "absent", "is no folder")):
        with pytest.raises(DataError, match=complaint):
            TextFolder(path).fingerprint()
        with pytest.raises(DataError, match=complaint):
            list(TextFolder(path).read())


def test_a_row_of_a_table_is_a_document(tmp_path: pathlib.Path) -> None:
    """Quoted commas and line ends belong to the text; labels are names or indices; rows without text are left out."""
    source = table(tmp_path, 'label,text,more\r\ngood,"a, b\nc",x\r\n0,"say ""no""",x\r\nbad,,x\r\n 1 ,d\r\n')
    assert list(source.read()) == [Document("a, b\nc", 1), Document('say "no"', 0), Document("d", 1)]


def test_a_language_model_reads_no_labels(tmp_path: pathlib.Path) -> None:
    """Without labels the label column may be missing, or hold anything."""
    path = table(tmp_path, "text\nhello\n").path
    assert list(CsvTable(path, "text", "label").read()) == [Document("hello")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("text,label\nhello,fine\n", r"line 2: label 'fine' is none of bad, good, nor an index"),
        ("text,label\nhello,2\n", r"label '2' is none of"),
        ("text,label\nhello,-1\n", r"label '-1' is none of"),
        ("text,label\nhello\n", r"label '' is none of"),
        ("words,label\nhello,bad\n", r"has no column text; its first line has words, label"),
        ("words\nhello\n", r"has no column label and no column text"),
        ("", r"no column label and no column text; its first line has nothing"),
        ("text,label\n" + "x" * 200_000 + ",bad\n", r"line 2: field larger than field limit"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: pathlib.Path, text: str, complaint: str) -> None:
    """What is wrong is said in one line, with the line of the file."""
    with pytest.raises(DataError, match=complaint):
        list(table(tmp_path, text).read())


def test_labels_need_a_column(tmp_path: pathlib.Path) -> None:
    """Labels without the name of their column are a mistake of the configuration."""
    with pytest.raises(ConfigError, match=r"say which column of t\.csv holds them"):
        CsvTable(tmp_path / "t.csv", "text", "", LABELS)


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=5))
def test_token_arrays_give_rows_without_padding(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]
) -> None:
    """What was padded to be written is read as it was."""
    folder = tmp_path_factory.mktemp("arrays") / "data"
    ids = np.array([row + [0] * (5 - len(row)) for row in rows])
    write_token_folder(folder, ids, np.array([len(row) for row in rows]), np.arange(len(rows)))
    found = list(TokenArrays(folder).read())
    assert [list(row.ids) for row in found] == rows
    assert [row.label for row in found] == list(range(len(rows)))


def test_token_arrays_give_the_labels_of_tokens(tmp_path: pathlib.Path) -> None:
    """As many as there are tokens, whatever lies behind them."""
    labels = np.array([[0, -100, 1], [1, 0, 0]])
    write_token_folder(tmp_path / "data", np.ones((2, 3)), np.array([3, 1]), labels)
    assert [row.label for row in TokenArrays(tmp_path / "data").read()] == [[0, -100, 1], [1]]


def lines(folder: pathlib.Path, text: str, labels: tuple[str, ...] = LABELS) -> JsonLines:
    """A file of such lines."""
    (folder / "words.jsonl").write_text(text, encoding="utf-8")
    return JsonLines(folder / "words.jsonl", labels)


def test_a_line_is_words_with_labels(tmp_path: pathlib.Path) -> None:
    """Labels are names or indices; more keys and empty lines are left out; a language model reads no labels."""
    text = '{"words": ["Ölf", "x"], "labels": ["good", 0], "id": 7}\n\n{"words": [], "labels": []}'
    assert list(lines(tmp_path, text).read()) == [Words(("Ölf", "x"), (1, 0)), Words((), ())]
    assert list(lines(tmp_path, text, ()).read()) == [Words(("Ölf", "x"), ()), Words((), ())]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"words": ["a"], "labels": ["fine"]}', "line 2: label 'fine' is none of bad, good, nor an index"),
        ('{"words": ["a"], "labels": [2]}', "label '2' is none of"),
        ('{"words": ["a"], "labels": [null]}', "label 'None' is none of"),
        ('{"words": ["a"], "labels": ["good", "bad"]}', "line 2: 1 words and 2 labels"),
        ('{"words": "a", "labels": ["good"]}', "words and labels must be lists"),
        ('{"words": [1], "labels": ["good"]}', "words and labels must be lists"),
        ('{"tokens": ["a"], "labels": ["good"]}', "KeyError: 'words'"),
        ('{"words": ["a"], "labels"', "JSONDecodeError"),
        ('["a"]', "TypeError"),
        ("[" * 100_000, "RecursionError"),
        ('{"words": [' + '"a", ' * 300_000, "longer than 1048576 characters"),
    ],
    ids=lambda text: text[:16],
)
def test_wrong_lines_are_refused(tmp_path: pathlib.Path, line: str, complaint: str) -> None:
    """What is wrong is said in one line, with the line of the file."""
    with pytest.raises(DataError, match=complaint) as caught:
        list(lines(tmp_path, f'{{"words": [], "labels": []}}\n{line}\n').read())
    assert "\n" not in str(caught.value)


def test_the_configuration_names_the_source(tmp_path: pathlib.Path) -> None:
    """Each kind opens its source; labels reach the table and pictures, whose size the latter know, too."""
    opened = {
        kind: open_source(DataConfig(kind=kind, path=tmp_path, text_column="t", label_column="l"), LABELS, SPEC)
        for kind in DataKind
    }
    assert opened == {
        DataKind.TEXT_FOLDER: TextFolder(tmp_path),
        DataKind.CSV: CsvTable(tmp_path, "t", "l", LABELS),
        DataKind.JSON_LINES: JsonLines(tmp_path, LABELS),
        DataKind.TOKEN_ARRAYS: TokenArrays(tmp_path),
        DataKind.IMAGE_FILES: ImageFiles(tmp_path, LABELS, SPEC),
        DataKind.IMAGE_ARRAYS: ImageArrays(tmp_path),
        DataKind.IDX: IdxImages(tmp_path),
    }


def test_fingerprints_follow_the_data(tmp_path: pathlib.Path) -> None:
    """The same files give the same fingerprint; another size, time, name or file gives another."""
    one, two = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("one")
    source = TextFolder(tmp_path)
    seen = [source.fingerprint(), source.fingerprint()]
    assert len(set(seen)) == 1
    one.write_text("three")
    seen.append(source.fingerprint())
    os.utime(one, ns=(0, 1))
    seen.append(source.fingerprint())
    one.rename(two)
    seen.append(source.fingerprint())
    one.write_text("more")
    seen.append(source.fingerprint())
    assert len(set(seen)) == 5


def test_fingerprints_follow_what_is_read(tmp_path: pathlib.Path) -> None:
    """Other columns or other labels of the same table are other data."""
    path = table(tmp_path, "text,label,more\nhello,bad,x\n").path
    sources = [
        CsvTable(path, "text", "label", LABELS),
        CsvTable(path, "text", "label", LABELS[::-1]),
        CsvTable(path, "more", "label", LABELS),
        CsvTable(path, "text"),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)


def idx(array: Array) -> bytes:
    """Bytes as the format of MNIST has them."""
    header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def idx_files(folder: pathlib.Path, *, packed: bool = False, rows: int = 3) -> tuple[pathlib.Path, Array, Array]:
    """Images and labels in two files, and what is in them."""
    images, labels = np.random.default_rng(0).integers(0, 256, (rows, 4, 5)), np.arange(rows)
    ending = ".gz" if packed else ""
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data = idx(array)
        (folder / f"train-{name}-ubyte{ending}").write_bytes(gzip.compress(data) if packed else data)
    return folder / f"train-images-idx3-ubyte{ending}", images, labels


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_hold_grey_images(tmp_path: pathlib.Path, *, packed: bool) -> None:
    """Packed or not, each image comes with its label from the file beside it; another file is other data."""
    path, images, labels = idx_files(tmp_path, packed=packed)
    found = list(IdxImages(path).read())
    assert np.array_equal(np.stack([item.pixels for item in found])[:, 0], images)
    assert found[0].pixels.dtype == np.uint8
    assert [item.label for item in found] == labels.tolist()
    before = IdxImages(path).fingerprint()
    idx_files(tmp_path, packed=packed, rows=4)
    assert IdxImages(path).fingerprint() != before


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files_are_refused(tmp_path: pathlib.Path, *, packed: bool) -> None:
    """Cut short, of something else, without labels, or badly named: one line with the file."""
    path, *_ = idx_files(tmp_path, packed=packed)
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))

    def complaint() -> str:
        with pytest.raises(DataError) as caught:
            list(IdxImages(path).read())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    assert str(path) in complaint()
    path.write_bytes(whole)
    labels.write_bytes(whole)
    assert f"{labels} begins with 2051, not with 2049" in complaint()
    fewer = idx(np.arange(2))
    labels.write_bytes(gzip.compress(fewer) if packed else fewer)
    assert "3 images of 4 x 5 with 2 labels cannot be" in complaint()
    labels.unlink()
    assert f"cannot read {labels}" in complaint()
    with pytest.raises(DataError, match="where its labels lie is not known"):
        IdxImages(path.with_name("pictures")).fingerprint()


def test_no_packed_file_is_said_to_be_one(tmp_path: pathlib.Path) -> None:
    """A name that ends in .gz promises what the bytes must keep."""
    path, _, _ = idx_files(tmp_path)
    packed = path.rename(path.with_name(path.name + ".gz"))
    (tmp_path / "train-labels-idx1-ubyte").rename(tmp_path / "train-labels-idx1-ubyte.gz")
    with pytest.raises(DataError, match=r"cannot read .*\.gz: Not a gzipped file"):
        list(IdxImages(packed).read())


def test_image_arrays_give_what_was_written(tmp_path: pathlib.Path) -> None:
    """More images than are mapped at a time."""
    images, labels = np.random.default_rng(0).integers(0, 256, (70, 3, 4, 5)), np.arange(70)
    write_image_folder(tmp_path / "data", images, labels)
    found = list(ImageArrays(tmp_path / "data").read())
    assert np.array_equal(np.stack([item.pixels for item in found]), images)
    assert [item.label for item in found] == labels.tolist()


def picture(path: pathlib.Path, pixels: Array, **options: Any) -> None:
    """A picture in a file of the kind that its name says."""
    image: Any = pytest.importorskip("PIL.Image")
    path.parent.mkdir(exist_ok=True)
    image.fromarray(pixels.astype(np.uint8)).save(path, **options)


def test_pictures_lie_in_folders_of_their_class(tmp_path: pathlib.Path) -> None:
    """They come in turn, one of each class, of the model's size and colours; other files and folders are none."""
    red = np.zeros((12, 16, 3))
    red[..., 0] = 200
    for name, pixels in (("good/1.png", red), ("good/2.PNG", red // 2), ("bad/a.ppm", red), ("other/x.png", red)):
        picture(tmp_path / name, pixels)
    picture(tmp_path / "bad" / "b.png", np.full((3, 4), 70))
    (tmp_path / "bad" / "notes.txt").write_text("no picture")
    found = list(ImageFiles(tmp_path, LABELS, SPEC).read())
    assert [item.label for item in found] == [0, 1, 0, 1]
    assert {item.pixels.shape for item in found} == {SPEC.shape}
    assert [item.pixels[:, 2, 3].tolist() for item in found] == [[200, 0, 0], [200, 0, 0], [70, 70, 70], [100, 0, 0]]
    grey = ImageFiles(tmp_path, LABELS, ImageSpec(1, 6, 8))
    assert {item.pixels.shape for item in grey.read()} == {(1, 6, 8)}
    assert grey.fingerprint() != ImageFiles(tmp_path, LABELS, SPEC).fingerprint()


def test_pictures_are_upright(tmp_path: pathlib.Path) -> None:
    """A camera that was held sideways says so in the file."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 255  # bright on the left; turned by 90 degrees to the right, bright above
    exif: Any = pytest.importorskip("PIL.Image").Exif()
    exif[0x0112] = 6
    picture(tmp_path / "good" / "1.png", pixels, exif=exif)
    (found,) = ImageFiles(tmp_path, LABELS, ImageSpec(1, 16, 8)).read()
    assert found.pixels[0, :8].min() > found.pixels[0, 8:].max()


def test_wrong_pictures_are_refused(tmp_path: pathlib.Path) -> None:
    """No picture at all, a file that is none, a label that is a path, a model that takes none: one line each."""
    pytest.importorskip("PIL")
    with pytest.raises(DataError, match="has no pictures in folders called bad, good"):
        list(ImageFiles(tmp_path, LABELS, SPEC).read())
    for name, data in (("1.png", b"no picture"), ("2.png", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / "bad").mkdir(exist_ok=True)
        path = tmp_path / "bad" / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{name} is no picture that Pillow reads") as caught:
            list(ImageFiles(tmp_path, LABELS, SPEC).read())
        assert "\n" not in str(caught.value)
        path.unlink()
    with pytest.raises(DataError, match="cannot be the name of a folder"):
        list(ImageFiles(tmp_path, ("../up", "good"), SPEC).read())
    with pytest.raises(DataError, match="this model takes no images"):
        open_source(DataConfig(kind=DataKind.IMAGE_FILES, path=tmp_path), LABELS)
