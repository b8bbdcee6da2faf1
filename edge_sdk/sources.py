"""Where a device's private data comes from: sources of text or of tokens.

`edge_sdk.prepare` makes a token folder (see `edge_sdk.data`) from a source. Sources stream: what they hold at a time
does not grow with the data.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from edge_sdk.config import DataConfig, DataKind
from edge_sdk.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edge_sdk.wire.tensors import Array

PIECE_CHARACTERS = 1 << 16  # of a text file at a time: a tokenizer holds some hundred bytes for each token
EVICT_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """Text to be tokenised. `label` is the index of its class; `ends` is false where the next continues it."""

    text: str
    label: int | None = None
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens as they are, none of them padding. `label` is the index of their class."""

    ids: Sequence[int] | Array
    label: int | None = None


class DataSource(Protocol):
    """Private data, of any kind.

    A class of your own needs two methods, and goes to `edge_sdk.prepare.prepare`:

        class Messages:
            def __init__(self, database: pathlib.Path) -> None:
                self.database = database

            def read(self) -> Iterator[Document]:
                with closing(sqlite3.connect(self.database)) as connection:
                    for (text,) in connection.execute("SELECT text FROM messages ORDER BY id"):
                        yield Document(text)

            def fingerprint(self) -> str:
                return f"messages {self.database.stat().st_mtime_ns}"
    """

    def read(self) -> Iterator[Document | Row]:
        """Everything, from the beginning, one after the other. Raises DataError."""

    def fingerprint(self) -> str:
        """A string that changes when what `read` yields does: the data is prepared again. Raises DataError."""


@dataclass(frozen=True, slots=True)
class TextFolder:
    """All `*.txt` files below a folder, in the order of their names, UTF-8, each one document.

    Files are read in pieces of `PIECE_CHARACTERS`, cut at a line's end, so that memory does not depend on their size.
    """

    path: pathlib.Path

    def read(self) -> Iterator[Document]:
        """The texts, in pieces. Raises DataError."""
        for path in self._files():
            with _opened(path) as file:
                piece = _piece(file)
                while piece:
                    following = _piece(file)
                    yield Document(piece, ends=not following)
                    piece = following

    def fingerprint(self) -> str:
        """Names, sizes and times of all files. Raises DataError."""
        return _fingerprint(self.path, self._files())

    def _files(self) -> list[pathlib.Path]:
        found = sorted(path for path in self.path.rglob("*.txt") if path.is_file())
        if not found:
            msg = f"{self.path} has no .txt file" if self.path.is_dir() else f"{self.path} is no folder"
            raise DataError(msg)
        return found


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A CSV file, UTF-8, with a line of column names. A row is a document; its label is a name or an index of `labels`.

    Without `labels` (a language model) the label column is not read.
    """

    path: pathlib.Path
    text_column: str = "text"
    label_column: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse labels without a column to find them in."""
        if self.labels and not self.label_column:
            msg = f"the model has the labels {', '.join(self.labels)}: say which column of {self.path.name} holds them"
            raise ConfigError(msg)

    def read(self) -> Iterator[Document]:
        """The rows that have text. Raises DataError."""
        with _opened(self.path, newline="") as file:
            reader = csv.DictReader(file)
            wanted = {self.text_column, self.label_column} if self.labels else {self.text_column}
            try:
                if missing := sorted(wanted - set(reader.fieldnames or ())):
                    has = ", ".join(reader.fieldnames or ()) or "nothing"
                    msg = f"{self.path} has no column {' and no column '.join(missing)}; its first line has {has}"
                    raise DataError(msg)
                for row in reader:
                    if text := row[self.text_column]:
                        label = self._label(row[self.label_column], reader.line_num) if self.labels else None
                        yield Document(text, label)
            except csv.Error as error:
                msg = f"{self.path}, line {reader.reader.line_num}: {error}"  # DictReader's own lags behind
                raise DataError(msg) from error

    def fingerprint(self) -> str:
        """Size and time of the file, and which columns are read. Raises DataError."""
        return _fingerprint(self.path.parent, [self.path], self.text_column, self.label_column, *self.labels)

    def _label(self, text: str | None, line: int) -> int:
        text = (text or "").strip()
        if text in self.labels:
            return self.labels.index(text)
        if text.isascii() and text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        msg = f"{self.path}, line {line}: label {text[:40]!r} is none of {', '.join(self.labels)}, nor an index of them"
        raise DataError(msg)


@dataclass(frozen=True, slots=True)
class TokenArrays:
    """A token folder that somebody else wrote: its rows as they are."""

    path: pathlib.Path

    def read(self) -> Iterator[Row]:
        """The rows, without their padding. Raises DataError."""
        from edge_sdk.data import map_token_folder  # NumPy comes with it: an agent whose data is text never loads it

        folder = map_token_folder(self.path)
        for k, length in enumerate(folder.lengths):
            if k % EVICT_ROWS == 0:
                folder.evict()
            yield Row(folder.ids[k, :length], int(folder.labels[k]) if len(folder.labels) else None)

    def fingerprint(self) -> str:
        """Sizes and times of the arrays. Raises DataError."""
        from edge_sdk.data import FILES

        return _fingerprint(self.path, [path for name in sorted(FILES) if (path := self.path / name).exists()])


def open_source(config: DataConfig, labels: tuple[str, ...]) -> DataSource:
    """The source that a configuration names, for a model with these labels (none: a language model)."""
    if config.kind is DataKind.CSV:
        return CsvTable(config.path, config.text_column, config.label_column, labels)
    return TextFolder(config.path) if config.kind is DataKind.TEXT_FOLDER else TokenArrays(config.path)


@contextlib.contextmanager
def _opened(path: pathlib.Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, with or without a byte order mark; what the reader meets becomes one line."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}); convert it, e.g. with iconv"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise DataError(msg) from error


def _piece(file: TextIO) -> str:
    return file.read(PIECE_CHARACTERS) + file.readline(PIECE_CHARACTERS)


def _fingerprint(home: pathlib.Path, files: list[pathlib.Path], *details: str) -> str:
    digest = hashlib.sha256(repr((str(home.absolute()), details)).encode())
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            msg = f"cannot read {path}: {error.strerror}"
            raise DataError(msg) from error
        digest.update(repr((str(path.relative_to(home)), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
