"""Archives are checked before they are opened, and stay inside their folder."""

from __future__ import annotations

import hashlib
import io
import pathlib
import tarfile
import zipfile

import pytest

from benchmarks.fetch import FetchError, extract, verify


def make_archive(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """A wheel, a .tgz or a .deb with `files`, by the name of `path`."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, data in files.items():
                wheel.writestr(name, data)
        return path
    is_deb, buffer = path.suffix == ".deb", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz" if is_deb else "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}" if is_deb else name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path.write_bytes(ar({"debian-binary": b"2.0", "data.tar.xz": buffer.getvalue()}) if is_deb else buffer.getvalue())
    return path


def ar(members: dict[str, bytes]) -> bytes:
    """An `ar` archive, as dpkg writes it: a header of 60 bytes each, and a byte behind what is of odd length."""
    heads = {name: f"{name:16}{'0':12}{'0':6}{'0':6}{'100644':8}{len(data):<10}`\n" for name, data in members.items()}
    parts = (heads[name].encode() + data + b"\n" * (len(data) % 2) for name, data in members.items())
    return b"!<arch>\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["a.whl", "a.tgz", "a.deb"])
def test_extract_takes_what_is_under_the_prefix(tmp_path: pathlib.Path, kind: str) -> None:
    """Files under the prefix are written without it, folders and all; the others are left in the archive."""
    archive = make_archive(tmp_path / kind, {"p/data/a.txt": b"A", "p/data/sub/b.txt": b"B", "p/setup.py": b"no"})
    written = extract(archive, "p/data/", tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in written} == {
        "a.txt": b"A",
        "sub/b.txt": b"B",
    }
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("kind", ["a.whl", "a.tgz", "a.deb"])
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


def test_a_deb_without_data_is_refused(tmp_path: pathlib.Path) -> None:
    """An archive that dpkg would not unpack either ends with a line."""
    archive = tmp_path / "a.deb"
    archive.write_bytes(ar({"debian-binary": b"2.0"}))
    with pytest.raises(FetchError, match="is no Debian package"):
        extract(archive, "p/", tmp_path / "out")


def test_verify_compares_the_hash(tmp_path: pathlib.Path) -> None:
    """An archive with the pinned SHA-256 passes; one changed byte is refused, and the message names the file."""
    archive = tmp_path / "a.whl"
    archive.write_bytes(b"published")
    verify(archive, hashlib.sha256(b"published").hexdigest())
    with pytest.raises(FetchError, match=r"a\.whl has SHA-256"):
        verify(archive, hashlib.sha256(b"publisheD").hexdigest())
