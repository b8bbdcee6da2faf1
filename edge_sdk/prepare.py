"""Private data made ready to train on, in a process of its own: the worker never loads a tokenizer.

    python -m edge_sdk.prepare --kind text-folder --path TEXTS --tokenizer FILE --tokens T --out FOLDER

makes a token folder (see `edge_sdk.data`) of rows of at most T tokens, or with `--image 3x224x224` an image folder for
a model of such images, of T tokens each, and says so in one JSON line on standard output:
`{"rows", "tokens", "peak_bytes", "cached"}`. What it cannot do ends with status 2, a JSON line as a worker would say
it, and one line on standard error. A folder made from the same data in the same way is left as it is: `cached`.
What the rows are is said in `edge_sdk.rows`. Everything streams: memory does not grow with the data.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, final

import numpy as np

from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import NOTE, folder_replaced, map_image_folder, map_token_folder
from edge_sdk.errors import ArtifactError, DataError, EdgeError
from edge_sdk.memory import read_memory
from edge_sdk.rows import Tokenizer, images, rows
from edge_sdk.sources import DataSource, Image, Row, open_source
from edge_sdk.wire.blobs import blob_of_file
from edge_sdk.wire.lifeline import end_with_parent, exit_on_terminate
from edge_sdk.wire.manifest import IGNORED, ImageSpec
from edge_sdk.wire.messages import FailureReason
from edge_sdk.wire.tensors import Array

FORMAT: Final = 1  # of what this module makes: another one makes every folder anew
MAX_ID: Final = np.iinfo(np.int32).max
WRONG_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder of `rows` rows with `tokens` tokens in all, made by a process with this peak, or found made."""

    rows: int
    tokens: int
    peak_bytes: int
    cached: bool


def prepare(
    source: DataSource,
    tokenizer: pathlib.Path | None,
    *,
    tokens: int,
    out: pathlib.Path,
    labels: Sequence[str] = (),
    max_rows: int | None = None,
    image: ImageSpec | None = None,
    labels_tokens: bool = False,
) -> Prepared:
    """Make the token folder `out`, for a model of images the image folder, from `source`, unless it is there already.

    Args:
        source: The data; a class of your own will do, see `edge_sdk.sources.DataSource`.
        tokenizer: The model's `tokenizer.json`; None where it has none, then `source` must yield rows of tokens.
        tokens: The longest row.
        out: The folder; what a folder of rows held before is replaced.
        labels: The model's classes by index; none for a language model.
        max_rows: Stop after so many rows.
        image: What images the model takes; None for one of tokens.
        labels_tokens: Whether each token has a label, and not each row.

    Raises:
        DataError: there is nothing to read, it is not what its kind says, or a label or token id is out of bounds.
        ArtifactError: the tokenizer cannot be read.
        ConfigError: the tokenizers library is missing, or `out` holds something else.
        OSError: `out` cannot be written.
    """
    sha256 = blob_of_file(tokenizer).sha256 if tokenizer else ""
    parts = (FORMAT, source.fingerprint(), sha256, tokens, tuple(labels), max_rows, image, labels_tokens)
    fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()
    found = _found(out, fingerprint, image)
    if found is not None:
        return found
    with folder_replaced(out) as making:
        if image is not None:
            prepared = _write_images(making, itertools.islice(images(source, image, labels), max_rows), tokens)
        else:
            made = rows(source, Tokenizer(tokenizer), tokens, tuple(labels), labels_tokens=labels_tokens)
            shape = (tokens,) if labels_tokens else () if labels else None
            prepared = _write(making, itertools.islice(made, max_rows), tokens, shape)
        note = {"fingerprint": fingerprint, "rows": prepared.rows, "tokens": prepared.tokens}
        (making / NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8")
    return prepared


def command(
    config: DataConfig,
    tokenizer: pathlib.Path | None,
    tokens: int,
    labels: Sequence[str],
    out: pathlib.Path,
    max_rows: int | None = None,
    image: ImageSpec | None = None,
    *,
    labels_tokens: bool = False,
) -> list[str]:
    """The command that runs `prepare` on what a configuration names, in a process of its own; see `obey`."""
    found = [sys.executable, "-m", "edge_sdk.prepare", "--kind", config.kind.value, f"--path={config.path}"]
    found += ["--tokens", str(tokens), f"--out={out}"]
    found += [f"--tokenizer={tokenizer}"] if tokenizer else []
    found += [f"--labels={_join(labels)}"] if labels else []
    found += [f"--image={image}"] if image is not None else []
    found += ["--labels-tokens"] if labels_tokens else []
    found += [f"--text-column={config.text_column}", f"--label-column={config.label_column}"]
    return found + (["--max-rows", str(max_rows)] if max_rows is not None else [])


def obey(command: Sequence[str]) -> Prepared:
    """Do in this process what the command says. Raises like `prepare`."""
    _python, _m, _module, *argv = command
    return _do(_parser().parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Be the process."""
    end_with_parent()
    exit_on_terminate()
    asked = _parser().parse_args(argv)
    try:
        done = _do(asked)
    except (EdgeError, OSError) as error:
        print(json.dumps({"event": "failed", "reason": _reason(error).value, "detail": str(error)[:400]}))
        print(f"edge_sdk.prepare: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    print(json.dumps(dataclasses.asdict(done)), flush=True)
    return 0


def _do(asked: argparse.Namespace) -> Prepared:
    config = DataConfig(
        kind=DataKind(asked.kind), path=asked.path, text_column=asked.text_column, label_column=asked.label_column
    )
    labels = tuple(_split(asked.labels))
    return prepare(
        open_source(config, labels, asked.image),
        asked.tokenizer,
        tokens=asked.tokens,
        out=asked.out.absolute(),
        labels=labels,
        max_rows=asked.max_rows,
        image=asked.image,
        labels_tokens=asked.labels_tokens,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge_sdk.prepare", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kind", choices=[kind.value for kind in DataKind], required=True)
    parser.add_argument("--path", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="tokenizer.json; token arrays need none")
    parser.add_argument("--tokens", type=_positive, required=True, help="the longest row")
    parser.add_argument("--image", type=_image, metavar="CxHxW", help="of a model of images: their shape")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder to make")
    parser.add_argument("--labels", default="", help="the model's classes, as a line of CSV")
    parser.add_argument("--labels-tokens", action="store_true", help="a label is a token's, not a row's")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--max-rows", type=_positive)
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        msg = f"{text} is not at least 1"
        raise argparse.ArgumentTypeError(msg)
    return value


def _image(text: str) -> ImageSpec:
    channels, height, width = map(int, text.split("x"))
    return ImageSpec(channels, height, width)


def _join(labels: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="", quoting=csv.QUOTE_ALL).writerow(labels)
    return line.getvalue()


def _split(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def _reason(error: EdgeError | OSError) -> FailureReason:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return FailureReason.NO_SPACE
    return FailureReason.BAD_ARTIFACT if isinstance(error, ArtifactError) else FailureReason.BAD_DATA


def _found(out: pathlib.Path, fingerprint: str, image: ImageSpec | None) -> Prepared | None:
    """What `out` holds, if it was made in this way; a note or array that cannot be read means that it was not."""
    try:
        note = json.loads((out / NOTE).read_text(encoding="utf-8"))
        held = len(map_token_folder(out)) if image is None else len(map_image_folder(out)[0])
        if note["fingerprint"] != fingerprint or held != note["rows"]:
            return None
        return Prepared(note["rows"], note["tokens"], read_memory().peak_bytes, cached=True)
    except (OSError, ValueError, TypeError, KeyError, DataError):
        return None


def _write(folder: pathlib.Path, rows: Iterator[Row], tokens: int, labelled: tuple[int, ...] | None) -> Prepared:
    """`labelled` is the shape of a row's labels, None where rows have none."""
    count = total = 0
    with (
        _Column(folder / "ids.npy", np.int32, (tokens,)) as ids,
        _Column(folder / "lengths.npy", np.int32, ()) as lengths,
        _Column(folder / "labels.npy", np.int64, labelled or ()) as labels,
    ):
        for row in rows:
            ids.append(_padded(row.ids, tokens))
            lengths.append(len(row.ids))
            labels.append(_labels(row, tokens))
            count, total = count + 1, total + len(row.ids)
    if labelled is None:
        (folder / "labels.npy").unlink()
    if not total:
        msg = "the data holds no text: nothing to learn from"
        raise DataError(msg)
    return Prepared(count, total, read_memory().peak_bytes, cached=False)


def _write_images(folder: pathlib.Path, images: Iterator[Image], tokens: int) -> Prepared:
    first = next(images, None)
    if first is None:
        msg = "the data holds no images: nothing to learn from"
        raise DataError(msg)
    count = 0
    with (
        _Column(folder / "images.npy", np.uint8, first.pixels.shape) as pixels,
        _Column(folder / "labels.npy", np.int64, ()) as labels,
    ):
        for image in itertools.chain([first], images):
            pixels.append(image.pixels)
            labels.append(image.label or 0)
            count += 1
    return Prepared(count, count * tokens, read_memory().peak_bytes, cached=False)


def _labels(row: Row, tokens: int) -> int | Sequence[int]:
    """Its label, or its tokens', with none behind them."""
    if isinstance(row.label, Sequence):
        return [*row.label, *[IGNORED] * (tokens - len(row.label))]
    return row.label or 0


def _padded(ids: Sequence[int] | Array, tokens: int) -> Array:
    wide = np.asarray(ids)
    if wide.size and (wide.dtype.kind not in "iu" or not 0 <= wide.min() <= wide.max() <= MAX_ID):
        msg = f"a row of the data holds {wide.dtype} from {wide.min()} to {wide.max()}, which are no token ids"
        raise DataError(msg)
    return np.pad(wide, (0, tokens - len(wide)))


@final
class _Column:
    """A .npy file that grows by one entry of `shape` at a time; its header is written when the count is known."""

    def __init__(self, path: pathlib.Path, dtype: Any, shape: tuple[int, ...]) -> None:  # noqa: ANN401 - scalar types
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._shape, self._count = np.dtype(dtype), shape, 0
        self._begin = self._head()

    def append(self, entry: Array | Sequence[int] | int) -> None:
        self._file.write(np.asarray(entry, self._dtype).tobytes())
        self._count += 1

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            if self._head() != self._begin:  # NumPy leaves room for the count to grow to any length
                msg = "the header of a .npy file has changed its length"
                raise AssertionError(msg)

    def _head(self) -> int:
        described = np.lib.format.dtype_to_descr(self._dtype)
        shape = (self._count, *self._shape)
        np.lib.format.write_array_header_1_0(self._file, {"descr": described, "fortran_order": False, "shape": shape})
        return self._file.tell()


if __name__ == "__main__":
    sys.exit(main())
