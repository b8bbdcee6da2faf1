"""An adapter that devices trained -> a PEFT checkpoint of the full model, proved by loading it again."""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import AdapterRequest, set_adapter
from export.artifact import new_folder
from export.errors import ExportError, ParityError
from export.folder import read_manifest
from export.foundation import Foundation, first_line, open_same_foundation, quiet
from export.inserted import note, restore
from export.parity import draw_batch, torch_loss
from export.program import Adapted, adapt
from export.progress import Progress, Report, silent
from export.sparse import add_densely

TOLERANCE = (
    1e-6  # of the loss after reloading: the same numbers in the same order, so this allows for nothing but rounding
)


def plug_in(
    model: pathlib.Path,
    manifest_path: pathlib.Path,
    adapter: pathlib.Path,
    out: pathlib.Path,
    report: Report = silent,
) -> float:
    """Write the PEFT checkpoint `out`; returns the loss of a drawn batch, equal before saving and after reloading.

    `adapter` is a tensor file with some or all of the adapter's tensors by global name; those it lacks (layers that no
    device trained) keep the starting values that the artifact beside `manifest_path` names.

    Raises:
        ExportError: a file is missing, or model, manifest and adapter do not belong together.
        ParityError: the checkpoint, loaded again, is another model.
    """
    if out.exists():
        msg = f"{out} exists: give a folder that does not"
        raise ExportError(msg)
    manifest = read_manifest(manifest_path)
    report(Progress("load", "", 0, 3))
    adapted = with_adapter(model, manifest_path, manifest, adapter)
    with new_folder(out) as folder:
        report(Progress("save", "", 1, 3))
        _save(adapted, folder)
        report(Progress("load again", "", 2, 3))
        return _prove(adapted, folder)


def with_adapter(
    model: pathlib.Path, manifest_path: pathlib.Path, manifest: Manifest, adapter: pathlib.Path | None
) -> Adapted:
    """The full model with the manifest's adapter, at its starting values where `adapter` has no others.

    Raises ExportError.
    """
    foundation = open_same_foundation(model, manifest)
    adapted = adapt(foundation, AdapterRequest.of(manifest.adapter), seed=0)
    initial = manifest.files[manifest.adapter.initial]
    set_adapter(adapted.parameters, _read_initial(BlobStore(manifest_path.parent), initial))
    if adapter is not None:
        set_adapter(adapted.parameters, _read(adapter))
    return adapted


def load_plugged(
    model: pathlib.Path, manifest_path: pathlib.Path, adapter: pathlib.Path | None, checkpoint: pathlib.Path | None
) -> PeftModel:
    """The full model with the PEFT `checkpoint`, else with `adapter`, else as training starts. Raises ExportError."""
    manifest = read_manifest(manifest_path)
    if checkpoint is None:
        return with_adapter(model, manifest_path, manifest, adapter).peft_model
    foundation = open_same_foundation(model, manifest)
    return reload(foundation, checkpoint)


def _save(adapted: Adapted, folder: pathlib.Path) -> None:
    try:
        with quiet():
            adapted.peft_model.save_pretrained(str(folder))
        note(folder, adapted.base)
    except SafetensorError as error:  # a full disk, among others
        msg = f"cannot write the checkpoint: {first_line(error)}"
        raise ExportError(msg) from error


def _read(path: pathlib.Path) -> dict[str, Array]:
    try:
        found = read_tensors(path)
    except (OSError, WireError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error)
        msg = f"cannot read the adapter {path}: {why}"
        raise ExportError(msg) from error
    if wrong := [name for name, array in found.items() if not np.isfinite(array).all()]:
        msg = f"the adapter {path} has values that are not finite, in {wrong[0]}"
        raise ExportError(msg)
    return found


def _read_initial(store: BlobStore, initial: Blob) -> dict[str, Array]:
    try:
        store.verify(initial)
    except (OSError, WireError) as error:
        msg = f"the adapter's starting values in {store.folder} are missing or damaged; export it again"
        raise ExportError(msg) from error
    return _read(store.path(initial.sha256))


def _prove(adapted: Adapted, folder: pathlib.Path) -> float:
    """Load the checkpoint onto a fresh model and compare the loss of one batch. Raises ParityError."""
    spec = adapted.foundation.spec
    batch = draw_batch(adapted.foundation, seed=0)
    reloaded = reload(adapted.foundation, folder)
    with torch.no_grad():
        saved, loaded = (torch_loss(m, spec.task, batch).item() for m in (adapted.peft_model, reloaded))
    if not abs(saved - loaded) <= TOLERANCE * abs(saved):
        msg = f"the checkpoint gives a loss of {loaded}, the model that it was saved from {saved}"
        raise ParityError(msg)
    return loaded


def reload(foundation: Foundation, folder: pathlib.Path, *, trainable: bool = False) -> PeftModel:
    """The model with a PEFT checkpoint on it; to peft, a prefix is never `trainable`. Raises ExportError when the
    folder is none.
    """
    base = foundation.load()
    with quiet():
        try:
            restore(folder, base)
            model: PeftModel = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
            add_densely(model)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            msg = f"cannot load the PEFT checkpoint {folder}: {first_line(error)}"
            raise ExportError(msg) from error
    return model.eval()
