"""From the configuration to an artifact folder, by `python -m export.cli build`, once.

The request is a JSON file. Its digest, with a fingerprint of the model's files, is recorded beside the artifact when
the build has ended well: a daemon that starts again with the same request builds nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.aggregate.lora import at_rank
from coordinator.config import Config
from coordinator.errors import ConfigError, JobError
from coordinator.jobs import Jobs, Line
from coordinator.places import artifact_folder
from coordinator.policy.types import Level
from edge_sdk.wire.blobs import Blob, BlobStore, written_atomically
from edge_sdk.wire.codecs import CODECS
from edge_sdk.wire.costs import step_s
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import Manifest, decode_manifest
from edge_sdk.wire.tensors import read_tensors

RECORD = "built.json"


@dataclass(frozen=True, slots=True)
class BuiltLevel:
    """One emulator level: its manifest, the manifest's own blob, and where the manifest lies."""

    manifest: Manifest
    blob: Blob
    path: pathlib.Path

    def level(self, batch: int, tokens: int, quality: float = 1.0) -> Level:
        """As a policy sees it, for tasks of steps of `batch` rows of `tokens` tokens."""
        manifest, spec = self.manifest, self.manifest.level
        numbers = [math.prod(shape) for shape in manifest.trained_shapes().values()]
        return Level(
            spec.name,
            manifest.needs_bytes,
            size_bytes=sum(blob.size_bytes for blob in set(manifest.files.values())),
            model=repr((dataclasses.replace(spec, name="any", trained_layers=()), manifest.adapter.rank)),
            trained_layers=len(spec.trained_layers),
            upload_bytes={codec: sum(map(CODECS[codec].size_bytes, numbers)) for codec in CODECS},
            files={blob.sha256: blob.size_bytes for blob in manifest.files.values()},
            step_s=step_s(manifest, batch, tokens),
            quality=quality,
        )


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was built: `levels` best first; `full` has every layer at the highest rank: its adapter is the whole one."""

    store: BlobStore
    levels: Mapping[str, BuiltLevel]
    full: BuiltLevel

    def lower_ranks(self) -> dict[str, int]:
        """By level the adapter's rank, where it is lower than that of the whole adapter."""
        ranks = {name: built.manifest.adapter.rank for name, built in self.levels.items()}
        return {name: rank for name, rank in ranks.items() if rank < self.full.manifest.adapter.rank}

    def initial_adapter(self) -> Blob:
        """The adapter's starting values, for all layers."""
        manifest = self.full.manifest
        return manifest.files[manifest.adapter.initial]


def request_of(config: Config) -> dict[str, Any]:
    """What `export.cli build` is asked for."""
    adapter, model, public = config.adapter, config.model, config.public
    return {
        "model": str(model.dir),
        "task": model.task.value,
        "out": str(artifact_folder(config)),
        "adapter": {
            "kind": adapter.kind,
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "targets": list(adapter.targets),
            "last": adapter.last,
            "first": adapter.first,
            "length": adapter.length,
        },
        "levels": [
            {
                "name": level.name,
                "bits": level.bits,
                "layers": level.layers or None,
                "train_last": level.train_last or None,
                "rank": level.rank or None,
                "drop": level.drop.value,
                "ffn": level.ffn,
                "svd": list(level.svd),
                "svd_rank": level.svd_rank,
                "refit": level.refit.value,
                "distill_steps": level.distill_steps,
                "distill_rate": level.distill_rate or None,
                "tensors_mb": level.tensors_mb or None,
            }
            for level in config.levels
        ],
        "labels": list(model.labels),
        "tokens": config.training.tokens,
        "parity": True,
        "seed": config.training.seed,
        "public": public and {"path": str(public.path), "text_column": public.text_column, "rows": public.rows},
        "start": adapter.start and str(adapter.start),
    }


def is_built(config: Config) -> bool:
    """Whether the artifact folder already holds what the configuration asks for, with every file in place."""
    path = artifact_folder(config) / RECORD
    if not path.is_file() or json.loads(path.read_text("utf-8")) != record_of(config):
        return False
    try:
        artifact = load_artifact(config)
    except (OSError, WireError, JobError):
        return False
    return all(artifact.store.has(blob) for level in artifact.levels.values() for blob in level.manifest.files.values())


def require_folders(config: Config) -> None:
    """Raise ConfigError where there is no model folder, or no checkpoint folder to start from."""
    for key, folder in (("model.dir", config.model.dir), ("adapter.start", config.adapter.start)):
        if folder is not None and not folder.is_dir():
            msg = f"{key} is {folder}, which is no folder"
            raise ConfigError(msg)


def build(config: Config, jobs: Jobs, say: Callable[[Line], None]) -> Artifact:
    """Build what is not built yet; for use within a job. Raises JobError, ConfigError, OSError."""
    require_folders(config)
    if not is_built(config):
        folder = artifact_folder(config)
        record = record_of(config)  # of the model as it is before the build, not after
        request = folder / "request.json"
        write_json(request, request_of(config))
        jobs.process([sys.executable, "-m", "export.cli", "build", str(request)], say)
        write_json(folder / RECORD, record)
    return load_artifact(config)


def load_artifact(config: Config) -> Artifact:
    """The artifact on disk. Raises OSError, WireError, JobError when it is not what the configuration asks for."""
    folder = artifact_folder(config)
    store = BlobStore(folder)
    levels = {level.name: _load_level(folder, store, level.name) for level in config.levels}
    highest = max(built.manifest.adapter.rank for built in levels.values())
    whole = [built for built in levels.values() if _is_whole(built.manifest, highest)]
    if not whole:
        msg = (
            "no level keeps all layers at the adapter's own rank, and its starting values come from one that does: "
            "set layers = 0 and no rank in one"
        )
        raise JobError(msg)
    return Artifact(store, levels, whole[0])


def _is_whole(manifest: Manifest, rank: int) -> bool:
    return len(manifest.level.layers) == manifest.model.layers and manifest.adapter.rank == rank


def _load_level(folder: pathlib.Path, store: BlobStore, name: str) -> BuiltLevel:
    path = folder / f"{name}.manifest"
    data = path.read_bytes()
    manifest = decode_manifest(data)
    if manifest.level.name != name:
        msg = f"{path} is the manifest of level {manifest.level.name}"
        raise JobError(msg)
    return BuiltLevel(manifest, store.put(data, "manifest"), path)


def check_initial(artifact: Artifact) -> None:
    """Raise JobError unless the starting values have exactly the tensors that all levels together need."""
    initial = read_tensors(artifact.store.path(artifact.initial_adapter().sha256))
    for name, built in artifact.levels.items():
        shapes = {tensor: array.shape for tensor, array in at_rank(initial, built.manifest.adapter.rank).items()}
        for tensor, shape in built.manifest.adapter_shapes().items():
            if shapes.get(tensor) != shape:
                msg = f"level {name} needs the adapter tensor {tensor} {shape}, which the starting values lack"
                raise JobError(msg)


def record_of(config: Config) -> dict[str, Any]:
    """What is recorded beside a finished artifact: the digest of the request, and of all files that it is made of."""
    request = request_of(config)
    request.pop("out")
    made_of = (config.model.dir, config.public and config.public.path, config.adapter.start)
    text = json.dumps([request, [path and _fingerprint(path) for path in made_of]], sort_keys=True)
    return {"digest": hashlib.sha256(text.encode()).hexdigest()}


def _fingerprint(root: pathlib.Path) -> list[str]:
    """Name, size and time of a file, or of all files of a folder."""
    paths = sorted(root.rglob("*")) if root.is_dir() else [root] if root.exists() else []
    files = [(path, path.stat()) for path in paths if path.is_file()]
    return [f"{path.relative_to(root)} {found.st_size} {found.st_mtime_ns}" for path, found in files]


def write_json(path: pathlib.Path, value: object, step: str = "") -> None:
    """Write `value` as JSON, whole or not at all; `step` is as in `edge_sdk.wire.blobs`. Raises OSError."""
    with written_atomically(path, step) as file:
        file.write(json.dumps(value, indent=1).encode())
