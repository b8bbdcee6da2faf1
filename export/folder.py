"""An artifact folder, read back: its manifests, and the files that they promise. Loads no torch."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import Manifest, decode_manifest
from export.errors import ExportError


def read_manifest(path: pathlib.Path) -> Manifest:
    """Read one manifest file. Raises ExportError."""
    try:
        return decode_manifest(path.read_bytes())
    except (OSError, WireError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        msg = f"cannot read the manifest {path}: {why}"
        raise ExportError(msg) from error


def read_artifact(folder: pathlib.Path) -> dict[str, Manifest]:
    """The manifests of an artifact folder by level, largest level first. Raises ExportError."""
    if not folder.is_dir():
        msg = f"there is no artifact folder {folder}"
        raise ExportError(msg)
    found = [read_manifest(path) for path in sorted(folder.glob("*.manifest"))]
    if not found:
        msg = f"{folder} is no artifact: it has no *.manifest"
        raise ExportError(msg)
    found.sort(key=lambda manifest: (-size_bytes(manifest.files.values()), manifest.level.name))
    return {manifest.level.name: manifest for manifest in found}


def verify_files(folder: pathlib.Path, manifests: Iterable[Manifest]) -> None:
    """Read every file that the manifests name. Raises ExportError naming the first that is missing or damaged."""
    places = {blob: f"{name} of level {m.level.name}" for m in manifests for name, blob in m.files.items()}
    for blob, place in places.items():
        if why := _complaint(BlobStore(folder), blob):
            msg = f"{folder} is no whole artifact: {place} {why}; export it again"
            raise ExportError(msg)


def _complaint(store: BlobStore, blob: Blob) -> str:
    try:
        store.verify(blob)
    except FileNotFoundError:
        return "is missing"
    except WireError:
        return "is damaged"
    return ""


def require_usable(out: pathlib.Path, besides: Sequence[pathlib.Path] = ()) -> None:
    """Raise ExportError unless `out` is absent, empty or an artifact; the files `besides` do not count."""
    if not out.exists():
        return
    if not out.is_dir():
        msg = f"{out} is a file: give a folder"
        raise ExportError(msg)
    known = {path.resolve() for path in besides}
    others = sorted(path.name for path in out.iterdir() if path.resolve() not in known)
    if others and not any(name.endswith(".manifest") for name in others):
        msg = f"{out} is no artifact and not empty, it has {others[0]}: give a folder that is empty or does not exist"
        raise ExportError(msg)


def size_bytes(blobs: Iterable[Blob]) -> int:
    """Bytes of the blobs, equal ones counted once."""
    return sum(blob.size_bytes for blob in set(blobs))
