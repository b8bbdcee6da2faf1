"""What there is to say about an artifact, as rich tables: levels and sizes, costs, gradient errors."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.manifest import Manifest, decode_manifest
from export.errors import ExportError

if TYPE_CHECKING:
    from export.parity import Parity

MB = 1e6


def read_artifact(folder: pathlib.Path) -> dict[str, Manifest]:
    """The manifests of an artifact folder by level, largest level first. Raises ExportError, DecodeError."""
    found = [decode_manifest(path.read_bytes()) for path in sorted(folder.glob("*.manifest"))]
    if not found:
        msg = f"{folder} is no artifact: it has no *.manifest"
        raise ExportError(msg)
    found.sort(key=lambda manifest: (-_size_bytes(set(manifest.files.values())), manifest.level.name))
    return {manifest.level.name: manifest for manifest in found}


def check_artifact(folder: pathlib.Path, model: pathlib.Path) -> list[Parity]:
    """Check the gradients of every level against the model's. Raises ExportError, DecodeError."""
    from export.foundation import open_foundation
    from export.parity import check_parity
    from export.plug_in import check_same_model, request_of
    from export.program import adapt

    manifests = read_artifact(folder)
    results = []
    for manifest in manifests.values():
        foundation = open_foundation(model, manifest.model.task, manifest.model.labels)
        check_same_model(foundation, manifest)
        adapted = adapt(foundation, request_of(manifest), seed=0)
        results.append(check_parity(adapted, BlobStore(folder), manifest))
    return results


def level_table(manifests: Mapping[str, Manifest]) -> Table:
    """One row per level; bytes that other levels of the folder have too are counted as shared."""
    users = Counter(blob for manifest in manifests.values() for blob in set(manifest.files.values()))
    table = Table(title="Emulator levels", title_justify="left")
    for heading in ("level", "bits", "layers", "train", "files", "MB", "shared MB", "needs MB"):
        table.add_column(heading, justify="left" if heading == "level" else "right")
    for name, manifest in manifests.items():
        blobs = set(manifest.files.values())
        shared = {blob for blob in blobs if users[blob] > 1}
        table.add_row(
            name,
            str(manifest.level.bits),
            f"{len(manifest.level.layers)} of {manifest.model.layers}",
            str(len(manifest.level.trained_layers)),
            str(len(manifest.files)),
            f"{_size_bytes(blobs) / MB:.1f}",
            f"{_size_bytes(shared) / MB:.1f}",
            f"{manifest.needs_bytes / MB:.0f}" if manifest.needs_bytes else "not measured",
        )
    table.caption = f"{_size_bytes(set(users)) / MB:.1f} MB on disk in {len(users)} files"
    return table


def cost_table(manifest: Manifest) -> Table:
    """One row per measured cost."""
    table = Table(title=f"Costs of {manifest.level.name}, as measured at export", title_justify="left")
    for heading in ("structure", "direction", "batch x tokens", "peak MB", "ms"):
        table.add_column(heading, justify="left" if heading in ("structure", "direction") else "right")
    for cost in manifest.costs:
        shape = f"{cost.batch} x {cost.tokens}"
        peak, time = f"{cost.peak_bytes / MB:.1f}", f"{cost.time_ms:.1f}"
        table.add_row(cost.structure, cost.direction.value, shape, peak, time)
    return table


def parity_table(results: Sequence[Parity]) -> Table:
    """One row per level and trained input: the largest relative error over all segments."""
    from export.parity import BOUND

    table = Table(title=f"Largest relative error against torch, allowed {BOUND:.0e}", title_justify="left")
    for heading in ("level", "tensor", "error"):
        table.add_column(heading, justify="right" if heading == "error" else "left")
    for result in results:
        rows = {"loss": result.loss, **{f"gradient of {name}": error for name, error in result.gradients.items()}}
        for name, error in rows.items():
            table.add_row(result.level, name, f"{error:.1e}", style=None if error <= BOUND else "red")
    return table


def _size_bytes(blobs: set[Blob]) -> int:
    return sum(blob.size_bytes for blob in blobs)
