"""Where a device's private data comes from: sources of text, of tokens, or of images.

`edge_sdk.prepare` makes a token or an image folder (see `edge_sdk.data`) from a source. Sources stream: what they hold
at a time does not grow with the data.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import itertools
import json
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, cast

from edge_sdk.config import DataConfig, DataKind
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.wire.manifest import MAX_SIDE, ImageSpec

if TYPE_CHECKING:
    from edge_sdk.wire.tensors import Array

PIECE_CHARACTERS = 1 << 16  # of a text file at a time: a tokenizer holds some hundred bytes for each token
LINE_CHARACTERS = 1 << 20  # of a line of JSON: it is read whole
EVICT_ROWS, EVICT_IMAGES = 1024, 32
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm"})
IDX_IMAGES, IDX_LABELS = 2051, 2049  # how such files begin: bytes, in so many dimensions as the last byte says


@dataclass(frozen=True, slots=True)
class Document:
    """Text to be tokenised. `label` is the index of its class; `ends` is false where the next continues it."""

    text: str
    label: int | None = None
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text, to be tokenised, and of each the index of its class."""

    words: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens as they are, none of them padding. `label` is the index of their class, or of each token's class."""

    ids: Sequence[int] | Array
    label: int | Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """Pixels (channels, height, width) uint8, one channel or red, green, blue. `label` is the index of its class."""

    pixels: Array
    label: int | None = None


Item = Document | Words | Row | Image


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

    def read(self) -> Iterator[Item]:
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
        return _label((text or "").strip(), self.labels, f"{self.path}, line {line}")


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A file, UTF-8, with a text a line: `{"words": ["Ada", "sleeps"], "labels": ["PERSON", "O"]}`.

    A label is a name or an index of `labels`; without those it is not read. Empty lines are left out.
    """

    path: pathlib.Path
    labels: tuple[str, ...] = ()

    def read(self) -> Iterator[Words]:
        """The lines. Raises DataError."""
        with _opened(self.path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_CHARACTERS), ""), 1):
                where = f"{self.path}, line {number}"
                if len(line) == LINE_CHARACTERS:
                    msg = f"{where}: longer than {LINE_CHARACTERS} characters: a line is one text"
                    raise DataError(msg)
                if line.strip():
                    yield self._words(line, where)

    def fingerprint(self) -> str:
        """Size and time of the file, and what its labels stand for. Raises DataError."""
        return _fingerprint(self.path.parent, [self.path], *self.labels)

    def _words(self, line: str, where: str) -> Words:
        try:
            plain = json.loads(line)
            words, labels = plain["words"], plain["labels"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            msg = f'{where}: no {{"words": [...], "labels": [...]}}: {type(error).__name__}: {error}'
            raise DataError(msg) from error
        if not all(isinstance(one, list) for one in (words, labels)) or not all(isinstance(w, str) for w in words):
            msg = f"{where}: words and labels must be lists, of strings the one, of names or indices the other"
            raise DataError(msg)
        if len(words) != len(labels):
            msg = f"{where}: {len(words)} words and {len(labels)} labels"
            raise DataError(msg)
        return Words(tuple(words), tuple(_label(str(label), self.labels, where) for label in labels if self.labels))


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
            label = folder.labels[k].tolist() if len(folder.labels) else None
            yield Row(folder.ids[k, :length], label[:length] if isinstance(label, list) else label)

    def fingerprint(self) -> str:
        """Sizes and times of the arrays. Raises DataError."""
        from edge_sdk.data import FILES

        return _fingerprint(self.path, [path for name in sorted(FILES) if (path := self.path / name).exists()])


@dataclass(frozen=True, slots=True)
class ImageArrays:
    """An image folder that somebody else wrote: its images as they are."""

    path: pathlib.Path

    def read(self) -> Iterator[Image]:
        """The images. Raises DataError."""
        from edge_sdk.data import evict_pages, map_image_folder

        images, labels = map_image_folder(self.path)
        for k, label in enumerate(labels):
            if k % EVICT_IMAGES == 0:
                evict_pages(images)
            yield Image(images[k], int(label))

    def fingerprint(self) -> str:
        """Sizes and times of the arrays. Raises DataError."""
        return _fingerprint(self.path, [self.path / name for name in ("images.npy", "labels.npy")])


@dataclass(frozen=True, slots=True)
class IdxImages:
    """Grey images in the format of MNIST: `path` is a file like `train-images-idx3-ubyte.gz`, packed or not.

    The labels lie beside it, in the file that is called `labels-idx1` where this one is called `images-idx3`.
    """

    path: pathlib.Path

    def read(self) -> Iterator[Image]:
        """The images. Raises DataError."""
        import numpy as np

        with _unpacked(self.path) as images, _unpacked(self._labels_path()) as labels:
            count, height, width = _idx_header(self.path, images, IDX_IMAGES)
            (labelled,) = _idx_header(self._labels_path(), labels, IDX_LABELS)
            if labelled != count or not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
                msg = f"{self.path}: {count} images of {height} x {width} with {labelled} labels cannot be"
                raise DataError(msg)
            for _ in range(count):
                pixels = np.frombuffer(_whole(self.path, images, height * width), np.uint8)
                label = _whole(self._labels_path(), labels, 1)[0]
                yield Image(pixels.reshape(1, height, width), label)

    def fingerprint(self) -> str:
        """Sizes and times of both files. Raises DataError."""
        return _fingerprint(self.path.parent, [self.path, self._labels_path()])

    def _labels_path(self) -> pathlib.Path:
        if "images-idx3" not in self.path.name:
            msg = f"{self.path} is not called like train-images-idx3-ubyte.gz: where its labels lie is not known"
            raise DataError(msg)
        return self.path.with_name(self.path.name.replace("images-idx3", "labels-idx1"))


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Pictures in a folder for each class: `<path>/<label>/*.png`, or another kind of PICTURES, at any size.

    They come in turn, the first of each class, then the second, so that the first few are of all classes. Pillow reads
    and shrinks them to the model's size: a photograph is never whole in memory where its format allows that.
    """

    path: pathlib.Path
    labels: tuple[str, ...]
    spec: ImageSpec

    def read(self) -> Iterator[Image]:
        """The images, each of the model's size. Raises DataError, ConfigError without Pillow."""
        pillow = _pillow()
        classes = [[(file, k) for file in self._files(label)] for k, label in enumerate(self.labels)]
        if not any(classes):
            msg = f"{self.path} has no pictures in folders called {', '.join(self.labels)}"
            raise DataError(msg)
        for file, label in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*classes))):
            yield Image(self._pixels(pillow, file), label)

    def fingerprint(self) -> str:
        """Names, sizes and times of all files, and what is made of them. Raises DataError."""
        files = [file for label in self.labels for file in self._files(label)]
        return _fingerprint(self.path, files, *self.labels, repr(self.spec))

    def _files(self, label: str) -> list[pathlib.Path]:
        folder = self.path / label
        if folder.parent != self.path or label in {"", ".", ".."}:
            msg = f"the label {label!r} cannot be the name of a folder of pictures"
            raise DataError(msg)
        return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())

    def _pixels(self, pillow: Any, path: pathlib.Path) -> Array:  # noqa: ANN401 - the library may be absent
        import numpy as np

        mode, size = "L" if self.spec.channels == 1 else "RGB", (self.spec.width, self.spec.height)
        try:
            with pillow.Image.open(path) as picture:
                picture.draft(mode, size)
                upright = pillow.ImageOps.exif_transpose(picture)
                pixels = np.asarray(upright.convert(mode).resize(size, pillow.Image.Resampling.BILINEAR))
        except (OSError, ValueError, SyntaxError, pillow.Image.DecompressionBombError) as error:
            msg = f"{path} is no picture that Pillow reads: {error}"
            raise DataError(msg) from error
        return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def open_source(config: DataConfig, labels: tuple[str, ...], image: ImageSpec | None = None) -> DataSource:
    """The source that a configuration names, for a model with these labels (none: a language model) and images."""
    if config.kind is DataKind.IMAGE_FILES:
        if image is None:
            msg = "this model takes no images: data.kind must be text-folder, csv, json-lines or token-arrays"
            raise DataError(msg)
        return ImageFiles(config.path, labels, image)
    if config.kind is DataKind.CSV:
        return CsvTable(config.path, config.text_column, config.label_column, labels)
    if config.kind is DataKind.JSON_LINES:
        return JsonLines(config.path, labels)
    by_path: dict[DataKind, Callable[[pathlib.Path], DataSource]] = {
        DataKind.TEXT_FOLDER: TextFolder,
        DataKind.TOKEN_ARRAYS: TokenArrays,
        DataKind.IMAGE_ARRAYS: ImageArrays,
        DataKind.IDX: IdxImages,
    }
    return by_path[config.kind](config.path)


def _label(text: str, labels: tuple[str, ...], where: str) -> int:
    """The index that `text`, a name or an index, stands for. Raises DataError."""
    if text in labels:
        return labels.index(text)
    if text.isascii() and text.isdecimal() and int(text) < len(labels):
        return int(text)
    msg = f"{where}: label {text[:40]!r} is none of {', '.join(labels)}, nor an index of them"
    raise DataError(msg)


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


def _unpacked(path: pathlib.Path) -> IO[bytes]:
    """A file of bytes, unpacked where its name ends in .gz."""
    try:
        return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise DataError(msg) from error


def _whole(path: pathlib.Path, file: IO[bytes], size: int) -> bytes:
    try:
        data = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        msg = f"cannot read {path}: {error}"
        raise DataError(msg) from error
    if len(data) < size:
        msg = f"{path} ends too early"
        raise DataError(msg)
    return data


def _idx_header(path: pathlib.Path, file: IO[bytes], magic: int) -> tuple[int, ...]:
    """The lengths of its dimensions."""
    dimensions = magic & 0xFF
    found, *lengths = struct.unpack(f">{1 + dimensions}I", _whole(path, file, 4 + 4 * dimensions))
    if found != magic:
        msg = f"{path} begins with {found}, not with {magic}: it is no idx file of such bytes"
        raise DataError(msg)
    return tuple(lengths)


def _pillow() -> Any:  # noqa: ANN401 - the library may be absent
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ModuleNotFoundError as error:
        msg = "pictures need the Pillow library: pip install 'fedpeat[vision]'"
        raise ConfigError(msg) from error
    return PIL


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
