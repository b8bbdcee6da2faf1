"""Text and tokens to rows of tokens, for a language model and for classifiers of rows and of tokens; images to images.

- A language model's documents are joined, with the tokenizer's end token after each where it has one, and cut in rows
  of T tokens; only the last row is shorter.
- A classifier's documents are a row each, with the tokenizer's special tokens, cut at T.
- Where words have labels, they are joined by spaces to such a document, and a word's label is that of its first token:
  all other tokens have none (https://arxiv.org/abs/1810.04805, 5.3).
- Rows of tokens stay as they are; what is longer than T becomes several rows, or is cut for a classifier.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from edge_sdk.errors import ArtifactError, ConfigError, DataError
from edge_sdk.images import check_images, fitted
from edge_sdk.sources import PIECE_CHARACTERS, DataSource, Document, Image, Row, Words
from edge_sdk.wire.manifest import IGNORED, ImageSpec

# What families call the token between two documents; tokenizer.json does not say which of its tokens it is.
END_TOKENS: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


def rows(
    source: DataSource, tokenizer: Tokenizer, tokens: int, labels: tuple[str, ...], *, labels_tokens: bool = False
) -> Iterator[Row]:
    """Rows of at most `tokens` tokens; with `labels`, the classes by index, each has one, or each of its tokens.

    Raises DataError.
    """
    if labels_tokens:
        return _tagged(source, tokenizer, tokens, labels)
    return _classified(source, tokenizer, tokens, labels) if labels else _packed(source, tokenizer, tokens)


def images(source: DataSource, spec: ImageSpec, labels: Sequence[str]) -> Iterator[Image]:
    """The source's images, each with a label; those larger than the model's shrunk to it. Raises DataError.

    Smaller ones stay small until a batch is made of them: stretched on the disk they take many times the room. All are
    of one size, for they become one array.
    """
    first: Sequence[int] = ()
    for k, item in enumerate(source.read()):
        if not isinstance(item, Image):
            msg = "this model takes images, the data is text or tokens"
            raise DataError(msg)
        if item.label is None or not 0 <= item.label < len(labels):
            found = "no label" if item.label is None else f"label {item.label}"
            msg = f"image {k + 1} of the data has {found}, the model has the {len(labels)} labels {', '.join(labels)}"
            raise DataError(msg)
        pixels = item.pixels
        if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape != (first or pixels.shape):  # noqa: PLR2004
            like = f", the first is {tuple(first)}" if first else "; (channels, height, width) uint8 is needed"
            msg = f"image {k + 1} of the data is {pixels.dtype} {pixels.shape}{like}"
            raise DataError(msg)
        if not first:
            first = pixels.shape
            check_images(first, spec, "the data")
        channels = min(len(pixels), spec.channels)
        size = ImageSpec(channels, min(pixels.shape[1], spec.height), min(pixels.shape[2], spec.width))
        yield Image(fitted(pixels, size), item.label)


class Tokenizer:
    """The model's tokenizer, loaded with the first document: rows of tokens need neither it nor its library."""

    def __init__(self, path: pathlib.Path | None) -> None:
        """`path` is a `tokenizer.json`, or None where the model has none."""
        self._path = path
        self._loaded: Any = None
        self._end: list[int] = []

    def joined(self, document: Document) -> list[int]:
        """Tokens of a document, or of a piece of one, as they flow into a language model's rows."""
        ids: list[int] = self._load().encode(document.text, add_special_tokens=False).ids
        return ids + self._end if document.ends else ids

    def single(self, text: str, tokens: int) -> list[int]:
        """At most `tokens` tokens of a text, with what the model wants around it."""
        ids: list[int] = self._framed(text, tokens).ids
        return ids

    def words(self, words: Sequence[str], tokens: int) -> tuple[list[int], list[int | None]]:
        """The same of a text of these words; and by token which word it begins, None for those that begin none.

        By where tokens lie in the text: a tokenizer of bytes would take words that were given apart for one.
        """
        found = self._framed(" ".join(words), tokens)
        begun: list[int | None] = [None] * len(found.ids)
        token = begin = 0
        for number, word in enumerate(words):
            end = begin + len(word)
            while token < len(begun) and found.offsets[token][1] <= begin:
                token += 1
            if token < len(begun) and found.offsets[token][0] < end:
                begun[token], token = number, token + 1
            begin = end + 1
        return found.ids, begun

    def _framed(self, text: str, tokens: int) -> Any:  # noqa: ANN401 - the library may be absent
        loaded = self._load()
        if tokens < loaded.num_special_tokens_to_add(is_pair=False) + 1:
            msg = f"rows of {tokens} token(s) have no room for text beside this tokenizer's special tokens"
            raise DataError(msg)
        loaded.enable_truncation(tokens)
        return loaded.encode(text)

    def _load(self) -> Any:  # noqa: ANN401 - the library may be absent
        if self._loaded is None:
            self._loaded = _load(self._path)
            special = {
                added.content: k for k, added in self._loaded.get_added_tokens_decoder().items() if added.special
            }
            self._end = [special[name] for name in END_TOKENS if name in special][:1]
        return self._loaded


def _load(path: pathlib.Path | None) -> Any:  # noqa: ANN401 - the library may be absent
    if path is None:
        msg = "this model came without a tokenizer: its data must be token arrays, not text"
        raise DataError(msg)
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        msg = "text needs the tokenizers library: pip install 'fedpeat[text]'"
        raise ConfigError(msg) from error
    try:
        loaded = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library's exceptions share no base class
        msg = f"{path} is no tokenizer that tokenizers {tokenizers.__version__} reads: {error}"
        raise ArtifactError(msg) from error
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def _read(source: DataSource) -> Iterator[Document | Row]:
    for item in source.read():
        if isinstance(item, Image | Words):
            msg = "this model reads text, the data is images"
            if isinstance(item, Words):
                msg = "this model has no label for a word, the data is words with labels"
            raise DataError(msg)
        yield item


def _packed(source: DataSource, tokenizer: Tokenizer, tokens: int) -> Iterator[Row]:
    waiting: list[int] = []
    for item in _read(source):
        if isinstance(item, Row):
            yield from (Row(item.ids[k : k + tokens]) for k in range(0, len(item.ids), tokens))
            continue
        waiting += tokenizer.joined(item)
        whole = len(waiting) - len(waiting) % tokens
        yield from (Row(waiting[k : k + tokens]) for k in range(0, whole, tokens))
        del waiting[:whole]
    if waiting:
        yield Row(waiting)


def _classified(source: DataSource, tokenizer: Tokenizer, tokens: int, labels: tuple[str, ...]) -> Iterator[Row]:
    text = ""
    for k, item in enumerate(_read(source)):
        if item.label is None or isinstance(item.label, Sequence) or not 0 <= item.label < len(labels):
            found = "no label" if item.label is None else f"label {item.label}"
            msg = f"item {k + 1} of the data has {found}, the model has the {len(labels)} labels {', '.join(labels)}"
            raise DataError(msg)
        if isinstance(item, Row):
            yield Row(item.ids[:tokens], item.label)
            continue
        if len(text) < PIECE_CHARACTERS:  # no model's rows are longer; what follows would be cut anyway
            text += item.text
        if item.ends:
            yield Row(tokenizer.single(text, tokens), item.label)
            text = ""


def _tagged(source: DataSource, tokenizer: Tokenizer, tokens: int, labels: tuple[str, ...]) -> Iterator[Row]:
    for k, item in enumerate(source.read()):
        found: Sequence[int] = ()
        if isinstance(item, Words):
            ids, begun = tokenizer.words(item.words, tokens)
            found = [IGNORED if word is None else item.labels[word] for word in begun]
        elif isinstance(item, Row) and isinstance(item.label, Sequence):
            ids, found = list(item.ids[:tokens]), item.label[:tokens]
        else:
            msg = f"item {k + 1} of the data has no label for each word, which this model learns: give json-lines"
            raise DataError(msg)
        if wrong := [label for label in found if label != IGNORED and not 0 <= label < len(labels)]:
            known = f"the model has the {len(labels)} labels {', '.join(labels)}"
            msg = f"item {k + 1} of the data has label {wrong[0]}, {known}"
            raise DataError(msg)
        yield Row(ids, found)
