"""Artifacts: bytes, sharing, and what is left behind when something goes wrong."""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import shutil

import numpy as np
import pytest
import tokenizers

from edge_sdk.wire.blobs import BlobStore, blob_of, blob_of_file
from edge_sdk.wire.manifest import TaskType
from edge_sdk.wire.tensors import TensorFile, read_tensors
from export.adapters import adapter_arrays
from export.artifact import ArtifactWriter, staged
from export.errors import ExportError
from export.foundation import open_foundation
from export.parity import Oracle, check_parity, require_parity
from export.program import adapt, places
from tests.export.conftest import Exported, contents
from tests.models import tiny_model


def test_the_seed_draws_the_adapter(bert: Exported) -> None:
    """Another seed gives another adapter, the same seed the same; a new classifier is drawn from it, too."""
    foundation, request = bert.program.adapted.foundation, bert.program.adapted.request
    first, same, other = (adapter_arrays(adapt(foundation, request, seed).parameters) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    drawn = [name for name in first if name.endswith("lora_A") or name == "head/classifier.weight"]
    assert not any(np.array_equal(first[name], other[name]) for name in drawn)


def test_every_promise_is_kept(exported: Exported) -> None:
    """Each file that a manifest names is there with its size and SHA-256, and no other."""
    promised = {blob for manifest in exported.manifests.values() for blob in manifest.files.values()}
    assert {blob_of_file(path) for path in (exported.folder / "blobs").iterdir()} == promised
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "blobs",
        *sorted(f"{level}.manifest" for level in exported.manifests),
    ]


def test_levels_share_what_is_equal(exported: Exported) -> None:
    """int8 levels share their tensors and graphs; all levels share adapter and tokenizer."""
    files = {level: manifest.files for level, manifest in exported.manifests.items()}
    assert set(files["int8-2layers-last1"].values()) <= set(files["int8"].values())
    for name in {"adapter.safetensors", "tokenizer.json", "context.onnx"} & set(files["fp32"]):
        assert len({level[name] for level in files.values()}) == 1


def test_fewer_bits_are_fewer_bytes(exported: Exported) -> None:
    """A block's matrices take in their file what their bits say; its vectors stay as they are."""
    block = next(place for place in exported.program.walk if place.layer == 0)
    matrices = [array for array in block.frozen().values() if array.ndim == 2]
    weights, rows = sum(m.size for m in matrices), sum(len(m) for m in matrices)
    padded = sum(len(m) * -(-m.shape[1] // 32) * 32 for m in matrices)
    wanted = {"fp32": 4 * weights, "fp16": 2 * weights, "int8": weights + 4 * rows, "int4": padded * 9 // 16}
    for level, size_bytes in wanted.items():
        tensors = read_tensors(exported.store.path(exported.manifests[level].files["block.0.safetensors"].sha256))
        vectors = sum(t.nbytes for name, t in tensors.items() if t.ndim == 1 and not name.endswith(".scale"))
        assert sum(t.nbytes for t in tensors.values()) - vectors == size_bytes


def test_tied_embedding_is_stored_once(llama: Exported) -> None:
    """Embedding and vocabulary projection are one file, which holds `matrix` [and its scale] alone."""
    for manifest in llama.manifests.values():
        loss = manifest.vocabulary_loss
        assert loss is not None
        assert loss.tensors == manifest.walk[0].tensors
        with TensorFile(llama.store.path(manifest.files[loss.tensors].sha256)) as file:
            assert set(file) == set(manifest.structures["embed"].frozen)


def test_graphs_know_shapes_and_no_values(llama: Exported, tmp_path: pathlib.Path) -> None:
    """Another model of the same shapes trains with the same graphs: here one whose vocabulary projection is its own.

    Its folder has no tokenizer: so has its artifact.
    """
    model = tiny_model("llama", tmp_path / "model", seed=9, tie_word_embeddings=False)
    (model / "tokenizer.json").unlink()
    foundation = open_foundation(model, TaskType.CAUSAL_LM, ())
    adapted = adapt(foundation, llama.program.adapted.request, seed=0)
    program = dataclasses.replace(llama.program, adapted=adapted, walk=places(adapted))
    with staged(tmp_path / "artifact") as store:
        manifest = ArtifactWriter(program, store).write(llama.manifests["int8"].level, 16)
    assert manifest.tokenizer == ""
    assert manifest.vocabulary_loss is not None
    assert manifest.vocabulary_loss.tensors == "vocabulary.safetensors"
    assert manifest.files["vocabulary.safetensors"] != manifest.files["embed.safetensors"]
    graphs = {name: blob for name, blob in manifest.files.items() if name.endswith(".onnx")}
    assert graphs.items() <= llama.manifests["int8"].files.items()
    require_parity(check_parity(Oracle(adapted), BlobStore(tmp_path / "artifact"), manifest))


def test_tensor_files_hold_what_the_graphs_take(exported: Exported) -> None:
    """Each segment's file has its structure's frozen inputs; the adapter's has every trained tensor, with its shape."""
    for level, manifest in exported.manifests.items():
        for segment in manifest.walk:
            with TensorFile(exported.store.path(manifest.files[segment.tensors].sha256)) as file:
                assert set(file) == set(manifest.structures[segment.structure].frozen)
        adapter = exported.initial_adapter(level)
        assert {n: adapter[n].shape for n in manifest.adapter_shapes()} == manifest.adapter_shapes()
        assert all(array.any() for name, array in adapter.items() if name.endswith("lora_A"))
        assert not any(array.any() for name, array in adapter.items() if name.endswith("lora_B"))


def test_tokenizer_travels_with_the_artifact(exported_text: Exported) -> None:
    """The tokenizer file of the model folder, byte for byte; its ids are within the vocabulary."""
    manifest = exported_text.manifests["fp32"]
    data = exported_text.store.read(manifest.files[manifest.tokenizer])
    ids = tokenizers.Tokenizer.from_buffer(data).encode("What the device knows, zażółć.").ids
    assert len(ids) > 0
    assert max(ids) < manifest.model.vocabulary


def test_failure_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """An error while blobs are written leaves no file and no folder; what was there before stays."""
    out = tmp_path / "deep" / "artifact"

    def fail() -> None:
        with staged(out) as store:
            store.put(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / "deep").iterdir()) == []


def store_all(out: pathlib.Path, *parts: bytes) -> None:
    """An artifact, or an addition to one, of these blobs; an empty one stands for what cannot be moved."""
    with staged(out) as store:
        for part in parts:
            if part:
                store.put(part)
            else:
                store.path("f" * 64).mkdir(parents=True)


def test_full_disk_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """Where a file cannot be written whole, one line says why, and no part of it is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # to a program, as a full disk is
    try:
        with pytest.raises(ExportError, match=r"cannot write .*artifact: File too large"):
            store_all(tmp_path / "artifact", b"small", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_failing_to_add_leaves_what_was_there(llama: Exported, tmp_path: pathlib.Path) -> None:
    """When not all blobs of a new level find their place in an artifact, none of them stays."""
    out = pathlib.Path(shutil.copytree(llama.folder, tmp_path / "artifact"))
    with pytest.raises(ExportError, match="cannot write"):
        store_all(out, b"first", b"second", b"")
    assert contents(out) == contents(llama.folder)
    assert list(tmp_path.iterdir()) == [out]
    store_all(out, b"first")
    assert BlobStore(out).has(blob_of(b"first"))


@pytest.mark.parametrize("damage", [b"first", b"cut"], ids=["a byte differs", "cut off"])
def test_exporting_again_heals(llama: Exported, tmp_path: pathlib.Path, damage: bytes) -> None:
    """A blob that was damaged on the disk is replaced by the one that is made anew, whatever its length is."""
    out = pathlib.Path(shutil.copytree(llama.folder, tmp_path / "artifact"))
    store_all(out, b"First")
    blob = blob_of(b"First")
    BlobStore(out).path(blob.sha256).write_bytes(damage)
    store_all(out, b"First")
    assert BlobStore(out).read(blob) == b"First"


def test_folder_that_cannot_be_written_is_one_line(tmp_path: pathlib.Path) -> None:
    """An output path below a file is refused with a line that names it."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(ExportError, match=r"cannot write to .*file: it is no folder"),
        staged(tmp_path / "file" / "artifact"),
    ):
        pass
