"""Sources give private data whole and in order, in pieces, and say in one line what is wrong with it."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import write_token_folder
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.sources import PIECE_CHARACTERS, CsvTable, Document, TextFolder, TokenArrays, open_source

LABELS = ("bad", "good")


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


def test_the_configuration_names_the_source(tmp_path: pathlib.Path) -> None:
    """Each kind opens its source, and labels reach the table alone."""
    opened = {
        kind: open_source(DataConfig(kind=kind, path=tmp_path, text_column="t", label_column="l"), LABELS)
        for kind in DataKind
    }
    assert opened == {
        DataKind.TEXT_FOLDER: TextFolder(tmp_path),
        DataKind.CSV: CsvTable(tmp_path, "t", "l", LABELS),
        DataKind.TOKEN_ARRAYS: TokenArrays(tmp_path),
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
