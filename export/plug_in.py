"""An adapter that devices trained -> a PEFT checkpoint of the full model, proved by loading it again."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import torch
from peft import PeftModel

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import Manifest, decode_manifest
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import AdapterRequest, set_adapter
from export.errors import ExportError, ParityError
from export.foundation import Foundation, first_line, open_foundation, quiet
from export.parity import draw_batch, torch_loss
from export.program import Adapted, adapt

TOLERANCE = (
    1e-6  # of the loss after reloading: the same numbers in the same order, so this allows for nothing but rounding
)


def plug_in(model: pathlib.Path, manifest_path: pathlib.Path, adapter: pathlib.Path, out: pathlib.Path) -> float:
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
    adapted = with_adapter(model, manifest_path, manifest, adapter)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        with quiet():
            adapted.peft_model.save_pretrained(str(folder))
        loss = _prove(adapted, folder)
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing is there any more if it was renamed
    return loss


def with_adapter(
    model: pathlib.Path, manifest_path: pathlib.Path, manifest: Manifest, adapter: pathlib.Path | None
) -> Adapted:
    """The full model with the manifest's adapter, at its starting values where `adapter` has no others.

    Raises ExportError.
    """
    foundation = open_foundation(model, manifest.model.task, manifest.model.labels)
    check_same_model(foundation, manifest)
    adapted = adapt(foundation, request_of(manifest), seed=0)
    initial = BlobStore(manifest_path.parent).path(manifest.files[manifest.adapter.initial].sha256)
    set_adapter(adapted.parameters, _read(initial))
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
    foundation = open_foundation(model, manifest.model.task, manifest.model.labels)
    check_same_model(foundation, manifest)
    return reload(foundation, checkpoint)


def request_of(manifest: Manifest) -> AdapterRequest:
    """The adapter that the manifest describes."""
    spec = manifest.adapter
    return AdapterRequest(spec.kind, spec.rank, spec.alpha, spec.targets)


def read_manifest(path: pathlib.Path) -> Manifest:
    """Read one manifest file. Raises ExportError."""
    try:
        return decode_manifest(path.read_bytes())
    except (OSError, WireError) as error:
        msg = f"cannot read the manifest {path}: {first_line(error)}"
        raise ExportError(msg) from error


def check_same_model(foundation: Foundation, manifest: Manifest) -> None:
    """Raise ExportError when the model's sizes are not those that the artifact was made of."""
    if foundation.spec != manifest.model:
        msg = f"{foundation.folder} is not the model that level {manifest.level.name} was made of: {foundation.spec}"
        raise ExportError(msg)


def _read(path: pathlib.Path) -> dict[str, Array]:
    try:
        return read_tensors(path)
    except (OSError, WireError) as error:
        msg = f"cannot read the adapter {path}: {first_line(error)}"
        raise ExportError(msg) from error


def _prove(adapted: Adapted, folder: pathlib.Path) -> float:
    """Load the checkpoint onto a fresh model and compare the loss of one batch. Raises ParityError."""
    spec = adapted.foundation.spec
    batch = draw_batch(spec, seed=0)
    reloaded = reload(adapted.foundation, folder)
    with torch.no_grad():
        saved, loaded = (torch_loss(m, spec.task, batch).item() for m in (adapted.peft_model, reloaded))
    if not abs(saved - loaded) <= TOLERANCE * abs(saved):
        msg = f"the checkpoint gives a loss of {loaded}, the model that it was saved from {saved}"
        raise ParityError(msg)
    return loaded


def reload(foundation: Foundation, folder: pathlib.Path) -> PeftModel:
    """The model with a PEFT checkpoint on it. Raises ExportError when the folder is none."""
    with quiet():
        try:
            model: PeftModel = PeftModel.from_pretrained(foundation.load(), str(folder))
        except (OSError, ValueError, RuntimeError) as error:
            msg = f"cannot load the PEFT checkpoint {folder}: {first_line(error)}"
            raise ExportError(msg) from error
    return model.eval()
