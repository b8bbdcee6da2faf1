"""Preparing loses no token, does no work twice, stays small, and leaves nothing behind when it fails."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import map_image_folder, map_token_folder, write_image_folder, write_token_folder
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.memory import read_memory, reset_peak
from edge_sdk.prepare import _join, _split, command, prepare
from edge_sdk.rows import Tokenizer, rows
from edge_sdk.sources import Document, Image, Item, Row, TextFolder, TokenArrays, Words
from edge_sdk.wire.manifest import IGNORED, ImageSpec

WORDS = ("to", "be", "or", "not")
CLS, SEP, END = 1, 2, 3


@dataclass(frozen=True)
class Items:
    """A source of a user's own: what it is given."""

    items: Sequence[Item]
    name: str = "items"

    def read(self) -> Iterator[Item]:
        """The items."""
        yield from self.items

    def fingerprint(self) -> str:
        """Its name."""
        return self.name


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tokenizer of whole words with an end token, which pads and truncates unless it is told not to."""
    return _tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json", end="<|endoftext|>")


def _tokenizer(path: pathlib.Path, end: str) -> pathlib.Path:
    tokenizers: Any = pytest.importorskip("tokenizers")
    names = ("[PAD]", "[CLS]", "[SEP]", end, *WORDS, "[UNK]")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="[UNK]")  # noqa: S106
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", end])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    made.enable_padding(length=16)
    made.enable_truncation(16)
    made.save(str(path))
    return path


def ids_of(words: Sequence[str]) -> list[int]:
    """What the tokenizer makes of words."""
    return [4 + WORDS.index(word) for word in words]


documents = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40), min_size=1, max_size=8)


@given(texts=documents, tokens=st.integers(1, 20), pieces=st.integers(1, 50))
def test_a_language_model_loses_no_token(
    tokenizer: pathlib.Path, texts: list[list[str]], tokens: int, pieces: int
) -> None:
    """Rows one after the other are all documents, each with its end token, however a document comes in pieces."""
    items = [
        Document(" ".join(text[k : k + pieces]), ends=k + pieces >= len(text))
        for text in texts
        for k in range(0, len(text), pieces)
    ]
    found = [list(row.ids) for row in rows(Items(items), Tokenizer(tokenizer), tokens, ())]
    assert [k for row in found for k in row] == [k for text in texts for k in [*ids_of(text), END]]
    assert all(len(row) == tokens for row in found[:-1])
    assert 1 <= len(found[-1]) <= tokens


def test_without_an_end_token_documents_just_follow(tmp_path: pathlib.Path) -> None:
    """A token that is none of the known names ends nothing."""
    path = _tokenizer(tmp_path / "tokenizer.json", end="<|what|>")
    (row,) = rows(Items([Document("to be"), Document("or not")]), Tokenizer(path), 8, ())
    assert list(row.ids) == ids_of(WORDS)


@given(texts=documents, tokens=st.integers(3, 20))
def test_a_classifier_has_a_row_a_document(tokenizer: pathlib.Path, texts: list[list[str]], tokens: int) -> None:
    """Each row is its document between the special tokens, cut at the length; labels stay with their rows."""
    items = [Document(" ".join(text), label=k % 2) for k, text in enumerate(texts)]
    found = list(rows(Items(items), Tokenizer(tokenizer), tokens, ("a", "b")))
    assert [list(row.ids) for row in found] == [[CLS, *ids_of(text)[: tokens - 2], SEP] for text in texts]
    assert [row.label for row in found] == [item.label for item in items]


def test_pieces_of_a_document_are_one_row(tokenizer: pathlib.Path) -> None:
    """A classifier's document that comes in pieces is joined again."""
    items = [Document("to be ", 1, ends=False), Document("or not", 1), Document("be", 0)]
    found = list(rows(Items(items), Tokenizer(tokenizer), 16, ("a", "b")))
    assert [(list(row.ids), row.label) for row in found] == [
        ([CLS, *ids_of(WORDS), SEP], 1),
        ([CLS, *ids_of(["be"]), SEP], 0),
    ]


@given(texts=documents, tokens=st.integers(3, 60))
def test_a_words_label_is_its_first_tokens(tokenizer: pathlib.Path, texts: list[list[str]], tokens: int) -> None:
    """The row is that of the text; each word that fits begins at one token, which has its label; no other has one."""
    words = [
        [word if k % 2 else f"{word}-{word}" for k, word in enumerate(text)] for text in texts
    ]  # some are 3 tokens
    items = [Words(tuple(text), tuple(k % 2 for k in range(len(text)))) for text in words]
    found = list(rows(Items(items), Tokenizer(tokenizer), tokens, ("a", "b"), labels_tokens=True))
    (*plain,) = rows(Items([Document(" ".join(text), 0) for text in words]), Tokenizer(tokenizer), tokens, ("a", "b"))
    assert [list(row.ids) for row in found] == [list(row.ids) for row in plain]
    for row, text in zip(found, texts, strict=True):
        labels = [label for k in range(len(text)) for label in ([k % 2] if k % 2 else [k % 2, IGNORED, IGNORED])]
        assert row.label == [IGNORED, *labels[: tokens - 2], IGNORED]


def test_tokenizers_of_bytes_find_words(tmp_path: pathlib.Path) -> None:
    """Where a space is part of a token, in a word's middle, and where a word is several tokens or none."""
    tokenizers: Any = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "b"), ("a", "b")]
    known = {token: k for k, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(known, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for trim in (False, True):
        made.post_processor = tokenizers.processors.ByteLevel(trim_offsets=trim)
        made.save(str(tmp_path / "tokenizer.json"))
        ids, begun = Tokenizer(tmp_path / "tokenizer.json").words(["ab", "b", "", "ü", "c"], 12)
        pieces = ["ab", "Ġb", "Ġ", "Ġ", "Ã", "¼", "Ġ", "c"]
        assert ids == [known[piece] for piece in pieces]
        assert [number for number in begun if number is not None] == [0, 1, 3, 4]
        assert begun[:2] == [0, 1]


def test_labels_of_words_reach_the_folder(tmp_path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """By the process, from lines of JSON: one for each token of the row, none for padding; anew for a model of rows."""
    path = tmp_path / "words.jsonl"
    path.write_text('{"words": ["to", "be-be"], "labels": ["b", "a"]}\n{"words": ["or"], "labels": [1]}\n')
    config, labels = DataConfig(kind=DataKind.JSON_LINES, path=path), ("a", "b")
    done = run(command(config, tokenizer, 8, labels, tmp_path / "out", labels_tokens=True))
    assert (done.returncode, done.stderr) == (0, "")
    folder = map_token_folder(tmp_path / "out")
    none = IGNORED
    assert folder.labels.tolist() == [[none, 1, 0, none, none, none, none, none], [none, 1, *[none] * 6]]
    arrays = tmp_path / "arrays"
    again = prepare(TokenArrays(folder.path), None, tokens=3, out=arrays, labels=labels, labels_tokens=True)
    assert (again.rows, map_token_folder(arrays).labels.tolist()) == (2, [[none, 1, 0], [none, 1, none]])


@pytest.mark.parametrize(
    ("items", "labels_tokens", "complaint"),
    [
        ([Words(("to",), (0,))], False, "this model has no label for a word"),
        ([Document("to", 0)], True, "item 1 of the data has no label for each word"),
        ([Row([1], [0]), Row([1], 0)], True, "item 2 of the data has no label for each word"),
        ([Row([1], [2])], True, "has label 2, the model has the 2 labels a, b"),
        ([Row([1], [0])], False, r"has label \[0\], the model has the 2 labels a, b"),
    ],
)
def test_labels_of_rows_and_of_words_are_told_apart(
    tmp_path: pathlib.Path, items: list[Item], *, labels_tokens: bool, complaint: str
) -> None:
    """A model of the one refuses the other in one line; no folder is left."""
    out, labels = tmp_path / "out", ("a", "b")
    with pytest.raises(DataError, match=complaint):
        prepare(Items(items), None, tokens=4, out=out, labels=labels, labels_tokens=labels_tokens)
    assert not list(tmp_path.iterdir())


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    tokens=st.integers(1, 12),
)
def test_rows_of_tokens_stay_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], tokens: int
) -> None:
    """For a language model long rows become several; nothing is lost, and no tokenizer is needed."""
    given_rows = [[100 * k + j for j in range(length)] for k, length in enumerate(lengths)]
    out = tmp_path_factory.mktemp("rows") / "out"
    done = prepare(Items([Row(row) for row in given_rows]), None, tokens=tokens, out=out)
    folder = map_token_folder(out)
    found = [folder.ids[k, :length].tolist() for k, length in enumerate(folder.lengths)]
    assert found == [row[k : k + tokens] for row in given_rows for k in range(0, len(row), tokens)]
    assert (done.rows, done.tokens, done.cached) == (len(found), sum(lengths), False)


def test_a_classifiers_rows_of_tokens_are_cut(tmp_path: pathlib.Path) -> None:
    """A row more would be an example more; the label stays."""
    prepare(Items([Row([1, 2, 3], 1), Row([4], 0)]), None, tokens=2, out=tmp_path / "out", labels=("a", "b"))
    folder = map_token_folder(tmp_path / "out")
    assert folder.ids.tolist() == [[1, 2], [4, 0]]
    assert folder.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("items", "labels", "complaint"),
    [
        ([], (), "holds no text"),
        ([Row([])], (), "holds no text"),
        ([Row([1, -1])], (), "from -1 to 1, which are no token ids"),
        ([Row([1 << 40])], (), "which are no token ids"),
        ([Row(np.array([0.5]))], (), "float64 from 0.5 to 0.5"),
        ([Row([1], 0), Row([1])], ("a", "b"), "item 2 of the data has no label, the model has the 2 labels a, b"),
        ([Row([1], 2)], ("a", "b"), "has label 2"),
        ([Row([1], -1)], ("a", "b"), "has label -1"),
        ([Document("to be")], (), "this model came without a tokenizer: its data must be token arrays"),
    ],
)
def test_data_that_cannot_be_is_refused(
    tmp_path: pathlib.Path, items: list[Document | Row], labels: tuple[str, ...], complaint: str
) -> None:
    """One line says what is wrong, and no folder is left."""
    with pytest.raises(DataError, match=complaint):
        prepare(Items(items), None, tokens=4, out=tmp_path / "out", labels=labels)
    assert not list(tmp_path.iterdir())


def test_rows_must_have_room_for_text(tokenizer: pathlib.Path) -> None:
    """A classifier's row that only special tokens would fill is refused."""
    with pytest.raises(DataError, match=r"rows of 2 token\(s\) have no room for text"):
        list(rows(Items([Document("to be", 0)]), Tokenizer(tokenizer), 2, ("a",)))


def test_work_is_not_done_twice(tmp_path: pathlib.Path) -> None:
    """The same data in the same way is found made; anything else, or damage, makes the folder anew."""
    out, source = tmp_path / "out", Items([Row([1, 2, 3], 0)])
    first = prepare(source, None, tokens=4, out=out)
    inode = (out / "ids.npy").stat().st_ino
    again = prepare(source, None, tokens=4, out=out)
    assert (first.cached, again.cached) == (False, True)
    assert (again.rows, again.tokens) == (first.rows, first.tokens)
    assert (out / "ids.npy").stat().st_ino == inode
    assert not prepare(source, None, tokens=2, out=out).cached
    assert not prepare(source, None, tokens=2, out=out, labels=("a",)).cached
    assert not prepare(source, None, tokens=2, out=out, max_rows=1).cached
    assert not prepare(Items(source.items, "others"), None, tokens=2, out=out, max_rows=1).cached
    for damage in ("ids.npy", "prepared.json"):
        (out / damage).write_bytes(b"half")
        assert not prepare(source, None, tokens=2, out=out).cached
        assert prepare(source, None, tokens=2, out=out).cached


def test_another_tokenizer_makes_other_rows(tmp_path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """The tokenizer's bytes count, not its name."""
    path, source = tmp_path / "tokenizer.json", Items([Document("to be or not")])
    path.write_bytes(tokenizer.read_bytes())
    assert not prepare(source, tokenizer, tokens=4, out=tmp_path / "out").cached
    assert prepare(source, path, tokens=4, out=tmp_path / "out").cached
    path.write_bytes(tokenizer.read_bytes() + b"\n")
    assert not prepare(source, path, tokens=4, out=tmp_path / "out").cached


def test_what_is_already_there_is_never_lost(tmp_path: pathlib.Path) -> None:
    """A folder with anything else in it is refused and untouched."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no folder of rows"):
        prepare(Items([Row([1])]), None, tokens=4, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_rows_can_be_few(tmp_path: pathlib.Path) -> None:
    """No more is read than rows are wanted."""

    class Endless(Items):
        def read(self) -> Iterator[Row]:
            while True:
                yield Row([1, 2])

    assert prepare(Endless([]), None, tokens=4, out=tmp_path / "out", max_rows=5).rows == 5


def test_memory_does_not_grow_with_the_data(tmp_path: pathlib.Path) -> None:
    """160 MB of rows are written in less than 16 MB."""

    class Many(Items):
        def read(self) -> Iterator[Row]:
            for _ in range(10_000):
                yield Row(np.zeros(4096, np.int32))

    reset_peak()
    before = read_memory().resident_bytes
    done = prepare(Many([]), None, tokens=4096, out=tmp_path / "out")
    assert done.tokens == 10_000 * 4096
    assert done.peak_bytes - before < 16e6


@given(labels=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=4))
def test_labels_survive_the_command_line(labels: list[str]) -> None:
    """Labels may hold commas, quotes and line ends."""
    assert _split(_join(labels)) == labels


IMAGE = ImageSpec(3, 8, 8)


def test_images_are_prepared_once(tmp_path: pathlib.Path) -> None:
    """They keep their size where it is small, and are made anew for a model of other images."""
    items = [Image(np.full((1, 4, 4), k, np.uint8), k % 2) for k in range(5)]
    out, given_ = tmp_path / "out", dict[str, Any](tokens=17, labels=("a", "b"), image=IMAGE)
    first = prepare(Items(items), None, out=out, **given_)
    assert (first.rows, first.tokens, first.cached) == (5, 5 * 17, False)
    images, labels = map_image_folder(out)
    assert images.shape == (5, 1, 4, 4)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert prepare(Items(items), None, out=out, **given_).cached
    assert not prepare(Items(items), None, out=out, **{**given_, "image": ImageSpec(3, 2, 2)}).cached
    assert map_image_folder(out)[0].shape == (5, 1, 2, 2)
    assert prepare(Items(items), None, out=out, max_rows=2, **given_).rows == 2


def test_images_and_text_are_told_apart(tmp_path: pathlib.Path) -> None:
    """A model of the one refuses the other, and no data at all, in one line; no folder is left."""
    image, labels = Image(np.zeros((1, 4, 4), np.uint8), 0), ("a", "b")
    with pytest.raises(DataError, match="this model reads text, the data is images"):
        prepare(Items([image]), None, tokens=4, out=tmp_path / "out", labels=labels)
    wrong: list[tuple[list[Item], str]] = [([Row([1], 0)], "this model takes images"), ([], "holds no images")]
    for items, complaint in wrong:
        with pytest.raises(DataError, match=complaint):
            prepare(Items(items), None, tokens=4, out=tmp_path / "out", labels=labels, image=IMAGE)
    assert not list(tmp_path.iterdir())


def test_the_process_prepares_images(tmp_path: pathlib.Path) -> None:
    """The command has the model's images among its words."""
    write_image_folder(tmp_path / "in", np.zeros((3, 3, 20, 20)), np.arange(3) % 2)
    config = DataConfig(kind=DataKind.IMAGE_ARRAYS, path=tmp_path / "in")
    done = run(command(config, None, 17, ("a", "b"), tmp_path / "out", image=IMAGE))
    assert (done.returncode, done.stderr) == (0, "")
    assert map_image_folder(tmp_path / "out")[0].shape == (3, 3, 8, 8)


def test_image_arrays_need_no_pillow(tmp_path: pathlib.Path) -> None:
    """Where the library is absent, pictures say what to install."""
    absent = "import sys; sys.modules['PIL'] = None; from edge_sdk.prepare import main; sys.exit(main())"
    write_image_folder(tmp_path / "in", np.zeros((3, 3, 20, 20)), np.arange(3) % 2)
    for kind, status in ((DataKind.IMAGE_ARRAYS, 0), (DataKind.IMAGE_FILES, 2)):
        config = DataConfig(kind=kind, path=tmp_path / "in")
        done = run(
            [sys.executable, "-c", absent, *command(config, None, 17, ("a", "b"), tmp_path / "out", image=IMAGE)[3:]]
        )
        assert done.returncode == status
    assert done.stderr == "edge_sdk.prepare: pictures need the Pillow library: pip install 'fedpeat[vision]'\n"


def test_images_are_prepared_in_little_memory(tmp_path: pathlib.Path) -> None:
    """38 MB of images are written in less than 12 MB."""

    class Many(Items):
        def read(self) -> Iterator[Image]:
            for _ in range(250):
                yield Image(np.zeros((3, 300, 300), np.uint8), 0)

    reset_peak()
    before = read_memory().resident_bytes
    spec = ImageSpec(3, 224, 224)
    done = prepare(Many([]), None, tokens=257, out=tmp_path / "out", labels=("a", "b"), image=spec)
    assert done.rows == 250
    assert done.peak_bytes - before < 12e6


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def text_command(folder: pathlib.Path, tokenizer: pathlib.Path, texts: pathlib.Path) -> list[str]:
    """The command for a folder of text."""
    config = DataConfig(kind=DataKind.TEXT_FOLDER, path=texts)
    return command(config, tokenizer, 8, (), folder / "out")


def test_the_process_says_what_it_made(tmp_path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """One JSON line, as the function answers; then the same, cached."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("to be or not\n" * 50)
    for cached in (False, True):
        done = run(text_command(tmp_path, tokenizer, texts))
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout)
        assert 1e7 < said.pop("peak_bytes") < 1e8
        assert said == {"rows": 26, "tokens": 201, "cached": cached}
    assert prepare(TextFolder(texts), tokenizer, tokens=8, out=tmp_path / "out").cached


def test_the_process_reads_labels(tmp_path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """A CSV table with columns and labels of any name."""
    path = tmp_path / "-a table.csv"
    path.write_text('--t,"l,l"\nto be,"b, c"\nnot,-a\n')
    config = DataConfig(kind=DataKind.CSV, path=path, text_column="--t", label_column="l,l")
    done = run(command(config, tokenizer, 8, ("-a", "b, c"), tmp_path / "out", max_rows=7))
    assert (done.returncode, done.stderr) == (0, "")
    assert map_token_folder(tmp_path / "out").labels.tolist() == [1, 0]


def test_token_arrays_need_no_tokenizers(tmp_path: pathlib.Path) -> None:
    """Where the library is absent, token arrays are prepared and text says what to install."""
    write_token_folder(tmp_path / "in", np.ones((2, 4)), np.full(2, 4))
    (tmp_path / "a.txt").write_text("to be")
    absent = "import sys; sys.modules['tokenizers'] = None; from edge_sdk.prepare import main; sys.exit(main())"
    config = DataConfig(kind=DataKind.TOKEN_ARRAYS, path=tmp_path / "in")
    words = [sys.executable, "-c", absent, *command(config, tmp_path / "a.txt", 4, (), tmp_path / "out")[3:]]
    assert run(words).returncode == 0
    config = DataConfig(kind=DataKind.TEXT_FOLDER, path=tmp_path)
    words = [sys.executable, "-c", absent, *command(config, tmp_path / "a.txt", 4, (), tmp_path / "other")[3:]]
    done = run(words)
    assert done.returncode == 2
    assert done.stderr == "edge_sdk.prepare: text needs the tokenizers library: pip install 'fedpeat[text]'\n"


@pytest.mark.parametrize(
    ("damage", "reason", "complaint"),
    [
        ("text", "bad-data", "is not UTF-8 text"),
        ("tokenizer", "bad-artifact", "is no tokenizer that tokenizers"),
        ("folder", "bad-data", "has no .txt file"),
    ],
)
def test_the_process_says_why_not(
    tmp_path: pathlib.Path, tokenizer: pathlib.Path, damage: str, reason: str, complaint: str
) -> None:
    """Status 2, one line for people and one for the agent, and nothing left behind."""
    texts, broken = tmp_path / "texts", tmp_path / "tokenizer.json"
    texts.mkdir()
    broken.write_bytes(b"{}" if damage == "tokenizer" else tokenizer.read_bytes())
    if damage != "folder":
        (texts / "a.txt").write_bytes(b"\xff" if damage == "text" else b"to be")
    done = run(text_command(tmp_path, broken, texts))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    said = json.loads(done.stdout)
    assert (said["event"], said["reason"]) == ("failed", reason)
    assert {entry.name for entry in tmp_path.iterdir()} == {"texts", "tokenizer.json"}


def test_an_interrupt_leaves_nothing_behind(tmp_path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """Ctrl-C in the middle: status 130, no word, no folder."""
    texts = tmp_path / "texts"
    texts.mkdir()
    with (texts / "a.txt").open("w") as file:
        for _ in range(200):
            file.write("to be or not\n" * 10_000)
    process = subprocess.Popen(text_command(tmp_path, tokenizer, texts), stderr=subprocess.PIPE)
    deadline_s = time.monotonic() + 20
    while not (tmp_path / ".out.making").exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["texts"]


def test_text_is_read_in_little_memory(tmp_path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """Ten times the text takes less than 8 MB more."""
    peaks = []
    for size in (10_000, 100_000):
        texts = tmp_path / str(size)
        texts.mkdir()
        (texts / "a.txt").write_text("to be or not\n" * size)
        done = run([*text_command(tmp_path, tokenizer, texts)])
        peaks.append(json.loads(done.stdout)["peak_bytes"])
    assert peaks[1] - peaks[0] < 8e6
