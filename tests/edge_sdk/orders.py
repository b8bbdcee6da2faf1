"""Orders for real workers: a device's store with a tiny artifact in it, private rows, and a task."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.data import write_image_folder, write_token_folder
from edge_sdk.engine.artifact import Artifact, artifact_in, choose_manifest
from edge_sdk.order import WorkerOrder
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.tensors import Array, write_tensors
from tests.edge_sdk.samples import MB, TOKENS, make_task

ROWS = 40
PLENTY_BYTES = 400 * MB


def make_store(folder: pathlib.Path, artifact: pathlib.Path) -> tuple[BlobStore, Blob]:
    """The store of a device that has fetched everything of an artifact, and the manifest in it."""
    store = BlobStore(folder / "store")
    shutil.copytree(artifact / "blobs", store.folder / "blobs")
    return store, store.put(choose_manifest(artifact, None).read_bytes())


def put_adapter(artifact: Artifact, changes: Mapping[str, Array]) -> Blob:
    """The artifact's initial adapter with some tensors replaced, in the store."""
    path = artifact.store.folder / "adapter"
    write_tensors(path, {**artifact.initial_adapter(), **changes})
    return artifact.store.adopt(path)


def make_rows(folder: pathlib.Path, artifact: Artifact, tokens: int) -> pathlib.Path:
    """Private rows: few different tokens, so that there is something to learn; images as bright as their label says."""
    random, path, model = np.random.default_rng(0), folder / "tokens", artifact.manifest.model
    if model.image is not None:
        classes, levels = np.arange(ROWS) % len(model.labels), 255 // len(model.labels)
        noise = random.integers(0, levels, (ROWS, *model.image.shape))
        write_image_folder(path, classes[:, None, None, None] * levels + noise, classes)
        return path
    ids = random.integers(4, 12, (ROWS, tokens))
    labels = random.integers(0, len(artifact.manifest.model.labels), ROWS) if artifact.manifest.model.labels else None
    write_token_folder(path, ids, random.integers(tokens // 2, tokens + 1, ROWS), labels)
    return path


def make_order(
    folder: pathlib.Path, artifact: pathlib.Path, budget_bytes: int = PLENTY_BYTES, **changes: Any
) -> WorkerOrder:
    """A task on that artifact; `changes` go to the task."""
    store, manifest = make_store(folder, artifact)
    stored = artifact_in(store, manifest)
    given = {"artifact": manifest, "adapter": stored.manifest.files[stored.manifest.adapter.initial]}
    tokens = stored.manifest.model.row_tokens(TOKENS)
    task = make_task(**{**given, "steps": 4, "batch": 4, "tokens": tokens, "learning_rate": 1e-2, **changes})
    return WorkerOrder(
        device="pi",
        task=task,
        store=str(store.folder),
        data=str(make_rows(folder, stored, task.tokens)),
        delta=str(folder / "delta"),
        prepare=(),
        budget_bytes=budget_bytes,
        correction=1.0,
        threads=1,
        held_aside_rows=8,
    )
