"""An opened artifact: its manifest, and where its verified files lie."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.errors import ArtifactError, ConfigError
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest
from edge_sdk.wire.tensors import Array, TensorFile

SUFFIX = ".manifest"


@dataclass(frozen=True, slots=True)
class Artifact:
    """Everything needed to train one emulator level."""

    manifest: Manifest
    store: BlobStore

    def path(self, name: str) -> pathlib.Path:
        """Where the file that the manifest calls `name` lies."""
        return self.store.path(self.manifest.files[name].sha256)

    def largest_path(self) -> pathlib.Path:
        """Where its largest file lies: what a medium's speed is measured on."""
        return self.store.path(self.manifest.largest_blob().sha256)

    def row_tokens(self, asked: int) -> int:
        """Tokens of the longest row, see ModelSpec. Raises ConfigError for longer rows than the model reads."""
        model = self.manifest.model
        if not model.reads(tokens := model.row_tokens(asked)):
            msg = f"tokens is {tokens}; this model reads at most {model.max_tokens}"
            raise ConfigError(msg)
        return tokens

    def tensors(self, name: str) -> TensorFile:
        """A tensor file, mapped. Raises DecodeError."""
        return TensorFile(self.path(name))

    def initial_adapter(self) -> dict[str, Array]:
        """The adapter's starting values for this level, by global name. Raises ArtifactError."""
        return read_adapter(self.path(self.manifest.adapter.initial), self.manifest)


def open_artifact(path: pathlib.Path | str, level: str | None = None) -> Artifact:
    """Open an artifact folder or one `.manifest` in it, and verify every byte that its manifest names.

    Raises:
        ArtifactError: there is none, its manifest is damaged, the folder has several levels and none was chosen, or a
            file is missing.
        WireError: a file differs from what its manifest promises.
    """
    chosen = choose_manifest(pathlib.Path(path), level)
    with chosen.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    try:
        artifact = Artifact(decode_manifest(data), BlobStore(chosen.parent))
    except WireError as error:
        msg = f"{chosen} is no manifest, or damaged; export it again: {error}"
        raise ArtifactError(msg) from error
    verify(artifact)
    return artifact


def artifact_in(store: BlobStore, manifest: Blob) -> Artifact:
    """The artifact that a task names, from a device's store. Raises ArtifactError, WireError."""
    try:
        artifact = Artifact(decode_manifest(store.read(manifest)), store)
    except FileNotFoundError as error:
        msg = f"artifact {manifest.sha256[:12]} is not in the store"
        raise ArtifactError(msg) from error
    verify(artifact)
    return artifact


def adapter_in(store: BlobStore, adapter: Blob, manifest: Manifest) -> dict[str, Array]:
    """The adapter that a task begins with, cut to the manifest's level. Raises ArtifactError, WireError."""
    if not store.has(adapter):
        msg = f"adapter {adapter.sha256[:12]} is not in the store"
        raise ArtifactError(msg)
    store.verify(adapter)
    return read_adapter(store.path(adapter.sha256), manifest)


def verify(artifact: Artifact) -> None:
    """Read every file through: an SD card may have lied about what it kept. Raises ArtifactError, IntegrityError."""
    files = artifact.manifest.files
    if missing := [name for name, blob in files.items() if not artifact.store.has(blob)]:
        msg = f"the artifact lacks {', '.join(missing[:3])} ({len(missing)} files); fetch or export it again"
        raise ArtifactError(msg)
    for blob in set(files.values()):
        artifact.store.verify(blob)


def read_adapter(path: pathlib.Path, manifest: Manifest) -> dict[str, Array]:
    """`select_adapter` of a file: a level of few layers reads its own alone. Raises ArtifactError, DecodeError."""
    with TensorFile(path) as file:
        return {name: np.array(array) for name, array in select_adapter(file, manifest).items()}


def select_adapter(values: Mapping[str, Array], manifest: Manifest) -> dict[str, Array]:
    """Of an adapter of the full model, the tensors that this level has, checked against its shapes.

    Raises ArtifactError for one that is missing, has another shape or type, or is not finite.
    """
    chosen = {}
    for name, shape in manifest.adapter_shapes().items():
        array = values.get(name)
        if array is None or array.shape != shape or array.dtype.name != "float32":
            found = "nothing" if array is None else f"{array.dtype.name} {array.shape}"
            msg = f"adapter tensor {name} must be float32 {shape}, the adapter has {found}"
            raise ArtifactError(msg)
        if not np.isfinite(array).all():
            msg = f"adapter tensor {name} has values that are not finite"
            raise ArtifactError(msg)
        chosen[name] = array
    return chosen


def choose_manifest(path: pathlib.Path, level: str | None) -> pathlib.Path:
    """The manifest that `path`, a folder or a manifest, and `level` mean. Raises ArtifactError."""
    if path.is_file():
        return path
    found = {candidate.name.removesuffix(SUFFIX): candidate for candidate in sorted(path.glob(f"*{SUFFIX}"))}
    if not found:
        msg = f"{path} is no artifact: neither a manifest nor a folder with one"
        raise ArtifactError(msg)
    if level is None and len(found) > 1:
        msg = f"{path} has the levels {', '.join(found)}; choose one"
        raise ArtifactError(msg)
    if level is not None and level not in found:
        msg = f"{path} has no level {level!r}; it has {', '.join(found)}"
        raise ArtifactError(msg)
    return found[level] if level is not None else next(iter(found.values()))
