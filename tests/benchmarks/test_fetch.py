"""Archives are checked before they are opened, stay inside their folder, and arrive whole or not at all."""

from __future__ import annotations

import hashlib
import io
import pathlib
import tarfile
import zipfile

import pytest

from benchmarks.fetch import FetchError, cache_folder, cached, extract, verify


def make_archive(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """A wheel or a .tgz with `files`, by the name of `path`."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, data in files.items():
                wheel.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["a.whl", "a.tgz"])
def test_extract_takes_what_is_under_the_prefix(tmp_path: pathlib.Path, kind: str) -> None:
    """Files under the prefix are written without it, folders and all; the others are left in the archive."""
    archive = make_archive(tmp_path / kind, {"p/data/a.txt": b"A", "p/data/sub/b.txt": b"B", "p/setup.py": b"no"})
    written = extract(archive, "p/data/", tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in written} == {
        "a.txt": b"A",
        "sub/b.txt": b"B",
    }
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("kind", ["a.whl", "a.tgz"])
@pytest.mark.parametrize("name", ["p/../../evil", "p//etc/evil", "p/sub/../../../evil", "p/..\\evil"])
def test_extract_refuses_to_leave_its_folder(tmp_path: pathlib.Path, kind: str, name: str) -> None:
    """A name that climbs or is absolute is refused, and nothing is written outside the folder."""
    archive = make_archive(tmp_path / kind, {name: b"evil"})
    with pytest.raises(FetchError, match="would leave its folder"):
        extract(archive, "p/", tmp_path / "deep" / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_extract_makes_no_links(tmp_path: pathlib.Path) -> None:
    """A link in a tarball is not made: a later member could be written through it."""
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("p/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(FetchError, match="holds nothing under p/"):
        extract(path, "p/", tmp_path / "out")


def test_verify_compares_the_hash(tmp_path: pathlib.Path) -> None:
    """An archive with the pinned SHA-256 passes; one changed byte is refused, and the message names the file."""
    archive = tmp_path / "a.whl"
    archive.write_bytes(b"published")
    verify(archive, hashlib.sha256(b"published").hexdigest())
    with pytest.raises(FetchError, match=r"a\.whl has SHA-256"):
        verify(archive, hashlib.sha256(b"publisheD").hexdigest())


def test_cached_builds_once(tmp_path: pathlib.Path) -> None:
    """What is in the cache is not built again."""
    builds = []

    def build(folder: pathlib.Path) -> None:
        builds.append(folder)
        (folder / "file").write_text("whole")

    for _ in range(2):
        assert (cached(tmp_path / "cache" / "asset", build) / "file").read_text() == "whole"
    assert len(builds) == 1


def test_cached_leaves_nothing_of_a_failed_build(tmp_path: pathlib.Path) -> None:
    """A build that is interrupted leaves no folder behind, half-made or temporary."""

    def build(folder: pathlib.Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "asset", build)
    assert list(tmp_path.iterdir()) == []


def test_cached_gives_way_to_a_faster_process(tmp_path: pathlib.Path) -> None:
    """Where another process finished the same folder first, its work stands."""

    def build(folder: pathlib.Path) -> None:
        (folder / "file").write_text("slow")
        (tmp_path / "asset").mkdir()
        (tmp_path / "asset" / "file").write_text("fast")

    assert (cached(tmp_path / "asset", build) / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["asset"]


@pytest.mark.parametrize(("base", "expected"), [("/x/cache", "/x/cache/fedpeat"), ("relative", None), ("", None)])
def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, base: str, expected: str | None) -> None:
    """An absolute XDG_CACHE_HOME is used; a relative or empty one counts as unset."""
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == pathlib.Path(expected or "/home/somebody/.cache/fedpeat")
