"""Text and tokens to rows of tokens, for a language model and for a classifier.

- A language model's documents are joined, with the tokenizer's end token after each where it has one, and cut in rows
  of T tokens; only the last row is shorter.
- A classifier's documents are a row each, with the tokenizer's special tokens, cut at T.
- Rows of tokens stay as they are; what is longer than T becomes several rows, or is cut for a classifier.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, Final

from edge_sdk.errors import ArtifactError, ConfigError, DataError
from edge_sdk.sources import PIECE_CHARACTERS, DataSource, Document, Image, Row

# What families call the token between two documents; tokenizer.json does not say which of its tokens it is.
END_TOKENS: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


def rows(source: DataSource, tokenizer: Tokenizer, tokens: int, labels: tuple[str, ...]) -> Iterator[Row]:
    """Rows of at most `tokens` tokens; with `labels`, the classes by index, each has one. Raises DataError."""
    return _classified(source, tokenizer, tokens, labels) if labels else _packed(source, tokenizer, tokens)


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
        loaded = self._load()
        if tokens < loaded.num_special_tokens_to_add(is_pair=False) + 1:
            msg = f"rows of {tokens} token(s) have no room for text beside this tokenizer's special tokens"
            raise DataError(msg)
        loaded.enable_truncation(tokens)
        ids: list[int] = loaded.encode(text).ids
        return ids

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
        if isinstance(item, Image):
            msg = "this model reads text, the data is images"
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
        if item.label is None or not 0 <= item.label < len(labels):
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
