"""An artifact that opens is whole and true; one that does not says what is wrong and what to do."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest

from edge_sdk.engine.artifact import Artifact, artifact_in, open_artifact, select_adapter
from edge_sdk.errors import ArtifactError
from edge_sdk.wire.blobs import BlobStore, blob_of, blob_of_file
from edge_sdk.wire.errors import IntegrityError
from edge_sdk.wire.manifest import encode_manifest
from tests.edge_sdk.engine.samples import random_adapter


@pytest.fixture
def folder(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of an artifact, to be damaged."""
    return pathlib.Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def test_folder_manifest_and_level_name_the_same(folder: pathlib.Path) -> None:
    """A folder of one level, its manifest, and the level's name: three ways to one artifact."""
    found = [open_artifact(folder), open_artifact(str(folder / "fp32.manifest")), open_artifact(folder, "fp32")]
    assert found[0] == found[1] == found[2]
    assert found[0].manifest.level.name == "fp32"


def test_several_levels_have_to_be_chosen_from(folder: pathlib.Path) -> None:
    """Nobody trains another level than was meant: without a choice, or with a wrong one, the levels are named."""
    shutil.copy(folder / "fp32.manifest", folder / "other.manifest")
    with pytest.raises(ArtifactError, match="has the levels fp32, other; choose one"):
        open_artifact(folder)
    with pytest.raises(ArtifactError, match="has no level 'int8'; it has fp32, other"):
        open_artifact(folder, "int8")
    assert open_artifact(folder, "other") == open_artifact(folder, "fp32")


def test_a_folder_without_a_manifest_is_none(tmp_path: pathlib.Path) -> None:
    """An empty folder, or no folder, is no artifact."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="is no artifact"):
            open_artifact(path)


def test_a_file_that_is_no_manifest_is_refused(folder: pathlib.Path) -> None:
    """A damaged manifest is said to be one, by its path and with what to do."""
    (folder / "fp32.manifest").write_bytes((folder / "fp32.manifest").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"fp32\.manifest is no manifest, or damaged; export it again"):
        open_artifact(folder)


def test_every_byte_is_verified(folder: pathlib.Path) -> None:
    """A byte flipped in any of the files is found before anything is trained."""
    for path in sorted((folder / "blobs").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(IntegrityError, match="does not match its name"):
            open_artifact(folder)
        path.write_bytes(whole)
    open_artifact(folder)


def test_missing_files_are_named(folder: pathlib.Path) -> None:
    """A file that is gone, or too short, is told by the manifest's name for it, and how many more there are."""
    names = {blob.sha256: name for name, blob in open_artifact(folder).manifest.files.items()}
    for path in sorted((folder / "blobs").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ArtifactError, match=rf"lacks {names[path.name]}.*\(1 files\)"):
            open_artifact(folder)
        path.write_bytes(whole)
    shutil.rmtree(folder / "blobs")
    with pytest.raises(ArtifactError, match=rf"\({len(names)} files\)"):
        open_artifact(folder)


def test_a_device_opens_what_a_task_names(folder: pathlib.Path) -> None:
    """In a store the manifest is a blob too; one that is not there, or lies, is refused."""
    store = BlobStore(folder)
    with pytest.raises(ArtifactError, match="is not in the store"):
        artifact_in(store, blob_of(b"absent"))
    blob = store.put((folder / "fp32.manifest").read_bytes())
    assert artifact_in(store, blob) == open_artifact(folder)
    store.path(blob.sha256).write_bytes(encode_manifest(open_artifact(folder).manifest) + b"\0")
    with pytest.raises(IntegrityError):
        artifact_in(store, blob)


def test_the_initial_adapter_changes_nothing_yet(llama: Artifact) -> None:
    """LoRA begins as the foundation model itself: every B is zero, no A is, all float32 of the manifest's shapes."""
    initial = llama.initial_adapter()
    assert {name: array.shape for name, array in initial.items()} == llama.manifest.adapter_shapes()
    for name, array in initial.items():
        assert array.dtype == np.float32
        assert array.flags.writeable
        assert array.any() == name.endswith("lora_A")


def test_an_adapter_of_the_full_model_is_cut_to_the_level(llama: Artifact) -> None:
    """What the level lacks is left out; what it has and the adapter lacks, or has otherwise, is named."""
    adapter = random_adapter(llama.manifest)
    chosen = select_adapter({**adapter, "block.99/self_attn.q_proj.lora_A": np.zeros(1)}, llama.manifest)
    assert chosen.keys() == adapter.keys()
    name = next(iter(adapter))
    for wrong, found in (
        (None, "nothing"),
        (adapter[name][:1], r"float32 \(1, 32\)"),
        (adapter[name].astype(np.float64), "float64"),
    ):
        changed = {key: array for key, array in {**adapter, name: wrong}.items() if array is not None}
        with pytest.raises(ArtifactError, match=f"adapter tensor {name} must be .*{found}"):
            select_adapter(changed, llama.manifest)


def test_an_artifact_is_named_by_its_bytes(folder: pathlib.Path) -> None:
    """A file's path is its SHA-256: what the manifest promises is what lies there."""
    artifact = open_artifact(folder)
    for name, blob in artifact.manifest.files.items():
        assert blob_of_file(artifact.path(name)) == blob
